//! ADD: decide, capture, pass the result on.

use std::path::Path;
use std::time::Instant;

use millrace_core::ids::mapped;
use millrace_core::pod::PodFacts;
use millrace_core::policy::CapturePolicy;
use millrace_host::ebpf::{EbpfError, Node};
use millrace_host::netns::{Netns, NetnsError, own_ids};
use serde_json::{Map, json};

use super::{Job, enter, failed, no_namespace};
use crate::capture::Applied;
use crate::config::Backend;
use crate::decide::{Origin, Verdict, resolve};
use crate::ebpf::{self, EnrolError};
use crate::level::Level;
use crate::lookup::Configured;
use crate::mesh::Mesh;
use crate::note::{Note, Notes};
use crate::protocol::{CniError, Code, empty_result, pass_on};
use crate::target;

pub(super) fn add(job: &mut Job<'_>) -> Result<String, CniError> {
    // Everything that can be refused is, before anything is changed.
    let version = job.config.version;
    let result = match &job.config.prev_result {
        Some(previous) => pass_on(previous, version)?,
        None => empty_result(version),
    };
    let netns = target::open(job.request.netns.as_deref())?;
    let mut sources = Configured { config: &job.config, deadline: job.deadline };
    let (pod, env) = (job.pod.clone(), job.env.clone());
    let decided = resolve(pod, Origin::Runtime, &job.config, env, &mut sources)?;
    if job.config.ambient {
        job.log.debug("ambient_enabled has no effect: pods without a sidecar are not captured");
    }
    for warning in &decided.warnings {
        job.log.warn(warning);
    }
    job.log.know("knownFrom", json!(decided.origins));
    let captured = match &decided.verdict {
        Verdict::Pass(why) => {
            let reason = Map::from_iter([("reason".to_owned(), json!(decided.passed(why)))]);
            job.log.done(Level::Info, "not captured", reason);
            return Ok(result);
        }
        Verdict::Capture(captured) => captured.as_ref().clone(),
    };
    if captured.mesh == Mesh::Linkerd {
        job.log.debug("annotations of the pod count, those of its namespace are not asked for");
    }
    // The note comes first: what is in the namespace is never unknown to it.
    let path = job.request.netns.clone().unwrap_or_default();
    let mesh = captured.mesh;
    note(job, &path, &netns.id().to_string(), &decided.pod, mesh);
    let applied = if let Some(applied) = by_ebpf(job, &netns, &path, &captured.policy)? {
        applied
    } else {
        let entry = entry(job, &netns)?;
        let applied = by_rules(job, &netns, &path, captured.policy, mesh)?;
        // The rules capture the pod now.
        if let Some((node, cookie)) = entry {
            node.leave(cookie).map_err(|error| not_captured(&error))?;
        }
        applied
    };
    for warning in &applied.warnings {
        job.log.warn(warning);
    }
    let members = [
        ("mesh", json!(mesh)),
        ("reason", json!(mesh.why())),
        ("by", json!(applied.by)),
        ("changed", json!(applied.changed)),
        ("processes", json!(applied.processes)),
    ];
    let members = members.map(|(name, value)| (name.to_owned(), value));
    job.log.done(Level::Info, "captured", Map::from_iter(members));
    Ok(result)
}

/// Have the node's programs capture the pod. None where they are not to, or need not and can't.
fn by_ebpf(
    job: &mut Job<'_>,
    netns: &Netns,
    path: &Path,
    policy: &CapturePolicy,
) -> Result<Option<Applied>, CniError> {
    let asked = match job.config.backend {
        Backend::Ebpf => true,
        Backend::Auto => false,
        Backend::Nftables | Backend::Iptables => return Ok(None),
    };
    let bpffs = job.config.bpffs.clone();
    let node = match Node::open_if_loaded(&bpffs) {
        Ok(Some(node)) => node.until(job.deadline),
        Ok(None) if asked => return unable(job, asked, &EbpfError::NotLoaded(bpffs)),
        Ok(None) => {
            if job.config.expects_ebpf {
                job.log.warn(&format!(
                    "rules are written, since the node's eBPF programs are not loaded: {}",
                    EbpfError::NotLoaded(bpffs)
                ));
            }
            return Ok(None);
        }
        Err(error) => return unable(job, asked, &error),
    };
    let mut pod = enter(netns, path)?;
    let enrolled = ebpf::enrolled(&node).map_err(|error| not_captured(&error))?.is_some();
    if !asked && !enrolled && pod.holds_rules().map_err(|error| failed(&error))? {
        return Ok(None);
    }
    let left = job.deadline.saturating_duration_since(Instant::now());
    match pod.enrol(&node, policy.clone(), left) {
        Ok(applied) => Ok(Some(applied)),
        Err(EnrolError::Engine(error)) => Err(not_started(failed(&error))),
        // Beside an entry, rules would capture the pod twice.
        Err(EnrolError::Ebpf(error)) => unable(job, asked || enrolled, &error),
    }
}

/// The entry that captures the pod where the setting has changed to rules since: with both, it would
/// be captured twice. Where the setting leaves the choice, what captures the pod was asked before.
fn entry(job: &mut Job<'_>, netns: &Netns) -> Result<Option<(Node, u64)>, CniError> {
    if !matches!(job.config.backend, Backend::Nftables | Backend::Iptables) {
        return Ok(None);
    }
    let node = match Node::open_if_loaded(&job.config.bpffs) {
        Ok(None) => return Ok(None),
        Ok(Some(node)) => node.until(job.deadline),
        Err(error) => {
            let why = one_line(&error);
            job.log.warn(&format!("whether eBPF captures the pod as well can't be seen: {why}"));
            return Ok(None);
        }
    };
    netns.enter().map_err(|error| no_namespace(&error))?;
    let cookie = ebpf::enrolled(&node).map_err(|error| not_captured(&error))?;
    Ok(cookie.map(|cookie| (node, cookie)))
}

/// eBPF can't capture the pod: rules do, unless nothing else may.
fn unable(job: &mut Job<'_>, only: bool, error: &EbpfError) -> Result<Option<Applied>, CniError> {
    if error.is_busy() {
        return Err(CniError::new(Code::TryAgain, one_line(error)));
    }
    if only {
        return Err(not_captured(error));
    }
    let why = one_line(error);
    job.log.warn(&format!("rules are written, since eBPF can't be used: {why}"));
    Ok(None)
}

fn not_captured(error: &EbpfError) -> CniError {
    not_started(CniError::new(Code::NotCaptured, one_line(error)))
}

/// What the verifier says has many lines.
fn one_line(error: &EbpfError) -> String {
    error.to_string().replace('\n', " ")
}

/// Have rules capture the pod.
fn by_rules(
    job: &mut Job<'_>,
    netns: &Netns,
    path: &Path,
    policy: CapturePolicy,
    mesh: Mesh,
) -> Result<Applied, CniError> {
    enter_owner(job, netns)?;
    let mut pod = enter(netns, path)?;
    let (users, groups) = own_ids();
    mapped(&policy, &pod.groups, &users, &groups)
        .map_err(|error| not_started(CniError::new(Code::NotCaptured, error.to_string())))?;
    let left = job.deadline.saturating_duration_since(Instant::now());
    let applied = pod.apply(policy, mesh, job.config.backend, left);
    applied.map_err(|error| not_started(failed(&error)))
}

/// The error with what it means for the pod.
fn not_started(error: CniError) -> CniError {
    if error.code == Code::TryAgain {
        return error;
    }
    CniError {
        msg: format!("its traffic can't be captured, so it is not started: {}", error.msg),
        ..error
    }
}

/// A pod with users of its own has the rules written from among them, so that ids in rules are
/// those that the kernel compares.
fn enter_owner(job: &mut Job<'_>, netns: &Netns) -> Result<(), CniError> {
    match netns.enter_owner() {
        Ok(false) => Ok(()),
        Ok(true) => {
            job.log.know("userNamespace", json!(true));
            Ok(())
        }
        Err(error @ NetnsError::Owner { .. }) => {
            Err(CniError::new(Code::NotCaptured, error.to_string()))
        }
        Err(error) => Err(no_namespace(&error)),
    }
}

/// A note that can't be written costs CHECK a lookup, and GC a pod that it does not know.
fn note(job: &mut Job<'_>, netns: &Path, id: &str, pod: &PodFacts, mesh: Mesh) {
    let told = job.config.pod_annotations.is_some();
    let note = Note::new(pod, mesh, told, netns, id.to_owned());
    let notes = Notes::new(&job.config.state_dir);
    if let Err(error) = notes.write(&job.config.network, &job.request.attachment, &note) {
        let folder = job.config.state_dir.display();
        job.log.warn(&format!("state_dir {folder}: no note on the pod can be written: {error}"));
    }
}
