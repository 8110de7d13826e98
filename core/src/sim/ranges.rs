//! Sets of numbers as ranges: ports, addresses, ids, whatever a rule compares.

use std::cell::RefCell;
use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::{Arc, LazyLock, Weak};

use crate::value::{Cidr, Family, PortRange};

/// A set of numbers: ranges with both ends included, sorted, none empty, none touching another.
/// Copies share their ranges, so that what long lists leave over costs as little to keep and to
/// compare as one number.
#[derive(Clone)]
pub struct Ranges(Arc<Shared>);

struct Shared {
    list: Vec<(u128, u128)>,
    hash: u64,
}

/// Lists of so many ranges are kept once: thousands of rules may ask for the same long one beside something
/// else, and what is left of it for each of them is most often the same.
const LONG: usize = 64;

thread_local! {
    static KEPT: RefCell<Kept> = RefCell::default();
}

/// Long lists that somebody has, by their hashes.
#[derive(Default)]
struct Kept {
    by_hash: HashMap<u64, Weak<Shared>>,
    /// How many there may be before those that nobody has any more are let go.
    most: usize,
    /// What was made of two of them last, with these two, by where they are.
    made: HashMap<(Made, usize, usize), [Ranges; 3]>,
    /// How many ranges they have.
    held: usize,
}

/// What is made of two sets.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Made {
    Both,
    Rest,
}

/// So many ranges are held for it: 16 MB.
const MOST_HELD: usize = 500_000;

impl Kept {
    /// A list that is the same, or this one.
    fn one(&mut self, new: Shared) -> Ranges {
        let known = self.by_hash.get(&new.hash).and_then(Weak::upgrade);
        if let Some(known) = known.filter(|known| known.list == new.list) {
            return Ranges(known);
        }
        if self.by_hash.len() >= self.most {
            self.by_hash.retain(|_, list| list.strong_count() > 0);
            self.most = (2 * self.by_hash.len()).max(1024);
        }
        let new = Arc::new(new);
        self.by_hash.insert(new.hash, Arc::downgrade(&new));
        Ranges(new)
    }
}

impl Default for Ranges {
    fn default() -> Self {
        static NONE: LazyLock<Ranges> = LazyLock::new(|| Ranges::of(Vec::new()));
        NONE.clone()
    }
}

impl PartialEq for Ranges {
    fn eq(&self, other: &Self) -> bool {
        let (own, other) = (&self.0, &other.0);
        Arc::ptr_eq(own, other) || own.hash == other.hash && own.list == other.list
    }
}

impl Eq for Ranges {}

impl Hash for Ranges {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0.hash);
    }
}

impl PartialOrd for Ranges {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranges {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) {
            return Ordering::Equal;
        }
        self.0.list.cmp(&other.0.list)
    }
}

impl fmt::Debug for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Ranges").field(&self.0.list).finish()
    }
}

impl Ranges {
    fn of(mut list: Vec<(u128, u128)>) -> Self {
        // Sets are kept, and most are smaller than what they were made of.
        list.shrink_to_fit();
        let hash = mixed(&list);
        if list.len() < LONG {
            return Self(Arc::new(Shared { list, hash }));
        }
        KEPT.with_borrow_mut(|kept| kept.one(Shared { list, hash }))
    }

    /// Ranges that are sorted, none of which is empty or touches another.
    pub(super) fn in_order(list: Vec<(u128, u128)>) -> Self {
        debug_assert!(
            list.iter().all(|(first, last)| first <= last)
                && list.windows(2).all(|two| two[0].1 < two[1].0 && two[1].0 - two[0].1 > 1),
            "{list:?}"
        );
        Self::of(list)
    }

    /// Every number up to `last`.
    pub fn up_to(last: u128) -> Self {
        Self::of(vec![(0, last)])
    }

    /// A set of one number.
    pub fn one(number: u128) -> Self {
        Self::of(vec![(number, number)])
    }

    /// The numbers of a range; none when it runs downwards.
    pub fn range(first: u128, last: u128) -> Self {
        Self::of(if first <= last { vec![(first, last)] } else { Vec::new() })
    }

    /// The addresses of a network.
    pub fn network(cidr: Cidr) -> Self {
        let first = number(cidr.network().address());
        let free = u32::from(cidr.family().bits() - cidr.length());
        let host_bits = 1_u128.checked_shl(free).map_or(u128::MAX, |size| size - 1);
        Self::of(vec![(first, first | host_bits)])
    }

    /// The numbers of ports and port ranges, together.
    pub fn ports<'p, I: IntoIterator<Item = &'p PortRange>>(ports: I) -> Self {
        let ends = |p: &PortRange| (u128::from(p.first().get()), u128::from(p.last().get()));
        ports.into_iter().map(ends).collect()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.0.list.is_empty()
    }

    /// First and last number of each range, from low to high.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u128, u128)> + '_ {
        self.0.list.iter().copied()
    }

    /// The smallest number; none where the set is empty.
    pub fn first(&self) -> Option<u128> {
        self.0.list.first().map(|(first, _)| *first)
    }

    /// The only number, if there is only one.
    pub fn single(&self) -> Option<u128> {
        match self.0.list.as_slice() {
            [(first, last)] if first == last => Some(*first),
            _ => None,
        }
    }

    /// Whether `number` is in it.
    pub fn contains(&self, number: u128) -> bool {
        self.from(number).next().is_some_and(|(first, _)| first <= number)
    }

    /// The ranges that do not end below `number`.
    fn from(&self, number: u128) -> impl Iterator<Item = (u128, u128)> + '_ {
        let at = self.0.list.partition_point(|(_, last)| *last < number);
        self.0.list.iter().skip(at).copied()
    }

    /// The ranges that have a number of a range.
    fn over(&self, (first, last): (u128, u128)) -> impl Iterator<Item = (u128, u128)> + '_ {
        self.from(first).take_while(move |range| range.0 <= last)
    }

    /// Whether they have a number in common.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let (few, many) = self.by_size(other);
        few.iter().any(|range| many.over(range).next().is_some())
    }

    /// Whether the other one has all numbers of this one.
    pub(super) fn is_within(&self, other: &Self) -> bool {
        self.iter().all(|(first, last)| {
            other.from(first).next().is_some_and(|range| range.0 <= first && last <= range.1)
        })
    }

    fn by_size<'a>(&'a self, other: &'a Self) -> (&'a Self, &'a Self) {
        if self.iter().len() <= other.iter().len() { (self, other) } else { (other, self) }
    }

    /// What `make` makes of two sets; of long ones, most often it was made before.
    fn made(&self, other: &Self, which: Made, make: impl FnOnce() -> Self) -> Self {
        if self.0.list.len().max(other.0.list.len()) < LONG {
            return make();
        }
        let at = |set: &Self| Arc::as_ptr(&set.0).addr();
        let key = (which, at(self), at(other));
        let known = KEPT.with_borrow(|kept| kept.made.get(&key).map(|[.., made]| made.clone()));
        known.unwrap_or_else(|| {
            let made = make();
            KEPT.with_borrow_mut(|kept| {
                let sets = [self.clone(), other.clone(), made.clone()];
                let ranges = sets.iter().map(|set| set.0.list.len()).sum::<usize>();
                if kept.held + ranges > MOST_HELD {
                    kept.made.clear();
                    kept.held = 0;
                }
                if ranges <= MOST_HELD {
                    kept.held += ranges;
                    kept.made.insert(key, sets);
                }
            });
            made
        })
    }

    /// The intersection: numbers that are in both sets.
    #[must_use]
    pub fn and(&self, other: &Self) -> Self {
        self.made(other, Made::Both, || self.both(other))
    }

    fn both(&self, other: &Self) -> Self {
        /// So many times more are looked through rather than looked up.
        const NEAR: usize = 8;
        let (few, many) = self.by_size(other);
        if few.iter().len() * NEAR < many.iter().len() {
            let both = few.iter().flat_map(|(first, last)| {
                many.over((first, last)).map(move |range| (range.0.max(first), range.1.min(last)))
            });
            return Self::of(both.collect());
        }
        let mut both = Vec::with_capacity(few.iter().len());
        let (mut own, mut others) = (few.iter().peekable(), many.iter().peekable());
        while let (Some((a, b)), Some((c, d))) = (own.peek().copied(), others.peek().copied()) {
            let (first, last) = (a.max(c), b.min(d));
            if first <= last {
                both.push((first, last));
            }
            // What ends first has nothing more in common with the others.
            if b < d {
                own.next()
            } else {
                others.next()
            };
        }
        Self::of(both)
    }

    /// What is in this one and not in the other.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.made(other, Made::Rest, || self.rest(other))
    }

    fn rest(&self, other: &Self) -> Self {
        let mut rest = Vec::with_capacity(self.iter().len());
        let mut others = self.first().into_iter().flat_map(|first| other.from(first)).peekable();
        for (first, last) in self.iter() {
            let mut next = Some(first);
            while others.next_if(|(_, end)| *end < first).is_some() {}
            while let Some((taken, end)) =
                others.peek().copied().filter(|(start, _)| *start <= last)
            {
                // One that goes on beyond this range takes of the next one too.
                if end <= last {
                    others.next();
                }
                if let Some(start) = next.filter(|start| *start < taken) {
                    rest.push((start, taken - 1));
                }
                next = end.checked_add(1);
                if end > last {
                    break;
                }
            }
            rest.extend(next.filter(|start| *start <= last).map(|start| (start, last)));
        }
        Self::of(rest)
    }

    /// The union: numbers that are in either set or in both.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        self.iter().chain(other.iter()).collect()
    }
}

impl FromIterator<(u128, u128)> for Ranges {
    fn from_iter<I: IntoIterator<Item = (u128, u128)>>(ranges: I) -> Self {
        let mut sorted: Vec<(u128, u128)> =
            ranges.into_iter().filter(|(first, last)| first <= last).collect();
        #[expect(
            clippy::stable_sort_primitive,
            reason = "most often there are two rows in order, and those it only merges"
        )]
        sorted.sort();
        let mut joined: Vec<(u128, u128)> = Vec::with_capacity(sorted.len());
        for (first, last) in sorted {
            match joined.last_mut() {
                Some((_, end)) if end.checked_add(1).is_none_or(|next| first <= next) => {
                    *end = (*end).max(last);
                }
                _ => joined.push((first, last)),
            }
        }
        Self::of(joined)
    }
}

/// A number that lists which differ hardly have in common. They are compared all the same: this is made
/// for speed, and a list is hashed each time that one is made.
fn mixed(list: &[(u128, u128)]) -> u64 {
    const ODD: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
    let mix = |hash: u128, number: u128| (hash.rotate_left(29) ^ number).wrapping_mul(ODD);
    let hash = list.iter().fold(ODD, |hash, (first, last)| mix(mix(hash, *first), *last));
    u64::try_from(hash >> 64).unwrap_or_default()
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
        assert_eq!(set(&[(5, 9), (1, 4), (20, 20), (7, 8)]), Ranges::of(vec![(1, 9), (20, 20)]));
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
        assert_eq!(a.without(&set(&[(0, 3), (9, 20), (29, u128::MAX)])), set(&[(4, 8), (21, 28)]));
        assert!(a.meets(&set(&[(9, 19)])) && !a.meets(&set(&[(0, 0), (10, 19), (30, 30)])));
        assert!(set(&[(2, 3), (29, 29)]).is_within(&a) && !set(&[(9, 10)]).is_within(&a));
    }

    #[test]
    fn sets_are_those_of_their_numbers() {
        let mut state = 7_u64;
        let mut roll = |below: u64| {
            state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
            (state >> 33) % below
        };
        for _ in 0..3000 {
            // Of like and of unlike sizes.
            let mut random = || -> Ranges {
                let count = roll(24) + 1;
                let one = |first: u64, more: u64| (u128::from(first), u128::from(first + more));
                (0..count).map(|_| one(roll(64), roll(4))).collect()
            };
            let (a, b) = (random(), random());
            let (both, rest) = (a.and(&b), a.without(&b));
            for number in 0..70 {
                let (own, other) = (a.contains(number), b.contains(number));
                assert_eq!(both.contains(number), own && other, "{number} of {a:?} and {b:?}");
                assert_eq!(rest.contains(number), own && !other, "{number} of {a:?} without {b:?}");
            }
            assert_eq!(both.or(&rest), a);
            assert_eq!(both, both.iter().collect(), "{a:?} and {b:?}");
        }
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
