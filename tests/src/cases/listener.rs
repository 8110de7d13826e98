//! While the proxy does not listen for inbound connections, or not in the way that the mode asks for,
//! and once it does: what is captured never reaches the application.

use super::Fate::{Direct, Inbound, InboundUntranslated, Refused, TimedOut};
use super::tproxy::TRANSPARENT;
use super::{Case, Fate, Probe, app, istio, outside, own, proxy};
use crate::topology::Spot::{Localhost, Passthrough, Peer, Pod, Service};
use crate::topology::{Inbound as Proxy, Layout};

pub(super) fn cases() -> Vec<Case> {
    vec![
        redirect_unheard(),
        tproxy_unheard(),
        tproxy_list_unheard(),
        tproxy_opaque(),
        own_redirect_unheard(),
        own_tproxy_unheard(),
        own_tproxy_opaque(),
    ]
}

const NOBODY: Layout =
    Layout { side: false, transparent: false, local_dns: false, inbound: Proxy::Nobody };
const TRANSPARENT_LATER: Layout = Layout { inbound: Proxy::Nobody, ..TRANSPARENT };
const OPAQUE: Layout = Layout { inbound: Proxy::Opaque, ..TRANSPARENT };

const ALL: [&str; 8] = ["-u", "1337", "-i", "*", "-b", "*", "-d", "15090"];
const ALL_TPROXY: [&str; 10] = ["-u", "1337", "-m", "TPROXY", "-i", "*", "-b", "*", "-d", "15090"];

/// What comes in, and what the proxy sends to its own pod, has this fate; the rest is as ever.
fn inward(fate: Fate, own_call: Fate) -> Vec<Probe> {
    vec![
        outside().tcp(Pod, 8080).gets(fate),
        outside().tcp(Pod, 7777).gets(fate),
        outside().from(Service).tcp(Pod, 9090).gets(fate),
        outside().tcp(Pod, 15090).gets(Direct),
        outside().udp(Pod, 9090).gets(Direct),
        proxy().tcp(Pod, 8080).gets(own_call),
        proxy().tcp(Localhost, 8080).gets(Direct),
        proxy().from(Passthrough).tcp(Pod, 8080).gets(Direct),
        app().tcp(Pod, 8080).gets(Direct),
        app().tcp(Service, 80).gets(Fate::Outbound),
    ]
}

/// The same with TPROXY.
fn inward_tproxy(fate: Fate, own_call: Fate) -> Vec<Probe> {
    let mut probes = inward(fate, own_call);
    probes.push(proxy().posing_as(Peer, 1337).tcp(Localhost, 8080).gets(Direct));
    probes
}

/// The kernel refuses what nobody listens for.
pub fn redirect_unheard() -> Case {
    istio("REDIRECT before the proxy listens", &ALL, inward(Refused, Refused))
        .layout(NOBODY)
        .later(inward(Inbound, Inbound))
}

/// Every backend drops what nobody takes. The proxy's call to its own pod is redirected on its way out
/// in either mode.
pub fn tproxy_unheard() -> Case {
    istio("TPROXY before the proxy listens", &ALL_TPROXY, inward_tproxy(TimedOut, Refused))
        .layout(TRANSPARENT_LATER)
        .later(inward_tproxy(InboundUntranslated, Inbound))
}

/// Other ports are none of the proxy's business.
pub fn tproxy_list_unheard() -> Case {
    let probes = |fate| {
        vec![
            outside().tcp(Pod, 8080).gets(fate),
            outside().tcp(Pod, 9090).gets(Direct),
            outside().tcp(Pod, 15008).gets(Direct),
        ]
    };
    let flags = ["-u", "1337", "-m", "TPROXY", "-i", "*", "-b", "8080"];
    istio("TPROXY, some ports, before the proxy listens", &flags, probes(TimedOut))
        .layout(TRANSPARENT_LATER)
        .later(probes(InboundUntranslated))
}

/// A socket that is not transparent can't take what is for another address.
pub fn tproxy_opaque() -> Case {
    istio(
        "TPROXY to a listener that is not transparent",
        &ALL_TPROXY,
        inward_tproxy(TimedOut, Inbound),
    )
    .layout(OPAQUE)
    .later(inward_tproxy(InboundUntranslated, Inbound))
}

/// The same by `millrace apply`.
pub fn own_redirect_unheard() -> Case {
    let flags = ["--exclude-inbound-ports", "15090"];
    own("own REDIRECT before the proxy listens", &flags, inward(Refused, Refused))
        .layout(NOBODY)
        .later(inward(Inbound, Inbound))
}

const OWN_TPROXY: [&str; 4] = ["--mode", "tproxy", "--exclude-inbound-ports", "15090"];

/// The same by `millrace apply`.
pub fn own_tproxy_unheard() -> Case {
    own("own TPROXY before the proxy listens", &OWN_TPROXY, inward_tproxy(TimedOut, Refused))
        .layout(TRANSPARENT_LATER)
        .later(inward_tproxy(InboundUntranslated, Inbound))
}

/// The same by `millrace apply`.
pub fn own_tproxy_opaque() -> Case {
    own(
        "own TPROXY to a listener that is not transparent",
        &OWN_TPROXY,
        inward_tproxy(TimedOut, Inbound),
    )
    .layout(OPAQUE)
    .later(inward_tproxy(InboundUntranslated, Inbound))
}
