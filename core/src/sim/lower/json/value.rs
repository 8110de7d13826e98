//! Values of nft's JSON: numbers, names, networks, ranges and sets of them.

use std::collections::HashMap;

use serde_json::Value;

use super::super::super::question::Protocol;
use super::super::super::ranges::{Ranges, number};
use super::super::super::rule::Field;
use crate::value::{Cidr, InterfacePattern};

/// Sets and maps by family, table and name.
pub(super) type Sets<'v> = HashMap<(&'v str, &'v str, &'v str), &'v Value>;

/// The number of an extension header of IPv6 (IANA protocol numbers).
pub(super) fn extension(name: &str) -> Option<u8> {
    Some(match name {
        "hbh" => 0,
        "rt" | "rt0" | "rt2" | "srh" => 43,
        "frag" => 44,
        "dst" => 60,
        _ => return None,
    })
}

/// The elements of a set that stands in a rule, or that it names; none where it is not there, or where
/// they come and go by themselves or are more than values.
pub(super) fn elements(
    set: &Value,
    family: &str,
    table: &str,
    sets: &Sets<'_>,
) -> Option<Vec<Value>> {
    let list = match set {
        Value::String(name) => {
            let set = sets.get(&(family, table, name.strip_prefix('@')?))?;
            let has = |key: &str, asked: fn(&str) -> bool| match set.get(key) {
                Some(Value::Array(list)) => list.iter().filter_map(Value::as_str).any(asked),
                Some(Value::String(one)) => asked(one),
                _ => false,
            };
            let mut statements = set.get("stmt").and_then(Value::as_array).into_iter().flatten();
            let changes = has("flags", |flag| matches!(flag, "timeout" | "dynamic"));
            if changes || !statements.all(|one| one.get("counter").is_some()) {
                return None;
            }
            // An empty set has no list.
            set.get("elem").cloned().unwrap_or_else(|| Value::Array(Vec::new()))
        }
        Value::Object(members) => members.get("set")?.clone(),
        _ => return None,
    };
    match list {
        Value::Array(list) => list.into_iter().map(bare).collect(),
        one => Some(vec![bare(one)?]),
    }
}

/// The value of an element: one with a counter or a comment has it inside. None of one that is there for
/// a time, or that asks for more, as a limit does.
pub(super) fn bare(element: Value) -> Option<Value> {
    let Some(Value::Object(inside)) = element.get("elem") else { return Some(element) };
    let plain = inside.keys().all(|key| matches!(key.as_str(), "val" | "counter" | "comment"));
    if plain { inside.get("val").cloned() } else { None }
}

/// Types of ICMP as nft names them (`nft describe icmp type`, `nft describe icmpv6 type`).
const ICMP_TYPES: [(&str, u8); 15] = [
    ("echo-reply", 0),
    ("destination-unreachable", 3),
    ("source-quench", 4),
    ("redirect", 5),
    ("echo-request", 8),
    ("router-advertisement", 9),
    ("router-solicitation", 10),
    ("time-exceeded", 11),
    ("parameter-problem", 12),
    ("timestamp-request", 13),
    ("timestamp-reply", 14),
    ("info-request", 15),
    ("info-reply", 16),
    ("address-mask-request", 17),
    ("address-mask-reply", 18),
];
const ICMPV6_TYPES: [(&str, u8); 18] = [
    ("destination-unreachable", 1),
    ("packet-too-big", 2),
    ("time-exceeded", 3),
    ("parameter-problem", 4),
    ("echo-request", 128),
    ("echo-reply", 129),
    ("mld-listener-query", 130),
    ("mld-listener-report", 131),
    ("mld-listener-done", 132),
    ("nd-router-solicit", 133),
    ("nd-router-advert", 134),
    ("nd-neighbor-solicit", 135),
    ("nd-neighbor-advert", 136),
    ("nd-redirect", 137),
    ("router-renumbering", 138),
    ("ind-neighbor-solicit", 141),
    ("ind-neighbor-advert", 142),
    ("mld2-listener-report", 143),
];

/// A type of ICMP of `icmp` or `icmpv6`.
pub(super) fn icmp_type(header: &str, value: &Value) -> Option<u128> {
    if let Some(number) = value.as_u64() {
        return u8::try_from(number).ok().map(u128::from);
    }
    let known = if header == "icmp" { &ICMP_TYPES[..] } else { &ICMPV6_TYPES };
    let name = value.as_str()?;
    known.iter().find(|(known, _)| *known == name).map(|(_, number)| u128::from(*number))
}

/// The values that a field is compared with.
pub(super) fn ranges(
    value: &Value,
    read: &dyn Fn(&Value) -> Option<Ranges>,
    elements: &dyn Fn(&Value) -> Option<Vec<Value>>,
) -> Option<Ranges> {
    let is_set =
        value.get("set").is_some() || value.as_str().is_some_and(|name| name.starts_with('@'));
    if !is_set {
        return span(value, read);
    }
    let all = elements(value)?;
    let all: Vec<Ranges> = all.iter().map(|one| span(one, read)).collect::<Option<_>>()?;
    Some(all.iter().flat_map(Ranges::iter).collect())
}

/// A value, a range, or a network.
fn span(value: &Value, read: &dyn Fn(&Value) -> Option<Ranges>) -> Option<Ranges> {
    if let Some(prefix) = value.get("prefix") {
        let address = prefix.get("addr")?.as_str()?.parse().ok()?;
        let length = u8::try_from(prefix.get("len")?.as_u64()?).ok()?;
        return Some(Ranges::network(Cidr::new(address, length)?));
    }
    let Some(ends) = value.get("range") else { return read(value) };
    let [first, last] = ends.as_array()?.as_slice() else { return None };
    let (first, last) = (read(first)?.first()?, read(last)?.first()?);
    (first <= last).then(|| Ranges::range(first, last))
}

/// One value of a field.
pub(super) fn one(field: Field, value: &Value) -> Option<Ranges> {
    let value = match (field, value) {
        (Field::Source | Field::Destination, Value::String(text)) => number(text.parse().ok()?),
        (Field::Protocol, Value::String(name)) => Protocol::from_name(name)?.0.into(),
        (Field::Source | Field::Destination, _) => return None,
        (_, Value::String(text)) => text.parse().ok()?,
        (_, value) => u128::from(value.as_u64()?),
    };
    Some(Ranges::one(value))
}

/// Names of interfaces; a `*` at the end stands for anything.
pub(super) fn interface(value: &Value) -> Option<InterfacePattern> {
    let name = value.as_str().filter(|name| !name.contains('\\'))?;
    match name.strip_suffix('*') {
        Some(start) => format!("{start}+").parse().ok(),
        None => name.parse().ok(),
    }
}

/// A mark; none where it is no number of 32 bits.
pub(super) fn mark(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}
