//! The resolver's configuration, which releases of kumactl changed, and what they kept of it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use millrace_host::file;

/// The resolver's configuration (`resolv.conf(5)`), which is to be put back.
pub(super) const PATH: &str = "/etc/resolv.conf";
/// What was there before kumactl.
const KEPT: &str = "/etc/resolv.conf.kuma-backup";

/// The most that is read of either, in bytes.
const MOST: usize = 1024 * 1024;

/// The copy of it that kumactl kept: UTF-8, not empty, and not larger than [`MOST`].
pub(super) struct Kept {
    text: String,
    path: PathBuf,
}

/// What kumactl kept, if it did: read, and fit to be put back.
pub(super) fn kept() -> Result<Option<Kept>> {
    read(Path::new(KEPT), Path::new(PATH))
}

fn read(kept: &Path, path: &Path) -> Result<Option<Kept>> {
    if !kept.try_exists().with_context(|| kept.display().to_string())? {
        return Ok(None);
    }
    let text = file::regular(kept, MOST).with_context(|| kept.display().to_string())?;
    let text = String::from_utf8(text).with_context(|| kept.display().to_string())?;
    let path = path.to_owned();
    let is_empty = text.trim().is_empty();
    ensure!(
        !is_empty,
        "{} is empty, and is not put in the place of {}: remove it, or write there what is to be put back",
        kept.display(),
        path.display(),
    );
    Ok(Some(Kept { text, path }))
}

impl Kept {
    /// The whole text of the copy, never blank.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Put it in its place.
    pub(super) fn put_back(&self) -> Result<()> {
        file::replace(&self.path, self.text.as_bytes(), MOST)
            .with_context(|| format!("{} can't be put back", self.path.display()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn only_what_is_fit_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let [kept, path] = ["kept", "path"].map(|name| folder.path().join(name));
        fs::write(&path, "nameserver 127.0.0.1\n").unwrap();
        let said = || read(&kept, &path).err().map(|error| format!("{error:#}"));
        assert!(read(&kept, &path).unwrap().is_none());
        mkfifo(&kept, Mode::S_IRWXU).unwrap();
        assert!(said().unwrap().ends_with("kept: it is no regular file"));
        fs::remove_file(&kept).unwrap();
        for empty in ["", " \n"] {
            fs::write(&kept, empty).unwrap();
            assert!(said().unwrap().contains("kept is empty"));
        }
        fs::write(&kept, "nameserver 10.0.0.1\n").unwrap();
        read(&kept, &path).unwrap().unwrap().put_back().unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "nameserver 10.0.0.1\n");
    }
}
