//! ADD: decide, capture, pass the result on.

use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;

use millrace_core::pod::PodFacts;
use millrace_host::netns::Netns;
use serde_json::{Map, Value, json};

use super::{Job, Served, captured_by, enter, failed, not_started};
use crate::capture::Want;
use crate::decide::{Disposition, Origin, resolve};
use crate::level::Level;
use crate::lookup::{Configured, Enrolment, enrol};
use crate::mesh::Mesh;
use crate::note::{Note, Notes};
use crate::outcome::Outcome;
use crate::protocol::{CniError, Code, empty_result, pass_on};
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
    for warning in &decided.warnings {
        job.log.warn(warning);
    }
    job.log.know("knownFrom", json!(decided.origins));
    let captured = match &decided.verdict {
        Disposition::Pass(why) => {
            if enrolled(job, &decided.pod, &netns)? {
                return Ok(Served::new(result, Outcome::Captured));
            }
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

/// Have the node agent enrol a pod with the node's proxy, where the entry says that there is one. Gives whether
/// that serves it.
///
/// # Errors
/// Code 11 when nobody tells, or the proxy does not serve it though it should.
fn enrolled(job: &mut Job<'_>, pod: &PodFacts, netns: &Netns) -> Result<bool, CniError> {
    let config = &job.config;
    if !config.ambient {
        return Ok(false);
    }
    let Some(socket) = &config.agent_socket else {
        job.log.debug("ambient_enabled has no effect without agent_socket");
        return Ok(false);
    };
    // What is no pod of Kubernetes is in no mesh.
    let (Some(namespace), Some(_)) = (&pod.namespace, &pod.name) else { return Ok(false) };
    if config.exclude_namespaces.contains(namespace) {
        return Ok(false);
    }
    let addresses = config.prev_result.as_ref().map(|previous| addresses(previous.get()));
    let asked = netns.descriptor().map_err(|error| error.to_string()).and_then(|fd| {
        enrol(socket, pod, &addresses.unwrap_or_default(), fd.as_fd(), job.deadline)
    });
    let enrolment = asked.map_err(|why| {
        let msg = format!(
            "it is, or may be, in ambient mode, so it is not started uncaptured: the node agent did \
             not enrol it: {why}. It is tried again"
        );
        CniError::new(Code::TryAgain, msg)
    })?;
    match enrolment {
        Enrolment::Bypassed(why) => {
            job.log.know("ambient", json!(why));
            Ok(false)
        }
        Enrolment::Served => {
            let members = [
                ("reason", json!("it is in ambient mode, and the node's proxy serves it")),
                ("by", json!("node agent")),
            ];
            let members = members.map(|(name, value)| (name.to_owned(), value));
            job.log.done(Level::Info, "captured", Map::from_iter(members));
            Ok(true)
        }
    }
}

/// The addresses that the plugins before this one gave to a pod.
pub(super) fn addresses(previous: &str) -> Vec<IpAddr> {
    let previous: Value = serde_json::from_str(previous).unwrap_or_default();
    let ips = previous["ips"].as_array().map(Vec::as_slice).unwrap_or_default();
    let address = |ip: &Value| ip["address"].as_str()?.split('/').next()?.parse().ok();
    ips.iter().filter_map(address).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_those_of_the_result() {
        let text = r#"{"ips":[{"address":"10.1.0.2/24"},{"address":"fd01::2/64"},{"x":1},{"address":"y"}]}"#;
        assert_eq!(addresses(text).len(), 2);
        for other in ["{}", "[]", "no", r#"{"ips":7}"#] {
            assert!(addresses(other).is_empty(), "{other}");
        }
    }
}
