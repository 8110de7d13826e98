//! The connections of which something else becomes under other rules.
//!
//! Each side is cut into classes by itself, and then each class of the one is held against each of
//! the other: what both sides ask together would cut connections into as many parts as there are
//! pairs of answers, most of which end alike.

use super::effects::Effects;
use super::fate::Outcome;
use super::pairs::{self, Compare, Unclear};
use super::partition::{Class, Side, outcomes, unclear};
use super::question::Question;
use super::shape::Shape;
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
    let [marks, pairs] = [Unclear::Marks, Unclear::Pairs].map(|what| unclear(what.words()));
    let by = Changes { effects, marks: &marks, pairs: &pairs };
    let reported = |Class { shape, example, answer: (was, is) }: Class<(&Answer, &Answer)>| {
        let answer = Change { before: of(before, &example, was), after: of(after, &example, is) };
        Class { shape, example, answer }
    };
    pairs::compare(&by, [&first, &second], pairs::MOST).into_iter().map(reported).collect()
}

/// Looks for connections that end differently, or to which something else is done.
struct Changes<'a> {
    effects: bool,
    /// What is said of either side where that is why it can't be told.
    marks: &'a Answer,
    pairs: &'a Answer,
}

impl<'a> Compare<'a, Answer> for Changes<'a> {
    type Pair = (&'a Answer, &'a Answer);
    type End = ((&'a Outcome, &'a Outcome), Option<(Effects, Effects)>);

    fn alike(&self, was: &Answer, is: &Answer) -> bool {
        !is_change(&was.outcome, &is.outcome) && (!self.effects || was.effects == is.effects)
    }

    fn pair(
        &self,
        was: &'a Answer,
        is: &'a Answer,
        common: &Shape,
    ) -> Option<(Self::Pair, Self::End)> {
        let ends_alike = !is_change(&was.outcome, &is.outcome);
        let [one, other] = [was, is].map(|of| of.effects.clone().knowing(&common.marks));
        if ends_alike && one == other {
            return None;
        }
        let end = ((&was.outcome, &is.outcome), ends_alike.then_some((one, other)));
        Some(((was, is), end))
    }

    fn unclear(&self, what: Unclear) -> (Self::Pair, Self::End) {
        let neither = match what {
            Unclear::Marks => self.marks,
            Unclear::Pairs => self.pairs,
        };
        ((neither, neither), ((&neither.outcome, &neither.outcome), None))
    }
}

/// The answer about an example of a class of which it is known what becomes; of what was not looked
/// at, it stays unknown.
fn of((program, namespace): Side<'_>, example: &Question, known: &Answer) -> Answer {
    let own = program.answer(namespace, example);
    if own.outcome == known.outcome { own } else { known.clone() }
}
