//! Every flag of Linkerd's proxy-init. It has no variables.

use crate::dialect::flags::{FlagDef, Kind, Words, flag, own};

/// What can be said to proxy-init.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linkerd;

impl Words for Linkerd {
    const FLAGS: &'static [FlagDef] = FLAGS;
    const VARIABLES: &'static [(&'static str, &'static str, &'static str)] = &[];
}

/// The flags of proxy-init, then Millrace's own.
const FLAGS: &[FlagDef] = &[
    flag(
        "incoming-proxy-port",
        Some('p'),
        Kind::Number,
        "",
        &[],
        "Port of the proxy that captured inbound connections go to; has to be given",
    ),
    flag(
        "outgoing-proxy-port",
        Some('o'),
        Kind::Number,
        "",
        &[],
        "Port of the proxy that captured outbound connections go to; has to be given",
    ),
    flag(
        "proxy-uid",
        Some('u'),
        Kind::Number,
        "-1",
        &[],
        "User id of the proxy, whose connections are left alone; -1 for none",
    ),
    flag(
        "proxy-gid",
        Some('g'),
        Kind::Number,
        "-1",
        &[],
        "Group id of the proxy, whose connections are left alone; -1 for none",
    ),
    flag(
        "ports-to-redirect",
        Some('r'),
        Kind::List,
        "",
        &[],
        "Inbound ports to capture, comma list; all when none is given",
    ),
    flag(
        "inbound-ports-to-ignore",
        None,
        Kind::List,
        "",
        &[],
        "Inbound ports and first-last ranges to leave alone, comma list",
    ),
    flag(
        "outbound-ports-to-ignore",
        None,
        Kind::List,
        "",
        &[],
        "Outbound ports and first-last ranges to leave alone, comma list",
    ),
    flag(
        "subnets-to-ignore",
        None,
        Kind::List,
        "",
        &[],
        "Networks whose inbound connections are left alone, comma list; of either family",
    ),
    flag(
        "simulate",
        None,
        Kind::Bool,
        "false",
        &[],
        "Touch nothing; log the commands of iptables that proxy-init would run",
    ),
    flag("netns", None, Kind::Text, "", &[], "Network namespace to work in, as a path"),
    flag(
        "use-wait-flag",
        Some('w'),
        Kind::Bool,
        "false",
        &[],
        "Wait for the xtables lock; Millrace always does, up to --wait",
    ),
    flag(
        "timeout-close-wait-secs",
        None,
        Kind::Number,
        "0",
        &[],
        "Seconds that connection tracking keeps connections in CLOSE_WAIT; 0 leaves that as it is",
    ),
    flag("log-format", None, Kind::Text, "plain", &[], "Form of the log: plain or json"),
    flag(
        "log-level",
        None,
        Kind::Text,
        "info",
        &[],
        "Least severe level: panic, fatal, error, warn, info, debug or trace",
    ),
    flag(
        "iptables-mode",
        None,
        Kind::Text,
        "",
        &[],
        "Which iptables to use: legacy, nft, or plain for whichever fits; wins over --firewall-bin-path",
    ),
    flag(
        "firewall-bin-path",
        None,
        Kind::Text,
        "",
        &[],
        "The same by name: iptables-legacy, iptables-nft or iptables; legacy when neither is given",
    ),
    flag("firewall-save-bin-path", None, Kind::Text, "", &[], "Accepted without effect"),
    flag("ipv6", None, Kind::Bool, "true", &[], "Capture IPv6 as well"),
    own(
        "native-nftables",
        Kind::Bool,
        "false",
        &[],
        "Native nftables rules instead of iptables, by netlink: no program is run",
    ),
    own(
        "wait",
        Kind::Duration,
        "30s",
        &["MILLRACE_WAIT"],
        "How long to wait for another run, and in whole seconds for the xtables lock",
    ),
];
