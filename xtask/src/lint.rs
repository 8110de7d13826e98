//! `xtask lint`: format, clippy, cargo-deny and the repository's own rules.

use anyhow::{Result, bail};

use crate::{policy, repo};

/// The command line of `xtask lint`.
pub fn command() -> clap::Command {
    clap::Command::new("lint")
        .about("Check format, clippy, licences and dependencies, and the repository's rules")
}

/// Runs every check and names all that failed, so that one run shows everything.
///
/// # Errors
/// When a check failed or could not be run.
pub fn run() -> Result<()> {
    let checks: [(&str, &[&str]); 3] = [
        ("format", &["fmt", "--all", "--check"]),
        ("clippy", &["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"]),
        ("deny", &["deny", "check", "bans", "licenses", "sources"]),
    ];
    let mut failed = Vec::new();
    for (name, args) in checks {
        if let Err(error) = repo::run(repo::cargo().args(args)) {
            repo::say(&format!("{name}: {error:#}"));
            failed.push(name);
        }
    }
    let violations = policy::check()?;
    for violation in &violations {
        repo::say(&format!("policy: {violation}"));
    }
    if !violations.is_empty() {
        failed.push("policy");
    }
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    repo::say("lint: all clean");
    Ok(())
}
