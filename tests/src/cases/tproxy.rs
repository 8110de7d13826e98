//! Inbound connections by TPROXY: nothing is translated, and the client's address can be kept all
//! the way to the application.

use super::Fate::{Direct, Inbound, InboundUntranslated, Outbound};
use super::{Case, app, istio, outside, proxy};
use crate::topology::Spot::{Dns, Localhost, Passthrough, Peer, Pod, Service};
use crate::topology::{Inbound as Proxy, Layout};

pub(super) const TRANSPARENT: Layout =
    Layout { side: false, transparent: true, local_dns: false, inbound: Proxy::There };

pub(super) fn cases() -> Vec<Case> {
    vec![tproxy_all(), tproxy_list(), tproxy_inbound_off(), tproxy_other_mark(), tproxy_dns()]
}

/// All inbound ports.
pub fn tproxy_all() -> Case {
    istio(
        "TPROXY",
        &["-u", "1337", "-m", "TPROXY", "-i", "*", "-b", "*", "-d", "15090,15021,15020"],
        vec![
            outside().tcp(Pod, 8080).gets(InboundUntranslated),
            outside().tcp(Pod, 7777).gets(InboundUntranslated),
            outside().from(Service).tcp(Pod, 8080).gets(InboundUntranslated),
            outside().tcp(Pod, 15090).gets(Direct),
            outside().udp(Pod, 9090).gets(Direct),
            app().tcp(Service, 80).gets(Outbound),
            app().tcp(Pod, 8080).gets(Direct),
            app().tcp(Localhost, 8080).gets(Direct),
            proxy().tcp(Service, 80).gets(Direct),
            proxy().tcp(Pod, 8080).gets(Inbound),
            proxy().tcp(Localhost, 8080).gets(Direct),
            proxy().from(Passthrough).tcp(Pod, 8080).gets(Direct),
            // The proxy hands a connection on under its client's address, marked as its own.
            proxy().posing_as(Peer, 1337).tcp(Localhost, 8080).gets(Direct),
        ],
    )
    .layout(TRANSPARENT)
}

/// Some inbound ports.
pub fn tproxy_list() -> Case {
    istio(
        "TPROXY, some ports",
        &["-u", "1337", "-m", "TPROXY", "-i", "*", "-b", "8080"],
        vec![
            outside().tcp(Pod, 8080).gets(InboundUntranslated),
            outside().tcp(Pod, 9090).gets(Direct),
            outside().tcp(Pod, 15008).gets(Direct),
            proxy().tcp(Pod, 9090).gets(Inbound),
            app().tcp(Service, 80).gets(Outbound),
        ],
    )
    .layout(TRANSPARENT)
}

/// No inbound port: outbound capture is as ever.
pub fn tproxy_inbound_off() -> Case {
    istio(
        "TPROXY, no ports",
        &["-u", "1337", "-m", "TPROXY", "-i", "*", "-b", ""],
        vec![
            outside().tcp(Pod, 8080).gets(Direct),
            app().tcp(Service, 80).gets(Outbound),
            proxy().tcp(Service, 80).gets(Direct),
        ],
    )
    .layout(TRANSPARENT)
}

/// Another mark and routing table.
pub fn tproxy_other_mark() -> Case {
    istio(
        "TPROXY, another mark and table",
        &["-u", "1337", "-m", "TPROXY", "-i", "*", "-b", "*", "-t", "4242", "-r", "200"],
        vec![
            outside().tcp(Pod, 8080).gets(InboundUntranslated),
            proxy().tcp(Pod, 8080).gets(Inbound),
            app().tcp(Pod, 8080).gets(Direct),
            app().tcp(Service, 80).gets(Outbound),
        ],
    )
    .layout(TRANSPARENT)
}

/// With DNS capture, which also uses the raw table.
pub fn tproxy_dns() -> Case {
    istio(
        "TPROXY with DNS",
        &[
            "-u",
            "1337",
            "-m",
            "TPROXY",
            "-i",
            "*",
            "-b",
            "*",
            "--redirect-dns",
            "--capture-all-dns",
        ],
        vec![
            outside().tcp(Pod, 8080).gets(InboundUntranslated),
            app().udp(Dns, 53).gets(super::Fate::Dns),
            app().tcp(Dns, 53).gets(super::Fate::Dns),
            proxy().udp(Dns, 53).gets(Direct),
            proxy().tcp(Pod, 8080).gets(Inbound),
            app().tcp(Service, 80).gets(Outbound),
        ],
    )
    .layout(TRANSPARENT)
}
