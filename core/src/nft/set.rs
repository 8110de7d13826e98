//! Sets of `nf_tables`: what a rule that asks for many values looks them up in, in one step.

/// What the values of a set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// IPv4 addresses, 4 bytes in network order.
    Ipv4,
    /// IPv6 addresses, 16 bytes in network order.
    Ipv6,
    /// Ports of TCP or UDP, 2 bytes in network order.
    Ports,
    /// User ids, 4 bytes in host order.
    Uids,
    /// Group ids, 4 bytes in host order.
    Gids,
    /// Names of interfaces, 16 bytes filled up with zeros.
    Interfaces,
}

impl SetKind {
    /// Every kind that rules of ours need.
    pub const ALL: [Self; 6] =
        [Self::Ipv4, Self::Ipv6, Self::Ports, Self::Uids, Self::Gids, Self::Interfaces];

    /// The number of the type, for who lists the set (`enum datatypes` of nft's `datatype.h`).
    pub const fn number(self) -> u32 {
        match self {
            Self::Ipv4 => 7,
            Self::Ipv6 => 8,
            Self::Ports => 13,
            Self::Uids => 24,
            Self::Gids => 25,
            Self::Interfaces => 41,
        }
    }

    /// The length of a value in bytes.
    pub const fn length(self) -> usize {
        match self {
            Self::Ports => 2,
            Self::Ipv4 | Self::Uids | Self::Gids => 4,
            Self::Ipv6 | Self::Interfaces => 16,
        }
    }

    /// Whether so many values are too many to be single ones.
    const fn is_many(self, values: usize) -> bool {
        matches!(self, Self::Ports) && values > MANY_PORTS
    }

    /// Whether bytes are ordered as the values are.
    const fn is_ordered(self) -> bool {
        matches!(self, Self::Ipv4 | Self::Ipv6 | Self::Ports)
    }
}

/// A set: ranges of values, sorted, apart from each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// The type of the values, from which their length and byte order follow.
    pub kind: SetKind,
    /// First and last value, in the form in which they are compared.
    pub ranges: Vec<(Vec<u8>, Vec<u8>)>,
}

/// More ports than this are ranges to the kernel, be each one port: it keeps single ones in a list
/// (`nft_set_bitmap`), in which it looks for each that is added, and ranges in a tree.
const MANY_PORTS: usize = 512;

impl Set {
    /// A set of these ranges. Where there is any of more than one value, or are very many, those
    /// that touch become one, since the kernel takes no two that do.
    pub fn new(kind: SetKind, ranges: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        let mut sorted = ranges;
        sorted.sort();
        let join = kind.is_ordered()
            && (kind.is_many(sorted.len()) || sorted.iter().any(|(first, last)| first != last));
        let mut ranges: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        for (first, last) in sorted {
            if let Some((start, end)) = ranges.last_mut() {
                let touches = join && successor(end).is_none_or(|next| first <= next);
                if touches || *start == first {
                    if last > *end {
                        *end = last;
                    }
                    continue;
                }
            }
            ranges.push((first, last));
        }
        Self { kind, ranges }
    }

    /// Whether the kernel has it as ranges: there is one of more than one value, or there are very
    /// many.
    pub fn has_intervals(&self) -> bool {
        self.kind.is_many(self.ranges.len())
            || self.ranges.iter().any(|(first, last)| first != last)
    }
}

/// The next value; none behind the last one.
pub fn successor(value: &[u8]) -> Option<Vec<u8>> {
    step(value, u8::overflowing_add)
}

/// The value in front of one; none in front of zero.
pub fn predecessor(value: &[u8]) -> Option<Vec<u8>> {
    step(value, u8::overflowing_sub)
}

fn step(value: &[u8], by: fn(u8, u8) -> (u8, bool)) -> Option<Vec<u8>> {
    let mut bytes = value.to_vec();
    for byte in bytes.iter_mut().rev() {
        let (stepped, carry) = by(*byte, 1);
        *byte = stepped;
        if !carry {
            return Some(bytes);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_that_touch_become_one() {
        let port = |n: u16| n.to_be_bytes().to_vec();
        let set = |ranges: &[(u16, u16)]| {
            Set::new(SetKind::Ports, ranges.iter().map(|(a, b)| (port(*a), port(*b))).collect())
        };
        assert_eq!(set(&[(5, 9), (1, 4), (7, 8), (20, 20)]), set(&[(1, 9), (20, 20)]));
        assert_eq!(set(&[(0, 65535), (3, 3)]).ranges.len(), 1);
        // Single values stay what they are.
        assert_eq!(set(&[(2, 2), (1, 1), (2, 2)]).ranges.len(), 2);
        assert!(!set(&[(2, 2), (1, 1)]).has_intervals());
        // Very many don't, and are what they are when they are read back.
        let odd: Vec<(u16, u16)> = (0..600).map(|n| (2 * n + 1, 2 * n + 1)).collect();
        assert!(set(&odd).has_intervals() && set(&odd).ranges.len() == 600);
        let all: Vec<(u16, u16)> = (0..600).map(|n| (n, n)).collect();
        assert_eq!(set(&all), set(&[(0, 599)]));
        let few: Vec<(u16, u16)> = odd.iter().copied().take(500).collect();
        assert!(!set(&few).has_intervals());
        assert_eq!(
            (successor(&[0, 255]), predecessor(&[1, 0])),
            (Some(vec![1, 0]), Some(vec![0, 255]))
        );
        assert_eq!((successor(&[255]), predecessor(&[0])), (None, None));
    }
}
