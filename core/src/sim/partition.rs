//! All connections, in classes that rules treat alike.
//!
//! A class is walked with one of its connections as the example. Wherever the way depends on
//! something that does not hold for the whole class, the class is cut in two there, and both parts
//! are walked again; so in the end nothing on the way of a class tells its connections apart. What
//! ends alike, by the same rules, is put together again.

use std::collections::HashMap;

use super::fate::{Fate, Outcome};
use super::join::{Part, Pool, by_field, by_mark, merge};
use super::namespace::{Namespace, unicast};
use super::program::{Program, RuleId};
use super::question::{Protocol, Question};
use super::ranges::Ranges;
use super::rule::Field;
use super::shape::{Memory, NoExample, Shape, Split, Splitter};
use super::walk::{Answer, Walk};
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
    /// One of them.
    pub example: Question,
    /// What becomes of it. The outcome is that of all of them, and so are the rules, or others in a row
    /// with them that are alike but for the values of the field that tells these connections apart.
    pub answer: A,
}

/// What classes must have in common to be one: what becomes of them, and the rules that decided.
type End = (Outcome, Vec<RuleId>);

/// What can't be told where marks are asked for in so many ways that none is found that fits.
pub(super) const MARKS: &str = "which marks are left: rules ask for too many";

/// What becomes of connections that are not looked at.
pub(super) fn unclear(what: &str) -> Answer {
    Answer {
        fate: Fate::Unknown { rule: None, what: what.to_owned() },
        outcome: Outcome::Unknown { what: what.to_owned() },
        decided: Vec::new(),
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
struct Limits {
    /// Rules asked, for all classes together.
    asked: u64,
    /// Cuts of a class, one in the other.
    cuts: usize,
    /// Marks that a class has or has not.
    marks: usize,
}

const LIMITS: Limits = Limits { asked: 20_000_000, cuts: 1000, marks: 64 };

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
        (answer.outcome.clone(), decided)
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
/// decided.
pub(super) fn outcomes((program, namespace): Side<'_>, of: &Namespace) -> Vec<Class> {
    classes((program, namespace), of, LIMITS, |_, answer| (answer.outcome.clone(), Vec::new()))
}

/// Rules in their namespace.
pub(super) type Side<'a> = (&'a Program, &'a Namespace);

/// What walks have found and cost.
#[derive(Debug, Default)]
struct Seen {
    memory: Memory,
    /// Rules asked.
    asked: u64,
}

impl Seen {
    /// What becomes of an example, or what tells the connections of its shape apart on its way.
    fn walk(
        &mut self,
        program: &Program,
        namespace: &Namespace,
        example: &Question,
        shape: &Shape,
    ) -> Result<Answer, Split> {
        let mut splitter = Splitter { shape, memory: &mut self.memory, first: None };
        let mut walk = Walk::new(program, namespace, example, &mut splitter);
        let answer = walk.first();
        self.asked += walk.asked;
        splitter.first.map_or(Ok(answer), Err)
    }
}

fn classes(
    (program, namespace): Side<'_>,
    of: &Namespace,
    limits: Limits,
    end: fn(&Program, &Answer) -> End,
) -> Vec<Class> {
    let seen = Seen::default();
    let (ends, pool) = (HashMap::new(), Pool::default());
    let mut search = Search { program, namespace, end, limits, seen, ends, pool };
    let shapes = Family::ALL.into_iter().flat_map(|family| all(of, family));
    let parts = shapes.flat_map(|shape| search.parts(shape)).collect();
    merge(parts, &mut search.pool)
}

/// A search for classes.
struct Search<'a> {
    program: &'a Program,
    namespace: &'a Namespace,
    end: fn(&Program, &Answer) -> End,
    limits: Limits,
    seen: Seen,
    /// The ends that were found, numbered.
    ends: HashMap<End, usize>,
    pool: Pool,
}

/// A shape that was cut: what is left of it to look at, and what was found.
struct Cut {
    by: Split,
    left: std::vec::IntoIter<Shape>,
    found: Vec<Part<Answer>>,
}

impl Cut {
    /// The classes that were found. What ends alike is put together at once, so that there are
    /// never many more of them than in the end.
    fn joined(self, pool: &mut Pool) -> Vec<Part<Answer>> {
        match self.by {
            Split::Field(field, _) | Split::Rules(field, _) => by_field(self.found, field, pool),
            Split::Mark(mark) => by_mark(self.found, mark),
        }
    }
}

impl Search<'_> {
    /// The classes of a shape.
    fn parts(&mut self, shape: Shape) -> Vec<Part<Answer>> {
        let mut cuts: Vec<Cut> = Vec::new();
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
    fn part_or_cut(
        &mut self,
        shape: Shape,
        cuts: usize,
    ) -> Result<Option<Part<Answer>>, (Vec<Shape>, Split)> {
        let example = match shape.example() {
            Ok(example) => example,
            // A mark may be asked for in so many ways that nothing is left.
            Err(NoExample::Empty) => return Ok(None),
            Err(NoExample::Unclear) => {
                let example = shape.example_with(0);
                return Ok(example.map(|example| self.part(shape, example, unclear(MARKS))));
            }
        };
        if let Some(what) = self.limits.exceeded(&self.seen, &shape, cuts) {
            return Ok(Some(self.part(shape, example, unclear(&what))));
        }
        match self.seen.walk(self.program, self.namespace, &example, &shape) {
            Ok(answer) => Ok(Some(self.part(shape, example, answer))),
            Err(split) => {
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

    fn part(&mut self, shape: Shape, example: Question, answer: Answer) -> Part<Answer> {
        let next = self.ends.len();
        let end = *self.ends.entry((self.end)(self.program, &answer)).or_insert(next);
        Part { class: Class { shape, example, answer }, end }
    }
}

fn all(namespace: &Namespace, family: Family) -> Vec<Shape> {
    let ids = || Ranges::up_to(u128::from(u32::MAX - 1));
    let mut shapes = Vec::new();
    for protocols in protocols() {
        let fields = [
            (Field::Protocol, protocols),
            (Field::SourcePort, Ranges::up_to(u16::MAX.into())),
            (Field::Destination, unicast(family)),
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
            let from = (false, unicast(family));
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
        self.shape.unbound
    }

    /// Marks that its packets have, or have not.
    pub fn marks(&self) -> impl Iterator<Item = (Masked, bool)> + '_ {
        self.shape.marks.iter().map(|(mark, holds)| (*mark, *holds))
    }
}
