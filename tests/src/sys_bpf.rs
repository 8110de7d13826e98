//! Somebody else's program at a cgroup, the order in which programs run there, and what somebody with
//! privilege can do to programs and maps that are pinned.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::libc;

// `enum bpf_cmd`, `enum bpf_prog_type` and `enum bpf_attach_type` of linux/bpf.h.
const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const OBJ_GET: libc::c_int = 7;
const LINK_DETACH: libc::c_int = 34;
const PROG_LOAD: libc::c_int = 5;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;
const TYPE_CGROUP_SOCK_ADDR: u32 = 18;
const ATTACH_CONNECT4: u32 = 10;
const ATTACH_CONNECT6: u32 = 11;
const ATTACH_SENDMSG4: u32 = 14;
const ATTACH_SENDMSG6: u32 = 15;

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
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
}

#[repr(C)]
struct Detach {
    link: u32,
}

#[repr(C)]
struct Whole {
    map: u32,
    padding: u32,
    key: u64,
    bytes: u64,
    flags: u64,
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
    attach_as(cgroup, ATTACH_CONNECT4, &ALLOW, [0; 16], 0)
}

/// The same, before all others, where the kernel can (Linux 6.16).
pub fn attach_first(cgroup: &File) -> io::Result<OwnedFd> {
    match attach_as(cgroup, ATTACH_CONNECT4, &ALLOW, [0; 16], PREORDER | BEFORE) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => attach(cgroup),
        attached => attached,
    }
}

fn attach_as(
    cgroup: &File,
    kind: u32,
    instructions: &[u64],
    name: [u8; 16],
    flags: u32,
) -> io::Result<OwnedFd> {
    let mut load = Load {
        kind: TYPE_CGROUP_SOCK_ADDR,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        attach: kind,
        name,
        ..Load::default()
    };
    let program = owned(bpf(PROG_LOAD, &mut load)?);
    let program = program.as_raw_fd().cast_unsigned();
    let target = cgroup.as_raw_fd().cast_unsigned();
    bpf(LINK_CREATE, &mut Link { program, target, kind, flags }).map(owned)
}

/// `BPF_F_PREORDER` of linux/bpf.h: before the programs of cgroups below.
pub const PREORDER: u32 = 1 << 6;
/// `BPF_F_BEFORE` of linux/bpf.h; with nothing that it names, before all.
const BEFORE: u32 = 1 << 3;

/// Attach a socket load balancer to a cgroup, for as long as there is the value: programs that put one
/// address in the place of another when somebody connects or sends, in both families. Of addresses of
/// IPv6 only the first 32 bits are looked at and changed.
pub fn balance(
    cgroup: &File,
    v4: &[(Ipv4Addr, Ipv4Addr)],
    v6: &[(Ipv6Addr, Ipv6Addr)],
    flags: u32,
) -> io::Result<Vec<OwnedFd>> {
    // `user_ip4` and `user_ip6` of `struct bpf_sock_addr`; numbers in them are in network order.
    let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
    let first = |ip: &Ipv6Addr| {
        let [a, b, c, d, ..] = ip.octets();
        word([a, b, c, d])
    };
    let v4: Vec<_> = v4.iter().map(|(from, to)| (word(from.octets()), word(to.octets()))).collect();
    let v6: Vec<_> = v6.iter().map(|(from, to)| (first(from), first(to))).collect();
    let hooks = [
        (ATTACH_CONNECT4, 4, &v4, b"cil_sock4_conne\0"),
        (ATTACH_CONNECT6, 8, &v6, b"cil_sock6_conne\0"),
        (ATTACH_SENDMSG4, 4, &v4, b"cil_sock4_sendm\0"),
        (ATTACH_SENDMSG6, 8, &v6, b"cil_sock6_sendm\0"),
    ];
    let attach = |(kind, offset, pairs, name): (u32, u64, &Vec<(u32, u32)>, &[u8; 16])| {
        let mut instructions = Vec::new();
        for (from, to) in pairs {
            let immediate = |value: u32| u64::from(value) << 32;
            instructions.extend([
                // r2 = *(u32 *)(r1 + offset); if w2 != from goto +2; w2 = to; *(u32 *)(r1 + offset) = r2
                0x1261 | offset << 16,
                0x0256 | 2 << 16 | immediate(*from),
                0x02b4 | immediate(*to),
                0x2163 | offset << 16,
            ]);
        }
        instructions.extend(ALLOW);
        attach_as(cgroup, kind, &instructions, *name, flags)
    };
    hooks.into_iter().map(attach).collect()
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

fn pinned(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes()).map_err(io::Error::other)?;
    let path = path.as_ptr() as u64;
    bpf(OBJ_GET, &mut Object { path, fd: 0, flags: 0 }).map(owned)
}

/// Detach a pinned link's program. The pin stays.
pub fn detach(pin: &Path) -> io::Result<()> {
    let link = pinned(pin)?;
    bpf(LINK_DETACH, &mut Detach { link: link.as_raw_fd().cast_unsigned() }).map(drop)
}

/// Take an entry out of a pinned map.
pub fn delete(pin: &Path, key: &[u8]) -> io::Result<()> {
    let fd = pinned(pin)?;
    let (map, key) = (fd.as_raw_fd().cast_unsigned(), key.as_ptr() as u64);
    bpf(MAP_DELETE, &mut Element { map, padding: 0, key }).map(drop)
}

/// Change what a pinned map has of a key, in a value of `N` bytes.
pub fn change<const N: usize>(
    pin: &Path,
    key: &[u8],
    change: impl FnOnce(&mut [u8; N]),
) -> io::Result<()> {
    let fd = pinned(pin)?;
    let mut bytes = [0; N];
    let (map, key) = (fd.as_raw_fd().cast_unsigned(), key.as_ptr() as u64);
    let place = bytes.as_mut_ptr() as u64;
    bpf(MAP_LOOKUP, &mut Whole { map, padding: 0, key, bytes: place, flags: 0 })?;
    change(&mut bytes);
    let place = bytes.as_ptr() as u64;
    bpf(MAP_UPDATE, &mut Whole { map, padding: 0, key, bytes: place, flags: 0 }).map(drop)
}
