//! Listeners of a proof: in place of the proxy and of the application.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use millrace_core::sim::Protocol;
use millrace_core::value::Family;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use crate::probe::original;

/// A socket of one family.
pub(super) fn new_socket(family: Family, protocol: Protocol) -> Result<OwnedFd, Errno> {
    let domain = match family {
        Family::V4 => AddressFamily::Inet,
        Family::V6 => AddressFamily::Inet6,
    };
    let kind = if protocol == Protocol::TCP { SockType::Stream } else { SockType::Datagram };
    let fd = socket(domain, kind, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)?;
    if family == Family::V6 {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    Ok(fd)
}

/// Where a listener is bound: a port of a family and protocol, at any address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) family: Family,
    pub(super) protocol: Protocol,
    pub(super) port: u16,
    /// Whether it takes what is meant for others.
    pub(super) transparent: bool,
}

/// A listener at every address of a port.
#[derive(Debug)]
pub(super) struct ListeningSocket {
    pub(super) spot: Spot,
    socket: Listening,
}

#[derive(Debug)]
enum Listening {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// A connection or datagram that came.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) from: SocketAddr,
    /// Where it was made to; none for a datagram.
    pub(super) original: Option<SocketAddr>,
    /// Open until it is dropped.
    _stream: Option<TcpStream>,
}

impl ListeningSocket {
    /// Listen. `EADDRINUSE` when somebody else does, `EPERM` for a transparent one without
    /// `NET_ADMIN`.
    pub(super) fn open(spot: Spot) -> Result<Self, Errno> {
        let fd = new_socket(spot.family, spot.protocol)?;
        if spot.protocol == Protocol::TCP {
            setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        }
        if spot.transparent {
            setsockopt(&fd, sockopt::IpTransparent, &true)?;
        }
        let any = match spot.family {
            Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, spot.port)))?;
        let socket = if spot.protocol == Protocol::TCP {
            listen(&fd, Backlog::new(16)?)?;
            Listening::Tcp(TcpListener::from(fd))
        } else {
            Listening::Udp(UdpSocket::from(fd))
        };
        Ok(Self { spot, socket })
    }

    /// What has come, if anything has. A datagram is answered.
    pub(super) fn take(&self) -> io::Result<Option<Arrival>> {
        let taken = match &self.socket {
            Listening::Tcp(listener) => listener.accept().map(|(stream, from)| Arrival {
                from,
                original: original(&stream).ok().or_else(|| stream.local_addr().ok()),
                _stream: Some(stream),
            }),
            Listening::Udp(socket) => {
                let mut buffer = [0; 512];
                socket.recv_from(&mut buffer).map(|(length, from)| {
                    // Whether the answer arrives is no part of the question.
                    let _sent = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
                    Arrival { from, original: None, _stream: None }
                })
            }
        };
        match taken {
            Ok(arrival) => Ok(Some(arrival)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl AsFd for ListeningSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Listening::Tcp(socket) => socket.as_fd(),
            Listening::Udp(socket) => socket.as_fd(),
        }
    }
}
