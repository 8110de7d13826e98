//! The plugin's binary among those that the runtime calls: always there whole, put in place by
//! rename(2), so that a process that is executing the old one keeps it.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::folder::{Folder, FolderError, Owner};
use crate::own_folder::special;

/// The largest binary that is copied.
pub const MOST: u64 = 512 * 1024 * 1024;

/// Why the binary can't be installed.
#[derive(Debug, thiserror::Error)]
pub enum BinaryError {
    /// The one that is to be installed.
    #[error("{}, which is to be installed, {why}", path.display())]
    Source {
        /// The path that `--plugin` names, or that of millrace-cni beside this program.
        path: PathBuf,
        /// What opening or reading it says, or that it is no ELF file.
        why: String,
    },
    /// The folder of the runtime.
    #[error(transparent)]
    Folder(#[from] FolderError),
}

/// The binary that is to be installed, as it was read.
#[derive(Clone, Debug)]
pub struct Binary {
    bytes: Vec<u8>,
    /// What the installed one looked like when it was last compared.
    same: Option<FileStamp>,
}

/// What changes with the content of a file (stat(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileStamp {
    dev: u64,
    ino: u64,
    size: u64,
    changed: (i64, i64),
    mode: u32,
}

impl Binary {
    /// Read the binary that is to be installed.
    ///
    /// # Errors
    /// When it can't be read, or is no program.
    pub fn read(path: &Path) -> Result<Self, BinaryError> {
        let failed = |why: String| BinaryError::Source { path: path.to_owned(), why };
        let mut bytes = Vec::new();
        let file = fs::File::open(path);
        let read = file.and_then(|file| file.take(MOST).read_to_end(&mut bytes));
        read.map_err(|error| failed(format!("can't be read: {error}")))?;
        // `\x7fELF` (elf(5)).
        if !bytes.starts_with(b"\x7fELF") {
            return Err(failed("is no program of Linux".to_owned()));
        }
        Ok(Self { bytes, same: None })
    }

    /// Its content, an ELF file of at most [`MOST`] bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// See to it that it is installed under this name. Gives whether it had to be.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn install(&mut self, folder: &Folder, name: &str) -> Result<bool, BinaryError> {
        let look = look(&folder.path().join(name)).ok();
        if look.is_some() && look == self.same {
            return Ok(false);
        }
        // Looked at before it is read: whoever changes it meanwhile makes it look otherwise.
        let there = self.is_at(folder, name);
        self.same = look.filter(|look| there && look.is_settled());
        if !there {
            // rename(2) puts the new one in its place, and follows no link.
            let what = special(folder, name);
            folder.put(name, &self.bytes, Owner::program().of_this_process())?;
            if let Some(what) = what {
                let path = folder.path().join(name);
                tracing::warn!("{} was {what}, and is replaced by the plugin", path.display());
            }
        }
        Ok(!there)
    }

    /// Whether the file of this name is this one, and can be run.
    pub fn is_at(&self, folder: &Folder, name: &str) -> bool {
        let there = folder.read_at_most(name, MOST).ok().flatten();
        there.is_some_and(|seen| seen.owner.mode & 0o111 != 0 && seen.bytes == self.bytes)
    }
}

impl FileStamp {
    /// Whether a change from now on is seen by the time of the last change, which the kernel takes
    /// from a clock that ticks some hundred times a second.
    fn is_settled(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let changed = u64::try_from(self.changed.0).unwrap_or(u64::MAX);
        now.as_secs() > changed.saturating_add(1)
    }
}

fn look(path: &Path) -> io::Result<FileStamp> {
    let meta = fs::symlink_metadata(path)?;
    Ok(FileStamp {
        dev: meta.dev(),
        ino: meta.ino(),
        size: meta.size(),
        changed: (meta.ctime(), meta.ctime_nsec()),
        mode: meta.mode(),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn it_is_installed_once_and_again_when_it_is_not_itself() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        let mut binary = Binary::read(Path::new("/bin/sleep")).unwrap();
        assert!(binary.install(&folder, "plugin").unwrap());
        assert!(!binary.install(&folder, "plugin").unwrap());
        let path = dir.path().join("plugin");
        // It is being executed: a file that is written to in place could not be (ETXTBSY).
        let mut running = Command::new(&path).arg("60").spawn().unwrap();
        let mut newer = Binary::read(Path::new("/bin/true")).unwrap();
        assert!(newer.install(&folder, "plugin").unwrap());
        assert!(Command::new(&path).status().unwrap().success());
        running.kill().unwrap();
        running.wait().unwrap();
        for damage in
            [&|| fs::write(&path, "x").unwrap() as (), &|| fs::remove_file(&path).unwrap(), &|| {
                fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
            }] as [&dyn Fn(); 3]
        {
            damage();
            assert!(newer.install(&folder, "plugin").unwrap());
            assert!(newer.is_at(&folder, "plugin"));
        }
        assert_eq!(folder.names().unwrap(), ["plugin"]);
    }

    #[test]
    fn what_is_no_program_is_not_installed() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("text"), "#!/bin/sh\n").unwrap();
        for name in ["text", "none"] {
            let error = Binary::read(&dir.path().join(name)).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
