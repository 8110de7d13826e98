//! What is wrong with something that was looked at, why, and what to do about it.

use std::fmt;

use serde::Serialize;

/// How bad a finding is, in ascending order: the worst one decides the exit code of `lint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; it may be meant.
    Note,
    /// It is valid, but probably not what was meant.
    Warning,
    /// It can't work as written: it is refused, has no effect, or breaks the capture.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// Something that `lint` tells of a pod, with its reason and its remedy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Note, warning or error; in lower case in JSON.
    pub severity: Severity,
    /// What kind of mistake it is, in a word that stays the same.
    pub code: &'static str,
    /// What is wrong: a container, an annotation, a field.
    pub at: String,
    /// What is wrong with it.
    pub what: String,
    /// The cause and what happens because of it, without full stop.
    pub why: String,
    /// A sentence that says what to change, and where.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { severity, code, at, what, why, fix } = self;
        write!(f, "{severity}: {at}: {what} [{code}]\n    why: {why}\n    fix: {fix}")
    }
}
