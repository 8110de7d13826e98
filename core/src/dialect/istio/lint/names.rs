//! Annotations and labels that are not what they are taken for.

use super::super::annotations::{
    ANNOTATIONS, EXCLUDE_INBOUND_PORTS, INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_NETWORKS,
    INCLUDE_OUTBOUND_PORTS, INJECT, KUBEVIRT_INTERFACES, REROUTE_INTERFACES,
};
use super::Inspection;
use crate::dialect::findings;
use crate::finding::Severity;
use crate::policy::NetworkSelection;

/// What the names of annotations about capture begin with.
const PREFIX: &str = "traffic.sidecar.istio.io/";

pub(super) fn check(inspection: &mut Inspection<'_>) {
    unknown(inspection);
    misplaced(inspection);
    labels(inspection);
    request(inspection);
    without_effect(inspection);
}

fn unknown(inspection: &mut Inspection<'_>) {
    for name in inspection.pod.annotations.iter().flatten().map(|(name, _)| name) {
        if name.starts_with(PREFIX) && ANNOTATIONS.iter().all(|known| known.name != name) {
            let near = findings::nearest(name, ANNOTATIONS.iter().map(|known| known.name));
            inspection.findings.push(findings::unknown(name, near, Severity::Error));
        }
    }
}

/// Annotations of what makes pods, which pods don't get.
fn misplaced(inspection: &mut Inspection<'_>) {
    let about_pods =
        |name: &str| ANNOTATIONS.iter().any(|known| known.name == name) || name == INJECT;
    inspection.findings.append(&mut findings::misplaced(inspection.workload, about_pods));
}

/// Labels that are to be annotations, and the one label on what makes pods, which pods don't get.
fn labels(inspection: &mut Inspection<'_>) {
    let is_about_pods =
        |name: &str| name.starts_with(PREFIX) || ANNOTATIONS.iter().any(|def| def.name == name);
    inspection.findings.append(&mut findings::labels(inspection.workload, is_about_pods));
    inspection.findings.extend(findings::misplaced_label(inspection.workload, INJECT));
}

/// Whether the pod is to have a proxy.
fn request(inspection: &mut Inspection<'_>) {
    let label = inspection.pod.labels.as_ref().and_then(|labels| labels.get(INJECT));
    let annotation = inspection.pod.annotation(INJECT);
    let of = [("label", label.map(String::as_str)), ("annotation", annotation)];
    for (what, value) in of {
        let Some(value) = value.filter(|value| !["true", "false"].contains(value)) else {
            continue;
        };
        let at = format!("{what} {INJECT}");
        inspection.add(
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
            inspection.add(Severity::Warning, "contradicting-inject", &at, &what, [
                "the label counts, and the annotation is passed over",
                "keep the label alone",
            ]);
        }
        (None, Some(_)) => inspection.add(Severity::Note, "old-inject", &at, "it is the older way", [
            "webhooks select pods by labels, so in a namespace without injection it has no effect",
            "use the label of the same name",
        ]),
        _ => {}
    }
}

fn without_effect(inspection: &mut Inspection<'_>) {
    let include = inspection.pod.annotation(INCLUDE_INBOUND_PORTS.name).map(str::trim);
    let exclude = inspection.pod.annotation(EXCLUDE_INBOUND_PORTS.name);
    if include.is_some_and(|list| list != "*")
        && exclude.is_some_and(|list| !list.trim().is_empty())
    {
        let at = format!("annotation {}", EXCLUDE_INBOUND_PORTS.name);
        let what = format!("it has no effect beside {}", INCLUDE_INBOUND_PORTS.name);
        inspection.add(Severity::Warning, "no-effect", &at, &what, [
            "ports are excluded only where all are captured (\"*\"); with a list, what is not in it is \
             not captured anyway, and what is in it is, excluded or not",
            "keep one of the two lists",
        ]);
    }
    let everything = inspection.policy.as_ref().is_some_and(|policy| {
        matches!(policy.outbound.networks, NetworkSelection::All(_))
            && !policy.outbound.ports.is_empty()
    });
    if everything {
        let at = format!("annotation {}", INCLUDE_OUTBOUND_PORTS.name);
        let what = format!("it has no effect while {} is \"*\"", INCLUDE_OUTBOUND_NETWORKS.name);
        inspection.add(
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
    let has = |name| inspection.pod.annotation(name).is_some();
    if has(REROUTE_INTERFACES.name) && has(KUBEVIRT_INTERFACES.name) {
        let at = format!("annotation {}", KUBEVIRT_INTERFACES.name);
        let what = format!("it has no effect beside {}", REROUTE_INTERFACES.name);
        inspection.add(
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
