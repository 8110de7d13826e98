//! What the agent keeps on the node, in a folder of its own: what it took over from others, the
//! names of its own files, and whether it was uninstalled. All of it is on the disk before anything
//! depends on it.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, openat};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::folder::{Folder, FolderError, Owner, Seen};
use crate::own_folder::{open_own, own_if_there};
use crate::settings::Settings;

const FILE: &str = "kept.json";
const LOCK: &str = "lock";
/// Its being there says that the agent was uninstalled.
const UNINSTALLED: &str = "uninstalled";
/// What the name of another plugin's binary begins with, in this folder.
const BINARY: &str = "binary-";
/// What the name of a file begins with that was found in the place of one of the agent's own.
const FOUND: &str = "found-";
/// How many of those are kept of each name.
const MOST_FOUND: usize = 8;

/// Something is wrong with what is kept.
#[derive(Debug, thiserror::Error)]
pub enum KeptError {
    /// The folder or a file in it.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The file is no longer what was written.
    #[error("{FILE} in the agent's folder can't be read: {0}; remove it to go on without it")]
    Content(String),
    /// `open(2)` or `flock(2)` of the lock file failed.
    #[error("the lock of the agent's folder can't be taken: {0}")]
    Lock(io::Error),
}

/// An entry of another plugin that was replaced, to be put back by `uninstall --restore`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptEntry {
    /// Name of the list's file in the folder of CNI configurations.
    pub file: String,
    /// The JSON of the entry, byte for byte.
    pub entry: String,
    /// The entry's `type`, which is the name of the plugin's binary.
    pub kind: String,
}

/// A file of another agent that was removed or replaced, to be put back likewise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptFile {
    /// Name of the file in the folder of CNI configurations.
    pub name: String,
    /// As it was before the agent changed the file, byte for byte.
    pub text: String,
    /// User id of its owner.
    pub uid: u32,
    /// Group id of its owner.
    pub gid: u32,
    /// Bits of its mode, without the file type.
    pub mode: u32,
}

/// What the file `kept.json` says: what was taken over, and which names are the agent's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Kept {
    /// Entries that were replaced, at most one for each file and type.
    pub entries: Vec<KeptEntry>,
    /// Files that were removed or replaced, at most one for each name.
    pub files: Vec<KeptFile>,
    /// Binaries, which lie beside this.
    pub binaries: Vec<String>,
    /// The settings that hold from then on.
    pub settings: Map<String, Value>,
    /// Files of the agent's own in the folder of configurations.
    pub own_files: Vec<String>,
    /// Networks with files of the agent's own in their drop-in directories.
    pub drop_ins: Vec<String>,
    /// Names that the plugin's binary has or had.
    pub plugins: Vec<String>,
}

/// The agent's folder, which one process at a time has.
#[derive(Debug)]
pub struct Store {
    folder: Folder,
}

/// Held until it is dropped.
#[derive(Debug)]
pub struct Held {
    _file: std::os::fd::OwnedFd,
}

impl Kept {
    /// Keep an entry in the place of an older one of the same file and type.
    pub fn keep_entry(&mut self, entry: KeptEntry) {
        self.entries.retain(|own| (&own.file, &own.kind) != (&entry.file, &entry.kind));
        self.entries.push(entry);
    }

    /// Keep a file in the place of an older one.
    pub fn keep_file(&mut self, file: KeptFile) {
        self.files.retain(|own| own.name != file.name);
        self.files.push(file);
    }

    /// Add settings to those that hold; one of the same name takes the place of an older one.
    pub fn keep_settings(&mut self, settings: &Settings) {
        self.settings.extend(settings.members().clone());
    }

    /// Add a name unless it is there. Gives whether it was added.
    pub fn note(names: &mut Vec<String>, name: &str) -> bool {
        let new = !names.iter().any(|own| own == name);
        if new {
            names.push(name.to_owned());
        }
        new
    }

    /// Whether the agent wrote into the drop-in directory of a network.
    pub fn has_drop_in(&self, network: &str) -> bool {
        self.drop_ins.iter().any(|own| own == network)
    }

    /// Whether there is anything to restore.
    pub const fn is_anything_taken(&self) -> bool {
        !self.entries.is_empty() || !self.files.is_empty()
    }
}

impl Store {
    /// Open it; it is made if it isn't there.
    ///
    /// # Errors
    /// When it can't be made, or is a link, another user's, or writable to others.
    pub fn open(path: &Path) -> Result<Self, KeptError> {
        Ok(Self { folder: open_own(path)? })
    }

    /// Open it where it is there.
    ///
    /// # Errors
    /// When it is a link, no folder, another user's, or writable to others.
    pub fn open_if_there(path: &Path) -> Result<Option<Self>, KeptError> {
        Ok(own_if_there(path)?.map(|folder| Self { folder }))
    }

    /// Wait until nobody else has it.
    ///
    /// # Errors
    /// When there can be no lock.
    pub fn hold(&self) -> Result<Held, KeptError> {
        // Closing a file that was open for writing is a change to whoever watches the folder (inotify(7),
        // IN_CLOSE_WRITE), as the agent does: each look would be the reason for the next one.
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let locked = openat(&self.folder, LOCK, flags, Mode::from_raw_mode(0o600))
            .and_then(|file| flock(&file, FlockOperation::LockExclusive).map(|()| file));
        let file = locked.map_err(|errno| KeptError::Lock(errno.into()))?;
        Ok(Held { _file: file })
    }

    /// Read what is kept; nothing where there is no file yet.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn read(&self) -> Result<Kept, KeptError> {
        let Some(seen) = self.folder.read_at_most(FILE, 16 * crate::folder::MOST)? else {
            return Ok(Kept::default());
        };
        serde_json::from_slice(&seen.bytes).map_err(|error| KeptError::Content(error.to_string()))
    }

    /// Write what is kept, whole, for this process's user alone.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, kept: &Kept) -> Result<(), KeptError> {
        let text = serde_json::to_string_pretty(kept);
        let text = text.map_err(|error| KeptError::Content(error.to_string()))?;
        Ok(self.folder.put(FILE, text.as_bytes(), Owner::private().of_this_process())?)
    }

    /// Whether the agent was uninstalled, and not installed again since.
    ///
    /// # Errors
    /// When that can't be read.
    pub fn is_uninstalled(&self) -> Result<bool, KeptError> {
        Ok(self.folder.read(UNINSTALLED)?.is_some())
    }

    /// Have it be uninstalled, or not.
    ///
    /// # Errors
    /// When that can't be written.
    pub fn set_uninstalled(&self, is: bool) -> Result<(), KeptError> {
        let owner = Owner::private().of_this_process();
        if is {
            self.folder.put(UNINSTALLED, b"", owner)?;
        } else {
            self.folder.remove(UNINSTALLED)?;
        }
        Ok(())
    }

    /// Keep another plugin's binary, with its mode and owner.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn keep_binary(&self, name: &str, seen: &Seen) -> Result<(), KeptError> {
        Ok(self.folder.put(&format!("{BINARY}{name}"), &seen.bytes, seen.owner)?)
    }

    /// The binary that another plugin had under this name; none where none was kept.
    ///
    /// # Errors
    /// When it can't be read.
    pub fn binary(&self, name: &str) -> Result<Option<Seen>, KeptError> {
        let most = crate::binary::MOST;
        Ok(self.folder.read_at_most(&format!("{BINARY}{name}"), most)?)
    }

    /// Keep what was found under a name of the agent's own and is not what the agent writes. Of each
    /// name so many are kept; a further one takes the place of the last. Gives where it is.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn keep_observed(&self, name: &str, seen: &Seen) -> Result<PathBuf, KeptError> {
        let name = name.replace('/', "-");
        let mut kept = String::new();
        for number in 1..=MOST_FOUND {
            kept = format!("{FOUND}{name}.{number}");
            match self.folder.read(&kept)? {
                Some(same) if same.bytes == seen.bytes => return Ok(self.folder.path().join(kept)),
                Some(_) => {}
                None => break,
            }
        }
        let owner = Owner::private().of_this_process();
        self.folder.put(&kept, &seen.bytes, owner)?;
        Ok(self.folder.path().join(kept))
    }

    /// Forget what is kept, but for what was found: that was nobody's to forget. What names the binaries
    /// goes before them: of those that nothing names, a run that is killed in between takes nothing for
    /// granted, and the next one removes them.
    ///
    /// # Errors
    /// When a file can't be removed.
    pub fn forget(&self) -> Result<(), KeptError> {
        self.folder.remove(FILE)?;
        for name in self.folder.names()?.iter().filter(|name| name.starts_with(BINARY)) {
            self.folder.remove(name)?;
        }
        Ok(())
    }

    /// Remove what a run that was killed left in the making.
    ///
    /// # Errors
    /// When a file can't be removed.
    pub fn clean(&self) -> Result<(), KeptError> {
        Ok(self.folder.clean()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_there_again() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("a/b")).unwrap();
        let _held = store.hold().unwrap();
        assert_eq!(store.read().unwrap(), Kept::default());
        assert!(!store.is_uninstalled().unwrap());
        let mut kept = Kept::default();
        for text in ["old", "new"] {
            kept.keep_entry(KeptEntry {
                file: "10-x.conflist".to_owned(),
                entry: text.to_owned(),
                kind: "istio-cni".to_owned(),
            });
        }
        assert_eq!(kept.entries.len(), 1);
        store.write(&kept).unwrap();
        let bin = Folder::open(folder.path()).unwrap();
        let owner = Owner { mode: 0o751, ..Owner::program().of_this_process() };
        bin.put("istio-cni", b"x", owner).unwrap();
        store.keep_binary("istio-cni", &bin.read("istio-cni").unwrap().unwrap()).unwrap();
        store.set_uninstalled(true).unwrap();
        assert_eq!(store.read().unwrap().entries[0].entry, "new");
        let binary = store.binary("istio-cni").unwrap().unwrap();
        assert_eq!((&binary.bytes[..], binary.owner), (&b"x"[..], owner));
        assert!(store.is_uninstalled().unwrap());
        store.forget().unwrap();
        assert_eq!(store.read().unwrap(), Kept::default());
        assert!(store.binary("istio-cni").unwrap().is_none());
        store.set_uninstalled(false).unwrap();
        assert!(!store.is_uninstalled().unwrap());
    }

    #[test]
    fn what_was_damaged_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        let error = store.read().unwrap_err().to_string();
        assert!(error.contains("kept.json"), "{error}");
    }
}
