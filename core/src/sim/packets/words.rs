//! Packets that are treated differently, in words.

use std::fmt;

use super::super::partition::{Class, Origin};
use super::super::ranges::Ranges;
use super::super::report::{narrowed, protocol_words};
use super::super::rule::Field;
use super::super::test::masked;
use super::{End, Handed, Otherwise, Treatment};
use crate::ruleset::Hook;

/// The most kinds of packets that are listed; the others are counted.
const TOLD: usize = 16;

/// Packets that are treated differently, as text behind a head; nothing where there are none.
pub(in super::super) fn packets_text(head: &str, packets: &[Otherwise]) -> String {
    // What is told of them, and by which interfaces they go.
    let mut told: Vec<(String, Vec<String>, Vec<String>)> = Vec::new();
    for one in packets {
        let (first, second) = &one.class.answer;
        let (family, words) = (one.class.family(), one.words());
        let what = format!("{family} {}: packets {}: {words}", one.hook.as_str(), one.which);
        let (changes, way) = (changes(first, second), one.way());
        match told.iter_mut().find(|(known, _, same)| *known == what && *same == changes) {
            Some((_, ways, _)) if ways.contains(&way) => {}
            Some((_, ways, _)) => ways.push(way),
            None => told.push((what, vec![way], changes)),
        }
    }
    if told.is_empty() {
        return String::new();
    }
    let mut text = format!("{head}\n");
    for (what, ways, changes) in told.iter().take(TOLD) {
        let changes = changes.join("\n    ");
        text.push_str(&format!("  {what}, {}\n    {changes}\n", ways.join(" or ")));
    }
    if let Some(more) = told.len().checked_sub(TOLD).filter(|more| *more > 0) {
        text.push_str(&format!("  and {more} more kinds of packets\n"));
    }
    text
}

impl Otherwise {
    /// Protocol, owner, addresses, ports and marks, as far as they are narrowed down.
    pub(in super::super) fn words(&self) -> String {
        let words = packet_words(&self.class);
        let leaves = matches!(self.hook, Hook::Output | Hook::Postrouting);
        // Those of the kernel's own are looked at where rules ask whose socket it is.
        let of_kernel = leaves && self.input.is_none() && *self.class.origin() != Origin::Process;
        if of_kernel { format!("{words} of no socket") } else { words }
    }

    /// The interfaces by which they go.
    fn way(&self) -> String {
        let by = [("in", &self.input), ("out", &self.output)].into_iter();
        let by = by.filter_map(|(way, name)| Some(format!("{way} by {}", name.as_ref()?)));
        by.collect::<Vec<_>>().join(" ")
    }
}

/// What becomes of packets on one side and on the other.
fn changes(first: &Treatment, second: &Treatment) -> Vec<String> {
    let ends = (first.end.to_string(), second.end.to_string());
    let differences = first.effects.differences(&second.effects);
    match (&first.end, &second.end) {
        (End::Unknown(_), _) | (_, End::Unknown(_)) if ends.0 == ends.1 => vec![ends.0],
        _ if ends.0 != ends.1 || differences.is_empty() => {
            vec![format!("{} -> {}", ends.0, ends.1)]
        }
        _ => differences.into_iter().map(|(one, other)| format!("{one} -> {other}")).collect(),
    }
}

/// Protocol, owner, addresses, ports and marks of packets, in words.
fn packet_words<A>(class: &Class<A>) -> String {
    let bits = u32::from(class.family().bits());
    let all = Ranges::up_to(u128::MAX >> (128 - bits));
    let (ports, ids) = (Ranges::up_to(u16::MAX.into()), Ranges::up_to(u128::from(u32::MAX - 1)));
    let mut words = vec![protocol_words(class)];
    for (field, whole) in [
        (Field::Uid, &ids),
        (Field::Gid, &ids),
        (Field::Source, &all),
        (Field::SourcePort, &ports),
        (Field::Destination, &all),
        (Field::Port, &ports),
    ] {
        words.extend(narrowed(class, field, whole));
    }
    for (mark, holds) in class.marks() {
        words.push(format!("{}mark {}", if holds { "" } else { "not " }, masked(mark)));
    }
    words.join(" ")
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Past { handed: Some(Handed::To(port)), .. } => write!(f, "handed to port {port}"),
            Self::Past { handed: Some(Handed::Own), .. } => f.write_str("handed to its own port"),
            Self::Past { to: (None, None), .. } => f.write_str("goes on"),
            Self::Past { to: (_, Some(port)), .. } => write!(f, "redirected to port {port}"),
            Self::Past { .. } => f.write_str("led elsewhere"),
            Self::Dropped => f.write_str("dropped"),
            Self::Refused => f.write_str("refused"),
            Self::Unknown(what) => write!(f, "can't be told: {what}"),
        }
    }
}
