//! Command lines of meshes' tools as configurations of Millrace's own commands.

use std::ffi::OsString;

/// The words of a command line of a mesh's tool, behind its name.
#[derive(Clone, Debug)]
pub(crate) enum Tool {
    Istio(Vec<OsString>),
    Linkerd(Vec<OsString>),
    Kuma(Vec<OsString>),
    Consul(Vec<OsString>),
    Osm(Vec<OsString>),
    AppMesh(Vec<OsString>),
    Ambient(Vec<OsString>),
}

impl Tool {
    /// A command line with the name in front; none if that is of no tool.
    pub(super) fn of(words: &[OsString]) -> Option<Self> {
        let (name, rest) = words.split_first()?;
        match name.to_str()? {
            "istio-iptables" => Some(Self::Istio(rest.to_vec())),
            "consul" => Some(Self::Consul(rest.to_vec())),
            "osm" => Some(Self::Osm(rest.to_vec())),
            "appmesh" => Some(Self::AppMesh(rest.to_vec())),
            "ambient" => Some(Self::Ambient(rest.to_vec())),
            "linkerd" | "linkerd2-proxy-init" => Some(Self::Linkerd(rest.to_vec())),
            "kuma" | "kumactl" => Some(Self::Kuma(rest.to_vec())),
            _ => None,
        }
    }

    /// Its name, and the flags that say what carries its rules out.
    pub(super) const fn says(&self) -> (&'static str, &'static str) {
        match self {
            Self::Istio(_) => ("istio-iptables", "--native-nftables or --force-iptables-binary"),
            Self::Osm(_) => ("millrace osm", "--native-nftables"),
            Self::AppMesh(_) => ("millrace appmesh", "--native-nftables"),
            Self::Ambient(_) => ("millrace ambient rules", "--backend"),
            Self::Consul(_) => ("consul connect redirect-traffic", "--native-nftables"),
            Self::Linkerd(_) => ("Linkerd's proxy-init", "--native-nftables or --iptables-mode"),
            Self::Kuma(_) => ("kumactl", "--native-nftables or --iptables-executables"),
        }
    }
}
