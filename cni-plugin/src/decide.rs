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

use std::collections::BTreeMap;

use millrace_core::dialect::istio::annotations::{
    Captured, Decision, Defaults, Node, PROXY_CONTAINER, Passed, SCC, STATUS, Unknown, decide,
    decide_by_contents, ids_are_ranged, names_proxy, policy,
};
use millrace_core::pod::PodFacts;
use serde::Serialize;

use crate::config::{Config, ProxyIdentity};
use crate::protocol::{CniError, Code, PodArgs};

/// Who told what is known of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Origin {
    /// The runtime, with the request.
    Runtime,
    /// The plugin's configuration.
    Configuration,
    /// What an earlier request learned.
    Note,
    /// The node agent.
    Agent,
    /// The Kubernetes API.
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
    /// Ask the node agent.
    fn agent(&mut self, pod: &PodFacts, need: Need) -> Option<Result<PodFacts, String>>;
    /// Ask the Kubernetes API.
    fn api(&mut self, pod: &PodFacts, need: Need) -> Option<Result<PodFacts, String>>;
}

/// Why a pod is captured.
pub(crate) const WHY_CAPTURED: &str = "its proxy is a sidecar, and nothing in it captures it";

/// What is to be done with a pod.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is left alone.
    Pass(Passed),
    /// It is captured so.
    Capture(Box<Captured>),
}

/// A pod that was decided about.
#[derive(Debug)]
pub(crate) struct Decided {
    /// What is known of it.
    pub(crate) pod: PodFacts,
    /// Who told.
    pub(crate) origins: Vec<Origin>,
    /// What is to be done.
    pub(crate) verdict: Verdict,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
}

/// What the runtime tells of the pod.
pub(crate) fn told(args: PodArgs, config: &Config) -> PodFacts {
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
        verdict: Verdict::Pass(Passed::NoPod),
        warnings: Vec::new(),
    };
    let node = Node {
        excluded_namespaces: &config.exclude_namespaces,
        agent_namespace: config.agent_namespace.as_deref(),
    };
    let mut decision = decide(&decided.pod, node);
    if decision == Decision::Pass(Passed::NoPod) && !config.annotations.is_empty() {
        decided.pod.annotations = Some(config.annotations.clone());
        decided.origins = vec![Origin::Configuration];
        decision = decide_by_contents(&decided.pod);
        if let Decision::Ask(unknown) = decision {
            // Nobody knows a container that is no pod.
            let msg = format!("the plugin's configuration key annotations: {unknown}");
            return Err(CniError::new(Code::BadConfig, msg));
        }
    } else if decision == Decision::Pass(Passed::NoPod) && decided.pod.annotations.is_some() {
        // Runtimes tell annotations of pods alone: one without a name may be in the mesh as well.
        match decide_by_contents(&decided.pod) {
            Decision::Pass(_) => {}
            other => decision = other,
        }
    } else {
        if let Decision::Ask(unknown) = decision {
            ask(&mut decided, unknown, sources)?;
            decision = decide(&decided.pod, node);
        }
        // A note without containers is on a pod that was captured without them.
        let known = origin == Origin::Note || decided.pod.containers.is_some();
        if decision == Decision::Capture && !known {
            identify(&mut decided, config, sources)?;
            decision = decide(&decided.pod, node);
        }
    }
    decided.verdict = match decision {
        Decision::Pass(why) => Verdict::Pass(why),
        Decision::Capture => {
            let mut captured = made(&decided.pod, config, env)?;
            decided.warnings.append(&mut captured.warnings);
            Verdict::Capture(Box::new(captured))
        }
        Decision::Ask(unknown) => return Err(unanswered(&unknown.to_string(), &[])),
    };
    Ok(decided)
}

fn made(
    pod: &PodFacts,
    config: &Config,
    env: BTreeMap<String, String>,
) -> Result<Captured, CniError> {
    let defaults = Defaults {
        uid: config.proxy_uid.clone(),
        gid: config.proxy_gid.clone(),
        proxy_env: config.proxy_env.clone(),
        env,
    };
    policy(pod, &defaults).map_err(|errors| {
        let list = errors.to_string().replace('\n', "; ");
        CniError::new(
            Code::BadAnnotation,
            format!("the pod can't be captured as it asks for: {list}; correct its annotations"),
        )
    })
}

/// Ask about a pod that may have to be captured.
fn ask(decided: &mut Decided, what: Unknown, sources: &mut dyn Sources) -> Result<(), CniError> {
    let failures = asked(decided, Need::Must, sources);
    failures.map_err(|failures| unanswered(&what.to_string(), &failures))
}

/// Find out about the proxy of a pod that is captured.
fn identify(
    decided: &mut Decided,
    config: &Config,
    sources: &mut dyn Sources,
) -> Result<(), CniError> {
    let failures = match config.proxy_identity {
        ProxyIdentity::Annotations => Vec::new(),
        ProxyIdentity::Auto => match asked(decided, Need::May, sources) {
            Ok(()) => return Ok(()),
            Err(failures) => failures,
        },
        ProxyIdentity::Lookup => {
            let what = "proxy_identity is lookup, and the proxy's container is not known";
            let failures = asked(decided, Need::Must, sources);
            return failures.map_err(|failures| unanswered(what, &failures));
        }
    };
    if config.proxy_uid.is_none() && ids_are_ranged(&decided.pod) {
        let what = format!(
            "annotation {SCC} says that its users are of a range of its namespace's own, so its \
             proxy's is not known: set proxy_uid and proxy_gid if it is the same in each pod"
        );
        return Err(unanswered(&what, &failures));
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
fn asked(decided: &mut Decided, need: Need, sources: &mut dyn Sources) -> Result<(), Vec<String>> {
    let mut failures = Vec::new();
    let agent = sources.agent(&decided.pod, need);
    if answered(decided, Origin::Agent, agent, &mut failures) {
        return Ok(());
    }
    let api = sources.api(&decided.pod, need);
    if answered(decided, Origin::Api, api, &mut failures) {
        return Ok(());
    }
    Err(failures)
}

fn answered(
    decided: &mut Decided,
    origin: Origin,
    answer: Option<Result<PodFacts, String>>,
    failures: &mut Vec<String>,
) -> bool {
    let whom = if origin == Origin::Agent { "the node agent" } else { "the Kubernetes API" };
    match answer {
        None => false,
        Some(Err(why)) => {
            failures.push(format!("{whom} did not tell: {why}"));
            false
        }
        // What the pod was made with is proof; who says otherwise knows another pod, or lies, also where
        // its own answer names the container that it lacks.
        Some(Ok(found))
            if found.container(PROXY_CONTAINER).is_none()
                && (names_proxy(&decided.pod) || names_proxy(&found)) =>
        {
            failures.push(format!(
                "{whom} knows no container {PROXY_CONTAINER} of it, which annotation {STATUS} names"
            ));
            false
        }
        Some(Ok(found)) => {
            let pod = &mut decided.pod;
            pod.annotations = pod.annotations.take().or(found.annotations);
            pod.labels = found.labels;
            pod.containers = found.containers;
            decided.origins.push(origin);
            true
        }
    }
}

fn unanswered(what: &str, failures: &[String]) -> CniError {
    let asked = if failures.is_empty() {
        "nobody is configured who could be asked: set kubeconfig in the plugin's configuration, \
         or the capability io.kubernetes.cri.pod-annotations where the runtime has it"
            .to_owned()
    } else {
        failures.join("; ")
    };
    CniError::new(
        Code::TryAgain,
        format!(
            "it may be in the mesh, so it is not started uncaptured: {what}, and {asked}. It is \
             tried again"
        ),
    )
}

#[cfg(test)]
mod tests;
