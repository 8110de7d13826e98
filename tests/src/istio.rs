//! Command lines of istio-iptables for the suites that use the library itself.

#[path = "../../core/tests/support/argv.rs"]
mod argv;
#[expect(clippy::unwrap_used, reason = "a file that can't be read should stop the test")]
#[path = "../../core/tests/support/lines.rs"]
mod lines;

use std::path::PathBuf;

use anyhow::{Result, anyhow};
use millrace_core::ruleset::Ruleset;
use millrace_core::value::Groups;

/// A command line, its name in front, as pairs of flag and value.
pub fn pairs(words: &[String]) -> Result<Vec<(String, String)>> {
    argv::pairs(words).map_err(|error| anyhow!(error))
}

/// The rules of every golden file, and the numbers of the groups in them.
pub fn golden() -> (Vec<(PathBuf, Ruleset)>, Groups) {
    let files = lines::golden().into_iter().map(|(path, line)| (path, lines::ruleset(&line)));
    (files.collect(), lines::facts().groups)
}
