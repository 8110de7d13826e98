//! The way of a packet through rules, as the kernel goes it: what becomes of a connection, and why.
//!
//! ```text
//! ruleset::Ruleset, nft::NftRuleset, dumps ──lower──► Program ──┐
//!                                                               ├─► walk ──► Answer, events
//! Namespace (addresses, routes, marks) ──────────── Question ───┘
//! ```
//!
//! Nothing is guessed: where a rule holds a match or target that is not known, and it matters, the
//! fate is unknown and names it. What is not walked at all: fragments, multicast and broadcast,
//! `IPsec`, bridges, and tables of family `bridge` and `arp`.

mod alike;
mod chains;
mod changes;
pub mod compare;
mod effects;
mod end;
mod fate;
mod fib;
mod flags;
pub mod graph;
mod halt;
mod index;
mod interface;
mod join;
mod loadable;
mod lower;
mod meaning;
mod namespace;
mod neighbour;
mod notice;
mod order;
mod packet;
mod packets;
mod pairs;
mod partition;
mod paths;
mod program;
mod question;
mod ranges;
mod reply;
pub mod report;
mod routing;
mod rule;
mod shape;
mod socket;
mod source_port;
mod test;
mod tracking;
mod untold;
mod walk;
mod way;
mod witness;

pub use changes::{Change, changes};
pub use fate::{Fate, How, Outcome, Reply, Unheard};
pub use interface::{Aside, Interface, Label, OwnAddress, Settings};
pub use loadable::{DEEPEST, loadable};
pub use lower::{
    EBPF, Listed, Listening, NotNft, hindering_arp, of_dump, of_ebpf, of_listed, of_native, of_nft,
    of_nft_json, of_ruleset,
};
pub use namespace::{Exit, MarkedLocal, Namespace, Path};
pub use partition::{Class, Origin, partition};
pub use program::{
    Base, Beside, ChainId, ChainInfo, Kind, Policy, Program, RuleId, RuleInfo, SourceChain,
    SourceRule, SourceTable,
};
pub use question::{Direction, EPHEMERAL, Identity, Known, Protocol, Question};
pub use ranges::Ranges;
pub use routing::{
    DEFAULT_TABLE, LOCAL_TABLE, MAIN_TABLE, RouteAction, RoutingRule, RuleAction, Selector,
    TableRoute,
};
pub use rule::{Action, Field, MarkChange, Notice, States, Step, Test, Translation, Way};
pub use walk::Answer;
pub use witness::{Event, Lookup, Met, Nobody, Scribe, Witness};

use paths::Paths;
use walk::Walk;

impl Program {
    /// Whether eBPF captures here, whose programs answer for connection tracking as well.
    fn chooses_sockets(&self) -> bool {
        self.sockets.iter().flatten().any(|chains| !chains.is_empty())
    }

    /// What becomes of a connection.
    pub fn answer(&self, namespace: &Namespace, question: &Question) -> Answer {
        let ways = paths::each(|paths| {
            let mut nobody = Nobody;
            let mut walk = Walk { paths, ..Walk::new(self, namespace, question, &mut nobody) };
            (walk.first(), Some(walk.paths))
        });
        paths::joined(ways.iter().flatten())
    }

    /// What becomes of a captured connection while nobody listens on the port that it is led to: the
    /// kernel refuses it, if that comes to whom it tells, but what was to go to a transparent socket is
    /// left to the rules.
    pub fn unheard(
        &self,
        namespace: &Namespace,
        question: &Question,
        fate: &Fate,
    ) -> Option<Unheard> {
        let ways = paths::each(|paths| {
            let mut nobody = Nobody;
            let mut walk = Walk { paths, ..Walk::new(self, namespace, question, &mut nobody) };
            (unheard(&mut walk, fate), Some(walk.paths))
        });
        let mut ways = ways?.into_iter();
        let first = ways.next()??;
        let same = ways.all(|way| way.is_some_and(|way| way == first));
        let what = || Outcome::Unknown { what: way::MULTIPATH.to_owned() };
        Some(if same { first } else { Unheard { outcome: what(), ..first } })
    }

    /// What becomes of a connection that a transparent socket takes where it has the addresses and ports
    /// of an earlier one, which tracking still has and whose sockets are gone; none where that is the
    /// same.
    pub fn reused(
        &self,
        namespace: &Namespace,
        question: &Question,
        answer: &Answer,
    ) -> Option<Outcome> {
        let again = again(question, answer)?;
        reused(&mut Walk::new(self, namespace, &again, &mut Nobody), answer)
    }

    /// The same, and what becomes of the answer to it, with everything that happens on the way.
    pub fn explain(&self, namespace: &Namespace, question: &Question) -> Explanation {
        let ways = paths::each(|paths| {
            let (mut there, mut back) = (Scribe::default(), Scribe::default());
            let (told, taken) = self.told(namespace, question, paths, [&mut there, &mut back]);
            ((told, (there, back)), Some(taken))
        });
        let (told, scribes): (Vec<_>, Vec<_>) = ways.into_iter().flatten().unzip();
        let Told { answer, unheard, reused, reply } = Told::joined(told);
        let (there, back) = scribes.into_iter().next().unwrap_or_default();
        let Scribe { events: there, lookup } = there;
        let back = back.events;
        Explanation { answer, unheard, reused, reply, lookup, there, back }
    }

    /// What becomes of a connection and of the answer to it, by these paths, and the paths that were
    /// taken. A witness of each way is not told of what is only supposed, if it listens.
    fn told<W: Witness>(
        &self,
        namespace: &Namespace,
        question: &Question,
        paths: Paths,
        [there, back]: [&mut W; 2],
    ) -> (Told, Paths) {
        let mut walk = Walk { paths, ..Walk::new(self, namespace, question, there) };
        let mut answer = walk.first();
        let marked = walk.last.filter(|_| {
            let delivered = matches!(answer.fate, Fate::Delivered { .. });
            delivered && namespace.accepts_marks && question.protocol == Protocol::TCP
        });
        let found = (walk.connections, walk.connected, walk.sent, walk.came_by);
        let (taken, shuffled) = (walk.paths, walk.shuffled);
        let mut walk = Walk { paths: taken, ..Walk::new(self, namespace, question, back) };
        (walk.connections, walk.connected, walk.sent, walk.came_by) = found;
        walk.shuffled = shuffled;
        walk.accepted = marked.map_or(walk.accepted, |packet| packet.mark);
        let reply = walk.reply(&answer.fate);
        let taken = walk.paths;
        let (unheard, reused) = if W::LISTENS {
            self.beside(namespace, question, paths, &answer, &mut Nobody)
        } else {
            self.beside(namespace, question, paths, &answer, back)
        };
        if shuffled {
            answer.fate.forget_source_port();
        }
        (Told { answer, unheard, reused, reply }, taken)
    }

    /// What becomes of it without a listener, and with an earlier connection's addresses and ports.
    fn beside<W: Witness>(
        &self,
        namespace: &Namespace,
        question: &Question,
        paths: Paths,
        answer: &Answer,
        witness: &mut W,
    ) -> (Option<Unheard>, Option<Outcome>) {
        let mut walk = Walk { paths, ..Walk::new(self, namespace, question, witness) };
        let unheard = unheard(&mut walk, &answer.fate);
        let again = again(question, answer);
        let reused = again.as_ref().and_then(|again| {
            reused(&mut Walk { paths, ..Walk::new(self, namespace, again, witness) }, answer)
        });
        (unheard, reused)
    }
}

/// What becomes of a captured connection without a listener, by a walk that has not begun.
fn unheard<W: Witness>(walk: &mut Walk<'_, W>, fate: &Fate) -> Option<Unheard> {
    let Fate::Delivered { port, how, .. } = fate else { return None };
    let transparent = *how == How::Transparent;
    let outcome = match how {
        How::Unchanged => return None,
        How::Translated | How::Handed => walk.without_listener(),
        How::Transparent => {
            walk.unheard = true;
            walk.first().outcome
        }
    };
    Some(Unheard { port: *port, transparent, outcome })
}

/// The question about a connection with an earlier one's addresses and ports, where a transparent socket
/// would take it.
fn again(question: &Question, answer: &Answer) -> Option<Question> {
    let transparent = matches!(answer.fate, Fate::Delivered { how: How::Transparent, .. });
    let asked = transparent && question.known == Known::New && question.protocol == Protocol::TCP;
    asked.then(|| Question { known: Known::Reused, ..question.clone() })
}

fn reused<W: Witness>(walk: &mut Walk<'_, W>, answer: &Answer) -> Option<Outcome> {
    let found = walk.first().outcome;
    (found != answer.outcome).then_some(found)
}

/// All that is told of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Told {
    answer: Answer,
    unheard: Option<Unheard>,
    reused: Option<Outcome>,
    reply: Option<Reply>,
}

impl Told {
    /// What is true of each path, if there is one.
    fn joined(ways: Vec<Self>) -> Self {
        let answer = paths::joined(ways.iter().map(|way| &way.answer));
        let what = || way::MULTIPATH.to_owned();
        let mut ways = ways.into_iter();
        let Some(mut all) = ways.next() else {
            return Self { answer, unheard: None, reused: None, reply: None };
        };
        all.answer = answer;
        for way in ways {
            all.differing_from(&way, &what);
        }
        all
    }

    /// What is told of the same connection beside the answer differs elsewhere, or not.
    fn differing_from(&mut self, other: &Self, what: &dyn Fn() -> String) {
        let unknown = || Outcome::Unknown { what: what() };
        if self.reply != other.reply {
            self.reply = Some(Reply::Unknown { rule: None, what: what() });
        }
        if self.reused != other.reused {
            self.reused = Some(unknown());
        }
        if let Some(unheard) = &mut self.unheard
            && other.unheard.as_ref().is_none_or(|other| other.outcome != unheard.outcome)
        {
            unheard.outcome = unknown();
        }
    }
}

/// A connection's fate with everything that led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// The fate and outcome of the first packet, and the rules that decided.
    pub answer: Answer,
    /// What becomes of it while nobody listens where it is led to, if it is captured.
    pub unheard: Option<Unheard>,
    /// What becomes of it where it has the addresses and ports of an earlier connection that is still
    /// tracked, if that is something else.
    pub reused: Option<Outcome>,
    /// What becomes of the answer to it, where there is somebody to answer.
    pub reply: Option<Reply>,
    /// How programs saw the first packet that chose its socket; none where it was looked up for nobody.
    pub lookup: Option<Lookup>,
    /// What the first packet met.
    pub there: Vec<Event>,
    /// What the answer met, hook by hook; empty where nobody answers.
    pub back: Vec<Event>,
}
