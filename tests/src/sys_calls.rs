//! System calls as applications make them that nothing safe here makes: by `io_uring`, of sockets of
//! multipath TCP, by a thread that is another user or has no capabilities.

use std::io;
use std::mem::size_of;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use io_uring::{IoUring, opcode, squeue, types};
use nix::libc;
use nix::sys::socket::{SockaddrLike as _, SockaddrStorage};

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Let this process have as many open files as it may have, for suites with many pods.
///
/// # Errors
/// When the kernel refuses.
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one structure.
    checked(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }.into())?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel reads one structure.
    checked(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }.into()).map(drop)
}

/// A socket of multipath TCP (RFC 8684).
///
/// # Errors
/// `EPROTONOSUPPORT` where the kernel has none, `ENOPROTOOPT` where it is switched off.
pub fn mptcp_socket(v4: bool) -> io::Result<OwnedFd> {
    let family = if v4 { libc::AF_INET } else { libc::AF_INET6 };
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: three integers.
    let fd = checked(unsafe { libc::socket(family, kind, libc::IPPROTO_MPTCP) }.into())?;
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `IORING_OP_CONNECT`; by a worker of the kernel with `elsewhere`, and else where it is asked for.
///
/// # Errors
/// `ENOSYS` or `EPERM` where `io_uring` is not to be had; else what the connection's error is.
pub fn uring_connect(socket: BorrowedFd<'_>, to: SocketAddr, elsewhere: bool) -> io::Result<()> {
    let mut ring = IoUring::new(2)?;
    let address = SockaddrStorage::from(to);
    let socket = types::Fd(socket.as_raw_fd());
    let connect = opcode::Connect::new(socket, address.as_ptr().cast(), address.len()).build();
    let flags = if elsewhere { squeue::Flags::ASYNC } else { squeue::Flags::empty() };
    // SAFETY: the address and the socket outlive the call, whose end is waited for.
    unsafe { ring.submission().push(&connect.flags(flags)) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let end = ring.completion().next().ok_or_else(|| io::Error::other("no completion"))?;
    if end.result() < 0 { Err(io::Error::from_raw_os_error(-end.result())) } else { Ok(()) }
}

/// Let the calling thread alone be another real user; what its effective one permits stays.
///
/// # Errors
/// When it is not permitted.
pub fn become_real_user(uid: u32) -> io::Result<()> {
    const SAME: libc::c_long = -1;
    // SAFETY: three integers. The C library's function would change every thread.
    checked(unsafe { libc::syscall(libc::SYS_setresuid, libc::c_long::from(uid), SAME, SAME) })
        .map(drop)
}

/// Let what a socket sends leave by a device (`IP_UNICAST_IF`, `IPV6_UNICAST_IF`).
///
/// # Errors
/// When there is no such device.
pub fn prefer_device(socket: BorrowedFd<'_>, device: u32, v4: bool) -> io::Result<()> {
    /// `linux/in6.h`; `libc` has no name for it.
    const IPV6_UNICAST_IF: libc::c_int = 76;
    let device = device.to_be();
    let length = libc::socklen_t::try_from(size_of::<u32>()).map_err(io::Error::other)?;
    let (level, option) = if v4 {
        (libc::IPPROTO_IP, libc::IP_UNICAST_IF)
    } else {
        (libc::IPPROTO_IPV6, IPV6_UNICAST_IF)
    };
    let socket = socket.as_raw_fd();
    let value = (&raw const device).cast();
    // SAFETY: the kernel reads a number of four bytes.
    checked(unsafe { libc::setsockopt(socket, level, option, value, length) }.into()).map(drop)
}

/// Let the calling thread alone be nobody but this user, in no group but its own, for good: without
/// any capability.
///
/// # Errors
/// When it is not permitted.
pub fn become_user(id: u32) -> io::Result<()> {
    let id = libc::c_long::from(id);
    // SAFETY: integers, and no list of groups, whose length is 0.
    unsafe {
        checked(libc::syscall(libc::SYS_setgroups, 0_u64, std::ptr::null::<u32>()))?;
        checked(libc::syscall(libc::SYS_setresgid, id, id, id))?;
        checked(libc::syscall(libc::SYS_setresuid, id, id, id))?;
    }
    drop_capabilities()
}

/// `struct __user_cap_header_struct` of linux/capability.h.
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// `_LINUX_CAPABILITY_VERSION_3`
const VERSION: u32 = 0x2008_0522;

/// Take all capabilities from the calling thread.
///
/// # Errors
/// When it is not permitted.
pub fn drop_capabilities() -> io::Result<()> {
    let header = Header { version: VERSION, pid: 0 };
    // Effective, permitted and inheritable ones, in two words each.
    let none = [0_u32; 6];
    debug_assert_eq!(size_of::<Header>(), 8);
    // SAFETY: both are laid out as the call wants them, and outlive it.
    checked(unsafe { libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()) }).map(drop)
}
