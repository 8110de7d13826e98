//! Sockets of a given owner, in the pod or outside.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};

use millrace_core::sim::{Identity, Protocol};
use millrace_core::value::Family;
use nix::errno::Errno;
use nix::libc::linger;
use nix::sys::socket::{
    AddressFamily, SockaddrLike as _, SockaddrStorage, bind, connect, getsockname, setsockopt,
    sockopt,
};
use nix::unistd::{Gid, Uid, getgid, getuid, setfsgid, setfsuid, setresgid, setresuid};

use super::listen::new_socket;

/// A socket that belongs to a user and group.
///
/// Rules ask for the credentials that the socket's file was opened with, of which the kernel takes
/// the file system ids (`xt_owner`, `nft_meta`). To change those alone takes no other process.
pub(super) fn owned(
    owner: Identity,
    family: Family,
    protocol: Protocol,
) -> Result<OwnedFd, String> {
    let (gid, uid) = (Gid::from_raw(owner.gid), Uid::from_raw(owner.uid));
    let before = (setfsgid(gid), setfsuid(uid));
    // Only asking again tells whether it was permitted (setfsuid(2)).
    let now = (setfsgid(gid), setfsuid(uid));
    let socket = (now == (gid, uid)).then(|| new_socket(family, protocol));
    setfsuid(before.1);
    setfsgid(before.0);
    match socket {
        Some(socket) => socket.map_err(|errno| errno.to_string()),
        None => Err(format!(
            "{owner} can't be used: it needs the capabilities SETUID and SETGID, or to be run by \
             that user"
        )),
    }
}

/// What a connection attempt came to so far.
pub(super) enum Dialled {
    /// It is under way, or made; or the datagram is sent. This is where it comes from.
    From(SocketAddr),
    /// `connect(2)` or a call around it failed, such as `bind(2)` or the first `write(2)`.
    Refused(Errno),
}

/// A query for the name servers of the root (RFC 1035 section 4.1): any server may have it.
const QUERY: [u8; 17] = [0x4d, 0x52, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];

/// Connect, and send something if nothing is sent by that.
///
/// eBPF programs at `connect()` ask who calls it, of whom the kernel takes the real ids
/// (`bpf_get_current_uid_gid`).
pub(super) fn dial(
    socket: &OwnedFd,
    owner: Option<Identity>,
    protocol: Protocol,
    source: Option<IpAddr>,
    to: SocketAddr,
) -> Dialled {
    match calling_as(owner, || begin(socket, protocol, source, to)) {
        Ok(from) => Dialled::From(from),
        Err(errno) => Dialled::Refused(errno),
    }
}

/// Do something with other real ids; the effective ones, and what they permit, stay.
fn calling_as<T>(
    owner: Option<Identity>,
    act: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let before = Identity { uid: getuid().as_raw(), gid: getgid().as_raw() };
    let Some(owner) = owner.filter(|owner| *owner != before) else { return act() };
    let become_one = |of: Identity| {
        // -1 leaves an id as it is (setresuid(2)).
        let (gid, uid) = (Gid::from_raw(u32::MAX), Uid::from_raw(u32::MAX));
        let gid = setresgid(Gid::from_raw(of.gid), gid, gid);
        gid.and_then(|()| setresuid(Uid::from_raw(of.uid), uid, uid))
    };
    let done = become_one(owner).and_then(|()| act());
    become_one(before)?;
    done
}

fn begin(
    socket: &OwnedFd,
    protocol: Protocol,
    source: Option<IpAddr>,
    to: SocketAddr,
) -> Result<SocketAddr, Errno> {
    let fd = socket.as_raw_fd();
    if let Some(source) = source {
        bind(fd, &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
    }
    if protocol == Protocol::TCP {
        // Its end tells the other side at once, and leaves nothing that waits.
        setsockopt(socket, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })?;
    }
    match connect(fd, &SockaddrStorage::from(to)) {
        Ok(()) | Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno),
    }
    let name: SockaddrStorage = getsockname(fd)?;
    if protocol != Protocol::TCP {
        nix::unistd::write(socket, &QUERY)?;
    }
    address(&name).ok_or(Errno::EAFNOSUPPORT)
}

/// Give a socket this address and a port that is free.
pub(super) fn bound(socket: &OwnedFd, source: IpAddr) -> Result<SocketAddr, Errno> {
    bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(source, 0)))?;
    let name: SockaddrStorage = getsockname(socket.as_raw_fd())?;
    address(&name).ok_or(Errno::EAFNOSUPPORT)
}

fn address(name: &SockaddrStorage) -> Option<SocketAddr> {
    match name.family()? {
        AddressFamily::Inet => name.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into())),
        AddressFamily::Inet6 => name.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())),
        _ => None,
    }
}
