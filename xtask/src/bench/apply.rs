//! `xtask bench apply`: first apply, no-op, change and cleanup of a default sidecar's rules.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgMatches, value_parser};

use crate::{dist, repo};

use super::case::{Case, Families, Operation, Variant};
use super::contender::{Contender, Goal, Rules, State, dump_args};
use super::measure::{Runner, Sample};
use super::pod::in_pod;
use super::report::{Report, Row};
use super::stats::Cost;

/// Rounds before the measured ones: caches fill, and the kernel takes the last case's
/// namespaces apart.
const WARM_UP: usize = 3;

/// The command line of `xtask bench apply`.
pub fn command() -> clap::Command {
    let path = || value_parser!(PathBuf);
    clap::Command::new("apply")
        .about("Apply, re-apply, change and clean up a default sidecar's rules")
        .args([
            Arg::new("runs")
                .long("runs")
                .value_parser(value_parser!(u16).range(1..))
                .default_value("30")
                .help("Measured runs of each operation; at least 30 for figures to publish"),
            Arg::new("against")
                .long("against")
                .value_name("PATH")
                .value_parser(path())
                .help("Measure this reference binary as well, with the same command line"),
            Arg::new("variant")
                .long("variant")
                .value_parser(["nft", "legacy", "netlink", "native", "own", "all"])
                .default_value("all")
                .help("iptables-nft or -legacy by programs; iptables-nft by netlink; the reference's native nftables; Millrace's own"),
            super::output_arg("text"),
            Arg::new("binary")
                .long("binary")
                .value_name("PATH")
                .value_parser(path())
                .help("Measure this millrace instead of building the one that is shipped"),
            super::check_arg(),
        ])
}

/// Measures everything, prints the report.
///
/// # Errors
/// When a contender fails, or leaves other rules than it should.
pub fn run(args: &ArgMatches) -> Result<ExitCode> {
    let word = |name: &str| args.get_one::<String>(name).map_or("", String::as_str);
    let asked = word("variant");
    let variants = Variant::ALL.into_iter().filter(|v| asked == "all" || asked == v.as_str());
    let millrace = match args.get_one::<PathBuf>("binary") {
        Some(path) => path.clone(),
        None => dist::millrace()?,
    };
    let scratch = tempfile::tempdir().context("can't make a scratch folder")?;
    let mut contenders = vec![
        Contender::Floor,
        tool("millrace", &just_written(&millrace, scratch.path())?)?,
        Contender::Nothing { path: empty_program(scratch.path())? },
    ];
    if let Some(path) = args.get_one::<PathBuf>("against") {
        contenders.push(tool("reference", path)?);
    }
    let bench = Bench {
        runner: Runner { scratch: scratch.path() },
        contenders,
        runs: args.get_one::<u16>("runs").copied().map_or(30, usize::from),
    };
    let mut report = Report::new(bench.runs, machine()?);
    for variant in variants {
        for families in [Families::V4, Families::Dual] {
            report.rows.extend(bench.operations(variant, families)?);
        }
    }
    let text = match word("output") {
        "json" => format!("{:#}\n", report.to_json()),
        _ => report.to_text(),
    };
    repo::print(&text)?;
    let missed = args.get_flag("check") && !report.goals_reached();
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A static program that does nothing.
///
/// # Errors
/// When it can't be built.
pub fn empty_program(folder: &Path) -> Result<String> {
    let (source, program) = (folder.join("empty.rs"), folder.join("empty"));
    std::fs::write(&source, "fn main() {}\n").context("a program that does nothing")?;
    let mut rustc = Command::new("rustc");
    rustc.args(["-O", "-C", "target-feature=+crt-static", "-C", "strip=symbols", "-o"]);
    repo::output(rustc.arg(&program).arg(&source))?;
    Ok(program.to_string_lossy().into_owned())
}

/// A copy of a program, which lies in the page cache in large pieces, as one that has just been
/// unpacked. One that the kernel has thrown out and read again, a page at a time, starts later; when
/// that happens to a program that was built earlier is chance.
///
/// # Errors
/// When it can't be copied.
pub fn just_written(program: &Path, folder: &Path) -> Result<PathBuf> {
    let copy = folder.join(program.file_name().context("a program without a name")?);
    std::fs::copy(program, &copy).with_context(|| format!("no program {}", program.display()))?;
    Ok(copy)
}

fn tool(name: &str, path: &Path) -> Result<Contender> {
    let path = path.canonicalize().with_context(|| format!("no program {}", path.display()))?;
    Ok(Contender::Tool { name: name.to_owned(), path: path.to_string_lossy().into_owned() })
}

/// What the figures depend on, in one line.
///
/// # Errors
/// When a program that tells it can't be run.
pub fn machine() -> Result<String> {
    let line = |program: &str, arg: &str| -> Result<String> {
        let printed = repo::output(Command::new(program).arg(arg))?;
        Ok(String::from_utf8_lossy(&printed).trim().to_owned())
    };
    let iptables = line("iptables", "--version")?;
    Ok(format!("Linux {}, {} CPUs, {iptables}", line("uname", "-r")?, line("nproc", "--all")?))
}

/// The contenders and how to run them.
struct Bench<'s> {
    runner: Runner<'s>,
    contenders: Vec<Contender>,
    runs: usize,
}

impl Bench<'_> {
    /// Measures every operation in one kind of pod.
    fn operations(&self, variant: Variant, families: Families) -> Result<Vec<Row>> {
        let goal = self.goal(variant, families)?;
        let mut rows = Vec::new();
        for operation in Operation::ALL {
            let case = Case { variant, families, operation };
            repo::say(&format!("{case}: {} rules, {} runs", goal.captured.saved.len(), self.runs));
            let mut processes = Vec::new();
            for contender in self.contenders(case) {
                processes.push(self.verify(contender, case, &goal)?);
            }
            rows.extend(self.measure(case, &goal, &processes)?);
        }
        Ok(rows)
    }

    /// Who can do a case: nobody but Millrace knows its own commands.
    fn contenders(&self, case: Case) -> &[Contender] {
        let known = if case.variant == Variant::Own { 3 } else { self.contenders.len() };
        &self.contenders[..known.min(self.contenders.len())]
    }

    /// The rules that Millrace makes, as it says beforehand and as they are in the end.
    fn goal(&self, variant: Variant, families: Families) -> Result<Goal> {
        let (Some(millrace), Some(Contender::Tool { path, .. })) =
            (self.contenders.get(1), self.contenders.get(1))
        else {
            bail!("Millrace is not among the contenders");
        };
        let ((captured, changed), _) = in_pod(families, || {
            let apply = |operation| {
                let case = Case { variant, families, operation };
                let text = announced(path, case)?;
                // A tool's steps do not depend on the rules.
                self.runner.run(&millrace.steps(case, &Goal::default()))?;
                Ok::<_, anyhow::Error>(State { text, saved: saved(case)? })
            };
            Ok((apply(Operation::FirstApply)?, apply(Operation::Change)?))
        })?;
        let first = Case { variant, families, operation: Operation::FirstApply };
        let (before, after) = (captured.saved.len(), changed.saved.len());
        ensure!(!captured.saved.is_empty(), "Millrace's first apply left no rules");
        // In a set a port more is no rule more.
        let more = if variant == Variant::Own { 0 } else { first.texts().len() };
        ensure!(
            after == before + more && captured.saved != changed.saved,
            "Millrace's change did not add {more} rules: {before} rules, then {after}",
        );
        Ok(Goal { captured, changed })
    }

    /// Does the contender do what the case says? Counts the processes it starts for it.
    fn verify(&self, contender: &Contender, case: Case, goal: &Goal) -> Result<usize> {
        let steps = contender.steps(case, goal);
        let ((started, left), _) = in_pod(case.families, || {
            self.prepare(contender, case, goal)?;
            Ok((self.runner.count_started(&steps)?, saved(case)?))
        })?;
        let right = match case.operation {
            _ if matches!(contender, Contender::Nothing { .. }) => true,
            Operation::FirstApply | Operation::NoOp => left == goal.captured.saved,
            Operation::Change => left == goal.changed.saved,
            Operation::Cleanup => left.is_empty(),
        };
        let name = contender.name();
        ensure!(right, "{name} left other rules than wanted after {case}:\n{left:#?}");
        Ok(contender.processes(steps.len(), started))
    }

    /// Brings a pod into the state that the operation starts from.
    fn prepare(&self, contender: &Contender, case: Case, goal: &Goal) -> Result<()> {
        if case.operation.on_captured_pod() {
            let first = Case { operation: Operation::FirstApply, ..case };
            let floor = Contender::Floor;
            let nothing = matches!(contender, Contender::Nothing { .. });
            let contender = if nothing { &floor } else { contender };
            self.runner.run(&contender.steps(first, goal))?;
        }
        Ok(())
    }

    /// Takes the samples of all contenders in turn, each in a fresh pod.
    fn measure(&self, case: Case, goal: &Goal, processes: &[usize]) -> Result<Vec<Row>> {
        let all = self.contenders(case);
        let mut samples: Vec<Vec<Sample>> = vec![Vec::new(); all.len()];
        let mut pods = Vec::new();
        for round in 0..WARM_UP + self.runs {
            for turn in 0..all.len() {
                // Nobody always comes first, or always after the same one.
                let index = (turn + round) % all.len();
                let contender = &all[index];
                let steps = contender.steps(case, goal);
                let (sample, pod) = in_pod(case.families, || {
                    self.prepare(contender, case, goal)?;
                    self.runner.run(&steps)
                })?;
                pods.push(pod);
                if round >= WARM_UP {
                    samples[index].push(sample);
                }
            }
        }
        let contenders = all.iter().zip(&samples).zip(processes);
        contenders
            .map(|((contender, samples), processes)| {
                let cost = Cost::of(samples).context("no samples were taken")?;
                let contender = contender.name().to_owned();
                Ok(Row { case, contender, cost, processes: *processes })
            })
            .collect()
    }
}

/// The rules of the pod that the calling thread is in.
fn saved(case: Case) -> Result<Rules> {
    let mut dumps = Vec::new();
    for family in case.texts() {
        let argv = family.save(case.variant);
        let (program, args) = argv.split_first().context("a program")?;
        let dump = repo::output(Command::new(program).args(args))?;
        dumps.push((*family, String::from_utf8(dump)?));
    }
    Ok(Rules::saved(dumps, case.variant))
}

/// The rules that Millrace says a case leads to.
fn announced(millrace: &str, case: Case) -> Result<Rules> {
    let mut texts = Vec::new();
    for family in case.texts() {
        let text = repo::output(Command::new(millrace).args(dump_args(case, *family)))?;
        texts.push((*family, String::from_utf8(text)?));
    }
    Ok(Rules::restorable(texts))
}
