//! Who runs what: the proxy is known by its user and group.

use super::super::annotations::INJECT;
use super::Inspection;
use crate::dialect::findings;

pub(super) fn check(inspection: &mut Inspection<'_>) {
    let Some(proxy) = &inspection.proxy else { return };
    let mut findings = findings::identity(&inspection.running(), proxy);
    if inspection.pod.host_network {
        findings.push(findings::host_network(&format!("label {INJECT}: \"false\"")));
    }
    inspection.findings.append(&mut findings);
}
