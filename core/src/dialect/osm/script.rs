//! The script that Open Service Mesh gives to a pod's init container.

use super::resolve::OWN;
use crate::policy::{CapturePolicy, InboundSelection, NetworkSelection};
use crate::source::{Source, Sourced};
use crate::value::PortRange;

/// The script for a policy. Its shell puts the pod's address in the place of `$POD_IP`.
pub fn script(policy: &CapturePolicy) -> String {
    let mut lines = vec!["iptables-restore --noflush <<EOF".to_owned()];
    lines.extend(["# OSM sidecar interception rules", "*nat"].map(str::to_owned));
    for chain in ["INBOUND", "IN_REDIRECT", "OUTBOUND", "OUT_REDIRECT"] {
        lines.push(format!(":OSM_PROXY_{chain} - [0:0]"));
    }
    inbound(policy, &mut lines);
    outbound(policy, &mut lines);
    lines.extend(["COMMIT", "EOF"].map(str::to_owned));
    lines.join("\n") + "\n"
}

fn inbound(policy: &CapturePolicy, lines: &mut Vec<String>) {
    let port = policy.inbound.port.value;
    lines.push(format!("-A OSM_PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-port {port}"));
    lines.push("-A PREROUTING -p tcp -j OSM_PROXY_INBOUND".to_owned());
    let own = OWN.map(|port| format!("-A OSM_PROXY_INBOUND -p tcp --dport {port} -j RETURN"));
    lines.extend(own);
    lines.push("-A OSM_PROXY_INBOUND -p tcp -j OSM_PROXY_IN_REDIRECT".to_owned());
    for nic in &policy.interfaces.excluded {
        lines.push(format!("-I OSM_PROXY_INBOUND -i {} -j RETURN", nic.value));
    }
    if let InboundSelection::AllExcept { except, .. } = &policy.inbound.selection {
        lines.extend(list("-I OSM_PROXY_INBOUND", except));
    }
}

fn outbound(policy: &CapturePolicy, lines: &mut Vec<String>) {
    let mut add = |rule: &str| lines.push(format!("-A {rule}"));
    let outbound = &policy.outbound;
    add(&format!("OSM_PROXY_OUT_REDIRECT -p tcp -j REDIRECT --to-port {}", outbound.port.value));
    add("OSM_PROXY_OUT_REDIRECT -p tcp --dport 15000 -j ACCEPT");
    add("OUTPUT -p tcp -j OSM_PROXY_OUTBOUND");
    let localhost = policy.localhost.value;
    for uid in policy.proxy.uids.iter().map(|uid| uid.value) {
        add(&format!(
            "OSM_PROXY_OUTBOUND -o lo ! -d {localhost} -m owner --uid-owner {uid} -j \
             OSM_PROXY_IN_REDIRECT"
        ));
        add(&format!("OSM_PROXY_OUTBOUND -o lo -m owner ! --uid-owner {uid} -j RETURN"));
        add(&format!("OSM_PROXY_OUTBOUND -m owner --uid-owner {uid} -j RETURN"));
    }
    add(&format!("OSM_PROXY_OUTBOUND -d {localhost} -j RETURN"));
    if outbound.localhost_to.is_some() {
        for uid in policy.proxy.uids.iter().map(|uid| uid.value) {
            lines.push(format!(
                "-I OUTPUT -p tcp -o lo -d {localhost} -m owner --uid-owner {uid} -j DNAT \
                 --to-destination $POD_IP"
            ));
        }
    }
    let mut add = |rule: &str| lines.push(format!("-A {rule}"));
    for nic in &policy.interfaces.excluded {
        add(&format!("OSM_PROXY_OUTBOUND -o {} -j RETURN", nic.value));
    }
    for network in &outbound.except_networks {
        add(&format!("OSM_PROXY_OUTBOUND -d {} -j RETURN", network.value));
    }
    if let Some(rule) = list("OSM_PROXY_OUTBOUND", &outbound.except_ports) {
        add(&rule);
    }
    match &outbound.networks {
        NetworkSelection::All(_) => add("OSM_PROXY_OUTBOUND -j OSM_PROXY_OUT_REDIRECT"),
        NetworkSelection::Only(networks) => {
            for network in networks {
                add(&format!("OSM_PROXY_OUTBOUND -d {} -j OSM_PROXY_OUT_REDIRECT", network.value));
            }
            add("OSM_PROXY_OUTBOUND -j RETURN");
        }
    }
}

/// The one rule about ports that somebody has said; none where nobody has.
fn list(chain: &str, ports: &[Sourced<PortRange>]) -> Option<String> {
    let said = ports.iter().filter(|port| port.source != Source::Always);
    let ports: Vec<String> = said.map(|port| port.value.to_string()).collect();
    let list = ports.join(",");
    (!ports.is_empty())
        .then(|| format!("{chain} -p tcp --match multiport --dports {list} -j RETURN"))
}
