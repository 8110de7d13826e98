//! ADD: decide, capture, pass the result on.

use std::path::Path;

use millrace_core::pod::PodFacts;
use serde_json::{Map, json};

use super::{Job, Served, captured_by, enter, failed, not_started};
use crate::capture::Want;
use crate::decide::{Disposition, Origin, resolve};
use crate::level::Level;
use crate::lookup::Configured;
use crate::mesh::Mesh;
use crate::note::{Note, Notes};
use crate::outcome::Outcome;
use crate::protocol::{CniError, empty_result, pass_on};
use crate::target;

pub(super) fn add(job: &mut Job<'_>) -> Result<Served, CniError> {
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
        Disposition::Pass(why) => {
            let reason = Map::from_iter([("reason".to_owned(), json!(decided.passed(why)))]);
            job.log.done(Level::Info, "not captured", reason);
            return Ok(Served::new(result, Outcome::Passed));
        }
        Disposition::Capture(captured) => captured.as_ref().clone(),
    };
    if captured.mesh != Mesh::Istio {
        job.log.debug("annotations of the pod count, those of its namespace are not asked for");
    }
    // The note comes first: what is in the namespace is never unknown to it.
    let path = job.request.netns.clone().unwrap_or_default();
    let mesh = captured.mesh;
    note(job, &path, &netns.id().to_string(), &decided.pod, mesh);
    // What captures the pod is told apart only for the log.
    if netns.has_own_users().is_ok_and(|own| own) {
        job.log.know("userNamespace", json!(true));
    }
    let (policy, deadline) = (captured.policy, job.deadline);
    let applied = enter(&netns, &path).and_then(|mut pod| {
        let config = &job.config;
        let applied = pod.apply(Want { policy, mesh, config, netns: &netns, deadline });
        applied.map_err(|error| failed(&error))
    });
    let applied = applied.map_err(not_started)?;
    for warning in &applied.outcome.warnings {
        job.log.warn(warning);
    }
    let (by, changed) = captured_by(&applied);
    let members = [
        ("mesh", json!(mesh)),
        ("reason", json!(mesh.why())),
        ("by", json!(by)),
        ("changed", json!(changed)),
        ("processes", json!(applied.outcome.processes)),
    ];
    let members = members.map(|(name, value)| (name.to_owned(), value));
    job.log.done(Level::Info, "captured", Map::from_iter(members));
    Ok(Served::new(result, Outcome::Captured))
}

/// A note that can't be written costs CHECK a lookup, and GC a pod that it does not know.
fn note(job: &mut Job<'_>, netns: &Path, id: &str, pod: &PodFacts, mesh: Mesh) {
    let reported = job.config.pod_annotations.is_some();
    let note = Note::new(pod, mesh, reported, netns, id.to_owned());
    let notes = Notes::new(&job.config.state_dir);
    if let Err(error) = notes.write(&job.config.network, &job.request.attachment, &note) {
        let folder = job.config.state_dir.display();
        job.log.warn(&format!("state_dir {folder}: no note on the pod can be written: {error}"));
    }
}
