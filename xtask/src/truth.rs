//! `xtask truth`: what `explain --live` says, held against the kernel.

use anyhow::Result;
use clap::{Arg, ArgMatches, value_parser};

use crate::repo;

/// The command line of `xtask truth`.
pub fn command() -> clap::Command {
    let number = |name: &'static str, usual: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .help(help)
            .value_parser(value_parser!(u64))
            .default_value(usual)
    };
    clap::Command::new("truth")
        .about(
            "Hold answers of `explain --live` against the kernel: random rules of anybody, routes, \
             settings and connections, in network namespaces; needs root",
        )
        .arg(number("rounds", "200", "How many pods, each with rules and connections of its own"))
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("N")
                .help(
                    "What everything follows from; the first pod has this seed, the next one more \
                     [default: the process id]",
                )
                .value_parser(value_parser!(u64)),
        )
}

/// Makes the rounds of `tests/tests/truth.rs`.
///
/// # Errors
/// When an answer is false, or the suite can't be run.
pub fn run(args: &ArgMatches) -> Result<()> {
    let rounds = args.get_one::<u64>("rounds").copied().unwrap_or(200);
    let seed = args.get_one::<u64>("seed").copied();
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    let mut command = repo::cargo();
    // With the features of all tests, so that nothing is compiled again that they have.
    command.args(["test", "--quiet", "--workspace", "--test", "truth"]);
    command.args(["no_answer_is_false", "--", "--nocapture"]);
    command.env("MILLRACE_SEED", seed.to_string()).env("MILLRACE_ROUNDS", rounds.to_string());
    repo::run(&mut command)
}
