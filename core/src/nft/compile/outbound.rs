//! Connections from the pod.

use super::{
    Builder, DNS, Statement, by_loopback, from, in_by, jump, not_of, not_to, not_to_tcp, of,
    passthrough, rule, tcp, to, to_tcp, to_udp, why,
};
use crate::policy::{GroupSelection, IdentityMatching, NetworkSelection};
use crate::ruleset::{Chain, Hook, Owner, Reason, Table};
use crate::source::Source;
use crate::value::{Cidr, Family, PortRange};

/// The way in, excluded ports, and what the proxy passes on to the application.
pub(super) fn enter(b: &mut Builder<'_>) {
    let (layout, policy) = (b.layout, b.policy);
    let reason = why(&policy.outbound.port.source, "outbound connections are captured");
    b.hook(Table::Nat, Hook::Output, rule(vec![], jump(&layout.output)), reason);
    for port in &policy.outbound.except_ports {
        let reason = why(&port.source, format!("outbound port {} is not captured", port.value));
        for ports in [to_tcp(port.value), to_udp(port.value)] {
            output(b, rule(vec![ports], Statement::Return), reason.clone());
        }
    }
    let purpose = "what the proxy passes on to the application is left alone";
    for family in b.families() {
        let passed = vec![by_loopback(), from(passthrough(family))];
        output(b, rule(passed, Statement::Return), why(&Source::Always, purpose));
    }
}

/// The proxy's own connections and those that stay in the pod.
pub(super) fn identity(b: &mut Builder<'_>) {
    let policy = b.policy;
    let uids = policy.proxy.uids.iter().map(|u| (Owner::Uid(u.value), &u.source));
    let gids = policy.proxy.gids.iter().map(|g| (Owner::Gid(g.value), &g.source));
    let stay = !policy.outbound.networks.names_loopback();
    match policy.proxy.matching {
        IdentityMatching::OneByOne => {
            for (owner, source) in uids.chain(gids) {
                // The reference exempts DNS from the self-call for users only.
                let spare_dns = policy.dns.is_some() && matches!(owner, Owner::Uid(_));
                self_call(b, &owner, source, spare_dns);
                if stay {
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
            if stay {
                stays_in_pod(b, None, &Source::Always);
            }
        }
    }
}

/// The proxy calls its own pod by its address: that comes in by the inbound port.
fn self_call(b: &mut Builder<'_>, owner: &Owner, source: &Source, spare_dns: bool) {
    let tunnel = b.policy.inbound.tunnel_port.value.port();
    let spared: Vec<PortRange> =
        if spare_dns { vec![DNS.into(), tunnel.into()] } else { vec![tunnel.into()] };
    let purpose = "the proxy's calls to its own pod come in by the inbound port";
    for family in b.families() {
        let call = vec![
            by_loopback(),
            tcp(),
            not_to(b.localhost(family)),
            not_to_tcp(spared.clone()),
            of(owner.clone()),
        ];
        output(b, rule(call, jump(&b.layout.in_redirect)), why(source, purpose));
    }
}

/// The application (who is not `proxy`) talks to itself over loopback.
fn stays_in_pod(b: &mut Builder<'_>, proxy: Option<&Owner>, source: &Source) {
    let mut stays = vec![by_loopback()];
    if b.policy.dns.is_some() {
        stays.extend([tcp(), not_to_tcp(vec![DNS.into()])]);
    }
    stays.extend(proxy.cloned().map(not_of));
    let purpose = "what the application sends to its own pod is left alone";
    output(b, rule(stays, Statement::Return), why(source, purpose));
}

/// What the proxy sends is not captured again.
fn leaves_from_proxy(b: &mut Builder<'_>, owner: &Owner, source: &Source) {
    let purpose = "the proxy's own connections are left alone";
    output(b, rule(vec![of(owner.clone())], Statement::Return), why(source, purpose));
}

/// Groups whose processes are or are not captured.
pub(super) fn groups(b: &mut Builder<'_>) {
    match &b.policy.outbound.groups {
        GroupSelection::AllExcept(groups) => {
            for group in groups {
                let reason = why(&group.source, "processes of this group are not captured");
                output(b, rule(vec![of(group.value.clone())], Statement::Return), reason);
            }
        }
        GroupSelection::Only { groups, source } => {
            let none = groups.iter().map(|g| not_of(g.value.clone())).collect();
            let reason = why(source, "only processes of these groups are captured");
            output(b, rule(none, Statement::Return), reason);
        }
    }
}

/// Localhost, excluded networks, and then what is captured.
pub(super) fn selection(b: &mut Builder<'_>) {
    let policy = b.policy;
    for family in b.families() {
        let reason = why(&policy.localhost.source, "connections to localhost are left alone");
        output(b, rule(vec![to(b.localhost(family))], Statement::Return), reason);
    }
    for family in b.families() {
        let networks = policy.outbound.except_networks.iter();
        for network in networks.filter(|c| c.value.family() == family) {
            let purpose = format!("outbound network {} is not captured", network.value);
            let spare = rule(vec![to(network.value)], Statement::Return);
            output(b, spare, why(&network.source, purpose));
        }
    }
    for port in &policy.outbound.ports {
        let purpose = format!("outbound port {} is captured wherever it goes", port.value);
        let capture = rule(vec![to_tcp(port.value)], jump(&b.layout.redirect));
        output(b, capture, why(&port.source, purpose));
    }
    match &policy.outbound.networks {
        NetworkSelection::All(source) => {
            let reason = why(source, "every other outbound connection is captured");
            output(b, rule(vec![], jump(&b.layout.redirect)), reason.clone());
            reroute(b, None, &reason);
        }
        NetworkSelection::Only(_) => {
            let families: Vec<Family> = b.families().collect();
            for network in families.iter().flat_map(|f| policy.outbound.networks.of(*f)) {
                let purpose = format!("outbound network {} is captured", network.value);
                let reason = why(&network.source, purpose);
                reroute(b, Some(network.value), &reason);
                output(b, rule(vec![to(network.value)], jump(&b.layout.redirect)), reason);
            }
        }
    }
}

/// What comes in by a rerouted interface and goes to `network` is captured as if the pod sent it.
fn reroute(b: &mut Builder<'_>, network: Option<Cidr>, reason: &Reason) {
    for nic in &b.policy.interfaces.rerouted {
        let came = [in_by(&nic.value)].into_iter().chain(network.map(to)).collect();
        let purpose =
            format!("what comes in by {} counts as outbound: {}", nic.value, reason.purpose);
        b.put(
            Table::Nat,
            Chain::Builtin(Hook::Prerouting),
            Some(0),
            rule(came, jump(&b.layout.redirect)),
            why(&nic.source, purpose),
        );
    }
}

fn output(b: &mut Builder<'_>, rule: Vec<Statement>, reason: Reason) {
    let chain = &b.layout.output;
    b.user(Table::Nat, chain, rule, reason);
}
