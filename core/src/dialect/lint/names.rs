//! Annotations and labels that are not what they are taken for.

use super::Inspection;
use crate::dialect::findings::{self, finding};
use crate::dialect::injector::{Field, ProxyRequest};
use crate::finding::Severity;
use crate::manifest::Namespace;

pub(super) fn check(inspection: &mut Inspection<'_>) {
    unknown(inspection);
    let injector = inspection.injector;
    let about_capture = |name: &str| injector.annotations.iter().any(|def| def.name == name);
    let begins = |name: &str| injector.own.iter().any(|prefix| name.starts_with(prefix));
    let is_asked =
        |name: &str| name == injector.asked.name && injector.asked.field == Field::Annotation;
    let on_template = |name: &str| about_capture(name) || begins(name) || is_asked(name);
    inspection.findings.append(&mut findings::misplaced(inspection.workload, on_template));
    let is_annotation = |name: &str| about_capture(name) || begins(name) || is_asked(name);
    inspection.findings.append(&mut findings::labels(inspection.workload, is_annotation));
    if injector.asked.field == Field::Label {
        let misplaced = findings::misplaced_label(inspection.workload, injector.asked.name);
        inspection.findings.extend(misplaced);
    }
    request(inspection);
}

fn unknown(inspection: &mut Inspection<'_>) {
    let injector = inspection.injector;
    for name in inspection.pod.annotations.iter().flatten().map(|(name, _)| name) {
        let about_capture = || injector.annotations.iter().map(|def| def.name);
        let mut known = about_capture().chain(injector.known.iter().copied());
        let is_asked = name == injector.asked.name;
        let is_open = name.starts_with("consul.hashicorp.com/service-meta-");
        if !injector.reads(name) || is_asked || is_open || known.any(|known| known == name) {
            continue;
        }
        let near = findings::nearest(name, about_capture().chain([injector.asked.name]));
        let is_own = injector.own.iter().any(|prefix| name.starts_with(prefix));
        // A name of which nothing is known may be of a newer release.
        let severity = if near.is_some() || is_own { Severity::Error } else { Severity::Warning };
        inspection.findings.push(findings::unknown(name, near, severity));
    }
}

/// Whether the pod is to have a proxy.
fn request(inspection: &mut Inspection<'_>) {
    let asked = inspection.injector.asked;
    let (yes, no) = (asked.yes.first().copied(), asked.no.first().copied());
    let (yes, no) = (yes.unwrap_or_default(), no.unwrap_or_default());
    let at = format!("{} {}", asked.field.as_str(), asked.name);
    if inspection.injector.request(inspection.pod) == ProxyRequest::Unclear {
        let fix = format!("write \"{yes}\" or \"{no}\", in quotes");
        inspection.add(
            Severity::Error,
            "unclear-inject",
            &at,
            "it is no answer",
            [
                "the injector does not know it, so whether the pod gets a proxy does not go by it",
                &fix,
            ],
        );
    }
    // Where it is not read.
    let other = inspection.pod.annotation(asked.name).filter(|_| asked.field == Field::Label);
    if let Some(value) = other {
        let at = format!("annotation {}", asked.name);
        let what = format!("it says {value:?}, and is an annotation");
        inspection.add(
            Severity::Error,
            "old-inject",
            &at,
            &what,
            [
                "the injector goes by the label of this name alone, so what it says does not happen",
                "move it to the labels of the pod, in a template those under spec.template.metadata",
            ],
        );
    }
    let refused = inspection.injector.request(inspection.pod) == ProxyRequest::Refused;
    let names: Vec<String> = inspection
        .pod
        .annotations
        .iter()
        .flatten()
        .map(|(name, _)| name.clone())
        .filter(|name| inspection.injector.annotations.iter().any(|def| def.name == name))
        .collect();
    if refused && !inspection.injector.is_injected(inspection.pod) {
        for name in names {
            let at = format!("annotation {name}");
            let what = format!(
                "it has no effect beside {} {}: \"{no}\"",
                asked.field.as_str(),
                asked.name
            );
            inspection.add(
                Severity::Warning,
                "no-effect",
                &at,
                &what,
                ["the pod gets no proxy, so nothing of it is captured", "leave one of the two out"],
            );
        }
    }
}

/// What a pod's namespace says otherwise.
pub(super) fn in_namespace(inspection: &mut Inspection<'_>, namespaces: &[Namespace]) {
    let Some(namespace) = inspection.workload.namespace(namespaces) else { return };
    let own = &namespace.name;
    let asked = inspection.injector.asked;
    let (field, right, wrong) = match asked.field {
        Field::Label => ("label", &namespace.labels, &namespace.annotations),
        Field::Annotation => ("annotation", &namespace.annotations, &namespace.labels),
    };
    let at = format!("namespace {own}, {field} {}", asked.name);
    if wrong.contains_key(asked.name) && !right.contains_key(asked.name) {
        let what = format!("it is no {field} there");
        let why = format!("the injector reads it as a {field}, so what it says does not happen");
        let fix = format!("make it a {field} of the namespace");
        inspection.findings.push(finding(
            Severity::Error,
            "misplaced-label",
            &at,
            &what,
            [&why, &fix],
        ));
    }
    let of_namespace = inspection.injector.request_of(namespace);
    match (of_namespace, inspection.injector.request(inspection.pod)) {
        (ProxyRequest::Refused, ProxyRequest::Requested)
        | (ProxyRequest::Requested, ProxyRequest::Refused) => {
            inspection.add(
                Severity::Note,
                "contradicting-inject",
                &at,
                "it says otherwise than the pod",
                ["the pod's own word counts", "leave the pod's out if the namespace's is meant"],
            );
        }
        (ProxyRequest::Refused, ProxyRequest::Unsaid) => {
            inspection.add(
                Severity::Warning,
                "contradicting-inject",
                &at,
                "it keeps the pod out of the mesh",
                [
                    "the pod says nothing of it, and has settings of the mesh: they have no effect",
                    "have the pod injected, or leave its settings out",
                ],
            );
        }
        _ => {}
    }
    settings(inspection, namespace);
}

/// Annotations of a namespace that set how pods are captured: misplaced, or overridden.
fn settings(inspection: &mut Inspection<'_>, namespace: &Namespace) {
    let injector = inspection.injector;
    for (name, value) in &namespace.annotations {
        let is_own = injector.own.iter().any(|prefix| name.starts_with(prefix));
        if !is_own && injector.annotations.iter().all(|def| def.name != name) {
            continue;
        }
        if !injector.reads_namespaces {
            let at = format!("namespace {}, annotation {name}", namespace.name);
            inspection.add(
                Severity::Error,
                "misplaced-annotation",
                &at,
                "it is on the namespace, not on its pods",
                [
                    "the injector reads it of pods alone, so what it says does not happen",
                    "move it to the pods, in a template to spec.template.metadata.annotations",
                ],
            );
            continue;
        }
        if let Some(own) = inspection.pod.annotation(name).filter(|own| own != value) {
            let at = format!("annotation {name}");
            let what = format!("it says {own:?}, and its namespace's {value:?}");
            inspection.add(
                Severity::Note,
                "contradiction",
                &at,
                &what,
                [
                    "the pod's own annotation counts, and nothing of its namespace's is added",
                    "put into the pod's what is wanted of the namespace's",
                ],
            );
        }
    }
}
