//! `struct ipt_entry` and `struct ip6t_entry`: a rule, or the head of a chain.

use std::net::IpAddr;

use super::left_out::Left;
use super::{Bytes, Unknown, matches, targets};
use crate::iptables::Counters;
use crate::ruleset::{Match, Protocol, Side, Target};
use crate::value::{Cidr, Family};

/// An entry of a table.
#[derive(Clone, Debug)]
pub(super) struct Entry<'b> {
    /// Where it is in the table.
    pub(super) offset: u32,
    /// Packets and bytes that matched it (`struct xt_counters`).
    pub(super) counters: Counters,
    /// Conditions that must all hold; none where every packet meets it.
    pub(super) matches: Vec<Match>,
    /// What it does with a packet, or the name of the chain that starts here.
    pub(super) verdict: EntryTarget<'b>,
}

/// The target of an entry.
#[derive(Clone, Debug)]
pub(super) enum EntryTarget<'b> {
    /// A target that is whole in itself.
    Rule(Target),
    /// The chain whose first rule is at this offset.
    Jump(u32),
    /// No rule: the chain with this name starts behind it.
    Head(&'b str),
}

/// Where the fields are that differ between the families.
pub(super) struct Layout {
    /// Bytes of an address, 4 or 16.
    address: usize,
    /// Offset of `iniface`; the addresses and their masks are in front of it.
    interfaces: usize,
    /// Offset of `flags`; `invflags` is behind it.
    flags: usize,
    /// The flag that says that the protocol counts; in IPv4 it always does.
    protocol_flag: u8,
    /// Offset of `target_offset`; `next_offset` is behind it.
    pub(super) offsets: usize,
    counters: usize,
    /// Bytes of the whole struct.
    pub(super) size: usize,
}

pub(super) const fn layout(family: Family) -> Layout {
    match family {
        Family::V4 => Layout {
            address: 4,
            interfaces: 16,
            flags: 82,
            protocol_flag: 0,
            offsets: 88,
            counters: 96,
            size: 112,
        },
        Family::V6 => Layout {
            address: 16,
            interfaces: 64,
            flags: 131,
            protocol_flag: 1,
            offsets: 140,
            counters: 152,
            size: 168,
        },
    }
}

/// Bytes of `struct xt_entry_match` and `struct xt_entry_target` in front of their data.
pub(super) const HEADER: usize = 32;
/// Bytes of an interface name, and of its mask.
const IFNAMSIZ: usize = 16;
/// Bits of `invflags`: the same in both families.
const NOT_IN: u8 = 0x01;
const NOT_OUT: u8 = 0x02;
const NOT_SOURCE: u8 = 0x08;
const NOT_DESTINATION: u8 = 0x10;

/// All entries of a table.
pub(super) fn walk(family: Family, table: &[u8]) -> Result<Vec<Entry<'_>>, Unknown> {
    let mut entries = Vec::new();
    let mut at = 0;
    while at < table.len() {
        let bytes = Bytes(table).from(at)?;
        let next = usize::from(bytes.u16(layout(family).offsets + 2)?);
        if next < layout(family).size {
            return Err(Unknown::Chains);
        }
        let offset = u32::try_from(at).map_err(|_e| Unknown::Chains)?;
        entries.push(entry(family, offset, Bytes(bytes.slice(0, next)?))?);
        at += next;
    }
    Ok(entries)
}

fn entry(family: Family, offset: u32, bytes: Bytes<'_>) -> Result<Entry<'_>, Unknown> {
    let layout = layout(family);
    let counters =
        Counters { packets: bytes.u64(layout.counters)?, bytes: bytes.u64(layout.counters + 8)? };
    let target_at = usize::from(bytes.u16(layout.offsets)?);
    let mut found = header(family, &layout, bytes)?;
    let mut at = layout.size;
    while at < target_at {
        let extension = bytes.from(at)?;
        let size = usize::from(extension.u16(0)?);
        if size < HEADER {
            return Err(Unknown::Chains);
        }
        let data = extension.slice(HEADER, size - HEADER)?;
        found.extend(matches::read(extension.text(2, 29)?, extension.u8(31)?, data)?);
        at += size;
    }
    let target = bytes.from(target_at)?;
    let (name, revision) = (target.text(2, 29)?, target.u8(31)?);
    let data = target.from(HEADER)?;
    let verdict = match name {
        "" => standard(data)?,
        "ERROR" => EntryTarget::Head(data.text(0, 30)?),
        _ => EntryTarget::Rule(targets::read(family, name, revision, data.0)?),
    };
    Ok(Entry { offset, counters, matches: found, verdict })
}

/// The verdict of a standard target: an offset, or one less than the negative of the verdict of
/// `linux/netfilter.h`.
fn standard(data: Bytes<'_>) -> Result<EntryTarget<'static>, Unknown> {
    let verdict = data.u32(0)?.cast_signed();
    Ok(match verdict {
        -1 => EntryTarget::Rule(Target::Drop),
        -2 => EntryTarget::Rule(Target::Accept),
        // XT_RETURN
        -5 => EntryTarget::Rule(Target::Return),
        _ => EntryTarget::Jump(
            u32::try_from(verdict).map_err(|_e| Unknown::feature(format!("verdict {verdict}")))?,
        ),
    })
}

/// What `struct ipt_ip` or `struct ip6t_ip6` asks.
fn header(family: Family, layout: &Layout, bytes: Bytes<'_>) -> Result<Vec<Match>, Unknown> {
    let (flags, inverted) = (bytes.u8(layout.flags)?, bytes.u8(layout.flags + 1)?);
    if flags & !layout.protocol_flag != 0 {
        return Err(Unknown::feature(format!("flags {flags:#x} of an entry")));
    }
    if inverted & !(NOT_IN | NOT_OUT | NOT_SOURCE | NOT_DESTINATION) != 0 {
        return Err(Unknown::feature(format!("inverted flags {inverted:#x} of an entry")));
    }
    let not = |bit: u8| inverted & bit != 0;
    let mut found = Vec::new();
    for (index, side, bit) in
        [(0, Side::Source, NOT_SOURCE), (1, Side::Destination, NOT_DESTINATION)]
    {
        let address = bytes.address(family, index * layout.address)?;
        let mask = bytes.address(family, (index + 2) * layout.address)?;
        let length = length(mask).ok_or_else(|| Unknown::feature(format!("netmask {mask}")))?;
        if length > 0 || not(bit) {
            let cidr = Cidr::new(address, length).ok_or(Unknown::Chains)?;
            found.push(Match::Address { side, negated: not(bit), cidr });
        }
    }
    let (way_in, way_out) = (layout.interfaces, layout.interfaces + IFNAMSIZ);
    match (interface(bytes, way_in)?, not(NOT_IN)) {
        (Some(name), negated) => found.push(Match::InInterface { negated, name: known(&name)? }),
        (None, false) => {}
        (None, true) => return Err(Unknown::feature("! -i of every interface")),
    }
    match (interface(bytes, way_out)?, not(NOT_OUT)) {
        (Some(name), negated) => found.push(Match::OutInterface { negated, name: known(&name)? }),
        (None, false) => {}
        (None, true) => return Err(Unknown::feature("! -o of every interface")),
    }
    match bytes.u16(layout.interfaces + 4 * IFNAMSIZ)? {
        0 => {}
        6 => found.push(Match::Protocol(Protocol::Tcp)),
        17 => found.push(Match::Protocol(Protocol::Udp)),
        other => return Err(Unknown::feature(format!("-p {other}"))),
    }
    Ok(found)
}

/// Interfaces of which an entry asks for none.
pub(super) fn out_of_all_interfaces(
    layout: &Layout,
    bytes: Bytes<'_>,
) -> Result<Vec<Left>, Unknown> {
    let inverted = bytes.u8(layout.flags + 1)?;
    let mut found = Vec::new();
    for (at, bit, option) in [(0, NOT_IN, "! -i +"), (IFNAMSIZ, NOT_OUT, "! -o +")] {
        let mask_at = layout.interfaces + at + 2 * IFNAMSIZ;
        if inverted & bit != 0 && bytes.is_zero(mask_at, IFNAMSIZ)? {
            found.push((None, option));
        }
    }
    Ok(found)
}

fn known<T: std::str::FromStr>(text: &str) -> Result<T, Unknown> {
    text.parse().map_err(|_e| Unknown::feature(text))
}

/// The number of leading ones of a mask; none when there are others.
fn length(mask: IpAddr) -> Option<u8> {
    let (ones, all) = match mask {
        IpAddr::V4(mask) => (mask.to_bits().leading_ones(), mask.to_bits().count_ones()),
        IpAddr::V6(mask) => (mask.to_bits().leading_ones(), mask.to_bits().count_ones()),
    };
    if ones == all { u8::try_from(ones).ok() } else { None }
}

/// An interface as iptables takes it: its mask covers the terminating zero unless it is the
/// beginning of a name.
fn interface(bytes: Bytes<'_>, at: usize) -> Result<Option<String>, Unknown> {
    let name = bytes.text(at, IFNAMSIZ)?;
    let mask = bytes.slice(at + 2 * IFNAMSIZ, IFNAMSIZ)?;
    let covered = mask.iter().take_while(|byte| **byte == 0xff).count();
    if mask.iter().skip(covered).any(|byte| *byte != 0) {
        return Err(Unknown::feature(format!("the mask of interface {name}")));
    }
    match covered {
        0 => Ok(None),
        _ if covered == name.len() + 1 => Ok(Some(name.to_owned())),
        _ if covered == name.len() => Ok(Some(format!("{name}+"))),
        _ => Err(Unknown::feature(format!("the mask of interface {name}"))),
    }
}
