//! tar archives whose bytes follow from their contents alone.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use tar::{Builder, EntryType, Header};

/// What an archive holds at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A file that everybody may read.
    File(Vec<u8>),
    /// A file that everybody may execute as well.
    Program(Vec<u8>),
    /// A symbolic link to here.
    Link(String),
}

/// One file or link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where, without a slash in front.
    pub path: String,
    /// What.
    pub content: Content,
}

impl Entry {
    /// A file that everybody may read.
    pub fn file(path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.to_owned(), content: Content::File(bytes.into()) }
    }

    /// A program.
    pub fn program(path: &str, bytes: impl Into<Vec<u8>>) -> Self {
        Self { path: path.to_owned(), content: Content::Program(bytes.into()) }
    }

    /// How many bytes it holds.
    #[must_use]
    pub const fn size(&self) -> usize {
        match &self.content {
            Content::File(bytes) | Content::Program(bytes) => bytes.len(),
            Content::Link(_) => 0,
        }
    }

    /// A symbolic link.
    pub fn link(path: &str, target: &str) -> Self {
        Self { path: path.to_owned(), content: Content::Link(target.to_owned()) }
    }
}

/// The archive of these, in the order of their paths, with the folders above them, all of user and
/// group 0 and of one time (seconds since 1970).
///
/// # Errors
/// When a path is there twice, is not relative, or is too long for the format.
pub(crate) fn pack(entries: &[Entry], time: u64) -> Result<Vec<u8>> {
    let mut sorted: Vec<&Entry> = entries.iter().collect();
    sorted.sort_by(|one, other| one.path.cmp(&other.path));
    let mut builder = Builder::new(Vec::new());
    let mut folders = BTreeSet::new();
    let mut last = None;
    for entry in sorted {
        let path = entry.path.as_str();
        let is_good = path.split('/').all(|part| !["", ".", ".."].contains(&part));
        ensure!(is_good, "{path:?} is no path of a file in an archive");
        ensure!(last != Some(path), "{path} is there twice");
        last = Some(path);
        for (at, _) in path.match_indices('/') {
            let folder = &path[..=at];
            if folders.insert(folder) {
                let mut header = header(EntryType::Directory, 0o755, 0, time);
                builder
                    .append_data(&mut header, folder, [].as_slice())
                    .context(folder.to_owned())?;
            }
        }
        let added = match &entry.content {
            Content::File(bytes) => {
                let mut header = header(EntryType::Regular, 0o644, bytes.len(), time);
                builder.append_data(&mut header, path, bytes.as_slice())
            }
            Content::Program(bytes) => {
                let mut header = header(EntryType::Regular, 0o755, bytes.len(), time);
                builder.append_data(&mut header, path, bytes.as_slice())
            }
            Content::Link(target) => {
                let mut header = header(EntryType::Symlink, 0o777, 0, time);
                builder.append_link(&mut header, path, target)
            }
        };
        added.with_context(|| path.to_owned())?;
    }
    builder.into_inner().context("a tar archive in memory")
}

fn header(kind: EntryType, mode: u32, size: usize, time: u64) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(time);
    header.set_size(size as u64);
    header
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn an_archive_has_its_folders_once_and_nobodys_time_or_user() {
        let entries = [
            Entry::link("usr/bin/b", "a"),
            Entry::program("usr/bin/a", b"text".as_slice()),
            Entry::file("etc/c", b"".as_slice()),
        ];
        let packed = pack(&entries, 1_000_000).unwrap();
        let mut archive = tar::Archive::new(packed.as_slice());
        let mut found = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header().clone();
            assert_eq!((header.uid().unwrap(), header.gid().unwrap()), (0, 0));
            assert_eq!(header.mtime().unwrap(), 1_000_000);
            let path = entry.path().unwrap().display().to_string();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((path, header.mode().unwrap(), text));
        }
        let found: Vec<_> = found.iter().map(|(p, m, t)| (p.as_str(), *m, t.as_str())).collect();
        let wanted = [
            ("etc/", 0o755, ""),
            ("etc/c", 0o644, ""),
            ("usr/", 0o755, ""),
            ("usr/bin/", 0o755, ""),
            ("usr/bin/a", 0o755, "text"),
            ("usr/bin/b", 0o777, ""),
        ];
        assert_eq!(found, wanted);
    }

    #[test]
    fn the_order_of_entries_does_not_matter() {
        let mut entries = [Entry::file("b", b"1".as_slice()), Entry::file("a/c", b"2".as_slice())];
        let one = pack(&entries, 7).unwrap();
        entries.reverse();
        assert_eq!(pack(&entries, 7).unwrap(), one);
        assert_ne!(pack(&entries, 8).unwrap(), one);
    }

    #[test]
    fn what_is_no_path_or_there_twice_is_refused() {
        for path in ["/a", "a/../b", "", "a//b", "a/"] {
            assert!(pack(&[Entry::file(path, b"".as_slice())], 0).is_err(), "{path}");
        }
        let twice = [Entry::file("a", b"1".as_slice()), Entry::link("a", "b")];
        assert!(pack(&twice, 0).unwrap_err().to_string().contains("twice"));
    }
}
