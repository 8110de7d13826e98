//! The folder of the pins, and its lock. Everybody may make folders in a bpffs that is mounted as
//! usual (mode 01777), and whoever can open a folder can lock it, so only one that nobody else
//! reaches is ours.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{
    DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};
use nix::sys::statfs::statfs;
use nix::unistd::geteuid;

use super::error::EbpfError;
use super::node::BPF_FS;
use crate::lock::file_holder;

/// Whoever waits for the lock looks so often whether it is free.
const PAUSE: Duration = Duration::from_millis(1);
/// Mode of folders: nobody but the owner may list, enter or change them.
const PRIVATE: u32 = 0o700;
/// What lets others change what is in a folder.
const WRITABLE: u32 = 0o022;

/// Whether a path is, or would be, in a bpffs.
pub fn is_in_bpffs(path: &Path) -> bool {
    let there = path.ancestors().find_map(|path| statfs(path).ok());
    there.is_some_and(|fs| fs.filesystem_type() == BPF_FS)
}

/// Whether the machine's first process sees a folder of programs there and this one does not see even a
/// bpffs: `ip netns exec` mounts a `/sys` of its own over the one that has it.
pub fn is_hidden(folder: &Path) -> bool {
    let Ok(inside) = folder.strip_prefix("/") else { return false };
    let outside = Path::new("/proc/1/root").join(inside);
    !is_in_bpffs(folder) && is_in_bpffs(&outside) && outside.is_dir()
}

/// What to say where there are no programs.
pub(super) fn nothing_in(folder: &Path) -> String {
    let shown = folder.display();
    if is_in_bpffs(folder) {
        return format!(
            "{shown} holds no programs of Millrace: run `millrace node-bpf load` on the node first"
        );
    }
    format!(
        "{shown} is on no bpffs here, so programs that the node may have can't be seen: enter the pod \
         without another /sys (`nsenter --net`; `ip netns exec` mounts one), mount the node's bpffs, or name \
         its folder with --bpffs; where none are loaded, run `millrace node-bpf load` on the node first"
    )
}

/// Make a folder that nobody else reaches.
pub(super) fn make(folder: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(PRIVATE).create(folder)
}

/// Open the folder, if it is ours: what others have put there is not read.
pub(super) fn open(folder: &Path) -> Result<File, EbpfError> {
    let flags = OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits()).open(folder);
    let foreign = |uid, why: String| EbpfError::Foreign { folder: folder.to_owned(), uid, why };
    let file = opened.map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::ENOENT) => EbpfError::NotLoaded(folder.to_owned()),
        Some(Errno::ENOTDIR | Errno::ELOOP) => {
            let uid = fs::symlink_metadata(folder).map_or(0, |meta| meta.uid());
            foreign(uid, "it is no folder".to_owned())
        }
        _ => EbpfError::io(folder.display().to_string(), error),
    })?;
    let meta = file.metadata().map_err(|e| EbpfError::io(folder.display().to_string(), e))?;
    if meta.uid() != 0 && meta.uid() != geteuid().as_raw() {
        return Err(foreign(meta.uid(), "it is not root's".to_owned()));
    }
    if meta.mode() & WRITABLE != 0 {
        let why = format!("others may write to it (mode {:04o})", meta.mode() & 0o7777);
        return Err(foreign(meta.uid(), why));
    }
    Ok(file)
}

/// Only one run changes pods or programs at a time; the others wait, until the deadline. Ends with
/// the value, and with the process.
pub(super) fn lock(folder: &Path, deadline: Instant) -> Result<Flock<File>, EbpfError> {
    let failed = |error| EbpfError::io(folder.display().to_string(), error);
    let mut file = open(folder)?;
    // Earlier versions let everybody read it, and so lock it.
    if file.metadata().map_err(failed)?.mode() & 0o7777 != PRIVATE {
        file.set_permissions(Permissions::from_mode(PRIVATE)).map_err(failed)?;
    }
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((unlocked, Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = unlocked,
            Err((_, Errno::EWOULDBLOCK)) => {
                let holder = file_holder(folder);
                return Err(EbpfError::Busy { folder: folder.to_owned(), holder });
            }
            Err((_, error)) => return Err(failed(error.into())),
        }
        thread::sleep(PAUSE);
    }
}
