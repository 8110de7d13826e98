//! `xtask deb`: a Debian package of the binaries in `dist/` (deb(5), Debian policy), whose bytes follow from
//! them and the time of their commit.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgMatches};
use md5::{Digest as _, Md5};

use crate::dist::Machine;
use crate::image::{Content, Entry, Source, gzip, hex, of_dist_for, pack, write};
use crate::{man, repo};

/// What it is called.
const NAME: &str = "millrace";
/// Who publishes it, where nobody says so: an address that there is not (RFC 2606).
pub const MAINTAINER: &str = "Millrace maintainers <maintainers@millrace.invalid>";
/// Its binaries. The agent finds the plugin beside itself.
pub const BINARIES: [&str; 3] = ["millrace", "millrace-cni", "millrace-node"];
/// Where they are: they are of section 8, administration.
const FOLDER: &str = "usr/sbin";
/// Where completions of each shell are read, by their names.
const COMPLETIONS: [(&str, &str); 3] = [
    ("millrace.bash", "usr/share/bash-completion/completions/millrace"),
    ("_millrace", "usr/share/zsh/vendor-completions/_millrace"),
    ("millrace.fish", "usr/share/fish/vendor_completions.d/millrace.fish"),
];
/// One line, and more below it.
const DESCRIPTION: &str = "diverts a pod's traffic into its mesh proxy
 The command line and init container millrace, the CNI plugin millrace-cni,
 and the node agent millrace-node, which installs the plugin on a node.
 .
 Nothing is captured by the installation alone. Before the package is
 removed, `millrace-node uninstall` removes the plugin from the node.";

/// The command line of `xtask deb`.
pub fn command() -> clap::Command {
    clap::Command::new("deb")
        .about("Make a Debian package of the binaries that `xtask dist` left in dist/")
        .arg(
            Arg::new("target")
                .long("target")
                .help("Target triple of the machine that it is for [default: this machine]"),
        )
        .arg(
            Arg::new("maintainer")
                .long("maintainer")
                .value_name("NAME <ADDRESS>")
                .default_value(MAINTAINER)
                .help("Who publishes it"),
        )
}

/// Writes the package and its sha256 sum to `dist/`.
///
/// # Errors
/// When a binary is missing, was built of another source than the others, or something can't be read or
/// written.
pub fn run(args: &ArgMatches) -> Result<()> {
    let machine = args
        .get_one::<String>("target")
        .map_or_else(Machine::here, |target| Machine::of(target))?;
    let Some((binaries, source)) = of_dist_for(machine, &BINARIES)? else {
        bail!(
            "dist/ has no binaries for {}: `cargo xtask dist --target {}`",
            machine.arch,
            machine.musl()
        );
    };
    man::write()?;
    let root = repo::root();
    let mut further = documentation(&root.join(man::FOLDER))?;
    let license = fs::read(root.join("LICENSE")).context("LICENSE")?;
    further.push(Entry::file("usr/share/doc/millrace/copyright", license));
    let changes = fs::read(root.join("CHANGELOG.md")).context("CHANGELOG.md")?;
    further.push(Entry::file("usr/share/doc/millrace/changelog.gz", gzip(&changes)));
    let maintainer = args.get_one::<String>("maintainer").map_or(MAINTAINER, String::as_str);
    let package = package(machine, &binaries, &further, &source, maintainer)?;
    let name = file_name(machine);
    write(&root.join("dist"), &name, &package)?;
    repo::print(&format!("dist/{name}: {} bytes\n", package.len()))
}

/// The name of the package's file (Debian policy, the usual form).
#[must_use]
pub fn file_name(machine: Machine) -> String {
    format!("{NAME}_{}_{}.deb", env!("CARGO_PKG_VERSION"), machine.debian)
}

/// The pages and completions in a folder, where Debian has them.
///
/// # Errors
/// When one can't be read.
pub fn documentation(folder: &Path) -> Result<Vec<Entry>> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let pages = folder.join("man");
    let mut entries = Vec::new();
    for entry in fs::read_dir(&pages).with_context(|| pages.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).context("a page's name")?;
        let place = format!("usr/share/man/man8/{name}.gz");
        entries.push(Entry::file(&place, gzip(&read(&path)?)));
    }
    for (name, place) in COMPLETIONS {
        entries.push(Entry::file(place, read(&folder.join("completions").join(name))?));
    }
    Ok(entries)
}

/// A package of binaries with these contents in the order of [`BINARIES`], and further files.
///
/// # Errors
/// When the binaries are not as many, or a file is there twice.
pub fn package(
    machine: Machine,
    binaries: &[Vec<u8>],
    further: &[Entry],
    source: &Source,
    maintainer: &str,
) -> Result<Vec<u8>> {
    ensure!(binaries.len() == BINARIES.len(), "the package needs {BINARIES:?}");
    let mut files = further.to_vec();
    for (name, bytes) in BINARIES.iter().zip(binaries) {
        files.push(Entry::program(&format!("{FOLDER}/{name}"), bytes.as_slice()));
    }
    let size: usize = files.iter().map(Entry::size).sum();
    let control = control(machine, size, maintainer)?;
    let sums = Entry::file("md5sums", sums(&files));
    let control = pack(&[Entry::file("control", control), sums], source.time)?;
    let data = pack(&files, source.time)?;
    archive(
        &[
            ("debian-binary", b"2.0\n".as_slice()),
            ("control.tar.gz", &gzip(&control)),
            ("data.tar.gz", &gzip(&data)),
        ],
        source.time,
    )
}

/// The sum of each file that it installs, by which `dpkg --verify` finds what was changed (deb-md5sums(5)).
fn sums(files: &[Entry]) -> String {
    let sum = |file: &Entry| match &file.content {
        Content::File(bytes) | Content::Program(bytes) => {
            Some(format!("{}  {}\n", hex(&Md5::digest(bytes)), file.path))
        }
        Content::Link(_) => None,
    };
    files.iter().filter_map(sum).collect()
}

/// What dpkg knows of it (Debian policy, 5.3). `size` is of what it installs, in bytes.
fn control(machine: Machine, size: usize, maintainer: &str) -> Result<String> {
    ensure!(!maintainer.contains('\n'), "a maintainer is one line: {maintainer:?}");
    let mut text = String::new();
    for (name, value) in [
        ("Package", NAME),
        ("Version", env!("CARGO_PKG_VERSION")),
        ("Architecture", machine.debian),
        ("Maintainer", maintainer),
        ("Installed-Size", &size.div_ceil(1024).to_string()),
        ("Section", "net"),
        ("Priority", "optional"),
        ("Description", DESCRIPTION),
    ] {
        writeln!(text, "{name}: {value}")?;
    }
    Ok(text)
}

/// An archive of ar(5), in whose common form a package is.
fn archive(members: &[(&str, &[u8])], time: u64) -> Result<Vec<u8>> {
    let mut bytes = b"!<arch>\n".to_vec();
    for (name, content) in members {
        ensure!(name.len() <= 16, "{name} is too long a name");
        let header =
            format!("{name:<16}{time:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 100_644, content.len());
        ensure!(header.len() == 60, "{name}: a number is too long");
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        // Each begins at an even place.
        bytes.extend((content.len() % 2 == 1).then_some(b'\n'));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_begin_at_even_places() {
        let made = archive(&[("a", b"1"), ("b", b"23")], 7).unwrap();
        assert_eq!(made.len(), 8 + 60 + 2 + 60 + 2);
        assert_eq!(&made[8..12], b"a   ");
        assert_eq!(&made[68..72], b"1\nb ");
        assert!(archive(&[("a name that is too long", b"")], 7).is_err());
        assert!(archive(&[("a", b"")], u64::MAX).is_err());
    }

    #[test]
    fn a_package_needs_all_its_binaries() {
        let source = Source { revision: "r".to_owned(), time: 0 };
        let machine = Machine::here().unwrap();
        assert!(package(machine, &[vec![1], vec![2]], &[], &source, MAINTAINER).is_err());
    }
}
