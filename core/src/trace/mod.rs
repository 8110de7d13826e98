//! What the kernel tells of packets on their way through rules, put together to what became of
//! each: the rules that it met, why they are there, and where it ended.
//!
//! ```text
//! Filter ──table──► nf_tables: begins to trace, and tells when a packet is at its end
//!                        │
//!  Heard (from nf_tables, from iptables-legacy) ──► Follower ──► Journey ──► report
//! ```
//!
//! Connections are followed, not packets: of TCP the kernel tells only of what begins one. Of other
//! protocols it tells of every packet, since rules of `raw` come before connection tracking, and the
//! follower tells the first of each connection from the rest.

mod filter;
mod follow;
mod head;
pub mod report;
#[cfg(test)]
mod tests;

pub use filter::{Filter, Unfilterable};
pub use follow::{End, Follower, Journey, Step};
pub use head::Head;
pub use report::Rulebook;

use crate::ruleset::Hook;
use crate::value::Family;

/// What all tables are called that traces have, with a number of its own behind it for each.
pub const TABLE_PREFIX: &str = "millrace-trace-";

/// The kind of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tables {
    /// `nf_tables`, family `inet`: native nftables of whoever.
    Inet,
    /// `nf_tables`, family `ip` or `ip6`, as iptables-nft has them.
    Ip(Family),
    /// The kernel's own tables of iptables.
    Legacy(Family),
}

/// Where a rule is in its chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleRef {
    /// By the kernel's number of it.
    Handle(u64),
    /// Counted from 1. Behind the last one is what the chain ends with.
    Number(usize),
}

/// What a rule did with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TraceVerdict {
    /// The packet went on, here or elsewhere.
    On,
    /// It was discarded, and its way ends here.
    Drop,
}

/// What one trace message of the kernel says (`enum nft_trace_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// A rule matched, and this became of the packet.
    Rule(RuleRef, TraceVerdict),
    /// A chain had no more rules.
    Return,
    /// What becomes of a packet that no rule of a chain decided about which the kernel calls.
    Policy(TraceVerdict),
}

/// One thing that the kernel told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The kind of the table.
    pub tables: Tables,
    /// That of the rule, by name.
    pub table: String,
    /// That of the rule, by name.
    pub chain: String,
    /// That a rule matched, that a chain ended, or what its policy is.
    pub said: Said,
    /// The kernel's number of the packet; the same as long as it does not go by an interface.
    pub id: Option<u32>,
    /// The hook, where it is told.
    pub hook: Option<Hook>,
    /// The packet, where it is told: with the first rule of a hook and priority.
    pub head: Option<Head>,
}
