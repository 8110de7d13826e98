//! Packets that no first packet of a connection stands for: those that come later, that belong to none, or
//! that are for many hosts; and those of interfaces and hosts that nothing says anything of. What becomes of
//! such a packet follows from more than rules, so two sets of rules are compared hook by hook: whatever the
//! packet is like that comes to a hook, both do the same with it, or how they differ is told.

mod asked;
mod kinds;
mod words;

use std::collections::HashSet;

use self::asked::Asked;
use self::kinds::{Kind, kinds};
pub(super) use self::words::packets_text;
use super::compare::ChangedChains;
use super::effects::Effects;
use super::flags::Flags;
use super::halt::Halt;
use super::namespace::{Exit, LOOPBACK, Namespace};
use super::packet::{Mark, Owner, Value};
use super::pairs::{self, Compare, Unclear};
use super::partition::{Class, Examine, LIMITS, Origin, Seen, Side, search};
use super::program::{Call, ChainId, Program, family_index, hook_index};
use super::question::Question;
use super::ranges::{Ranges, number};
use super::rule::{Field, Way};
use super::shape::{Shape, Splitter};
use super::tracking::Tracked;
use super::untold::is_unordered;
use super::walk::Walk;
use crate::ruleset::Hook;
use crate::value::Family;

/// The port of a transparent socket that a packet is handed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Handed {
    /// The port that the packet goes to.
    Own,
    /// A port that the rule names.
    To(u128),
}

/// What becomes of a packet at a hook.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum End {
    /// It goes on behind the hook, as it is or led elsewhere.
    Past {
        /// Where it is led to, address and port.
        to: (Option<u128>, Option<u128>),
        /// The transparent socket that it is handed to.
        handed: Option<Handed>,
    },
    /// It is discarded, and the sender is not told.
    Dropped,
    /// It is discarded, and the sender is told.
    Refused,
    /// It can't be told, because of this.
    Unknown(String),
}

/// The same with what else is done to it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Treatment {
    /// Whether it goes on and where it is led, or how it is discarded.
    pub end: End,
    pub(super) effects: Effects,
}

impl Treatment {
    fn unclear(what: &str) -> Self {
        Self { end: End::Unknown(what.to_owned()), effects: Effects::default() }
    }
}

/// Packets with which two sets of rules do something else.
#[derive(Clone, Debug)]
pub struct Otherwise {
    /// The hook at which they are treated differently.
    pub hook: Hook,
    /// In words, by what tracking says of them.
    pub which: &'static str,
    /// The interface that they came in by.
    pub input: Option<String>,
    /// The interface that they go out by.
    pub output: Option<String>,
    /// The packets, and what becomes of them on both sides.
    pub class: Class<(Treatment, Treatment)>,
}

/// The parts of a hook that packets pass one after the other. Between them a packet's addresses, mark and
/// state can change, so each is compared by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// In front of connection tracking.
    Untracked,
    /// In front of address translation.
    Before,
    /// The chains of address translation (`nat`), as one step.
    Translation,
    /// Behind address translation, up to the end of the hook.
    Behind,
}

const STAGES: [Stage; 4] = [Stage::Untracked, Stage::Before, Stage::Translation, Stage::Behind];

/// What a stage of a hook calls.
fn calls(program: &Program, family: Family, hook: Hook, stage: Stage) -> &[Call] {
    let all = &program.calls[family_index(family)][hook_index(hook)];
    let at = |asked: fn(&Call) -> bool| all.iter().position(asked);
    let tracks = at(|call| matches!(call, Call::Track));
    let translates = at(|call| matches!(call, Call::Translate(_)));
    let behind_tracking = tracks.map_or(0, |at| at + 1);
    let (start, end) = match stage {
        Stage::Untracked => (0, tracks.unwrap_or(0)),
        Stage::Before => (behind_tracking, translates.unwrap_or(all.len())),
        Stage::Translation => match translates {
            Some(at) => (at, at + 1),
            None => (0, 0),
        },
        Stage::Behind => (translates.map_or(all.len(), |at| at + 1), all.len()),
    };
    all.get(start.min(end)..end).unwrap_or_default()
}

/// The chains that calls lead to, each once, and first those that are called.
fn chains(calls: &[Call]) -> Vec<ChainId> {
    let mut found = Vec::new();
    for call in calls {
        match call {
            Call::Chain { chain, .. } => found.push(*chain),
            Call::Translate(chains) => found.extend(self::chains(chains)),
            // Those that follow are the same.
            Call::Track | Call::Unordered(_) => {}
        }
    }
    found
}

/// The most differences that are looked for.
const MOST: usize = 256;
/// The most interfaces of which each is looked at.
const MOST_INTERFACES: usize = 16;

/// What two sets of rules do otherwise with packets that start no connection of the first namespace's.
/// `changed` are places of chains whose rules are not the same.
pub(super) fn otherwise(
    before: Side<'_>,
    after: Side<'_>,
    changed: &ChangedChains<'_>,
) -> Vec<Otherwise> {
    let mut found = Vec::new();
    let mut seen = Seen::default();
    for family in Family::ALL {
        for hook in Hook::ALL {
            for stage in STAGES {
                let both = [before.0, after.0];
                let called = both.map(|program| calls(program, family, hook, stage));
                let ordered = called.iter().all(|calls| !is_unordered(calls));
                if ordered
                    && changed.same([(before.0, &chains(called[0])), (after.0, &chains(called[1]))])
                {
                    continue;
                }
                let asked =
                    Asked::of([(before.0, chains(called[0])), (after.0, chains(called[1]))]);
                let compared = Compared { before, after, family, hook, stage, asked: &asked };
                compared.look(&mut seen, &mut found);
                if found.len() > MOST {
                    return found;
                }
            }
        }
    }
    found
}

/// A stage of a hook that is compared.
struct Compared<'a> {
    before: Side<'a>,
    after: Side<'a>,
    family: Family,
    hook: Hook,
    stage: Stage,
    asked: &'a Asked,
}

/// Where packets are that come to a hook.
#[derive(Clone, Debug)]
struct Spot {
    input: Option<String>,
    output: Option<String>,
    /// Whether a process of the namespace has sent them.
    process: bool,
    /// Whether first packets of connections are not here: nothing says where they come from or go to.
    unsaid: bool,
}

impl Compared<'_> {
    fn look(&self, seen: &mut Seen, found: &mut Vec<Otherwise>) {
        for spot in self.spots() {
            let looped = spot.input.as_deref() == Some(LOOPBACK);
            for kind in kinds(self.asked, self.stage, spot.unsaid, looped) {
                for (mark, of_connection) in self.asked.marks(kind.back.is_some()) {
                    let classes = self.classes(&spot, &kind, (mark, of_connection), seen);
                    found.extend(classes.into_iter().map(|class| Otherwise {
                        hook: self.hook,
                        which: kind.name,
                        input: spot.input.clone(),
                        output: spot.output.clone(),
                        class,
                    }));
                    if found.len() > MOST {
                        return;
                    }
                }
            }
        }
    }

    /// The interfaces that rules tell apart, with whether it is one of the namespace's.
    fn interfaces(&self, way: Way) -> Vec<(String, bool)> {
        let own = [self.before.1, self.after.1].into_iter().flat_map(Namespace::interfaces);
        let mut names: Vec<(String, bool)> = vec![(LOOPBACK.to_owned(), true)];
        names.extend(own.map(|interface| (interface.name.clone(), true)));
        if self.before.1.supposed || self.after.1.supposed {
            let strange = self.asked.named(way);
            let strange = strange.filter(|name| names.iter().all(|(own, _)| own != name));
            let strange: Vec<_> = strange.map(|name| (name, false)).collect();
            names.extend(strange);
        }
        // Those that rules don't tell from one of the namespace's own say nothing that it doesn't.
        let mut known = HashSet::new();
        names.retain(|(name, _)| known.insert((self.asked.met(way, name), name == LOOPBACK)));
        names
    }

    /// What can't be told of any packet, since rules tell more of it apart than can be looked at.
    fn untold(&self) -> Option<&'static str> {
        if self.asked.has_many_marks() {
            return Some("what rules do that ask for marks of connections: they name too many");
        }
        let many = |way| self.interfaces(way).len() > MOST_INTERFACES;
        let many = [Way::In, Way::Out].into_iter().any(many);
        many.then_some("what rules do that ask for interfaces: they tell too many apart")
    }

    fn spots(&self) -> Vec<Spot> {
        let supposed = self.before.1.supposed || self.after.1.supposed;
        let [inputs, outputs] = [Way::In, Way::Out].map(|way| {
            let mut names = self.interfaces(way);
            names.truncate(MOST_INTERFACES);
            names
        });
        let mut spots = Vec::new();
        let mut add = |input: Option<&(String, bool)>, output: Option<&(String, bool)>, process| {
            let strange = [input, output].into_iter().flatten().any(|(_, own)| !own);
            let forwarded =
                self.hook == Hook::Forward || self.hook == Hook::Postrouting && input.is_some();
            let name = |of: Option<&(String, bool)>| of.map(|(name, _)| name.clone());
            spots.push(Spot {
                input: name(input),
                output: name(output),
                process,
                unsaid: supposed && (strange || forwarded),
            });
        };
        let outside = |(name, _): &&(String, bool)| name != LOOPBACK;
        match self.hook {
            Hook::Prerouting | Hook::Input => {
                for input in &inputs {
                    add(Some(input), None, false);
                }
            }
            Hook::Forward => {
                for input in inputs.iter().filter(outside) {
                    for output in outputs.iter().filter(outside) {
                        add(Some(input), Some(output), false);
                    }
                }
            }
            Hook::Output | Hook::Postrouting => {
                for output in &outputs {
                    add(None, Some(output), true);
                    // The kernel's own.
                    if self.asked.owner {
                        add(None, Some(output), false);
                    }
                }
                if self.hook == Hook::Postrouting {
                    for output in outputs.iter().filter(outside) {
                        for input in inputs.iter().filter(outside) {
                            add(Some(input), Some(output), false);
                        }
                    }
                }
            }
        }
        spots
    }

    fn shapes(&self, spot: &Spot, kind: &Kind) -> Vec<Shape> {
        let ids = || Ranges::up_to(u128::from(u32::MAX - 1));
        let ports = || Ranges::up_to(u16::MAX.into());
        let groups = self.before.1.routing().groups(self.family);
        let mut shapes = Vec::new();
        for (protocols, source, destination) in kind.fields(self.family, &groups) {
            let fields = [
                (Field::Protocol, protocols),
                (Field::SourcePort, ports()),
                (Field::Destination, destination),
                (Field::Port, ports()),
            ];
            let from = (false, source);
            shapes.push(if spot.process {
                let [a, b, c, d] = fields;
                let fields = [a, b, c, d, (Field::Uid, ids()), (Field::Gid, ids())];
                Shape::new(self.family, Origin::Process, from, fields)
            } else {
                let name = spot.input.clone().unwrap_or_default();
                Shape::new(self.family, Origin::Interface(name), from, fields)
            });
        }
        shapes
    }

    fn classes(
        &self,
        spot: &Spot,
        kind: &Kind,
        (mark, of_connection): (Mark, Mark),
        seen: &mut Seen,
    ) -> Vec<Class<(Treatment, Treatment)>> {
        let [first, second] = [self.before, self.after].map(|(program, namespace)| {
            let calls = calls(program, self.family, self.hook, self.stage);
            let exit = spot.output.as_deref().map(Exit::by);
            let (hook, stage, untold) = (self.hook, self.stage, self.untold());
            let marks = (mark, of_connection);
            let look =
                At { program, namespace, calls, hook, stage, spot, kind, marks, exit, untold };
            search(look, self.shapes(spot, kind).into_iter(), LIMITS, seen)
        });
        pairs::compare(&Treatments, [&first, &second], pairs::MOST)
    }
}

/// Looks for packets that are treated differently, or of which that can't be told.
struct Treatments;

impl Compare<'_, Treatment> for Treatments {
    type Pair = (Treatment, Treatment);
    type End = (Treatment, Treatment);

    fn alike(&self, was: &Treatment, is: &Treatment) -> bool {
        was == is && !matches!(was.end, End::Unknown(_))
    }

    fn pair(
        &self,
        was: &Treatment,
        is: &Treatment,
        common: &Shape,
    ) -> Option<(Self::Pair, Self::End)> {
        let [one, other] = [was, is].map(|treatment| Treatment {
            end: treatment.end.clone(),
            effects: treatment.effects.clone().knowing(&common.marks),
        });
        let pair = (one, other);
        (!self.alike(&pair.0, &pair.1)).then(|| (pair.clone(), pair))
    }

    fn unclear(&self, what: Unclear) -> (Self::Pair, Self::End) {
        let unclear = Treatment::unclear(what.words());
        let pair = (unclear.clone(), unclear);
        (pair.clone(), pair)
    }
}

/// A set of rules at a stage of a hook, and the packets that come there.
struct At<'a> {
    program: &'a Program,
    namespace: &'a Namespace,
    calls: &'a [Call],
    hook: Hook,
    stage: Stage,
    spot: &'a Spot,
    kind: &'a Kind,
    /// The packet's and its connection's.
    marks: (Mark, Mark),
    exit: Option<Exit>,
    untold: Option<&'static str>,
}

impl Examine for At<'_> {
    type Found = Treatment;
    type End = Treatment;

    fn walk(&self, example: &Question, splitter: &mut Splitter<'_>) -> (Treatment, u64) {
        if let Some(what) = self.untold {
            return (self.unclear(what), 0);
        }
        let marks = &splitter.shape.marks;
        let Kind { state, back, asks, .. } = *self.kind;
        let tracked = Tracked { state, back, mark: self.marks.1, asks };
        let mut walk = Walk::new(self.program, self.namespace, example, splitter);
        walk.preset = Some(tracked);
        walk.exit = self.exit.as_ref();
        let owner = match example.owner {
            Some(owner) => Owner::Known {
                uid: Value::asked(owner.uid.into(), Field::Uid),
                gid: Value::asked(owner.gid.into(), Field::Gid),
            },
            None if self.hook == Hook::Input => Owner::Unknown,
            // The kernel sends some by sockets of its own.
            None if self.spot.input.is_none() => Owner::Unowned,
            None => Owner::Nobody,
        };
        let source = example.source.map_or(0, number);
        let mut packet = walk.packet(Value::asked(source, Field::Source), owner);
        (packet.mark, packet.syn, packet.icmp) = (self.marks.0, self.kind.syn, self.kind.icmp);
        packet.flags = Flags::NONE_KNOWN;
        (packet.input, packet.output) = (self.spot.input.as_deref(), self.spot.output.as_deref());
        if self.stage != Stage::Untracked || back.is_some() {
            walk.found(tracked, &mut packet);
        }
        let ended = self.calls.iter().try_for_each(|call| walk.call(call, self.hook, &mut packet));
        walk.last = Some(packet);
        let mut effects = walk.effects().knowing(marks);
        let made = |value: Value, own| (value.origin != Some(own)).then_some(value.number);
        let end = match ended {
            Ok(()) => End::Past {
                to: (
                    made(packet.ends.destination, Field::Destination),
                    made(packet.ends.port, Field::Port),
                ),
                handed: packet
                    .taken
                    .map(|port| made(port, Field::Port).map_or(Handed::Own, Handed::To)),
            },
            Err(halt) => {
                effects = effects.without_marks();
                match halt {
                    Halt::Dropped { .. } => End::Dropped,
                    Halt::Refused(_) => End::Refused,
                    Halt::Unknown { what, .. } => End::Unknown(what),
                }
            }
        };
        (Treatment { end, effects }, walk.asked)
    }

    fn unclear(&self, what: &str) -> Treatment {
        Treatment::unclear(what)
    }

    fn end(&self, found: &Treatment) -> Treatment {
        found.clone()
    }
}
