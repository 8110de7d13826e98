//! Whose pod it is, of the meshes that are expected on this node.

use std::fmt;

use millrace_core::dialect::ConfigErrors;
use millrace_core::dialect::istio::annotations as istio;
use millrace_core::dialect::sidecar::{self, ReportedBy};
use millrace_core::pod::PodFacts;

use crate::mesh::Mesh;

/// What is to be done with a pod by what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is not captured, and this is why; also why not for each other mesh that is expected.
    Pass(istio::Passed, Vec<sidecar::Passed>),
    /// It is captured for this mesh.
    Capture(Mesh),
    /// It may have to be captured: somebody has to be asked.
    Ask(Unknown),
    /// It has the proxies of several meshes.
    Several(String),
    /// What an annotation says of a proxy is neither a yes nor a no.
    Wrong(ConfigErrors),
}

/// What has to be known before it can be decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// Something that tells whether it has a proxy of Istio's.
    Istio(istio::Unknown),
    /// Something that tells of another mesh, which is expected by this key of the entry.
    Other(&'static str, sidecar::Unknown),
}

impl Unknown {
    /// Whether somebody who is asked for the pod may tell it.
    pub(super) const fn may_be_reported(&self) -> bool {
        match self {
            Self::Istio(unknown) => unknown.may_be_reported(),
            Self::Other(..) => true,
        }
    }
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Istio(unknown) => unknown.fmt(f),
            Self::Other(key, unknown) => write!(f, "the entry has {key}, and {unknown}"),
        }
    }
}

/// What holds for every pod of the node.
#[derive(Clone, Debug)]
pub(super) struct Known<'a> {
    /// Which namespaces' pods, and which node agent, are left alone.
    pub(super) node: istio::Node<'a>,
    /// Whose pods are expected beside those of Istio.
    pub(super) expected: Vec<Mesh>,
}

impl Known<'_> {
    /// The same where nobody knows the containers of what is no pod.
    pub(super) fn by_annotations(&self) -> Self {
        let mut known = self.clone();
        known.expected.retain(|mesh| {
            mesh.sidecar().is_some_and(|sidecar| sidecar.reported_by == ReportedBy::Annotations)
        });
        known
    }

    /// Decide about a pod by what is known of it.
    pub(super) fn decide(&self, pod: &PodFacts) -> Decision {
        use istio::Passed::{Agent, Namespace, NoPod};
        match istio::decide(pod, self.node) {
            // Who it is comes before what is in it.
            istio::Decision::Pass(why @ (NoPod | Namespace(_) | Agent)) => {
                Decision::Pass(why, Vec::new())
            }
            decision => self.joined(pod, decision),
        }
    }

    /// Decide about a pod by what is in it alone, whatever it is called.
    pub(super) fn by_contents(&self, pod: &PodFacts) -> Decision {
        self.joined(pod, istio::decide_by_contents(pod))
    }

    fn joined(&self, pod: &PodFacts, istio: istio::Decision) -> Decision {
        use istio::{Decision as Istio, Passed};
        use sidecar::{Decision as Other, Passed as OtherPassed};
        let others: Vec<(Mesh, Other)> = Mesh::OTHERS
            .into_iter()
            .filter_map(|mesh| Some((mesh, (mesh.sidecar()?.decide)(pod))))
            .collect();
        let is_expected = |mesh: &Mesh| self.expected.contains(mesh);
        // A mesh captures the pod, by this plugin, by another one or from inside.
        let by_istio = matches!(istio, Istio::Capture | Istio::Pass(Passed::InitContainer));
        let captures = |decision: &Other| {
            matches!(decision, Other::Capture | Other::Pass(OtherPassed::InitContainer(_)))
        };
        let by_others = others.iter().filter(|(_, decision)| captures(decision));
        let carried: Vec<Mesh> =
            by_istio.then_some(Mesh::Istio).into_iter().chain(by_others.map(|(m, _)| *m)).collect();
        let is_left =
            |(mesh, decision): &&(Mesh, Other)| *decision == Other::Capture && is_expected(mesh);
        let left = (istio == Istio::Capture).then_some(Mesh::Istio);
        let left = left.or_else(|| others.iter().find(is_left).map(|(mesh, _)| *mesh));
        if carried.len() > 1 && left.is_some() {
            return several(&carried);
        }
        let expected = others.iter().filter(|(mesh, _)| is_expected(mesh));
        let wrong = |(_, decision): &(Mesh, Other)| match decision {
            Other::Wrong(errors) => Some(errors.clone()),
            _ => None,
        };
        if let Some(errors) = expected.clone().find_map(wrong) {
            return Decision::Wrong(errors);
        }
        if let Istio::Ask(unknown) = istio {
            return Decision::Ask(Unknown::Istio(unknown));
        }
        let mut passed = Vec::new();
        for (mesh, decision) in expected {
            match decision {
                Other::Ask(what) => {
                    return Decision::Ask(Unknown::Other(mesh.key().unwrap_or_default(), *what));
                }
                Other::Pass(why) => passed.push(*why),
                Other::Capture | Other::Wrong(_) => {}
            }
        }
        match (left, istio) {
            (Some(mesh), _) => Decision::Capture(mesh),
            (None, Istio::Pass(why)) => Decision::Pass(why, passed),
            (None, _) => Decision::Capture(Mesh::Istio),
        }
    }

    /// The container that an answer lacks though an annotation names it, which the runtime told or
    /// the answer itself. What the pod was made with is proof; who says otherwise knows another pod, or
    /// lies, also where its own answer names the container that it lacks.
    pub(super) fn contradicts(
        &self,
        pod: &PodFacts,
        found: &PodFacts,
    ) -> Option<(&'static str, &'static str)> {
        // Of a mesh whose annotations tell all, nothing of what was found is needed.
        let counts = |mesh: &Mesh| {
            mesh.sidecar().is_none_or(|sidecar| sidecar.reported_by != ReportedBy::Annotations)
        };
        let meshes = [Mesh::Istio].into_iter().chain(self.expected.iter().copied());
        let torn = |mesh: &Mesh| {
            let has_proxy = found.containers.iter().flatten().any(|c| mesh.is_proxy(c));
            !has_proxy && (mesh.names_proxy(pod) || mesh.names_proxy(found))
        };
        let torn = meshes.filter(counts).find(torn)?;
        Some((torn.proxy_container(), torn.injected()))
    }

    /// What to say of a pod that passes though it has a proxy of another mesh, as far as can be told:
    /// nobody expects one here.
    pub(super) fn unseen(&self, pod: &PodFacts, why: &istio::Passed) -> Vec<String> {
        use istio::Passed::{Agent, Namespace, NoPod};
        if matches!(why, NoPod | Namespace(_) | Agent) {
            return Vec::new();
        }
        let reported = |mesh: Mesh| {
            let (sidecar, key) = (mesh.sidecar()?, mesh.key()?);
            let (how, unless) = match (sidecar.decide)(pod) {
                sidecar::Decision::Capture if sidecar.has_proxy(pod) => {
                    (format!("container {}", sidecar.proxy), String::new())
                }
                sidecar::Decision::Capture => {
                    (format!("annotation {}", sidecar.injected), String::new())
                }
                sidecar::Decision::Ask(_) if (sidecar.names_proxy)(pod) => {
                    let inside = format!("its init container {} or ", sidecar.inside);
                    (format!("annotation {}", sidecar.injected), inside)
                }
                sidecar::Decision::Wrong(errors) => {
                    return Some(format!(
                        "whether it has a proxy of {mesh}'s is not known: {errors}"
                    ));
                }
                _ => return None,
            };
            Some(format!(
                "it has a proxy of {mesh}'s ({how}), and is not captured, since the entry has no key \
                 {key}: unless {unless}another plugin captures it, its connections go past its proxy"
            ))
        };
        let others = Mesh::OTHERS.into_iter().filter(|mesh| !self.expected.contains(mesh));
        others.filter_map(reported).collect()
    }
}

fn several(meshes: &[Mesh]) -> Decision {
    let each = |of: fn(Mesh) -> String, between: &str| {
        meshes.iter().map(|mesh| of(*mesh)).collect::<Vec<_>>().join(between)
    };
    let count = if meshes.len() == 2 { "two" } else { "several" };
    let (containers, ways) = (
        each(|mesh| format!("container {} of {mesh}", mesh.proxy_container()), " and "),
        each(|mesh| format!("its {}", mesh.leave()), " or "),
    );
    Decision::Several(format!(
        "it has the proxies of {count} meshes, {containers}, and its connections can go through one \
         only: have it injected by one alone, by {ways}"
    ))
}
