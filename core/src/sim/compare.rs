//! Two sets of rules side by side: what changes for traffic, then which rules.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;

use serde_json::{Value, json};
use similar::{Algorithm, DiffTag, capture_diff_slices};

use super::changes::{Change, all_changes};
use super::fate::Outcome;
use super::meaning::Meanings;
use super::namespace::Namespace;
use super::order::UNORDERED;
use super::packets::{End, Otherwise, otherwise, packets_text};
use super::partition::Class;
use super::program::{Base, Bound, ChainId, ChainInfo, Policy, Program, RuleId};
use super::report::{class_words, rule_json, why};
use super::walk::Answer;
use crate::value::Family;

/// What differs between two sets of rules, for connections, for other packets and in the rules.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Connections of which something else becomes.
    pub traffic: Vec<Class<Change>>,
    /// Connections of which it can't be told on either side: they may be treated differently.
    pub untold: Vec<Class<Change>>,
    /// Packets that start no such connection, with which something else is done where rules meet them.
    pub packets: Vec<Otherwise>,
    /// Such packets of which it can't be told on either side.
    pub untold_packets: Vec<Otherwise>,
    /// Rules that only one of them has, chain by chain in their order.
    pub rules: Vec<OneSided>,
}

impl Difference {
    /// Whether nothing is known to be treated differently, nor that it can't be told.
    pub fn is_none(&self) -> bool {
        let alike = self.traffic.is_empty() && self.packets.is_empty();
        alike && self.untold.is_empty() && self.untold_packets.is_empty()
    }
}

/// A rule that only one side has, or has in another place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OneSided {
    /// Only the first program has it; the id is the first's.
    Removed(RuleId),
    /// Only the second program has it; the id is the second's.
    Added(RuleId),
}

/// Compare rules, each in its namespace. Rules are the same if they mean the same in chains of the
/// same name, in the same order.
pub fn compare(before: (&Program, &Namespace), after: (&Program, &Namespace)) -> Difference {
    let rules = rules(before.0, after.0);
    let alike = rules.is_empty() && bases(before.0) == bases(after.0) && before.1 == after.1;
    let elsewhere = |program: &Program| asks_elsewhere(program) || program.is_obscured();
    let same = alike && !elsewhere(before.0) && !elsewhere(after.0);
    // What the same rules do is the same, even where it is not known; but not what they ask about
    // that is held elsewhere, nor what follows from an order that no list tells.
    if same && !before.0.has_unordered() {
        let (traffic, untold) = (Vec::new(), Vec::new());
        let (packets, untold_packets) = (Vec::new(), Vec::new());
        return Difference { traffic, untold, packets, untold_packets, rules };
    }
    let traffic = all_changes(before, after).into_iter();
    let (mut untold, traffic): (Vec<_>, Vec<_>) = traffic.partition(|class| {
        let Change { before, after } = &class.answer;
        [before, after].iter().all(|answer| matches!(answer.outcome, Outcome::Unknown { .. }))
    });
    let packets = otherwise(before, after, &ChangedChains::of((before.0, after.0), &rules));
    let (mut untold_packets, packets): (Vec<_>, Vec<_>) =
        packets.into_iter().partition(|packets| {
            let (before, after) = &packets.class.answer;
            [before, after].iter().all(|treatment| matches!(treatment.end, End::Unknown(_)))
        });
    if same {
        let ordered = |outcome: &Outcome| match outcome {
            Outcome::Unknown { what } => !what.ends_with(UNORDERED),
            _ => true,
        };
        untold.retain(|class| !ordered(&class.answer.before.outcome));
        untold_packets.retain(|packets| match &packets.class.answer.0.end {
            End::Unknown(what) => what.ends_with(UNORDERED),
            _ => false,
        });
    }
    Difference { traffic, untold, packets, untold_packets, rules }
}

/// The places of chains whose rules are not the same.
pub(super) struct ChangedChains<'p>(HashSet<ChainKey<'p>>);

impl<'p> ChangedChains<'p> {
    fn of((before, after): (&'p Program, &'p Program), rules: &[OneSided]) -> Self {
        let places = rules.iter().map(|one| {
            let (program, id) = match one {
                OneSided::Removed(id) => (before, id),
                OneSided::Added(id) => (after, id),
            };
            chain_key(program.chain(program.rule(*id).chain))
        });
        Self(places.collect())
    }

    /// Whether chains that the kernel calls are the same on both sides, with all that they jump to, and ask
    /// for nothing that is held elsewhere.
    pub(super) fn same(&self, sides: [(&Program, &[ChainId]); 2]) -> bool {
        let [one, other] = sides.map(|(program, chains)| {
            let infos = chains.iter().map(|chain| program.chain(*chain));
            let words = |info: &ChainInfo| {
                (info.families.clone(), info.table.clone(), info.name.clone(), info.base.clone())
            };
            infos.map(words).collect::<Vec<_>>()
        });
        one == other && sides.iter().all(|(program, chains)| self.untouched(program, chains))
    }

    fn untouched(&self, program: &Program, chains: &[ChainId]) -> bool {
        let mut left = chains.to_vec();
        let mut seen = HashSet::new();
        while let Some(chain) = left.pop() {
            if !seen.insert(chain) {
                continue;
            }
            let info = program.chain(chain);
            let elsewhere = info.rules.iter().any(|id| program.rule(*id).beside.elsewhere);
            if elsewhere || self.0.contains(&chain_key(info)) {
                return false;
            }
            for id in &info.rules {
                left.extend(program.steps(*id).iter().filter_map(|step| match step {
                    Bound::Jump { to, .. } => Some(*to),
                    _ => None,
                }));
            }
        }
        true
    }
}

/// Whether rules ask about what is held in none: two sets of the same name can have other members.
fn asks_elsewhere(program: &Program) -> bool {
    let mut rules = program.chains().flat_map(|(_, chain)| &chain.rules);
    rules.any(|id| program.rule(*id).beside.elsewhere)
}

/// What tells a chain from others.
type ChainKey<'p> = (&'p [Family], &'p str, &'p str);

fn chain_key(chain: &ChainInfo) -> ChainKey<'_> {
    (&chain.families, &chain.table, &chain.name)
}

/// Where the kernel calls chains from that do anything, those of one hook and priority as they are listed:
/// it calls the one before the other.
fn bases(program: &Program) -> Vec<(ChainKey<'_>, &Base)> {
    let based = |(_, chain)| Some((chain_key(chain), chain.base.as_ref()?, chain.rules.is_empty()));
    let mut bases: Vec<_> = program.chains().filter_map(based).collect();
    bases.retain(|(_, base, empty)| base.policy != Policy::Accept || !empty);
    bases.sort_by_key(|(_, base, _)| (base.hook, base.priority));
    bases.into_iter().map(|(chain_key, base, _)| (chain_key, base)).collect()
}

/// Rules by place. Where both iptables have the same chain, it is one place.
fn places(program: &Program) -> Vec<(ChainKey<'_>, Vec<RuleId>)> {
    let mut places: Vec<(ChainKey<'_>, Vec<RuleId>)> = Vec::new();
    let mut known: HashMap<ChainKey<'_>, usize> = HashMap::new();
    for (_, chain) in program.chains() {
        let at = *known.entry(chain_key(chain)).or_insert(places.len());
        match places.get_mut(at) {
            Some((_, rules)) => rules.extend(&chain.rules),
            None => places.push((chain_key(chain), chain.rules.clone())),
        }
    }
    places
}

fn rules(before: &Program, after: &Program) -> Vec<OneSided> {
    let mut later = places(after);
    let known: HashMap<ChainKey<'_>, usize> =
        later.iter().enumerate().map(|(at, (key, _))| (*key, at)).collect();
    let (mut found, mut meanings) = (Vec::new(), Meanings::default());
    for (chain_key, rules) in places(before) {
        let others = known.get(&chain_key).map(|at| std::mem::take(&mut later[*at].1));
        let others = others.unwrap_or_default();
        between((before, &rules), (after, &others), &mut meanings, &mut found);
    }
    // Of those that both have nothing is left.
    for (_, rules) in later {
        between((before, &[]), (after, &rules), &mut meanings, &mut found);
    }
    found
}

/// What makes one chain of another.
fn between(
    before: (&Program, &[RuleId]),
    after: (&Program, &[RuleId]),
    meanings: &mut Meanings,
    found: &mut Vec<OneSided>,
) {
    let (old, new) = (meanings.of(before, '-'), meanings.of(after, '+'));
    let (mut removed, mut added) = (before.1.iter(), after.1.iter());
    // Up to each pair that is the same, what only one has comes first.
    let (mut from, mut to) = (0, 0);
    for (at, other) in same(&old, &new).into_iter().chain([(old.len(), new.len())]) {
        found.extend(removed.by_ref().take(at - from).map(|id| OneSided::Removed(*id)));
        found.extend(added.by_ref().take(other - to).map(|id| OneSided::Added(*id)));
        removed.next();
        added.next();
        (from, to) = (at + 1, other + 1);
    }
}

/// The most pairs of rules that are tried one by one, where more of them are in common than not.
const FEW: usize = 1_000_000;
const MOST: usize = 400_000_000;

/// Which are the same in both, by their places, in order.
fn same(old: &[String], new: &[String]) -> Vec<(usize, usize)> {
    if old.len().saturating_mul(new.len()) <= FEW {
        return equal(Algorithm::Myers, old, new);
    }
    // What only one has is no part of it.
    let common = |all: &[String], others: &[String]| -> Vec<usize> {
        let others: HashSet<&String> = others.iter().collect();
        (0..all.len()).filter(|at| others.contains(&all[*at])).collect()
    };
    let (old_places, new_places) = (common(old, new), common(new, old));
    let [old, new] = [(old, &old_places), (new, &new_places)]
        .map(|(all, places)| places.iter().map(|at| all[*at].as_str()).collect::<Vec<&str>>());
    let own = |all: &[&str]| all.iter().collect::<HashSet<_>>().len() * 2 > all.len();
    // The same rules over and over, in another order, would take for ever.
    if !own(&old) && old.len().saturating_mul(new.len()) > MOST {
        return Vec::new();
    }
    let pairs = equal(Algorithm::Patience, &old, &new).into_iter();
    pairs.map(|(at, other)| (old_places[at], new_places[other])).collect()
}

fn equal<T: Hash + Ord>(by: Algorithm, old: &[T], new: &[T]) -> Vec<(usize, usize)> {
    let steps = capture_diff_slices(by, old, new);
    let steps = steps.into_iter().map(|step| step.as_tag_tuple());
    let equal = steps.filter(|(tag, ..)| *tag == DiffTag::Equal);
    equal.flat_map(|(_, old, new)| old.zip(new)).collect()
}

/// What `diff` prints: connections, then other packets, then rules.
pub fn difference_text(before: &Program, after: &Program, found: &Difference) -> String {
    let kinds = match found.traffic.len() {
        1 => "traffic: 1 kind of connections is treated differently\n".to_owned(),
        count => format!("traffic: {count} kinds of connections are treated differently\n"),
    };
    let mut text = String::new();
    text.push_str(match (found.traffic.is_empty(), found.untold.is_empty()) {
        (true, true) => "traffic: no connection is treated differently\n",
        (true, false) => "traffic: no connection is known to be treated differently\n",
        (false, _) => &kinds,
    });
    for class in &found.traffic {
        let words = class_words(class);
        let Change { before: first, after: second } = &class.answer;
        text.push_str(&format!("  {} {}, to {}\n", class.family(), words.who, words.to));
        if first.outcome == second.outcome {
            text.push_str(&format!("    {} either way, but not alike\n", first.outcome));
            for (one, other) in first.effects.differences(&second.effects) {
                text.push_str(&format!("    {one} -> {other}\n"));
            }
        } else {
            text.push_str(&format!("    {} -> {}\n", first.outcome, second.outcome));
        }
        text.push_str(&format!("    for example {}\n", class.example));
        if first.outcome == second.outcome {
            continue;
        }
        for (sign, program, answer) in [('-', before, first), ('+', after, second)] {
            text.push_str(&format!("    {sign} {}\n", decided(program, answer)));
        }
    }
    text.push_str(&packets_text(
        "packets: rules treat these differently, at the hooks where they meet them",
        &found.packets,
    ));
    text.push_str(&untold_text(before, after, &found.untold));
    text.push_str(&packets_text(
        "can't be told: what rules do with these packets, at the hooks where they meet them",
        &found.untold_packets,
    ));
    if found.rules.is_empty() {
        text.push_str("rules: the same\n");
        return text;
    }
    text.push_str("rules:\n");
    for one in &found.rules {
        let (sign, program, id) = match one {
            OneSided::Removed(id) => ('-', before, id),
            OneSided::Added(id) => ('+', after, id),
        };
        let chain = program.chain(program.rule(*id).chain);
        let families: Vec<String> = chain.families.iter().map(ToString::to_string).collect();
        text.push_str(&format!("{sign} {} {}\n", families.join("+"), program.line(*id)));
    }
    text
}

/// Connections of which neither side tells what becomes.
fn untold_text(before: &Program, after: &Program, untold: &[Class<Change>]) -> String {
    let mut text = String::new();
    for class in untold {
        let words = class_words(class);
        let Change { before: first, after: second } = &class.answer;
        let (one, other) = (first.outcome.to_string(), second.outcome.to_string());
        let both = if one == other { one } else { format!("{one}; {other}") };
        text.push_str(&format!("{both}: {} {}, to {}\n", class.family(), words.who, words.to));
        text.push_str(&format!("    for example {}\n", class.example));
        for (sign, program, answer) in [('-', before, first), ('+', after, second)] {
            text.push_str(&format!("    {sign} {}\n", decided(program, answer)));
        }
    }
    text
}

fn decided(program: &Program, answer: &Answer) -> String {
    answer.decided.last().map_or_else(
        || "no rule".to_owned(),
        |id| format!("{}{}", program.line(*id), why(program, *id).replace("\n   ", "; ")),
    )
}

/// A difference as an object of `traffic`, `packets` and `rules`.
pub fn difference_json(before: &Program, after: &Program, found: &Difference) -> Value {
    let side = |program: &Program, answer: &Answer| {
        let decided: Vec<Value> = answer.decided.iter().map(|id| rule_json(program, *id)).collect();
        json!({ "fate": answer.fate, "outcome": answer.outcome, "decidedBy": decided })
    };
    let of_class = |class: &Class<Change>| {
        let words = class_words(class);
        json!({
            "family": class.family(),
            "who": words.who,
            "to": words.to,
            "example": class.example,
            "before": side(before, &class.answer.before),
            "after": side(after, &class.answer.after),
            "differences": class.answer.before.effects.differences(&class.answer.after.effects),
        })
    };
    let of_packets = |packets: &Otherwise| {
        json!({
            "family": packets.class.family(),
            "hook": packets.hook.as_str(),
            "which": packets.which,
            "input": packets.input,
            "output": packets.output,
            "packets": packets.words(),
            "before": packets.class.answer.0.end.to_string(),
            "after": packets.class.answer.1.end.to_string(),
            "differences": packets.class.answer.0.effects.differences(&packets.class.answer.1.effects),
        })
    };
    let classes = |all: &[Class<Change>]| all.iter().map(of_class).collect::<Vec<Value>>();
    let packets = |all: &[Otherwise]| all.iter().map(of_packets).collect::<Vec<Value>>();
    let rules = found.rules.iter().map(|one| match one {
        OneSided::Removed(id) => json!({ "change": "removed", "rule": rule_json(before, *id) }),
        OneSided::Added(id) => json!({ "change": "added", "rule": rule_json(after, *id) }),
    });
    json!({
        "traffic": classes(&found.traffic),
        "packets": packets(&found.packets),
        "untold": { "traffic": classes(&found.untold), "packets": packets(&found.untold_packets) },
        "rules": rules.collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(of: impl Iterator<Item = usize>) -> Vec<String> {
        of.map(|at| at.to_string()).collect()
    }

    #[test]
    fn many_rules_are_compared_by_what_they_have_in_common() {
        let old = texts(0..5000);
        assert!(same(&old, &texts(10_000..15_000)).is_empty());
        let every = same(&old, &texts((0..5000).filter(|at| at % 2 == 0)));
        assert_eq!(every, (0..2500).map(|at| (2 * at, at)).collect::<Vec<_>>());
        // One that has moved.
        let moved = same(&old, &texts((1..5000).chain([0])));
        assert_eq!(moved, (1..5000).map(|at| (at, at - 1)).collect::<Vec<_>>());
        assert_eq!(same(&old, &texts((0..5000).rev())).len(), 1);
    }

    #[test]
    fn few_and_many_are_compared_alike() {
        for count in [10, 3000] {
            let old = texts(0..count);
            let new = texts((0..count).map(|at| if at % 5 == 3 { at + count } else { at }));
            let wanted: Vec<_> = (0..count).filter(|at| at % 5 != 3).map(|at| (at, at)).collect();
            assert_eq!(same(&old, &new), wanted, "{count}");
        }
    }
}
