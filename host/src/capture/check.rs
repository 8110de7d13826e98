//! Whether a namespace is captured as it is to be.

use std::net::IpAddr;

use millrace_core::ebpf::{beside, sources};
use millrace_core::plan::{Effect, Wish};
use millrace_core::preflight::Backend;
use millrace_core::status::{State, Status, judge, judge_beside, judge_native};

use super::{By, CaptureError, Order};
use crate::ebpf::{Node, Target};
use crate::engine::Session;
use crate::observe::Look;

/// Hold what is there against what is ordered. What is missing or differs, in a line; none when everything
/// is as ordered.
///
/// # Errors
/// When it can't be seen.
pub fn check(session: &mut Session, order: &Order<'_>) -> Result<Option<String>, CaptureError> {
    let by_rules = matches!(order.by, By::Rules(_));
    let node = match order.node() {
        // Rules are not less there where the programs can't be looked at.
        Err(_unseen) if by_rules => None,
        opened => opened?,
    };
    let found = match &node {
        Some(node) => node.pod(Target::current()?.cookie())?,
        None => None,
    };
    let asked = order.by == By::Ebpf;
    match (&node, found) {
        (_, Some(_)) if by_rules => Ok(Some("eBPF captures it, and rules are to".to_owned())),
        (Some(node), Some(_)) => entry(session, node, order),
        (Some(_), None) if asked => {
            Ok(Some("the pod has no entry in the maps of the node's programs".to_owned()))
        }
        (None, _) if asked => Ok(Some("the node's programs are not loaded".to_owned())),
        _ => rules(session, order),
    }
}

fn rules(session: &mut Session, order: &Order<'_>) -> Result<Option<String>, CaptureError> {
    let (desired, groups) = (order.desired, order.groups);
    let observed = session.observe(&order.exec, Look::Fast)?;
    let may_be_native = match order.by.wish() {
        Wish::Auto | Wish::Backend(Backend::Nftables) => true,
        Wish::Iptables | Wish::Programs(_) | Wish::Backend(_) => false,
    };
    let native = desired.native.as_ref().filter(|_| may_be_native && observed.captures_natively());
    let found = match native {
        Some(native) => judge_native(&observed, Some(&native.ready(groups)?), groups),
        None => judge(&observed, Some(&desired.iptables), groups),
    };
    Ok(difference(&found))
}

/// What is wrong with the pod's entry, or with what it needs beside it.
fn entry(
    session: &mut Session,
    node: &Node,
    order: &Order<'_>,
) -> Result<Option<String>, CaptureError> {
    let policy = &order.desired.policy;
    let target = Target::current()?;
    let entry = target.entry(policy, order.groups)?;
    let Some(found) = node.pod(target.cookie())? else {
        return Ok(Some("the pod has no entry in the maps of the node's programs".to_owned()));
    };
    if let Some(fault) = found.fault() {
        return Ok(Some(fault.to_owned()));
    }
    if let Some(faults) = node.faults()?.told() {
        return Ok(Some(format!("the node's programs are not whole: {faults}")));
    }
    if !node.holds(target.cookie(), &entry)? {
        return Ok(Some("its entry differs from what is wanted".to_owned()));
    }
    let observed = session.observe(&order.exec, Look::Ways)?;
    let sources: Vec<IpAddr> = sources(&found.pod).collect();
    let found = judge_beside(&observed, &beside(policy), &sources, order.groups);
    let list: Vec<String> = found.differences.iter().map(told).chain(found.notes).collect();
    Ok((!found.whole).then(|| {
        format!("what it needs beside its entry differs; to be whole: {}", list.join("; "))
    }))
}

fn difference(found: &Status) -> Option<String> {
    match found.state {
        State::Captured => None,
        State::NotCaptured => Some("no rules are there".to_owned()),
        State::Drifted => {
            let mut list: Vec<String> = found.differences.iter().map(told).collect();
            list.extend(found.notes.iter().chain(&found.neighbours).cloned());
            Some(format!("rules differ from what is wanted; to be whole: {}", list.join("; ")))
        }
    }
}

/// An effect with the lines it would write.
fn told(effect: &Effect) -> String {
    match effect {
        Effect::Restore { input: text, .. } => {
            let lines: Vec<&str> = text.lines().collect();
            format!("{effect} ({})", lines.join(", "))
        }
        other => other.to_string(),
    }
}
