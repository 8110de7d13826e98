//! Interfaces, and connections to the pod.

use super::{Builder, Statement, in_by, jump, not_to, out_by, rule, tcp, to_tcp, why};
use crate::policy::{InboundMode, InboundSelection};
use crate::ruleset::{Chain, ConnState, Hook, Table};
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
            let incoming = rule(vec![in_by(&nic.value)], Statement::Return);
            b.hook(table, Hook::Prerouting, incoming, reason.clone());
            let outgoing = rule(vec![out_by(&nic.value)], Statement::Return);
            b.hook(table, Hook::Output, outgoing, reason);
        }
    }
    for nic in &b.policy.interfaces.rerouted {
        let purpose = format!("what comes in by {} is not inbound traffic of this pod", nic.value);
        b.put(
            Table::Nat,
            Chain::Builtin(Hook::Prerouting),
            Some(0),
            rule(vec![in_by(&nic.value)], Statement::Return),
            why(&nic.source, purpose),
        );
    }
}

/// TCP packets that belong to no connection.
pub(super) fn drop_invalid(b: &mut Builder<'_>) {
    let Some(source) = &b.policy.drop_invalid else { return };
    let layout = b.layout;
    let mut invalid = vec![Statement::State(vec![ConnState::Invalid])];
    // The reference drops TCP alone with nftables, and every protocol with iptables.
    if b.as_reference {
        invalid.insert(0, tcp());
    }
    let reason = why(source, "packets that belong to no connection are dropped");
    b.hook(Table::Mangle, Hook::Prerouting, rule(invalid, jump(&layout.drop)), reason);
    let reason = why(source, "drops what is sent here");
    b.user(Table::Mangle, &layout.drop, rule(vec![], Statement::Drop), reason);
}

/// The tunnel port's exemption and the two redirects, which are always there.
pub(super) fn chains(b: &mut Builder<'_>) {
    let (layout, policy) = (b.layout, b.policy);
    let tunnel = &policy.inbound.tunnel_port;
    let purpose = format!("tunnels to port {} reach the proxy as they are", tunnel.value);
    let spare = rule(vec![tcp(), to_tcp(tunnel.value.port())], Statement::Return);
    b.user(Table::Nat, &layout.inbound, spare, why(&tunnel.source, purpose));
    for (chain, port, direction) in [
        (&layout.redirect, &policy.outbound.port, "outbound"),
        (&layout.in_redirect, &policy.inbound.port, "inbound"),
    ] {
        let purpose = format!("captured {direction} connections go to port {}", port.value);
        let redirect = rule(vec![tcp()], Statement::Redirect(port.value));
        b.user(Table::Nat, chain, redirect, why(&port.source, purpose));
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
    let enter = rule(vec![tcp()], jump(&b.layout.inbound));
    b.hook(table, Hook::Prerouting, enter, why(source, "inbound connections are captured"));
    match &policy.inbound.selection {
        InboundSelection::Nothing => {}
        InboundSelection::AllExcept { source, except } => {
            for port in except {
                let reason =
                    why(&port.source, format!("inbound port {} is not captured", port.value));
                let spare = rule(vec![tcp(), to_tcp(port.value)], Statement::Return);
                b.user(table, &b.layout.inbound, spare, reason);
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
    let set = rule(vec![], Statement::SetMark(mark.get()));
    b.user(Table::Mangle, &layout.divert, set, reason.clone());
    b.user(Table::Mangle, &layout.divert, rule(vec![], Statement::Accept), reason);
    let port = &b.policy.inbound.port;
    let purpose = format!("captured inbound connections go to transparent port {}", port.value);
    for family in b.families() {
        let captured = vec![tcp(), not_to(b.localhost(family))];
        let mut hand = captured.clone();
        hand.push(Statement::Tproxy { family, port: port.value });
        hand.push(Statement::SetMark(mark.get()));
        let reason = why(&port.source, purpose.clone());
        b.user(Table::Mangle, &layout.tproxy, rule(hand, Statement::Accept), reason);
        // Where no transparent socket listens, `tproxy` ends its rule and no more
        // (`nft_tproxy_eval_v4()`); TPROXY of iptables drops. The reference's tables stay as they
        // are, and `guarded` adds a table beside them.
        if !b.as_reference {
            let reason = why(&port.source, super::super::guard::purpose(port.value));
            b.user(Table::Mangle, &layout.tproxy, rule(captured, Statement::Drop), reason);
        }
    }
}

/// Capture connections to `ports`, or to any port.
fn divert(b: &mut Builder<'_>, ports: Option<PortRange>, source: &Source) {
    let layout = b.layout;
    let what =
        ports.map_or_else(|| "every inbound port".to_owned(), |p| format!("inbound port {p}"));
    let reason = why(source, format!("{what} is captured"));
    let to_ports = ports.map(to_tcp);
    let any: Vec<Statement> = [tcp()].into_iter().chain(to_ports.clone()).collect();
    if let InboundMode::Tproxy { .. } = b.policy.inbound.mode {
        let known = Statement::State(vec![ConnState::Related, ConnState::Established]);
        let known = [tcp(), known].into_iter().chain(to_ports).collect();
        let chain = &layout.inbound;
        b.user(Table::Mangle, chain, rule(known, jump(&layout.divert)), reason.clone());
        b.user(Table::Mangle, chain, rule(any, jump(&layout.tproxy)), reason);
    } else {
        b.user(Table::Nat, &layout.inbound, rule(any, jump(&layout.in_redirect)), reason);
    }
}
