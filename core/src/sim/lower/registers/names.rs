//! What nft calls what a register can hold (`linux/netfilter/nf_tables.h`).

/// What nft calls the numbers of `enum nft_meta_keys`.
pub(super) const META: [&str; 36] = [
    "length",
    "protocol",
    "priority",
    "mark",
    "iif",
    "oif",
    "iifname",
    "oifname",
    "iiftype",
    "oiftype",
    "skuid",
    "skgid",
    "nftrace",
    "rtclassid",
    "secmark",
    "nfproto",
    "l4proto",
    "ibrname",
    "obrname",
    "pkttype",
    "cpu",
    "iifgroup",
    "oifgroup",
    "cgroup",
    "random",
    "ipsec",
    "iifkind",
    "oifkind",
    "ibrpvid",
    "ibrvproto",
    "time",
    "day",
    "hour",
    "sdif",
    "sdifname",
    "broute",
];
/// What nft calls the numbers of `enum nft_ct_keys`.
pub(super) const CT: [&str; 24] = [
    "state",
    "direction",
    "status",
    "mark",
    "secmark",
    "expiration",
    "helper",
    "l3proto",
    "saddr",
    "daddr",
    "protocol",
    "proto-src",
    "proto-dst",
    "label",
    "packets",
    "bytes",
    "avgpkt",
    "zone",
    "event",
    "ip saddr",
    "ip daddr",
    "ip6 saddr",
    "ip6 daddr",
    "id",
];

/// A key as nft writes it, or its number where it has no name here.
pub(super) fn named(of: &str, names: &[&str], key: u32) -> String {
    let name = usize::try_from(key).ok().and_then(|key| names.get(key));
    name.map_or_else(|| format!("{of}, key {key}"), |name| format!("{of} {name}"))
}
