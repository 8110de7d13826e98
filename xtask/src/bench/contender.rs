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

/// A text per family, in the order of [`Families::each`].
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Rules {
    per_family: Vec<(Family, String)>,
}

/// One state of a pod, in two forms.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct State {
    /// As `millrace dump --from-config` writes it, for the floor to restore.
    pub text: Rules,
    /// As `-save` prints it once it is there, for every contender to be compared with.
    pub saved: Rules,
}

/// The rules that the operations lead to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Goal {
    /// After a first apply and a no-op.
    pub captured: State,
    /// After a change.
    pub changed: State,
}

/// Someone who can do the operations.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Contender {
    /// One plain restore per family: no thought, no look, no check.
    Floor,
    /// An empty static program: what it takes to start anything at all.
    Nothing {
        /// The program.
        path: String,
    },
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
            Self::Nothing { .. } => "nothing",
            Self::Tool { name, .. } => name,
        }
    }

    /// The programs that do the operation of `case`.
    pub fn steps(&self, case: Case, goal: &Goal) -> Vec<Step> {
        match self {
            Self::Floor => floor(case, goal),
            Self::Nothing { path } => {
                vec![Step { argv: vec![path.clone()], stdin: String::new() }]
            }
            Self::Tool { path, .. } => {
                let argv = std::iter::once(path.clone()).chain(tool_args(case)).collect();
                vec![Step { argv, stdin: String::new() }]
            }
        }
    }

    /// How many of the `started` processes of its steps it answers for: those a tool starts
    /// besides itself, and for the floor the restores themselves.
    pub fn processes(&self, steps: usize, started: usize) -> usize {
        match self {
            Self::Floor => steps + started,
            Self::Nothing { .. } | Self::Tool { .. } => started,
        }
    }
}

/// The command line by which Millrace prints the rules of one family that a case leads to.
pub fn dump_args(case: Case, family: Family) -> Vec<String> {
    let name = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    let mut args = ["dump", "--from-config"].map(str::to_owned).to_vec();
    if !case.variant.is_native() || case.families == Families::V4 {
        args.extend(["--family".to_owned(), name.to_owned()]);
    }
    if case.variant == Variant::Own {
        args.extend(["--backend", "nftables", "--exclude-inbound-ports"].map(str::to_owned));
        args.push(excluded(case).to_owned());
        return args;
    }
    args.push("--".to_owned());
    args.extend(tool_args(case));
    args
}

/// The inbound ports that are left alone.
fn excluded(case: Case) -> &'static str {
    if case.operation == Operation::Change { EXCLUDED_AND_ONE } else { EXCLUDED }
}

/// The arguments of a tool for a case.
fn tool_args(case: Case) -> Vec<String> {
    if case.variant == Variant::Own {
        let apply = ["apply", "--backend", "nftables", "--exclude-inbound-ports", excluded(case)];
        let words = if case.operation == Operation::Cleanup { &["cleanup"][..] } else { &apply };
        return words.iter().map(|word| (*word).to_owned()).collect();
    }
    let mut argv = SIDECAR.map(str::to_owned).to_vec();
    let mut push = |word: &str| argv.push(word.to_owned());
    push("-d");
    push(excluded(case));
    match case.variant {
        Variant::Native => push("--native-nftables"),
        // What a run chooses by itself.
        Variant::Netlink | Variant::Own => {}
        Variant::Nft | Variant::Legacy => {
            push("--force-iptables-binary");
            push(case.variant.as_str());
        }
    }
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
        Operation::FirstApply | Operation::NoOp => &goal.captured.text,
        Operation::Change => &goal.changed.text,
        Operation::Cleanup => &goal.captured.text.emptied(case.variant),
    };
    rules.restores(case.variant)
}

impl Rules {
    /// Input for a restore, without its comments.
    pub fn restorable(texts: Vec<(Family, String)>) -> Self {
        Self::new(texts, |text| {
            text.split_inclusive('\n').filter(|line| !line.starts_with('#')).collect()
        })
    }

    /// What `-save` printed, reduced to what can be compared.
    pub fn saved(dumps: Vec<(Family, String)>, variant: Variant) -> Self {
        match variant {
            Variant::Native | Variant::Own => Self::new(dumps, str::to_owned),
            _ => Self::new(dumps, used_tables),
        }
    }

    fn new(texts: Vec<(Family, String)>, reduce: impl Fn(&str) -> String) -> Self {
        let texts = texts.into_iter().map(|(family, text)| (family, reduce(&text)));
        Self { per_family: texts.collect() }
    }

    /// One restore per family.
    fn restores(&self, variant: Variant) -> Vec<Step> {
        self.per_family
            .iter()
            .map(|(family, text)| Step { argv: family.restore(variant), stdin: text.clone() })
            .collect()
    }

    /// The same tables with neither rules nor chains of one's own.
    fn emptied(&self, variant: Variant) -> Self {
        let is_frame = |line: &&str| line.starts_with('*') || *line == "COMMIT\n";
        let empty = |text: &str| -> String {
            if variant.is_native() {
                let tables = text.split_inclusive('\n').filter(|l| l.starts_with("add table "));
                return tables.map(|line| line.replacen("add", "delete", 1)).collect();
            }
            text.split_inclusive('\n').filter(is_frame).collect()
        };
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
        lines.filter(|line| line.starts_with("-A ") || line.contains(" counter ")).count()
    }
}

/// Keeps the tables of a dump that hold a rule or a user-defined chain, without counters,
/// comments and the policies of the built-in chains.
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
        let text = "# Why\n* nat\n-N ISTIO_OUTPUT\n-A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n".to_owned();
        let both = vec![(Family::V4, text.clone()), (Family::V6, text.clone())];
        let captured = State { text: Rules::restorable(both), saved: Rules::default() };
        let changed = vec![(Family::V4, text.replace("OUTPUT", "INPUT"))];
        let changed = State { text: Rules::restorable(changed), saved: Rules::default() };
        Goal { captured, changed }
    }

    #[test]
    fn only_tables_with_contents_are_compared() {
        let rules = Rules::saved(vec![(Family::V4, DUMP.to_owned())], Variant::Nft);
        assert_eq!(
            rules.per_family[0].1,
            "*nat\n:ISTIO_OUTPUT - [0:0]\n-A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n"
        );
        assert_eq!((rules.len(), rules.is_empty()), (1, false));
        let unused = "*nat\n:OUTPUT ACCEPT [1:2]\nCOMMIT\n".to_owned();
        assert!(Rules::saved(vec![(Family::V4, unused)], Variant::Nft).is_empty());
    }

    #[test]
    fn the_floor_restores_each_family_once() {
        let case = mk_case(Operation::FirstApply, Families::Dual);
        let steps = Contender::Floor.steps(case, &mk_goal());
        let programs: Vec<_> = steps.iter().map(|step| step.argv.as_slice()).collect();
        assert_eq!(programs, [["iptables-nft-restore"], ["ip6tables-nft-restore"]]);
        assert_eq!(steps[1].stdin, "* nat\n-N ISTIO_OUTPUT\n-A OUTPUT -j ISTIO_OUTPUT\nCOMMIT\n");
        assert_eq!(Contender::Floor.processes(2, 0), 2);
    }

    #[test]
    fn the_floor_cleans_up_by_restoring_nothing() {
        let case = mk_case(Operation::Cleanup, Families::V4);
        let steps = Contender::Floor.steps(case, &mk_goal());
        assert_eq!(steps[0].stdin, "* nat\nCOMMIT\n");
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
        let dump = dump_args(mk_case(Operation::NoOp, Families::Dual), Family::V6);
        assert_eq!(
            dump[..6],
            ["dump", "--from-config", "--family", "ipv6", "--", "istio-iptables"]
        );
    }
}
