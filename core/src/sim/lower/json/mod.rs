//! What `nft -j list ruleset` prints (`libnftables-json(5)`). What is not understood of a rule is
//! unknown to the walk, by the name that nft has for it.

mod action;
mod condition;
mod value;

use serde_json::Value;

use self::action::actions;
use self::condition::Settled;
use self::value::Sets;
use super::super::program::{Base, Policy, SourceChain, SourceRule, SourceTable};
use super::super::rule::{Action, Step, Test};
use super::words::words;
use crate::iptables::Counters;
use crate::ruleset::Hook;
use crate::value::Family;

/// Why a text is no list of nft's.
#[derive(Debug, thiserror::Error)]
pub enum NotNft {
    /// It is no JSON.
    #[error("this is no JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// It is something else.
    #[error("this is not what `nft -j list ruleset` prints: {0}")]
    Other(&'static str),
}

/// Tables of nft's JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// The tables.
    pub tables: Vec<SourceTable>,
    /// What of it packets are not walked through: tables and chains of layers below IP.
    pub left_out: Vec<String>,
}

/// The tables of what `nft -j list ruleset` printed.
///
/// # Errors
/// When it is nothing of the kind.
pub fn of_nft_json(text: &str) -> Result<Listed, NotNft> {
    let document: Value = serde_json::from_str(text)?;
    let objects = document.get("nftables").and_then(Value::as_array);
    let objects = objects.ok_or(NotNft::Other("it has no list `nftables`"))?;
    let of = |kind: &'static str| objects.iter().filter_map(move |object| object.get(kind));
    let mut listed = Listed::default();
    let mut sets = Sets::default();
    for set in of("set").chain(of("map")) {
        sets.insert(place(set, "name")?, set);
    }
    for table in of("table") {
        let (family, name, _) = place(table, "name")?;
        match families(family) {
            Some(families) => listed.tables.push(SourceTable {
                holder: super::nft::HOLDER.to_owned(),
                name: name.to_owned(),
                families,
                chains: Vec::new(),
            }),
            None => listed.left_out.push(format!("table {family} {name}")),
        }
    }
    for chain in of("chain") {
        let (family, table, name) = place(chain, "name")?;
        let Some(into) = find(&mut listed.tables, family, table) else { continue };
        let base = base(chain);
        if chain.get("hook").is_some() && base.is_none() {
            listed.left_out.push(format!("chain {family} {table} {name}"));
        }
        into.chains.push(SourceChain { name: name.to_owned(), base, rules: Vec::new() });
    }
    for rule in of("rule") {
        let (family, table, name) = place(rule, "chain")?;
        let Some(into) = find(&mut listed.tables, family, table) else { continue };
        let Some(chain) = into.chains.iter_mut().find(|chain| chain.name == name) else {
            return Err(NotNft::Other("a rule is in a chain that is not there"));
        };
        let exprs = rule.get("expr").and_then(Value::as_array);
        let exprs = exprs.ok_or(NotNft::Other("a rule has no expressions"))?;
        let reader = Reader { sets: &sets, family, table };
        chain.rules.extend(reader.rules(exprs));
    }
    Ok(listed)
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
        "inet" => Family::ALL.to_vec(),
        _ => return None,
    })
}

fn find<'t>(
    tables: &'t mut [SourceTable],
    family: &str,
    name: &str,
) -> Option<&'t mut SourceTable> {
    let families = families(family)?;
    tables.iter_mut().find(|table| table.name == name && table.families == families)
}

/// Where the kernel calls a chain from; none for layers that are not walked.
fn base(chain: &Value) -> Option<Base> {
    let text = |key: &str| chain.get(key).and_then(Value::as_str);
    let hook = text("hook")?;
    let hook = Hook::ALL.into_iter().find(|known| known.as_str().eq_ignore_ascii_case(hook))?;
    let priority = chain.get("prio").and_then(Value::as_i64).and_then(|p| i32::try_from(p).ok())?;
    let policy = match text("policy") {
        Some("drop") => Policy::Drop,
        _ => Policy::Accept,
    };
    Some(Base { hook, kind: super::nft::kind(text("type")?), priority, policy })
}

/// Reads the rules of a table.
struct Reader<'v> {
    sets: &'v Sets<'v>,
    family: &'v str,
    table: &'v str,
}

impl Reader<'_> {
    /// A rule; one with a verdict map is a rule for each of its values.
    fn rules(&self, exprs: &[Value]) -> Vec<SourceRule> {
        let mut steps: Vec<Step> = Vec::new();
        let mut counters = None;
        let mut settled = Settled::of_table(families(self.family));
        let mut branches: Vec<Vec<Step>> = Vec::new();
        for (at, expr) in exprs.iter().enumerate() {
            let Some((name, content)) = single(expr) else {
                steps.push(Test::Unknown(expr.to_string()).into());
                continue;
            };
            match name {
                "counter" => {
                    counters = counted(content).or(counters);
                    steps.push(Action::Note.into());
                }
                "vmap" => {
                    let plain =
                        |step: &Step| matches!(step, Step::Test(_) | Step::Do(Action::Note));
                    let last = at + 1 == exprs.len() && steps.iter().all(plain);
                    match self.vmap(content, &mut settled).filter(|_| last) {
                        Some(found) => branches = found,
                        None => steps.push(Action::Unknown(format!("vmap {content}")).into()),
                    }
                }
                _ => match self.condition(name, content, &mut settled) {
                    Some(found) => steps.extend(found.into_iter().map(Step::Test)),
                    None => steps.extend(actions(name, content).into_iter().map(Step::Do)),
                },
            }
        }
        if branches.is_empty() {
            branches.push(Vec::new());
        }
        let rule = |branch: Vec<Step>| {
            let steps = [steps.clone(), branch].concat();
            let mut text = words(&steps);
            if text.is_empty() {
                let names: Vec<&str> = exprs.iter().filter_map(|e| Some(single(e)?.0)).collect();
                text = names.join(" ");
            }
            SourceRule { text, reason: None, counters, steps }
        };
        branches.into_iter().map(rule).collect()
    }

    /// What a verdict map does with each of its values.
    fn vmap(&self, content: &Value, settled: &mut Settled) -> Option<Vec<Vec<Step>>> {
        let key = content.get("key")?;
        let elements = value::elements(content.get("data")?, self.family, self.table, self.sets)?;
        // A chain that is jumped to can change a mark, and then another value would match too.
        if elements.len() > 1 && key.pointer("/meta/key").is_some_and(|key| key == "mark") {
            return None;
        }
        let mut branches = Vec::new();
        let before = settled.clone();
        for element in elements {
            let [value, verdict] = element.as_array()?.as_slice() else { return None };
            *settled = before.clone();
            let (name, verdict) = single(verdict)?;
            let tests = self.matched(key, "==", value, settled)?;
            let actions = actions(name, verdict).into_iter().map(Step::Do);
            branches.push(tests.into_iter().map(Step::Test).chain(actions).collect());
        }
        Some(branches)
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

fn counted(content: &Value) -> Option<Counters> {
    let number = |key: &str| content.get(key).and_then(Value::as_u64);
    Some(Counters { packets: number("packets")?, bytes: number("bytes")? })
}
