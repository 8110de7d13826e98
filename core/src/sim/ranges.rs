//! Sets of numbers as ranges: ports, addresses, ids, whatever a rule compares.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::value::{Cidr, Family, PortRange};

/// A set of numbers: ranges with both ends included, sorted, none empty, none touching another.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ranges(Vec<(u128, u128)>);

impl Ranges {
    /// Every number up to `last`.
    pub fn up_to(last: u128) -> Self {
        Self(vec![(0, last)])
    }

    /// One number.
    pub fn one(number: u128) -> Self {
        Self(vec![(number, number)])
    }

    /// The numbers of a range; none when it runs downwards.
    pub fn range(first: u128, last: u128) -> Self {
        Self(if first <= last { vec![(first, last)] } else { Vec::new() })
    }

    /// The addresses of a network.
    pub fn network(cidr: Cidr) -> Self {
        let first = number(cidr.network().address());
        let free = u32::from(cidr.family().bits() - cidr.length());
        let host_bits = 1_u128.checked_shl(free).map_or(u128::MAX, |size| size - 1);
        Self(vec![(first, first | host_bits)])
    }

    /// Ports.
    pub fn ports<'p, I: IntoIterator<Item = &'p PortRange>>(ports: I) -> Self {
        let ends = |p: &PortRange| (u128::from(p.first().get()), u128::from(p.last().get()));
        ports.into_iter().map(ends).collect()
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The ranges.
    pub fn iter(&self) -> impl Iterator<Item = (u128, u128)> + '_ {
        self.0.iter().copied()
    }

    /// The smallest number.
    pub fn first(&self) -> Option<u128> {
        self.0.first().map(|(first, _)| *first)
    }

    /// The only number, if there is only one.
    pub fn single(&self) -> Option<u128> {
        match self.0.as_slice() {
            [(first, last)] if first == last => Some(*first),
            _ => None,
        }
    }

    /// Whether `number` is in it.
    pub fn contains(&self, number: u128) -> bool {
        let at = self.0.partition_point(|(_, last)| *last < number);
        self.0.get(at).is_some_and(|(first, _)| *first <= number)
    }

    /// What is in both.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut both = Vec::new();
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            let (first, last) = (x.0.max(y.0), x.1.min(y.1));
            if first <= last {
                both.push((first, last));
            }
            if x.1 < y.1 {
                a.next();
            } else {
                b.next();
            }
        }
        Self(both)
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.and(&other.complement())
    }

    /// What is in either.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).collect()
    }

    fn complement(&self) -> Self {
        let mut rest = Vec::new();
        let mut next = Some(0);
        for (first, last) in self.iter() {
            if let Some(start) = next.filter(|start| *start < first) {
                rest.push((start, first - 1));
            }
            next = last.checked_add(1);
        }
        rest.extend(next.map(|start| (start, u128::MAX)));
        Self(rest)
    }
}

impl FromIterator<(u128, u128)> for Ranges {
    fn from_iter<I: IntoIterator<Item = (u128, u128)>>(ranges: I) -> Self {
        let mut sorted: Vec<(u128, u128)> =
            ranges.into_iter().filter(|(first, last)| first <= last).collect();
        sorted.sort_unstable();
        let mut joined: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match joined.last_mut() {
                Some((_, end)) if end.checked_add(1).is_none_or(|next| first <= next) => {
                    *end = (*end).max(last);
                }
                _ => joined.push((first, last)),
            }
        }
        Self(joined)
    }
}

/// An address as a number.
pub(super) const fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits() as u128,
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// A number as an address of a family.
pub(super) fn address(family: Family, number: u128) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from_bits(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        Family::V6 => Ipv6Addr::from_bits(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ranges: &[(u128, u128)]) -> Ranges {
        ranges.iter().copied().collect()
    }

    #[test]
    fn ranges_that_touch_are_one() {
        assert_eq!(set(&[(5, 9), (1, 4), (20, 20), (7, 8)]), Ranges(vec![(1, 9), (20, 20)]));
        assert_eq!(set(&[(0, u128::MAX), (3, 3)]), Ranges::up_to(u128::MAX));
    }

    #[test]
    fn sets_are_cut_and_put_together() {
        let a = set(&[(1, 9), (20, 29)]);
        assert_eq!(a.and(&set(&[(5, 22), (29, 40)])), set(&[(5, 9), (20, 22), (29, 29)]));
        assert_eq!(a.without(&set(&[(2, 2), (20, 40)])), set(&[(1, 1), (3, 9)]));
        assert_eq!(a.or(&set(&[(10, 19)])), set(&[(1, 29)]));
        assert!(a.without(&Ranges::up_to(u128::MAX)).is_empty());
        assert!(a.contains(20) && !a.contains(19) && !a.contains(0) && !a.contains(30));
        assert!(Ranges::up_to(9).without(&Ranges::default()) == Ranges::up_to(9));
    }

    #[test]
    fn networks_become_ranges() {
        let of = |text: &str| Ranges::network(text.parse().unwrap());
        assert_eq!(of("10.1.2.3/8"), Ranges::range(0x0a00_0000, 0x0aff_ffff));
        assert_eq!(of("0.0.0.0/0"), Ranges::up_to(u32::MAX.into()));
        assert_eq!(of("::/0"), Ranges::up_to(u128::MAX));
        assert_eq!(of("::1/128"), Ranges::one(1));
    }
}
