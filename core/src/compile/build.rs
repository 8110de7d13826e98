//! Rules being collected for one family, and short names for the matches they are made of.

use std::net::{IpAddr, Ipv6Addr};

use super::Layout;
use crate::policy::{CapturePolicy, passthrough};
use crate::ruleset::{
    Chain, ChainName, Emission, Hook, Masked, Match, Owner, Placement, Protocol, Reason, Rule,
    Side, Table, Target,
};
use crate::source::Source;
use crate::value::{Cidr, Family, InterfacePattern, Mark, Port, PortRange};

/// The rules of one family so far.
pub(super) struct Builder<'p> {
    pub(super) policy: &'p CapturePolicy,
    pub(super) layout: &'p Layout,
    pub(super) family: Family,
    pub(super) emissions: Vec<Emission>,
}

impl<'p> Builder<'p> {
    pub(super) const fn new(policy: &'p CapturePolicy, layout: &'p Layout, family: Family) -> Self {
        Self { policy, layout, family, emissions: Vec::new() }
    }

    /// Append a rule to a chain of the dialect.
    pub(super) fn user(
        &mut self,
        table: Table,
        chain: &ChainName,
        matches: Vec<Match>,
        target: Target,
        reason: Reason,
    ) {
        self.put(table, Chain::User(chain.clone()), Placement::Append, matches, target, reason);
    }

    /// Append a rule to a builtin chain.
    pub(super) fn hook(
        &mut self,
        table: Table,
        hook: Hook,
        matches: Vec<Match>,
        target: Target,
        reason: Reason,
    ) {
        self.put(table, Chain::Builtin(hook), Placement::Append, matches, target, reason);
    }

    /// Put a rule anywhere.
    pub(super) fn put(
        &mut self,
        table: Table,
        chain: Chain,
        placement: Placement,
        mut matches: Vec<Match>,
        target: Target,
        reason: Reason,
    ) {
        let builtin = matches!(chain, Chain::Builtin(_));
        let jumps = matches!(target, Target::Jump(_));
        if self.layout.tagged && builtin && !jumps {
            matches.push(Match::Ours);
        }
        let rule = Rule::new(matches, target);
        self.emissions.push(Emission { table, chain, placement, rule, reason });
    }

    /// The network that means «this pod itself».
    pub(super) const fn localhost(&self) -> Cidr {
        match self.family {
            Family::V4 => self.policy.localhost.value,
            Family::V6 => Cidr::host(IpAddr::V6(Ipv6Addr::LOCALHOST)),
        }
    }

    /// The source address of connections that the proxy passes on to the application.
    pub(super) const fn passthrough(&self) -> Cidr {
        Cidr::host(passthrough(self.family))
    }
}

pub(super) fn why(source: &Source, purpose: impl Into<String>) -> Reason {
    Reason { source: source.clone(), purpose: purpose.into() }
}

pub(super) const DNS: Port = Port::new(53);

pub(super) const fn tcp() -> Match {
    Match::Protocol(Protocol::Tcp)
}

pub(super) const fn udp() -> Match {
    Match::Protocol(Protocol::Udp)
}

pub(super) fn to_port(ports: impl Into<PortRange>) -> Match {
    Match::Port { side: Side::Destination, negated: false, ports: ports.into() }
}

pub(super) fn not_to_port(ports: impl Into<PortRange>) -> Match {
    Match::Port { side: Side::Destination, negated: true, ports: ports.into() }
}

pub(super) fn from_port(ports: impl Into<PortRange>) -> Match {
    Match::Port { side: Side::Source, negated: false, ports: ports.into() }
}

pub(super) const fn to(cidr: Cidr) -> Match {
    Match::Address { side: Side::Destination, negated: false, cidr }
}

pub(super) const fn not_to(cidr: Cidr) -> Match {
    Match::Address { side: Side::Destination, negated: true, cidr }
}

pub(super) const fn from(cidr: Cidr) -> Match {
    Match::Address { side: Side::Source, negated: false, cidr }
}

pub(super) fn in_by(name: &InterfacePattern) -> Match {
    Match::InInterface { negated: false, name: name.clone() }
}

pub(super) fn out_by(name: &InterfacePattern) -> Match {
    Match::OutInterface { negated: false, name: name.clone() }
}

pub(super) const fn of(owner: Owner) -> Match {
    Match::Owner { negated: false, owner }
}

pub(super) const fn not_of(owner: Owner) -> Match {
    Match::Owner { negated: true, owner }
}

pub(super) const fn marked(mark: Mark) -> Match {
    Match::Mark { negated: false, mark: Masked::exact(mark.get()) }
}

pub(super) fn jump(chain: &ChainName) -> Target {
    Target::Jump(chain.clone())
}
