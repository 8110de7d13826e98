//! What the programs decide about a connection, asked of an entry that is not in the kernel.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use millrace_ebpf_common::{
    Address, Connection, Direction, More, PORTS_IN_CHUNK, PodFlags, Protocol, Sets, Verdict, decide,
};

use super::entry::{Entry, address};
use crate::sim;

impl Sets for Entry {
    fn network(&self, _: u32, address: &Address) -> u32 {
        let whole = u128::from_be_bytes(address.octets());
        let around = self.networks.iter().filter(|((octets, length), _)| {
            let shift = 128_u32.saturating_sub(u32::from(*length));
            let differ = (u128::from_be_bytes(*octets) ^ whole).checked_shr(shift);
            differ.unwrap_or(0) == 0
        });
        around.max_by_key(|((_, length), _)| *length).map_or(0, |(_, flags)| *flags)
    }

    fn port(&self, _: u32, port: u16) -> u32 {
        self.ports.get(&(port / PORTS_IN_CHUNK)).map_or(0, |chunk| chunk.flags(port))
    }

    fn names_group(&self, _: u32, gid: u32) -> bool {
        self.groups.contains(&gid)
    }

    fn excludes_user(&self, _: u32, uid: u32) -> bool {
        self.users.contains(&uid)
    }

    fn more(&self, _: u32) -> Option<&More> {
        self.pod.has(PodFlags::HAS_MORE).then_some(&self.more)
    }

    fn flow(&self, _: u32, flow: u32, port: u16) -> u32 {
        let ports = self.flow_ports.get(&(flow, port / PORTS_IN_CHUNK));
        ports.map_or(0, |chunk| chunk.flags(port))
    }
}

/// What the programs decide about a connection in a pod that is this namespace, for its first packet;
/// none about what they don't look at. They see what arrives as rules before them left it, which is
/// `lookup`.
pub fn judge(
    entry: &Entry,
    namespace: &sim::Namespace,
    question: &sim::Question,
    lookup: Option<sim::Lookup>,
) -> Option<Verdict> {
    let protocol = match question.protocol {
        sim::Protocol::TCP => Protocol::Tcp,
        sim::Protocol::UDP => Protocol::Udp,
        _ => return None,
    };
    let outbound = question.direction == sim::Direction::Out;
    let any: IpAddr = match question.destination {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let asked = sim::Lookup {
        source: question.source.unwrap_or(any),
        destination: question.to(),
        by_loopback: namespace.keeps(question),
    };
    let seen = lookup.filter(|_| !outbound).unwrap_or(asked);
    let owner = question.owner.unwrap_or(sim::Identity { uid: 0, gid: 0 });
    let connection = Connection {
        direction: if outbound { Direction::Outbound } else { Direction::Inbound },
        protocol,
        uid: owner.uid,
        gid: owner.gid,
        source: address(seen.source),
        destination: address(seen.destination.ip()),
        port: seen.destination.port(),
        in_pod: seen.by_loopback.into(),
    };
    Some(decide(&entry.pod, entry, &connection))
}
