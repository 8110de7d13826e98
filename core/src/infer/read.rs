//! The rules of a dump that are ours, in canonical form, by chain.

use std::collections::BTreeMap;

use crate::iptables::Dump;
use crate::ownership::{Footprint, Owned, known_tables};
use crate::ruleset::{ChainName, Hook, Layout, Match, Protocol, Role, Rule, Side, Table, Target};
use crate::value::{InterfacePattern, PortRange};

/// Rules of ours in canonical form, by table and chain.
pub(super) struct Chains {
    rules: BTreeMap<(Table, String), Vec<Rule>>,
    present: bool,
}

impl Chains {
    /// Those of a dump that one dialect made. What is not understood is left out: the comparison
    /// finds it later.
    pub(super) fn of(dump: &Dump, footprint: &Footprint) -> Self {
        let owned = Owned::read(dump, footprint);
        let groups = BTreeMap::new();
        let mut rules: BTreeMap<(Table, String), Vec<Rule>> = BTreeMap::new();
        let mut present = false;
        for (table, content) in known_tables(dump) {
            for chain in &content.chains {
                present |= owned.has_chain(table, &chain.name);
                let list = rules.entry((table, chain.name.clone())).or_default();
                for (index, rule) in chain.rules.iter().enumerate() {
                    let Ok(written) = &rule.rule else { continue };
                    if owned.has_rule(table, &chain.name, index) {
                        let mut rule = written.canonical(&groups);
                        rule.matches.retain(|m| *m != Match::Ours);
                        // How many go into one rule depends on their order.
                        if let Some(list) = rule.matches.iter_mut().find(|m| is_list(m))
                            && let Some(as_written) = written.matches.iter().find(|m| is_list(m))
                        {
                            list.clone_from(as_written);
                        }
                        list.push(rule);
                    }
                }
            }
        }
        let mut chains = Self { rules, present };
        chains.outline(footprint.layout);
        chains
    }

    /// Put rules that stand in the place of a jump into the chain that they would lead to, and ports of a
    /// list into rules of their own, as if the style had neither.
    fn outline(&mut self, layout: &Layout) {
        let style = &layout.style;
        self.in_order(layout);
        let mut outlined: Vec<(&ChainName, Target)> = Vec::new();
        let chains = [(&layout.inbound, &layout.in_redirect), (&layout.output, &layout.redirect)];
        for (chain, listener) in chains.into_iter().filter(|(_, name)| style.inlined.contains(name))
        {
            let Some(rules) = self.rules.get_mut(&(Table::Nat, chain.as_str().to_owned())) else {
                continue;
            };
            for rule in rules.iter_mut().filter(|r| matches!(r.target, Target::Redirect { .. })) {
                let listener = if is_self_call(rule) { &layout.in_redirect } else { listener };
                // What leaves is not asked for its protocol before.
                if chain == &layout.output && rule.matches == [Match::Protocol(Protocol::Tcp)] {
                    rule.matches.clear();
                }
                let jump = Target::Jump(listener.clone());
                outlined.push((listener, std::mem::replace(&mut rule.target, jump)));
            }
        }
        for (chain, target) in outlined {
            let rule = Rule::new(vec![Match::Protocol(Protocol::Tcp)], target);
            self.rules.insert((Table::Nat, chain.as_str().to_owned()), vec![rule]);
        }
        if style.tcp.contains(&Role::ExcludedNetwork)
            && let Some(rules) =
                self.rules.get_mut(&(Table::Nat, layout.output.as_str().to_owned()))
        {
            for rule in rules.iter_mut().filter(|rule| is_network_of_tcp(rule)) {
                rule.matches.truncate(1);
            }
        }
        if !style.multiport.is_empty() {
            for rules in self.rules.values_mut() {
                *rules = rules.iter().flat_map(one_by_one).collect();
            }
        }
    }

    /// Put what a style puts at the head of a chain in the order in which it was said, and behind the others
    /// that leave something alone.
    fn in_order(&mut self, layout: &Layout) {
        let roles = layout.style.at_head;
        let nat = |chain: &ChainName| (Table::Nat, chain.as_str().to_owned());
        if roles.contains(&Role::ExcludedInboundPort)
            && let Some(rules) = self.rules.get_mut(&nat(&layout.inbound))
        {
            let heads = rules.iter().take_while(|rule| rule.target == Target::Return).count();
            rules[..heads].reverse();
        }
        if roles.contains(&Role::ExcludedUser)
            && let Some(rules) = self.rules.get_mut(&nat(&layout.output))
        {
            // The proxy is the last who is left alone, and localhost is left alone behind it.
            let is_owner = |rule: &Rule| matches!(rule.matches.as_slice(), [Match::Owner { .. }]);
            let heads = rules.iter().rposition(is_owner).unwrap_or_default();
            let rest = rules.split_off(heads);
            let mut heads = std::mem::replace(rules, rest);
            heads.reverse();
            let behind = rules.iter().take_while(|rule| rule.target == Target::Return).count();
            rules.splice(behind..behind, heads);
        }
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

/// Whether a match is a list of ports.
const fn is_list(m: &Match) -> bool {
    matches!(m, Match::DestinationPorts { negated: false, .. })
}

/// Whether a rule leaves connections of TCP to a network alone, and asks for nothing else.
fn is_network_of_tcp(rule: &Rule) -> bool {
    let to =
        |m: &Match| matches!(m, Match::Address { side: Side::Destination, negated: false, .. });
    let [network, Match::Protocol(Protocol::Tcp)] = rule.matches.as_slice() else { return false };
    to(network) && rule.target == Target::Return
}

/// Whether a rule is about the proxy's calls to its own pod.
fn is_self_call(rule: &Rule) -> bool {
    let owner = |m: &Match| matches!(m, Match::Owner { negated: false, .. });
    let lo = |m: &Match| matches!(m, Match::OutInterface { name, .. } if *name == InterfacePattern::loopback());
    rule.matches.iter().any(owner) && rule.matches.iter().any(lo)
}

/// A rule for each port of the list that a rule asks for.
fn one_by_one(rule: &Rule) -> Vec<Rule> {
    let list = rule.matches.iter().enumerate().find_map(|(at, m)| match m {
        Match::DestinationPorts { negated: false, ports } => Some((at, ports)),
        _ => None,
    });
    let Some((at, list)) = list else { return vec![rule.clone()] };
    let one = |ports: &PortRange| {
        let mut rule = rule.clone();
        rule.matches[at] = Match::Port { side: Side::Destination, negated: false, ports: *ports };
        rule
    };
    list.iter().map(one).collect()
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
