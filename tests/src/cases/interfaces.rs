//! Interfaces that are left alone, and interfaces with a virtual machine behind them.

use super::Fate::{Direct, Inbound, Outbound, TimedOut};
use super::{Case, app, istio, outside, proxy, side};
use crate::topology::Spot::{Other, Pod, PodSide, Service, Side};
use crate::topology::{Inbound as Proxy, Layout};

const WITH_SIDE: Layout =
    Layout { side: true, transparent: false, local_dns: false, inbound: Proxy::There };

pub(super) fn cases() -> Vec<Case> {
    vec![
        two_interfaces(),
        excluded_interface(),
        excluded_interface_tproxy(),
        rerouted_interface(),
        rerouted_interface_networks(),
    ]
}

/// What the next cases must change.
pub fn two_interfaces() -> Case {
    istio(
        "two interfaces",
        &["-u", "1337", "-i", "*", "-b", "*"],
        vec![
            side().tcp(PodSide, 8080).gets(Inbound),
            outside().tcp(Pod, 8080).gets(Inbound),
            app().tcp(Side, 80).gets(Outbound),
            app().tcp(Service, 80).gets(Outbound),
        ],
    )
    .layout(WITH_SIDE)
}

/// An interface left alone in both directions.
pub fn excluded_interface() -> Case {
    istio(
        "an excluded interface",
        &["-u", "1337", "-i", "*", "-b", "*", "-c", "eth1"],
        vec![
            side().tcp(PodSide, 8080).gets(Direct),
            app().tcp(Side, 80).gets(Direct),
            outside().tcp(Pod, 8080).gets(Inbound),
            app().tcp(Service, 80).gets(Outbound),
            // The packet goes over lo, not over the interface with that address.
            proxy().tcp(PodSide, 8080).gets(Inbound),
        ],
    )
    .layout(WITH_SIDE)
}

/// The same with TPROXY.
pub fn excluded_interface_tproxy() -> Case {
    istio(
        "an excluded interface, TPROXY",
        &["-u", "1337", "-m", "TPROXY", "-i", "*", "-b", "*", "-c", "eth1"],
        vec![
            side().tcp(PodSide, 8080).gets(Direct),
            app().tcp(Side, 80).gets(Direct),
            outside().tcp(Pod, 8080).gets(super::Fate::InboundUntranslated),
            app().tcp(Service, 80).gets(Outbound),
        ],
    )
    .layout(Layout { transparent: true, ..WITH_SIDE })
}

/// What comes from a virtual machine goes to the proxy's outbound port, wherever it is meant for.
pub fn rerouted_interface() -> Case {
    istio(
        "a rerouted interface",
        &["-u", "1337", "-i", "*", "-b", "*", "-k", "eth1"],
        vec![
            side().tcp(Service, 80).gets(Outbound),
            side().tcp(PodSide, 8080).gets(Outbound),
            outside().tcp(Pod, 8080).gets(Inbound),
            app().tcp(Side, 80).gets(Outbound),
            app().tcp(Service, 80).gets(Outbound),
        ],
    )
    .layout(WITH_SIDE)
}

/// The same for some networks; anything else from there is not captured, inbound neither.
pub fn rerouted_interface_networks() -> Case {
    istio(
        "a rerouted interface, some networks",
        &["-u", "1337", "-i", "10.71.0.0/16,fd71::/32", "-b", "*", "-k", "eth1"],
        vec![
            side().tcp(Service, 80).gets(Outbound),
            side().tcp(PodSide, 8080).gets(Direct),
            // The pod forwards nothing.
            side().tcp(Other, 80).gets(TimedOut),
            outside().tcp(Pod, 8080).gets(Inbound),
            app().tcp(Side, 80).gets(Direct),
        ],
    )
    .layout(WITH_SIDE)
}
