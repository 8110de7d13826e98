//! What only some policies say: what users send to ports that is left alone, and what is led to addresses
//! that are none of the proxy's listeners.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use millrace_ebpf_common::{
    FLOW_TCP, FLOW_UDP, MAX_FLOWS, More, MoreFlags, PORTS_IN_CHUNK, PortChunk,
};

use super::compile::set;
use super::entry::{Entry, address};
use super::unsupported::Unsupported;
use crate::policy::{
    CapturePolicy, DnsConvention, DnsScope, DnsServer, DnsTarget, DnsTcp, ExceptPorts, Flow, Phase,
};
use crate::policy::{Conventions, Local, SelfCall};
use crate::ruleset::Protocol;
use crate::source::{Source, Sourced};
use crate::value::{Family, ListenPort, Port, PortRange, Uid, UidRange};
use millrace_ebpf_common::PodFlags;

/// The port of DNS (RFC 1035, 4.2).
const DNS: u16 = 53;

/// Ports of flows, by the place of the flow and by chunk.
type FlowPorts = BTreeMap<(u32, u16), PortChunk>;

/// What the programs look up beside a pod's own values.
pub(super) fn compile(
    policy: &CapturePolicy,
    refusals: &mut Vec<Unsupported>,
) -> (More, FlowPorts) {
    let mut more = More { flags: flags(policy), ..More::default() };
    let ports = flows(policy, &mut more, refusals);
    if let Some(DnsTarget::Servers(servers)) = policy.dns.as_ref().map(|dns| &dns.to) {
        // Of several of a family, the first one gets all queries.
        for server in servers.iter().rev() {
            let DnsServer { address: to, port } = server.value;
            let port = port.map_or(DNS, ListenPort::get);
            match Family::of(to) {
                Family::V4 => (more.dns4, more.dns4_port) = (address(to), port),
                Family::V6 => (more.dns6, more.dns6_port) = (address(to), port),
            }
            let localhost = to == IpAddr::V4(std::net::Ipv4Addr::LOCALHOST)
                || to == IpAddr::V6(std::net::Ipv6Addr::LOCALHOST);
            if !localhost && !is_elsewhere(to) {
                refusals.push(Unsupported::Translated(to, server.source.clone()));
            }
        }
    }
    if let Some(own) = &policy.outbound.localhost_to {
        let to = IpAddr::V4(own.value);
        more.own = address(to);
        if !is_elsewhere(to) {
            refusals.push(Unsupported::Translated(to, own.source.clone()));
        }
    }
    (more, ports)
}

/// Whether a socket that is connected there sends to this very address.
fn is_elsewhere(ip: IpAddr) -> bool {
    let special = match ip {
        IpAddr::V4(ip) => ip.is_broadcast() || ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    ip == ip.to_canonical()
        && !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() || special)
}

fn flags(policy: &CapturePolicy) -> u32 {
    let mut switches = vec![(MoreFlags::INTERFACES_LAST, policy.conventions.interfaces_last)];
    match policy.conventions.dns {
        DnsConvention::AmongOutbound { zones } => switches.push((MoreFlags::NO_ZONES, !zones)),
        DnsConvention::Ahead { tcp, spares_proxy, in_front, zones } => {
            let asked = |family| match policy.dns.as_ref().map(|dns| &dns.scope) {
                None => false,
                Some(DnsScope::All(_)) => true,
                Some(scope @ DnsScope::Servers(_)) => scope.servers(family).next().is_some(),
            };
            switches.extend([
                (MoreFlags::NO_ZONES, !zones),
                (MoreFlags::DNS_V4, asked(Family::V4)),
                (MoreFlags::DNS_V6, policy.ipv6.value && asked(Family::V6)),
                (MoreFlags::DNS_TCP_ALONE, tcp == DnsTcp::Bypassed),
                (MoreFlags::DNS_SPARES_PROXY, spares_proxy),
                (MoreFlags::DNS_IN_FRONT, in_front),
            ]);
        }
    }
    switches.into_iter().filter(|(_, on)| *on).fold(0, |all, (flag, _)| all | flag)
}

/// By ranges of users, the ports of TCP and of UDP that are left alone.
fn flows(policy: &CapturePolicy, more: &mut More, refusals: &mut Vec<Unsupported>) -> FlowPorts {
    let mut by_users: BTreeMap<UidRange, [BTreeSet<u16>; 2]> = BTreeMap::new();
    for flow in &policy.outbound.except_flows {
        let Flow { protocols, ports, users } = &flow.value;
        let named = by_users.entry(*users).or_default();
        for (protocol, of) in [Protocol::Tcp, Protocol::Udp].into_iter().zip(named) {
            let ranges = ports.iter().filter(|_| protocols.contains(&protocol));
            of.extend(ranges.flat_map(|r| r.first().get().max(1)..=r.last().get()));
        }
    }
    if by_users.len() > MAX_FLOWS {
        refusals.push(Unsupported::Flows(by_users.len()));
    }
    let mut chunks = FlowPorts::new();
    for ((at, (users, named)), place) in (0_u32..).zip(by_users).zip(&mut more.flows) {
        *place = [users.first().get(), users.last().get()];
        more.flow_count = at + 1;
        for ((of, flag), shift) in named.into_iter().zip([FLOW_TCP, FLOW_UDP]).zip([0, 16]) {
            if of.len() == usize::from(u16::MAX) {
                more.every_port |= 1 << (at + shift);
                continue;
            }
            for port in of {
                let key = (at, port / PORTS_IN_CHUNK);
                set(chunks.entry(key).or_insert(PortChunk::EMPTY), port, flag);
            }
        }
    }
    chunks
}

/// What users send to ports that is left alone.
pub(super) fn flows_of(entry: &Entry) -> Vec<Flow> {
    let count = usize::try_from(entry.more.flow_count).unwrap_or(0);
    let flows = (0_u32..).zip(entry.more.flows.iter().take(count));
    let of = flows.flat_map(|(at, users)| {
        let protocols = [(Protocol::Tcp, FLOW_TCP), (Protocol::Udp, FLOW_UDP)];
        protocols.into_iter().filter_map(move |(protocol, flag)| {
            let ports = if entry.more.is_of_every_port(at, protocol == Protocol::Tcp) {
                vec![PortRange::new(Port::new(1), Port::new(u16::MAX))?]
            } else {
                let chunks = entry.flow_ports.range((at, 0)..=(at, u16::MAX));
                ranges(chunks.map(|((_, chunk), ports)| (*chunk, *ports)), flag).collect()
            };
            let users = UidRange::new(Uid::new(users[0])?, Uid::new(users[1])?)?;
            (!ports.is_empty()).then(|| Flow { protocols: vec![protocol], ports, users })
        })
    });
    of.collect()
}

/// The ports of a kind in bitmaps, as ranges.
pub(super) fn ranges(
    chunks: impl Iterator<Item = (u16, PortChunk)>,
    flag: u32,
) -> impl Iterator<Item = PortRange> {
    let mut ranges: Vec<(u16, u16)> = Vec::new();
    for (chunk, ports) in chunks {
        let first = chunk.saturating_mul(PORTS_IN_CHUNK);
        for port in (0..PORTS_IN_CHUNK).map(|at| first.saturating_add(at)) {
            if ports.flags(port) & flag == 0 {
                continue;
            }
            match ranges.last_mut().filter(|(_, last)| last.checked_add(1) == Some(port)) {
                Some((_, last)) => *last = port,
                None => ranges.push((port, port)),
            }
        }
    }
    ranges.into_iter().filter_map(|(first, last)| PortRange::new(Port::new(first), Port::new(last)))
}

/// The servers that DNS queries are led to.
pub(super) fn servers_of(entry: &Entry, source: &Source) -> Vec<Sourced<DnsServer>> {
    let of = |v4| {
        let (address, port) = entry.more.dns(v4);
        let port = ListenPort::new(port)?;
        let address = IpAddr::from(address.octets()).to_canonical();
        Some(Sourced::new(DnsServer { address, port: Some(port) }, source.clone()))
    };
    [true, false].into_iter().filter_map(of).collect()
}

/// What the mesh takes for granted whose policy an entry is.
pub(super) fn conventions_of(entry: &Entry) -> Conventions {
    let (pod, more) = (&entry.pod, &entry.more);
    let phase = |ahead, other, usual, moved| match (pod.has(ahead), pod.has(other)) {
        (true, _) => Phase::Ahead,
        (false, true) => moved,
        (false, false) => usual,
    };
    let zones = !more.has(MoreFlags::NO_ZONES);
    Conventions {
        local: match (pod.has(PodFlags::LO_ONLY), pod.has(PodFlags::LOCALHOST_ONLY)) {
            (true, _) => Local::Lo,
            (false, true) => Local::Localhost,
            (false, false) => Local::LoAndLocalhost,
        },
        self_call: if pod.has(PodFlags::SELF_CALLS_PASS) {
            SelfCall::Pass
        } else {
            SelfCall::Inbound
        },
        passthrough: !pod.has(PodFlags::NO_PASSTHROUGH),
        except_ports: ExceptPorts {
            phase: phase(PodFlags::PORTS_AHEAD, PodFlags::PORTS_LAST, Phase::First, Phase::Last),
            udp: !pod.has(PodFlags::PORTS_OF_TCP),
        },
        except_networks: phase(
            PodFlags::NETWORKS_AHEAD,
            PodFlags::NETWORKS_FIRST,
            Phase::Last,
            Phase::First,
        ),
        except_users: phase(PodFlags::USERS_AHEAD, PodFlags::USERS_LAST, Phase::First, Phase::Last),
        interfaces_last: more.has(MoreFlags::INTERFACES_LAST),
        dns: if pod.has(PodFlags::DNS_AHEAD) {
            let alone = more.has(MoreFlags::DNS_TCP_ALONE);
            DnsConvention::Ahead {
                tcp: if alone { DnsTcp::Bypassed } else { DnsTcp::Captured },
                spares_proxy: more.has(MoreFlags::DNS_SPARES_PROXY),
                in_front: more.has(MoreFlags::DNS_IN_FRONT),
                zones,
            }
        } else {
            DnsConvention::AmongOutbound { zones }
        },
    }
}
