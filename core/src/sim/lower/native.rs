//! Native nftables as the kernel has them, Millrace's own and those of others: tables and chains.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::super::program::{Base, Beside, Policy, SourceChain, SourceRule, SourceTable};
use super::super::rule::{Action, Step, Test, Way};
use super::registers::Around;
use super::words::words;
use super::{Left, beside, registers};
use crate::nft::listed::{Layer, ListedRule, ListedTable, Term, term};
use crate::nft::tables::NativeTables;
use crate::ruleset::Hook;
use crate::value::Family;

/// Tables that were read from the kernel. What is not understood of a rule is unknown to the walk.
pub fn of_native(tables: &NativeTables) -> Vec<SourceTable> {
    let one = |(name, chains): &(String, crate::nft::tables::NativeTable)| SourceTable {
        holder: super::nft::HOLDER.to_owned(),
        name: name.clone(),
        families: Family::ALL.to_vec(),
        chains: chains
            .iter()
            .map(|(name, chain)| SourceChain {
                name: name.clone(),
                base: chain.base.as_ref().and_then(|base| self::base(base, Policy::Accept)),
                rules: chain.rules.iter().map(rule).collect(),
            })
            .collect(),
    };
    tables.iter().map(one).collect()
}

fn rule(rule: &Result<Vec<crate::nft::expr::Expr>, String>) -> SourceRule {
    let steps = match rule {
        Ok(exprs) => {
            let mut sets = BTreeMap::new();
            let terms: Vec<Term> = exprs.iter().map(|expr| term(expr, &mut sets)).collect();
            let (asked, left) = (RefCell::default(), Left::new());
            let interfaces = &BTreeMap::new();
            let around = Around { sets: &sets, interfaces, asked: &asked, left: &left };
            registers::steps(&terms, None, around).remove(0)
        }
        Err(what) => vec![Test::Unknown(what.clone()).into(), Action::Unknown(what.clone()).into()],
    };
    let (vague, beside) = (rule.is_err(), Beside::default());
    SourceRule { text: words(&steps), reason: None, counters: None, vague, beside, steps }
}

/// Tables of whoever. A part of a rule that is not understood is unknown to the walk. `interfaces` are
/// the names of interfaces by their numbers. Tables of ARP are left out ([`super::hindering_arp`]).
pub fn of_listed(tables: &[ListedTable], interfaces: &BTreeMap<u32, String>) -> Vec<SourceTable> {
    let walked = tables.iter().filter(|table| table.layer != Layer::Arp);
    let left = Left::new();
    walked.map(|table| of_table(table, interfaces, &left)).collect()
}

pub(super) fn of_table(
    table: &ListedTable,
    interfaces: &BTreeMap<u32, String>,
    left: &Left,
) -> SourceTable {
    let asked = RefCell::default();
    let around = Around { sets: &table.sets, interfaces, asked: &asked, left };
    let family = match table.layer {
        Layer::Ip(family) => Some(family),
        Layer::Inet | Layer::Netdev | Layer::Arp => None,
    };
    let mut chains = Vec::new();
    for chain in &table.chains {
        let lowered = |rule: &ListedRule| {
            let paths = registers::steps(&rule.parts, family, around);
            let (counters, beside) = (rule.counters, beside::of_terms(&rule.parts));
            paths.into_iter().map(move |steps| SourceRule {
                text: words(&steps),
                reason: None,
                counters,
                // Names of what is not modelled leave out all that it has with it.
                vague: steps.iter().any(Step::is_unknown),
                beside: beside.clone(),
                steps,
            })
        };
        let rules = chain.rules.iter().flat_map(lowered).collect();
        let policy = if chain.drops { Policy::Drop } else { Policy::Accept };
        let base = chain.base.as_ref().filter(|_| !table.dormant);
        let name = chain.name.clone();
        if let Some((base, way)) = base.and_then(|b| Some((b, below(table.layer, b.hook)?))) {
            chains.push(at_device(way, base.priority, policy, &name, &chain.devices));
            chains.push(SourceChain { name, base: None, rules });
        } else {
            let base = base.and_then(|base| self::base(base, policy));
            chains.push(SourceChain { name, base, rules });
        }
    }
    SourceTable {
        holder: super::nft::HOLDER.to_owned(),
        name: table.name.clone(),
        families: family.map_or_else(|| Family::ALL.to_vec(), |family| vec![family]),
        chains,
    }
}

/// Where a chain is called from, above the interfaces.
fn base(base: &crate::nft::tables::Base, policy: Policy) -> Option<Base> {
    Some(Base {
        hook: Hook::ALL.into_iter().find(|hook| hook.number() == base.hook)?,
        kind: super::nft::kind(&base.kind),
        priority: base.priority,
        policy,
    })
}

/// Which way packets go at a hook of interfaces; none for another hook.
const fn below(layer: Layer, hook: u32) -> Option<Way> {
    match (layer, hook) {
        // NF_NETDEV_INGRESS, NF_INET_INGRESS; NF_NETDEV_EGRESS
        (Layer::Netdev, 0) | (Layer::Inet, 5) => Some(Way::In),
        (Layer::Netdev, 1) => Some(Way::Out),
        _ => None,
    }
}

/// A chain that hangs at interfaces: what comes in is there in front of all that PREROUTING does, and
/// what goes out behind all of POSTROUTING. It is called by one that asks for the interfaces.
pub(super) fn at_device(
    way: Way,
    priority: i32,
    policy: Policy,
    chain: &str,
    devices: &[String],
) -> SourceChain {
    /// More than any priority that is in use.
    const FAR: i32 = 1 << 30;
    let (hook, priority, word) = match way {
        Way::In => (Hook::Prerouting, priority.saturating_sub(FAR), "ingress"),
        Way::Out => (Hook::Postrouting, priority.saturating_add(FAR), "egress"),
    };
    let names: Option<Vec<_>> = devices.iter().map(|name| name.parse().ok()).collect();
    let unknown = || {
        let at = format!("at which interface the {word} chain {chain} hangs");
        Test::Unknown(format!("{at}, which nft does not print"))
    };
    let test = names
        .filter(|names| !names.is_empty())
        .map_or_else(unknown, |names| Test::Interface { way, negated: false, names: names.into() });
    let rule = |action: Action| {
        let steps: Vec<Step> = vec![test.clone().into(), action.into()];
        let vague = steps.iter().any(Step::is_unknown);
        let (text, beside) = (words(&steps), Beside::default());
        SourceRule { text, reason: None, counters: None, vague, beside, steps }
    };
    let mut rules = vec![rule(Action::Jump(chain.to_owned()))];
    if policy == Policy::Drop {
        rules.push(rule(Action::Drop));
    }
    let kind = super::super::program::Kind::Filter;
    let base = Some(Base { hook, kind, priority, policy: Policy::Accept });
    let at = if devices.is_empty() { "an interface".to_owned() } else { devices.join(",") };
    SourceChain { name: format!("{chain} ({word} of {at})"), base, rules }
}
