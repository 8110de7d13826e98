//! A kernel of Debian's: its image, its modules as a disk, and what mounts the disks.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::{disk, guest};
use crate::apt::{Apt, Package};
use crate::repo;

/// Whose kernel it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Release {
    /// Linux 5.10.
    Bullseye,
    /// Linux 6.1.
    Bookworm,
    /// Linux 6.12.
    Trixie,
    /// The newest of backports and of sid.
    Newest,
}

impl Release {
    const ALL: [Self; 4] = [Self::Bullseye, Self::Bookworm, Self::Trixie, Self::Newest];

    /// The ones of these names.
    pub(super) fn chosen(names: &[&str]) -> Vec<Self> {
        let is_named = |one: &Self| names.contains(&"all") || names.contains(&one.name());
        Self::ALL.into_iter().filter(is_named).collect()
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Bullseye => "bullseye",
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Newest => "newest",
        }
    }

    const fn releases(self) -> &'static [&'static str] {
        match self {
            Self::Bullseye => &["bullseye"],
            Self::Bookworm => &["bookworm"],
            Self::Trixie => &["trixie"],
            Self::Newest => &["trixie-backports", "sid"],
        }
    }
}

/// A kernel that can be booted.
#[derive(Debug)]
pub(super) struct Kernel {
    /// What `uname -r` says in it.
    pub(super) version: String,
    /// The compressed image.
    pub(super) image: PathBuf,
    /// The first file system, in memory: it mounts the disks.
    pub(super) initrd: PathBuf,
    /// The disk that becomes `/lib/modules`.
    pub(super) modules: PathBuf,
}

impl Kernel {
    fn at(folder: &Path, version: &str) -> Self {
        let file = |name: &str| folder.join(name);
        let version = version.to_owned();
        Self {
            version,
            image: file("vmlinuz"),
            initrd: file("initrd"),
            modules: file("modules.ext4"),
        }
    }
}

/// The flavour that has every module; the one for clouds lacks some that rules are made of.
const PACKAGE: &str = "linux-image-amd64";
/// A kernel is in one package or in several.
const PARTS: [&str; 3] = ["linux-image-", "linux-binary-", "linux-modules-"];
/// What the first file system loads, as far as it is no part of the kernel.
const FIRST: [&str; 5] = ["virtio_pci", "virtio_blk", "crc32c_generic", "crc32c_cryptoapi", "ext4"];

/// The kernel of a release, fetched and unpacked if it is not there already.
pub(super) fn ready(
    place: &Path,
    apt: &mut Apt,
    release: Release,
    busybox: &Path,
) -> Result<Kernel> {
    let what = || format!("the kernel of {}", release.name());
    let meta = apt.newest(PACKAGE, release.releases()).with_context(what)?;
    let packages = packages(apt, &meta).with_context(what)?;
    let first = packages.first().with_context(what)?;
    let version = first.name.trim_start_matches(PARTS[0]).to_owned();
    let folder = place.join(format!("kernel-{version}"));
    if !folder.exists() {
        disk::make(&folder, |new| make(apt, &packages, &version, busybox, new))
            .with_context(what)?;
    }
    Ok(Kernel::at(&folder, &version))
}

/// All packages that the kernel is in; the image first.
fn packages(apt: &Apt, meta: &Package) -> Result<Vec<Package>> {
    let images = apt.depends(meta, &PARTS[..1])?;
    let mut all: Vec<Package> = Vec::new();
    let mut waiting = images;
    while let Some(package) = waiting.pop() {
        if !all.contains(&package) {
            waiting.extend(apt.depends(&package, &PARTS)?);
            all.push(package);
        }
    }
    ensure!(!all.is_empty(), "{meta:?} depends on no kernel");
    Ok(all)
}

fn make(apt: &Apt, packages: &[Package], version: &str, busybox: &Path, new: &Path) -> Result<()> {
    let unpacked = new.join("unpacked");
    apt.unpack(packages, &unpacked)?;
    let places = ["lib/modules", "usr/lib/modules"].map(|at| unpacked.join(at).join(version));
    let source = places.iter().find(|at| at.is_dir()).context("the packages have no modules")?;
    let images = [unpacked.join(format!("boot/vmlinuz-{version}")), source.join("vmlinuz")];
    let image = images.iter().find(|at| at.is_file()).context("the packages have no vmlinuz")?;
    fs::copy(image, new.join("vmlinuz")).context("vmlinuz")?;

    let tree = new.join("tree");
    let modules = tree.join("lib/modules").join(version);
    disk::copy(source, &modules, &|path| wanted(path.strip_prefix(source).unwrap_or(path)))?;
    let depmod = ["-b".as_ref(), tree.as_os_str(), version.as_ref()];
    repo::output(Command::new("depmod").args(depmod))?;
    initrd(&modules, busybox, new)?;
    disk::image(&tree.join("lib/modules"), &new.join("modules.ext4"), 16)?;
    fs::remove_dir_all(&tree).context("unpacked modules")?;
    fs::remove_dir_all(&unpacked).context("unpacked packages")
}

/// Which files of the modules' folder are of use: a machine has no hardware but virtio's, and its
/// network is made of what needs none.
fn wanted(path: &Path) -> bool {
    let text = path.to_string_lossy();
    let mut parts = text.split('/');
    match (parts.next(), parts.next(), parts.next()) {
        // Of network drivers the ones that are a file of their own: veth, dummy, macvlan, tun …
        (Some("kernel"), Some("drivers"), Some("net")) => match parts.next() {
            None => true,
            Some(name) => name.contains(".ko") && parts.next().is_none(),
        },
        (Some("kernel"), Some("drivers"), of) => {
            of.is_none_or(|of| ["virtio", "block", "char"].contains(&of))
        }
        (Some("kernel"), Some("sound"), _)
        | (Some("build" | "source" | "vmlinuz" | "vdso"), ..) => false,
        _ => true,
    }
}

/// The first file system: a shell, and the modules that disks take.
fn initrd(modules: &Path, busybox: &Path, new: &Path) -> Result<()> {
    let tree = new.join("initrd-tree");
    for folder in ["bin", "m", "proc", "sys", "dev", "new"] {
        fs::create_dir_all(tree.join(folder)).context("a folder of the initrd")?;
    }
    fs::copy(busybox, tree.join("bin/busybox")).context("busybox")?;
    symlink("busybox", tree.join("bin/sh")).context("sh")?;
    let known = fs::read_to_string(modules.join("modules.dep")).context("modules.dep")?;
    let mut names = Vec::new();
    for file in order(&known, &FIRST) {
        let name = Path::new(file).file_name().context("a module's name")?.to_string_lossy();
        let target = tree.join("m").join(&*name);
        fs::copy(modules.join(file), &target).with_context(|| file.to_owned())?;
        if name.ends_with(".xz") {
            // This shell's insmod reads plain ones.
            repo::output(Command::new("xz").arg("-d").arg(&target))?;
        }
        names.push(name.trim_end_matches(".xz").to_owned());
    }
    let init = tree.join("init");
    fs::write(&init, guest::init(&names)).context("init")?;
    fs::set_permissions(&init, fs::Permissions::from_mode(0o755)).context("init")?;
    let script = "cd \"$1\" && find . | \"$2\" cpio -o -H newc >\"$3\"";
    let mut command = Command::new("sh");
    command.args(["-euc", script, "sh"]).args([&tree, busybox, &new.join("initrd")]);
    repo::output(command.stderr(Stdio::null()))?;
    fs::remove_dir_all(&tree).context("the initrd's tree")
}

/// The files of modules and of all that they need, each after what it needs. A module that the kernel
/// has built in is in no file.
fn order<'a>(dependencies: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let lines = dependencies.lines().filter_map(|line| line.split_once(':'));
    let known: BTreeMap<String, (&str, &str)> =
        lines.map(|(file, needs)| (module(file), (file, needs))).collect();
    let mut order: Vec<&str> = Vec::new();
    for name in wanted {
        let Some((file, needs)) = known.get(*name) else { continue };
        // The last one named needs none of the others.
        for file in needs.split_whitespace().rev().chain([*file]) {
            if !order.contains(&file) {
                order.push(file);
            }
        }
    }
    order
}

/// A module's name, of its file.
fn module(file: &str) -> String {
    let name = file.rsplit('/').next().unwrap_or_default();
    name.split('.').next().unwrap_or_default().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_chosen_by_name() {
        assert_eq!(Release::chosen(&["all"]), Release::ALL);
        let chosen = Release::chosen(&["newest", "bullseye"]);
        assert_eq!(chosen, [Release::Bullseye, Release::Newest]);
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let known = "kernel/fs/ext4/ext4.ko.xz: kernel/fs/mbcache.ko.xz kernel/fs/jbd2/jbd2.ko.xz\n\
                     kernel/fs/mbcache.ko.xz:\n\
                     kernel/drivers/virtio/virtio_pci.ko.xz: kernel/drivers/virtio/virtio.ko.xz\n";
        let files = order(known, &["virtio_pci", "virtio_blk", "ext4"]);
        let names: Vec<String> = files.iter().map(|file| module(file)).collect();
        assert_eq!(names, ["virtio", "virtio_pci", "jbd2", "mbcache", "ext4"]);
    }

    #[test]
    fn drivers_without_hardware_are_left_out() {
        for (path, is_wanted) in [
            ("kernel", true),
            ("kernel/drivers", true),
            ("kernel/drivers/net", true),
            ("kernel/drivers/net/veth.ko", true),
            ("kernel/drivers/net/ethernet", false),
            ("kernel/drivers/gpu", false),
            ("kernel/drivers/virtio/virtio.ko.xz", true),
            ("kernel/net/netfilter/nf_tables.ko", true),
            ("kernel/sound", false),
            ("modules.builtin", true),
            ("build", false),
        ] {
            assert_eq!(wanted(Path::new(path)), is_wanted, "{path}");
        }
    }
}
