//! Every flag of Linkerd's proxy-init. It has no variables.

use crate::dialect::flags::{FlagDef, Words, flags};

/// What can be said to proxy-init.
#[derive(Clone, Copy, Debug, Default)]
pub struct Linkerd;

impl Words for Linkerd {
    const FLAGS: &'static [FlagDef] = FLAGS;
    const VARIABLES: &'static [(&'static str, &'static str, &'static str)] = &[];
}

/// The flags of proxy-init, then Millrace's own.
const FLAGS: &[FlagDef] = flags! {
    "incoming-proxy-port" / 'p': Number = "",
        "Port of the proxy that captured inbound connections go to; has to be given";
    "outgoing-proxy-port" / 'o': Number = "",
        "Port of the proxy that captured outbound connections go to; has to be given";
    "proxy-uid" / 'u': Number = "-1",
        "User id of the proxy, whose connections are left alone; -1 for none";
    "proxy-gid" / 'g': Number = "-1",
        "Group id of the proxy, whose connections are left alone; -1 for none";
    "ports-to-redirect" / 'r': List = "",
        "Inbound ports to capture, comma-separated; all when none is given";
    "inbound-ports-to-ignore": List = "",
        "Inbound ports and first-last ranges to leave alone, comma-separated";
    "outbound-ports-to-ignore": List = "",
        "Outbound ports and first-last ranges to leave alone, comma-separated";
    "subnets-to-ignore": List = "",
        "Networks whose inbound connections are left alone, comma-separated; of either family";
    "simulate": Bool = "false",
        "Change nothing; log the commands of iptables that proxy-init would run";
    "netns": Text = "",
        "Network namespace to work in: a path, a process id, or a name of `ip netns`";
    "use-wait-flag" / 'w': Bool = "false",
        "Wait for the xtables lock; Millrace always does, up to --wait";
    "timeout-close-wait-secs": Number = "0",
        "Seconds that connection tracking keeps connections in CLOSE_WAIT; 0 leaves that as it is";
    "log-format": Text = "plain",
        "Form of the log: plain or json";
    "log-level": Text = "info",
        "Least severe level: panic, fatal, error, warn, info, debug or trace";
    "iptables-mode": Text = "",
        "Which iptables to use: legacy, nft, or plain for whichever fits; wins over --firewall-bin-path";
    "firewall-bin-path": Text = "",
        "The same by name: iptables-legacy, iptables-nft or iptables; legacy when neither is given";
    "firewall-save-bin-path": Text = "",
        "Accepted without effect";
    "ipv6": Bool = "true",
        "Capture IPv6 as well";
    own "native-nftables": Bool = "false",
        "Native nftables rules instead of iptables, by netlink: no program is run";
    own "wait" ["MILLRACE_WAIT"]: Duration = "30s",
        "How long to wait for another run, and in whole seconds for the xtables lock";
};
