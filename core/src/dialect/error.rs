//! All that is wrong with a configuration, at once.

use std::fmt;

use crate::source::Source;

/// One setting that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{source_name}: {value:?}: {expected}")]
pub struct ConfigError {
    /// Where the value came from.
    pub source_name: Source,
    /// The value, or the item of a list, as it was given.
    pub value: String,
    /// What the setting takes, or what to do instead; it ends the message.
    pub expected: String,
    /// Whether the command line itself can't be read, as opposed to a setting that makes no
    /// sense: the reference has an exit code of its own for it.
    pub usage: bool,
}

/// Everything that is wrong with a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq, thiserror::Error)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl ConfigErrors {
    /// Whether any of them is about the command line itself.
    pub fn usage(&self) -> bool {
        self.0.iter().any(|e| e.usage)
    }

    /// `value` if nothing is wrong, everything that is wrong otherwise.
    ///
    /// # Errors
    /// Itself, when it holds any.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.fmt(f)?;
        }
        Ok(())
    }
}
