//! `millrace explain`

use anyhow::Result;
use millrace_core::sim::report::{
    classes_json, classes_summary, classes_text, explanation_json, explanation_text,
};
use millrace_core::sim::{Outcome, partition};
use millrace_core::value::Family;
use millrace_host::progress::Progress;

use super::deep::deep;
use super::output::{print_json, print_painted, warn};
use super::{rules, saved};
use crate::cli::ask::Asked;
use crate::cli::own::Explain;
use crate::exit::Exit;
use crate::paint;

pub(crate) fn explain(explain: &Explain) -> Result<Exit> {
    let rules = rules::load(&explain.common, &explain.sources, &explain.config)?;
    let (program, namespace) = (&rules.program, &rules.namespace);
    let json = explain.common.json;
    let by_default = rules::by_default(&explain.common, &explain.sources, &explain.config);
    if json && let Some(text) = by_default {
        warn(text);
    }
    let by_default = by_default.map(|text| format!("# {text}\n")).unwrap_or_default();
    let unknown = match &explain.asked {
        Asked::All => {
            let progress = Progress::start("explain", None);
            let mut classes = deep(|| partition(program, namespace))?;
            drop(progress);
            classes.retain(|class| !program.untold().contains(&class.example.family()));
            let untold = saved::untold(program.untold());
            if json {
                untold.for_each(|text| warn(&text));
                print_json(&classes_json(program, &classes))?;
            } else {
                let untold = untold.map(|text| format!("# {text}\n"));
                let text = [by_default, classes_summary(&classes), classes_text(program, &classes)];
                let text: String = text.into_iter().chain(untold).collect();
                print_painted(&text, explain.common.color, paint::classes)?;
            }
            let unknown = |outcome: &Outcome| matches!(outcome, Outcome::Unknown { .. });
            let nothing = program.untold().len() == Family::ALL.len();
            nothing || classes.iter().any(|class| unknown(&class.answer.outcome))
        }
        Asked::One(typed) => {
            let (question, found) = rules.explain(typed)?;
            if let Some(source) = rules.foreign_source(&question) {
                warn(&format!(
                    "the pod has no address {source}: only a socket with IP_TRANSPARENT or IP_FREEBIND \
                     sends from it, bind() of any other fails with EADDRNOTAVAIL"
                ));
            }
            if json {
                print_json(&explanation_json(program, &question, &found))?;
            } else {
                let text = by_default + &explanation_text(program, &question, &found);
                print_painted(&text, explain.common.color, paint::explain)?;
            }
            matches!(found.answer.outcome, Outcome::Unknown { .. })
        }
    };
    Ok(if unknown { Exit::Failed } else { Exit::Ok })
}
