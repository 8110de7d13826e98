//! Following real packets: what the kernel tells of them, while somebody listens.

use std::os::fd::AsFd as _;
use std::time::Duration;

use millrace_core::trace::{Filter, Heard, TABLE_PREFIX, Unfilterable};
use millrace_core::value::Family;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::nflog::{Log, LogError};
use crate::nft::{NftError, OwnedTable, TraceBatch, TraceSocket};
use crate::stop::Stop;

/// A trace can't begin, go on, or put back what it changed.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// No packet can be meant.
    #[error(transparent)]
    Filter(#[from] Unfilterable),
    /// The table that traces packets is refused, or traces can't be heard.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// What the kernel logs can't be heard.
    #[error(transparent)]
    Log(#[from] LogError),
    /// What `poll(2)` says; `EINTR` is no error.
    #[error("waiting for the kernel's trace events failed: {0}")]
    Wait(#[from] Errno),
}

/// Makes the kernel tell of packets. Nothing of it is left once this is gone, however that happens.
pub struct Tracer {
    listener: TraceSocket,
    log: Option<Log>,
    table: OwnedTable,
}

/// What one [`Tracer::wait`] heard.
#[derive(Debug, Default)]
pub struct Word {
    /// Rules and policies that packets met, those of iptables-legacy last; empty after a timeout.
    pub heard: Vec<Heard>,
    /// Whether the kernel told more than could be taken.
    pub lost: bool,
    /// Whether the program is asked to stop.
    pub stop: bool,
}

impl Tracer {
    /// Begin, in the calling thread's network namespace. `legacy` are the families whose packets
    /// meet rules of iptables-legacy.
    ///
    /// # Errors
    /// When no packet can match, or the kernel refuses the table, traces or logs.
    pub fn begin(filter: &Filter, legacy: &[Family]) -> Result<Self, TraceError> {
        let content = filter.table()?;
        let listener = TraceSocket::open()?;
        let log = if legacy.is_empty() { None } else { Some(Log::open(legacy)?) };
        let table = OwnedTable::make(TABLE_PREFIX, &content)?;
        Ok(Self { listener, log, table })
    }

    /// The name of its table.
    pub fn table(&self) -> &str {
        self.table.name()
    }

    /// Wait until something is told, for at most so long.
    ///
    /// # Errors
    /// When `poll(2)` fails, or a socket can't be read.
    pub fn wait(&self, stop: &Stop, at_most: Duration) -> Result<Word, TraceError> {
        let wanted = PollFlags::POLLIN;
        let mut watched =
            vec![PollFd::new(stop.as_fd(), wanted), PollFd::new(self.listener.as_fd(), wanted)];
        watched.extend(self.log.iter().map(|log| PollFd::new(log.as_fd(), wanted)));
        let timeout = PollTimeout::try_from(at_most).unwrap_or(PollTimeout::MAX);
        match poll(&mut watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // The log comes last: whatever was told of a packet whose end is told now is in it.
        let TraceBatch { mut heard, mut lost } = self.listener.hear()?;
        if let Some(log) = &self.log {
            lost |= log.hear(&mut heard)?;
        }
        Ok(Word { heard, lost, stop: stop.is_asked() })
    }

    /// Remove the table, then have those log again who did before.
    ///
    /// # Errors
    /// When something can't be put back as it was; what that is stays noted for `cleanup`.
    pub fn end(self) -> Result<(), TraceError> {
        // Nothing is told any more before nobody listens.
        drop(self.table);
        self.log.map_or(Ok(()), Log::close)?;
        Ok(())
    }
}
