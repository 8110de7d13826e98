//! From the policy to nftables, in the order in which the reference writes it: for each rule of
//! iptables one of nftables, and where it names an address, one for each family.

mod dns;
mod inbound;
mod outbound;
mod tproxy;

use std::net::{IpAddr, Ipv6Addr};

use super::{NftEmission, NftLayout, NftRuleset, OwnerSpelling, Statement};
use crate::compile::routing;
use crate::policy::{self, CapturePolicy};
use crate::ruleset::{Chain, ChainName, Hook, Owner, Protocol, Reason, Side, Table};
use crate::source::Source;
use crate::value::{Cidr, Family, InterfacePattern, Port, PortRange};

/// The rules that carry out `policy`. Without IPv6 in the policy, rules that name no address still
/// meet its packets, in tables that serve both families: with `spare_ipv6` they are let past first.
pub fn compile(policy: &CapturePolicy, layout: &'static NftLayout, spare_ipv6: bool) -> NftRuleset {
    let as_reference = !layout.one_table;
    let mut b = Builder { policy, layout: &layout.chains, as_reference, emissions: Vec::new() };
    inbound::interfaces(&mut b);
    inbound::drop_invalid(&mut b);
    inbound::chains(&mut b);
    inbound::capture(&mut b);
    outbound::enter(&mut b);
    outbound::identity(&mut b);
    outbound::groups(&mut b);
    dns::capture(&mut b);
    outbound::selection(&mut b);
    tproxy::bookkeeping(&mut b);
    if spare_ipv6 && !policy.ipv6.value {
        spare(&mut b);
    }
    let families = b.families().collect();
    NftRuleset {
        layout,
        emissions: b.emissions,
        routing: routing(policy, layout.chains.passthrough),
        families,
    }
}

/// Let IPv6 past, in front of everything else of each base chain.
fn spare(b: &mut Builder<'_>) {
    let mut chains: Vec<(Table, Hook)> = Vec::new();
    for emission in &b.emissions {
        if let Chain::Builtin(hook) = emission.chain
            && !chains.contains(&(emission.table, hook))
        {
            chains.push((emission.table, hook));
        }
    }
    for (table, hook) in chains {
        let ipv6 = rule(vec![Statement::Family(Family::V6)], Statement::Return);
        let reason = why(&b.policy.ipv6.source, "IPv6 is not captured, and left alone");
        b.put(table, Chain::Builtin(hook), Some(0), ipv6, reason);
    }
}

struct Builder<'p> {
    policy: &'p CapturePolicy,
    layout: &'p crate::compile::Layout,
    /// Whether every rule is to be the reference's.
    as_reference: bool,
    emissions: Vec<NftEmission>,
}

impl Builder<'_> {
    /// A rule at the end of a chain that the kernel calls.
    fn hook(&mut self, table: Table, hook: Hook, rule: Vec<Statement>, reason: Reason) {
        self.put(table, Chain::Builtin(hook), None, rule, reason);
    }

    /// A rule at the end of another chain.
    fn user(&mut self, table: Table, chain: &ChainName, rule: Vec<Statement>, reason: Reason) {
        self.put(table, Chain::User(chain.clone()), None, rule, reason);
    }

    fn put(
        &mut self,
        table: Table,
        chain: Chain,
        before: Option<usize>,
        rule: Vec<Statement>,
        reason: Reason,
    ) {
        self.emissions.push(NftEmission { table, chain, before, rule, reason });
    }

    /// The families that are captured.
    fn families(&self) -> impl Iterator<Item = Family> + use<> {
        let ipv6 = self.policy.ipv6.value;
        Family::ALL.into_iter().filter(move |family| *family == Family::V4 || ipv6)
    }

    /// The network that means «this pod itself».
    const fn localhost(&self, family: Family) -> Cidr {
        match family {
            Family::V4 => self.policy.localhost.value,
            Family::V6 => Cidr::host(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        }
    }
}

/// The source address of connections that the proxy passes on to the application.
const fn passthrough(family: Family) -> Cidr {
    Cidr::host(policy::passthrough(family))
}

const DNS: Port = Port::new(53);

fn why(source: &Source, purpose: impl Into<String>) -> Reason {
    Reason { source: source.clone(), purpose: purpose.into() }
}

const fn tcp() -> Statement {
    Statement::Protocol(Protocol::Tcp)
}

fn ports(protocol: Protocol, side: Side, ports: impl Into<PortRange>) -> Statement {
    Statement::Ports { protocol, side, negated: false, ports: vec![ports.into()] }
}

/// `tcp dport`
fn to_tcp(range: impl Into<PortRange>) -> Statement {
    ports(Protocol::Tcp, Side::Destination, range)
}

/// `udp dport`
fn to_udp(range: impl Into<PortRange>) -> Statement {
    ports(Protocol::Udp, Side::Destination, range)
}

/// `udp sport`
fn from_udp(range: impl Into<PortRange>) -> Statement {
    ports(Protocol::Udp, Side::Source, range)
}

/// `tcp dport !=`
fn not_to_tcp(ports: Vec<PortRange>) -> Statement {
    Statement::Ports { protocol: Protocol::Tcp, side: Side::Destination, negated: true, ports }
}

fn to(cidr: Cidr) -> Statement {
    Statement::Address { side: Side::Destination, negated: false, cidrs: vec![cidr] }
}

fn not_to(cidr: Cidr) -> Statement {
    Statement::Address { side: Side::Destination, negated: true, cidrs: vec![cidr] }
}

fn from(cidr: Cidr) -> Statement {
    Statement::Address { side: Side::Source, negated: false, cidrs: vec![cidr] }
}

fn of(owner: Owner) -> Statement {
    Statement::Owner { negated: false, owners: vec![owner], spelling: OwnerSpelling::Short }
}

fn not_of(owner: Owner) -> Statement {
    Statement::Owner { negated: true, owners: vec![owner], spelling: OwnerSpelling::Short }
}

fn in_by(name: &InterfacePattern) -> Statement {
    Statement::InInterface(vec![name.clone()])
}

fn out_by(name: &InterfacePattern) -> Statement {
    Statement::OutInterface(vec![name.clone()])
}

fn by_loopback() -> Statement {
    Statement::OutInterface(vec![InterfacePattern::loopback()])
}

fn jump(chain: &ChainName) -> Statement {
    Statement::Jump(chain.clone())
}

/// A rule: conditions, then a counter, then what is done.
fn rule(conditions: Vec<Statement>, action: Statement) -> Vec<Statement> {
    let mut rule = conditions;
    rule.extend([Statement::Counter, action]);
    rule
}
