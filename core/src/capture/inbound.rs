//! Interfaces, and connections to the pod.

use super::program::{
    Addresses, Branch, Condition, Listener, Path, Program, Role, Verdict, arrived_by, from,
    leaves_by, not_to_localhost, of_others, tcp, to_port, why,
};
use super::purpose;
use crate::policy::{CapturePolicy, InboundMode, InboundSelection, Local};
use crate::ruleset::{ConnState, Placement, Side, Table};
use crate::source::Source;
use crate::value::{Mark, PortRange};

/// Excluded interfaces in both directions, and what comes in by a rerouted interface and is to
/// none of the captured networks.
pub(super) fn interfaces(program: &mut Program, policy: &CapturePolicy) {
    let mut tables = vec![Table::Nat];
    if matches!(policy.inbound.mode, InboundMode::Tproxy { .. }) {
        tables.push(Table::Mangle);
    }
    let role = Role::ExcludedInterface;
    let first = !policy.conventions.interfaces_last;
    for table in tables {
        for nic in policy.interfaces.excluded.iter().filter(|_| first) {
            let reason = why(&nic.source, purpose::interface(&nic.value));
            let by = [arrived_by(&nic.value)];
            program.add((table, Path::Arriving, role), by, Verdict::Pass, reason.clone());
            let by = [leaves_by(&nic.value)];
            program.add((table, Path::Leaving, role), by, Verdict::Pass, reason);
        }
    }
    for nic in &policy.interfaces.rerouted {
        let purpose = format!("what comes in by {} is not inbound traffic of this pod", nic.value);
        let (by, reason) = ([arrived_by(&nic.value)], why(&nic.source, purpose));
        let place = (Table::Nat, Path::Arriving, Role::Rerouted);
        program.put(place, Placement::Insert(1), by, Verdict::Pass, reason);
    }
}

/// Packets that belong to no connection.
pub(super) fn drop_invalid(program: &mut Program, policy: &CapturePolicy) {
    let Some(source) = &policy.drop_invalid else { return };
    let reason = why(source, "packets that belong to no connection are dropped");
    let invalid = [Condition::State(vec![ConnState::Invalid])];
    let role = Role::Invalid;
    let drop = Verdict::Ask(Branch::Invalid);
    program.add((Table::Mangle, Path::Arriving, role), invalid, drop, reason);
    let reason = why(source, "drops what is sent here");
    program.add((Table::Mangle, Branch::Invalid, role), [], Verdict::Drop, reason);
}

/// The tunnel port's exemption, and the ways to the proxy, which are always there.
pub(super) fn listeners(program: &mut Program, policy: &CapturePolicy) {
    if let Some(tunnel) = &policy.inbound.tunnel_port {
        let reason = why(&tunnel.source, purpose::tunnel(tunnel.value));
        let to_tunnel = [tcp(), to_port(tunnel.value.port())];
        let place = (Table::Nat, Branch::Inbound, Role::Tunnel);
        program.add(place, to_tunnel, Verdict::Pass, reason);
    }
    for (listener, port, direction) in [
        (Listener::Outbound, &policy.outbound.port, "outbound"),
        (Listener::Inbound, &policy.inbound.port, "inbound"),
    ] {
        let purpose = format!("captured {direction} connections go to port {}", port.value);
        let (verdict, reason) = (Verdict::Redirect(port.value), why(&port.source, purpose));
        program.add((Table::Nat, Branch::To(listener), Role::Deliver), [tcp()], verdict, reason);
    }
}

/// Which inbound connections are captured, and how.
pub(super) fn capture(program: &mut Program, policy: &CapturePolicy) {
    let source = match &policy.inbound.selection {
        InboundSelection::Nothing => return,
        InboundSelection::AllExcept { source, .. } => source,
        InboundSelection::Only { ports, .. } => match ports.first() {
            Some(port) => &port.source,
            None => return,
        },
    };
    let table = match &policy.inbound.mode {
        InboundMode::Redirect => Table::Nat,
        InboundMode::Tproxy { mark, source, .. } => {
            transparent(program, policy, mark.value, source);
            Table::Mangle
        }
    };
    let reason = why(source, "inbound connections are captured");
    let enter = Verdict::Ask(Branch::Inbound);
    let mut when = vec![tcp()];
    if policy.conventions.local == Local::Addresses {
        when.push(of_others(Side::Source));
    }
    program.add((table, Path::Arriving, Role::Enter), when, enter, reason);
    let (only, except) = match &policy.inbound.selection {
        InboundSelection::Nothing => return,
        InboundSelection::AllExcept { except, .. } => (None, except),
        InboundSelection::Only { ports, except } => (Some(ports), except),
    };
    if policy.conventions.interfaces_last {
        for nic in &policy.interfaces.excluded {
            let reason = why(&nic.source, purpose::interface(&nic.value));
            let place = (table, Branch::Inbound, Role::ExcludedInterface);
            program.add(place, [arrived_by(&nic.value)], Verdict::Pass, reason);
        }
    }
    for port in except {
        let reason = why(&port.source, purpose::not_captured("inbound port", port.value));
        let place = (table, Branch::Inbound, Role::ExcludedInboundPort);
        program.add(place, [tcp(), to_port(port.value)], Verdict::Pass, reason);
    }
    for network in &policy.inbound.except_sources {
        let purpose = purpose::not_captured("inbound network", network.value);
        let when = [from(Addresses::Network(network.value))];
        let place = (table, Branch::Inbound, Role::ExcludedSource);
        program.add(place, when, Verdict::Pass, why(&network.source, purpose));
    }
    match only {
        None => captured(program, table, None, source),
        Some(ports) => {
            for port in ports {
                captured(program, table, Some(port.value), &port.source);
            }
        }
    }
}

/// What becomes of packets that a transparent proxy has or is to have.
fn transparent(program: &mut Program, policy: &CapturePolicy, mark: Mark, source: &Source) {
    let reason = why(source, "packets of a connection that the proxy has keep its mark");
    let place = (Table::Mangle, Branch::Divert, Role::Mark);
    program.add(place, [], Verdict::SetMark(mark.get()), reason.clone());
    program.add(place, [], Verdict::Accept, reason);
    let port = &policy.inbound.port;
    let purpose = format!("captured inbound connections go to transparent port {}", port.value);
    let place = (Table::Mangle, Branch::Transparent, Role::Deliver);
    let verdict = Verdict::Transparent { mark, port: port.value };
    program.add(place, [not_to_localhost(), tcp()], verdict, why(&port.source, purpose));
}

/// Capture connections to `ports`, or to any port.
fn captured(program: &mut Program, table: Table, ports: Option<PortRange>, source: &Source) {
    let purpose = ports
        .map_or_else(|| purpose::EVERY_PORT.to_owned(), |p| purpose::captured("inbound port", p));
    let mut when = vec![tcp()];
    when.extend(ports.map(to_port));
    let reason = why(source, purpose);
    let place = (table, Branch::Inbound, Role::Inbound);
    if table == Table::Mangle {
        // Only the first packet of a connection is to find the listener: the others have a socket.
        // What starts a connection belongs to none, whatever tracking still holds: a transparent socket
        // that the proxy has of an earlier one is found as well.
        let mut known = when.clone();
        known.push(Condition::Starts { negated: true });
        known.push(Condition::State(vec![ConnState::Related, ConnState::Established]));
        program.add(place, known, Verdict::Ask(Branch::Divert), reason.clone());
        program.add(place, when, Verdict::Ask(Branch::Transparent), reason);
    } else {
        program.add(place, when, Verdict::Ask(Branch::To(Listener::Inbound)), reason);
    }
}
