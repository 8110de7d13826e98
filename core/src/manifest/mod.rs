//! Manifests of Kubernetes: files of any number of documents, and the pods in them.
//!
//! ```text
//! text ──► documents, lists ──► kinds: which objects make pods, and where in them ──► Workload
//!                                   │                                                  │
//!                                   └──► no maker of pods, or none that can be read    ▼
//!                                                                        choose: one of them
//! ```

mod choose;
mod kinds;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::pod::PodFacts;
use crate::value::yaml;

pub use choose::{BadSelector, NotChosen, Selector};
use kinds::{Contents, Detected};

/// The objects of all documents of a file, by whether they make pods.
#[derive(Clone, Debug, Default)]
pub struct Manifest {
    /// Pods, and what makes pods.
    pub workloads: Vec<Workload>,
    /// Those that can't be read.
    pub bad: Vec<BadObject>,
    /// Everything else, which makes no pods as far as is known.
    pub others: Vec<Name>,
    /// Objects of kind `Namespace` among the others.
    pub namespaces: Vec<Namespace>,
}

impl Workload {
    /// The namespace of its pods, where it is one of these.
    pub fn namespace<'n>(&self, namespaces: &'n [Namespace]) -> Option<&'n Namespace> {
        let own = self.name.namespace.as_ref()?;
        namespaces.iter().find(|namespace| namespace.name == *own)
    }
}

/// A namespace of Kubernetes, as far as it matters to the pods in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Namespace {
    /// `metadata.name`, which pods' `metadata.namespace` refers to.
    pub name: String,
    /// Some of them say for all its pods whether a mesh captures them.
    pub annotations: BTreeMap<String, String>,
    /// Some of them say for all its pods whether a mesh captures them.
    pub labels: BTreeMap<String, String>,
}

/// How an object is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    /// Its kind, `Pod` or `Deployment`.
    pub kind: String,
    /// Its namespace, where it says one.
    pub namespace: Option<String>,
    /// `metadata.name`, or `metadata.generateName` where there is none.
    pub name: Option<String>,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.name.as_deref().unwrap_or("without a name");
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{name}", self.kind),
            None => write!(f, "{} {name}", self.kind),
        }
    }
}

/// A pod, or what makes pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Kind, namespace and name, as messages have them.
    pub name: Name,
    /// Its own annotations, which its pods don't get; none of a pod.
    pub annotations: BTreeMap<String, String>,
    /// Its own labels, which its pods don't get; none of a pod.
    pub labels: BTreeMap<String, String>,
    /// Whether its pods are to come to an end by themselves.
    pub ends: bool,
    /// Whether it is a pod that the Kubernetes API has already, so that nothing is put in any more.
    pub made: bool,
    /// Why it is not known that it makes such pods: its kind is a stranger's. None where it is known.
    pub stranger: Option<String>,
    /// The pod itself, or the one that a template describes.
    pub pod: PodFacts,
}

/// A file is no manifest: it is neither YAML nor JSON.
#[derive(Debug, thiserror::Error)]
#[error("this can't be read: {0}")]
pub struct BadText(String);

/// An object that should make pods, or does not say what it is, can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("document {document}, {what}: this is no manifest of a pod: {why}")]
pub struct BadObject {
    /// Which document, counted from 1.
    document: usize,
    /// Kind, namespace and name, as far as it says them.
    what: String,
    /// What is missing or wrong in it.
    why: String,
}

/// All pods of a file, and all objects in it that make pods. One that can't be read does not keep the
/// others from being read.
///
/// # Errors
/// When the text is neither YAML nor JSON.
pub fn read(text: &str) -> Result<Manifest, BadText> {
    let documents = documents(text)?;
    let mut manifest = Manifest::default();
    for (index, document) in documents.iter().enumerate() {
        // Nothing between two lines of dashes.
        if !document.is_null() {
            collect(document, index + 1, Inherited::default(), &mut manifest);
        }
    }
    Ok(manifest)
}

/// As many values as a file of YAML may have: those of some 5,000 pods as `kubectl get -o yaml` prints
/// them. What reads YAML asks for a limit, since a few lines may stand for any number.
const MAX_VALUES: usize = 2_000_000;

fn documents(text: &str) -> Result<Vec<Value>, BadText> {
    // JSON stands for what it says and no more, and is read ten times as fast.
    if text.trim_start().starts_with('{')
        && let Ok(document) = serde_json::from_str(text)
    {
        return Ok(vec![document]);
    }
    let budget = serde_saphyr::budget! { max_nodes: MAX_VALUES, max_events: 2 * MAX_VALUES };
    let options = serde_saphyr::options! { budget: budget };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|e| BadText(yaml::said(&e)))
}

/// Whether a text is meant as objects of Kubernetes: a document in it says a kind.
pub fn says_kind(text: &str) -> bool {
    documents(text).is_ok_and(|all| all.iter().any(|document| document.get("kind").is_some()))
}

/// What the objects of a typed list need not say again (`PodList` of `v1`).
#[derive(Clone, Copy, Default)]
struct Inherited<'a> {
    kind: Option<&'a str>,
    version: Option<&'a str>,
}

fn collect(object: &Value, document: usize, list: Inherited<'_>, manifest: &mut Manifest) {
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
    let kind = text("/kind").or(list.kind);
    let version = text("/apiVersion").or(list.version);
    let name = Name {
        kind: kind.unwrap_or("object").to_owned(),
        namespace: text("/metadata/namespace").map(str::to_owned),
        name: text("/metadata/name").or_else(|| text("/metadata/generateName")).map(str::to_owned),
    };
    let bad = |why: String| BadObject { document, what: name.to_string(), why };
    let Some(kind) = kind else {
        let why = if object.is_object() { "it has no kind" } else { "it is no object" };
        manifest.bad.push(bad(why.to_owned()));
        return;
    };
    if let (Some(of), Some(Value::Array(items))) = (kind.strip_suffix("List"), object.get("items"))
    {
        let list = Inherited { kind: Some(of).filter(|of| !of.is_empty()), version };
        let list = if list.kind.is_some() { list } else { Inherited::default() };
        for item in items {
            collect(item, document, list, manifest);
        }
        return;
    }
    let (pointer, contents, stranger) = match kinds::find(object, kind, version) {
        Detected::Maker(maker) => (maker.pod, maker.contents, None),
        Detected::Stranger(pointer, why) => (pointer, Contents::Containers, Some(why)),
        Detected::Nothing => {
            if let ("Namespace", Some("v1") | None, Some(own)) = (kind, version, &name.name) {
                manifest.namespaces.push(Namespace {
                    name: own.clone(),
                    annotations: texts(object, "/metadata/annotations"),
                    labels: texts(object, "/metadata/labels"),
                });
            }
            manifest.others.push(name);
            return;
        }
    };
    let pod = match pod(object, pointer, contents) {
        Ok(pod) => pod,
        Err(why) => {
            manifest.bad.push(bad(why));
            return;
        }
    };
    let own = |field| if pointer.is_empty() { BTreeMap::new() } else { texts(object, field) };
    manifest.workloads.push(Workload {
        annotations: own("/metadata/annotations"),
        labels: own("/metadata/labels"),
        ends: matches!(kind, "Job" | "CronJob"),
        made: pointer.is_empty() && text("/metadata/uid").is_some(),
        stranger,
        pod,
        name,
    });
}

/// The texts of a map in an object.
fn texts(object: &Value, pointer: &str) -> BTreeMap<String, String> {
    let map = object.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    map.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// The pod at a place of an object.
fn pod(object: &Value, pointer: &str, contents: Contents) -> Result<PodFacts, String> {
    let path = pointer.trim_start_matches('/').replace('/', ".");
    let at = |key: &str| match path.as_str() {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    };
    let Some(template) = object.pointer(pointer) else { return Err(format!("it has no {path}")) };
    let mut template = template.clone();
    let mut wrong = Vec::new();
    for field in ["labels", "annotations"] {
        let map =
            template.pointer_mut(&format!("/metadata/{field}")).and_then(Value::as_object_mut);
        for (key, value) in map.into_iter().flatten() {
            match value {
                // As the API takes it.
                Value::Null => *value = Value::String(String::new()),
                Value::Bool(_) | Value::Number(_) => wrong.push(format!(
                    "{}.{key} is {value}, and labels and annotations are text: put it in quotes: \
                     \"{value}\"",
                    at(&format!("metadata.{field}"))
                )),
                _ => {}
            }
        }
    }
    if !wrong.is_empty() {
        return Err(wrong.join("; "));
    }
    if contents == Contents::Named {
        name_containers(&mut template);
    }
    let machine = contents == Contents::Machine;
    if machine {
        // What runs it is not in the manifest.
        template = serde_json::json!({ "metadata": template.get("metadata") });
        if template["metadata"].is_null() {
            template = serde_json::json!({});
        }
    }
    let read: Result<PodFacts, _> = serde_path_to_error::deserialize(&template);
    let pod = read.map_err(|error| {
        let (path, why) = (error.path().to_string(), error.into_inner());
        if path == "." { why.to_string() } else { format!("{}: {why}", at(&path)) }
    })?;
    Ok(if machine { PodFacts { containers: None, ..pod } } else { pod })
}

/// Containers whose names may be left out (Knative, «Container configuration»): one is called
/// `user-container`, several are counted from 0.
fn name_containers(template: &mut Value) {
    let list = template.pointer_mut("/spec/containers").and_then(Value::as_array_mut);
    let Some(list) = list else { return };
    let alone = list.len() == 1;
    for (index, container) in list.iter_mut().enumerate() {
        let Some(container) = container.as_object_mut() else { continue };
        let name = container.entry("name").or_insert(Value::Null);
        if name.as_str().is_none_or(str::is_empty) && (name.is_null() || name.is_string()) {
            let number = if alone { String::new() } else { format!("-{index}") };
            *name = Value::String(format!("user-container{number}"));
        }
    }
}
