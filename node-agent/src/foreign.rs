//! Entries of other meshes' CNI plugins: whose they are, and what the same settings are here.

use std::fmt;

use millrace_cni::config::{Backend, Config, object};
use millrace_core::visible::visible;
use serde_json::{Map, Value, json};

use crate::list::Entry;
use crate::settings::Settings;

/// A mesh whose plugin captures pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mesh {
    /// Entries of type `istio-cni`, which can be taken over.
    Istio,
    /// Entries of type `linkerd-cni`, which can be taken over.
    Linkerd,
    /// Entries of type `kuma-cni`, which stay as they are.
    Kuma,
    /// Entries of type `consul-cni`, which stay as they are.
    Consul,
}

/// Why an entry is not taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotTaken {
    /// This plugin can't do what the entry asks for.
    #[error("the entry of {mesh} is not taken over: {why}")]
    CannotDo {
        /// Whose plugin the entry calls.
        mesh: Mesh,
        /// What of its settings is in the way, in words.
        why: &'static str,
    },
    /// The entry's own settings are wrong.
    #[error("the entry of {mesh} can't be read: {why}")]
    Wrong {
        /// Whose plugin the entry calls.
        mesh: Mesh,
        /// What the plugin says of it.
        why: String,
    },
}

/// Settings of an entry, and what the user should know of those that are none here.
#[derive(Debug, Default)]
pub struct Taken {
    /// Its settings under this plugin's keys.
    pub settings: Settings,
    /// Those that are left behind.
    pub words: Vec<String>,
}

impl Mesh {
    /// Each of them once; the first whose plugin's name fits an entry's type is taken.
    pub const ALL: [Self; 4] = [Self::Istio, Self::Linkerd, Self::Kuma, Self::Consul];

    /// The name of its plugin.
    pub const fn plugin(self) -> &'static str {
        match self {
            Self::Istio => "istio-cni",
            Self::Linkerd => "linkerd-cni",
            Self::Kuma => "kuma-cni",
            Self::Consul => "consul-cni",
        }
    }

    /// Whose entry has this type. Releases that stand side by side, as those of `OpenShift` Service
    /// Mesh do, have a version before or after the name.
    pub fn of(kind: &str) -> Option<Self> {
        let named = |mesh: &Self| {
            let (front, back) = kind.split_once(mesh.plugin())?;
            let apart = (front.is_empty() || front.ends_with('-'))
                && (back.is_empty() || back.starts_with('-'));
            apart.then_some(*mesh)
        };
        Self::ALL.iter().find_map(named)
    }

    /// The key under which this plugin has the settings of the mesh, where it is not the first one.
    pub const fn key(self) -> Option<&'static str> {
        match self {
            Self::Istio => None,
            Self::Linkerd => Some("linkerd"),
            Self::Kuma => Some("kuma"),
            Self::Consul => Some("consul"),
        }
    }

    /// Whether the plugin can take the settings of its entry.
    pub const fn can_be_taken(self) -> bool {
        matches!(self, Self::Istio | Self::Linkerd)
    }

    /// What the settings of its entry are here, where pods of ambient mode are enrolled or not.
    ///
    /// # Errors
    /// When the plugin can't do the same.
    pub fn take(self, entry: &Entry, ambient: bool) -> Result<Taken, NotTaken> {
        let wrong = |why: String| NotTaken::Wrong { mesh: self, why };
        let members: Map<String, Value> =
            serde_json::from_str(entry.text()).map_err(|error| wrong(error.to_string()))?;
        let mut whole = members.clone();
        whole.insert("cniVersion".to_owned(), json!("1.0.0"));
        whole.insert("name".to_owned(), json!("any"));
        let read = object(&Value::Object(whole).to_string());
        let config = read.and_then(|object| Config::parse(&object));
        let config = config.map_err(|error| wrong(visible(&error.msg).into_owned()))?;
        let named = |name: &str| members.keys().any(|own| own.eq_ignore_ascii_case(name));
        let mut settings = Map::new();
        if !config.exclude_namespaces.is_empty() {
            settings.insert("exclude_namespaces".to_owned(), json!(config.exclude_namespaces));
        }
        if named("plugin_log_level") || named("log_level") {
            settings.insert("plugin_log_level".to_owned(), json!(config.log.level.as_str()));
        }
        match self {
            Self::Istio => {
                if config.ambient && !ambient {
                    let why = "it has ambient_enabled, and pods without a sidecar would not be \
                               captured any more: run with --ambient";
                    return Err(NotTaken::CannotDo { mesh: self, why });
                }
                if let Some(namespace) = &config.agent_namespace {
                    settings.insert("pod_namespace".to_owned(), json!(namespace));
                }
                if config.backend == Backend::Nftables {
                    settings.insert("backend".to_owned(), json!("nftables"));
                }
            }
            Self::Linkerd => {
                let own = members.get("linkerd").cloned().unwrap_or_else(|| json!({}));
                settings.insert("linkerd".to_owned(), own);
            }
            Self::Kuma | Self::Consul => {
                let why = "its settings are not known here";
                return Err(NotTaken::CannotDo { mesh: self, why });
            }
        }
        let settings = Settings::new(settings).map_err(|error| wrong(error.to_string()))?;
        Ok(Taken { settings, words: config.warnings })
    }
}

impl fmt::Display for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.plugin())
    }
}

impl std::str::FromStr for Mesh {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let taken = Self::ALL.into_iter().filter(|mesh| mesh.can_be_taken());
        let names: Vec<&str> = taken.clone().map(Self::plugin).collect();
        let found = taken.into_iter().find(|mesh| mesh.plugin() == text);
        found.ok_or_else(|| {
            format!("{text:?} can't be taken over; it has to be {}", names.join(" or "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(text: &str) -> Result<Taken, NotTaken> {
        let entry = Entry::parse(text).unwrap();
        Mesh::of(entry.kind()).unwrap().take(&entry, false)
    }

    fn taken(text: &str) -> Value {
        Value::Object(take(text).unwrap().settings.members().clone())
    }

    #[test]
    fn releases_side_by_side_are_known() {
        for (kind, mesh) in [
            ("istio-cni", Some(Mesh::Istio)),
            ("v2-6-istio-cni", Some(Mesh::Istio)),
            ("istio-cni-v2-1", Some(Mesh::Istio)),
            ("linkerd-cni", Some(Mesh::Linkerd)),
            ("kuma-cni", Some(Mesh::Kuma)),
            ("consul-cni", Some(Mesh::Consul)),
            ("millrace-cni", None),
            ("notistio-cni", None),
            ("istio-cnis", None),
            ("", None),
        ] {
            assert_eq!(Mesh::of(kind), mesh, "{kind}");
        }
    }

    /// As releases from 1.23 on write it.
    #[test]
    fn istio_cnis_settings_are_kept() {
        let text = r#"{"name":"istio-cni","type":"istio-cni","plugin_log_level":"debug",
            "cni_agent_run_dir":"/var/run/istio-cni","ambient_enabled":false,"dns":{},"ipam":{},
            "exclude_namespaces":["kube-system","x"],"pod_namespace":"istio-system",
            "native_nftables":true,"enablement_selectors":[]}"#;
        let wanted = json!({
            "exclude_namespaces": ["kube-system", "x"], "plugin_log_level": "debug",
            "pod_namespace": "istio-system", "backend": "nftables",
        });
        assert_eq!(taken(text), wanted);
    }

    /// As releases up to 1.22 and `OpenShift` Service Mesh 2 write it.
    #[test]
    fn so_are_those_of_older_entries() {
        let text = r#"{"type":"v2-4-istio-cni","log_level":"warn","log_uds_address":"/x",
            "kubernetes":{"kubeconfig":"/etc/cni/net.d/ZZZ-istio-cni-kubeconfig",
            "cni_bin_dir":"/opt/cni/bin","exclude_namespaces":["openshift-operators"]}}"#;
        let wanted = json!({
            "exclude_namespaces": ["openshift-operators"], "plugin_log_level": "warn",
        });
        assert_eq!(taken(text), wanted);
    }

    #[test]
    fn what_cannot_be_done_is_not_taken() {
        let error = take(r#"{"type":"istio-cni","ambient_enabled":true}"#).unwrap_err();
        assert!(error.to_string().contains("ambient_enabled"), "{error}");
        let entry = Entry::parse(r#"{"type":"istio-cni","ambient_enabled":true}"#).unwrap();
        assert!(Mesh::Istio.take(&entry, true).is_ok());
        let error = take(r#"{"type":"istio-cni","exclude_namespaces":7}"#).unwrap_err();
        assert!(error.to_string().contains("exclude_namespaces"), "{error}");
        assert!(take(r#"{"type":"kuma-cni"}"#).is_err());
        assert!(take(r#"{"type":"consul-cni"}"#).is_err());
        assert!(take(r#"{"type":"linkerd-cni","linkerd":{"simulate":true}}"#).is_err());
    }

    #[test]
    fn linkerd_cnis_settings_are_kept() {
        let text = r#"{"name":"linkerd-cni","type":"linkerd-cni","log_level":"info",
            "policy":{"type":"k8s","k8s_api_root":"https://x","k8s_auth_token":"t"},
            "kubernetes":{"kubeconfig":"/etc/cni/net.d/ZZZ-linkerd-cni-kubeconfig"},
            "linkerd":{"incoming-proxy-port":4143,"proxy-uid":2102,"ipv6":false}}"#;
        let wanted = json!({
            "plugin_log_level": "info",
            "linkerd": { "incoming-proxy-port": 4143, "proxy-uid": 2102, "ipv6": false },
        });
        assert_eq!(taken(text), wanted);
        // A key that is none here is told, and stops nothing.
        assert!(take(text).unwrap().words[0].contains("policy"));
    }
}
