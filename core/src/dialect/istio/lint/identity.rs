//! Who runs what: the proxy is known by its user and group.

use super::super::annotations::INJECT;
use super::Look;
use crate::dialect::findings;

pub(super) fn check(look: &mut Look<'_>) {
    let Some(proxy) = &look.proxy else { return };
    let mut findings = findings::identity(&look.running(), proxy);
    if look.pod.host_network {
        findings.push(findings::host_network(&format!("label {INJECT}: \"false\"")));
    }
    look.findings.append(&mut findings);
}
