//! Whether a pod is captured, and how: what the runtime tells first, and only where that is not
//! enough whoever knows the pod.
//!
//! ```text
//! CNI_ARGS, runtimeConfig ──► decide ──► pass
//!                               │  └───► capture ──► identify ──► policy
//!                               ▼ ask                   │
//!                 node agent, else Kubernetes API ◄─────┘
//!                 else code 11, or what annotations tell
//! ```

mod meshes;

use std::collections::BTreeMap;
use std::fmt::Display;

use meshes::{Decision, Known};
use millrace_core::dialect::ConfigErrors;
use millrace_core::dialect::istio::annotations::{
    Defaults, Node, Passed, SCC, ids_are_ranged, policy,
};
use millrace_core::dialect::sidecar::{self, ReportedBy};
use millrace_core::pod::PodFacts;
use millrace_core::policy::CapturePolicy;
use serde::Serialize;

use crate::config::{Config, ProxyIdentity};
use crate::mesh::Mesh;
use crate::protocol::{CniError, Code, PodArgs};

/// Who told what is known of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Origin {
    /// The runtime, with the request.
    Runtime,
    /// The entry's key `annotations`, for containers that are no pods.
    Configuration,
    /// What an earlier request learned.
    Note,
    /// The node agent, at `agent_socket`.
    Agent,
    /// The Kubernetes API, by `kubeconfig` or by the node agent that watches it.
    Api,
}

/// How much hangs on an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Without one the pod is refused.
    Must,
    /// Without one it is captured by what its annotations tell.
    May,
}

/// Who may be asked about a pod. None where nobody is configured.
pub(crate) trait Sources {
    /// By `agent_socket`; an error is why it told nothing of the pod.
    fn agent(&mut self, pod: &PodFacts, need: Need) -> Option<Result<PodFacts, String>>;
    /// By `kubeconfig`; an error is why it told nothing of the pod.
    fn api(&mut self, pod: &PodFacts, need: Need) -> Option<Result<PodFacts, String>>;
}

/// How a pod is captured.
#[derive(Clone, Debug)]
pub(crate) struct Captured {
    /// The mesh whose proxy it has, by whose conventions its policy is made.
    pub(crate) mesh: Mesh,
    /// What is captured, by the pod's annotations, its proxy and the entry.
    pub(crate) policy: CapturePolicy,
}

/// What is to be done with a pod.
#[derive(Debug)]
pub(crate) enum Disposition {
    /// It is not captured, and why; [`Decided::beside`] has more reasons.
    Pass(Passed),
    /// It is captured by this policy, for this mesh.
    Capture(Box<Captured>),
}

/// A pod that was decided about.
#[derive(Debug)]
pub(crate) struct Decided {
    /// What is known of it.
    pub(crate) pod: PodFacts,
    /// The sources of what is known, in order; the first is the request, a note or the entry.
    pub(crate) origins: Vec<Origin>,
    /// What is to be done.
    pub(crate) verdict: Disposition,
    /// Why it is not captured for any other mesh that is expected.
    pub(crate) beside: Vec<sidecar::Passed>,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
}

impl Decided {
    /// Why it is not captured, for each mesh that is expected.
    pub(crate) fn passed(&self, why: &Passed) -> String {
        let beside = self.beside.iter().map(|why| format!("; {why}"));
        format!("{why}{}", beside.collect::<String>())
    }
}

/// What the runtime tells of the pod.
pub(crate) fn reported(args: PodArgs, config: &Config) -> PodFacts {
    PodFacts { annotations: config.pod_annotations.clone(), ..args.into() }
}

/// How a pod is called in messages.
pub(crate) fn called(pod: &PodFacts) -> String {
    match (&pod.namespace, &pod.name) {
        (Some(namespace), Some(name)) => format!("pod {namespace}/{name}"),
        (None, Some(name)) => format!("container {name}"),
        _ => "container without a pod's name".to_owned(),
    }
}

/// Decide about a pod, of which this is known from the runtime, or from a note beside it.
///
/// # Errors
/// Code 11 when it may be in the mesh and nobody can tell; 102 when its annotations are wrong.
pub(crate) fn resolve(
    pod: PodFacts,
    origin: Origin,
    config: &Config,
    env: BTreeMap<String, String>,
    sources: &mut dyn Sources,
) -> Result<Decided, CniError> {
    let mut decided = Decided {
        pod,
        origins: vec![origin],
        verdict: Disposition::Pass(Passed::NoPod),
        beside: Vec::new(),
        warnings: Vec::new(),
    };
    let known = Known {
        node: Node {
            excluded_namespaces: &config.exclude_namespaces,
            agent_namespace: config.agent_namespace.as_deref(),
        },
        expected: config.expected.keys().copied().collect(),
    };
    let nobody = Decision::Pass(Passed::NoPod, Vec::new());
    let mut decision = known.decide(&decided.pod);
    if decision == nobody && !config.annotations.is_empty() {
        decided.pod.annotations = Some(config.annotations.clone());
        decided.origins = vec![Origin::Configuration];
        decision = known.by_annotations().by_contents(&decided.pod);
        if let Decision::Ask(unknown) = decision {
            // Nobody knows a container that is no pod.
            let msg = format!("the plugin's configuration key annotations: {unknown}");
            return Err(CniError::new(Code::BadConfig, msg));
        }
    } else if decision == nobody && decided.pod.annotations.is_some() {
        // Runtimes tell annotations of pods alone: one without a name may be in the mesh as well.
        match known.by_contents(&decided.pod) {
            Decision::Pass(..) => {}
            other => decision = other,
        }
    } else {
        if let Decision::Ask(unknown) = &decision
            && unknown.may_be_reported()
        {
            let asked = asked(&mut decided, &known, Need::Must, sources);
            asked.map_err(|failures| unanswered(unknown, &failures, config))?;
            decision = known.decide(&decided.pod);
        }
        // A note without containers is on a pod that was captured without them.
        let is_known = origin == Origin::Note || decided.pod.containers.is_some();
        if decision == Decision::Capture(Mesh::Istio) && !is_known {
            identify(&mut decided, &known, config, sources)?;
            decision = known.decide(&decided.pod);
        }
    }
    decided.verdict = match decision {
        Decision::Pass(why, beside) => {
            decided.beside = beside;
            decided.warnings.extend(known.unseen(&decided.pod, &why));
            Disposition::Pass(why)
        }
        Decision::Capture(mesh) => {
            let policy = made(mesh, &decided.pod, config, env, &mut decided.warnings)?;
            Disposition::Capture(Box::new(Captured { mesh, policy }))
        }
        Decision::Ask(unknown) if unknown.may_be_reported() => {
            return Err(unanswered(&unknown, &[], config));
        }
        Decision::Ask(unknown) => return Err(not_started(&unknown.to_string())),
        Decision::Several(why) => return Err(CniError::new(Code::TwoMeshes, why)),
        Decision::Wrong(why) => return Err(wrong(&why)),
    };
    Ok(decided)
}

fn made(
    mesh: Mesh,
    pod: &PodFacts,
    config: &Config,
    env: BTreeMap<String, String>,
    warnings: &mut Vec<String>,
) -> Result<CapturePolicy, CniError> {
    let refused = |errors: ConfigErrors| wrong(&errors);
    // It is decided for another mesh only where the entry has its settings.
    if let (Some(sidecar), Some(settings)) = (mesh.sidecar(), config.expected.get(&mesh)) {
        let mut made = (sidecar.policy)(pod, settings).map_err(refused)?;
        warnings.append(&mut made.warnings);
        return Ok(made.policy);
    }
    let defaults = Defaults {
        uid: config.proxy_uid.clone(),
        gid: config.proxy_gid.clone(),
        proxy_env: config.proxy_env.clone(),
        env,
    };
    let mut made = policy(pod, &defaults).map_err(refused)?;
    warnings.append(&mut made.warnings);
    Ok(made.policy)
}

/// Find out about the proxy of a pod that is captured.
fn identify(
    decided: &mut Decided,
    known: &Known<'_>,
    config: &Config,
    sources: &mut dyn Sources,
) -> Result<(), CniError> {
    let failures = match config.proxy_identity {
        ProxyIdentity::Annotations => Vec::new(),
        ProxyIdentity::Auto => match asked(decided, known, Need::May, sources) {
            Ok(()) => return Ok(()),
            Err(failures) => failures,
        },
        ProxyIdentity::Lookup => {
            let what = "proxy_identity is lookup, and the proxy's container is not known";
            let asked = asked(decided, known, Need::Must, sources);
            return asked.map_err(|failures| unanswered(&what, &failures, config));
        }
    };
    if config.proxy_uid.is_none() && ids_are_ranged(&decided.pod) {
        let what = format!(
            "annotation {SCC} says that its users are of a range of its namespace's own, so its \
             proxy's is not known: set proxy_uid and proxy_gid if it is the same in each pod"
        );
        return Err(unanswered(&what, &failures, config));
    }
    if !failures.is_empty() {
        decided.warnings.push(format!(
            "{}; the proxy's ids and variables, whether DNS is captured among them, are taken from \
             the pod's annotations, proxy_uid, proxy_gid and proxy_env",
            failures.join("; ")
        ));
    }
    Ok(())
}

/// Ask until somebody answers; gives why nobody did. What the runtime tells stays: it is what the
/// pod was made with.
fn asked(
    decided: &mut Decided,
    known: &Known<'_>,
    need: Need,
    sources: &mut dyn Sources,
) -> Result<(), Vec<String>> {
    let mut failures = Vec::new();
    let agent = sources.agent(&decided.pod, need);
    if answered(decided, known, Origin::Agent, agent, &mut failures) {
        return Ok(());
    }
    let api = sources.api(&decided.pod, need);
    if answered(decided, known, Origin::Api, api, &mut failures) {
        return Ok(());
    }
    Err(failures)
}

fn answered(
    decided: &mut Decided,
    known: &Known<'_>,
    origin: Origin,
    answer: Option<Result<PodFacts, String>>,
    failures: &mut Vec<String>,
) -> bool {
    let whom = if origin == Origin::Agent { "the node agent" } else { "the Kubernetes API" };
    match answer {
        None => false,
        Some(Err(why)) => {
            failures.push(format!("the lookup at {whom} failed: {why}"));
            false
        }
        Some(Ok(found)) => {
            if let Some((container, annotation)) = known.contradicts(&decided.pod, &found) {
                failures.push(format!(
                    "{whom} knows no container {container} of it, which annotation {annotation} names"
                ));
                return false;
            }
            let pod = &mut decided.pod;
            pod.annotations = pod.annotations.take().or(found.annotations);
            pod.labels = found.labels;
            pod.containers = found.containers;
            decided.origins.push(origin);
            true
        }
    }
}

/// What is to be set where nobody can be asked.
pub(crate) fn nobody(config: &Config) -> String {
    let mut each = config.expected.keys().filter(|mesh| {
        mesh.sidecar().is_some_and(|sidecar| sidecar.reported_by == ReportedBy::Containers)
    });
    match each.find_map(|mesh| mesh.key()) {
        Some(key) => format!(
            "neither node agent nor API is configured for lookups: set kubeconfig in the plugin's \
             configuration, since with {key} every pod has to be looked up"
        ),
        None => "neither node agent nor API is configured for lookups: set kubeconfig in the \
                 plugin's configuration, or the capability io.kubernetes.cri.pod-annotations \
                 where the runtime has it"
            .to_owned(),
    }
}

fn unanswered(what: &dyn Display, failures: &[String], config: &Config) -> CniError {
    let asked = if failures.is_empty() { nobody(config) } else { failures.join("; ") };
    not_started(&format!("{what}, and {asked}"))
}

fn not_started(why: &str) -> CniError {
    let msg =
        format!("it may be in the mesh, so it is not started uncaptured: {why}. It is tried again");
    CniError::new(Code::TryAgain, msg)
}

fn wrong(errors: &ConfigErrors) -> CniError {
    let list = errors.to_string().replace('\n', "; ");
    let msg = format!("the pod can't be captured as it asks for: {list}; correct its annotations");
    CniError::new(Code::BadAnnotation, msg)
}

#[cfg(test)]
mod tests;
