//! What goes with `bpf(2)`: netns cookies and other processes' sockets.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd, RawFd};

use nix::libc;

use super::sys_bpf::owned;

/// `SO_NETNS_COOKIE` of `asm-generic/socket.h`, since Linux 5.14.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the network namespace that a socket is in.
pub(super) fn netns_cookie(socket: &impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).map_err(io::Error::other)?;
    // SAFETY: the option's value is 8 bytes, which is what is told.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            std::ptr::from_mut(&mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// A descriptor of another process.
pub(super) fn descriptor_of(process: u32, descriptor: RawFd) -> io::Result<OwnedFd> {
    let call = |number: libc::c_long, a: libc::c_long, b: libc::c_long| {
        // SAFETY: both calls take three integers and make a descriptor.
        let result = unsafe { libc::syscall(number, a, b, libc::c_long::from(0_i8)) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
    };
    let fd = |result: libc::c_long| RawFd::try_from(result).map(owned).map_err(io::Error::other);
    let handle = fd(call(libc::SYS_pidfd_open, process.into(), 0)?)?;
    fd(call(libc::SYS_pidfd_getfd, handle.as_raw_fd().into(), descriptor.into())?)
}
