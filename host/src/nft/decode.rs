//! Expressions as the kernel gives them (`linux/netfilter/nf_tables.h`,
//! `linux/netfilter/nf_tables_compat.h`).

use millrace_core::iptables::{Counters, Extension};
use millrace_core::nft::expr::{Comparison, CtField, Expr, Header, MetaField, NftVerdict, nfproto};
use millrace_core::nft::set::Set;
use millrace_core::ruleset::Side;
use millrace_core::value::Family;

use super::attributes::{
    ADDRESS_TYPE, BYTEORDER, COUNTER, CT, DESTINATION, EXTENSION, FIB, HTON, INVERTED, NAT,
    OUTSIDE, RANGE, REDIR, SOCKET, TPROXY, TRANSPARENT, WITHIN, address_of, base, ct_key, meta_key,
    operator,
};
use super::raw::Attributes;

/// `NFTA_EXPR_NAME`, `NFTA_EXPR_DATA`
const EXPRESSION: (u16, u16) = (1, 2);
/// `NFTA_DATA_VALUE`, `NFTA_DATA_VERDICT`
const DATA: (u16, u16) = (1, 2);
/// `NFTA_VERDICT_CODE`, `NFTA_VERDICT_CHAIN`
const VERDICT: (u16, u16) = (1, 2);
/// `NFTA_META_DREG`, `NFTA_META_KEY`, `NFTA_META_SREG`
const META: (u16, u16, u16) = (1, 2, 3);
/// `NFTA_PAYLOAD_DREG`, `NFTA_PAYLOAD_BASE`, `NFTA_PAYLOAD_OFFSET`, `NFTA_PAYLOAD_LEN`
const PAYLOAD: (u16, u16, u16, u16) = (1, 2, 3, 4);
/// `NFTA_PAYLOAD_SREG`, of one that writes
const PAYLOAD_SOURCE: u16 = 5;
/// `NFT_META_MARK`
const MARK: u32 = 3;
/// `NFTA_IMMEDIATE_DREG`, `NFTA_IMMEDIATE_DATA`
const IMMEDIATE: (u16, u16) = (1, 2);
/// `NFTA_BITWISE_SREG`, `NFTA_BITWISE_DREG`, `NFTA_BITWISE_MASK`, `NFTA_BITWISE_XOR`,
/// `NFTA_BITWISE_OP`
const BITWISE: (u16, u16, u16, u16, u16) = (1, 2, 4, 5, 6);
/// `NFTA_CMP_SREG`, `NFTA_CMP_OP`, `NFTA_CMP_DATA`
const CMP: (u16, u16, u16) = (1, 2, 3);
/// `NFTA_LOOKUP_SET`, `NFTA_LOOKUP_SREG`, `NFTA_LOOKUP_DREG`, `NFTA_LOOKUP_FLAGS`
const LOOKUP: (u16, u16, u16, u16) = (1, 2, 3, 5);
/// `NFT_REG_VERDICT`, `NFT_REG_1`
const VERDICT_REGISTER: u32 = 0;
const REGISTER: u32 = 1;
const SECOND: u32 = 2;

const METAS: [MetaField; 8] = [
    MetaField::Mark,
    MetaField::InInterface,
    MetaField::OutInterface,
    MetaField::Uid,
    MetaField::Gid,
    MetaField::Family,
    MetaField::Protocol,
    MetaField::Traced,
];

/// What an element of a list of expressions is called, and its attributes.
pub(super) fn named(element: Attributes<'_>) -> Option<(&str, Attributes<'_>)> {
    let data = element.nested(EXPRESSION.1).unwrap_or(Attributes(&[]));
    Some((element.text(EXPRESSION.0)?, data))
}

/// An expression; sets are found by their name. What is not understood is named.
pub(super) fn decode(
    element: Attributes<'_>,
    set: impl Fn(&str) -> Option<Set>,
) -> Result<Expr, String> {
    let Some((name, data)) = named(element) else { return Err("a nameless expression".to_owned()) };
    known(name, data, set).ok_or_else(|| format!("expression {name}"))
}

/// What a counter has seen.
pub(super) fn counters(element: Attributes<'_>) -> Option<Counters> {
    let (name, data) = named(element)?;
    let seen = || Some(Counters { bytes: data.long(COUNTER.0)?, packets: data.long(COUNTER.1)? });
    if name == "counter" { seen() } else { None }
}

/// Whether a packet can meet its end in an expression, or another destination, or is not tracked from
/// there on, and so not redirected.
pub(super) fn decides(element: Attributes<'_>) -> bool {
    let Some((name, data)) = named(element) else { return false };
    match name {
        "immediate" => {
            let code = data.nested(IMMEDIATE.1).and_then(|d| d.nested(DATA.1));
            // NF_DROP, NF_QUEUE
            let code = code.and_then(|verdict| verdict.number(VERDICT.0));
            code.is_some_and(|code| matches!(code & 0xff, 0 | 3) && code.cast_signed() >= 0)
        }
        "lookup" => data.number(LOOKUP.2) == Some(VERDICT_REGISTER),
        "redir" | "nat" | "tproxy" | "queue" | "reject" | "synproxy" | "target" | "notrack" => true,
        _ => false,
    }
}

/// The same where a packet has no rules of its protocol yet or any more, or is to meet them as another than
/// it was: its way, its mark or its headers are others from there on. What is done to a copy is not.
pub(super) fn changes(element: Attributes<'_>) -> bool {
    let Some((name, data)) = named(element) else { return false };
    match name {
        "fwd" => true,
        "meta" => data.number(META.2).is_some() && data.number(META.1) == Some(MARK),
        "payload" => data.number(PAYLOAD_SOURCE).is_some(),
        _ => decides(element),
    }
}

/// The chain that an expression jumps or goes to.
pub(super) fn goes_to(element: Attributes<'_>) -> Option<&str> {
    let (name, data) = named(element)?;
    let verdict = || data.nested(IMMEDIATE.1)?.nested(DATA.1)?.text(VERDICT.1);
    if name == "immediate" { verdict() } else { None }
}

fn known(name: &str, a: Attributes<'_>, set: impl Fn(&str) -> Option<Set>) -> Option<Expr> {
    let is = |kind, register: u32| a.number(kind) == Some(register);
    let value = |kind| Some(a.nested(kind)?.get(DATA.0)?.to_vec());
    match name {
        "meta" => {
            let key = a.number(META.1)?;
            let field = METAS.into_iter().find(|field| u32::from(meta_key(*field)) == key)?;
            if is(META.0, REGISTER) {
                return Some(Expr::LoadMeta(field));
            }
            is(META.2, REGISTER).then_some(Expr::StoreMeta(field))
        }
        "payload" => {
            let from = a.number(PAYLOAD.1)?;
            let headers = [Header::Network, Header::Transport];
            let header = headers.into_iter().find(|header| base(*header) == from)?;
            let (offset, length) = (a.number(PAYLOAD.2)?, a.number(PAYLOAD.3)?);
            is(PAYLOAD.0, REGISTER).then_some(Expr::LoadPayload { header, offset, length })
        }
        "immediate" if is(IMMEDIATE.0, VERDICT_REGISTER) => {
            verdict(a.nested(IMMEDIATE.1)?.nested(DATA.1)?).map(Expr::Verdict)
        }
        "immediate" if is(IMMEDIATE.0, SECOND) => Some(Expr::LoadSecond(value(IMMEDIATE.1)?)),
        "immediate" => {
            let data = value(IMMEDIATE.1)?;
            is(IMMEDIATE.0, REGISTER).then_some(Expr::Load(data))
        }
        "bitwise" => {
            let (mask, xor) = (value(BITWISE.2)?, value(BITWISE.3)?);
            let same = is(BITWISE.0, REGISTER) && is(BITWISE.1, REGISTER);
            // NFT_BITWISE_BOOL, or kernels that know no other.
            let boolean = a.number(BITWISE.4).is_none_or(|operation| operation == 0);
            if !same || !boolean {
                return None;
            }
            let keeps = xor.iter().all(|byte| *byte == 0);
            Some(if keeps { Expr::Mask(mask) } else { Expr::Edit { keep: mask, flip: xor } })
        }
        "cmp" => {
            let asked = a.number(CMP.1)?;
            let how = [Comparison::Eq, Comparison::Ne, Comparison::Ge, Comparison::Le]
                .into_iter()
                .find(|how| u32::from(operator(*how)) == asked)?;
            let data = value(CMP.2)?;
            is(CMP.0, REGISTER).then_some(Expr::Compare(how, data))
        }
        "lookup" => {
            let negated = a.number(LOOKUP.3).is_some_and(|flags| flags == INVERTED);
            let maps = a.get(LOOKUP.2).is_some();
            let set = set(a.text(LOOKUP.0)?)?;
            (!maps && is(LOOKUP.1, REGISTER)).then_some(Expr::Lookup { negated, set })
        }
        "byteorder" => {
            let same = is(BYTEORDER.0, REGISTER) && is(BYTEORDER.1, REGISTER);
            let all = is(BYTEORDER.2, HTON) && is(BYTEORDER.3, 4) && is(BYTEORDER.4, 4);
            (same && all).then_some(Expr::Swap)
        }
        "range" => {
            let negated = match a.number(RANGE.1)? {
                WITHIN => false,
                OUTSIDE => true,
                _ => return None,
            };
            let (first, last) = (value(RANGE.2)?, value(RANGE.3)?);
            is(RANGE.0, REGISTER).then_some(Expr::Range { negated, first, last })
        }
        "counter" => Some(Expr::Counter),
        "match" => extension(a).map(Expr::Match),
        "target" => extension(a).map(Expr::Target),
        "ct" => {
            let key = a.number(CT.1)?;
            let fields = [CtField::State, CtField::Mark, CtField::Zone];
            let field = fields.into_iter().find(|field| ct_key(*field) == key)?;
            if is(CT.0, REGISTER) {
                return Some(Expr::LoadCt(field));
            }
            is(CT.2, REGISTER).then_some(Expr::StoreCt(field))
        }
        "socket" => {
            let asked = a.number(SOCKET.0)? == TRANSPARENT;
            (asked && is(SOCKET.1, REGISTER)).then_some(Expr::LoadTransparent)
        }
        "fib" => {
            let flags = a.number(FIB.2)?;
            let side = [Side::Source, Side::Destination].into_iter();
            let side = side.into_iter().find(|side| address_of(*side) == flags)?;
            let plain = is(FIB.0, REGISTER) && is(FIB.1, ADDRESS_TYPE);
            plain.then_some(Expr::LoadAddressType(side))
        }
        "redir" => is(REDIR.0, REGISTER).then_some(Expr::Redirect),
        "nat" => {
            let family = a.number(NAT.1)?;
            let family = Family::ALL.into_iter().find(|f| u32::from(nfproto(*f)) == family)?;
            let one = |least, most, register| {
                is(least, register) && a.number(most).is_none_or(|most| most == register)
            };
            let has_port = a.get(NAT.3).is_some();
            // NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED
            let only = a.number(NAT.6).is_none_or(|flags| flags & !3 == 0);
            let plain = only
                && is(NAT.0, DESTINATION)
                && one(NAT.2, NAT.4, REGISTER)
                && (!has_port || one(NAT.3, NAT.5, SECOND));
            plain.then_some(Expr::Dnat { family, port: has_port })
        }
        "tproxy" => {
            let family = a.number(TPROXY.0)?;
            let family = Family::ALL.into_iter().find(|f| u32::from(nfproto(*f)) == family)?;
            is(TPROXY.1, REGISTER).then_some(Expr::Tproxy(family))
        }
        _ => None,
    }
}

fn verdict(a: Attributes<'_>) -> Option<NftVerdict> {
    // `NF_DROP`, `NF_ACCEPT`, `NFT_JUMP`, `NFT_RETURN`
    match a.number(VERDICT.0)?.cast_signed() {
        0 => Some(NftVerdict::Drop),
        1 => Some(NftVerdict::Accept),
        -3 => Some(NftVerdict::Jump(a.text(VERDICT.1)?.to_owned())),
        -5 => Some(NftVerdict::Return),
        _ => None,
    }
}

fn extension(a: Attributes<'_>) -> Option<Extension> {
    let revision = u8::try_from(a.number(EXTENSION.1)?).ok()?;
    let (name, data) = (a.text(EXTENSION.0)?.to_owned(), a.get(EXTENSION.2)?.to_vec());
    Some(Extension { name, revision, data })
}
