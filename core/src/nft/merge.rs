//! Many rules into few: rules that do the same and ask for different values of the same thing
//! become one that looks the values up in a set. How many rules a packet meets then does not depend
//! on how many values there are.

use super::{NftEmission, NftRuleset, Statement, guarded};
use crate::ruleset::{Owner as Who, Reason};
use crate::value::{Cidr, InterfacePattern};

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

/// The rules of a policy as they are written: behind the table that guards them, where their layout has one
/// and it is wanted, and in few rules where one table holds them all.
pub fn finished(ruleset: NftRuleset, guards: bool) -> NftRuleset {
    let ruleset = if guards { guarded(ruleset) } else { ruleset };
    if ruleset.layout.one_table { merge(&ruleset) } else { ruleset }
}

/// Rules in a row that do the same can be met in any order.
fn in_few(rules: Vec<NftEmission>) -> Vec<NftEmission> {
    let mut done: Vec<NftEmission> = Vec::new();
    let mut run: Vec<Group> = Vec::new();
    for rule in rules {
        let same = run.first().is_some_and(|group| action(&group.rule.rule) == action(&rule.rule));
        if !same {
            done.extend(run.drain(..).map(Group::reported));
        }
        match run.iter_mut().find_map(|group| group.place(&rule.rule).map(|at| (group, at))) {
            Some((group, at)) => group.take(at, &rule),
            None => run.push(Group { rule, place: None, others: 0, other: None }),
        }
    }
    done.extend(run.into_iter().map(Group::reported));
    done
}

/// What a rule does: everything from its counter on.
fn action(rule: &[Statement]) -> &[Statement] {
    let at = rule.iter().position(|s| *s == Statement::Counter).unwrap_or(rule.len());
    rule.get(at..).unwrap_or_default()
}

/// Rules in a row that differ in one statement alone, as one rule.
struct Group {
    rule: NftEmission,
    /// The statement in which they differ, once there are two.
    place: Option<usize>,
    /// How many of them are there for another reason than the first, and the reason of one.
    others: usize,
    other: Option<Reason>,
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
        (only && can_join(a, b)).then_some(at)
    }

    fn take(&mut self, at: usize, rule: &NftEmission) {
        self.place = Some(at);
        if let (Some(own), Some(other)) = (self.rule.rule.get_mut(at), rule.rule.get(at)) {
            join(own, other);
        }
        if self.rule.reason != rule.reason && self.other.as_ref() != Some(&rule.reason) {
            self.others += 1;
            self.other.get_or_insert_with(|| rule.reason.clone());
        }
    }

    /// The one rule. Its reason is that of each: which of the values a packet had is not told by it.
    fn reported(self) -> NftEmission {
        let Self { mut rule, others, other, .. } = self;
        if let Some(Reason { source, purpose }) = other {
            let like = match others {
                1 => String::new(),
                more => format!("one of {more} reasons such as: "),
            };
            rule.reason =
                Reason { source, purpose: format!("{}, or {like}{purpose}", rule.reason) };
        }
        rule
    }
}

/// Whether there is a statement that is met when either is.
fn can_join(a: &Statement, b: &Statement) -> bool {
    use Statement::{Address, InInterface, OutInterface, Owner, Ports};
    match (a, b) {
        // The names of a group were looked at when they came to it.
        (InInterface(a), InInterface(b)) | (OutInterface(a), OutInterface(b)) => {
            a.first().is_some_and(is_whole) && b.iter().all(is_whole)
        }
        (
            Address { side, negated: false, cidrs: a },
            Address { side: other, negated: false, cidrs: b },
        ) => {
            let family = |cidrs: &[Cidr]| cidrs.first().map(|cidr| cidr.family());
            side == other && !a.is_empty() && family(a) == family(b)
        }
        (
            Ports { protocol, side, negated: false, .. },
            Ports { protocol: p, side: s, negated: false, .. },
        ) => protocol == p && side == s,
        (
            Owner { negated: false, owners: a, spelling },
            Owner { negated: false, owners: b, spelling: other },
        ) => {
            let users = |owners: &[Who]| owners.first().map(is_user);
            // A set of ids has no ranges: they are in the processor's order of bytes.
            let single = |owners: &[Who]| !owners.iter().any(|o| matches!(o, Who::Uids(_)));
            let single = single(a) && single(b);
            single && spelling == other && !a.is_empty() && users(a) == users(b)
        }
        _ => false,
    }
}

/// Have a statement be met also when another one is that can be joined to it.
fn join(own: &mut Statement, other: &Statement) {
    use Statement::{Address, InInterface, OutInterface, Owner, Ports};
    match (own, other) {
        (InInterface(own), InInterface(other)) | (OutInterface(own), OutInterface(other)) => {
            own.extend_from_slice(other);
        }
        (Address { cidrs: own, .. }, Address { cidrs: other, .. }) => own.extend_from_slice(other),
        (Ports { ports: own, .. }, Ports { ports: other, .. }) => own.extend_from_slice(other),
        (Owner { owners: own, .. }, Owner { owners: other, .. }) => own.extend_from_slice(other),
        _ => {}
    }
}

const fn is_user(owner: &Who) -> bool {
    matches!(owner, Who::Uid(_))
}

/// Whether it is a whole name; beginnings of names have no place in a set.
fn is_whole(name: &InterfacePattern) -> bool {
    !name.as_str().ends_with('+')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::to_nft;
    use crate::dialect::native;
    use crate::facts::HostFacts;

    /// The reason of the one rule for some outbound ports.
    fn reason(ports: &str) -> String {
        let flags = vec![("exclude-outbound-ports".to_owned(), ports.to_owned())];
        let raw = native::Raw::new(std::collections::BTreeMap::new(), flags);
        let policy = native::resolve(&raw, &HostFacts::default(), false).unwrap();
        let rules = merge(&to_nft(&policy, &native::NFT_LAYOUT, true));
        let of_ports = |rule: &&NftEmission| {
            rule.rule.iter().any(|s| matches!(s, Statement::Ports { ports, .. } if ports.iter().any(|p| p.to_string() == "5432")))
        };
        rules.emissions.iter().find(of_ports).unwrap().reason.to_string()
    }

    #[test]
    fn the_reason_of_many_is_not_that_of_one() {
        let said = "outbound port 5432 is not captured";
        assert_eq!(reason("5432"), format!("{said} (flag --exclude-outbound-ports)"));
        let two = reason("5432,6379");
        assert!(
            two.starts_with(said) && two.contains(", or outbound port 6379 is not captured"),
            "{two}"
        );
        let four = reason("5432,6379,9092,11211");
        assert!(
            four.starts_with(said) && four.contains(", or one of 3 reasons such as: "),
            "{four}"
        );
    }
}
