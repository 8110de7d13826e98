//! What leaves the pod: a packet socket sees each packet that goes out by an interface, behind every
//! rule and hook (`dev_queue_xmit_nit` in `net/core/dev.c`).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use millrace_core::sim::Protocol;
use millrace_core::trace::Head;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, socket,
};

use crate::conntrack::Flow;

/// The longest part of a packet that is looked at: both headers.
const HEAD: usize = 128;
/// The types of a neighbour solicitation and of what answers it (RFC 4861 sections 4.3 and 4.4).
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// The protocol number of `ICMPv6` (RFC 8200 section 4).
const ICMPV6: Protocol = Protocol(58);

/// A packet socket in the namespace that the thread was in when it was opened.
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
}

/// Next hops that were asked for and have not answered: packets to them wait.
pub(super) type Awaited = BTreeSet<IpAddr>;

impl Wire {
    /// Watch. `EPERM` without the capability `NET_RAW`.
    pub(super) fn open() -> Result<Self, Errno> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let all = SockProtocol::EthAll;
        socket(AddressFamily::Packet, SockType::Datagram, flags, all).map(|socket| Self { socket })
    }

    /// Forget what has left so far.
    pub(super) fn drain(&self) {
        while self.next().is_some() {}
    }

    /// Where the first packet of a connection went that has left since the last look. `awaited` learns which
    /// next hops were asked for, and which have answered.
    pub(super) fn left(&self, flow: &Flow, awaited: &mut Awaited) -> Option<SocketAddr> {
        while let Some(Seen { outgoing, protocol, packet }) = self.next() {
            note(awaited, outgoing, protocol, &packet);
            let Some(head) = Head::of_packet(&packet).filter(|_| outgoing) else { continue };
            let is_of_flow = (head.protocol == Protocol::TCP) == flow.tcp
                && head.protocol.has_ports()
                && head.source.port() == flow.from.port();
            if is_of_flow {
                return Some(head.destination);
            }
        }
        None
    }

    /// The next packet that left or came by an interface other than `lo`.
    fn next(&self) -> Option<Seen> {
        loop {
            let mut packet = vec![0; HEAD];
            let (length, from) = match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut packet) {
                Ok(got) => got,
                Err(Errno::EINTR) => continue,
                Err(_) => return None,
            };
            if let Some(from) = from.filter(|from| from.hatype() != libc::ARPHRD_LOOPBACK) {
                packet.truncate(length);
                let outgoing = from.pkttype() == libc::PACKET_OUTGOING;
                let protocol = i32::from(u16::from_be(from.protocol()));
                return Some(Seen { outgoing, protocol, packet });
            }
        }
    }
}

/// A packet that a packet socket saw.
#[derive(Debug)]
struct Seen {
    outgoing: bool,
    /// `ETH_P_`: what it is a packet of.
    protocol: i32,
    /// From its network header on.
    packet: Vec<u8>,
}

/// Take note of a question for a next hop's address, and of an answer to one.
fn note(awaited: &mut Awaited, outgoing: bool, protocol: i32, packet: &[u8]) {
    let v4 = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets).into())
    };
    let v6 = |at: usize| -> Option<IpAddr> {
        let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets).into())
    };
    // RFC 826: the operation, and the addresses of who asks and who is asked for.
    let (asked, answered) = if protocol == libc::ETH_P_ARP {
        match packet.get(6..8) {
            Some([0, 1]) => (v4(24).filter(|target| Some(*target) != v4(14)), None),
            Some([0, 2]) => (None, v4(14)),
            _ => (None, None),
        }
    } else if Head::of_packet(packet).is_some_and(|head| head.protocol == ICMPV6) {
        match packet.get(40) {
            Some(&SOLICITATION) => (v6(48), None),
            Some(&ADVERTISEMENT) => (None, v6(48)),
            _ => (None, None),
        }
    } else {
        (None, None)
    };
    if outgoing {
        awaited.extend(asked);
    } else if let Some(answered) = answered {
        awaited.remove(&answered);
    }
}

/// Whether an address is one of the calling thread's namespace. Only those of a link that is made
/// for the proof come and go meanwhile.
pub(super) fn is_own(address: IpAddr) -> bool {
    let listed = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let own = listed.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
    });
    address.is_loopback() || own.into_iter().any(|own| own == address)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An ARP packet by Ethernet between these.
    fn arp(operation: u8, from: [u8; 4], to: [u8; 4]) -> Vec<u8> {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, operation];
        for address in [from, to] {
            packet.extend([2, 0, 0, 0, 0, 1]);
            packet.extend(address);
        }
        packet
    }

    /// A message of neighbour discovery about `fd00::1`.
    fn discovery(kind: u8) -> Vec<u8> {
        let mut packet = vec![0; 40];
        packet[0] = 0x60;
        packet[5] = 24;
        packet[6] = 58;
        packet.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        packet.extend(Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).octets());
        packet
    }

    #[test]
    fn who_has_answered_is_awaited_no_more() {
        let (own, hop) = ([10, 0, 0, 2], [10, 0, 0, 1]);
        let mut awaited = Awaited::new();
        note(&mut awaited, true, libc::ETH_P_ARP, &arp(1, own, hop));
        note(&mut awaited, true, libc::ETH_P_IPV6, &discovery(SOLICITATION));
        assert_eq!(awaited.len(), 2);
        // What others ask, announce or answer them is no answer.
        note(&mut awaited, true, libc::ETH_P_ARP, &arp(1, own, own));
        note(&mut awaited, false, libc::ETH_P_ARP, &arp(1, hop, own));
        note(&mut awaited, false, libc::ETH_P_ARP, &arp(2, [10, 0, 0, 3], own));
        note(&mut awaited, true, libc::ETH_P_IPV6, &discovery(ADVERTISEMENT));
        assert_eq!(awaited.len(), 2);
        note(&mut awaited, false, libc::ETH_P_ARP, &arp(2, hop, own));
        note(&mut awaited, false, libc::ETH_P_IPV6, &discovery(ADVERTISEMENT));
        assert!(awaited.is_empty(), "{awaited:?}");
    }
}
