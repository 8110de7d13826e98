//! All connections, in classes that rules treat alike.
//!
//! A class is walked with one of its connections as the example. Wherever the way depends on
//! something that does not hold for the whole class, the class is cut in two there, and both parts
//! are walked again; so in the end nothing on the way of a class tells its connections apart. What
//! ends alike, by the same rules, is put together again.

use std::collections::HashMap;
use std::hash::Hash;

use super::effects::Effects;
use super::fate::{Fate, Outcome};
use super::join::{Part, Pool, by_field, by_mark, merge};
use super::namespace::{Namespace, unicast};
use super::paths;
use super::program::{Program, RuleId};
use super::question::{Protocol, Question};
use super::ranges::Ranges;
use super::rule::Field;
use super::shape::{Memory, NoExample, Shape, Split, Splitter};
use super::walk::{Answer, Walk};
use super::witness::Witness as _;
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

/// Connections that are treated alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class<A = Answer> {
    pub(super) shape: Shape,
    /// The one of them that was walked for all.
    pub example: Question,
    /// What becomes of it. The outcome is that of all of them, and so are the rules, or others in a row
    /// with them that are alike but for the values of the field that tells these connections apart.
    pub answer: A,
}

/// What can't be told where marks are asked for in so many ways that none is found that fits.
pub(super) const MARKS: &str = "which marks are left: rules ask for too many";

/// What becomes of connections that are not looked at.
pub(super) fn unclear(what: &str) -> Answer {
    Answer {
        fate: Fate::Unknown { rule: None, what: what.to_owned() },
        outcome: Outcome::Unknown { what: what.to_owned() },
        decided: Vec::new(),
        effects: Effects::default(),
    }
}

/// Protocols that rules can tell apart by more than their number: TCP, UDP, others with ports, and
/// the rest.
fn protocols() -> [Ranges; 4] {
    let with_ports = Protocol::with_ports();
    let [tcp, udp] = [Protocol::TCP, Protocol::UDP].map(|p| Ranges::one(p.0.into()));
    let others = with_ports.without(&tcp).without(&udp);
    let rest = Ranges::up_to(u8::MAX.into()).without(&with_ports);
    [tcp, udp, others, rest]
}

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Rules asked, for all classes together.
    asked: u64,
    /// Cuts of a class, one in the other.
    cuts: usize,
    /// Marks that a class has or has not.
    marks: usize,
}

pub(super) const LIMITS: Limits = Limits { asked: 20_000_000, cuts: 1000, marks: 64 };

impl Limits {
    /// What can't be told, if one of them is exceeded.
    fn exceeded(&self, seen: &Seen, shape: &Shape, cuts: usize) -> Option<String> {
        let one = "ask for one connection with --to or --from";
        if seen.asked > self.asked {
            return Some(format!(
                "what all rules do, more than {} of them asked: {one}",
                self.asked
            ));
        }
        if shape.marks.len() > self.marks {
            return Some(format!(
                "what rules do that ask for more than {} marks: {one}",
                self.marks
            ));
        }
        (cuts > self.cuts).then(|| {
            format!("what rules do that tell connections apart {} times over: {one}", self.cuts)
        })
    }
}

/// Every connection that a process of the namespace can start, and every one that can arrive from
/// outside, in classes. New connections between unicast addresses are meant: what connection
/// tracking finds invalid is in no class. Sockets can be bound to the namespace's own addresses.
///
/// Where rules tell more connections apart than can be looked at, the fate of the rest is unknown.
pub fn partition(program: &Program, namespace: &Namespace) -> Vec<Class> {
    within(LIMITS, program, namespace)
}

fn within(limits: Limits, program: &Program, namespace: &Namespace) -> Vec<Class> {
    let mut found = classes((program, namespace), namespace, limits, |program, answer| {
        let decided = answer.decided.iter().map(|id| program.first_alike(*id)).collect();
        (answer.outcome.clone(), decided, Effects::default())
    });
    // Which of rules that do the same the example meets first.
    for class in &mut found {
        if class.answer.decided.iter().any(|id| program.first_alike(*id) != *id) {
            let own = program.answer(namespace, &class.example);
            if own.outcome == class.answer.outcome {
                class.answer = own;
            }
        }
    }
    found
}

/// The same for the connections that there are in another namespace, where no matter which rules
/// decided; with `all`, what else is done to them is the same as well.
pub(super) fn outcomes((program, namespace): Side<'_>, of: &Namespace, all: bool) -> Vec<Class> {
    let end: EndOf = if all {
        |_, answer| (answer.outcome.clone(), Vec::new(), answer.effects.clone())
    } else {
        |_, answer| (answer.outcome.clone(), Vec::new(), Effects::default())
    };
    classes((program, namespace), of, LIMITS, end)
}

/// A program, and the namespace whose routes and settings it is walked in.
pub(super) type Side<'a> = (&'a Program, &'a Namespace);

/// What walks have found and cost.
#[derive(Debug, Default)]
pub(super) struct Seen {
    memory: Memory,
    /// How many rules were asked so far, in all walks together.
    asked: u64,
}

/// What is looked for in classes.
pub(super) trait Examine {
    /// What is found of an example.
    type Found;
    /// What classes must have in common to be one.
    type End: Eq + Hash;

    /// What becomes of an example, and how many rules were asked.
    fn walk(&self, example: &Question, splitter: &mut Splitter<'_>) -> (Self::Found, u64);

    /// What is found of what is not looked at.
    fn unclear(&self, what: &str) -> Self::Found;

    /// How what was found ends.
    fn end(&self, found: &Self::Found) -> Self::End;
}

/// What becomes of connections, the rules that decided, and what else is done to them.
type End = (Outcome, Vec<RuleId>, Effects);
type EndOf = fn(&Program, &Answer) -> End;

/// Where the first packets of connections end.
struct Firsts<'a> {
    program: &'a Program,
    namespace: &'a Namespace,
    end: EndOf,
}

impl Examine for Firsts<'_> {
    type Found = Answer;
    type End = End;

    fn walk(&self, example: &Question, splitter: &mut Splitter<'_>) -> (Answer, u64) {
        let shape = splitter.shape;
        let mut asked = 0;
        let ways = paths::each(|paths| {
            let mut walk =
                Walk { paths, ..Walk::new(self.program, self.namespace, example, splitter) };
            let mut answer = walk.first();
            answer.effects = answer.effects.knowing(&shape.marks);
            asked += walk.asked;
            let taken = walk.paths;
            // What cuts the class on one way is enough.
            (answer, (!splitter.has_heard()).then_some(taken))
        });
        (paths::joined(ways.iter().flatten()), asked)
    }

    fn unclear(&self, what: &str) -> Answer {
        unclear(what)
    }

    fn end(&self, found: &Answer) -> End {
        (self.end)(self.program, found)
    }
}

fn classes(
    (program, namespace): Side<'_>,
    of: &Namespace,
    limits: Limits,
    end: EndOf,
) -> Vec<Class> {
    let shapes = Family::ALL.into_iter().flat_map(|family| all(of, family));
    search(Firsts { program, namespace, end }, shapes, limits, &mut Seen::default())
}

/// Cut shapes until each part is treated alike, then join parts that end alike.
pub(super) fn search<L: Examine>(
    look: L,
    shapes: impl Iterator<Item = Shape>,
    limits: Limits,
    seen: &mut Seen,
) -> Vec<Class<L::Found>> {
    let mut search = Search { look, limits, seen, ends: HashMap::new(), pool: Pool::default() };
    let parts = shapes.flat_map(|shape| search.parts(shape)).collect();
    merge(parts, &mut search.pool)
}

/// The parts of a shape, and what tells them apart.
type Parts = (Vec<Shape>, Split);

/// One search: how it looks, what it may cost, and the ends it has found.
struct Search<'s, L: Examine> {
    look: L,
    limits: Limits,
    seen: &'s mut Seen,
    /// The ends that were found, numbered.
    ends: HashMap<L::End, usize>,
    pool: Pool,
}

/// A shape that was cut: what is left of it to look at, and what was found.
struct Cut<A> {
    by: Split,
    left: std::vec::IntoIter<Shape>,
    found: Vec<Part<A>>,
}

impl<A> Cut<A> {
    /// The classes that were found. What ends alike is put together at once, so that there are
    /// never many more of them than in the end.
    fn joined(self, pool: &mut Pool) -> Vec<Part<A>> {
        match self.by {
            Split::Field(field, _) | Split::Rules(field, _) => by_field(self.found, field, pool),
            Split::Mark(mark) => by_mark(self.found, mark),
        }
    }
}

impl<L: Examine> Search<'_, L> {
    /// The classes of a shape.
    fn parts(&mut self, shape: Shape) -> Vec<Part<L::Found>> {
        let mut cuts: Vec<Cut<L::Found>> = Vec::new();
        let mut next = Some(shape);
        loop {
            let found = match next.map(|shape| self.part_or_cut(shape, cuts.len())) {
                Some(Ok(part)) => part.into_iter().collect(),
                Some(Err((left, by))) => {
                    let mut left = left.into_iter();
                    next = left.next();
                    cuts.push(Cut { by, left, found: Vec::new() });
                    continue;
                }
                None => cuts.pop().map_or_else(Vec::new, |cut| cut.joined(&mut self.pool)),
            };
            let Some(cut) = cuts.last_mut() else { return found };
            cut.found.extend(found);
            next = cut.left.next();
        }
    }

    /// The class that a shape is, after so many cuts, if it is one; otherwise its parts and what
    /// tells them apart.
    fn part_or_cut(&mut self, shape: Shape, cuts: usize) -> Result<Option<Part<L::Found>>, Parts> {
        let example = match shape.example() {
            Ok(example) => example,
            // A mark may be asked for in so many ways that nothing is left.
            Err(NoExample::Empty) => return Ok(None),
            Err(NoExample::Unclear) => {
                let example = shape.example_with(0);
                let unclear = self.look.unclear(MARKS);
                return Ok(example.map(|example| self.part(shape, example, unclear)));
            }
        };
        if let Some(what) = self.limits.exceeded(self.seen, &shape, cuts) {
            let unclear = self.look.unclear(&what);
            return Ok(Some(self.part(shape, example, unclear)));
        }
        let mut splitter = Splitter { shape: &shape, memory: &mut self.seen.memory, first: None };
        let (found, asked) = self.look.walk(&example, &mut splitter);
        let split = splitter.first;
        self.seen.asked += asked;
        match split {
            None => Ok(Some(self.part(shape, example, found))),
            Some(split) => {
                let mut shapes = shape.cut(&split);
                if let Split::Field(field, _) | Split::Rules(field, _) = split {
                    for values in shapes.iter_mut().filter_map(|shape| shape.values_mut(field)) {
                        *values = self.pool.shared(std::mem::take(values));
                    }
                }
                Err((shapes, split))
            }
        }
    }

    fn part(&mut self, shape: Shape, example: Question, answer: L::Found) -> Part<L::Found> {
        let next = self.ends.len();
        let end = *self.ends.entry(self.look.end(&answer)).or_insert(next);
        Part { class: Class { shape, example, answer }, end }
    }
}

fn all(namespace: &Namespace, family: Family) -> Vec<Shape> {
    let ids = || Ranges::up_to(u128::from(u32::MAX - 1));
    let one = || unicast(family).without(&namespace.routing().groups(family));
    let mut shapes = Vec::new();
    for protocols in protocols() {
        let fields = [
            (Field::Protocol, protocols),
            (Field::SourcePort, Ranges::up_to(u16::MAX.into())),
            (Field::Destination, one()),
            (Field::Port, Ranges::up_to(u16::MAX.into())),
        ];
        let [protocol, source_port, destination, port] = fields.clone();
        let [uid, gid] = [(Field::Uid, ids()), (Field::Gid, ids())];
        let with_owner = [protocol, source_port, destination, port, uid, gid];
        let unbound = (true, Ranges::default());
        shapes.push(Shape::new(family, Origin::Process, unbound, with_owner.clone()));
        let bound = (false, namespace.local(family).clone());
        shapes.push(Shape::new(family, Origin::Process, bound, with_owner));
        for interface in namespace.interfaces() {
            let origin = Origin::Interface(interface.name.clone());
            let from = (false, one());
            shapes.push(Shape::new(family, origin, from, fields.clone()));
        }
    }
    shapes
}

impl<A> Class<A> {
    /// Whether a connection is in it.
    pub fn has(&self, question: &Question) -> bool {
        self.shape.has(question)
    }

    /// The IP version of all its connections.
    pub const fn family(&self) -> Family {
        self.shape.family
    }

    /// Whether a process of the namespace makes its connections, or where they arrive.
    pub const fn origin(&self) -> &Origin {
        &self.shape.origin
    }

    /// The values of a field; none if connections of the class have no such thing.
    pub fn values(&self, field: Field) -> Option<&Ranges> {
        self.shape.values(field)
    }

    /// Whether sockets are in it that leave their source address to the kernel.
    pub const fn is_unbound(&self) -> bool {
        self.shape.unbound
    }

    /// Marks that its packets have, or have not.
    pub fn marks(&self) -> impl Iterator<Item = (Masked, bool)> + '_ {
        self.shape.marks.iter().map(|(mark, holds)| (*mark, *holds))
    }
}
