//! Every setting of `kumactl install transparent-proxy`: its flag, its variable and its key of the
//! configuration file. kumactl has no flag for some, which are Millrace's.

use crate::dialect::flags::{FlagDef, Words, flags};

/// What can be said to `kumactl install transparent-proxy`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kuma;

impl Words for Kuma {
    const FLAGS: &'static [FlagDef] = FLAGS;
    const VARIABLES: &'static [(&'static str, &'static str, &'static str)] = &[];
}

/// What can be said to `kumactl uninstall transparent-proxy`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Uninstall;

impl Words for Uninstall {
    const FLAGS: &'static [FlagDef] = flags! {
        "dry-run": Bool = "false",
            "Say what would be done, and touch nothing";
        "verbose": Bool = "false",
            "Accepted without effect";
        own "wait": Number = "5",
            "Seconds to wait for another run, and for the xtables lock of iptables-legacy";
    };
    const VARIABLES: &'static [(&'static str, &'static str, &'static str)] = &[];
}

/// The flags of kumactl, then Millrace's own.
const FLAGS: &[FlagDef] = flags! {
    "config": List = "",
        "Read settings from these files, YAML or JSON, a later one wins; - is standard input";
    "kuma-dp-user" ["KUMA_TRANSPARENT_PROXY_KUMA_DP_USER", "kumaDPUser"]: Text = "",
        "User id or name of the proxy, whose connections are left alone [default: user 5678, \
         else user kuma-dp]";
    "ip-family-mode" ["KUMA_TRANSPARENT_PROXY_IP_FAMILY_MODE", "ipFamilyMode"]: Text = "dualstack",
        "Families to capture: dualstack, which is IPv6 as well where the host has it, or ipv4";
    "redirect-outbound-port"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_OUTBOUND_PORT", "redirect.outbound.port"]:
        Number = "15001",
        "Port of the proxy that captured outbound connections go to";
    "redirect-inbound"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_INBOUND_ENABLED", "redirect.inbound.enabled"]:
        Bool = "true",
        "Capture inbound connections";
    "redirect-inbound-port"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_INBOUND_PORT", "redirect.inbound.port"]:
        Number = "15006",
        "Port of the proxy that captured inbound connections go to";
    "exclude-inbound-ports"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_INBOUND_EXCLUDE_PORTS", "redirect.inbound.excludePorts"]:
        Text = "",
        "Inbound ports to leave alone, comma-separated; the last flag counts";
    "exclude-outbound-ports"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_OUTBOUND_EXCLUDE_PORTS",
         "redirect.outbound.excludePorts"]:
        Text = "",
        "Outbound ports to leave alone, comma-separated; the last flag counts";
    "exclude-inbound-ips"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_INBOUND_EXCLUDE_PORTS_FOR_IPS",
         "redirect.inbound.excludePortsForIPs"]:
        List = "",
        "Addresses and networks whose inbound connections are left alone, comma-separated, of \
         either family";
    "exclude-outbound-ips"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_OUTBOUND_EXCLUDE_PORTS_FOR_IPS",
         "redirect.outbound.excludePortsForIPs"]:
        List = "",
        "Addresses and networks to which nothing is captured, comma-separated, of either family";
    "exclude-outbound-ports-for-uids"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_OUTBOUND_EXCLUDE_PORTS_FOR_UIDS",
         "redirect.outbound.excludePortsForUIDs"]:
        Texts = "",
        "[[PROTOCOLS:]PORTS:]UIDS whose connections are left alone: tcp, udp or *; ports and \
         first-last ranges or *; a user id or first-last range";
    "redirect-dns"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_DNS_ENABLED", "redirect.dns.enabled"]: Bool = "false",
        "Capture DNS queries by UDP to the servers of resolv.conf";
    "redirect-all-dns-traffic"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_DNS_CAPTURE_ALL", "redirect.dns.captureAll"]:
        Bool = "false",
        "Capture all DNS queries by UDP; the flag is not given beside --redirect-dns";
    "redirect-dns-port"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_DNS_PORT", "redirect.dns.port"]: Number = "15053",
        "Port of the proxy that captured DNS queries go to";
    "skip-dns-conntrack-zone-split"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_DNS_SKIP_CONNTRACK_ZONE_SPLIT",
         "redirect.dns.skipConntrackZoneSplit"]:
        Bool = "false",
        "No conntrack zones of their own for captured DNS queries";
    "drop-invalid-packets"
        ["KUMA_TRANSPARENT_PROXY_DROP_INVALID_PACKETS", "dropInvalidPackets"]:
        Bool = "false",
        "Drop inbound packets that belong to no connection";
    "vnet" ["KUMA_TRANSPARENT_PROXY_REDIRECT_VNET_NETWORKS", "redirect.vnet.networks"]: List = "",
        "INTERFACE:NETWORK whose packets are treated as the pod's own; not supported";
    "redirect-inbound-insert-instead-of-append"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_INBOUND_INSERT_REDIRECT_INSTEAD_OF_APPEND",
         "redirect.inbound.insertRedirectInsteadOfAppend"]:
        Bool = "false",
        "Put inbound capture in front of rules that are there";
    "redirect-outbound-insert-instead-of-append"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_OUTBOUND_INSERT_REDIRECT_INSTEAD_OF_APPEND",
         "redirect.outbound.insertRedirectInsteadOfAppend"]:
        Bool = "false",
        "Put outbound capture in front of rules that are there";
    "iptables-logs" ["KUMA_TRANSPARENT_PROXY_LOG_ENABLED", "log.enabled"]: Bool = "false",
        "Have the kernel log packets; not supported: `millrace trace` tells of them";
    "disable-comments"
        ["KUMA_TRANSPARENT_PROXY_COMMENTS_DISABLED", "comments.disabled"]: Bool = "false",
        "No comments on rules";
    "iptables-executables"
        ["KUMA_TRANSPARENT_PROXY_IPTABLES_EXECUTABLES", "iptablesExecutables"]: List = "",
        "NAME:PATH of each program of iptables, comma-separated: which of them tells which iptables \
         is meant";
    "store-firewalld" ["KUMA_TRANSPARENT_PROXY_STORE_FIREWALLD", "storeFirewalld"]: Bool = "false",
        "Have firewalld keep the rules; not supported";
    "wait" ["KUMA_TRANSPARENT_PROXY_WAIT", "wait"]: Number = "5",
        "Seconds to wait for another run, and for the xtables lock of iptables-legacy";
    "wait-interval" ["KUMA_TRANSPARENT_PROXY_WAIT_INTERVAL", "waitInterval"]: Number = "0",
        "Accepted without effect";
    "max-retries" ["KUMA_TRANSPARENT_PROXY_RETRY_MAX_RETRIES", "retry.maxRetries"]: Number = "4",
        "Accepted without effect";
    "sleep-between-retries"
        ["KUMA_TRANSPARENT_PROXY_RETRY_SLEEP_BETWEEN_RETRIES", "retry.sleepBetweenRetries"]:
        Duration = "2s",
        "Accepted without effect";
    "dry-run" ["KUMA_TRANSPARENT_PROXY_DRY_RUN", "dryRun"]: Bool = "false",
        "Change nothing; print the rules as iptables-restore takes them";
    "verbose" ["KUMA_TRANSPARENT_PROXY_VERBOSE", "verbose"]: Bool = "false",
        "Print the rules in long words";
    own "include-inbound-ports"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_INBOUND_INCLUDE_PORTS", "redirect.inbound.includePorts"]:
        Text = "",
        "Inbound ports to capture, comma-separated; all when none is given";
    own "include-outbound-ports"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_OUTBOUND_INCLUDE_PORTS",
         "redirect.outbound.includePorts"]:
        Text = "",
        "Outbound ports to capture, comma-separated; all when none is given";
    own "redirect-outbound"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_OUTBOUND_ENABLED", "redirect.outbound.enabled"]:
        Bool = "true",
        "Capture outbound connections";
    own "exclude-inbound-ports-for-uids"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_INBOUND_EXCLUDE_PORTS_FOR_UIDS",
         "redirect.inbound.excludePortsForUIDs"]:
        Texts = "",
        "Not supported: who sent what arrives is not known";
    own "resolv-conf"
        ["KUMA_TRANSPARENT_PROXY_REDIRECT_DNS_RESOLV_CONFIG_PATH", "redirect.dns.resolvConfigPath"]:
        Text = "/etc/resolv.conf",
        "File that names the servers for --redirect-dns";
    own "iptables-log-level" ["KUMA_TRANSPARENT_PROXY_LOG_LEVEL", "log.level"]: Number = "7",
        "Accepted without effect";
    own "cni-mode" ["KUMA_TRANSPARENT_PROXY_CNI_MODE", "cniMode"]: Bool = "false",
        "The proxy's user needs not exist here, and is 5678 unless it is named";
    own "ebpf-enabled" ["KUMA_TRANSPARENT_PROXY_EBPF_ENABLED", "ebpf.enabled"]: Bool = "false",
        "Not supported: kumactl captures by eBPF no more either";
    own "native-nftables": Bool = "false",
        "Native nftables rules instead of iptables, by netlink: no program is run";
};
