//! What is led to addresses that are none of the proxy's listeners: DNS queries, and the proxy's own
//! connections to localhost.

use std::net::{IpAddr, Ipv4Addr};

use super::read::Chains;
use crate::policy::{DnsCapture, DnsScope, DnsServer, DnsTarget};
use crate::ruleset::{Hook, Layout, Match, Protocol, Side, Table, Target};
use crate::source::{Source, Sourced};

const DNS: u16 = 53;

/// The servers to which queries by UDP are led, of both families, where packets leave or in a chain of
/// theirs.
pub(super) fn dns(families: [Option<&Chains>; 2], layout: &Layout) -> Option<DnsCapture> {
    let read = |address| Sourced::new(address, Source::Rules);
    let (mut servers, mut named) = (Vec::new(), Vec::new());
    for chains in families.into_iter().flatten() {
        let leaving = chains.hook(Table::Nat, Hook::Output);
        for rule in leaving.iter().chain(chains.user(Table::Nat, &layout.output_dns)) {
            let Target::Dnat { address, port } = rule.target else { continue };
            let asks = |m: &Match| matches!(m, Match::Port { side: Side::Destination, negated: false, ports } if ports.first().get() == DNS && ports.last().get() == DNS);
            let is_query = rule.matches.iter().any(asks)
                && rule.matches.contains(&Match::Protocol(Protocol::Udp));
            if !is_query {
                continue;
            }
            servers.push(Sourced::new(DnsServer { address, port }, Source::Rules));
            let to: Option<IpAddr> = rule.matches.iter().find_map(|m| match m {
                Match::Address { side: Side::Destination, negated: false, cidr } => {
                    Some(cidr.address())
                }
                _ => None,
            });
            named.extend(to.map(read));
        }
    }
    let scope =
        if named.is_empty() { DnsScope::All(Source::Rules) } else { DnsScope::Servers(named) };
    (!servers.is_empty()).then_some(DnsCapture {
        to: DnsTarget::Servers(servers),
        source: Source::Rules,
        scope,
    })
}

/// The address to which the proxy's connections to localhost are led.
pub(super) fn localhost(chains: &Chains) -> Option<Ipv4Addr> {
    chains.hook(Table::Nat, Hook::Output).iter().find_map(|rule| {
        let owner = |m: &Match| matches!(m, Match::Owner { negated: false, .. });
        match rule.target {
            Target::Dnat { address: IpAddr::V4(address), port: None }
                if rule.matches.iter().any(owner) =>
            {
                Some(address)
            }
            _ => None,
        }
    })
}
