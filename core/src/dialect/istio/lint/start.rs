//! The start and the end of a pod: who needs the network before there is a proxy, who asks for
//! names, and who never ends.

use std::net::IpAddr;

use super::super::annotations::{INIT_CONTAINER, PROXY_CONTAINER};
use super::{Inspection, of};
use crate::finding::Severity;
use crate::pod::{Container, PodFacts};
use crate::policy::NetworkSelection;

/// Programs and words that need the network.
const NETWORK: [&str; 21] = [
    "aws",
    "curl",
    "dig",
    "flyway",
    "gcloud",
    "git",
    "gsutil",
    "http://",
    "https://",
    "kubectl",
    "liquibase",
    "mysql",
    "nc",
    "nslookup",
    "pg_isready",
    "ping",
    "psql",
    "redis-cli",
    "vault",
    "wait-for-it",
    "wget",
];

pub(super) fn check(inspection: &mut Inspection<'_>) {
    init_containers(inspection);
    names(inspection);
    never_ends(inspection);
}

/// Whether the proxy runs before a container, as an init container that stays.
fn proxy_is_before(pod: &PodFacts, container: &Container) -> bool {
    let mut before = pod.containers.iter().flatten().take_while(|c| c.name != container.name);
    before.any(|c| c.name == PROXY_CONTAINER && c.restarts)
}

/// Whether rules are there only once an init container behind this one has run.
fn captured_later(pod: &PodFacts, container: &Container) -> bool {
    let mut behind = pod.containers.iter().flatten().skip_while(|c| c.name != container.name);
    behind.any(|c| c.name == INIT_CONTAINER)
}

fn init_containers(inspection: &mut Inspection<'_>) {
    let Some(policy) = inspection.policy.clone() else { return };
    let nothing = matches!(&policy.outbound.networks, NetworkSelection::Only(list) if list.is_empty())
        && policy.outbound.ports.is_empty();
    if nothing {
        return;
    }
    for container in inspection.containers().into_iter().filter(|c| c.init && !c.restarts) {
        let as_proxy = policy.proxy.uids.iter().any(|uid| Some(uid.value.get()) == container.user);
        if as_proxy
            || proxy_is_before(inspection.pod, container)
            || captured_later(inspection.pod, container)
        {
            continue;
        }
        let words = container.command.iter().chain(&container.args);
        let words = words
            .flat_map(|text| text.split([' ', '\n', '\t', ';', '|', '&', '(', ')', '"', '\'']));
        let needs = words.into_iter().find(|word| {
            NETWORK.iter().any(|known| {
                if known.ends_with("://") {
                    word.starts_with(known)
                } else {
                    word.rsplit('/').next() == Some(known) && !word.contains("://")
                }
            })
        });
        let fix = "let the proxy start first as a native sidecar (ENABLE_NATIVE_SIDECARS, Kubernetes \
                   1.29); or run this container as the proxy's user (runAsUser: 1337), which is not \
                   captured; or exclude where it connects to with \
                   traffic.sidecar.istio.io/excludeOutboundIPRanges or excludeOutboundPorts";
        let why = "its connections are led to the proxy, which is not there yet: they are refused, and \
                   the pod never starts (with the CNI plugin all init containers are captured, with \
                   istio-init those behind it)";
        if let Some(word) = needs {
            let what = format!("it needs the network ({word}) before the proxy runs");
            inspection.add(Severity::Warning, "early-network", &of(container), &what, [why, fix]);
        } else {
            let what = "if it needs the network, it gets none before the proxy runs";
            inspection.add(Severity::Note, "early-network", &of(container), what, [why, fix]);
        }
    }
}

/// DNS capture, and somebody in the pod who resolves names for others.
fn names(inspection: &mut Inspection<'_>) {
    let Some(dns) = inspection.policy.as_ref().and_then(|policy| policy.dns.clone()) else {
        return;
    };
    let loopback =
        |text: &&String| text.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    if let Some(server) = inspection.pod.nameservers.iter().find(loopback) {
        let what = format!("{server} is the pod itself, and DNS is captured ({})", dns.source);
        inspection.add(Severity::Error, "dns-loop", "dnsConfig.nameservers", &what, [
            "the proxy asks the pod's servers what it does not know itself: queries of the local \
             server are captured like all others and come back to the proxy, in a circle",
            "take ISTIO_META_DNS_CAPTURE away, or name servers outside of the pod",
        ]);
    }
    for container in inspection.running() {
        if container.ports.iter().any(|port| port.number == 53) {
            let what = format!("it listens on port 53, and DNS is captured ({})", dns.source);
            inspection.add(Severity::Warning, "dns-loop", &of(container), &what, [
                "queries that processes of the pod send to it, and those that it sends on, are led to \
                 the proxy",
                "take ISTIO_META_DNS_CAPTURE away, or let this container run in a pod of its own",
            ]);
        }
    }
}

/// A job is done when all its containers are.
fn never_ends(inspection: &mut Inspection<'_>) {
    let proxy = inspection.pod.container(PROXY_CONTAINER);
    if !inspection.workload.ends || proxy.is_some_and(|proxy| proxy.restarts) {
        return;
    }
    let (severity, what) = match proxy {
        Some(_) => (Severity::Warning, "its proxy is a container like the others"),
        None => (Severity::Note, "whether its proxy is a native sidecar is not known"),
    };
    inspection.add(severity, "never-ends", &format!("the {}", inspection.workload.name.kind), what, [
        "a proxy that is a common container goes on when the work is done, so the job never completes",
        "let the proxy be a native sidecar (ENABLE_NATIVE_SIDECARS, Kubernetes 1.29), or let the \
         application end it: POST to http://127.0.0.1:15020/quitquitquit",
    ]);
}
