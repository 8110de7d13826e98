//! Rules of any number of sources, put together as the kernel calls them. Compiled once, walked
//! often.

use std::collections::HashMap;

use serde::Serialize;

use super::alike::Grouped;
use super::chains::DEEPEST;
use super::index::{Run, runs};
use super::order::by_priority;
use super::ranges::Ranges;
use super::rule::{Action, Field, Step, Test};
use super::untold::Untold;
use crate::iptables::Counters;
use crate::ruleset::{Hook, Reason};
use crate::value::Family;
use crate::visible::in_a_line;

/// What a base chain is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Letting past or not, and marking.
    Filter,
    /// Routing again when something of the packet was changed.
    Route,
    /// Address translation, once for each connection.
    Nat,
    /// Choosing a connection's socket, once for each connection: eBPF programs at `connect()` and
    /// `sendmsg()` (hook OUTPUT), before anything is routed, and at the lookup of the socket that
    /// something is for (hook INPUT), behind all other hooks.
    Socket,
}

/// Where a chain is called from by the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// The hook of the kernel that calls it.
    pub hook: Hook,
    /// Its type, which says when it is asked and what it can change.
    pub kind: Kind,
    /// Its place among the others, low first.
    pub priority: i32,
    /// What becomes of a packet that no rule decides about.
    pub policy: Policy,
}

/// The end of a base chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The packet goes on to the next chain or hook.
    #[default]
    Accept,
    /// The packet is discarded, and the sender is not told.
    Drop,
}

/// A rule of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceRule {
    /// Its text, as its own language has it, without its chain.
    pub text: String,
    /// Why it is there, if that is known.
    pub reason: Option<Reason>,
    /// Packets and bytes that matched it; none where its source has no counters.
    pub counters: Option<Counters>,
    /// Conditions and actions, evaluated from left to right.
    pub steps: Vec<Step>,
    /// Whether there is more to it than what it means here says: two such rules can be alike here and
    /// do different things.
    pub vague: bool,
    /// What it has beside that.
    pub beside: Beside,
}

/// What a rule has beside all that it does to connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beside {
    /// What makes no difference to a connection, in words that are the same for the same.
    pub noted: String,
    /// Whether it asks about what is held elsewhere, and in no rule: sets of ipset.
    pub elsewhere: bool,
}

/// A chain of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceChain {
    /// Unique in its table.
    pub name: String,
    /// Where it is called from, if the kernel calls it.
    pub base: Option<Base>,
    /// In the order in which the kernel asks them.
    pub rules: Vec<SourceRule>,
}

/// A table of a source: chains that can jump to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceTable {
    /// What holds it: `iptables`, `nftables`.
    pub holder: String,
    /// Unique among those of one holder and family.
    pub name: String,
    /// The families whose packets come here.
    pub families: Vec<Family>,
    /// Base chains, and those that rules jump to.
    pub chains: Vec<SourceChain>,
}

/// A rule, by its place in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RuleId(pub usize);

/// A chain, by its place in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainId(pub usize);

/// What there is to say about a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// The chain that it is a rule of.
    pub chain: ChainId,
    /// Its place in the chain, counted from 1.
    pub number: usize,
    /// As whoever wrote it would read it: a line of iptables-save or of `nft list`.
    pub text: String,
    /// The setting behind it and its purpose; none where that is not known.
    pub reason: Option<Reason>,
    /// Packets and bytes that matched it; none where its source has no counters.
    pub counters: Option<Counters>,
    /// Whether there is more to it than its meaning says.
    pub(super) vague: bool,
    /// What it has beside that.
    pub(super) beside: Beside,
}

/// What there is to say about a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainInfo {
    /// What holds its table, such as `iptables-nft`, `nftables` or `ebpf`.
    pub holder: String,
    /// The name of the table that it is in.
    pub table: String,
    /// Unique in its table.
    pub name: String,
    /// The families whose packets come here.
    pub families: Vec<Family>,
    /// Where it is called from.
    pub base: Option<Base>,
    /// In the order in which the kernel asks them.
    pub rules: Vec<RuleId>,
}

#[derive(Clone, Debug)]
pub(super) struct Chain {
    pub(super) rules: Vec<(RuleId, Vec<Bound>)>,
    pub(super) runs: Vec<Run>,
    pub(super) grouped: Option<Grouped>,
    pub(super) policy: Policy,
}

/// A step with its jump bound to a chain.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Bound {
    Test(Test),
    Do(Action),
    Jump { to: ChainId, back: bool },
}

/// What the kernel does at a hook, in order.
#[derive(Clone, Debug)]
pub(super) enum Call {
    Track,
    Chain {
        kind: Kind,
        chain: ChainId,
        priority: i32,
    },
    /// The chains of address translation.
    Translate(Vec<Self>),
    /// What follows is called in an order that is not known.
    Unordered(Vec<Ordered>),
}

/// One of several that are called at the same hook and priority.
#[derive(Clone, Debug)]
pub(super) struct Ordered {
    /// The table it belongs to: its chains come one behind the other as they are here.
    pub(super) table: usize,
    pub(super) call: Call,
}

/// Rules, ready to be walked.
#[derive(Clone, Debug)]
pub struct Program {
    pub(super) chains: Vec<Chain>,
    pub(super) calls: [[Vec<Call>; 5]; 2],
    /// Chains that choose sockets, where something is sent and where it arrives.
    pub(super) sockets: [[Vec<ChainId>; 2]; 2],
    rules: Vec<RuleInfo>,
    infos: Vec<ChainInfo>,
    /// The table of each chain, by its place.
    tables: Vec<usize>,
    /// Of rules that are alike the first one, by each of them.
    alike: HashMap<RuleId, RuleId>,
    /// How many jumps in each other are walked.
    pub(super) deepest: usize,
    /// What of it can't be told, whatever the rules say.
    pub(super) untold: Untold,
}

/// Priorities of connection tracking and address translation (`linux/netfilter_ipv4.h`).
const TRACK: i32 = -200;
const TRANSLATE_DESTINATION: i32 = -100;
const TRANSLATE_SOURCE: i32 = 100;

impl Program {
    /// Put tables together. Of chains of one table with the same priority the last is called first.
    pub fn new(tables: Vec<SourceTable>) -> Self {
        let mut program = Self {
            chains: Vec::new(),
            calls: std::array::from_fn(|_| std::array::from_fn(|_| Vec::new())),
            sockets: Default::default(),
            rules: Vec::new(),
            infos: Vec::new(),
            tables: Vec::new(),
            alike: HashMap::new(),
            deepest: DEEPEST,
            untold: Untold::default(),
        };
        for (place, table) in tables.into_iter().enumerate() {
            program.add(table, place);
        }
        for family in Family::ALL {
            for hook in Hook::ALL {
                program.calls[family_index(family)][hook_index(hook)] = program.order(family, hook);
            }
            program.sockets[family_index(family)] =
                [Hook::Output, Hook::Input].map(|hook| program.choosers(family, hook));
        }
        program
    }

    fn add(&mut self, table: SourceTable, place: usize) {
        let first = self.chains.len();
        let places: HashMap<String, ChainId> = table
            .chains
            .iter()
            .enumerate()
            .map(|(at, chain)| (chain.name.clone(), ChainId(first + at)))
            .collect();
        for chain in table.chains {
            let id = ChainId(self.chains.len());
            let mut rules = Vec::with_capacity(chain.rules.len());
            let mut ids = Vec::with_capacity(chain.rules.len());
            for (index, rule) in chain.rules.into_iter().enumerate() {
                let rule_id = RuleId(self.rules.len());
                // What is in a chain that is not there nobody has said.
                let absent = |step: &Step| match step {
                    Step::Do(Action::Jump(name) | Action::Goto(name)) => !places.contains_key(name),
                    _ => false,
                };
                let elsewhere = rule.beside.elsewhere || rule.steps.iter().any(absent);
                let bound = rule.steps.into_iter().map(|step| bind(step, &places)).collect();
                rules.push((rule_id, bound));
                ids.push(rule_id);
                self.rules.push(RuleInfo {
                    chain: id,
                    number: index + 1,
                    text: rule.text,
                    reason: rule.reason,
                    counters: rule.counters,
                    vague: rule.vague,
                    beside: Beside { elsewhere, ..rule.beside },
                });
            }
            let policy = chain.base.as_ref().map_or(Policy::Accept, |base| base.policy);
            let runs = runs(&rules);
            for run in &runs {
                let mut firsts: HashMap<usize, RuleId> = HashMap::new();
                for (kind, (id, _)) in run.kinds.iter().zip(&rules[run.first..run.end]) {
                    let first = *firsts.entry(*kind).or_insert(*id);
                    if first != *id {
                        self.alike.extend([(*id, first), (first, first)]);
                    }
                }
            }
            let grouped = Grouped::of(&rules, &runs);
            for block in grouped.iter().flat_map(|grouped| &grouped.blocks) {
                self.alike.extend(block.iter().map(|id| (*id, block[0])));
            }
            self.chains.push(Chain { rules, runs, grouped, policy });
            self.tables.push(place);
            self.infos.push(ChainInfo {
                holder: table.holder.clone(),
                table: table.name.clone(),
                name: chain.name,
                families: table.families.clone(),
                base: chain.base,
                rules: ids,
            });
        }
    }

    fn choosers(&self, family: Family, hook: Hook) -> Vec<ChainId> {
        let here = |base: &Base| base.hook == hook && base.kind == Kind::Socket;
        let of_family = |info: &ChainInfo| info.families.contains(&family);
        let infos = self.infos.iter().enumerate();
        infos
            .filter(|(_, info)| of_family(info) && info.base.as_ref().is_some_and(here))
            .map(|(at, _)| ChainId(at))
            .collect()
    }

    fn order(&self, family: Family, hook: Hook) -> Vec<Call> {
        let mut called: Vec<(i32, Ordered)> = Vec::new();
        // The chain that was registered last is called first.
        for (at, info) in self.infos.iter().enumerate().rev() {
            let base = info.base.as_ref();
            let base = base.filter(|base| base.hook == hook && base.kind != Kind::Socket);
            if let Some(base) = base.filter(|_| info.families.contains(&family)) {
                let (kind, priority) = (base.kind, base.priority);
                let call = Call::Chain { kind, chain: ChainId(at), priority };
                called.push((priority, Ordered { table: self.tables[at], call }));
            }
        }
        called.sort_by_key(|(_, ordered)| ordered.table);
        let (nat, mut calls): (Vec<_>, Vec<_>) = called
            .into_iter()
            .partition(|(_, o)| matches!(o.call, Call::Chain { kind: Kind::Nat, .. }));
        let translate = Call::Translate(by_priority(nat));
        // Neither has a table: when they were registered follows from no listing.
        let (track, nat) = (usize::MAX, usize::MAX - 1);
        match hook {
            Hook::Prerouting | Hook::Output => {
                calls.push((TRACK, Ordered { table: track, call: Call::Track }));
                calls.push((TRANSLATE_DESTINATION, Ordered { table: nat, call: translate }));
            }
            Hook::Input | Hook::Postrouting => {
                calls.push((TRANSLATE_SOURCE, Ordered { table: nat, call: translate }));
            }
            Hook::Forward => {}
        }
        by_priority(calls)
    }

    /// What there is to say about a rule of this program.
    pub fn rule(&self, id: RuleId) -> &RuleInfo {
        &self.rules[id.0]
    }

    /// What there is to say about a chain of this program.
    pub fn chain(&self, id: ChainId) -> &ChainInfo {
        &self.infos[id.0]
    }

    /// All chains of all tables, in the order of their places.
    pub fn chains(&self) -> impl Iterator<Item = (ChainId, &ChainInfo)> {
        self.infos.iter().enumerate().map(|(at, info)| (ChainId(at), info))
    }

    /// Of rules in a row that are alike but for the values of a field the first one.
    pub fn first_alike(&self, id: RuleId) -> RuleId {
        self.alike.get(&id).copied().unwrap_or(id)
    }

    /// Whether there are rules in a row with this one that are alike.
    pub(super) fn has_alike(&self, id: RuleId) -> bool {
        self.alike.contains_key(&id)
    }

    /// Whether a rule is for all of a class, and not only for the example.
    pub(super) fn is_for_all<'c>(
        &self,
        id: RuleId,
        values: impl Fn(Field) -> Option<&'c Ranges>,
    ) -> bool {
        self.steps(id).iter().all(|step| match step {
            Bound::Test(Test::Is { field, negated: false, set, .. }) => {
                values(*field).is_none_or(|values| values.is_within(set))
            }
            _ => true,
        })
    }

    /// The parts of a rule.
    pub(super) fn steps(&self, id: RuleId) -> &[Bound] {
        let info = self.rule(id);
        &self.chains[info.chain.0].rules[info.number - 1].1
    }

    /// The port of the transparent socket that a rule hands packets to.
    pub fn transparent(&self, rule: RuleId) -> Option<u16> {
        self.actions(rule).find_map(|action| match action {
            Action::Tproxy { port, .. } => *port,
            _ => None,
        })
    }

    /// Whether some rule hands packets to a transparent socket on this port, or on any.
    pub(super) fn hands_to(&self, port: u16) -> bool {
        let steps = self.chains.iter().flat_map(|chain| &chain.rules).flat_map(|(_, steps)| steps);
        let mut ports = steps.filter_map(|step| match step {
            Bound::Do(Action::Tproxy { port, .. }) => Some(*port),
            _ => None,
        });
        ports.any(|own| own.is_none_or(|own| own == port))
    }

    /// Whether a rule discards what it matches.
    pub fn discards(&self, rule: RuleId) -> bool {
        self.actions(rule).any(|action| matches!(action, Action::Drop | Action::Reject(_)))
    }

    fn actions(&self, rule: RuleId) -> impl Iterator<Item = &Action> {
        let info = self.rule(rule);
        let (_, steps) = &self.chains[info.chain.0].rules[info.number - 1];
        steps.iter().filter_map(|step| match step {
            Bound::Do(action) => Some(action),
            _ => None,
        })
    }

    /// A rule in one line: its table, chain, number and text.
    pub fn line(&self, id: RuleId) -> String {
        let rule = self.rule(id);
        let chain = self.chain(rule.chain);
        let line = format!("{} {} {}: {}", chain.table, chain.name, rule.number, rule.text);
        in_a_line(&line).into_owned()
    }
}

fn bind(step: Step, places: &HashMap<String, ChainId>) -> Bound {
    let jump = |name: &String, back| match places.get(name) {
        Some(to) => Bound::Jump { to: *to, back },
        None => Bound::Do(Action::Unknown(format!("jump to {name}, which is not there"))),
    };
    match step {
        Step::Test(test) => Bound::Test(test),
        Step::Do(Action::Jump(name)) => jump(&name, true),
        Step::Do(Action::Goto(name)) => jump(&name, false),
        Step::Do(action) => Bound::Do(action),
    }
}

pub(super) const fn family_index(family: Family) -> usize {
    match family {
        Family::V4 => 0,
        Family::V6 => 1,
    }
}

pub(super) const fn hook_index(hook: Hook) -> usize {
    match hook {
        Hook::Prerouting => 0,
        Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output => 3,
        Hook::Postrouting => 4,
    }
}
