//! Many rules into few: rules that do the same and ask for different values of the same thing
//! become one that looks the values up in a set. How many rules a packet meets then does not depend
//! on how many values there are.

use super::{NftEmission, NftRuleset, Statement};
use crate::ruleset::Owner as Who;
use crate::value::InterfacePattern;

/// The same ruleset in fewer rules. Its rules are all appended, in their final order.
#[must_use]
pub fn merge(ruleset: &NftRuleset) -> NftRuleset {
    let mut emissions = Vec::new();
    for table in ruleset.tables() {
        for chain in ruleset.chains(table) {
            let rules: Vec<NftEmission> = chain
                .rules
                .iter()
                .map(|rule| NftEmission { before: None, ..(*rule).clone() })
                .collect();
            emissions.extend(in_few(rules));
        }
    }
    NftRuleset { emissions, ..ruleset.clone() }
}

/// Rules in a row that do the same can be met in any order.
fn in_few(rules: Vec<NftEmission>) -> Vec<NftEmission> {
    let mut done: Vec<NftEmission> = Vec::new();
    let mut run: Vec<Group> = Vec::new();
    for rule in rules {
        let same = run.first().is_some_and(|group| action(&group.rule.rule) == action(&rule.rule));
        if !same {
            done.extend(run.drain(..).map(|group| group.rule));
        }
        match run.iter_mut().find_map(|group| group.place(&rule.rule).map(|at| (group, at))) {
            Some((group, at)) => group.take(at, &rule.rule),
            None => run.push(Group { rule, place: None }),
        }
    }
    done.extend(run.into_iter().map(|group| group.rule));
    done
}

/// What a rule does: everything from its counter on.
fn action(rule: &[Statement]) -> &[Statement] {
    let at = rule.iter().position(|s| *s == Statement::Counter).unwrap_or(rule.len());
    rule.get(at..).unwrap_or_default()
}

/// Rules that became one.
struct Group {
    rule: NftEmission,
    /// The statement in which they differ, once there are two.
    place: Option<usize>,
}

impl Group {
    /// The statement in which a rule differs from these, if that is the only one and values can be
    /// put together there.
    fn place(&self, rule: &[Statement]) -> Option<usize> {
        let own = &self.rule.rule;
        if own.len() != rule.len() {
            return None;
        }
        let mut differs = own.iter().zip(rule).enumerate().filter(|(_, (a, b))| a != b);
        let (at, (a, b)) = differs.next()?;
        let only = differs.next().is_none() && self.place.is_none_or(|place| place == at);
        (only && joined(a, b).is_some()).then_some(at)
    }

    fn take(&mut self, at: usize, rule: &[Statement]) {
        self.place = Some(at);
        if let (Some(own), Some(other)) = (self.rule.rule.get_mut(at), rule.get(at))
            && let Some(both) = joined(own, other)
        {
            *own = both;
        }
    }
}

/// A statement that is met when either is.
fn joined(a: &Statement, b: &Statement) -> Option<Statement> {
    use Statement::{Address, InInterface, OutInterface, Owner, Ports};
    Some(match (a, b) {
        (InInterface(a), InInterface(b)) => InInterface(names(a, b)?),
        (OutInterface(a), OutInterface(b)) => OutInterface(names(a, b)?),
        (
            Address { side, negated: false, cidrs: a },
            Address { side: other, negated: false, cidrs: b },
        ) if side == other && a.first()?.family() == b.first()?.family() => {
            Address { side: *side, negated: false, cidrs: both(a, b) }
        }
        (
            Ports { protocol, side, negated: false, ports: a },
            Ports { protocol: p, side: s, negated: false, ports: b },
        ) if protocol == p && side == s => {
            Ports { protocol: *protocol, side: *side, negated: false, ports: both(a, b) }
        }
        (
            Owner { negated: false, owners: a, spelling },
            Owner { negated: false, owners: b, spelling: other },
        ) if spelling == other && is_user(a.first()?) == is_user(b.first()?) => {
            Owner { negated: false, owners: both(a, b), spelling: *spelling }
        }
        _ => return None,
    })
}

const fn is_user(owner: &Who) -> bool {
    matches!(owner, Who::Uid(_))
}

fn both<T: Clone>(a: &[T], b: &[T]) -> Vec<T> {
    [a, b].concat()
}

/// Whole names; beginnings of names have no place in a set.
fn names(a: &[InterfacePattern], b: &[InterfacePattern]) -> Option<Vec<InterfacePattern>> {
    let whole = |name: &InterfacePattern| !name.as_str().ends_with('+');
    (a.iter().all(whole) && b.iter().all(whole)).then(|| both(a, b))
}
