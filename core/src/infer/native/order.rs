//! What sets lose, the order of rules, put back as iptables has it.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::DNS;
use crate::infer::read;
use crate::iptables::{Dump, DumpRule};
use crate::ruleset::Layout;
use crate::ruleset::{Match, Rule, Side, Table, Target};
use crate::value::{Cidr, Family};

/// The port of tunnels stands in front of what else is left alone. In a set it has lost its place,
/// but the rule for the proxy's calls to its own pod names it beside the one for DNS.
pub(super) fn tunnel_first(dump: &mut Dump, names: &Layout) {
    let Some(nat) = dump.tables.iter_mut().find(|table| table.name == Table::Nat.as_str()) else {
        return;
    };
    let known = |rule: &DumpRule| rule.rule.clone().ok();
    let calls = nat.chain(names.output.as_str()).and_then(|chain| {
        let mut rules = chain.rules.iter().filter_map(known);
        rules.find(|rule| rule.target == Target::Jump(names.in_redirect.clone()))
    });
    let tunnel = calls.iter().flat_map(|rule| &rule.matches).find_map(|m| match m {
        Match::Port { negated: true, ports, .. } => Some(*ports),
        Match::DestinationPorts { negated: true, ports } => {
            ports.iter().copied().find(|ports| ports.first().get() != DNS)
        }
        _ => None,
    });
    for chain in nat.chains.iter_mut().filter(|chain| chain.name == names.inbound.as_str()) {
        let leaves = |rule: &DumpRule| {
            rule.rule.as_ref().is_ok_and(|r| {
                r.target == Target::Return
                    && read::tcp_to_port(r).is_some_and(|p| Some(p) == tunnel)
            })
        };
        if let Some(place) = chain.rules.iter().position(leaves) {
            let rule = chain.rules.remove(place);
            chain.rules.insert(0, rule);
        }
    }
}

/// Localhost stands in front of the other networks that are left alone. In a set it is a part of
/// any network around it, but the rule for the proxy's calls to its own pod names it as well.
pub(super) fn localhost_first(dump: &mut Dump, names: &Layout, family: Family) {
    let Some(nat) = dump.tables.iter_mut().find(|table| table.name == Table::Nat.as_str()) else {
        return;
    };
    let Some(chain) = nat.chains.iter_mut().find(|c| c.name == names.output.as_str()) else {
        return;
    };
    let known = chain.rules.iter().filter_map(|rule| rule.rule.as_ref().ok());
    let mut matches = known.flat_map(|rule| &rule.matches);
    let localhost = matches.find_map(|m| match m {
        Match::Address { side: Side::Destination, negated: true, cidr } => Some(*cidr),
        _ => None,
    });
    let localhost = localhost.unwrap_or_else(|| {
        Cidr::host(match family {
            Family::V4 => Ipv4Addr::LOCALHOST.into(),
            Family::V6 => Ipv6Addr::LOCALHOST.into(),
        })
    });
    let bypassed = |rule: &DumpRule| match rule.rule.as_ref() {
        Ok(Rule { matches, target: Target::Return }) => match matches.as_slice() {
            [Match::Address { side: Side::Destination, negated: false, cidr }] => Some(*cidr),
            _ => None,
        },
        _ => None,
    };
    let Some(place) = chain.rules.iter().position(|rule| bypassed(rule).is_some()) else {
        return;
    };
    let Some(first) = bypassed(&chain.rules[place]) else { return };
    if first != localhost && first.contains(localhost.address()) {
        let mut rule = chain.rules[place].clone();
        let m = Match::Address { side: Side::Destination, negated: false, cidr: localhost };
        rule.rule = Ok(Rule { matches: vec![m], target: Target::Return });
        chain.rules.insert(place, rule);
    }
}
