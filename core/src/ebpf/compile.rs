//! The policy as a pod's entry.

use std::collections::{BTreeMap, BTreeSet};

use millrace_ebpf_common::{
    MAX_IDENTITIES, More, NETWORK_DNS, NETWORK_EXCLUDED, NETWORK_INCLUDED, NETWORK_SOURCE,
    PORT_INBOUND, PORT_OUTBOUND_EXCLUDED, PORT_OUTBOUND_INCLUDED, PORTS_IN_CHUNK, Pod, PodFlags,
    PortChunk,
};

use super::entry::{Entry, address};
use super::unsupported::{Unsupported, UnsupportedParts};
use super::{MAX_GROUPS, MAX_NETWORKS, more};
use crate::policy::{
    CapturePolicy, Conventions, DnsCapture, DnsScope, DnsTarget, GroupSelection, IdentityMatching,
    InboundMode, InboundSelection, Local, NetworkSelection, Phase, SelfCall,
};
use crate::ruleset::Owner;
use crate::source::Sourced;
use crate::value::{Cidr, Family, Groups, ListenPort, PortRange};

/// What the programs look up for `policy`, with the numbers of groups that it names.
///
/// # Errors
/// Everything that this backend can't do.
pub fn compile(policy: &CapturePolicy, groups: &Groups) -> Result<Entry, UnsupportedParts> {
    let mut refusals = unable(policy);
    let mut flags = flags(policy);
    let ports = ports(policy);
    let networks = networks(policy, &mut refusals);
    let groups = named_groups(policy, groups, &mut refusals);
    let users: BTreeSet<u32> =
        policy.outbound.except_users.iter().map(|user| user.value.get()).collect();
    if users.len() > MAX_GROUPS {
        refusals.push(Unsupported::Users(users.len()));
    }
    let (more, flow_ports) = more::compile(policy, &mut refusals);
    if !ports.is_empty() {
        flags |= PodFlags::HAS_PORTS;
    }
    if !networks.is_empty() {
        flags |= PodFlags::HAS_NETWORKS;
    }
    if !groups.is_empty() {
        flags |= PodFlags::HAS_GROUPS;
    }
    if networks.values().any(|flags| flags & NETWORK_SOURCE != 0) {
        flags |= PodFlags::HAS_SOURCES;
    }
    if !users.is_empty() {
        flags |= PodFlags::HAS_USERS;
    }
    if more != More::default() {
        flags |= PodFlags::HAS_MORE;
    }
    let mut pod = Pod {
        flags,
        outbound_port: policy.outbound.port.value.get(),
        inbound_port: policy.inbound.port.value.get(),
        dns_port: policy.dns.as_ref().and_then(DnsCapture::listener).map_or(0, ListenPort::get),
        tunnel_port: policy.inbound.tunnel_port.as_ref().map_or(0, |port| port.value.get()),
        ..Pod::default()
    };
    let localhost = policy.localhost.value.network();
    pod.localhost = address(localhost.address()).word4();
    let shift = 32_u32.saturating_sub(localhost.length().into());
    pod.localhost_mask = u32::MAX.checked_shl(shift).unwrap_or(0).to_be();
    let uids = policy.proxy.uids.iter().map(|uid| uid.value.get());
    let gids = policy.proxy.gids.iter().map(|gid| gid.value.get());
    pod.uid_count = fill(&mut pod.uids, uids);
    pod.gid_count = fill(&mut pod.gids, gids);
    if refusals.is_empty() {
        Ok(Entry { pod, more, networks, ports, flow_ports, groups, users })
    } else {
        Err(UnsupportedParts(refusals))
    }
}

fn fill(places: &mut [u32], ids: impl Iterator<Item = u32>) -> u32 {
    places.iter_mut().zip(ids).map(|(place, id)| *place = id).fold(0, |count, ()| count + 1)
}

/// What of the policy's kind this backend has no means for.
fn unable(policy: &CapturePolicy) -> Vec<Unsupported> {
    let mut refusals = Vec::new();
    if let InboundMode::Tproxy { source, .. } = &policy.inbound.mode {
        refusals.push(Unsupported::Tproxy(source.clone()));
    }
    if policy.proxy.marks.is_some() || !policy.inbound.probes.is_empty() {
        refusals.push(Unsupported::Marks);
    }
    if policy.conventions.local == Local::Addresses && asks_of_own(policy) {
        refusals.push(Unsupported::OwnAddresses);
    }
    if let Some(source) = &policy.drop_invalid {
        refusals.push(Unsupported::DropInvalid(source.clone()));
    }
    if let Some(nic) = policy.interfaces.excluded.first() {
        refusals.push(Unsupported::ExcludedInterface(nic.source.clone()));
    }
    if let Some(nic) = policy.interfaces.rerouted.first() {
        refusals.push(Unsupported::ReroutedInterface(nic.source.clone()));
    }
    let uid = policy.proxy.uids.get(MAX_IDENTITIES).map(|uid| &uid.source);
    let gid = policy.proxy.gids.get(MAX_IDENTITIES).map(|gid| &gid.source);
    if let Some(source) = uid.or(gid) {
        refusals.push(Unsupported::Identities(source.clone()));
    }
    refusals
}

/// Whether the programs would ask anything of a connection to an address of the pod that they have no answer
/// for but to let it past.
fn asks_of_own(policy: &CapturePolicy) -> bool {
    let proxy = &policy.proxy;
    proxy.matching != IdentityMatching::Any
        || proxy.uids.is_empty() && proxy.gids.is_empty()
        || policy.conventions.self_call != SelfCall::Pass
        || policy.outbound.networks.names_loopback()
        || policy.dns.is_some() && !policy.conventions.dns.is_ahead()
}

fn flags(policy: &CapturePolicy) -> u32 {
    let selection = &policy.inbound.selection;
    let groups = &policy.outbound.groups;
    let switches = [
        (PodFlags::IPV6, policy.ipv6.value),
        (PodFlags::ANY_IDENTITY, policy.proxy.matching == IdentityMatching::Any),
        (PodFlags::NAMES_LOOPBACK, policy.outbound.networks.names_loopback()),
        (PodFlags::ALL_NETWORKS, matches!(policy.outbound.networks, NetworkSelection::All(_))),
        (PodFlags::GROUPS_ONLY, matches!(groups, GroupSelection::Only { .. })),
        (PodFlags::DNS, policy.dns.is_some()),
        (
            PodFlags::DNS_ALL,
            policy.dns.as_ref().is_some_and(|dns| matches!(dns.scope, DnsScope::All(_))),
        ),
        (PodFlags::INBOUND, selection.captures()),
        (PodFlags::INBOUND_ONLY, matches!(selection, InboundSelection::Only { .. })),
        (PodFlags::HAS_FLOWS, !policy.outbound.except_flows.is_empty()),
        (
            PodFlags::DNS_LED,
            policy.dns.as_ref().is_some_and(|dns| matches!(dns.to, DnsTarget::Servers(_))),
        ),
        (PodFlags::LOCALHOST_LED, policy.outbound.localhost_to.is_some()),
    ];
    let switches = switches.into_iter().chain(meant(&policy.conventions));
    switches.filter(|(_, on)| *on).fold(0, |all, (flag, _)| all | flag)
}

/// The switches of what a mesh takes for granted; none of Millrace's own settings.
pub(super) fn meant(conventions: &Conventions) -> [(u32, bool); 12] {
    let Conventions { local, self_call, passthrough, except_ports, .. } = *conventions;
    let (ports, networks, users) =
        (except_ports.phase, conventions.except_networks, conventions.except_users);
    [
        // What goes to an address of the pod goes over `lo`, and the programs capture nothing that arrives by it.
        (PodFlags::LO_ONLY, matches!(local, Local::Lo | Local::Addresses)),
        (PodFlags::LOCALHOST_ONLY, local == Local::Localhost),
        (PodFlags::SELF_CALLS_PASS, self_call == SelfCall::Pass),
        (PodFlags::NO_PASSTHROUGH, !passthrough),
        (PodFlags::PORTS_AHEAD, ports == Phase::Ahead),
        (PodFlags::PORTS_LAST, ports == Phase::Last),
        (PodFlags::PORTS_OF_TCP, !except_ports.udp),
        (PodFlags::NETWORKS_AHEAD, networks == Phase::Ahead),
        (PodFlags::NETWORKS_FIRST, networks == Phase::First),
        (PodFlags::USERS_AHEAD, users == Phase::Ahead),
        (PodFlags::USERS_LAST, users == Phase::Last),
        (PodFlags::DNS_AHEAD, conventions.dns.is_ahead()),
    ]
}

fn ports(policy: &CapturePolicy) -> BTreeMap<u16, PortChunk> {
    let mut chunks = BTreeMap::new();
    let mut name = |ranges: &[Sourced<PortRange>], flag: u32| {
        for port in ranges.iter().flat_map(|r| r.value.first().get()..=r.value.last().get()) {
            let chunk = chunks.entry(port / PORTS_IN_CHUNK).or_insert(PortChunk::EMPTY);
            set(chunk, port, flag);
        }
    };
    name(&policy.outbound.except_ports, PORT_OUTBOUND_EXCLUDED);
    name(&policy.outbound.ports, PORT_OUTBOUND_INCLUDED);
    match &policy.inbound.selection {
        InboundSelection::Nothing => {}
        InboundSelection::AllExcept { except, .. } => name(except, PORT_INBOUND),
        InboundSelection::Only { ports, except } => {
            name(ports, PORT_INBOUND);
            for port in except.iter().flat_map(|r| r.value.first().get()..=r.value.last().get()) {
                if let Some(chunk) = chunks.get_mut(&(port / PORTS_IN_CHUNK)) {
                    unset(chunk, port);
                }
            }
        }
    }
    chunks
}

pub(super) fn set(chunk: &mut PortChunk, port: u16, flag: u32) {
    let at = usize::from(port % PORTS_IN_CHUNK / 64);
    let words =
        chunk.words.iter_mut().zip([PORT_OUTBOUND_EXCLUDED, PORT_OUTBOUND_INCLUDED, PORT_INBOUND]);
    for (bitmap, of) in words {
        if let Some(word) = bitmap.get_mut(at).filter(|_| of == flag) {
            *word |= 1 << (port % 64);
        }
    }
}

/// Take a port off those that are captured on their way in.
fn unset(chunk: &mut PortChunk, port: u16) {
    let at = usize::from(port % PORTS_IN_CHUNK / 64);
    let words =
        chunk.words.iter_mut().zip([PORT_OUTBOUND_EXCLUDED, PORT_OUTBOUND_INCLUDED, PORT_INBOUND]);
    for (bitmap, _) in words.filter(|(_, of)| *of == PORT_INBOUND) {
        if let Some(word) = bitmap.get_mut(at) {
            *word &= !(1 << (port % 64));
        }
    }
}

/// A network as the programs look for it: its 16 bytes, and how many bits of them count.
fn prefix(cidr: Cidr) -> ([u8; 16], u8) {
    let network = cidr.network();
    let extra = if network.family() == Family::V4 { 96 } else { 0 };
    (address(network.address()).octets(), network.length() + extra)
}

/// The network of IPv4 among those of IPv6 (RFC 4291, 2.5.5.2).
const IPV4: ([u8; 16], u8) = ([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0], 96);

/// Whether a network is one of IPv4.
pub(super) fn is_v4(&(bytes, length): &([u8; 16], u8)) -> bool {
    length >= IPV4.1 && cut(bytes, IPV4.1) == IPV4.0
}

/// The bytes with all bits behind a length cleared.
fn cut(bytes: [u8; 16], length: u8) -> [u8; 16] {
    let mask = u128::MAX.checked_shl(128_u32.saturating_sub(length.into())).unwrap_or(0);
    (u128::from_be_bytes(bytes) & mask).to_be_bytes()
}

fn networks(
    policy: &CapturePolicy,
    refusals: &mut Vec<Unsupported>,
) -> BTreeMap<([u8; 16], u8), u32> {
    let mut named: BTreeMap<([u8; 16], u8), u32> = BTreeMap::new();
    let captured = |cidr: Cidr| cidr.family() == Family::V4 || policy.ipv6.value;
    let mut name = |cidr: Cidr, flag: u32| {
        if captured(cidr) {
            *named.entry(prefix(cidr)).or_insert(0) |= flag;
        }
    };
    for network in &policy.outbound.except_networks {
        name(network.value, NETWORK_EXCLUDED);
    }
    if let NetworkSelection::Only(networks) = &policy.outbound.networks {
        for network in networks {
            name(network.value, NETWORK_INCLUDED);
        }
    }
    for network in &policy.inbound.except_sources {
        name(network.value, NETWORK_SOURCE);
    }
    if let Some(DnsScope::Servers(servers)) = policy.dns.as_ref().map(|dns| &dns.scope) {
        for server in servers {
            name(Cidr::host(server.value), NETWORK_DNS);
        }
    }
    if named.len() > MAX_NETWORKS {
        refusals.push(Unsupported::Networks(named.len()));
    }
    // A network of IPv6 says nothing of IPv4, also when it is so large that it has IPv4 in it.
    let around =
        |(bytes, length): &([u8; 16], u8)| *length < IPV4.1 && cut(IPV4.0, *length) == *bytes;
    if named.keys().any(around) {
        named.entry(IPV4).or_insert(0);
    }
    // Only the smallest network around an address is found: it says what holds in the others too.
    let lengths: BTreeSet<u8> = named.keys().map(|(_, length)| *length).collect();
    let inherited = |prefix: &([u8; 16], u8), own: u32| {
        let (bytes, length) = *prefix;
        let shortest = if is_v4(prefix) { IPV4.1 } else { 0 };
        lengths
            .range(shortest..length)
            .filter_map(|shorter| named.get(&(cut(bytes, *shorter), *shorter)))
            .fold(own, |all, flags| all | (flags & !NETWORK_DNS))
    };
    named.iter().map(|(prefix, flags)| (*prefix, inherited(prefix, *flags))).collect()
}

fn named_groups(
    policy: &CapturePolicy,
    numbers: &Groups,
    refusals: &mut Vec<Unsupported>,
) -> BTreeSet<u32> {
    let (GroupSelection::AllExcept(groups) | GroupSelection::Only { groups, .. }) =
        &policy.outbound.groups;
    let mut named = BTreeSet::new();
    for group in groups {
        match &group.value {
            Owner::Gid(gid) => {
                named.insert(gid.get());
            }
            Owner::Group(name) => match numbers.get(name) {
                Some(gid) => {
                    named.insert(gid.get());
                }
                None => {
                    refusals.push(Unsupported::UnknownGroup(name.clone(), group.source.clone()));
                }
            },
            Owner::Uid(_) | Owner::Uids(_) => {
                refusals.push(Unsupported::UserForGroup(group.source.clone()));
            }
        }
    }
    if named.len() > MAX_GROUPS {
        refusals.push(Unsupported::Groups(named.len()));
    }
    named
}
