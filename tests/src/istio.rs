//! Command lines of istio-iptables for the suites that use the library itself.

use anyhow::{Context as _, Result};
use millrace_core::dialect::istio::flags::{FLAGS, Kind, LOG_FLAGS, find};

/// A command line, its name in front, as pairs of flag and value.
pub fn pairs(words: &[String]) -> Result<Vec<(String, String)>> {
    let mut words = words.iter().skip(1);
    let mut pairs = Vec::new();
    while let Some(word) = words.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        if LOG_FLAGS.iter().any(|(log, ..)| name.strip_prefix("--") == Some(*log)) {
            continue;
        }
        let flag = match name.strip_prefix("--") {
            Some(long) => find(long),
            None => FLAGS.iter().find(|f| f.short.is_some() && f.short == name.chars().nth(1)),
        };
        let flag = flag.with_context(|| format!("there is no flag {name}"))?;
        let value = match (inline, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => "true".to_owned(),
            (None, _) => words.next().with_context(|| format!("{name} has no value"))?.clone(),
        };
        pairs.push((flag.long.to_owned(), value));
    }
    Ok(pairs)
}
