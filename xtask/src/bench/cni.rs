//! `xtask bench cni`: what the CNI plugin costs a pod's start, its checks and its end.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgMatches, value_parser};
use serde_json::{Value, json};

use super::apply::{empty_program, just_written, machine};
use super::case::Families;
use super::measure::{Runner, Step};
use super::pod::{Pod, in_pod};
use super::stats::{millis, quantile};
use crate::{dist, repo};

/// Rounds before the measured ones.
const WARM_UP: usize = 5;
/// Pods that are started at once.
const AT_ONCE: usize = 20;

/// A chained plugin as a shell writes it: the rules by `nft`, and no more of a result than a
/// runtime takes.
const SHELL: &str = r#"#!/bin/sh
cat >/dev/null
[ "$CNI_COMMAND" != ADD ] || echo '{"cniVersion":"1.0.0"}'
case $BENCH_POD-$CNI_COMMAND in
meshed-ADD) nsenter --net="$CNI_NETNS" nft -f RULES ;;
meshed-CHECK) nsenter --net="$CNI_NETNS" nft list table inet millrace >/dev/null ;;
meshed-DEL) nsenter --net="$CNI_NETNS" nft delete table inet millrace ;;
esac
"#;

/// The command line of `xtask bench cni`.
pub fn command() -> clap::Command {
    let path = || value_parser!(PathBuf);
    clap::Command::new("cni").about("Add, check and delete pods with the CNI plugin").args([
        Arg::new("runs")
            .long("runs")
            .value_parser(value_parser!(u16).range(1..))
            .default_value("100")
            .help("Measured runs of each operation; at least 100 for a 99th percentile"),
        Arg::new("against")
            .long("against")
            .value_name("PATH")
            .value_parser(path())
            .help("Measure this plugin as well, with the same variables and input"),
        super::output_arg("text"),
        Arg::new("binary")
            .long("binary")
            .value_name("PATH")
            .value_parser(path())
            .help("Measure this millrace-cni instead of building the one that is shipped"),
        super::check_arg(),
    ])
}

/// What is measured, in the order in which it is done to a pod.
const OPERATIONS: [Operation; 7] = [
    Operation { name: "VERSION", command: "VERSION", meshed: true },
    Operation { name: "ADD, plain pod", command: "ADD", meshed: false },
    Operation { name: "CHECK, plain pod", command: "CHECK", meshed: false },
    Operation { name: "DEL, plain pod", command: "DEL", meshed: false },
    ADD,
    Operation { name: "CHECK, mesh pod", command: "CHECK", meshed: true },
    Operation { name: "DEL, mesh pod", command: "DEL", meshed: true },
];
const ADD: Operation = Operation { name: "ADD, mesh pod", command: "ADD", meshed: true };

/// Goals in milliseconds for the median, with no process started.
const GOALS: [(&str, f64); 2] = [("ADD, plain pod", 2.5), ("ADD, mesh pod", 4.0)];

#[derive(Clone, Copy, Debug)]
struct Operation {
    name: &'static str,
    command: &'static str,
    meshed: bool,
}

/// A plugin's figures for an operation.
#[derive(Debug)]
struct Row {
    operation: String,
    plugin: String,
    p50: Duration,
    p99: Duration,
    processes: usize,
}

/// Measures everything, prints the report.
///
/// # Errors
/// When a plugin fails.
pub fn run(args: &ArgMatches) -> Result<ExitCode> {
    let scratch = tempfile::tempdir().context("can't make a scratch folder")?;
    let millrace = match args.get_one::<PathBuf>("binary") {
        Some(path) => path.clone(),
        None => dist::cni()?,
    };
    let millrace = just_written(&millrace, scratch.path())?;
    write_inputs(scratch.path())?;
    let mut plugins = vec![
        ("millrace".to_owned(), millrace.clone()),
        ("shell".to_owned(), shell(scratch.path(), &millrace)?),
        // What it takes to start anything at all.
        ("nothing".to_owned(), empty_program(scratch.path())?.into()),
    ];
    if let Some(path) = args.get_one::<PathBuf>("against") {
        plugins.push(("reference".to_owned(), path.canonicalize().context("--against")?));
    }
    let runs = args.get_one::<u16>("runs").copied().map_or(100, usize::from);
    let bench = Bench { scratch: scratch.path(), runs };
    let mut rows = bench.one_by_one(&plugins)?;
    for (name, plugin) in &plugins {
        rows.extend(bench.at_once(name, plugin)?);
    }
    let machine = machine()?;
    let text = if args.get_one::<String>("output").is_some_and(|output| output == "json") {
        format!("{:#}\n", to_json(&rows, runs, &machine))
    } else {
        to_text(&rows, runs, &machine)
    };
    repo::print(&text)?;
    let missed = args.get_flag("check") && !missed(&rows).is_empty();
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The shell plugin, with the rules that Millrace writes.
fn shell(scratch: &Path, millrace: &Path) -> Result<PathBuf> {
    let mut command = Command::new(millrace);
    command.args(["explain", "--json"]).stdin(File::open(input(scratch, true))?);
    let said = command.output().context("millrace-cni explain")?;
    let said: Value = serde_json::from_slice(&said.stdout).context("millrace-cni explain")?;
    let rules = scratch.join("rules.nft");
    let text = said["nftables"].as_str().context("millrace-cni explain prints no rules")?;
    fs::write(&rules, text)?;
    let path = scratch.join("shell-plugin");
    fs::write(&path, SHELL.replace("RULES", &rules.to_string_lossy()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Where standard input of a call is.
fn input(scratch: &Path, meshed: bool) -> PathBuf {
    scratch.join(format!("stdin-{meshed}"))
}

/// Write standard input of the calls.
fn write_inputs(scratch: &Path) -> Result<()> {
    [false, true].into_iter().try_for_each(|meshed| write_input(scratch, meshed))
}

fn write_input(scratch: &Path, meshed: bool) -> Result<()> {
    let status = r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"]}"#;
    let name = if meshed { "sidecar.istio.io/status" } else { "some.annotation" };
    let text = json!({
        "cniVersion": "1.0.0",
        "name": "bench",
        "type": "millrace-cni",
        "state_dir": scratch.join("state"),
        "capabilities": { "io.kubernetes.cri.pod-annotations": true },
        "runtimeConfig": { "io.kubernetes.cri.pod-annotations": { name: status } },
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "sandbox": "/run/netns/x" }],
            "ips": [{ "address": "192.0.2.2/24", "gateway": "192.0.2.1", "interface": 0 }],
        },
    });
    fs::write(input(scratch, meshed), text.to_string()).context("standard input")
}

/// A pod's network namespace, open under a path that every process of the machine can use.
#[derive(Debug)]
struct Target {
    namespace: File,
    /// Keeps what `in_pod` made.
    _pod: Pod,
}

impl Target {
    fn new() -> Result<Self> {
        let open = || File::open("/proc/thread-self/ns/net").context("a network namespace");
        let (namespace, pod) = in_pod(Families::Dual, open)?;
        Ok(Self { namespace, _pod: pod })
    }

    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.namespace.as_raw_fd())
    }
}

struct Bench<'s> {
    scratch: &'s Path,
    runs: usize,
}

impl Bench<'_> {
    fn env(operation: Operation, target: &Target, id: &str) -> Vec<(&'static str, String)> {
        let pod = format!("K8S_POD_NAMESPACE=bench;K8S_POD_NAME={id};K8S_POD_UID={id}");
        vec![
            ("CNI_COMMAND", operation.command.to_owned()),
            ("CNI_CONTAINERID", id.to_owned()),
            ("CNI_NETNS", target.path()),
            ("CNI_IFNAME", "eth0".to_owned()),
            ("CNI_ARGS", format!("IgnoreUnknown=1;{pod}")),
            ("CNI_PATH", "/opt/cni/bin".to_owned()),
            ("BENCH_POD", if operation.meshed { "meshed" } else { "plain" }.to_owned()),
        ]
    }

    /// One call, from before it is started until it has ended.
    fn call(
        &self,
        plugin: &Path,
        operation: Operation,
        target: &Target,
        id: &str,
    ) -> Result<Duration> {
        let mut command = Command::new(plugin);
        command.envs(Self::env(operation, target, id));
        command.stdin(File::open(input(self.scratch, operation.meshed))?);
        let errors = self.scratch.join(format!("stderr-{id}"));
        command.stdout(Stdio::null()).stderr(File::create(&errors)?);
        let began = Instant::now();
        let status = command.status().with_context(|| plugin.display().to_string())?;
        let took = began.elapsed();
        let said = fs::read_to_string(&errors).unwrap_or_default();
        let (name, plugin) = (operation.name, plugin.display());
        ensure!(status.success(), "{name} by {plugin}: {status}\n{said}");
        Ok(took)
    }

    /// Each operation on fresh pods, by all plugins in turn.
    fn one_by_one(&self, plugins: &[(String, PathBuf)]) -> Result<Vec<Row>> {
        repo::say(&format!("one by one: {} runs of each operation", self.runs));
        let mut samples = vec![vec![Vec::new(); OPERATIONS.len()]; plugins.len()];
        let mut targets = Vec::new();
        for round in 0..WARM_UP + self.runs {
            for turn in 0..plugins.len() {
                // Nobody always comes first, or always after the same one.
                let index = (turn + round) % plugins.len();
                let target = Target::new()?;
                let id = format!("pod-{round}-{index}");
                for (number, operation) in OPERATIONS.into_iter().enumerate() {
                    let took = self.call(&plugins[index].1, operation, &target, &id)?;
                    if round >= WARM_UP {
                        samples[index][number].push(took);
                    }
                }
                targets.push(target);
            }
        }
        let mut rows = Vec::new();
        for (number, operation) in OPERATIONS.into_iter().enumerate() {
            for (index, (name, plugin)) in plugins.iter().enumerate() {
                let taken = std::mem::take(&mut samples[index][number]);
                let processes = self.processes(plugin, operation)?;
                rows.push(row(operation.name, name, taken, processes)?);
            }
        }
        Ok(rows)
    }

    /// How many processes an operation starts.
    fn processes(&self, plugin: &Path, operation: Operation) -> Result<usize> {
        let target = Target::new()?;
        if operation.meshed && ["CHECK", "DEL"].contains(&operation.command) {
            self.call(plugin, ADD, &target, "counted")?;
        }
        let mut argv = vec!["env".to_owned()];
        let env = Self::env(operation, &target, "counted");
        argv.extend(env.into_iter().map(|(name, value)| format!("{name}={value}")));
        argv.push(plugin.to_string_lossy().into_owned());
        let stdin = fs::read_to_string(input(self.scratch, operation.meshed))?;
        Runner { scratch: self.scratch }.count_started(&[Step { argv, stdin }])
    }

    /// Many mesh pods at once: what each of them waits.
    fn at_once(&self, name: &str, plugin: &Path) -> Result<Vec<Row>> {
        let rounds = self.runs.div_ceil(AT_ONCE).max(2);
        repo::say(&format!("{AT_ONCE} at once by {name}: {rounds} rounds"));
        let operations: Vec<Operation> =
            OPERATIONS.into_iter().filter(|o| o.meshed && o.command != "VERSION").collect();
        let mut taken = vec![Vec::new(); operations.len()];
        let mut kept = Vec::new();
        for round in 0..=rounds {
            let targets: Vec<Target> =
                (0..AT_ONCE).map(|_| Target::new()).collect::<Result<_>>()?;
            for (operation, taken) in operations.iter().zip(&mut taken) {
                let prefix = format!("{name}-{round}");
                let times = self.together(plugin, *operation, &targets, &prefix)?;
                if round > 0 {
                    taken.extend(times);
                }
            }
            kept.extend(targets);
        }
        let rows = operations.iter().zip(taken).map(|(operation, taken)| {
            let processes = self.processes(plugin, *operation)?;
            row(&format!("{}, {AT_ONCE} at once", operation.name), name, taken, processes)
        });
        rows.collect()
    }

    /// The same call for all of these at once.
    fn together(
        &self,
        plugin: &Path,
        operation: Operation,
        targets: &[Target],
        prefix: &str,
    ) -> Result<Vec<Duration>> {
        thread::scope(|scope| {
            let threads: Vec<_> = targets
                .iter()
                .enumerate()
                .map(|(index, target)| {
                    let id = format!("{prefix}-{index}");
                    scope.spawn(move || self.call(plugin, operation, target, &id))
                })
                .collect();
            let joined = threads.into_iter().map(|thread| match thread.join() {
                Ok(result) => result,
                Err(_panic) => bail!("a benchmark thread panicked"),
            });
            joined.collect()
        })
    }
}

fn row(operation: &str, plugin: &str, mut taken: Vec<Duration>, processes: usize) -> Result<Row> {
    taken.sort_unstable();
    let at = |percent| quantile(&taken, percent).context("no samples were taken");
    let (operation, plugin) = (operation.to_owned(), plugin.to_owned());
    Ok(Row { operation, plugin, p50: at(50)?, p99: at(99)?, processes })
}

/// The goals that Millrace does not reach, in words.
fn missed(rows: &[Row]) -> Vec<String> {
    let mut missed = Vec::new();
    for (operation, limit) in GOALS {
        let row = rows.iter().find(|r| r.operation == operation && r.plugin == "millrace");
        match row {
            None => missed.push(format!("{operation} was not measured")),
            Some(row) => {
                let p50 = millis(row.p50);
                if p50 >= limit {
                    missed.push(format!("{operation}: {p50:.2} ms, and not below {limit}"));
                }
                if row.processes > 0 {
                    missed.push(format!("{operation}: {} processes, and not none", row.processes));
                }
            }
        }
    }
    missed
}

fn to_json(rows: &[Row], runs: usize, machine: &str) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            json!({
                "operation": row.operation,
                "plugin": row.plugin,
                "p50": millis(row.p50),
                "p99": millis(row.p99),
                "processes": row.processes,
            })
        })
        .collect();
    json!({ "machine": machine, "runs": runs, "rows": rows })
}

fn to_text(rows: &[Row], runs: usize, machine: &str) -> String {
    let mut text = format!("{machine}; {runs} runs, whole processes, in ms\n\n");
    text.push_str("| Operation | Plugin | p50 | p99 | processes |\n|---|---|---:|---:|---:|\n");
    for row in rows {
        let (p50, p99) = (millis(row.p50), millis(row.p99));
        let (operation, plugin) = (&row.operation, &row.plugin);
        // Writing to a string can't fail.
        let _written =
            writeln!(text, "| {operation} | {plugin} | {p50:.2} | {p99:.2} | {} |", row.processes);
    }
    for goal in missed(rows) {
        let _written = writeln!(text, "goal missed: {goal}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_row(operation: &str, millis: u64, processes: usize) -> Row {
        row(operation, "millrace", vec![Duration::from_millis(millis)], processes).unwrap()
    }

    #[test]
    fn a_goal_is_missed_by_time_processes_or_not_being_measured() {
        let (plain, mesh) = (GOALS[0].0, GOALS[1].0);
        assert_eq!(missed(&[mk_row(plain, 2, 0), mk_row(mesh, 3, 0)]), Vec::<String>::new());
        assert_eq!(missed(&[mk_row(plain, 3, 0), mk_row(mesh, 3, 1)]).len(), 2);
        assert_eq!(missed(&[mk_row(plain, 2, 0)]), [format!("{mesh} was not measured")]);
    }

    #[test]
    fn percentiles_are_of_sorted_samples() {
        let taken = (1..=100).rev().map(Duration::from_millis).collect();
        let row = row("x", "y", taken, 0).unwrap();
        assert_eq!(row.p99, Duration::from_millis(99));
        assert_eq!(row.p50, Duration::from_micros(50_500));
    }
}
