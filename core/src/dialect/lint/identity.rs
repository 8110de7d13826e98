//! Who runs what: the proxy is known by its user and group.

use super::Inspection;
use crate::dialect::findings;
use crate::dialect::injector::ProxyRequest;

pub(super) fn check(inspection: &mut Inspection<'_>) {
    let running = inspection.running();
    if let Some(policy) = &inspection.policy {
        inspection.findings.append(&mut findings::identity(&running, &policy.proxy));
    }
    let wants = inspection.injector.request(inspection.pod) != ProxyRequest::Refused;
    if inspection.pod.host_network && wants {
        let asked = &inspection.injector.asked;
        let no = asked.no.first().copied().unwrap_or_default();
        let leave = format!("{} {}: \"{no}\"", asked.field.as_str(), asked.name);
        inspection.findings.push(findings::host_network(&leave));
    }
}
