//! The machine's own file system: a release of Debian with what the suites run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::disk;
use crate::apt::{Apt, bounded};
use crate::repo::child;

/// What the suites need beside what every Debian has.
const PACKAGES: [&str; 11] = [
    "iproute2",
    "iptables",
    "nftables",
    "busybox-static",
    "python3-minimal",
    "procps",
    "strace",
    "kmod",
    "libcap2-bin",
    "conntrack",
    "git",
];
/// Room for what a machine writes, in MiB. It takes none of this machine's.
const ROOM: u64 = 1024;

/// A file system to boot.
#[derive(Debug)]
pub(super) struct Root {
    /// The disk.
    pub(super) image: PathBuf,
    /// A shell that needs no library.
    pub(super) busybox: PathBuf,
}

/// The file system of a release, made if it is not there already.
pub(super) fn ready(place: &Path, apt: &Apt, release: Option<&str>) -> Result<Root> {
    let release = release.unwrap_or(&apt.here);
    // Another list of packages is another file system.
    let folder = place.join(format!("root-{release}-{}", PACKAGES.len()));
    if !folder.exists() {
        disk::make(&folder, |new| make(apt, release, new))
            .with_context(|| format!("a root of Debian's {release}"))?;
    }
    Ok(Root { image: folder.join("root.ext4"), busybox: folder.join("busybox") })
}

fn make(apt: &Apt, release: &str, new: &Path) -> Result<()> {
    let tree = new.join("tree");
    // What it mounts goes with its mount namespace, and it with this process.
    let mut command = child("unshare");
    command.args(["--mount", "--fork", "--kill-child", "timeout", "1200", "debootstrap"]);
    command.arg("--variant=minbase").arg(format!("--include={}", PACKAGES.join(",")));
    command.arg(release).arg(&tree).arg(&apt.mirror);
    bounded(&mut command, &new.join("debootstrap.log"))?;
    fs::copy(tree.join("bin/busybox"), new.join("busybox")).context("busybox")?;
    let caches = ["var/cache/apt", "var/lib/apt/lists"];
    for cache in caches.map(|cache| tree.join(cache)) {
        fs::remove_dir_all(&cache).with_context(|| cache.display().to_string())?;
    }
    disk::image(&tree, &new.join("root.ext4"), ROOM)?;
    fs::remove_dir_all(&tree).context("the root's tree")
}
