//! Rules in the order in which they are written, with where they go and why.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::native::NftRuleset;
use super::{Chain, ChainName, Masked, Rule, Table};
use crate::source::Source;
use crate::value::{Family, RouteTable};

/// Where in its chain a rule is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Placement {
    /// At the end (`-A`), behind the rules that are there by then.
    Append,
    /// At this position, counted from 1.
    Insert(u32),
}

/// Why a rule is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The setting that asks for the rule, or what it was read from.
    pub source: Source,
    /// What it is for, as a sentence without full stop.
    pub purpose: String,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.purpose, self.source)
    }
}

/// A rule with its place in a table and the reason it is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Emission {
    /// iptables' table that the rule goes into.
    pub table: Table,
    /// Rules of one chain stand in the order of their emissions.
    pub chain: Chain,
    /// At the end of its chain, or at a position counted from 1.
    pub placement: Placement,
    /// Matches in the order in which they are written, and the target.
    pub rule: Rule,
    /// What `dump` prints above the rule, and `explain` behind it.
    pub reason: Reason,
}

/// A chain of a table.
pub type TableChain = (Table, Chain);

/// What capture needs besides rules (kernel `Documentation/networking/tproxy.rst`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Which packets are delivered locally, whatever their address, for the families that are written.
    pub marked: Option<MarkedRoute>,
    /// Where the IPv6 address `::6` must be, the source of connections that a proxy passes on to its
    /// application; none without IPv6.
    pub passthrough_v6: Option<Home>,
    /// Families in which localhost is to be reached by each interface that is up, not by `lo` alone.
    pub localhost_everywhere: Vec<Family>,
}

/// Packets with a mark are looked up in a table whose only route delivers everything locally.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MarkedRoute {
    /// Packets that have it are routed by the table (`ip rule fwmark`).
    pub mark: Masked,
    /// Holds one route, which delivers everything locally.
    pub table: RouteTable,
    /// The priority of the rule that says so.
    pub priority: u32,
    /// Whether it is so for IPv6 as well.
    pub ipv6: bool,
    /// Whether what arrives is marked, to be taken by a transparent socket; otherwise it is answers of
    /// the pod.
    pub transparent: bool,
}

/// The priority of Millrace's policy routing rule for TPROXY: fixed, so that it is never added twice, and
/// its own, so that it is known again.
pub const TPROXY_PRIORITY: u32 = 32_133;

/// The interface that has an address of this pod alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// `lo`, as istio-iptables has it.
    Loopback,
    /// An interface that is there for it. Runtimes run the CNI plugin `loopback` beside the others, in
    /// any order, and it refuses a pod whose `lo` has another address than `127.0.0.0/8` and `::1`.
    Own,
}

/// All rules that a policy compiles to, in the order in which they are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ruleset {
    /// Rules of IPv4, which is always captured, in the order in which they are written.
    pub v4: Vec<Emission>,
    /// The IPv6 rules, unless the family is left alone.
    pub v6: Option<Vec<Emission>>,
    /// Chains of `nat` that are made in each of these families, whether there are rules for them or not.
    pub made: Vec<ChainName>,
    /// Rules, routes and addresses beside them.
    pub routing: Routing,
    /// A table of nftables beside them, which does what they can't be changed to do.
    pub guard: Option<NftRuleset>,
}

impl Ruleset {
    /// The rules of a family; none when it is left alone.
    pub fn family(&self, family: Family) -> &[Emission] {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => self.v6.as_deref().unwrap_or_default(),
        }
    }

    /// The families that are written.
    pub fn families(&self) -> impl Iterator<Item = Family> + '_ {
        Family::ALL.into_iter().filter(|f| *f == Family::V4 || self.v6.is_some())
    }

    /// The chains of a family with their rules in the order in which a packet meets them, after
    /// all appends and inserts.
    pub fn chains(&self, family: Family) -> BTreeMap<TableChain, Vec<&Emission>> {
        let made = self.made.iter().map(|name| (Table::Nat, Chain::User(name.clone())));
        let mut chains: BTreeMap<TableChain, Vec<&Emission>> = match family {
            Family::V6 if self.v6.is_none() => BTreeMap::new(),
            _ => made.map(|chain| (chain, Vec::new())).collect(),
        };
        for emission in self.family(family) {
            let rules = chains.entry((emission.table, emission.chain.clone())).or_default();
            match emission.placement {
                Placement::Append => rules.push(emission),
                Placement::Insert(position) => {
                    let index = usize::try_from(position).unwrap_or(usize::MAX).saturating_sub(1);
                    rules.insert(index.min(rules.len()), emission);
                }
            }
            if let super::Target::Jump(name) = &emission.rule.target {
                chains.entry((emission.table, Chain::User(name.clone()))).or_default();
            }
        }
        chains
    }
}
