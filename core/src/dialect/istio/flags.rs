//! Every flag and variable of istio-iptables.

pub use crate::dialect::flags::{FlagDef, Kind, Words};
use crate::dialect::flags::{flag, own};

/// What can be said to istio-iptables.
#[derive(Clone, Copy, Debug, Default)]
pub struct Istio;

impl Words for Istio {
    const FLAGS: &'static [FlagDef] = FLAGS;
    const VARIABLES: &'static [(&'static str, &'static str, &'static str)] = VARIABLES;
}

/// The flags of istio-iptables 1.32, then Millrace's own.
pub const FLAGS: &[FlagDef] = &[
    flag(
        "envoy-port",
        Some('p'),
        Kind::Text,
        "15001",
        &[],
        "Port of the proxy that captured outbound connections go to",
    ),
    flag(
        "inbound-capture-port",
        Some('z'),
        Kind::Text,
        "15006",
        &["INBOUND_CAPTURE_PORT"],
        "Port of the proxy that captured inbound connections go to",
    ),
    flag(
        "inbound-tunnel-port",
        Some('e'),
        Kind::Text,
        "15008",
        &["INBOUND_TUNNEL_PORT"],
        "Port of the proxy for tunnels (HBONE); never captured",
    ),
    flag(
        "proxy-uid",
        Some('u'),
        Kind::List,
        "",
        &["PROXY_UID"],
        "User ids of the proxy, comma-separated [default: the user named by ENVOY_USER, else 1337]",
    ),
    flag(
        "proxy-gid",
        Some('g'),
        Kind::List,
        "",
        &["PROXY_GID"],
        "Group ids of the proxy, comma-separated [default: the same as --proxy-uid]",
    ),
    flag(
        "istio-inbound-interception-mode",
        Some('m'),
        Kind::Text,
        "",
        &["ISTIO_INBOUND_INTERCEPTION_MODE"],
        "How inbound connections reach the proxy: TPROXY, anything else means REDIRECT",
    ),
    flag(
        "istio-inbound-ports",
        Some('b'),
        Kind::Text,
        "",
        &["ISTIO_INBOUND_PORTS"],
        "Inbound ports to capture: *, a comma-separated list of ports and first:last ranges, or empty for none",
    ),
    flag(
        "istio-local-exclude-ports",
        Some('d'),
        Kind::Text,
        "",
        &["ISTIO_LOCAL_EXCLUDE_PORTS"],
        "Inbound ports to leave alone; only with -b '*'",
    ),
    flag(
        "istio-exclude-interfaces",
        Some('c'),
        Kind::Text,
        "",
        &["ISTIO_EXCLUDE_INTERFACES"],
        "Interfaces to leave alone in both directions",
    ),
    flag(
        "istio-service-cidr",
        Some('i'),
        Kind::Text,
        "",
        &["ISTIO_SERVICE_CIDR"],
        "Outbound networks to capture: *, a comma-separated list, or empty for none",
    ),
    flag(
        "istio-service-exclude-cidr",
        Some('x'),
        Kind::Text,
        "",
        &["ISTIO_SERVICE_EXCLUDE_CIDR"],
        "Outbound networks to leave alone",
    ),
    flag(
        "istio-outbound-ports",
        Some('q'),
        Kind::Text,
        "",
        &["ISTIO_OUTBOUND_PORTS"],
        "Outbound TCP ports to capture wherever they go",
    ),
    flag(
        "istio-local-outbound-ports-exclude",
        Some('o'),
        Kind::Text,
        "",
        &["ISTIO_LOCAL_OUTBOUND_PORTS_EXCLUDE"],
        "Outbound TCP and UDP ports to leave alone",
    ),
    flag(
        "kube-virt-interfaces",
        Some('k'),
        Kind::Text,
        "",
        &["KUBE_VIRT_INTERFACES"],
        "Interfaces whose incoming traffic counts as outbound (virtual machines behind the pod)",
    ),
    flag(
        "istio-inbound-tproxy-mark",
        Some('t'),
        Kind::Text,
        "1337",
        &["ISTIO_INBOUND_TPROXY_MARK"],
        "Packet mark for TPROXY",
    ),
    flag(
        "istio-inbound-tproxy-route-table",
        Some('r'),
        Kind::Text,
        "133",
        &["ISTIO_INBOUND_TPROXY_ROUTE_TABLE"],
        "Routing table for TPROXY",
    ),
    flag(
        "dry-run",
        Some('n'),
        Kind::Bool,
        "false",
        &["DRY_RUN"],
        "Change nothing; write what would be written to the log, and to DRY_RUN_FILE_PATH if that is set",
    ),
    flag(
        "iptables-probe-port",
        None,
        Kind::Number,
        "15002",
        &["IPTABLES_PROBE_PORT"],
        "Port for --run-validation",
    ),
    flag(
        "probe-timeout",
        None,
        Kind::Duration,
        "5s",
        &["PROBE_TIMEOUT"],
        "Time limit for --run-validation",
    ),
    flag(
        "skip-rule-apply",
        None,
        Kind::Bool,
        "false",
        &["SKIP_RULE_APPLY"],
        "Write neither rules nor routes",
    ),
    flag(
        "run-validation",
        None,
        Kind::Bool,
        "false",
        &["RUN_VALIDATION"],
        "Send real connections and see whether they are captured",
    ),
    flag(
        "redirect-dns",
        None,
        Kind::Bool,
        "false",
        &["REDIRECT_DNS", "ISTIO_META_DNS_CAPTURE"],
        "Capture DNS queries to the servers of /etc/resolv.conf",
    ),
    flag(
        "capture-all-dns",
        None,
        Kind::Bool,
        "false",
        &["CAPTURE_ALL_DNS"],
        "With --redirect-dns: capture DNS queries to every server",
    ),
    flag(
        "drop-invalid",
        None,
        Kind::Bool,
        "false",
        &["DROP_INVALID", "INVALID_DROP"],
        "Drop packets that belong to no connection",
    ),
    flag(
        "dual-stack",
        None,
        Kind::Bool,
        "false",
        &["DUAL_STACK", "ISTIO_DUAL_STACK"],
        "Capture IPv6 if the pod has any IPv6 address; Millrace does so without it",
    ),
    flag(
        "network-namespace",
        None,
        Kind::Text,
        "",
        &["NETWORK_NAMESPACE"],
        "Network namespace to work in, as a path; it is really entered, which istio-iptables does not do",
    ),
    flag(
        "cni-mode",
        None,
        Kind::Bool,
        "false",
        &["CNI_MODE"],
        "Run from the host's file system: a lock of the pod's own, no name service",
    ),
    flag(
        "reconcile",
        None,
        Kind::Bool,
        "false",
        &["RECONCILE"],
        "Replace differing rules of an earlier run instead of failing",
    ),
    flag(
        "cleanup-only",
        None,
        Kind::Bool,
        "false",
        &["CLEANUP_ONLY"],
        "Remove what any earlier run left, and write nothing",
    ),
    flag(
        "force-apply",
        None,
        Kind::Bool,
        "false",
        &["FORCE_APPLY"],
        "Write the rules even when they are there already",
    ),
    flag(
        "native-nftables",
        None,
        Kind::Bool,
        "false",
        &["NATIVE_NFTABLES"],
        "Native nftables rules instead of iptables, by netlink: no program is run. With TPROXY a table \
         more than the reference has drops connections while the proxy does not listen",
    ),
    flag(
        "force-iptables-binary",
        None,
        Kind::Text,
        "",
        &["FORCE_IPTABLES_BINARY"],
        "Which iptables to use: legacy, nft, or empty to choose by what holds rules",
    ),
    own(
        "wait",
        Kind::Duration,
        "30s",
        &["MILLRACE_WAIT"],
        "How long to wait for another run, and in whole seconds for the xtables lock",
    ),
    own(
        "ipv6-as-reference",
        Kind::Bool,
        "false",
        &["MILLRACE_IPV6_AS_REFERENCE"],
        "Capture IPv6 only when istio-iptables would: --dual-stack, or an IPv6 address first. Otherwise IPv6 of a dual-stack pod is captured always",
    ),
    own(
        "match-any-proxy-id",
        Kind::Bool,
        "false",
        &["MILLRACE_MATCH_ANY_PROXY_ID"],
        "Make several proxy user ids, and group ids alone, work; the rules then differ from istio-iptables'",
    ),
];

/// Variables without a flag: name, default, meaning.
pub const VARIABLES: &[(&str, &str, &str)] = &[
    (
        "ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR",
        "127.0.0.1/32",
        "IPv4 network that counts as localhost, 127.0.0.0/8 or smaller",
    ),
    (
        "ISTIO_OUTBOUND_OWNER_GROUPS",
        "*",
        "Groups whose outbound connections are captured; set but empty: none",
    ),
    (
        "ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE",
        "",
        "Groups whose outbound connections are left alone; only with all groups",
    ),
    ("ENVOY_USER", "istio-proxy", "User whose id is the default of --proxy-uid"),
    ("DRY_RUN_FILE_PATH", "", "With --dry-run: file for what would be done"),
];

/// Flags for the log, which the sub-command inherits: name, whether it is a boolean, meaning.
pub const LOG_FLAGS: &[(&str, bool, &str)] = &[
    ("log_target", false, "Where the log goes: stdout, stderr or a file; may be repeated"),
    ("log_as_json", true, "Log in JSON"),
    (
        "log_output_level",
        false,
        "Least severe level: [scope:]debug|info|warn|error|fatal|none, comma-separated",
    ),
    ("log_stacktrace_level", false, "Accepted without effect: there are no stack traces"),
    ("log_caller", false, "Accepted without effect: callers are not logged"),
    ("vklog", false, "Accepted without effect: there is no klog"),
];

/// Whether anything is set by the variable of this name.
pub fn is_variable(name: &str) -> bool {
    Istio::is_variable(name)
}

/// The flag whose name behind `--` this is; none where there is no such flag.
pub fn find(long: &str) -> Option<&'static FlagDef> {
    Istio::find(long)
}
