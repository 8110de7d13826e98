//! What `nft -j list ruleset` prints (`libnftables-json(5)`). What is not understood of a rule is
//! unknown to the walk, by the name that nft has for it.

mod action;
mod branch;
mod condition;
mod fib;
mod flags;
mod objects;
mod value;

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;

use self::action::actions;
use self::branch::Branch;
use self::condition::Settled;
use self::value::Sets;
use super::super::program::{Base, Beside, Policy, SourceChain, SourceRule, SourceTable};
use super::super::ranges::Ranges;
use super::super::rule::{Action, Field, Step, Way};
use super::Left;
use super::arp::at_interfaces;
use super::beside;
use super::words::words;
use crate::iptables::Counters;
use crate::ruleset::Hook;
use crate::value::{Family, InterfacePattern};

/// Why a text is no list of nft's.
#[derive(Debug, thiserror::Error)]
pub enum NotNft {
    /// The text is no valid JSON; the error says where it ceases to be.
    #[error("this is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It is JSON of another shape; in words, what is missing or wrong.
    #[error("this is not what `nft -j list ruleset` prints: {0}")]
    Other(&'static str),
    /// An object of it is none that a kernel has, or none that is known.
    #[error("object {number} of the list is not what `nft -j list ruleset` prints: {what}")]
    Object {
        /// Its place, counted from 1.
        number: usize,
        /// What is wrong with it.
        what: String,
    },
}

/// What was read of the output of `nft -j list ruleset`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// Those that packets of IP meet.
    pub tables: Vec<SourceTable>,
    /// What of it packets are not walked through: tables of layers below IP.
    pub left_out: Vec<String>,
    /// Tables of ARP, without whose consent no next hop on a link is found.
    pub arp: Vec<String>,
    /// All tables that are listed.
    pub names: Vec<String>,
}

/// The tables of what `nft -j list ruleset` printed.
///
/// # Errors
/// When it is nothing of the kind.
pub fn of_nft_json(text: &str) -> Result<Listed, NotNft> {
    let document: Value = serde_json::from_str(text)?;
    let objects = document.get("nftables").and_then(Value::as_array);
    let objects = objects.ok_or(NotNft::Other("it has no list `nftables`"))?;
    objects::check(objects)?;
    let of = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
    let (mut left_out, mut arp, mut names) = (Vec::new(), Vec::new(), Vec::new());
    let mut sets = Sets::default();
    for set in of("set").chain(of("map")).filter(|set| objects::is_known_set(set)) {
        // Which is which is not said: all of them are empty, or nothing of them was printed.
        if !objects::is_terse(objects) {
            sets.insert(place(set, "name")?, set);
        }
    }
    // Elements that stand by themselves are more than those of the set.
    for element in of("element") {
        sets.remove(&place(element, "name")?);
    }
    for rule in of("rule") {
        let (family, table, _) = place(rule, "chain")?;
        let exprs = rule.get("expr").and_then(Value::as_array);
        // What packets fill is not what it was.
        for expr in exprs.into_iter().flatten() {
            let filled = expr.pointer("/set/set").or_else(|| expr.pointer("/map/map"));
            if let Some(name) = filled.and_then(Value::as_str) {
                sets.remove(&(family, table, name.trim_start_matches('@')));
            }
        }
    }
    let mut tables: Vec<Table<'_>> = Vec::new();
    let mut others: Vec<(&str, &str)> = Vec::new();
    for table in of("table") {
        let (family, name, _) = place(table, "name")?;
        names.push(format!("table {family} {name}"));
        let Some(families) = families(family) else {
            let words = format!("table {family} {name}");
            if family == "arp" && objects::hinders(objects, name) {
                arp.push(words);
            } else {
                left_out.push(words);
            }
            others.push((family, name));
            continue;
        };
        let holder = super::nft::HOLDER.to_owned();
        let content = SourceTable { holder, name: name.to_owned(), families, chains: Vec::new() };
        let strange = objects::of_table(table);
        tables.push(Table { family, content, calls: called(table.get("flags")), strange });
    }
    let mut callers: Vec<(&str, &str, SourceChain)> = Vec::new();
    for chain in of("chain") {
        let (family, table, name) = place(chain, "name")?;
        let Some(into) = find(&mut tables, family, table) else {
            absent(&others, family, table)?;
            continue;
        };
        let hooked = chain.get("hook").is_some() && into.calls != Calls::None;
        let base = base(chain).filter(|_| hooked);
        let caller = below(chain, name).filter(|_| hooked);
        callers.extend(caller.map(|caller| (family, table, caller)));
        let rules = objects::of_chain(chain).map(unclear).into_iter().collect();
        into.content.chains.push(SourceChain { name: name.to_owned(), base, rules });
    }
    let kept = Kept::new();
    for rule in of("rule") {
        let (family, table, name) = place(rule, "chain")?;
        let Some(into) = find(&mut tables, family, table) else {
            absent(&others, family, table)?;
            continue;
        };
        let Some(chain) = into.content.chains.iter_mut().find(|chain| chain.name == name) else {
            return Err(NotNft::Other("a rule is in a chain that is not there"));
        };
        let exprs = rule.get("expr").and_then(Value::as_array);
        let exprs = exprs.ok_or(NotNft::Other("a rule has no expressions"))?;
        let reader = JsonReader { sets: &sets, family, table, kept: &kept };
        chain.rules.extend(objects::of_rule(rule).map(unclear));
        chain.rules.extend(reader.rules(exprs));
    }
    for (family, table, caller) in callers {
        if let Some(into) = find(&mut tables, family, table) {
            into.content.chains.push(caller);
        }
    }
    let could = |t: &&Table<'_>| t.family == "netdev" && t.calls != Calls::None;
    let below = tables.iter().filter(could).filter(|table| at_interfaces(&table.content));
    arp.extend(below.map(|table| format!("table netdev {}", table.content.name)));
    let tables = tables.into_iter().map(Table::settled).collect();
    Ok(Listed { tables, left_out, arp, names })
}

/// A rule in front of what is not understood.
fn unclear(what: String) -> SourceRule {
    let steps: Vec<Step> = vec![Action::Unknown(what.clone()).into()];
    let (reason, counters, beside) = (None, None, Beside::default());
    SourceRule { text: what, reason, counters, steps, vague: true, beside }
}

/// Whether the kernel calls a table's chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Calls {
    All,
    None,
    Unknown,
}

/// What the flags of a table say. nft 1.0.6 prints something else in their place.
fn called(flags: Option<&Value>) -> Calls {
    let list = match flags {
        None => return Calls::All,
        Some(Value::Array(list)) => list.clone(),
        Some(flag) => vec![flag.clone()],
    };
    let known = ["owner", "persist"];
    if list.iter().any(|flag| flag == "dormant") {
        Calls::None
    } else if list.iter().all(|flag| known.iter().any(|known| flag == known)) {
        Calls::All
    } else {
        Calls::Unknown
    }
}

struct Table<'v> {
    family: &'v str,
    content: SourceTable,
    calls: Calls,
    /// What of it is not understood.
    strange: Option<String>,
}

impl Table<'_> {
    /// The table; where it is not known whether its chains are called, they begin with that.
    fn settled(self) -> SourceTable {
        let mut table = self.content;
        let asleep = (self.calls == Calls::Unknown).then(|| {
            format!("whether table {} is dormant, which this nft does not print", table.name)
        });
        for what in self.strange.into_iter().chain(asleep) {
            for chain in table.chains.iter_mut().filter(|chain| chain.base.is_some()) {
                chain.rules.insert(0, unclear(what.clone()));
            }
        }
        table
    }
}

/// What calls a chain that hangs at interfaces.
fn below(chain: &Value, name: &str) -> Option<SourceChain> {
    let text = |key: &str| chain.get(key).and_then(Value::as_str);
    let way = match text("hook")? {
        "ingress" => Way::In,
        "egress" => Way::Out,
        _ => return None,
    };
    let devices = match chain.get("dev") {
        Some(Value::String(name)) => vec![name.clone()],
        Some(Value::Array(names)) => {
            names.iter().filter_map(|name| Some(name.as_str()?.to_owned())).collect()
        }
        _ => Vec::new(),
    };
    let priority = objects::priority(chain)?;
    Some(super::native::at_device(way, priority, policy(chain), name, &devices))
}

/// Family, table and name of an object. A table's name is its table.
fn place<'v>(object: &'v Value, name: &str) -> Result<(&'v str, &'v str, &'v str), NotNft> {
    let text = |key: &str| object.get(key).and_then(Value::as_str);
    let found = text("family").zip(text(name));
    let (family, name) = found.ok_or(NotNft::Other("an object has no family or name"))?;
    Ok((family, text("table").unwrap_or(name), name))
}

fn families(name: &str) -> Option<Vec<Family>> {
    Some(match name {
        "ip" => vec![Family::V4],
        "ip6" => vec![Family::V6],
        "inet" | "netdev" => Family::ALL.to_vec(),
        _ => return None,
    })
}

fn find<'t, 'v>(
    tables: &'t mut [Table<'v>],
    family: &str,
    name: &str,
) -> Option<&'t mut Table<'v>> {
    tables.iter_mut().find(|table| table.family == family && table.content.name == name)
}

/// Refuse what is in a table that is not listed, as of one chain alone: whether the kernel calls it isn't
/// known.
fn absent(others: &[(&str, &str)], family: &str, name: &str) -> Result<(), NotNft> {
    if others.contains(&(family, name)) {
        return Ok(());
    }
    Err(NotNft::Other("a chain or rule is in a table that is not there; save all of them"))
}

/// Where the kernel calls a chain from; none for layers that are not walked.
fn base(chain: &Value) -> Option<Base> {
    let text = |key: &str| chain.get(key).and_then(Value::as_str);
    let hook = text("hook")?;
    let hook = Hook::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(hook))?;
    let kind = super::nft::kind(text("type")?);
    Some(Base { hook, kind, priority: objects::priority(chain)?, policy: policy(chain) })
}

fn policy(chain: &Value) -> Policy {
    match chain.get("policy").and_then(Value::as_str) {
        Some("drop") => Policy::Drop,
        _ => Policy::Accept,
    }
}

/// Reads the rules of a table.
struct JsonReader<'v> {
    sets: &'v Sets<'v>,
    family: &'v str,
    table: &'v str,
    kept: &'v Kept,
}

/// What is asked of a set; none where that is not known.
type Asked<Of, What> = HashMap<Of, Option<What>>;

/// What rules share.
struct Kept {
    /// How many rules maps may still lead to.
    left: Left,
    /// What was asked of sets so far, by their family, table and name.
    asked: RefCell<Asked<([String; 3], Field), Ranges>>,
    interfaces: RefCell<Asked<[String; 3], Arc<[InterfacePattern]>>>,
}

impl Kept {
    fn new() -> Self {
        let (asked, interfaces) = (RefCell::default(), RefCell::default());
        Self { left: Left::new(), asked, interfaces }
    }
}

impl JsonReader<'_> {
    /// A rule; one that looks something up in a map, or several things in a set, is a rule for each of
    /// the elements.
    fn rules(&self, exprs: &[Value]) -> Vec<SourceRule> {
        let mut counters = None;
        let settled = Settled::of_table(families(self.family));
        let mut branches = vec![Branch { steps: Vec::new(), settled }];
        for (at, expr) in exprs.iter().enumerate() {
            let Some((name, content)) = single(expr) else {
                let unknown = Step::from(Action::Unknown(expr.to_string()));
                for branch in &mut branches {
                    branch.steps.push(unknown.clone());
                }
                continue;
            };
            if name == "counter" {
                counters = counted(content).or(counters);
            }
            let last = at + 1 == exprs.len();
            if let Some(longer) = self.looked_up(name, content, last, &branches) {
                branches = longer;
                continue;
            }
            for Branch { steps, settled } in &mut branches {
                match name {
                    "counter" => steps.push(Action::Note.into()),
                    "vmap" => steps.push(Action::Unknown(format!("vmap {content}")).into()),
                    "reject" => {
                        steps.extend(settled.refused(content).map(Step::Test));
                        steps.extend(actions(name, content).into_iter().map(Step::Do));
                    }
                    _ => match self.condition(name, content, settled) {
                        Some(found) => steps.extend(found.into_iter().map(Step::Test)),
                        None => steps.extend(actions(name, content).into_iter().map(Step::Do)),
                    },
                }
            }
        }
        // What nft does not print, or not here.
        let hidden = exprs.iter().any(|expr| expr.get("xt").is_some() || names_set(expr));
        let beside = beside::of_json(exprs);
        let rule = |Branch { steps, .. }: Branch| {
            let mut text = words(&steps);
            if text.is_empty() {
                let names: Vec<&str> = exprs.iter().filter_map(|e| Some(single(e)?.0)).collect();
                text = names.join(" ");
            }
            let vague = hidden && steps.iter().any(Step::is_unknown);
            SourceRule { text, reason: None, counters, steps, vague, beside: beside.clone() }
        };
        branches.into_iter().map(rule).collect()
    }
}

/// The only key of an object, and what is behind it.
fn single(object: &Value) -> Option<(&str, &Value)> {
    // Some statements are a word alone, as `"notrack"`.
    if let Some(word) = object.as_str() {
        return Some((word, &Value::Null));
    }
    let mut members = object.as_object()?.iter();
    let (name, content) = members.next()?;
    members.next().is_none().then_some((name.as_str(), content))
}

/// Whether a set or map is named somewhere in it.
fn names_set(value: &Value) -> bool {
    match value {
        Value::String(text) => text.starts_with('@'),
        Value::Array(values) => values.iter().any(names_set),
        Value::Object(members) => members.values().any(names_set),
        _ => false,
    }
}

fn counted(content: &Value) -> Option<Counters> {
    let number = |key: &str| content.get(key).and_then(Value::as_u64);
    Some(Counters { packets: number("packets")?, bytes: number("bytes")? })
}
