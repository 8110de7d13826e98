//! The calls of `bpf(2)` that aya keeps to itself: maps by bytes, links of every kind, programs of
//! single pods.

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use nix::libc;

use super::interrupted::until_not_interrupted;

// `enum bpf_cmd` of linux/bpf.h.
const MAP_LOOKUP: libc::c_int = 1;
const MAP_UPDATE: libc::c_int = 2;
const MAP_DELETE: libc::c_int = 3;
const MAP_NEXT_KEY: libc::c_int = 4;
const PROG_LOAD: libc::c_int = 5;
const OBJ_PIN: libc::c_int = 6;
const OBJ_GET: libc::c_int = 7;
const PROG_ATTACH: libc::c_int = 8;
const PROG_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO: libc::c_int = 15;
const PROG_QUERY: libc::c_int = 16;
const LINK_CREATE: libc::c_int = 28;
const LINK_UPDATE: libc::c_int = 29;
const LINK_DETACH: libc::c_int = 34;

/// `BPF_LINK_TYPE_CGROUP`.
const LINK_CGROUP: u32 = 3;
/// `BPF_NOEXIST`.
const NOEXIST: u64 = 1;
/// `BPF_PROG_TYPE_SK_LOOKUP`.
const TYPE_SK_LOOKUP: u32 = 30;
/// `BPF_PROG_TYPE_CGROUP_SOCK_ADDR`.
const TYPE_CGROUP_SOCK_ADDR: u32 = 18;
/// `BPF_CGROUP_INET4_CONNECT`.
const ATTACH_CONNECT4: u32 = 10;
/// `BPF_SK_LOOKUP`.
const ATTACH_SK_LOOKUP: u32 = 36;
/// `BPF_SK_MSG_VERDICT`.
const ATTACH_SK_MSG: u32 = 7;

/// Arguments of `bpf(2)`, as linux/bpf.h lays them out for each command; what is behind them counts
/// as zero.
#[repr(C)]
#[derive(Clone, Copy)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinkCreate {
    program: u32,
    target: u32,
    kind: u32,
    flags: u32,
}

/// `BPF_F_BEFORE`: before what is there (of cgroups since Linux 6.17).
const BEFORE: u32 = 1 << 3;
/// `BPF_F_PREORDER`: before what cgroups below have, and what does not ask for it (Linux 6.15).
const PREORDER: u32 = 1 << 6;

#[repr(C)]
#[derive(Clone, Copy)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct LinkDetach {
    link: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Info {
    fd: u32,
    length: u32,
    buffer: u64,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Query {
    target: u32,
    kind: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct ById {
    id: u32,
    next: u32,
    flags: u32,
}

/// The beginning of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Clone, Copy)]
struct ProgramInfo {
    kind: u32,
    id: u32,
    tag: [u8; 8],
    lengths: [u32; 2],
    code: [u64; 2],
    load_time: u64,
    owner: u32,
    maps: u32,
    map_ids: u64,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach: u32,
}

fn bpf<T>(command: libc::c_int, argument: &mut T) -> io::Result<RawFd> {
    let size = size_of::<T>();
    // SAFETY: the argument is laid out as the command wants it, and its size is told; what it
    // points to outlives the call.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(argument), size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(result).map_err(io::Error::other)
}

pub(super) fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just made it for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    // A descriptor is never negative.
    fd.as_raw_fd().cast_unsigned()
}

fn address(bytes: &[u8]) -> u64 {
    bytes.as_ptr() as u64
}

fn path(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(io::Error::other)
}

/// Whether an error is that there is no such entry.
fn or_none(result: io::Result<RawFd>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Set an entry of a map.
pub(super) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let (key, value) = (address(key), address(value));
    let mut argument = Element { map: number(map), padding: 0, key, value, flags: 0 };
    bpf(MAP_UPDATE, &mut argument).map(drop)
}

/// Write an entry of a map if there is none: `EEXIST` says that there is one.
pub(super) fn insert(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    let (key, value) = (address(key), address(value));
    let mut argument = Element { map: number(map), padding: 0, key, value, flags: NOEXIST };
    bpf(MAP_UPDATE, &mut argument).map(drop)
}

/// Read an entry of a map into `value`, which is as long as the kernel wants it; false if there is
/// none.
pub(super) fn lookup(map: BorrowedFd<'_>, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
    let (key, value) = (address(key), value.as_mut_ptr() as u64);
    let mut argument = Element { map: number(map), padding: 0, key, value, flags: 0 };
    or_none(bpf(MAP_LOOKUP, &mut argument))
}

/// Take an entry out of a map; false if there is none.
pub(super) fn delete(map: BorrowedFd<'_>, key: &[u8]) -> io::Result<bool> {
    let key = address(key);
    let mut argument = Element { map: number(map), padding: 0, key, value: 0, flags: 0 };
    or_none(bpf(MAP_DELETE, &mut argument))
}

/// The key behind another one, or the first; false behind the last.
pub(super) fn next_key(
    map: BorrowedFd<'_>,
    key: Option<&[u8]>,
    next: &mut [u8],
) -> io::Result<bool> {
    let (key, value) = (key.map_or(0, address), next.as_mut_ptr() as u64);
    let mut argument = Element { map: number(map), padding: 0, key, value, flags: 0 };
    or_none(bpf(MAP_NEXT_KEY, &mut argument))
}

/// What a map is like.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct MapInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) max_entries: u32,
}

/// What a link is like (`struct bpf_link_info`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(super) struct LinkInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) program: u32,
    padding: u32,
    /// Of a netns link: the inode of the namespace, 0 when that is gone.
    pub(super) netns: u32,
    /// Of a netns link its attach type; of a cgroup link the other half of the cgroup's number.
    rest: u32,
}

impl LinkInfo {
    /// Where it is attached; none if it is no more.
    pub(super) fn attached_to(&self) -> Option<u64> {
        let upper = if self.kind == LINK_CGROUP { u64::from(self.rest) << 32 } else { 0 };
        Some(upper | u64::from(self.netns)).filter(|place| *place != 0)
    }
}

fn info<T: Copy>(fd: BorrowedFd<'_>) -> io::Result<T> {
    // SAFETY: both kinds of information are integers only.
    let mut info: T = unsafe { zeroed() };
    let length = u32::try_from(size_of::<T>()).map_err(io::Error::other)?;
    let at = std::ptr::from_mut(&mut info) as u64;
    bpf(OBJ_GET_INFO, &mut Info { fd: number(fd), length, buffer: at })?;
    Ok(info)
}

/// What a map is like.
pub(super) fn map_info(map: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(map)
}

/// What a link is like.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(link)
}

/// `BPF_OBJ_PIN`: a program, map or link at a path in bpffs, which must be free.
pub(super) fn pin(object: BorrowedFd<'_>, at: &Path) -> io::Result<()> {
    let at = path(at)?;
    bpf(OBJ_PIN, &mut Object { path: at.as_ptr() as u64, fd: number(object), flags: 0 }).map(drop)
}

/// Open what is pinned; none if nothing is.
pub(super) fn pinned(at: &Path) -> io::Result<Option<OwnedFd>> {
    let at = path(at)?;
    match bpf(OBJ_GET, &mut Object { path: at.as_ptr() as u64, fd: 0, flags: 0 }) {
        Ok(fd) => Ok(Some(owned(fd))),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Attach a program to a cgroup or network namespace.
pub(super) fn link(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    kind: u32,
) -> io::Result<OwnedFd> {
    let (program, target) = (number(program), number(target));
    bpf(LINK_CREATE, &mut LinkCreate { program, target, kind, flags: 0 }).map(owned)
}

/// Attach a program to a cgroup, before all others as far as the kernel can do that.
pub(super) fn link_first(
    program: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    kind: u32,
) -> io::Result<OwnedFd> {
    let (program, target) = (number(program), number(target));
    let mut last = Err(io::Error::from_raw_os_error(libc::EINVAL));
    for flags in [PREORDER | BEFORE, PREORDER, 0] {
        last = bpf(LINK_CREATE, &mut LinkCreate { program, target, kind, flags }).map(owned);
        // A flag that the kernel does not know.
        if !last.as_ref().is_err_and(|error| error.raw_os_error() == Some(libc::EINVAL)) {
            break;
        }
    }
    last
}

/// Wait until every call of a program that has begun is over (`MEMBARRIER_CMD_GLOBAL`, which is
/// `synchronize_rcu()` in the kernel's `kernel/sched/membarrier.c`; not with `nohz_full`).
pub(super) fn wait_for_calls() -> io::Result<()> {
    // SAFETY: numbers only.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, libc::MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether the kernel can call a program before all others: it is asked to attach one to no cgroup.
pub(super) fn try_first() -> io::Result<()> {
    let mut argument =
        Load { kind: TYPE_CGROUP_SOCK_ADDR, attach: ATTACH_CONNECT4, ..load_argument(&YES) };
    let program = load(&mut argument)?;
    let program = number(program.as_fd());
    let (target, kind) = (u32::MAX, ATTACH_CONNECT4);
    match bpf(LINK_CREATE, &mut LinkCreate { program, target, kind, flags: PREORDER }) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(()),
        other => other.map(owned).map(drop),
    }
}

/// The numbers of the programs at a hook, in their order: those that are attached there, or all that
/// the kernel calls for a cgroup's processes (`BPF_F_QUERY_EFFECTIVE`). Of each cgroup there can be 64
/// (`BPF_CGROUP_MAX_PROGS` of its `kernel/bpf/cgroup.c`), and those above it.
pub(super) fn programs_at(
    target: BorrowedFd<'_>,
    kind: u32,
    effective: bool,
) -> io::Result<Vec<u32>> {
    let mut numbers = [0_u32; 1024];
    let mut argument = Query {
        target: number(target),
        kind,
        flags: u32::from(effective),
        attach_flags: 0,
        programs: numbers.as_mut_ptr() as u64,
        count: u32::try_from(numbers.len()).unwrap_or(0),
        padding: 0,
    };
    bpf(PROG_QUERY, &mut argument)?;
    let count = usize::try_from(argument.count).map_err(io::Error::other)?;
    Ok(numbers.into_iter().take(count).collect())
}

/// Attach a pod's program to its network namespace.
pub(super) fn link_netns(program: BorrowedFd<'_>, netns: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    link(program, netns, ATTACH_SK_LOOKUP)
}

/// The numbers of the `sk_lookup` programs at a network namespace: the kernel allows 64
/// (`netns_bpf_max_progs` of its `kernel/bpf/net_namespace.c`).
pub(super) fn lookups_of(netns: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    programs_at(netns, ATTACH_SK_LOOKUP, false)
}

/// The name that a program was loaded with, as far as the kernel keeps it.
pub(super) fn program_name(id: u32) -> io::Result<String> {
    let program = owned(bpf(PROG_BY_ID, &mut ById { id, next: 0, flags: 0 })?);
    let ProgramInfo { name, .. } = info(program.as_fd())?;
    let name = name.iter().copied().take_while(|byte| *byte != 0).collect();
    String::from_utf8(name).map_err(io::Error::other)
}

/// Put another program in the place of a link's, in one step.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let (link, program) = (number(link), number(program));
    bpf(LINK_UPDATE, &mut LinkUpdate { link, program, flags: 0, old: 0 }).map(drop)
}

/// Take a link's program away at once: the kernel frees a link that nobody has on its own time.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut LinkDetach { link: number(link) }).map(drop)
}

/// Let a program see what the sockets of a map send.
pub(super) fn attach_to_map(program: BorrowedFd<'_>, map: BorrowedFd<'_>) -> io::Result<()> {
    let (program, target) = (number(program), number(map));
    bpf(PROG_ATTACH, &mut Attach { target, program, kind: ATTACH_SK_MSG, flags: 0 }).map(drop)
}

/// One instruction (`struct bpf_insn`), as 8 bytes.
pub(super) type Instruction = [u8; 8];

/// `r0 = 1; exit`: yes to everything.
const YES: [Instruction; 2] = [[0xb7, 0, 0, 0, 1, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];

/// Load a program, however many signals there are meanwhile.
fn load(argument: &mut Load) -> io::Result<OwnedFd> {
    until_not_interrupted(|| bpf(PROG_LOAD, argument), io::Error::raw_os_error).map(owned)
}

/// Whether the kernel takes a program of this type (`enum bpf_prog_type`) for this attach type: one
/// that says yes to everything is loaded, and gone at once.
pub(super) fn try_program(kind: u32, attach: u32) -> io::Result<()> {
    let mut argument = Load { kind, attach, ..load_argument(&YES) };
    load(&mut argument).map(drop)
}

/// Whether the kernel knows how to detach a link, the latest of the commands for them: it is asked
/// for one that there can't be.
pub(super) fn try_links() -> io::Result<()> {
    match bpf(LINK_DETACH, &mut LinkDetach { link: u32::MAX }) {
        Err(error) if error.raw_os_error() == Some(libc::EBADF) => Ok(()),
        other => other.map(drop),
    }
}

fn load_argument(instructions: &[Instruction]) -> Load {
    Load {
        kind: TYPE_SK_LOOKUP,
        count: u32::try_from(instructions.len()).unwrap_or(u32::MAX),
        instructions: instructions.as_ptr() as u64,
        licence: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
        name: [0; 16],
        ifindex: 0,
        attach: ATTACH_SK_LOOKUP,
    }
}

/// Load a pod's `sk_lookup` program. An error comes with what the verifier says.
pub(super) fn load_lookup(
    instructions: &[Instruction],
    name: &str,
) -> Result<OwnedFd, (io::Error, String)> {
    let mut short = [0; 16];
    for (place, byte) in short.iter_mut().take(15).zip(name.bytes()) {
        *place = byte;
    }
    let mut argument = Load { name: short, ..load_argument(instructions) };
    load(&mut argument).map_err(|error| {
        // Once more, for the reason.
        let mut log = vec![0_u8; 1 << 20];
        argument.log_level = 1;
        argument.log_size = u32::try_from(log.len()).unwrap_or(0);
        argument.log = log.as_mut_ptr() as u64;
        drop(bpf(PROG_LOAD, &mut argument).map(owned));
        let said = log.split(|byte| *byte == 0).next().unwrap_or_default();
        (error, String::from_utf8_lossy(said).into_owned())
    })
}
