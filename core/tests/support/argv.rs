//! Command lines of meshes' tools, for tests that use the library itself.

use millrace_core::dialect::flags::{Kind, Words};
use millrace_core::dialect::istio::flags::{Istio, LOG_FLAGS};

/// A command line of istio-iptables, its name in front, as pairs of flag and value; flags of the log are
/// left out.
///
/// # Errors
/// The word that is no flag, or that lacks its value.
pub(crate) fn pairs(words: &[String]) -> Result<Vec<(String, String)>, String> {
    pairs_of::<Istio>(words)
}

/// The same of any tool.
///
/// # Errors
/// See [`pairs`].
pub(crate) fn pairs_of<W: Words>(words: &[String]) -> Result<Vec<(String, String)>, String> {
    let mut words = words.iter().skip(1);
    let mut pairs = Vec::new();
    while let Some(word) = words.next() {
        let (name, inline) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (word.as_str(), None),
        };
        let long = name.strip_prefix("--");
        if LOG_FLAGS.iter().any(|(log, ..)| long == Some(*log)) {
            continue;
        }
        let flag = match long {
            Some(long) => W::find(long),
            None => W::FLAGS.iter().find(|f| f.short.is_some() && f.short == name.chars().nth(1)),
        };
        let flag = flag.ok_or_else(|| format!("there is no flag {name}"))?;
        let value = match (inline, flag.kind) {
            (Some(value), _) => value,
            (None, Kind::Bool) => "true".to_owned(),
            (None, _) => words.next().ok_or_else(|| format!("{name} has no value"))?.clone(),
        };
        pairs.push((flag.long.to_owned(), value));
    }
    Ok(pairs)
}
