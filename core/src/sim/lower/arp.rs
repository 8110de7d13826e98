//! Rules that packets of ARP meet, which are not walked: whether they could discard some, so that a next hop is not
//! found.

use std::collections::BTreeMap;

use super::super::program::{Policy, SourceChain, SourceRule, SourceTable};
use super::super::rule::{Action, Step, Test};
use super::Left;
use super::native::of_table;
use crate::nft::listed::{Ending, Layer, ListedRule, ListedTable, Order, Source, Term};

/// The tables that could discard packets of ARP, by family and name.
pub fn hindering_arp(tables: &[ListedTable], interfaces: &BTreeMap<u32, String>) -> Vec<String> {
    let called = |table: &&ListedTable| {
        !table.dormant && table.chains.iter().any(|chain| chain.base.is_some())
    };
    let named = |table: &ListedTable| {
        let content = || of_table(table, interfaces, &Left::new());
        match table.layer {
            Layer::Arp => {
                let drops = table.chains.iter().any(|chain| chain.base.is_some() && chain.drops);
                let found = drops || content().chains.iter().any(|c| c.rules.iter().any(discards));
                found.then(|| format!("table arp {}", table.name))
            }
            Layer::Netdev => {
                let found = at_interfaces(&content())
                    || table.chains.iter().flat_map(|chain| &chain.rules).any(asks_for_others);
                found.then(|| format!("table netdev {}", table.name))
            }
            Layer::Ip(_) | Layer::Inet => None,
        }
    };
    tables.iter().filter(called).filter_map(named).collect()
}

/// Whether a rule is about packets of all protocols but one, or a few, as `meta protocol != ip` is.
fn asks_for_others(rule: &ListedRule) -> bool {
    /// `NFT_META_PROTOCOL`
    const PROTOCOL: u32 = 1;
    let loads = |part: &Term| matches!(part, Term::Load(_, Source::Meta(PROTOCOL)));
    let negates = |part: &Term| match part {
        Term::Compare(_, how, _) => *how != Order::Eq,
        Term::Lookup { negated, .. } | Term::Range { negated, .. } => *negated,
        _ => false,
    };
    let lets_past = |part: &Term| matches!(part, Term::Verdict(Ending::Accept | Ending::Return));
    let any = |is: &dyn Fn(&Term) -> bool| rule.parts.iter().any(is);
    any(&loads) && any(&negates) && !any(&lets_past)
}

/// Whether the chains of a table at interfaces could discard packets of ARP, which come there as all others do.
pub(super) fn at_interfaces(table: &SourceTable) -> bool {
    let could = |chain: &SourceChain| {
        let ends = chain.base.as_ref().is_some_and(|base| base.policy == Policy::Drop);
        ends || chain.rules.iter().any(|rule| !is_of_ip(rule) && discards(rule))
    };
    table.chains.iter().any(could)
}

/// Whether a rule is about packets of IP alone.
fn is_of_ip(rule: &SourceRule) -> bool {
    rule.steps.iter().any(|step| match step {
        Step::Test(test) => {
            !matches!(test, Test::Interface { .. } | Test::Mark { .. } | Test::Unknown(_))
        }
        Step::Do(_) => false,
    })
}

/// Whether a rule does anything else to a packet than to let it past.
fn discards(rule: &SourceRule) -> bool {
    rule.steps.iter().any(|step| match step {
        Step::Do(action) => !matches!(
            action,
            Action::Accept
                | Action::Return
                | Action::Jump(_)
                | Action::Goto(_)
                | Action::Mark(_)
                | Action::Note
                | Action::Effect(_)
        ),
        Step::Test(_) => false,
    })
}
