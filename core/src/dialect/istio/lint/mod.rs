//! Common mistakes in pods that are, or are to be, in the mesh.
//!
//! ```text
//! Workload ──annotations::policy──► CapturePolicy, or what is wrong in annotations
//!     │                                   │
//!     └──► names, identity, ports, start ◄┘ ──► Findings: what, why, and what to do
//! ```

mod identity;
mod names;
mod ports;
mod start;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::annotations::{Defaults, INIT_CONTAINER, PROXY_CONTAINER, policy};
use crate::dialect::findings::{finding, of};
use crate::dialect::others::unknown_mesh;
use crate::finding::{Finding, Severity};
use crate::manifest::Workload;
use crate::pod::{Container, PodFacts};
use crate::policy::{CapturePolicy, ProxyIdentity};

/// The init container that looks whether a pod is captured.
const VALIDATION_CONTAINER: &str = "istio-validation";

/// Everything that is wrong with a pod, or with what makes pods; the worst first.
pub fn lint(workload: &Workload) -> Vec<Finding> {
    let pod = &workload.pod;
    if let Some(finding) = unknown_mesh(pod).filter(|_| !is_in_mesh(pod)) {
        return vec![finding];
    }
    // Who the proxy is no annotation about capture says.
    let bare = PodFacts { annotations: Some(BTreeMap::new()), ..pod.clone() };
    let proxy = policy(&bare, &Defaults::default()).ok().map(|captured| captured.policy.proxy);
    let mut inspection = Inspection { workload, pod, proxy, policy: None, findings: Vec::new() };
    match policy(pod, &Defaults::default()) {
        Ok(captured) => {
            for warning in captured.warnings {
                inspection.add(
                    Severity::Warning,
                    "odd-setting",
                    "the pod",
                    &warning,
                    [
                        "a setting that can't be meant so, or that the manifest does not tell, is passed \
                         over",
                        "write it as it is meant into the manifest itself, or leave it out",
                    ],
                );
            }
            inspection.policy = Some(captured.policy);
        }
        Err(errors) => {
            for error in errors.0 {
                let at = error.source_name.to_string();
                inspection.add(Severity::Error, "bad-value", &at, &format!("{:?}", error.value), [
                    "the pod's traffic can't be captured with this value: the pod does not start",
                    &error.expected,
                ]);
            }
        }
    }
    names::check(&mut inspection);
    identity::check(&mut inspection);
    ports::check(&mut inspection);
    start::check(&mut inspection);
    inspection.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    inspection.findings
}

/// Whether a pod has what the injector puts in.
pub fn is_in_mesh(pod: &PodFacts) -> bool {
    pod.containers.iter().flatten().any(Inspection::is_mesh)
}

struct Inspection<'a> {
    workload: &'a Workload,
    pod: &'a PodFacts,
    /// Who its proxy is; none if it can't be anybody.
    proxy: Option<ProxyIdentity>,
    /// What its annotations mean; none if something is wrong with them.
    policy: Option<CapturePolicy>,
    findings: Vec<Finding>,
}

impl<'a> Inspection<'a> {
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

    /// The containers that are the mesh's own.
    fn is_mesh(container: &Container) -> bool {
        [PROXY_CONTAINER, INIT_CONTAINER, VALIDATION_CONTAINER].contains(&container.name.as_str())
    }

    /// The containers of the pod that are not the mesh's.
    fn containers(&self) -> Vec<&'a Container> {
        self.pod.containers.iter().flatten().filter(|c| !Self::is_mesh(c)).collect()
    }

    /// Those that run as long as the pod does.
    fn running(&self) -> Vec<&'a Container> {
        self.containers().into_iter().filter(|c| !c.init || c.restarts).collect()
    }
}
