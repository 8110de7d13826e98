//! `xtask book`: the manual in docs/ as a book.

use std::io::ErrorKind;
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ArgMatches;

use crate::repo;

/// Where it is written, from the root of the repository.
const BOOK: &str = "target/book";

/// The command line of `xtask book`.
pub fn command() -> clap::Command {
    clap::Command::new("book").about("Make a book of docs/ in target/book, with mdbook")
}

/// Make the book.
///
/// # Errors
/// When mdbook is not installed, or fails.
pub fn run(_args: &ArgMatches) -> Result<()> {
    let target = repo::root().join(BOOK);
    let made = Command::new("mdbook")
        .arg("build")
        .arg(repo::root())
        .arg("--dest-dir")
        .arg(&target)
        .status();
    match made {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("mdbook is not installed: `cargo install --locked mdbook`")
        }
        made => ensure!(made.context("mdbook")?.success(), "mdbook failed"),
    }
    repo::say(&format!("wrote {BOOK}/index.html"));
    Ok(())
}
