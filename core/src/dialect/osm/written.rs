//! The rules that the script of Open Service Mesh itself writes, in Millrace's form: these mean the same.

use super::LAYOUT;
use crate::dialect::{Modernized, OldForm};
use crate::iptables::{Dump, DumpRule, TableDump, render_rule};
use crate::ownership::Owned;
use crate::ruleset::{ChainName, Hook, Match, Owner, Protocol, Rule, Side, Table, Target};
use crate::value::{InterfacePattern, Port};

/// The form of its last release.
const SCRIPT: OldForm = OldForm { last: (1, 2), lacks: None };
/// The proxy's own port for which the script has a rule that nothing reaches.
const ADMIN: Port = Port::new(15000);
/// The user id of the proxy, which the script has fixed.
const USER: u32 = 1500;

/// Where the proxy's connections to localhost are led to the pod's address, beside chains of the script.
pub(super) fn localhost(dump: &Dump, owned: &mut Owned) {
    let hook = Hook::Output.as_str();
    let Some(nat) = dump.table(Table::Nat.as_str()) else { return };
    if nat.chain(LAYOUT.output.as_str()).is_none() {
        return;
    }
    for (index, rule) in
        nat.chain(hook).into_iter().flat_map(|chain| chain.rules.iter().enumerate())
    {
        if let Ok(Rule { matches, target: Target::Dnat { port: None, .. } }) = &rule.rule
            && matches.iter().any(is_proxy)
        {
            owned.add_rule(Table::Nat, hook, index);
        }
    }
}

/// The rules as Millrace writes them; none where they are in no other form. The script adds its jumps once more
/// with each run, has a rule that nothing reaches, asks for ports by lists, and writes exclusions in its own
/// order, which means nothing.
pub(super) fn modernize(dump: &Dump) -> Option<Modernized> {
    let mut modern = dump.clone();
    let nat = modern.tables.iter_mut().find(|table| table.name == Table::Nat.as_str())?;
    nat.chain(LAYOUT.output.as_str())?;
    let interfaces = interfaces(nat);
    let mut changed = false;
    for chain in &mut nat.chains {
        let found = std::mem::take(&mut chain.rules);
        let known: Option<Vec<Rule>> =
            found.iter().map(|r| r.rule.as_ref().ok().cloned()).collect();
        let own = [&LAYOUT.inbound, &LAYOUT.output, &LAYOUT.redirect];
        let own = own.into_iter().find(|name| name.as_str() == chain.name);
        let Some((name, rules)) = own.zip(known) else {
            let before = found.len();
            chain.rules = once(found);
            changed |= chain.rules.len() < before;
            continue;
        };
        let ours = in_order(name, &interfaces, rules.iter().flat_map(one_by_one).collect());
        if ours == rules {
            chain.rules = found;
        } else {
            changed = true;
            chain.rules = ours.into_iter().map(written).collect();
        }
    }
    changed.then(|| Modernized { dump: modern, forms: vec![SCRIPT] })
}

fn written(rule: Rule) -> DumpRule {
    DumpRule { text: render_rule(&rule), counters: None, rule: Ok(rule), kernel: None }
}

/// The rules, with the first of several alike that the script adds.
fn once(mut rules: Vec<DumpRule>) -> Vec<DumpRule> {
    let own = [&LAYOUT.inbound, &LAYOUT.output];
    let mut seen: Vec<Rule> = Vec::new();
    rules.retain(|rule| {
        let Ok(rule) = &rule.rule else { return true };
        let is_added = match &rule.target {
            Target::Jump(to) => own.contains(&to),
            Target::Dnat { port: None, .. } => rule.matches.iter().any(is_proxy),
            _ => false,
        };
        let again = is_added && seen.contains(rule);
        if is_added && !again {
            seen.push(rule.clone());
        }
        !again
    });
    rules
}

fn is_proxy(m: &Match) -> bool {
    matches!(m, Match::Owner { negated: false, owner: Owner::Uid(uid) } if uid.get() == USER)
}

/// A rule for each port of a list that a rule asks for.
fn one_by_one(rule: &Rule) -> Vec<Rule> {
    let list = rule.matches.iter().enumerate().find_map(|(at, m)| match m {
        Match::DestinationPorts { negated: false, ports } => Some((at, ports)),
        _ => None,
    });
    let Some((at, ports)) = list else { return vec![rule.clone()] };
    let one = |ports: &_| {
        let mut rule = rule.clone();
        rule.matches[at] = Match::Port { side: Side::Destination, negated: false, ports: *ports };
        rule
    };
    ports.iter().map(one).collect()
}

/// The rules of a chain in Millrace's order, without what nothing reaches or what changes nothing.
fn in_order(chain: &ChainName, interfaces: &[InterfacePattern], mut rules: Vec<Rule>) -> Vec<Rule> {
    if *chain == LAYOUT.redirect {
        rules.retain(|rule| !is_dead(rule));
        return rules;
    }
    if *chain == LAYOUT.output && rules.iter().any(|rule| is_network(rule, &LAYOUT.redirect)) {
        // The end of the chain returns by itself.
        let is_end = |rule: &Rule| rule.matches.is_empty() && rule.target == Target::Return;
        rules.pop_if(|rule| is_end(rule));
    }
    let is_exclusion = |rule: &Rule| rule.target == Target::Return && kind(rule).is_some();
    for row in rules.chunk_by_mut(|a, b| is_exclusion(a) && is_exclusion(b)) {
        // Localhost stands in front.
        let first = usize::from(*chain == LAYOUT.output && kind(&row[0]) == Some(2));
        if let Some(row) = row.get_mut(first..) {
            row.sort_by_key(|rule| {
                let name = name(rule).and_then(|of| interfaces.iter().position(|name| name == of));
                (kind(rule), name)
            });
        }
    }
    rules
}

/// The excluded interfaces, in the order in which they were said: that of the rules for what leaves.
fn interfaces(nat: &TableDump) -> Vec<InterfacePattern> {
    let rules = nat.chain(LAYOUT.output.as_str()).into_iter().flat_map(|chain| &chain.rules);
    let known = rules.filter_map(|rule| rule.rule.as_ref().ok());
    known.filter(|rule| kind(rule) == Some(0)).filter_map(name).cloned().collect()
}

/// The interface that a rule names.
fn name(rule: &Rule) -> Option<&InterfacePattern> {
    rule.matches.iter().find_map(|m| match m {
        Match::InInterface { name, .. } | Match::OutInterface { name, .. } => Some(name),
        _ => None,
    })
}

fn is_dead(rule: &Rule) -> bool {
    let admin = Match::Port { side: Side::Destination, negated: false, ports: ADMIN.into() };
    rule.target == Target::Accept && rule.matches == [Match::Protocol(Protocol::Tcp), admin]
}

/// Whether connections to a network are led to a chain.
fn is_network(rule: &Rule, to: &ChainName) -> bool {
    kind(rule) == Some(2) && rule.target == Target::Jump(to.clone())
}

/// What alone a rule is about: an interface, a port or a network.
fn kind(rule: &Rule) -> Option<u8> {
    match rule.matches.as_slice() {
        [
            Match::InInterface { negated: false, .. } | Match::OutInterface { negated: false, .. },
        ] => Some(0),
        [Match::Protocol(Protocol::Tcp), Match::Port { negated: false, .. }] => Some(1),
        [Match::Address { side: Side::Destination, negated: false, .. }] => Some(2),
        _ => None,
    }
}
