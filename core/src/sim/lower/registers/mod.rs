//! A rule of `nf_tables` as its parts fill registers, ask about them and use them. Where a rule leads on
//! by a map, it is a rule for each of the map's elements.

mod ask;
mod make;
mod names;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use self::names::{CT, META, named};
use super::super::question::Protocol;
use super::super::ranges::Ranges;
use super::super::rule::{Action, Field, Step, Test};
use super::{Left, beside, is};
use crate::nft::listed::{Element, Ending, ListedSet, Mapped, Source, Term};
use crate::value::Family;

/// Numbers of `enum nft_meta_keys` (`linux/netfilter/nf_tables.h`).
const PROTOCOL: u32 = 1;
const MARK: u32 = 3;
const IN: u32 = 4;
const OUT: u32 = 5;
const IN_NAME: u32 = 6;
const OUT_NAME: u32 = 7;
const UID: u32 = 10;
const GID: u32 = 11;
const FAMILY: u32 = 15;
const PACKET_TYPE: u32 = 19;
const L4: u32 = 16;
/// Numbers of `enum nft_ct_keys` (`linux/netfilter/nf_tables.h`).
const CT_STATE: u32 = 0;
const CT_DIRECTION: u32 = 1;
const CT_STATUS: u32 = 2;
const CT_MARK: u32 = 3;
const SOURCE_PORT: u32 = 11;
const DESTINATION_PORT: u32 = 12;
const CT_ZONE: u32 = 17;
const SOURCE_V4: u32 = 19;
const DESTINATION_V4: u32 = 20;
const SOURCE_V6: u32 = 21;
const DESTINATION_V6: u32 = 22;
/// Numbers of `enum nft_payload_bases` (`linux/netfilter/nf_tables.h`).
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;

/// The most rules that one with maps can be.
const MOST: usize = 100_000;

/// What rules of a table have around them.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) sets: &'a BTreeMap<String, ListedSet>,
    /// The names of interfaces by their numbers.
    pub(super) interfaces: &'a BTreeMap<u32, String>,
    /// What was asked of sets so far, so that rules share what they ask.
    pub(super) asked: &'a RefCell<Asked>,
    /// How many rules maps may still lead to.
    pub(super) left: &'a Left,
}

/// The tests that a look-up in a set is.
pub(super) type Asked = HashMap<Lookup, Option<Vec<Test>>>;

/// A set, and what a look-up in it depends on: what is asked for, whether in network order, of which
/// family, negated, and whether it is of ICMP, or of protocols with ports.
type Lookup = (String, Source, bool, Option<Family>, bool, [bool; 2]);

/// The rules that a rule is.
pub(super) fn steps(terms: &[Term], family: Option<Family>, around: Around<'_>) -> Vec<Vec<Step>> {
    let mut paths = vec![Path { steps: Vec::new(), held: BTreeMap::new(), family, ended: false }];
    for term in terms {
        let mut longer = Vec::new();
        for path in paths {
            if path.ended {
                longer.push(path);
            } else {
                longer.extend(path.take(term, around));
            }
        }
        paths = longer;
        if paths.len() > MOST {
            let what = format!("a rule with maps of more than {MOST} elements");
            return vec![vec![Action::Unknown(what).into()]];
        }
    }
    if paths.is_empty() {
        // A map without elements lets everything past.
        return vec![vec![Action::Note.into()]];
    }
    paths.into_iter().map(|path| path.steps).collect()
}

/// What a register holds: `(value & mask) ^ flip`, where it is a part.
#[derive(Clone, Debug)]
struct Held {
    what: Source,
    bits: Option<(Vec<u8>, Vec<u8>)>,
    /// Whether its bytes are in network order, which they are not by themselves.
    swapped: bool,
}

impl Held {
    fn name(&self) -> String {
        match &self.what {
            Source::Other(name) => name.clone(),
            Source::Meta(key) => named("meta", &META, *key),
            Source::Ct(key) => named("ct", &CT, *key),
            Source::Extension(number) => format!("extension header {number}"),
            Source::Original(key) => named("ct original", &CT, *key),
            Source::Payload(base, offset, length) => {
                let unit = if *length == 1 { "byte" } else { "bytes" };
                // `enum nft_payload_bases`
                let header = match base {
                    0 => "link layer header".to_owned(),
                    1 => "network header".to_owned(),
                    2 => "transport header".to_owned(),
                    base => format!("header {base}"),
                };
                format!("{length} {unit} at {offset} of the {header}")
            }
            Source::Fib(result, flags) => format!("fib, result {result}, flags {flags}"),
            Source::Constant(bytes) => format!("constant {bytes:?}"),
        }
    }

    const fn length(&self) -> Option<usize> {
        Some(match &self.what {
            Source::Meta(IN_NAME | OUT_NAME) | Source::Original(SOURCE_V6 | DESTINATION_V6) => 16,
            Source::Meta(FAMILY | L4 | PACKET_TYPE) | Source::Ct(CT_DIRECTION) => 1,
            Source::Meta(PROTOCOL) | Source::Original(SOURCE_PORT | DESTINATION_PORT) => 2,
            Source::Meta(_) | Source::Ct(_) | Source::Original(_) | Source::Fib(..) => 4,
            Source::Payload(_, _, length) => *length as usize,
            Source::Constant(bytes) => bytes.len(),
            Source::Extension(_) | Source::Other(_) => return None,
        })
    }
}

/// Values from the first to the last.
type Span<'s> = (&'s [u8], &'s [u8]);

/// The first of four bytes that a register has (`enum nft_registers`: 16 bytes each, or 4).
const fn slot(register: u32) -> u32 {
    match register {
        1..=4 => (register - 1) * 4,
        register => register.saturating_sub(8),
    }
}

#[derive(Clone)]
struct Path {
    steps: Vec<Step>,
    held: BTreeMap<u32, Held>,
    family: Option<Family>,
    /// Whether nothing behind is read, since it is not known what stands here.
    ended: bool,
}

impl Path {
    fn push(&mut self, step: impl Into<Step>) {
        self.steps.push(step.into());
    }

    fn asks(&mut self, what: String) {
        self.push(Test::Unknown(what));
    }

    fn does(&mut self, what: String) {
        self.push(Action::Unknown(what));
        self.ended = true;
    }

    fn take(mut self, term: &Term, around: Around<'_>) -> Vec<Self> {
        match term {
            Term::Load(to, source) => {
                let held = Held { what: source.clone(), bits: None, swapped: false };
                self.held.insert(slot(*to), held);
            }
            Term::Bits { from, to, mask, flip } => self.bits(*from, *to, mask, flip),
            Term::Swap(from, to) => {
                if let Some(held) = self.held.get(&slot(*from)).cloned() {
                    self.held.insert(slot(*to), Held { swapped: !held.swapped, ..held });
                }
            }
            Term::Compare(from, order, value) => {
                let tests = self.compared(*from, *order, value, around);
                self.found(*from, tests);
            }
            Term::Range { from, negated, first, last } => {
                let held = self.held.get(&slot(*from)).cloned();
                let tests = held.and_then(|h| self.among(&h, &[(first, last)], *negated, around));
                self.found(*from, tests);
            }
            Term::Lookup { from, negated, to, set } => {
                return self.look_up(*from, *negated, *to, set, around);
            }
            Term::StoreMeta(key, from) => {
                let actions = self.stored(false, *key, *from);
                self.done(actions, format!("{} set", named("meta", &META, *key)));
            }
            Term::StoreCt(key, from) => {
                let actions = self.stored(true, *key, *from);
                self.done(actions, format!("{} set", named("ct", &CT, *key)));
            }
            Term::Verdict(ending) => self.push(action(ending)),
            Term::Nat { source, family, address, ports, flags } => {
                self.steps.extend(beside::choice_of(*flags).map(Step::Do));
                let action = self.nat(*source, *family, *address, *ports);
                let word = if *source { "snat" } else { "dnat" };
                self.done(action.map(|action| vec![action]), format!("{word} to what follows"));
            }
            Term::Masquerade(ends, flags) => {
                self.steps.extend(beside::choice_of(*flags).map(Step::Do));
                let action = self.ports(*ends).map(|to| vec![Action::Masquerade(to.ports)]);
                self.done(action, "masquerade to ports that follow".to_owned());
            }
            Term::Redirect(ends, flags) => {
                self.steps.extend(beside::choice_of(*flags).map(Step::Do));
                let action = self.ports(*ends).map(|to| vec![Action::Redirect(to.ports)]);
                self.done(action, "redirect to ports that follow".to_owned());
            }
            Term::Tproxy { family, address, port } => {
                let action = self.tproxy(*family, *address, *port);
                self.done(action.map(|action| vec![action]), "tproxy to what follows".to_owned());
            }
            Term::Reject { kind, code } => self.refuse(*kind, *code),
            Term::StoreOption { option, offset, from } => {
                let action = self.option_set(*option, *offset, *from);
                self.push(action);
            }
            Term::Effect(what) => self.push(Action::Effect(what.clone())),
            Term::Notrack => self.push(Action::Notrack),
            Term::Log(_) | Term::Note => self.push(Action::Note),
            Term::Asks(what) => self.asks(what.clone()),
            Term::Does(what) => self.does(what.clone()),
        }
        vec![self]
    }

    /// What a part asks about a register; unknown, by the register's name, if it is not known.
    fn found(&mut self, from: u32, tests: Option<Vec<Test>>) {
        if let Some(tests) = tests {
            self.steps.extend(tests.into_iter().map(Step::Test));
        } else {
            let held = self.held.get(&slot(from));
            self.asks(held.map_or_else(|| "an empty register".to_owned(), Held::name));
        }
    }

    fn done(&mut self, actions: Option<Vec<Action>>, what: String) {
        match actions {
            Some(actions) => self.steps.extend(actions.into_iter().map(Step::Do)),
            None => self.does(what),
        }
    }

    fn bits(&mut self, from: u32, to: u32, mask: &[u8], flip: &[u8]) {
        let Some(held) = self.held.get(&slot(from)).cloned() else { return };
        let each = |a: &[u8], b: &[u8], by: fn(u8, u8) -> u8| {
            a.iter().zip(b).map(|(a, b)| by(*a, *b)).collect::<Vec<u8>>()
        };
        let bits = match &held.bits {
            None => (mask.to_vec(), flip.to_vec()),
            Some((kept, flipped)) => (
                each(kept, mask, |a, b| a & b),
                each(&each(flipped, mask, |a, b| a & b), flip, |a, b| a ^ b),
            ),
        };
        self.held.insert(slot(to), Held { bits: Some(bits), ..held });
    }

    fn look_up(
        mut self,
        from: u32,
        negated: bool,
        to: Option<u32>,
        name: &str,
        around: Around<'_>,
    ) -> Vec<Self> {
        let Some(set) = around.sets.get(name).filter(|set| !set.changes) else {
            self.asks(format!("the set {name}, which changes by itself"));
            if to.is_some() {
                self.does(format!("the map {name}, which changes by itself"));
            }
            return vec![self];
        };
        let first = slot(from);
        let whole = self.held.get(&first).cloned();
        let length = whole.as_ref().and_then(Held::length);
        let plain = length.is_some_and(|length| set.length <= length.next_multiple_of(4));
        if let (None, true, Some(held)) = (to, plain, &whole) {
            let held = held.clone();
            let tests = self.in_set(&held, name, set, negated, around);
            self.found(from, tests);
            return vec![self];
        }
        let what = whole.as_ref().map_or_else(|| "an empty register".to_owned(), Held::name);
        let unstable = |held: &Held| matches!(held.what, Source::Meta(MARK) | Source::Ct(CT_MARK));
        // What is done for one element can change a mark, and then another element would match too. What
        // is done in front of the map would be done once more for each.
        let asks = |step: &Step| matches!(step, Step::Test(_) | Step::Do(Action::Note));
        let turns = set.elements.len() > 1
            && (!self.steps.iter().all(asks)
                || whole.as_ref().is_some_and(unstable)
                    && !(to == Some(0) && set.elements.iter().all(stays)));
        let may =
            !negated && !turns && (set.elements.len() == 1 || around.left.take(set.elements.len()));
        let paths = if may { self.branches(first, to, set, around) } else { None };
        paths.unwrap_or_else(|| {
            match to {
                Some(_) => self.does(format!("{what} in the map {name}")),
                None => self.asks(format!("{what} in the set {name}")),
            }
            vec![self.clone()]
        })
    }

    /// Whether what is held is in a set.
    fn in_set(
        &mut self,
        held: &Held,
        name: &str,
        set: &ListedSet,
        negated: bool,
        around: Around<'_>,
    ) -> Option<Vec<Test>> {
        let kinds = [self.is_only(&Protocol::icmp()), self.is_only(&Protocol::with_ports())];
        let (name, what) = (name.to_owned(), held.what.clone());
        let lookup = (name, what, held.swapped, self.family, negated, kinds);
        // Of a family it follows which fields there are behind it.
        let settles = matches!(held.what, Source::Meta(FAMILY | PROTOCOL)) || held.bits.is_some();
        let known = || around.asked.borrow().get(&lookup).cloned();
        if let Some(tests) = known().filter(|_| !settles) {
            return tests;
        }
        let spans = set.elements.iter().map(|e| Some((&e.first.as_ref()?[..], &e.last[..])));
        let tests = match spans.collect::<Option<Vec<Span<'_>>>>() {
            // A set without elements has nothing.
            Some(spans) if spans.is_empty() => {
                Some(vec![is(Field::Protocol, negated, Ranges::default())])
            }
            Some(spans) => self.among(held, &spans, negated, around),
            None => None,
        };
        if !settles {
            around.asked.borrow_mut().insert(lookup, tests.clone());
        }
        tests
    }

    /// A path for each element.
    fn branches(
        &self,
        first: u32,
        to: Option<u32>,
        set: &ListedSet,
        around: Around<'_>,
    ) -> Option<Vec<Self>> {
        let mut paths = Vec::new();
        let keyed = set.elements.iter().filter(|element| element.first.is_some());
        for element in keyed {
            let mut path = self.clone();
            path.hold(first, set.length, element, around)?;
            paths.push(path.mapped(to, element)?);
        }
        // What stands for all others comes behind all of them, and only where each was asked in vain;
        // that is known only of those that don't come back.
        let rest = set.elements.iter().find(|element| element.first.is_none());
        if let Some(element) = rest {
            let held = self.held.get(&first)?.clone();
            let spans =
                set.elements.iter().filter_map(|e| Some((&e.first.as_ref()?[..], &e.last[..])));
            let spans: Vec<Span<'_>> = spans.collect();
            let mut path = self.clone();
            if !spans.is_empty() {
                if held.length().is_none_or(|length| set.length > length.next_multiple_of(4)) {
                    return None;
                }
                let tests = path.among(&held, &spans, true, around)?;
                path.steps.extend(tests.into_iter().map(Step::Test));
            }
            paths.push(path.mapped(to, element)?);
        }
        Some(paths)
    }

    /// The values of an element's key are in the registers from a slot on.
    fn hold(
        &mut self,
        first: u32,
        length: usize,
        element: &Element,
        around: Around<'_>,
    ) -> Option<()> {
        let start = element.first.as_ref()?;
        let mut at = 0;
        while at < length {
            let slot = first + u32::try_from(at / 4).ok()?;
            let held = self.held.get(&slot)?.clone();
            let own = held.length()?;
            let (a, b) = (start.get(at..at + own)?, element.last.get(at..at + own)?);
            let tests = self.among(&held, &[(a, b)], false, around)?;
            self.steps.extend(tests.into_iter().map(Step::Test));
            at += own.next_multiple_of(4);
        }
        Some(())
    }

    /// What an element leads to.
    fn mapped(mut self, to: Option<u32>, element: &Element) -> Option<Self> {
        match (to, &element.mapped) {
            (None, _) => {}
            (Some(0), Some(Mapped::Verdict(ending))) => self.push(action(ending.as_ref()?)),
            (Some(to), Some(Mapped::Value(bytes))) => {
                let what = Source::Constant(bytes.clone());
                self.held.insert(slot(to), Held { what, bits: None, swapped: false });
            }
            _ => return None,
        }
        Some(self)
    }
}

/// Whether what an element leads to comes back to the rule with no mark changed.
const fn stays(element: &Element) -> bool {
    !matches!(element.mapped, Some(Mapped::Value(_) | Mapped::Verdict(Some(Ending::Jump(_)))))
}

fn action(ending: &Ending) -> Action {
    match ending {
        Ending::Accept => Action::Accept,
        Ending::Drop => Action::Drop,
        Ending::Return => Action::Return,
        Ending::Jump(chain) => Action::Jump(chain.clone()),
        Ending::Goto(chain) => Action::Goto(chain.clone()),
        Ending::Continue => Action::Note,
    }
}

/// A number in the machine's byte order.
fn host(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.try_into().ok()?))
}
