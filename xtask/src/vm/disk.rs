//! Folders that become disks, and what a run has for itself.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::repo;

const MIB: u64 = 1024 * 1024;
/// What a run's folders begin with.
const RUN: &str = "run-";
/// What a folder that is being made begins with.
const UNFINISHED: &str = "new-";

/// The folder of one run, which goes with it.
pub(super) struct Own {
    folder: tempfile::TempDir,
    /// Held while the run lasts.
    _lock: File,
}

impl Own {
    /// A new one.
    pub(super) fn new(place: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix(RUN).tempdir_in(place).context("a folder")?;
        let lock = File::create(folder.path().join("lock")).context("a lock")?;
        lock.lock().context("a lock")?;
        Ok(Self { folder, _lock: lock })
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        self.folder.path()
    }
}

/// Remove what runs that were killed have left. The caller holds the lock of the place.
pub(super) fn sweep(place: &Path) -> Result<()> {
    for entry in fs::read_dir(place).with_context(|| place.display().to_string())? {
        let path = entry.context("a folder")?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_left = name.starts_with(UNFINISHED)
            || name.starts_with(RUN)
                && File::open(path.join("lock")).is_ok_and(|lock| lock.try_lock().is_ok());
        if is_left {
            remove(&path)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("can't remove {}", path.display()))
}

/// Make a folder at once: it is there as a whole or not at all.
pub(super) fn make(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let (parent, name) = (path.parent().context("a folder")?, path.file_name().context("a name")?);
    let new = parent.join(format!("{UNFINISHED}{}", name.to_string_lossy()));
    if new.exists() {
        remove(&new)?;
    }
    fs::create_dir(&new).with_context(|| new.display().to_string())?;
    fill(&new)?;
    fs::rename(&new, path).with_context(|| path.display().to_string())
}

/// Make an ext4 file system of a folder, with so much room beside.
pub(super) fn image(folder: &Path, image: &Path, room: u64) -> Result<()> {
    let size = size(folder).with_context(|| folder.display().to_string())?;
    let blocks = (size + size / 8) / MIB + room;
    repo::output(
        Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-O", "^has_journal,^metadata_csum,^resize_inode"])
            // Small files need many inodes.
            .args(["-i", "8192", "-m", "0", "-d"])
            .arg(folder)
            .arg(image)
            .arg(format!("{blocks}M")),
    )
    .map(drop)
}

/// What a folder's files take, in bytes: whole blocks.
fn size(folder: &Path) -> io::Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let data = entry.metadata()?;
        total += data.len().next_multiple_of(4096) + 256;
        if data.is_dir() {
            total += size(&entry.path())?;
        }
    }
    Ok(total)
}

/// Copy a folder's tree, without what is not wanted. Links stay links.
pub(super) fn copy(from: &Path, to: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry.context("a file")?;
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        if !wanted(&source) {
            continue;
        }
        let kind = entry.file_type().context("a file")?;
        if kind.is_dir() {
            copy(&source, &target, wanted)?;
        } else if kind.is_file() {
            fs::copy(&source, &target).with_context(|| source.display().to_string())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn what_a_killed_run_left_is_removed_and_what_a_living_one_has_is_not() {
        let place = tempfile::tempdir().unwrap();
        let living = Own::new(place.path()).unwrap();
        let dead = place.path().join("run-dead");
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("lock"), "").unwrap();
        fs::create_dir(place.path().join("new-kernel")).unwrap();
        fs::create_dir(place.path().join("roots")).unwrap();
        sweep(place.path()).unwrap();
        let mut left: Vec<PathBuf> =
            fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        left.sort();
        assert_eq!(left, [place.path().join("roots"), living.path().to_owned()]);
    }

    #[test]
    fn a_folder_that_could_not_be_filled_is_not_there() {
        let place = tempfile::tempdir().unwrap();
        let wanted = place.path().join("kernel");
        make(&wanted, |_| anyhow::bail!("no")).unwrap_err();
        assert!(!wanted.exists());
        make(&wanted, |new| Ok(fs::write(new.join("file"), "x")?)).unwrap();
        assert!(wanted.join("file").is_file());
    }

    #[test]
    fn a_folder_becomes_a_file_system() {
        let place = tempfile::tempdir().unwrap();
        let folder = place.path().join("folder");
        fs::create_dir_all(folder.join("sub")).unwrap();
        fs::write(folder.join("sub/file"), "text").unwrap();
        copy(&folder, &place.path().join("copy"), &|path| !path.ends_with("sub")).unwrap();
        assert!(!place.path().join("copy/sub").exists());
        let file = place.path().join("image");
        image(&folder, &file, 4).unwrap();
        let said = repo::output(Command::new("debugfs").args(["-R", "cat /sub/file"]).arg(&file));
        assert_eq!(String::from_utf8_lossy(&said.unwrap()), "text");
    }
}
