//! The figures as a table or as JSON, and whether the goals are reached.

use serde_json::{Value, json};

use super::case::{Case, Families, Operation};
use super::stats::{Cost, Spread, millis};

const FLOOR: &str = "floor";
const MILLRACE: &str = "millrace";
const NOTHING: &str = "nothing";

/// One contender's figures in one case.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was done.
    pub case: Case,
    /// By whom.
    pub contender: String,
    /// What it cost.
    pub cost: Cost,
    /// How many processes it started.
    pub processes: usize,
}

/// All figures.
#[derive(Clone, Debug)]
pub struct Report {
    /// In the order they were measured.
    pub rows: Vec<Row>,
    runs: usize,
    machine: String,
}

/// A goal and what was measured for it.
#[derive(Clone, Debug, PartialEq)]
pub struct GoalResult {
    /// The goal in words.
    pub goal: &'static str,
    /// Per case: the figure, and whether it reaches the goal.
    pub measured: Vec<(Case, f64, bool)>,
}

impl GoalResult {
    /// It is reached in each case, and there is at least one.
    pub fn is_reached(&self) -> bool {
        !self.measured.is_empty() && self.measured.iter().all(|(_, _, reached)| *reached)
    }
}

impl Report {
    /// A report without rows.
    pub fn new(runs: usize, machine: String) -> Self {
        Self { rows: Vec::new(), runs, machine }
    }

    /// Are all goals reached in all measured cases?
    pub fn goals_reached(&self) -> bool {
        self.verdicts().iter().all(GoalResult::is_reached)
    }

    /// Each goal of the project against the figures; not those that concern nothing that was
    /// measured.
    pub fn verdicts(&self) -> Vec<GoalResult> {
        let mut all = self.all_verdicts();
        all.retain(|verdict| self.rows.is_empty() || !verdict.measured.is_empty());
        all
    }

    fn all_verdicts(&self) -> Vec<GoalResult> {
        let first = |row: &Row| row.case.operation == Operation::FirstApply;
        let both = |row: &Row| first(row) && row.case.families == Families::Dual;
        let no_op = |row: &Row| row.case.operation == Operation::NoOp;
        let processes = |row: &Row| Some(count(row.processes));
        let quick = |row: &Row| first(row) || no_op(row);
        let netlink = |row: &Row| quick(row) && row.case.variant.is_by_netlink();
        let native = |row: &Row| quick(row) && row.case.variant.is_native();
        vec![
            self.verdict(
                "first apply takes at most 2.5 times the floor",
                first,
                |row| self.ratio(row),
                |x| x <= 2.5,
            ),
            self.verdict(
                "a no-op takes less than the floor",
                no_op,
                |row| self.ratio(row),
                |x| x < 1.0,
            ),
            self.verdict(
                "a first apply of both families starts at most 4 processes",
                both,
                processes,
                |x| x <= 4.0,
            ),
            self.verdict("a no-op starts at most 2 processes", no_op, processes, |x| x <= 2.0),
            self.verdict(
                "first apply and no-op by netlink take at most 1.5 times as long as a program that \
                 does nothing",
                netlink,
                |row| self.in_units_of(row, NOTHING),
                |x| x <= 1.5,
            ),
            self.verdict(
                "first apply and no-op of native nftables take less than half of nft -f",
                native,
                |row| self.ratio(row),
                |x| x < 0.5,
            ),
            self.verdict("nothing by netlink starts a process", netlink, processes, |x| x == 0.0),
        ]
    }

    fn verdict(
        &self,
        goal: &'static str,
        concerns: impl Fn(&Row) -> bool,
        figure: impl Fn(&Row) -> Option<f64>,
        reaches: impl Fn(f64) -> bool,
    ) -> GoalResult {
        let rows = self.rows.iter().filter(|row| row.contender == MILLRACE && concerns(row));
        let measured = rows
            .filter_map(|row| figure(row).map(|figure| (row.case, figure, reaches(figure))))
            .collect();
        GoalResult { goal, measured }
    }

    /// The row's median wall time in floors of the same case.
    fn ratio(&self, row: &Row) -> Option<f64> {
        self.in_units_of(row, FLOOR)
    }

    /// The row's median wall time in those of another contender in the same case.
    fn in_units_of(&self, row: &Row, contender: &str) -> Option<f64> {
        let is_unit = |other: &&Row| other.contender == contender && other.case == row.case;
        let unit = self.rows.iter().find(is_unit)?.cost.wall.median.as_secs_f64();
        (unit > 0.0).then(|| row.cost.wall.median.as_secs_f64() / unit)
    }

    /// As a JSON object; times are in milliseconds.
    pub fn to_json(&self) -> Value {
        let rows: Vec<_> = self.rows.iter().map(|row| self.row_to_json(row)).collect();
        let goals: Vec<_> = self.verdicts().iter().map(verdict_to_json).collect();
        json!({ "machine": self.machine, "runs": self.runs, "rows": rows, "goals": goals })
    }

    fn row_to_json(&self, row: &Row) -> Value {
        json!({
            "case": row.case.to_json(),
            "contender": row.contender,
            "wall_ms": row.cost.wall.to_json(),
            "cpu_ms": row.cost.cpu.to_json(),
            "processes": row.processes,
            "floors": self.ratio(row),
            "nothings": self.in_units_of(row, NOTHING),
        })
    }

    /// As a table for people.
    pub fn to_text(&self) -> String {
        let mut text = format!(
            "{}\nMedian (p90) of {} runs in ms. The floor is a plain restore of the same rules;\n\
             \"nothing\" is an empty static program.\n",
            self.machine, self.runs
        );
        let mut last = None;
        for row in &self.rows {
            if last != Some(row.case) {
                let case = row.case.to_string();
                push_line(&mut text, &["", "", "", "", "", ""]);
                push_line(&mut text, &[&case, "", "wall", "cpu", "processes", "x floor"]);
                last = Some(row.case);
            }
            let ratio = self.ratio(row).map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            let wall = spread(row.cost.wall);
            let cpu = spread(row.cost.cpu);
            let processes = row.processes.to_string();
            push_line(&mut text, &["", &row.contender, &wall, &cpu, &processes, &ratio]);
        }
        text.push('\n');
        for verdict in self.verdicts() {
            let result = if verdict.is_reached() { "reached" } else { "NOT reached" };
            let figures: Vec<_> = verdict
                .measured
                .iter()
                .map(|(case, figure, reached)| {
                    let mark = if *reached { "" } else { " (!)" };
                    format!("{case} {}{mark}", short(*figure))
                })
                .collect();
            text.extend([result, ": ", verdict.goal, ": ", &figures.join(", "), "\n"]);
        }
        text
    }
}

fn verdict_to_json(verdict: &GoalResult) -> Value {
    let measured: Vec<_> = verdict
        .measured
        .iter()
        .map(|(case, figure, reached)| {
            json!({ "case": case.to_json(), "figure": figure, "reached": reached })
        })
        .collect();
    json!({ "goal": verdict.goal, "reached": verdict.is_reached(), "measured": measured })
}

fn push_line(text: &mut String, cells: &[&str; 6]) {
    let [case, contender, wall, cpu, processes, ratio] = cells;
    let line = format!("{case:<24}{contender:<11}{wall:>18}{cpu:>18}{processes:>11}{ratio:>9}");
    text.push_str(line.trim_end());
    text.push('\n');
}

fn spread(spread: Spread) -> String {
    format!("{:.2} ({:.2})", millis(spread.median), millis(spread.p90))
}

/// Two digits after the point where there is a fraction.
fn short(figure: f64) -> String {
    if figure.fract() == 0.0 { format!("{figure:.0}") } else { format!("{figure:.2}") }
}

fn count(processes: usize) -> f64 {
    u32::try_from(processes).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::case::Variant;
    use super::super::measure::Sample;
    use super::*;

    fn mk_row(operation: Operation, contender: &str, millis: u64, processes: usize) -> Row {
        let case = Case { variant: Variant::Nft, families: Families::Dual, operation };
        let sample =
            Sample { wall: Duration::from_millis(millis), cpu: Duration::from_millis(millis) };
        let cost = Cost::of(&[sample]).unwrap();
        Row { case, contender: contender.to_owned(), cost, processes }
    }

    /// Wall times of Millrace in a first apply and a no-op, over a floor of 10 ms.
    fn mk_report(first: (u64, usize), no_op: (u64, usize)) -> Report {
        let mut report = Report::new(30, "a machine".to_owned());
        report.rows = vec![
            mk_row(Operation::FirstApply, FLOOR, 10, 2),
            mk_row(Operation::FirstApply, MILLRACE, first.0, first.1),
            mk_row(Operation::FirstApply, "reference", 90, 20),
            mk_row(Operation::NoOp, FLOOR, 10, 2),
            mk_row(Operation::NoOp, MILLRACE, no_op.0, no_op.1),
        ];
        report
    }

    fn reached(report: &Report) -> Vec<bool> {
        report.verdicts().iter().map(GoalResult::is_reached).collect()
    }

    #[test]
    fn each_goal_can_be_missed() {
        assert_eq!(reached(&mk_report((25, 4), (9, 2))), [true; 4]);
        assert_eq!(reached(&mk_report((26, 4), (9, 2))), [false, true, true, true]);
        assert_eq!(reached(&mk_report((25, 4), (10, 2))), [true, false, true, true]);
        assert_eq!(reached(&mk_report((25, 5), (9, 2))), [true, true, false, true]);
        assert_eq!(reached(&mk_report((25, 4), (9, 3))), [true, true, true, false]);
        assert!(!mk_report((26, 4), (9, 2)).goals_reached());
    }

    #[test]
    fn goals_of_netlink_are_held_against_nothing_and_nft() {
        let reached = |millis, processes| {
            let mut report = Report::new(30, "a machine".to_owned());
            report.rows = vec![
                mk_row(Operation::FirstApply, FLOOR, 10, 1),
                mk_row(Operation::FirstApply, MILLRACE, millis, processes),
                mk_row(Operation::FirstApply, NOTHING, 4, 0),
            ];
            for row in &mut report.rows {
                row.case.variant = Variant::Own;
            }
            reached(&report)[2..].to_vec()
        };
        assert_eq!(reached(4, 0), [true, true, true]);
        assert_eq!(reached(6, 0), [true, false, true]);
        assert_eq!(reached(7, 0), [false, false, true]);
        assert_eq!(reached(4, 1), [true, true, false]);
    }

    #[test]
    fn a_goal_without_figures_is_not_reached() {
        assert_eq!(reached(&Report::new(30, String::new())), [false; 7]);
    }

    #[test]
    fn the_table_says_what_was_missed() {
        let text = mk_report((26, 4), (9, 2)).to_text();
        assert!(text.contains("NOT reached: first apply takes at most 2.5 times the floor: first apply dual nft 2.60 (!)"), "{text}");
        assert!(
            text.contains("\nreached: a no-op takes less than the floor: no-op dual nft 0.90"),
            "{text}"
        );
        assert!(
            text.lines().any(|line| line.split_whitespace().collect::<Vec<_>>()
                == ["reference", "90.00", "(90.00)", "90.00", "(90.00)", "20", "9.00"]),
            "{text}"
        );
    }

    #[test]
    fn the_json_has_the_same_figures() {
        let json = mk_report((25, 4), (9, 2)).to_json();
        assert_eq!(json["rows"][1]["floors"], 2.5);
        assert_eq!(json["rows"][1]["case"]["operation"], "first apply");
        assert_eq!(json["goals"][0]["reached"], true);
        assert_eq!(json["goals"][2]["measured"][0]["figure"], 4.0);
    }
}
