//! Ports: what the containers listen on, what is captured of it, and what asks whether they live.

use std::collections::BTreeMap;

use super::super::annotations::{
    EXCLUDE_INBOUND_PORTS, EXCLUDE_OUTBOUND_NETWORKS, EXCLUDE_OUTBOUND_PORTS,
    INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_NETWORKS, INCLUDE_OUTBOUND_PORTS, PROXY_CONTAINER,
};
use super::{Inspection, of};
use crate::finding::Severity;
use crate::pod::{Container, Handler, PodFacts, PortRef, RawProbe};
use crate::policy::{InboundSelection, NetworkSelection};
use crate::value::{Port, PortRange};

/// What the proxy listens on, and the agent beside it
/// (<https://istio.io/latest/docs/ops/deployment/application-requirements/>).
const PROXY_PORTS: [(u16, &str); 10] = [
    (15000, "its administration"),
    (15001, "captured outbound connections"),
    (15002, "failure detection"),
    (15004, "its debug port"),
    (15006, "captured inbound connections"),
    (15008, "tunnels"),
    (15020, "merged metrics and probes"),
    (15021, "its health"),
    (15053, "captured DNS queries"),
    (15090, "its metrics"),
];
/// Where the agent answers probes for the application: `/app-health/CONTAINER/livez` and the like.
const AGENT_PORT: u16 = 15020;
/// What its paths begin with.
const APP_HEALTH: &str = "/app-health/";
/// The variable of the proxy's container that says what each path stands for, in JSON.
const APP_PROBERS: &str = "ISTIO_KUBE_APP_PROBERS";
/// Whether the injector leads probes through the agent.
const REWRITE_PROBES: &str = "sidecar.istio.io/rewriteAppHTTPProbers";

pub(super) fn check(inspection: &mut Inspection<'_>) {
    for container in inspection.running() {
        taken(inspection, container);
        bypassed(inspection, container);
        probes(inspection, container);
    }
    contradictions(inspection);
}

/// Ports that the proxy has already.
fn taken(inspection: &mut Inspection<'_>, container: &Container) {
    for port in &container.ports {
        let Some((number, what)) = PROXY_PORTS.iter().find(|(n, _)| *n == port.number) else {
            continue;
        };
        inspection.add(
            Severity::Error,
            "proxy-port",
            &of(container),
            &format!("it has port {number}"),
            [
                &format!(
                    "the proxy listens on {number} for {what}, and containers of a pod share ports"
                ),
                "let it listen on a port outside of 15000 to 15090",
            ],
        );
    }
}

/// Ports whose connections get past the proxy.
fn bypassed(inspection: &mut Inspection<'_>, container: &Container) {
    let Some(policy) = &inspection.policy else { return };
    let selection = policy.inbound.selection.clone();
    for port in &container.ports {
        let number = Port::new(port.number);
        let in_list = |list: &[crate::source::Sourced<PortRange>]| {
            list.iter().find(|range| range.value.contains(number)).map(|r| r.source.clone())
        };
        if port.protocol != "TCP" {
            if let InboundSelection::Only { ports: list, .. } = &selection
                && in_list(list).is_some()
                && !container.ports.iter().any(|p| p.number == port.number && p.protocol == "TCP")
            {
                let at = format!("annotation {}", INCLUDE_INBOUND_PORTS.name);
                let what = format!("port {number} of {} is {}", of(container), port.protocol);
                inspection.add(
                    Severity::Warning,
                    "not-tcp",
                    &at,
                    &what,
                    ["only TCP is captured on its way in", "take the port off the list"],
                );
            }
            continue;
        }
        match &selection {
            InboundSelection::AllExcept { except, .. } => {
                let Some(source) = in_list(except) else { continue };
                let taken = PROXY_PORTS.iter().any(|(known, _)| *known == port.number);
                if taken {
                    continue;
                }
                let what = format!("it excludes port {number}, which {} listens on", of(container));
                inspection.add(Severity::Warning, "excluded-port", &source.to_string(), &what, [
                    "connections to this port reach the application past the proxy: no mTLS, no \
                     authorization policy, no telemetry; where mTLS is strict, clients of the mesh \
                     don't get through",
                    "take the port off the list, or give clients of the mesh a PeerAuthentication and \
                     DestinationRule without mTLS for it",
                ]);
            }
            InboundSelection::Only { ports: list, .. } if in_list(list).is_none() => {
                let at = format!("annotation {}", INCLUDE_INBOUND_PORTS.name);
                let what = format!("it lacks port {number}, which {} listens on", of(container));
                inspection.add(Severity::Warning, "excluded-port", &at, &what, [
                    "connections to ports that are not listed reach the application past the proxy",
                    "add the port, or leave the annotation out: then every port is captured",
                ]);
            }
            InboundSelection::Only { .. } | InboundSelection::Nothing => {}
        }
    }
}

fn probes(inspection: &mut Inspection<'_>, container: &Container) {
    let rewritten = inspection.pod.annotation(REWRITE_PROBES) != Some("false");
    for probe in &container.probes {
        let at = format!("{}, {}", of(container), probe.kind);
        let asked = match led_through_agent(inspection.pod, &probe.handler) {
            Led::No => probe.handler.clone(),
            Led::To(handler) => handler,
            // What the agent asks is told to it alone.
            Led::Somewhere => continue,
        };
        let Some((protocol, port)) = asked.network() else { continue };
        let named = |name: &str| {
            container.ports.iter().find(|p| p.name.as_deref() == Some(name)).map(|p| p.number)
        };
        let number = match port {
            PortRef::Number(number) => Some(*number),
            PortRef::Name(name) => named(name),
        };
        let Some(number) = number else {
            inspection.add(
                Severity::Error,
                "probe-port",
                &at,
                &format!("it asks port {port}"),
                [
                    "the container has no port of this name, so the probe always fails",
                    "name one of its ports, or give the number",
                ],
            );
            continue;
        };
        if PROXY_PORTS.iter().any(|(known, _)| *known == number) {
            inspection.add(
                Severity::Warning,
                "probe-port",
                &at,
                &format!("it asks port {number}"),
                [
                    "the proxy answers there, whatever the application does",
                    "ask a port of the application",
                ],
            );
        } else if !container.ports.is_empty() && container.ports.iter().all(|p| p.number != number)
        {
            inspection.add(Severity::Note, "probe-port", &at, &format!("it asks port {number}"), [
                "the container does not name this port among its own; a probe of a port that nobody \
                 listens on always fails",
                "name the port, or correct the number",
            ]);
        }
        if let Handler::Http { host: Some(host), .. } | Handler::Tcp { host: Some(host), .. } =
            &asked
        {
            inspection.add(
                Severity::Error,
                "probe-host",
                &at,
                &format!("it asks host {host}"),
                [
                    "the node's kubelet asks, so this is not the pod; localhost is the node itself",
                    "leave the host out; for HTTP give it as a header if the application wants it",
                ],
            );
        }
        if !rewritten && captured(inspection, number) {
            let what =
                format!("a {protocol} probe of port {number}, with {REWRITE_PROBES}: \"false\"");
            inspection.add(Severity::Warning, "probe-captured", &at, &what, [
                "the kubelet is not in the mesh: where mTLS is strict the proxy refuses it, and \
                 without an own answer of the application a TCP probe succeeds by the proxy alone",
                "leave the annotation out, or exclude the port from capture",
            ]);
        }
    }
}

/// What a probe really asks.
enum Led {
    /// What it says: nothing is led through the agent.
    No,
    /// This, by way of the agent.
    To(Handler),
    /// The application, by way of the agent.
    Somewhere,
}

/// The injector leads probes through the agent beside the proxy, and tells it in a variable what each
/// of them asked.
fn led_through_agent(pod: &PodFacts, handler: &Handler) -> Led {
    let Handler::Http { port: PortRef::Number(AGENT_PORT), path: Some(path), .. } = handler else {
        return Led::No;
    };
    if !path.starts_with(APP_HEALTH) {
        return Led::No;
    }
    let reported = pod.container(PROXY_CONTAINER).and_then(|proxy| proxy.env.get(APP_PROBERS));
    let reported =
        reported.and_then(|text| serde_json::from_str::<BTreeMap<String, RawProbe>>(text).ok());
    match reported.and_then(|mut probes| probes.remove(path)) {
        Some(probe) => Led::To(probe.into()),
        None => Led::Somewhere,
    }
}

fn captured(inspection: &Inspection<'_>, port: u16) -> bool {
    let port = Port::new(port);
    let Some(policy) = &inspection.policy else { return true };
    match &policy.inbound.selection {
        InboundSelection::Nothing => false,
        InboundSelection::AllExcept { except, .. } => {
            !except.iter().any(|e| e.value.contains(port))
        }
        InboundSelection::Only { ports, .. } => ports.iter().any(|e| e.value.contains(port)),
    }
}

/// Lists that say both yes and no.
fn contradictions(inspection: &mut Inspection<'_>) {
    let Some(policy) = &inspection.policy else { return };
    let (outbound, selection) = (policy.outbound.clone(), policy.inbound.selection.clone());
    for port in &outbound.ports {
        if !outbound.except_ports.iter().any(|other| other.value == port.value) {
            continue;
        }
        let what = format!("port {} is in {} too", port.value, EXCLUDE_OUTBOUND_PORTS.name);
        let at = format!("annotation {}", INCLUDE_OUTBOUND_PORTS.name);
        inspection.add(
            Severity::Error,
            "contradiction",
            &at,
            &what,
            [
                "what is excluded comes first: connections to it are not captured",
                "take the port off one of the lists",
            ],
        );
    }
    if let InboundSelection::Only { ports: list, .. } = selection {
        let excluded = inspection.pod.annotation(EXCLUDE_INBOUND_PORTS.name).unwrap_or_default();
        let excluded: Vec<u16> =
            excluded.split(',').filter_map(|item| item.trim().parse().ok()).collect();
        for port in list.iter().filter(|p| excluded.iter().any(|e| p.value.contains(Port::new(*e))))
        {
            let what = format!("port {} is in {} too", port.value, EXCLUDE_INBOUND_PORTS.name);
            let at = format!("annotation {}", INCLUDE_INBOUND_PORTS.name);
            inspection.add(Severity::Error, "contradiction", &at, &what, [
                "ports are excluded only where all are captured, so connections to it are captured",
                "take the port off one of the lists",
            ]);
        }
    }
    let at = format!("annotation {}", EXCLUDE_OUTBOUND_NETWORKS.name);
    for network in &outbound.except_networks {
        if network.value.is_everything() {
            let what = format!("it excludes all of {}", network.value.family());
            inspection.add(
                Severity::Warning,
                "contradiction",
                &at,
                &what,
                [
                    "nothing that the pod sends goes through its proxy",
                    "name the networks that are to be left alone",
                ],
            );
        }
        if let NetworkSelection::Only(list) = &outbound.networks
            && list.iter().any(|included| included.value == network.value)
        {
            let what = format!("{} is in {} too", network.value, INCLUDE_OUTBOUND_NETWORKS.name);
            inspection.add(
                Severity::Error,
                "contradiction",
                &at,
                &what,
                [
                    "what is excluded comes first: connections to it are not captured",
                    "take the network off one of the lists",
                ],
            );
        }
    }
}
