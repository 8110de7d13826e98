//! The edit of one table of iptables: what turns what is there of ours into what is wanted, as steps
//! and as input for `iptables-restore --noflush`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::target::{Body, TableState, same_rules};
use crate::ruleset::Table;
use crate::value::Family;

/// Whether anything of ours has to change.
pub(super) fn differs(found: &TableState, wanted: &TableState) -> bool {
    let chains: BTreeSet<&String> = found.chains.keys().chain(wanted.chains.keys()).collect();
    let hooked_rules: BTreeSet<&String> =
        found.hooked_rules.keys().chain(wanted.hooked_rules.keys()).collect();
    chains.into_iter().any(|c| chain_differs(found, wanted, c))
        || hooked_rules.into_iter().any(|c| hooked_rules_differ(found, wanted, c))
}

fn chain_differs(found: &TableState, wanted: &TableState, chain: &str) -> bool {
    match (found.chains.get(chain), wanted.chains.get(chain)) {
        (Some(a), Some(b)) => !same_rules(a.iter(), b.iter()),
        (None, None) => false,
        _ => true,
    }
}

fn hooked_rules_differ(found: &TableState, wanted: &TableState, chain: &str) -> bool {
    let list = |state: &TableState| -> Vec<Body> {
        state.hooked_rules.get(chain).into_iter().flatten().map(|g| g.body.clone()).collect()
    };
    !same_rules(list(found).iter(), list(wanted).iter())
}

/// How an edit is made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Style {
    /// Write everything, changed or not.
    pub(super) everything: bool,
}

/// A step of an edit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TableStep {
    /// Make a chain of ours, or empty it when it is there.
    Declare {
        /// By name, as iptables-restore has it.
        chain: String,
    },
    /// Write a rule at the end of a chain.
    Append {
        /// By name, as iptables-restore has it.
        chain: String,
        /// As text, and as matches and target where these are known.
        rule: Body,
    },
    /// Write a rule in front of others.
    Insert {
        /// By name, as iptables-restore has it.
        chain: String,
        /// Its position, counted from 1.
        position: usize,
        /// The kernel's number of the rule behind it, when it was asked by netlink; none when that is
        /// the end.
        before: Option<u64>,
        /// As text, and as matches and target where these are known.
        rule: Body,
    },
    /// Take a rule of ours out of a chain of others.
    Delete {
        /// By name, as iptables-restore has it.
        chain: String,
        /// Its position when the steps before this one are done, counted from 1.
        position: usize,
        /// The rule as it is there: deleted by its text, or by its position.
        rule: Body,
    },
    /// Remove a chain of ours, which is empty and which nothing jumps to.
    Remove {
        /// By name, as iptables-restore has it.
        chain: String,
    },
}

/// What turns what is there of ours in one table into what is wanted, and touches nothing else. It
/// happens as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableEdit {
    /// Decides which of `iptables-restore` and `ip6tables-restore` takes it.
    pub family: Family,
    /// Its changes are committed together.
    pub table: Table,
    /// In the order in which they are made: positions count what earlier steps did.
    pub steps: Vec<TableStep>,
}

impl TableEdit {
    /// Input for `iptables-restore --noflush`, with the rules' counters if they are wanted.
    pub fn text(&self, counters: bool) -> String {
        let mut text = format!("*{}\n", self.table);
        for step in &self.steps {
            match step {
                // Declaring a chain makes it, or empties it when it is there.
                TableStep::Declare { chain } => line(&mut text, format_args!(":{chain} - [0:0]")),
                TableStep::Append { chain, rule } => {
                    written(&mut text, rule, counters, format_args!("-A {chain}"));
                }
                TableStep::Insert { chain, position, rule, .. } => {
                    written(&mut text, rule, counters, format_args!("-I {chain} {position}"));
                }
                TableStep::Delete { chain, rule, .. } if rule.has_text() => {
                    line(&mut text, format_args!("-D {chain} {}", rule.text));
                }
                TableStep::Delete { chain, position, .. } => {
                    line(&mut text, format_args!("-D {chain} {position}"));
                }
                TableStep::Remove { chain } => line(&mut text, format_args!("-X {chain}")),
            }
        }
        text.push_str("COMMIT\n");
        text
    }
}

/// The edit of one table, or `None` when nothing has to change.
pub(super) fn edit(
    family: Family,
    table: Table,
    found: &TableState,
    wanted: &TableState,
    style: Style,
) -> Option<TableEdit> {
    if !style.everything && !differs(found, wanted) {
        return None;
    }
    let mut steps = Vec::new();
    let changed: Vec<&String> = wanted
        .chains
        .keys()
        .filter(|c| style.everything || chain_differs(found, wanted, c))
        .collect();
    let obsolete: Vec<&String> =
        found.chains.keys().filter(|c| !wanted.chains.contains_key(*c)).collect();
    let declared = changed.iter().chain(&obsolete).map(|c| (*c).clone());
    steps.extend(declared.map(|chain| TableStep::Declare { chain }));
    for chain in &changed {
        let append =
            |rule: &Body| TableStep::Append { chain: (*chain).clone(), rule: rule.clone() };
        steps.extend(wanted.chains[*chain].iter().map(append));
    }
    let hosts: BTreeSet<&String> =
        found.hooked_rules.keys().chain(wanted.hooked_rules.keys()).collect();
    for chain in hosts {
        if style.everything || hooked_rules_differ(found, wanted, chain) {
            replace_guests(&mut steps, chain, found, wanted);
        }
    }
    steps.extend(obsolete.into_iter().map(|chain| TableStep::Remove { chain: chain.clone() }));
    Some(TableEdit { family, table, steps })
}

/// Take our rules out of a chain of others and put the new ones in. Within one commit, so no
/// packet sees the chain without them.
fn replace_guests(
    steps: &mut Vec<TableStep>,
    chain: &String,
    found: &TableState,
    wanted: &TableState,
) {
    let none = Vec::new();
    for hooked in found.hooked_rules.get(chain).unwrap_or(&none) {
        let (chain, rule) = (chain.clone(), hooked.body.clone());
        // The guests before it are gone by then.
        let position = hooked.behind.unwrap_or(0) + 1;
        steps.push(TableStep::Delete { chain, position, rule });
    }
    let others = found.others.get(chain);
    for (before, hooked) in wanted.hooked_rules.get(chain).unwrap_or(&none).iter().enumerate() {
        let (chain, rule) = (chain.clone(), hooked.body.clone());
        steps.push(match hooked.behind {
            Some(behind) => TableStep::Insert {
                chain,
                position: behind + before + 1,
                before: others.and_then(|others| others.get(behind).copied().flatten()),
                rule,
            },
            None => TableStep::Append { chain, rule },
        });
    }
}

fn written(text: &mut String, rule: &Body, counters: bool, head: std::fmt::Arguments<'_>) {
    match rule.counters.filter(|_| counters) {
        Some(c) => line(text, format_args!("[{}:{}] {head} {}", c.packets, c.bytes, rule.text)),
        None => line(text, format_args!("{head} {}", rule.text)),
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes all");
}
