//! What leaves the pod: a packet socket sees each packet that goes out by an interface, behind every
//! rule and hook (`dev_queue_xmit_nit` in `net/core/dev.c`).

use std::net::{IpAddr, SocketAddr};
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
/// The type of a neighbour solicitation (RFC 4861 section 4.3).
const SOLICITATION: u8 = 135;
/// The protocol number of `ICMPv6` (RFC 8200 section 4).
const ICMPV6: Protocol = Protocol(58);

/// A packet socket in the namespace that the thread was in when it was opened.
#[derive(Debug)]
pub(super) struct Wire {
    socket: OwnedFd,
}

/// What was seen to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// A packet of the connection, to this destination.
    Packet(SocketAddr),
    /// A question who has the next hop's address: packets wait for the answer.
    NextHop,
}

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

    /// What of a connection has left since the last look, the packets before the questions.
    pub(super) fn left(&self, flow: &Flow) -> Option<Leaving> {
        let mut found = None;
        while let Some((protocol, packet)) = self.next() {
            if protocol == libc::ETH_P_ARP {
                found = found.or(Some(Leaving::NextHop));
                continue;
            }
            let Some(head) = Head::of_packet(&packet) else { continue };
            let is_of_flow = (head.protocol == Protocol::TCP) == flow.tcp
                && head.protocol.has_ports()
                && head.source.port() == flow.from.port();
            if is_of_flow {
                return Some(Leaving::Packet(head.destination));
            }
            if head.protocol == ICMPV6 && packet.get(40) == Some(&SOLICITATION) {
                found = found.or(Some(Leaving::NextHop));
            }
        }
        found
    }

    /// The next packet that left by an interface other than `lo`, with its `ETH_P_` number.
    fn next(&self) -> Option<(i32, Vec<u8>)> {
        loop {
            let mut packet = vec![0; HEAD];
            let (length, from) = match recvfrom::<LinkAddr>(self.socket.as_raw_fd(), &mut packet) {
                Ok(got) => got,
                Err(Errno::EINTR) => continue,
                Err(_) => return None,
            };
            let outgoing = from.filter(|from| {
                from.pkttype() == libc::PACKET_OUTGOING && from.hatype() != libc::ARPHRD_LOOPBACK
            });
            if let Some(from) = outgoing {
                packet.truncate(length);
                return Some((i32::from(u16::from_be(from.protocol())), packet));
            }
        }
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
