//! Which objects make pods, and where in them their pods are described.

use serde_json::Value;

/// What is described where a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contents {
    /// A pod with its containers.
    Containers,
    /// The same; containers need no names.
    Named,
    /// A virtual machine: the pod that runs it has its labels and annotations, and containers that
    /// the manifest does not tell.
    Machine,
}

/// A kind of object that makes pods.
#[derive(Debug)]
pub(super) struct Maker {
    kind: &'static str,
    /// Its API groups; the empty one is `v1`'s.
    groups: &'static [&'static str],
    /// Where the pod is described, as a JSON pointer (RFC 6901).
    pub(super) pod: &'static str,
    pub(super) contents: Contents,
}

/// The groups of Kubernetes itself, in which a kind means the same whether its version is named or not.
const BUILTIN: [&str; 4] = ["", "apps", "batch", "extensions"];
/// Where most describe their pods.
const TEMPLATE: &str = "/spec/template";

const fn maker(kind: &'static str, groups: &'static [&'static str], pod: &'static str) -> Maker {
    Maker { kind, groups, pod, contents: Contents::Containers }
}

const fn knative(kind: &'static str, pod: &'static str) -> Maker {
    Maker { kind, groups: &["serving.knative.dev"], pod, contents: Contents::Named }
}

const fn machine(kind: &'static str, groups: &'static [&'static str], pod: &'static str) -> Maker {
    Maker { kind, groups, pod, contents: Contents::Machine }
}

/// From the API references of Kubernetes, Knative Serving, `KubeVirt`, Argo Rollouts and `OpenShift`.
const MAKERS: [Maker; 18] = [
    maker("Pod", &[""], ""),
    maker("PodTemplate", &[""], "/template"),
    maker("ReplicationController", &[""], TEMPLATE),
    maker("Deployment", &["apps", "extensions"], TEMPLATE),
    maker("DaemonSet", &["apps", "extensions"], TEMPLATE),
    maker("ReplicaSet", &["apps", "extensions"], TEMPLATE),
    maker("StatefulSet", &["apps"], TEMPLATE),
    maker("Job", &["batch"], TEMPLATE),
    maker("CronJob", &["batch"], "/spec/jobTemplate/spec/template"),
    maker("Rollout", &["argoproj.io"], TEMPLATE),
    maker("DeploymentConfig", &["apps.openshift.io"], TEMPLATE),
    knative("Service", TEMPLATE),
    knative("Configuration", TEMPLATE),
    knative("Revision", ""),
    machine("VirtualMachine", &["kubevirt.io"], TEMPLATE),
    machine("VirtualMachineInstance", &["kubevirt.io"], ""),
    machine("VirtualMachineInstanceReplicaSet", &["kubevirt.io"], TEMPLATE),
    machine(
        "VirtualMachinePool",
        &["pool.kubevirt.io"],
        "/spec/virtualMachineTemplate/spec/template",
    ),
];

/// Whether an object makes pods, by its kind, API group and contents.
pub(super) enum Detected {
    /// It is a pod or makes pods, by its kind and API group.
    Maker(&'static Maker),
    /// It has something like a pod in it, at this place, but this is its kind.
    Stranger(&'static str, String),
    /// Nothing in it is like a pod.
    Nothing,
}

/// What an object of this kind and version is.
pub(super) fn find(object: &Value, kind: &str, version: Option<&str>) -> Detected {
    // `v1`, or `group/v1`.
    let group = version.map(|text| match text.split_once('/') {
        Some((group, _)) => group,
        None if text == "v1" => "",
        None => text,
    });
    let is = |maker: &&Maker| {
        maker.kind == kind
            && match group {
                Some(group) => maker.groups.contains(&group),
                None => maker.groups.iter().any(|group| BUILTIN.contains(group)),
            }
    };
    if let Some(maker) = MAKERS.iter().find(is) {
        return Detected::Maker(maker);
    }
    let version = version.map_or_else(|| "no apiVersion".to_owned(), |text| format!("{text:?}"));
    let mut named = MAKERS.iter().filter(|maker| maker.kind == kind);
    let known: Vec<String> = named
        .by_ref()
        .flat_map(|maker| maker.groups)
        .map(|group| if group.is_empty() { "v1".to_owned() } else { format!("{group}/...") })
        .collect();
    let why = if known.is_empty() {
        format!("{kind} ({version}) is no kind that is known to make pods")
    } else {
        format!(
            "a {kind} that makes pods is of {}, and this one is of {version}",
            known.join(" or ")
        )
    };
    // Others' kinds have the same template.
    let like = |pointer: &&str| {
        let spec = object.pointer(pointer).and_then(|pod| pod.get("spec"));
        spec.is_some_and(|spec| spec.get("containers").is_some())
    };
    let place = ["/spec/template", "/spec/jobTemplate/spec/template", "/template"];
    match place.into_iter().find(|pointer| like(pointer)) {
        Some(pointer) => Detected::Stranger(pointer, why),
        None if kind == "Pod" => Detected::Stranger("", why),
        None => Detected::Nothing,
    }
}
