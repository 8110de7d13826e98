//! Interfaces, and connections to the pod.

use super::build::{Builder, in_by, jump, not_to, out_by, tcp, to_port, why};
use super::purpose;
use crate::policy::{InboundMode, InboundSelection};
use crate::ruleset::{
    Chain, ConnState, Hook, Masked, Match, Placement, RedirectSpelling, Table, Target,
};
use crate::source::Source;
use crate::value::{Mark, PortRange};

/// Excluded interfaces in both directions, and what comes in by a rerouted interface and is to
/// none of the captured networks.
pub(super) fn interfaces(b: &mut Builder<'_>) {
    let mut tables = vec![Table::Nat];
    if matches!(b.policy.inbound.mode, InboundMode::Tproxy { .. }) {
        tables.push(Table::Mangle);
    }
    for table in tables {
        for nic in &b.policy.interfaces.excluded {
            let reason = why(&nic.source, format!("interface {} is not captured", nic.value));
            let matches = vec![in_by(&nic.value)];
            b.hook(table, Hook::Prerouting, matches, Target::Return, reason.clone());
            b.hook(table, Hook::Output, vec![out_by(&nic.value)], Target::Return, reason);
        }
    }
    for nic in &b.policy.interfaces.rerouted {
        let purpose = format!("what comes in by {} is not inbound traffic of this pod", nic.value);
        b.put(
            Table::Nat,
            Chain::Builtin(Hook::Prerouting),
            Placement::Insert(1),
            vec![in_by(&nic.value)],
            Target::Return,
            why(&nic.source, purpose),
        );
    }
}

/// Packets that belong to no connection.
pub(super) fn drop_invalid(b: &mut Builder<'_>) {
    let Some(source) = &b.policy.drop_invalid else { return };
    let layout = b.layout;
    b.hook(
        Table::Mangle,
        Hook::Prerouting,
        vec![Match::ConnState(vec![ConnState::Invalid])],
        jump(&layout.drop),
        why(source, "packets that belong to no connection are dropped"),
    );
    let reason = why(source, "drops what is sent here");
    b.user(Table::Mangle, &layout.drop, vec![], Target::Drop, reason);
}

/// The tunnel port's exemption and the two redirects, which are always there.
pub(super) fn chains(b: &mut Builder<'_>) {
    let (layout, policy) = (b.layout, b.policy);
    let tunnel = &policy.inbound.tunnel_port;
    let purpose = purpose::tunnel(tunnel.value);
    b.user(
        Table::Nat,
        &layout.inbound,
        vec![tcp(), to_port(tunnel.value.port())],
        Target::Return,
        why(&tunnel.source, purpose),
    );
    for (chain, port, direction) in [
        (&layout.redirect, &policy.outbound.port, "outbound"),
        (&layout.in_redirect, &policy.inbound.port, "inbound"),
    ] {
        let purpose = format!("captured {direction} connections go to port {}", port.value);
        let target = Target::Redirect { port: port.value, spelling: RedirectSpelling::ToPorts };
        b.user(Table::Nat, chain, vec![tcp()], target, why(&port.source, purpose));
    }
}

/// Which inbound connections are captured, and how.
pub(super) fn capture(b: &mut Builder<'_>) {
    let policy = b.policy;
    let source = match &policy.inbound.selection {
        InboundSelection::Nothing => return,
        InboundSelection::AllExcept { source, .. } => source,
        InboundSelection::Only(ports) => match ports.first() {
            Some(port) => &port.source,
            None => return,
        },
    };
    let table = match &policy.inbound.mode {
        InboundMode::Redirect => Table::Nat,
        InboundMode::Tproxy { mark, source, .. } => {
            transparent_chains(b, mark.value, source);
            Table::Mangle
        }
    };
    let enter = jump(&b.layout.inbound);
    b.hook(
        table,
        Hook::Prerouting,
        vec![tcp()],
        enter,
        why(source, "inbound connections are captured"),
    );
    match &policy.inbound.selection {
        InboundSelection::Nothing => {}
        InboundSelection::AllExcept { source, except } => {
            for port in except {
                let reason = why(&port.source, purpose::not_captured("inbound port", port.value));
                let matches = vec![tcp(), to_port(port.value)];
                let chain = &b.layout.inbound;
                b.user(table, chain, matches, Target::Return, reason);
            }
            divert(b, None, source);
        }
        InboundSelection::Only(ports) => {
            for port in ports {
                divert(b, Some(port.value), &port.source);
            }
        }
    }
}

/// The chains that hand packets to a transparent proxy.
fn transparent_chains(b: &mut Builder<'_>, mark: Mark, source: &Source) {
    let layout = b.layout;
    let reason = why(source, "packets of a connection that the proxy has keep its mark");
    let set = Target::SetMark(Masked::exact(mark.get()));
    b.user(Table::Mangle, &layout.divert, vec![], set, reason.clone());
    b.user(Table::Mangle, &layout.divert, vec![], Target::Accept, reason);
    let port = &b.policy.inbound.port;
    let target = Target::Tproxy { mark: Masked::exact(mark.get()), port: port.value };
    let matches = vec![not_to(b.localhost()), tcp()];
    let purpose = format!("captured inbound connections go to transparent port {}", port.value);
    b.user(Table::Mangle, &layout.tproxy, matches, target, why(&port.source, purpose));
}

/// Capture connections to `ports`, or to any port.
fn divert(b: &mut Builder<'_>, ports: Option<PortRange>, source: &Source) {
    let layout = b.layout;
    let purpose = ports
        .map_or_else(|| purpose::EVERY_PORT.to_owned(), |p| purpose::captured("inbound port", p));
    let mut matches = vec![tcp()];
    matches.extend(ports.map(to_port));
    let reason = why(source, purpose);
    if let InboundMode::Tproxy { .. } = b.policy.inbound.mode {
        let mut known = matches.clone();
        known.push(Match::ConnState(vec![ConnState::Related, ConnState::Established]));
        let chain = &layout.inbound;
        b.user(Table::Mangle, chain, known, jump(&layout.divert), reason.clone());
        b.user(Table::Mangle, chain, matches, jump(&layout.tproxy), reason);
    } else {
        b.user(Table::Nat, &layout.inbound, matches, jump(&layout.in_redirect), reason);
    }
}
