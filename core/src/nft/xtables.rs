//! Rules of iptables in the kernel's `nf_tables`, as iptables-nft writes them: addresses, interfaces
//! and protocols in expressions of `nf_tables`, everything else in matches and targets of iptables
//! (`nft_compat`), and a counter in front of the target.
//!
//! Ports and marks are matches too, as up to iptables 1.8.7. Later versions have expressions for them,
//! which earlier ones read past: a rule about a port is one about all ports to these, and its text
//! says so. The matches are understood by all.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::expr::{
    Comparison, Expr, FLAGS, Header, MetaField, NftVerdict, NoGroup, SYN, interface_name, is_flags,
    mask, range,
};
use crate::iptables::{
    Extension, Ports, TooManyPorts, UnknownRule, read_match, read_target, write_match, write_ports,
    write_target,
};
use crate::ruleset::{ChainName, Hook, Masked, Match, Owner, Protocol, Rule, Side, Table, Target};
use crate::value::{Cidr, Family, Groups, InterfacePattern, Port, PortRange};

/// A rule that can't be written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unwritable {
    /// A group's name has no number.
    #[error(transparent)]
    NoGroup(#[from] NoGroup),
    /// More ports than a match of `multiport` has room for.
    #[error(transparent)]
    TooManyPorts(#[from] TooManyPorts),
    /// A match of ports or of `--syn` in a rule that names no protocol.
    #[error("a rule about ports has to name their protocol")]
    PortsOfNothing,
}

/// A rule, ready to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XtRule {
    /// Conditions, matches of iptables, a counter, and the verdict or target.
    pub exprs: Vec<Expr>,
    /// The protocol that it asks for, which matches and targets of iptables want to know
    /// (`NFTA_RULE_COMPAT`).
    pub protocol: Option<u8>,
}

/// A rule that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XtRead {
    /// The rule, or what in it is not known.
    pub rule: Result<Rule, UnknownRule>,
    /// The chain that it jumps to, whether the rest is known or not.
    pub jump: Option<String>,
    /// The protocol that it asks for, and whether for any other one.
    pub protocol: Option<(u8, bool)>,
    /// Whether ports or marks are in expressions, which programs up to iptables 1.8.7 read past.
    pub newer: bool,
}

/// Type and priority of a builtin chain (`linux/netfilter_ipv4.h`, `enum nf_ip_hook_priorities`); none
/// for a chain that the table does not have.
pub const fn builtin_chain(table: Table, hook: Hook) -> Option<(&'static str, i32)> {
    Some(match (table, hook) {
        (Table::Raw, Hook::Prerouting | Hook::Output) => ("filter", -300),
        // What changes there may have to be routed anew.
        (Table::Mangle, Hook::Output) => ("route", -150),
        (Table::Mangle, _) => ("filter", -150),
        (Table::Nat, Hook::Prerouting | Hook::Output) => ("nat", -100),
        (Table::Nat, Hook::Input | Hook::Postrouting) => ("nat", 100),
        (Table::Filter, Hook::Input | Hook::Forward | Hook::Output) => ("filter", 0),
        _ => return None,
    })
}

/// The expressions of a rule.
///
/// # Errors
/// When it can't be written.
pub fn encode(rule: &Rule, family: Family, groups: &Groups) -> Result<XtRule, Unwritable> {
    let mut exprs = Vec::new();
    let mut protocol = None;
    for m in &rule.matches {
        match m {
            Match::InInterface { negated, name } => {
                interface(&mut exprs, MetaField::InInterface, *negated, name);
            }
            Match::Protocol(asked) => protocol = Some(*asked),
            _ => {}
        }
    }
    for m in &rule.matches {
        if let Match::OutInterface { negated, name } = m {
            interface(&mut exprs, MetaField::OutInterface, *negated, name);
        }
    }
    if let Some(asked) = protocol {
        exprs.push(Expr::LoadMeta(MetaField::Protocol));
        exprs.push(Expr::Compare(Comparison::Eq, vec![number(asked)]));
    }
    for wanted in [Side::Source, Side::Destination] {
        for m in &rule.matches {
            if let Match::Address { side, negated, cidr } = m
                && *side == wanted
            {
                address(&mut exprs, *side, *negated, *cidr);
            }
        }
    }
    let mut header_written = false;
    for m in &rule.matches {
        match m {
            Match::Port { .. } | Match::Syn { .. } if !header_written => {
                header_written = true;
                let protocol = protocol.ok_or(Unwritable::PortsOfNothing)?;
                exprs.extend(of_header(protocol, &rule.matches).map(Expr::Match));
            }
            Match::Port { .. } | Match::Syn { .. } => {}
            Match::Owner { negated, owner: Owner::Group(name) } => {
                let gid = *groups.get(name).ok_or_else(|| NoGroup(name.clone()))?;
                let owner = Owner::Gid(gid);
                let extension = write_match(&Match::Owner { negated: *negated, owner })?;
                exprs.extend(extension.map(Expr::Match));
            }
            other => exprs.extend(write_match(other)?.map(Expr::Match)),
        }
    }
    exprs.push(Expr::Counter);
    let verdict = match &rule.target {
        Target::Return => Some(Expr::Verdict(NftVerdict::Return)),
        Target::Accept => Some(Expr::Verdict(NftVerdict::Accept)),
        Target::Drop => Some(Expr::Verdict(NftVerdict::Drop)),
        Target::Jump(chain) => Some(Expr::Verdict(NftVerdict::Jump(chain.as_str().to_owned()))),
        other => write_target(family, other).map(Expr::Target),
    };
    exprs.extend(verdict);
    Ok(XtRule { exprs, protocol: protocol.map(number) })
}

const fn number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

const fn equal(negated: bool) -> Comparison {
    if negated { Comparison::Ne } else { Comparison::Eq }
}

/// A whole name with one zero, or the beginning of one.
fn interface(exprs: &mut Vec<Expr>, field: MetaField, negated: bool, name: &InterfacePattern) {
    let mut bytes = interface_name(name);
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end + 1);
    }
    exprs.extend([Expr::LoadMeta(field), Expr::Compare(equal(negated), bytes)]);
}

/// Where an address is in its header: offset and length (RFC 791 section 3.1, RFC 8200 section 3).
const fn address_place(family: Family, side: Side) -> (u32, u32) {
    match (family, side) {
        (Family::V4, Side::Source) => (12, 4),
        (Family::V4, Side::Destination) => (16, 4),
        (Family::V6, Side::Source) => (8, 16),
        (Family::V6, Side::Destination) => (24, 16),
    }
}

fn address(exprs: &mut Vec<Expr>, side: Side, negated: bool, cidr: Cidr) {
    if cidr.is_everything() && !negated {
        return;
    }
    let (offset, whole) = address_place(cidr.family(), side);
    let (mut network, _) = range(cidr);
    // Whole bytes need no mask.
    let bytes = u32::from(cidr.length() / 8);
    if bytes > 0 && cidr.length().is_multiple_of(8) {
        network.truncate(usize::from(cidr.length() / 8));
        exprs.push(Expr::LoadPayload { header: Header::Network, offset, length: bytes });
    } else {
        exprs.push(Expr::LoadPayload { header: Header::Network, offset, length: whole });
        exprs.push(Expr::Mask(mask(cidr)));
    }
    exprs.push(Expr::Compare(equal(negated), network));
}

/// The ports of both sides and the flags, as one match has them all. One that asks twice of the same side takes two.
fn of_header(protocol: Protocol, matches: &[Match]) -> impl Iterator<Item = Extension> {
    let of = |wanted: Side| -> Vec<Ports> {
        let ports = matches.iter().filter_map(|m| match m {
            Match::Port { side, negated, ports } if *side == wanted => Some((*negated, *ports)),
            _ => None,
        });
        ports.map(Some).collect()
    };
    let (source, destination) = (of(Side::Source), of(Side::Destination));
    let syn = matches.iter().find_map(|m| match m {
        Match::Syn { negated } => Some(*negated),
        _ => None,
    });
    let count = source.len().max(destination.len()).max(usize::from(syn.is_some()));
    let nth = |ports: &[Ports], index| ports.get(index).copied().flatten();
    let pair = move |index| {
        let syn = syn.filter(|_| index == 0);
        write_ports(protocol, nth(&source, index), nth(&destination, index), syn)
    };
    (0..count).map(pair)
}

/// What a rule's expressions mean.
pub fn decode(exprs: &[Result<Expr, String>], family: Family) -> XtRead {
    let jump = exprs.iter().find_map(|expr| match expr {
        Ok(Expr::Verdict(NftVerdict::Jump(chain))) => Some(chain.clone()),
        _ => None,
    });
    let newer = exprs.iter().any(|expr| match expr {
        Ok(Expr::LoadPayload { header, .. }) => *header == Header::Transport,
        Ok(Expr::LoadMeta(field)) => *field == MetaField::Mark,
        _ => false,
    });
    let protocol = exprs.windows(2).find_map(|pair| match pair {
        [Ok(load), Ok(Expr::Compare(how, value))] if loads_protocol(load, family) => {
            let [number] = value[..] else { return None };
            Some((number, *how == Comparison::Ne))
        }
        _ => None,
    });
    let known: Result<Vec<&Expr>, UnknownRule> =
        exprs.iter().map(|expr| expr.as_ref().map_err(|text| UnknownRule(text.clone()))).collect();
    let rule =
        known.and_then(|exprs| ExprReader { rest: &exprs, family, matches: Vec::new() }.rule());
    XtRead { rule, jump, protocol, newer }
}

/// Whether this is the protocol as iptables asks for it.
fn loads_protocol(expr: &Expr, family: Family) -> bool {
    match expr {
        Expr::LoadMeta(field) => *field == MetaField::Protocol,
        // The protocol field of IPv4, which versions before 1.8.5 look at.
        Expr::LoadPayload { header: Header::Network, offset: 9, length: 1 } => family == Family::V4,
        _ => false,
    }
}

struct ExprReader<'e> {
    rest: &'e [&'e Expr],
    family: Family,
    matches: Vec<Match>,
}

impl ExprReader<'_> {
    fn rule(mut self) -> Result<Rule, UnknownRule> {
        let mut target = None;
        while let Some((expr, rest)) = self.rest.split_first() {
            if target.is_some() {
                return Err(unknown(expr));
            }
            self.rest = rest;
            match expr {
                Expr::Counter => {}
                Expr::LoadMeta(field) => self.meta(*field)?,
                Expr::LoadPayload { header, offset, length } => {
                    self.payload(*header, *offset, *length)?;
                }
                Expr::Match(Extension { name, revision, data }) => {
                    let read = read_match(name, *revision, data);
                    self.matches.extend(read.map_err(|e| UnknownRule(e.to_string()))?);
                }
                Expr::Target(Extension { name, revision, data }) => {
                    let read = read_target(self.family, name, *revision, data);
                    target = Some(read.map_err(|e| UnknownRule(e.to_string()))?);
                }
                Expr::Verdict(verdict) => target = Some(Self::verdict(verdict)?),
                other => return Err(unknown(other)),
            }
        }
        let target = target.ok_or_else(|| UnknownRule("a rule without a target".to_owned()))?;
        Ok(Rule { matches: self.matches, target })
    }

    fn verdict(verdict: &NftVerdict) -> Result<Target, UnknownRule> {
        Ok(match verdict {
            NftVerdict::Accept => Target::Accept,
            NftVerdict::Drop => Target::Drop,
            NftVerdict::Return => Target::Return,
            NftVerdict::Jump(chain) => {
                let name: ChainName =
                    chain.parse().map_err(|_e| UnknownRule(format!("-j {chain}")))?;
                Target::Jump(name)
            }
        })
    }

    /// The next expression, which must be there.
    fn next(&mut self) -> Result<&Expr, UnknownRule> {
        let (expr, rest) =
            self.rest.split_first().ok_or_else(|| UnknownRule("a rule that ends".to_owned()))?;
        self.rest = rest;
        Ok(expr)
    }

    /// A comparison that says equal or not equal: whether it is negated, and the value.
    fn compared(&mut self) -> Result<(bool, Vec<u8>), UnknownRule> {
        match self.next()? {
            Expr::Compare(Comparison::Eq, data) => Ok((false, data.clone())),
            Expr::Compare(Comparison::Ne, data) => Ok((true, data.clone())),
            other => Err(unknown(other)),
        }
    }

    fn masked(&mut self) -> Option<Vec<u8>> {
        let (Expr::Mask(mask), rest) = self.rest.split_first()? else { return None };
        self.rest = rest;
        Some(mask.clone())
    }

    fn meta(&mut self, field: MetaField) -> Result<(), UnknownRule> {
        let odd = |what: &str| UnknownRule(format!("{what} that iptables does not write so"));
        match field {
            MetaField::InInterface | MetaField::OutInterface => {
                let (negated, bytes) = self.compared()?;
                let end = bytes.iter().position(|byte| *byte == 0);
                let text = std::str::from_utf8(&bytes[..end.unwrap_or(bytes.len())]);
                let text = text.map_err(|_e| odd("an interface name"))?;
                let text = if end.is_some() { text.to_owned() } else { format!("{text}+") };
                let name = text.parse().map_err(|_e| odd("an interface name"))?;
                self.matches.push(match field {
                    MetaField::InInterface => Match::InInterface { negated, name },
                    _ => Match::OutInterface { negated, name },
                });
            }
            MetaField::Protocol => self.protocol()?,
            MetaField::Mark => {
                let mask = self.masked();
                let (negated, value) = self.compared()?;
                let mask =
                    mask.map_or(Some(u32::MAX), |m| m.try_into().ok().map(u32::from_ne_bytes));
                let value = value.try_into().ok().map(u32::from_ne_bytes);
                let (value, mask) = value.zip(mask).ok_or_else(|| odd("a mark"))?;
                self.matches.push(Match::Mark { negated, mark: Masked { value, mask } });
            }
            other => return Err(UnknownRule(format!("{other:?}"))),
        }
        Ok(())
    }

    fn protocol(&mut self) -> Result<(), UnknownRule> {
        let protocol = match self.compared()? {
            (false, data) if data == [6] => Protocol::Tcp,
            (false, data) if data == [17] => Protocol::Udp,
            (negated, data) => {
                let not = if negated { "! " } else { "" };
                return Err(UnknownRule(format!("{not}-p {data:?}")));
            }
        };
        // Older versions say it twice: with the address, and with the port.
        let m = Match::Protocol(protocol);
        if !self.matches.contains(&m) {
            self.matches.push(m);
        }
        Ok(())
    }

    fn payload(&mut self, header: Header, offset: u32, length: u32) -> Result<(), UnknownRule> {
        if loads_protocol(&Expr::LoadPayload { header, offset, length }, self.family) {
            return self.protocol();
        }
        if is_flags(header, offset, length) {
            let (mask, (negated, set)) = (self.masked(), self.compared()?);
            if (mask.as_deref(), set.as_slice()) != (Some(&FLAGS), &SYN) {
                return Err(UnknownRule("flags of TCP other than those of --syn".to_owned()));
            }
            self.matches.push(Match::Syn { negated });
            return Ok(());
        }
        let side = match (header, offset) {
            (Header::Transport, 0) => Side::Source,
            (Header::Transport, 2) => Side::Destination,
            _ => return self.address(offset, length),
        };
        if length != 2 {
            return Err(UnknownRule(format!("{length} bytes of the transport header")));
        }
        let (negated, first, last) = match self.next()?.clone() {
            Expr::Compare(Comparison::Eq, port) => (false, port.clone(), port),
            Expr::Compare(Comparison::Ne, port) => (true, port.clone(), port),
            Expr::Range { negated, first, last } => (negated, first, last),
            Expr::Compare(Comparison::Ge, first) => match self.next()? {
                Expr::Compare(Comparison::Le, last) => (false, first, last.clone()),
                other => return Err(unknown(other)),
            },
            other => return Err(unknown(&other)),
        };
        let port = |bytes: Vec<u8>| bytes.try_into().ok().map(|b| Port::new(u16::from_be_bytes(b)));
        let ports = port(first).zip(port(last)).and_then(|(a, b)| PortRange::new(a, b));
        let ports = ports.ok_or_else(|| UnknownRule("ports that are none".to_owned()))?;
        self.matches.push(Match::Port { side, negated, ports });
        Ok(())
    }

    fn address(&mut self, offset: u32, length: u32) -> Result<(), UnknownRule> {
        let odd = || UnknownRule(format!("{length} bytes at {offset} of the network header"));
        let side = [Side::Source, Side::Destination]
            .into_iter()
            .find(|side| address_place(self.family, *side).0 == offset)
            .ok_or_else(odd)?;
        let (_, whole) = address_place(self.family, side);
        let mask = self.masked();
        let (negated, mut network) = self.compared()?;
        let prefix = match &mask {
            None if length <= whole => 8 * length,
            Some(mask) if length == whole => {
                let ones: u32 = mask.iter().map(|byte| byte.leading_ones()).sum();
                let all: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
                let contiguous = mask.iter().skip_while(|b| **b == 255).skip(1).all(|b| *b == 0);
                if ones != all || !contiguous {
                    return Err(UnknownRule("a netmask with holes".to_owned()));
                }
                ones
            }
            _ => return Err(odd()),
        };
        network.resize(usize::try_from(whole).unwrap_or(0), 0);
        let address: Option<IpAddr> = match self.family {
            Family::V4 => <[u8; 4]>::try_from(network).ok().map(|b| Ipv4Addr::from(b).into()),
            Family::V6 => <[u8; 16]>::try_from(network).ok().map(|b| Ipv6Addr::from(b).into()),
        };
        let prefix = u8::try_from(prefix).map_err(|_e| odd())?;
        let cidr = address.and_then(|address| Cidr::new(address, prefix)).ok_or_else(odd)?;
        self.matches.push(Match::Address { side, negated, cidr });
        Ok(())
    }
}

fn unknown(expr: &Expr) -> UnknownRule {
    UnknownRule(format!("{expr:?}"))
}
