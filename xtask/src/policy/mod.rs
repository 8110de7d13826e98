//! The rules of this repository that no compiler enforces. `cargo xtask lint` reports them and
//! `xtask/tests/policy.rs` makes each a test.

mod glossary;
mod layers;
mod manifests;
mod names;
mod sources;
mod text;

use std::fmt;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::Value;

pub use glossary::glossary;
pub use layers::layers;
pub use manifests::{opted_in_lints, pure_core, workspace_edges};
pub use names::public_names;
pub use sources::{documented_head, length, local_paths, neutral_core, unsafe_code};

use crate::repo;

/// One place where a rule is broken.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Violation {
    /// File, relative to the top folder.
    pub file: String,
    /// Line, counted from 1; 0 when the whole file is meant.
    pub line: usize,
    /// What is wrong and what to do.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.what),
            line => write!(f, "{}:{line}: {}", self.file, self.what),
        }
    }
}

/// A text file of the repository.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// Path relative to the top folder, with `/`.
    pub path: String,
    /// Contents.
    pub text: String,
}

impl SourceFile {
    /// Is it Rust source?
    pub fn is_rust(&self) -> bool {
        Path::new(&self.path).extension().is_some_and(|extension| extension == "rs")
    }

    fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }

    fn violation(&self, line: usize, what: impl Into<String>) -> Violation {
        Violation { file: self.path.clone(), line, what: what.into() }
    }
}

/// Every text file that git tracks or would track, so a new file is checked before its commit.
///
/// # Errors
/// When git can't list the files or one can't be read.
pub fn source_files() -> Result<Vec<SourceFile>> {
    let root = repo::root();
    // The checkout may belong to another user than the one who runs the task (a container).
    let listed = repo::output(
        Command::new("git")
            .args(["-c", "safe.directory=*", "ls-files", "-z"])
            .args(["--cached", "--others", "--exclude-standard"])
            .current_dir(&root),
    )?;
    let mut files = Vec::new();
    for path in String::from_utf8(listed)?.split_terminator('\0') {
        let at = root.join(path);
        // A tracked file that is deleted but not yet committed is still listed.
        if !at.is_file() {
            continue;
        }
        let bytes = fs::read(&at).with_context(|| format!("can't read {path}"))?;
        if let Ok(text) = String::from_utf8(bytes) {
            files.push(SourceFile { path: path.to_owned(), text });
        }
    }
    Ok(files)
}

/// What `cargo metadata --no-deps` says of the members.
///
/// # Errors
/// When cargo fails or prints no JSON.
pub fn metadata() -> Result<Value> {
    let args = ["metadata", "--no-deps", "--format-version=1", "--locked", "--offline"];
    let printed = repo::output(repo::cargo().args(args))?;
    serde_json::from_slice(&printed).context("`cargo metadata` printed no JSON")
}

/// Checks every rule over the whole repository.
///
/// # Errors
/// When files or metadata can't be read.
pub fn check() -> Result<Vec<Violation>> {
    let metadata = metadata()?;
    let files = source_files()?;
    let mut found = pure_core(&metadata);
    found.extend(workspace_edges(&metadata));
    found.extend(opted_in_lints(&metadata, &files));
    found.extend(glossary(&files));
    let rules =
        [documented_head, length, unsafe_code, neutral_core, local_paths, layers, public_names];
    for rule in rules {
        found.extend(files.iter().filter_map(rule));
    }
    Ok(found)
}
