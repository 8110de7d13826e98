//! Whether eBPF captures a pod, asked of the kernel alone: also where its programs are pinned in a folder
//! that nobody has named.

use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::AsFd as _;
use std::path::Path;

use super::node::pin_in;
use super::program::LOOKUP;
use super::sys_bpf;
use super::target::Target;

/// The network namespace of the calling thread.
const NETNS: &str = "/proc/thread-self/ns/net";

/// What the kernel says of the namespace that the calling thread is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// No program of Millrace's is attached to it, or this process may not ask.
    No,
    /// One is: the namespace is, or is about to be, a pod's that eBPF captures.
    Yes,
    /// Some program is, and this process may not see whose it is (`CAP_SYS_ADMIN`).
    Unclear,
}

impl Attached {
    /// What [`Self::Unclear`] is in words.
    pub const UNCLEAR: &str = "eBPF may capture this pod: an sk_lookup program is attached to it, whose it \
        is can't be seen (CAP_SYS_ADMIN)";

    /// List the `sk_lookup` programs attached to it, whatever folder has their pins.
    pub fn here() -> Self {
        let Ok(netns) = File::open(NETNS) else { return Self::No };
        // A kernel without such programs refuses the question; who may not ask may not clean up either.
        let Ok(programs) = sys_bpf::lookups_of(netns.as_fd()) else { return Self::No };
        let names = programs.into_iter().map(sys_bpf::program_name);
        names.fold(Self::No, |found, name| match (found, name) {
            (Self::Yes, _) => Self::Yes,
            (_, Ok(name)) if name == LOOKUP => Self::Yes,
            (_, Err(error)) if error.kind() == ErrorKind::PermissionDenied => Self::Unclear,
            // One that has gone meanwhile, or somebody else's.
            (found, _) => found,
        })
    }

    /// Ask for programs that a folder does not have pinned for this namespace.
    pub fn beyond(folder: &Path) -> Self {
        // Of most namespaces that is all there is to ask.
        let found = Self::here();
        let pinned = |target: Target| pin_in(folder, target.cookie()).symlink_metadata().is_ok();
        if found != Self::No && Target::current().is_ok_and(pinned) { Self::No } else { found }
    }
}
