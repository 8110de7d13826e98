//! What comes into the pod.

use super::Fate::{Direct, Inbound, Outbound, Reset, TimedOut};
use super::{Case, app, istio, outside, proxy};
use crate::topology::Spot::{Passthrough, Pod, Service};

pub(super) fn cases() -> Vec<Case> {
    vec![included_inbound_ports(), inbound_off(), invalid_let_in(), invalid_dropped()]
}

/// Some ports only.
pub fn included_inbound_ports() -> Case {
    istio(
        "included inbound ports",
        // Exclusions mean something only where all ports are captured.
        &["-u", "1337", "-i", "*", "-b", "8080,7777", "-d", "8080"],
        vec![
            outside().tcp(Pod, 8080).gets(Inbound),
            outside().tcp(Pod, 7777).gets(Inbound),
            outside().tcp(Pod, 9090).gets(Direct),
            outside().tcp(Pod, 15008).gets(Direct),
            app().tcp(Service, 80).gets(Outbound),
            app().tcp(Pod, 8080).gets(Direct),
            proxy().tcp(Pod, 9090).gets(Inbound),
        ],
    )
}

/// No port.
pub fn inbound_off() -> Case {
    istio(
        "no inbound ports",
        &["-u", "1337", "-i", "*", "-b", "", "-d", "15090"],
        vec![
            outside().tcp(Pod, 8080).gets(Direct),
            outside().tcp(Pod, 15090).gets(Direct),
            app().tcp(Service, 80).gets(Outbound),
            // Self-calls are not inbound capture.
            proxy().tcp(Pod, 8080).gets(Inbound),
            proxy().from(Passthrough).tcp(Pod, 8080).gets(Direct),
        ],
    )
}

/// What the next case must change.
pub fn invalid_let_in() -> Case {
    istio(
        "packets of no connection let in",
        &["-u", "1337", "-i", "*", "-b", "*"],
        vec![outside().stray(Pod, 8080).gets(Reset)],
    )
}

/// Packets that connection tracking can't place are dropped, all others come in.
pub fn invalid_dropped() -> Case {
    istio(
        "packets of no connection dropped",
        &["-u", "1337", "-i", "*", "-b", "*", "--drop-invalid"],
        vec![
            outside().stray(Pod, 8080).gets(TimedOut),
            outside().tcp(Pod, 8080).gets(Inbound),
            app().tcp(Service, 80).gets(Outbound),
            app().tcp(Pod, 8080).gets(Direct),
        ],
    )
}
