//! `xtask bench path`: what a connection costs, with few exclusions and with very many.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgMatches, value_parser};
use nix::libc::linger;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::pair::{OUTSIDE, Pair};
use super::plot::{Chart, Line, draw};
use super::stats::quantile;
use crate::{dist, repo};

/// How many networks, and how many ports, are excluded.
const EXCLUSIONS: [u32; 5] = [0, 10, 100, 1_000, 10_000];
const PORT: u16 = 8080;
/// The first excluded port, and how far the next one is: none of them is next to another.
const FIRST_PORT: u32 = 10_001;
const STEP: u32 = 2;
/// Goal: with the most exclusions the rate is at least this part of the rate without.
const FLAT: f64 = 0.95;

/// The command line of `xtask bench path`.
pub fn command() -> clap::Command {
    clap::Command::new("path")
        .about("Connect through a veth pair with 0 to 10,000 excluded networks and ports")
        .args([
            Arg::new("rounds")
                .long("rounds")
                .value_parser(value_parser!(u16).range(1..))
                .default_value("20")
                .help("Rounds, in each of which every pod is measured once"),
            Arg::new("connections")
                .long("connections")
                .value_parser(value_parser!(u32).range(1..))
                .default_value("1000")
                .help("Connections that a pod makes in a round"),
            super::output_arg("text"),
            super::plot_arg(),
            super::check_arg(),
        ])
}

/// What captures a pod.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Backend {
    Nothing,
    Nftables,
    Iptables,
}

impl Backend {
    const ALL: [Self; 3] = [Self::Nothing, Self::Nftables, Self::Iptables];

    fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "no capture",
            Self::Nftables => "nftables",
            Self::Iptables => "iptables-nft",
        }
    }
}

/// One pod and what was measured in it.
struct Track {
    backend: Backend,
    exclusions: u32,
    pair: Pair,
    latencies: Vec<Duration>,
    rates: Vec<f64>,
}

/// Measures, prints the report, draws.
///
/// # Errors
/// When a pod can't be made, or a connection fails.
pub fn run(args: &ArgMatches) -> Result<ExitCode> {
    let rounds = args.get_one::<u16>("rounds").copied().unwrap_or(20);
    let connections = args.get_one::<u32>("connections").copied().unwrap_or(1000);
    let millrace = dist::millrace()?;
    let scratch = tempfile::tempdir().context("can't make a scratch folder")?;
    let mut tracks = Vec::new();
    for exclusions in EXCLUSIONS {
        for backend in Backend::ALL {
            // Without rules nothing depends on how many there would be.
            if backend != Backend::Nothing || exclusions == 0 {
                repo::say(&format!("{} with {exclusions} exclusions", backend.as_str()));
                tracks.push(Track::new(backend, exclusions, &millrace, scratch.path())?);
            }
        }
    }
    // One round to warm up.
    for round in 0..=rounds {
        let all = tracks.len();
        for turn in 0..all {
            // Nobody always comes first, or always after the same one.
            let track = &mut tracks[(turn + usize::from(round)) % all];
            let sample = track.pair.in_pod(|| connect(connections))?;
            if round > 0 {
                track.add(sample);
            }
        }
    }
    let rows: Vec<Row> = tracks.iter().map(Track::row).collect::<Result<_>>()?;
    let flatness = flatness(&rows)?;
    let reached = flatness >= FLAT;
    match args.get_one::<String>("output").map(String::as_str) {
        Some("json") => repo::print(&format!("{:#}\n", to_json(&rows, flatness)))?,
        _ => repo::print(&to_text(&rows, flatness, reached))?,
    }
    if let Some(path) = args.get_one::<PathBuf>("plot") {
        draw(path, &charts(&rows))?;
    }
    let missed = args.get_flag("check") && !reached;
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

impl Track {
    /// A pod from which connections pass to a listener outside, since the last of its exclusions
    /// is the network outside: a connection meets all rules in front of that.
    fn new(backend: Backend, exclusions: u32, millrace: &Path, scratch: &Path) -> Result<Self> {
        let pair = Pair::new()?;
        let listener = pair.outside(|| {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).context("a listener outside")
        })?;
        // It ends with this program.
        thread::spawn(move || {
            // The client has the first processor.
            let _pinned = pin(1);
            for stream in listener.incoming() {
                drop(stream);
            }
        });
        let config = scratch.join("config.yaml");
        fs::write(&config, configuration(exclusions)).context("a configuration")?;
        let backend_name = match backend {
            Backend::Nothing => None,
            Backend::Nftables => Some("nftables"),
            Backend::Iptables => Some("iptables-nft"),
        };
        if let Some(name) = backend_name {
            let mut command = Command::new(millrace);
            command.args(["apply", "--backend", name, "--config"]).arg(&config);
            pair.in_pod(|| repo::output(&mut command))?;
        }
        Ok(Self { backend, exclusions, pair, latencies: Vec::new(), rates: Vec::new() })
    }

    fn add(&mut self, sample: Vec<Duration>) {
        let total: Duration = sample.iter().sum();
        let count = u32::try_from(sample.len()).unwrap_or(u32::MAX);
        self.rates.push(f64::from(count) / total.as_secs_f64());
        self.latencies.extend(sample);
    }

    fn row(&self) -> Result<Row> {
        let mut latencies = self.latencies.clone();
        latencies.sort_unstable();
        let mut rates = self.rates.clone();
        rates.sort_unstable_by(f64::total_cmp);
        let at = |percent| quantile(&latencies, percent).context("no connections were made");
        Ok(Row {
            backend: self.backend,
            exclusions: self.exclusions,
            median: at(50)?,
            p99: at(99)?,
            rate: *rates.get(rates.len() / 2).context("no rounds were made")?,
        })
    }
}

fn configuration(exclusions: u32) -> String {
    let networks = (0..exclusions).map(|n| format!("11.{}.{}.0/25", n / 250, n % 250));
    let networks: Vec<String> = networks.chain([format!("{OUTSIDE}/32")]).collect();
    let ports = (0..exclusions).map(|n| (FIRST_PORT + STEP * n).to_string());
    format!(
        "outbound:\n  excludeNetworks: [{}]\n  excludePorts: [{}]\n",
        networks.join(", "),
        ports.collect::<Vec<_>>().join(", ")
    )
}

/// Have the calling thread run on one processor.
///
/// # Errors
/// When there is no such one.
pub fn pin(processor: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(processor).context("a processor")?;
    sched_setaffinity(Pid::from_raw(0), &set).context("choosing a processor")
}

/// How long each of many connections takes, one after the other.
fn connect(connections: u32) -> Result<Vec<Duration>> {
    pin(0)?;
    let to = SocketAddr::from((OUTSIDE, PORT));
    let mut latencies = Vec::new();
    for _ in 0..connections {
        let start = Instant::now();
        let stream = TcpStream::connect(to).with_context(|| format!("a connection to {to}"))?;
        latencies.push(start.elapsed());
        ensure!(stream.peer_addr()? == to, "a connection went elsewhere");
        // Closed by a reset, it leaves no port behind that waits.
        let at_once = linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&stream.as_fd(), sockopt::Linger, &at_once).context("a socket option")?;
    }
    Ok(latencies)
}

/// The figures of one pod.
#[derive(Clone, Debug)]
struct Row {
    backend: Backend,
    exclusions: u32,
    median: Duration,
    p99: Duration,
    /// Connections in a second, one after the other: the median of the rounds.
    rate: f64,
}

/// The rate of nftables with the most exclusions, in those without.
fn flatness(rows: &[Row]) -> Result<f64> {
    let mut rates = rows.iter().filter(|row| row.backend == Backend::Nftables).map(|row| row.rate);
    let Some(first) = rates.next() else { bail!("nftables was not measured") };
    Ok(rates.next_back().unwrap_or(first) / first)
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn to_text(rows: &[Row], flatness: f64, reached: bool) -> String {
    let mut text = "Connections through a veth pair, one after the other.\n\n\
                    by            exclusions      p50 us      p99 us   connections/s\n"
        .to_owned();
    for row in rows {
        text.push_str(&format!(
            "{:<14}{:>10}{:>12.1}{:>12.1}{:>16.0}\n",
            row.backend.as_str(),
            row.exclusions,
            micros(row.median),
            micros(row.p99),
            row.rate
        ));
    }
    let result = if reached { "reached" } else { "NOT reached" };
    text.push_str(&format!(
        "\n{result}: nftables with {} exclusions is within 5 % of its rate without: {:.1} %\n",
        EXCLUSIONS[EXCLUSIONS.len() - 1],
        flatness * 100.0
    ));
    text
}

fn to_json(rows: &[Row], flatness: f64) -> Value {
    let rows = rows.iter().map(|row| {
        json!({
            "by": row.backend.as_str(),
            "exclusions": row.exclusions,
            "p50_us": micros(row.median),
            "p99_us": micros(row.p99),
            "connections_per_second": row.rate,
        })
    });
    json!({ "rows": rows.collect::<Vec<_>>(), "nftables_flatness": flatness })
}

/// One chart for the median and one for the slowest.
fn charts(rows: &[Row]) -> [Chart; 2] {
    let chart = |title: &str, figure: fn(&Row) -> Duration| Chart {
        title: title.to_owned(),
        x: "excluded networks, and as many ports".to_owned(),
        y: "microseconds to connect".to_owned(),
        lines: Backend::ALL
            .into_iter()
            .map(|backend| {
                let of = rows.iter().filter(|row| row.backend == backend);
                let points = of.map(|row| (f64::from(row.exclusions), micros(figure(row))));
                let mut points: Vec<(f64, f64)> = points.collect();
                if let ([(_, only)], Some(last)) = (points.as_slice(), EXCLUSIONS.last()) {
                    points.push((f64::from(*last), *only));
                }
                Line { name: backend.as_str().to_owned(), points }
            })
            .collect(),
    };
    [chart("Median", |row| row.median), chart("99th percentile", |row| row.p99)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_row(backend: Backend, exclusions: u32, rate: f64) -> Row {
        let median = Duration::from_micros(20);
        Row { backend, exclusions, median, p99: median * 2, rate }
    }

    #[test]
    fn nftables_has_to_stay_flat() {
        let rows = |last| {
            [
                mk_row(Backend::Nothing, 0, 60_000.0),
                mk_row(Backend::Nftables, 0, 50_000.0),
                mk_row(Backend::Iptables, 10_000, 700.0),
                mk_row(Backend::Nftables, 10_000, last),
            ]
        };
        assert!(flatness(&rows(48_000.0)).unwrap() >= FLAT);
        assert!(flatness(&rows(45_000.0)).unwrap() < FLAT);
        assert!(flatness(&rows(0.0)[..1]).is_err());
        let text = to_text(&rows(45_000.0), 0.9, false);
        assert!(text.contains("NOT reached: nftables with 10000 exclusions"), "{text}");
    }

    #[test]
    fn exclusions_are_networks_and_ports_and_the_last_one_is_outside() {
        let text = configuration(2);
        assert!(text.contains("[11.0.0.0/25, 11.0.1.0/25, 192.0.2.1/32]"), "{text}");
        assert!(text.contains("excludePorts: [10001, 10003]"), "{text}");
        let last = FIRST_PORT + STEP * (EXCLUSIONS[4] - 1);
        assert!(u16::try_from(last).is_ok());
        assert!(!text.contains(&PORT.to_string()));
    }
}
