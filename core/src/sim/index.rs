//! Rules in a row that ask for one thing, looked up by it: ten thousand rules that each name an
//! address cost a packet as much as one.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::iter;
use std::sync::Arc;

use super::program::{Bound, RuleId, family_index};
use super::ranges::Ranges;
use super::rule::{Field, Test};
use crate::value::Family;

/// The fewest rules that are worth it, and the most in one run; of rules that overlap much fewer, since
/// what overlaps is listed for each of its values.
const FEWEST: usize = 8;
const MOST: usize = 1 << 16;
const OVERLAPPING: usize = 1024;
/// The most places that rules have in the lists of a run.
const MOST_LISTED: usize = 1 << 20;

/// What rules can be looked up by.
const FIELDS: [Field; 4] = [Field::Destination, Field::Source, Field::Port, Field::SourcePort];

/// Rules in a row that do nothing unless a field has one of their values.
#[derive(Clone, Debug)]
pub(super) struct Run {
    /// The place of the first one in its chain.
    pub(super) first: usize,
    /// The place behind the last one.
    pub(super) end: usize,
    pub(super) field: Field,
    /// What all of them ask for as well.
    pub(super) common: Vec<Test>,
    /// For each of its rules, which of them are alike: all but the values of the field is the same.
    pub(super) kinds: Vec<usize>,
    by_family: [Arc<Index>; 2],
}

impl Run {
    /// Its index for packets of a family.
    pub(super) const fn index(&self, family: Family) -> &Arc<Index> {
        &self.by_family[family_index(family)]
    }
}

/// The rules of a run by the values of their field.
#[derive(Debug, PartialEq, Eq)]
pub struct Index {
    /// Where values begin for which other rules are to be asked than for those before, from 0 on,
    /// and the place of these rules in the list.
    starts: Vec<(u128, usize)>,
    /// Places of rules in their chain; first what the first rules are in, in the end nothing.
    rules: Vec<Vec<usize>>,
    /// For each list of rules its number among those that do the same, rule by rule.
    alike: Vec<usize>,
}

impl Index {
    /// The index of rules that each have a set of values. None if the sets overlap so much that
    /// their index would be far larger than they are.
    fn of(sets: &[(usize, &Ranges)], kind: &dyn Fn(usize) -> usize) -> Option<Self> {
        let mut edges: Vec<(u128, bool, usize)> = Vec::new();
        for (at, set) in sets {
            for (first, last) in set.iter() {
                edges.push((first, true, *at));
                edges.extend(last.checked_add(1).map(|next| (next, false, *at)));
            }
        }
        edges.sort_unstable();
        let mut known: HashMap<Vec<usize>, usize> = HashMap::new();
        let mut number = |rules: Vec<usize>| {
            let next = known.len();
            *known.entry(rules).or_insert(next)
        };
        let mut starts = vec![(0, number(Vec::new()))];
        let (mut open, mut listed) = (BTreeSet::new(), 0);
        let mut edges = edges.into_iter().peekable();
        while let Some((start, opens, at)) = edges.next() {
            if opens {
                open.insert(at);
            } else {
                open.remove(&at);
            }
            if edges.peek().is_some_and(|(next, ..)| *next == start) {
                continue;
            }
            listed += open.len();
            if listed > MOST_LISTED {
                return None;
            }
            let rules = number(open.iter().copied().collect());
            if start == 0 {
                starts.clear();
            }
            starts.push((start, rules));
        }
        let mut rules: Vec<(Vec<usize>, usize)> = known.into_iter().collect();
        rules.sort_by_key(|(rules, _)| (rules.is_empty(), rules.clone()));
        let mut places = vec![0; rules.len()];
        for (place, (_, number)) in rules.iter().enumerate() {
            places[*number] = place;
        }
        let starts = starts.into_iter().map(|(start, number)| (start, places[number])).collect();
        let rules: Vec<Vec<usize>> = rules.into_iter().map(|(rules, _)| rules).collect();
        let mut known: HashMap<Vec<usize>, usize> = HashMap::new();
        let alike = rules.iter().map(|rules| {
            let next = known.len();
            *known.entry(rules.iter().map(|at| kind(*at)).collect()).or_insert(next)
        });
        let alike = alike.collect();
        Some(Self { starts, rules, alike })
    }

    /// The rules that may do something to a packet with this value.
    pub(super) fn rules(&self, value: u128) -> &[usize] {
        let after = self.starts.partition_point(|(start, _)| *start <= value);
        let at = after.checked_sub(1).and_then(|at| self.starts.get(at));
        at.and_then(|(_, place)| self.rules.get(*place)).map_or(&[], Vec::as_slice)
    }

    /// Whether rules that are alike are for all of these values.
    pub(super) fn treats_alike(&self, values: &Ranges) -> bool {
        let mut pieces = self.pieces(values).map(|(place, ..)| self.alike[place]);
        let Some(first) = pieces.next() else { return true };
        pieces.all(|alike| alike == first)
    }

    /// These values, in parts that rules which are alike are for.
    pub(super) fn cut(&self, values: &Ranges) -> Vec<Ranges> {
        let mut parts: Vec<Vec<(u128, u128)>> = vec![Vec::new(); self.rules.len()];
        for (place, first, last) in self.pieces(values) {
            let part = &mut parts[self.alike[place]];
            match part.last_mut() {
                Some((_, end)) if *end + 1 == first => *end = last,
                _ => part.push((first, last)),
            }
        }
        parts.into_iter().filter(|part| !part.is_empty()).map(Ranges::in_order).collect()
    }

    /// Ranges of values, each with the place of its rules.
    fn pieces<'a>(&'a self, values: &'a Ranges) -> impl Iterator<Item = (usize, u128, u128)> + 'a {
        /// So many values are looked through before one is looked up.
        const NEAR: usize = 8;
        let mut ranges = values.iter();
        let mut left = ranges.next();
        let mut at = 0;
        iter::from_fn(move || {
            let (first, last) = left?;
            let is_behind = |at: usize| self.starts.get(at).is_some_and(|(next, _)| *next <= first);
            let near = (0..NEAR).take_while(|more| is_behind(at + more + 1)).count();
            at += near;
            if near == NEAR {
                at += self.starts[at + 1..].partition_point(|(next, _)| *next <= first);
            }
            let (_, place) = self.starts.get(at)?;
            let end = self.starts.get(at + 1).map_or(u128::MAX, |(next, _)| next - 1);
            left = if end < last { Some((end + 1, last)) } else { ranges.next() };
            Some((*place, first, last.min(end)))
        })
    }
}

/// The runs of a chain.
pub(super) fn runs<'r>(rules: &'r [(RuleId, Vec<Bound>)]) -> Vec<Run> {
    let mut runs = Vec::new();
    if rules.len() < FEWEST {
        return runs;
    }
    let by_field = |(_, steps): &'r (RuleId, Vec<Bound>)| -> [Option<Asked<'r>>; FIELDS.len()] {
        FIELDS.map(|field| asked_first(steps, field))
    };
    let asked: Vec<_> = rules.iter().map(by_field).collect();
    let mut first = 0;
    while first < rules.len() {
        let window = &asked[first..rules.len().min(first + MOST)];
        // What tells most of the rules apart.
        let best = (0..FIELDS.len())
            .filter_map(|field| {
                let sets = window.iter().map_while(|sets| sets[field]);
                let length = sets.clone().count();
                // To tell sets apart takes time where they are long.
                (length >= FEWEST).then(|| (sets.collect::<HashSet<_>>().len(), length, field))
            })
            .max_by_key(|(distinct, length, field)| (*distinct, *length, usize::MAX - field));
        let Some((_, length, field)) = best else {
            first += 1;
            continue;
        };
        let mut end = first + length;
        let kinds = kinds(&rules[first..end], FIELDS[field]);
        let index = |end: usize, family| {
            let sets = asked[first..end].iter().enumerate().filter_map(|(at, sets)| {
                let (set, of) = sets[field]?;
                of.is_none_or(|of| of == family).then_some((first + at, set))
            });
            Index::of(&sets.collect::<Vec<_>>(), &|at| kinds[at - first]).map(Arc::new)
        };
        let both = |end| Some([index(end, Family::V4)?, index(end, Family::V6)?]);
        let mut by_family = both(end);
        while by_family.is_none() && end - first > OVERLAPPING {
            end = first + (end - first).div_ceil(2).max(OVERLAPPING);
            by_family = both(end);
        }
        if let Some(by_family) = by_family {
            let common = common(&rules[first..end]);
            let field = FIELDS[field];
            let kinds = kinds[..end - first].to_vec();
            runs.push(Run { first, end, field, common, kinds, by_family });
        }
        first = end;
    }
    runs
}

/// For each rule the number of its kind: all that it is beside the values of a field.
fn kinds<'r>(rules: &'r [(RuleId, Vec<Bound>)], field: Field) -> Vec<usize> {
    let mut known: HashMap<Vec<&'r Bound>, usize> = HashMap::new();
    let kind = |(_, steps): &'r (RuleId, Vec<Bound>)| {
        let looked_up = steps.iter().position(|step| is_looked_up(step, field));
        let rest = steps.iter().enumerate().filter(|(at, _)| Some(*at) != looked_up);
        let next = known.len();
        *known.entry(rest.map(|(_, step)| step).collect()).or_insert(next)
    };
    rules.iter().map(kind).collect()
}

/// Whether a step asks what rules are looked up by.
pub(super) fn is_looked_up(step: &Bound, field: Field) -> bool {
    matches!(step, Bound::Test(Test::Is { field: asked, negated: false, .. }) if *asked == field)
}

/// Values, with the family whose addresses they are.
type Asked<'r> = (&'r Ranges, Option<Family>);

/// The values that a field must have before a rule does anything.
fn asked_first(steps: &[Bound], field: Field) -> Option<Asked<'_>> {
    tests(steps).find_map(|test| match test {
        Test::Is { field: asked, negated: false, set, family, .. } if *asked == field => {
            Some((set, *family))
        }
        _ => None,
    })
}

/// What a rule asks before it does anything.
fn tests(steps: &[Bound]) -> impl Iterator<Item = &Test> {
    steps.iter().map_while(|step| match step {
        Bound::Test(test) => Some(test),
        Bound::Do(_) | Bound::Jump { .. } => None,
    })
}

/// What all of the rules ask for before they do anything.
fn common(rules: &[(RuleId, Vec<Bound>)]) -> Vec<Test> {
    let Some(((_, steps), others)) = rules.split_first() else { return Vec::new() };
    let mut common: Vec<&Test> = tests(steps).collect();
    for (_, steps) in others {
        common.retain(|test| tests(steps).any(|other| other == *test));
    }
    common.into_iter().cloned().collect()
}
