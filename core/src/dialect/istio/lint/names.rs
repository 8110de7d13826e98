//! Annotations and labels that are not what they are taken for.

use std::collections::BTreeSet;

use super::super::annotations::{
    ANNOTATIONS, EXCLUDE_INBOUND_PORTS, INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_NETWORKS,
    INCLUDE_OUTBOUND_PORTS, INJECT, KUBEVIRT_INTERFACES, REROUTE_INTERFACES,
};
use super::Look;
use crate::finding::Severity;
use crate::policy::NetworkSelection;

/// What the names of annotations about capture begin with.
const PREFIX: &str = "traffic.sidecar.istio.io/";
/// As many letters may differ for one name to be taken for another.
const NEAR: usize = 4;

pub(super) fn check(look: &mut Look<'_>) {
    unknown(look);
    misplaced(look);
    labels(look);
    wish(look);
    without_effect(look);
}

fn unknown(look: &mut Look<'_>) {
    for name in look.pod.annotations.iter().flatten().map(|(name, _)| name) {
        if !name.starts_with(PREFIX) || ANNOTATIONS.iter().any(|known| known.name == name) {
            continue;
        }
        let near = ANNOTATIONS.iter().map(|known| (distance(known.name, name), known.name)).min();
        let fix = match near.filter(|(distance, _)| *distance <= NEAR) {
            Some((_, known)) => format!("did you mean {known}?"),
            None => "take it away, or see the annotations that there are".to_owned(),
        };
        let at = format!("annotation {name}");
        look.add(
            Severity::Error,
            "unknown-annotation",
            &at,
            "there is no such annotation",
            ["nobody reads it, so what it says does not happen", &fix],
        );
    }
}

/// Annotations of what makes pods, which pods don't get.
fn misplaced(look: &mut Look<'_>) {
    for name in look.workload.annotations.keys() {
        let about_pods = ANNOTATIONS.iter().any(|known| known.name == name) || name == INJECT;
        if !about_pods {
            continue;
        }
        let at = format!("annotation {name}");
        let what = format!("it is on the {}, not on its pods", look.workload.name.kind);
        look.add(
            Severity::Error,
            "misplaced-annotation",
            &at,
            &what,
            [
                "pods get the annotations of the template alone, so what it says does not happen",
                "move it to the template: spec.template.metadata.annotations",
            ],
        );
    }
}

/// Labels that are to be annotations, and the one label on what makes pods, which pods don't get.
fn labels(look: &mut Look<'_>) {
    let is_about_pods = |name: &&String| {
        name.starts_with(PREFIX) || ANNOTATIONS.iter().any(|def| def.name == *name)
    };
    let of_pod = look.pod.labels.iter().flatten().map(|(name, _)| name);
    let names: BTreeSet<&String> =
        of_pod.chain(look.workload.labels.keys()).filter(is_about_pods).collect();
    for name in names {
        let at = format!("label {name}");
        look.add(
            Severity::Error,
            "misplaced-label",
            &at,
            "it is a label",
            [
                "only an annotation of this name is read, so what it says does not happen",
                "move it from the labels to the annotations of the pod, in a template those under \
                 spec.template.metadata",
            ],
        );
    }
    let of_pod = look.pod.labels.as_ref().is_some_and(|labels| labels.contains_key(INJECT));
    if look.workload.labels.contains_key(INJECT) && !of_pod {
        let at = format!("label {INJECT}");
        let what = format!("it is on the {}, not on its pods", look.workload.name.kind);
        look.add(
            Severity::Error,
            "misplaced-label",
            &at,
            &what,
            [
                "webhooks select pods by their own labels, so what it says does not happen",
                "move it to the template: spec.template.metadata.labels",
            ],
        );
    }
}

/// Whether the pod is to have a proxy.
fn wish(look: &mut Look<'_>) {
    let label = look.pod.labels.as_ref().and_then(|labels| labels.get(INJECT));
    let annotation = look.pod.annotation(INJECT);
    let of = [("label", label.map(String::as_str)), ("annotation", annotation)];
    for (what, value) in of {
        let Some(value) = value.filter(|value| !["true", "false"].contains(value)) else {
            continue;
        };
        let at = format!("{what} {INJECT}");
        look.add(
            Severity::Warning,
            "unclear-inject",
            &at,
            &format!("{value:?} is no answer"),
            [
                "webhooks select pods by \"true\" and \"false\"; what anything else means differs \
                 between the injector and the CNI plugin",
                "write \"true\" or \"false\", in quotes",
            ],
        );
    }
    let at = format!("annotation {INJECT}");
    match (label, annotation) {
        (Some(label), Some(annotation)) if label != annotation => {
            let what = format!("it says {annotation:?}, and the label of the same name {label:?}");
            look.add(Severity::Warning, "contradicting-inject", &at, &what, [
                "the label counts, and the annotation is passed over",
                "keep the label alone",
            ]);
        }
        (None, Some(_)) => look.add(Severity::Note, "old-inject", &at, "it is the older way", [
            "webhooks select pods by labels, so in a namespace without injection it has no effect",
            "use the label of the same name",
        ]),
        _ => {}
    }
}

fn without_effect(look: &mut Look<'_>) {
    let include = look.pod.annotation(INCLUDE_INBOUND_PORTS.name).map(str::trim);
    let exclude = look.pod.annotation(EXCLUDE_INBOUND_PORTS.name);
    if include.is_some_and(|list| list != "*")
        && exclude.is_some_and(|list| !list.trim().is_empty())
    {
        let at = format!("annotation {}", EXCLUDE_INBOUND_PORTS.name);
        let what = format!("it has no effect beside {}", INCLUDE_INBOUND_PORTS.name);
        look.add(Severity::Warning, "no-effect", &at, &what, [
            "ports are excluded only where all are captured (\"*\"); with a list, what is not in it is \
             not captured anyway, and what is in it is, excluded or not",
            "keep one of the two lists",
        ]);
    }
    let everything = look.policy.as_ref().is_some_and(|policy| {
        matches!(policy.outbound.networks, NetworkSelection::All(_))
            && !policy.outbound.ports.is_empty()
    });
    if everything {
        let at = format!("annotation {}", INCLUDE_OUTBOUND_PORTS.name);
        let what = format!("it has no effect while {} is \"*\"", INCLUDE_OUTBOUND_NETWORKS.name);
        look.add(
            Severity::Warning,
            "no-effect",
            &at,
            &what,
            [
                "every port is captured anyway, and \"*\" holds where nothing else is said",
                "to capture these ports alone set traffic.sidecar.istio.io/includeOutboundIPRanges to \
                 \"\"; otherwise leave the list out",
            ],
        );
    }
    let has = |name| look.pod.annotation(name).is_some();
    if has(REROUTE_INTERFACES.name) && has(KUBEVIRT_INTERFACES.name) {
        let at = format!("annotation {}", KUBEVIRT_INTERFACES.name);
        let what = format!("it has no effect beside {}", REROUTE_INTERFACES.name);
        look.add(
            Severity::Warning,
            "no-effect",
            &at,
            &what,
            [
                "it is the older name of the same setting, and the newer one counts",
                "keep the newer one alone",
            ],
        );
    }
}

/// How many letters have to be put in, taken out or changed to make one word the other.
fn distance(one: &str, other: &str) -> usize {
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (at, a) in one.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (index, b) in other.bytes().enumerate() {
            let change = diagonal + usize::from(!a.eq_ignore_ascii_case(&b));
            diagonal = row[index + 1];
            row[index + 1] = change.min(row[index] + 1).min(diagonal + 1);
        }
    }
    row.last().copied().unwrap_or(0)
}
