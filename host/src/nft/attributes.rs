//! Expressions to netlink attributes and back.

use millrace_core::nft::expr::{
    Comparison, CtField, Expr, Header, MetaField, Verdict as CoreVerdict, nfproto,
};
use millrace_core::nft::set::Set;
use millrace_core::value::Family;
use netlink_packet_core::{DefaultNla, Nla as _};
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
/// `NFTA_TPROXY_FAMILY`, `NFTA_TPROXY_REG_PORT`
const TPROXY: (u16, u16) = (1, 3);
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
        Expr::Lookup { negated, .. } => Expressions::Lookup(vec![
            Lookup::Set(super::batch::ANONYMOUS.to_owned()),
            Lookup::SourceRegister(REGISTER),
            Lookup::SetId(set_id),
            Lookup::Flags(if *negated { INVERTED } else { 0 }),
        ]),
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

/// Expressions that the message library leaves as they are.
fn decode_own(name: &str, attributes: &[DefaultNla]) -> Option<Expr> {
    let get = |kind: u16| {
        let found = attributes.iter().find(|a| a.kind() == kind)?;
        let mut bytes = vec![0; found.value_len()];
        found.emit_value(&mut bytes);
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    let register = u32::from(REGISTER);
    match name {
        "counter" => Some(Expr::Counter),
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
        "redir" => (get(REDIR.0) == Some(register)).then_some(Expr::Redirect),
        "tproxy" => {
            let family = get(TPROXY.0)?;
            let family = Family::ALL.into_iter().find(|f| u32::from(nfproto(*f)) == family)?;
            (get(TPROXY.1) == Some(register)).then_some(Expr::Tproxy(family))
        }
        _ => None,
    }
}
