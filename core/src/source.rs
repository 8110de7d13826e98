//! Where a value came from, so that an error and a rule can both say it.

use std::fmt;

use serde::Serialize;

/// The place a value was read from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(tag = "kind", content = "name", rename_all = "lowercase")]
pub enum Source {
    /// A command line flag, with its dashes.
    Flag(String),
    /// An environment variable, by its name.
    Env(String),
    /// A pod annotation, by its whole key.
    Annotation(String),
    /// A key of a configuration file, dotted (`inbound.port`).
    File(String),
    /// Nobody set it: the default of this setting.
    Default(String),
    /// Read off the pod itself: its addresses, its `/etc/resolv.conf`, its users.
    Host(String),
    /// Read back from rules that are already there.
    Rules,
    /// Always there: the capture does not work without it.
    Always,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Env(name) => write!(f, "environment variable {name}"),
            Self::Annotation(name) => write!(f, "annotation {name}"),
            Self::File(key) => write!(f, "configuration key {key}"),
            Self::Default(name) => write!(f, "default of {name}"),
            Self::Host(what) => write!(f, "the pod's {what}"),
            Self::Rules => f.write_str("the rules found"),
            Self::Always => f.write_str("always"),
        }
    }
}

/// A value with the place it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced<T> {
    /// As text, or parsed and checked.
    pub value: T,
    /// Who set it: a flag, variable, annotation, file or default, or what it was read back from.
    pub source: Source,
}

impl<T> Sourced<T> {
    /// Pair a value with its source.
    pub const fn new(value: T, source: Source) -> Self {
        Self { value, source }
    }

    /// The same source for another value.
    pub fn with<U>(&self, value: U) -> Sourced<U> {
        Sourced { value, source: self.source.clone() }
    }
}
