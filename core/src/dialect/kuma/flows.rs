//! `[[PROTOCOLS:]PORTS:]UIDS`: whose connections to which ports are left alone.

use crate::policy::Flow;
use crate::ruleset::Protocol;
use crate::value::{PortRange, UidRange};

/// The most ports that one rule of iptables can ask for.
const IN_ONE_RULE: usize = 15;

/// What is wrong with such a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadFlow {
    #[error("it has more than three parts: it is [[PROTOCOLS:]PORTS:]UIDS")]
    Parts,
    #[error("{0:?} is no protocol: these are tcp and udp, or * for both")]
    Protocol(String),
    #[error(
        "{item:?} is no port: one is a number from 0 to 65535, a range is first-last, low to high"
    )]
    Ports { list: String, item: String },
    #[error("* is no user: name one by its id, or several as first-last")]
    AnyUser,
    #[error(
        "{0:?} is more than one user: give each an exclusion of its own, or a range first-last"
    )]
    Users(String),
    #[error(
        "{0:?} is no user: one is a number from 0 to 4294967294, a range is first-last, low to high"
    )]
    User(String),
}

impl BadFlow {
    /// What kumactl says of it, where it finds it as well.
    pub(super) fn said(&self) -> Option<String> {
        let what = match self {
            Self::Protocol(word) => format!("invalid or unsupported protocol: '{word}'"),
            Self::Ports { list, item } => {
                let item = item.split('-').find(|port| port.parse::<u16>().is_err())?;
                format!(
                    "invalid port range: validation failed for value or range '{list}': invalid \
                     uint16 value: '{item}'"
                )
            }
            Self::AnyUser => "wildcard '*' is not allowed for UIDs".to_owned(),
            Self::Users(list) => {
                let single = "It should either be a single item or a range";
                format!("invalid UID entry: '{list}'. {single}")
            }
            Self::Parts | Self::User(_) => return None,
        };
        Some(format!("parsing excluded outbound ports for uids failed: {what}"))
    }
}

/// Read `USERS`, `PORTS:USERS` or `PROTOCOLS:PORTS:USERS`.
pub(super) fn read(text: &str) -> Result<Flow, BadFlow> {
    let parts: Vec<&str> = text.split(':').collect();
    let (protocols, ports, users) = match parts.as_slice() {
        [users] => ("*", "*", *users),
        [ports, users] => ("*", *ports, *users),
        [protocols, ports, users] => (*protocols, *ports, *users),
        _ => return Err(BadFlow::Parts),
    };
    // In kumactl's order, which tells of the first thing.
    if users == "*" {
        return Err(BadFlow::AnyUser);
    }
    let ports = read_ports(ports)?;
    let users = read_users(users)?;
    Ok(Flow { protocols: read_protocols(protocols)?, ports, users })
}

fn read_ports(list: &str) -> Result<Vec<PortRange>, BadFlow> {
    // Port 0 is no port that anything is sent to.
    let list = if ["", "*"].contains(&list) { "1-65535" } else { list };
    let bad = |item: &str| BadFlow::Ports { list: list.to_owned(), item: item.to_owned() };
    let range = |item: &str| {
        let (first, last) = item.split_once('-').unwrap_or((item, item));
        PortRange::new(first.parse().ok()?, last.parse().ok()?)
    };
    let read: Result<Vec<PortRange>, BadFlow> =
        list.split(',').map(|item| range(item).ok_or_else(|| bad(item))).collect();
    let ports = read?;
    // What one rule can ask for stays as it was typed.
    Ok(if ports.len() > IN_ONE_RULE { merged(ports) } else { ports })
}

/// Ranges that touch or overlap as one: thousands of ports would be as many parts of rules.
fn merged(mut ports: Vec<PortRange>) -> Vec<PortRange> {
    ports.sort_by_key(|range| (range.first(), range.last()));
    let mut merged: Vec<PortRange> = Vec::new();
    for range in ports {
        let touches =
            |last: &&mut PortRange| range.first().get() <= last.last().get().saturating_add(1);
        match merged.last_mut().filter(touches) {
            Some(last) => {
                let end = last.last().max(range.last());
                *last = PortRange::new(last.first(), end).unwrap_or(*last);
            }
            None => merged.push(range),
        }
    }
    merged
}

fn read_users(text: &str) -> Result<UidRange, BadFlow> {
    if text.contains(',') {
        return Err(BadFlow::Users(text.to_owned()));
    }
    text.parse().map_err(|_e| BadFlow::User(text.to_owned()))
}

fn read_protocols(list: &str) -> Result<Vec<Protocol>, BadFlow> {
    let mut protocols = match list {
        "" | "*" => vec![Protocol::Tcp, Protocol::Udp],
        _ => Vec::new(),
    };
    if protocols.is_empty() {
        for word in list.split(',') {
            let protocol = match word {
                "tcp" => Protocol::Tcp,
                "udp" => Protocol::Udp,
                other => return Err(BadFlow::Protocol(other.to_owned())),
            };
            if !protocols.contains(&protocol) {
                protocols.push(protocol);
            }
        }
    }
    Ok(protocols)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(text: &str) -> Result<(String, String, String), BadFlow> {
        let words = |list: Vec<String>| list.join(",");
        read(text).map(|Flow { protocols, ports, users }| {
            let protocols = words(protocols.iter().map(ToString::to_string).collect());
            let ports = words(ports.iter().map(ToString::to_string).collect());
            (protocols, ports, users.to_string())
        })
    }

    #[test]
    fn one_to_three_parts_are_read() {
        let read = |protocols: &str, ports: &str, users: &str| {
            Ok([protocols, ports, users].map(str::to_owned).into())
        };
        assert_eq!(flow("1000670000"), read("tcp,udp", "1:65535", "1000670000"));
        for text in ["*:3-4", ":3-4", "*:*:3-4", "::3-4", "tcp,udp,tcp::3-4"] {
            assert_eq!(flow(text), read("tcp,udp", "1:65535", "3-4"), "{text}");
        }
        assert_eq!(flow("tcp:22,80-90:106-108"), read("tcp", "22,80:90", "106-108"));
    }

    #[test]
    fn many_ports_that_touch_are_one_range() {
        let all: Vec<String> = (1..=65535).rev().map(|port: u16| port.to_string()).collect();
        let flow = flow(&format!("tcp:{},1-65535:7", all.join(","))).unwrap();
        assert_eq!(flow.1, "1:65535");
    }

    #[test]
    fn what_is_wrong_is_told_by_the_part() {
        for (text, reported) in [
            ("a:b:c:d", "more than three parts"),
            ("80:*", "* is no user"),
            ("80:1,2", "\"1,2\" is more than one user"),
            ("80:9-3", "\"9-3\" is no user"),
            ("90-80:1", "\"90-80\" is no port"),
            ("80,,81:1", "\"\" is no port"),
            ("sctp:80:1", "\"sctp\" is no protocol"),
        ] {
            let error = flow(text).unwrap_err().to_string();
            assert!(error.contains(reported), "{text}: {error}");
        }
    }
}
