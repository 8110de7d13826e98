//! What is asked for before anything about TCP, in the builtin chains: flows and networks that are left
//! alone, and DNS queries.

use std::net::IpAddr;

use super::Inferred;
use super::read::Chains;
use crate::dialect::Mesh;
use crate::policy::{Flow, Phase};
use crate::ruleset::{Hook, Match, Owner, Protocol, Rule, Side, Table, Target};
use crate::value::{ListenPort, Port, PortRange, UidRange};

/// What one rule in OUTPUT of `nat` means as a setting.
enum Said {
    Flow(Flow),
    /// A network, or all of a family, that is left alone.
    Network(Option<String>),
    /// Queries go to this port: those to a server, or all.
    Dns(ListenPort, Option<IpAddr>),
}

/// Read both families; lists of networks and servers are put together.
pub(super) fn settings(families: [Option<&Chains>; 2], mesh: &Mesh, found: &mut Inferred) {
    let conventions = &mesh.conventions;
    let networks = conventions.except_networks == Phase::Ahead;
    if !conventions.dns.is_ahead() && !networks {
        return;
    }
    let proxy = found.settings.get("proxy-uid").cloned().unwrap_or_default();
    let mut zones = false;
    let mut first = true;
    for (chains, all) in families.into_iter().zip(["0.0.0.0/0", "::/0"]) {
        let Some(chains) = chains else { continue };
        let mut servers = Vec::new();
        for said in
            chains.hook(Table::Nat, Hook::Output).iter().filter_map(|rule| said(rule, &proxy))
        {
            match said {
                // Both families have the same.
                Said::Flow(flow) if first => found.flows.push(flow),
                Said::Network(network) if networks => {
                    found.push("exclude-outbound-cidrs", network.as_deref().unwrap_or(all));
                }
                Said::Dns(port, server) if conventions.dns.is_ahead() => {
                    found.set("dns-port", port);
                    found.set("dns", if server.is_some() { "servers" } else { "all" });
                    servers.extend(server);
                }
                Said::Flow(_) | Said::Network(_) | Said::Dns(..) => {}
            }
        }
        let raw = chains.hook(Table::Raw, Hook::Output);
        zones |= raw.iter().any(|rule| matches!(rule.target, Target::Zone(_)));
        let order = order(raw);
        servers.sort_by_key(|server| order.iter().position(|other| other == server));
        found.dns_servers.extend(servers);
        first = false;
    }
    found.zones = conventions.dns.is_ahead().then_some(zones);
}

/// The order in which servers were named. Where their rules are one, with a set, it has none; but the rule
/// for the answers of a local server follows on the one for what it is asked.
fn order(rules: &[Rule]) -> Vec<IpAddr> {
    let (mut order, mut open) = (Vec::new(), Vec::new());
    for rule in rules.iter().filter(|rule| matches!(rule.target, Target::Zone(_))) {
        match rule.matches.as_slice() {
            [Match::Address { side: Side::Destination, cidr, .. }, _, Match::Port { .. }] => {
                open.push(cidr.address());
            }
            [Match::Address { side: Side::Source, cidr, .. }, Match::Address { .. }, _] => {
                let local = cidr.address();
                open.retain(|server| *server != local);
                order.append(&mut open);
                order.push(local);
            }
            _ => {}
        }
    }
    order.append(&mut open);
    order
}

/// What a rule says, where the proxy is this user.
fn said(rule: &Rule, proxy: &str) -> Option<Said> {
    let dns: PortRange = Port::new(53).into();
    match (rule.matches.as_slice(), &rule.target) {
        (
            [Match::Protocol(protocol), ports, Match::Owner { negated: false, owner }],
            Target::Return,
        ) => {
            let users = match owner {
                Owner::Uid(uid) => UidRange::new(*uid, *uid)?,
                Owner::Uids(users) => *users,
                Owner::Gid(_) | Owner::Group(_) => return None,
            };
            let ports = match ports {
                Match::DestinationPorts { negated: false, ports } => ports.clone(),
                // The proxy's own queries.
                Match::Port { side: Side::Destination, negated: false, ports }
                    if *protocol == Protocol::Udp
                        && *ports == dns
                        && users.to_string() == proxy =>
                {
                    return None;
                }
                Match::Port { side: Side::Destination, negated: false, ports } => vec![*ports],
                _ => return None,
            };
            Some(Said::Flow(Flow { protocols: vec![*protocol], ports, users }))
        }
        ([Match::Address { side: Side::Destination, negated: false, cidr }], Target::Return) => {
            Some(Said::Network(Some(cidr.to_string())))
        }
        ([], Target::Return) => Some(Said::Network(None)),
        ([to @ .., Match::Protocol(Protocol::Udp), Match::Port { ports, .. }], target) => {
            let Target::Redirect { port, .. } = target else { return None };
            let server = match to {
                [] => None,
                [Match::Address { side: Side::Destination, negated: false, cidr }] => {
                    Some(cidr.address())
                }
                _ => return None,
            };
            (*ports == dns).then_some(Said::Dns(*port, server))
        }
        _ => None,
    }
}
