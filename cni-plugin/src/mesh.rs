//! The meshes whose pods this plugin captures.

use std::fmt;

use millrace_core::dialect::sidecar::Sidecar;
use millrace_core::dialect::{Dialect, consul, istio, kuma, linkerd, native};
use millrace_core::pod::{Container, PodFacts};
use serde::{Deserialize, Serialize};

/// A mesh whose pods this plugin captures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mesh {
    /// Its pods are always expected; notes that name no mesh are on its pods.
    #[default]
    Istio,
    /// Its pods are expected where the entry has the key `linkerd`.
    Linkerd,
    /// Its pods are expected where the entry has the key `kuma`.
    Kuma,
    /// Its pods are expected where the entry has the key `consul`, or is consul-cni's.
    Consul,
}

impl Mesh {
    /// Those that the entry may expect beside Istio, each by a key of its name.
    pub(crate) const OTHERS: [Self; 3] = [Self::Linkerd, Self::Kuma, Self::Consul];

    /// What it has alike with others; none of Istio, which has its own way.
    pub(crate) const fn sidecar(self) -> Option<&'static Sidecar> {
        match self {
            Self::Istio => None,
            Self::Linkerd => Some(&linkerd::SIDECAR),
            Self::Kuma => Some(&kuma::SIDECAR),
            Self::Consul => Some(&consul::SIDECAR),
        }
    }

    /// The key of the entry by which its pods are expected; none of Istio, whose always are.
    pub(crate) const fn key(self) -> Option<&'static str> {
        match self {
            Self::Istio => None,
            Self::Linkerd => Some("linkerd"),
            Self::Kuma => Some("kuma"),
            Self::Consul => Some("consul"),
        }
    }

    /// The container that its proxy runs in.
    pub(crate) fn proxy_container(self) -> &'static str {
        self.sidecar().map_or(istio::annotations::PROXY_CONTAINER, |sidecar| sidecar.proxy)
    }

    /// Whether a container is a proxy of it.
    pub(crate) fn is_proxy(self, container: &Container) -> bool {
        match self.sidecar() {
            Some(sidecar) => sidecar.is_proxy(container),
            None => container.name == istio::annotations::PROXY_CONTAINER,
        }
    }

    /// The annotation by which its injector says that it put a proxy in.
    pub(crate) fn injected(self) -> &'static str {
        self.sidecar().map_or(istio::annotations::STATUS, |sidecar| sidecar.injected)
    }

    /// Whether the annotations of a pod say so.
    pub(crate) fn names_proxy(self, pod: &PodFacts) -> bool {
        match self.sidecar() {
            Some(sidecar) => (sidecar.names_proxy)(pod),
            None => istio::annotations::names_proxy(pod),
        }
    }

    /// How a pod is kept out of it.
    pub(crate) fn leave(self) -> String {
        match self.sidecar() {
            Some(sidecar) => sidecar.leave.to_owned(),
            None => format!("label {}: \"false\"", istio::annotations::INJECT),
        }
    }

    /// Why a pod of it is captured.
    pub(crate) const fn why(self) -> &'static str {
        match self {
            Self::Istio => "its proxy is a sidecar, and nothing in it captures it",
            Self::Linkerd => "it has a proxy of Linkerd's, and nothing in it captures it",
            Self::Kuma => "it has a proxy of Kuma's, and nothing in it captures it",
            Self::Consul => "it has a transparent proxy of Consul's, and nothing in it captures it",
        }
    }

    /// The names that its rules have: Millrace's own where a mesh's proxy expects none.
    pub(crate) fn dialect(self) -> &'static Dialect {
        self.sidecar().map_or(&native::DIALECT, |sidecar| sidecar.dialect)
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.sidecar().map_or(istio::MESH.name, |sidecar| sidecar.mesh.name))
    }
}
