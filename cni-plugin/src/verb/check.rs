//! CHECK: whether the rules that ADD wrote are there and whole.

use millrace_host::capture::Checked;
use serde_json::Map;

use super::{Job, Served, enter, failed};
use crate::capture::Want;
use crate::config::Config;
use crate::decide::{Captured, Disposition, Origin, resolve};
use crate::level::Level;
use crate::lookup::Configured;
use crate::mesh::Mesh;
use crate::note::Notes;
use crate::outcome::Outcome;
use crate::protocol::{CniError, Code};
use crate::target;

pub(super) fn check(job: &mut Job<'_>) -> Result<Served, CniError> {
    if job.config.prev_result.is_none() {
        let msg = "prevResult is missing, which CHECK comes with (CNI specification, section 2)";
        return Err(CniError::new(Code::BadConfig, msg));
    }
    let netns = target::open(job.request.netns.as_deref())?;
    let notes = Notes::new(&job.config.state_dir);
    let note = notes.read(&job.config.network, &job.request.attachment).unwrap_or_else(|error| {
        job.log.warn(&format!("the note on the pod can't be read: {error}"));
        None
    });
    let note = note.filter(|note| note.is_about(&job.pod));
    let noted = note.as_ref().map(|note| note.mesh);
    let (pod, origin) = match note {
        Some(note) => (note.complete(job.pod.clone()), Origin::Note),
        None => (job.pod.clone(), Origin::Runtime),
    };
    let mut sources = Configured { config: &job.config, deadline: job.deadline };
    let decided = resolve(pod, origin, &job.config, job.env.clone(), &mut sources)?;
    let wanted = match &decided.verdict {
        Disposition::Capture(captured) => Some(captured.mesh),
        Disposition::Pass(_) => None,
    };
    if let Some(of) = noted.filter(|of| is_other(*of, wanted, &job.config)) {
        let now = wanted.map_or_else(
            || "the entry does not expect pods of that mesh any more".to_owned(),
            |mesh| format!("it is {mesh}'s now"),
        );
        return Err(drifted(format!("it was captured as a pod of {of}, and {now}")));
    }
    for warning in &decided.warnings {
        job.log.debug(warning);
    }
    let Disposition::Capture(captured) = decided.verdict else {
        job.log.done(Level::Debug, "not captured, as desired", Map::new());
        return Ok(Served::new(String::new(), Outcome::Passed));
    };
    let path = job.request.netns.clone().unwrap_or_default();
    let (Captured { policy, mesh, .. }, deadline) = (*captured, job.deadline);
    let mut pod = enter(&netns, &path)?;
    let want = Want { policy, mesh, config: &job.config, netns: &netns, deadline };
    let Checked { difference, others } = pod.check(want).map_err(|error| failed(&error))?;
    for other in &others {
        job.log.warn(other);
    }
    match difference {
        None => {
            job.log.done(Level::Debug, "captured, as desired", Map::new());
            Ok(Served::new(String::new(), Outcome::Captured))
        }
        Some(difference) => Err(drifted(difference.to_string())),
    }
}

/// Whether a pod that was captured for one mesh is not to be any more, or for another.
fn is_other(noted: Mesh, wanted: Option<Mesh>, config: &Config) -> bool {
    match wanted {
        Some(wanted) => wanted != noted,
        None => noted != Mesh::Istio && !config.expected.contains_key(&noted),
    }
}

/// What the runtime is told of a pod that is not captured as it should be.
fn drifted(difference: String) -> CniError {
    let msg = "its traffic is not captured as it should be; delete the pod to have it made anew";
    CniError::new(Code::Drifted, msg).with_details(difference)
}
