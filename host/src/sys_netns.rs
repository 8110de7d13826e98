//! Who owns a network namespace.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::errno::Errno;

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
