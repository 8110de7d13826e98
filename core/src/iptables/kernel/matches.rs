//! The data of matches, by name and revision (`linux/netfilter/xt_*.h`).

use super::{Bytes, Unknown};
use crate::iptables::parse::COMMENT;
use crate::ruleset::{ConnState, Masked, Match, Owner, Side};
use crate::value::{Gid, Port, PortRange, Uid};

/// What a match asks.
pub(super) fn read(name: &str, revision: u8, data: Bytes<'_>) -> Result<Vec<Match>, Unknown> {
    match (name, revision) {
        ("tcp", 0) => {
            // Options and flags of TCP, and their inversions.
            if data.u8(8)? != 0 || data.u8(9)? != 0 || data.u8(10)? != 0 {
                return Err(Unknown::feature("tcp with flags or options"));
            }
            ports(data, data.u8(11)?)
        }
        ("udp", 0) => ports(data, data.u8(8)?),
        ("multiport", 1) => multiport(data).map(|m| vec![m]),
        ("owner", 1) => owner(data).map(|m| vec![m]),
        ("conntrack", 3) => conntrack(data).map(|m| vec![m]),
        ("mark", 1) => {
            let (mark, negated) = mark(data)?;
            Ok(vec![Match::Mark { negated, mark }])
        }
        ("connmark", 1) => {
            let (mark, negated) = mark(data)?;
            Ok(vec![Match::Connmark { negated, mark }])
        }
        ("comment", 0) if data.text(0, 256)? == COMMENT => Ok(vec![Match::Ours]),
        _ => Err(Unknown::feature(format!("-m {name}, revision {revision}"))),
    }
}

/// `struct xt_tcp` and `struct xt_udp` begin alike. A match that asks nothing is not what Millrace
/// writes, and could not be told from none at all.
fn ports(data: Bytes<'_>, inverted: u8) -> Result<Vec<Match>, Unknown> {
    let mut found = Vec::new();
    for (at, side, bit) in [(0, Side::Source, 1), (4, Side::Destination, 2)] {
        let (first, last) = (data.u16(at)?, data.u16(at + 2)?);
        let negated = inverted & bit != 0;
        if negated || (first, last) != (0, u16::MAX) {
            found.push(Match::Port { side, negated, ports: range(first, last)? });
        }
    }
    if inverted & !3 != 0 || found.is_empty() {
        return Err(Unknown::feature("tcp or udp without ports"));
    }
    Ok(found)
}

fn range(first: u16, last: u16) -> Result<PortRange, Unknown> {
    PortRange::new(Port::new(first), Port::new(last))
        .ok_or_else(|| Unknown::feature(format!("ports {first}:{last}")))
}

/// `struct xt_multiport_v1`
fn multiport(data: Bytes<'_>) -> Result<Match, Unknown> {
    const DESTINATION: u8 = 1;
    const MOST: usize = 15;
    let (kind, count) = (data.u8(0)?, usize::from(data.u8(1)?));
    if kind != DESTINATION || count > MOST {
        return Err(Unknown::feature("multiport of other than destination ports"));
    }
    let mut ports = Vec::new();
    let mut index = 0;
    while index < count {
        let first = data.u16(2 + 2 * index)?;
        // The first port of a range says so; its last one is behind it.
        let is_range = data.u8(2 + 2 * MOST + index)? != 0;
        index += usize::from(is_range);
        let last =
            if index < count { data.u16(2 + 2 * index)? } else { return Err(Unknown::Chains) };
        ports.push(range(first, last)?);
        index += 1;
    }
    let negated = data.u8(2 + 3 * MOST)? != 0;
    Ok(Match::DestinationPorts { negated, ports })
}

/// `struct xt_owner_match_info`
fn owner(data: Bytes<'_>) -> Result<Match, Unknown> {
    const UID: u8 = 1;
    const GID: u8 = 2;
    let (asked, inverted) = (data.u8(16)?, data.u8(17)?);
    let one = |at: usize| -> Result<u32, Unknown> {
        let (first, last) = (data.u32(at)?, data.u32(at + 4)?);
        if first == last { Ok(first) } else { Err(Unknown::feature("a range of owners")) }
    };
    let bad = || Unknown::feature("an owner without a number");
    let owner = match asked {
        UID => Owner::Uid(Uid::new(one(0)?).ok_or_else(bad)?),
        GID => Owner::Gid(Gid::new(one(8)?).ok_or_else(bad)?),
        other => return Err(Unknown::feature(format!("owner with flags {other:#x}"))),
    };
    Ok(Match::Owner { negated: inverted & asked != 0, owner })
}

/// `struct xt_conntrack_mtinfo3`
fn conntrack(data: Bytes<'_>) -> Result<Match, Unknown> {
    const STATE: u16 = 1;
    // XT_CONNTRACK_STATE_INVALID, and XT_CONNTRACK_STATE_BIT() of each ctinfo.
    const STATES: [(u16, ConnState); 4] = [
        (1, ConnState::Invalid),
        (2, ConnState::Established),
        (4, ConnState::Related),
        (8, ConnState::New),
    ];
    let (asked, inverted, mask) = (data.u16(146)?, data.u16(148)?, data.u16(150)?);
    if asked != STATE || inverted != 0 || mask & !15 != 0 {
        return Err(Unknown::feature("conntrack of other than the state"));
    }
    let states = STATES.iter().filter(|(bit, _)| mask & bit != 0).map(|(_, state)| *state);
    let mut states: Vec<ConnState> = states.collect();
    states.sort();
    Ok(Match::ConnState(states))
}

/// `struct xt_mark_mtinfo1`, `struct xt_connmark_mtinfo1`
fn mark(data: Bytes<'_>) -> Result<(Masked, bool), Unknown> {
    Ok((Masked { value: data.u32(0)?, mask: data.u32(4)? }, data.u8(8)? != 0))
}
