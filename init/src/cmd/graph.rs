//! `millrace graph`

use anyhow::Result;
use millrace_core::sim::graph::{Trail, picture};

use super::output::print;
use super::rules;
use crate::cli::own::Graph;
use crate::exit::Exit;

pub(crate) fn graph(graph: &Graph) -> Result<Exit> {
    let rules = rules::load(&graph.common, &graph.sources, &graph.config)?;
    let trail = match &graph.asked {
        None => None,
        Some(typed) => {
            let question = rules.question(typed)?;
            Some(Trail::of(&rules.explain(&question)?))
        }
    };
    print(&picture(&rules.program, graph.format, graph.family, trail.as_ref()))?;
    Ok(Exit::Ok)
}
