//! `xtask bench nri`: what capture costs the start of a pod's sandbox, by the agent as the runtime's
//! plugin, by the CNI plugin, and by neither. The suite `nri_cost` measures, since it brings a containerd along.

use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgMatches, value_parser};
use serde_json::{Value, json};

use super::apply::machine;
use super::plot::{self, Chart, Line};
use super::stats::{millis, quantile};
use crate::{dist, repo};

/// The way that captures nothing, which the others are held against.
const NEITHER: &str = "neither";
/// What the line of figures begins with.
const FIGURES: &str = "sandboxes: ";

/// The command line of `xtask bench nri`.
pub fn command() -> clap::Command {
    let binary = |name: &'static str, help: &'static str| {
        let path = value_parser!(PathBuf);
        Arg::new(name).long(name).value_name("PATH").value_parser(path).help(help)
    };
    clap::Command::new("nri")
        .about("Start pods with containerd 2: captured by the agent (NRI), by the CNI plugin, by neither")
        .args([
            Arg::new("runs")
                .long("runs")
                .value_parser(value_parser!(u16).range(1..))
                .default_value("100")
                .help("Measured pods of each way, and of each number at once"),
            binary("cni", "Measure this millrace-cni instead of building the one that is shipped"),
            binary("node", "Measure this millrace-node instead of building the one that is shipped"),
            super::output_arg("text"),
            super::plot_arg(),
        ])
}

/// The figures of a way, with so many pods at once.
#[derive(Debug)]
struct Row {
    way: String,
    at_once: u32,
    p50: Duration,
    p99: Duration,
    /// The median in those of the way that captures nothing.
    ratio: f64,
}

/// All figures.
#[derive(Debug)]
struct Figures {
    rows: Vec<Row>,
    /// What the agent took of a pod's start by its own count, in ms: the mean.
    agent: f64,
}

/// Measures, and prints the figures.
///
/// # Errors
/// When something could not be measured.
pub fn run(args: &ArgMatches) -> Result<ExitCode> {
    let binary = |name: &str| args.get_one::<PathBuf>(name).map(|path| path.canonicalize());
    let cni = binary("cni").transpose().context("--cni")?.map_or_else(dist::cni, Ok)?;
    let node = binary("node").transpose().context("--node")?.map_or_else(dist::node, Ok)?;
    let runs = args.get_one::<u16>("runs").copied().unwrap_or(1);
    let machine = machine()?;
    let mut suite = repo::cargo();
    // The same features as in the run of all tests, so that nothing is compiled again.
    suite
        .args(["test", "--locked", "--workspace", "--test", "nri_cost", "--", "--nocapture"])
        .env("MILLRACE_CNI_BIN", cni)
        .env("MILLRACE_NODE_BIN", node)
        .env("MILLRACE_COST_RUNS", runs.to_string());
    let output = suite.output().context("cargo test")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let line = printed.lines().find_map(|line| line.strip_prefix(FIGURES));
    let Some(line) = line.filter(|_| output.status.success()) else {
        bail!("nri_cost: {printed}{}", String::from_utf8_lossy(&output.stderr));
    };
    let figures = figures(&serde_json::from_str(line).context("nri_cost")?)?;
    let machine = format!("{machine}, load {}", load()?);
    let text = match args.get_one::<String>("output").map(String::as_str) {
        Some("json") => format!("{:#}\n", to_json(&figures, runs, &machine)),
        _ => to_text(&figures, runs, &machine),
    };
    if let Some(path) = args.get_one::<PathBuf>("plot") {
        plot::draw(path, &[chart(&figures)])?;
    }
    repo::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The mean number of processes that wanted to run, of the last minute and the last five.
fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg").context("/proc/loadavg")?;
    Ok(text.split(' ').take(2).collect::<Vec<_>>().join(" and "))
}

/// What was measured, in figures.
fn figures(measured: &Value) -> Result<Figures> {
    let mut rows: Vec<Row> = Vec::new();
    for row in measured["rows"].as_array().context("no rows")? {
        let way = row["way"].as_str().context("a way")?.to_owned();
        let at_once = u32::try_from(row["at_once"].as_u64().context("how many at once")?)?;
        let taken = row["took_ms"].as_array().context("no samples")?.iter();
        let taken =
            taken.map(|took| Ok(Duration::from_secs_f64(took.as_f64().context("ms")? / 1e3)));
        let mut taken = taken.collect::<Result<Vec<_>>>()?;
        taken.sort_unstable();
        let at = |percent| quantile(&taken, percent).context("no samples were taken");
        let (p50, p99) = (at(50)?, at(99)?);
        let floor = rows.iter().find(|row| row.way == NEITHER && row.at_once == at_once);
        let floor = floor.map_or(p50, |row| row.p50);
        ensure!(
            way == NEITHER || rows.iter().any(|row| row.at_once == at_once),
            "{way} comes first"
        );
        rows.push(Row { way, at_once, p50, p99, ratio: p50.as_secs_f64() / floor.as_secs_f64() });
    }
    let agent = |name: &str| measured["agent"][name].as_f64().context("the agent's own count");
    Ok(Figures { rows, agent: agent("seconds")? * 1e3 / agent("count")? })
}

fn to_json(figures: &Figures, runs: u16, machine: &str) -> Value {
    let rows: Vec<Value> = figures
        .rows
        .iter()
        .map(|row| {
            json!({
                "way": row.way,
                "at_once": row.at_once,
                "p50": millis(row.p50),
                "p99": millis(row.p99),
                "ratio": row.ratio,
            })
        })
        .collect();
    json!({ "machine": machine, "runs": runs, "rows": rows, "agent_ms": figures.agent })
}

fn to_text(figures: &Figures, runs: u16, machine: &str) -> String {
    let mut text = format!("{machine}; {runs} pods and more, RunPodSandbox, in ms\n\n");
    text.push_str("| At once | Captured by | p50 | p99 | ratio |\n|---:|---|---:|---:|---:|\n");
    for Row { way, at_once, p50, p99, ratio } in &figures.rows {
        let (p50, p99) = (millis(*p50), millis(*p99));
        // Writing to a string can't fail.
        let _written = writeln!(text, "| {at_once} | {way} | {p50:.1} | {p99:.1} | {ratio:.2} |");
    }
    let _written = writeln!(text, "\nthe agent's own part, by its count: {:.2} ms", figures.agent);
    text
}

fn chart(figures: &Figures) -> Chart {
    let mut lines: Vec<Line> = Vec::new();
    for row in &figures.rows {
        let point = (f64::from(row.at_once), millis(row.p50));
        match lines.iter_mut().find(|line| line.name == row.way) {
            Some(line) => line.points.push(point),
            None => lines.push(Line { name: row.way.clone(), points: vec![point] }),
        }
    }
    Chart {
        title: "Start of a sandbox, by what captures".to_owned(),
        x: "pods at once".to_owned(),
        y: "median, ms".to_owned(),
        lines,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(way: &str, at_once: u32, took: &[f64]) -> Value {
        json!({ "way": way, "at_once": at_once, "took_ms": took })
    }

    #[test]
    fn ways_are_held_against_the_one_that_captures_nothing() {
        let rows = [
            row(NEITHER, 1, &[200.0, 100.0, 300.0]),
            row("NRI", 1, &[220.0]),
            row(NEITHER, 4, &[400.0]),
            row("NRI", 4, &[800.0]),
        ];
        let measured = json!({ "rows": rows, "agent": { "count": 4.0, "seconds": 0.05 } });
        let figures = figures(&measured).unwrap();
        let text = to_text(&figures, 1, "a machine");
        for line in [
            "| 1 | neither | 200.0 | 300.0 | 1.00 |",
            "| 1 | NRI | 220.0 | 220.0 | 1.10 |",
            "| 4 | NRI | 800.0 | 800.0 | 2.00 |",
            "12.50 ms",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        let json = to_json(&figures, 1, "a machine");
        assert_eq!((&json["rows"][3]["ratio"], &json["agent_ms"]), (&json!(2.0), &json!(12.5)));
        let chart = chart(&figures);
        let points: Vec<_> = chart.lines.iter().map(|line| line.points.as_slice()).collect();
        assert_eq!(points, [[(1.0, 200.0), (4.0, 400.0)], [(1.0, 220.0), (4.0, 800.0)]]);
    }

    #[test]
    fn figures_that_say_nothing_are_refused() {
        let agent = json!({ "count": 1.0, "seconds": 1.0 });
        for rows in [vec![row("NRI", 1, &[1.0])], vec![row(NEITHER, 1, &[])]] {
            assert!(figures(&json!({ "rows": rows, "agent": agent })).is_err());
        }
        assert!(figures(&json!({ "rows": [], "agent": {} })).is_err());
    }
}
