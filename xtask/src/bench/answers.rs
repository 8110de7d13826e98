//! `xtask bench answers`: how long answers about many rules take, and how much memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Arg, ArgMatches, value_parser};
use serde_json::json;

use super::pair::{configure, namespace, on_a_thread};
use super::plot::{Chart, Line, draw};
use crate::{dist, repo};

/// A question, and what it is about.
#[derive(Clone, Debug)]
struct Asked {
    /// The chart that it is in.
    about: &'static str,
    name: String,
    words: Vec<String>,
}

/// What an answer cost.
#[derive(Clone, Copy, Debug)]
struct Cost {
    wall: Duration,
    /// The most memory that the process had at once, in bytes.
    peak: u64,
}

#[derive(Debug)]
struct Row {
    about: &'static str,
    name: String,
    size: u32,
    /// None where it took longer than was waited for.
    cost: Option<Cost>,
}

/// The command line of `xtask bench answers`.
pub fn command() -> clap::Command {
    let sizes = Arg::new("sizes")
        .long("sizes")
        .value_name("N,...")
        .value_delimiter(',')
        .value_parser(value_parser!(u32).range(1..=60_000))
        .default_value("300,1000,3000,10000,20000")
        .help("How many networks, and as many ports, are excluded; how many rules others have");
    let patience = Arg::new("patience")
        .long("patience")
        .value_name("SECONDS")
        .value_parser(value_parser!(u64).range(1..))
        .default_value("60")
        .help("How long an answer may take; nothing larger is asked then");
    let program = Arg::new("binary")
        .long("binary")
        .value_name("FILE")
        .value_parser(value_parser!(PathBuf))
        .help("Ask this millrace instead of building the one that is shipped");
    clap::Command::new("answers")
        .about("Ask about many rules: explain, diff, graph and lint; time and memory against size")
        .args([sizes, patience, program, super::output_arg("markdown"), super::plot_arg()])
        .arg(super::check_arg())
}

/// Measures everything, prints the report.
///
/// # Errors
/// When something can't be asked.
pub fn run(args: &ArgMatches) -> Result<ExitCode> {
    let sizes: Vec<u32> = args.get_many("sizes").into_iter().flatten().copied().collect();
    let patience = Duration::from_secs(args.get_one("patience").copied().unwrap_or(60));
    let program = match args.get_one::<PathBuf>("binary") {
        Some(program) => program.clone(),
        None => dist::millrace()?,
    };
    let mut rows: Vec<Row> = Vec::new();
    for size in sizes {
        rows.extend(on_a_thread(|| of_size(&program, size, patience, &rows))?);
    }
    let text = match args.get_one::<String>("output").map(String::as_str) {
        Some("json") => format!("{:#}\n", to_json(&rows)),
        _ => to_markdown(&rows),
    };
    repo::print(&text)?;
    if let Some(path) = args.get_one::<PathBuf>("plot") {
        draw(path, &charts(&rows))?;
    }
    let missed = args.get_flag("check") && rows.iter().any(|row| !reaches(row));
    Ok(if missed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Goals: 2 s and 200 MB for 10,000 networks and ports, 5 s and 500 MB for 20,000 rules of others.
fn reaches(row: &Row) -> bool {
    let (most, seconds, megabytes) = match row.about {
        FOREIGN | NATIVE => (20_000, 5, 500),
        _ => (10_000, 2, 200),
    };
    let good = |cost: Cost| {
        cost.wall <= Duration::from_secs(seconds) && cost.peak <= megabytes * 1_000_000
    };
    row.size > most || row.cost.is_some_and(good)
}

const IPTABLES: &str = "a configuration, by iptables";
const NFTABLES: &str = "a configuration, by nftables";
const FOREIGN: &str = "rules of others";
const NATIVE: &str = "native rules of others";

/// The questions of a size, with what they are about in files of a folder and in the namespace.
type Questions = fn(&Path, u32, &Path) -> Result<Vec<Asked>>;

/// All questions of a size, on a thread that has namespaces of its own.
fn of_size(program: &Path, size: u32, patience: Duration, before: &[Row]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for questions in [questions as Questions, native_questions] {
        let before: Vec<&Row> = before.iter().chain(&rows).collect();
        rows.extend(in_a_namespace(program, size, patience, &before, questions)?);
    }
    Ok(rows)
}

fn in_a_namespace(
    program: &Path,
    size: u32,
    patience: Duration,
    before: &[&Row],
    questions: Questions,
) -> Result<Vec<Row>> {
    let _namespace = namespace()?;
    configure(
        "link set lo up\nlink add eth0 type veth peer name peer0\nlink set peer0 up\n\
         link set eth0 up\naddr add 10.4.0.2/24 dev eth0\nroute add default via 10.4.0.1\n",
    )?;
    let scratch = tempfile::tempdir().context("a folder")?;
    let mut rows = Vec::new();
    for asked in questions(program, size, scratch.path())? {
        let tired = before.iter().copied().chain(&rows).any(|row: &Row| {
            (row.about, &row.name) == (asked.about, &asked.name) && row.cost.is_none()
        });
        let cost = if tired { None } else { ask(program, &asked.words, patience)? };
        let took = cost.map_or_else(|| "too long".to_owned(), |cost| format!("{:?}", cost.wall));
        repo::say(&format!("{size}, {}, {}: {took}", asked.about, asked.name));
        rows.push(Row { about: asked.about, name: asked.name, size, cost });
    }
    Ok(rows)
}

/// Those about a configuration, and about rules of others by iptables.
fn questions(program: &Path, size: u32, folder: &Path) -> Result<Vec<Asked>> {
    let write = |name: &str, text: String| -> Result<String> {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path.to_string_lossy().into_owned())
    };
    let config = write("config.json", configuration(size, 10))?;
    let unlike = write("unlike.json", configuration(size, 11))?;
    let pod = write("pod.json", manifest(size))?;
    let mut all = Vec::new();
    let mut ask = |about, name: &str, words: &[&str]| {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        all.push(Asked { about, name: name.to_owned(), words });
    };
    let to = "--to=9.9.9.9:60000";
    for (about, backend) in [(IPTABLES, "iptables"), (NFTABLES, "nftables")] {
        let by = format!("--backend={backend}");
        ask(about, "explain", &["explain", "--config", &config, &by, to]);
        ask(about, "explain --all", &["explain", "--config", &config, &by, "--all"]);
        let [one, other] = [&config, &unlike].map(|c| format!("apply --config {c} {by}"));
        ask(about, "diff", &["diff", &one, &other]);
        ask(about, "graph", &["graph", "--config", &config, &by]);
    }
    ask(IPTABLES, "lint", &["lint", &pod]);
    // Rules of others beside Millrace's own.
    run_to_end(Command::new(program).args(["apply", "--backend", "nftables"]))?;
    let restore = write("foreign.save", foreign(size))?;
    for variant in ["iptables-nft-restore", "iptables-legacy-restore"] {
        let input = fs::File::open(&restore)?;
        let dump = run_to_end(Command::new(variant).arg("-n").stdin(input));
        dump.with_context(|| variant.to_owned())?;
        if variant.contains("nft") {
            let saved = run_to_end(&mut Command::new("iptables-nft-save"))?;
            let saved = write("saved", saved)?;
            ask(FOREIGN, "explain, saved", &["explain", "--rules", &saved, to]);
            ask(FOREIGN, "explain --all, saved", &["explain", "--rules", &saved, "--all"]);
            ask(FOREIGN, "graph, saved", &["graph", "--rules", &saved]);
        }
    }
    ask(FOREIGN, "explain, live", &["explain", "--live", to]);
    ask(FOREIGN, "explain --all, live", &["explain", "--live", "--all"]);
    ask(FOREIGN, "graph, live", &["graph", "--live"]);
    ask(FOREIGN, "diff, live", &["diff", "live", &config]);
    Ok(all)
}

/// Those about native rules of others, beside Millrace's own.
fn native_questions(program: &Path, size: u32, folder: &Path) -> Result<Vec<Asked>> {
    run_to_end(Command::new(program).args(["apply", "--backend", "nftables"]))?;
    let file = folder.join("foreign.nft");
    fs::write(&file, native(size)).with_context(|| file.display().to_string())?;
    run_to_end(Command::new("nft").arg("-f").arg(&file))?;
    let saved = folder.join("ruleset.json");
    fs::write(&saved, run_to_end(Command::new("nft").args(["-j", "list", "ruleset"]))?)?;
    let saved = saved.to_string_lossy();
    let mut all = Vec::new();
    for (whence, source) in [("saved", &["--rules", saved.as_ref()][..]), ("live", &["--live"][..])]
    {
        for (name, question) in [
            ("explain", &["explain", "--to=9.9.9.9:60000"][..]),
            ("explain --all", &["explain", "--all"]),
            ("graph", &["graph"]),
        ] {
            let words = question.iter().chain(source).map(|word| (*word).to_owned()).collect();
            all.push(Asked { about: NATIVE, name: format!("{name}, {whence}"), words });
        }
    }
    Ok(all)
}

fn network(first: u32, at: u32) -> String {
    format!("{first}.{}.{}.{}/32", at >> 14 & 255, at >> 6 & 255, at << 2 & 255)
}

fn port(first: u32, at: u32) -> u32 {
    // Neighbours would become a range.
    first + 2 * at % 64_000
}

fn configuration(size: u32, first: u32) -> String {
    let networks: Vec<String> = (0..size).map(|at| network(first, at)).collect();
    let mut ports: Vec<u32> = (0..size).map(|at| port(first, at)).collect();
    ports.sort_unstable();
    ports.dedup();
    let outbound = json!({ "excludeNetworks": networks, "excludePorts": ports });
    json!({ "outbound": outbound }).to_string()
}

fn manifest(size: u32) -> String {
    let list = |of: fn(u32) -> String| (0..size).map(of).collect::<Vec<_>>().join(",");
    let annotations = json!({
        "sidecar.istio.io/status": "{}",
        "traffic.sidecar.istio.io/excludeOutboundIPRanges": list(|at| network(10, at)),
        "traffic.sidecar.istio.io/excludeOutboundPorts": list(|at| port(10, at).to_string()),
    });
    let containers = json!([{ "name": "app", "image": "app" }]);
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "pod", "annotations": annotations },
        "spec": { "containers": containers },
    })
    .to_string()
}

/// Half of the rules in a chain of an own table, as firewalls write them, half by port.
fn foreign(size: u32) -> String {
    let mut text =
        "*filter\n:OUTPUT ACCEPT [0:0]\n:BLOCKED - [0:0]\n-A OUTPUT -j BLOCKED\n".to_owned();
    for at in 0..size / 2 {
        text.push_str(&format!("-A BLOCKED -d {} -p tcp -j DROP\n", network(12, at)));
        let rule =
            format!("-A BLOCKED -p tcp -m tcp --dport {} -s 10.0.0.0/8 -j REJECT\n", port(1, at));
        text.push_str(&rule);
    }
    text + "COMMIT\n"
}

/// The same in native nftables.
fn native(size: u32) -> String {
    let mut text =
        "table inet firewall {\nchain output {\ntype filter hook output priority 0\njump \
                    blocked\n}\nchain blocked {\n"
            .to_owned();
    for at in 0..size / 2 {
        text.push_str(&format!("ip daddr {} meta l4proto tcp drop\n", network(12, at)));
        text.push_str(&format!("ip saddr 10.0.0.0/8 tcp dport {} reject\n", port(1, at)));
    }
    text + "}\n}\n"
}

fn run_to_end(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| repo::command_line(command))?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "`{}`: {stderr}", repo::command_line(command));
    String::from_utf8(output.stdout).context("it prints no text")
}

/// Ask, and wait for the answer; none if that takes too long.
fn ask(program: &Path, words: &[String], patience: Duration) -> Result<Option<Cost>> {
    let mut command = Command::new(program);
    command.args(words).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| repo::command_line(&command))?;
    let mut peak = 0;
    loop {
        peak = peak.max(high_water(&child));
        if let Some(status) = child.try_wait()? {
            let wall = start.elapsed();
            // 1 says that something can't be told, 3 and 5 what lint has found.
            if !matches!(status.code(), Some(0 | 1 | 3 | 5)) {
                bail!("`{}`: {status}", repo::command_line(&command));
            }
            return Ok(Some(Cost { wall, peak }));
        }
        if start.elapsed() > patience {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(Duration::from_micros(500));
    }
}

/// The most memory that a process has had so far, in bytes (`proc_pid_status(5)`).
fn high_water(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let number = line.and_then(|line| line.trim().strip_suffix("kB")).map(str::trim);
    number.and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn megabytes(cost: Cost) -> f64 {
    f64::from(u32::try_from(cost.peak / 1000).unwrap_or(u32::MAX)) / 1000.0
}

fn to_json(rows: &[Row]) -> serde_json::Value {
    let one = |row: &Row| {
        json!({
            "about": row.about,
            "question": row.name,
            "size": row.size,
            "seconds": row.cost.map(|cost| cost.wall.as_secs_f64()),
            "megabytes": row.cost.map(megabytes),
        })
    };
    rows.iter().map(one).collect()
}

/// The rows by question, a column for each size.
fn to_markdown(rows: &[Row]) -> String {
    let mut sizes: Vec<u32> = rows.iter().map(|row| row.size).collect();
    sizes.dedup();
    let heads: Vec<String> = sizes.iter().map(u32::to_string).collect();
    let mut text = format!("| About | Question | {} |\n", heads.join(" | "));
    text.push_str(&format!("|---|---|{}\n", "---:|".repeat(sizes.len())));
    for (about, name) in asked(rows) {
        let cells = rows.iter().filter(|row| (row.about, row.name.as_str()) == (about, name));
        let cells = cells.map(|row| match row.cost {
            Some(cost) => {
                let seconds = cost.wall.as_secs_f64();
                format!("{seconds:.2} s, {:.0} MB", megabytes(cost))
            }
            None => "too long".to_owned(),
        });
        text.push_str(&format!(
            "| {about} | {name} | {} |\n",
            cells.collect::<Vec<_>>().join(" | ")
        ));
    }
    text
}

/// Every question once, in order.
fn asked(rows: &[Row]) -> Vec<(&'static str, &str)> {
    let mut all = Vec::new();
    for row in rows {
        let one = (row.about, row.name.as_str());
        if !all.contains(&one) {
            all.push(one);
        }
    }
    all
}

fn charts(rows: &[Row]) -> Vec<Chart> {
    let line = |about: &str, name: &str, value: &dyn Fn(Cost) -> f64| {
        let own = rows.iter().filter(|row| (row.about, row.name.as_str()) == (about, name));
        let points = own.filter_map(|row| Some((f64::from(row.size), value(row.cost?))));
        points.collect::<Vec<_>>()
    };
    let seconds = |cost: Cost| cost.wall.as_secs_f64();
    let mut charts: Vec<Chart> = [IPTABLES, NFTABLES, FOREIGN, NATIVE]
        .into_iter()
        .map(|about| Chart {
            title: format!("Answers about {about}"),
            x: "networks, and as many ports; or rules".to_owned(),
            y: "seconds".to_owned(),
            lines: asked(rows)
                .into_iter()
                .filter(|(of, _)| *of == about)
                .map(|(_, name)| Line {
                    name: name.to_owned(),
                    points: line(about, name, &seconds),
                })
                .collect(),
        })
        .collect();
    let most = [
        (IPTABLES, "explain --all"),
        (IPTABLES, "diff"),
        (NFTABLES, "diff"),
        (NFTABLES, "graph"),
        (FOREIGN, "explain --all, live"),
        (NATIVE, "explain --all, live"),
    ];
    charts.push(Chart {
        title: "The most memory".to_owned(),
        x: "networks, and as many ports; or rules".to_owned(),
        y: "MB".to_owned(),
        lines: most
            .into_iter()
            .map(|(about, name)| Line {
                name: format!("{name}, {}", about.rsplit(' ').next().unwrap_or(about)),
                points: line(about, name, &megabytes),
            })
            .collect(),
    });
    charts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn goals_are_held_against_what_was_measured() {
        let row = |about, size, seconds, megabytes: u64| Row {
            about,
            name: "explain".to_owned(),
            size,
            cost: Some(Cost { wall: Duration::from_secs(seconds), peak: megabytes * 1_000_000 }),
        };
        assert!(reaches(&row(IPTABLES, 10_000, 2, 200)));
        assert!(!reaches(&row(IPTABLES, 10_000, 3, 20)));
        assert!(!reaches(&row(IPTABLES, 300, 1, 201)));
        assert!(reaches(&row(IPTABLES, 20_000, 30, 20)));
        assert!(reaches(&row(FOREIGN, 20_000, 5, 500)));
        assert!(!reaches(&Row { cost: None, ..row(NFTABLES, 1000, 1, 1) }));
        let text = to_markdown(&[row(IPTABLES, 300, 1, 20), row(IPTABLES, 1000, 2, 30)]);
        assert!(text.ends_with("| explain | 1.00 s, 20 MB | 2.00 s, 30 MB |\n"), "{text}");
    }

    #[test]
    fn what_is_asked_about_is_as_large_as_said() {
        let config: serde_json::Value = serde_json::from_str(&configuration(20_000, 10)).unwrap();
        for list in ["excludeNetworks", "excludePorts"] {
            let mut all = config["outbound"][list].as_array().unwrap().clone();
            let count = all.len();
            all.sort_by_key(ToString::to_string);
            all.dedup();
            assert_eq!((count, all.len()), (20_000, 20_000), "{list}");
        }
        assert_eq!(foreign(20_000).matches("-A BLOCKED").count(), 20_000);
    }
}
