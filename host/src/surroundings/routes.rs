//! Rules of policy routing and the routes of every table, in both families.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::stream::TryStreamExt as _;
use millrace_core::ruleset::Masked;
use millrace_core::sim::{
    Exit, Protocol, RouteAction, RoutingRule, RuleAction, Selector, TableRoute,
};
use millrace_core::value::{Cidr, Family};
use netlink_packet_core::Nla as _;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags, RouteType,
};
use netlink_packet_route::rule::{self, RuleAttribute, RuleFlags, RuleMessage};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};

/// A limit of prefix lengths or interface groups that is none (`net/core/fib_rules.c`).
const NO_LIMIT: u32 = u32::MAX;

pub(super) async fn rules(handle: &Handle) -> Result<Vec<RoutingRule>, rtnetlink::Error> {
    let mut rules = Vec::new();
    for (family, version) in [(Family::V4, IpVersion::V4), (Family::V6, IpVersion::V6)] {
        let messages: Result<Vec<_>, _> = handle.rule().get(version).execute().try_collect().await;
        match messages {
            Ok(messages) => rules.extend(messages.iter().map(|message| rule(family, message))),
            // A kernel without IPv6, or without policy routing, has none.
            Err(rtnetlink::Error::NetlinkError(_)) if family == Family::V6 => {}
            Err(error) => return Err(error),
        }
    }
    Ok(rules)
}

fn rule(family: Family, message: &RuleMessage) -> RoutingRule {
    let header = &message.header;
    let mut selector = Selector {
        inverted: header.flags.contains(RuleFlags::Invert),
        never: header.tos != 0,
        ..Selector::default()
    };
    let (mut priority, mut table) = (0, u32::from(header.table));
    let (mut mark, mut mask) = (None, u32::MAX);
    let mut longer_than = NO_LIMIT;
    let mut unmodelled = |what: &str| {
        selector.unmodelled = Some(format!("a rule of policy routing that asks for {what}"));
    };
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::TunId(id) if *id != 0 => unmodelled("a tunnel"),
            RuleAttribute::L3MDev(true) => unmodelled("a VRF"),
            RuleAttribute::SuppressIfGroup(group) if *group != NO_LIMIT => {
                unmodelled("interface groups");
            }
            RuleAttribute::Other(other) => {
                let mut value = vec![0; other.value_len()];
                other.emit_value(&mut value);
                if let Some(what) = newer(other.kind(), &value) {
                    unmodelled(what);
                }
            }
            _ => {}
        }
    }
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(of) => priority = *of,
            RuleAttribute::Table(of) => table = *of,
            RuleAttribute::FwMark(of) => mark = Some(*of),
            RuleAttribute::FwMask(of) => mask = *of,
            RuleAttribute::Source(ip) => selector.from = Cidr::new(*ip, header.src_len),
            RuleAttribute::Destination(ip) => selector.to = Cidr::new(*ip, header.dst_len),
            RuleAttribute::Iifname(name) => selector.input = Some(name.clone()),
            // No socket is bound to an interface.
            RuleAttribute::Oifname(_) => selector.never = true,
            RuleAttribute::UidRange(range) => selector.uids = Some((range.start, range.end)),
            RuleAttribute::IpProtocol(of) => {
                selector.protocol = Some(Protocol(u8::from(*of)));
            }
            RuleAttribute::SourcePortRange(ports) => {
                selector.source_ports = Some((ports.start, ports.end));
            }
            RuleAttribute::DestinationPortRange(ports) => {
                selector.ports = Some((ports.start, ports.end));
            }
            RuleAttribute::SuppressPrefixLen(length) => longer_than = *length,
            _ => {}
        }
    }
    selector.mark = mark.map(|mark| Masked { value: mark & mask, mask });
    let action = match header.action {
        rule::RuleAction::ToTable => match u8::try_from(longer_than) {
            Ok(length) => RuleAction::Longer(table, length),
            Err(_) => RuleAction::Table(table),
        },
        rule::RuleAction::Blackhole => RuleAction::Refuse("a rule of policy routing discards it"),
        rule::RuleAction::Unreachable | rule::RuleAction::Prohibit => {
            RuleAction::Refuse("a rule of policy routing refuses it")
        }
        // It does nothing, and the next one is asked.
        rule::RuleAction::Nop => {
            selector = Selector { never: true, ..Selector::default() };
            RuleAction::Table(table)
        }
        other => RuleAction::Unmodelled(format!("a rule of policy routing: {other:?}")),
    };
    RoutingRule { family, priority, selector, action }
}

/// What an attribute of a rule asks for that came with a later kernel (`linux/fib_rules.h` of Linux 6.18);
/// none where it asks for nothing.
fn newer(kind: u16, value: &[u8]) -> Option<&'static str> {
    match kind {
        // FRA_PAD
        18 => None,
        // FRA_DSCP, FRA_DSCP_MASK
        25 | 30 => Some("a DSCP"),
        // FRA_FLOWLABEL, FRA_FLOWLABEL_MASK
        26 | 27 => Some("a flow label"),
        // FRA_SPORT_MASK, FRA_DPORT_MASK
        28 | 29 => value.iter().any(|byte| *byte != u8::MAX).then_some("bits of a port"),
        _ => Some("what is newer than this program"),
    }
}

/// The routes, and the interfaces by which IPv6 delivers what is for localhost.
pub(super) async fn routes(
    handle: &Handle,
    names: &BTreeMap<u32, String>,
) -> Result<(Vec<TableRoute>, BTreeSet<String>), rtnetlink::Error> {
    let requests = [
        (Family::V4, RouteMessageBuilder::<Ipv4Addr>::new().build()),
        (Family::V6, RouteMessageBuilder::<Ipv6Addr>::new().build()),
    ];
    let (mut routes, mut localhost) = (Vec::new(), BTreeSet::new());
    for (family, mut request) in requests {
        // Every table, and routes of every kind.
        request.header.table = 0;
        let messages: Vec<RouteMessage> =
            handle.route().get(request).execute().try_collect().await?;
        routes.extend(messages.iter().filter_map(|message| route(family, message, names)));
        localhost.extend(messages.iter().filter_map(|message| localhost_by(message, names)));
    }
    Ok((routes, localhost))
}

/// The interface of a route of IPv6 to this host's localhost.
fn localhost_by(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<String> {
    let localhost = RouteAttribute::Destination(RouteAddress::Inet6(Ipv6Addr::LOCALHOST));
    let is_local = message.header.kind == RouteType::Local;
    message.attributes.iter().find(|attribute| is_local && **attribute == localhost)?;
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => names.get(index).cloned(),
        _ => None,
    })
}

/// Whether the kernel has this host's own table of IPv4 and the main one in one, as its list of tries
/// tells, which has them twice then; none where it can't be read.
pub(super) fn merged() -> Option<bool> {
    // Of this thread, whose namespace can be another one than the process's.
    let list = fs::read_to_string("/proc/thread-self/net/fib_trie").ok()?;
    is_merged(&list)
}

fn is_merged(list: &str) -> Option<bool> {
    let of = |name: &str| {
        let mut lines = list.lines().skip_while(|line| *line != name);
        lines.next()?;
        // What is indented belongs to it.
        Some(lines.take_while(|line| line.starts_with(' ')).collect::<Vec<_>>())
    };
    match [of("Main:"), of("Local:")] {
        [None, None] => None,
        [main, local] => Some(main == local),
    }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some(IpAddr::V4(*ip)),
        RouteAddress::Inet6(ip) => Some(IpAddr::V6(*ip)),
        _ => None,
    }
}

/// A route; none where it is none of the family's, of a cache, or only for a type of service.
fn route(
    family: Family,
    message: &RouteMessage,
    names: &BTreeMap<u32, String>,
) -> Option<TableRoute> {
    let header = &message.header;
    if header.flags.contains(RouteFlags::Cloned) || header.tos != 0 {
        return None;
    }
    let find =
        |what: fn(&RouteAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(what);
    let to = find(|attribute| match attribute {
        RouteAttribute::Destination(to) => ip(to),
        _ => None,
    });
    let source = find(|attribute| match attribute {
        RouteAttribute::PrefSource(source) => ip(source),
        _ => None,
    });
    let to = to.unwrap_or(match family {
        Family::V4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        Family::V6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    });
    if Family::of(to) != family {
        return None;
    }
    let (mut table, mut metric) = (u32::from(header.table), 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(of) => table = *of,
            RouteAttribute::Priority(of) => metric = *of,
            _ => {}
        }
    }
    let action = match header.kind {
        _ if header.source_prefix_length != 0 => {
            RouteAction::Unmodelled("a route for some sources alone".to_owned())
        }
        RouteType::Unicast => {
            let exits = exits(message, source, names);
            if exits.is_empty() && !header.flags.contains(RouteFlags::Dead) {
                RouteAction::Unmodelled(format!("where the route to {to} leads"))
            } else {
                RouteAction::Out(exits)
            }
        }
        RouteType::Local => RouteAction::Local(source),
        RouteType::BlackHole => RouteAction::Refuse("a blackhole route discards it"),
        RouteType::Unreachable => RouteAction::Refuse("a route says that it is unreachable"),
        RouteType::Prohibit => RouteAction::Refuse("a route prohibits it"),
        RouteType::Throw => RouteAction::Throw,
        RouteType::Broadcast | RouteType::Anycast | RouteType::Multicast => RouteAction::Group,
        other => RouteAction::Unmodelled(format!("the way of addresses of type {other:?}")),
    };
    let network = Cidr::new(to, header.destination_prefix_length)?;
    Some(TableRoute { table, network, metric, action })
}

/// The ways out of a route, without those whose interface is down.
fn exits(
    message: &RouteMessage,
    source: Option<IpAddr>,
    names: &BTreeMap<u32, String>,
) -> Vec<Exit> {
    let exit = |index: u32, attributes: &[RouteAttribute]| {
        let gateway = attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Gateway(gateway) => ip(gateway),
            _ => None,
        });
        let scope = message.header.scope.into();
        Some(Exit { interface: names.get(&index)?.clone(), gateway, source, scope })
    };
    let hops = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    });
    if let Some(hops) = hops {
        let alive = hops.iter().filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead));
        return alive.filter_map(|hop| exit(hop.interface_index, &hop.attributes)).collect();
    }
    if message.header.flags.contains(RouteFlags::Dead) {
        return Vec::new();
    }
    let index = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    index.and_then(|index| exit(index, &message.attributes)).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::DefaultNla;

    use super::*;

    /// What is not modelled of a rule with these attributes besides that it asks for.
    fn unmodelled(attributes: &[(u16, &[u8])]) -> Option<String> {
        let mut message = RuleMessage::default();
        let others = attributes.iter().map(|(kind, value)| DefaultNla::new(*kind, value.to_vec()));
        message.attributes.extend(others.map(RuleAttribute::Other));
        rule(Family::V4, &message).selector.unmodelled
    }

    #[test]
    fn rules_by_what_is_newer_are_named() {
        assert_eq!(unmodelled(&[]), None);
        assert_eq!(unmodelled(&[(18, &[]), (28, &[0xff, 0xff]), (29, &[0xff, 0xff])]), None);
        for (kind, value, named) in [
            (25, &[0x2e][..], "a DSCP"),
            (26, &[0, 0, 0, 1], "a flow label"),
            (29, &[0xff, 0], "bits of a port"),
            (77, &[], "newer"),
        ] {
            let what = unmodelled(&[(kind, value)]).unwrap_or_default();
            assert!(what.contains(named), "{kind}: {what}");
        }
    }

    #[test]
    fn one_trie_is_listed_twice() {
        let trie = |network: &str| format!("  +-- {network} 2 0 2\n     |-- {network}\n");
        let (main, local) = (trie("10.0.0.0/8"), trie("127.0.0.0/8"));
        let both = format!("{main}{local}");
        assert_eq!(is_merged(&format!("Main:\n{both}Local:\n{both}")), Some(true));
        assert_eq!(is_merged(&format!("Local:\n{local}Id 7:\n{main}Main:\n{main}")), Some(false));
        // Empty tables are not listed.
        assert_eq!(is_merged(&format!("Local:\n{local}")), Some(false));
        assert_eq!(is_merged(""), None);
    }
}
