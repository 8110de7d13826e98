//! Native nftables of whoever, as one look found them, to walk packets through: all that the kernel
//! says of a rule, with every register (`linux/netfilter/nf_tables.h`).

use std::collections::BTreeMap;

use super::expr::{Comparison, CtField, Expr, Header, MetaField, NftVerdict, nfproto};
use super::tables::Base;
use crate::iptables::Counters;
use crate::ruleset::Side;
use crate::value::Family;

/// What fills a register, by the kernel's numbers where it has some.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Source {
    /// Something of the packet's surroundings, by its number (`enum nft_meta_keys`).
    Meta(u32),
    /// Something of its connection, by its number (`enum nft_ct_keys`).
    Ct(u32),
    /// The same as it was before any translation (`NFTA_CT_DIRECTION` is `IP_CT_DIR_ORIGINAL`).
    Original(u32),
    /// Bytes of an extension header of IPv6, by its number; a packet without it is not the rule's.
    Extension(u32),
    /// Bytes of a header: where it starts (`enum nft_payload_bases`), the first byte, how many.
    Payload(u32, u32, u32),
    /// What routing says: of which kind (`enum nft_fib_result`), asked how (`NFTA_FIB_F_*`).
    Fib(u32, u32),
    /// A constant of the rule itself (`NFTA_IMMEDIATE_DATA`).
    Constant(Vec<u8>),
    /// Something that is not known, by its name.
    Other(String),
}

/// How a value is compared (`enum nft_cmp_ops`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Equal, byte for byte (`NFT_CMP_EQ`).
    Eq,
    /// Not equal (`NFT_CMP_NEQ`).
    Ne,
    /// Less than, as `memcmp` has it (`NFT_CMP_LT`).
    Lt,
    /// At most, as `memcmp` has it (`NFT_CMP_LTE`).
    Le,
    /// More than, as `memcmp` has it (`NFT_CMP_GT`).
    Gt,
    /// At least, as `memcmp` has it (`NFT_CMP_GTE`).
    Ge,
}

/// Registers that hold the ends of a range; without a second one there is one value.
pub type Ends = (Option<u32>, Option<u32>);

/// What an element of a map leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// Bytes that a register gets.
    Value(Vec<u8>),
    /// A verdict of a verdict map; none where it is not known.
    Verdict(Option<Ending>),
}

/// What becomes of a packet at the end of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Go on with the next hook.
    Accept,
    /// Discard the packet; no further chain sees it.
    Drop,
    /// Go on behind the rule that jumped here.
    Return,
    /// Go on in another chain, and come back.
    Jump(String),
    /// Go on in another chain, and come back to where this one would.
    Goto(String),
    /// Go on with the next rule.
    Continue,
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Element {
    /// The first key; none where the element stands for all others.
    pub first: Option<Vec<u8>>,
    /// The last key of the range, itself included; the first again for a single value.
    pub last: Vec<u8>,
    /// What a map's key leads to, data or a verdict; none in a plain set.
    pub mapped: Option<Mapped>,
}

/// Elements of a set, or of a map from keys to data or verdicts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ListedSet {
    /// The length of a key; several values behind each other have each a multiple of four.
    pub length: usize,
    /// Whether its elements come and go with packets or with time.
    pub changes: bool,
    /// Ranges or single values, as the kernel lists them.
    pub elements: Vec<Element>,
}

/// Where packets are logged, and how (`enum nft_log_attributes`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogTo {
    /// Text in front of each message (`NFTA_LOG_PREFIX`).
    pub prefix: String,
    /// The group of `nfnetlink_log`; none where the kernel's log has them.
    pub group: Option<u32>,
    /// How much of a packet is copied, in bytes; 0 for all.
    pub snaplen: u32,
    /// How many packets wait for each other; 0 for one.
    pub threshold: u32,
    /// The level of the kernel's log; none for [`Self::WARN`].
    pub level: Option<u32>,
    /// What of a packet is told (`NF_LOG_*`).
    pub flags: u32,
}

impl LogTo {
    /// `LOG_WARNING`, the level of who names none.
    pub const WARN: u32 = 4;
}

/// A part of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// Fill a register, by its number (`enum nft_registers`).
    Load(u32, Source),
    /// `(value & mask) ^ flip`, from a register to one.
    Bits {
        /// The register that is read.
        from: u32,
        /// The one that is written.
        to: u32,
        /// The bits that are kept (`NFTA_BITWISE_MASK`).
        mask: Vec<u8>,
        /// The bits that are flipped then.
        flip: Vec<u8>,
    },
    /// The bytes in the other order, from a register to one.
    Swap(u32, u32),
    /// Go on only if a comparison holds.
    Compare(u32, Order, Vec<u8>),
    /// Go on only if the value lies, or does not lie, between two.
    Range {
        /// The number of the register that is compared.
        from: u32,
        /// Whether it must lie outside of them (`NFT_RANGE_NEQ`).
        negated: bool,
        /// The least value, itself included.
        first: Vec<u8>,
        /// The greatest value, itself included.
        last: Vec<u8>,
    },
    /// Look a register up in a set, by its name.
    Lookup {
        /// The number of the register that holds the key.
        from: u32,
        /// Whether it must not be there.
        negated: bool,
        /// Where a map's value goes; register 0 takes verdicts.
        to: Option<u32>,
        /// The name of a set or map of the same table.
        set: String,
    },
    /// Set something of the packet (`enum nft_meta_keys`) from a register.
    StoreMeta(u32, u32),
    /// Set something of its connection (`enum nft_ct_keys`) from a register.
    StoreCt(u32, u32),
    /// End the rule with a verdict.
    Verdict(Ending),
    /// Translate the source or the destination (`enum nft_nat_attributes`).
    Nat {
        /// Whether the source is meant.
        source: bool,
        /// The family of the address (`NFPROTO_*`).
        family: u32,
        /// Registers with the new address; none where the port alone is translated.
        address: Ends,
        /// Registers with the new port; none where it stays.
        ports: Ends,
        /// How one of several is chosen (`NF_NAT_RANGE_*`).
        flags: u32,
    },
    /// Translate to the address of the interface it goes out by, with `NF_NAT_RANGE_*`.
    Masquerade(Ends, u32),
    /// Translate to this host, with `NF_NAT_RANGE_*`.
    Redirect(Ends, u32),
    /// Hand to a transparent socket.
    Tproxy {
        /// The family of packets that it takes (`NFPROTO_*`); 0 for both.
        family: u32,
        /// The register with the address of that socket, where the rule names one.
        address: Option<u32>,
        /// The register with the port of that socket; none for the one that the packet goes to.
        port: Option<u32>,
    },
    /// Discard and tell the sender.
    Reject {
        /// By ICMP or by a reset of TCP (`enum nft_reject_types`).
        kind: u32,
        /// The code of a message of ICMP.
        code: u8,
    },
    /// Set an option of TCP from a register.
    StoreOption {
        /// The kind of option (RFC 9293, 3.1), such as 2 for the segment size.
        option: u32,
        /// The first byte of it that is set.
        offset: u32,
        /// The number of the register with the new bytes.
        from: u32,
    },
    /// Keep the packet out of connection tracking (state `untracked`).
    Notrack,
    /// It does something with the packet's connection that the packet's way does not depend on, as nft writes
    /// it.
    Effect(String),
    /// Log the packet, which goes on.
    Log(LogTo),
    /// Nothing that the way of a packet depends on.
    Note,
    /// A condition that is not known, by its name.
    Asks(String),
    /// Something that is done and is not known, by its name.
    Does(String),
}

/// A rule as the kernel lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedRule {
    /// Conditions and actions in the order in which the kernel evaluates them.
    pub parts: Vec<Term>,
    /// What its counter has seen, if it has one.
    pub counters: Option<Counters>,
}

/// A chain of any table, base chain or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedChain {
    /// Unique in its table.
    pub name: String,
    /// Where it hangs; none for one that is only jumped to.
    pub base: Option<Base>,
    /// The interfaces it hangs at, where it hangs at some alone.
    pub devices: Vec<String>,
    /// Whether packets that no rule decides about are dropped.
    pub drops: bool,
    /// In the order in which the kernel asks them.
    pub rules: Vec<ListedRule>,
}

/// Whose packets a table has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// IPv4 alone or IPv6 alone (`ip`, `ip6`).
    Ip(Family),
    /// Both IPv4 and IPv6 (`inet`).
    Inet,
    /// All that an interface has (`netdev`).
    Netdev,
    /// Packets of ARP (`arp`).
    Arp,
}

/// A table of `nf_tables`, ours or of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedTable {
    /// Which packets its chains see, by the table's family.
    pub layer: Layer,
    /// Unique in its family.
    pub name: String,
    /// Whether the kernel calls none of its chains.
    pub dormant: bool,
    /// Its sets and maps by name, those of single rules (`__set0`) among them.
    pub sets: BTreeMap<String, ListedSet>,
    /// Its chains, in the order in which they were made.
    pub chains: Vec<ListedChain>,
}

/// The register that Millrace's own rules use.
const REGISTER: u32 = 1;
const SECOND: u32 = 2;

/// The number of what `meta` knows (`enum nft_meta_keys`).
const fn meta(field: MetaField) -> u32 {
    match field {
        MetaField::Mark => 3,
        MetaField::InInterface => 6,
        MetaField::OutInterface => 7,
        MetaField::Uid => 10,
        MetaField::Gid => 11,
        MetaField::Family => 15,
        MetaField::Protocol => 16,
        MetaField::Traced => 14,
    }
}

/// The number of what `ct` knows (`enum nft_ct_keys`).
const fn ct(field: CtField) -> u32 {
    match field {
        CtField::State => 0,
        CtField::Mark => 3,
        CtField::Zone => 17,
    }
}

/// An expression of Millrace's own rules as one with registers. A set that it names gets its name
/// from `sets`.
pub(crate) fn term(expr: &Expr, sets: &mut BTreeMap<String, ListedSet>) -> Term {
    match expr {
        Expr::LoadMeta(field) => Term::Load(REGISTER, Source::Meta(meta(*field))),
        Expr::LoadCt(field) => Term::Load(REGISTER, Source::Ct(ct(*field))),
        // NFT_FIB_RESULT_ADDRTYPE; NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR
        Expr::LoadAddressType(Side::Source) => Term::Load(REGISTER, Source::Fib(3, 1)),
        Expr::LoadAddressType(Side::Destination) => Term::Load(REGISTER, Source::Fib(3, 2)),
        Expr::LoadTransparent => {
            Term::Load(REGISTER, Source::Other("socket transparent".to_owned()))
        }
        Expr::LoadPayload { header, offset, length } => {
            let base = match header {
                Header::Network => 1,
                Header::Transport => 2,
            };
            Term::Load(REGISTER, Source::Payload(base, *offset, *length))
        }
        Expr::Load(bytes) => Term::Load(REGISTER, Source::Constant(bytes.clone())),
        Expr::LoadSecond(bytes) => Term::Load(SECOND, Source::Constant(bytes.clone())),
        Expr::Mask(mask) => Term::Bits {
            from: REGISTER,
            to: REGISTER,
            mask: mask.clone(),
            flip: vec![0; mask.len()],
        },
        Expr::Edit { keep, flip } => {
            Term::Bits { from: REGISTER, to: REGISTER, mask: keep.clone(), flip: flip.clone() }
        }
        Expr::Compare(how, bytes) => {
            let how = match how {
                Comparison::Eq => Order::Eq,
                Comparison::Ne => Order::Ne,
                Comparison::Ge => Order::Ge,
                Comparison::Le => Order::Le,
            };
            Term::Compare(REGISTER, how, bytes.clone())
        }
        Expr::Swap => Term::Swap(REGISTER, REGISTER),
        Expr::Range { negated, first, last } => {
            let (negated, first, last) = (*negated, first.clone(), last.clone());
            Term::Range { from: REGISTER, negated, first, last }
        }
        Expr::Lookup { negated, set } => {
            let name = format!("__set{}", sets.len());
            let element = |(first, last): &(Vec<u8>, Vec<u8>)| Element {
                first: Some(first.clone()),
                last: last.clone(),
                mapped: None,
            };
            let elements = set.ranges.iter().map(element).collect();
            let listed = ListedSet { length: set.kind.length(), changes: false, elements };
            sets.insert(name.clone(), listed);
            Term::Lookup { from: REGISTER, negated: *negated, to: None, set: name }
        }
        Expr::StoreMeta(field) => Term::StoreMeta(meta(*field), REGISTER),
        Expr::StoreCt(field) => Term::StoreCt(ct(*field), REGISTER),
        Expr::Counter => Term::Note,
        Expr::Redirect => Term::Redirect((Some(REGISTER), None), 0),
        Expr::Dnat { family, port } => Term::Nat {
            source: false,
            family: nfproto(*family).into(),
            address: (Some(REGISTER), None),
            ports: (port.then_some(SECOND), None),
            flags: 0,
        },
        Expr::Tproxy(family) => {
            Term::Tproxy { family: nfproto(*family).into(), address: None, port: Some(REGISTER) }
        }
        Expr::Verdict(verdict) => Term::Verdict(match verdict {
            NftVerdict::Accept => Ending::Accept,
            NftVerdict::Drop => Ending::Drop,
            NftVerdict::Return => Ending::Return,
            NftVerdict::Jump(chain) => Ending::Jump(chain.clone()),
        }),
        Expr::Match(extension) => Term::Asks(format!("-m {}", extension.name)),
        Expr::Target(extension) => Term::Does(format!("-j {}", extension.name)),
    }
}
