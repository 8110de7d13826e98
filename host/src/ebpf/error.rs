//! What can go wrong, and what to do then.

use std::io;
use std::path::PathBuf;

use millrace_core::ebpf::{IdError, UnsupportedParts};
use millrace_core::ids::Unmapped;
use nix::errno::Errno;

use super::folder;
use crate::link::LinkError;
use crate::lock::{self, Process};

/// Why the node's programs or a pod's entry can't be loaded, changed or read.
#[derive(Debug, thiserror::Error)]
pub enum EbpfError {
    /// The folder can't hold pins.
    #[error(
        "{0} is not in a bpffs, where programs stay when this one ends; mount one with \
         `mount -t bpf bpf /sys/fs/bpf`, or name a folder of one with --bpffs"
    )]
    NoBpffs(PathBuf),
    /// The folder can't be made.
    #[error(
        "{folder} can't be made: {source}; it has to be in a bpffs, which \
         `mount -t bpf bpf /sys/fs/bpf` mounts; --bpffs names a folder of another one"
    )]
    NoFolder {
        /// Path of the folder for pins, also where one below it can't be made.
        folder: PathBuf,
        /// What `mkdir(2)` says.
        source: io::Error,
    },
    /// The folder is somebody else's.
    #[error(
        "{folder}, which user {uid} made, is not used: {why}; the folder of the programs is root's \
         and nobody else's: remove it, or name another one with --bpffs"
    )]
    Foreign {
        /// Path of the folder that should hold the pins.
        folder: PathBuf,
        /// Uid that owns it; 0 also where that can't be read.
        uid: u32,
        /// What is wrong with it.
        why: String,
    },
    /// Another run holds the lock.
    #[error(
        "another run that changes programs or pods in {folder} did not end in time: {}; wait for \
         it, or give --wait more time",
        lock::holder(.holder.as_ref())
    )]
    Busy {
        /// Path of the folder of the pins, which is what is locked.
        folder: PathBuf,
        /// Who has the folder locked (`/proc/locks`), if that can be seen.
        holder: Option<Process>,
    },
    /// Pods are captured by what was to be taken away.
    #[error(
        "these programs capture pods that nothing would capture then: {}; nothing was changed: let rules \
         capture them first (--to nftables), or say --force",
        .0.join(", ")
    )]
    Captures(Vec<String>),
    /// There is no cgroup v2.
    #[error(
        "{0} is no cgroup v2, which programs are attached to; name the root of one with --cgroup"
    )]
    NoCgroup(PathBuf),
    /// The node's programs are not loaded.
    #[error("{}", folder::nothing_in(.0))]
    NotLoaded(PathBuf),
    /// Something of the node's programs is gone.
    #[error(
        "the node's programs in {folder} are not whole: {what}; `millrace node-bpf load` puts back \
         what is missing"
    )]
    NotWhole {
        /// Path of the folder of their pins.
        folder: PathBuf,
        /// Which pins, maps or eBPF programs are gone or no longer attached, in words.
        what: String,
    },
    /// What is there is of another version.
    #[error(
        "the map {name} in {folder} is of another version of Millrace: take its pods away, then \
         run `millrace node-bpf unload` and `millrace node-bpf load`"
    )]
    OtherVersion {
        /// Name of the map, as the object and its pin have it.
        name: &'static str,
        /// Path of the folder of the maps' pins.
        folder: PathBuf,
    },
    /// What is loaded may not know all that is wanted.
    #[error(
        "the programs in {0} are not those of this version, and may not know what these settings ask for: \
         `millrace node-bpf load` puts this version's in their place, without a gap"
    )]
    OtherPrograms(PathBuf),
    /// Programs can't carry the policy out.
    #[error(transparent)]
    Refused(#[from] UnsupportedParts),
    /// `EPERM` or `EACCES`: `BPF`, `NET_ADMIN` and `PERFMON`, or `SYS_ADMIN` and `NET_ADMIN`.
    #[error(
        "{what}: {source}; eBPF capture needs the capabilities BPF, NET_ADMIN and PERFMON, or \
         SYS_ADMIN and NET_ADMIN"
    )]
    Privilege {
        /// A path, a map, an eBPF program, or what was tried.
        what: String,
        /// `EPERM` or `EACCES`.
        source: io::Error,
    },
    /// The kernel can't do it.
    #[error("this kernel lacks {what}: {source}; the kernel that has it is {since} or later")]
    Kernel {
        /// The feature that is missing, in words.
        what: &'static str,
        /// Since when it is there.
        since: &'static str,
        /// What the system call says.
        source: io::Error,
    },
    /// The kernel can't do all of it.
    #[error("eBPF can't work here: {0}; nothing was changed")]
    Unable(String),
    /// The map of this name has no room for another entry (`E2BIG`, `ENOSPC`).
    #[error("the map {0} is full: nothing was changed for this pod")]
    Full(&'static str),
    /// The verifier does not accept a program.
    #[error("the kernel does not accept the program {name}: {source}\n{log}")]
    Program {
        /// Name of the program in the object, such as `mr_connect4`.
        name: String,
        /// What `bpf(2)` says of `BPF_PROG_LOAD`; never `EAGAIN`.
        source: io::Error,
        /// The verifier's log of the program; empty where the kernel gave none.
        log: String,
    },
    /// Signals interrupted the verifier again and again.
    #[error(
        "signals interrupted the kernel's verifier for 10 s, the last time at the program {0}: is this \
         process traced, stopped or frozen again and again? Try again"
    )]
    Interrupted(String),
    /// The object can't be loaded.
    #[error("the eBPF object can't be loaded")]
    Object(#[from] aya::EbpfError),
    /// The object can't be read.
    #[error("the eBPF object can't be read: {0}")]
    Parse(String),
    /// A file or call failed.
    #[error("{what}: {source}")]
    Io {
        /// A path, a map, an eBPF program, or what was tried.
        what: String,
        /// Its cause; `EPERM` and `EACCES` are [`EbpfError::Privilege`] instead.
        source: io::Error,
    },
    /// The pod's addresses can't be listed.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The pod's ids or addresses don't fit.
    #[error(transparent)]
    Pod(#[from] IdError),
    /// The pod has no such id.
    #[error(transparent)]
    Unmapped(#[from] Unmapped),
}

impl EbpfError {
    /// Whether another run was in the way until the time was up.
    pub const fn is_busy(&self) -> bool {
        matches!(self, Self::Busy { .. })
    }

    /// Why a program can't be loaded.
    pub(super) fn of_verifier(name: &str, source: io::Error, log: String) -> Self {
        let name = name.to_owned();
        if source.raw_os_error() == Some(Errno::EAGAIN as i32) {
            return Self::Interrupted(name);
        }
        Self::Program { name, source, log }
    }

    /// An error of a call, with the remedy where privilege is missing.
    pub(super) fn io(what: impl Into<String>, source: io::Error) -> Self {
        let what = what.into();
        let permission = matches!(
            source.raw_os_error().map(Errno::from_raw),
            Some(Errno::EPERM | Errno::EACCES)
        );
        if permission { Self::Privilege { what, source } } else { Self::Io { what, source } }
    }
}

impl From<Errno> for EbpfError {
    fn from(error: Errno) -> Self {
        Self::io("a system call", error.into())
    }
}
