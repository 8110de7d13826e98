//! Who decides first at a hook of a cgroup: the kernel calls programs of a cgroup before those of the
//! cgroups above it, in the order in which they were attached; those that ask for it
//! (`BPF_F_PREORDER`, Linux 6.15) before all others, from the root down (`compute_effective_progs()`
//! of its `kernel/bpf/cgroup.c`).

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use millrace_core::ebpf::{Earlier, Order};

use super::error::EbpfError;
use super::maps::Map;
use super::node::{Node, PROGRAMS, default_cgroup, show, unpin};
use super::sys_bpf;

/// The hooks at which an order means something: a program's name, its attach type, and in words.
const HOOKS: [(&str, u32, &str); 4] = [
    ("mr_connect4", 10, "connect() of IPv4"),
    ("mr_connect6", 11, "connect() of IPv6"),
    ("mr_sendmsg4", 14, "sendmsg() of IPv4"),
    ("mr_sendmsg6", 15, "sendmsg() of IPv6"),
];

/// How many cgroups are looked at. A node has some for each container.
const MOST: usize = 65_536;

/// Where the kubelet has the cgroups of pods, below the root: by systemd, by itself, and in clusters
/// whose nodes are containers.
const PODS: [&str; 4] =
    ["kubepods.slice", "kubepods", "kubelet.slice/kubelet-kubepods.slice", "kubelet/kubepods"];

/// Where programs of the node are attached if nobody says it: at the root; where a program of somebody
/// else's is there already, and the kernel can't put another before it, at the cgroup of all pods.
pub fn usual_cgroup() -> Option<PathBuf> {
    let root = default_cgroup()?;
    let below = PODS.iter().map(|name| root.join(name)).find(|path| path.is_dir());
    match below {
        Some(below) if is_taken(&root) && sys_bpf::try_first().is_err() => Some(below),
        _ => Some(root),
    }
}

/// Whether somebody else's programs are at a cgroup's hooks.
fn is_taken(cgroup: &Path) -> bool {
    let Ok(file) = File::open(cgroup) else { return false };
    let others = |(name, kind, _): &(&str, u32, &str)| {
        let ids = sys_bpf::programs_at(file.as_fd(), *kind, false).unwrap_or_default();
        ids.into_iter().any(|id| sys_bpf::program_name(id).is_ok_and(|of| of != *name))
    };
    HOOKS.iter().any(others)
}

impl Node {
    /// See to it that the programs, in the order of [`PROGRAMS`], are called first, where the kernel can.
    /// Gives what has come of it.
    pub(super) fn first(&self, programs: &[OwnedFd], cgroup: &File) -> Result<Order, EbpfError> {
        let handover = Map::<u32, u32>::open(&self.folder.join("maps"), "HANDOVER")?;
        let mut order = self.order()?;
        if matches!(order, Order::After(_)) && sys_bpf::try_first().is_ok() {
            handover.set(&0, &1)?;
            for ((name, kind, since), program) in PROGRAMS.into_iter().zip(programs) {
                self.go_first(name, program.as_fd(), cgroup, (kind, since))?;
            }
            order = self.order()?;
        }
        // Set by this load, or by one that was killed. Where the kernel does not say when the calls are
        // over that began with two places, it stays.
        if handover.get(&0)?.is_some_and(|going_on| going_on != 0)
            && sys_bpf::wait_for_calls().is_ok()
        {
            handover.set(&0, &0)?;
        }
        Ok(order)
    }

    /// Attach a program anew, before all others, and then detach what was there. Just between, a
    /// connection comes to both, of which the second one sees by HANDOVER that it has been decided.
    fn go_first(
        &self,
        name: &str,
        program: BorrowedFd<'_>,
        cgroup: &File,
        (kind, since): (u32, &'static str),
    ) -> Result<(), EbpfError> {
        let folder = self.folder.join("links");
        // A later load takes it for one of an earlier version, and removes it.
        let (pin, new) = (folder.join(name), folder.join(format!("{name}_new")));
        let failed = |error| EbpfError::io(show(&new), error);
        let link = attach(program, cgroup.as_fd(), kind, since)?;
        unpin(&new)?;
        sys_bpf::pin(link.as_fd(), &new).map_err(failed)?;
        unpin(&pin)?;
        fs::rename(&new, &pin).map_err(failed)
    }

    /// When this node's programs are called, among those of others.
    ///
    /// # Errors
    /// When a pin can't be opened.
    pub fn order(&self) -> Result<Order, EbpfError> {
        let mut ours = Vec::new();
        let mut place = None;
        for (name, kind, hook) in HOOKS {
            let pin = self.folder.join("links").join(name);
            let failed = |error| EbpfError::io(show(&pin), error);
            let Some(link) = sys_bpf::pinned(&pin).map_err(failed)? else { continue };
            let info = sys_bpf::link_info(link.as_fd()).map_err(failed)?;
            place = place.or(info.attached_to());
            ours.push((kind, hook, info.program));
        }
        let Some(place) = place else {
            return Ok(Order::Unknown("none of them is attached".to_owned()));
        };
        let Some(root) = default_cgroup() else {
            return Ok(Order::Unknown("no cgroup v2 is mounted here".to_owned()));
        };
        let Some(own) = find(&root, place) else {
            return Ok(Order::Unknown(format!(
                "the cgroup that they are attached to is not below {}",
                root.display()
            )));
        };
        let mut earlier: Vec<Earlier> = Vec::new();
        for (at, cgroup) in below(&own).into_iter().enumerate() {
            // It may be gone by now.
            let Ok(file) = File::open(&cgroup) else { continue };
            for (kind, hook, program) in &ours {
                // Below its own cgroup, only where somebody has attached something.
                let local = || sys_bpf::programs_at(file.as_fd(), *kind, false);
                if at > 0 && local().map_or(true, |ids| ids.is_empty()) {
                    continue;
                }
                let called = match sys_bpf::programs_at(file.as_fd(), *kind, true) {
                    Ok(called) => called,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Ok(Order::Unknown(error.to_string())),
                };
                let before = called.iter().take_while(|id| *id != program);
                for id in before.copied() {
                    if earlier.iter().any(|known| known.id == id && known.hook == *hook) {
                        continue;
                    }
                    // As a trial's.
                    let gone = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
                    let name = sys_bpf::program_name(id);
                    if name.as_ref().is_err_and(gone) {
                        continue;
                    }
                    let program = name.unwrap_or_default();
                    earlier.push(Earlier { id, program, hook, cgroup: show(&cgroup) });
                }
            }
        }
        Ok(if earlier.is_empty() { Order::First } else { Order::After(earlier) })
    }
}

/// The cgroup with this number, below another one or it.
fn find(root: &Path, number: u64) -> Option<PathBuf> {
    let is = |path: &PathBuf| fs::metadata(path).is_ok_and(|data| data.ino() == number);
    below(root).into_iter().find(is)
}

/// A cgroup and all that are below it, the upper ones first.
fn below(root: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    let mut waiting = VecDeque::from([root.to_owned()]);
    while let Some(cgroup) = waiting.pop_front() {
        if all.len() == MOST {
            break;
        }
        // What is gone meanwhile has none.
        let entries = fs::read_dir(&cgroup).into_iter().flatten().flatten();
        let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        waiting.extend(folders.map(|entry| entry.path()));
        all.push(cgroup);
    }
    all
}

/// Attach a program to a cgroup, before all others where the kernel can.
pub(super) fn attach(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    kind: u32,
    since: &'static str,
) -> Result<OwnedFd, EbpfError> {
    let what = "links of programs to cgroups of this kind";
    sys_bpf::link_first(program, cgroup, kind).map_err(|source| EbpfError::Kernel {
        what,
        since,
        source,
    })
}
