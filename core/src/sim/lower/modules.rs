//! Names of iptables' modules and targets, by what is known of them.

/// Targets that tell somebody of a packet, and leave the packet as it is.
pub(super) const NOTES: [&str; 8] =
    ["IDLETIMER", "LED", "LOG", "NFLOG", "ULOG", "TRACE", "AUDIT", "RATEEST"];
/// Targets that do something with a packet that its way does not depend on.
pub(super) const EFFECTS: [&str; 6] =
    ["TCPMSS", "TCPOPTSTRIP", "CLASSIFY", "CHECKSUM", "ECN", "TEE"];

/// Modules whose answer follows from the rule, the packet and its connection, or from what they have counted
/// themselves. Others ask what is held elsewhere: sets of ipset, lists of addresses seen, policies of `IPsec`,
/// or nobody knows what.
pub(super) const OWN: [&str; 55] = [
    "addrtype",
    "ah",
    "bpf",
    "cgroup",
    "cluster",
    "comment",
    "connbytes",
    "connlimit",
    "connmark",
    "conntrack",
    "cpu",
    "dccp",
    "dscp",
    "dst",
    "ecn",
    "esp",
    "eui64",
    "frag",
    "hashlimit",
    "hbh",
    "helper",
    "hl",
    "icmp",
    "icmp6",
    "icmpv6",
    "ipcomp",
    "iprange",
    "ipv6header",
    "l2tp",
    "length",
    "limit",
    "mac",
    "mark",
    "mh",
    "multiport",
    "owner",
    "physdev",
    "pkttype",
    "quota",
    "rpfilter",
    "rt",
    "sctp",
    "socket",
    "standard",
    "state",
    "statistic",
    "string",
    "tcp",
    "tcpmss",
    "time",
    "tos",
    "ttl",
    "u32",
    "udp",
    "udplite",
];
/// Targets that leave it to a program what becomes of a packet.
pub(super) const ASKED: [&str; 2] = ["QUEUE", "NFQUEUE"];

/// Modules that ask nothing without an option.
pub(super) const BARE: [&str; 11] = [
    "tcp",
    "udp",
    "comment",
    "icmp",
    "icmp6",
    "icmpv6",
    "sctp",
    "dccp",
    "udplite",
    "multiport",
    "standard",
];

/// Options that belong to no module.
pub(super) const COMMON: [&str; 7] = [
    "--source",
    "--destination",
    "--protocol",
    "--in-interface",
    "--out-interface",
    "--jump",
    "--goto",
];

/// Modules that ask for extension headers of IPv6, with the header's number: a packet without it is not
/// theirs, whatever their options say (`rt_mt6()` in `net/ipv6/netfilter/ip6t_rt.c`).
pub(super) const EXTENSIONS: [(&str, u8); 4] = [("hbh", 0), ("rt", 43), ("frag", 44), ("dst", 60)];
