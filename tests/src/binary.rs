//! Where the programs under test are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

/// The millrace program: `MILLRACE_BIN` if it is set.
pub fn millrace() -> Result<PathBuf> {
    match std::env::var_os("MILLRACE_BIN") {
        Some(path) => Ok(PathBuf::from(path)),
        None => built("millrace-under-test"),
    }
}

/// The CNI plugin: `MILLRACE_CNI_BIN` if it is set.
pub fn millrace_cni() -> Result<PathBuf> {
    match std::env::var_os("MILLRACE_CNI_BIN") {
        Some(path) => Ok(PathBuf::from(path)),
        None => built("millrace-cni-under-test"),
    }
}

/// The node agent: `MILLRACE_NODE_BIN` if it is set.
pub fn millrace_node() -> Result<PathBuf> {
    match std::env::var_os("MILLRACE_NODE_BIN") {
        Some(path) => Ok(PathBuf::from(path)),
        None => built("millrace-node-under-test"),
    }
}

/// The probe program, which is of this package.
pub fn probe() -> Result<PathBuf> {
    built("probe")
}

/// A program of the machine, where PATH has it.
pub fn system(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("PATH is not set")?;
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .with_context(|| format!("{name} is not installed"))
}

/// A program of this package. Cargo builds all of them before it runs a test, which lies in
/// `deps/` beside them.
fn built(name: &str) -> Result<PathBuf> {
    let test = std::env::current_exe().context("where this test is")?;
    let path = test
        .parent()
        .and_then(|deps| deps.parent())
        .with_context(|| format!("{} lies in no target directory", test.display()))?
        .join(name);
    ensure!(path.is_file(), "there is no {}: run the suites with `cargo test`", path.display());
    Ok(path)
}

/// Have a program under another name, ready to be run: one that was copied is busy as long as a process that another
/// thread has just forked holds the copy open.
///
/// # Errors
/// When it can be neither linked nor copied.
pub fn place(program: &Path, at: &Path) -> Result<()> {
    if fs::hard_link(program, at).is_ok() {
        return Ok(());
    }
    fs::copy(program, at).with_context(|| at.display().to_string()).map(drop)
}
