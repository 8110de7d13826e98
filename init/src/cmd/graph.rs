//! `millrace graph`

use anyhow::Result;
use millrace_core::sim::Outcome;
use millrace_core::sim::graph::{Trail, picture};
use millrace_core::value::Family;

use super::output::{print, warn};
use super::{rules, saved};
use crate::cli::own::Graph;
use crate::exit::Exit;

pub(crate) fn graph(graph: &Graph) -> Result<Exit> {
    let rules = rules::load(&graph.common, &graph.sources, &graph.config)?;
    let explained = match &graph.asked {
        None => None,
        Some(typed) => Some(rules.explain(typed)?.1),
    };
    if let Some(text) = rules::by_default(&graph.common, &graph.sources, &graph.config) {
        warn(text);
    }
    let trail = explained.as_ref().map(Trail::of);
    print(&picture(&rules.program, graph.format, graph.family, trail.as_ref()))?;
    let shown = |family: &Family| graph.family.is_none_or(|asked| asked == *family);
    let untold: Vec<Family> = rules.program.untold().iter().copied().filter(shown).collect();
    saved::untold(&untold).for_each(|text| warn(&text));
    if let Some(why) = rules.program.obscured_by() {
        warn(&format!("the picture is not of all that decides: {why}"));
        return Ok(Exit::Failed);
    }
    let outcome = explained.map(|explained| explained.answer.outcome);
    Ok(if let Some(outcome @ Outcome::Unknown { .. }) = outcome {
        warn(&outcome.to_string());
        Exit::Failed
    } else {
        Exit::Ok
    })
}
