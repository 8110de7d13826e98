//! Somebody else's program at a cgroup, and the order in which programs run there.

use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::libc;

// `enum bpf_cmd`, `enum bpf_prog_type` and `enum bpf_attach_type` of linux/bpf.h.
const PROG_LOAD: libc::c_int = 5;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;
const TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const ATTACH_CONNECT4: u32 = 10;

/// `r0 = 1; exit`: the call goes on.
const ALLOW: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];

#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach: u32,
}

#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
struct Query {
    target: u32,
    kind: u32,
    flags: u32,
    found_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

fn bpf<T>(command: libc::c_int, argument: &mut T) -> io::Result<i32> {
    let (pointer, size) = (std::ptr::from_mut(argument), size_of::<T>());
    // SAFETY: the argument is laid out as the command wants it, and its size is told.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, pointer, size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the kernel has just made it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Attach a program of nobody's to the `connect()` of IPv4 in a cgroup, for as long as there is
/// the value.
pub fn attach(cgroup: &File) -> io::Result<OwnedFd> {
    let mut load = Load {
        kind: TYPE_CGROUP_SOCK_ADDR,
        count: 2,
        instructions: ALLOW.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        attach: ATTACH_CONNECT4,
        ..Load::default()
    };
    let program = owned(bpf(PROG_LOAD, &mut load)?);
    let program = program.as_raw_fd().cast_unsigned();
    let target = cgroup.as_raw_fd().cast_unsigned();
    bpf(LINK_CREATE, &mut Link { program, target, kind: ATTACH_CONNECT4, flags: 0 }).map(owned)
}

/// The programs at the `connect()` of IPv4 in a cgroup, by id, in the order in which they run.
pub fn attached(cgroup: &File) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64];
    let mut query = Query {
        target: cgroup.as_raw_fd().cast_unsigned(),
        kind: ATTACH_CONNECT4,
        flags: 0,
        found_flags: 0,
        ids: ids.as_mut_ptr() as u64,
        count: 64,
        padding: 0,
    };
    bpf(PROG_QUERY, &mut query)?;
    let count = usize::try_from(query.count).map_err(io::Error::other)?;
    Ok(ids.get(..count).unwrap_or_default().to_vec())
}
