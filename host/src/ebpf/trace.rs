//! The decisions that the programs report.

use std::os::fd::AsFd as _;
use std::path::Path;

use aya::maps::{Map, MapData, RingBuf};
use millrace_ebpf_common::{Event, Plain as _};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::error::EbpfError;

/// A reader of the reports. There is one buffer: with two readers, each gets some of them.
pub struct Trace {
    reports: RingBuf<MapData>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trace")
    }
}

impl Trace {
    /// Open the buffer of the programs in a folder.
    ///
    /// # Errors
    /// When they are not loaded.
    pub fn open(folder: &Path) -> Result<Self, EbpfError> {
        let not_loaded = |_| EbpfError::NotLoaded(folder.to_owned());
        let data = MapData::from_pin(folder.join("maps/EVENTS")).map_err(not_loaded)?;
        let map = Map::from_map_data(data).map_err(not_loaded)?;
        let reports = RingBuf::try_from(map).map_err(not_loaded)?;
        Ok(Self { reports })
    }

    /// Wait for a report, for so many milliseconds at most.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub fn next(&mut self, wait_ms: u16) -> Result<Option<Event>, EbpfError> {
        if let Some(report) = self.reports.next() {
            return Ok(Event::from_bytes(&report));
        }
        let mut fds = [PollFd::new(self.reports.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, PollTimeout::from(wait_ms)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.reports.next().and_then(|report| Event::from_bytes(&report)))
    }
}
