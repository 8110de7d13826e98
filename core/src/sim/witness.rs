//! Who watches a walk: nobody when only the fate counts, somebody who writes down every rule, or
//! somebody who wants to know what the fate depends on.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::Serialize;

use super::index::Index;
use super::program::RuleId;
use super::ranges::Ranges;
use super::rule::Field;
use crate::ruleset::Masked;

/// What a rule did with a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "met", content = "why")]
pub enum Met {
    /// All conditions held, up to the first thing that it does.
    Matched,
    /// A condition did not hold: this one, in words.
    Failed(String),
    /// It could not be told, and mattered or not.
    Unclear(String),
}

/// What arrives, as programs that choose its socket see it: its addresses are what translation before
/// that made of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Where it comes from.
    pub source: IpAddr,
    /// Where it goes to.
    pub destination: SocketAddr,
    /// Whether it came by `lo`, as what the pod sends to itself does.
    pub by_loopback: bool,
}

/// Watches a walk, as far as it wants to.
pub trait Witness {
    /// Whether it wants to hear what rules did; making the words takes time.
    const LISTENS: bool;
    /// Whether it looks for classes of connections: then it does not matter which of some rules that do
    /// the same is the first to match.
    const CLASSES: bool = false;

    /// The way depends on whether a field of the question is in a set.
    fn asked(&mut self, _field: Field, _set: &Ranges) {}

    /// The way depends on which of these rules a field of the question leads to.
    fn asked_rules(&mut self, _field: Field, _index: &Arc<Index>) {}

    /// The way depends on the question's mark.
    fn asked_mark(&mut self, _mark: Masked) {}

    /// The packet comes to a hook, or its socket to a system call.
    fn at(&mut self, _hook: &'static str, _packet: String) {}

    /// The socket is looked up of what the question is about.
    fn looked_up(&mut self, _lookup: Lookup) {}

    /// A rule, at this depth of jumps, has been met.
    fn met(&mut self, _rule: RuleId, _depth: usize, _met: Met) {}

    /// Something that is neither a hook nor a rule happened.
    fn note(&mut self, _what: String) {}
    /// Whether it has heard enough: what follows doesn't matter.
    fn has_heard(&self) -> bool {
        false
    }
}

/// Nobody watches: only the fate counts.
#[derive(Clone, Copy, Debug)]
pub struct Nobody;

impl Witness for Nobody {
    const LISTENS: bool = false;
}

/// One step of a packet's way: a hook, a rule, or a note between them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase", tag = "step")]
pub enum Event {
    /// The packet came to a hook.
    Hook {
        /// The hook or system call, by its name.
        hook: String,
        /// Protocol, addresses, ports, interfaces, owner and mark, in one line.
        packet: String,
    },
    /// A rule was asked, whether it matched or not.
    Rule {
        /// The rule, by its place in the program.
        rule: RuleId,
        /// Jumps in front of it.
        depth: usize,
        /// Whether all of it held, or what did not.
        #[serde(flatten)]
        met: Met,
    },
    /// What is neither a hook nor a rule, such as a routing decision.
    Note {
        /// In words, as a line of the explanation.
        what: String,
    },
}

/// Writes down every event of a walk.
#[derive(Clone, Debug, Default)]
pub struct Scribe {
    /// In the order in which they happened.
    pub events: Vec<Event>,
    /// How its socket was looked up; none where it was not.
    pub lookup: Option<Lookup>,
}

impl Witness for Scribe {
    const LISTENS: bool = true;

    fn at(&mut self, hook: &'static str, packet: String) {
        self.events.push(Event::Hook { hook: hook.to_owned(), packet });
    }

    fn looked_up(&mut self, lookup: Lookup) {
        self.lookup.get_or_insert(lookup);
    }

    fn met(&mut self, rule: RuleId, depth: usize, met: Met) {
        self.events.push(Event::Rule { rule, depth, met });
    }

    fn note(&mut self, what: String) {
        self.events.push(Event::Note { what });
    }
}
