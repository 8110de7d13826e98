//! What connections of a class have in common, and what cuts them.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::index::Index;
use super::namespace::somewhere;
use super::partition::Origin;
use super::question::{Direction, Identity, Known, Protocol, Question};
use super::ranges::{Ranges, address, number};
use super::rule::Field;
use super::witness::Witness;
use crate::ruleset::Masked;
use crate::value::Family;

/// What the connections of a class have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Shape {
    pub(super) family: Family,
    pub(super) origin: Origin,
    /// Whether sockets that leave their source address to the kernel are in it.
    pub(super) unbound: bool,
    /// Addresses that sockets are bound to, or that arriving packets have.
    pub(super) source: Ranges,
    /// Every other field, in its place; none where connections have no such thing.
    fields: [Option<Ranges>; OTHERS.len()],
    /// Marks that its packets have, and marks that they have not.
    pub(super) marks: BTreeMap<Masked, bool>,
}

/// Every field but the source, in order.
const OTHERS: [Field; 6] =
    [Field::Protocol, Field::SourcePort, Field::Destination, Field::Port, Field::Uid, Field::Gid];

fn place(field: Field) -> Option<usize> {
    OTHERS.iter().position(|other| *other == field)
}

/// What tells connections of a shape apart.
#[derive(Clone, Debug)]
pub(super) enum Split {
    /// Whether a field is in a set.
    Field(Field, Ranges),
    /// Which rules of many a field leads to.
    Rules(Field, Arc<Index>),
    /// Whether packets have a mark.
    Mark(Masked),
}

/// Why a shape has no example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoExample {
    /// There is no such connection.
    Empty,
    /// It can't be told whether there is one: marks are asked for in too many ways.
    Unclear,
}

impl Shape {
    /// A shape with these fields.
    pub(super) fn new<const N: usize>(
        family: Family,
        origin: Origin,
        (unbound, source): (bool, Ranges),
        values: [(Field, Ranges); N],
    ) -> Self {
        let mut fields = <[Option<Ranges>; OTHERS.len()]>::default();
        for (field, set) in values {
            if let Some(place) = place(field) {
                fields[place] = Some(set);
            }
        }
        Self { family, origin, unbound, source, fields, marks: BTreeMap::new() }
    }

    /// The values of a field; none where connections have no such thing.
    pub(super) fn values(&self, field: Field) -> Option<&Ranges> {
        match place(field) {
            Some(place) => self.fields[place].as_ref(),
            None => Some(&self.source),
        }
    }

    /// The place of a field's values.
    pub(super) fn values_mut(&mut self, field: Field) -> Option<&mut Ranges> {
        match place(field) {
            Some(place) => self.fields[place].as_mut(),
            None => Some(&mut self.source),
        }
    }

    /// The same with other values of a field.
    fn with(&self, field: Field, set: Ranges) -> Self {
        let mut shape = self.clone();
        if let Some(values) = shape.values_mut(field) {
            *values = set;
        }
        shape
    }

    /// Its parts, those for which something holds first.
    pub(super) fn cut(&self, split: &Split) -> Vec<Self> {
        match split {
            Split::Field(field, set) => {
                let Some(own) = self.values(*field) else { return vec![self.clone()] };
                vec![self.with(*field, own.and(set)), self.with(*field, own.without(set))]
            }
            Split::Rules(field, index) => {
                let Some(own) = self.values(*field) else { return vec![self.clone()] };
                index.cut(own).into_iter().map(|part| self.with(*field, part)).collect()
            }
            Split::Mark(mark) => [true, false]
                .map(|holds| {
                    let mut shape = self.clone();
                    shape.marks.insert(*mark, holds);
                    shape
                })
                .to_vec(),
        }
    }

    /// The connections that are in both. None if there are none, but marks are not looked at: which of
    /// them go together only an example tells.
    pub(super) fn and(&self, other: &Self) -> Option<Self> {
        let is_apart = |field: &Field| match (self.values(*field), other.values(*field)) {
            (Some(own), Some(others)) => !own.meets(others),
            _ => false,
        };
        let unbound = self.unbound && other.unbound;
        let apart = self.family != other.family
            || self.origin != other.origin
            || (!unbound && is_apart(&Field::Source))
            || OTHERS.iter().any(is_apart);
        if apart {
            return None;
        }
        let mut both = self.clone();
        both.unbound = unbound;
        for field in Field::ALL {
            if let (Some(own), Some(others)) = (both.values_mut(field), other.values(field)) {
                *own = own.and(others);
            }
        }
        for (mark, holds) in &other.marks {
            if both.marks.insert(*mark, *holds).is_some_and(|own| own != *holds) {
                return None;
            }
        }
        Some(both)
    }

    /// A connection of the shape, with usual ports and ids where it has them.
    pub(super) fn example(&self) -> Result<Question, NoExample> {
        let mark = fitting_mark(&self.marks)?;
        self.example_with(mark).ok_or(NoExample::Empty)
    }

    /// One of the connections, were its mark this one.
    pub(super) fn example_with(&self, mark: u32) -> Option<Question> {
        let first = |field| self.values(field).and_then(Ranges::first);
        let protocol = Protocol(u8::try_from(first(Field::Protocol)?).ok()?);
        let port = |field, usual: u128| {
            let own = self.values(field)?;
            let port = if own.contains(usual) { usual } else { own.first()? };
            u16::try_from(port).ok()
        };
        let (source_port, port) = if protocol.has_ports() {
            (port(Field::SourcePort, 40_000)?, port(Field::Port, 80)?)
        } else {
            (0, 0)
        };
        let id = |field| {
            let own = self.values(field)?;
            let id = if own.contains(1000) { 1000 } else { own.first()? };
            u32::try_from(id).ok()
        };
        let owner = match self.origin {
            Origin::Process => Some(Identity { uid: id(Field::Uid)?, gid: id(Field::Gid)? }),
            Origin::Interface(_) => None,
        };
        let source = if self.unbound { None } else { Some(usual(&self.source, self.family)?) };
        let destination = usual(self.values(Field::Destination)?, self.family)?;
        Some(Question {
            direction: match self.origin {
                Origin::Process => Direction::Out,
                Origin::Interface(_) => Direction::In,
            },
            protocol,
            source: source.map(|source| address(self.family, source)),
            source_port,
            destination: address(self.family, destination),
            port,
            owner,
            mark,
            interface: match &self.origin {
                Origin::Process => None,
                Origin::Interface(name) => Some(name.clone()),
            },
            known: Known::New,
        })
    }

    /// Whether a connection is one of them.
    pub(super) fn has(&self, question: &Question) -> bool {
        let origin = match (&self.origin, question.direction) {
            (Origin::Process, Direction::Out) => true,
            (Origin::Interface(name), Direction::In) => question.interface.as_ref() == Some(name),
            _ => false,
        };
        let from = match question.source {
            None => self.unbound,
            Some(source) => self.source.contains(number(source)),
        };
        let fields = OTHERS.iter().zip(&self.fields).all(|(field, set)| {
            let Some(set) = set else { return true };
            let owner = |id: fn(Identity) -> u32| question.owner.map(|o| u128::from(id(o)));
            let value = match field {
                Field::Protocol => Some(question.protocol.0.into()),
                Field::Source => question.source.map(number),
                Field::SourcePort => Some(question.source_port.into()),
                Field::Destination => Some(number(question.destination)),
                Field::Port => Some(question.port.into()),
                Field::Uid => owner(|o| o.uid),
                Field::Gid => owner(|o| o.gid),
            };
            let ports = matches!(field, Field::SourcePort | Field::Port);
            (ports && !question.protocol.has_ports()) || value.is_some_and(|v| set.contains(v))
        });
        let marks =
            self.marks.iter().all(|(m, holds)| (question.mark & m.mask == m.value) == *holds);
        let family = question.family() == self.family && question.known == Known::New;
        family && origin && from && fields && marks
    }
}

/// An address that says «somewhere», if it is one of them, else the first.
fn usual(set: &Ranges, family: Family) -> Option<u128> {
    let somewhere = somewhere(family);
    if set.contains(somewhere) { Some(somewhere) } else { set.first() }
}

/// A mark for which exactly these conditions hold: bit by bit what is asked for, then for each
/// condition that must not hold one bit that breaks it.
fn fitting_mark(marks: &BTreeMap<Masked, bool>) -> Result<u32, NoExample> {
    let mut settled = Masked { value: 0, mask: 0 };
    for (wanted, _) in marks.iter().filter(|(_, holds)| **holds) {
        let both = settled.mask & wanted.mask;
        if settled.value & both != wanted.value & both || wanted.value & !wanted.mask != 0 {
            return Err(NoExample::Empty);
        }
        settled.value |= wanted.value;
        settled.mask |= wanted.mask;
    }
    let never: Vec<Masked> = marks.iter().filter(|(_, holds)| !**holds).map(|(m, _)| *m).collect();
    let mut left = MOST_TRIES;
    match broken(settled, &never, &mut left) {
        Some(settled) => Ok(settled.value),
        None if left == 0 => Err(NoExample::Unclear),
        None => Err(NoExample::Empty),
    }
}

/// So many ways are tried to have none of many marks.
const MOST_TRIES: usize = 10_000;

fn broken(settled: Masked, never: &[Masked], left: &mut usize) -> Option<Masked> {
    *left = left.checked_sub(1)?;
    let holds = |mark: &Masked| {
        let known = settled.mask & mark.mask;
        settled.value & known == mark.value & known && mark.value & !mark.mask == 0
    };
    let Some(at) = never.iter().position(holds) else { return Some(settled) };
    let (first, rest) = (never[at], &never[at + 1..]);
    let free = first.mask & !settled.mask;
    (0..32).map(|bit| 1_u32 << bit).filter(|bit| free & bit != 0).find_map(|bit| {
        let value = settled.value | (!first.value & bit);
        broken(Masked { value, mask: settled.mask | bit }, rest, left)
    })
}

/// What was found about long sets: whether they are cut by others.
#[derive(Debug, Default)]
pub(super) struct Memory {
    sets: HashMap<(Ranges, Ranges), bool>,
    /// An index has an address of its own as long as its program is there.
    indices: HashMap<(Ranges, *const Index), bool>,
}

/// From so many ranges on it is worth to remember, and so much at most.
const LONG: usize = 256;
const MOST_REMEMBERED: usize = 100_000;

impl Memory {
    /// Whether a set has some of the values and not all.
    fn cuts(&mut self, values: &Ranges, set: &Ranges) -> bool {
        let cuts = || values.meets(set) && !values.is_within(set);
        if values.iter().len() < LONG {
            return cuts();
        }
        if self.sets.len() >= MOST_REMEMBERED {
            self.sets.clear();
        }
        *self.sets.entry((values.clone(), set.clone())).or_insert_with(cuts)
    }

    /// Whether an index has other rules for some of the values than for others.
    fn parts(&mut self, values: &Ranges, index: &Arc<Index>) -> bool {
        let parts = || !index.treats_alike(values);
        if values.iter().len() < LONG {
            return parts();
        }
        if self.indices.len() >= MOST_REMEMBERED {
            self.indices.clear();
        }
        *self.indices.entry((values.clone(), Arc::as_ptr(index))).or_insert_with(parts)
    }
}

/// Looks for the first thing that does not hold for all connections of a shape alike.
pub(super) struct Splitter<'s> {
    pub(super) shape: &'s Shape,
    pub(super) memory: &'s mut Memory,
    pub(super) first: Option<Split>,
}

impl Witness for Splitter<'_> {
    const LISTENS: bool = false;
    const CLASSES: bool = true;

    fn asked(&mut self, field: Field, set: &Ranges) {
        if self.first.is_none()
            && self.shape.values(field).is_some_and(|values| self.memory.cuts(values, set))
        {
            self.first = Some(Split::Field(field, set.clone()));
        }
    }

    fn asked_rules(&mut self, field: Field, index: &Arc<Index>) {
        if self.first.is_none()
            && self.shape.values(field).is_some_and(|values| self.memory.parts(values, index))
        {
            self.first = Some(Split::Rules(field, Arc::clone(index)));
        }
    }

    fn asked_mark(&mut self, mark: Masked) {
        if self.first.is_none() && !self.shape.marks.contains_key(&mark) {
            self.first = Some(Split::Mark(mark));
        }
    }

    fn has_heard(&self) -> bool {
        self.first.is_some()
    }
}
