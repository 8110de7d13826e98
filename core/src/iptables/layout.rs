//! The order of lines in the input of `iptables-restore`, and the same as separate commands, as
//! the reference writes them. Works on lines whose rule is text already, so that it can be held
//! against the reference's own cases, whose rules are no rules.

use std::collections::BTreeMap;
use std::fmt::Write as _;

/// Where a line's rule goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `-A`: at the end of the chain.
    Append,
    /// `-I` with the position, counted from 1.
    Insert(u32),
}

/// One rule as text: its table, and what stands behind `-A` or `-I`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// As `-t` takes it: `nat`, `mangle`, `raw` or `filter`.
    pub table: String,
    /// The chain that the rule goes into, not one that it jumps to.
    pub chain: String,
    /// At the end of the chain, or at a position in it.
    pub verb: Verb,
    /// The rule's matches and target.
    pub body: String,
    /// The chain it jumps to.
    pub jump: Option<String>,
}

impl Line {
    /// The line with its verb and chain.
    pub fn text(&self) -> String {
        match self.verb {
            Verb::Append => format!("-A {} {}", self.chain, self.body),
            Verb::Insert(position) => format!("-I {} {position} {}", self.chain, self.body),
        }
    }
}

/// Chains that exist without being made.
const BUILTIN: [&str; 5] = ["INPUT", "OUTPUT", "FORWARD", "PREROUTING", "POSTROUTING"];

/// The chains that must be made for `lines`, as (table, chain): first those that own a rule, in
/// the order in which they first do, then those that are only jumped to.
pub fn new_chains(lines: &[Line]) -> Vec<(&str, &str)> {
    let owners = lines.iter().map(|l| (l.table.as_str(), l.chain.as_str()));
    let jumped = lines.iter().filter_map(|l| Some((l.table.as_str(), l.jump.as_deref()?)));
    let mut chains = Vec::new();
    for chain in owners.chain(jumped) {
        if !BUILTIN.contains(&chain.1) && !chains.contains(&chain) {
            chains.push(chain);
        }
    }
    chains
}

/// The input of `iptables-restore --noflush`: tables in alphabetical order, each with its new
/// chains and then its rules in their order.
pub fn restore(lines: &[Line]) -> String {
    let mut tables: BTreeMap<&str, String> = BTreeMap::new();
    for (table, chain) in new_chains(lines) {
        writeln!(tables.entry(table).or_default(), "-N {chain}").expect("a String takes all");
    }
    for line in lines {
        writeln!(tables.entry(&line.table).or_default(), "{}", line.text())
            .expect("a String takes all");
    }
    let blocks = tables.iter().map(|(table, body)| format!("* {table}\n{body}COMMIT\n"));
    blocks.collect()
}

/// The same as one command line for each chain and rule, without the name of the program.
pub fn commands(lines: &[Line]) -> Vec<String> {
    let chains = new_chains(lines).into_iter().map(|(t, c)| format!("-t {t} -N {c}"));
    chains.chain(lines.iter().map(|l| format!("-t {} {}", l.table, l.text()))).collect()
}
