//! Ports: what the containers listen on, and what is captured of it.

use super::Inspection;
use crate::dialect::findings::{finding, of};
use crate::finding::Severity;
use crate::policy::InboundSelection;
use crate::source::Source;
use crate::value::Port;

pub(super) fn check(inspection: &mut Inspection<'_>) {
    let mut findings = Vec::new();
    for container in inspection.running() {
        for port in &container.ports {
            let taken = inspection.injector.ports.iter().find(|(number, _)| *number == port.number);
            if let Some((number, what)) = taken {
                let why = format!(
                    "the proxy listens on {number} for {what}, and containers of a pod share ports"
                );
                findings.push(finding(
                    Severity::Error,
                    "proxy-port",
                    &of(container),
                    &format!("it has port {number}"),
                    [&why, "let it listen on another port"],
                ));
                continue;
            }
            let selection = inspection.policy.as_ref().map(|policy| &policy.inbound.selection);
            let Some(InboundSelection::AllExcept { except, .. }) = selection else { continue };
            let number = Port::new(port.number);
            let excluded = except.iter().find(|range| range.value.contains(number));
            let source = excluded.map(|range| &range.source);
            let said =
                source.filter(|source| !matches!(source, Source::Default(_) | Source::Always));
            if let Some(source) = said.filter(|_| port.protocol == "TCP") {
                let what = format!("it excludes port {number}, which {} listens on", of(container));
                findings.push(finding(
                    Severity::Warning,
                    "excluded-port",
                    &source.to_string(),
                    &what,
                    [
                        "connections to this port reach the application past the proxy: no mTLS, no \
                         authorization policy, no telemetry",
                        "take the port off the list, unless that is meant",
                    ],
                ));
            }
        }
    }
    inspection.findings.append(&mut findings);
    let everything: Vec<_> = inspection
        .policy
        .iter()
        .flat_map(|policy| &policy.outbound.except_networks)
        .filter(|network| network.value.is_everything())
        .map(|network| (network.source.to_string(), network.value.family()))
        .collect();
    for (at, family) in everything {
        let what = format!("it excludes all of {family}");
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
}
