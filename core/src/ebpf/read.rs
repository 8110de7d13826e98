//! Back from a pod's entry to the policy that it is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use millrace_ebpf_common::{
    NETWORK_DNS, NETWORK_EXCLUDED, NETWORK_INCLUDED, NETWORK_SOURCE, PORT_INBOUND,
    PORT_OUTBOUND_EXCLUDED, PORT_OUTBOUND_INCLUDED, PodFlags,
};

use super::compile::is_v4;
use super::entry::Entry;
use super::more;
use crate::dialect::{ConfigErrors, Dialect};
use crate::infer::{Inferred, policy};
use crate::policy::{CapturePolicy, DnsCapture, DnsScope, DnsTarget, IdentityMatching};
use crate::source::{Source, Sourced};
use crate::value::{Cidr, PortRange};

/// An entry that is no policy's.
#[derive(Debug, thiserror::Error)]
#[error("the pod's entry in the eBPF maps can't be read back as a configuration")]
pub struct NoPolicy(#[from] ConfigErrors);

/// A network as the maps have it: its bytes, and how many bits of them count.
type Prefix = ([u8; 16], u8);

/// The policy of an entry that has the ids of its pod. Every part says which of Millrace's own flags
/// would have set it.
///
/// # Errors
/// When it is none: then somebody else has written it.
pub fn read(entry: &Entry, dialect: &Dialect) -> Result<CapturePolicy, NoPolicy> {
    let pod = &entry.pod;
    let mut found = Inferred { ipv6: pod.has(PodFlags::IPV6), ..Inferred::default() };
    let mut set = |flag, value: String| found.settings.insert(flag, value);
    set("outbound-port", pod.outbound_port.to_string());
    set("inbound-port", pod.inbound_port.to_string());
    let tunnels = pod.tunnel_port != 0;
    if tunnels {
        set("tunnel-port", pod.tunnel_port.to_string());
    }
    for (flag, ids, count) in
        [("proxy-uid", &pod.uids, pod.uid_count), ("proxy-gid", &pod.gids, pod.gid_count)]
    {
        let count = usize::try_from(count).unwrap_or(0);
        set(flag, list(ids.iter().take(count)));
    }
    // Own settings are of a proxy that is somebody; others leave that open.
    let is_nobody = pod.uid_count == 0 && pod.gid_count == 0;
    if is_nobody {
        set("proxy-uid", "0".to_owned());
    }
    set("exclude-users", list(&entry.users));
    set("exclude-inbound-cidrs", list(networks(entry, NETWORK_SOURCE)));
    let inbound = list(ports(entry, PORT_INBOUND));
    let (only, except) = match (pod.has(PodFlags::INBOUND), pod.has(PodFlags::INBOUND_ONLY)) {
        (false, _) => (String::new(), String::new()),
        (true, true) => (inbound, String::new()),
        (true, false) => ("*".to_owned(), inbound),
    };
    set("include-inbound-ports", only);
    set("exclude-inbound-ports", except);
    set("include-outbound-ports", list(ports(entry, PORT_OUTBOUND_INCLUDED)));
    set("exclude-outbound-ports", list(ports(entry, PORT_OUTBOUND_EXCLUDED)));
    set("exclude-outbound-cidrs", list(networks(entry, NETWORK_EXCLUDED)));
    let included = if pod.has(PodFlags::ALL_NETWORKS) {
        "*".to_owned()
    } else {
        let mut included: Vec<Cidr> = networks(entry, NETWORK_INCLUDED).collect();
        if pod.has(PodFlags::NAMES_LOOPBACK) {
            // What is around it, or of the family that is not captured, may have hidden it.
            included.push(Cidr::host(Ipv4Addr::LOCALHOST.into()));
        }
        list(included)
    };
    set("include-outbound-cidrs", included);
    let groups = list(&entry.groups);
    if pod.has(PodFlags::GROUPS_ONLY) {
        set("include-groups", groups);
    } else {
        set("exclude-groups", groups);
    }
    let localhost = IpAddr::from(u32::from_be(pod.localhost).to_be_bytes());
    let length = u32::from_be(pod.localhost_mask).count_ones();
    if let Some(localhost) = u8::try_from(length).ok().and_then(|l| Cidr::new(localhost, l)) {
        set("localhost-cidr", localhost.to_string());
    }
    if pod.has(PodFlags::DNS) {
        let all = pod.has(PodFlags::DNS_ALL);
        let servers = named(entry, NETWORK_DNS).filter_map(|prefix| cidr(*prefix));
        let servers: Vec<IpAddr> = servers.map(Cidr::address).collect();
        if pod.has(PodFlags::DNS_LED) {
            let source = || Source::Flag("--dns".to_owned());
            let server = |server| Sourced::new(server, source());
            found.dns_translated = Some(DnsCapture {
                to: DnsTarget::Servers(more::servers_of(entry, &source())),
                source: source(),
                scope: if all {
                    DnsScope::All(source())
                } else {
                    DnsScope::Servers(servers.into_iter().map(server).collect())
                },
            });
        } else {
            set("dns", if all { "all" } else { "servers" }.to_owned());
            set("dns-port", pod.dns_port.to_string());
            if !all {
                found.dns_servers = servers;
            }
        }
    }
    if pod.has(PodFlags::LOCALHOST_LED) {
        found.localhost_to = match IpAddr::from(entry.more.own.octets()).to_canonical() {
            IpAddr::V4(own) => Some(own),
            IpAddr::V6(_) => None,
        };
    }
    found.flows = more::flows_of(entry);
    let any = pod.has(PodFlags::ANY_IDENTITY);
    let matching = if any { IdentityMatching::Any } else { IdentityMatching::OneByOne };
    found.matching = Some(matching);
    let mut policy = policy(&found, dialect)?;
    if is_nobody {
        policy.proxy.uids.clear();
    }
    if !tunnels {
        policy.inbound.tunnel_port = None;
    }
    policy.conventions = more::conventions_of(entry);
    Ok(policy)
}

fn list<T: ToString>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(",")
}

/// The ports of a kind, as ranges.
fn ports(entry: &Entry, flag: u32) -> impl Iterator<Item = PortRange> {
    more::ranges(entry.ports.iter().map(|(chunk, ports)| (*chunk, *ports)), flag)
}

fn named(entry: &Entry, flag: u32) -> impl Iterator<Item = &Prefix> {
    entry.networks.iter().filter(move |(_, flags)| **flags & flag != 0).map(|(prefix, _)| prefix)
}

/// The networks of a kind, without those that only say what holds around them.
fn networks(entry: &Entry, flag: u32) -> impl Iterator<Item = Cidr> {
    let mut by_length: BTreeMap<u8, Vec<u128>> = BTreeMap::new();
    let mut kept = Vec::new();
    let mut prefixes: Vec<Prefix> = named(entry, flag).copied().collect();
    prefixes.sort_by_key(|(_, length)| *length);
    for prefix @ (octets, length) in prefixes {
        let bits = u128::from_be_bytes(octets);
        // What holds in IPv6 does not in IPv4.
        let shortest = if is_v4(&prefix) { 96 } else { 0 };
        let inside = by_length.range(shortest..).any(|(length, networks)| {
            let shift = 128_u32.saturating_sub(u32::from(*length));
            let mask = u128::MAX.checked_shl(shift).unwrap_or(0);
            networks.binary_search(&(bits & mask)).is_ok()
        });
        if !inside {
            // Those of one length come in order.
            by_length.entry(length).or_default().push(bits);
            kept.extend(cidr(prefix));
        }
    }
    kept.into_iter()
}

fn cidr((octets, length): Prefix) -> Option<Cidr> {
    let address = IpAddr::from(octets);
    match (address.to_canonical(), length.checked_sub(96)) {
        (v4 @ IpAddr::V4(_), Some(length)) => Cidr::new(v4, length),
        _ => Cidr::new(address, length),
    }
}
