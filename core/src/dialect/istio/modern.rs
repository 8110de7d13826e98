//! Rules in the forms of older releases of istio-iptables, as the newest one writes them: so both can
//! be compared. What a form lacks is told; what is missing from it stays missing.
//!
//! Which release wrote what is from the rules that the releases' own tests expect.

use std::collections::BTreeSet;

use super::older::{Asked, DNS, asked, exempts_groups, is_of_other_groups};
use super::refusal::find_rejection;
use super::{FOOTPRINT, LAYOUT};
use crate::dialect::{Modernized, OldForm};
use crate::iptables::{ChainDump, Dump, DumpRule, TableDump, render_rule};
use crate::ownership::Owned;
use crate::ruleset::Layout;
use crate::ruleset::{
    ChainName, ConnState, Hook, Match, Owner, Protocol, Rule, Side, Table, Target,
};
use crate::value::{Port, PortRange};

const fn form(minor: u8, lacks: Option<&'static str>) -> OldForm {
    OldForm { last: (1, minor), lacks }
}

/// IPv6 is refused in the builtin chain, where it is not captured.
const REFUSES_V6: OldForm =
    form(6, Some("IPv6 connections to the pod are refused, and those from it are not captured"));
/// The proxy's calls to its own pod ask for no tunnel port.
const SELF_CALL: OldForm = form(
    17,
    Some("the proxy's calls to its own pod are led to its inbound port on the tunnel's port too"),
);
/// Answers of DNS servers are looked for by where they go.
const ANSWERS_BY_DESTINATION: OldForm =
    form(19, Some("answers of DNS servers are not tracked apart, so some queries may get none"));
/// DNS over UDP is captured in the builtin chains.
const DNS_IN_BUILTIN: OldForm = form(22, None);
/// A RETURN ends the list of what is captured.
const LAST_RETURN: OldForm = form(22, None);
/// Invalid packets are dropped in a builtin chain.
const DROP_IN_BUILTIN: OldForm = form(23, None);
/// The chain of outbound connections is for TCP.
const TCP_ALONE: OldForm = form(24, None);
/// DNS over UDP is captured at the end of that chain.
const DNS_AT_END: OldForm =
    form(24, Some("DNS queries by UDP to localhost and to excluded networks are not captured"));

/// A dump as the newest release would have written it, and the forms in which it was; none where it is
/// in no older form that is known.
pub(super) fn modernize(dump: &Dump) -> Option<Modernized> {
    let Some(open) = without_refusal(dump) else { return modernized(dump) };
    let Some(mut modern) = modernized(&open) else {
        return Some(Modernized { dump: open, forms: vec![REFUSES_V6] });
    };
    modern.forms.insert(0, REFUSES_V6);
    Some(modern)
}

/// The dump without the rules that refuse IPv6; none where there are none.
fn without_refusal(dump: &Dump) -> Option<Dump> {
    let refusal = find_rejection(dump)?;
    let mut open = dump.clone();
    let chain = chain_mut(&mut open, Table::Filter, Hook::Input.as_str())?;
    chain.rules.drain(refusal);
    Some(open)
}

fn modernized(dump: &Dump) -> Option<Modernized> {
    dump.table(Table::Nat.as_str())?.chain(LAYOUT.output.as_str())?;
    let owned = Owned::find(dump, &[FOOTPRINT]);
    let mut modern = Modern { dump: dump.clone(), owned, layout: &LAYOUT, forms: BTreeSet::new() };
    modern.drop_invalid();
    let tcp_alone = modern.outbound()?;
    modern.selection(tcp_alone)?;
    let Modern { dump, forms, .. } = modern;
    (!forms.is_empty()).then(|| Modernized { dump, forms: forms.into_iter().collect() })
}

struct Modern {
    dump: Dump,
    /// What was ours before anything was changed.
    owned: Owned,
    layout: &'static Layout,
    forms: BTreeSet<OldForm>,
}

/// What becomes of a rule.
enum Edit {
    Keep,
    Take,
    Become(Rule),
}

/// DNS capture by UDP as it was found.
#[derive(Default)]
struct Dns {
    /// Who is exempt, in order, and whether somebody is behind a redirect.
    past: Vec<Owner>,
    late: bool,
    redirects: Vec<Rule>,
    /// How many rules let the groups past that are not captured.
    groups: usize,
}

impl Dns {
    /// Take a rule that is one of these.
    fn take(&mut self, rule: &Rule) -> bool {
        match (asked(rule), &rule.target) {
            (Some((Side::Destination, DNS, Asked::Proxy(owner))), Target::Return) => {
                self.late |= !self.redirects.is_empty();
                self.past.push(owner);
                true
            }
            (Some((Side::Destination, DNS, Asked::Anybody)), Target::Redirect { .. }) => {
                self.redirects.push(rule.clone());
                true
            }
            _ => false,
        }
    }

    /// Take a rule that lets groups past that are not captured.
    fn take_groups(&mut self, dump: &Dump, rule: &Rule) -> bool {
        let is_one = exempts_groups(dump, rule);
        self.groups += usize::from(is_one);
        self.late |= is_one && !self.redirects.is_empty();
        is_one
    }

    const fn is_empty(&self) -> bool {
        self.past.is_empty() && self.redirects.is_empty()
    }
}

impl Modern {
    /// Change the rules of a builtin chain that are ours. Once for each chain: the places of rules are
    /// those of before.
    fn hook(&mut self, table: Table, hook: Hook, mut change: impl FnMut(&Rule) -> Edit) {
        let Some(chain) = chain_mut(&mut self.dump, table, hook.as_str()) else { return };
        let rules = std::mem::take(&mut chain.rules);
        for (index, rule) in rules.into_iter().enumerate() {
            let ours = self.owned.has_rule(table, hook.as_str(), index);
            match rule.rule.as_ref().ok().filter(|_| ours).map_or(Edit::Keep, &mut change) {
                Edit::Keep => chain.rules.push(rule),
                Edit::Take => {}
                Edit::Become(other) => {
                    chain.rules.push(DumpRule { kernel: rule.kernel, ..written(&other) });
                }
            }
        }
    }

    /// Append a rule to a builtin chain.
    fn append(&mut self, table: Table, hook: Hook, rule: &Rule) {
        if let Some(chain) = chain_mut(&mut self.dump, table, hook.as_str()) {
            chain.rules.push(written(rule));
        }
    }

    /// The rules of a chain of istio-iptables; none where one of them is not known.
    fn user(&self, table: Table, chain: &ChainName) -> Option<Vec<Rule>> {
        let chain = self.dump.table(table.as_str()).and_then(|t| t.chain(chain.as_str()));
        chain
            .into_iter()
            .flat_map(|c| &c.rules)
            .map(|rule| rule.rule.as_ref().ok().cloned())
            .collect()
    }

    /// Give a chain of istio-iptables these rules. It must have none, or be changed as a whole.
    fn put(&mut self, table: Table, name: &ChainName, rules: &[Rule]) {
        let rules = rules.iter().map(written).collect();
        if let Some(chain) = chain_mut(&mut self.dump, table, name.as_str()) {
            chain.rules = rules;
            return;
        }
        let new = ChainDump { name: name.as_str().to_owned(), policy: None, rules, handle: None };
        let found = self.dump.tables.iter_mut().find(|t| t.name == table.as_str());
        match found {
            Some(found) => found.chains.push(new),
            None => self
                .dump
                .tables
                .push(TableDump { name: table.as_str().to_owned(), chains: vec![new] }),
        }
    }

    fn drop_invalid(&mut self) {
        let (invalid, drop) =
            (vec![Match::ConnState(vec![ConnState::Invalid])], self.layout.drop.clone());
        let jump = Rule::new(invalid.clone(), Target::Jump(drop.clone()));
        let mut found = false;
        self.hook(Table::Mangle, Hook::Prerouting, |rule| {
            if rule.matches != invalid || rule.target != Target::Drop {
                return Edit::Keep;
            }
            found = true;
            Edit::Become(jump.clone())
        });
        if found {
            self.put(Table::Mangle, &drop, &[Rule::new(Vec::new(), Target::Drop)]);
            self.forms.insert(DROP_IN_BUILTIN);
        }
    }

    /// The way into the chain of outbound connections, and DNS capture. Gives whether UDP has no way in;
    /// none where what is there is no form that is known.
    fn outbound(&mut self) -> Option<bool> {
        let to_output = Target::Jump(self.layout.output.clone());
        let (mut dns, mut tcp_jumps, mut udp_jumps) = (Dns::default(), 0, 0);
        let (before, mut translated) = (self.dump.clone(), false);
        self.hook(Table::Nat, Hook::Output, |rule| {
            let of = |protocol| rule.matches == [Match::Protocol(protocol)];
            if rule.target == to_output && of(Protocol::Tcp) {
                tcp_jumps += 1;
                Edit::Become(Rule::new(Vec::new(), to_output.clone()))
            } else if rule.target == to_output && of(Protocol::Udp) {
                udp_jumps += 1;
                Edit::Take
            } else if dns.take(rule) || dns.take_groups(&before, rule) {
                Edit::Take
            } else {
                translated |= matches!(rule.target, Target::Dnat { .. });
                Edit::Keep
            }
        });
        // As 1.7 and 1.8 captured DNS, which has no meaning in today's rules.
        if translated {
            return None;
        }
        let in_builtin = !dns.is_empty();
        if tcp_jumps == 0 {
            // The newest form, which has DNS in a chain of its own.
            return (!in_builtin && udp_jumps == 0).then_some(false);
        }
        let newest = self.user(Table::Nat, &self.layout.output_dns)?;
        if tcp_jumps != 1 || udp_jumps > 1 || !newest.is_empty() || (in_builtin && udp_jumps == 1) {
            return None;
        }
        self.forms.insert(TCP_ALONE);
        let output = self.layout.output.clone();
        let mut rules = self.user(Table::Nat, &output)?;
        let at_end = udp_jumps == 1;
        if at_end {
            let first = rules.iter().position(|rule| Dns::default().take(rule))?;
            let mut taken = |rule: &Rule| dns.take(rule) || dns.take_groups(&before, rule);
            if !rules.split_off(first).iter().all(&mut taken) {
                return None;
            }
        }
        if !dns.is_empty() {
            self.forms.insert(if at_end { DNS_AT_END } else { DNS_IN_BUILTIN });
            rules = self.dns(&dns, rules)?;
            self.zones(at_end)?;
        }
        self.put(Table::Nat, &output, &rules);
        Some(true)
    }

    /// DNS capture in a chain of its own; gives the chain of outbound connections with the jump there.
    fn dns(&mut self, dns: &Dns, mut rules: Vec<Rule>) -> Option<Vec<Rule>> {
        // Queries of a proxy that is not exempt come back to it.
        let in_redirect = Target::Jump(self.layout.in_redirect.clone());
        let self_calls = rules.iter().filter(|rule| rule.target == in_redirect);
        let proxies: BTreeSet<Owner> = self_calls.filter_map(owner).collect();
        let past: BTreeSet<Owner> = dns.past.iter().cloned().collect();
        // Groups that are not captured go past as well.
        let plain = |rule: &&Rule| rule.target == Target::Return && rule.matches.len() == 1;
        let exempt: BTreeSet<Owner> = rules.iter().filter(plain).filter_map(owner).collect();
        let groups = rules.iter().filter(|rule| is_of_other_groups(rule)).count();
        if dns.late || past != exempt || !proxies.is_subset(&past) || dns.groups != groups {
            return None;
        }
        let is_tcp = |rule: &Rule| {
            let tcp = Match::Protocol(Protocol::Tcp);
            let to_dns = to_port(DNS);
            matches!(rule.target, Target::Redirect { .. })
                && rule.matches.contains(&tcp)
                && rule.matches.contains(&to_dns)
        };
        let chain = self.layout.output_dns.clone();
        let first = rules.iter().position(is_tcp);
        let count = rules.iter().filter(|rule| is_tcp(rule)).count();
        match first {
            Some(first) if !dns.redirects.is_empty() => {
                let behind = rules.split_off(first);
                let (tcp, behind) = behind.split_at(count);
                if !tcp.iter().all(is_tcp) {
                    return None;
                }
                self.put(Table::Nat, &chain, &[tcp, &dns.redirects].concat());
                rules.push(Rule::new(Vec::new(), Target::Jump(chain)));
                rules.extend_from_slice(behind);
                Some(rules)
            }
            // No server is of this family.
            None if dns.redirects.is_empty() => Some(rules),
            _ => None,
        }
    }

    /// Conntrack zones in chains of their own.
    fn zones(&mut self, at_end: bool) -> Option<()> {
        let (layout, raw) = (self.layout, Table::Raw);
        let mut asks = Vec::new();
        if at_end {
            asks = self.user(raw, &layout.output)?;
            let to_output = Target::Jump(layout.output.clone());
            let mut jumps = 0;
            self.hook(raw, Hook::Output, |rule| {
                if rule.target == to_output && rule.matches == [Match::Protocol(Protocol::Udp)] {
                    jumps += 1;
                    return Edit::Take;
                }
                Edit::Keep
            });
            if jumps != 1 {
                return None;
            }
            let table = self.dump.tables.iter_mut().find(|table| table.name == raw.as_str())?;
            table.chains.retain(|chain| chain.name != layout.output.as_str());
        } else {
            self.hook(raw, Hook::Output, |rule| {
                if asked(rule).is_none() {
                    return Edit::Keep;
                }
                asks.push(rule.clone());
                Edit::Take
            });
        }
        let mut answers = Vec::new();
        let mut by_destination = false;
        self.hook(raw, Hook::Prerouting, |rule| {
            if asked(rule).is_none() {
                return Edit::Keep;
            }
            let mut rule = rule.clone();
            for m in &mut rule.matches {
                if let Match::Address { side: side @ Side::Destination, .. } = m {
                    *side = Side::Source;
                    by_destination = true;
                }
            }
            answers.push(rule);
            Edit::Take
        });
        if by_destination {
            self.forms.insert(ANSWERS_BY_DESTINATION);
        }
        let jump = |chain: &ChainName| Rule::new(Vec::new(), Target::Jump(chain.clone()));
        self.put(raw, &layout.output_dns, &asks);
        self.append(raw, Hook::Output, &jump(&layout.output_dns));
        if !answers.is_empty() {
            self.put(raw, &layout.inbound, &answers);
            self.append(raw, Hook::Prerouting, &jump(&layout.inbound));
        }
        Some(())
    }

    /// The chain of outbound connections.
    fn selection(&mut self, tcp_alone: bool) -> Option<()> {
        let (nat, output) = (Table::Nat, self.layout.output.clone());
        let mut rules = self.user(nat, &output)?;
        let nothing = Rule::new(Vec::new(), Target::Return);
        if rules.len() > 1 && rules.last() == Some(&nothing) {
            rules.pop();
            self.forms.insert(LAST_RETURN);
        }
        if tcp_alone {
            rules = both_protocols(rules);
        }
        let spares_tunnels = self.spares_tunnels();
        let in_redirect = Target::Jump(self.layout.in_redirect.clone());
        for rule in rules.iter_mut().filter(|rule| rule.target == in_redirect) {
            if let Some(newer) = newer_self_call(rule) {
                if !spares_tunnels {
                    return None;
                }
                *rule = newer;
                self.forms.insert(SELF_CALL);
            }
        }
        self.put(nat, &output, &rules);
        Some(())
    }

    /// Whether what comes in to the usual port of tunnels is left alone by the first rule. Where the
    /// proxy's calls don't name the port, another one can't be told from an excluded port.
    fn spares_tunnels(&self) -> bool {
        let rules = self.user(Table::Nat, &self.layout.inbound).unwrap_or_default();
        rules.first().is_some_and(|rule| {
            rule.target == Target::Return && rule.matches.contains(&to_port(TUNNEL))
        })
    }
}

/// The port of tunnels when nobody says otherwise.
const TUNNEL: u16 = 15008;

/// Excluded ports for UDP as well, which has no way there.
fn both_protocols(rules: Vec<Rule>) -> Vec<Rule> {
    let is_tcp = |rule: &Rule| {
        rule.target == Target::Return
            && rule.matches.len() == 2
            && rule.matches.contains(&Match::Protocol(Protocol::Tcp))
            && rule
                .matches
                .iter()
                .any(|m| matches!(m, Match::Port { side: Side::Destination, negated: false, .. }))
    };
    let count = rules.iter().take_while(|rule| is_tcp(rule)).count();
    let mut done = Vec::with_capacity(rules.len() + count);
    for (index, rule) in rules.into_iter().enumerate() {
        let other = (index < count).then(|| {
            let udp = |m: &Match| match m {
                Match::Protocol(_) => Match::Protocol(Protocol::Udp),
                other => other.clone(),
            };
            Rule::new(rule.matches.iter().map(udp).collect(), Target::Return)
        });
        done.push(rule);
        done.extend(other);
    }
    done
}

/// A call of the proxy to its own pod that asks for no tunnel port, as one that does.
fn newer_self_call(rule: &Rule) -> Option<Rule> {
    let spared = |m: &Match| matches!(m, Match::Port { side: Side::Destination, negated: true, ports } if *ports == port(DNS));
    let tcp = Match::Protocol(Protocol::Tcp);
    let others: Vec<Match> =
        rule.matches.iter().filter(|m| !spared(m) && **m != tcp).cloned().collect();
    let known = others.len() == 3
        && others.iter().all(|m| {
            matches!(
                m,
                Match::OutInterface { negated: false, .. }
                    | Match::Address { side: Side::Destination, negated: true, .. }
                    | Match::Owner { negated: false, .. }
            )
        });
    let ports = match rule.matches.len() {
        3 => Match::Port { side: Side::Destination, negated: true, ports: port(TUNNEL) },
        5 if rule.matches.iter().any(spared) && rule.matches.contains(&tcp) => {
            Match::DestinationPorts { negated: true, ports: vec![port(DNS), port(TUNNEL)] }
        }
        _ => return None,
    };
    known.then(|| {
        let mut matches = others;
        matches.extend([tcp, ports]);
        Rule::new(matches, rule.target.clone())
    })
}

fn owner(rule: &Rule) -> Option<Owner> {
    rule.matches.iter().find_map(|m| match m {
        Match::Owner { negated: false, owner } => Some(owner.clone()),
        _ => None,
    })
}

fn port(number: u16) -> PortRange {
    PortRange::from(Port::new(number))
}

fn to_port(number: u16) -> Match {
    Match::Port { side: Side::Destination, negated: false, ports: port(number) }
}

fn written(rule: &Rule) -> DumpRule {
    let rule = rule.clone();
    DumpRule { text: render_rule(&rule), counters: None, rule: Ok(rule), kernel: None }
}

fn chain_mut<'d>(dump: &'d mut Dump, table: Table, chain: &str) -> Option<&'d mut ChainDump> {
    let table = dump.tables.iter_mut().find(|found| found.name == table.as_str())?;
    table.chains.iter_mut().find(|found| found.name == chain)
}
