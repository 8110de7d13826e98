//! Native nftables of whoever, as one look found them, to walk packets through.

use super::expr::Expr;
use super::tables::Base;
use crate::iptables::Counters;
use crate::value::Family;

/// A rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    /// Its parts; of one that is not understood, the name.
    pub parts: Vec<Result<Expr, String>>,
    /// What its counter has seen, if it has one.
    pub counters: Option<Counters>,
}

/// A chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedChain {
    /// Its name.
    pub name: String,
    /// Where it hangs; none for one that is only jumped to.
    pub base: Option<Base>,
    /// Whether packets that no rule decides about are dropped.
    pub drops: bool,
    /// Its rules.
    pub rules: Vec<ListedRule>,
}

/// A table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedTable {
    /// The family; none for one of `inet`, which has packets of both.
    pub family: Option<Family>,
    /// Its name.
    pub name: String,
    /// Its chains.
    pub chains: Vec<ListedChain>,
}
