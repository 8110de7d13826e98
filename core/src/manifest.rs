//! Manifests of Kubernetes: files of any number of documents, and the pods in them.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::pod::PodFacts;

/// A pod, or what makes pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// What it is: `Pod`, `Deployment`, `CronJob`.
    pub kind: String,
    /// Its name.
    pub name: Option<String>,
    /// Its namespace, where it says one.
    pub namespace: Option<String>,
    /// Its own annotations, which its pods don't get; none of a pod.
    pub annotations: BTreeMap<String, String>,
    /// Whether its pods are to come to an end by themselves.
    pub ends: bool,
    /// The pod.
    pub pod: PodFacts,
}

/// A file is no manifest.
#[derive(Debug, thiserror::Error)]
pub enum BadManifest {
    /// It is neither YAML nor JSON.
    #[error("this can't be read: {0}")]
    Text(#[from] serde_saphyr::Error),
    /// A part of it is no pod.
    #[error("document {document}, {what}: this is no manifest of a pod: {why}")]
    Pod {
        /// Which document, counted from 1.
        document: usize,
        /// Kind and name.
        what: String,
        /// Why not.
        why: serde_json::Error,
    },
}

/// All pods of a file, and of everything in it that makes pods. What makes none is passed over.
///
/// # Errors
/// When it can't be read.
pub fn read(text: &str) -> Result<Vec<Workload>, BadManifest> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)?;
    let mut workloads = Vec::new();
    for (index, document) in documents.iter().enumerate() {
        collect(document, index + 1, &mut workloads)?;
    }
    Ok(workloads)
}

fn collect(
    object: &Value,
    document: usize,
    workloads: &mut Vec<Workload>,
) -> Result<(), BadManifest> {
    if let Some(items) = object.get("items").and_then(Value::as_array) {
        return items.iter().try_for_each(|item| collect(item, document, workloads));
    }
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or("Pod");
    let template = match kind {
        "Pod" => Some(object),
        "CronJob" => object.pointer("/spec/jobTemplate/spec/template"),
        "PodTemplate" => object.get("template"),
        // Whatever has a template with containers in it makes pods, also kinds of others.
        _ => object.pointer("/spec/template").filter(|t| t.pointer("/spec/containers").is_some()),
    };
    let Some(template) = template else { return Ok(()) };
    let text = |pointer| object.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
    let name = text("/metadata/name").or_else(|| text("/metadata/generateName"));
    let bad = |why| {
        let what = format!("{kind} {}", name.as_deref().unwrap_or("without a name"));
        BadManifest::Pod { document, what, why }
    };
    let pod = serde_json::from_value(template.clone()).map_err(bad)?;
    let own = object.pointer("/metadata/annotations").filter(|_| kind != "Pod");
    let own = own.and_then(Value::as_object).into_iter().flatten();
    let own = own.filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    workloads.push(Workload {
        kind: kind.to_owned(),
        name,
        namespace: text("/metadata/namespace"),
        annotations: own.collect(),
        ends: matches!(kind, "Job" | "CronJob"),
        pod,
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TWO: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
  annotations: {own: \"1\"}
spec:
  template:
    metadata: {annotations: {pods: \"2\"}}
    spec: {containers: [{name: app}]}
---
kind: List
items:
- kind: Pod
  metadata: {name: one, annotations: {x: z}}
  spec: {containers: [{name: app}]}
- kind: CronJob
  metadata: {name: nightly}
  spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: app}]}}}}}
- kind: Rollout
  metadata: {name: other}
  spec: {template: {spec: {containers: []}}}
";

    #[test]
    fn every_pod_is_found() {
        let found = read(TWO).unwrap();
        let names: Vec<_> =
            found.iter().map(|w| (w.kind.as_str(), w.name.as_deref().unwrap())).collect();
        let wanted =
            [("Deployment", "web"), ("Pod", "one"), ("CronJob", "nightly"), ("Rollout", "other")];
        assert_eq!(names, wanted);
        assert_eq!(found[0].annotations, BTreeMap::from([("own".to_owned(), "1".to_owned())]));
        assert_eq!(found[0].pod.annotation("pods"), Some("2"));
        assert_eq!(found[0].namespace.as_deref(), Some("shop"));
        assert!(found[1].annotations.is_empty() && found[1].pod.annotation("x") == Some("z"));
        assert!(found[2].ends && !found[0].ends);
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let error = read("kind: Pod\nmetadata: {name: a}\nspec: {containers: 7}\n").unwrap_err();
        assert!(error.to_string().starts_with("document 1, Pod a: this is no manifest"), "{error}");
        assert!(read("a: [").is_err());
        assert!(read("kind: ConfigMap\n").unwrap().is_empty());
    }
}
