//! What rules mean, so that two of them can be held against each other.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::program::{Bound, Program, RuleId};
use super::ranges::Ranges;
use super::rule::{Action, Test};
use crate::value::{Family, InterfacePattern};

/// Makes texts that are the same for rules that mean the same. Long lists are numbered: thousands of rules
/// may ask for the same one.
#[derive(Default)]
pub(super) struct Meanings(HashMap<List, usize>);

#[derive(PartialEq, Eq, Hash)]
enum List {
    Numbers(Ranges),
    Names(Arc<[InterfacePattern]>),
}

impl Meanings {
    /// The meanings of rules, in their order. What is not known as a whole is like nothing else.
    pub(super) fn of(
        &mut self,
        (program, rules): (&Program, &[RuleId]),
        side: char,
    ) -> Vec<String> {
        let one = |(at, id): (usize, &RuleId)| {
            self.meaning(program, *id).unwrap_or_else(|| format!("{side} {at}"))
        };
        rules.iter().enumerate().map(one).collect()
    }

    /// What a rule means, whatever its language and the order in which it asks before it does something;
    /// none where there is more to it than that.
    fn meaning(&mut self, program: &Program, id: RuleId) -> Option<String> {
        if program.rule(id).vague {
            return None;
        }
        let (mut meaning, mut tests) = (Vec::new(), Vec::new());
        for step in program.steps(id) {
            let action = match step {
                Bound::Test(test) => {
                    tests.push(test);
                    continue;
                }
                Bound::Do(Action::Note) => continue,
                Bound::Do(action) => format!("{action:?}"),
                Bound::Jump { to, back } => format!("{back} {}", program.chain(*to).name),
            };
            meaning.extend(self.asked(&tests));
            tests.clear();
            meaning.push(action);
        }
        meaning.extend(self.asked(&tests));
        meaning.push(program.rule(id).beside.noted.clone());
        Some(meaning.join(" "))
    }

    /// What tests ask together, whatever their order. Who asks for an address asks for its family as well,
    /// whether or not a test of its own does so.
    fn asked(&mut self, tests: &[&Test]) -> BTreeSet<String> {
        let is_implied = |family: Family| {
            let by =
                |test: &&Test| matches!(test, Test::Is { family: Some(of), .. } if *of == family);
            tests.iter().any(by)
        };
        let adds = |test: &&&Test| !matches!(test, Test::Family(family) if is_implied(*family));
        tests.iter().filter(adds).map(|test| self.test(test)).collect()
    }

    fn test(&mut self, test: &Test) -> String {
        const LONG: usize = 16;
        let mut bare = test.clone();
        let list = match &mut bare {
            Test::Is { set, .. }
            | Test::EitherPort { set, .. }
            | Test::AtPort { set, .. }
            | Test::OriginalEnd { set, .. }
                if set.iter().len() > LONG =>
            {
                List::Numbers(std::mem::take(set))
            }
            Test::Interface { names, .. } if names.len() > LONG => {
                List::Names(std::mem::replace(names, [].into()))
            }
            _ => return format!("{test:?}"),
        };
        let next = self.0.len();
        format!("{bare:?} list {}", self.0.entry(list).or_insert(next))
    }
}
