//! The decision: what a pod's policy means for one connection. It asks in the order in which the
//! rules of iptables for the same policy would be met.

use crate::address::Address;
use crate::maps::{
    NETWORK_DNS, NETWORK_EXCLUDED, NETWORK_INCLUDED, PORT_INBOUND, PORT_OUTBOUND_EXCLUDED,
    PORT_OUTBOUND_INCLUDED, Pod, PodFlags,
};
use crate::verdict::{Class, Verdict};

/// The port of DNS (RFC 1035, 4.2).
const DNS: u16 = 53;

/// Which way a connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Begun in the pod.
    Outbound,
    /// Arriving at the pod.
    Inbound,
}

/// What it is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A connection, or a datagram of a socket that is not connected.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// Which way it goes.
    pub direction: Direction,
    /// What it is made of.
    pub protocol: Protocol,
    /// The user of the process that begins it, in the initial user namespace.
    pub uid: u32,
    /// Its group, likewise.
    pub gid: u32,
    /// Where it comes from; the unspecified address while that is not chosen.
    pub source: Address,
    /// Where it goes.
    pub destination: Address,
    /// To which port.
    pub port: u16,
    /// Whether it stays in the pod: on its way out, since it goes to an address that the pod has by
    /// now; on its way in, since it comes from a socket of the pod. 1 or 0, in a whole word.
    pub in_pod: u32,
}

// Without gaps: verifiers before Linux 6.3 let no program hand on what it has not written.
const _: () = assert!(size_of::<Connection>() == 48);

/// What a pod's policy says of networks, ports and groups.
pub trait Sets {
    /// Of the longest prefix of an address: `NETWORK_` flags.
    fn network(&self, pod: u32, address: &Address) -> u32;
    /// `PORT_` flags of a port.
    fn port(&self, pod: u32, port: u16) -> u32;
    /// Whether a group is named.
    fn names_group(&self, pod: u32, gid: u32) -> bool;
}

/// What becomes of a connection.
#[inline(always)]
pub fn decide<S: Sets>(pod: &Pod, sets: &S, connection: &Connection) -> Verdict {
    if !connection.destination.is_v4() && !pod.has(PodFlags::IPV6) {
        return Verdict::pass(Class::Ipv6Off);
    }
    match connection.direction {
        Direction::Outbound => outbound(pod, sets, connection),
        Direction::Inbound => inbound(pod, sets, connection),
    }
}

/// What is said of the connection's port.
#[inline(always)]
fn ports<S: Sets>(pod: &Pod, sets: &S, connection: &Connection) -> u32 {
    if pod.has(PodFlags::HAS_PORTS) { sets.port(pod.id, connection.port) } else { 0 }
}

#[inline(always)]
fn inbound<S: Sets>(pod: &Pod, sets: &S, connection: &Connection) -> Verdict {
    if !matches!(connection.protocol, Protocol::Tcp) {
        return Verdict::pass(Class::NotTcp);
    }
    // What begins in the pod has been decided on its way out.
    if connection.in_pod != 0 {
        return Verdict::pass(Class::InPod);
    }
    if connection.port == pod.tunnel_port {
        return Verdict::pass(Class::Tunnel);
    }
    let named = ports(pod, sets, connection) & PORT_INBOUND != 0;
    if pod.has(PodFlags::INBOUND) && named == pod.has(PodFlags::INBOUND_ONLY) {
        Verdict::to(pod.inbound_port, Class::Inbound)
    } else {
        Verdict::pass(Class::OtherInboundPort)
    }
}

#[inline(always)]
fn outbound<S: Sets>(pod: &Pod, sets: &S, connection: &Connection) -> Verdict {
    let ports = ports(pod, sets, connection);
    let destination = connection.destination.destination();
    let tcp = matches!(connection.protocol, Protocol::Tcp);
    let dns = pod.has(PodFlags::DNS) && connection.port == DNS;
    if ports & PORT_OUTBOUND_EXCLUDED != 0 {
        return Verdict::pass(Class::ExcludedPort);
    }
    let stays = destination.is_loopback() || connection.in_pod != 0;
    // What goes to an IPv6 address of the pod comes from the same one, unless it is bound.
    let from_there =
        connection.source.is_unspecified() && destination.equals(&Address::PASSTHROUGH6);
    if stays && (from_there || connection.source.is_passthrough()) {
        return Verdict::pass(Class::Passthrough);
    }
    let localhost = is_localhost(pod, &destination);
    if let Some(verdict) = identity(pod, connection, stays, localhost) {
        return verdict;
    }
    if pod.has(PodFlags::HAS_GROUPS) || pod.has(PodFlags::GROUPS_ONLY) {
        let named = pod.has(PodFlags::HAS_GROUPS) && sets.names_group(pod.id, connection.gid);
        if named != pod.has(PodFlags::GROUPS_ONLY) {
            return Verdict::pass(Class::Group);
        }
    }
    let networks =
        if pod.has(PodFlags::HAS_NETWORKS) { sets.network(pod.id, &destination) } else { 0 };
    if dns && (pod.has(PodFlags::DNS_ALL) || networks & NETWORK_DNS != 0) {
        return Verdict::to(pod.dns_port, Class::Dns);
    }
    if localhost {
        return Verdict::pass(Class::Localhost);
    }
    if networks & NETWORK_EXCLUDED != 0 {
        return Verdict::pass(Class::ExcludedNetwork);
    }
    if !tcp {
        return Verdict::pass(Class::NotTcp);
    }
    if ports & PORT_OUTBOUND_INCLUDED != 0 {
        return Verdict::to(pod.outbound_port, Class::IncludedPort);
    }
    if pod.has(PodFlags::ALL_NETWORKS) || networks & NETWORK_INCLUDED != 0 {
        return Verdict::to(pod.outbound_port, Class::Network);
    }
    Verdict::pass(Class::OtherNetwork)
}

/// What the proxy's identities say: its self-calls, what stays in the pod, and what it sends.
#[inline(always)]
fn identity(pod: &Pod, connection: &Connection, stays: bool, localhost: bool) -> Option<Verdict> {
    let tcp = matches!(connection.protocol, Protocol::Tcp);
    let captures_dns = pod.has(PodFlags::DNS);
    let dns = connection.port == DNS;
    let self_call = stays && !localhost && tcp && connection.port != pod.tunnel_port;
    // With DNS capture, only TCP other than DNS is known to stay in the pod.
    let in_pod = stays && !pod.has(PodFlags::NAMES_LOOPBACK) && !(captures_dns && (!tcp || dns));
    if pod.has(PodFlags::ANY_IDENTITY) {
        let (uid, gid) = (connection.uid, connection.gid);
        if is_among(&pod.uids, pod.uid_count, uid) || is_among(&pod.gids, pod.gid_count, gid) {
            return Some(if self_call && !(captures_dns && dns) {
                Verdict::to(pod.inbound_port, Class::SelfCall)
            } else {
                Verdict::pass(Class::Proxy)
            });
        }
        return in_pod.then_some(Verdict::pass(Class::InPod));
    }
    // Each identity brings its rules with it, and the first one's let past what stays in the pod.
    let counted = |count: u32| if in_pod && count > 1 { 1 } else { count };
    if is_among(&pod.uids, counted(pod.uid_count), connection.uid) {
        return Some(if self_call && !(captures_dns && dns) {
            Verdict::to(pod.inbound_port, Class::SelfCall)
        } else {
            Verdict::pass(Class::Proxy)
        });
    }
    if in_pod && pod.uid_count > 0 {
        return Some(Verdict::pass(Class::InPod));
    }
    if is_among(&pod.gids, counted(pod.gid_count), connection.gid) {
        // Here DNS is a self-call as well: it is spared for users only.
        return Some(if self_call {
            Verdict::to(pod.inbound_port, Class::SelfCall)
        } else {
            Verdict::pass(Class::Proxy)
        });
    }
    (in_pod && pod.gid_count > 0).then_some(Verdict::pass(Class::InPod))
}

#[inline(always)]
fn is_among(ids: &[u32], count: u32, id: u32) -> bool {
    let mut left = count;
    for one in ids {
        if left == 0 {
            break;
        }
        left -= 1;
        if *one == id {
            return true;
        }
    }
    false
}

/// Whether an address means the pod itself.
#[inline(always)]
fn is_localhost(pod: &Pod, address: &Address) -> bool {
    if address.is_v4() {
        address.word4() & pod.localhost_mask == pod.localhost
    } else {
        address.equals(&Address::LOCALHOST6)
    }
}
