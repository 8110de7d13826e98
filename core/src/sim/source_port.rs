//! A connection whose source port nobody has said: the kernel gives it one that is free, and rules can
//! ask for it.

use std::sync::Arc;

use super::index::Index;
use super::namespace::Namespace;
use super::partition::unclear;
use super::paths;
use super::program::Program;
use super::question::{EPHEMERAL, Question};
use super::ranges::Ranges;
use super::rule::Field;
use super::witness::Witness;
use super::{Explanation, Told};

/// Into so many parts ports are cut before it can't be told any more.
const MOST: usize = 256;

impl Program {
    /// What becomes of a connection with any of these source ports, and of the answer to it: what rules do
    /// to some of them and not to all can't be told.
    pub fn explain_from(
        &self,
        namespace: &Namespace,
        question: &Question,
        ports: &Ranges,
    ) -> Explanation {
        let at = |ports: &Ranges| Question { source_port: usual(ports), ..question.clone() };
        let mut found = self.explain(namespace, &at(ports));
        let mut left = vec![ports.clone()];
        let mut parts: Vec<(Ranges, Told)> = Vec::new();
        while let Some(ports) = left.pop() {
            let question = at(&ports);
            let mut cut = Vec::new();
            let ways = paths::each(|paths| {
                let [mut there, mut back] =
                    [0; 2].map(|_| Asks { ports: &ports, parts: Vec::new() });
                let witnesses = [&mut there, &mut back];
                let (told, taken) = self.told(namespace, &question, paths, witnesses);
                cut = if there.has_heard() { there.parts } else { back.parts };
                (told, cut.is_empty().then_some(taken))
            });
            if cut.is_empty() {
                parts.push((ports, Told::joined(ways.unwrap_or_default())));
            } else {
                left.append(&mut cut);
            }
            if parts.len() + left.len() > MOST {
                found.answer = unclear("its source port decides, of which rules ask too much");
                (found.unheard, found.reused, found.reply) = (None, None, None);
                return found;
            }
        }
        // From the lowest port on.
        parts.sort_by_key(|(ports, _)| ports.first());
        let outcomes = parts.iter().map(|(ports, told)| (ports, told.answer.outcome.to_string()));
        let words = words(outcomes, question);
        if parts.iter().any(|(_, told)| told.answer.outcome != found.answer.outcome) {
            found.answer = unclear(&words);
            (found.unheard, found.reused, found.reply) = (None, None, None);
            return found;
        }
        let what = || "its source port decides, which nobody has said".to_owned();
        let told = parts.into_iter().map(|(_, told)| told).reduce(|mut all, other| {
            all.differing_from(&other, &what);
            all
        });
        if let Some(Told { unheard, reused, reply, .. }) = told {
            (found.unheard, found.reused, found.reply) = (unheard, reused, reply);
        }
        found
    }
}

/// The port of an example.
fn usual(ports: &Ranges) -> u16 {
    let usual = u128::from(EPHEMERAL);
    let port = if ports.contains(usual) { Some(usual) } else { ports.first() };
    port.and_then(|port| u16::try_from(port).ok()).unwrap_or(EPHEMERAL)
}

/// What becomes of which ports.
fn words<'p, I>(parts: I, question: &Question) -> String
where
    I: Iterator<Item = (&'p Ranges, String)>,
{
    let mut by_outcome: Vec<(String, Ranges)> = Vec::new();
    for (ports, outcome) in parts {
        match by_outcome.iter_mut().find(|(known, _)| *known == outcome) {
            Some((_, known)) => *known = known.or(ports),
            None => by_outcome.push((outcome, ports.clone())),
        }
    }
    let family = question.family();
    let each = by_outcome.iter().map(|(outcome, ports)| {
        format!("{outcome} from {}", Field::SourcePort.values(ports, family))
    });
    format!("its source port decides: {}", each.collect::<Vec<_>>().join(", "))
}

/// Finds what of the source port matters.
struct Asks<'p> {
    ports: &'p Ranges,
    /// The parts that the first thing which tells them apart makes of them; none if nothing does.
    parts: Vec<Ranges>,
}

impl Witness for Asks<'_> {
    const LISTENS: bool = false;
    const CLASSES: bool = true;

    fn asked(&mut self, field: Field, set: &Ranges) {
        if field == Field::SourcePort
            && self.parts.is_empty()
            && self.ports.meets(set)
            && !self.ports.is_within(set)
        {
            self.parts = vec![self.ports.and(set), self.ports.without(set)];
        }
    }

    fn asked_rules(&mut self, field: Field, index: &Arc<Index>) {
        if field == Field::SourcePort && self.parts.is_empty() && !index.treats_alike(self.ports) {
            self.parts = index.cut(self.ports);
        }
    }

    fn has_heard(&self) -> bool {
        !self.parts.is_empty()
    }
}
