//! Native nftables: the typed ruleset of `nf_tables`, its text, and the layout of the reference.
//! One set of tables of family `inet` serves IPv4 and IPv6.

pub mod expr;
mod guard;
pub mod listed;
mod merge;
pub mod needs;
mod render;
pub mod set;
pub mod tables;
pub mod xtables;

pub use guard::{UNGUARDED, beside, guarded, untaken};
pub use merge::{finished, merge};
pub use render::{base_chain, render_transaction, render_with_reasons, rule_text};

pub use crate::ruleset::native::{
    NftChain, NftEmission, NftLayout, NftRuleset, OwnerSpelling, Statement,
};
