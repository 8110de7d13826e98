//! What is wrong with something that was looked at, why, and what to do about it.

use std::fmt;

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know; it may be meant.
    Note,
    /// It is hardly meant.
    Warning,
    /// It does not work.
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

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What kind of mistake it is, in a word that stays the same.
    pub code: &'static str,
    /// What is wrong: a container, an annotation, a field.
    pub at: String,
    /// What is wrong with it.
    pub what: String,
    /// Why that is wrong.
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
