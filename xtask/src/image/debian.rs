//! Programs of Debian's in an image: the files of packages without what no program reads.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

use super::archive::Entry;
use crate::apt::Apt;
use crate::dist::Machine;
use crate::repo;

/// The release that packages are of.
const RELEASE: &str = "trixie";
/// iptables, and all that it needs to run.
pub(super) const IPTABLES: [&str; 10] = [
    "iptables",
    "libc6",
    "libip4tc2",
    "libip6tc2",
    "libmnl0",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libnftnl11",
    "libxtables12",
    "netbase",
];
/// Folders of which one is the other below `usr`, as Debian has them.
const MERGED: [&str; 3] = ["lib", "lib64", "sbin"];
/// Where the packages and versions are named.
const LIST: &str = "usr/share/doc/millrace/packages";
/// What iptables-legacy locks. Where the root file system can't be written, it has to be there already.
const LOCK: &str = "run/xtables.lock";

/// The files of packages of the newest version for a machine, fetched from Debian.
///
/// # Errors
/// When a package is not there, or can't be fetched or unpacked.
pub(super) fn fetched(machine: Machine, packages: &[&str]) -> Result<Vec<Entry>> {
    let place = repo::root().join("target/image");
    fs::create_dir_all(&place).with_context(|| place.display().to_string())?;
    let lock = fs::File::create(place.join("lock")).context("the lock of target/image")?;
    lock.lock().context("the lock of target/image")?;
    let mut apt = Apt::of(machine.debian, &place)?;
    let newest = packages.iter().map(|name| apt.newest(name, &[RELEASE]));
    let packages = newest.collect::<Result<Vec<_>>>()?;
    let tree = tempfile::tempdir_in(&place).context("a folder to unpack into")?;
    apt.unpack(&packages, tree.path())?;
    let mut list: Vec<String> = packages.iter().map(|package| package.spec() + "\n").collect();
    list.sort();
    let mut paths = Vec::new();
    walk(tree.path(), Path::new(""), &mut paths)?;
    let mut entries = entries(tree.path(), &paths)?;
    entries.push(Entry::file(LIST, list.concat()));
    Ok(entries)
}

/// Every file and link below a folder, by its path from the root.
fn walk(root: &Path, below: &Path, paths: &mut Vec<PathBuf>) -> Result<()> {
    let folder = root.join(below);
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let entry = entry.context("an entry of a package")?;
        let path = below.join(entry.file_name());
        if entry.file_type().context("an entry of a package")?.is_dir() {
            walk(root, &path, paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}

/// What an image has of these files of packages, whose paths are from a root; and beside them the folders that
/// are one, and the file that iptables-legacy locks.
///
/// # Errors
/// When one can't be read, or is in no form that an image takes.
pub fn entries(root: &Path, paths: &[PathBuf]) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> =
        MERGED.iter().map(|name| Entry::link(name, &format!("usr/{name}"))).collect();
    entries.push(Entry::file(LOCK, ""));
    for path in paths {
        let name = path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))?;
        let name = merged(name);
        if !is_needed(&name) {
            continue;
        }
        let file = root.join(path);
        let about = fs::symlink_metadata(&file).with_context(|| file.display().to_string())?;
        if about.is_symlink() {
            let target = fs::read_link(&file).with_context(|| file.display().to_string())?;
            let target = target.to_str().with_context(|| format!("{name}: a link"))?;
            entries.push(Entry::link(&name, target));
            continue;
        }
        ensure!(about.is_file(), "{name} is neither a file nor a link");
        let bytes = fs::read(&file).with_context(|| file.display().to_string())?;
        let is_program = name.starts_with("usr/sbin/") || name.contains("/ld-linux");
        let entry = if is_program { Entry::program } else { Entry::file };
        entries.push(entry(&name, bytes));
    }
    Ok(entries)
}

/// The path below `usr`, of a file in one of the folders that are there.
#[must_use]
pub fn merged(path: &str) -> String {
    let is_merged =
        |name: &&&str| path.strip_prefix(**name).is_some_and(|rest| rest.starts_with('/'));
    if MERGED.iter().any(|name| is_merged(&name)) { format!("usr/{path}") } else { path.to_owned() }
}

/// Whether a program reads it, or its licence asks for it.
fn is_needed(path: &str) -> bool {
    let is_library = path.starts_with("usr/lib") && path.contains(".so");
    let is_unused = ["/gconv/", "/audit/"].iter().any(|folder| path.contains(folder));
    let is_licence = path.starts_with("usr/share/doc/") && path.ends_with("/copyright");
    let is_name = ["etc/protocols", "etc/services"].contains(&path);
    path.starts_with("usr/sbin/") || is_library && !is_unused || is_licence || is_name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_merged_and_what_nobody_reads_is_left_out() {
        assert_eq!(merged("lib/x86_64-linux-gnu/libc.so.6"), "usr/lib/x86_64-linux-gnu/libc.so.6");
        assert_eq!(merged("lib64/ld-linux-x86-64.so.2"), "usr/lib64/ld-linux-x86-64.so.2");
        assert_eq!(merged("library/a"), "library/a");
        assert_eq!(merged("usr/sbin/a"), "usr/sbin/a");
        for path in [
            "usr/sbin/xtables-nft-multi",
            "usr/lib/x86_64-linux-gnu/xtables/libxt_owner.so",
            "usr/lib64/ld-linux-x86-64.so.2",
            "usr/share/doc/iptables/copyright",
            "etc/protocols",
        ] {
            assert!(is_needed(path), "{path}");
        }
        for path in [
            "usr/share/man/man8/iptables.8.gz",
            "usr/lib/x86_64-linux-gnu/gconv/UTF-32.so",
            "usr/share/doc/iptables/changelog.Debian.gz",
            "etc/ethertypes",
            "usr/bin/iptables-xml",
        ] {
            assert!(!is_needed(path), "{path}");
        }
    }

    #[test]
    fn the_files_of_a_package_become_an_images() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, bytes: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        };
        write("usr/sbin/multi", "program");
        write("lib/a/libc.so.6", "library");
        write("usr/share/man/a.gz", "manual");
        std::os::unix::fs::symlink("multi", root.path().join("usr/sbin/legacy")).unwrap();
        let mut paths = Vec::new();
        walk(root.path(), Path::new(""), &mut paths).unwrap();
        let mut found = entries(root.path(), &paths).unwrap();
        found.sort_by(|one, other| one.path.cmp(&other.path));
        let wanted = [
            Entry::link("lib", "usr/lib"),
            Entry::link("lib64", "usr/lib64"),
            Entry::file("run/xtables.lock", ""),
            Entry::link("sbin", "usr/sbin"),
            Entry::file("usr/lib/a/libc.so.6", "library"),
            Entry::link("usr/sbin/legacy", "multi"),
            Entry::program("usr/sbin/multi", "program"),
        ];
        assert_eq!(found, wanted);
    }
}
