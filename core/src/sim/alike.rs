//! Rules in a row that do the same, whatever each of them asks for. Which of them is the first to match
//! makes no difference to a packet; so when connections are put into classes, those that ask for the same
//! fields are asked together: a thousand networks and as many ports in turn are two questions, and not
//! two thousand.

use std::collections::HashMap;

use super::index::{Run, runs};
use super::program::{Bound, RuleId};
use super::rule::{Action, Field, Test};
use crate::value::Family;

/// The fewest rules that are worth it.
const FEWEST: usize = 16;

/// A chain's rules in another order, with the same effect on every packet.
#[derive(Clone, Debug)]
pub(super) struct Grouped {
    pub(super) rules: Vec<(RuleId, Vec<Bound>)>,
    pub(super) runs: Vec<Run>,
    /// Rules that do the same, in the order in which they are called.
    pub(super) blocks: Vec<Vec<RuleId>>,
}

impl Grouped {
    /// The rules of a chain, where some of them have to be put together; `runs` are those of the chain
    /// as it is.
    pub(super) fn of(rules: &[(RuleId, Vec<Bound>)], own: &[Run]) -> Option<Self> {
        let mut order: Vec<usize> = (0..rules.len()).collect();
        let mut blocks = Vec::new();
        let mut first = 0;
        while first < rules.len() {
            let act = does(&rules[first].1);
            let alike = rules[first..].iter().take_while(|(_, steps)| does(steps) == act);
            let end = first + alike.count().max(1);
            let looked_up: usize =
                own.iter().map(|run| run.end.min(end).saturating_sub(run.first.max(first))).sum();
            if act.is_some() && end - first >= FEWEST && 2 * looked_up < end - first {
                blocks.push(rules[first..end].iter().map(|(id, _)| *id).collect());
                let mut known: HashMap<Vec<Asks<'_>>, usize> = HashMap::new();
                let numbers: Vec<usize> = rules[first..end]
                    .iter()
                    .map(|(_, steps)| {
                        let next = known.len();
                        *known.entry(asks(steps)).or_insert(next)
                    })
                    .collect();
                order[first..end].sort_by_key(|at| numbers[at - first]);
            }
            first = end;
        }
        if blocks.is_empty() {
            return None;
        }
        let rules: Vec<_> = order.into_iter().map(|at| rules[at].clone()).collect();
        let runs = runs(&rules);
        Some(Self { rules, runs, blocks })
    }
}

/// What a rule does to what it matches, where that is the end of the chain or of the packet's way, and
/// where it can be told of every packet whether it matches.
fn does(steps: &[Bound]) -> Option<(Option<&Action>, &Action)> {
    let mut steps = steps.iter().filter(|step| !matches!(step, Bound::Do(Action::Note))).peekable();
    while let Some(Bound::Test(test)) = steps.peek() {
        if !is_told(test) {
            return None;
        }
        steps.next();
    }
    let effect = match steps.peek() {
        Some(Bound::Do(effect @ Action::Effect(_))) => {
            steps.next();
            Some(effect)
        }
        _ => None,
    };
    let act = match steps.next()? {
        Bound::Do(
            action @ (Action::Accept
            | Action::Drop
            | Action::Reject(_)
            | Action::Return
            | Action::Redirect(_)),
        ) => (effect, action),
        _ => return None,
    };
    // Nothing is behind it.
    steps.next().is_none().then_some(act)
}

const fn is_told(test: &Test) -> bool {
    match test {
        // Who receives is not always known.
        Test::Is { field, .. } => !matches!(field, Field::Uid | Field::Gid),
        Test::EitherPort { .. }
        | Test::Family(_)
        | Test::Interface { .. }
        | Test::Mark { .. }
        | Test::State { .. }
        | Test::Local { .. }
        | Test::Original { .. }
        | Test::Syn { .. } => true,
        Test::AtPort { .. }
        | Test::Socket { .. }
        | Test::Icmp { .. }
        | Test::TcpFlags { .. }
        | Test::AddressType { .. }
        | Test::ForThisHost { .. }
        | Test::Extension { .. }
        | Test::ReturnRoute(_)
        | Test::OriginalEnd { .. }
        | Test::Unknown(_) => false,
    }
}

/// What a rule asks for, without the values of fields.
#[derive(PartialEq, Eq, Hash)]
enum Asks<'t> {
    Field(Field, bool, Option<Family>),
    Other(&'t Test),
}

fn asks(steps: &[Bound]) -> Vec<Asks<'_>> {
    let tests = steps.iter().filter_map(|step| match step {
        Bound::Test(test) => Some(test),
        Bound::Do(_) | Bound::Jump { .. } => None,
    });
    let asks = tests.map(|test| match test {
        Test::Is { field, negated, family, .. } => Asks::Field(*field, *negated, *family),
        other => Asks::Other(other),
    });
    asks.collect()
}
