//! Parts of a policy that every dialect reads alike.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::list::{Most, ValueReader, items};
use super::resolv_conf;
use crate::capture::SELF_CALL_MARK;
use crate::facts::HostFacts;
use crate::policy::{GroupSelection, InboundSelection, NetworkSelection};
use crate::ruleset::Owner;
use crate::source::{Source, Sourced};
use crate::value::{Cidr, Gid, GroupName, Mark, PortRange};

/// As many groups as fit into one rule.
const MAX_GROUPS: usize = 64;

/// The IPv4 network that counts as localhost.
pub(super) fn localhost(reader: &mut ValueReader, text: &Sourced<String>) -> Option<Sourced<Cidr>> {
    let cidr = text
        .value
        .parse::<Cidr>()
        .ok()
        .filter(|c| matches!(c.address(), IpAddr::V4(a) if a.is_loopback()) && c.length() >= 8);
    if cidr.is_none() {
        let expected = "localhost is a network in 127.0.0.0/8, such as 127.0.0.1/32";
        reader.wrong(&text.source, &text.value, expected);
    }
    cidr.map(|cidr| text.with(cidr))
}

/// The mark for TPROXY, which must not be the one for the proxy's calls to its own pod.
pub(super) fn mark(reader: &mut ValueReader, text: &Sourced<String>) -> Option<Sourced<Mark>> {
    let mark: Sourced<Mark> = reader.one(text)?;
    if mark.value.get() == SELF_CALL_MARK {
        let expected = "mark 1338 is used for the proxy's calls to its own pod: take another";
        reader.wrong(&text.source, &text.value, expected);
        return None;
    }
    Some(mark)
}

/// Which exclusions count beside a list of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beside {
    /// None counts: the list alone says what is captured.
    None,
    /// Those of ports that are captured.
    Captured,
    /// All, also those that change nothing.
    All,
}

/// `*`, ports, or nothing.
pub(super) fn inbound(
    reader: &mut ValueReader,
    ports: Sourced<String>,
    except: &Sourced<String>,
    beside: Beside,
) -> InboundSelection {
    let except = reader.list(except);
    match ports.value.as_str() {
        "*" => InboundSelection::AllExcept { source: ports.source, except },
        text if items(text).is_empty() => InboundSelection::Nothing,
        _ => {
            let ports: Vec<Sourced<PortRange>> = reader.list(&ports);
            let captured = |port: &Sourced<PortRange>| {
                let overlaps = |other: &PortRange| {
                    other.first() <= port.value.last() && port.value.first() <= other.last()
                };
                match beside {
                    Beside::None => false,
                    Beside::Captured => ports.iter().any(|other| overlaps(&other.value)),
                    Beside::All => true,
                }
            };
            let except = except.into_iter().filter(captured).collect();
            InboundSelection::Only { ports, except }
        }
    }
}

/// `*`, networks, or nothing.
pub(super) fn networks(reader: &mut ValueReader, text: Sourced<String>) -> NetworkSelection {
    match text.value.as_str() {
        "*" => NetworkSelection::All(text.source),
        _ => NetworkSelection::Only(reader.list(&text)),
    }
}

/// `*` with exceptions, or groups only. Where `known` groups are given a name must be one of
/// them: iptables would fail on it half-way.
pub(super) fn groups(
    reader: &mut ValueReader,
    include: Sourced<String>,
    exclude: &Sourced<String>,
    known: Option<&BTreeMap<GroupName, Gid>>,
) -> GroupSelection {
    if include.value == "*" {
        return GroupSelection::AllExcept(owners(reader, exclude, known));
    }
    let groups = owners(reader, &include, known);
    if groups.len() > MAX_GROUPS {
        let expected = format!("{} groups; at most {MAX_GROUPS} fit", groups.len());
        reader.wrong(&include.source, &include.value, expected);
    }
    GroupSelection::Only { groups, source: include.source }
}

fn owners(
    reader: &mut ValueReader,
    text: &Sourced<String>,
    known: Option<&BTreeMap<GroupName, Gid>>,
) -> Vec<Sourced<Owner>> {
    reader.each(text, Most::Names, &items(&text.value), |item| {
        if let Ok(gid) = item.parse::<Gid>() {
            return Ok(Owner::Gid(gid));
        }
        let name = item.parse::<GroupName>().map_err(|error| error.to_string())?;
        if known.is_some_and(|k| !k.contains_key(&name)) {
            let expected = "there is no group of this name in /etc/group of this container: add \
                            it, or use its number";
            return Err(expected.to_owned());
        }
        Ok(Owner::Group(name))
    })
}

/// The address of a name server.
pub(super) fn server(item: &str) -> Result<IpAddr, String> {
    let expected = "a name server is an IP address, such as 10.96.0.10 or fd00::a";
    // Sockets of IPv6 ask a server of IPv4 by packets of IPv4, whichever way it is written.
    item.parse().map(|ip: IpAddr| ip.to_canonical()).map_err(|_no| expected.to_owned())
}

/// The name servers of `/etc/resolv.conf`, which `asked_by` needs; an error when it can't be
/// read.
pub(super) fn resolvers(
    reader: &mut ValueReader,
    facts: &HostFacts,
    asked_by: &Source,
) -> Option<Vec<Sourced<IpAddr>>> {
    let host = Source::Host("/etc/resolv.conf".to_owned());
    let text = match &facts.resolv_conf {
        Some(Ok(text)) => text.as_str(),
        Some(Err(why)) => {
            let expected = format!(
                "{asked_by} needs the name servers of /etc/resolv.conf, which can't be read: {why}"
            );
            reader.wrong(&host, "", expected);
            return None;
        }
        None => "",
    };
    let servers = resolv_conf::servers(text);
    let words: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let text = Sourced::new(words.join(","), host);
    Some(reader.each(&text, Most::Names, &items(&text.value), server))
}
