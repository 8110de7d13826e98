//! Which user namespace a network namespace belongs to.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _};

use nix::libc;

/// `NS_GET_USERNS` (`ioctl_nsfs(2)`).
const GET_USERNS: libc::Ioctl = 0xb701;

/// The user namespace that owns a network namespace.
pub(super) fn owner(netns: &impl AsFd) -> io::Result<File> {
    // SAFETY: the request takes no argument and makes a descriptor.
    let fd = unsafe { libc::ioctl(netns.as_fd().as_raw_fd(), GET_USERNS) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for us.
    Ok(unsafe { File::from_raw_fd(fd) })
}
