//! Following real packets: what the kernel tells of them, while somebody listens.

use std::os::fd::AsFd as _;
use std::time::Duration;

use millrace_core::trace::{Filter, Heard, Unfilterable};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::nft::{Batchful, Listener, NftError, OwnedTable};
use crate::stop::Stop;

/// Packets can't be followed.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// No packet can be meant.
    #[error(transparent)]
    Filter(#[from] Unfilterable),
    /// The kernel knows no tables that end with their maker.
    #[error(
        "this kernel has no tables that end with their maker, which a trace needs to leave nothing \
         behind: Linux 5.12 or later has them ({0})"
    )]
    Ownerless(NftError),
    /// `nf_tables` refuses.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Waiting failed.
    #[error("what the kernel tells can't be waited for: {0}")]
    Wait(#[from] Errno),
}

/// Makes the kernel tell of packets. Nothing of it is left once this is gone, however that happens.
pub struct Tracer {
    listener: Listener,
    table: OwnedTable,
}

/// What was heard.
#[derive(Debug, Default)]
pub struct Word {
    /// What was told.
    pub heard: Vec<Heard>,
    /// Whether the kernel told more than could be taken.
    pub lost: bool,
    /// Whether the program is asked to stop.
    pub stop: bool,
}

impl Tracer {
    /// Begin, in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn begin(filter: &Filter) -> Result<Self, TraceError> {
        let content = filter.table()?;
        let listener = Listener::open()?;
        let table = OwnedTable::make(&content).map_err(|error| {
            if error.is_unsupported() { TraceError::Ownerless(error) } else { error.into() }
        })?;
        Ok(Self { listener, table })
    }

    /// The name of its table.
    pub fn table(&self) -> &str {
        self.table.name()
    }

    /// Wait until something is told, for at most so long.
    ///
    /// # Errors
    /// When that fails.
    pub fn wait(&self, stop: &Stop, at_most: Duration) -> Result<Word, TraceError> {
        let wanted = PollFlags::POLLIN;
        let mut watched =
            [PollFd::new(stop.as_fd(), wanted), PollFd::new(self.listener.as_fd(), wanted)];
        let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let Batchful { heard, lost } = self.listener.hear()?;
        Ok(Word { heard, lost, stop: stop.is_asked() })
    }
}
