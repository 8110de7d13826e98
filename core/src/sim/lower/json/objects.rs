//! The objects of what nft listed, before anything is made of them: each has to be one that is known, in a
//! place that there is, as a kernel can have it. Of one that says more than is known here, that is named.

use std::collections::HashSet;

use serde_json::Value;

use super::super::beside::NAMED;
use super::{NotNft, place};

/// Objects that a list has, beside those that rules name. Of those behind the sets nothing is walked.
const KINDS: [&str; 9] =
    ["metainfo", "table", "chain", "rule", "set", "map", "element", "flowtable", "counter"];

/// Commands of `nft -j -f`, which are no list of what there is.
const COMMANDS: [&str; 10] =
    ["add", "insert", "create", "delete", "destroy", "flush", "list", "rename", "replace", "reset"];

/// What is known of a table, a chain, a rule and a set. What nothing of a packet's way depends on is known
/// as well.
const TABLE: [&str; 5] = ["family", "name", "handle", "flags", "comment"];
const CHAIN: [&str; 10] =
    ["family", "table", "name", "handle", "comment", "type", "hook", "prio", "policy", "dev"];
const RULE: [&str; 6] = ["family", "table", "chain", "handle", "expr", "comment"];
const SET: [&str; 15] = [
    "family",
    "table",
    "name",
    "handle",
    "type",
    "map",
    "flags",
    "elem",
    "timeout",
    "gc-interval",
    "size",
    "policy",
    "auto-merge",
    "comment",
    "stmt",
];

/// The hooks of each family, and the types that chains can have there.
const HOOKS: [&str; 5] = ["prerouting", "input", "forward", "output", "postrouting"];

/// The most bytes of a name (`NFT_NAME_MAXLEN` with its end).
const LONGEST: usize = 255;

/// The priority of connection tracking, behind which addresses are translated.
const TRACK: i32 = -200;

/// Priorities by name, as nft prints them elsewhere.
const PRIORITIES: [(&str, i32); 6] = [
    ("raw", -300),
    ("mangle", -150),
    ("dstnat", -100),
    ("filter", 0),
    ("security", 50),
    ("srcnat", 100),
];

/// Check all objects of a list.
pub(super) fn check(objects: &[Value]) -> Result<(), NotNft> {
    let mut seen = HashSet::new();
    for (at, object) in objects.iter().enumerate() {
        let bad = |what: String| NotNft::Object { number: at + 1, what };
        let members = object.as_object().ok_or_else(|| bad("it is none".to_owned()))?;
        let mut names = members.iter();
        let (Some((kind, content)), None) = (names.next(), names.next()) else {
            let all: Vec<&str> = members.keys().map(String::as_str).collect();
            return Err(bad(format!("it has not one key, but {}: {}", all.len(), all.join(", "))));
        };
        if COMMANDS.contains(&kind.as_str()) {
            return Err(bad(format!(
                "{kind} is a command of `nft -f`, and no object that there is"
            )));
        }
        if !KINDS.iter().chain(&NAMED).any(|known| kind == known) {
            return Err(bad(format!("what {kind} is, is not known here")));
        }
        if kind == "metainfo" {
            let version = content.get("json_schema_version");
            if version.is_some_and(|version| version != 1) {
                return Err(bad("only version 1 of json_schema_version is known".to_owned()));
            }
            continue;
        }
        let within = if kind == "rule" { "chain" } else { "name" };
        // What belongs to a table that is not walked is not looked into.
        if !matches!(kind.as_str(), "table" | "chain" | "rule" | "set" | "map") {
            continue;
        }
        let (family, table, name) = place(content, within).map_err(|_none| {
            bad(format!("the {kind} has no family or {within}, or it is no text"))
        })?;
        let called = if kind == "table" {
            format!("table {family} {name}")
        } else {
            format!("{kind} {family} {table} {name}")
        };
        let bad = |what: String| bad(format!("{called}: {what}"));
        if name.is_empty() || name.len() > LONGEST {
            return Err(bad(format!("a name has 1 to {LONGEST} bytes")));
        }
        let one_of_a_name = match kind.as_str() {
            "map" => "set",
            kind => kind,
        };
        if kind != "rule" && !seen.insert((one_of_a_name, family, table, name)) {
            return Err(bad("it is there already".to_owned()));
        }
        match kind.as_str() {
            "table" if !["ip", "ip6", "inet", "arp", "bridge", "netdev"].contains(&family) => {
                return Err(bad(format!("what family {family} is, is not known here")));
            }
            "chain" => chain(family, content).map_err(bad)?,
            _ => {}
        }
    }
    let has = |kind: &str| objects.iter().any(|object| object.get(kind).is_some());
    if has("table") && !has("chain") {
        return Err(NotNft::Other(
            "it has tables without any chain, as `nft -j list tables` prints them",
        ));
    }
    Ok(())
}

/// Whether a chain is one that the kernel can have.
fn chain(family: &str, chain: &Value) -> Result<(), String> {
    let Some(hook) = chain.get("hook") else {
        let has =
            ["type", "prio", "policy", "dev"].into_iter().find(|key| chain.get(key).is_some());
        return match has {
            Some(key) => Err(format!("it has {key}, and no hook")),
            None => Ok(()),
        };
    };
    let hook = hook.as_str().unwrap_or_default();
    let hooks: Vec<&str> = match family {
        "netdev" => vec!["ingress", "egress"],
        "arp" => vec!["input", "output"],
        "inet" => [&HOOKS[..], &["ingress"]].concat(),
        _ => HOOKS.to_vec(),
    };
    if !hooks.contains(&hook) {
        return Err(format!("there is no hook {} in {family}", chain["hook"]));
    }
    let kind = chain.get("type").and_then(Value::as_str).unwrap_or_default();
    let fits = match kind {
        "filter" => true,
        "nat" => HOOKS.contains(&hook) && hook != "forward" && family.starts_with('i'),
        "route" => hook == "output" && family.starts_with('i'),
        _ => false,
    };
    if !fits {
        let kind = chain.get("type").map_or_else(|| "none".to_owned(), Value::to_string);
        return Err(format!("its type is {kind}, which no chain at {hook} of {family} has"));
    }
    let Some(priority) = priority(chain) else {
        return Err("its priority is not a number of 32 bits".to_owned());
    };
    if kind == "nat" && priority <= TRACK {
        return Err(format!("nat has no priority {priority}: it comes behind connection tracking"));
    }
    match chain.get("policy") {
        None => Ok(()),
        Some(policy) if policy == "accept" || policy == "drop" => Ok(()),
        Some(policy) => Err(format!("{policy} is no policy: accept and drop are")),
    }
}

/// The priority of a chain.
pub(super) fn priority(chain: &Value) -> Option<i32> {
    let known = |name: &str| PRIORITIES.iter().find(|(known, _)| *known == name).map(|(_, p)| *p);
    match chain.get("prio")? {
        Value::String(name) => known(name),
        number => i32::try_from(number.as_i64()?).ok(),
    }
}

/// What of an object is not known here.
fn strange<'v>(object: &'v Value, known: &[&str]) -> Option<&'v str> {
    let mut keys = object.as_object().into_iter().flatten().map(|(key, _)| key.as_str());
    keys.find(|key| !known.contains(key))
}

pub(super) fn of_table(table: &Value) -> Option<String> {
    strange(table, &TABLE).map(|key| format!("what `{key}` means of a table"))
}

pub(super) fn of_chain(chain: &Value) -> Option<String> {
    strange(chain, &CHAIN).map(|key| format!("what `{key}` means of a chain"))
}

pub(super) fn of_rule(rule: &Value) -> Option<String> {
    strange(rule, &RULE).map(|key| format!("what `{key}` means of a rule"))
}

/// Whether all that is said of a set is known.
pub(super) fn is_known_set(set: &Value) -> bool {
    let flags = match set.get("flags") {
        None => Vec::new(),
        Some(Value::Array(flags)) => flags.iter().collect(),
        Some(flag) => vec![flag],
    };
    let known = ["constant", "interval", "timeout", "dynamic"];
    strange(set, &SET).is_none()
        && flags.iter().all(|flag| known.iter().any(|known| *flag == known))
}

/// Whether what is in sets was left out, as `nft -t` does: some are listed, and none has anything.
pub(super) fn is_terse(objects: &[Value]) -> bool {
    let sets =
        || objects.iter().filter_map(|object| object.get("set").or_else(|| object.get("map")));
    sets().next().is_some() && sets().all(|set| set.get("elem").is_none())
}

/// Whether rules of ARP can keep a packet from finding its next hop.
pub(super) fn hinders(objects: &[Value], table: &str) -> bool {
    let of = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
    let here = |object: &&Value| object["family"] == "arp" && object["table"] == table;
    let hooked = |chain: &Value| chain.get("hook").is_some();
    let mut chains = of("chain").filter(here);
    let is_called = of("chain").filter(here).any(hooked);
    let harmless = ["match", "counter", "log", "accept", "continue", "return", "jump", "goto"];
    let rule = |rule: &Value| {
        let exprs = rule.get("expr").and_then(Value::as_array).into_iter().flatten();
        let mut names = exprs.map(|expr| super::single(expr).map(|(name, _)| name));
        !names.all(|name| name.is_some_and(|name| harmless.contains(&name)))
    };
    let dormant = |table: &Value| match table.get("flags") {
        Some(Value::Array(flags)) => flags.iter().any(|flag| flag == "dormant"),
        Some(flag) => flag == "dormant",
        None => false,
    };
    let mut tables = of("table").filter(|of| of["family"] == "arp" && of["name"] == table);
    is_called
        && !tables.any(dormant)
        && (chains.any(|chain| chain.get("policy").is_some_and(|policy| policy != "accept"))
            || of("rule").filter(here).any(rule))
}
