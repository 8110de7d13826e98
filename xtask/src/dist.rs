//! `xtask dist`: the static release binaries, checked, with their checksums.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgMatches};

use crate::elf::{self, Elf};
use crate::repo;

/// A binary that is shipped.
struct Shipped {
    /// Its name, and its package's.
    name: &'static str,
    /// How it is built.
    profile: &'static str,
    /// The largest it may be, in bytes.
    limit: u64,
}

const MIB: u64 = 1024 * 1024;

const MILLRACE: Shipped = Shipped { name: "millrace", profile: "dist", limit: 8 * MIB };

/// It brings a client of the Kubernetes API along, and tells a runtime of a panic as of any error.
const CNI: Shipped = Shipped { name: "millrace-cni", profile: "dist-unwind", limit: 16 * MIB };

/// With musl a program starts in a third of the time that it takes with glibc, which asks the
/// processor what it can do, in a virtual machine by way of the hypervisor.
const MUSL: &str = "x86_64-unknown-linux-musl";
/// What it is built for where Rust's standard library for musl is not installed.
const GLIBC: &str = "x86_64-unknown-linux-gnu";

/// The command line of `xtask dist`.
pub fn command() -> clap::Command {
    clap::Command::new("dist")
        .about("Build the static release binaries into dist/, check them, write their sha256")
        .arg(Arg::new("target").long("target").help(
            "Target triple [default: x86_64-unknown-linux-musl where it is installed, else \
             x86_64-unknown-linux-gnu]",
        ))
}

/// Builds, checks and copies the binaries to `dist/`.
///
/// # Errors
/// When a build fails, or a result is not static, not stripped, too large or does not start.
pub fn run(args: &ArgMatches) -> Result<()> {
    let here = here()?;
    let target = args.get_one::<String>("target").map_or(here, String::as_str);
    [MILLRACE, CNI].iter().try_for_each(|shipped| ship(shipped, target, target == here))
}

fn ship(shipped: &Shipped, target: &str, is_here: bool) -> Result<()> {
    let Shipped { name, limit, .. } = *shipped;
    let built = build(shipped, target)?;
    let file = fs::read(&built).with_context(|| format!("can't read {}", built.display()))?;
    check(&file, limit).with_context(|| format!("{} can't be shipped", built.display()))?;

    let folder = repo::root().join("dist");
    fs::create_dir_all(&folder).with_context(|| format!("can't make {}", folder.display()))?;
    let shipped = folder.join(name);
    fs::copy(&built, &shipped).with_context(|| format!("can't write {}", shipped.display()))?;
    if is_here {
        starts(name, &shipped)?;
    }
    let sum = repo::output(Command::new("sha256sum").arg(name).current_dir(&folder))?;
    fs::write(folder.join(format!("{name}.sha256")), &sum).context("can't write the checksum")?;

    let size = file.len();
    let mib = size as u64 * 100 / MIB;
    repo::print(&format!(
        "dist/{name}: {size} bytes ({}.{:02} MiB), static, stripped, {target}\nsha256 {}",
        mib / 100,
        mib % 100,
        String::from_utf8_lossy(&sum),
    ))
}

/// Builds `millrace` as it is shipped, for this machine.
///
/// # Errors
/// When it can't be built.
pub fn millrace() -> Result<PathBuf> {
    build(&MILLRACE, here()?)
}

/// Builds `millrace-cni` as it is shipped, for this machine.
///
/// # Errors
/// When it can't be built.
pub fn cni() -> Result<PathBuf> {
    build(&CNI, here()?)
}

/// The target for this machine.
fn here() -> Result<&'static str> {
    let query = ["--print", "target-libdir", "--target", MUSL];
    let folder = repo::output(Command::new("rustc").args(query))?;
    if Path::new(String::from_utf8_lossy(&folder).trim()).is_dir() {
        return Ok(MUSL);
    }
    repo::say(&format!(
        "dist: no {MUSL} here (rustup target add {MUSL}): built with glibc, which starts slower"
    ));
    Ok(GLIBC)
}

fn build(shipped: &Shipped, target: &str) -> Result<PathBuf> {
    // With an explicit --target these flags do not reach build scripts and proc-macros, which
    // have to stay dynamic to be loaded.
    //
    // At a fixed address, as Go's programs are: to relocate such a program takes as long as a
    // tenth of its run.
    let flags = "-C target-feature=+crt-static -C relocation-model=static";
    let args = ["--profile", shipped.profile, "--target", target];
    repo::build(shipped.name, &args, Some(flags))
}

/// Is this file static, stripped and small enough?
fn check(file: &[u8], limit: u64) -> Result<()> {
    let Elf { has_interpreter, needed_libraries, has_symbols, .. } = elf::parse(file)?;
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

    /// An ELF header without any table: as static and stripped as a file can be.
    fn mk_static(size: usize) -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01".to_vec();
        file.resize(size, 0);
        file
    }

    #[test]
    fn a_dynamic_binary_is_refused() {
        let this_test = fs::read(std::env::current_exe().unwrap()).unwrap();
        let error = check(&this_test, MIB).unwrap_err().to_string();
        assert!(error.contains("linked dynamically"), "{error}");
    }

    #[test]
    fn the_size_limit_holds() {
        let limit = usize::try_from(MIB).unwrap();
        check(&mk_static(limit - 1), MIB).unwrap();
        let error = check(&mk_static(limit), MIB).unwrap_err().to_string();
        assert!(error.contains("the limit is"), "{error}");
    }

    #[test]
    fn a_binary_that_looks_up_users_through_nss_is_refused() {
        let mut file = mk_static(200);
        file[100..116].copy_from_slice(b"libnss_%s.so%s\0\0");
        assert!(check(&file, MIB).unwrap_err().to_string().contains("NSS"));
    }
}
