//! A list of plugins, called as libcni calls them (CNI specification, sections 3 to 5).

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Map, Value, json};

use super::call::start;
use super::{Host, Pod, Reply, pod_args};
use crate::binary;

/// Where Debian has the reference plugins.
const PLUGINS: &str = "/usr/lib/cni";

/// The plugins of a network.
#[derive(Clone, Debug)]
pub struct List {
    /// The version of the list.
    pub version: String,
    /// Its name.
    pub name: String,
    /// The plugins' entries.
    pub plugins: Vec<Value>,
}

/// An attachment that was made.
#[derive(Clone, Debug)]
pub struct Added {
    /// The result of the last plugin.
    pub result: Value,
    /// What the runtime told each plugin.
    pub runtime: Map<String, Value>,
}

impl List {
    /// A network of a bridge with addresses of both families, and Millrace behind it.
    pub fn bridge(host: &Host, version: &str, subnet: u8) -> Self {
        let bridge = json!({
            "type": "bridge",
            "bridge": format!("cni{subnet}"),
            "isGateway": true,
            "ipam": ipam(subnet),
        });
        Self::of(version, vec![bridge, host.entry()])
    }

    /// A network of a link to the host for each pod, and Millrace behind it.
    pub fn ptp(host: &Host, version: &str, subnet: u8) -> Self {
        let ptp = json!({ "type": "ptp", "ipam": ipam(subnet) });
        Self::of(version, vec![ptp, host.entry()])
    }

    fn of(version: &str, plugins: Vec<Value>) -> Self {
        Self { version: version.to_owned(), name: "pods".to_owned(), plugins }
    }

    /// Add a pod: each plugin gets the result of the one before.
    pub fn add(&self, host: &Host, pod: &Pod, annotations: Value) -> Result<Added> {
        let mut runtime = Map::new();
        runtime.insert(super::POD_ANNOTATIONS.to_owned(), annotations);
        let mut previous = None;
        for plugin in &self.plugins {
            let reply = self.call(host, "ADD", plugin, Some(pod), &runtime, previous.as_ref())?;
            let mut result =
                reply.success().with_context(|| format!("ADD by {}", plugin["type"]))?;
            // libcni fills in a version that is missing.
            if result["cniVersion"].is_null() {
                result["cniVersion"] = json!(self.version);
            }
            previous = Some(result);
        }
        Ok(Added { result: previous.context("a list without plugins")?, runtime })
    }

    /// Check a pod; every plugin gets the final result.
    pub fn check(&self, host: &Host, pod: &Pod, added: &Added) -> Result<()> {
        for plugin in &self.plugins {
            self.call(host, "CHECK", plugin, Some(pod), &added.runtime, Some(&added.result))?
                .success()
                .with_context(|| format!("CHECK by {}", plugin["type"]))?;
        }
        Ok(())
    }

    /// Delete a pod: from the last plugin to the first.
    pub fn delete(&self, host: &Host, pod: &Pod, added: Option<&Added>) -> Result<()> {
        let none = Map::new();
        let runtime = added.map_or(&none, |added| &added.runtime);
        for plugin in self.plugins.iter().rev() {
            let result = added.map(|added| &added.result);
            self.call(host, "DEL", plugin, Some(pod), runtime, result)?
                .success()
                .with_context(|| format!("DEL by {}", plugin["type"]))?;
        }
        Ok(())
    }

    /// Tell Millrace which attachments are left.
    pub fn collect(&self, host: &Host, valid: Value) -> Result<Reply> {
        let mut plugin = self.own()?.clone();
        plugin["cni.dev/attachments"] = valid.clone();
        plugin["cni.dev/valid-attachments"] = valid;
        self.call(host, "GC", &plugin, None, &Map::new(), None)
    }

    /// Ask Millrace whether it would add a pod.
    pub fn status(&self, host: &Host) -> Result<Reply> {
        self.call(host, "STATUS", self.own()?, None, &Map::new(), None)
    }

    /// The entry of Millrace.
    pub fn own(&self) -> Result<&Value> {
        let own = self.plugins.iter().find(|p| p["type"] == "millrace-cni");
        own.context("the list has no millrace-cni")
    }

    /// Call one plugin.
    pub fn call(
        &self,
        host: &Host,
        command: &str,
        plugin: &Value,
        pod: Option<&Pod>,
        runtime: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Result<Reply> {
        let mut config = plugin.clone();
        config["name"] = json!(self.name);
        config["cniVersion"] = json!(self.version);
        if let Some(previous) = previous {
            config["prevResult"] = previous.clone();
        }
        // A plugin gets what it has a capability for.
        let wanted = |name: &&String| plugin["capabilities"][name.as_str()] == true;
        let told: Map<String, Value> = runtime
            .iter()
            .filter(|(name, _)| wanted(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !told.is_empty() {
            config["runtimeConfig"] = Value::Object(told);
        }
        let mut env: Vec<(String, String)> =
            [("CNI_COMMAND", command), ("CNI_PATH", PLUGINS), ("CNI_IFNAME", "")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .to_vec();
        if let Some(pod) = pod {
            env.retain(|(name, _)| name != "CNI_IFNAME");
            let args = pod_args("shop", &pod.name, &pod.uid());
            let netns = pod.netns.display().to_string();
            let of_pod = [
                ("CNI_CONTAINERID", pod.id.clone()),
                ("CNI_NETNS", netns),
                ("CNI_IFNAME", "eth0".to_owned()),
                ("CNI_ARGS", args),
            ];
            env.extend(of_pod.map(|(name, value)| (name.to_owned(), value)));
        }
        let kind = plugin["type"].as_str().context("a plugin without a type")?;
        let child = start(host, &program(kind)?, &env, &config.to_string())?;
        Reply::of(&child.wait_with_output().with_context(|| kind.to_owned())?)
    }

    /// The address that a pod got, of this family.
    pub fn address(added: &Added, v6: bool) -> Result<String> {
        let ips = added.result["ips"].as_array().context("a result without addresses")?;
        for ip in ips {
            let text = ip["address"].as_str().context("an address")?;
            let (address, _) = text.split_once('/').context("an address with its length")?;
            if address.contains(':') == v6 {
                return Ok(address.to_owned());
            }
        }
        bail!("no such address in {}", added.result)
    }
}

/// Addresses of both families.
fn ipam(subnet: u8) -> Value {
    json!({
        "type": "host-local",
        "ranges": [
            [{ "subnet": format!("10.{subnet}.0.0/24") }],
            [{ "subnet": format!("fd{subnet:02}::/64") }],
        ],
        "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
    })
}

/// The file of a plugin.
fn program(kind: &str) -> Result<PathBuf> {
    if kind == "millrace-cni" {
        return binary::millrace_cni();
    }
    let path = Path::new(PLUGINS).join(kind);
    ensure!(
        path.is_file(),
        "there is no {}: install the package containernetworking-plugins",
        path.display()
    );
    Ok(path)
}
