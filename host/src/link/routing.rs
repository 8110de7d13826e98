//! Policy routing rules and routes.

use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::stream::TryStreamExt as _;
use millrace_core::observed::{IpRule, Route, Way};
use millrace_core::plan::{Change, LOCALHOST_PROTOCOL, PASSTHROUGH_LINK, PASSTHROUGH_PEER};
use millrace_core::value::Family;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;
use rtnetlink::{IpVersion, RouteMessageBuilder};

use super::{KernelError, LO, LinkError, Net, errno, is_absent, request, settle};

/// The kernel's own table (`RT_TABLE_LOCAL`).
const LOCAL: u32 = 255;
/// Metrics of routes that come last, without the number of their interface.
const LAST: u32 = 4096;

impl Net {
    pub(super) async fn ip_rules(
        &self,
        family: Family,
    ) -> Result<Vec<(IpRule, RuleMessage)>, LinkError> {
        let version = match family {
            Family::V4 => IpVersion::V4,
            Family::V6 => IpVersion::V6,
        };
        let messages: Result<Vec<_>, _> =
            self.handle.rule().get(version).execute().try_collect().await;
        match messages {
            Ok(messages) => Ok(messages.into_iter().map(|m| (ip_rule(family, &m), m)).collect()),
            Err(error) if is_absent(&error) => Ok(Vec::new()),
            Err(error) => {
                Err(request(format!("the {family} policy routing rules can't be listed"))(error))
            }
        }
    }

    async fn routes(&self, family: Family) -> Result<Vec<Route>, LinkError> {
        Ok(routes(family, &self.route_messages(family).await?))
    }

    pub(super) async fn route_messages(
        &self,
        family: Family,
    ) -> Result<Vec<RouteMessage>, LinkError> {
        let messages: Result<Vec<_>, _> =
            self.handle.route().get(any_route(family)).execute().try_collect().await;
        match messages {
            Ok(messages) => Ok(messages),
            Err(error) if is_absent(&error) => Ok(Vec::new()),
            Err(error) => Err(request(format!("the {family} routes can't be listed"))(error)),
        }
    }

    /// Have localhost reached by an interface, or by `lo` alone again.
    ///
    /// # Errors
    /// `EPERM` without `NET_ADMIN`; an interface that is gone or down is no error.
    pub fn localhost(&self, change: Change, way: &Way) -> Result<(), LinkError> {
        let what = || format!("the {} route to localhost by {}", way.family, way.interface);
        let index = match nix::net::if_::if_nametoindex(way.interface.as_str()) {
            Ok(index) => index,
            // It went with the interface.
            Err(Errno::ENODEV) => return Ok(()),
            Err(errno) => {
                let why = KernelError::Errno(errno);
                return Err(LinkError::Request { what: what(), why });
            }
        };
        let mut message = to_localhost(way.family, index);
        if change == Change::Remove {
            // Whatever its metric is: an older version gave all of them the same.
            message.attributes.retain(|a| !matches!(a, RouteAttribute::Priority(_)));
        }
        let result = self.runtime.block_on(async {
            match change {
                Change::Add => self.handle.route().add(message).execute().await,
                Change::Remove => self.handle.route().del(message).execute().await,
            }
        });
        match result.as_ref().err().and_then(errno) {
            // The interface has gone or been set down since it was looked at, or IPv6 was switched off.
            Some(Errno::ENODEV | Errno::ENETDOWN | Errno::EACCES) if change == Change::Add => {
                Ok(())
            }
            _ => settle(result, change, what),
        }
    }

    /// Add the route `local default dev lo` to a table, or remove it.
    ///
    /// # Errors
    /// When the table has another default route; `EPERM` without `NET_ADMIN`.
    pub fn route(&self, change: Change, family: Family, table: u32) -> Result<(), LinkError> {
        let mut message = local_default(family, table);
        if change == Change::Remove {
            // Whoever added it, and however: these are compared unless they say that they are not.
            message.header.protocol = RouteProtocol::Unspec;
            message.header.scope = RouteScope::NoWhere;
        }
        let result = self.runtime.block_on(async {
            match change {
                Change::Add => match self.handle.route().add(message).execute().await {
                    // The kernel says so of any route to everywhere, also of somebody else's.
                    Err(error) if errno(&error) == Some(Errno::EEXIST) => {
                        let ours = Route::local_default(family, table);
                        let there = self.routes(family).await.is_ok_and(|all| all.contains(&ours));
                        if there { Ok(()) } else { Err(error) }
                    }
                    result => result,
                },
                Change::Remove => self.handle.route().del(message).execute().await,
            }
        });
        if change == Change::Add
            && result.as_ref().is_err_and(|error| errno(error) == Some(Errno::EEXIST))
        {
            let why = KernelError::Other("the table has another default route".to_owned());
            let what = format!("{family} route local default dev lo table {table} can't be added");
            return Err(LinkError::Request { what, why });
        }
        settle(result, change, || format!("{family} route local default dev lo table {table}"))
    }

    /// Add a policy routing rule, or remove it.
    ///
    /// # Errors
    /// When rules can't be listed, added or removed: `EPERM` without `NET_ADMIN`.
    pub fn ip_rule(&self, change: Change, rule: &IpRule) -> Result<(), LinkError> {
        let what =
            || format!("{} rule priority {} lookup {}", rule.family, rule.priority, rule.table);
        self.runtime.block_on(async {
            // The kernel adds a rule again that is there already, so it has to be asked first.
            let same: Vec<RuleMessage> = self
                .ip_rules(rule.family)
                .await?
                .into_iter()
                .filter(|(r, _)| r == rule)
                .map(|(_, message)| message)
                .collect();
            match change {
                Change::Add if !same.is_empty() => Ok(()),
                Change::Add => settle(self.add_rule(rule).await, change, what),
                Change::Remove => {
                    for message in same {
                        let result = self.handle.rule().del(message).execute().await;
                        settle(result, change, what)?;
                    }
                    Ok(())
                }
            }
        })
    }

    async fn add_rule(&self, rule: &IpRule) -> Result<(), rtnetlink::Error> {
        let mut add = self
            .handle
            .rule()
            .add()
            .action(RuleAction::ToTable)
            .priority(rule.priority)
            .table_id(rule.table);
        if let Some((mark, mask)) = rule.fwmark {
            add = add.fw_mark(mark);
            add.message_mut().attributes.push(RuleAttribute::FwMask(mask));
        }
        match rule.family {
            Family::V4 => add.v4().execute().await,
            Family::V6 => add.v6().execute().await,
        }
    }
}

fn ip_rule(family: Family, message: &RuleMessage) -> IpRule {
    let mut rule = IpRule {
        family,
        priority: 0,
        fwmark: None,
        table: u32::from(message.header.table),
        mark_only: message.header.action == RuleAction::ToTable && asks_at_most_for_mark(message),
    };
    let (mut mark, mut mask) = (None, u32::MAX);
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::FwMark(value) => mark = Some(*value),
            RuleAttribute::FwMask(value) => mask = *value,
            _ => {}
        }
    }
    rule.fwmark = mark.map(|mark| (mark, mask));
    rule.mark_only &= mark.is_some();
    rule
}

fn asks_at_most_for_mark(message: &RuleMessage) -> bool {
    message.header.src_len == 0
        && message.header.dst_len == 0
        && message.header.tos == 0
        && !message.header.flags.contains(RuleFlags::Invert)
        && message.attributes.iter().all(|attribute| {
            matches!(
                attribute,
                RuleAttribute::Priority(_)
                    | RuleAttribute::Table(_)
                    | RuleAttribute::FwMark(_)
                    | RuleAttribute::FwMask(_)
                    // These say nothing about which packets are meant.
                    | RuleAttribute::SuppressPrefixLen(u32::MAX)
                    | RuleAttribute::SuppressIfGroup(u32::MAX)
                    | RuleAttribute::Protocol(_)
            )
        })
}

/// A rule that every packet meets.
pub(super) fn catch_all(rule: &IpRule, message: &RuleMessage) -> Option<IpRule> {
    if rule.fwmark.is_some() || !asks_at_most_for_mark(message) {
        return None;
    }
    let table = match message.header.action {
        RuleAction::ToTable => rule.table,
        RuleAction::Blackhole | RuleAction::Unreachable | RuleAction::Prohibit => 0,
        _ => return None,
    };
    Some(IpRule { table, ..rule.clone() })
}

pub(super) fn routes(family: Family, messages: &[RouteMessage]) -> Vec<Route> {
    messages.iter().filter_map(|message| route(family, message)).collect()
}

/// The ways that Millrace has made to localhost.
pub(super) fn localhost_ways(family: Family, messages: &[RouteMessage]) -> Vec<Way> {
    let ours = |message: &RouteMessage| {
        let header = &message.header;
        let interface = message.attributes.iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(device(*index)),
            _ => None,
        });
        let ours = header.kind == RouteType::Local
            && header.protocol == RouteProtocol::Other(LOCALHOST_PROTOCOL);
        Some(Way { family, interface: interface.filter(|_| ours)? })
    };
    messages.iter().filter_map(ours).collect()
}

/// The interfaces that are up, without `lo` and that of the passthrough address, for each family that is
/// not switched off there, with their addresses of it: whether one has any yet makes no difference, since
/// it may get them at any time. None where they can't be listed.
pub(super) fn ways() -> BTreeMap<Way, Vec<IpAddr>> {
    let mut ways: BTreeMap<Way, Vec<IpAddr>> = BTreeMap::new();
    let Ok(found) = getifaddrs() else { return ways };
    let up = found.filter(|entry| {
        entry.flags.contains(InterfaceFlags::IFF_UP)
            && !entry.flags.contains(InterfaceFlags::IFF_LOOPBACK)
            && ![PASSTHROUGH_LINK, PASSTHROUGH_PEER].contains(&entry.interface_name.as_str())
    });
    for entry in up {
        let interface = entry.interface_name;
        // Each has an entry of its own besides those of its addresses (`getifaddrs(3)`, `AF_PACKET`).
        let Some(address) = entry.address.as_ref().and_then(ip) else {
            let off = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
            if fs::read_to_string(off).is_ok_and(|text| text.trim() == "0") {
                ways.entry(Way { family: Family::V6, interface: interface.clone() }).or_default();
            }
            ways.entry(Way { family: Family::V4, interface }).or_default();
            continue;
        };
        ways.entry(Way { family: Family::of(address), interface }).or_default().push(address);
    }
    ways
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|address| address.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|address| address.ip().into()))
}

/// A route, unless it is in one of the kernel's own tables.
fn route(family: Family, message: &RouteMessage) -> Option<Route> {
    let mut table = u32::from(message.header.table);
    let mut to_lo = false;
    let mut plain = true;
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Table(value) => table = *value,
            RouteAttribute::Oif(index) => to_lo = *index == LO,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) | RouteAttribute::MultiPath(_) => {
                plain = false;
            }
            _ => {}
        }
    }
    // 0 is what a route cache entry has; 253 to 255 are default, main and local.
    if matches!(table, 0 | 253..=255) {
        return None;
    }
    let local = message.header.kind == RouteType::Local;
    if local && message.header.destination_prefix_length == 0 && to_lo && plain {
        return Some(Route::local_default(family, table));
    }
    Some(Route { family, table, local_default: false, text: text(message) })
}

/// A route as `ip-route(8)` shows it, as far as it says where packets go.
fn text(message: &RouteMessage) -> String {
    let mut text = match message.header.kind {
        RouteType::Unicast => String::new(),
        kind => format!("{kind:?} ").to_ascii_lowercase(),
    };
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(ip) => ip.to_string(),
        RouteAddress::Inet6(ip) => ip.to_string(),
        other => format!("{other:?}"),
    };
    let to = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(to) => Some(address(to)),
        _ => None,
    });
    match (to, message.header.destination_prefix_length) {
        (Some(to), length @ 1..) => text.push_str(&format!("{to}/{length}")),
        _ => text.push_str("default"),
    }
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Gateway(via) => text.push_str(&format!(" via {}", address(via))),
            RouteAttribute::Oif(index) => text.push_str(&format!(" dev {}", device(*index))),
            _ => {}
        }
    }
    text
}

/// The name of a device, or its number where it has none any more.
fn device(index: u32) -> String {
    let name = nix::net::if_::if_indextoname(index);
    name.map_or_else(|_| index.to_string(), |name| name.to_string_lossy().into_owned())
}

fn to_localhost(family: Family, index: u32) -> RouteMessage {
    let protocol = RouteProtocol::Other(LOCALHOST_PROTOCOL);
    // Behind the kernel's own: of those that are alike the first one counts. And each by itself: to the
    // kernel a second route to the same place with the same metric is there already.
    let metric = LAST.saturating_add(index);
    match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .protocol(protocol)
            .destination_prefix(Ipv4Addr::LOCALHOST, 32)
            .output_interface(index)
            .priority(metric)
            .table_id(LOCAL)
            .build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
            .kind(RouteType::Local)
            .protocol(protocol)
            .destination_prefix(Ipv6Addr::LOCALHOST, 128)
            .output_interface(index)
            .priority(metric)
            .table_id(LOCAL)
            .build(),
    }
}

fn any_route(family: Family) -> RouteMessage {
    match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new().build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new().build(),
    }
}

fn local_default(family: Family, table: u32) -> RouteMessage {
    match family {
        Family::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .output_interface(LO)
            .table_id(table)
            .build(),
        Family::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
            .kind(RouteType::Local)
            .output_interface(LO)
            .table_id(table)
            .build(),
    }
}
