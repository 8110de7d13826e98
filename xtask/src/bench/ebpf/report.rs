//! The report: tables in Markdown, goals, JSON, charts.

use serde_json::{Value, json};

use super::by::{By, Way};
use super::results::{Figure, Results};
use crate::bench::plot::{Chart, Line};

/// Something to reach.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    what: &'static str,
    unit: &'static str,
    limit: f64,
    measured: f64,
    at_least: bool,
}

impl Goal {
    /// Whether it is reached.
    pub fn reached(&self) -> bool {
        if self.at_least { self.measured >= self.limit } else { self.measured <= self.limit }
    }

    fn to_text(self) -> String {
        let result = if self.reached() { "reached" } else { "NOT reached" };
        let bound = if self.at_least { "at least" } else { "at most" };
        let Self { what, unit, limit, measured, .. } = self;
        format!("- {result}: {what}: {measured:.2} {unit} ({bound} {limit:.2})\n")
    }
}

fn minus(one: f64, other: f64) -> f64 {
    one - other
}

fn ratio(one: f64, other: f64) -> f64 {
    one / other
}

/// The goals that concern what was measured.
pub fn goals(results: &Results) -> Vec<Goal> {
    let mut goals = Vec::new();
    let mut at_most = |what, unit, limit, measured: Option<f64>| {
        let goal = |measured| Goal { what, unit, limit, measured, at_least: false };
        goals.extend(measured.map(goal));
    };
    let ebpf = (By::Ebpf, 0);
    let over = |way| results.beside(Figure::Median(way), ebpf, (By::Nothing, 0), minus);
    at_most("outbound connect p50 over no capture", "us", 1.0, over(Way::Out));
    at_most("inbound connect p50 over no capture", "us", 0.9, over(Way::In));
    let slowest = |way| results.beside(Figure::Slowest(way), ebpf, (By::Iptables, 0), ratio);
    at_most("outbound connect p99, in that of iptables", "times", 1.0, slowest(Way::Out));
    at_most("inbound connect p99, in that of iptables", "times", 1.0, slowest(Way::In));
    let figure = Figure::Median(Way::Out);
    let most = results.exclusions(figure, By::Ebpf).last().copied().unwrap_or(0);
    let flat = results.beside(figure, (By::Ebpf, most), ebpf, ratio);
    at_most("outbound connect p50 with the most exclusions, in that without", "times", 1.05, flat);
    at_most("capturing a pod", "us", 200.0, results.median(Figure::OnePod, By::Ebpf, 0));
    at_most(
        "capturing each of many pods",
        "us",
        200.0,
        results.median(Figure::EachPod, By::Ebpf, 0),
    );
    let throughput = results.beside(Figure::Throughput, ebpf, (By::Nothing, 0), ratio);
    goals.extend(throughput.map(|measured| Goal {
        what: "throughput of a connection, in that without capture",
        unit: "times",
        limit: 0.98,
        measured,
        at_least: true,
    }));
    goals
}

/// Tables and goals. Tables of parts that were not measured are left out.
pub fn to_markdown(results: &Results, machine: &str) -> String {
    let mut text = format!("{machine}\n");
    for way in [Way::Out, Way::In] {
        let name = if way == Way::Out { "Outbound" } else { "Inbound" };
        table(
            &mut text,
            &format!("{name} connections, microseconds"),
            results,
            &[
                ("p50", Figure::Median(way), 2),
                ("p99", Figure::Slowest(way), 2),
                ("CPU of each", Figure::ConnectionCpu(way), 2),
                ("connections/s", Figure::Connections(way), 0),
            ],
        );
    }
    table(
        &mut text,
        "Through a proxy, CPU in microseconds",
        results,
        &[
            ("requests/s", Figure::Requests, 0),
            ("CPU of each", Figure::RequestCpu, 2),
            ("with a connection each/s", Figure::Calls, 0),
            ("CPU of each", Figure::CallCpu, 2),
            ("MiB/s", Figure::Throughput, 0),
            ("CPU of a MiB", Figure::MegabyteCpu, 1),
        ],
    );
    for (title, figure) in [
        ("Outbound p50 by excluded networks and ports, microseconds", Figure::Median(Way::Out)),
        ("Inbound p50 by excluded networks and ports, microseconds", Figure::Median(Way::In)),
    ] {
        by_exclusions(&mut text, title, results, figure);
    }
    pods(&mut text, results);
    let goals = goals(results);
    if !goals.is_empty() {
        text.push_str("\nGoals, as medians of rounds:\n\n");
    }
    text.extend(goals.into_iter().map(Goal::to_text));
    text
}

fn head(text: &mut String, title: &str, columns: &[String]) {
    text.push_str(&format!("\n| {title} |"));
    text.extend(columns.iter().map(|column| format!(" {column} |")));
    text.push_str("\n|---|");
    text.extend(columns.iter().map(|_| "---:|"));
    text.push('\n');
}

fn cell(value: Option<f64>, digits: usize) -> String {
    value.map_or(" |".to_owned(), |value| format!(" {value:.digits$} |"))
}

fn table(text: &mut String, title: &str, results: &Results, columns: &[(&str, Figure, usize)]) {
    let names: Vec<String> = columns.iter().map(|(name, ..)| (*name).to_owned()).collect();
    let known = |by| columns.iter().any(|(_, figure, _)| results.median(*figure, by, 0).is_some());
    if !By::ALL.into_iter().any(known) {
        return;
    }
    head(text, title, &names);
    for by in By::ALL {
        text.push_str(&format!("| {} |", by.as_str()));
        let value = |figure: &Figure| results.median(*figure, by, 0);
        text.extend(columns.iter().map(|(_, figure, digits)| cell(value(figure), *digits)));
        text.push('\n');
    }
}

fn by_exclusions(text: &mut String, title: &str, results: &Results, figure: Figure) {
    let exclusions = results.exclusions(figure, By::Ebpf);
    if exclusions.len() < 2 {
        return;
    }
    head(text, title, &exclusions.iter().map(u32::to_string).collect::<Vec<_>>());
    for by in By::ALL.into_iter().filter(|by| by.captures()) {
        text.push_str(&format!("| {} |", by.as_str()));
        text.extend(exclusions.iter().map(|n| cell(results.median(figure, by, *n), 2)));
        text.push('\n');
    }
}

fn pods(text: &mut String, results: &Results) {
    if results.median(Figure::OnePod, By::Ebpf, 0).is_none() {
        return;
    }
    let columns = ["one pod p50", "p99", "each of many p50", "p99"].map(str::to_owned);
    head(text, "Capturing pods by one process, microseconds", &columns);
    for by in By::ALL.into_iter().filter(|by| by.captures()) {
        text.push_str(&format!("| {} |", by.as_str()));
        for figure in [Figure::OnePod, Figure::EachPod] {
            for part in [0.5, 0.99] {
                text.push_str(&cell(results.quantile(figure, by, 0, part), 0));
            }
        }
        text.push('\n');
    }
}

/// All medians and goals.
pub fn to_json(results: &Results, machine: &str) -> Value {
    let figures = results.medians().map(|(figure, by, exclusions, median)| {
        json!({
            "figure": figure.as_str(),
            "by": by.as_str(),
            "exclusions": exclusions,
            "median": median,
        })
    });
    let goals = goals(results);
    let goals = goals.iter().map(|goal| {
        json!({
            "goal": goal.what,
            "unit": goal.unit,
            "limit": goal.limit,
            "measured": goal.measured,
            "reached": goal.reached(),
        })
    });
    json!({
        "machine": machine,
        "figures": figures.collect::<Vec<_>>(),
        "goals": goals.collect::<Vec<_>>(),
    })
}

/// How long connections take, by what is excluded.
pub fn charts(results: &Results) -> [Chart; 3] {
    let chart = |title: &str, figure| Chart {
        title: title.to_owned(),
        x: "excluded networks, and as many ports".to_owned(),
        y: "microseconds to connect".to_owned(),
        lines: By::ALL
            .into_iter()
            .filter(|by| *by != By::Loaded)
            .map(|by| {
                let known = results.exclusions(figure, by).into_iter();
                let value = |n| results.median(figure, by, n).map(|y| (f64::from(n), y));
                let mut points: Vec<(f64, f64)> = known.filter_map(value).collect();
                let last = results.exclusions(figure, By::Ebpf).last().copied();
                if let ([(_, only)], Some(last)) = (points.as_slice(), last) {
                    points.push((f64::from(last), *only));
                }
                Line { name: by.as_str().to_owned(), points }
            })
            .collect(),
    };
    [
        chart("Outbound, median", Figure::Median(Way::Out)),
        chart("Outbound, 99th percentile", Figure::Slowest(Way::Out)),
        chart("Inbound, median", Figure::Median(Way::In)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mk_results(ebpf: f64) -> Results {
        let mut results = Results::default();
        for (by, p50) in [(By::Nothing, 10.0), (By::Ebpf, ebpf), (By::Iptables, 14.0)] {
            for way in [Way::Out, Way::In] {
                results.add(Figure::Median(way), by, 0, p50);
                results.add(Figure::Slowest(way), by, 0, 2.0 * p50);
            }
            results.add(Figure::Throughput, by, 0, 1000.0 / p50);
            results.add(Figure::OnePod, by, 0, 15.0 * p50);
            results.add(Figure::EachPod, by, 0, 15.0 * p50);
        }
        results.add(Figure::Median(Way::Out), By::Ebpf, 10_000, 1.03 * ebpf);
        results
    }

    fn reached(ebpf: f64) -> Vec<bool> {
        goals(&mk_results(ebpf)).iter().map(Goal::reached).collect()
    }

    #[test]
    fn each_goal_can_be_missed() {
        assert_eq!(reached(10.1), [true; 8]);
        assert_eq!(reached(10.95), [true, false, true, true, true, true, true, false]);
        assert_eq!(reached(15.0), [false, false, false, false, true, false, false, false]);
        assert!(goals(&Results::default()).is_empty());
        let text = to_markdown(&mk_results(15.0), "a machine");
        assert!(
            text.contains(
                "- NOT reached: outbound connect p50 over no capture: 5.00 us (at most 1.00)\n"
            ),
            "{text}"
        );
        assert!(text.contains("\n| eBPF | 15.00 | 30.00 | | |\n"), "{text}");
        assert!(text.contains("\n| eBPF | 15.00 | 15.45 |\n"), "{text}");
    }

    #[test]
    fn every_capture_has_a_line() {
        for chart in charts(&mk_results(11.0)) {
            assert_eq!(chart.lines.len(), 4);
        }
        let json = to_json(&mk_results(11.0), "a machine");
        assert_eq!(json["goals"][0]["reached"], true);
        assert_eq!(json["figures"][0]["figure"], "outbound_p50_us");
    }
}
