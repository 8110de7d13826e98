//! Spare `sk_lookup` programs: the kernel takes longer to load one than all else takes that makes a
//! pod captured, so they are loaded before there is a pod for them.
//!
//! ```text
//! <bpffs>/millrace/spares/NUMBER   a program with this number in its code
//! LOOKUPS[NUMBER] = netns cookie   whose it is
//! ```
//!
//! A program is taken for one pod and never for a second one: what of an earlier pod still runs on
//! another processor can't mistake the next one for its own. It is taken when its pin is gone. A run
//! that dies before leaves a spare as it was; one that dies behind it leaves an entry in LOOKUPS of
//! a program that is gone, which [`Node::collect`] takes away.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use millrace_ebpf_common::Settings;

use super::error::EbpfError;
use super::node::{Node, show};
use super::sys_bpf;

impl Node {
    /// A program for a pod that has none, and its number. Without a spare it is loaded now.
    pub(super) fn take_lookup(
        &self,
        cookie: u64,
        settings: &mut Settings,
    ) -> Result<(u32, OwnedFd), EbpfError> {
        let expected = self.preloaded(settings.next_spare);
        let pinned = sys_bpf::pinned(&expected).map_err(|e| EbpfError::io(show(&expected), e))?;
        let taken = match pinned {
            Some(program) => Some((settings.next_spare, expected, program)),
            None => self.first_spare()?,
        };
        let Some((number, pin, program)) = taken else {
            settings.last_lookup = after(settings.last_lookup);
            let program = self.lookup()?.load(settings.last_lookup)?;
            self.maps.lookups.set(&settings.last_lookup, &cookie)?;
            return Ok((settings.last_lookup, program));
        };
        self.maps.lookups.set(&number, &cookie)?;
        fs::remove_file(&pin).map_err(|e| EbpfError::io(show(&pin), e))?;
        settings.next_spare = after(number);
        Ok((number, program))
    }

    /// How many preloaded programs are pinned, for pods to come.
    pub(super) fn count_preloaded(&self) -> Result<usize, EbpfError> {
        Ok(self.spares()?.len())
    }

    /// Load spares until there are as many as desired, but at most so many of them.
    pub(super) fn fill_preloaded(&self, at_most: usize) -> Result<(), EbpfError> {
        let mut settings = self.maps.settings.get(&0)?.unwrap_or_default();
        let wanted = usize::try_from(settings.spares).unwrap_or(usize::MAX);
        let there = self.count_preloaded()?;
        if there == 0 {
            settings.next_spare = after(settings.last_lookup);
        }
        let missing = wanted.saturating_sub(there).min(at_most);
        for _ in 0..missing {
            settings.last_lookup = after(settings.last_lookup);
            // A number is not given again, whatever becomes of the program.
            self.maps.settings.set(&0, &settings)?;
            let program = self.lookup()?.load(settings.last_lookup)?;
            let pin = self.preloaded(settings.last_lookup);
            let pinned = sys_bpf::pin(program.as_fd(), &pin);
            pinned.map_err(|e| EbpfError::io(show(&pin), e))?;
        }
        Ok(())
    }

    /// Load all of them anew, of the programs that are loaded now.
    pub(super) fn renew_preloaded(&self) -> Result<(), EbpfError> {
        for (_, pin) in self.spares()? {
            fs::remove_file(&pin).map_err(|e| EbpfError::io(show(&pin), e))?;
        }
        self.fill_preloaded(usize::MAX)
    }

    fn first_spare(&self) -> Result<Option<(u32, PathBuf, OwnedFd)>, EbpfError> {
        let Some((number, pin)) = self.spares()?.into_iter().min() else { return Ok(None) };
        let program = sys_bpf::pinned(&pin).map_err(|e| EbpfError::io(show(&pin), e))?;
        Ok(program.map(|program| (number, pin, program)))
    }

    fn spares(&self) -> Result<Vec<(u32, PathBuf)>, EbpfError> {
        by_number(&self.folder.join("spares"))
    }

    fn preloaded(&self, number: u32) -> PathBuf {
        self.folder.join("spares").join(number.to_string())
    }
}

/// The number behind another one; 0 is none.
pub(super) fn after(number: u32) -> u32 {
    number.wrapping_add(1).max(1)
}

/// The pins in a folder that have a number for a name.
pub(super) fn by_number<N: std::str::FromStr>(
    folder: &Path,
) -> Result<Vec<(N, PathBuf)>, EbpfError> {
    let entries = fs::read_dir(folder).map_err(|e| EbpfError::io(show(folder), e))?;
    let number = |path: PathBuf| Some((path.file_name()?.to_str()?.parse().ok()?, path));
    Ok(entries.flatten().filter_map(|entry| number(entry.path())).collect())
}
