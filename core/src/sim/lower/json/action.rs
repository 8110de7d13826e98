//! What a rule of nft's JSON does.

use serde_json::Value;

use super::super::super::rule::{Action, MarkChange, Translation};
use super::{single, value};
use crate::ruleset::Masked;
use crate::value::Family;

/// What a statement does; one that is not known is named.
pub(super) fn actions(name: &str, content: &Value) -> Vec<Action> {
    let chain = || Some(content.get("target")?.as_str()?.to_owned());
    let known = match name {
        "accept" => Some(Action::Accept),
        "drop" => Some(Action::Drop),
        "return" => Some(Action::Return),
        "reject" => Some(Action::Reject),
        "notrack" => Some(Action::Notrack),
        // What others are told, and what is counted, changes no packet.
        "continue" | "log" => Some(Action::Note),
        "jump" => chain().map(Action::Jump),
        "goto" => chain().map(Action::Goto),
        "redirect" => target(content).map(|to| Action::Redirect(to.ports)),
        "masquerade" => target(content).map(|to| Action::Masquerade(to.ports)),
        "dnat" => target(content).map(Action::Dnat),
        "snat" => target(content).map(Action::Snat),
        "tproxy" => tproxy(content),
        "mangle" => mangle(content),
        _ => None,
    };
    let what = || match content.get("name").and_then(Value::as_str).filter(|_| name == "xt") {
        Some(target) => {
            let what = "which nft does not print: save these rules with iptables-save";
            format!("-j {target}, {what}")
        }
        None if content.is_null() => name.to_owned(),
        None => format!("{name} {content}"),
    };
    vec![known.unwrap_or_else(|| Action::Unknown(what()))]
}

/// Where a translation leads; none if it follows from the packet by a map.
fn target(content: &Value) -> Option<Translation> {
    let address = match content.get("addr") {
        None => None,
        Some(address) => Some(address.as_str()?.parse().ok()?),
    };
    let port = |port: &Value| u16::try_from(port.as_u64()?).ok();
    let ports = match content.get("port") {
        None => None,
        Some(ports) => match ports.get("range").and_then(Value::as_array).map(Vec::as_slice) {
            Some([first, last]) => Some((port(first)?, port(last)?)),
            _ => Some((port(ports)?, port(ports)?)),
        },
    };
    Some(Translation { address, ports })
}

fn tproxy(content: &Value) -> Option<Action> {
    let to = target(content)?;
    let family = match content.get("family").and_then(Value::as_str) {
        None => None,
        Some("ip") => Some(Family::V4),
        Some("ip6") => Some(Family::V6),
        Some(_) => return None,
    };
    let port = match to.ports {
        None => None,
        Some((first, last)) if first == last => Some(first),
        Some(_) => return None,
    };
    Some(Action::Tproxy { port, address: to.address, family, drops: false })
}

/// A field of the packet or of its connection is set.
fn mangle(content: &Value) -> Option<Action> {
    let (kind, key) = single(content.get("key")?)?;
    let key = key.get("key")?.as_str()?;
    let new = content.get("value")?;
    let all = u32::MAX;
    match (kind, key) {
        ("meta", "mark") if is_mark(new, "ct") => {
            Some(Action::Restore { packet: all, connection: all })
        }
        ("ct", "mark") if is_mark(new, "meta") => {
            Some(Action::Save { packet: all, connection: all })
        }
        ("meta", "mark") => change(new, "meta").map(Action::Mark),
        ("ct", "mark") => change(new, "ct").map(Action::Connmark),
        ("ct", "zone") => Some(Action::Zone(u16::try_from(new.as_u64()?).ok()?)),
        ("meta", "nftrace" | "priority") => Some(Action::Note),
        _ => None,
    }
}

fn is_mark(value: &Value, kind: &str) -> bool {
    value.get(kind).and_then(|of| of.get("key")).is_some_and(|key| key == "mark")
}

/// How a mark is changed: set, or made of itself by `&`, `|` and `^`.
fn change(new: &Value, kind: &str) -> Option<MarkChange> {
    if let Some(mark) = value::mark(new) {
        return Some(MarkChange::set(Masked::exact(mark)));
    }
    if is_mark(new, kind) {
        return Some(MarkChange { keep: u32::MAX, flip: 0 });
    }
    let (operator, sides) = single(new)?;
    let [left, right] = sides.as_array()?.as_slice() else { return None };
    let MarkChange { keep, flip } = change(left, kind)?;
    let bits = value::mark(right)?;
    Some(match operator {
        "&" => MarkChange { keep: keep & bits, flip: flip & bits },
        "|" => MarkChange { keep: keep & !bits, flip: flip & !bits | bits },
        "^" => MarkChange { keep, flip: flip ^ bits },
        _ => return None,
    })
}
