//! What a walk found, in words and as JSON.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde_json::{Value, json};

use super::Explanation;
use super::fate::{Fate, How, Outcome, Reply};
use super::namespace::unicast;
use super::partition::{Class, Origin};
use super::program::{Program, RuleId};
use super::question::{Protocol, Question};
use super::ranges::Ranges;
use super::rule::Field;
use super::test::masked;
use super::witness::{Event, Met};
use crate::value::Family;

/// What `explain` prints: the outcome, each step, the fate and the answer.
pub fn explanation_text(program: &Program, question: &Question, found: &Explanation) -> String {
    let mut text = format!("{question}: {}", found.answer.outcome);
    text.push_str(match &found.reply {
        None | Some(Reply::Arrives) => "\n",
        Some(Reply::Lost { .. }) => ", and the answer does not arrive\n",
        Some(Reply::Broken { .. }) => ", but the connection does not come about\n",
        Some(Reply::Unknown { .. }) => ", and whether the answer arrives is not known\n",
    });
    events_text(&mut text, program, &found.there);
    text.push_str(&format!("=> {}\n", fate_text(&found.answer.fate)));
    if let Some(id) = found.answer.decided.last() {
        text.push_str(&format!("   by {}{}\n", program.line(*id), why(program, *id)));
    } else if matches!(found.answer.fate, Fate::Delivered { .. } | Fate::Passed { .. }) {
        text.push_str("   no rule decides about it\n");
    }
    match &found.reply {
        None => {}
        Some(Reply::Arrives) => text.push_str("=> the answer arrives\n"),
        Some(reply @ (Reply::Lost { why } | Reply::Broken { why })) => {
            text.push_str("the answer\n");
            events_text(&mut text, program, &found.back);
            let what = match reply {
                Reply::Lost { .. } => "the answer does not arrive",
                _ => "the answer arrives, but the connection does not come about",
            };
            text.push_str(&format!("=> {what}: {why}\n"));
        }
        Some(Reply::Unknown { what, .. }) => {
            text.push_str(&format!("=> whether the answer arrives is not known: {what}\n"));
        }
    }
    // Last, so that the answer is not taken for one to what is refused.
    if let Some(unheard) = &found.unheard {
        text.push_str(&format!("=> {unheard}\n"));
    }
    if let Some(outcome) = &found.reused {
        text.push_str(&format!(
            "=> with the addresses and ports of an earlier connection that is still tracked, and whose \
             socket is gone: {outcome}\n"
        ));
    }
    text
}

pub(super) fn why(program: &Program, id: RuleId) -> String {
    program.rule(id).reason.as_ref().map_or_else(String::new, |reason| format!("\n   {reason}"))
}

/// The most steps of a way that are shown at each of its ends: more than rules that anybody has, and
/// less than a way that was made to be long, of chains that jump to each other.
const MOST_SHOWN: usize = 20_000;

/// The steps of a way that are shown, and in place of those between what tells of them.
fn shown(events: &[Event]) -> (&[Event], Option<Event>, &[Event]) {
    let Some(between) = events.len().checked_sub(2 * MOST_SHOWN).filter(|count| *count > 0) else {
        return (events, None, &[]);
    };
    let what = format!(
        "{between} steps are left out here: of a way, {MOST_SHOWN} are shown at each of its ends"
    );
    let (first, rest) = events.split_at(MOST_SHOWN);
    (first, Some(Event::Note { what }), rest.split_at(between).1)
}

pub(crate) fn events_text(text: &mut String, program: &Program, events: &[Event]) {
    let (first, between, last) = shown(events);
    for event in first.iter().chain(&between).chain(last) {
        match event {
            Event::Hook { hook, packet } => text.push_str(&format!("{hook}: {packet}\n")),
            Event::Note { what } => text.push_str(&format!("  {what}\n")),
            Event::Rule { rule, depth, met } => {
                // Of chains that are nested deeper than that no line has room.
                let margin = "  ".repeat(depth.min(&40) + 1);
                let reason = program.rule(*rule).reason.as_ref();
                let reason = reason.map_or_else(String::new, |r| format!("; {r}"));
                let met = match met {
                    Met::Matched => format!("matched{reason}"),
                    Met::Failed(why) => format!("no: {why}{reason}"),
                    Met::Unclear(what) => format!("not known here: {what}"),
                };
                text.push_str(&format!("{margin}{}\n{margin}    {met}\n", program.line(*rule)));
            }
        }
    }
}

/// Where a connection comes from, if that can be told.
fn sender(source: &SocketAddr) -> String {
    if source.ip().is_unspecified() {
        return format!("port {} of the address that the path of the route decides", source.port());
    }
    end(source)
}

/// An address, with its port where there is one.
fn end(address: &SocketAddr) -> String {
    if address.port() == 0 { address.ip().to_string() } else { address.to_string() }
}

/// A fate in one line.
pub fn fate_text(fate: &Fate) -> String {
    match fate {
        Fate::Delivered { port, how: How::Unchanged, source, .. } => {
            format!("delivered as it was sent, to port {port}, from {}", sender(source))
        }
        Fate::Delivered { port, how, destination, original, source } => {
            let how = match how {
                How::Transparent => "handed to a transparent socket on".to_owned(),
                How::Handed => "handed to the socket on".to_owned(),
                _ => format!("delivered to {} on", destination.ip()),
            };
            format!("{how} port {port}, original destination {original}, from {}", sender(source))
        }
        Fate::Passed { interface, destination, source } => {
            format!("leaves by {interface} to {}, from {}", end(destination), sender(source))
        }
        Fate::Dropped { why, .. } => format!("dropped: {why}"),
        Fate::Refused { .. } => "refused, and the sender is told".to_owned(),
        Fate::Unknown { what, .. } => format!("can't be told: {what}"),
    }
}

/// What `explain` gives as JSON for one connection.
pub fn explanation_json(program: &Program, question: &Question, found: &Explanation) -> Value {
    let decided: Vec<Value> =
        found.answer.decided.iter().map(|id| rule_json(program, *id)).collect();
    json!({
        "question": question,
        "fate": found.answer.fate,
        "outcome": found.answer.outcome,
        "decidedBy": decided,
        "withoutListener": found.unheard,
        "asAnEarlierOne": found.reused,
        "reply": found.reply,
        "way": events_json(program, &found.there),
        "wayBack": events_json(program, &found.back),
    })
}

pub(super) fn rule_json(program: &Program, id: RuleId) -> Value {
    let rule = program.rule(id);
    let chain = program.chain(rule.chain);
    json!({
        "holder": chain.holder,
        "table": chain.table,
        "chain": chain.name,
        "number": rule.number,
        "rule": rule.text,
        "reason": rule.reason,
    })
}

pub(crate) fn events_json(program: &Program, events: &[Event]) -> Vec<Value> {
    let one = |event: &Event| match event {
        Event::Rule { rule, depth, met } => json!({
            "step": "rule",
            "depth": depth,
            "rule": rule_json(program, *rule),
            "met": met,
        }),
        Event::Hook { hook, packet } => json!({ "step": "hook", "hook": hook, "packet": packet }),
        Event::Note { what } => json!({ "step": "note", "what": what }),
    };
    let (first, between, last) = shown(events);
    first.iter().chain(&between).chain(last).map(one).collect()
}

/// A class in words: who, and to where.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Words {
    /// Users, groups, interface, sources and marks, as far as they are narrowed down.
    pub who: String,
    /// Protocol, destination and ports, as far as they are narrowed down.
    pub to: String,
}

/// Who makes the connections of a class, and where they go.
pub fn class_words<A>(class: &Class<A>) -> Words {
    let family = class.family();
    let mut who: Vec<String> = Vec::new();
    match class.origin() {
        Origin::Process => {
            for field in [Field::Uid, Field::Gid] {
                who.extend(narrowed(class, field, &Ranges::up_to(u128::from(u32::MAX - 1))));
            }
        }
        Origin::Interface(name) => who.push(format!("in by {name}")),
    }
    who.extend(from_words(class));
    for (mark, holds) in class.marks() {
        let not = if holds { "" } else { "not " };
        who.push(format!("{not}mark {}", masked(mark)));
    }
    if who.is_empty() {
        who.push("any process".to_owned());
    }
    let mut to = vec![protocol_words(class)];
    let address = narrowed(class, Field::Destination, &unicast(family));
    to.push(address.map_or_else(|| "anywhere".to_owned(), |a| a.replacen("destination ", "", 1)));
    let ports = Ranges::up_to(u16::MAX.into());
    to.extend(narrowed(class, Field::Port, &ports));
    to.extend(narrowed(class, Field::SourcePort, &ports));
    Words { who: who.join(" "), to: to.join(" ") }
}

/// The source address, where it says something.
fn from_words<A>(class: &Class<A>) -> Option<String> {
    let family = class.family();
    let set = class.values(Field::Source)?;
    let inward = matches!(class.origin(), Origin::Interface(_));
    match (class.is_unbound(), set.is_empty()) {
        (true, true) => Some("unbound".to_owned()),
        (false, _) if inward => narrowed(class, Field::Source, &unicast(family)),
        (false, _) => Some(format!("bound to {}", Field::Source.values(set, family))),
        (true, false) => None,
    }
}

pub(super) fn protocol_words<A>(class: &Class<A>) -> String {
    let Some(set) = class.values(Field::Protocol) else { return String::new() };
    let named = |p: Protocol| set.contains(p.0.into());
    if *set == Ranges::up_to(u8::MAX.into()) {
        return "any protocol".to_owned();
    }
    if set.single().is_some() {
        return Field::Protocol.values(set, class.family());
    }
    match (named(Protocol::TCP), named(Protocol::UDP), set.iter().count()) {
        (true, true, 2) if set.iter().all(|(a, b)| a == b) => "tcp,udp".to_owned(),
        (true, false, _) => "any but udp".to_owned(),
        (false, true, _) => "any but tcp".to_owned(),
        (true, true, _) => "tcp, udp and others".to_owned(),
        (false, false, _) => "other protocols".to_owned(),
    }
}

/// A field's values in words, where not every value is among them; the others, where those are
/// fewer.
pub(super) fn narrowed<A>(class: &Class<A>, field: Field, all: &Ranges) -> Option<String> {
    let set = class.values(field)?;
    let rest = all.without(set);
    if rest.is_empty() {
        return None;
    }
    let family = class.family();
    let size = |set: &Ranges| {
        let sizes = set.iter().map(|(first, last)| last - first);
        (set.iter().count(), sizes.fold(0, u128::saturating_add))
    };
    let (not, shown) = if size(&rest) < size(set) { ("not ", &rest) } else { ("", set) };
    Some(format!("{} {not}{}", field.name(), field.values(shown, family)))
}

/// How many classes there are, and of how many becomes what.
pub fn classes_summary(classes: &[Class]) -> String {
    type Kind = (&'static str, fn(&Outcome) -> bool);
    let kinds: [Kind; 7] = [
        ("captured", |outcome| matches!(outcome, Outcome::Captured { .. })),
        ("led elsewhere", |outcome| matches!(outcome, Outcome::Led { .. })),
        ("delivered as they are", |outcome| matches!(outcome, Outcome::Delivered)),
        ("leaving", |outcome| matches!(outcome, Outcome::Passed { .. })),
        ("dropped", |outcome| matches!(outcome, Outcome::Dropped { .. })),
        ("refused", |outcome| matches!(outcome, Outcome::Refused)),
        ("can't be told", |outcome| matches!(outcome, Outcome::Unknown { .. })),
    ];
    let counted = kinds.iter().filter_map(|(name, is)| {
        let count = classes.iter().filter(|class| is(&class.answer.outcome)).count();
        (count > 0).then(|| format!("{count} {name}"))
    });
    let counted: Vec<String> = counted.collect();
    let plural = if classes.len() == 1 { "" } else { "s" };
    format!("# {} kind{plural} of connections: {}\n", classes.len(), counted.join(", "))
}

/// All classes as a table, family by family.
pub fn classes_text(program: &Program, classes: &[Class]) -> String {
    let mut text = String::new();
    for family in Family::ALL {
        let mut of_family: Vec<&Class> = classes.iter().filter(|c| c.family() == family).collect();
        // What never gets far, and no rule has to do with, comes last.
        of_family.sort_by_key(|class| {
            class.answer.decided.is_empty()
                && matches!(class.answer.outcome, Outcome::Dropped { .. })
        });
        if of_family.is_empty() {
            continue;
        }
        let rows: Vec<[String; 4]> = of_family
            .iter()
            .map(|class| {
                let Words { who, to } = class_words(class);
                let alone = decided_alone(program, class);
                let by = match class.answer.decided.last() {
                    None => "no rule".to_owned(),
                    Some(id) if alone => program.line(*id),
                    Some(id) => format!("{} (and rules like it)", program.line(*id)),
                };
                [who, to, class.answer.outcome.to_string(), by]
            })
            .collect();
        let mut widths = [3, 5, 4];
        for row in &rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        writeln!(text, "# {family}").expect("a String takes all");
        let heads = ["who", "where", "what"].map(str::to_owned);
        let head = [heads[0].clone(), heads[1].clone(), heads[2].clone(), "by".to_owned()];
        for row in std::iter::once(&head).chain(&rows) {
            let [who, to, what, by] = row;
            let [a, b, c] = widths;
            writeln!(text, "{who:a$}  {to:b$}  {what:c$}  {by}").expect("a String takes all");
        }
    }
    text
}

/// Whether the rules that decided about a class's example are those of all of it, and not others as
/// well that are alike.
fn decided_alone(program: &Program, class: &Class) -> bool {
    let mut decided = class.answer.decided.iter();
    decided
        .all(|id| !program.has_alike(*id) || program.is_for_all(*id, |field| class.values(field)))
}

/// An array of classes, each with its outcome, deciding rules and an example.
pub fn classes_json(program: &Program, classes: &[Class]) -> Value {
    let one = |class: &Class| {
        let Words { who, to } = class_words(class);
        let decided: Vec<Value> =
            class.answer.decided.iter().map(|id| rule_json(program, *id)).collect();
        json!({
            "family": class.family(),
            "who": who,
            "to": to,
            "outcome": class.answer.outcome,
            "decidedBy": decided,
            "decidedByLike": !decided_alone(program, class),
            "example": class.example,
        })
    };
    classes.iter().map(one).collect()
}
