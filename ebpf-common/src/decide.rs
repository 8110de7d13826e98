//! The decision: what a pod's policy means for one connection. It asks in the order in which the
//! rules of iptables for the same policy would be met.

use crate::address::Address;
use crate::maps::{
    NETWORK_DNS, NETWORK_EXCLUDED, NETWORK_INCLUDED, NETWORK_SOURCE, PORT_INBOUND,
    PORT_OUTBOUND_EXCLUDED, PORT_OUTBOUND_INCLUDED, Pod, PodFlags,
};
use crate::more::{FLOW_TCP, FLOW_UDP, More, MoreFlags};
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
    /// IP protocol 6.
    Tcp,
    /// IP protocol 17, of which DNS queries alone are ever captured.
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
    /// The group of that process, in the initial user namespace.
    pub gid: u32,
    /// Where it comes from; the unspecified address while that is not chosen.
    pub source: Address,
    /// Where it goes, as the application says; the unspecified address is localhost.
    pub destination: Address,
    /// The port that it goes to, in the machine's byte order.
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
    /// Whether a user is excluded.
    fn excludes_user(&self, pod: u32, uid: u32) -> bool;
    /// What only some policies say.
    fn more(&self, pod: u32) -> Option<&More>;
    /// `FLOW_` flags of a port, of one of the pod's flows.
    fn flow(&self, pod: u32, flow: u32, port: u16) -> u32;
    /// The same word, of which a verifier knows no bit from here on: it walks on once, and not once for each
    /// way in which the bits could come about.
    #[inline(always)]
    fn forget(&self, word: u32) -> u32 {
        word
    }
}

/// What is asked of a connection more than once, as one word.
#[derive(Clone, Copy)]
struct Facts(u32);

impl Facts {
    /// It is of TCP.
    const TCP: u32 = 1;
    /// It stays in the pod.
    const STAYS: u32 = 1 << 1;
    /// It goes to localhost.
    const LOCALHOST: u32 = 1 << 2;
    /// It goes to IPv4.
    const V4: u32 = 1 << 3;
    /// It goes to the port of DNS.
    const DNS: u32 = 1 << 4;
    /// It has, or will have, the address that a proxy speaks to the application from.
    const PASSTHROUGH: u32 = 1 << 5;

    #[inline(always)]
    fn of<S: Sets>(sets: &S, facts: &[(bool, u32)]) -> Self {
        let word = facts.iter().fold(0, |word, (is, bit)| word | if *is { *bit } else { 0 });
        Self(sets.forget(word))
    }

    #[inline(always)]
    const fn has(self, bit: u32) -> bool {
        self.0 & bit != 0
    }
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
    if pod.has(PodFlags::HAS_SOURCES)
        && sets.network(pod.id, &connection.source) & NETWORK_SOURCE != 0
    {
        return Verdict::pass(Class::ExcludedSource);
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
    let ports = sets.forget(ports(pod, sets, connection));
    let destination = connection.destination.destination();
    // What goes to an IPv6 address of the pod comes from the same one, unless it is bound.
    let from_there =
        connection.source.is_unspecified() && destination.equals(&Address::PASSTHROUGH6);
    let facts = Facts::of(
        sets,
        &[
            (matches!(connection.protocol, Protocol::Tcp), Facts::TCP),
            (destination.is_loopback() || connection.in_pod != 0, Facts::STAYS),
            (is_localhost(pod, &destination), Facts::LOCALHOST),
            (destination.is_v4(), Facts::V4),
            (connection.port == DNS, Facts::DNS),
            (from_there || connection.source.is_passthrough(), Facts::PASSTHROUGH),
        ],
    );
    if pod.has(PodFlags::AHEAD)
        && let Some(verdict) = ahead(pod, sets, connection, &destination, ports, facts)
    {
        return verdict;
    }
    if let Some(verdict) = excluded(pod, sets, connection, &destination, ports, facts, Phase::First)
    {
        return verdict;
    }
    if facts.has(Facts::STAYS)
        && !pod.has(PodFlags::NO_PASSTHROUGH)
        && facts.has(Facts::PASSTHROUGH)
    {
        return Verdict::pass(Class::Passthrough);
    }
    if let Some(verdict) = identity(pod, connection, facts) {
        return verdict;
    }
    if pod.has(PodFlags::HAS_GROUPS) || pod.has(PodFlags::GROUPS_ONLY) {
        let named = pod.has(PodFlags::HAS_GROUPS) && sets.names_group(pod.id, connection.gid);
        if named != pod.has(PodFlags::GROUPS_ONLY) {
            return Verdict::pass(Class::Group);
        }
    }
    let networks = sets.forget(networks(pod, sets, &destination));
    let dns = captures_dns(pod) && facts.has(Facts::DNS);
    if dns && (pod.has(PodFlags::DNS_ALL) || networks & NETWORK_DNS != 0) {
        let port = if pod.has(PodFlags::DNS_LED) {
            sets.more(pod.id).map_or(0, |more| more.dns(facts.has(Facts::V4)).1)
        } else {
            pod.dns_port
        };
        if port != 0 {
            return Verdict::to(port, Class::Dns);
        }
    }
    if facts.has(Facts::LOCALHOST) && !pod.has(PodFlags::LO_ONLY) {
        return Verdict::pass(Class::Localhost);
    }
    if let Some(verdict) = excluded(pod, sets, connection, &destination, ports, facts, Phase::Last)
    {
        return verdict;
    }
    let late = !pod.has(PodFlags::NETWORKS_AHEAD | PodFlags::NETWORKS_FIRST);
    if late && networks & NETWORK_EXCLUDED != 0 {
        return Verdict::pass(Class::ExcludedNetwork);
    }
    if !facts.has(Facts::TCP) {
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

/// What is said of the network of an address.
#[inline(always)]
fn networks<S: Sets>(pod: &Pod, sets: &S, address: &Address) -> u32 {
    if pod.has(PodFlags::HAS_NETWORKS) { sets.network(pod.id, address) } else { 0 }
}

/// Whether DNS queries are captured where the proxy's own don't get to.
#[inline(always)]
fn captures_dns(pod: &Pod) -> bool {
    pod.has(PodFlags::DNS) && !pod.has(PodFlags::DNS_AHEAD)
}

/// When exclusions are asked for.
#[derive(Clone, Copy)]
enum Phase {
    /// Before all else, where a flag of [`PodFlags::AHEAD`] says so.
    Ahead,
    /// Before the proxy's connections are.
    First,
    /// After what stays in the pod. Networks are asked for behind this.
    Last,
}

/// What is not captured, as far as it is asked for now.
#[inline(always)]
fn excluded<S: Sets>(
    pod: &Pod,
    sets: &S,
    connection: &Connection,
    destination: &Address,
    ports: u32,
    facts: Facts,
    phase: Phase,
) -> Option<Verdict> {
    let tcp = facts.has(Facts::TCP);
    let (of_ports, of_users, of_networks) = match phase {
        Phase::Ahead => (
            pod.has(PodFlags::PORTS_AHEAD),
            pod.has(PodFlags::USERS_AHEAD),
            pod.has(PodFlags::NETWORKS_AHEAD),
        ),
        Phase::First => (
            !pod.has(PodFlags::PORTS_AHEAD | PodFlags::PORTS_LAST),
            !pod.has(PodFlags::USERS_AHEAD | PodFlags::USERS_LAST),
            pod.has(PodFlags::NETWORKS_FIRST),
        ),
        Phase::Last => (pod.has(PodFlags::PORTS_LAST), pod.has(PodFlags::USERS_LAST) && tcp, false),
    };
    if ports & PORT_OUTBOUND_EXCLUDED != 0 && of_ports && (tcp || !pod.has(PodFlags::PORTS_OF_TCP))
    {
        return Some(Verdict::pass(Class::ExcludedPort));
    }
    if pod.has(PodFlags::HAS_USERS) && of_users && sets.excludes_user(pod.id, connection.uid) {
        return Some(Verdict::pass(Class::ExcludedUser));
    }
    (of_networks && networks(pod, sets, destination) & NETWORK_EXCLUDED != 0)
        .then_some(Verdict::pass(Class::ExcludedNetwork))
}

/// What is asked of connections of any protocol, before TCP alone is asked for more where DNS is among it.
#[inline(always)]
fn ahead<S: Sets>(
    pod: &Pod,
    sets: &S,
    connection: &Connection,
    destination: &Address,
    ports: u32,
    facts: Facts,
) -> Option<Verdict> {
    let tcp = facts.has(Facts::TCP);
    let more = if pod.has(PodFlags::HAS_MORE) { sets.more(pod.id) } else { None };
    if let Some(more) = more
        && pod.has(PodFlags::HAS_FLOWS)
        && is_of_a_flow(pod, sets, more, connection)
    {
        return Some(Verdict::pass(Class::ExcludedFlow));
    }
    if let Some(verdict) = excluded(pod, sets, connection, destination, ports, facts, Phase::Ahead)
    {
        return Some(verdict);
    }
    let is_query = facts.has(Facts::DNS) && pod.has(PodFlags::DNS) && pod.has(PodFlags::DNS_AHEAD);
    let is_led = facts.has(Facts::STAYS)
        && facts.has(Facts::LOCALHOST)
        && tcp
        && facts.has(Facts::V4)
        && pod.has(PodFlags::LOCALHOST_LED);
    if is_query || is_led {
        let of_proxy = is_among(&pod.uids, pod.uid_count, connection.uid)
            || is_among(&pod.gids, pod.gid_count, connection.gid);
        if is_led && of_proxy {
            return Some(Verdict::to(connection.port, Class::OwnLocalhost));
        }
        if let Some(more) = more
            && is_query
            && let Some(verdict) = query(pod, sets, more, destination, facts, of_proxy)
        {
            return Some(verdict);
        }
    }
    (!tcp && pod.has(PodFlags::DNS_AHEAD)).then_some(Verdict::pass(Class::NotTcp))
}

/// What becomes of a DNS query, of the proxy's or not, where these are asked for ahead.
#[inline(always)]
fn query<S: Sets>(
    pod: &Pod,
    sets: &S,
    more: &More,
    destination: &Address,
    facts: Facts,
    of_proxy: bool,
) -> Option<Verdict> {
    let (tcp, v4) = (facts.has(Facts::TCP), facts.has(Facts::V4));
    if !more.has(if v4 { MoreFlags::DNS_V4 } else { MoreFlags::DNS_V6 }) {
        return None;
    }
    if tcp && more.has(MoreFlags::DNS_TCP_ALONE) {
        return (!of_proxy).then_some(Verdict::pass(Class::OtherDns));
    }
    if !tcp && of_proxy && more.has(MoreFlags::DNS_SPARES_PROXY) {
        return Some(Verdict::pass(Class::OtherDns));
    }
    if !pod.has(PodFlags::DNS_ALL) && networks(pod, sets, destination) & NETWORK_DNS == 0 {
        return None;
    }
    let port = if pod.has(PodFlags::DNS_LED) { more.dns(v4).1 } else { pod.dns_port };
    (port != 0).then_some(Verdict::to(port, Class::Dns))
}

/// Whether it is left alone as what its user sends to its port.
#[inline(always)]
fn is_of_a_flow<S: Sets>(pod: &Pod, sets: &S, more: &More, connection: &Connection) -> bool {
    let tcp = matches!(connection.protocol, Protocol::Tcp);
    let of_protocol = if tcp { FLOW_TCP } else { FLOW_UDP };
    for (at, [first, last]) in (0..).zip(&more.flows) {
        if at >= more.flow_count {
            break;
        }
        if connection.uid >= *first
            && connection.uid <= *last
            && (more.is_of_every_port(at, tcp)
                || sets.flow(pod.id, at, connection.port) & of_protocol != 0)
        {
            return true;
        }
    }
    false
}

/// What the proxy's identities say: its self-calls, what stays in the pod, and what it sends.
#[inline(always)]
fn identity(pod: &Pod, connection: &Connection, facts: Facts) -> Option<Verdict> {
    let (tcp, dns) = (facts.has(Facts::TCP), facts.has(Facts::DNS));
    let (stays, captures_dns) = (facts.has(Facts::STAYS), captures_dns(pod));
    let self_call = stays
        && !facts.has(Facts::LOCALHOST)
        && tcp
        && connection.port != pod.tunnel_port
        && !pod.has(PodFlags::SELF_CALLS_PASS);
    // With DNS capture, only TCP other than DNS is known to stay in the pod.
    let in_pod = stays
        && !pod.has(PodFlags::NAMES_LOOPBACK | PodFlags::LOCALHOST_ONLY)
        && !(captures_dns && (!tcp || dns));
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
