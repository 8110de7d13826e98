//! The connections of which something else becomes under other rules.
//!
//! Each side is cut into classes by itself, and then each class of the one is held against each of
//! the other: what both sides ask together would cut connections into as many parts as there are
//! pairs of answers, most of which end alike.

use std::collections::HashMap;

use super::fate::Outcome;
use super::join::{Part, Pool, merge};
use super::partition::{Class, MARKS, Side, outcomes, unclear};
use super::question::Question;
use super::shape::NoExample;
use super::walk::Answer;

/// What becomes of connections under two sets of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// What becomes of them under the first set of rules.
    pub before: Answer,
    /// What becomes of them under the second set of rules.
    pub after: Answer,
}

/// Whether connections notice. Why something is dropped makes no difference to them.
fn is_change(before: &Outcome, after: &Outcome) -> bool {
    match (before, after) {
        (Outcome::Dropped { .. }, Outcome::Dropped { .. }) => false,
        // What is not known may be anything.
        (Outcome::Unknown { .. }, _) => true,
        (before, after) => before != after,
    }
}

/// The connections of which something else becomes under other rules: those that there are in the
/// first namespace.
pub fn changes(before: Side<'_>, after: Side<'_>) -> Vec<Class<Change>> {
    all(before, after, false)
}

/// The same with those to which something else is done, though they end alike.
pub(super) fn all_changes(before: Side<'_>, after: Side<'_>) -> Vec<Class<Change>> {
    all(before, after, true)
}

fn all(before: Side<'_>, after: Side<'_>, effects: bool) -> Vec<Class<Change>> {
    let [first, second] = [before, after].map(|side| outcomes(side, before.1, effects));
    let neither = unclear(MARKS);
    let mut ends: HashMap<_, usize> = HashMap::new();
    let mut parts = Vec::new();
    let pairs = first.iter().flat_map(|was| second.iter().map(move |is| (was, is)));
    for (was, is) in pairs {
        let ends_alike = !is_change(&was.answer.outcome, &is.answer.outcome);
        if ends_alike && (!effects || was.answer.effects == is.answer.effects) {
            continue;
        }
        let Some(shape) = was.shape.and(&is.shape) else { continue };
        let [one, other] = [was, is].map(|of| of.answer.effects.clone().knowing(&shape.marks));
        if ends_alike && one == other {
            continue;
        }
        let (example, answer) = match shape.example() {
            Ok(example) => (Some(example), (&was.answer, &is.answer)),
            Err(NoExample::Empty) => continue,
            Err(NoExample::Unclear) => (shape.example_with(0), (&neither, &neither)),
        };
        let Some(example) = example else { continue };
        let next = ends.len();
        let key = ((&answer.0.outcome, &answer.1.outcome), ends_alike.then_some((one, other)));
        let end = *ends.entry(key).or_insert(next);
        parts.push(Part { class: Class { shape, example, answer }, end });
    }
    let reported = |Class { shape, example, answer: (was, is) }: Class<(&Answer, &Answer)>| {
        let answer = Change { before: of(before, &example, was), after: of(after, &example, is) };
        Class { shape, example, answer }
    };
    merge(parts, &mut Pool::default()).into_iter().map(reported).collect()
}

/// The answer about an example of a class of which it is known what becomes; of what was not looked
/// at, it stays unknown.
fn of((program, namespace): Side<'_>, example: &Question, known: &Answer) -> Answer {
    let own = program.answer(namespace, example);
    if own.outcome == known.outcome { own } else { known.clone() }
}
