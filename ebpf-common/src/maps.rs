//! Keys and values of the maps. All of them are plain numbers without gaps, laid out alike for the
//! kernel's programs and for those who fill the maps.

use crate::address::Address;
use crate::{MAX_ADDRESSES, MAX_IDENTITIES};

/// Switches of a [`Pod`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodFlags;

impl PodFlags {
    /// IPv6 is captured; else all of it is let past.
    pub const IPV6: u32 = 1;
    /// A process is a proxy when any identity is its own; else each identity brings rules with it.
    pub const ANY_IDENTITY: u32 = 1 << 1;
    /// What the application sends to its own pod may be captured.
    pub const NAMES_LOOPBACK: u32 = 1 << 2;
    /// Every network is captured.
    pub const ALL_NETWORKS: u32 = 1 << 3;
    /// There is something in NETWORKS.
    pub const HAS_NETWORKS: u32 = 1 << 4;
    /// There is something in PORTS.
    pub const HAS_PORTS: u32 = 1 << 5;
    /// There is something in GROUPS.
    pub const HAS_GROUPS: u32 = 1 << 6;
    /// Only processes of the groups are captured; else all but those.
    pub const GROUPS_ONLY: u32 = 1 << 7;
    /// DNS queries are captured: what goes to port 53, by UDP or TCP.
    pub const DNS: u32 = 1 << 8;
    /// All of it, not only what goes to servers in NETWORKS.
    pub const DNS_ALL: u32 = 1 << 9;
    /// Inbound connections are captured.
    pub const INBOUND: u32 = 1 << 10;
    /// To the ports in PORTS only; else to all but those.
    pub const INBOUND_ONLY: u32 = 1 << 11;
    /// What goes to localhost by another way than over `lo` is nothing special.
    pub const LO_ONLY: u32 = 1 << 12;
    /// What the application sends to another address of its pod than localhost is nothing special.
    pub const LOCALHOST_ONLY: u32 = 1 << 13;
    /// The proxy's connections to its own pod are left alone.
    pub const SELF_CALLS_PASS: u32 = 1 << 14;
    /// The proxy passes nothing on from an address of its own.
    pub const NO_PASSTHROUGH: u32 = 1 << 15;
    /// Excluded ports are asked for ahead of all else.
    pub const PORTS_AHEAD: u32 = 1 << 16;
    /// They are asked for last; else first.
    pub const PORTS_LAST: u32 = 1 << 17;
    /// They are those of TCP; else of UDP as well.
    pub const PORTS_OF_TCP: u32 = 1 << 18;
    /// Excluded networks are asked for ahead of all else.
    pub const NETWORKS_AHEAD: u32 = 1 << 19;
    /// They are asked for first; else last.
    pub const NETWORKS_FIRST: u32 = 1 << 20;
    /// Excluded users are asked for ahead of all else.
    pub const USERS_AHEAD: u32 = 1 << 21;
    /// They are asked for last, of TCP; else first.
    pub const USERS_LAST: u32 = 1 << 22;
    /// DNS is asked for ahead of all that is asked of TCP, which alone is asked for more; else among it.
    pub const DNS_AHEAD: u32 = 1 << 23;
    /// NETWORKS has some from which inbound connections are let past.
    pub const HAS_SOURCES: u32 = 1 << 24;
    /// GROUPS has users that are let past.
    pub const HAS_USERS: u32 = 1 << 25;
    /// There is something in MORE.
    pub const HAS_MORE: u32 = 1 << 26;
    /// Of it: users that are let past to some ports.
    pub const HAS_FLOWS: u32 = 1 << 27;
    /// Of it: where DNS queries go; else it is a port of the proxy.
    pub const DNS_LED: u32 = 1 << 28;
    /// Of it: where the proxy's connections to localhost go.
    pub const LOCALHOST_LED: u32 = 1 << 29;
    /// What programs don't know that were made before there was any of it.
    pub const LATER: u32 = u32::MAX << 12;
    /// What is asked for ahead of all else.
    pub const AHEAD: u32 = Self::PORTS_AHEAD
        | Self::NETWORKS_AHEAD
        | Self::USERS_AHEAD
        | Self::DNS_AHEAD
        | Self::HAS_FLOWS
        | Self::LOCALHOST_LED;
}

/// A pod's policy, found by its netns cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Under which its networks, ports and groups are found; another one for each policy, and 0 for
    /// none.
    pub id: u32,
    /// Switches of [`PodFlags`], one bit each.
    pub flags: u32,
    /// The proxy's port for outbound connections.
    pub outbound_port: u16,
    /// The proxy's port for inbound connections.
    pub inbound_port: u16,
    /// The proxy's port for DNS queries.
    pub dns_port: u16,
    /// The proxy's port for tunnels; 0 for none.
    pub tunnel_port: u16,
    /// The mask of the IPv4 network that means the pod itself, in network order.
    pub localhost_mask: u32,
    /// That network, in network order.
    pub localhost: u32,
    /// How many of `uids` count.
    pub uid_count: u32,
    /// How many of `gids` count.
    pub gid_count: u32,
    /// How many of `own` count.
    pub own_count: u32,
    /// The number of its `sk_lookup` program: a key of LOOKUPS.
    pub lookup: u32,
    /// A hash of its networks, ports and groups, for the loader.
    pub digest: u64,
    /// Users that proxies run as, in the initial user namespace.
    pub uids: [u32; MAX_IDENTITIES],
    /// Groups that proxies run as, in the initial user namespace.
    pub gids: [u32; MAX_IDENTITIES],
    /// The address that the pod's IPv4 connections came from when it was enrolled; all zeros for none.
    pub source4: Address,
    /// The address that the pod's IPv6 connections came from, likewise.
    pub source6: Address,
    /// Addresses that the pod had then, but for those of `lo`, as far as there is room. They count
    /// where the kernel does not tell which it has.
    pub own: [Address; MAX_ADDRESSES],
}

impl Pod {
    /// An entry that lets everything past, and only has the proxy's listeners for inbound
    /// connections found as they begin to listen.
    #[must_use]
    pub fn waiting(inbound_port: u16, lookup: u32) -> Self {
        Self { inbound_port, lookup, ..Self::default() }
    }

    /// Whether this is a policy, and not only waiting for one.
    #[must_use]
    pub const fn is_policy(&self) -> bool {
        self.id != 0
    }

    /// Whether a flag is set, or any of several.
    #[inline(always)]
    #[must_use]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether an address was one of the pod's.
    #[inline(always)]
    #[must_use]
    pub fn owns(&self, address: &Address) -> bool {
        let mut left = self.own_count;
        for own in &self.own {
            if left == 0 {
                break;
            }
            left -= 1;
            if own.equals(address) {
                return true;
            }
        }
        false
    }
}

/// How many bits of a [`NetworkKey`] are in front of the address.
pub const POD_ID_BITS: u32 = 32;

/// A network of a pod; with the number of bits that count in front, a key of NETWORKS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkKey {
    /// How many bits count, with those of the pod's id.
    pub bits: u32,
    /// [`Pod::id`], whose bits are in front of those of the address.
    pub pod: u32,
    /// The network's address, IPv4-mapped for a network of IPv4.
    pub address: Address,
}

/// In NETWORKS: connections there are let past.
pub const NETWORK_EXCLUDED: u32 = 1;
/// In NETWORKS: connections there are captured.
pub const NETWORK_INCLUDED: u32 = 1 << 1;
/// In NETWORKS: a DNS server whose queries are captured.
pub const NETWORK_DNS: u32 = 1 << 2;
/// In NETWORKS: inbound connections from there are let past.
pub const NETWORK_SOURCE: u32 = 1 << 3;

/// How many ports a [`PortChunk`] is for.
pub const PORTS_IN_CHUNK: u16 = 512;

/// A key of PORTS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortKey {
    /// [`Pod::id`] of the policy that the ports belong to.
    pub pod: u32,
    /// The port divided by [`PORTS_IN_CHUNK`].
    pub chunk: u32,
}

/// Of [`PortChunk::flags`]: excluded outbound ports.
pub const PORT_OUTBOUND_EXCLUDED: u32 = 1;
/// Of [`PortChunk::flags`]: outbound ports that are captured wherever they go.
pub const PORT_OUTBOUND_INCLUDED: u32 = 1 << 1;
/// Of [`PortChunk::flags`]: the inbound ports that are named.
pub const PORT_INBOUND: u32 = 1 << 2;

/// Three bitmaps for 512 ports.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortChunk {
    /// One of each of the `PORT_` flags, in their order.
    pub words: [[u64; 8]; 3],
}

impl PortChunk {
    /// Of no port anything is said.
    pub const EMPTY: Self = Self { words: [[0; 8]; 3] };

    /// What is said of a port.
    #[inline(always)]
    #[must_use]
    pub const fn flags(&self, port: u16) -> u32 {
        let (at, bit) = ((port as usize >> 6) & 7, port & 63);
        let [excluded, included, inbound] = &self.words;
        ((excluded[at] >> bit) & 1) as u32
            | ((((included[at] >> bit) & 1) as u32) << 1)
            | ((((inbound[at] >> bit) & 1) as u32) << 2)
    }
}

/// A key of GROUPS.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupKey {
    /// [`Pod::id`] of the policy that names it.
    pub pod: u32,
    /// The group or user, in the initial user namespace.
    pub id: u32,
}

/// In GROUPS: a group that is named.
pub const GROUP_NAMED: u32 = 1;
/// In GROUPS: a user who is let past.
pub const GROUP_USER: u32 = 1 << 1;

/// A key of LISTENERS. A proxy may have several sockets on its port (`SO_REUSEPORT`), and one of
/// them may end while the others go on, so that there are several places.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerKey {
    /// The pod that the proxy is in, by its netns cookie.
    pub netns: u64,
    /// 4 for a socket of IPv4, 6 for one of IPv6.
    pub family: u16,
    /// Which of the sockets: below [`LISTENER_PLACES`].
    pub place: u16,
    /// The port that the proxy listens on, in the machine's byte order.
    pub port: u32,
}

/// How many listeners of a pod are known, of each family.
pub const LISTENER_PLACES: u16 = 4;

/// Where a connection was meant to go.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Original {
    /// The destination's address, IPv4-mapped where it is one of IPv4.
    pub address: Address,
    /// The destination's port, in the machine's byte order.
    pub port: u16,
    /// The proxy's port that it went to; 0 when nothing is known.
    pub via: u16,
    /// Whose room it takes, by the number of the pod's `sk_lookup` program; 0 for nobody's.
    pub holder: u32,
}

/// What a captured connection is known by at both of its ends: a key of FLOWS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowKey {
    /// The pod that both ends are in, by its netns cookie.
    pub netns: u64,
    /// The address that the client's socket has: the source of its packets.
    pub client: Address,
    /// The port that the client's socket has, in the machine's byte order.
    pub client_port: u16,
    /// The port at the other end: the proxy's, or the server's ([`Self::in_pod`]).
    pub proxy_port: u16,
    /// 4 or 6: whether the proxy's address is 127.0.0.1 or `::1`.
    pub family: u32,
}

impl FlowKey {
    /// Of a connection from a client to a proxy on localhost.
    #[inline(always)]
    #[must_use]
    pub const fn new(netns: u64, client: (Address, u16), proxy: (Address, u16)) -> Self {
        let family = if proxy.0.is_v4() { 4 } else { 6 };
        Self { netns, client: client.0, client_port: client.1, proxy_port: proxy.1, family }
    }

    /// Of a connection that is not captured, from the pod to an address of its own.
    #[inline(always)]
    #[must_use]
    pub const fn in_pod(netns: u64, client: (Address, u16), server: (Address, u16)) -> Self {
        let key = Self::new(netns, client, server);
        Self { family: key.family | IN_POD, ..key }
    }

    /// Whether it is of a captured connection.
    #[must_use]
    pub const fn is_captured(&self) -> bool {
        self.family & IN_POD == 0
    }
}

impl Original {
    /// Nothing is known: `via` is 0, which no captured connection has.
    pub const NOTHING: Self = Self { address: Address([0; 4]), port: 0, via: 0, holder: 0 };
}

/// Marks a family of a [`FlowKey`].
const IN_POD: u32 = 0x200;

/// A value of FLOWS: a captured connection, until both of its sockets are closed; or one that is not
/// captured and goes to an address of the pod's own, until its client is closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// The socket that began it, by its cookie; 0 once that is closed.
    pub client: u64,
    /// The socket that the proxy accepts, likewise; 0 before it is there as well.
    pub accepted: u64,
    /// How many of the two are open.
    pub open: u64,
    /// Whether the proxy has asked for the original destination.
    pub asked: u64,
    /// Where it was meant to go.
    pub original: Original,
}

/// Where a socket that is about to connect is meant to go, as programs of an earlier version note it:
/// a value of CONNECTING, in which a socket took the first free place from its cookie's on, modulo
/// [`CONNECTING`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connecting {
    /// The socket, by its cookie; 0 for none.
    pub socket: u64,
    /// By which it is known that all of this was written by the same call.
    pub seal: u64,
    /// When it was written, in ticks of the kernel's clock.
    pub since: u64,
    /// Where it is meant to go.
    pub original: Original,
}

/// How many sockets could be between two steps of the same `connect()` call.
pub const CONNECTING: u32 = 1 << 16;

/// From so many places a socket took one.
pub const CONNECTING_TRIES: u32 = 4;

impl Connecting {
    /// Where a socket is meant to go, if this is its own and whole.
    #[inline(always)]
    #[must_use]
    pub const fn of(&self, socket: u64) -> Option<Original> {
        if self.socket == socket && self.seal == seal(socket, &self.original) {
            Some(self.original)
        } else {
            None
        }
    }
}

/// Another number for any other value: odd factors lose nothing.
#[inline(always)]
const fn seal(socket: u64, original: &Original) -> u64 {
    let Address([a, b, c, d]) = original.address;
    let (front, back) = ((a as u64) << 32 | b as u64, (c as u64) << 32 | d as u64);
    let ports = (original.port as u64) << 16 | original.via as u64;
    front
        .wrapping_mul(0x9e37_79b9_7f4a_7c15)
        .wrapping_add(back.wrapping_mul(0xc2b2_ae3d_27d4_eb4f))
        .wrapping_add(ports.wrapping_mul(0x1656_67b1_9e37_79f9))
        .wrapping_add(socket.wrapping_mul(0x27d4_eb2f_1656_67c5))
}

/// What a socket of an application carries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Client {
    /// Where one of UDP is connected to, as the application sees it; where one of TCP is meant to go
    /// that has not sent its SYN yet.
    pub peer: Original,
    /// Where it sent its last captured datagram.
    pub asked: Original,
}

/// Addresses that the kernel has lately shown to be a pod's: a value of LATELY, by netns cookie.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lately {
    /// Those that connections to elsewhere came from: of IPv4, and of IPv6.
    pub chosen: [Address; 2],
    /// Those that connections from elsewhere went to.
    pub reached: [Address; 2],
}

/// Settings of all programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// One of how many decisions is reported; 0 for none.
    pub sample: u32,
    /// Whether connections between application and proxy are short-circuited.
    pub accelerate: u32,
    /// The last id that was given to a pod's policy; the loader's.
    pub last_id: u32,
    /// The first 4 bytes of the hash of the programs' sources: of which version they are.
    pub sources: u32,
    /// The last number that was given to a `sk_lookup` program; the loader's.
    pub last_lookup: u32,
    /// How many `sk_lookup` programs are kept for pods to come; the loader's.
    pub spares: u32,
    /// Which of them is next, as far as known; the loader's.
    pub next_spare: u32,
}

/// A decision, as it is reported.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// The pod that decided, by its netns cookie.
    pub netns: u64,
    /// The other end: the destination, or the client of an inbound connection.
    pub remote: Address,
    /// This end's address; all zeros when it is not chosen yet.
    pub local: Address,
    /// The other end's port.
    pub remote_port: u16,
    /// This end's port; 0 of outbound connections.
    pub local_port: u16,
    /// The proxy's port; 0 when it is let past.
    pub to: u16,
    /// 6 for TCP, 17 for UDP.
    pub protocol: u8,
    /// The reason, as the number of a [`crate::Class`].
    pub class: u8,
    /// The user, in the initial user namespace; not of inbound connections.
    pub uid: u32,
    /// The group, in the initial user namespace; not of inbound connections.
    pub gid: u32,
    /// The process, in the initial pid namespace; 0 of inbound connections.
    pub pid: u32,
    /// 1 of inbound connections.
    pub inbound: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_original(last: u32, port: u16) -> Original {
        Original { address: Address::v4(last), port, via: 15_001, holder: 0 }
    }

    #[test]
    fn a_destination_is_its_own_sockets_and_whole() {
        let new = |socket, original| Connecting {
            socket,
            seal: seal(socket, &original),
            since: 1000,
            original,
        };
        let original = mk_original(1, 80);
        let place = new(7, original);
        assert_eq!(place.of(7), Some(original));
        assert_eq!(place.of(8), None);
        // What another socket's call has overwritten in part.
        let other = new(8, mk_original(2, 443));
        assert_eq!(Connecting { original: other.original, ..place }.of(7), None);
        assert_eq!(Connecting { seal: other.seal, ..place }.of(7), None);
        assert_eq!(Connecting { socket: other.socket, ..place }.of(8), None);
        assert_eq!(Connecting { socket: place.socket, ..other }.of(7), None);
        let mixed = Original { port: other.original.port, ..original };
        assert_eq!(Connecting { original: mixed, ..place }.of(7), None);
    }
}
