//! All connections, in classes that rules treat alike.
//!
//! A class is walked with one of its connections as the example. Wherever the way depends on
//! something that does not hold for the whole class, the class is cut in two there, and both parts
//! are walked again; so in the end nothing on the way of a class tells its connections apart. What
//! ends alike, by the same rules, is put together again.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::fate::Outcome;
use super::namespace::{Namespace, somewhere, unicast};
use super::program::{Program, RuleId};
use super::question::{Direction, Identity, Known, Protocol, Question};
use super::ranges::{Ranges, address, number};
use super::rule::Field;
use super::walk::{Answer, Walk};
use super::witness::{Split, Splitter};
use crate::ruleset::Masked;
use crate::value::Family;

/// Where connections of a class start.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// In a process of the namespace.
    Process,
    /// Outside, and they arrive by this interface.
    Interface(String),
}

/// The source addresses of a class.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct From {
    /// Whether sockets that leave the choice to the kernel are in it.
    unbound: bool,
    /// Addresses that sockets are bound to, or that arriving packets have.
    addresses: Ranges,
}

/// What the connections of a class have in common.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Shape {
    family: Family,
    origin: Origin,
    from: From,
    /// Every field but the source.
    fields: BTreeMap<Field, Ranges>,
    /// Marks that its packets have, and marks that they have not.
    marks: BTreeMap<Masked, bool>,
}

/// Connections that are treated alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class<A = Answer> {
    shape: Shape,
    /// One of them.
    pub example: Question,
    /// What becomes of it. The outcome and the rules are those of all of them.
    pub answer: A,
}

/// What can be said about a class.
trait Ending {
    /// What classes must have in common to be one.
    type Key: Hash + Eq;

    fn key(&self) -> Self::Key;
}

impl Ending for Answer {
    type Key = (Outcome, Vec<RuleId>);

    fn key(&self) -> Self::Key {
        (self.outcome.clone(), self.decided.clone())
    }
}

/// What becomes of connections under two sets of rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Under the first.
    pub before: Answer,
    /// Under the second.
    pub after: Answer,
}

impl Ending for Change {
    type Key = (Outcome, Outcome);

    fn key(&self) -> Self::Key {
        (self.before.outcome.clone(), self.after.outcome.clone())
    }
}

impl Change {
    /// Whether the connections notice. Why something is dropped makes no difference to them.
    fn is_one(&self) -> bool {
        match (&self.before.outcome, &self.after.outcome) {
            (Outcome::Dropped { .. }, Outcome::Dropped { .. }) => false,
            // What is not known may be anything.
            (Outcome::Unknown { .. }, _) => true,
            (before, after) => before != after,
        }
    }
}

/// Protocols that rules can tell apart by more than their number: TCP, UDP, others with ports, and
/// the rest.
fn protocols() -> [Ranges; 4] {
    let with_ports: Ranges = (0..=u8::MAX)
        .filter(|p| Protocol(*p).has_ports())
        .map(|p| (u128::from(p), u128::from(p)))
        .collect();
    let [tcp, udp] = [Protocol::TCP, Protocol::UDP].map(|p| Ranges::one(p.0.into()));
    let others = with_ports.without(&tcp).without(&udp);
    let rest = Ranges::up_to(u8::MAX.into()).without(&with_ports);
    [tcp, udp, others, rest]
}

/// Every connection that a process of the namespace can start, and every one that can arrive from
/// outside, in classes. New connections between unicast addresses are meant: what connection
/// tracking finds invalid is in no class. Sockets can be bound to the namespace's own addresses.
pub fn partition(program: &Program, namespace: &Namespace) -> Vec<Class> {
    let mut walk = |question: &Question, shape: &Shape| {
        let (answer, split) = walked(program, namespace, question, shape);
        split.map_or(Ok(answer), Err)
    };
    classes(namespace, &mut walk)
}

/// The connections of which something else becomes under other rules.
pub fn changes(
    before: (&Program, &Namespace),
    after: (&Program, &Namespace),
) -> Vec<Class<Change>> {
    let mut walk = |question: &Question, shape: &Shape| {
        let (first, split) = walked(before.0, before.1, question, shape);
        if let Some(split) = split {
            return Err(split);
        }
        let (second, split) = walked(after.0, after.1, question, shape);
        split.map_or(Ok(Change { before: first, after: second }), Err)
    };
    let mut changes = classes(before.1, &mut walk);
    changes.retain(|class| class.answer.is_one());
    changes
}

/// What becomes of an example, and what tells the connections of its shape apart on its way.
fn walked(
    program: &Program,
    namespace: &Namespace,
    example: &Question,
    shape: &Shape,
) -> (Answer, Option<Split>) {
    let differs = |split: &Split| shape.is_cut_by(split);
    let mut splitter = Splitter { differs, first: None };
    let answer = Walk::new(program, namespace, example, &mut splitter).first();
    (answer, splitter.first)
}

/// Ask about an example of a shape: the answer, or what tells the connections of the shape apart.
type Ask<'a, A> = &'a mut dyn FnMut(&Question, &Shape) -> Result<A, Split>;

fn classes<A: Ending>(namespace: &Namespace, ask: Ask<'_, A>) -> Vec<Class<A>> {
    let mut classes = Vec::new();
    for shape in Family::ALL.into_iter().flat_map(|family| all(namespace, family)) {
        classes.extend(parts(ask, shape));
    }
    merge(classes)
}

/// The classes of a shape. What was cut and ends alike is put together at once, so that there are
/// never many more of them than in the end.
fn parts<A: Ending>(ask: Ask<'_, A>, shape: Shape) -> Vec<Class<A>> {
    // A mark may be asked for in so many ways that nothing is left.
    let Some(example) = shape.example() else { return Vec::new() };
    let split = match ask(&example, &shape) {
        Ok(answer) => return vec![Class { shape, example, answer }],
        Err(split) => split,
    };
    let [inside, outside] = shape.cut(&split);
    let mut classes = parts(ask, inside);
    classes.extend(parts(ask, outside));
    match split {
        Split::Field(field, _) => joined_by_field(classes, field),
        Split::Mark(mark) => joined_by_mark(classes, mark),
    }
}

fn all(namespace: &Namespace, family: Family) -> Vec<Shape> {
    let ids = || Ranges::up_to(u128::from(u32::MAX - 1));
    let mut shapes = Vec::new();
    for protocols in protocols() {
        let fields = BTreeMap::from([
            (Field::Protocol, protocols),
            (Field::SourcePort, Ranges::up_to(u16::MAX.into())),
            (Field::Destination, unicast(family)),
            (Field::Port, Ranges::up_to(u16::MAX.into())),
        ]);
        let shape =
            |origin, from, fields| Shape { family, origin, from, fields, marks: BTreeMap::new() };
        let mut with_owner = fields.clone();
        with_owner.extend([(Field::Uid, ids()), (Field::Gid, ids())]);
        let unbound = From { unbound: true, addresses: Ranges::default() };
        shapes.push(shape(Origin::Process, unbound, with_owner.clone()));
        let bound = From { unbound: false, addresses: namespace.local(family).clone() };
        shapes.push(shape(Origin::Process, bound, with_owner));
        for interface in namespace.interfaces() {
            let from = From { unbound: false, addresses: unicast(family) };
            let origin = Origin::Interface(interface.name.clone());
            shapes.push(shape(origin, from, fields.clone()));
        }
    }
    shapes
}

impl Shape {
    /// The values of a field; none where connections have no such thing.
    fn values(&self, field: Field) -> Option<&Ranges> {
        match field {
            Field::Source => Some(&self.from.addresses),
            other => self.fields.get(&other),
        }
    }

    /// Whether something holds for some of the connections and not for others.
    fn is_cut_by(&self, split: &Split) -> bool {
        match split {
            Split::Field(field, set) => self
                .values(*field)
                .is_some_and(|own| !own.and(set).is_empty() && !own.without(set).is_empty()),
            Split::Mark(mark) => !self.marks.contains_key(mark),
        }
    }

    /// The connections for which something holds, and the others.
    fn cut(self, split: &Split) -> [Self; 2] {
        let [mut inside, mut outside] = [self.clone(), self];
        match split {
            Split::Field(Field::Source, set) => {
                inside.from.addresses = inside.from.addresses.and(set);
                outside.from.addresses = outside.from.addresses.without(set);
            }
            Split::Field(field, set) => {
                for (shape, is_in) in [(&mut inside, true), (&mut outside, false)] {
                    if let Some(own) = shape.fields.get_mut(field) {
                        *own = if is_in { own.and(set) } else { own.without(set) };
                    }
                }
            }
            Split::Mark(mark) => {
                inside.marks.insert(*mark, true);
                outside.marks.insert(*mark, false);
            }
        }
        [inside, outside]
    }

    /// One of the connections; none if there is none.
    fn example(&self) -> Option<Question> {
        let mark = fitting_mark(&self.marks)?;
        let first = |field| self.fields.get(&field).and_then(Ranges::first);
        let protocol = Protocol(u8::try_from(first(Field::Protocol)?).ok()?);
        let port = |field, usual: u128| {
            let own = self.fields.get(&field)?;
            let port = if own.contains(usual) { usual } else { own.first()? };
            u16::try_from(port).ok()
        };
        let (source_port, port) = if protocol.has_ports() {
            (port(Field::SourcePort, 40_000)?, port(Field::Port, 80)?)
        } else {
            (0, 0)
        };
        let id = |field| {
            let own = self.fields.get(&field)?;
            let id = if own.contains(1000) { 1000 } else { own.first()? };
            u32::try_from(id).ok()
        };
        let owner = match self.origin {
            Origin::Process => Some(Identity { uid: id(Field::Uid)?, gid: id(Field::Gid)? }),
            Origin::Interface(_) => None,
        };
        let source =
            if self.from.unbound { None } else { Some(usual(&self.from.addresses, self.family)?) };
        let destination = usual(self.fields.get(&Field::Destination)?, self.family)?;
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

    fn has(&self, question: &Question) -> bool {
        let origin = match (&self.origin, question.direction) {
            (Origin::Process, Direction::Out) => true,
            (Origin::Interface(name), Direction::In) => question.interface.as_ref() == Some(name),
            _ => false,
        };
        let from = match question.source {
            None => self.from.unbound,
            Some(source) => self.from.addresses.contains(number(source)),
        };
        let fields = self.fields.iter().all(|(field, set)| {
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
fn fitting_mark(marks: &BTreeMap<Masked, bool>) -> Option<u32> {
    let mut settled = Masked { value: 0, mask: 0 };
    for (wanted, _) in marks.iter().filter(|(_, holds)| **holds) {
        let both = settled.mask & wanted.mask;
        if settled.value & both != wanted.value & both || wanted.value & !wanted.mask != 0 {
            return None;
        }
        settled.value |= wanted.value;
        settled.mask |= wanted.mask;
    }
    let never: Vec<Masked> = marks.iter().filter(|(_, holds)| !**holds).map(|(m, _)| *m).collect();
    broken(settled, &never).map(|settled| settled.value)
}

fn broken(settled: Masked, never: &[Masked]) -> Option<Masked> {
    let Some((first, rest)) = never.split_first() else { return Some(settled) };
    let known = settled.mask & first.mask;
    if settled.value & known != first.value & known || first.value & !first.mask != 0 {
        return broken(settled, rest);
    }
    let free = first.mask & !settled.mask;
    (0..32).map(|bit| 1_u32 << bit).filter(|bit| free & bit != 0).find_map(|bit| {
        let value = settled.value | (!first.value & bit);
        broken(Masked { value, mask: settled.mask | bit }, rest)
    })
}

/// Put classes together that end alike by the same rules and differ in one thing only.
fn merge<A: Ending>(mut classes: Vec<Class<A>>) -> Vec<Class<A>> {
    loop {
        let before = classes.len();
        classes = Field::ALL.into_iter().fold(classes, joined_by_field);
        let asked: Vec<Masked> =
            classes.iter().flat_map(|c| c.shape.marks.keys().copied()).collect();
        classes = asked.into_iter().fold(classes, joined_by_mark);
        if classes.len() == before {
            classes.sort_by(|a, b| a.shape.cmp(&b.shape));
            return classes;
        }
    }
}

/// Join classes that differ in the values of one field only.
fn joined_by_field<A: Ending>(classes: Vec<Class<A>>, field: Field) -> Vec<Class<A>> {
    if field == Field::Source {
        let nothing = || From { unbound: false, addresses: Ranges::default() };
        return joined(
            classes,
            |shape| std::mem::replace(&mut shape.from, nothing()),
            |shape, from| {
                shape.from.unbound |= from.unbound;
                shape.from.addresses = shape.from.addresses.or(&from.addresses);
            },
        );
    }
    joined(
        classes,
        |shape| shape.fields.insert(field, Ranges::default()),
        |shape, values| {
            let Some(values) = values else {
                shape.fields.remove(&field);
                return;
            };
            let own = shape.fields.entry(field).or_default();
            *own = own.or(&values);
        },
    )
}

/// What two classes must have in common to become one.
fn key<A: Ending>(class: &Class<A>, shape: Shape) -> (Shape, A::Key) {
    (shape, class.answer.key())
}

/// Join classes that are the same without what `take` takes out of them.
fn joined<A: Ending, T>(
    classes: Vec<Class<A>>,
    take: impl Fn(&mut Shape) -> T,
    put: impl Fn(&mut Shape, T),
) -> Vec<Class<A>> {
    let mut places = HashMap::new();
    let mut result: Vec<Class<A>> = Vec::with_capacity(classes.len());
    for mut class in classes {
        let mut shape = class.shape.clone();
        let part = take(&mut shape);
        let key = key(&class, shape.clone());
        if let Some(at) = places.get(&key) {
            let into: &mut Class<A> = &mut result[*at];
            put(&mut into.shape, part);
        } else {
            places.insert(key, result.len());
            put(&mut shape, part);
            class.shape = shape;
            result.push(class);
        }
    }
    result
}

/// Join classes of which one has a mark that the other has not, and that are the same otherwise.
fn joined_by_mark<A: Ending>(classes: Vec<Class<A>>, mark: Masked) -> Vec<Class<A>> {
    let mut places: HashMap<_, (usize, bool)> = HashMap::new();
    let mut result: Vec<Class<A>> = Vec::with_capacity(classes.len());
    for class in classes {
        let mut shape = class.shape.clone();
        let Some(holds) = shape.marks.remove(&mark) else {
            result.push(class);
            continue;
        };
        match places.remove(&key(&class, shape.clone())) {
            Some((at, other)) if other != holds => result[at].shape = shape,
            _ => {
                places.insert(key(&class, shape), (result.len(), holds));
                result.push(class);
            }
        }
    }
    result
}

impl<A> Class<A> {
    /// Whether a connection is in it.
    pub fn has(&self, question: &Question) -> bool {
        self.shape.has(question)
    }

    /// The family.
    pub const fn family(&self) -> Family {
        self.shape.family
    }

    /// Where its connections start.
    pub const fn origin(&self) -> &Origin {
        &self.shape.origin
    }

    /// The values of a field; none if connections of the class have no such thing.
    pub fn values(&self, field: Field) -> Option<&Ranges> {
        self.shape.values(field)
    }

    /// Whether sockets are in it that leave their source address to the kernel.
    pub const fn is_unbound(&self) -> bool {
        self.shape.from.unbound
    }

    /// Marks that its packets have, or have not.
    pub fn marks(&self) -> impl Iterator<Item = (Masked, bool)> + '_ {
        self.shape.marks.iter().map(|(mark, holds)| (*mark, *holds))
    }
}
