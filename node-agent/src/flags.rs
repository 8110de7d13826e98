//! Kinds of values on the command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::{ArgAction, Args};
use millrace_core::dialect::ambient::enrol::Selectors;

use crate::ambient::Settings;
use crate::nri;
use crate::repair::{Mode, Repair};
use crate::settings::Settings as PluginSettings;
use crate::state::Hooks;

/// How pods that run are dealt with.
#[derive(Debug, Args)]
pub struct RepairFlags {
    /// What to do about a running pod that is not captured as configured; needs --node-name
    #[arg(long, env = "MILLRACE_NODE_REPAIR", value_enum, default_value = "report")]
    repair: Mode,
    /// How often to check the running pods
    #[arg(long, env = "MILLRACE_NODE_REPAIR_PERIOD", value_name = "DURATION", default_value = "5m",
          value_parser = humantime::parse_duration)]
    repair_period: Duration,
    /// The label that a pod gets with --repair label
    #[arg(
        long,
        env = "MILLRACE_NODE_REPAIR_LABEL",
        value_name = "KEY=VALUE",
        default_value = "cni.istio.io/uninitialized=true"
    )]
    repair_label: Label,
    /// Key of a taint to remove from this node once the agent is ready; needs --node-name
    #[arg(long, env = "MILLRACE_NODE_UNTAINT", value_name = "KEY")]
    untaint: Option<Key>,
    /// The host's /proc, in which the processes of pods are found
    #[arg(long, env = "MILLRACE_NODE_PROC_DIR", value_name = "FOLDER", default_value = "/proc")]
    proc_dir: PathBuf,
}

impl RepairFlags {
    /// What they say for a node.
    pub fn repair(self, node: &str) -> Repair {
        Repair {
            mode: self.repair,
            period: self.repair_period,
            label: (self.repair_label.0, self.repair_label.1),
            proc: self.proc_dir,
            untaint: self.untaint.map(|key| key.0),
            node: node.to_owned(),
        }
    }
}

/// By what new pods are captured.
#[derive(Debug, Args)]
pub struct HookFlags {
    /// What captures new pods
    #[arg(long, env = "MILLRACE_NODE_HOOK", value_enum, default_value = "cni")]
    pub hook: Hooks,
    /// Socket of the runtime's Node Resource Interface (NRI)
    #[arg(long, env = "MILLRACE_NODE_NRI_SOCKET", value_name = "FILE", default_value = nri::SOCKET)]
    pub nri_socket: PathBuf,
}

/// Whether the node has a proxy that serves pods.
#[derive(Clone, Copy, Debug, Args)]
pub struct AmbientSwitch {
    /// Enrol pods of ambient mode with the node's ztunnel; needs --node-name
    #[arg(long, env = "MILLRACE_NODE_AMBIENT", requires = "node_name")]
    pub ambient: bool,
}

impl AmbientSwitch {
    /// The plugin's settings with what the switch is to it.
    ///
    /// # Errors
    /// When the plugin doesn't take them, or they say so and the switch doesn't.
    pub fn read(self, settings: &str) -> Result<PluginSettings> {
        let settings = PluginSettings::parse(settings)?;
        match (self.ambient, settings.enrols()) {
            (true, _) => Ok(settings.enrolling()),
            (false, true) => bail!("ambient_enabled is there: say --ambient in its place"),
            (false, false) => Ok(settings),
        }
    }

    /// Check it and the hook against each other, and against whether the node has a name.
    ///
    /// # Errors
    /// What can't be had, by the names of its flags.
    pub fn goes_with(self, hook: Hooks, has_node: bool) -> Result<()> {
        if hook.connects() && !has_node {
            bail!("--hook nri and both need --node-name: the runtime doesn't tell all of a pod");
        }
        if self.ambient && !hook.installs() {
            bail!("--ambient needs --hook cni or both: pods that start are enrolled by ADD");
        }
        Ok(())
    }
}

/// Which pods the node's proxy serves, and how.
#[derive(Debug, Args)]
pub struct AmbientFlags {
    /// Which pods are enrolled: a JSON list of podSelector and namespaceSelector [default: those with the
    /// label istio.io/dataplane-mode=ambient, by themselves or by their namespace]
    #[arg(long, env = "MILLRACE_NODE_AMBIENT_SELECTORS", value_name = "JSON")]
    ambient_selectors: Option<Selectors>,
    /// Whether ztunnel gets DNS queries of pods that don't say
    #[arg(long, env = "MILLRACE_NODE_AMBIENT_DNS_CAPTURE", value_name = "BOOL", default_value = "true",
          action = ArgAction::Set)]
    ambient_dns_capture: bool,
    /// Whether IPv6 of pods is captured
    #[arg(long, env = "MILLRACE_NODE_AMBIENT_IPV6", value_name = "BOOL", default_value = "true",
          action = ArgAction::Set)]
    ambient_ipv6: bool,
    /// Whether the rules of pods that were enrolled before are compared when the agent starts
    #[arg(long, env = "MILLRACE_NODE_AMBIENT_RECONCILE", value_name = "BOOL", default_value = "true",
          action = ArgAction::Set)]
    ambient_reconcile: bool,
    /// Addresses from which probes of this node come beside those by which it reaches a pod,
    /// comma-separated
    #[arg(
        long,
        env = "MILLRACE_NODE_AMBIENT_NODE_IPS",
        value_name = "ADDRESSES",
        value_delimiter = ','
    )]
    ambient_node_ips: Vec<IpAddr>,
    /// The socket at which ztunnel is told of pods
    #[arg(
        long,
        env = "MILLRACE_NODE_ZTUNNEL_SOCKET",
        value_name = "FILE",
        default_value = "/var/run/ztunnel/ztunnel.sock"
    )]
    ztunnel_socket: PathBuf,
}

impl AmbientFlags {
    /// What they say, where pods are enrolled.
    pub fn settings(self, switch: AmbientSwitch) -> Option<Settings> {
        switch.ambient.then(|| Settings {
            selectors: self.ambient_selectors.unwrap_or_default(),
            dns_capture: self.ambient_dns_capture,
            ipv6: self.ambient_ipv6,
            reconciles: self.ambient_reconcile,
            socket: self.ztunnel_socket,
            node_ips: self.ambient_node_ips,
        })
    }
}

/// The key of a label or a taint: a name, which may have a domain in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key(pub String);

impl std::str::FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (domain, name) = text.split_once('/').map_or((None, text), |(d, n)| (Some(d), n));
        let is_domain = |domain: &str| domain.parse::<NodeName>().is_ok();
        if name.is_empty() || !is_name(name) || !domain.is_none_or(is_domain) {
            return Err(format!("{text:?} is no key of a label or a taint"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// A label's value, and a key without a domain: at most 63 bytes, letters and digits at both ends.
fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |b: Option<&u8>| b.is_none_or(u8::is_ascii_alphanumeric);
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_.".contains(b);
    bytes.len() <= 63
        && bytes.iter().all(plain)
        && alphanumeric(bytes.first())
        && alphanumeric(bytes.last())
}

/// A label's name and value (Kubernetes, «Labels and Selectors»).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label(pub String, pub String);

impl std::str::FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((key, value)) if key.parse::<Key>().is_ok() && is_name(value) => {
                Ok(Self(key.to_owned(), value.to_owned()))
            }
            _ => {
                Err(format!("{text:?} is no label: it has to be KEY=VALUE, as Kubernetes has them"))
            }
        }
    }
}

/// A node's name: a DNS subdomain (Kubernetes, «Object Names and IDs»).
#[derive(Clone, Debug)]
pub struct NodeName(pub String);

impl std::str::FromStr for NodeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-.".contains(&b);
        if text.is_empty() || text.len() > 253 || !text.bytes().all(plain) {
            return Err(format!(
                "{text:?} is no name of a node, which has lower case letters, digits, - and ."
            ));
        }
        Ok(Self(text.to_owned()))
    }
}

/// An address with its port; for the word `none` nothing listens.
#[derive(Clone, Copy, Debug)]
pub struct Address(pub Option<SocketAddr>);

impl std::str::FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let wrong =
            |_| format!("{text:?} has to be an address with a port, such as [::]:8000, or none");
        text.parse().map(|address| Self(Some(address))).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plugin_enrols_where_the_agent_does() {
        let (on, off) = (AmbientSwitch { ambient: true }, AmbientSwitch { ambient: false });
        assert!(on.read("{}").unwrap().enrols());
        assert!(!off.read("{}").unwrap().enrols());
        let error = off.read(r#"{"ambient_enabled":true}"#).unwrap_err().to_string();
        assert!(error.contains("--ambient"), "{error}");
        assert!(on.goes_with(Hooks::Cni, true).is_ok() && on.goes_with(Hooks::Both, true).is_ok());
        let error = on.goes_with(Hooks::Nri, true).unwrap_err().to_string();
        assert!(error.contains("--ambient"), "{error}");
        assert!(
            off.goes_with(Hooks::Nri, true).is_ok() && off.goes_with(Hooks::Nri, false).is_err()
        );
    }

    #[test]
    fn labels_are_read() {
        let good: Label = "a.example/b_c=d-1".parse().unwrap();
        assert_eq!(good, Label("a.example/b_c".to_owned(), "d-1".to_owned()));
        assert!("a=".parse::<Label>().is_ok());
        for bad in ["", "a", "=b", "/a=b", "A/b=c", "a b=c", "a=b c", "-a=b", "a=b-", "x/y/z=b"] {
            assert!(bad.parse::<Label>().is_err(), "{bad}");
        }
    }
}
