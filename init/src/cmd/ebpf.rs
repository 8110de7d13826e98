//! `apply`, `status` and `cleanup` where eBPF captures.

use std::path::Path;

use anyhow::{Result, bail};
use millrace_core::ebpf::{beside, beside_entry, captures_v6, extended, sources};
use millrace_core::facts::HostFacts;
use millrace_core::status::judge_beside;
use millrace_host::capture::beyond;
use millrace_host::ebpf::{
    Attached, DEFAULT_FOLDER, EbpfError, Enrolled, EnrolledPod, Faults, Node, Target,
};
use millrace_host::engine::{Outcome, Session};
use millrace_host::exec;
use millrace_host::observe::Depth;
use serde_json::{Value, json};

use super::expected::ExpectedCapture;
use super::held::Held;
use super::output::{finish, outcome_json, outcome_text, print, print_json, print_painted, warn};
use super::status::{reported, treated};
use super::{config, rules};
use crate::cli::node::{Ebpf, Meant};
use crate::cli::own::{Common, Config};
use crate::exit::Exit;
use crate::paint;

/// Say that eBPF captures the pod, and what became of the rest.
pub(super) fn print_enrolled(
    enrolled: Enrolled,
    cookie: u64,
    outcome: &Outcome,
    asked: bool,
    common: &Common,
) -> Result<()> {
    outcome.warnings.iter().for_each(|warning| warn(warning));
    let (word, text) = match enrolled {
        Enrolled::Added => ("added", "the pod is enrolled"),
        Enrolled::Changed => ("changed", "the pod's entry is replaced"),
        Enrolled::Unchanged => ("unchanged", "no change: the pod's entry is as desired"),
    };
    let changed = enrolled != Enrolled::Unchanged;
    if common.json {
        let mut value = outcome_json(outcome, changed, common.dry_run)?;
        if let Some(object) = value.as_object_mut() {
            object.insert("backend".to_owned(), json!("ebpf"));
            object.insert("ebpf".to_owned(), json!(word));
            object.insert("cookie".to_owned(), json!(cookie));
        }
        finish(print_json(&value), common.dry_run)?;
    } else {
        let would = if common.dry_run && changed { "would do: " } else { "" };
        let why = if asked { "asked for" } else { "the node's programs are loaded" };
        let rest = outcome_text(outcome, None, common.dry_run);
        // What it says of rules of other backends: which of them was chosen does not matter here.
        let rest = rest.split_inclusive('\n').filter(|line| !line.starts_with("using "));
        let text = format!("using eBPF: {why}\n{would}{text}\n{}", rest.collect::<String>());
        finish(print(&text), common.dry_run)?;
    }
    Ok(())
}

/// Whether it is eBPF that `status` is to look at.
pub(super) fn is_asked_about(ebpf: &Ebpf) -> Result<bool> {
    match ebpf.meant {
        Meant::Yes => Ok(true),
        Meant::No => Ok(false),
        Meant::Perhaps => match Node::open_if_loaded(&ebpf.folder)? {
            None => Ok(false),
            Some(node) => is_enrolled(&node),
        },
    }
}

/// Whether the pod is enrolled.
pub(super) fn is_enrolled(node: &Node) -> Result<bool> {
    Ok(node.pod(Target::current()?.cookie())?.is_some())
}

/// What to say where rules of a pod are listed that eBPF captures: it needs none.
pub(super) fn instead_of_rules() -> Option<String> {
    let folder = Path::new(DEFAULT_FOLDER);
    let enrolled = Node::open_if_loaded(folder).ok().flatten().map(|node| is_enrolled(&node));
    match enrolled {
        Some(Ok(true)) => Some(
            "eBPF captures this pod, and no rules do: `millrace explain --live --all` says what becomes \
             of its connections"
                .to_owned(),
        ),
        _ => elsewhere(folder),
    }
}

/// What to say of a pod that no programs in a folder capture, where it is captured by others of
/// Millrace's, pinned in another one.
pub(super) fn elsewhere(folder: &Path) -> Option<String> {
    elsewhere_is(Attached::beyond(folder), folder)
}

/// The same, where it is known.
pub(super) fn elsewhere_is(attached: Attached, folder: &Path) -> Option<String> {
    let shown = folder.display();
    match attached {
        Attached::No => None,
        Attached::Yes => Some(beyond(Some(folder))),
        Attached::Unclear => Some(format!(
            "{}, and {shown} does not hold it; where it is Millrace's, name the folder of its pins with \
             --bpffs",
            Attached::UNCLEAR
        )),
    }
}

/// Whether the pod is enrolled, as desired, and what it needs beside its entry is there.
pub(super) fn status(
    folder: &Path,
    common: &Common,
    config: &Config,
    session: &mut Session,
    facts: &HostFacts,
) -> Result<Exit> {
    let target = Target::current()?;
    let node = match Node::open(folder) {
        Err(EbpfError::NotLoaded(_)) => None,
        opened => Some(opened?),
    };
    let found = match &node {
        None => None,
        Some(node) => node.pod(target.cookie())?.map(|found| (node, found)),
    };
    let Some((node, found)) = found else {
        if let Some(why) = elsewhere(folder) {
            bail!("{why}");
        }
        if common.json {
            print_json(&json!({ "state": "not-captured", "loaded": node.is_some() }))?;
        } else {
            print_painted("not captured\n", common.color, paint::status)?;
        }
        return Ok(Exit::NotCaptured);
    };
    let given = if config.has_settings() {
        let policy = config::load(config, facts, false)?.policy;
        Some(extended(&policy, facts.has_v6()).into_owned())
    } else {
        None
    };
    let (wanted, rest) = match &given {
        Some(policy) => {
            let entry = target.entry(policy, &facts.groups)?;
            (node.holds(target.cookie(), &entry)?, beside(policy))
        }
        None => (true, beside_entry(&found.pod)),
    };
    let observed = session.observe(&exec::Options::default(), Depth::Ways)?;
    session.take_warnings().iter().for_each(|text| warn(text));
    let sources: Vec<_> = sources(&found.pod).collect();
    let mut rest = judge_beside(&observed, &rest, &sources, &facts.groups);
    let faults = node.faults()?;
    let sound = found.fault().is_none() && faults == Faults::default();
    let whole = wanted && sound && rest.whole;
    let state = if whole { "captured" } else { "drifted" };
    let here = || Ok(Held::here(folder)?.map(Held::listening));
    let expected = || match given {
        Some(policy) => Held::of_policy(policy, &facts.groups).ok(),
        None => here().ok().flatten(),
    };
    let treated = treated(
        &observed,
        whole,
        || expected().map(ExpectedCapture::of_ebpf),
        || here().and_then(rules::of_here),
    );
    rest.notes.extend(treated.unwrap_or_default());
    let passes = facts.uncaptured_v6().filter(|_| !captures_v6(&found.pod));
    rest.notes.extend(passes.map(str::to_owned));
    if common.json {
        let mut value = pod_json(&found);
        if let Some(object) = value.as_object_mut() {
            object.insert("state".to_owned(), json!(state));
            object.insert("asWanted".to_owned(), json!(wanted));
            object.insert("lostMaps".to_owned(), json!(faults.lost));
            object.insert("missingPrograms".to_owned(), json!(faults.missing));
            object.insert("differences".to_owned(), json!(rest.differences));
            object.insert("notes".to_owned(), json!(rest.notes));
        }
        print_json(&value)?;
    } else {
        let mut text = format!("{state}: by eBPF\n");
        if !wanted {
            text.push_str("note: the pod's entry is not that of the configuration\n");
        }
        if let Some(fault) = found.fault() {
            text.push_str(&format!("note: {fault}\n"));
        }
        if let Some(faults) = faults.reported() {
            text.push_str(&format!("note: {faults}\n"));
        }
        rest.notes.iter().for_each(|note| text.push_str(&format!("note: {note}\n")));
        text.push_str(&reported(&rest.differences));
        text.push_str(&counters_text(&found, ""));
        print_painted(&text, common.color, paint::status)?;
    }
    Ok(if whole { Exit::Ok } else { Exit::Drifted })
}

/// A pod and its counters.
pub(super) fn pod_json(found: &EnrolledPod) -> Value {
    let counters = found.counters.iter().map(|(c, n)| (c.as_str().to_owned(), json!(n)));
    let (connections, most) = found.connections;
    json!({
        "cookie": found.cookie,
        "netns": found.netns,
        "fault": found.fault(),
        "connections": connections,
        "maxConnections": most,
        "counters": Value::Object(counters.collect()),
    })
}

/// How much room the pod takes, and how often each verdict was given, one in each line.
pub(super) fn counters_text(found: &EnrolledPod, indent: &str) -> String {
    let (connections, most) = found.connections;
    let mut text = format!("{indent}connections {connections} of {most}\n");
    for (class, count) in &found.counters {
        text.extend([indent, class.as_str(), " ", &count.to_string(), "\n"]);
    }
    text
}
