//! What a rule of nft's JSON does.

use serde_json::Value;

use super::super::super::rule::{Action, MarkChange, Notice, Translation};
use super::super::{beside, option_words};
use super::{single, value};
use crate::ruleset::Masked;
use crate::value::Family;

/// What a statement does; one that is not known is named.
pub(super) fn actions(name: &str, content: &Value) -> Vec<Action> {
    let chain = || Some(content.get("target")?.as_str()?.to_owned());
    let what = || match content.get("name").and_then(Value::as_str).filter(|_| name == "xt") {
        Some(target) => {
            let what = "which nft does not print: save these rules with iptables-save";
            format!("-j {target}, {what}")
        }
        None if content.is_null() => name.to_owned(),
        None => format!("{name} {content}"),
    };
    let known = match name {
        _ if !is_whole(name, content) => None,
        "accept" => Some(Action::Accept),
        "drop" => Some(Action::Drop),
        "return" => Some(Action::Return),
        "reject" => return refused(content),
        "notrack" => Some(Action::Notrack),
        // What others are told, and what is counted, changes no packet.
        "continue" | "log" | "last" => Some(Action::Note),
        "ct helper" | "ct timeout" | "ct expectation" => {
            content.as_str().map(|object| Action::Effect(format!("{name} set {object}")))
        }
        "jump" => chain().map(Action::Jump),
        "goto" => chain().map(Action::Goto),
        "redirect" => target(content).map(|to| Action::Redirect(to.ports)),
        "masquerade" => target(content).map(|to| Action::Masquerade(to.ports)),
        "dnat" => to_family(content).map(Action::Dnat),
        "snat" => to_family(content).map(Action::Snat),
        "tproxy" => tproxy(content),
        "mangle" => return mangle(content).unwrap_or_else(|| vec![Action::Unknown(what())]),
        _ => None,
    };
    let known = known.unwrap_or_else(|| Action::Unknown(what()));
    choice(name, content).into_iter().chain([known]).collect()
}

/// Whether all that is said of a statement is known here.
fn is_whole(name: &str, content: &Value) -> bool {
    let known: &[&str] = match name {
        "accept" | "drop" | "return" | "continue" | "notrack" => &[],
        "jump" | "goto" => &["target"],
        "redirect" | "masquerade" | "dnat" | "snat" | "tproxy" => {
            &["addr", "port", "family", "flags", "type_flags"]
        }
        "reject" => &["type", "expr"],
        "mangle" => &["key", "value"],
        _ => return true,
    };
    let keys = content.as_object().into_iter().flatten();
    keys.into_iter().all(|(key, _)| known.contains(&key.as_str()))
}

/// How one of several addresses and ports is chosen.
fn choice(name: &str, content: &Value) -> Option<Action> {
    let translates = matches!(name, "redirect" | "masquerade" | "dnat" | "snat");
    let flags = content.get("flags").filter(|_| translates)?;
    let list = flags.as_array().map_or_else(|| std::slice::from_ref(flags), Vec::as_slice);
    beside::choice(&list.iter().filter_map(Value::as_str).collect::<Vec<_>>())
}

fn refused(content: &Value) -> Vec<Action> {
    let text = |key: &str| content.get(key).and_then(Value::as_str);
    let kind = text("type");
    if kind == Some("tcp reset") {
        return vec![Action::Reject(Notice::Reset)];
    }
    let number = content.get("expr").and_then(Value::as_u64).map(|code| code.to_string());
    let code = text("expr").map(str::to_owned).or(number);
    let said = kind.zip(code).and_then(|(kind, code)| beside::refused_as(kind, &code));
    said.into_iter().chain([Action::Reject(Notice::Icmp)]).collect()
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

/// The same, of what has a family: that of an address is its own (`dnat ip to`).
fn to_family(content: &Value) -> Option<Translation> {
    let to = target(content)?;
    let known = content.get("family").is_none() || to.address.is_some();
    known.then_some(to)
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
fn mangle(content: &Value) -> Option<Vec<Action>> {
    let (kind, key) = single(content.get("key")?)?;
    // An option of TCP, as the size of segments.
    if kind == "tcp option" {
        return Some(vec![Action::Effect(option(key, content.get("value")?))]);
    }
    // `ct original zone set`
    if key.get("dir").is_some() {
        return None;
    }
    let key = key.get("key")?.as_str()?;
    let new = content.get("value")?;
    match (kind, key) {
        ("meta" | "ct", "mark") => marked(kind == "ct", new),
        ("ct", "zone") => Some(vec![Action::Zone(u16::try_from(new.as_u64()?).ok()?)]),
        ("meta", "nftrace") => Some(vec![Action::Note]),
        ("meta", "priority") => {
            let value = priority(new).map_or_else(|| new.to_string(), |n| format!("{n:#x}"));
            Some(vec![Action::Effect(format!("meta priority {value}"))])
        }
        _ => None,
    }
}

/// An option of TCP that is set.
fn option(key: &Value, new: &Value) -> String {
    let value = match new.as_u64() {
        Some(number) => number.to_string(),
        None if new.get("rt").is_some_and(|rt| rt.get("key").is_some_and(|k| k == "mtu")) => {
            "rt".to_owned()
        }
        None => new.to_string(),
    };
    // `TCPOPT_MSS`, and where its size is.
    if key.get("name").is_some_and(|name| name == "maxseg") {
        return option_words(2, 2, &value);
    }
    format!("tcp option {key} {value}")
}

/// The handle of a class of traffic, as nft prints it: `none`, `root`, or two numbers in hexadecimal.
fn priority(new: &Value) -> Option<u32> {
    if let Some(number) = new.as_u64() {
        return u32::try_from(number).ok();
    }
    match new.as_str()? {
        "none" => Some(0),
        "root" => Some(u32::MAX),
        text => {
            let (major, minor) = text.split_once(':')?;
            let part =
                |text: &str| u16::from_str_radix(if text.is_empty() { "0" } else { text }, 16).ok();
            Some(u32::from(part(major)?) << 16 | u32::from(part(minor)?))
        }
    }
}

/// What a mark is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Of {
    Nothing,
    Packet,
    Connection,
}

/// The mark of the packet or of its connection is set.
fn marked(connection: bool, new: &Value) -> Option<Vec<Action>> {
    let (of, MarkChange { keep, flip }) = change(new)?;
    let set = |change| if connection { Action::Connmark(change) } else { Action::Mark(change) };
    let all = u32::MAX;
    Some(match (of, connection) {
        (Of::Nothing, _) => vec![set(MarkChange::set(Masked::exact(flip)))],
        (Of::Packet, false) | (Of::Connection, true) => vec![set(MarkChange { keep, flip })],
        (Of::Packet, true) => {
            copied(Action::Save { packet: keep, connection: all }, flip, Action::Connmark)
        }
        (Of::Connection, false) => {
            copied(Action::Restore { packet: all, connection: keep }, flip, Action::Mark)
        }
    })
}

fn copied(copy: Action, flip: u32, set: fn(MarkChange) -> Action) -> Vec<Action> {
    let rest = (flip != 0).then(|| set(MarkChange { keep: u32::MAX, flip }));
    [copy].into_iter().chain(rest).collect()
}

/// What a mark becomes: set, or made of one by `&`, `|` and `^`.
fn change(new: &Value) -> Option<(Of, MarkChange)> {
    if let Some(mark) = value::mark(new) {
        return Some((Of::Nothing, MarkChange { keep: 0, flip: mark }));
    }
    for (kind, of) in [("meta", Of::Packet), ("ct", Of::Connection)] {
        if new.get(kind).and_then(|of| of.get("key")).is_some_and(|key| key == "mark") {
            return Some((of, MarkChange { keep: u32::MAX, flip: 0 }));
        }
    }
    let (operator, sides) = single(new)?;
    let (first, others) = sides.as_array()?.split_first()?;
    let mut made = change(first)?;
    for bits in others {
        let bits = value::mark(bits)?;
        let MarkChange { keep, flip } = made.1;
        made.1 = match operator {
            "&" => MarkChange { keep: keep & bits, flip: flip & bits },
            "|" => MarkChange { keep: keep & !bits, flip: flip & !bits | bits },
            "^" => MarkChange { keep, flip: flip ^ bits },
            _ => return None,
        };
    }
    Some(made)
}
