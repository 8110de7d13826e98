//! What runs between fork and exec of a sandboxed program.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::thread;

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

const NOTHING: Option<&str> = None;

/// Give the calling thread a mount namespace in which the name service switch is empty, so that
/// the owner match asks nobody for names (`nsswitch.conf(5)`).
fn enter() -> Result<(), Errno> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let root = |flag: MsFlags| mount(NOTHING, "/", NOTHING, flag | MsFlags::MS_REC, NOTHING);
    root(MsFlags::MS_PRIVATE).or_else(|_| root(MsFlags::MS_SLAVE))?;
    let switch = "/etc/nsswitch.conf";
    match mount(Some("/dev/null"), switch, NOTHING, MsFlags::MS_BIND, NOTHING) {
        // An image without one has nothing to hide.
        Err(Errno::ENOENT) => Ok(()),
        other => other,
    }
}

/// Whether [`enter`] works here, tried on a thread that ends at once.
pub(crate) fn check() -> Result<(), Errno> {
    // A thread that shares its file system attributes can't have a mount namespace of its own.
    let tried = thread::spawn(|| {
        unshare(CloneFlags::CLONE_FS)?;
        enter()
    });
    tried.join().unwrap_or(Err(Errno::EIO))
}

/// Have a program start in the view of [`enter`].
pub(crate) fn before_exec(command: &mut Command) {
    let hook = || enter().map_err(std::io::Error::from);
    // SAFETY: between fork and exec only async-signal-safe calls are allowed. `enter` makes the
    // system calls unshare and mount on constant paths, which nix copies to the stack; it takes no
    // lock and allocates nothing.
    unsafe {
        command.pre_exec(hook);
    }
}
