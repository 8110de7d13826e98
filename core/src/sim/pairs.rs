//! Pairs of classes that may have connections in common.
//!
//! Two sets of rules that tell thousands of ports apart have thousands of classes each, of which hardly
//! two of a kind meet: to hold each against each other would take longer than all else. Where too many
//! meet, it can't be told what differs.

use std::collections::HashMap;
use std::hash::Hash;

use super::join::{Part, Pool, merge};
use super::partition::{Class, MARKS, Origin};
use super::ranges::Ranges;
use super::rule::Field;
use super::shape::{NoExample, Shape};
use crate::value::Family;

/// A class with more ranges than this is not looked up by them, nor is one that lies in more places.
const MOST_RANGES: usize = 16;
const MOST_PLACES: usize = 64;

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    /// Pairs of classes that may meet.
    pairs: usize,
    /// Pairs that end differently, before they are put together.
    changes: usize,
}

pub(super) const MOST: Most = Most { pairs: 20_000_000, changes: 300_000 };

/// Why it can't be told how two sets of rules treat a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Unclear {
    /// There may be no such connection.
    Marks,
    /// There are too many pairs.
    Pairs,
}

impl Unclear {
    /// In words that say what to do.
    pub(super) const fn words(self) -> &'static str {
        match self {
            Self::Marks => MARKS,
            Self::Pairs => {
                "what both sets of rules do, which tell connections apart in too many ways: ask \
                 each set for one connection with explain --to or --from"
            }
        }
    }
}

/// What two classes are, held against each other.
pub(super) trait Compare<'a, A> {
    /// What is kept of a pair.
    type Pair;
    /// What pairs must have in common to be one.
    type End: Eq + Hash;

    /// Whether a pair that meets is of no interest, whatever connections it has in common.
    fn alike(&self, was: &A, is: &A) -> bool;

    /// What is kept of a pair with these connections in common, if it is of interest.
    fn pair(&self, was: &'a A, is: &'a A, common: &Shape) -> Option<(Self::Pair, Self::End)>;

    /// What is kept of what can't be told.
    fn unclear(&self, what: Unclear) -> (Self::Pair, Self::End);
}

/// The connections of which two sets of classes say something else.
pub(super) fn compare<'a, A, C: Compare<'a, A>>(
    by: &C,
    [first, second]: [&'a [Class<A>]; 2],
    most: Most,
) -> Vec<Class<C::Pair>> {
    let lookup = Lookup::of(second);
    let mut ends: HashMap<C::End, usize> = HashMap::new();
    let mut parts = Vec::new();
    let mut looked_at = 0;
    let mut keep = |parts: &mut Vec<_>, shape, example, (answer, end)| {
        let next = ends.len();
        let end = *ends.entry(end).or_insert(next);
        parts.push(Part { class: Class { shape, example, answer }, end });
    };
    for was in first {
        let meeting = lookup.meeting(was);
        looked_at += meeting.len();
        if looked_at > most.pairs || parts.len() > most.changes {
            let unclear = by.unclear(Unclear::Pairs);
            keep(&mut parts, was.shape.clone(), was.example.clone(), unclear);
            continue;
        }
        for is in meeting.into_iter().map(|at| &second[at]) {
            if by.alike(&was.answer, &is.answer) {
                continue;
            }
            let Some(shape) = was.shape.and(&is.shape) else { continue };
            let Some(pair) = by.pair(&was.answer, &is.answer, &shape) else { continue };
            match shape.example() {
                Ok(example) => keep(&mut parts, shape, example, pair),
                Err(NoExample::Empty) => {}
                Err(NoExample::Unclear) => {
                    if let Some(example) = shape.example_with(0) {
                        keep(&mut parts, shape, example, by.unclear(Unclear::Marks));
                    }
                }
            }
        }
    }
    merge(parts, &mut Pool::default())
}

/// Classes, to be looked up by those that they may meet.
struct Lookup<'a>(HashMap<(Family, &'a Origin), ByField>);

impl<'a> Lookup<'a> {
    fn of<A>(classes: &'a [Class<A>]) -> Self {
        let mut groups: HashMap<_, Vec<(usize, &Shape)>> = HashMap::new();
        for (at, Class { shape, .. }) in classes.iter().enumerate() {
            groups.entry((shape.family, &shape.origin)).or_default().push((at, shape));
        }
        Self(groups.into_iter().map(|(group, shapes)| (group, ByField::best(&shapes))).collect())
    }

    /// The places of those that may have connections in common with a class, in order: all that do are
    /// among them.
    fn meeting<A>(&self, class: &'a Class<A>) -> Vec<usize> {
        let shape = &class.shape;
        let group = self.0.get(&(shape.family, &shape.origin));
        group.map_or_else(Vec::new, |group| group.meeting(shape))
    }
}

/// Classes by the values of the field that tells them apart best.
struct ByField {
    field: Field,
    /// Where ranges of values begin that other classes have than those before.
    starts: Vec<u128>,
    /// The classes that have them.
    having: Vec<Vec<usize>>,
    /// Classes that are not looked up.
    wide: Vec<usize>,
    all: Vec<usize>,
}

impl ByField {
    fn best(shapes: &[(usize, &Shape)]) -> Self {
        // A socket that leaves its address to the kernel has none to be looked up by.
        let has_unbound = shapes.iter().any(|(_, shape)| shape.unbound);
        let fields = Field::ALL.into_iter().filter(|field| *field != Field::Source || !has_unbound);
        let by_field = fields.map(|field| Self::by(field, shapes));
        by_field.min_by_key(Self::cost).unwrap_or_else(|| Self::by(Field::Port, shapes))
    }

    fn by(field: Field, shapes: &[(usize, &Shape)]) -> Self {
        let narrow = |shape: &Shape| {
            let values = shape.values(field)?;
            (values.iter().len() <= MOST_RANGES).then(|| values.clone())
        };
        let mut starts: Vec<u128> = vec![0];
        for values in shapes.iter().filter_map(|(_, shape)| narrow(shape)) {
            starts.extend(values.iter().flat_map(|(first, last)| [first, last.saturating_add(1)]));
        }
        starts.sort_unstable();
        starts.dedup();
        let having = vec![Vec::new(); starts.len()];
        let all = shapes.iter().map(|(at, _)| *at).collect();
        let mut by = Self { field, starts, having, wide: Vec::new(), all };
        for (at, shape) in shapes {
            match narrow(shape).and_then(|values| by.places(&values)) {
                Some(places) => places.into_iter().for_each(|place| by.having[place].push(*at)),
                None => by.wide.push(*at),
            }
        }
        by
    }

    /// About how many classes one meets.
    fn cost(&self) -> usize {
        self.wide.len() + self.having.iter().map(Vec::len).sum::<usize>() / self.having.len()
    }

    /// Where values lie; none if that is in too many places.
    fn places(&self, values: &Ranges) -> Option<Vec<usize>> {
        let at = |value| self.starts.partition_point(|start| *start <= value) - 1;
        let ranges = (values.iter().len() <= MOST_RANGES).then(|| values.iter())?;
        let mut places = Vec::new();
        for (first, last) in ranges {
            let (first, last) = (at(first), at(last));
            if places.len() + (last - first) >= MOST_PLACES {
                return None;
            }
            places.extend(first..=last);
        }
        Some(places)
    }

    fn meeting(&self, shape: &Shape) -> Vec<usize> {
        let apart = self.field == Field::Source && shape.unbound;
        let places = shape.values(self.field).filter(|_| !apart).and_then(|v| self.places(v));
        let Some(places) = places else { return self.all.clone() };
        let having = places.into_iter().flat_map(|place| self.having[place].iter().copied());
        let mut meeting: Vec<usize> = having.chain(self.wide.iter().copied()).collect();
        meeting.sort_unstable();
        meeting.dedup();
        meeting
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::question::Question;

    /// Keeps pairs by the numbers of their classes.
    struct Both;

    impl Compare<'_, usize> for Both {
        type Pair = Result<(usize, usize), Unclear>;
        type End = Self::Pair;

        fn alike(&self, was: &usize, is: &usize) -> bool {
            (was + is).is_multiple_of(3)
        }

        fn pair(&self, was: &usize, is: &usize, _: &Shape) -> Option<(Self::Pair, Self::End)> {
            let pair = Ok((*was, *is));
            Some((pair, pair))
        }

        fn unclear(&self, what: Unclear) -> (Self::Pair, Self::End) {
            (Err(what), Err(what))
        }
    }

    /// Classes as rules make them: each with ports and users of its own, some with all, some with what many
    /// others have, and one with so many ranges that it is not looked up.
    fn classes(seed: u32) -> Vec<Class<usize>> {
        let every_other = || (0..60).map(|at| (at * 2, at * 2)).collect::<Ranges>();
        let shape = |at: u32| {
            let own = u128::from(at.wrapping_mul(seed) % 97);
            let port = match at % 5 {
                0 => Ranges::up_to(65_535),
                1 => every_other(),
                2 => Ranges::range(own, own + 20),
                _ => Ranges::one(own),
            };
            let uid =
                if at.is_multiple_of(7) { Ranges::up_to(99) } else { Ranges::range(own / 3, own) };
            let origin = match at % 3 {
                0 => Origin::Process,
                _ => Origin::Interface(format!("eth{}", at % 3)),
            };
            let source =
                (origin == Origin::Process && at.is_multiple_of(2), Ranges::range(own, own + 5));
            let fields = [
                (Field::Protocol, Ranges::one(6)),
                (Field::SourcePort, Ranges::up_to(65_535)),
                (Field::Destination, Ranges::range(own, 99)),
                (Field::Port, port),
            ];
            match origin {
                // What arrives has no owner.
                Origin::Interface(_) => Shape::new(Family::V4, origin, source, fields),
                Origin::Process => {
                    let ([protocol, from, to, port], gids) = (fields, Ranges::up_to(99));
                    let owned = [protocol, from, to, port, (Field::Uid, uid), (Field::Gid, gids)];
                    Shape::new(Family::V4, origin, source, owned)
                }
            }
        };
        let example = |shape: &Shape| -> Question { shape.example().expect("a connection") };
        let class = |(answer, shape)| Class { example: example(&shape), shape, answer };
        (0..200).map(shape).enumerate().map(class).collect()
    }

    /// Verify that looking classes up finds each pair that meets.
    #[test]
    fn no_pair_is_passed_over() {
        let mut met = 0;
        for seed in [1, 5, 12, 31] {
            let [first, second] = [classes(seed), classes(seed + 2)];
            let lookup = Lookup::of(&second);
            for was in &first {
                let meeting = lookup.meeting(was);
                for is in &second {
                    if was.shape.and(&is.shape).is_some() {
                        assert!(meeting.contains(&is.answer), "{was:?}\n{is:?}");
                        met += 1;
                    }
                }
            }
        }
        assert!(met > 1000, "{met} pairs met");
    }

    /// Verify that what is not looked at is told to be so, and nothing else.
    #[test]
    fn too_many_pairs_are_named() {
        let [first, second] = [classes(3), classes(8)];
        let of = |most| compare(&Both, [&first, &second], most);
        let is_unclear = |class: &&Class<_>| class.answer == Err(Unclear::Pairs);
        let all = of(MOST);
        assert!(!all.is_empty() && !all.iter().any(|class| is_unclear(&class)));
        for most in [Most { pairs: 500, ..MOST }, Most { changes: 100, ..MOST }] {
            let some = of(most);
            let unclear = some.iter().filter(is_unclear).count();
            assert!(unclear > 0 && unclear < some.len(), "{unclear} of {}", some.len());
            // What was found before the limit is part of what there is.
            let found = some.iter().filter(|class| !is_unclear(class));
            let ends: Vec<_> = all.iter().map(|class| class.answer).collect();
            assert!(found.into_iter().all(|class| ends.contains(&class.answer)));
            // Nothing that differs is left out.
            for class in &all {
                let has = |other: &Class<_>| other.has(&class.example);
                assert!(some.iter().any(has), "{:?}", class.example);
            }
        }
    }
}
