//! The edit of one table: input for `iptables-restore --noflush` that turns what is there of
//! ours into what is wanted and touches nothing else.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::target::{Body, Guest, TableState, same_rules};
use crate::ruleset::Table;

/// Whether anything of ours has to change.
pub(super) fn differs(found: &TableState, wanted: &TableState) -> bool {
    let chains: BTreeSet<&String> = found.chains.keys().chain(wanted.chains.keys()).collect();
    let guests: BTreeSet<&String> = found.guests.keys().chain(wanted.guests.keys()).collect();
    chains.into_iter().any(|c| chain_differs(found, wanted, c))
        || guests.into_iter().any(|c| guests_differ(found, wanted, c))
}

fn chain_differs(found: &TableState, wanted: &TableState, chain: &str) -> bool {
    match (found.chains.get(chain), wanted.chains.get(chain)) {
        (Some(a), Some(b)) => !same_rules(a.iter(), b.iter()),
        (None, None) => false,
        _ => true,
    }
}

fn guests_differ(found: &TableState, wanted: &TableState, chain: &str) -> bool {
    let list = |state: &TableState| -> Vec<Body> {
        state.guests.get(chain).into_iter().flatten().map(|g| g.body.clone()).collect()
    };
    !same_rules(list(found).iter(), list(wanted).iter())
}

/// How an edit is made.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Style {
    /// Write everything, changed or not.
    pub(super) everything: bool,
    /// Write counters.
    pub(super) counters: bool,
}

/// The input for one table, or `None` when nothing has to change.
pub(super) fn edit(
    table: Table,
    found: &TableState,
    wanted: &TableState,
    style: Style,
) -> Option<String> {
    if !style.everything && !differs(found, wanted) {
        return None;
    }
    let mut text = format!("*{table}\n");
    let changed: Vec<&String> = wanted
        .chains
        .keys()
        .filter(|c| style.everything || chain_differs(found, wanted, c))
        .collect();
    let obsolete: Vec<&String> =
        found.chains.keys().filter(|c| !wanted.chains.contains_key(*c)).collect();
    // Declaring a chain makes it, or empties it when it is there.
    for chain in changed.iter().chain(&obsolete) {
        line(&mut text, format_args!(":{chain} - [0:0]"));
    }
    for chain in &changed {
        for body in &wanted.chains[*chain] {
            rule(&mut text, body, style, format_args!("-A {chain}"));
        }
    }
    let hosts: BTreeSet<&String> = found.guests.keys().chain(wanted.guests.keys()).collect();
    for chain in hosts {
        if style.everything || guests_differ(found, wanted, chain) {
            let none = Vec::new();
            let old = found.guests.get(chain).unwrap_or(&none);
            let new = wanted.guests.get(chain).unwrap_or(&none);
            replace_guests(&mut text, chain, old, new, style);
        }
    }
    for chain in &obsolete {
        line(&mut text, format_args!("-X {chain}"));
    }
    text.push_str("COMMIT\n");
    Some(text)
}

/// Take our rules out of a chain of others and put the new ones in. Within one commit, so no
/// packet sees the chain without them.
fn replace_guests(text: &mut String, chain: &str, old: &[Guest], new: &[Guest], style: Style) {
    for guest in old {
        line(text, format_args!("-D {chain} {}", guest.body.text));
    }
    for (before, guest) in new.iter().enumerate() {
        match guest.behind {
            Some(others) => {
                let position = others + before + 1;
                rule(text, &guest.body, style, format_args!("-I {chain} {position}"));
            }
            None => rule(text, &guest.body, style, format_args!("-A {chain}")),
        }
    }
}

fn rule(text: &mut String, body: &Body, style: Style, head: std::fmt::Arguments<'_>) {
    match body.counters.filter(|_| style.counters) {
        Some(c) => line(text, format_args!("[{}:{}] {head} {}", c.packets, c.bytes, body.text)),
        None => line(text, format_args!("{head} {}", body.text)),
    }
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("a String takes all");
}
