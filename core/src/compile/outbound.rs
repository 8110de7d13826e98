//! Connections from the pod.

use super::build::{
    Builder, DNS, from, in_by, jump, not_of, not_to, not_to_port, of, out_by, tcp, to, to_port,
    udp, why,
};
use super::purpose;
use crate::policy::{GroupSelection, IdentityMatching, NetworkSelection};
use crate::ruleset::{Chain, Hook, Match, Owner, Placement, Reason, Table, Target};
use crate::source::Source;
use crate::value::{Cidr, InterfacePattern};

/// The way in, excluded ports, and what the proxy passes on to the application.
pub(super) fn enter(b: &mut Builder<'_>) {
    let (layout, policy) = (b.layout, b.policy);
    let reason = why(&policy.outbound.port.source, "outbound connections are captured");
    b.hook(Table::Nat, Hook::Output, vec![], jump(&layout.output), reason);
    for port in &policy.outbound.except_ports {
        let reason = why(&port.source, purpose::not_captured("outbound port", port.value));
        for protocol in [tcp(), udp()] {
            let matches = vec![protocol, to_port(port.value)];
            output(b, matches, Target::Return, reason.clone());
        }
    }
    let matches = vec![out_by(&InterfacePattern::loopback()), from(b.passthrough())];
    output(b, matches, Target::Return, why(&Source::Always, purpose::PASSTHROUGH));
}

/// The proxy's own connections and those that stay in the pod.
pub(super) fn identity(b: &mut Builder<'_>) {
    let policy = b.policy;
    let uids = policy.proxy.uids.iter().map(|u| (Owner::Uid(u.value), &u.source));
    let gids = policy.proxy.gids.iter().map(|g| (Owner::Gid(g.value), &g.source));
    match policy.proxy.matching {
        IdentityMatching::OneByOne => {
            for (owner, source) in uids.chain(gids) {
                // The reference exempts DNS from the self-call for users only.
                let spare_dns = policy.dns.is_some() && matches!(owner, Owner::Uid(_));
                self_call(b, &owner, source, spare_dns);
                if !policy.outbound.networks.names_loopback() {
                    stays_in_pod(b, Some(&owner), source);
                }
                leaves_from_proxy(b, &owner, source);
            }
        }
        IdentityMatching::Any => {
            let owners: Vec<(Owner, &Source)> = uids.chain(gids).collect();
            for (owner, source) in &owners {
                self_call(b, owner, source, policy.dns.is_some());
            }
            for (owner, source) in &owners {
                leaves_from_proxy(b, owner, source);
            }
            if !policy.outbound.networks.names_loopback() {
                stays_in_pod(b, None, &Source::Always);
            }
        }
    }
}

/// The proxy calls its own pod by its address: that comes in by the inbound port.
fn self_call(b: &mut Builder<'_>, owner: &Owner, source: &Source, spare_dns: bool) {
    let tunnel = b.policy.inbound.tunnel_port.value.port();
    let mut matches = vec![out_by(&InterfacePattern::loopback()), not_to(b.localhost()), tcp()];
    if spare_dns {
        let ports = vec![DNS.into(), tunnel.into()];
        matches.push(Match::DestinationPorts { negated: true, ports });
    } else {
        matches.push(not_to_port(tunnel));
    }
    matches.push(of(owner.clone()));
    let target = jump(&b.layout.in_redirect);
    output(b, matches, target, why(source, purpose::SELF_CALL));
}

/// The application (who is not `proxy`) talks to itself over loopback.
fn stays_in_pod(b: &mut Builder<'_>, proxy: Option<&Owner>, source: &Source) {
    let mut matches = vec![out_by(&InterfacePattern::loopback())];
    if b.policy.dns.is_some() {
        matches.extend([tcp(), not_to_port(DNS)]);
    }
    matches.extend(proxy.cloned().map(not_of));
    output(b, matches, Target::Return, why(source, purpose::IN_POD));
}

/// What the proxy sends is not captured again.
fn leaves_from_proxy(b: &mut Builder<'_>, owner: &Owner, source: &Source) {
    output(b, vec![of(owner.clone())], Target::Return, why(source, purpose::PROXY));
}

/// Groups whose processes are or are not captured.
pub(super) fn groups(b: &mut Builder<'_>) {
    match &b.policy.outbound.groups {
        GroupSelection::AllExcept(groups) => {
            for group in groups {
                let reason = why(&group.source, purpose::NOT_GROUP);
                output(b, vec![of(group.value.clone())], Target::Return, reason);
            }
        }
        GroupSelection::Only { groups, source } => {
            let matches = groups.iter().map(|g| not_of(g.value.clone())).collect();
            let reason = why(source, purpose::ONLY_GROUPS);
            output(b, matches, Target::Return, reason);
        }
    }
}

/// Localhost, excluded networks, and then what is captured.
pub(super) fn selection(b: &mut Builder<'_>) {
    let policy = b.policy;
    let localhost = &policy.localhost;
    let reason = why(&localhost.source, purpose::LOCALHOST);
    output(b, vec![to(b.localhost())], Target::Return, reason);
    let family = b.family;
    for network in policy.outbound.except_networks.iter().filter(|c| c.value.family() == family) {
        let purpose = purpose::not_captured("outbound network", network.value);
        output(b, vec![to(network.value)], Target::Return, why(&network.source, purpose));
    }
    for port in &policy.outbound.ports {
        let purpose = purpose::captured_everywhere(port.value);
        let matches = vec![tcp(), to_port(port.value)];
        let target = jump(&b.layout.redirect);
        output(b, matches, target, why(&port.source, purpose));
    }
    match &policy.outbound.networks {
        NetworkSelection::All(source) => {
            let reason = why(source, purpose::EVERY_OTHER);
            let target = jump(&b.layout.redirect);
            output(b, vec![], target, reason.clone());
            reroute(b, None, &reason);
        }
        NetworkSelection::Only(_) => {
            for network in policy.outbound.networks.of(b.family) {
                let purpose = purpose::captured("outbound network", network.value);
                let reason = why(&network.source, purpose);
                reroute(b, Some(network.value), &reason);
                let target = jump(&b.layout.redirect);
                output(b, vec![to(network.value)], target, reason);
            }
        }
    }
}

/// What comes in by a rerouted interface and goes to `network` is captured as if the pod sent it.
fn reroute(b: &mut Builder<'_>, network: Option<Cidr>, reason: &Reason) {
    for nic in &b.policy.interfaces.rerouted {
        let mut matches = vec![in_by(&nic.value)];
        matches.extend(network.map(to));
        let purpose =
            format!("what comes in by {} counts as outbound: {}", nic.value, reason.purpose);
        let target = jump(&b.layout.redirect);
        b.put(
            Table::Nat,
            Chain::Builtin(Hook::Prerouting),
            Placement::Insert(1),
            matches,
            target,
            why(&nic.source, purpose),
        );
    }
}

fn output(b: &mut Builder<'_>, matches: Vec<Match>, target: Target, reason: Reason) {
    let chain = &b.layout.output;
    b.user(Table::Nat, chain, matches, target, reason);
}
