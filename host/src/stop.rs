//! Being asked to stop: the signals that a terminal, a shell or a supervisor sends, as something to
//! wait for beside everything else.

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Hears SIGINT, SIGTERM and SIGHUP, which end nothing from then on.
#[derive(Debug)]
pub struct Stop {
    signals: SignalFd,
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

impl Stop {
    /// Begin to hear them, on the program's only thread.
    ///
    /// # Errors
    /// What `pthread_sigmask(3)` or `signalfd(2)` says.
    pub fn watch() -> Result<Self, Errno> {
        let signals: SigSet =
            [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().collect();
        signals.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self { signals: SignalFd::with_flags(&signals, flags)? })
    }

    /// Take one of these signals that has come; false where none has, or that can't be read.
    pub fn is_asked(&self) -> bool {
        matches!(self.signals.read_signal(), Ok(Some(_)))
    }
}
