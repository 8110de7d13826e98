//! Expressions as the kernel takes them (`linux/netfilter/nf_tables.h`,
//! `linux/netfilter/nf_tables_compat.h`).

use millrace_core::iptables::Extension;
use millrace_core::nft::expr::{
    Comparison, CtField, Expr, Header, MetaField, NftVerdict as CoreVerdict, nfproto,
};
use millrace_core::ruleset::Side;
use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_netfilter::nftables::{
    Bitwise, Cmp, DataAttribute, Expressions, Immediate, Lookup, Meta, MetaKey, Operator, Payload,
    Register, Verdict, VerdictAttribute,
};

/// The one register that is used.
const REGISTER: Register = Register::Reg1;
const SECOND: Register = Register::Reg2;

/// `NFTA_CT_DREG`, `NFTA_CT_KEY`, `NFTA_CT_SREG`
pub(super) const CT: (u16, u16, u16) = (1, 2, 4);
/// `NFTA_REDIR_REG_PROTO_MIN`, `NFTA_REDIR_FLAGS`
pub(super) const REDIR: (u16, u16) = (1, 3);
/// `NF_NAT_RANGE_PROTO_SPECIFIED`
const PORT_SPECIFIED: u32 = 2;
/// `NFTA_NAT_TYPE`, `NFTA_NAT_FAMILY`, `NFTA_NAT_REG_ADDR_MIN`, `NFTA_NAT_REG_PROTO_MIN`; the kernel notes
/// the ends of ranges (`NFTA_NAT_REG_ADDR_MAX`, `NFTA_NAT_REG_PROTO_MAX`) as the same registers, and
/// `NFTA_NAT_FLAGS`.
pub(super) const NAT: (u16, u16, u16, u16, u16, u16, u16) = (1, 2, 3, 5, 4, 6, 7);
/// `NFT_NAT_DNAT`
pub(super) const DESTINATION: u32 = 1;
/// `NFTA_SOCKET_KEY`, `NFTA_SOCKET_DREG`
pub(super) const SOCKET: (u16, u16) = (1, 2);
/// `NFT_SOCKET_TRANSPARENT`
pub(super) const TRANSPARENT: u32 = 0;
/// `NFTA_FIB_DREG`, `NFTA_FIB_RESULT`, `NFTA_FIB_FLAGS`
pub(super) const FIB: (u16, u16, u16) = (1, 2, 3);
/// `NFT_FIB_RESULT_ADDRTYPE`
pub(super) const ADDRESS_TYPE: u32 = 3;
/// `NFTA_TPROXY_FAMILY`, `NFTA_TPROXY_REG_PORT`
pub(super) const TPROXY: (u16, u16) = (1, 3);
/// `NFTA_RANGE_SREG`, `NFTA_RANGE_OP`, `NFTA_RANGE_FROM_DATA`, `NFTA_RANGE_TO_DATA`
pub(super) const RANGE: (u16, u16, u16, u16) = (1, 2, 3, 4);
/// `NFT_RANGE_EQ`, `NFT_RANGE_NEQ`
pub(super) const WITHIN: u32 = 0;
pub(super) const OUTSIDE: u32 = 1;
/// `NFTA_BYTEORDER_SREG`, `NFTA_BYTEORDER_DREG`, `NFTA_BYTEORDER_OP`, `NFTA_BYTEORDER_LEN`,
/// `NFTA_BYTEORDER_SIZE`
pub(super) const BYTEORDER: (u16, u16, u16, u16, u16) = (1, 2, 3, 4, 5);
/// `NFT_BYTEORDER_HTON`
pub(super) const HTON: u32 = 1;
/// `NFTA_DATA_VALUE`
const DATA_VALUE: u16 = 1;
/// `NFTA_MATCH_NAME`, `NFTA_MATCH_REV`, `NFTA_MATCH_INFO`; the same numbers for a target.
pub(super) const EXTENSION: (u16, u16, u16) = (1, 2, 3);
/// `NFTA_COUNTER_BYTES`, `NFTA_COUNTER_PACKETS`
pub(super) const COUNTER: (u16, u16) = (1, 2);
/// `NFT_LOOKUP_F_INV`
pub(super) const INVERTED: u32 = 1;
/// `NF_DROP`, `NF_ACCEPT`
const DROP: u32 = 0;
const ACCEPT: u32 = 1;

pub(super) const fn meta_key(field: MetaField) -> MetaKey {
    match field {
        MetaField::Mark => MetaKey::Mark,
        MetaField::InInterface => MetaKey::Iifname,
        MetaField::OutInterface => MetaKey::Oifname,
        MetaField::Uid => MetaKey::SocketUserId,
        MetaField::Gid => MetaKey::SocketGroupId,
        MetaField::Family => MetaKey::Nfproto,
        MetaField::Protocol => MetaKey::L4Proto,
        MetaField::Traced => MetaKey::NftraceBit,
    }
}

/// `enum nft_ct_keys`
pub(super) const fn ct_key(field: CtField) -> u32 {
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

/// `NFTA_FIB_F_SADDR`, `NFTA_FIB_F_DADDR`
pub(super) const fn address_of(side: Side) -> u32 {
    match side {
        Side::Source => 1,
        Side::Destination => 2,
    }
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
        Expr::LoadAddressType(side) => other(
            "fib",
            vec![own(FIB.0, register), own(FIB.1, ADDRESS_TYPE), own(FIB.2, address_of(*side))],
        ),
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
        Expr::LoadSecond(bytes) => Expressions::Immediate(vec![
            Immediate::DestinationRegister(SECOND),
            Immediate::Data(value(bytes)),
        ]),
        Expr::Mask(mask) => Expressions::Bitwise(vec![
            Bitwise::SourceRegister(REGISTER),
            Bitwise::DestinationRegister(REGISTER),
            Bitwise::Length(u32::try_from(mask.len()).unwrap_or(u32::MAX)),
            Bitwise::Mask(value(mask)),
            Bitwise::Xor(DataAttribute::Value(vec![0; mask.len()])),
        ]),
        Expr::Edit { keep, flip } => Expressions::Bitwise(vec![
            Bitwise::SourceRegister(REGISTER),
            Bitwise::DestinationRegister(REGISTER),
            Bitwise::Length(u32::try_from(keep.len()).unwrap_or(u32::MAX)),
            Bitwise::Mask(value(keep)),
            Bitwise::Xor(value(flip)),
        ]),
        Expr::Compare(how, data) => Expressions::Cmp(vec![
            Cmp::SourceRegister(REGISTER),
            Cmp::Op(operator(*how)),
            Cmp::Data(value(data)),
        ]),
        Expr::Swap => other(
            "byteorder",
            vec![
                own(BYTEORDER.0, register),
                own(BYTEORDER.1, register),
                own(BYTEORDER.2, HTON),
                own(BYTEORDER.3, 4),
                own(BYTEORDER.4, 4),
            ],
        ),
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
        Expr::Dnat { family, port } => {
            let mut attributes = vec![
                own(NAT.0, DESTINATION),
                own(NAT.1, nfproto(*family).into()),
                own(NAT.2, register),
            ];
            attributes.extend(port.then(|| own(NAT.3, u32::from(SECOND))));
            other("nat", attributes)
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

pub(super) const fn base(header: Header) -> u32 {
    // NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER
    match header {
        Header::Network => 1,
        Header::Transport => 2,
    }
}

pub(super) const fn operator(how: Comparison) -> Operator {
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
