//! Who runs what: the proxy is known by its user and group.

use super::{Look, of};
use crate::finding::Severity;

/// The capability that lets a container take rules away.
const NET_ADMIN: &str = "NET_ADMIN";

pub(super) fn check(look: &mut Look<'_>) {
    let Some(proxy) = &look.proxy else { return };
    let uids: Vec<u32> = proxy.uids.iter().map(|uid| uid.value.get()).collect();
    let gids: Vec<u32> = proxy.gids.iter().map(|gid| gid.value.get()).collect();
    for container in look.running() {
        let uid = container.user.filter(|uid| uids.contains(uid));
        let gid = container.group.filter(|gid| gids.contains(gid));
        let at = of(container);
        if let Some(uid) = uid {
            let what = format!("it runs as user {uid}, which is the proxy's");
            look.add(Severity::Error, "runs-as-proxy", &at, &what, [
                "the proxy's own connections are known by this user and left alone, so nothing that \
                 this container sends goes through the proxy: no mTLS, no policy, no telemetry",
                "give it another runAsUser, in its own security context or in the pod's",
            ]);
        } else if let Some(gid) = gid {
            let what = format!("it runs as group {gid}, which is the proxy's");
            look.add(Severity::Error, "runs-as-proxy", &at, &what, [
                "the proxy's own connections are known by this group too, and left alone, so nothing \
                 that this container sends goes through the proxy",
                "give it another runAsGroup, in its own security context or in the pod's",
            ]);
        }
        if container.capabilities.iter().any(|c| c == NET_ADMIN || c == "ALL") {
            look.add(
                Severity::Note,
                "may-change-rules",
                &at,
                "it has the capability NET_ADMIN",
                [
                    "it can remove the rules that lead its traffic through the proxy",
                    "drop the capability, unless this container is meant to configure the network",
                ],
            );
        }
    }
    if look.pod.host_network {
        look.add(Severity::Error, "host-network", "hostNetwork", "the pod uses the node's network", [
            "no sidecar is injected into such a pod, and no traffic of it is captured: rules would \
             be those of the whole node",
            "leave hostNetwork out, or take the pod out of the mesh with the label \
             sidecar.istio.io/inject: \"false\"",
        ]);
    }
}
