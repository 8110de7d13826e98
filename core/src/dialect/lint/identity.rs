//! Who runs what: the proxy is known by its user and group.

use super::Look;
use crate::dialect::findings;
use crate::dialect::injector::Wish;

pub(super) fn check(look: &mut Look<'_>) {
    let running = look.running();
    if let Some(policy) = &look.policy {
        look.findings.append(&mut findings::identity(&running, &policy.proxy));
    }
    let wants = look.injector.wish(look.pod) != Wish::Refused;
    if look.pod.host_network && wants {
        let asked = &look.injector.asked;
        let no = asked.no.first().copied().unwrap_or_default();
        let leave = format!("{} {}: \"{no}\"", asked.field.as_str(), asked.name);
        look.findings.push(findings::host_network(&leave));
    }
}
