//! The data of matches, by name and revision (`linux/netfilter/xt_*.h`).

use super::{Bytes, Extension, Unknown, Writer};
use crate::iptables::parse::COMMENT;
use crate::ruleset::{ConnState, Masked, Match, Owner, Protocol, Side};
use crate::value::{Gid, Port, PortRange, Uid, UidRange};

/// `XT_MULTIPORT_DESTINATION`
const DESTINATION: u8 = 1;
/// How many ports `multiport` has room for, of which a range takes two (kernel
/// `include/uapi/linux/netfilter/xt_multiport.h`, v6.18, `XT_MULTI_PORTS`).
pub const MOST_PORTS: usize = 15;
/// `XT_OWNER_UID`, `XT_OWNER_GID`
const UID: u8 = 1;
const GID: u8 = 2;
/// `XT_CONNTRACK_STATE`
const STATE: u16 = 1;
/// `XT_CONNTRACK_STATE_ALIAS`: it was written as `-m state`.
const ALIAS: u16 = 0x2000;
/// `XT_CONNTRACK_STATE_INVALID`, and `XT_CONNTRACK_STATE_BIT()` of each ctinfo.
const STATES: [(u16, ConnState); 4] = [
    (1, ConnState::Invalid),
    (2, ConnState::Established),
    (4, ConnState::Related),
    (8, ConnState::New),
];

/// `XT_ADDRTYPE_LOCAL`, `XT_ADDRTYPE_INVERT_SOURCE`, `XT_ADDRTYPE_INVERT_DEST` (kernel
/// `include/uapi/linux/netfilter/xt_addrtype.h`, v6.18).
const LOCAL: u16 = 4;
const NOT_SOURCE: u32 = 1;
const NOT_DESTINATION: u32 = 2;

/// `XT_TCP_INV_FLAGS`; FIN, SYN, RST and ACK; SYN (RFC 9293 section 3.1).
const NOT_FLAGS: u8 = 4;
const FLAGS: u8 = 0x17;
const SYN: u8 = 2;

/// What a match asks.
///
/// # Errors
/// When it is nothing that Millrace writes.
pub fn read(name: &str, revision: u8, data: &[u8]) -> Result<Vec<Match>, Unknown> {
    let data = Bytes(data);
    match (name, revision) {
        ("tcp", 0) => {
            // An option, the flags that are asked for, those that are to be set, and the inversions.
            let inverted = data.u8(11)?;
            let flags = match (data.u8(8)?, data.u8(9)?, data.u8(10)?) {
                (0, 0, 0) if inverted & NOT_FLAGS == 0 => None,
                (0, FLAGS, SYN) => Some(Match::Syn { negated: inverted & NOT_FLAGS != 0 }),
                _ => return Err(Unknown::feature("tcp with flags or options")),
            };
            let found = ports(data, inverted & !NOT_FLAGS)?;
            Ok(asking(found.into_iter().chain(flags).collect(), Protocol::Tcp))
        }
        ("udp", 0) => Ok(asking(ports(data, data.u8(8)?)?, Protocol::Udp)),
        ("multiport", 1) => multiport(data).map(|m| vec![m]),
        ("owner", 1) => owner(data).map(|m| vec![m]),
        ("addrtype", 1) => addrtype(data),
        ("conntrack", 3) => conntrack(data).map(|m| vec![m]),
        ("mark", 1) => {
            let (mark, negated) = mark(data)?;
            Ok(vec![Match::Mark { negated, mark }])
        }
        ("connmark", 1) => {
            let (mark, negated) = mark(data)?;
            Ok(vec![Match::Connmark { negated, mark }])
        }
        ("comment", 0) => match data.text(0, 256)? {
            COMMENT => Ok(vec![Match::Ours]),
            other => {
                let unknown = |_e| Unknown::feature(format!("-m comment --comment {other:?}"));
                Ok(vec![Match::Comment(other.parse().map_err(unknown)?)])
            }
        },
        _ => Err(Unknown::feature(format!("-m {name}, revision {revision}"))),
    }
}

/// A match that asks nothing is there all the same.
fn asking(found: Vec<Match>, protocol: Protocol) -> Vec<Match> {
    if found.is_empty() { vec![Match::Module(protocol)] } else { found }
}

/// `struct xt_tcp` and `struct xt_udp` begin alike.
fn ports(data: Bytes<'_>, inverted: u8) -> Result<Vec<Match>, Unknown> {
    let mut found = Vec::new();
    for (at, side, bit) in [(0, Side::Source, 1), (4, Side::Destination, 2)] {
        let (first, last) = (data.u16(at)?, data.u16(at + 2)?);
        let negated = inverted & bit != 0;
        if negated || (first, last) != (0, u16::MAX) {
            found.push(Match::Port { side, negated, ports: range(first, last)? });
        }
    }
    if inverted & !3 != 0 {
        return Err(Unknown::feature("tcp or udp with an option"));
    }
    Ok(found)
}

fn range(first: u16, last: u16) -> Result<PortRange, Unknown> {
    PortRange::new(Port::new(first), Port::new(last))
        .ok_or_else(|| Unknown::feature(format!("ports {first}:{last}")))
}

/// `struct xt_multiport_v1`
fn multiport(data: Bytes<'_>) -> Result<Match, Unknown> {
    let (kind, count) = (data.u8(0)?, usize::from(data.u8(1)?));
    if kind != DESTINATION || count > MOST_PORTS {
        return Err(Unknown::feature("multiport of other than destination ports"));
    }
    let mut ports = Vec::new();
    let mut index = 0;
    while index < count {
        let first = data.u16(2 + 2 * index)?;
        // The first port of a range says so; its last one is behind it.
        let is_range = data.u8(2 + 2 * MOST_PORTS + index)? != 0;
        index += usize::from(is_range);
        let last =
            if index < count { data.u16(2 + 2 * index)? } else { return Err(Unknown::Chains) };
        ports.push(range(first, last)?);
        index += 1;
    }
    let negated = data.u8(2 + 3 * MOST_PORTS)? != 0;
    Ok(Match::DestinationPorts { negated, ports })
}

/// `struct xt_owner_match_info`
fn owner(data: Bytes<'_>) -> Result<Match, Unknown> {
    let (asked, inverted) = (data.u8(16)?, data.u8(17)?);
    if asked == UID && data.u32(0)? != data.u32(4)? {
        let uid = |at: usize| Ok(Uid::new(data.u32(at)?));
        let range = uid(0)?.zip(uid(4)?).and_then(|(first, last)| UidRange::new(first, last));
        let range = range.ok_or_else(|| Unknown::feature("a range of owners"))?;
        return Ok(Match::Owner { negated: inverted & asked != 0, owner: Owner::Uids(range) });
    }
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

/// `struct xt_addrtype_info_v1`
fn addrtype(data: Bytes<'_>) -> Result<Vec<Match>, Unknown> {
    let flags = data.u32(4)?;
    let mut found = Vec::new();
    for (at, side, inverted) in
        [(0, Side::Source, NOT_SOURCE), (2, Side::Destination, NOT_DESTINATION)]
    {
        match data.u16(at)? {
            0 if flags & inverted == 0 => {}
            LOCAL => found.push(Match::LocalAddress { side, negated: flags & inverted != 0 }),
            _ => return Err(Unknown::feature("addrtype of other than local addresses")),
        }
    }
    if flags & !(NOT_SOURCE | NOT_DESTINATION) != 0 || found.is_empty() {
        return Err(Unknown::feature("addrtype of one interface"));
    }
    Ok(found)
}

/// `struct xt_conntrack_mtinfo3`
fn conntrack(data: Bytes<'_>) -> Result<Match, Unknown> {
    let (asked, inverted, mask) = (data.u16(146)?, data.u16(148)?, data.u16(150)?);
    if asked & !ALIAS != STATE || inverted != 0 || mask & !15 != 0 {
        return Err(Unknown::feature("conntrack of other than the state"));
    }
    let states = STATES.iter().filter(|(bit, _)| mask & bit != 0).map(|(_, state)| *state);
    let mut states: Vec<ConnState> = states.collect();
    states.sort();
    Ok(if asked & ALIAS == 0 { Match::ConnState(states) } else { Match::OldState(states) })
}

/// `struct xt_mark_mtinfo1`, `struct xt_connmark_mtinfo1`
fn mark(data: Bytes<'_>) -> Result<(Masked, bool), Unknown> {
    Ok((Masked { value: data.u32(0)?, mask: data.u32(4)? }, data.u8(8)? != 0))
}

/// What is asked of the ports of one side: whether they must be others, and which.
pub type Ports = Option<(bool, PortRange)>;

/// A match of ports (`struct xt_tcp`, `struct xt_udp`), and with TCP of `--syn`, negated or not.
pub fn write_ports(
    protocol: Protocol,
    source: Ports,
    destination: Ports,
    syn: Option<bool>,
) -> Extension {
    let (name, length, inverted_at) = match protocol {
        Protocol::Tcp => ("tcp", 12, 11),
        Protocol::Udp => ("udp", 10, 8),
    };
    let mut data = Writer::new(length);
    let mut inverted = 0;
    for (at, bit, asked) in [(0, 1, source), (4, 2, destination)] {
        let ends = |(_, ports): (bool, PortRange)| (ports.first().get(), ports.last().get());
        let (first, last) = asked.map_or((0, u16::MAX), ends);
        data = data.u16(at, first).u16(at + 2, last);
        inverted |= if asked.is_some_and(|(negated, _)| negated) { bit } else { 0 };
    }
    if let (Protocol::Tcp, Some(negated)) = (protocol, syn) {
        data = data.u8(9, FLAGS).u8(10, SYN);
        inverted |= if negated { NOT_FLAGS } else { 0 };
    }
    data.u8(inverted_at, inverted).called(name, 0)
}

/// The data of a match, in the revision that iptables 1.8 writes on every kernel since 4.18; none for
/// what is not asked by a match extension, for ports ([`write_ports`] has those of both sides), and for
/// groups that have no number yet.
///
/// # Errors
/// When there are more ports than a match has room for.
pub fn write(m: &Match) -> Result<Option<Extension>, TooManyPorts> {
    Ok(Some(match m {
        Match::DestinationPorts { negated, ports } => write_multiport(*negated, ports)?,
        Match::Owner { negated, owner: Owner::Uid(uid) } => {
            let data = Writer::new(20).u32(0, uid.get()).u32(4, uid.get());
            data.u8(16, UID).u8(17, if *negated { UID } else { 0 }).called("owner", 1)
        }
        Match::Owner { negated, owner: Owner::Uids(uids) } => {
            let data = Writer::new(20).u32(0, uids.first().get()).u32(4, uids.last().get());
            data.u8(16, UID).u8(17, if *negated { UID } else { 0 }).called("owner", 1)
        }
        Match::Owner { negated, owner: Owner::Gid(gid) } => {
            let data = Writer::new(20).u32(8, gid.get()).u32(12, gid.get());
            data.u8(16, GID).u8(17, if *negated { GID } else { 0 }).called("owner", 1)
        }
        Match::LocalAddress { side, negated } => {
            let (at, inverted) = match side {
                Side::Source => (0, NOT_SOURCE),
                Side::Destination => (2, NOT_DESTINATION),
            };
            let data = Writer::new(8).u16(at, LOCAL);
            data.u32(4, if *negated { inverted } else { 0 }).called("addrtype", 1)
        }
        Match::ConnState(states) | Match::OldState(states) => {
            let alias = if matches!(m, Match::OldState(_)) { ALIAS } else { 0 };
            let bit =
                |state: &ConnState| STATES.iter().find(|(_, s)| s == state).map_or(0, |s| s.0);
            let mask = states.iter().map(bit).fold(0, |mask, bit| mask | bit);
            Writer::new(164).u16(146, STATE | alias).u16(150, mask).called("conntrack", 3)
        }
        Match::Module(protocol) => write_ports(*protocol, None, None, None),
        Match::Mark { negated, mark } => write_mark("mark", *negated, *mark),
        Match::Connmark { negated, mark } => write_mark("connmark", *negated, *mark),
        Match::Ours => write_comment(COMMENT),
        Match::Comment(comment) => write_comment(comment.as_str()),
        _ => return Ok(None),
    }))
}

fn write_mark(name: &str, negated: bool, mark: Masked) -> Extension {
    let data = Writer::new(12).u32(0, mark.value).u32(4, mark.mask);
    data.u8(8, u8::from(negated)).called(name, 1)
}

fn write_comment(comment: &str) -> Extension {
    let bytes = comment.bytes().enumerate();
    bytes.fold(Writer::new(256), |data, (at, byte)| data.u8(at, byte)).called("comment", 0)
}

/// A rule asks for more ports than `multiport` can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a rule has room for 15 ports, of which a range takes two")]
pub struct TooManyPorts;

fn write_multiport(negated: bool, ports: &[PortRange]) -> Result<Extension, TooManyPorts> {
    let mut data = Writer::new(3 + 3 * MOST_PORTS);
    let mut index = 0;
    for range in ports {
        let is_range = range.first() != range.last();
        if index + usize::from(is_range) >= MOST_PORTS {
            return Err(TooManyPorts);
        }
        data = data.u16(2 + 2 * index, range.first().get());
        if is_range {
            data = data.u8(2 + 2 * MOST_PORTS + index, 1);
            index += 1;
            data = data.u16(2 + 2 * index, range.last().get());
        }
        index += 1;
    }
    let count = u8::try_from(index).map_err(|_e| TooManyPorts)?;
    let data = data.u8(0, DESTINATION).u8(1, count);
    Ok(data.u8(2 + 3 * MOST_PORTS, u8::from(negated)).called("multiport", 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(pairs: &[(u16, u16)]) -> Vec<PortRange> {
        let range = |(a, b): &(u16, u16)| PortRange::new(Port::new(*a), Port::new(*b)).unwrap();
        pairs.iter().map(range).collect()
    }

    #[test]
    fn what_is_written_is_read() {
        let mark = Masked { value: 5, mask: 15 };
        for m in [
            Match::DestinationPorts { negated: true, ports: ports(&[(80, 80), (1000, 2000)]) },
            Match::Owner { negated: false, owner: Owner::Uid(Uid::new(1337).unwrap()) },
            Match::Owner { negated: true, owner: Owner::Uids("106-108".parse().unwrap()) },
            Match::Owner { negated: true, owner: Owner::Gid(Gid::new(7).unwrap()) },
            Match::LocalAddress { side: Side::Source, negated: true },
            Match::LocalAddress { side: Side::Destination, negated: false },
            Match::ConnState(vec![ConnState::Related, ConnState::Established]),
            Match::Mark { negated: false, mark },
            Match::OldState(vec![ConnState::Established]),
            Match::Module(Protocol::Tcp),
            Match::Module(Protocol::Udp),
            Match::Connmark { negated: true, mark },
            Match::Ours,
            Match::Comment("any/text of: others".parse().unwrap()),
        ] {
            let Extension { name, revision, data } = write(&m).unwrap().unwrap();
            assert!(data.len().is_multiple_of(8), "{name}");
            assert_eq!(read(&name, revision, &data), Ok(vec![m]));
        }
    }

    #[test]
    fn ports_that_are_written_are_read() {
        let [one, range] = [ports(&[(80, 80)])[0], ports(&[(1000, 2000)])[0]];
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for (source, destination) in [
                (None, Some((false, one))),
                (Some((true, range)), None),
                (Some((false, one)), Some((true, range))),
            ] {
                let Extension { name, revision, data } =
                    write_ports(protocol, source, destination, None);
                assert!(data.len().is_multiple_of(8), "{name}");
                let asked = |side, ports: Ports| {
                    ports.map(|(negated, ports)| Match::Port { side, negated, ports })
                };
                let asked = [asked(Side::Source, source), asked(Side::Destination, destination)];
                let asked: Vec<Match> = asked.into_iter().flatten().collect();
                assert_eq!(read(&name, revision, &data), Ok(asked));
            }
        }
    }

    #[test]
    fn flags_that_are_written_are_read() {
        let port = Some((false, ports(&[(80, 80)])[0]));
        for (negated, to) in [(true, None), (false, None), (true, port)] {
            let Extension { name, revision, data } =
                write_ports(Protocol::Tcp, None, to, Some(negated));
            let to =
                to.map(|(negated, ports)| Match::Port { side: Side::Destination, negated, ports });
            let asked: Vec<Match> = to.into_iter().chain([Match::Syn { negated }]).collect();
            assert_eq!(read(&name, revision, &data), Ok(asked));
        }
    }

    #[test]
    fn a_range_takes_the_room_of_two_ports() {
        let write = |pairs: &[(u16, u16)]| {
            write(&Match::DestinationPorts { negated: false, ports: ports(pairs) })
        };
        assert!(write(&[(1, 1); 15]).is_ok());
        assert_eq!(write(&[(1, 1); 16]), Err(TooManyPorts));
        assert_eq!(write(&[(1, 2); 8]), Err(TooManyPorts));
    }
}
