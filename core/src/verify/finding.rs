//! What was seen of a connection, held against what was expected.

use std::fmt;
use std::net::SocketAddr;

use serde::Serialize;

use super::{Check, Expected};

/// What was seen of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "seen")]
pub enum Seen {
    /// It arrived in the pod.
    Arrived {
        /// The port of the socket that got it; none where only somebody else knows.
        port: Option<u16>,
        /// The destination that the receiver can ask for; none where that could not be seen.
        original: Option<SocketAddr>,
        /// Whether this program's own listener got it, and not another process.
        own: bool,
    },
    /// Rules gave it another destination, and nobody was seen to get it there.
    Led {
        /// The destination that they gave it.
        to: SocketAddr,
        /// Whether a running process has that port, who alone knows.
        taken: bool,
    },
    /// It left the pod for where it was meant to go.
    Left,
    /// It was seen nowhere, neither in the pod nor on its way out.
    Unseen {
        /// Why its way out could not be watched; none when it was.
        blind: Option<String>,
    },
    /// Its socket got an error, such as `ECONNREFUSED`.
    Failed {
        /// The socket's error in words, with its cause where that is known.
        why: String,
    },
    /// It could not be made.
    NotTried {
        /// What is missing to make it, such as a route or a capability.
        why: String,
    },
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Arrived { port, original, own } => {
                match port {
                    Some(port) => write!(f, "arrived at port {port}")?,
                    None => f.write_str("was accepted in the pod")?,
                }
                if !own {
                    f.write_str(" of a running process")?;
                }
                match original {
                    Some(original) => write!(f, " with original destination {original}"),
                    None => f.write_str("; its original destination can't be seen"),
                }
            }
            Self::Led { to, taken: true } => write!(
                f,
                "was led to {to}, whose port a running process has: only that can tell whether it \
                 arrived"
            ),
            Self::Led { to, taken: false } => {
                write!(f, "was led to {to}, and did not arrive there")
            }
            Self::Left => f.write_str("left the pod untouched"),
            Self::Unseen { blind: None } => f.write_str("neither arrived in the pod nor left it"),
            Self::Unseen { blind: Some(why) } => {
                write!(f, "did not arrive in the pod; whether it left can't be told: {why}")
            }
            Self::Failed { why } => write!(f, "arrived nowhere: {why}"),
            Self::NotTried { why } => write!(f, "not tried: {why}"),
        }
    }
}

/// A connection with what was seen of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was to be made, and where it had to arrive.
    #[serde(flatten)]
    pub check: Check,
    /// Where it arrived or left, or why it did neither.
    pub result: Seen,
    /// Whether that is what was expected; none when it could not be made.
    pub passed: Option<bool>,
}

impl Finding {
    /// Hold what was seen against what was expected.
    pub fn new(check: Check, result: Seen) -> Self {
        let passed = match (&check.expected, &result) {
            (
                Expected::Arrives { port, original, .. },
                Seen::Arrived { port: at, original: seen, .. },
            ) => Some(at.is_none_or(|at| at == *port) && seen.is_none_or(|seen| seen == *original)),
            (Expected::Leaves, Seen::Left)
            | (Expected::Dropped { .. }, Seen::Failed { .. } | Seen::Unseen { blind: None }) => {
                Some(true)
            }
            (Expected::Arrives { .. } | Expected::Lost { .. }, Seen::Unseen { .. }) => Some(false),
            (_, Seen::NotTried { .. } | Seen::Unseen { blind: Some(_) }) => None,
            (Expected::Arrives { port, .. }, Seen::Led { to, taken: true })
                if to.port() == *port =>
            {
                None
            }
            _ => Some(false),
        };
        Self { check, result, passed }
    }
}

impl fmt::Display for Finding {
    /// One line, and more for the reasons of a failure. A width (`{:40}`) is that of the connection: what was
    /// seen of it starts in one column.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { check, result, passed } = self;
        let kind = match passed {
            Some(true) => "ok",
            None if matches!(result, Seen::NotTried { .. }) => "skipped",
            None => "unclear",
            Some(false) => "FAILED",
        };
        let connection = format!("{check}:");
        // The colon is behind the connection.
        let width = f.width().map_or(0, |width| width + 1);
        write!(f, "{kind:<7} {connection:<width$} {result}")?;
        if *passed == Some(false) {
            write!(f, "; expected {}", check.expected)?;
            check.because.iter().try_for_each(|why| write!(f, "\n        because {why}"))?;
        }
        Ok(())
    }
}
