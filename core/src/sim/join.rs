//! Classes of connections that end alike, put together.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};

use super::partition::Class;
use super::question::Question;
use super::ranges::Ranges;
use super::rule::Field;
use super::shape::Shape;
use crate::ruleset::Masked;

/// A class with a number for how it ends: the same number is the same end, by the same rules.
#[derive(Debug)]
pub(super) struct Part<A> {
    pub(super) class: Class<A>,
    pub(super) end: usize,
}

/// Long sets, of which the same ones are kept once: to find that two are the same then takes no
/// time.
#[derive(Debug, Default)]
pub(super) struct Pool(HashSet<Ranges>);

impl Pool {
    /// The one that is kept of this set.
    pub(super) fn shared(&mut self, set: Ranges) -> Ranges {
        const LONG: usize = 64;
        if set.iter().len() < LONG {
            return set;
        }
        if let Some(known) = self.0.get(&set) {
            return known.clone();
        }
        self.0.insert(set.clone());
        set
    }
}

/// Put classes together that end alike and differ in one thing only.
pub(super) fn merge<A>(mut parts: Vec<Part<A>>, pool: &mut Pool) -> Vec<Class<A>> {
    loop {
        let before = parts.len();
        parts = Field::ALL.into_iter().fold(parts, |parts, field| by_field(parts, field, pool));
        parts = by_marks(parts);
        if parts.len() == before {
            let mut classes: Vec<Class<A>> = parts.into_iter().map(|part| part.class).collect();
            classes.sort_by(|a, b| a.shape.cmp(&b.shape));
            return classes;
        }
    }
}

/// Join classes that differ in the values of one field only.
pub(super) fn by_field<A>(parts: Vec<Part<A>>, field: Field, pool: &mut Pool) -> Vec<Part<A>> {
    if parts.len() < 2 {
        return parts;
    }
    let mut places: HashMap<(Shape, usize), usize> = HashMap::with_capacity(parts.len());
    let mut joined: Vec<Joined<A>> = Vec::with_capacity(parts.len());
    for Part { class: Class { mut shape, example, answer }, end } in parts {
        let values = shape.values_mut(field).map(std::mem::take);
        let unbound = field == Field::Source && std::mem::take(&mut shape.unbound);
        let at = *places.entry((shape, end)).or_insert(joined.len());
        if at == joined.len() {
            joined.push(Joined { example, answer, unbound: false, values: Vec::new() });
        }
        joined[at].unbound |= unbound;
        joined[at].values.extend(values);
    }
    let mut places: Vec<((Shape, usize), usize)> = places.into_iter().collect();
    places.sort_unstable_by_key(|(_, at)| *at);
    let whole = |(((mut shape, end), _), mut of): (((Shape, usize), usize), Joined<A>)| {
        shape.unbound |= of.unbound;
        if let Some(values) = shape.values_mut(field) {
            *values = match of.values.len() {
                0 | 1 => of.values.pop().unwrap_or_default(),
                _ => pool.shared(of.values.iter().flat_map(Ranges::iter).collect()),
            };
        }
        Part { class: Class { shape, example: of.example, answer: of.answer }, end }
    };
    places.into_iter().zip(joined).map(whole).collect()
}

/// Classes that become one, without what they have in common.
struct Joined<A> {
    example: Question,
    answer: A,
    unbound: bool,
    values: Vec<Ranges>,
}

/// Join classes of which one has a mark that the other has not, and that are the same otherwise, for
/// each mark that is asked for, in order. A class is looked at for its own marks alone: rules can ask
/// for thousands.
fn by_marks<A>(parts: Vec<Part<A>>) -> Vec<Part<A>> {
    let mut having: BTreeMap<Masked, Vec<usize>> = BTreeMap::new();
    for (at, part) in parts.iter().enumerate() {
        for mark in part.class.shape.marks.keys() {
            having.entry(*mark).or_default().push(at);
        }
    }
    let mut left: Vec<Option<Part<A>>> = parts.into_iter().map(Some).collect();
    for (mark, having) in having {
        join(&mut left, having, mark);
    }
    left.into_iter().flatten().collect()
}

/// The same for one mark.
pub(super) fn by_mark<A>(parts: Vec<Part<A>>, mark: Masked) -> Vec<Part<A>> {
    let mut left: Vec<Option<Part<A>>> = parts.into_iter().map(Some).collect();
    let all = (0..left.len()).collect();
    join(&mut left, all, mark);
    left.into_iter().flatten().collect()
}

fn join<A>(parts: &mut [Option<Part<A>>], among: Vec<usize>, mark: Masked) {
    let hasher = RandomState::new();
    // Those that are left without their mark, by their hash: the mark is put back into what finds no other.
    let mut single: HashMap<u64, Vec<(usize, bool)>> = HashMap::new();
    for at in among {
        let Some(mut part) = parts[at].take() else { continue };
        let Some(holds) = part.class.shape.marks.remove(&mark) else {
            parts[at] = Some(part);
            continue;
        };
        let alike = single.entry(hasher.hash_one((&part.class.shape, part.end))).or_default();
        let is_other = |(other, other_holds): &(usize, bool)| {
            let same = |p: &Part<A>| p.end == part.end && p.class.shape == part.class.shape;
            *other_holds != holds && parts[*other].as_ref().is_some_and(same)
        };
        if let Some(other) = alike.iter().position(is_other) {
            alike.swap_remove(other);
        } else {
            alike.push((at, holds));
            parts[at] = Some(part);
        }
    }
    for (at, holds) in single.into_values().flatten() {
        if let Some(part) = &mut parts[at] {
            part.class.shape.marks.insert(mark, holds);
        }
    }
}
