//! Why a run did not do what it was to do.

use millrace_core::nft::expr::NoGroup;
use millrace_core::plan::{self, Effect, NoBackend};

use crate::{effect, link, lock, observe};

/// Why a run did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The namespace's links could not be opened.
    #[error(transparent)]
    Link(#[from] link::LinkError),
    /// Another run was in the way.
    #[error(transparent)]
    Lock(#[from] lock::LockError),
    /// The namespace could not be looked at.
    #[error("the existing rules can't be read: {0}")]
    Observe(#[from] observe::ObserveError),
    /// A group has no number.
    #[error(transparent)]
    NoGroup(#[from] NoGroup),
    /// No backend can be used.
    #[error(transparent)]
    NoBackend(#[from] NoBackend),
    /// TPROXY would capture nothing of what comes over a bridge.
    #[error(
        "{interface} is a bridge that gives packets to rules before they come to the pod: TPROXY hands \
         none of them to the proxy, and connections reach the application; set \
         net.bridge.{setting} (and nf_call of the bridge) to 0, or capture by REDIRECT"
    )]
    Bridge {
        /// Name of the first such bridge, as `ip link` shows it.
        interface: String,
        /// The setting of all bridges.
        setting: &'static str,
    },
    /// The routing table that is needed is used by somebody else.
    #[error(transparent)]
    TakenTable(#[from] plan::TakenTable),
    /// Chains of others have the names of those that are to be written.
    #[error(transparent)]
    Clash(#[from] plan::Clash),
    /// Differing rules are there, and were not to be replaced.
    #[error(
        "rules of an earlier run are there and differ from what is wanted ({}); nothing was \
         changed: pass --reconcile to replace them, or remove them first",
        list(.effects)
    )]
    Drifted {
        /// What would have been done.
        effects: Vec<Effect>,
    },
    /// An effect failed, and what was there before is there again.
    #[error("{}; what was there before is there again", story(.failed, .why))]
    TakenBack {
        /// The first effect that failed; those before it have been undone.
        failed: Box<Effect>,
        /// Its error, by which a run decides whether it tries another method.
        why: Box<effect::EffectError>,
    },
    /// Programs of iptables said that they had written rules, and the kernel has others.
    #[error(
        "the iptables binaries reported that they wrote the rules, but the kernel does not have \
         them ({}); {}. Check which iptables-restore this is, or let Millrace write rules by \
         netlink: the backends iptables-nft and nftables need no binaries",
        list(.effects),
        .back.as_ref().map_or("what was there before is there again", String::as_str)
    )]
    NotThere {
        /// What is still to be done.
        effects: Vec<Effect>,
        /// Why putting back what was there before failed, if it did.
        back: Option<String>,
    },
    /// An effect failed, and so did putting back what was there before.
    #[error(
        "{}; restoring the previous rules failed too: {second}. The next run detects what is left \
         and completes the change",
        story(.failed, .why)
    )]
    Stuck {
        /// The first effect that failed.
        failed: Box<Effect>,
        /// Its error; what failed while rolling back is in `second`.
        why: Box<effect::EffectError>,
        /// What failed then, and why.
        second: String,
    },
}

impl EngineError {
    /// Whether a lock was in the way until the time was up.
    pub const fn is_busy(&self) -> bool {
        match self {
            Self::Lock(error) => error.is_busy(),
            Self::TakenBack { why, .. } | Self::Stuck { why, .. } => why.is_busy(),
            _ => false,
        }
    }
}

/// What failed, and why. The kernel's refusals name what they are about themselves.
fn story(failed: &Effect, why: &effect::EffectError) -> String {
    match failed {
        Effect::Restore { .. } => format!("{failed}: {why}"),
        _ => why.to_string(),
    }
}

fn list(effects: &[Effect]) -> String {
    let texts: Vec<String> = effects
        .iter()
        .filter(|e| !matches!(e, Effect::Marker { .. }))
        .map(ToString::to_string)
        .collect();
    texts.join("; ")
}
