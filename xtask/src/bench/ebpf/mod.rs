//! `xtask bench ebpf`: what a connection costs that is captured by eBPF, beside one that is not
//! captured and those captured by rules; and what it costs to capture a pod.

pub mod by;
pub mod connect;
pub mod enrol;
pub mod node;
pub mod proxy;
pub mod report;
pub mod results;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Arg, ArgAction, ArgMatches, value_parser};

use self::by::{BenchPod, By, Way};
use self::node::BenchNode;
use self::results::{Figure, Results};
use super::apply::machine;
use super::plot::draw;
use crate::repo;

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Rounds, in each of which everything is measured once.
    pub rounds: usize,
    /// Connections of one batch.
    pub connections: usize,
    /// How many networks, and how many ports, are excluded.
    pub exclusions: &'static [u32],
    /// What is sent through the proxy.
    pub load: proxy::Load,
    /// How many pods are captured one after the other.
    pub pods: usize,
    /// How often, and how often one alone.
    pub nodes: usize,
}

/// For figures to publish.
const WHOLE: Amount = Amount {
    rounds: 21,
    connections: 2000,
    exclusions: &[0, 10, 100, 1_000, 10_000],
    load: proxy::Load { requests: 4000, connections: 500, blocks: 2000, streams: 10 },
    pods: 250,
    nodes: 3,
};
/// Only to see whether everything works.
const QUICK: Amount = Amount {
    rounds: 2,
    connections: 20,
    exclusions: &[0, 10],
    load: proxy::Load { requests: 20, connections: 5, blocks: 20, streams: 1 },
    pods: 2,
    nodes: 1,
};

/// The command line of `xtask bench ebpf`.
pub fn command() -> clap::Command {
    clap::Command::new("ebpf")
        .about("Connections, requests and pods captured by eBPF, by rules and not at all, on one processor")
        .args([
            Arg::new("rounds")
                .long("rounds")
                .value_parser(value_parser!(u16).range(1..))
                .help("Rounds, in each of which everything is measured once [default: 21]"),
            Arg::new("quick")
                .long("quick")
                .action(ArgAction::SetTrue)
                .help("Do little of everything: for a test, not for figures"),
            Arg::new("only")
                .long("only")
                .value_parser(["connections", "proxy", "pods"])
                .help("Measure one part"),
            Arg::new("by")
                .long("by")
                .value_parser(By::ALL.map(By::as_str))
                .action(ArgAction::Append)
                .help("Of those side by side, measure this one; may be given several times"),
            super::output_arg("markdown"),
            super::plot_arg(),
            super::check_arg(),
        ])
}

/// Measures everything, prints the report, draws.
///
/// # Errors
/// When a pod can't be made or captured, or a connection goes elsewhere.
pub fn run(args: &ArgMatches) -> Result<ExitCode> {
    let mut amount = if args.get_flag("quick") { QUICK } else { WHOLE };
    if let Some(rounds) = args.get_one::<u16>("rounds") {
        amount.rounds = usize::from(*rounds);
    }
    let only = args.get_one::<String>("only").map(String::as_str);
    let wanted = |part: &str| only.is_none_or(|only| only == part);
    let named: Vec<&String> = args.get_many("by").into_iter().flatten().collect();
    let named = |by: &By| named.is_empty() || named.iter().any(|name| *name == by.as_str());
    let sides: Vec<By> = By::ALL.into_iter().filter(named).collect();
    let results = BenchNode::with(|node| {
        let mut results = Results::default();
        if wanted("connections") {
            connections(&amount, &sides, node, &mut results)?;
        }
        if wanted("proxy") {
            requests(&amount, &sides, node, &mut results)?;
        }
        if wanted("pods") {
            pods(&amount, &sides, node, &mut results)?;
        }
        Ok(results)
    })?;
    match args.get_one::<String>("output").map(String::as_str) {
        Some("json") => repo::print(&format!("{:#}\n", report::to_json(&results, &machine()?)))?,
        _ => repo::print(&report::to_markdown(&results, &machine()?))?,
    }
    if let Some(path) = args.get_one::<PathBuf>("plot") {
        draw(path, &report::charts(&results))?;
    }
    let missed =
        args.get_flag("check") && !report::goals(&results).iter().all(report::Goal::reached);
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Everything once a round, and nobody always first or always after the same one; before that a
/// round to warm up.
fn interleaved(
    rounds: usize,
    pods: &[BenchPod],
    mut once: impl FnMut(&BenchPod, bool) -> Result<()>,
) -> Result<()> {
    for round in 0..=rounds {
        for turn in 0..pods.len() {
            once(&pods[(turn + round) % pods.len()], round > 0)?;
        }
    }
    Ok(())
}

fn connections(
    amount: &Amount,
    sides: &[By],
    node: &BenchNode,
    results: &mut Results,
) -> Result<()> {
    let mut pods = Vec::new();
    for exclusions in amount.exclusions {
        for &by in sides {
            // Without capture nothing depends on exclusions.
            if by.captures() || *exclusions == 0 {
                repo::say(&format!("{} with {exclusions} exclusions", by.as_str()));
                pods.push(BenchPod::new(by, *exclusions, node)?);
            }
        }
    }
    repo::say(&format!("connections, {} rounds", amount.rounds));
    interleaved(amount.rounds, &pods, |pod, counts| {
        for way in [Way::Out, Way::In] {
            let batch = connect::batch(pod, way, amount.connections, node)?;
            if counts {
                let mut add = |figure, value| results.add(figure, pod.by, pod.exclusions, value);
                add(Figure::Median(way), batch.p50);
                add(Figure::Slowest(way), batch.p99);
                add(Figure::Connections(way), batch.rate);
                add(Figure::ConnectionCpu(way), batch.cpu);
            }
        }
        Ok(())
    })
}

fn requests(amount: &Amount, sides: &[By], node: &BenchNode, results: &mut Results) -> Result<()> {
    let pods = sides.iter().map(|by| BenchPod::new(*by, 0, node)).collect::<Result<Vec<_>>>()?;
    repo::say(&format!("through a proxy, {} rounds", amount.rounds));
    interleaved(amount.rounds, &pods, |pod, counts| {
        let sample = proxy::sample(pod, amount.load, node)?;
        if counts {
            let mut add = |figure, value| results.add(figure, pod.by, 0, value);
            add(Figure::Requests, sample.requests.rate);
            add(Figure::RequestCpu, sample.requests.cpu);
            add(Figure::Calls, sample.connections.rate);
            add(Figure::CallCpu, sample.connections.cpu);
        }
        Ok(())
    })?;
    interleaved(amount.rounds * amount.load.streams, &pods, |pod, counts| {
        let blocks = proxy::stream(pod, amount.load.blocks, node)?;
        if counts {
            // Blocks of 64 KiB.
            results.add(Figure::Throughput, pod.by, 0, blocks.rate / 16.0);
            results.add(Figure::MegabyteCpu, pod.by, 0, blocks.cpu * 16.0);
        }
        Ok(())
    })
}

fn pods(amount: &Amount, sides: &[By], node: &BenchNode, results: &mut Results) -> Result<()> {
    for by in sides.iter().copied().filter(|by| by.captures()) {
        repo::say(&format!("{} pods, {}", amount.pods, by.as_str()));
        let one = (0..amount.nodes * 10).map(|_| enrol::capture(by, 1, node));
        for each in one.collect::<Result<Vec<_>>>()?.concat() {
            results.add(Figure::OnePod, by, 0, connect::micros(each));
        }
        for _ in 0..amount.nodes {
            for each in enrol::capture(by, amount.pods, node)? {
                results.add(Figure::EachPod, by, 0, connect::micros(each));
            }
        }
    }
    Ok(())
}
