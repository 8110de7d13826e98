//! Capture for a proxy that is no process of the pod: it serves many pods from outside, and what its
//! sockets in this one send is known by a mark. The pod's own calls to itself are left alone; and so that
//! answers to an address that the proxy took for its own come back to it, a connection of which a packet
//! had the mark keeps one of its own.

use super::program::{
    Addresses, Branch, Condition, DNS, Path, Program, Role, Verdict, arrived_by, from, from_port,
    leaves_by, marked, not_to_localhost, not_to_ports, over_lo, owners, tcp, to, to_port, udp, why,
};
use super::{dns, families, inbound, outbound, purpose};
use crate::policy::{CapturePolicy, InboundSelection, NetworkSelection, Phase, Probe, ProxyMarks};
use crate::ruleset::{Masked, Protocol, Reason, Table};
use crate::source::Source;
use crate::value::{Cidr, InterfacePattern, PortRange};

/// A decision about what arrives, or what the pod sends, when its connection begins.
const fn begins(branch: Branch, role: Role) -> (Table, Branch, Role) {
    (Table::Nat, branch, role)
}

const fn not_marked(mark: Masked) -> Condition {
    Condition::Mark { negated: true, mark }
}

/// All decisions of such a policy.
pub(super) fn capture(program: &mut Program, policy: &CapturePolicy, marks: &ProxyMarks) {
    inbound::drop_invalid(program, policy);
    outbound::ahead(program, policy);
    enter(program, policy);
    interfaces(program, policy);
    keep_marks(program, marks);
    probes(program, policy);
    captured_inbound(program, policy, marks.proxy);
    restore_marks(program, marks);
    outbound::exclusions(program, policy, Phase::First);
    queries(program, policy, marks.proxy);
    bypassed(program, policy, marks);
    outbound::exclusions(program, policy, Phase::Last);
    captured_outbound(program, policy, marks.proxy);
}

/// The ways in. Marks are looked at and set for every packet.
fn enter(program: &mut Program, policy: &CapturePolicy) {
    let (arriving, leaving) = (Path::Arriving, Path::Leaving);
    let [inbound, outbound] = [Branch::Inbound, Branch::Outbound].map(Verdict::Ask);
    let marks = "marks tell what the proxy sends, and what it is answered";
    let dns = policy.dns.as_ref();
    let queries = "the proxy's own DNS queries are tracked apart";
    let out = Some((&policy.outbound.port.source, "outbound connections are captured"));
    let into = Some((&policy.inbound.port.source, "inbound connections are captured"));
    let mark = Some((&Source::Always, marks));
    let zone = dns.map(|dns| (&dns.source, queries));
    for (table, path, verdict, said) in [
        (Table::Mangle, arriving, inbound, mark),
        (Table::Mangle, leaving, outbound, mark),
        (Table::Nat, leaving, outbound, out),
        (Table::Raw, arriving, inbound, zone),
        (Table::Raw, leaving, outbound, zone),
        (Table::Nat, arriving, inbound, into),
    ] {
        if let Some((source, purpose)) = said {
            program.add((table, path, Role::Enter), [], verdict, why(source, purpose));
        }
    }
}

/// Interfaces that are left alone, and those with virtual machines behind them.
fn interfaces(program: &mut Program, policy: &CapturePolicy) {
    let role = Role::ExcludedInterface;
    for nic in &policy.interfaces.excluded {
        let reason = why(&nic.source, purpose::interface(&nic.value));
        let place = begins(Branch::Inbound, role);
        program.add(place, [arrived_by(&nic.value)], Verdict::Pass, reason.clone());
        program.add(begins(Branch::Outbound, role), [leaves_by(&nic.value)], Verdict::Pass, reason);
    }
    for nic in &policy.interfaces.rerouted {
        let purpose = format!("what comes in by {} counts as outbound", nic.value);
        let reason = why(&nic.source, purpose);
        let to_proxy = Verdict::Redirect(policy.outbound.port.value);
        let place = begins(Branch::Inbound, Role::Rerouted);
        let by = |more: Option<Condition>| {
            [arrived_by(&nic.value), tcp()].into_iter().chain(more).collect::<Vec<_>>()
        };
        for port in &policy.outbound.ports {
            program.add(place, by(Some(to_port(port.value))), to_proxy, reason.clone());
        }
        for network in selected(policy) {
            let network = network.map(|(network, _)| to(Addresses::Network(network)));
            program.add(place, by(network), to_proxy, reason.clone());
        }
        let purpose = format!("what comes in by {} is not inbound traffic of this pod", nic.value);
        program.add(place, by(None), Verdict::Pass, why(&nic.source, purpose));
    }
}

/// Networks that are captured; one `None` when all are.
fn selected(policy: &CapturePolicy) -> Vec<Option<(Cidr, &Source)>> {
    match &policy.outbound.networks {
        NetworkSelection::All(_) => vec![None],
        NetworkSelection::Only(_) => families(policy)
            .flat_map(|family| policy.outbound.networks.of(family))
            .map(|network| Some((network.value, &network.source)))
            .collect(),
    }
}

fn keep_marks(program: &mut Program, marks: &ProxyMarks) {
    let purpose = format!(
        "a connection of which the proxy sends (mark {}) is marked",
        purpose::mark(marks.proxy)
    );
    let verdict = Verdict::MarkConnection(marks.connection);
    let place = (Table::Mangle, Branch::Inbound, Role::Mark);
    program.add(place, [marked(marks.proxy)], verdict, why(&Source::Always, purpose));
}

/// Answers to the proxy get its connection's mark, which brings them back to it.
fn restore_marks(program: &mut Program, marks: &ProxyMarks) {
    let reason = why(&Source::Always, "answers to the proxy return to the proxy");
    let place = (Table::Mangle, Branch::Outbound, Role::Mark);
    let when = [Condition::ConnectionMark(marks.connection)];
    program.add(place, when, Verdict::RestoreMark, reason);
}

/// What the node probes the pod by, if anything else is captured, and what is sent there.
fn probes(program: &mut Program, policy: &CapturePolicy) {
    let captures = policy.inbound.selection.captures();
    for probe in policy.inbound.probes.iter().filter(|_| captures) {
        let address = probe.value.address();
        let reason = why(&probe.source, format!("the node probes the pod from {address}"));
        let when = [from(Addresses::Network(Cidr::host(address))), tcp()];
        program.add(begins(Branch::Inbound, Role::Probe), when, Verdict::Accept, reason);
    }
    for probe in &policy.inbound.probes {
        let Probe::Translated(address) = probe.value else { continue };
        let purpose = format!("the node probes the pod from {address}, which is nobody else's");
        let when = [to(Addresses::Network(Cidr::host(address))), tcp()];
        let place = begins(Branch::Outbound, Role::Probe);
        program.add(place, when, Verdict::Accept, why(&probe.source, purpose));
    }
}

fn captured_inbound(program: &mut Program, policy: &CapturePolicy, proxy: Masked) {
    let inbound = &policy.inbound;
    let (only, except, source) = match &inbound.selection {
        InboundSelection::Nothing => return,
        InboundSelection::AllExcept { except, source } => (None, except, source),
        InboundSelection::Only { ports, except } => (Some(ports), except, &inbound.port.source),
    };
    for port in except {
        let reason = why(&port.source, purpose::not_captured("inbound port", port.value));
        let place = begins(Branch::Inbound, Role::ExcludedInboundPort);
        program.add(place, [tcp(), to_port(port.value)], Verdict::Pass, reason);
    }
    for network in &inbound.except_sources {
        let purpose = purpose::not_captured("inbound network", network.value);
        let when = [from(Addresses::Network(network.value))];
        let place = begins(Branch::Inbound, Role::ExcludedSource);
        program.add(place, when, Verdict::Pass, why(&network.source, purpose));
    }
    let place = begins(Branch::Inbound, Role::Inbound);
    let verdict = Verdict::Redirect(inbound.port.value);
    let tunnel = inbound.tunnel_port.as_ref();
    let Some(only) = only else {
        let mut when = vec![not_to_localhost(), tcp()];
        when.extend(tunnel.map(|port| not_to_ports(vec![port.value.port().into()])));
        when.push(not_marked(proxy));
        let purpose = match tunnel {
            Some(port) => {
                format!("{}, but the one of tunnels, {}", purpose::EVERY_PORT, port.value)
            }
            None => purpose::EVERY_PORT.to_owned(),
        };
        return program.add(place, when, verdict, why(source, purpose));
    };
    if let Some(tunnel) = tunnel {
        let reason = why(&tunnel.source, purpose::tunnel(tunnel.value));
        let to_tunnel = [tcp(), to_port(tunnel.value.port())];
        program.add(begins(Branch::Inbound, Role::Tunnel), to_tunnel, Verdict::Pass, reason);
    }
    for port in only {
        let reason = why(&port.source, purpose::captured("inbound port", port.value));
        let when = [not_to_localhost(), tcp(), to_port(port.value), not_marked(proxy)];
        program.add(place, when, verdict, reason);
    }
}

/// DNS queries of others than the proxy; and a zone of connection tracking for the proxy's own, which can
/// have the addresses and ports of one that it answers.
fn queries(program: &mut Program, policy: &CapturePolicy, proxy: Masked) {
    let Some(captured) = &policy.dns else { return };
    let put = |program: &mut Program, table, when: Vec<Condition>, verdict, reason: Reason| {
        let port = to_port(DNS);
        let servers = when.iter().filter(|c| matches!(c, Condition::Address { .. })).cloned();
        let servers: Vec<Condition> = servers.collect();
        let first = if when.contains(&Condition::Protocol(Protocol::Udp)) {
            let name = InterfacePattern::loopback();
            let elsewhere = Condition::LeavesBy { negated: true, name };
            vec![elsewhere, udp(), not_marked(proxy), port]
        } else {
            vec![not_to_localhost(), tcp(), port, not_marked(proxy)]
        };
        let place = (table, Branch::Outbound, Role::Dns);
        program.add(place, [first, servers].concat(), verdict, reason);
    };
    let servers = dns::servers(policy, captured);
    for protocol in [udp(), tcp()] {
        dns::redirects(program, captured, &servers, &protocol, put);
    }
    for (path, when, purpose) in [
        (
            Branch::Outbound,
            [udp(), marked(proxy), to_port(DNS)],
            "the proxy's own queries are tracked apart",
        ),
        (
            Branch::Inbound,
            [udp(), not_marked(proxy), from_port(DNS)],
            "the server's answers belong to the proxy's own queries",
        ),
    ] {
        dns::zone(program, path.into(), when, dns::UPSTREAM, why(&captured.source, purpose));
    }
}

/// Answers to the proxy, and what stays in the pod.
fn bypassed(program: &mut Program, policy: &CapturePolicy, marks: &ProxyMarks) {
    let reason = why(&Source::Always, "what belongs to a connection of the proxy is left alone");
    let place = begins(Branch::Outbound, Role::Proxy);
    program.add(place, [tcp(), marked(marks.connection)], Verdict::Accept, reason);
    for (owner, source) in owners(policy) {
        outbound::leaves_from_proxy(program, &owner, source);
    }
    let reason = why(&Source::Always, purpose::IN_POD);
    let place = begins(Branch::Outbound, Role::StaysInPod);
    program.add(place, [not_to_localhost(), over_lo()], Verdict::Accept, reason);
    outbound::groups(program, policy);
}

fn captured_outbound(program: &mut Program, policy: &CapturePolicy, proxy: Masked) {
    let verdict = Verdict::Redirect(policy.outbound.port.value);
    let mut add = |role, port: Option<PortRange>, network: Option<Cidr>, reason: Reason| {
        let mut when = vec![not_to_localhost(), tcp()];
        when.extend(port.map(to_port));
        when.extend(network.map(|network| to(Addresses::Network(network))));
        when.push(not_marked(proxy));
        program.add(begins(Branch::Outbound, role), when, verdict, reason);
    };
    for port in &policy.outbound.ports {
        let reason = why(&port.source, purpose::captured_everywhere(port.value));
        add(Role::IncludedPort, Some(port.value), None, reason);
    }
    for network in selected(policy) {
        let reason = match (network, &policy.outbound.networks) {
            (Some((network, source)), _) => {
                why(source, purpose::captured("outbound network", network))
            }
            (None, NetworkSelection::All(source)) => why(source, purpose::EVERY_OTHER),
            (None, NetworkSelection::Only(_)) => continue,
        };
        add(Role::Network, None, network.map(|(network, _)| network), reason);
    }
}
