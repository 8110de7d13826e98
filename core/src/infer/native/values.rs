//! Values of expressions, as bytes, in iptables' terms.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::MOST_IDS;
use crate::nft::expr::{Comparison, Expr, MetaField};
use crate::nft::set::Set;
use crate::ruleset::{ConnState, Masked, Match, Owner, Protocol, Side};
use crate::value::{Cidr, Family, Gid, ListenPort, Port, PortRange, Uid};

pub(super) fn protocol(data: &[u8]) -> Option<Protocol> {
    match data {
        [6] => Some(Protocol::Tcp),
        [17] => Some(Protocol::Udp),
        _ => None,
    }
}

/// First and last values that a condition asks for.
pub(super) fn values(condition: &Expr) -> Option<Vec<(Vec<u8>, Vec<u8>)>> {
    match condition {
        Expr::Compare(Comparison::Eq, data) => Some(vec![(data.clone(), data.clone())]),
        Expr::Lookup { negated: false, set } => Some(set.ranges.clone()),
        _ => None,
    }
}

pub(super) fn interface(field: MetaField, bytes: &[u8]) -> Option<Vec<Match>> {
    let end = bytes.iter().position(|byte| *byte == 0);
    let text = std::str::from_utf8(bytes.get(..end.unwrap_or(bytes.len()))?).ok()?;
    let text = if end.is_some() { text.to_owned() } else { format!("{text}+") };
    let (negated, name) = (false, text.parse().ok()?);
    Some(vec![match field {
        MetaField::InInterface => Match::InInterface { negated, name },
        _ => Match::OutInterface { negated, name },
    }])
}

/// Each owner by itself; of all that it must not be, one match each.
pub(super) fn owners(field: MetaField, condition: &Expr) -> Option<Vec<Vec<Match>>> {
    let (negated, ranges) = match condition {
        Expr::Compare(how, data) => (*how == Comparison::Ne, vec![(data.clone(), data.clone())]),
        Expr::Lookup { negated, set } => (*negated, set.ranges.clone()),
        _ => return None,
    };
    let mut all = Vec::new();
    for (first, last) in ranges {
        let [first, last] =
            [first, last].map(|bytes| bytes.as_slice().try_into().ok().map(u32::from_ne_bytes));
        let (first, last) = first.zip(last)?;
        if last.checked_sub(first)? > MOST_IDS {
            return None;
        }
        for id in first..=last {
            let owner = match field {
                MetaField::Uid => Owner::Uid(Uid::new(id)?),
                _ => Owner::Gid(Gid::new(id)?),
            };
            all.push(Match::Owner { negated, owner });
        }
    }
    Some(if negated { vec![all] } else { all.into_iter().map(|m| vec![m]).collect() })
}

pub(super) fn whole(bytes: &[u8]) -> Option<Masked> {
    Some(Masked { value: u32::from_ne_bytes(bytes.try_into().ok()?), mask: u32::MAX })
}

/// A mark and its mask of four bytes each in host order; none for other lengths.
pub(super) fn bits(value: &[u8], mask: &[u8]) -> Option<Masked> {
    Some(Masked { value: whole(value)?.value, mask: whole(mask)?.value })
}

/// The states in a mask (`NF_CT_STATE_INVALID_BIT`, `NF_CT_STATE_BIT()`).
pub(super) fn states(mask: &[u8]) -> Option<Vec<ConnState>> {
    let mask = u32::from_ne_bytes(mask.try_into().ok()?);
    let bits = [
        (1, ConnState::Invalid),
        (2, ConnState::Established),
        (4, ConnState::Related),
        (8, ConnState::New),
    ];
    Some(bits.into_iter().filter(|(bit, _)| mask & bit != 0).map(|(_, state)| state).collect())
}

pub(super) fn ports(side: Side, rest: &[Expr]) -> Option<(usize, Vec<Vec<Match>>)> {
    let port = |bytes: &[u8]| Some(Port::new(u16::from_be_bytes(bytes.try_into().ok()?)));
    let range = |first: &[u8], last: &[u8]| PortRange::new(port(first)?, port(last)?);
    let made = |negated, ports| vec![Match::Port { side, negated, ports }];
    match rest {
        [Expr::Compare(Comparison::Ge, first), Expr::Compare(Comparison::Le, last), ..] => {
            Some((2, vec![made(false, range(first, last)?)]))
        }
        [Expr::Compare(how, data), ..] => {
            Some((1, vec![made(*how == Comparison::Ne, range(data, data)?)]))
        }
        [Expr::Lookup { negated, set }, ..] => {
            let ranges = set.ranges.iter().map(|(first, last)| range(first, last));
            let ranges: Vec<PortRange> = ranges.collect::<Option<_>>()?;
            // Negated they are one match, with all of them.
            let all = match (*negated, ranges.as_slice()) {
                (true, [one]) => vec![made(true, *one)],
                (true, _) => vec![vec![Match::DestinationPorts { negated: true, ports: ranges }]],
                (false, _) => ranges.into_iter().map(|ports| made(false, ports)).collect(),
            };
            Some((1, all))
        }
        _ => None,
    }
}

pub(super) fn listening(bytes: &[u8]) -> Option<ListenPort> {
    ListenPort::new(u16::from_be_bytes(bytes.try_into().ok()?))
}

/// An address, or the beginning of one.
pub(super) fn address(data: &[u8], family: Family) -> Option<IpAddr> {
    let mut bytes = data.to_vec();
    bytes.resize(usize::from(family.bits() / 8), 0);
    Some(match family {
        Family::V4 => Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?).into(),
        Family::V6 => Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?).into(),
    })
}

/// The networks that a set of addresses is made of.
pub(super) fn networks(set: &Set, family: Family) -> Option<Vec<Cidr>> {
    let number = |bytes: &[u8]| {
        Some(match address(bytes, family)? {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        })
    };
    let bits = u32::from(family.bits());
    let mut cidrs = Vec::new();
    for (first, last) in &set.ranges {
        let (mut first, last) = (number(first)?, number(last)?);
        loop {
            // The largest network that begins here and does not go on behind the last address.
            let left = last.checked_sub(first)?;
            let fits = if left == u128::MAX { 128 } else { (left + 1).ilog2() };
            let size = first.trailing_zeros().min(fits).min(bits);
            let start = match family {
                Family::V4 => IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(first).ok()?)),
                Family::V6 => IpAddr::V6(Ipv6Addr::from_bits(first)),
            };
            cidrs.push(Cidr::new(start, u8::try_from(bits - size).ok()?)?);
            match 1_u128.checked_shl(size).and_then(|step| first.checked_add(step)) {
                Some(next) if next <= last => first = next,
                _ => break,
            }
        }
    }
    Some(cidrs)
}
