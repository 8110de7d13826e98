//! Command lines of istio-iptables for the suites that use the library itself.

#[path = "../../core/tests/support/argv.rs"]
mod argv;

use anyhow::{Result, anyhow};

/// A command line, its name in front, as pairs of flag and value.
pub fn pairs(words: &[String]) -> Result<Vec<(String, String)>> {
    argv::pairs(words).map_err(|error| anyhow!(error))
}
