//! Sockets of a given owner, and what can go wrong with them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, setsockopt, socket, sockopt,
};
use nix::unistd::{Gid, Uid, setfsgid, setfsuid, setgroups, setresgid, setresuid};

use crate::wire::{Failure, Identity, Proto};

/// Own new sockets as this user and group, and keep every capability that sockets need.
///
/// `xt_owner` looks at the credentials a socket's file was opened with, of which the kernel takes
/// the file system ids (`match_owner()` in `net/netfilter/xt_owner.c`); changing those alone leaves
/// `CAP_NET_ADMIN`, which a transparent socket needs.
pub(super) fn own_sockets_as(identity: Identity) -> Result<()> {
    setgroups(&[]).context("dropping supplementary groups")?;
    setfsgid(Gid::from_raw(identity.gid));
    setfsuid(Uid::from_raw(identity.uid));
    Ok(())
}

/// Be this user and group for good.
pub(super) fn become_identity(identity: Identity) -> Result<()> {
    let gid = Gid::from_raw(identity.gid);
    let uid = Uid::from_raw(identity.uid);
    setgroups(&[]).or_else(ignore_not_permitted).context("dropping supplementary groups")?;
    setresgid(gid, gid, gid).with_context(|| format!("becoming group {gid}"))?;
    setresuid(uid, uid, uid).with_context(|| format!("becoming user {uid}"))
}

fn ignore_not_permitted(error: Errno) -> nix::Result<()> {
    if error == Errno::EPERM { Ok(()) } else { Err(error) }
}

/// A new socket for this protocol and family.
pub(super) fn new(proto: Proto, addr: SocketAddr) -> Result<OwnedFd> {
    let family = if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let kind = match proto {
        Proto::Tcp => SockType::Stream,
        Proto::Udp => SockType::Datagram,
    };
    let fd = socket(family, kind, SockFlag::SOCK_CLOEXEC, None).context("a socket")?;
    setsockopt(&fd, sockopt::ReuseAddr, &true).context("SO_REUSEADDR")?;
    if addr.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true).context("IPV6_V6ONLY")?;
    }
    Ok(fd)
}

/// Let the socket use addresses that are not this host's. The option of IPv4 is good for an IPv6
/// socket too: both set the same flag.
pub(super) fn make_transparent(fd: &OwnedFd) -> Result<()> {
    setsockopt(fd, sockopt::IpTransparent, &true).context("IP_TRANSPARENT")
}

/// Give the socket its address.
pub(super) fn bind_to(fd: &OwnedFd, addr: SocketAddr) -> Result<()> {
    use std::os::fd::AsRawFd as _;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(addr)).with_context(|| format!("binding {addr}"))
}

/// The wildcard address of a family.
pub(super) const fn any(like: SocketAddr) -> IpAddr {
    match like {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    }
}

/// What an error of a connection means.
pub(super) fn failure(error: &io::Error) -> Failure {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ECONNREFUSED) => Failure::Refused,
        // A blocking connect() whose time is up says EINPROGRESS, a recv() EAGAIN (socket(7)).
        Some(Errno::ETIMEDOUT | Errno::EINPROGRESS | Errno::EAGAIN) => Failure::TimedOut,
        Some(Errno::EHOSTUNREACH | Errno::ENETUNREACH) => Failure::Unreachable,
        Some(Errno::ECONNRESET | Errno::EPIPE) => Failure::Reset,
        _ => Failure::Other(error.to_string()),
    }
}
