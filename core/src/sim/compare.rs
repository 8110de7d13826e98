//! Two sets of rules side by side: what changes for traffic, then which rules.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::namespace::Namespace;
use super::partition::{Change, Class, changes};
use super::program::{Program, RuleId};
use super::report::{class_words, rule_json, why};
use super::walk::Answer;
use crate::value::Family;

/// What differs.
#[derive(Clone, Debug)]
pub struct Difference {
    /// Connections of which something else becomes.
    pub traffic: Vec<Class<Change>>,
    /// Rules of the first that the second has not.
    pub removed: Vec<RuleId>,
    /// Rules of the second that the first has not.
    pub added: Vec<RuleId>,
}

/// Compare rules, each in its namespace. Rules are the same if they mean the same in chains of the
/// same name.
pub fn compare(before: (&Program, &Namespace), after: (&Program, &Namespace)) -> Difference {
    let traffic = changes(before, after);
    let removed = only_in(before.0, after.0);
    let added = only_in(after.0, before.0);
    Difference { traffic, removed, added }
}

type Place<'p> = (Vec<Family>, &'p str, &'p str, &'p str);

fn rules(program: &Program) -> impl Iterator<Item = (RuleId, Place<'_>)> {
    program.chains().flat_map(move |(_, chain)| {
        chain.rules.iter().map(move |id| {
            let meaning = program.rule(*id).meaning.as_str();
            (*id, (chain.families.clone(), chain.table.as_str(), chain.name.as_str(), meaning))
        })
    })
}

/// Rules of one that the other does not have as often.
fn only_in(one: &Program, other: &Program) -> Vec<RuleId> {
    let mut there: BTreeMap<Place<'_>, usize> = BTreeMap::new();
    for (_, place) in rules(other) {
        *there.entry(place).or_default() += 1;
    }
    let left = rules(one).filter(|(_, place)| match there.get_mut(place) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    });
    left.map(|(id, _)| id).collect()
}

/// A difference as text.
pub fn difference_text(before: &Program, after: &Program, found: &Difference) -> String {
    let mut text = String::new();
    if found.traffic.is_empty() {
        text.push_str("traffic: no connection is treated otherwise\n");
    } else {
        text.push_str("traffic:\n");
    }
    for class in &found.traffic {
        let words = class_words(class);
        let Change { before: first, after: second } = &class.answer;
        text.push_str(&format!(
            "  {} {}, to {}\n    {} -> {}\n    for example {}\n",
            class.family(),
            words.who,
            words.to,
            first.outcome,
            second.outcome,
            class.example
        ));
        for (sign, program, answer) in [('-', before, first), ('+', after, second)] {
            text.push_str(&format!("    {sign} {}\n", decided(program, answer)));
        }
    }
    if found.removed.is_empty() && found.added.is_empty() {
        text.push_str("rules: the same\n");
        return text;
    }
    text.push_str("rules:\n");
    for (sign, program, ids) in [('-', before, &found.removed), ('+', after, &found.added)] {
        for id in ids {
            let chain = program.chain(program.rule(*id).chain);
            let families: Vec<String> = chain.families.iter().map(ToString::to_string).collect();
            text.push_str(&format!("{sign} {} {}\n", families.join("+"), program.line(*id)));
        }
    }
    text
}

fn decided(program: &Program, answer: &Answer) -> String {
    answer.decided.last().map_or_else(
        || "no rule".to_owned(),
        |id| format!("{}{}", program.line(*id), why(program, *id).replace("\n   ", "; ")),
    )
}

/// A difference as JSON.
pub fn difference_json(before: &Program, after: &Program, found: &Difference) -> Value {
    let side = |program: &Program, answer: &Answer| {
        let decided: Vec<Value> = answer.decided.iter().map(|id| rule_json(program, *id)).collect();
        json!({ "fate": answer.fate, "outcome": answer.outcome, "decidedBy": decided })
    };
    let traffic = found.traffic.iter().map(|class| {
        let words = class_words(class);
        json!({
            "family": class.family(),
            "who": words.who,
            "to": words.to,
            "example": class.example,
            "before": side(before, &class.answer.before),
            "after": side(after, &class.answer.after),
        })
    });
    let listed = |program: &Program, ids: &[RuleId]| -> Vec<Value> {
        ids.iter().map(|id| rule_json(program, *id)).collect()
    };
    json!({
        "traffic": traffic.collect::<Vec<_>>(),
        "removed": listed(before, &found.removed),
        "added": listed(after, &found.added),
    })
}
