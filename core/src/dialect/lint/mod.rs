//! Common mistakes in pods that are, or are to be, in a mesh: each pod by the mesh that it is in, and by
//! nobody else's words.
//!
//! ```text
//! Workload ──injector::meshes_of──► Injector ──policy──► CapturePolicy, or what is wrong
//!     │                                 │
//!     └──► names, places, identity, ports, doubts ──► Findings: what, why, and what to do
//! ```

mod identity;
mod names;
mod ports;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use super::findings::finding;
use super::injector::{self, Injector};
use super::{istio, others};
use crate::finding::{Finding, Severity};
use crate::manifest::{Namespace, Workload};
use crate::pod::{Container, PodFacts};
use crate::policy::CapturePolicy;

/// Everything that is wrong with a pod, or with what makes pods; the worst first. `namespaces` are those
/// that the same files describe.
pub fn lint(workload: &Workload, namespaces: &[Namespace]) -> Vec<Finding> {
    let pod = &workload.pod;
    let by_default = istio::lint::is_in_mesh(pod);
    let mut meshes = injector::meshes_of(pod, workload.namespace(namespaces));
    if meshes.is_empty() && !by_default {
        meshes = meant(workload);
    }
    let names = captured_by(pod, &meshes);
    if names.len() > 1 {
        let what = format!("it has what the injectors of {} put in", names.join(" and "));
        return vec![finding(
            Severity::Error,
            "two-meshes",
            "the pod",
            &what,
            [
                "its connections can go through one proxy only, and the CNI plugin refuses such a pod",
                "have it injected by one mesh alone",
            ],
        )];
    }
    if meshes.is_empty() || by_default {
        return istio::lint::lint(workload);
    }
    let mut findings = Vec::new();
    for injector in meshes {
        let mut inspection = Inspection::new(workload, injector);
        names::check(&mut inspection);
        names::in_namespace(&mut inspection, namespaces);
        identity::check(&mut inspection);
        ports::check(&mut inspection);
        inspection.doubts();
        findings.append(&mut inspection.findings);
    }
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    findings
}

/// The meshes whose injectors have put something into a pod: a proxy, or a container that captures.
fn captured_by(pod: &PodFacts, meshes: &[&'static Injector]) -> Vec<&'static str> {
    let by_default = istio::lint::is_in_mesh(pod) || istio::init_container(pod).is_some();
    let mut names: Vec<&str> = by_default.then_some(istio::MESH.name).into_iter().collect();
    names.extend(meshes.iter().filter(|mesh| mesh.is_injected(pod)).map(|mesh| mesh.mesh.name));
    names.extend(others::captured_by(pod));
    let mut seen = BTreeSet::new();
    names.retain(|name| seen.insert(*name));
    names
}

/// The meshes that what makes pods speaks of, where its pods don't.
fn meant(workload: &Workload) -> Vec<&'static Injector> {
    let all = injector::INJECTORS.into_iter();
    let speaks = |injector: &&Injector| {
        let names = workload.annotations.keys().chain(workload.labels.keys());
        let of_pod = workload.pod.labels.iter().flatten().map(|(name, _)| name);
        let of_pod = of_pod.chain(workload.pod.annotations.iter().flatten().map(|(name, _)| name));
        let is_about = |name: &&String| {
            **name == injector.asked.name
                || injector.annotations.iter().any(|def| def.name == **name)
                || injector.own.iter().any(|prefix| name.starts_with(prefix))
        };
        names.chain(of_pod).any(|name| is_about(&name))
    };
    all.filter(speaks).collect()
}

/// What is looked at, and what was found.
struct Inspection<'a> {
    workload: &'a Workload,
    pod: &'a PodFacts,
    injector: &'static Injector,
    /// What is captured once it is injected; none if something is wrong with its settings.
    policy: Option<CapturePolicy>,
    findings: Vec<Finding>,
}

impl<'a> Inspection<'a> {
    fn new(workload: &'a Workload, injector: &'static Injector) -> Self {
        let pod = &workload.pod;
        let mut inspection = Self { workload, pod, injector, policy: None, findings: Vec::new() };
        match (injector.policy)(pod) {
            Ok(captured) => inspection.policy = Some(captured.policy),
            Err(errors) => {
                for error in errors.0 {
                    let at = error.source_name.to_string();
                    inspection.add(Severity::Error, "bad-value", &at, &format!("{:?}", error.value), [
                        "the pod's traffic can't be captured with this value: the pod does not start, or is \
                         not captured as it asks for",
                        &error.expected,
                    ]);
                }
                let bare = PodFacts { annotations: Some(BTreeMap::new()), ..pod.clone() };
                inspection.policy = (injector.policy)(&bare).ok().map(|captured| captured.policy);
            }
        }
        inspection
    }

    fn add(
        &mut self,
        severity: Severity,
        code: &'static str,
        at: &str,
        what: &str,
        texts: [&str; 2],
    ) {
        self.findings.push(finding(severity, code, at, what, texts));
    }

    /// The containers that run as long as the pod does, and are not the mesh's.
    fn running(&self) -> Vec<&'a Container> {
        let containers = self.pod.containers.iter().flatten();
        let own = containers.filter(|c| !self.injector.is_own(c) && (!c.init || c.restarts));
        own.collect()
    }

    fn doubts(&mut self) {
        for doubt in (self.injector.doubts)(self.pod) {
            let severity = if doubt.is_error { Severity::Error } else { Severity::Warning };
            self.add(severity, "no-effect", &doubt.at, &doubt.what, [doubt.why, &doubt.fix]);
        }
    }
}
