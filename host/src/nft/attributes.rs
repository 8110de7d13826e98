//! Expressions to netlink attributes and back (`linux/netfilter/nf_tables.h`,
//! `linux/netfilter/nf_tables_compat.h`).

use millrace_core::iptables::{Counters, Extension};
use millrace_core::nft::expr::{
    Comparison, CtField, Expr, Header, MetaField, Verdict as CoreVerdict, nfproto,
};
use millrace_core::nft::set::Set;
use millrace_core::value::Family;
use netlink_packet_core::{DefaultNla, NLA_F_NESTED, Nla as _, NlaBuffer, NlasIterator};
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Lookup, Meta, MetaKey, Operator, Payload,
    Register, Verdict, VerdictAttribute,
};

/// The one register that is used.
const REGISTER: Register = Register::Reg1;

/// `NFTA_CT_DREG`, `NFTA_CT_KEY`, `NFTA_CT_SREG`
const CT: (u16, u16, u16) = (1, 2, 4);
/// `NFTA_REDIR_REG_PROTO_MIN`, `NFTA_REDIR_FLAGS`
const REDIR: (u16, u16) = (1, 3);
/// `NF_NAT_RANGE_PROTO_SPECIFIED`
const PORT_SPECIFIED: u32 = 2;
/// `NFTA_SOCKET_KEY`, `NFTA_SOCKET_DREG`
const SOCKET: (u16, u16) = (1, 2);
/// `NFT_SOCKET_TRANSPARENT`
const TRANSPARENT: u32 = 0;
/// `NFTA_TPROXY_FAMILY`, `NFTA_TPROXY_REG_PORT`
const TPROXY: (u16, u16) = (1, 3);
/// `NFTA_RANGE_SREG`, `NFTA_RANGE_OP`, `NFTA_RANGE_FROM_DATA`, `NFTA_RANGE_TO_DATA`
const RANGE: (u16, u16, u16, u16) = (1, 2, 3, 4);
/// `NFT_RANGE_EQ`, `NFT_RANGE_NEQ`
const WITHIN: u32 = 0;
const OUTSIDE: u32 = 1;
/// `NFTA_DATA_VALUE`
const DATA_VALUE: u16 = 1;
/// `NFTA_MATCH_NAME`, `NFTA_MATCH_REV`, `NFTA_MATCH_INFO`; the same numbers for a target.
const EXTENSION: (u16, u16, u16) = (1, 2, 3);
/// `NFTA_COUNTER_BYTES`, `NFTA_COUNTER_PACKETS`
const COUNTER: (u16, u16) = (1, 2);
/// `NFT_LOOKUP_F_INV`
const INVERTED: u32 = 1;
/// `NF_DROP`, `NF_ACCEPT`
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

const fn meta_key(field: MetaField) -> MetaKey {
    match field {
        MetaField::Mark => MetaKey::Mark,
        MetaField::InInterface => MetaKey::Iifname,
        MetaField::OutInterface => MetaKey::Oifname,
        MetaField::Uid => MetaKey::SocketUserId,
        MetaField::Gid => MetaKey::SocketGroupId,
        MetaField::Family => MetaKey::Nfproto,
        MetaField::Protocol => MetaKey::L4Proto,
    }
}

const META: [MetaField; 7] = [
    MetaField::Mark,
    MetaField::InInterface,
    MetaField::OutInterface,
    MetaField::Uid,
    MetaField::Gid,
    MetaField::Family,
    MetaField::Protocol,
];

/// `enum nft_ct_keys`
const fn ct_key(field: CtField) -> u32 {
    match field {
        CtField::State => 0,
        CtField::Mark => 3,
        CtField::Zone => 17,
    }
}

fn own(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_be_bytes().to_vec())
}

/// A value in an attribute of its own.
fn data(kind: u16, value: &[u8]) -> DefaultNla {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut bytes = [length.to_ne_bytes(), DATA_VALUE.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

fn extension(extension: &Extension) -> Vec<DefaultNla> {
    let name = [extension.name.as_bytes(), &[0]].concat();
    vec![
        DefaultNla::new(EXTENSION.0, name),
        own(EXTENSION.1, extension.revision.into()),
        DefaultNla::new(EXTENSION.2, extension.data.clone()),
    ]
}

fn other(name: &str, attributes: Vec<DefaultNla>) -> Expressions {
    Expressions::Other { expression_type: name.to_owned(), attributes }
}

/// An expression as the kernel takes it; sets are named by their place in the transaction.
pub(super) fn encode(expr: &Expr, set_id: u32) -> Expressions {
    let value = |bytes: &Vec<u8>| DataAttribute::Value(bytes.clone());
    let register = u32::from(REGISTER);
    match expr {
        Expr::LoadMeta(field) => Expressions::Meta(vec![
            Meta::Key(meta_key(*field)),
            Meta::DestinationRegister(REGISTER),
        ]),
        Expr::StoreMeta(field) => {
            Expressions::Meta(vec![Meta::Key(meta_key(*field)), Meta::SourceRegister(REGISTER)])
        }
        Expr::LoadCt(field) => other("ct", vec![own(CT.1, ct_key(*field)), own(CT.0, register)]),
        Expr::StoreCt(field) => other("ct", vec![own(CT.1, ct_key(*field)), own(CT.2, register)]),
        Expr::LoadTransparent => {
            other("socket", vec![own(SOCKET.0, TRANSPARENT), own(SOCKET.1, register)])
        }
        Expr::LoadPayload { header, offset, length } => Expressions::Payload(vec![
            Payload::DestinationRegister(REGISTER),
            Payload::Base(base(*header)),
            Payload::Offset(*offset),
            Payload::Len(*length),
        ]),
        Expr::Load(bytes) => Expressions::Immediate(vec![
            Immediate::DestinationRegister(REGISTER),
            Immediate::Data(value(bytes)),
        ]),
        Expr::Mask(mask) => Expressions::Bitwise(vec![
            Bitwise::SourceRegister(REGISTER),
            Bitwise::DestinationRegister(REGISTER),
            Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
            Bitwise::Mask(value(mask)),
            Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        ]),
        Expr::Compare(how, data) => Expressions::Cmp(vec![
            Cmp::SourceRegister(REGISTER),
            Cmp::Op(operator(*how)),
            Cmp::Data(value(data)),
        ]),
        Expr::Range { negated, first, last } => other(
            "range",
            vec![
                own(RANGE.0, register),
                own(RANGE.1, if *negated { OUTSIDE } else { WITHIN }),
                data(RANGE.2, first),
                data(RANGE.3, last),
            ],
        ),
        Expr::Lookup { negated, .. } => Expressions::Lookup(vec![
            Lookup::Set(super::batch::ANONYMOUS.to_owned()),
            Lookup::SourceRegister(REGISTER),
            Lookup::SetId(set_id),
            Lookup::Flags(if *negated { INVERTED } else { 0 }),
        ]),
        Expr::Match(match_of_iptables) => other("match", extension(match_of_iptables)),
        Expr::Target(target) => other("target", extension(target)),
        // Without attributes it starts at zero.
        Expr::Counter => other("counter", Vec::new()),
        Expr::Redirect => {
            other("redir", vec![own(REDIR.0, register), own(REDIR.1, PORT_SPECIFIED)])
        }
        Expr::Tproxy(family) => {
            other("tproxy", vec![own(TPROXY.0, nfproto(*family).into()), own(TPROXY.1, register)])
        }
        Expr::Verdict(verdict) => Expressions::Immediate(vec![
            Immediate::DestinationRegister(Register::Verdict),
            Immediate::Data(DataAttribute::Verdict(encode_verdict(verdict))),
        ]),
    }
}

const fn base(header: Header) -> u32 {
    // NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER
    match header {
        Header::Network => 1,
        Header::Transport => 2,
    }
}

const fn operator(how: Comparison) -> Operator {
    match how {
        Comparison::Eq => Operator::Equal,
        Comparison::Ne => Operator::NotEqual,
        Comparison::Ge => Operator::GreatherThanEqual,
        Comparison::Le => Operator::LessThanEqual,
    }
}

fn encode_verdict(verdict: &CoreVerdict) -> Vec<VerdictAttribute> {
    match verdict {
        CoreVerdict::Accept => vec![VerdictAttribute::Code(Verdict::Other(ACCEPT))],
        CoreVerdict::Drop => vec![VerdictAttribute::Code(Verdict::Other(DROP))],
        CoreVerdict::Return => vec![VerdictAttribute::Code(Verdict::Return)],
        CoreVerdict::Jump(chain) => {
            vec![VerdictAttribute::Code(Verdict::Jump), VerdictAttribute::Chain(chain.clone())]
        }
    }
}

/// An expression that the kernel gave; sets are found by their name. What is not understood is
/// named.
pub(super) fn decode(
    expressions: &Expressions,
    set: impl Fn(&str) -> Option<Set>,
) -> Result<Expr, String> {
    let unknown = || format!("{expressions:?}");
    match expressions {
        Expressions::Meta(meta) => decode_meta(meta),
        Expressions::Payload(payload) => decode_payload(payload),
        Expressions::Immediate(immediate) => decode_immediate(immediate),
        Expressions::Bitwise(bitwise) => decode_mask(bitwise),
        Expressions::Cmp(cmp) => decode_cmp(cmp),
        Expressions::Lookup(lookup) => decode_lookup(lookup, set),
        Expressions::Other { expression_type, attributes } => {
            decode_own(expression_type, attributes)
        }
        _ => None,
    }
    .ok_or_else(unknown)
}

fn decode_meta(meta: &[Meta]) -> Option<Expr> {
    let key = meta.iter().find_map(|m| match m {
        Meta::Key(key) => Some(*key),
        _ => None,
    })?;
    let field = META.into_iter().find(|field| meta_key(*field) == key)?;
    if meta.contains(&Meta::DestinationRegister(REGISTER)) {
        return Some(Expr::LoadMeta(field));
    }
    meta.contains(&Meta::SourceRegister(REGISTER)).then_some(Expr::StoreMeta(field))
}

fn decode_payload(payload: &[Payload]) -> Option<Expr> {
    let number = |wanted: fn(&Payload) -> Option<u32>| payload.iter().find_map(wanted);
    let offset = number(|p| if let Payload::Offset(n) = p { Some(*n) } else { None })?;
    let length = number(|p| if let Payload::Len(n) = p { Some(*n) } else { None })?;
    let from = number(|p| if let Payload::Base(n) = p { Some(*n) } else { None })?;
    let header = [Header::Network, Header::Transport].into_iter().find(|h| base(*h) == from)?;
    let loads = payload.contains(&Payload::DestinationRegister(REGISTER));
    loads.then_some(Expr::LoadPayload { header, offset, length })
}

fn decode_immediate(immediate: &[Immediate]) -> Option<Expr> {
    let data = immediate.iter().find_map(|i| match i {
        Immediate::Data(data) => Some(data),
        _ => None,
    })?;
    match data {
        DataAttribute::Value(bytes) => immediate
            .contains(&Immediate::DestinationRegister(REGISTER))
            .then(|| Expr::Load(bytes.clone())),
        DataAttribute::Verdict(verdict) => decode_verdict(verdict).map(Expr::Verdict),
        _ => None,
    }
}

fn decode_verdict(verdict: &[VerdictAttribute]) -> Option<CoreVerdict> {
    let chain = verdict.iter().find_map(|v| match v {
        VerdictAttribute::Chain(chain) => Some(chain.clone()),
        _ => None,
    });
    verdict.iter().find_map(|v| match v {
        VerdictAttribute::Code(Verdict::Return) => Some(CoreVerdict::Return),
        VerdictAttribute::Code(Verdict::Jump) => chain.clone().map(CoreVerdict::Jump),
        VerdictAttribute::Code(Verdict::Other(ACCEPT)) => Some(CoreVerdict::Accept),
        VerdictAttribute::Code(Verdict::Other(DROP)) => Some(CoreVerdict::Drop),
        _ => None,
    })
}

fn decode_mask(bitwise: &[Bitwise]) -> Option<Expr> {
    let value =
        |wanted: fn(&Bitwise) -> Option<&DataAttribute>| match bitwise.iter().find_map(wanted) {
            Some(DataAttribute::Value(bytes)) => Some(bytes.clone()),
            _ => None,
        };
    let mask = value(|b| if let Bitwise::Mask(data) = b { Some(data) } else { None })?;
    let xor = value(|b| if let Bitwise::Xor(data) = b { Some(data) } else { None })?;
    let same = bitwise.contains(&Bitwise::SourceRegister(REGISTER))
        && bitwise.contains(&Bitwise::DestinationRegister(REGISTER));
    // NFT_BITWISE_BOOL, or kernels that know no other.
    let boolean = bitwise.iter().all(|b| !matches!(b, Bitwise::Op(op) if *op != 0));
    (same && boolean && xor.iter().all(|byte| *byte == 0)).then_some(Expr::Mask(mask))
}

fn decode_cmp(cmp: &[Cmp]) -> Option<Expr> {
    let how = [Comparison::Eq, Comparison::Ne, Comparison::Ge, Comparison::Le]
        .into_iter()
        .find(|how| cmp.contains(&Cmp::Op(operator(*how))))?;
    let data = cmp.iter().find_map(|c| match c {
        Cmp::Data(DataAttribute::Value(bytes)) => Some(bytes.clone()),
        _ => None,
    })?;
    cmp.contains(&Cmp::SourceRegister(REGISTER)).then_some(Expr::Compare(how, data))
}

fn decode_lookup(lookup: &[Lookup], set: impl Fn(&str) -> Option<Set>) -> Option<Expr> {
    let name = lookup.iter().find_map(|l| match l {
        Lookup::Set(name) => Some(name),
        _ => None,
    })?;
    let maps = lookup.iter().any(|l| matches!(l, Lookup::DestinationRegister(_)));
    let negated = lookup.contains(&Lookup::Flags(INVERTED));
    if maps || !lookup.contains(&Lookup::SourceRegister(REGISTER)) {
        return None;
    }
    set(name).map(|set| Expr::Lookup { negated, set })
}

/// The bytes of an attribute.
fn value(attributes: &[DefaultNla], kind: u16) -> Option<Vec<u8>> {
    let found = attributes.iter().find(|a| a.kind() & !NLA_F_NESTED == kind)?;
    let mut bytes = vec![0; found.value_len()];
    found.emit_value(&mut bytes);
    Some(bytes)
}

/// A value in an attribute of its own.
fn inner(attributes: &[DefaultNla], kind: u16) -> Option<Vec<u8>> {
    let bytes = value(attributes, kind)?;
    let found = NlasIterator::new(bytes.as_slice())
        .filter_map(Result::ok)
        .find(|nla: &NlaBuffer<&[u8]>| nla.kind() == DATA_VALUE)?;
    Some(found.value().to_vec())
}

fn decode_extension(attributes: &[DefaultNla]) -> Option<Extension> {
    let name = value(attributes, EXTENSION.0)?;
    let name = String::from_utf8(name.into_iter().take_while(|byte| *byte != 0).collect()).ok()?;
    let revision = u32::from_be_bytes(value(attributes, EXTENSION.1)?.try_into().ok()?);
    let revision = u8::try_from(revision).ok()?;
    Some(Extension { name, revision, data: value(attributes, EXTENSION.2)? })
}

/// What a counter among the expressions of a rule has seen.
pub(super) fn counters(expressions: &Expressions) -> Option<Counters> {
    let Expressions::Other { expression_type, attributes } = expressions else { return None };
    let get = |kind| Some(u64::from_be_bytes(value(attributes, kind)?.try_into().ok()?));
    let seen = Counters { bytes: get(COUNTER.0)?, packets: get(COUNTER.1)? };
    (expression_type == "counter").then_some(seen)
}

/// Expressions that the message library leaves as they are.
fn decode_own(name: &str, attributes: &[DefaultNla]) -> Option<Expr> {
    let get = |kind| Some(u32::from_be_bytes(value(attributes, kind)?.try_into().ok()?));
    let register = u32::from(REGISTER);
    match name {
        "counter" => Some(Expr::Counter),
        "match" => decode_extension(attributes).map(Expr::Match),
        "target" => decode_extension(attributes).map(Expr::Target),
        "range" => {
            let negated = match get(RANGE.1)? {
                WITHIN => false,
                OUTSIDE => true,
                _ => return None,
            };
            let (first, last) = (inner(attributes, RANGE.2)?, inner(attributes, RANGE.3)?);
            (get(RANGE.0) == Some(register)).then_some(Expr::Range { negated, first, last })
        }
        "ct" => {
            let key = get(CT.1)?;
            let field = [CtField::State, CtField::Mark, CtField::Zone]
                .into_iter()
                .find(|field| ct_key(*field) == key)?;
            if get(CT.0) == Some(register) {
                return Some(Expr::LoadCt(field));
            }
            (get(CT.2) == Some(register)).then_some(Expr::StoreCt(field))
        }
        "socket" => {
            let asked = get(SOCKET.0)? == TRANSPARENT;
            (asked && get(SOCKET.1) == Some(register)).then_some(Expr::LoadTransparent)
        }
        "redir" => (get(REDIR.0) == Some(register)).then_some(Expr::Redirect),
        "tproxy" => {
            let family = get(TPROXY.0)?;
            let family = Family::ALL.into_iter().find(|f| u32::from(nfproto(*f)) == family)?;
            (get(TPROXY.1) == Some(register)).then_some(Expr::Tproxy(family))
        }
        _ => None,
    }
}
