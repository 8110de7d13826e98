//! The meshes whose pods this plugin captures.

use std::fmt;

use millrace_core::dialect::{Dialect, istio, linkerd, native};
use serde::{Deserialize, Serialize};

/// A mesh whose pods this plugin captures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mesh {
    /// Istio.
    #[default]
    Istio,
    /// Linkerd.
    Linkerd,
}

impl Mesh {
    /// The container that its proxy runs in.
    pub(crate) const fn proxy_container(self) -> &'static str {
        match self {
            Self::Istio => istio::annotations::PROXY_CONTAINER,
            Self::Linkerd => linkerd::annotations::PROXY_CONTAINER,
        }
    }

    /// Why a pod of it is captured.
    pub(crate) const fn why(self) -> &'static str {
        match self {
            Self::Istio => "its proxy is a sidecar, and nothing in it captures it",
            Self::Linkerd => "it has a proxy of Linkerd's, and nothing in it captures it",
        }
    }

    /// The names that its rules have: Millrace's own where a mesh's proxy expects none.
    pub(crate) const fn dialect(self) -> &'static Dialect {
        match self {
            Self::Istio => &native::DIALECT,
            Self::Linkerd => &linkerd::DIALECT,
        }
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Istio => istio::MESH.name,
            Self::Linkerd => linkerd::MESH.name,
        })
    }
}
