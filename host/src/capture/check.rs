//! Whether a namespace is captured as it is to be.

use std::fmt;
use std::net::IpAddr;

use millrace_core::ebpf::{beside, sources};
use millrace_core::plan::{Effect, Preference};
use millrace_core::preflight::Backend;
use millrace_core::status::{State, Status, at_interfaces, judge, judge_beside, judge_native};

use super::{By, CaptureError, Order, by_ebpf};
use crate::ebpf::{Node, Target};
use crate::engine::Session;
use crate::observe::Depth;

/// That a pod is not in the maps.
const NO_ENTRY: &str = "the pod has no entry in the maps of the node's programs";

/// What is missing or differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Nothing of what is ordered is there. Why that is known, in a line.
    Missing(String),
    /// Something is there, and it is not as ordered. What differs, in a line.
    Drifted(String),
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (Self::Missing(line) | Self::Drifted(line)) = self;
        f.write_str(line)
    }
}

/// What a look at a namespace found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// What is not as ordered; none when everything is.
    pub difference: Option<Difference>,
    /// What rules of others may do to captured connections, a sentence each: they are no part of what is
    /// ordered, and none of ours to judge.
    pub others: Vec<String>,
}

impl From<Difference> for Checked {
    fn from(difference: Difference) -> Self {
        Self { difference: Some(difference), others: Vec::new() }
    }
}

/// Hold what is there against what is ordered.
///
/// # Errors
/// When it can't be seen.
pub fn check(session: &mut Session, order: &Order<'_>) -> Result<Checked, CaptureError> {
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
    let (missing, drifted) = (
        |line: &str| Ok(Difference::Missing(line.to_owned()).into()),
        |line: &str| Ok(Difference::Drifted(line.to_owned()).into()),
    );
    match (&node, found) {
        (_, Some(_)) if by_rules => drifted("eBPF captures it, and rules are to"),
        (Some(node), Some(_)) => entry(session, node, order),
        (Some(_), None) if asked => missing(NO_ENTRY),
        (None, _) if asked => missing("the node's programs are not loaded"),
        _ => rules(session, order),
    }
}

fn rules(session: &mut Session, order: &Order<'_>) -> Result<Checked, CaptureError> {
    let (desired, groups) = (order.desired, order.groups);
    let observed = session.observe(&order.exec, Depth::Fast)?;
    let may_be_native = match order.by.preference() {
        Preference::Auto | Preference::Backend(Backend::Nftables) => true,
        Preference::Iptables | Preference::Binaries(_) | Preference::Backend(_) => false,
    };
    let native = desired.native.as_ref().filter(|_| may_be_native && observed.captures_natively());
    let found = match native {
        Some(native) => judge_native(&observed, Some(&native.ready(groups)?), groups),
        None => judge(&observed, Some(&desired.iptables), groups),
    };
    let difference = difference(&found);
    Ok(Checked { difference, others: found.neighbours })
}

/// What is wrong with the pod's entry, or with what it needs beside it.
fn entry(session: &mut Session, node: &Node, order: &Order<'_>) -> Result<Checked, CaptureError> {
    let drifted = |line: String| Ok(Difference::Drifted(line).into());
    let policy = &*by_ebpf(session, &order.desired.policy)?;
    let target = Target::current()?;
    let entry = target.entry(policy, order.groups)?;
    let Some(found) = node.pod(target.cookie())? else {
        return Ok(Difference::Missing(NO_ENTRY.to_owned()).into());
    };
    if let Some(fault) = found.fault() {
        return drifted(fault.to_owned());
    }
    if let Some(faults) = node.faults()?.reported() {
        return drifted(format!("the node's programs are not whole: {faults}"));
    }
    if !node.holds(target.cookie(), &entry)? {
        return drifted("its entry differs from what is wanted".to_owned());
    }
    let observed = session.observe(&order.exec, Depth::Ways)?;
    let sources: Vec<IpAddr> = sources(&found.pod).collect();
    let found = judge_beside(&observed, &beside(policy), &sources, order.groups);
    let list: Vec<String> = found.differences.iter().map(reported).chain(found.notes).collect();
    let difference = (!found.whole).then(|| {
        let list = list.join("; ");
        Difference::Drifted(format!("what it needs beside its entry differs; to repair: {list}"))
    });
    Ok(Checked { difference, others: at_interfaces(&observed) })
}

fn difference(found: &Status) -> Option<Difference> {
    match found.state {
        State::Captured => None,
        State::NotCaptured => Some(Difference::Missing("no rules are there".to_owned())),
        State::Drifted => {
            let mut list: Vec<String> = found.differences.iter().map(reported).collect();
            list.extend(found.notes.iter().chain(&found.neighbours).cloned());
            let list = list.join("; ");
            Some(Difference::Drifted(format!(
                "rules differ from what is wanted; to repair: {list}"
            )))
        }
    }
}

/// An effect with the lines it would write.
fn reported(effect: &Effect) -> String {
    match effect {
        Effect::Restore { input: text, .. } => {
            let lines: Vec<&str> = text.lines().collect();
            format!("{effect} ({})", lines.join(", "))
        }
        other => other.to_string(),
    }
}
