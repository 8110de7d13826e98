//! How severe messages are, and which of them are written.

/// How severe a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// For whoever looks for a fault here.
    Debug,
    /// What was decided and done.
    Info,
    /// What the user should know.
    Warn,
    /// What failed, so that a command or a part of it was not done.
    Error,
    /// Only a limit: nothing is logged.
    None,
}

impl Level {
    /// As `plugin_log_level` and the lines of the log have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::None => "none",
        }
    }

    /// The level of this name. Where there are fatal messages only, there are none here.
    pub fn find(name: &str) -> Option<Self> {
        let all = [Self::Debug, Self::Info, Self::Warn, Self::Error, Self::None];
        let named = all.into_iter().find(|level| level.as_str() == name);
        named.or_else(|| (name == "fatal").then_some(Self::None))
    }
}
