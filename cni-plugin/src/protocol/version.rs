//! Versions of the CNI specification.

use std::fmt;

/// A version that is spoken here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// 0.3.0, the first with chains of plugins
    V030,
    /// 0.3.1, with results as 0.3.0 has them
    V031,
    /// 0.4.0, the first with CHECK
    V040,
    /// 1.0.0, the first without configurations of single plugins
    V100,
    /// 1.1.0, the first with GC and STATUS
    V110,
}

impl Version {
    /// All of them, oldest first.
    pub const ALL: [Self; 5] = [Self::V030, Self::V031, Self::V040, Self::V100, Self::V110];
    /// The `cniVersion` of errors, and of VERSION's answer, where the request names none.
    pub const NEWEST: Self = Self::V110;

    /// As `cniVersion` has it, such as `1.1.0`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V030 => "0.3.0",
            Self::V031 => "0.3.1",
            Self::V040 => "0.4.0",
            Self::V100 => "1.0.0",
            Self::V110 => "1.1.0",
        }
    }

    /// The version that is written so.
    pub fn find(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
