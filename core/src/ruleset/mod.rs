//! The typed ruleset: tables, chains, rules, matches, targets. Every backend renders from it and
//! every parser ends in it.

mod canonical;
mod chain;
mod comment;
mod layout;
mod matches;
pub mod native;
mod role;
mod state;
mod target;

pub use chain::{BadChainName, Chain, ChainName, Hook, Table};
pub use comment::{BadComment, Comment};
pub use layout::{Layout, Style};
pub use matches::{ConnState, Masked, Match, Owner, Protocol, Side};
pub use role::Role;
pub use state::{
    Emission, Home, MarkedRoute, Placement, Reason, Routing, Ruleset, TPROXY_PRIORITY, TableChain,
};
pub use target::{RedirectSpelling, Target};

/// A rule: when every match holds, the target is carried out. The order of the matches is the
/// order in which the dialect writes them; [`Rule::canonical`] forgets it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// What a packet must be like.
    pub matches: Vec<Match>,
    /// What is done with a packet for which every match holds.
    pub target: Target,
}

impl Rule {
    /// A rule with these matches and this target.
    pub const fn new(matches: Vec<Match>, target: Target) -> Self {
        Self { matches, target }
    }
}
