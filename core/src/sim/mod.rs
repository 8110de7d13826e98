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
//! `IPsec`, bridges, and tables of family `netdev`, `bridge` and `arp`.

mod chains;
pub mod compare;
mod fate;
pub mod graph;
mod lower;
mod namespace;
mod packet;
mod partition;
mod program;
mod question;
mod ranges;
mod reply;
pub mod report;
mod rule;
mod socket;
mod test;
mod walk;
mod witness;

pub use fate::{Fate, How, Outcome, Reply};
pub use lower::{
    EBPF, Listed, Listening, NotNft, of_dump, of_ebpf, of_listed, of_native, of_nft, of_nft_json,
    of_ruleset,
};
pub use namespace::{Interface, MarkedLocal, Namespace, Path};
pub use partition::{Change, Class, Origin, changes, partition};
pub use program::{
    Base, ChainId, ChainInfo, Kind, Policy, Program, RuleId, RuleInfo, SourceChain, SourceRule,
    SourceTable,
};
pub use question::{Direction, EPHEMERAL, Identity, Known, Protocol, Question};
pub use ranges::Ranges;
pub use rule::{Action, Field, MarkChange, States, Step, Test, Translation, Way};
pub use walk::Answer;
pub use witness::{Event, Met, Nobody, Scribe, Witness};

use walk::Walk;

impl Program {
    /// What becomes of a connection.
    pub fn answer(&self, namespace: &Namespace, question: &Question) -> Answer {
        Walk::new(self, namespace, question, &mut Nobody).first()
    }

    /// The same, and what becomes of the answer to it, with everything that happens on the way.
    pub fn explain(&self, namespace: &Namespace, question: &Question) -> Explanation {
        let (mut there, mut back) = (Scribe::default(), Scribe::default());
        let mut walk = Walk::new(self, namespace, question, &mut there);
        let answer = walk.first();
        let (connections, connected) = (walk.connections, walk.connected);
        let mut walk = Walk::new(self, namespace, question, &mut back);
        walk.connections = connections;
        walk.connected = connected;
        let reply = walk.reply(&answer.fate);
        Explanation { answer, reply, there: there.events, back: back.events }
    }
}

/// A connection's fate with everything that led to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What becomes of it.
    pub answer: Answer,
    /// What becomes of the answer to it, where there is somebody to answer.
    pub reply: Option<Reply>,
    /// What the first packet met.
    pub there: Vec<Event>,
    /// What the answer met.
    pub back: Vec<Event>,
}
