//! Where connections are made to, by whom, and which rules they meet.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use millrace_core::policy::{CapturePolicy, GroupSelection, NetworkSelection};
use millrace_core::ruleset::Layout;
use millrace_core::ruleset::{
    Chain, ChainName, Hook, Match, Owner, Rule, Ruleset, Table, TableChain, Target,
};
use millrace_core::value::{Cidr, Family, Port};

use super::Direction;
use super::dial::As;

/// An address outside that is captured and that nobody has (RFC 5737, RFC 3849), or one of a
/// captured network; none when nothing outbound is captured.
pub(super) fn outside(policy: &CapturePolicy, family: Family, port: Port) -> Option<SocketAddr> {
    let outbound = &policy.outbound;
    if !matches!(outbound.groups, GroupSelection::AllExcept(_)) {
        return None;
    }
    let nowhere = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
    };
    let free = |address: IpAddr, port: Port| {
        !outbound.except_networks.iter().any(|c| c.value.contains(address))
            && !outbound.except_ports.iter().any(|p| p.value.contains(port))
    };
    let by_network = match &outbound.networks {
        NetworkSelection::All(_) => vec![nowhere],
        NetworkSelection::Only(_) => {
            outbound.networks.of(family).map(|c| second(c.value)).collect()
        }
    };
    let by_network =
        by_network.into_iter().filter(|a| !a.is_loopback()).map(|address| (address, port));
    let by_port = outbound.ports.iter().map(|p| (nowhere, p.value.first()));
    by_network
        .chain(by_port)
        .find(|(address, port)| free(*address, *port))
        .map(|(address, port)| SocketAddr::new(address, port.get()))
}

/// The second address of a network, or the only one.
fn second(network: Cidr) -> IpAddr {
    let first = network.network();
    if first.length() + 1 >= first.family().bits() {
        return first.address();
    }
    match first.address() {
        IpAddr::V4(a) => IpAddr::V4(Ipv4Addr::from_bits(a.to_bits() | 2)),
        IpAddr::V6(a) => IpAddr::V6(Ipv6Addr::from_bits(a.to_bits() | 2)),
    }
}

/// The address that the proxy's call to its own pod is made to.
pub(super) const fn inside(family: Family, port: Port) -> SocketAddr {
    let address = match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::new(127, 0, 0, 6)),
        Family::V6 => IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)),
    };
    SocketAddr::new(address, port.get())
}

/// The address that it is made from.
pub(super) const fn localhost(family: Family) -> IpAddr {
    match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::LOCALHOST),
        Family::V6 => IpAddr::V6(Ipv6Addr::LOCALHOST),
    }
}

/// The user and group of `nobody`, who runs no proxy (`passwd(5)` on Debian).
const NOBODY: u32 = 65_534;

/// Who makes the connection: this process's own user if that will do.
pub(super) fn user(policy: &CapturePolicy, direction: Direction, uid: u32, gid: u32) -> As {
    let uids: Vec<u32> = policy.proxy.uids.iter().map(|u| u.value.get()).collect();
    let gids: Vec<u32> = policy.proxy.gids.iter().map(|g| g.value.get()).collect();
    let is_proxy = uids.contains(&uid) || gids.contains(&gid);
    match direction {
        Direction::Outbound if !is_proxy => As::Oneself { uid, gid },
        Direction::Outbound => As::Other { uid: NOBODY, gid: NOBODY },
        Direction::Inbound if is_proxy => As::Oneself { uid, gid },
        Direction::Inbound => As::Other {
            uid: uids.first().copied().unwrap_or(uid),
            gid: gids.first().copied().unwrap_or(gid),
        },
    }
}

/// The rules that take such a connection to the proxy, with their chains: into the chain of
/// outbound connections, on to a redirect, and the redirect.
pub(super) fn rules(
    ruleset: &Ruleset,
    layout: &Layout,
    family: Family,
    direction: Direction,
    user: &As,
) -> Vec<(TableChain, Rule)> {
    let end = match direction {
        Direction::Outbound => &layout.redirect,
        Direction::Inbound => &layout.in_redirect,
    };
    let of_user = |rule: &Rule| {
        rule.matches.iter().any(|m| match m {
            Match::Owner { negated: false, owner: Owner::Uid(id) } => id.get() == user.uid(),
            Match::Owner { negated: false, owner: Owner::Gid(id) } => id.get() == user.gid(),
            _ => false,
        })
    };
    let jumps = |rule: &Rule, to: &ChainName| rule.target == Target::Jump(to.clone());
    let on_the_way = |chain: &Chain, rule: &Rule| match chain {
        Chain::Builtin(hook) => *hook == Hook::Output && jumps(rule, &layout.output),
        Chain::User(name) if *name == layout.output => {
            jumps(rule, end) && (direction == Direction::Outbound || of_user(rule))
        }
        Chain::User(name) => name == end,
    };
    let mut needed = Vec::new();
    for (place, emissions) in ruleset.chains(family) {
        if place.0 == Table::Nat {
            let rules = emissions.iter().filter(|e| on_the_way(&place.1, &e.rule));
            needed.extend(rules.map(|e| (place.clone(), e.rule.clone())));
        }
    }
    needed
}

/// The rules that take connections from outside to the proxy, with their chains. None of them is
/// met by a connection that is made inside.
pub(super) fn arrival(
    ruleset: &Ruleset,
    layout: &Layout,
    family: Family,
) -> Vec<(TableChain, Rule)> {
    let on_the_way = |table: Table, chain: &Chain, rule: &Rule| {
        let Target::Jump(to) = &rule.target else { return false };
        let ways_in = [&layout.inbound, &layout.in_redirect, &layout.tproxy, &layout.divert];
        matches!(table, Table::Nat | Table::Mangle)
            && ways_in.contains(&to)
            && match chain {
                Chain::Builtin(hook) => *hook == Hook::Prerouting,
                Chain::User(name) => *name == layout.inbound,
            }
    };
    let mut needed = Vec::new();
    for (place, emissions) in ruleset.chains(family) {
        let rules = emissions.iter().filter(|e| on_the_way(place.0, &place.1, &e.rule));
        needed.extend(rules.map(|e| (place.clone(), e.rule.clone())));
    }
    needed
}
