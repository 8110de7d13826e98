//! The decisions that the programs report.

use std::fmt;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use millrace_ebpf_common::{Event, Plain as _};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::EbpfError;
use crate::stop::Stop;

/// A reader of the reports. There is one buffer: with two readers, each gets some of them.
pub struct Reports {
    buffer: RingBuf<MapData>,
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reports")
    }
}

impl Reports {
    /// Open the buffer of the programs in a folder.
    ///
    /// # Errors
    /// When they are not loaded, or it can't be read.
    pub fn open(folder: &Path) -> Result<Self, EbpfError> {
        let failed = |what: &dyn fmt::Display| EbpfError::Parse(format!("map EVENTS: {what}"));
        let data = MapData::from_pin(folder.join("maps/EVENTS")).map_err(|e| failed(&e))?;
        let map = Map::from_map_data(data).map_err(|e| failed(&e))?;
        let mut buffer = RingBuf::try_from(map).map_err(|e| failed(&e))?;
        // What an earlier reader left is not of now.
        while buffer.next().is_some() {}
        Ok(Self { buffer })
    }

    /// Wait for reports, or to be asked to stop, or this long. Gives what there is, and whether it
    /// was asked for.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub fn wait(&mut self, stop: &Stop, wait: Duration) -> Result<(Vec<Event>, bool), EbpfError> {
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        let mut fds = [
            PollFd::new(self.buffer.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut fds, wait) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut events = Vec::new();
        while let Some(report) = self.buffer.next() {
            events.extend(Event::from_bytes(&report));
        }
        Ok((events, stop.is_asked()))
    }
}
