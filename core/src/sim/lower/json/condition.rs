//! What a rule of nft's JSON asks of a packet.

use std::sync::Arc;

use serde_json::Value;

use super::super::super::question::Protocol;
use super::super::super::ranges::Ranges;
use super::super::super::rule::{Field, States, Test, Way};
use super::super::{is, ports, protocol};
use super::flags::{self, is_tcp_flags, tcp_flags};
use super::{JsonReader, single, value};
use crate::ruleset::{Masked, Side};
use crate::value::{Family, InterfacePattern};

/// What a rule has asked before: nft prints no condition that follows from another one.
#[derive(Clone, Debug, Default)]
pub(super) struct Settled {
    family: Option<Family>,
    protocol: Option<Protocol>,
    /// Whether no other protocols are left but those with ports.
    has_ports: bool,
}

impl Settled {
    pub(super) fn of_table(families: Option<Vec<Family>>) -> Self {
        let family = families.and_then(|families| match families[..] {
            [family] => Some(family),
            _ => None,
        });
        Self { family, protocol: None, has_ports: false }
    }

    fn family(&mut self, family: Family) -> Option<Test> {
        let known = self.family.replace(family) == Some(family);
        (!known).then_some(Test::Family(family))
    }

    /// The family that a refusal by a message of ICMP is for, and no other: nft does not print that the rule
    /// asks for it.
    pub(super) fn refused(&mut self, content: &Value) -> Option<Test> {
        match content.get("type").and_then(Value::as_str)? {
            "icmp" => self.family(Family::V4),
            "icmpv6" => self.family(Family::V6),
            _ => None,
        }
    }

    fn protocol(&mut self, number: Protocol) -> Option<Test> {
        let known = self.protocol.replace(number) == Some(number);
        self.has_ports |= number.has_ports();
        (!known).then(|| protocol(number, false))
    }
}

impl JsonReader<'_> {
    /// What a statement asks; none if it is one that does something.
    pub(super) fn condition(
        &self,
        name: &str,
        content: &Value,
        settled: &mut Settled,
    ) -> Option<Vec<Test>> {
        match name {
            "match" => {
                let before = settled.clone();
                let mut read = || {
                    let operator = content.get("op")?.as_str()?;
                    has_only(content, &["op", "left", "right"])?;
                    let (left, right) = (content.get("left")?, content.get("right")?);
                    self.matched(left, operator, right, settled)
                };
                let known = read();
                Some(known.unwrap_or_else(|| {
                    *settled = before;
                    vec![Test::Unknown(comparison(content).unwrap_or_else(|| content.to_string()))]
                }))
            }
            "xt" => {
                let text = |key: &str| content.get(key).and_then(Value::as_str);
                // What nft says nothing of may as well be a target.
                let asks = text("type") == Some("match");
                let name = text("name").unwrap_or("of iptables");
                let what = "which nft does not print: save these rules with iptables-save";
                asks.then(|| vec![Test::Unknown(format!("-m {name}, {what}"))])
            }
            "limit" | "quota" | "ct count" | "meter" | "connlimit" | "set" => {
                Some(vec![Test::Unknown(format!("{name} {content}"))])
            }
            _ => None,
        }
    }

    /// A comparison; none if it is not known.
    pub(super) fn matched(
        &self,
        left: &Value,
        operator: &str,
        right: &Value,
        settled: &mut Settled,
    ) -> Option<Vec<Test>> {
        let (kind, content) = single(left)?;
        match kind {
            "payload" => {
                has_only(content, &["protocol", "field", "base", "offset", "len", "tunnel"])?;
            }
            "meta" => has_only(content, &["key"])?,
            "ct" => has_only(content, &["key", "dir"])?,
            "fib" => has_only(content, &["result", "flags"])?,
            _ => {}
        }
        match kind {
            // What is inside a tunnel is not the packet's own.
            "payload" if content.get("tunnel").is_some() => None,
            "payload" if is_tcp_flags(content) => {
                let value = tcp_flags(right)?;
                // `tcp flags syn` asks for any of these, `tcp flags == syn` for exactly them.
                let test = match operator {
                    "in" => Test::TcpFlags { negated: true, mask: value, value: 0 },
                    _ => Test::TcpFlags { negated: equality(operator)?, mask: u8::MAX, value },
                };
                Some(settled.protocol(Protocol::TCP).into_iter().chain([test]).collect())
            }
            "payload" => self.payload(content, operator, right, settled),
            "meta" => self.meta(content.get("key")?.as_str()?, operator, right, settled),
            "ct" if content.get("dir").is_some_and(|dir| dir == "original") => {
                self.original(content.get("key")?.as_str()?, operator, right, settled)
            }
            // `ct reply`
            "ct" if content.get("dir").is_some() => None,
            "ct" => self.ct(content.get("key")?.as_str()?, operator, right),
            "fib" => self.fib(content, operator, right).map(|test| vec![test]),
            // A header of IPv6 with its field; without one, it is asked whether the header is there.
            "exthdr" => {
                has_only(content, &["name", "field", "offset"])?;
                content.get("field")?;
                let number = value::extension(content.get("name")?.as_str()?)?;
                let family = settled.family(Family::V6);
                let test = Test::Extension { negated: false, number };
                Some(family.into_iter().chain([test]).collect())
            }
            "&" => masked(content, operator, right, settled),
            _ => None,
        }
    }

    /// The values on the right of a comparison of numbers.
    fn values(
        &self,
        field: Field,
        operator: &str,
        right: &Value,
        most: u128,
    ) -> Option<(bool, Ranges)> {
        let elements = |set: &Value| value::elements(set, self.family, self.table, self.sets);
        let read = || value::ranges(right, &|one| value::one(field, one), &elements);
        let set = match self.set_named(right) {
            Some(place) => {
                let mut asked = self.kept.asked.borrow_mut();
                asked.entry((place, field)).or_insert_with(read).clone()?
            }
            None => read()?,
        };
        let limit = || set.single();
        Some(match operator {
            "==" | "in" => (false, set),
            "!=" => (true, set),
            "<=" => (false, Ranges::range(0, limit()?)),
            ">" => (true, Ranges::range(0, limit()?)),
            ">=" => (false, Ranges::range(limit()?, most)),
            "<" => (true, Ranges::range(limit()?, most)),
            _ => return None,
        })
    }

    fn payload(
        &self,
        content: &Value,
        operator: &str,
        right: &Value,
        settled: &mut Settled,
    ) -> Option<Vec<Test>> {
        let (header, field) = header(content)?;
        let family = match header {
            "ip" => Some(Family::V4),
            "ip6" => Some(Family::V6),
            _ => None,
        };
        let mut tests = Vec::new();
        if let Some(family) = family {
            tests.extend(settled.family(family));
            let most = u128::MAX >> (128 - u32::from(family.bits()));
            let side = match field {
                "saddr" => Side::Source,
                "daddr" => Side::Destination,
                "protocol" | "nexthdr" => {
                    tests.push(self.number(operator, right, settled)?);
                    return Some(tests);
                }
                _ => return None,
            };
            let field = Field::address(side);
            let (negated, set) = self.values(field, operator, right, most)?;
            let family = Some(family);
            tests.push(Test::Is { field, negated, set, family, socket: false });
            return Some(tests);
        }
        if let ("icmp" | "icmpv6", "type") = (header, field) {
            tests.extend(settled.protocol(Protocol::from_name(header)?));
            let negated = equality(operator)?;
            let list = match right.get("set").and_then(Value::as_array) {
                Some(list) => list.clone(),
                None => vec![right.clone()],
            };
            let types = list.iter().map(|one| value::icmp_type(header, one).map(|n| (n, n)));
            tests.push(Test::Icmp { negated, types: types.collect::<Option<Ranges>>()? });
            return Some(tests);
        }
        if header != "th" {
            let number = Protocol::from_name(header).filter(|known| known.has_ports())?;
            tests.extend(settled.protocol(number));
        }
        let side = match field {
            "sport" => Side::Source,
            "dport" => Side::Destination,
            _ => return None,
        };
        let (negated, set) = self.values(Field::port(side), operator, right, u16::MAX.into())?;
        tests.push(if settled.has_ports {
            ports(side, negated, set)
        } else {
            Test::AtPort { side, negated, set }
        });
        Some(tests)
    }

    /// The number of the transport protocol.
    fn number(&self, operator: &str, right: &Value, settled: &mut Settled) -> Option<Test> {
        let (negated, set) = self.values(Field::Protocol, operator, right, u8::MAX.into())?;
        if !negated {
            let number = set.single().and_then(|number| u8::try_from(number).ok());
            settled.protocol = number.map(Protocol);
            settled.has_ports |= set.is_within(&Protocol::with_ports());
        }
        Some(is(Field::Protocol, negated, set))
    }

    fn meta(
        &self,
        key: &str,
        operator: &str,
        right: &Value,
        settled: &mut Settled,
    ) -> Option<Vec<Test>> {
        let owner = |field| {
            let (negated, set) = self.values(field, operator, right, u32::MAX.into())?;
            Some(Test::Is { field, negated, set, family: None, socket: true })
        };
        let test = match key {
            "skuid" => owner(Field::Uid)?,
            "skgid" => owner(Field::Gid)?,
            "l4proto" => self.number(operator, right, settled)?,
            "nfproto" | "protocol" if !equality(operator)? => {
                let family = match right.as_str()? {
                    "ipv4" | "ip" => Family::V4,
                    "ipv6" | "ip6" => Family::V6,
                    _ => return None,
                };
                return Some(settled.family(family).into_iter().collect());
            }
            "pkttype" => {
                let negated = equality(operator)?;
                let named = self.one_or_several(right)?;
                let is = |names: &[&str]| {
                    let mut all = named.iter().map(Value::as_str);
                    !named.is_empty() && all.all(|one| one.is_some_and(|one| names.contains(&one)))
                };
                match (is(&["host", "unicast"]), is(&["broadcast", "multicast"])) {
                    (true, _) => Test::ForThisHost { negated },
                    (_, true) => Test::ForThisHost { negated: !negated },
                    _ => return None,
                }
            }
            "iif" | "iifname" => self.interface(Way::In, operator, right)?,
            "oif" | "oifname" => self.interface(Way::Out, operator, right)?,
            "mark" => mark(false, operator, right, u32::MAX)?,
            _ => return None,
        };
        Some(vec![test])
    }

    /// The family, table and name of a set that is asked by its name.
    fn set_named(&self, right: &Value) -> Option<[String; 3]> {
        let name = right.as_str().filter(|name| name.starts_with('@'))?;
        Some([self.family, self.table, name].map(str::to_owned))
    }

    /// A value, or those of a set.
    pub(super) fn one_or_several(&self, right: &Value) -> Option<Vec<Value>> {
        let is_set =
            right.get("set").is_some() || right.as_str().is_some_and(|name| name.starts_with('@'));
        if is_set {
            return value::elements(right, self.family, self.table, self.sets);
        }
        Some(vec![right.clone()])
    }

    fn interface(&self, way: Way, operator: &str, right: &Value) -> Option<Test> {
        let negated = equality(operator)?;
        let read = || self.one_or_several(right)?.iter().map(value::interface).collect();
        let names: Option<Arc<[InterfacePattern]>> = match self.set_named(right) {
            Some(place) => {
                let mut asked = self.kept.interfaces.borrow_mut();
                asked.entry(place).or_insert_with(read).clone()
            }
            None => read(),
        };
        let names = names?;
        Some(Test::Interface { way, negated, names })
    }

    /// An end of the connection before any translation.
    fn original(
        &self,
        key: &str,
        operator: &str,
        right: &Value,
        settled: &mut Settled,
    ) -> Option<Vec<Test>> {
        let (family, field) = match key {
            "ip saddr" => (Some(Family::V4), Field::Source),
            "ip daddr" => (Some(Family::V4), Field::Destination),
            "ip6 saddr" => (Some(Family::V6), Field::Source),
            "ip6 daddr" => (Some(Family::V6), Field::Destination),
            "proto-src" => (None, Field::SourcePort),
            "proto-dst" => (None, Field::Port),
            _ => return None,
        };
        let most = match family {
            Some(family) => u128::MAX >> (128 - u32::from(family.bits())),
            None => u16::MAX.into(),
        };
        let (negated, set) = self.values(field, operator, right, most)?;
        let test = Test::OriginalEnd { field, negated, set, family };
        Some(family.and_then(|family| settled.family(family)).into_iter().chain([test]).collect())
    }

    fn ct(&self, key: &str, operator: &str, right: &Value) -> Option<Vec<Test>> {
        let test = match key {
            "state" | "status" => {
                let names = match right {
                    Value::Array(names) => names.clone(),
                    Value::String(name) if !name.starts_with('@') => vec![right.clone()],
                    _ => value::elements(right, self.family, self.table, self.sets)?,
                };
                let names: Option<Vec<&str>> = names.iter().map(Value::as_str).collect();
                let states = states(key, &names?)?;
                match operator {
                    "in" => flagged(key, states, false),
                    "!" => flagged(key, states, true),
                    // These compare all bits, of which a state has one: to be none of several is not to
                    // be any of them.
                    _ if key == "state" && !right.is_array() => {
                        Test::State { negated: equality(operator)?, states }
                    }
                    _ => return None,
                }
            }
            "direction" => match right.as_str()? {
                "original" => Test::Original { negated: equality(operator)? },
                "reply" => Test::Original { negated: !equality(operator)? },
                _ => return None,
            },
            "mark" => mark(true, operator, right, u32::MAX)?,
            _ => return None,
        };
        Some(vec![test])
    }
}

/// Some if all keys of an object are known: what another one means could change everything.
fn has_only(content: &Value, known: &[&str]) -> Option<()> {
    content.as_object()?.keys().all(|key| known.contains(&key.as_str())).then_some(())
}

/// A header and what of it is asked for. Some nft print the bytes where ports are as such.
fn header(content: &Value) -> Option<(&str, &str)> {
    let text = |key: &str| content.get(key).and_then(Value::as_str);
    let number = |key: &str| content.get(key).and_then(Value::as_u64);
    match (text("base"), number("offset"), number("len")) {
        (Some("th"), Some(0), Some(16)) => Some(("th", "sport")),
        (Some("th"), Some(16), Some(16)) => Some(("th", "dport")),
        _ => Some((text("protocol")?, text("field")?)),
    }
}

/// What a connection's state or status can be.
fn states(key: &str, names: &[&str]) -> Option<States> {
    let known = match key {
        "state" => [States::NEW, States::RELATED, States::ESTABLISHED, States::UNTRACKED]
            .into_iter()
            .fold(States::INVALID, States::or),
        "status" => States::SNAT.or(States::DNAT),
        _ => return None,
    };
    let mut all = names.iter().map(|name| States::from_name(name));
    let found = all.try_fold(States(0), |all, one| Some(all.or(one?)))?;
    (found.0 & !known.0 == 0 && found.0 != 0).then_some(found)
}

/// Whether one of these bits of a state or status is set, or none of them.
fn flagged(key: &str, states: States, negated: bool) -> Test {
    // What belongs to no connection has no status, and no rule that asks for it is for it.
    let none = if negated && key == "status" { States::WITHOUT } else { States(0) };
    Test::State { negated, states: states.or(none) }
}

/// A comparison as nft writes it, as far as that can be told.
fn comparison(content: &Value) -> Option<String> {
    let left = operand(content.get("left")?)?;
    let (operator, right) = (content.get("op")?.as_str()?, content.get("right")?);
    let right = right.as_str().map_or_else(|| right.to_string(), str::to_owned);
    Some(format!("{left} {operator} {right}"))
}

fn operand(value: &Value) -> Option<String> {
    let (kind, content) = single(value)?;
    let text = |key: &str| content.get(key).and_then(Value::as_str);
    // What else there is would be missing from the name.
    let is_all = |count: usize| content.as_object().is_some_and(|all| all.len() == count);
    match kind {
        "payload" if is_all(2) => Some(format!("{} {}", text("protocol")?, text("field")?)),
        "concat" => {
            let parts = content.as_array()?.iter().map(operand).collect::<Option<Vec<_>>>()?;
            Some(parts.join(" . "))
        }
        _ => Some(match text("key").filter(|_| is_all(1)) {
            Some(key) => format!("{kind} {key}"),
            None => format!("{kind} {content}"),
        }),
    }
}

/// Whether a comparison for equality is negated; none if it is another one.
pub(super) fn equality(operator: &str) -> Option<bool> {
    match operator {
        "==" | "in" => Some(false),
        "!=" => Some(true),
        _ => None,
    }
}

fn mark(connection: bool, operator: &str, right: &Value, mask: u32) -> Option<Test> {
    let mark = Masked { value: value::mark(right)?, mask };
    Some(Test::Mark { connection, negated: equality(operator)?, mark })
}

/// A comparison of bits: of a mark, of a state or status, or of the flags of TCP.
fn masked(
    content: &Value,
    operator: &str,
    right: &Value,
    settled: &mut Settled,
) -> Option<Vec<Test>> {
    let [of, mask] = content.as_array()?.as_slice() else { return None };
    let (kind, of) = single(of)?;
    if kind == "payload" {
        let negated = equality(operator)?;
        let (mask, value) = (tcp_flags(mask)?, tcp_flags(right)?);
        let test = match (mask, value) {
            (0x17, 0x02) => Test::Syn { negated },
            (mask, value) => Test::TcpFlags { negated, mask, value },
        };
        let asked = is_tcp_flags(of) && operator != "in";
        return asked.then(|| settled.protocol(Protocol::TCP).into_iter().chain([test]).collect());
    }
    let connection = match kind {
        "meta" => false,
        "ct" if of.get("dir").is_none() => true,
        _ => return None,
    };
    let key = of.get("key")?.as_str()?;
    if connection && key != "mark" {
        let names = flags::names(mask)?;
        let states = states(key, &names)?;
        // Of one bit it is the same whether all or any are set.
        let (is_none, is_all) = (right == 0, names.len() == 1 && right.as_str() == Some(names[0]));
        let holds = is_none || is_all;
        let negated = equality(operator)? != is_none;
        return holds.then(|| vec![flagged(key, states, negated)]);
    }
    let asked = key == "mark";
    let test = mark(connection, operator, right, value::mark(mask)?)?;
    asked.then(|| vec![test])
}
