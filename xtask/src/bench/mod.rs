//! `xtask bench`: how fast Millrace is beside the least that could be done.

pub mod agent;
pub mod answers;
pub mod apply;
pub mod case;
pub mod cni;
pub mod contender;
pub mod ebpf;
pub mod many;
pub mod measure;
pub mod nri;
pub mod pair;
pub mod path;
pub mod plot;
pub mod pod;
pub mod processes;
pub mod report;
pub mod stats;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Arg, ArgAction, ArgMatches, value_parser};
use millrace_host::progress::Progress;

/// The command line of `xtask bench`.
pub fn command() -> clap::Command {
    clap::Command::new("bench")
        .about("Measure operations beside the least that could be done, and what they cost connections")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            agent::command(),
            answers::command(),
            apply::command(),
            cni::command(),
            ebpf::command(),
            many::command(),
            nri::command(),
            path::command(),
        ])
}

/// `--output`: the form of the report, JSON or the one for people.
fn output_arg(for_people: &'static str) -> Arg {
    Arg::new("output")
        .long("output")
        .value_parser([for_people, "json"])
        .default_value(for_people)
        .help("The form of the report")
}

/// `--plot`
fn plot_arg() -> Arg {
    Arg::new("plot")
        .long("plot")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Draw the figures into this file, as SVG")
}

/// `--check`
fn check_arg() -> Arg {
    Arg::new("check")
        .long("check")
        .action(ArgAction::SetTrue)
        .help("Exit with 1 when a goal is not reached")
}

/// Runs the chosen benchmark.
///
/// # Errors
/// When something could not be measured.
pub fn run(args: &ArgMatches) -> Result<ExitCode> {
    let name = args.subcommand_name().unwrap_or_default();
    let _progress = Progress::start(&format!("bench {name}"), None);
    match args.subcommand() {
        Some(("agent", args)) => agent::run(args),
        Some(("answers", args)) => answers::run(args),
        Some(("apply", args)) => apply::run(args),
        Some(("cni", args)) => cni::run(args),
        Some(("ebpf", args)) => ebpf::run(args),
        Some(("namespaces", args)) => many::run(args),
        Some(("nri", args)) => nri::run(args),
        Some(("path", args)) => path::run(args),
        other => bail!("no such benchmark: {other:?}"),
    }
}
