//! Whether an object of Kubernetes has only fields that there are: it is read as its type, which passes
//! over others, and written again.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ResourceQuota, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Hold an object's fields against those of its kind.
///
/// # Errors
/// When it has other ones, lacks one or is of a kind that the chart has no reason to have.
pub fn known(object: &Value) -> Result<()> {
    let kind = object["kind"].as_str().context("a kind")?;
    let version = object["apiVersion"].as_str().context("an apiVersion")?;
    match (version, kind) {
        ("v1", "ConfigMap") => same::<ConfigMap>(object),
        ("v1", "Namespace") => same::<Namespace>(object),
        ("v1", "ResourceQuota") => same::<ResourceQuota>(object),
        ("v1", "ServiceAccount") => same::<ServiceAccount>(object),
        ("apps/v1", "DaemonSet") => same::<DaemonSet>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRole") => same::<ClusterRole>(object),
        ("rbac.authorization.k8s.io/v1", "ClusterRoleBinding") => {
            same::<ClusterRoleBinding>(object)
        }
        ("k8s.cni.cncf.io/v1", "NetworkAttachmentDefinition") => same::<Attachment>(object),
        ("monitoring.coreos.com/v1", "PodMonitor") => same::<Monitor>(object),
        ("monitoring.coreos.com/v1", "PrometheusRule") => same::<Rules>(object),
        ("security.openshift.io/v1", "SecurityContextConstraints") => same::<Constraints>(object),
        _ => bail!("{version} {kind} is not known"),
    }
    .with_context(|| format!("{kind} {}", object["metadata"]["name"]))
}

fn same<T: DeserializeOwned + Serialize>(object: &Value) -> Result<()> {
    let read: T = serde_json::from_value(object.clone())?;
    let written = serde_json::to_value(read)?;
    ensure!(written == *object, "has other fields than its kind:\n{object:#}\n{written:#}");
    Ok(())
}

/// Multus's, without a configuration of its own: the one of its name in Multus's folder counts.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Attachment {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
}

/// The Prometheus operator's: where metrics are.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Monitor {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: MonitorSpec,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MonitorSpec {
    selector: k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector,
    pod_metrics_endpoints: Vec<Endpoint>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Endpoint {
    port: String,
    path: String,
    relabelings: Vec<Relabeling>,
}

#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Relabeling {
    source_labels: Vec<String>,
    target_label: String,
}

/// The Prometheus operator's: groups of rules, as Prometheus reads them.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Rules {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    spec: RulesSpec,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct RulesSpec {
    groups: Vec<Group>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Group {
    name: String,
    rules: Vec<Rule>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Rule {
    alert: String,
    expr: String,
    #[serde(rename = "for", skip_serializing_if = "Option::is_none")]
    time: Option<String>,
    labels: Severity,
    annotations: Words,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Severity {
    severity: String,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Words {
    summary: String,
    description: String,
}

/// `OpenShift`'s: what a pod may have.
#[derive(Deserialize, Serialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Constraints {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    allow_host_dir_volume_plugin: bool,
    #[serde(rename = "allowHostIPC")]
    allow_host_ipc: bool,
    allow_host_network: bool,
    #[serde(rename = "allowHostPID")]
    allow_host_pid: bool,
    allow_host_ports: bool,
    allow_privilege_escalation: bool,
    allow_privileged_container: bool,
    allowed_capabilities: Vec<String>,
    default_add_capabilities: Vec<String>,
    fs_group: Strategy,
    groups: Vec<String>,
    priority: Option<i32>,
    read_only_root_filesystem: bool,
    required_drop_capabilities: Vec<String>,
    run_as_user: Strategy,
    #[serde(rename = "seLinuxContext")]
    selinux_context: Strategy,
    seccomp_profiles: Vec<String>,
    supplemental_groups: Strategy,
    users: Vec<String>,
    volumes: Vec<String>,
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Strategy {
    #[serde(rename = "type")]
    kind: String,
}
