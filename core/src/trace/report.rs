//! A packet's way in words and as JSON, as `explain` says it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{End, Heard, Journey, RuleRef, Said, Step, Tables, TraceVerdict};
use crate::observed::Variant;
use crate::ruleset::Hook;
use crate::sim::report::{events_json, events_text, fate_text};
use crate::sim::{ChainInfo, Direction, Event, Fate, How, Met, Program, RuleId};
use crate::value::Family;

/// The kernel's numbers of rules, chain by chain, in their order.
pub type Handles = BTreeMap<(Tables, String, String), Vec<u64>>;

/// The rules that a packet can meet.
#[derive(Clone, Debug)]
pub struct Rulebook {
    /// Rules of all backends, with the reasons of ours.
    pub program: Program,
    /// The kernel's handles of rules in `nf_tables`, by which trace messages name them.
    pub handles: Handles,
}

impl Rulebook {
    /// The families in which iptables-legacy has rules.
    pub fn legacy(&self) -> Vec<Family> {
        let holder = Variant::Legacy.to_string();
        let has = |family: &Family| {
            let of = |info: &ChainInfo| info.holder == holder && info.families.contains(family);
            self.program.chains().any(|(_, info)| of(info) && !info.rules.is_empty())
        };
        Family::ALL.into_iter().filter(has).collect()
    }

    fn chain(&self, heard: &Heard) -> Option<&ChainInfo> {
        let is = |info: &&ChainInfo| {
            let of = match heard.tables {
                Tables::Inet => info.families == Family::ALL,
                Tables::Ip(family) | Tables::Legacy(family) => info.families == [family],
            };
            let legacy = info.holder == Variant::Legacy.to_string();
            let of = of && legacy == matches!(heard.tables, Tables::Legacy(_));
            of && info.table == heard.table && info.name == heard.chain
        };
        self.program.chains().map(|(_, info)| info).find(is)
    }

    fn rule(&self, heard: &Heard) -> Option<RuleId> {
        let Said::Rule(place, _) = heard.said else { return None };
        let at = match place {
            RuleRef::Number(number) => number.checked_sub(1)?,
            RuleRef::Handle(handle) => {
                let key = (heard.tables, heard.table.clone(), heard.chain.clone());
                self.handles.get(&key)?.iter().position(|known| *known == handle)?
            }
        };
        self.chain(heard)?.rules.get(at).copied()
    }
}

/// What happened, and the end.
struct Report {
    events: Vec<Event>,
    fate: Fate,
}

/// A step with where the kernel was when it was told.
struct Placed<'j> {
    step: &'j Step,
    hook: Option<Hook>,
    /// The hook's place on the way, and the priority in it.
    order: (usize, i32),
    depth: usize,
}

/// The places of hooks on a packet's way.
const fn stage(hook: Hook, direction: Direction) -> usize {
    match (direction, hook) {
        (Direction::Out, Hook::Output) | (Direction::In, Hook::Prerouting) => 0,
        (Direction::Out, Hook::Postrouting) | (Direction::In, Hook::Input | Hook::Forward) => 1,
        (Direction::Out, Hook::Prerouting) | (Direction::In, _) => 2,
        (Direction::Out, Hook::Input | Hook::Forward) => 3,
    }
}

/// Each source tells in order, but two of them tell side by side.
fn placed<'j>(book: &Rulebook, journey: &'j Journey) -> Vec<Placed<'j>> {
    let sources: [fn(&Tables) -> bool; 2] =
        [|t| !matches!(t, Tables::Legacy(_)), |t| matches!(t, Tables::Legacy(_))];
    let mut all = Vec::new();
    for of_source in sources {
        let mut hook = None;
        let mut order = (0, i32::MIN);
        let mut jumps: Vec<&str> = Vec::new();
        for step in journey.steps.iter().filter(|step| of_source(&step.heard.tables)) {
            let base = book.chain(&step.heard).and_then(|info| info.base.as_ref());
            if let Some(base) = base {
                hook = Some(base.hook);
                order = (stage(base.hook, journey.direction), base.priority);
                jumps.clear();
            } else if let Some(reported) =
                step.heard.hook.filter(|reported| Some(*reported) != hook)
            {
                hook = Some(reported);
                order = (stage(reported, journey.direction), i32::MIN);
            }
            let chain = step.heard.chain.as_str();
            match jumps.iter().position(|known| *known == chain) {
                Some(at) => jumps.truncate(at + 1),
                None => jumps.push(chain),
            }
            all.push(Placed { step, hook, order, depth: jumps.len() - 1 });
        }
    }
    all.sort_by_key(|placed| placed.order);
    all
}

fn reported(book: &Rulebook, journey: &Journey) -> Report {
    let mut events = Vec::new();
    let mut last = None;
    let mut at = |events: &mut Vec<Event>, hook: Option<Hook>, packet: String| {
        if let Some(hook) = hook.filter(|hook| last != Some(*hook)) {
            last = Some(hook);
            events.push(Event::Hook { hook: hook.as_str().to_owned(), packet });
        }
    };
    let (mut dropped_by, mut transparent) = (None, None);
    let first = match journey.direction {
        Direction::Out => Hook::Output,
        Direction::In => Hook::Prerouting,
    };
    at(&mut events, Some(first), journey.first.to_string());
    for Placed { step, hook, depth, .. } in placed(book, journey) {
        let heard = &step.heard;
        at(&mut events, hook, step.head.to_string());
        match (heard.said, book.rule(heard)) {
            (Said::Rule(_, verdict), Some(rule)) => {
                events.push(Event::Rule { rule, depth, met: Met::Matched });
                transparent = book.program.transparent(rule).or(transparent);
                if verdict == TraceVerdict::Drop || book.program.discards(rule) {
                    dropped_by = Some((Some(rule), book.program.line(rule)));
                }
            }
            // What tells by numbers counts what a chain ends with too.
            (Said::Rule(RuleRef::Number(_), _), None) => {
                let base = book.chain(heard).and_then(|info| info.base.as_ref());
                if base.is_some_and(|base| base.policy == crate::sim::Policy::Drop) {
                    dropped_by = Some((None, format!("policy of {} {}", heard.table, heard.chain)));
                }
            }
            (Said::Rule(RuleRef::Handle(handle), verdict), None) => {
                let what = format!(
                    "{} {}: the rule with handle {handle}, which is not read here",
                    heard.table, heard.chain
                );
                if verdict == TraceVerdict::Drop {
                    dropped_by = Some((None, what.clone()));
                }
                events.push(Event::Note { what });
            }
            (Said::Policy(TraceVerdict::Drop), _) => {
                dropped_by = Some((None, format!("policy of {} {}", heard.table, heard.chain)));
            }
            (Said::Return | Said::Policy(TraceVerdict::On), _) => {}
        }
    }
    let original = journey.first.destination;
    let fate = match (&journey.end, dropped_by) {
        (End::Here(head), _) => {
            at(&mut events, Some(Hook::Input), head.to_string());
            let (how, port) = match transparent.filter(|_| head.destination == original) {
                Some(port) => (How::Transparent, port),
                None if head.destination == original => (How::Unchanged, original.port()),
                None => (How::Translated, head.destination.port()),
            };
            let (destination, source) = (head.destination, head.source);
            Fate::Delivered { port, how, destination, original, source }
        }
        (End::Away(head), _) => {
            at(&mut events, Some(Hook::Postrouting), head.to_string());
            Fate::Passed {
                interface: head.output.clone().unwrap_or_default(),
                destination: head.destination,
                source: head.source,
            }
        }
        (End::Dropped | End::Silence, Some((rule, why))) => Fate::Dropped { rule, why },
        (End::Dropped | End::Silence, None) => {
            let what = "the kernel told no more of it".to_owned();
            Fate::Unknown { rule: None, what }
        }
    };
    Report { events, fate }
}

/// A packet's way as text: `when` it began, how, each rule that it met, and the end.
pub fn journey_text(book: &Rulebook, journey: &Journey, when: &str) -> String {
    let Report { events, fate } = reported(book, journey);
    let from = match journey.direction {
        Direction::Out => "from a process",
        Direction::In => "from outside",
    };
    let mut text = format!("{when} {from} to {}/{}\n", journey.first.to(), journey.first.protocol);
    events_text(&mut text, &book.program, &events);
    text.push_str(&format!("=> {}\n", fate_text(&fate)));
    text
}

/// A packet's way as JSON.
pub fn journey_json(book: &Rulebook, journey: &Journey, when: &str) -> Value {
    let Report { events, fate } = reported(book, journey);
    json!({
        "time": when,
        "direction": journey.direction,
        "packet": journey.first,
        "fate": fate,
        "way": events_json(&book.program, &events),
    })
}
