//! The rules for a proxy that is known by a mark: one chain for what arrives and one for what leaves, each
//! read from its first rule to its last.

use std::net::IpAddr;

use super::Inferred;
use super::read::{Chains, tcp_to_port, to_port};
use crate::policy::Probe;
use crate::ruleset::{Layout, Match, Protocol, Rule, Side, Table, Target};
use crate::value::{Cidr, InterfacePattern, PortRange};

const TCP: Match = Match::Protocol(Protocol::Tcp);

/// Read both families; lists of networks and probes are put together.
pub(super) fn settings(families: [Option<&Chains>; 2], layout: &Layout, found: &mut Inferred) {
    found.set("include-inbound-ports", "");
    found.set("include-outbound-cidrs", "");
    found.set("proxy-uid", "");
    found.set("proxy-gid", "");
    let mut first = true;
    for (chains, all) in families.into_iter().zip(["0.0.0.0/0", "::/0"]) {
        let Some(chains) = chains else { continue };
        let arriving = arriving(chains.user(Table::Nat, &layout.inbound), (first, all), found);
        let leaving = leaving(chains.user(Table::Nat, &layout.output), (first, all), found);
        for address in arriving.iter().chain(leaving.iter().filter(|a| !arriving.contains(a))) {
            let both = leaving.contains(address) || !arriving.contains(address);
            let probe = if both { Probe::Translated } else { Probe::Node };
            found.probes.push(probe(*address));
        }
        first = false;
    }
}

/// What arrives; gives the addresses from which probes are let through. What both families have is taken
/// from the `first` one.
fn arriving(rules: &[Rule], (first, all): (bool, &str), found: &mut Inferred) -> Vec<IpAddr> {
    let mut probes = Vec::new();
    let mut rerouted: Vec<&InterfacePattern> = Vec::new();
    for rule in rules {
        match (rule.matches.as_slice(), &rule.target) {
            ([Match::InInterface { negated: false, name }], Target::Return) if first => {
                found.push("exclude-interfaces", name);
            }
            ([Match::InInterface { negated: false, name }, TCP], _)
                if first && !rerouted.contains(&name) =>
            {
                rerouted.push(name);
                found.push("reroute-interfaces", name);
            }
            (
                [Match::Address { side: Side::Source, negated: false, cidr }, TCP],
                Target::Accept,
            ) => probes.push(cidr.address()),
            ([Match::Address { side: Side::Source, negated: false, cidr }], Target::Return) => {
                found.push("exclude-inbound-cidrs", cidr);
            }
            ([], Target::Return) => found.push("exclude-inbound-cidrs", all),
            (_, Target::Return) if first => {
                if let Some(port) = tcp_to_port(rule) {
                    found.push("exclude-inbound-ports", port);
                }
            }
            (matches, Target::Redirect { port, .. }) => {
                let Some((localhost, except)) = captured(matches) else { continue };
                found.set("inbound-port", port);
                found.set("include-inbound-ports", "*");
                if let Some(port) = except {
                    found.set("tunnel-port", port);
                }
                of_localhost(localhost, found);
            }
            _ => {}
        }
    }
    probes
}

/// What leaves; gives the addresses of probes that are left alone.
fn leaving(rules: &[Rule], (first, all): (bool, &str), found: &mut Inferred) -> Vec<IpAddr> {
    let mut probes = Vec::new();
    for rule in rules {
        let query = rule.matches.contains(&Match::Protocol(Protocol::Udp));
        match (rule.matches.as_slice(), &rule.target) {
            (
                [Match::Address { side: Side::Destination, negated: false, cidr }, TCP],
                Target::Accept,
            ) => probes.push(cidr.address()),
            (
                [Match::Address { side: Side::Destination, negated: false, cidr }],
                Target::Return,
            ) => found.push("exclude-outbound-cidrs", cidr),
            ([], Target::Return) => found.push("exclude-outbound-cidrs", all),
            (_, Target::Return) if first => {
                // Each has one for UDP behind it.
                if let Some(port) = to_port(rule, Protocol::Tcp) {
                    found.push("exclude-outbound-ports", port);
                }
            }
            (_, Target::Redirect { port, .. }) if query => {
                found.set("dns", "all");
                found.set("dns-port", port);
            }
            (matches, Target::Redirect { port, .. }) => {
                if let Some((localhost, None)) = captured(matches) {
                    found.set("outbound-port", port);
                    found.set("include-outbound-cidrs", "*");
                    of_localhost(localhost, found);
                }
            }
            _ => {}
        }
    }
    probes
}

fn of_localhost(localhost: Cidr, found: &mut Inferred) {
    if localhost.address().is_ipv4() {
        found.set("localhost-cidr", localhost);
    }
}

/// What is captured of TCP: all that has not the proxy's mark and does not go to this localhost, but for
/// that to some port.
fn captured(matches: &[Match]) -> Option<(Cidr, Option<PortRange>)> {
    let (address, rest) = matches.split_first()?;
    let Match::Address { side: Side::Destination, negated: true, cidr } = address else {
        return None;
    };
    match rest {
        [TCP, Match::Mark { negated: true, .. }] => Some((*cidr, None)),
        [
            TCP,
            Match::Port { side: Side::Destination, negated: true, ports },
            Match::Mark { negated: true, .. },
        ] => Some((*cidr, Some(*ports))),
        _ => None,
    }
}
