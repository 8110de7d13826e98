//! What a configuration leaves out that most have: where it was read off rules, some may be missing.

use crate::policy::{CapturePolicy, NetworkSelection};

/// A sentence for each kind of connection of which none is captured, and for a proxy that is nobody.
pub(super) fn left_out(policy: &CapturePolicy) -> Vec<String> {
    let outbound = &policy.outbound;
    let all = matches!(&outbound.networks, NetworkSelection::All(_));
    let listed = matches!(&outbound.networks, NetworkSelection::Only(list) if !list.is_empty());
    let mut reported = Vec::new();
    if !all && !listed && outbound.ports.is_empty() {
        reported
            .push("no connection from the pod is captured: these rules ask for none".to_owned());
    }
    if !policy.inbound.selection.captures() {
        reported.push("no connection to the pod is captured: these rules ask for none".to_owned());
    }
    let proxy = &policy.proxy;
    if proxy.uids.is_empty() && proxy.gids.is_empty() && proxy.marks.is_none() {
        reported.push(
            "no user and no group is the proxy's: its own connections are captured too, and come \
             back to it"
                .to_owned(),
        );
    }
    reported
}
