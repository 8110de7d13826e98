//! Who is measured: the floor, Millrace and a reference, and the programs each one runs.

use super::case::{Case, Families, Family, Operation, Variant};
use super::measure::Step;

/// The flags of a default sidecar, without the inbound exclusions.
const SIDECAR: [&str; 15] = [
    "istio-iptables",
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-m",
    "REDIRECT",
    "-i",
    "*",
    "-x",
    "",
    "-b",
    "*",
];
const EXCLUDED: &str = "15090,15021,15020";
const EXCLUDED_AND_ONE: &str = "15090,15021,15020,15099";

/// The rules of one case's families, as `-save` prints them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rules {
    /// A text per family, in the order of [`Families::each`].
    pub per_family: Vec<(Family, String)>,
}

/// The rules that the operations lead to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Goal {
    /// After a first apply and a no-op.
    pub captured: Rules,
    /// After a change.
    pub changed: Rules,
}

/// Someone who can do the operations.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Contender {
    /// One plain restore per family: no thought, no look, no check.
    Floor,
    /// A program with the command line of `istio-iptables`.
    Tool {
        /// The name in the report.
        name: String,
        /// The program.
        path: String,
    },
}

impl Contender {
    /// The name in the report.
    pub fn name(&self) -> &str {
        match self {
            Self::Floor => "floor",
            Self::Tool { name, .. } => name,
        }
    }

    /// The programs that do the operation of `case`.
    pub fn steps(&self, case: Case, goal: &Goal) -> Vec<Step> {
        match self {
            Self::Floor => floor(case, goal),
            Self::Tool { path, .. } => vec![Step { argv: argv(path, case), stdin: String::new() }],
        }
    }

    /// How many of the `started` processes of its steps it answers for: those a tool starts
    /// besides itself, and for the floor the restores themselves.
    pub fn processes(&self, steps: usize, started: usize) -> usize {
        match self {
            Self::Floor => steps + started,
            Self::Tool { .. } => started,
        }
    }
}

/// The command line of a tool for a case.
fn argv(path: &str, case: Case) -> Vec<String> {
    let mut argv = vec![path.to_owned()];
    argv.extend(SIDECAR.map(str::to_owned));
    let excluded = if case.operation == Operation::Change { EXCLUDED_AND_ONE } else { EXCLUDED };
    let mut push = |word: &str| argv.push(word.to_owned());
    push("-d");
    push(excluded);
    push("--force-iptables-binary");
    push(case.variant.as_str());
    if case.families == Families::Dual {
        push("--dual-stack");
    }
    match case.operation {
        Operation::FirstApply | Operation::NoOp => {}
        Operation::Change => push("--reconcile"),
        Operation::Cleanup => push("--cleanup-only"),
    }
    argv
}

/// Plain restores, which replace whole tables. To clean up, the same tables without rules.
fn floor(case: Case, goal: &Goal) -> Vec<Step> {
    let rules = match case.operation {
        Operation::FirstApply | Operation::NoOp => &goal.captured,
        Operation::Change => &goal.changed,
        Operation::Cleanup => &goal.captured.emptied(),
    };
    rules.restores(case.variant)
}

impl Rules {
    /// The text to restore: of a `-save` dump the tables that hold rules.
    pub fn new(dumps: Vec<(Family, String)>) -> Self {
        let per_family =
            dumps.into_iter().map(|(family, dump)| (family, used_tables(&dump))).collect();
        Self { per_family }
    }

    /// One restore per family.
    fn restores(&self, variant: Variant) -> Vec<Step> {
        self.per_family
            .iter()
            .map(|(family, text)| {
                let argv = vec![family.program(variant, "restore")];
                Step { argv, stdin: text.clone() }
            })
            .collect()
    }

    /// The same tables with neither rules nor chains of one's own.
    fn emptied(&self) -> Self {
        let is_frame = |line: &&str| line.starts_with('*') || *line == "COMMIT\n";
        let empty = |text: &str| text.split_inclusive('\n').filter(is_frame).collect();
        let per_family = self.per_family.iter().map(|(family, text)| (*family, empty(text)));
        Self { per_family: per_family.collect() }
    }

    /// No family holds a rule or a chain of someone's own.
    pub fn is_empty(&self) -> bool {
        self.per_family.iter().all(|(_, text)| text.is_empty())
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        let lines = self.per_family.iter().flat_map(|(_, text)| text.lines());
        lines.filter(|line| line.starts_with("-A ")).count()
    }
}

/// Keeps the tables of a dump that hold a rule or a user-defined chain, without counters and
/// without the policies of the built-in chains: setting a policy with its counters makes the
/// nft variant's restore several times slower, and that would be no floor.
fn used_tables(dump: &str) -> String {
    let mut kept = String::new();
    let mut table: Vec<String> = Vec::new();
    for line in dump.lines() {
        if line.starts_with('*') {
            table = vec![format!("{line}\n")];
        } else if line == "COMMIT" && table.len() > 1 {
            kept.extend(table.drain(..));
            kept.push_str("COMMIT\n");
        } else if line.starts_with("-A ") {
            table.push(format!("{line}\n"));
        } else if let Some((chain, _)) = line.split_once(" - [") {
            table.push(format!("{chain} - [0:0]\n"));
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    const DUMP: &str = "# Generated\n*raw\n:PREROUTING ACCEPT [5:60]\nCOMMIT\n# Completed\n\
                        *nat\n:OUTPUT ACCEPT [1:60]\n:ISTIO_OUTPUT - [0:0]\n\
                        -A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n";

    fn mk_case(operation: Operation, families: Families) -> Case {
        Case { variant: Variant::Nft, families, operation }
    }

    fn mk_goal() -> Goal {
        let captured =
            Rules::new(vec![(Family::V4, DUMP.to_owned()), (Family::V6, DUMP.to_owned())]);
        let changed = Rules::new(vec![(Family::V4, DUMP.replace("OUTPUT", "INPUT"))]);
        Goal { captured, changed }
    }

    #[test]
    fn only_tables_with_contents_are_kept() {
        let rules = Rules::new(vec![(Family::V4, DUMP.to_owned())]);
        assert_eq!(
            rules.per_family[0].1,
            "*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n"
        );
        assert_eq!((rules.len(), rules.is_empty()), (1, false));
        assert!(
            Rules::new(vec![(Family::V4, "*nat\n:OUTPUT ACCEPT [1:2]\nCOMMIT\n".to_owned())])
                .is_empty()
        );
    }

    #[test]
    fn the_floor_restores_each_family_once() {
        let case = mk_case(Operation::FirstApply, Families::Dual);
        let steps = Contender::Floor.steps(case, &mk_goal());
        let programs: Vec<_> = steps.iter().map(|step| step.argv.as_slice()).collect();
        assert_eq!(programs, [["iptables-nft-restore"], ["ip6tables-nft-restore"]]);
        assert_eq!(Contender::Floor.processes(2, 0), 2);
    }

    #[test]
    fn the_floor_cleans_up_by_restoring_nothing() {
        let case = mk_case(Operation::Cleanup, Families::V4);
        let steps = Contender::Floor.steps(case, &mk_goal());
        assert_eq!(steps[0].stdin, "*nat\nCOMMIT\n");
    }

    #[test]
    fn a_tool_gets_the_sidecars_flags() {
        let tool = Contender::Tool { name: "millrace".to_owned(), path: "/m".to_owned() };
        let argv = |operation, families| {
            tool.steps(mk_case(operation, families), &mk_goal())[0].argv[17..].join(" ")
        };
        let forced = "--force-iptables-binary nft";
        assert_eq!(argv(Operation::NoOp, Families::V4), format!("{EXCLUDED} {forced}"));
        assert_eq!(
            argv(Operation::Change, Families::Dual),
            format!("{EXCLUDED_AND_ONE} {forced} --dual-stack --reconcile")
        );
        assert_eq!(
            argv(Operation::Cleanup, Families::V4),
            format!("{EXCLUDED} {forced} --cleanup-only")
        );
        assert_eq!(tool.processes(1, 4), 4);
    }
}
