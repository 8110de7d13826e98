//! Lists in annotations, by the reference's rules.

use std::str::FromStr as _;

use super::AnnotationDef;
use crate::dialect::list::{Most, ValueReader};
use crate::pod::PodFacts;
use crate::source::{Source, Sourced};
use crate::value::{Cidr, InterfacePattern, Port, PortRange, ValueError};

/// The text of an annotation, or its default.
pub(super) fn text(pod: &PodFacts, def: &AnnotationDef) -> Sourced<String> {
    match pod.annotation(def.name) {
        Some(value) => Sourced::new(value.to_owned(), Source::Annotation(def.name.to_owned())),
        None => Sourced::new(def.default.to_owned(), Source::Default(def.name.to_owned())),
    }
}

/// Ports, each a number; blanks around one don't matter.
pub(super) fn ports(reader: &mut ValueReader, text: &Sourced<String>) -> Vec<Sourced<PortRange>> {
    let port = |item: &str| item.trim().parse::<Port>().map(PortRange::from);
    each(reader, text, Most::Targets, text.value.trim(), port)
}

/// Networks; a blank is an error, as in the reference.
pub(super) fn networks(reader: &mut ValueReader, text: &Sourced<String>) -> Vec<Sourced<Cidr>> {
    each(reader, text, Most::Targets, &text.value, Cidr::from_str)
}

/// Interface names; the reference allows fewer characters than the kernel.
pub(super) fn interfaces(
    reader: &mut ValueReader,
    text: &Sourced<String>,
) -> Vec<Sourced<InterfacePattern>> {
    let interface = |item: &str| {
        let name = item.trim();
        let mut bytes = name.bytes();
        let plain = bytes.next().is_some_and(|b| b.is_ascii_alphabetic())
            && bytes.all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        let parsed = name.parse().ok().filter(|_| plain);
        parsed.ok_or_else(|| {
            ValueError::new(
                "an interface name has 1 to 15 letters, digits, _ . or -, a letter first; several \
                 are a comma-separated list",
            )
        })
    };
    each(reader, text, Most::Names, text.value.trim(), interface)
}

/// Every item of a comma-separated list. An empty text is an empty list; an empty item is an error.
fn each<T>(
    reader: &mut ValueReader,
    text: &Sourced<String>,
    most: Most,
    list: &str,
    parse: impl Fn(&str) -> Result<T, ValueError>,
) -> Vec<Sourced<T>> {
    let items: Vec<&str> = list.split(',').filter(|_| !list.is_empty()).collect();
    reader.each(text, most, &items, |item| parse(item).map_err(|error| error.to_string()))
}
