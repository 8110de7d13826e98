//! `xtask dist`: the static release binaries, checked, with their checksums.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgMatches};

use crate::elf::{self, Elf};
use crate::{repo, sbom};

/// A binary that is shipped.
struct Shipped {
    /// Its name, and its package's.
    name: &'static str,
    /// How it is built.
    profile: &'static str,
    /// The largest it may be, in bytes.
    limit: u64,
    /// Whether it captures by eBPF, and so holds the programs.
    has_programs: bool,
}

const MIB: u64 = 1024 * 1024;

const MILLRACE: Shipped =
    Shipped { name: "millrace", profile: "dist", limit: 8 * MIB, has_programs: true };

/// It brings a client of the Kubernetes API along, and tells a runtime of a panic as of any error.
const CNI: Shipped =
    Shipped { name: "millrace-cni", profile: "dist-unwind", limit: 16 * MIB, has_programs: true };

/// It runs for months, and a panic of one request is not its end.
const NODE: Shipped =
    Shipped { name: "millrace-node", profile: "dist-unwind", limit: 16 * MIB, has_programs: false };

const ALL: [Shipped; 3] = [MILLRACE, CNI, NODE];

/// The eBPF object that `xtask build-ebpf` makes.
const OBJECT: &str = "host/src/ebpf/millrace.bpf.o";

/// A kind of machine that binaries are shipped for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Machine {
    /// As Rust names it.
    pub arch: &'static str,
    /// As container images name it.
    pub image: &'static str,
    /// As Debian names it.
    pub debian: &'static str,
    /// `e_machine` of its ELF files (elf.h).
    pub elf: u16,
    /// The C compiler of Debian's for it on another machine. Only the cryptography of the API's client
    /// has C and assembly.
    compiler: &'static str,
}

/// Every machine that binaries are shipped for.
pub const MACHINES: [Machine; 2] = [
    Machine {
        arch: "x86_64",
        image: "amd64",
        debian: "amd64",
        elf: 62,
        compiler: "x86_64-linux-gnu-gcc",
    },
    Machine {
        arch: "aarch64",
        image: "arm64",
        debian: "arm64",
        elf: 183,
        compiler: "aarch64-linux-gnu-gcc",
    },
];

impl Machine {
    /// The machine that a target triple is for.
    ///
    /// # Errors
    /// When nothing is shipped for it.
    pub fn of(target: &str) -> Result<Self> {
        let machine = MACHINES.into_iter().find(|machine| {
            target
                .strip_prefix(machine.arch)
                .is_some_and(|rest| rest.starts_with("-unknown-linux-"))
        });
        machine.with_context(|| {
            let known = MACHINES.map(|machine| format!("{}-unknown-linux-musl", machine.arch));
            format!("{target} is no target that binaries are shipped for: {}", known.join(", "))
        })
    }

    /// This one.
    ///
    /// # Errors
    /// When nothing is shipped for it.
    pub fn here() -> Result<Self> {
        Self::of(&format!("{}-unknown-linux-musl", std::env::consts::ARCH))
    }

    /// With musl a program starts in a third of the time that it takes with glibc, which asks the
    /// processor what it can do, in a virtual machine by way of the hypervisor.
    pub fn musl(self) -> String {
        format!("{}-unknown-linux-musl", self.arch)
    }

    /// Where its binaries are, from the root of the repository: this machine's in `dist/` itself.
    ///
    /// # Errors
    /// When nothing is shipped for this machine.
    pub fn folder(self) -> Result<PathBuf> {
        let dist = repo::root().join("dist");
        Ok(if self == Self::here()? { dist } else { dist.join(self.musl()) })
    }
}

/// The command line of `xtask dist`.
pub fn command() -> clap::Command {
    let names = ALL.map(|shipped| shipped.name);
    clap::Command::new("dist")
        .about(
            "Build the static release binaries into dist/, check them, write their sha256 and SBOM",
        )
        .arg(Arg::new("target").long("target").help(
            "Target triple; what is not for this machine goes into dist/TARGET/ [default: musl for \
             this machine where it is installed, else glibc]",
        ))
        .arg(
            Arg::new("name")
                .value_name("NAME")
                .num_args(0..)
                .value_parser(names)
                .help("Which binaries [default: all]"),
        )
}

/// Builds, checks and copies the binaries to `dist/`.
///
/// # Errors
/// When a build fails, or a result is not static, not stripped, too large, for another machine or does
/// not start.
pub fn run(args: &ArgMatches) -> Result<()> {
    let target = match args.get_one::<String>("target") {
        Some(target) => target.clone(),
        None => here()?,
    };
    let names: Vec<&String> = args.get_many("name").into_iter().flatten().collect();
    let wanted = |shipped: &&Shipped| names.is_empty() || names.iter().any(|n| *n == shipped.name);
    let chosen: Vec<&Shipped> = ALL.iter().filter(wanted).collect();
    let profiles: BTreeSet<&str> = chosen.iter().map(|shipped| shipped.profile).collect();
    // The last step of each build keeps one processor busy, and profiles have folders of their own.
    thread::scope(|scope| {
        let of_profile = |profile: &'static str| {
            let (chosen, target) = (&chosen, &target);
            let mut all = chosen.iter().filter(move |shipped| shipped.profile == profile);
            scope.spawn(move || all.try_for_each(|shipped| ship(shipped, target)))
        };
        let running: Vec<_> = profiles.into_iter().map(of_profile).collect();
        let ended = running.into_iter().map(|build| {
            build.join().unwrap_or_else(|_| bail!("a build ended by a panic, which is told above"))
        });
        // All of them have ended before the first error is told.
        ended.collect::<Vec<_>>().into_iter().collect()
    })
}

fn ship(shipped: &Shipped, target: &str) -> Result<()> {
    let Shipped { name, limit, has_programs, .. } = *shipped;
    let machine = Machine::of(target)?;
    // Before the build, so that a change in the meantime is not called a commit.
    let revision = repo::revision()?;
    let built = build(shipped, target)?;
    let file = fs::read(&built).with_context(|| format!("can't read {}", built.display()))?;
    let object = repo::root().join(OBJECT);
    let object = fs::read(&object).with_context(|| OBJECT.to_owned())?;
    check(&file, machine, limit)
        .and_then(|()| if has_programs { holds(&file, &object) } else { Ok(()) })
        .with_context(|| format!("{} can't be shipped", built.display()))?;

    let folder = machine.folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let shipped = folder.join(name);
    fs::copy(&built, &shipped).with_context(|| format!("can't write {}", shipped.display()))?;
    if machine == Machine::here()? {
        starts(name, &shipped)?;
    }
    let sum = repo::output(Command::new("sha256sum").arg(name).current_dir(&folder))?;
    fs::write(folder.join(format!("{name}.sha256")), &sum).context("can't write the checksum")?;
    let sum = String::from_utf8_lossy(&sum).into_owned();
    let hash = sum.split_whitespace().next().context("sha256sum says nothing")?;
    let bill = sbom::of(name, target, hash)?;
    fs::write(folder.join(format!("{name}.cdx.json")), bill).context("can't write its SBOM")?;
    let revision = format!("{revision}\n");
    fs::write(folder.join(format!("{name}.revision")), revision).context("can't write it")?;

    let size = file.len();
    let mib = size as u64 * 100 / MIB;
    let shown = shipped.strip_prefix(repo::root()).unwrap_or(&shipped);
    repo::print(&format!(
        "{}: {size} bytes ({}.{:02} MiB), static, stripped, {target}\nsha256 {}",
        shown.display(),
        mib / 100,
        mib % 100,
        sum,
    ))
}

/// Builds `millrace` as it is shipped, for this machine.
///
/// # Errors
/// When it can't be built.
pub fn millrace() -> Result<PathBuf> {
    build(&MILLRACE, &here()?)
}

/// Builds `millrace-cni` as it is shipped, for this machine.
///
/// # Errors
/// When it can't be built.
pub fn cni() -> Result<PathBuf> {
    build(&CNI, &here()?)
}

/// Builds `millrace-node` as it is shipped, for this machine.
///
/// # Errors
/// When it can't be built.
pub fn node() -> Result<PathBuf> {
    build(&NODE, &here()?)
}

/// The target for this machine: glibc's where Rust's standard library for musl is not installed.
fn here() -> Result<String> {
    let machine = Machine::here()?;
    let musl = machine.musl();
    if is_installed(&musl)? {
        return Ok(musl);
    }
    repo::say(&format!(
        "dist: no {musl} here (rustup target add {musl}): built with glibc, which starts slower"
    ));
    Ok(format!("{}-unknown-linux-gnu", machine.arch))
}

/// Is Rust's standard library there for this target?
fn is_installed(target: &str) -> Result<bool> {
    let query = ["--print", "target-libdir", "--target", target];
    let folder = repo::output(Command::new("rustc").args(query))?;
    Ok(Path::new(String::from_utf8_lossy(&folder).trim()).is_dir())
}

fn build(shipped: &Shipped, target: &str) -> Result<PathBuf> {
    let machine = Machine::of(target)?;
    ensure!(is_installed(target)?, "no {target} here: `rustup target add {target}`");
    // With an explicit --target these flags do not reach build scripts and proc-macros, which
    // have to stay dynamic to be loaded.
    //
    // At a fixed address, as Go's programs are: to relocate such a program takes as long as a
    // tenth of its run.
    let mut flags = "-C target-feature=+crt-static -C relocation-model=static".to_owned();
    let mut compiler = Vec::new();
    if machine != Machine::here()? {
        // Rust brings a linker along that links for every machine, and musl itself.
        flags.push_str(" -C linker=rust-lld");
        let variable = format!("CC_{}", target.replace('-', "_"));
        if std::env::var_os(&variable).is_none() {
            compiler.push((variable, machine.compiler.to_owned()));
        }
    }
    let args = ["--profile", shipped.profile, "--target", target];
    repo::build(shipped.name, &args, Some(&flags), &compiler)
}

/// Is this file static, stripped, small enough, and for this machine?
fn check(file: &[u8], wanted: Machine, limit: u64) -> Result<()> {
    let Elf { machine, has_interpreter, needed_libraries, has_symbols } = elf::parse(file)?;
    ensure!(machine == wanted.elf, "it is for ELF's machine {machine}, not {}", wanted.elf);
    if has_interpreter || needed_libraries > 0 {
        bail!("it is linked dynamically: loader {has_interpreter}, libraries {needed_libraries}");
    }
    ensure!(!has_symbols, "it is not stripped");
    // glibc's user and host look-ups load libnss_* when they run, static or not.
    let loads_nss = file.windows(8).any(|window| window == b"libnss_%");
    ensure!(!loads_nss, "it calls glibc's NSS (getpwnam, getaddrinfo), which loads libraries");
    let size = file.len() as u64;
    ensure!(size < limit, "it has {size} bytes; the limit is {limit}");
    Ok(())
}

/// Does this file hold the committed eBPF object, byte for byte? So it is the same for every machine:
/// instructions of eBPF, and the structures that the programs are called with, have one form on all
/// little-endian ones.
fn holds(file: &[u8], object: &[u8]) -> Result<()> {
    let head = object.get(..64).context("the eBPF object is no ELF file")?;
    let found = (0..file.len().saturating_sub(object.len() - 1))
        .filter(|at| file[*at..].starts_with(head))
        .any(|at| file[at..].starts_with(object));
    ensure!(found, "it does not hold {OBJECT}, byte for byte");
    Ok(())
}

/// Starts the binary with nothing in its environment.
fn starts(name: &str, binary: &Path) -> Result<()> {
    let version = repo::output(Command::new(binary).arg("--version").env_clear())?;
    let right = version.starts_with(format!("{name} ").as_bytes());
    ensure!(right, "`{name} --version` printed something else");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Machine = MACHINES[0];

    /// An ELF header without any table: as static and stripped as a file can be.
    fn mk_static(size: usize) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(size, 0);
        file[18] = 62;
        file
    }

    #[test]
    fn a_dynamic_binary_is_refused() {
        let this_test = fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = check(&this_test, Machine::here().unwrap(), MIB).unwrap_err().to_string();
        assert!(error.contains("linked dynamically"), "{error}");
    }

    #[test]
    fn the_size_limit_holds() {
        let limit = usize::try_from(MIB).unwrap();
        check(&mk_static(limit - 1), HERE, MIB).unwrap();
        let error = check(&mk_static(limit), HERE, MIB).unwrap_err().to_string();
        assert!(error.contains("the limit is"), "{error}");
    }

    #[test]
    fn a_binary_that_looks_up_users_through_nss_is_refused() {
        let mut file = mk_static(200);
        file[100..116].copy_from_slice(b"libnss_%s.so%s\0\0");
        assert!(check(&file, HERE, MIB).unwrap_err().to_string().contains("NSS"));
    }

    #[test]
    fn a_binary_for_another_machine_is_refused() {
        let error = check(&mk_static(200), MACHINES[1], MIB).unwrap_err().to_string();
        assert!(error.contains("machine 62, not 183"), "{error}");
    }

    #[test]
    fn targets_are_of_machines() {
        assert_eq!(Machine::of("aarch64-unknown-linux-musl").unwrap(), MACHINES[1]);
        assert_eq!(Machine::of("x86_64-unknown-linux-gnu").unwrap(), MACHINES[0]);
        for wrong in ["x86_64-pc-windows-msvc", "x86_64", "aarch64_be-unknown-linux-musl", ""] {
            assert!(Machine::of(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_object_is_found_only_whole() {
        let object: Vec<u8> = (0..200).collect();
        let mut file = [&[7; 10], &object[..100], &object[..], &[7; 10]].concat();
        holds(&file, &object).unwrap();
        file[10 + 100 + 150] ^= 1;
        assert!(holds(&file, &object).is_err());
        assert!(holds(&object[1..], &object).is_err());
    }
}
