//! Connections from the pod.

use super::program::{
    Addresses, Branch, Condition, DNS, Listener, Path, Program, Role, Verdict, arrived_by, from,
    leaves_by, not_of, not_to_localhost, not_to_ports, of, of_others, over_lo, owners, tcp, to,
    to_port, udp, why,
};
use super::{families, purpose};
use crate::policy::{
    CapturePolicy, Flow, GroupSelection, IdentityMatching, Local, NetworkSelection, Phase, SelfCall,
};
use crate::ruleset::{Owner, Placement, Reason, Side, Table};
use crate::source::Source;
use crate::value::{Cidr, PortRange};

const CAPTURE: Verdict = Verdict::Ask(Branch::To(Listener::Outbound));

/// A decision about connections from the pod.
const fn outbound(role: Role) -> (Table, Branch, Role) {
    (Table::Nat, Branch::Outbound, role)
}

/// What is left alone before anything else is asked.
pub(super) fn ahead(program: &mut Program, policy: &CapturePolicy) {
    for flow in &policy.outbound.except_flows {
        let Flow { protocols, ports, users } = &flow.value;
        let list: Vec<String> = ports.iter().map(ToString::to_string).collect();
        let list = list.join(",");
        for protocol in protocols {
            let purpose =
                format!("what user {users} sends to {protocol} port {list} is not captured");
            let ports = Condition::ToPorts { negated: false, ports: ports.clone() };
            let when = [Condition::Protocol(*protocol), ports, of(&Owner::users(*users))];
            let place = (Table::Nat, Path::Leaving, Role::ExcludedFlow);
            program.put_in_front(place, when, Verdict::Pass, why(&flow.source, purpose));
        }
    }
    exclusions(program, policy, Phase::Ahead);
    if let Some(address) = &policy.outbound.localhost_to {
        for (owner, source) in owners(policy) {
            let purpose = format!("the proxy's connections to localhost go to {}", address.value);
            let when = [tcp(), over_lo(), to(Addresses::Localhost), of(&owner)];
            let verdict = Verdict::Translate { address: address.value.into(), port: None };
            let place = (Table::Nat, Path::Leaving, Role::OwnLocalhost);
            program.put_in_front(place, when, verdict, why(source, purpose));
        }
    }
}

/// The way in, excluded ports, and what the proxy passes on to the application.
pub(super) fn enter(program: &mut Program, policy: &CapturePolicy) {
    let reason = why(&policy.outbound.port.source, "outbound connections are captured");
    let place = (Table::Nat, Path::Leaving, Role::Enter);
    let mut when = Vec::from_iter(policy.conventions.dns.is_ahead().then(tcp));
    if policy.conventions.local == Local::Addresses {
        when.push(of_others(Side::Destination));
    }
    program.add(place, when, Verdict::Ask(Branch::Outbound), reason);
    exclusions(program, policy, Phase::First);
    if policy.conventions.passthrough {
        let when = [over_lo(), from(Addresses::Passthrough)];
        let reason = why(&Source::Always, purpose::PASSTHROUGH);
        program.add(outbound(Role::Passthrough), when, Verdict::Pass, reason);
    }
}

/// Ports, users and networks that are not captured, as far as they are asked for in `phase`.
pub(super) fn exclusions(program: &mut Program, policy: &CapturePolicy, phase: Phase) {
    let conventions = &policy.conventions;
    let mut pass = |role, when: Vec<Condition>, reason| match phase {
        Phase::Ahead => {
            program.put_in_front((Table::Nat, Path::Leaving, role), when, Verdict::Pass, reason);
        }
        Phase::First | Phase::Last => program.add(outbound(role), when, Verdict::Pass, reason),
    };
    if phase == Phase::Last && conventions.interfaces_last {
        for nic in &policy.interfaces.excluded {
            let reason = why(&nic.source, purpose::interface(&nic.value));
            pass(Role::ExcludedInterface, vec![leaves_by(&nic.value)], reason);
        }
    }
    if conventions.except_ports.phase == phase {
        let mut protocols = vec![tcp()];
        protocols.extend(conventions.except_ports.udp.then(udp));
        for port in &policy.outbound.except_ports {
            let reason = why(&port.source, purpose::not_captured("outbound port", port.value));
            for protocol in &protocols {
                let when = vec![protocol.clone(), to_port(port.value)];
                pass(Role::ExcludedPort, when, reason.clone());
            }
        }
    }
    if conventions.except_users == phase {
        for user in &policy.outbound.except_users {
            let reason = why(&user.source, purpose::not_captured("user", user.value));
            let mut when = Vec::from_iter((phase == Phase::Last).then(tcp));
            when.push(of(&Owner::Uid(user.value)));
            pass(Role::ExcludedUser, when, reason);
        }
    }
    if conventions.except_networks == phase {
        for family in families(policy) {
            let networks = policy.outbound.except_networks.iter();
            for network in networks.filter(|network| network.value.family() == family) {
                let purpose = purpose::not_captured("outbound network", network.value);
                let when = vec![to(Addresses::Network(network.value))];
                pass(Role::ExcludedNetwork, when, why(&network.source, purpose));
            }
        }
    }
}

/// The proxy's own connections and those that stay in the pod.
pub(super) fn identity(program: &mut Program, policy: &CapturePolicy) {
    // Where queries are asked for ahead, none of those that are captured gets here.
    let dns = policy.dns.is_some() && !policy.conventions.dns.is_ahead();
    let stay = policy.conventions.local.asks_lo() && !policy.outbound.networks.names_loopback();
    match policy.proxy.matching {
        IdentityMatching::OneByOne => {
            for (owner, source) in owners(policy) {
                // DNS is exempt from the self-call for users only.
                let exempts_dns = dns && matches!(owner, Owner::Uid(_));
                self_call(program, policy, &owner, source, exempts_dns);
                if stay {
                    stays_in_pod(program, dns, Some(&owner), source);
                }
                leaves_from_proxy(program, &owner, source);
            }
        }
        IdentityMatching::Any => {
            for (owner, source) in owners(policy) {
                self_call(program, policy, &owner, source, dns);
            }
            for (owner, source) in owners(policy) {
                leaves_from_proxy(program, &owner, source);
            }
            if stay {
                stays_in_pod(program, dns, None, &Source::Always);
            }
        }
    }
}

/// The proxy calls its own pod by its address: that comes in by the inbound port.
fn self_call(
    program: &mut Program,
    policy: &CapturePolicy,
    owner: &Owner,
    source: &Source,
    exempts_dns: bool,
) {
    if policy.conventions.self_call == SelfCall::Pass {
        return;
    }
    let tunnel = policy.inbound.tunnel_port.as_ref().map(|port| port.value.port().into());
    let exempt: Vec<PortRange> =
        exempts_dns.then_some(DNS.into()).into_iter().chain(tunnel).collect();
    let mut when = vec![over_lo(), not_to_localhost(), tcp()];
    if !exempt.is_empty() {
        when.push(not_to_ports(exempt));
    }
    when.push(of(owner));
    let capture = Verdict::Ask(Branch::To(Listener::Inbound));
    program.add(outbound(Role::SelfCall), when, capture, why(source, purpose::SELF_CALL));
}

/// The application (who is not `proxy`) talks to itself over loopback.
fn stays_in_pod(program: &mut Program, dns: bool, proxy: Option<&Owner>, source: &Source) {
    let mut when = vec![over_lo()];
    if dns {
        when.extend([tcp(), not_to_ports(vec![DNS.into()])]);
    }
    when.extend(proxy.map(not_of));
    program.add(outbound(Role::StaysInPod), when, Verdict::Pass, why(source, purpose::IN_POD));
}

/// What the proxy sends is not captured again.
pub(super) fn leaves_from_proxy(program: &mut Program, owner: &Owner, source: &Source) {
    program.add(outbound(Role::Proxy), [of(owner)], Verdict::Pass, why(source, purpose::PROXY));
}

/// Groups whose processes are or are not captured.
pub(super) fn groups(program: &mut Program, policy: &CapturePolicy) {
    let place = outbound(Role::Group);
    match &policy.outbound.groups {
        GroupSelection::AllExcept(groups) => {
            for group in groups {
                let reason = why(&group.source, purpose::NOT_GROUP);
                program.add(place, [of(&group.value)], Verdict::Pass, reason);
            }
        }
        GroupSelection::Only { groups, source } => {
            let none: Vec<_> = groups.iter().map(|group| not_of(&group.value)).collect();
            program.add(place, none, Verdict::Pass, why(source, purpose::ONLY_GROUPS));
        }
    }
}

/// Localhost, what is asked for last of exclusions, and then what is captured.
pub(super) fn selection(program: &mut Program, policy: &CapturePolicy) {
    if policy.conventions.local.asks_localhost() {
        let reason = why(&policy.localhost.source, purpose::LOCALHOST);
        let when = [to(Addresses::Localhost)];
        program.add(outbound(Role::Localhost), when, Verdict::Pass, reason);
    }
    exclusions(program, policy, Phase::Last);
    for port in &policy.outbound.ports {
        let reason = why(&port.source, purpose::captured_everywhere(port.value));
        let when = [tcp(), to_port(port.value)];
        program.add(outbound(Role::IncludedPort), when, CAPTURE, reason);
    }
    match &policy.outbound.networks {
        NetworkSelection::All(source) => {
            let reason = why(source, purpose::EVERY_OTHER);
            program.add(outbound(Role::Network), [], CAPTURE, reason.clone());
            reroute(program, policy, None, &reason);
        }
        NetworkSelection::Only(_) => {
            for network in families(policy).flat_map(|f| policy.outbound.networks.of(f)) {
                let purpose = purpose::captured("outbound network", network.value);
                let reason = why(&network.source, purpose);
                reroute(program, policy, Some(network.value), &reason);
                let when = [to(Addresses::Network(network.value))];
                program.add(outbound(Role::Network), when, CAPTURE, reason);
            }
        }
    }
}

/// What comes in by a rerouted interface and goes to `network` is captured as if the pod sent it.
fn reroute(program: &mut Program, policy: &CapturePolicy, network: Option<Cidr>, reason: &Reason) {
    for nic in &policy.interfaces.rerouted {
        let mut when = vec![arrived_by(&nic.value)];
        when.extend(network.map(|network| to(Addresses::Network(network))));
        let purpose =
            format!("what comes in by {} counts as outbound: {}", nic.value, reason.purpose);
        let place = (Table::Nat, Path::Arriving, Role::Rerouted);
        program.put(place, Placement::Insert(1), when, CAPTURE, why(&nic.source, purpose));
    }
}
