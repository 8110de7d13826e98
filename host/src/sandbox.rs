//! The view of the file system that programs get when Millrace runs from the host's
//! (istio-iptables' `--cni-mode`): no name service, and a lock of the pod's own.

use std::path::PathBuf;
use std::process::Command;

use crate::sys_sandbox;

/// A view of the file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// The pod's network namespace, whose file is the lock.
    pub netns: Option<PathBuf>,
}

impl Sandbox {
    /// Whether it can be made here: it needs a mount namespace of its own.
    ///
    /// # Errors
    /// Why not, for the user.
    pub fn check() -> Result<(), String> {
        sys_sandbox::check().map_err(|errno| {
            format!(
                "programs are run without a view of the file system of their own, since it can't \
                 be made ({errno}; it needs the capability SYS_ADMIN): name services of the host \
                 may be asked, and the host's xtables lock is used"
            )
        })
    }

    /// Have a program get this view when it starts.
    pub(crate) fn prepare(&self, command: &mut Command) {
        if let Some(netns) = &self.netns {
            command.env("XTABLES_LOCKFILE", netns);
        }
        sys_sandbox::before_exec(command);
    }
}
