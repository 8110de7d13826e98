//! Who owns a network namespace, and which ids are the owner's.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork, pipe2, read, write};

mod ioctl {
    nix::ioctl_none!(ns_get_userns, 0xb7, 0x1);
}

/// The user namespace that owns a namespace (`ioctl_ns(2)`, `NS_GET_USERNS`).
///
/// # Errors
/// `EPERM` when it is none of the caller's own or below it.
pub(crate) fn owner(namespace: impl AsFd) -> Result<File, Errno> {
    let fd = namespace.as_fd().as_raw_fd();
    // SAFETY: the request takes no argument, so the kernel reads and writes no memory of ours; `fd`
    // is open while `namespace` is borrowed.
    let owner = unsafe { ioctl::ns_get_userns(fd) }?;
    // SAFETY: on success the kernel gives a new descriptor, which nobody else has.
    Ok(File::from(unsafe { OwnedFd::from_raw_fd(owner) }))
}

/// The ids of a user namespace as this process's own has them: the texts of `uid_map` and `gid_map`. The
/// kernel tells them of a process alone, and a namespace need not have any: that of a pod has none until
/// its first container starts. So a child enters it for as long as they are read.
///
/// # Errors
/// When it may not be entered.
pub(crate) fn ids(userns: &File) -> io::Result<(String, String)> {
    let (entered, tell) = pipe2(OFlag::O_CLOEXEC)?;
    let (release, released) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: the child shares nothing with other threads but memory that it doesn't change: it makes
    // the system calls setns, write, read and _exit alone, takes no lock and allocates nothing.
    match unsafe { fork() }? {
        ForkResult::Child => {
            let errno = setns(userns, CloneFlags::CLONE_NEWUSER).err().map_or(0, |e| e as i32);
            let _told = write(&tell, &errno.to_ne_bytes());
            let _released = read(&release, &mut [0]);
            // SAFETY: it ends this process and runs nothing that was registered by the other one.
            unsafe { libc::_exit(0) }
        }
        ForkResult::Parent { child } => {
            drop(tell);
            let texts = read_ids(child, &entered);
            let _gone_already = write(&released, &[0]);
            let _status = waitpid(child, None);
            texts
        }
    }
}

/// Once a child has entered, what its ids are.
fn read_ids(child: Pid, entered: &OwnedFd) -> io::Result<(String, String)> {
    let mut errno = [0; 4];
    if read(entered, &mut errno)? != errno.len() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match i32::from_ne_bytes(errno) {
        0 => {}
        errno => return Err(io::Error::from_raw_os_error(errno)),
    }
    let text = |name| fs::read_to_string(format!("/proc/{child}/{name}"));
    Ok((text("uid_map")?, text("gid_map")?))
}
