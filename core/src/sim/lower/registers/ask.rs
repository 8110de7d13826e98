//! What a rule of `nf_tables` asks about a register.

use std::sync::Arc;

use super::super::super::fib::{AddressTypes, ReturnRoute};
use super::super::super::question::Protocol;
use super::super::super::ranges::Ranges;
use super::super::super::rule::{Field, States, Step, Test, Way};
use super::super::{is, ports};
use super::{
    Around, CT_DIRECTION, CT_MARK, CT_STATE, CT_STATUS, DESTINATION_PORT, DESTINATION_V4,
    DESTINATION_V6, FAMILY, GID, Held, IN, IN_NAME, L4, MARK, NETWORK, OUT, OUT_NAME, PACKET_TYPE,
    PROTOCOL, Path, SOURCE_PORT, SOURCE_V4, SOURCE_V6, Span, TRANSPORT, UID, host, slot,
};
use crate::nft::listed::{Order, Source};
use crate::ruleset::{Masked, Side};
use crate::value::{Family, InterfacePattern};

impl Path {
    pub(super) fn compared(
        &mut self,
        from: u32,
        order: Order,
        value: &[u8],
        around: Around<'_>,
    ) -> Option<Vec<Test>> {
        let held = self.held.get(&slot(from))?.clone();
        if let Some(bits) = held.bits.clone().filter(|_| matches!(order, Order::Eq | Order::Ne)) {
            return self
                .masked(&held.what, &bits, order == Order::Ne, value)
                .map(|test| vec![test]);
        }
        let least = vec![0; value.len()];
        let most = vec![u8::MAX; value.len()];
        let (first, last, negated) = match order {
            Order::Eq => (value, value, false),
            Order::Ne => (value, value, true),
            Order::Le => (&least[..], value, false),
            Order::Gt => (&least[..], value, true),
            Order::Ge => (value, &most[..], false),
            Order::Lt => (value, &most[..], true),
        };
        let tests = self.among(&held, &[(first, last)], negated, around)?;
        // Both ends of a range are two comparisons.
        if let (Order::Le, [test], Some(Step::Test(before))) =
            (order, &tests[..], self.steps.last())
            && let Some(joined) = both(before, test)
        {
            self.steps.pop();
            return Some(vec![joined]);
        }
        Some(tests)
    }

    /// A comparison of some bits.
    fn masked(
        &self,
        what: &Source,
        (mask, flip): &(Vec<u8>, Vec<u8>),
        negated: bool,
        value: &[u8],
    ) -> Option<Test> {
        if flip.iter().any(|byte| *byte != 0) {
            return None;
        }
        match what {
            Source::Meta(MARK) | Source::Ct(CT_MARK) => {
                let mark = Masked { value: host(value)?, mask: host(mask)? };
                Some(Test::Mark { connection: *what == Source::Ct(CT_MARK), negated, mark })
            }
            Source::Ct(key @ (CT_STATE | CT_STATUS)) => {
                let (mask, value) = (host(mask)?, host(value)?);
                // Of one bit it is the same whether all or any are set.
                if value != 0 && (value != mask || mask.count_ones() != 1) {
                    return None;
                }
                let set = (value == 0) == negated;
                // What belongs to no connection has no status, and no rule that asks for it is for it.
                let none = if set { States(0) } else { States::WITHOUT };
                let states =
                    if *key == CT_STATE { states(mask)? } else { translated(mask)?.or(none) };
                Some(Test::State { negated: !set, states })
            }
            // Flags. Of FIN, SYN, RST and ACK only SYN is a first packet's. Other protocols have something else there.
            Source::Payload(TRANSPORT, 13, 1)
                if self.is_only(&Ranges::one(Protocol::TCP.0.into())) =>
            {
                match (&mask[..], value) {
                    ([0x17], [2]) => Some(Test::Syn { negated }),
                    ([mask], [value]) => {
                        Some(Test::TcpFlags { negated, mask: *mask, value: *value })
                    }
                    _ => None,
                }
            }
            Source::Payload(NETWORK, offset, length) => {
                let family = self.family?;
                if *length != u32::from(family.bits()) / 8 {
                    return None;
                }
                let (first, mask) = (big(value)?, big(mask)?);
                let all = u128::MAX >> (128 - u32::from(family.bits()));
                let free = all & !mask;
                // Only masks that are a prefix are a range.
                if free & free.wrapping_add(1) != 0 || first & free != 0 {
                    return None;
                }
                self.address(*offset, Ranges::range(first, first | free), negated)
            }
            _ => None,
        }
    }

    /// Whether a condition lets no protocol past but some of these.
    pub(super) fn is_only(&self, protocols: &Ranges) -> bool {
        self.steps.iter().any(|step| match step {
            Step::Test(Test::Is { field: Field::Protocol, negated: false, set, .. }) => {
                set.is_within(protocols)
            }
            _ => false,
        })
    }

    fn address(&self, offset: u32, set: Ranges, negated: bool) -> Option<Test> {
        let side = match (self.family?, offset) {
            (Family::V4, 12) | (Family::V6, 8) => Side::Source,
            (Family::V4, 16) | (Family::V6, 24) => Side::Destination,
            _ => return None,
        };
        let (field, family) = (Field::address(side), self.family);
        Some(Test::Is { field, negated, set, family, socket: false })
    }

    /// A register holds one of these, or none of them.
    pub(super) fn among(
        &mut self,
        held: &Held,
        spans: &[Span<'_>],
        negated: bool,
        around: Around<'_>,
    ) -> Option<Vec<Test>> {
        if held.bits.is_some() {
            return None;
        }
        let exact = || exact(spans);
        let numbers = |ordered: bool| -> Option<Ranges> {
            if ordered {
                return spans.iter().map(|(a, b)| Some((big(a)?, big(b)?))).collect();
            }
            let one = |bytes: &[u8]| host(bytes).map(u128::from);
            exact()?.into_iter().map(|bytes| Some((one(bytes)?, one(bytes)?))).collect()
        };
        let test = match &held.what {
            Source::Meta(key @ (UID | GID)) => {
                let field = if *key == UID { Field::Uid } else { Field::Gid };
                let set = numbers(held.swapped)?;
                Test::Is { field, negated, set, family: None, socket: true }
            }
            Source::Meta(MARK) | Source::Ct(CT_MARK) => {
                let value = if held.swapped { return None } else { host(exact()?.first()?)? };
                let connection = held.what == Source::Ct(CT_MARK);
                let mark = Masked::exact(value);
                (spans.len() == 1).then_some(Test::Mark { connection, negated, mark })?
            }
            Source::Meta(key @ (IN_NAME | OUT_NAME | IN | OUT)) => {
                let way = if matches!(*key, IN_NAME | IN) { Way::In } else { Way::Out };
                let name = |bytes: &&[u8]| match *key {
                    IN | OUT => around.interfaces.get(&host(bytes)?)?.parse().ok(),
                    _ => interface(bytes),
                };
                let names =
                    exact()?.iter().map(name).collect::<Option<Arc<[InterfacePattern]>>>()?;
                Test::Interface { way, negated, names }
            }
            Source::Meta(key @ (FAMILY | PROTOCOL)) => {
                let number = |bytes: &&[u8]| match (*key, *bytes) {
                    (FAMILY, [2]) | (PROTOCOL, [8, 0]) => Some(Family::V4),
                    (FAMILY, [10]) | (PROTOCOL, [0x86, 0xdd]) => Some(Family::V6),
                    _ => None,
                };
                let named = exact()?.iter().map(number).collect::<Option<Vec<Family>>>()?;
                let wanted = |family: &Family| named.contains(family) != negated;
                let left: Vec<Family> = Family::ALL.into_iter().filter(wanted).collect();
                match left[..] {
                    [family] => {
                        self.family = Some(family);
                        Test::Family(family)
                    }
                    [] => return None,
                    _ => return Some(Vec::new()),
                }
            }
            Source::Meta(L4) => is(Field::Protocol, negated, numbers(true)?),
            Source::Ct(CT_STATE) => {
                let one = |bytes: &&[u8]| states(host(bytes)?);
                // A packet has one state.
                let mut all = exact()?.into_iter();
                let states = all.try_fold(States(0), |all, bytes| Some(all.or(one(&bytes)?)))?;
                Test::State { negated, states }
            }
            Source::Ct(CT_DIRECTION) => match exact()?[..] {
                [[0]] => Test::Original { negated },
                [[1]] => Test::Original { negated: !negated },
                _ => return None,
            },
            // NFT_FIB_RESULT_ADDRTYPE; NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR
            Source::Fib(3, flags @ (1 | 2)) => {
                let side = if *flags == 1 { Side::Source } else { Side::Destination };
                let one = |bytes: &[u8]| AddressTypes::from_number(host(bytes)?);
                let mut types = exact()?.into_iter().map(one);
                let first = types.next()??;
                let types = types.try_fold(first, |all, one| Some(all.or(one?)))?;
                Test::address_type(side, negated, types)
            }
            // NFT_FIB_RESULT_OIF; NFTA_FIB_F_SADDR, NFTA_FIB_F_PRESENT
            Source::Fib(1, flags) if flags & 0x33 == 0x21 => {
                let exists = match exact()?[..] {
                    [[0] | [0, 0, 0, 0]] => false,
                    [bytes] if bytes == [1] || host(bytes) == Some(1) => true,
                    _ => return None,
                };
                // NFTA_FIB_F_MARK, NFTA_FIB_F_IIF
                let (mark, loose) = (flags & 4 != 0, flags & 8 == 0);
                let negated = negated == exists;
                Test::ReturnRoute(ReturnRoute { negated, mark, loose, own: false })
            }
            Source::Original(key) => {
                let (family, field) = match *key {
                    SOURCE_V4 => (Some(Family::V4), Field::Source),
                    DESTINATION_V4 => (Some(Family::V4), Field::Destination),
                    SOURCE_V6 => (Some(Family::V6), Field::Source),
                    DESTINATION_V6 => (Some(Family::V6), Field::Destination),
                    SOURCE_PORT => (None, Field::SourcePort),
                    DESTINATION_PORT => (None, Field::Port),
                    _ => return None,
                };
                let asked = u32::try_from(spans.first()?.0.len()).ok()?;
                let missing = u32::try_from(held.length()?).ok()?.checked_sub(asked)?;
                if missing > 0 && family.is_none() {
                    return None;
                }
                Test::OriginalEnd { field, negated, set: beginnings(spans, missing)?, family }
            }
            Source::Extension(number) => {
                Test::Extension { negated: false, number: u8::try_from(*number).ok()? }
            }
            Source::Meta(PACKET_TYPE) => match exact()?[..] {
                [[0]] => Test::ForThisHost { negated },
                ref all if !all.is_empty() && all.iter().all(|one| matches!(one, [1 | 2])) => {
                    Test::ForThisHost { negated: !negated }
                }
                _ => return None,
            },
            Source::Payload(NETWORK, offset @ (6 | 9), 1) => match (self.family?, offset) {
                (Family::V4, 9) | (Family::V6, 6) => is(Field::Protocol, negated, numbers(true)?),
                _ => return None,
            },
            Source::Payload(NETWORK, offset, length) => {
                let missing = (u32::from(self.family?.bits()) / 8).checked_sub(*length)?;
                self.address(*offset, beginnings(spans, missing)?, negated)?
            }
            // The first byte of a header is a type where the protocol is ICMP, as has been asked.
            Source::Payload(TRANSPORT, 0, 1) if self.is_only(&Protocol::icmp()) => {
                Test::Icmp { negated, types: numbers(true)? }
            }
            Source::Payload(TRANSPORT, offset @ (0 | 2), 2) => {
                let side = if *offset == 0 { Side::Source } else { Side::Destination };
                let set = numbers(true)?;
                if self.is_only(&Protocol::with_ports()) {
                    ports(side, negated, set)
                } else {
                    Test::AtPort { side, negated, set }
                }
            }
            _ => return None,
        };
        Some(vec![test])
    }
}

/// Numbers in network byte order, of which so many bytes at the end are missing: any that begin so.
fn beginnings(spans: &[Span<'_>], missing: u32) -> Option<Ranges> {
    let shift = |n: u128| n.checked_shl(missing * 8).unwrap_or(0);
    let rest = u128::MAX.checked_shl(missing * 8).map_or(u128::MAX, |kept| !kept);
    spans.iter().map(|(a, b)| Some((shift(big(a)?), shift(big(b)?) | rest))).collect()
}

/// Values, where each stands alone: what is in the machine's byte order has no order here.
fn exact<'s>(spans: &[Span<'s>]) -> Option<Vec<&'s [u8]>> {
    spans.iter().map(|(first, last)| (first == last).then_some(*first)).collect()
}

/// Both of two conditions on the same field as one, if both are ranges.
fn both(one: &Test, other: &Test) -> Option<Test> {
    let (
        Test::Is { field, negated: false, set, family, socket },
        Test::Is { field: f, negated: false, set: s, family: g, socket: t },
    ) = (one, other)
    else {
        return None;
    };
    let same = (field, family, socket) == (f, g, t);
    same.then(|| Test::Is {
        field: *field,
        negated: false,
        set: set.and(s),
        family: *family,
        socket: *socket,
    })
}

/// Bits of `NF_CT_STATE_*` as states.
fn states(mask: u32) -> Option<States> {
    let known = [
        (1, States::INVALID),
        (2, States::ESTABLISHED),
        (4, States::RELATED),
        (8, States::NEW),
        (64, States::UNTRACKED),
    ];
    of_bits(mask, &known)
}

/// States by `IPS_SRC_NAT` and `IPS_DST_NAT` (`enum ip_conntrack_status`).
fn translated(mask: u32) -> Option<States> {
    of_bits(mask, &[(16, States::SNAT), (32, States::DNAT)])
}

fn of_bits(mask: u32, known: &[(u32, States)]) -> Option<States> {
    let all = known.iter().fold(0, |all, (bit, _)| all | bit);
    let found = known.iter().filter(|(bit, _)| mask & bit != 0);
    (mask & !all == 0).then(|| found.fold(States(0), |all, (_, state)| all.or(*state)))
}

/// A number in network byte order.
fn big(bytes: &[u8]) -> Option<u128> {
    (bytes.len() <= 16).then(|| bytes.iter().fold(0, |n, byte| n << 8 | u128::from(*byte)))
}

/// A name with its zeros, or the beginning of names.
fn interface(bytes: &[u8]) -> Option<InterfacePattern> {
    const IFNAMSIZ: usize = 16;
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    let mut name = std::str::from_utf8(bytes.get(..end)?).ok()?.to_owned();
    if bytes.len() < IFNAMSIZ {
        name.push('+');
    }
    name.parse().ok()
}
