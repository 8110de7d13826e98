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

use std::borrow::Cow;

mod alike;
mod chains;
mod changes;
pub mod compare;
mod effects;
mod end;
mod fate;
pub mod graph;
mod index;
mod interface;
mod join;
mod loadable;
mod lower;
mod namespace;
mod neighbour;
mod notice;
mod order;
mod packet;
mod packets;
mod partition;
mod program;
mod question;
mod ranges;
mod reply;
pub mod report;
mod routing;
mod rule;
mod shape;
mod socket;
mod test;
mod tracking;
mod untold;
mod walk;
mod way;
mod witness;

pub use changes::{Change, changes};
pub use fate::{Fate, How, Outcome, Reply, Unheard};
pub use interface::{Interface, Label, OwnAddress, Settings};
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

use walk::Walk;

impl Program {
    /// Whether eBPF captures here, whose programs answer for connection tracking as well.
    fn chooses_sockets(&self) -> bool {
        self.sockets.iter().flatten().any(|chains| !chains.is_empty())
    }

    /// What becomes of a connection.
    pub fn answer(&self, namespace: &Namespace, question: &Question) -> Answer {
        let namespace = self.settled(namespace, question);
        Walk::new(self, &namespace, question, &mut Nobody).first()
    }

    /// The namespace with one of the paths that routes spread connections over, where each gives the
    /// connection the same end; else as it is, where it can't be told.
    fn settled<'n>(&self, namespace: &'n Namespace, question: &Question) -> Cow<'n, Namespace> {
        let paths = namespace.routing().most_paths();
        if paths < 2 {
            return Cow::Borrowed(namespace);
        }
        let mut ends = (0..paths).map(|path| {
            let namespace = namespace.by_path(path);
            let answer = Walk::new(self, &namespace, question, &mut Nobody).first();
            (answer.outcome, answer.decided)
        });
        let first = ends.next();
        if ends.all(|end| Some(end) == first) {
            Cow::Owned(namespace.by_path(0))
        } else {
            Cow::Borrowed(namespace)
        }
    }

    /// What becomes of a captured connection while nobody listens on the port that it is led to: the
    /// kernel refuses it, but what was to go to a transparent socket is left to the rules.
    pub fn unheard(
        &self,
        namespace: &Namespace,
        question: &Question,
        fate: &Fate,
    ) -> Option<Unheard> {
        let Fate::Delivered { port, how, .. } = fate else { return None };
        let transparent = *how == How::Transparent;
        let outcome = match how {
            How::Unchanged => return None,
            How::Translated | How::Handed => Outcome::Refused,
            How::Transparent => {
                let mut nobody = Nobody;
                let mut walk = Walk::new(self, namespace, question, &mut nobody);
                walk.unheard = true;
                walk.first().outcome
            }
        };
        Some(Unheard { port: *port, transparent, outcome })
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
        let transparent = matches!(answer.fate, Fate::Delivered { how: How::Transparent, .. });
        if !transparent || question.known != Known::New || question.protocol != Protocol::TCP {
            return None;
        }
        let again = Question { known: Known::Reused, ..question.clone() };
        let found = Walk::new(self, namespace, &again, &mut Nobody).first().outcome;
        (found != answer.outcome).then_some(found)
    }

    /// The same, and what becomes of the answer to it, with everything that happens on the way.
    pub fn explain(&self, namespace: &Namespace, question: &Question) -> Explanation {
        let settled = self.settled(namespace, question);
        let mut found = self.explained(&settled, question);
        let Cow::Owned(_) = settled else { return found };
        for path in 1..namespace.routing().most_paths() {
            let other = self.explained(&namespace.by_path(path), question);
            // What the first packet becomes is the same; where it comes from may not be, nor how the
            // answer goes.
            if other.answer.fate != found.answer.fate {
                found.answer.fate.forget_source();
            }
            if other.reply != found.reply {
                let what = way::MULTIPATH.to_owned();
                found.reply = Some(Reply::Unknown { rule: None, what });
            }
        }
        found
    }

    fn explained(&self, namespace: &Namespace, question: &Question) -> Explanation {
        let (mut there, mut back) = (Scribe::default(), Scribe::default());
        let mut walk = Walk::new(self, namespace, question, &mut there);
        let answer = walk.first();
        let marked = walk.last.filter(|_| {
            let delivered = matches!(answer.fate, Fate::Delivered { .. });
            delivered && namespace.accepts_marks && question.protocol == Protocol::TCP
        });
        let found = (walk.connections, walk.connected, walk.sent, walk.came_by);
        let mut walk = Walk::new(self, namespace, question, &mut back);
        (walk.connections, walk.connected, walk.sent, walk.came_by) = found;
        walk.accepted = marked.map_or(walk.accepted, |packet| packet.mark);
        let reply = walk.reply(&answer.fate);
        let unheard = self.unheard(namespace, question, &answer.fate);
        let reused = self.reused(namespace, question, &answer);
        let lookup = there.lookup;
        let (there, back) = (there.events, back.events);
        Explanation { answer, unheard, reused, reply, lookup, there, back }
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
