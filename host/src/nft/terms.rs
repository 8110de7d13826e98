//! What the kernel says of the rules and sets of whoever, with every register
//! (`linux/netfilter/nf_tables.h`).

use std::collections::BTreeMap;

use millrace_core::nft::listed::{Element, Ending, ListedSet, LogTo, Mapped, Order, Source, Term};
use millrace_core::nft::set::predecessor;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    NfTablesMessage, SetAttribute, SetElementList, SetElementMessage, SetMessage,
};

use super::decode::named;
use super::raw::{Attributes, kind};
use super::socket::{Connection, NftError};

/// `NFTA_SET_NAME`, `NFTA_SET_FLAGS`, `NFTA_SET_KEY_LEN`
const SET: (u16, u16, u16) = (2, 3, 5);
/// `NFT_SET_INTERVAL`, `NFT_SET_TIMEOUT`, `NFT_SET_EVAL`, `NFT_SET_OBJECT`
const INTERVAL: u32 = 4;
const CHANGES: u32 = 0x10 | 0x20 | 0x40;
/// `NFTA_SET_ELEM_LIST_ELEMENTS`
const ELEMENTS: u16 = 3;
/// `NFTA_SET_ELEM_KEY`, `NFTA_SET_ELEM_DATA`, `NFTA_SET_ELEM_FLAGS`, `NFTA_SET_ELEM_KEY_END`
const ELEMENT: (u16, u16, u16, u16) = (1, 2, 3, 10);
/// `NFTA_SET_ELEM_EXPR`, `NFTA_SET_ELEM_EXPRESSIONS`
const ELEMENT_EXPRESSIONS: (u16, u16) = (7, 11);
/// `NFT_SET_ELEM_INTERVAL_END`, `NFT_SET_ELEM_CATCHALL`
const END: u32 = 1;
const CATCHALL: u32 = 2;
/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`
const DATA: (u16, u16) = (1, 2);
/// `NFTA_VERDICT_CODE`, `NFTA_VERDICT_CHAIN`
const VERDICT: (u16, u16) = (1, 2);

/// The sets and maps of a table, by name.
pub(super) fn sets(
    family: NetfilterProtoFamily,
    table: &str,
    connection: &Connection,
) -> Result<BTreeMap<String, ListedSet>, NftError> {
    let ask = |request, kind, what| {
        let answers = connection.dump(family, request, what)?;
        let mut answers = answers.unwrap_or_default();
        answers.retain(|answer| answer.kind == kind);
        Ok::<_, NftError>(answers)
    };
    let mut sets = BTreeMap::new();
    let attributes = vec![SetAttribute::Table(table.to_owned())];
    let request = NfTablesMessage::GetSet(SetMessage { attributes });
    for answer in ask(request, kind::SET, "sets")? {
        let set = answer.attributes();
        let Some(name) = set.text(SET.0) else { continue };
        let attributes =
            vec![SetElementList::Table(table.to_owned()), SetElementList::Set(name.to_owned())];
        let request = NfTablesMessage::GetSetElement(SetElementMessage { attributes });
        let lists = ask(request, kind::ELEMENTS, "elements of sets")?;
        let elements = || lists.iter().flat_map(|list| list.attributes().list(ELEMENTS));
        let flags = set.number(SET.1).unwrap_or(0);
        let length = usize::try_from(set.number(SET.2).unwrap_or(0)).unwrap_or(0);
        let listed = ListedSet {
            length,
            changes: flags & CHANGES != 0 || elements().any(asks_more),
            elements: ranges(
                elements().filter_map(element).collect(),
                flags & INTERVAL != 0,
                length,
            ),
        };
        sets.insert(name.to_owned(), listed);
    }
    Ok(sets)
}

/// A key, the last one where the kernel names it, whether it ends a range, and what it leads to.
type Raw = (Option<Vec<u8>>, Option<Vec<u8>>, bool, Option<Mapped>);

fn element(element: Attributes<'_>) -> Option<Raw> {
    let value = |kind| Some(element.nested(kind)?.get(DATA.0)?.to_vec());
    let flags = element.number(ELEMENT.2).unwrap_or(0);
    let mapped = element.nested(ELEMENT.1).map(|data| match data.nested(DATA.1) {
        Some(verdict) => Mapped::Verdict(ending(verdict)),
        None => Mapped::Value(data.get(DATA.0).unwrap_or_default().to_vec()),
    });
    let key = if flags & CATCHALL != 0 { None } else { Some(value(ELEMENT.0)?) };
    Some((key, value(ELEMENT.3), flags & END != 0, mapped))
}

/// Whether an element does not only have a value: with a limit or a quota it matches some packets and
/// others not (`nft_set_elem_update_expr()`).
fn asks_more(element: Attributes<'_>) -> bool {
    let (one, several) = ELEMENT_EXPRESSIONS;
    let one = element.nested(one).into_iter();
    let mut all = one.chain(element.list(several));
    all.any(|expr| !matches!(named(expr), Some(("counter" | "last", _))))
}

/// Elements with both ends. What is no end begins a range, which goes on to the next begin or end; a
/// key of several values has its end with it.
fn ranges(elements: Vec<Raw>, intervals: bool, length: usize) -> Vec<Element> {
    let mut found = Vec::new();
    let mut edges = Vec::new();
    for (key, last, ends, mapped) in elements {
        match (key, last) {
            (None, _) => found.push(Element { first: None, last: Vec::new(), mapped }),
            (Some(first), Some(last)) => found.push(Element { first: Some(first), last, mapped }),
            (Some(first), None) if intervals => edges.push((first, !ends, mapped)),
            (Some(first), None) => {
                found.push(Element { last: first.clone(), first: Some(first), mapped });
            }
        }
    }
    // What ends somewhere ends before what begins there.
    edges.sort_by(|one, other| (&one.0, one.1).cmp(&(&other.0, other.1)));
    let mut open: Option<(Vec<u8>, Option<Mapped>)> = None;
    for (key, begins, mapped) in edges {
        if let (Some((first, mapped)), Some(last)) = (open.take(), predecessor(&key)) {
            found.push(Element { first: Some(first), last, mapped });
        }
        if begins {
            open = Some((key, mapped));
        }
    }
    if let Some((first, mapped)) = open {
        found.push(Element { first: Some(first), last: vec![u8::MAX; length], mapped });
    }
    found
}

fn ending(verdict: Attributes<'_>) -> Option<Ending> {
    let chain = || verdict.text(VERDICT.1).map(str::to_owned);
    // `NF_DROP`, `NF_ACCEPT`, `NFT_CONTINUE`, `NFT_JUMP`, `NFT_GOTO`, `NFT_RETURN`
    match verdict.number(VERDICT.0)?.cast_signed() {
        0 => Some(Ending::Drop),
        1 => Some(Ending::Accept),
        -1 => Some(Ending::Continue),
        -3 => Some(Ending::Jump(chain()?)),
        -4 => Some(Ending::Goto(chain()?)),
        -5 => Some(Ending::Return),
        _ => None,
    }
}

/// Expressions that let a rule go on or not, and change nothing of the packet.
const ASKING: [&str; 7] = ["connlimit", "dynset", "limit", "match", "meter", "osf", "quota"];
/// Expressions that fill a register, in this attribute.
const LOADING: [(&str, u16); 9] = [
    ("exthdr", 1),
    ("hash", 2),
    ("inner", 1),
    ("numgen", 1),
    ("osf", 1),
    ("rt", 1),
    ("socket", 2),
    ("tunnel", 2),
    ("xfrm", 1),
];

/// An expression. What is not understood is named.
pub(super) fn term(element: Attributes<'_>) -> Term {
    let Some((name, a)) = named(element) else {
        return Term::Does("a nameless expression".to_owned());
    };
    if let Some(term) = known(name, a) {
        return term;
    }
    let what = format!("expression {name}");
    let loads = LOADING.iter().find(|(loading, _)| *loading == name);
    if let Some(to) = loads.and_then(|(_, register)| a.number(*register)) {
        return Term::Load(to, Source::Other(what));
    }
    if ASKING.contains(&name) { Term::Asks(what) } else { Term::Does(what) }
}

/// A number of two bytes in network byte order.
fn short(a: Attributes<'_>, kind: u16) -> Option<u32> {
    Some(u16::from_be_bytes(a.get(kind)?.try_into().ok()?).into())
}

fn known(name: &str, a: Attributes<'_>) -> Option<Term> {
    let data = |kind| Some(a.nested(kind)?.get(DATA.0)?.to_vec());
    let n = |kind| a.number(kind);
    Some(match name {
        // NFTA_META_DREG, NFTA_META_KEY, NFTA_META_SREG
        "meta" => match (n(1), n(2)?, n(3)) {
            (Some(to), key, _) => Term::Load(to, Source::Meta(key)),
            (None, key, Some(from)) => Term::StoreMeta(key, from),
            _ => return None,
        },
        // NFTA_CT_DREG, NFTA_CT_KEY, NFTA_CT_DIRECTION, NFTA_CT_SREG
        "ct" => match (n(1), n(2)?, n(4)) {
            (Some(to), key, _) if a.get(3).is_none() => Term::Load(to, Source::Ct(key)),
            (Some(to), key, _) if a.get(3) == Some(&[0]) => Term::Load(to, Source::Original(key)),
            (Some(to), key, _) => {
                let what = format!("ct, key {key} of one way");
                Term::Load(to, Source::Other(what))
            }
            // `ct original zone set`
            (None, ..) if a.get(3).is_some() => {
                return Some(Term::Does("ct of one way".to_owned()));
            }
            (None, key, Some(from)) => Term::StoreCt(key, from),
            _ => return None,
        },
        // NFTA_PAYLOAD_DREG, _BASE, _OFFSET, _LEN
        "payload" => Term::Load(n(1)?, Source::Payload(n(2)?, n(3)?, n(4)?)),
        // NFTA_EXTHDR_DREG, _TYPE, _FLAGS, _OP: NFT_EXTHDR_OP_IPV6, not whether it is there alone.
        "exthdr" if n(6).unwrap_or(0) == 0 && n(5).unwrap_or(0) == 0 => {
            let kind = *a.get(2)?.first()?;
            Term::Load(n(1)?, Source::Extension(kind.into()))
        }
        // NFTA_FIB_DREG, _RESULT, _FLAGS
        "fib" => Term::Load(n(1)?, Source::Fib(n(2)?, n(3)?)),
        // NFTA_IMMEDIATE_DREG, _DATA
        "immediate" if n(1)? == 0 => Term::Verdict(ending(a.nested(2)?.nested(DATA.1)?)?),
        "immediate" => Term::Load(n(1)?, Source::Constant(data(2)?)),
        // NFTA_BITWISE_SREG, _DREG, _LEN, _MASK, _XOR, _OP
        "bitwise" => match (n(6).unwrap_or(0), data(4), data(5)) {
            (0, Some(mask), Some(flip)) => Term::Bits { from: n(1)?, to: n(2)?, mask, flip },
            _ => Term::Load(n(2)?, Source::Other("bits that are made of other ones".to_owned())),
        },
        // NFTA_BYTEORDER_SREG, _DREG
        "byteorder" => Term::Swap(n(1)?, n(2)?),
        // NFTA_CMP_SREG, _OP, _DATA
        "cmp" => {
            let order = match n(2)? {
                0 => Order::Eq,
                1 => Order::Ne,
                2 => Order::Lt,
                3 => Order::Le,
                4 => Order::Gt,
                5 => Order::Ge,
                _ => return None,
            };
            Term::Compare(n(1)?, order, data(3)?)
        }
        // NFTA_RANGE_SREG, _OP, _FROM_DATA, _TO_DATA
        "range" => {
            let (from, negated) = (n(1)?, n(2)? != 0);
            Term::Range { from, negated, first: data(3)?, last: data(4)? }
        }
        // NFTA_LOOKUP_SET, _SREG, _DREG, _FLAGS
        "lookup" => {
            let negated = n(5).is_some_and(|flags| flags & 1 != 0);
            Term::Lookup { from: n(2)?, negated, to: n(3), set: a.text(1)?.to_owned() }
        }
        // NFTA_NAT_TYPE, _FAMILY, _REG_ADDR_MIN, _REG_ADDR_MAX, _REG_PROTO_MIN, _REG_PROTO_MAX,
        // _FLAGS with NF_NAT_RANGE_NETMAP
        "nat" if n(7).is_none_or(|flags| flags & 0x40 == 0) => Term::Nat {
            source: n(1)? == 0,
            family: n(2)?,
            address: (n(3), n(4)),
            ports: (n(5), n(6)),
            flags: n(7).unwrap_or(0),
        },
        // NFTA_MASQ_FLAGS, _REG_PROTO_MIN, _MAX
        "masq" => Term::Masquerade((n(2), n(3)), n(1).unwrap_or(0)),
        // NFTA_REDIR_REG_PROTO_MIN, _MAX, _FLAGS
        "redir" => Term::Redirect((n(1), n(2)), n(3).unwrap_or(0)),
        // NFTA_TPROXY_FAMILY, _REG_ADDR, _REG_PORT
        "tproxy" => Term::Tproxy { family: n(1)?, address: n(2), port: n(3) },
        // NFTA_REJECT_TYPE, NFTA_REJECT_ICMP_CODE
        "reject" => {
            let code = a.get(2).and_then(|code| code.first()).copied();
            Term::Reject { kind: n(1)?, code: code.unwrap_or(0) }
        }
        "notrack" => Term::Notrack,
        // NFTA_LOG_GROUP, _PREFIX, _SNAPLEN, _QTHRESHOLD, _LEVEL, _FLAGS
        "log" => Term::Log(LogTo {
            prefix: a.text(2).unwrap_or_default().to_owned(),
            group: short(a, 1),
            snaplen: n(3).unwrap_or(0),
            threshold: short(a, 4).unwrap_or(0),
            level: n(5).filter(|level| *level != LogTo::WARN),
            flags: n(6).unwrap_or(0),
        }),
        "counter" | "last" => Term::Note,
        // NFTA_OBJREF_IMM_TYPE, NFT_OBJECT_COUNTER
        "objref" if n(1) == Some(1) => Term::Note,
        // NFT_OBJECT_CT_HELPER, NFT_OBJECT_CT_TIMEOUT, NFT_OBJECT_CT_EXPECT; NFTA_OBJREF_IMM_NAME
        "objref" if a.get(2).is_some() => {
            let what = match n(1)? {
                3 => "ct helper",
                7 => "ct timeout",
                9 => "ct expectation",
                _ => return None,
            };
            Term::Effect(format!("{what} set {}", a.text(2)?))
        }
        // NFTA_EXTHDR_OP with NFT_EXTHDR_OP_TCPOPT, NFTA_EXTHDR_SREG: an option of TCP is set.
        // NFTA_EXTHDR_TYPE, _OFFSET
        "exthdr" if n(6) == Some(1) && a.get(7).is_some() => {
            let option = a.get(2).and_then(|option| option.first()).copied()?;
            Term::StoreOption { option: option.into(), offset: n(3)?, from: n(7)? }
        }
        _ => return None,
    })
}
