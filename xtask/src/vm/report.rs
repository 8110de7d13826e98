//! What came of the suites in a machine.

use std::fs;
use std::path::Path;
use std::time::Instant;

use super::guest;
use super::machine::End;

/// How a suite ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Fate {
    /// It did not come to its end.
    Missing,
    /// It ended with this exit code.
    Ended(i32),
}

/// A suite on a kernel.
#[derive(Clone, Debug)]
struct Suite {
    name: String,
    fate: Fate,
    passed: usize,
    failed: usize,
    seconds: u64,
}

/// All suites on a kernel.
#[derive(Clone, Debug)]
pub(super) struct Report {
    /// The kernel's version, as it was asked for.
    pub(super) kernel: String,
    /// Why the machine did not come to its end.
    pub(super) broken: Option<String>,
    suites: Vec<Suite>,
    is_done: bool,
    /// What the running suite has printed.
    said: String,
    since: Instant,
}

impl Report {
    /// Nothing has ended yet.
    pub(super) fn new(kernel: &str, suites: &[&str]) -> Self {
        let suite = |name: &&str| Suite {
            name: (*name).to_owned(),
            fate: Fate::Missing,
            passed: 0,
            failed: 0,
            seconds: 0,
        };
        Self {
            kernel: kernel.to_owned(),
            broken: None,
            suites: suites.iter().map(suite).collect(),
            is_done: false,
            said: String::new(),
            since: Instant::now(),
        }
    }

    /// Take a line of the machine's results. Gives what is to be told, when a suite has ended.
    pub(super) fn take(&mut self, line: &str) -> Option<String> {
        let Some(words) = guest::marked(line) else {
            self.said.push_str(line);
            self.said.push('\n');
            return None;
        };
        match *words.as_slice() {
            ["kernel", version] if version != self.kernel => {
                self.broken = Some(format!("the kernel that came up is {version}"));
            }
            ["begin", name] => {
                self.said = format!("     Running tests/{name}.rs (Linux {})\n", self.kernel);
                self.since = Instant::now();
            }
            ["end", name, code] => {
                let said = std::mem::take(&mut self.said);
                let seconds = self.since.elapsed().as_secs();
                let suite = self.suites.iter_mut().find(|suite| suite.name == name)?;
                let (passed, failed) = counts(&said);
                let fate = code.parse().map_or(Fate::Missing, Fate::Ended);
                *suite = Suite { name: name.to_owned(), fate, passed, failed, seconds };
                return Some(said.trim_end().to_owned() + "\n\n");
            }
            ["done"] => self.is_done = true,
            _ => {}
        }
        None
    }

    /// The machine has ended. If it did so before its time, the end of its console says why.
    pub(super) fn end(&mut self, end: &End, console: &Path) {
        let why = match end {
            _ if self.is_done && self.broken.is_none() => return,
            End::Off => "the machine went off before its work was done".to_owned(),
            End::Late(limit) => format!("it was ended after {} minutes", limit.as_secs() / 60),
            End::Failed(code) => format!("QEMU ended with {code:?}"),
        };
        let why = self.broken.take().unwrap_or(why);
        let text = fs::read(console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let last: Vec<&str> = text.lines().rev().take(30).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        self.broken = Some(format!("{why}\n{}{}", self.said, last.join("\n")));
    }

    /// Did every suite pass?
    pub(super) fn is_good(&self) -> bool {
        self.broken.is_none() && self.suites.iter().all(Suite::is_good)
    }
}

impl Suite {
    /// A suite that ran no test has shown nothing.
    const fn is_good(&self) -> bool {
        matches!(self.fate, Fate::Ended(0)) && self.passed > 0 && self.failed == 0
    }
}

/// The suite that a line says to begin.
pub(super) fn begins(line: &str) -> Option<&str> {
    match guest::marked(line)?.as_slice() {
        ["begin", name] => Some(*name),
        _ => None,
    }
}

/// How many tests passed and failed, by the suite's own last words.
fn counts(said: &str) -> (usize, usize) {
    let line = said.lines().rev().find_map(|line| line.strip_prefix("test result: "));
    let count = |what: &str| {
        let number = line?.split([';', '.']).find_map(|part| part.trim().strip_suffix(what));
        number.and_then(|number| number.trim().parse().ok())
    };
    (count(" passed").unwrap_or_default(), count(" failed").unwrap_or_default())
}

/// A line for each suite and kernel, and the sum.
pub(super) fn table(reports: &[Report]) -> String {
    let mut text = String::new();
    let (mut passed, mut failed) = (0, 0);
    for report in reports {
        for suite in &report.suites {
            let verdict = match suite.fate {
                Fate::Missing => "did not end",
                Fate::Ended(_) if suite.is_good() => "ok",
                Fate::Ended(_) if suite.passed + suite.failed == 0 => "ran no test",
                Fate::Ended(_) => "FAILED",
            };
            // A suite that was cut off has failed as one.
            passed += suite.passed;
            failed += suite.failed + usize::from(!suite.is_good() && suite.failed == 0);
            text += &format!(
                "Linux {}: {} {verdict}: {} passed, {} failed, {} s\n",
                report.kernel, suite.name, suite.passed, suite.failed, suite.seconds
            );
        }
    }
    text + &format!("\n{passed} passed, {failed} failed\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULT: &str = "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 1 filtered out; finished in 3.1s";

    fn take(report: &mut Report, lines: &[&str]) -> Vec<String> {
        lines.iter().filter_map(|line| report.take(line)).collect()
    }

    #[test]
    fn a_suite_is_told_at_its_end() {
        let mut report = Report::new("6.1", &["traffic"]);
        let begin = ["\u{1}vm kernel 6.1", "\u{1}vm begin traffic", "running 12 tests", RESULT];
        assert_eq!(take(&mut report, &begin), [""; 0]);
        let told = take(&mut report, &["\u{1}vm end traffic 0"]);
        assert!(told[0].starts_with("     Running tests/traffic.rs (Linux 6.1)\nrunning 12"));
        take(&mut report, &["\u{1}vm done"]);
        report.end(&End::Off, Path::new("/nowhere"));
        assert!(report.is_good());
        let table = table(&[report]);
        assert!(table.contains("Linux 6.1: traffic ok: 12 passed, 0 failed"), "{table}");
        assert!(table.ends_with("\n12 passed, 0 failed\n"), "{table}");
    }

    #[test]
    fn a_machine_that_dies_has_not_passed() {
        let mut report = Report::new("6.1", &["traffic", "preflight"]);
        let lines = ["\u{1}vm begin traffic", RESULT, "\u{1}vm end traffic 0"];
        take(&mut report, &lines);
        take(&mut report, &["\u{1}vm begin preflight", "thread panicked"]);
        report.end(&End::Off, Path::new("/nowhere"));
        assert!(!report.is_good());
        assert!(report.broken.as_ref().unwrap().contains("thread panicked"));
        assert!(table(&[report]).ends_with("\n12 passed, 1 failed\n"));
    }

    #[test]
    fn failures_other_kernels_and_no_tests_are_no_success() {
        let nothing = RESULT.replace("12 passed", "0 passed");
        let failed = RESULT.replace("ok. 12 passed; 0", "FAILED. 11 passed; 1");
        for (line, code) in [(nothing.as_str(), "0"), (failed.as_str(), "101"), (RESULT, "139")] {
            let mut report = Report::new("6.1", &["traffic"]);
            let end = format!("\u{1}vm end traffic {code}");
            take(&mut report, &["\u{1}vm begin traffic", line, &end, "\u{1}vm done"]);
            assert!(!report.is_good(), "{line}");
        }
        let mut report = Report::new("6.1", &[]);
        take(&mut report, &["\u{1}vm kernel 6.18", "\u{1}vm done"]);
        report.end(&End::Off, Path::new("/nowhere"));
        assert!(report.broken.unwrap().contains("6.18"));
    }

    #[test]
    fn counts_are_the_suites_own() {
        assert_eq!(counts("test result: FAILED. 3 passed; 2 failed; 0 ignored"), (3, 2));
        assert_eq!(counts("nothing"), (0, 0));
    }
}
