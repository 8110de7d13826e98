//! Ports of several decisions, as many in a rule as `multiport` has room for.

use crate::capture::program::{Condition, Decision, Role};
use crate::capture::purpose;
use crate::iptables::MOST_PORTS;
use crate::ruleset::{Protocol, Style};
use crate::value::PortRange;

/// The decisions, with those in a row that a style has in one rule in as few as possible.
pub(super) fn grouped(decisions: Vec<Decision>, style: &Style) -> Vec<Decision> {
    let mut done: Vec<Decision> = Vec::with_capacity(decisions.len());
    for decision in decisions {
        if let Some((protocol, ports)) = listed(&decision, style)
            && let Some(last) = done.last_mut()
            && let Some((other, before)) = listed(last, style)
            && (last.table, last.path, last.role, last.verdict, other)
                == (decision.table, decision.path, decision.role, decision.verdict, protocol)
            && slots(before) + slots(ports) <= MOST_PORTS
        {
            let ports: Vec<PortRange> = before.iter().chain(ports).copied().collect();
            let list: Vec<String> = ports.iter().map(ToString::to_string).collect();
            last.reason.purpose = said(last.role, &list.join(","));
            last.when =
                vec![Condition::Protocol(protocol), Condition::ToPorts { negated: false, ports }];
        } else {
            done.push(decision);
        }
    }
    done
}

/// A decision in as many as it takes for each to have room for its ports.
pub(super) fn split(decision: Decision) -> Vec<Decision> {
    let is_list = |c: &Condition| matches!(c, Condition::ToPorts { negated: false, ports } if slots(ports) > MOST_PORTS);
    let Some(at) = decision.when.iter().position(is_list) else { return vec![decision] };
    let Some(Condition::ToPorts { ports, .. }) = decision.when.get(at) else {
        return vec![decision];
    };
    let mut parts: Vec<Vec<PortRange>> = Vec::new();
    for range in ports {
        match parts.last_mut().filter(|p| slots(p) + slots(&[*range]) <= MOST_PORTS) {
            Some(part) => part.push(*range),
            None => parts.push(vec![*range]),
        }
    }
    let part = |ports| {
        let mut decision = decision.clone();
        if let Some(condition) = decision.when.get_mut(at) {
            *condition = Condition::ToPorts { negated: false, ports };
        }
        decision
    };
    parts.into_iter().map(part).collect()
}

/// The protocol and ports of a decision that asks for ports and nothing else, where a style has several of its
/// kind in one rule.
pub(super) fn listed<'d>(
    decision: &'d Decision,
    style: &Style,
) -> Option<(Protocol, &'d [PortRange])> {
    match decision.when.as_slice() {
        [Condition::Protocol(protocol), Condition::ToPorts { negated: false, ports }]
            if style.multiport.contains(&decision.role) =>
        {
            Some((*protocol, ports))
        }
        _ => None,
    }
}

fn said(role: Role, ports: &str) -> String {
    match role {
        Role::Inbound => purpose::captured("inbound port", ports),
        Role::ExcludedInboundPort => purpose::not_captured("inbound port", ports),
        _ => purpose::not_captured("outbound port", ports),
    }
}

/// How much room ports take: a range takes that of two (kernel `xt_multiport.h`, v6.18).
fn slots(ports: &[PortRange]) -> usize {
    ports.iter().map(|range| if range.first() == range.last() { 1 } else { 2 }).sum()
}
