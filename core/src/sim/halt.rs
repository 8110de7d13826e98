//! Why a packet's way ends before its end.

use super::fate::{Fate, Outcome, Reply};
use super::program::RuleId;
use super::walk::End;

/// A packet's way ends before its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    Dropped { rule: Option<RuleId>, why: String },
    Refused(RuleId),
    Unknown { rule: Option<RuleId>, what: String },
}

impl Halt {
    pub(super) fn unknown(what: &str) -> Self {
        Self::Unknown { rule: None, what: what.to_owned() }
    }

    pub(super) fn end(self) -> End {
        match self {
            Self::Dropped { rule, why } => {
                (Fate::Dropped { rule, why: why.clone() }, Outcome::Dropped { why })
            }
            Self::Refused(rule) => (Fate::Refused { rule }, Outcome::Refused),
            Self::Unknown { rule, what } => {
                (Fate::Unknown { rule, what: what.clone() }, Outcome::Unknown { what })
            }
        }
    }

    pub(super) fn reply(self) -> Reply {
        match self {
            Self::Dropped { why, .. } => Reply::Lost { why: format!("it is dropped: {why}") },
            Self::Refused(_) => Reply::Lost { why: "it is refused".to_owned() },
            Self::Unknown { rule, what } => Reply::Unknown { rule, what },
        }
    }
}
