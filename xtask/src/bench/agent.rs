//! `xtask bench agent`: what the node agent costs a node with 250 pods. The suite `node_cost` measures, with
//! the binaries that are shipped, since it brings an API server along.

use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::{Arg, ArgMatches, value_parser};

use super::apply::machine;
use crate::{dist, repo};

/// The command line of `xtask bench agent`.
pub fn command() -> clap::Command {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        let number = value_parser!(u32).range(1..);
        Arg::new(name).long(name).value_parser(number).default_value(default).help(help)
    };
    clap::Command::new("agent")
        .about("Run the node agent on a node with 250 pods: memory, time at rest, what ADD through it costs")
        .args([
            number("seconds", "60", "For how long the agent is watched at rest"),
            number("runs", "200", "How many pods are added without the agent, and as many through it"),
            super::check_arg(),
        ])
}

/// Measures, and prints the figures.
///
/// # Errors
/// When something could not be measured.
pub fn run(args: &ArgMatches) -> Result<ExitCode> {
    let number = |name: &str| args.get_one::<u32>(name).map_or_else(String::new, u32::to_string);
    let (cni, node) = (dist::cni()?, dist::node()?);
    let machine = machine()?;
    let mut suite = repo::cargo();
    // The same features as in the run of all tests, so that nothing is compiled again.
    suite
        .args(["test", "--locked", "--workspace", "--test", "node_cost", "--", "--nocapture"])
        .env("MILLRACE_CNI_BIN", cni)
        .env("MILLRACE_NODE_BIN", node)
        .env("MILLRACE_COST_SECONDS", number("seconds"))
        .env("MILLRACE_COST_RUNS", number("runs"));
    if args.get_flag("check") {
        suite.env("MILLRACE_COST_GOALS", "yes");
    }
    let output = suite.output().context("cargo test")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    // They are printed before they are judged.
    let figures = printed.lines().find(|line| line.starts_with("250 pods: "));
    let Some(figures) = figures else {
        bail!("node_cost: {printed}{}", String::from_utf8_lossy(&output.stderr));
    };
    repo::print(&format!("{machine}\n{figures}\n"))?;
    Ok(if output.status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
