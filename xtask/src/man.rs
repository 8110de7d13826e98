//! `xtask man`: man pages of `millrace`, and completions for shells.

use anyhow::Result;
use clap::ArgMatches;

use crate::repo;

/// What is made, from the root of the repository.
pub const FOLDER: &str = "dist";

/// The command line of `xtask man`.
pub fn command() -> clap::Command {
    clap::Command::new("man").about(
        "Write man pages into dist/man, and completions of bash, zsh and fish into dist/completions",
    )
}

/// Write them.
///
/// # Errors
/// When one can't be made or written.
pub fn run(_args: &ArgMatches) -> Result<()> {
    write()
}

/// The same.
///
/// # Errors
/// When one can't be made or written.
pub fn write() -> Result<()> {
    let folder = repo::root().join(FOLDER);
    let make = ["run", "--quiet", "--locked", "--package", "millrace", "--example", "man", "--"];
    repo::run(repo::cargo().args(make).arg(folder))?;
    repo::say(&format!("wrote {FOLDER}/man and {FOLDER}/completions"));
    Ok(())
}
