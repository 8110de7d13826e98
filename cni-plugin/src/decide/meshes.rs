//! Whose pod it is, of the meshes that are expected on this node.

use std::fmt;

use millrace_core::dialect::istio::annotations as istio;
use millrace_core::dialect::linkerd::annotations as linkerd;
use millrace_core::pod::PodFacts;

use crate::mesh::Mesh;

/// What is to be done with a pod by what is known of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    /// It is not captured, and this is why; also why not for Linkerd, where that is expected.
    Pass(istio::Passed, Option<linkerd::Passed>),
    /// It is captured for this mesh.
    Capture(Mesh),
    /// It may have to be captured: somebody has to be asked.
    Ask(Unknown),
    /// It has the proxies of two meshes.
    Both(String),
}

/// What has to be known before it can be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unknown {
    /// Something that tells whether it has a proxy of Istio's.
    Istio(istio::Unknown),
    /// The containers, which alone tell whether it has a proxy of Linkerd's.
    Linkerd,
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Istio(unknown) => unknown.fmt(f),
            Self::Linkerd => write!(
                f,
                "the entry has linkerd, and whether it has a container {} no annotation tells",
                linkerd::PROXY_CONTAINER
            ),
        }
    }
}

/// What holds for every pod of the node.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known<'a> {
    /// Who is left alone.
    pub(super) node: istio::Node<'a>,
    /// Whether pods of Linkerd are expected.
    pub(super) linkerd: bool,
}

impl Known<'_> {
    /// Decide about a pod by what is known of it.
    pub(super) fn decide(self, pod: &PodFacts) -> Decision {
        use istio::Passed::{Agent, Namespace, NoPod};
        match istio::decide(pod, self.node) {
            // Who it is comes before what is in it.
            istio::Decision::Pass(why @ (NoPod | Namespace(_) | Agent)) => {
                Decision::Pass(why, None)
            }
            decision => self.joined(pod, decision),
        }
    }

    /// Decide about a pod by what is in it alone, whatever it is called.
    pub(super) fn by_contents(self, pod: &PodFacts) -> Decision {
        self.joined(pod, istio::decide_by_contents(pod))
    }

    fn joined(self, pod: &PodFacts, istio: istio::Decision) -> Decision {
        use istio::Decision as Istio;
        use linkerd::Decision as Linkerd;
        use linkerd::Passed::InitContainer;
        match (istio, linkerd::decide(pod)) {
            (Istio::Capture, Linkerd::Capture | Linkerd::Pass(InitContainer)) => both(),
            (Istio::Pass(istio::Passed::InitContainer), Linkerd::Capture) if self.linkerd => both(),
            (Istio::Ask(unknown), _) => Decision::Ask(Unknown::Istio(unknown)),
            (_, Linkerd::Ask) if self.linkerd => Decision::Ask(Unknown::Linkerd),
            (Istio::Capture, _) => Decision::Capture(Mesh::Istio),
            (Istio::Pass(_), Linkerd::Capture) if self.linkerd => Decision::Capture(Mesh::Linkerd),
            (Istio::Pass(why), Linkerd::Pass(beside)) if self.linkerd => {
                Decision::Pass(why, Some(beside))
            }
            (Istio::Pass(why), _) => Decision::Pass(why, None),
        }
    }

    /// The container that an answer lacks though an annotation names it, which the runtime told or
    /// the answer itself. What the pod was made with is proof; who says otherwise knows another pod, or
    /// lies, also where its own answer names the container that it lacks.
    pub(super) fn contradicts(
        self,
        pod: &PodFacts,
        found: &PodFacts,
    ) -> Option<(&'static str, &'static str)> {
        let named = |names: fn(&PodFacts) -> bool| names(pod) || names(found);
        let lacks = |container| found.container(container).is_none();
        if lacks(istio::PROXY_CONTAINER) && named(istio::names_proxy) {
            return Some((istio::PROXY_CONTAINER, istio::STATUS));
        }
        let lacks = self.linkerd && lacks(linkerd::PROXY_CONTAINER);
        (lacks && named(linkerd::names_proxy))
            .then_some((linkerd::PROXY_CONTAINER, linkerd::INJECTED))
    }

    /// What to say of a pod that passes though it has a proxy of Linkerd's, as far as can be told:
    /// nobody expects one here.
    pub(super) fn unseen(self, pod: &PodFacts, why: &istio::Passed) -> Option<String> {
        use istio::Passed::{Agent, Namespace, NoPod};
        if self.linkerd || matches!(why, NoPod | Namespace(_) | Agent) {
            return None;
        }
        let (how, unless) = match linkerd::decide(pod) {
            linkerd::Decision::Capture => (format!("container {}", linkerd::PROXY_CONTAINER), ""),
            linkerd::Decision::Ask if linkerd::names_proxy(pod) => {
                (format!("annotation {}", linkerd::INJECTED), "its init container linkerd-init or ")
            }
            _ => return None,
        };
        Some(format!(
            "it has a proxy of Linkerd's ({how}), and is not captured, since the entry has no key \
             linkerd: unless {unless}another plugin captures it, its connections go past its proxy"
        ))
    }
}

fn both() -> Decision {
    let (one, other) = (Mesh::Istio, Mesh::Linkerd);
    let (first, second) = (one.proxy_container(), other.proxy_container());
    Decision::Both(format!(
        "it has the proxies of two meshes, container {first} of {one} and container {second} of \
         {other}, and its connections can go through one only: have one of them not injected, by its \
         label {}: \"false\" or its annotation linkerd.io/inject: disabled",
        istio::INJECT
    ))
}
