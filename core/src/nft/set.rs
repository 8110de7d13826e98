//! Sets of `nf_tables`: what a rule that asks for many values looks them up in, in one step.

/// What the values of a set are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetKind {
    /// IPv4 addresses.
    Ipv4,
    /// IPv6 addresses.
    Ipv6,
    /// Ports.
    Ports,
    /// User ids.
    Uids,
    /// Group ids.
    Gids,
    /// Names of interfaces.
    Interfaces,
}

impl SetKind {
    /// All of them.
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

    /// Whether bytes are ordered as the values are.
    const fn is_ordered(self) -> bool {
        matches!(self, Self::Ipv4 | Self::Ipv6 | Self::Ports)
    }
}

/// A set: ranges of values, sorted, apart from each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// What the values are.
    pub kind: SetKind,
    /// First and last value, in the form in which they are compared.
    pub ranges: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Set {
    /// A set of these ranges. Where there is any of more than one value, those that touch become
    /// one, since the kernel takes no two that do.
    pub fn new(kind: SetKind, ranges: Vec<(Vec<u8>, Vec<u8>)>) -> Self {
        let mut sorted = ranges;
        sorted.sort();
        let join = kind.is_ordered() && sorted.iter().any(|(first, last)| first != last);
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

    /// Whether there is a range of more than one value.
    pub fn has_intervals(&self) -> bool {
        self.ranges.iter().any(|(first, last)| first != last)
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
        assert_eq!(
            (successor(&[0, 255]), predecessor(&[1, 0])),
            (Some(vec![1, 0]), Some(vec![0, 255]))
        );
        assert_eq!((successor(&[255]), predecessor(&[0])), (None, None));
    }
}
