//! `xtask bench namespaces`: many pods captured by one process, as a node's agent does it.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgMatches, value_parser};
use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::native;
use millrace_core::facts::HostFacts;
use millrace_core::nft::tables::NativeTables;
use millrace_core::nft::{self, NftRuleset};
use millrace_core::plan::Preference;
use millrace_core::preflight::Backend;
use millrace_core::ruleset::Ruleset;
use millrace_host::engine::{Drift, Request, Rules, Session};
use millrace_host::nft::{Changes, change};
use millrace_host::{exec, facts};
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use super::pair::{configure, namespace, on_a_thread};
use super::stats::{millis, quantile};
use crate::repo;

/// Goal: from the transaction sent to its answer.
const BATCH: Duration = Duration::from_micros(300);
/// How many times the transaction alone is measured.
const BATCHES: usize = 50;

/// The command line of `xtask bench namespaces`.
pub fn command() -> clap::Command {
    clap::Command::new("namespaces")
        .about("Capture many namespaces from one process, one after the other and side by side")
        .args([
            Arg::new("count")
                .long("count")
                .value_parser(value_parser!(u16).range(1..))
                .default_value("100")
                .help("How many namespaces"),
            Arg::new("threads")
                .long("threads")
                .value_parser(value_parser!(u16).range(1..))
                .default_value("16")
                .help("How many threads share them in the second run"),
            super::output_arg("text"),
            super::check_arg(),
        ])
}

/// The figures of one run.
struct Row {
    backend: Backend,
    threads: usize,
    each: Vec<Duration>,
    whole: Duration,
}

/// Measures everything, prints the report.
///
/// # Errors
/// When a namespace can't be made or captured.
pub fn run(args: &ArgMatches) -> Result<ExitCode> {
    let number = |name: &str| args.get_one::<u16>(name).copied().map_or(1, usize::from);
    let (count, threads) = (number("count"), number("threads"));
    let mut rows = Vec::new();
    for backend in [Backend::Nftables, Backend::IptablesNft] {
        for threads in [1, threads] {
            repo::say(&format!("{count} namespaces, {}, {threads} threads", backend.as_str()));
            rows.push(capture_all(backend, count, threads)?);
        }
    }
    let batch = batch()?;
    let reached = batch <= BATCH;
    let text = match args.get_one::<String>("output").map(String::as_str) {
        Some("json") => format!("{:#}\n", to_json(&rows, batch)?),
        _ => to_text(&rows, batch, reached)?,
    };
    repo::print(&text)?;
    let missed = args.get_flag("check") && !reached;
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// A namespace that looks like a pod's.
pub fn pod() -> Result<File> {
    on_a_thread(|| {
        let made = namespace()?;
        configure("link set lo up\naddr add 192.0.2.2/32 dev lo\n")?;
        Ok(made)
    })
}

/// Rules for a namespace, by whatever carries them out.
#[derive(Debug)]
pub struct Rulesets {
    facts: HostFacts,
    iptables: Ruleset,
    native: NftRuleset,
}

impl Rulesets {
    /// What flags mean in the calling thread's namespace.
    ///
    /// # Errors
    /// When it can't be looked at, or flags are wrong.
    pub fn here(flags: &[(String, String)]) -> Result<Self> {
        let facts = facts::gather(Session::open()?.net())?;
        let raw = native::Raw::new(BTreeMap::new(), flags.iter().cloned());
        let policy = native::resolve(&raw, &facts, true)?;
        let native = nft::merge(&to_nft(&policy, &native::NFT_LAYOUT, true));
        Ok(Self { facts, iptables: to_iptables(&policy, &native::LAYOUT), native })
    }

    /// Capture the calling thread's namespace.
    ///
    /// # Errors
    /// When that fails, or takes a program.
    pub fn capture(&self, backend: Backend) -> Result<()> {
        let outcome = Session::open()?.run(&Request {
            rules: Some(Rules {
                iptables: &self.iptables,
                native: Some(&self.native.ready(&self.facts.groups)?),
            }),
            preference: Preference::Backend(backend),
            drift: Drift::Replace,
            everything: false,
            dry_run: false,
            wait: Duration::from_secs(30),
            groups: &self.facts.groups,
            marks: Vec::new(),
            exec: exec::Options::default(),
        })?;
        ensure!(!outcome.effects.is_empty() && outcome.processes == 0, "{outcome:?}");
        Ok(())
    }
}

fn capture_all(backend: Backend, count: usize, threads: usize) -> Result<Row> {
    let pods: Vec<File> = (0..count).map(|_| pod()).collect::<Result<_>>()?;
    let left = Mutex::new(pods.iter());
    let next = || left.lock().ok()?.next();
    let start = Instant::now();
    let each = thread::scope(|scope| {
        let worker = || -> Result<Vec<Duration>> {
            let mut each = Vec::new();
            while let Some(pod) = next() {
                let start = Instant::now();
                setns(pod, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
                // From nothing that is known of it.
                Rulesets::here(&[])?.capture(backend)?;
                each.push(start.elapsed());
            }
            Ok(each)
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut each = Vec::new();
        for worker in workers {
            each.extend(worker.join().unwrap_or_else(|_| bail!("a benchmark thread panicked"))?);
        }
        Ok::<_, anyhow::Error>(each)
    })?;
    let whole = start.elapsed();
    ensure!(each.len() == count, "{} of {count} were captured", each.len());
    Ok(Row { backend, threads, each, whole })
}

/// The median time of the transaction alone: sent, carried out, answered.
fn batch() -> Result<Duration> {
    // They stay until the end: with the first hook of a kind the kernel changes its own code, which
    // stops every processor, and a node has other pods.
    let pods: Vec<File> = (0..BATCHES).map(|_| pod()).collect::<Result<_>>()?;
    let mut times = Vec::new();
    for pod in &pods {
        times.push(on_a_thread(|| {
            setns(pod, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
            let tables = tables()?;
            let changes =
                Changes { names: &[], tables: &tables, edits: &[], groups: &BTreeMap::new() };
            let start = Instant::now();
            change(&changes, None)?;
            Ok(start.elapsed())
        })?);
    }
    times.sort_unstable();
    quantile(&times, 50).context("nothing was measured")
}

fn tables() -> Result<NativeTables> {
    let rules = Rulesets::here(&[])?;
    Ok(rules.native.native(&rules.facts.groups)?)
}

impl Row {
    fn at(&self, percent: usize) -> Result<Duration> {
        let mut sorted = self.each.clone();
        sorted.sort_unstable();
        quantile(&sorted, percent).context("nothing was measured")
    }

    fn rate(&self) -> f64 {
        f64::from(u32::try_from(self.each.len()).unwrap_or(u32::MAX)) / self.whole.as_secs_f64()
    }
}

fn to_text(rows: &[Row], batch: Duration, reached: bool) -> Result<String> {
    let mut text = "First captures, in ms, by one process.\n\n\
                    by            threads  namespaces/s       p50       p99\n"
        .to_owned();
    for row in rows {
        text.push_str(&format!(
            "{:<14}{:>7}{:>14.0}{:>10.2}{:>10.2}\n",
            row.backend.as_str(),
            row.threads,
            row.rate(),
            millis(row.at(50)?),
            millis(row.at(99)?)
        ));
    }
    let result = if reached { "reached" } else { "NOT reached" };
    text.push_str(&format!(
        "\n{result}: from the transaction sent to its answer at most {} ms: {:.2} ms\n",
        millis(BATCH),
        millis(batch)
    ));
    Ok(text)
}

fn to_json(rows: &[Row], batch: Duration) -> Result<Value> {
    let rows = rows.iter().map(|row| {
        Ok(json!({
            "by": row.backend.as_str(),
            "threads": row.threads,
            "namespaces_per_second": row.rate(),
            "p50_ms": millis(row.at(50)?),
            "p99_ms": millis(row.at(99)?),
        }))
    });
    Ok(json!({ "rows": rows.collect::<Result<Vec<_>>>()?, "transaction_ms": millis(batch) }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_told_in_figures() {
        let each = (1..=100).map(Duration::from_millis).collect();
        let whole = Duration::from_secs(2);
        let rows = [Row { backend: Backend::Nftables, threads: 16, each, whole }];
        let text = to_text(&rows, Duration::from_micros(310), false).unwrap();
        let words: Vec<&str> = text.lines().nth(3).unwrap().split_whitespace().collect();
        assert_eq!(words, ["nftables", "16", "50", "50.50", "99.00"]);
        assert!(text.contains("NOT reached") && text.contains("0.31 ms"), "{text}");
        let json = to_json(&rows, BATCH).unwrap();
        assert_eq!(json["rows"][0]["namespaces_per_second"], 50.0);
    }
}
