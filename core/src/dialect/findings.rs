//! Findings that are the same in every mesh, but for its words.

use std::collections::BTreeSet;

use crate::finding::{Finding, Severity};
use crate::manifest::Workload;
use crate::pod::Container;
use crate::policy::ProxyIdentity;

/// As many letters may differ for one name to be taken for another.
const NEAR: usize = 4;
/// The capability that lets a container take rules away.
const NET_ADMIN: &str = "NET_ADMIN";

/// A finding: what, why, and what to do.
pub(super) fn finding(
    severity: Severity,
    code: &'static str,
    at: &str,
    what: &str,
    [why, fix]: [&str; 2],
) -> Finding {
    let own = str::to_owned;
    Finding { severity, code, at: own(at), what: own(what), why: own(why), fix: own(fix) }
}

/// How a container is called in findings.
pub(super) fn of(container: &Container) -> String {
    let kind = if container.init && !container.restarts { "init container" } else { "container" };
    format!("{kind} {}", container.name)
}

/// The name that is nearest to one that is not known.
pub(super) fn nearest(
    name: &str,
    known: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    let near = known.map(|known| (distance(known, name), known)).min();
    near.filter(|(distance, _)| *distance <= NEAR).map(|(_, known)| known)
}

/// An annotation that nobody reads.
pub(super) fn unknown(name: &str, near: Option<&str>, severity: Severity) -> Finding {
    let fix = match near {
        Some(known) => format!("did you mean {known}?"),
        None => "take it away, or see the annotations that there are".to_owned(),
    };
    finding(
        severity,
        "unknown-annotation",
        &format!("annotation {name}"),
        "there is no such annotation",
        ["nobody reads it, so what it says does not happen", &fix],
    )
}

/// Annotations of what makes pods, which pods don't get.
pub(super) fn misplaced(workload: &Workload, about_pods: impl Fn(&str) -> bool) -> Vec<Finding> {
    let names = workload.annotations.keys().filter(|name| about_pods(name));
    let one = |name: &String| {
        let what = format!("it is on the {}, not on its pods", workload.name.kind);
        finding(
            Severity::Error,
            "misplaced-annotation",
            &format!("annotation {name}"),
            &what,
            [
                "pods get the annotations of the template alone, so what it says does not happen",
                "move it to the template: spec.template.metadata.annotations",
            ],
        )
    };
    names.map(one).collect()
}

/// A label of what makes pods, which pods don't get.
pub(super) fn misplaced_label(workload: &Workload, name: &str) -> Option<Finding> {
    let of_pod = workload.pod.labels.as_ref().is_some_and(|labels| labels.contains_key(name));
    if !workload.labels.contains_key(name) || of_pod {
        return None;
    }
    let what = format!("it is on the {}, not on its pods", workload.name.kind);
    Some(finding(
        Severity::Error,
        "misplaced-label",
        &format!("label {name}"),
        &what,
        [
            "webhooks select pods by their own labels, so what it says does not happen",
            "move it to the template: spec.template.metadata.labels",
        ],
    ))
}

/// Labels that are to be annotations, of pods and of what makes them.
pub(super) fn labels(workload: &Workload, is_annotation: impl Fn(&str) -> bool) -> Vec<Finding> {
    let of_pod = workload.pod.labels.iter().flatten().map(|(name, _)| name);
    let names: BTreeSet<&String> =
        of_pod.chain(workload.labels.keys()).filter(|name| is_annotation(name)).collect();
    let one = |name: &String| {
        finding(
            Severity::Error,
            "misplaced-label",
            &format!("label {name}"),
            "it is a label",
            [
                "only an annotation of this name is read, so what it says does not happen",
                "move it from the labels to the annotations of the pod, in a template those under \
                 spec.template.metadata",
            ],
        )
    };
    names.into_iter().map(one).collect()
}

/// Containers that are taken for the proxy, or may take its rules away.
pub(super) fn identity(running: &[&Container], proxy: &ProxyIdentity) -> Vec<Finding> {
    let uids: Vec<u32> = proxy.uids.iter().map(|uid| uid.value.get()).collect();
    let gids: Vec<u32> = proxy.gids.iter().map(|gid| gid.value.get()).collect();
    let mut findings = Vec::new();
    for container in running {
        let uid = container.user.filter(|uid| uids.contains(uid));
        let gid = container.group.filter(|gid| gids.contains(gid));
        let at = of(container);
        if let Some(uid) = uid {
            let what = format!("it runs as user {uid}, which is the proxy's");
            findings.push(finding(Severity::Error, "runs-as-proxy", &at, &what, [
                "the proxy's own connections are known by this user and left alone, so nothing that \
                 this container sends goes through the proxy: no mTLS, no policy, no telemetry",
                "give it another runAsUser, in its own security context or in the pod's",
            ]));
        } else if let Some(gid) = gid {
            let what = format!("it runs as group {gid}, which is the proxy's");
            findings.push(finding(Severity::Error, "runs-as-proxy", &at, &what, [
                "the proxy's own connections are known by this group too, and left alone, so nothing \
                 that this container sends goes through the proxy",
                "give it another runAsGroup, in its own security context or in the pod's",
            ]));
        }
        if container.capabilities.iter().any(|c| c == NET_ADMIN || c == "ALL") {
            findings.push(finding(
                Severity::Note,
                "may-change-rules",
                &at,
                "it has the capability NET_ADMIN",
                [
                    "it can remove the rules that lead its traffic through the proxy",
                    "drop the capability, unless this container is meant to configure the network",
                ],
            ));
        }
    }
    findings
}

/// A pod on the node's network, where nothing is captured. `leave` keeps a pod out of the mesh.
pub(super) fn host_network(leave: &str) -> Finding {
    let fix = format!("leave hostNetwork out, or take the pod out of the mesh with the {leave}");
    finding(
        Severity::Error,
        "host-network",
        "hostNetwork",
        "the pod uses the node's network",
        [
            "no sidecar is injected into such a pod, and no traffic of it is captured: rules would be \
             those of the whole node",
            &fix,
        ],
    )
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
