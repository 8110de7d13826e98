//! Standing in for the proxy.

use std::io;
use std::net::{
    Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream,
};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use millrace_core::value::Family;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrIn, SockaddrIn6, bind, getsockopt, listen,
    setsockopt, socket, sockopt,
};

/// A listener on loopback at a port of the proxy.
#[derive(Debug)]
pub(super) struct ProbeSocket {
    listener: TcpListener,
}

impl ProbeSocket {
    /// Listen on `127.0.0.1` or `::1`, beside others that share the port (`SO_REUSEPORT`).
    pub(super) fn open(family: Family, port: u16) -> io::Result<Self> {
        let domain = match family {
            Family::V4 => AddressFamily::Inet,
            Family::V6 => AddressFamily::Inet6,
        };
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(domain, SockType::Stream, flags, None)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        match family {
            Family::V4 => {
                let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
                bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn::from(address))?;
            }
            Family::V6 => {
                setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
                let address = SocketAddrV6::new(Ipv6Addr::LOCALHOST, port, 0, 0);
                bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &SockaddrIn6::from(address))?;
            }
        }
        listen(&fd, Backlog::new(16)?)?;
        Ok(Self { listener: TcpListener::from(fd) })
    }

    /// Take a connection that waits, if there is one, and give its original destination. The
    /// connection stays open until the answer is dropped.
    pub(super) fn accept(&self, patience: Duration) -> io::Result<Option<(TcpStream, SocketAddr)>> {
        let deadline = Instant::now() + patience;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    let original = original(&stream)?;
                    return Ok(Some((stream, original)));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return Ok(None);
                    }
                    self.wait(left)?;
                }
                Err(e) => return Err(e),
            }
        }
    }

    /// Wait, and let go whoever connects meanwhile.
    pub(super) fn pause(&self, length: Duration) {
        let until = Instant::now() + length;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.accept(left).is_err() {
                return;
            }
        }
    }

    fn wait(&self, patience: Duration) -> io::Result<()> {
        let mut fds = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX)) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Where a connection was made to before it was captured (`SO_ORIGINAL_DST`,
/// `linux/netfilter_ipv4.h`; `IP6T_SO_ORIGINAL_DST`).
pub(crate) fn original(stream: &TcpStream) -> io::Result<SocketAddr> {
    Ok(if stream.local_addr()?.is_ipv4() {
        let address = getsockopt(stream, sockopt::OriginalDst)?;
        let ip = Ipv4Addr::from_bits(u32::from_be(address.sin_addr.s_addr));
        SocketAddr::from((ip, u16::from_be(address.sin_port)))
    } else {
        let address = getsockopt(stream, sockopt::Ip6tOriginalDst)?;
        let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
        SocketAddr::from((ip, u16::from_be(address.sin6_port)))
    })
}
