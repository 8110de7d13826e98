//! The rules of a dump that are ours, in canonical form, by chain.

use std::collections::BTreeMap;

use crate::iptables::Dump;
use crate::ownership::{Footprint, Owned, known_tables};
use crate::ruleset::{ChainName, Hook, Match, Protocol, Rule, Side, Table};
use crate::value::PortRange;

/// Our rules.
pub(super) struct Chains {
    rules: BTreeMap<(Table, String), Vec<Rule>>,
    present: bool,
}

impl Chains {
    /// Those of a dump that one dialect made. What is not understood is left out: the comparison
    /// finds it later.
    pub(super) fn of(dump: &Dump, footprint: &Footprint) -> Self {
        let owned = Owned::find(dump, std::slice::from_ref(footprint));
        let groups = BTreeMap::new();
        let mut rules: BTreeMap<(Table, String), Vec<Rule>> = BTreeMap::new();
        let mut present = false;
        for (table, content) in known_tables(dump) {
            for chain in &content.chains {
                present |= owned.has_chain(table, &chain.name);
                let list = rules.entry((table, chain.name.clone())).or_default();
                for (index, rule) in chain.rules.iter().enumerate() {
                    let Ok(rule) = &rule.rule else { continue };
                    if owned.has_rule(table, &chain.name, index) {
                        let mut rule = rule.canonical(&groups);
                        rule.matches.retain(|m| *m != Match::Ours);
                        list.push(rule);
                    }
                }
            }
        }
        Self { rules, present }
    }

    /// Whether there is any chain of ours.
    pub(super) const fn present(&self) -> bool {
        self.present
    }

    /// The rules of a chain of ours.
    pub(super) fn user(&self, table: Table, chain: &ChainName) -> &[Rule] {
        self.list(table, chain.as_str())
    }

    /// Our rules in a builtin chain.
    pub(super) fn hook(&self, table: Table, hook: Hook) -> &[Rule] {
        self.list(table, hook.as_str())
    }

    fn list(&self, table: Table, chain: &str) -> &[Rule] {
        self.rules.get(&(table, chain.to_owned())).map_or(&[], Vec::as_slice)
    }
}

/// The ports of a rule that asks for TCP to some ports and nothing else.
pub(super) fn tcp_to_port(rule: &Rule) -> Option<PortRange> {
    to_port(rule, Protocol::Tcp)
}

/// The ports of a rule that asks for a protocol to some ports and nothing else.
pub(super) fn to_port(rule: &Rule, protocol: Protocol) -> Option<PortRange> {
    match rule.matches.as_slice() {
        [Match::Protocol(p), Match::Port { side: Side::Destination, negated: false, ports }]
            if *p == protocol =>
        {
            Some(*ports)
        }
        _ => None,
    }
}
