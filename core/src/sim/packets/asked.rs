//! What rules ask of a packet beside its fields, and which marks there are that they tell apart.

use std::collections::{BTreeSet, HashSet};

use super::super::packet::Mark;
use super::super::program::{Bound, ChainId, Program};
use super::super::rule::{Action, Field, Test, Way};
use crate::value::InterfacePattern;

/// What rules of some chains ask, and of those that they jump to.
#[derive(Debug, Default)]
pub(super) struct Asked {
    /// Whether they ask who has sent it.
    pub(super) owner: bool,
    /// What they ask about its connection and its kind, each once.
    pub(super) tests: Vec<Test>,
    inputs: Vec<InterfacePattern>,
    outputs: Vec<InterfacePattern>,
    /// Whether they ask for the mark of its connection, or change it.
    connection: bool,
    /// Marks that they name, of packets or connections.
    marks: BTreeSet<u32>,
}

/// The most marks of which each is tried.
const MOST: usize = 16;

impl Asked {
    /// What the rules of chains ask, and of those that they jump to.
    pub(super) fn of(all: [(&Program, Vec<ChainId>); 2]) -> Self {
        let mut asked = Self::default();
        let mut known: HashSet<Test> = HashSet::new();
        for (program, mut left) in all {
            let mut seen: HashSet<ChainId> = HashSet::new();
            while let Some(chain) = left.pop() {
                if !seen.insert(chain) {
                    continue;
                }
                for (_, steps) in &program.chains[chain.0].rules {
                    for step in steps {
                        match step {
                            Bound::Test(test) => asked.test(test, &mut known),
                            Bound::Do(action) => asked.action(action),
                            Bound::Jump { to, .. } => left.push(*to),
                        }
                    }
                }
            }
        }
        asked.marks.insert(0);
        asked
    }

    fn test(&mut self, test: &Test, known: &mut HashSet<Test>) {
        match test {
            Test::Is { field: Field::Uid | Field::Gid, .. } | Test::Socket { .. } => {
                self.owner = true;
            }
            Test::State { .. } | Test::Original { .. } | Test::Syn { .. } | Test::Icmp { .. }
                if known.insert(test.clone()) =>
            {
                self.tests.push(test.clone());
            }
            Test::Interface { way, names, .. } => {
                let all = match way {
                    Way::In => &mut self.inputs,
                    Way::Out => &mut self.outputs,
                };
                let new: Vec<_> = names.iter().filter(|name| !all.contains(name)).collect();
                let new: Vec<_> = new.into_iter().cloned().collect();
                all.extend(new);
            }
            Test::Mark { connection, mark, .. } => {
                self.connection |= connection;
                self.marks.insert(mark.value);
            }
            _ => {}
        }
    }

    fn action(&mut self, action: &Action) {
        match action {
            Action::Connmark(change) => {
                self.connection = true;
                self.marks.insert(change.flip);
            }
            Action::Mark(change) => {
                self.marks.insert(change.flip);
            }
            Action::Save { .. } | Action::Restore { .. } => self.connection = true,
            _ => {}
        }
    }

    const fn patterns(&self, way: Way) -> &Vec<InterfacePattern> {
        match way {
            Way::In => &self.inputs,
            Way::Out => &self.outputs,
        }
    }

    /// Names of interfaces that rules ask for, and one that no rule asks for. Of many that begin alike it is
    /// the pattern, which no interface has for its name.
    pub(super) fn named(&self, way: Way) -> impl Iterator<Item = String> + '_ {
        let names = self.patterns(way).iter().map(|name| name.as_str().to_owned());
        names.chain(["another".to_owned()])
    }

    /// Which of the names that rules ask for an interface has.
    pub(super) fn met(&self, way: Way, name: &str) -> Vec<bool> {
        self.patterns(way).iter().map(|pattern| pattern.matches(name)).collect()
    }

    /// Whether rules tell more marks apart than are tried.
    pub(super) fn has_many_marks(&self) -> bool {
        self.connection && self.marks.len() > MOST
    }

    /// The mark of a packet and that of its connection, if it has one: every one with the other as rules
    /// name it.
    pub(super) fn marks(&self, has_connection: bool) -> Vec<(Mark, Mark)> {
        if !self.connection || !has_connection || self.has_many_marks() {
            return vec![(Mark::ASKED, Mark::made(0))];
        }
        let named = || self.marks.iter().map(|mark| Mark::made(*mark));
        let packet = named().map(|connection| (Mark::ASKED, connection));
        packet.chain(named().map(|packet| (packet, Mark::ASKED))).collect()
    }
}
