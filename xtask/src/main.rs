//! `cargo xtask`: the task runner of the workspace.

use std::process::ExitCode;

use clap::Command;
use xtask::{bench, book, build_ebpf, deb, dist, image, lint, man, repo, truth, vm};

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            repo::say(&format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let cli = Command::new("cargo xtask")
        .about("Tasks of the Millrace workspace")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands([
            bench::command(),
            book::command(),
            build_ebpf::command(),
            deb::command(),
            dist::command(),
            image::command(),
            lint::command(),
            man::command(),
            truth::command(),
            vm::command(),
        ]);
    match cli.get_matches().subcommand() {
        Some(("bench", args)) => bench::run(args),
        Some(("book", args)) => book::run(args).map(|()| ExitCode::SUCCESS),
        Some(("build-ebpf", args)) => build_ebpf::run(args).map(|()| ExitCode::SUCCESS),
        Some(("deb", args)) => deb::run(args).map(|()| ExitCode::SUCCESS),
        Some(("dist", args)) => dist::run(args).map(|()| ExitCode::SUCCESS),
        Some(("image", args)) => image::run(args).map(|()| ExitCode::SUCCESS),
        Some(("man", args)) => man::run(args).map(|()| ExitCode::SUCCESS),
        Some(("lint", _)) => lint::run().map(|()| ExitCode::SUCCESS),
        Some(("truth", args)) => truth::run(args).map(|()| ExitCode::SUCCESS),
        Some(("vm", args)) => vm::run(args),
        other => anyhow::bail!("no such task: {other:?}"),
    }
}
