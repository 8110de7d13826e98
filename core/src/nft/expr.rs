//! Rules as the kernel's `nf_tables` carries them out: expressions that load, compare and set
//! (`linux/netfilter/nf_tables.h`). What nft writes in one word are often several of them.

use std::net::IpAddr;

use super::Statement;
use super::set::{Set, SetKind};
use crate::iptables::Extension;
use crate::ruleset::{ChainName, ConnState, Masked, Owner, Protocol, Side};
use crate::value::{Cidr, Family, GroupName, Groups, InterfacePattern, ListenPort, PortRange};

/// What `meta` knows of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaField {
    /// The packet's mark, in host byte order.
    Mark,
    /// The name of the interface it came in by, 16 bytes.
    InInterface,
    /// The name of the interface it goes out by, 16 bytes.
    OutInterface,
    /// The socket's user id, in host byte order.
    Uid,
    /// The socket's group id, in host byte order.
    Gid,
    /// The family, a byte of `NFPROTO_*`.
    Family,
    /// The transport protocol, a byte.
    Protocol,
    /// `meta nftrace`: whether the kernel tells of every rule that the packet meets.
    Traced,
}

/// What `ct` knows of a packet's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtField {
    /// The state, a bit of `NF_CT_STATE_*`, in host byte order.
    State,
    /// The mark, in host byte order.
    Mark,
    /// The zone, in host byte order.
    Zone,
}

/// The header that an offset counts from (`enum nft_payload_bases`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// IPv4 or IPv6 (`NFT_PAYLOAD_NETWORK_HEADER`).
    Network,
    /// TCP or UDP (`NFT_PAYLOAD_TRANSPORT_HEADER`).
    Transport,
}

/// How a loaded value is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Equal, byte for byte (`NFT_CMP_EQ`).
    Eq,
    /// Not equal (`NFT_CMP_NEQ`).
    Ne,
    /// At least, as `memcmp` has it (`NFT_CMP_GTE`).
    Ge,
    /// At most, as `memcmp` has it (`NFT_CMP_LTE`).
    Le,
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NftVerdict {
    /// Go on with the next hook.
    Accept,
    /// Discard the packet; no further chain sees it.
    Drop,
    /// Go on behind the rule that jumped here.
    Return,
    /// Go on in another chain.
    Jump(String),
}

/// A step of a rule. There is one register, which loads fill and the others use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Load from the packet's surroundings.
    LoadMeta(MetaField),
    /// Load something of the packet's connection (`NFTA_CT_KEY`).
    LoadCt(CtField),
    /// Load whether the packet's socket is transparent, a byte.
    LoadTransparent,
    /// Load of which type an address of the packet is to routing, a number of `RTN_*` in host byte order
    /// (`NFT_FIB_RESULT_ADDRTYPE`).
    LoadAddressType(Side),
    /// Load bytes of a header.
    LoadPayload {
        /// The header with whose first byte `offset` begins to count.
        header: Header,
        /// The first byte, counted from 0 at the start of that header.
        offset: u32,
        /// How many bytes are loaded.
        length: u32,
    },
    /// Load a constant (`NFTA_IMMEDIATE_DATA`).
    Load(Vec<u8>),
    /// Load a constant beside the other.
    LoadSecond(Vec<u8>),
    /// Keep the bits of this mask.
    Mask(Vec<u8>),
    /// Keep the bits of a mask, and turn over those of another one.
    Edit {
        /// The bits that are kept.
        keep: Vec<u8>,
        /// The bits that are turned over then.
        flip: Vec<u8>,
    },
    /// Put the four bytes that were loaded into the order of the network, so that greater and less mean
    /// something.
    Swap,
    /// Go on only if the comparison holds.
    Compare(Comparison, Vec<u8>),
    /// Go on only if the value lies, or does not lie, between these two, both included.
    Range {
        /// Whether it must lie outside of them (`NFT_RANGE_NEQ`).
        negated: bool,
        /// The least value that lies between, as bytes are compared.
        first: Vec<u8>,
        /// The greatest value that lies between, of as many bytes.
        last: Vec<u8>,
    },
    /// Go on only if the value is, or is not, one of these.
    Lookup {
        /// Whether it must not be.
        negated: bool,
        /// An anonymous set with the values, which the rule alone uses.
        set: Set,
    },
    /// Set something of the packet.
    StoreMeta(MetaField),
    /// Set something of its connection.
    StoreCt(CtField),
    /// Count packets and bytes from here on; the packet goes on.
    Counter,
    /// Redirect to the port that was loaded, in network byte order.
    Redirect,
    /// Send to the address that was loaded, and to the port beside it where there is one; packets of
    /// another family go on.
    Dnat {
        /// Packets of this family alone are translated.
        family: Family,
        /// Whether there is a port.
        port: bool,
    },
    /// Hand to a transparent socket on the port that was loaded.
    Tproxy(Family),
    /// End the rule with a verdict (`NFTA_IMMEDIATE_DREG` is `NFT_REG_VERDICT`).
    Verdict(NftVerdict),
    /// Go on only if a match of iptables holds (`nft_compat`).
    Match(Extension),
    /// Carry out a target of iptables (`nft_compat`).
    Target(Extension),
}

/// A number of the processor's with its bytes in the order of the network.
pub fn in_network_order(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if cfg!(target_endian = "little") {
        bytes.reverse();
    }
    bytes
}

/// A group of a rule has no number.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no group {0}: a rule of nf_tables needs its number")]
pub struct NoGroup(pub GroupName);

/// The expressions of a rule, as nft makes them in a table of family `inet`: what a header means
/// is settled first. `chain_name` is what a chain is called in the rule's table.
///
/// # Errors
/// When a group's name has no number.
pub fn expressions(
    rule: &[Statement],
    groups: &Groups,
    chain_name: &dyn Fn(&ChainName) -> String,
) -> Result<Vec<Expr>, NoGroup> {
    let mut b = Linear { exprs: Vec::new(), family: None, protocol: None, chain_name };
    for statement in rule {
        b.add(statement, groups)?;
    }
    Ok(b.exprs)
}

struct Linear<'c> {
    chain_name: &'c dyn Fn(&ChainName) -> String,
    exprs: Vec<Expr>,
    /// What the rule has settled so far.
    family: Option<Family>,
    protocol: Option<Protocol>,
}

impl Linear<'_> {
    fn add(&mut self, statement: &Statement, groups: &Groups) -> Result<(), NoGroup> {
        match statement {
            Statement::Family(family) => self.settle_family(*family),
            Statement::Protocol(protocol) => self.settle_protocol(*protocol),
            Statement::InInterface(names) => self.interfaces(MetaField::InInterface, names),
            Statement::OutInterface(names) => self.interfaces(MetaField::OutInterface, names),
            Statement::NotOutInterface(name) => {
                self.exprs.push(Expr::LoadMeta(MetaField::OutInterface));
                self.compare(true, interface_name(name));
            }
            Statement::Address { side, negated, cidrs } => self.addresses(*side, *negated, cidrs),
            Statement::Ports { protocol, side, negated, ports } => {
                self.ports(*protocol, *side, *negated, ports);
            }
            Statement::Owner { negated, owners, .. } => self.owners(*negated, owners, groups)?,
            Statement::Syn { negated } => {
                self.settle_protocol(Protocol::Tcp);
                self.exprs.extend(only_syn(*negated));
            }
            Statement::Local { side, negated } => {
                self.exprs.push(Expr::LoadAddressType(*side));
                self.compare(*negated, LOCAL.to_ne_bytes().to_vec());
            }
            Statement::State(states) => self.state(states),
            Statement::Mark { negated, mark } => {
                self.exprs.push(Expr::LoadMeta(MetaField::Mark));
                self.mark(*negated, *mark);
            }
            Statement::Connmark(mark) => {
                self.exprs.push(Expr::LoadCt(CtField::Mark));
                self.mark(false, *mark);
            }
            Statement::Counter => self.exprs.push(Expr::Counter),
            Statement::SetMark(mark) => {
                self.exprs.push(Expr::Load(mark.to_ne_bytes().to_vec()));
                self.exprs.push(Expr::StoreMeta(MetaField::Mark));
            }
            Statement::SetConnmark(mark) => {
                // Bits that are set need not be kept.
                let keep = (!mark.mask & !mark.value).to_ne_bytes().to_vec();
                let flip = mark.value.to_ne_bytes().to_vec();
                self.exprs.push(Expr::LoadCt(CtField::Mark));
                self.exprs.push(Expr::Edit { keep, flip });
                self.exprs.push(Expr::StoreCt(CtField::Mark));
            }
            Statement::SaveMark => {
                self.exprs.push(Expr::LoadMeta(MetaField::Mark));
                self.exprs.push(Expr::StoreCt(CtField::Mark));
            }
            Statement::RestoreMark => {
                self.exprs.push(Expr::LoadCt(CtField::Mark));
                self.exprs.push(Expr::StoreMeta(MetaField::Mark));
            }
            Statement::Zone(zone) => {
                self.exprs.push(Expr::Load(zone.0.to_ne_bytes().to_vec()));
                self.exprs.push(Expr::StoreCt(CtField::Zone));
            }
            Statement::Redirect(port) => {
                self.exprs.push(Expr::Load(port.get().to_be_bytes().to_vec()));
                self.exprs.push(Expr::Redirect);
            }
            Statement::Dnat { address, port } => {
                self.exprs.push(Expr::Load(match address {
                    IpAddr::V4(v4) => v4.octets().to_vec(),
                    IpAddr::V6(v6) => v6.octets().to_vec(),
                }));
                let bytes = |port: ListenPort| port.get().to_be_bytes().to_vec();
                self.exprs.extend(port.map(|port| Expr::LoadSecond(bytes(port))));
                let family = Family::of(*address);
                self.exprs.push(Expr::Dnat { family, port: port.is_some() });
            }
            Statement::Tproxy { family, port } => {
                self.exprs.push(Expr::Load(port.get().to_be_bytes().to_vec()));
                self.exprs.push(Expr::Tproxy(*family));
            }
            Statement::Return => self.exprs.push(Expr::Verdict(NftVerdict::Return)),
            Statement::Accept => self.exprs.push(Expr::Verdict(NftVerdict::Accept)),
            Statement::Drop => self.exprs.push(Expr::Verdict(NftVerdict::Drop)),
            Statement::Jump(chain) => {
                self.exprs.push(Expr::Verdict(NftVerdict::Jump((self.chain_name)(chain))));
            }
        }
        Ok(())
    }

    fn compare(&mut self, negated: bool, data: Vec<u8>) {
        let how = if negated { Comparison::Ne } else { Comparison::Eq };
        self.exprs.push(Expr::Compare(how, data));
    }

    /// All of what was loaded, or bits of it.
    fn mark(&mut self, negated: bool, mark: Masked) {
        if mark.mask != u32::MAX {
            self.exprs.push(Expr::Mask(mark.mask.to_ne_bytes().to_vec()));
        }
        self.compare(negated, mark.value.to_ne_bytes().to_vec());
    }

    fn is(&mut self, field: MetaField, data: Vec<u8>) {
        self.exprs.extend([Expr::LoadMeta(field), Expr::Compare(Comparison::Eq, data)]);
    }

    fn settle_family(&mut self, family: Family) {
        if self.family != Some(family) {
            self.family = Some(family);
            self.is(MetaField::Family, vec![nfproto(family)]);
        }
    }

    fn settle_protocol(&mut self, protocol: Protocol) {
        if self.protocol != Some(protocol) {
            self.protocol = Some(protocol);
            let number = match protocol {
                Protocol::Tcp => 6,
                Protocol::Udp => 17,
            };
            self.is(MetaField::Protocol, vec![number]);
        }
    }

    fn interfaces(&mut self, field: MetaField, names: &[InterfacePattern]) {
        if let [one] = names {
            return self.is(field, interface_name(one));
        }
        let values = names.iter().map(interface_name).map(|name| (name.clone(), name));
        let set = Set::new(SetKind::Interfaces, values.collect());
        self.exprs.extend([Expr::LoadMeta(field), Expr::Lookup { negated: false, set }]);
    }

    fn addresses(&mut self, side: Side, negated: bool, cidrs: &[Cidr]) {
        let Some(family) = cidrs.first().map(|cidr| cidr.family()) else { return };
        self.settle_family(family);
        // RFC 791 section 3.1, RFC 8200 section 3.
        let (offset, length, kind) = match (family, side) {
            (Family::V4, Side::Source) => (12, 4, SetKind::Ipv4),
            (Family::V4, Side::Destination) => (16, 4, SetKind::Ipv4),
            (Family::V6, Side::Source) => (8, 16, SetKind::Ipv6),
            (Family::V6, Side::Destination) => (24, 16, SetKind::Ipv6),
        };
        let header = Header::Network;
        let [cidr] = cidrs else {
            let set = Set::new(kind, cidrs.iter().map(|cidr| range(*cidr)).collect());
            self.exprs.push(Expr::LoadPayload { header, offset, length });
            self.exprs.push(Expr::Lookup { negated, set });
            return;
        };
        let (mut network, _) = range(*cidr);
        // Whole bytes need no mask.
        if cidr.length() > 0 && cidr.length().is_multiple_of(8) {
            network.truncate(usize::from(cidr.length() / 8));
            let length = u32::from(cidr.length() / 8);
            self.exprs.push(Expr::LoadPayload { header, offset, length });
        } else {
            self.exprs.push(Expr::LoadPayload { header, offset, length });
            self.exprs.push(Expr::Mask(mask(*cidr)));
        }
        self.compare(negated, network);
    }

    fn ports(&mut self, protocol: Protocol, side: Side, negated: bool, ports: &[PortRange]) {
        self.settle_protocol(protocol);
        let offset = match side {
            Side::Source => 0,
            Side::Destination => 2,
        };
        self.exprs.push(Expr::LoadPayload { header: Header::Transport, offset, length: 2 });
        let bytes = |port: u16| port.to_be_bytes().to_vec();
        match ports {
            [one] if one.first() == one.last() => self.compare(negated, bytes(one.first().get())),
            [range] if !negated => self.exprs.extend([
                Expr::Compare(Comparison::Ge, bytes(range.first().get())),
                Expr::Compare(Comparison::Le, bytes(range.last().get())),
            ]),
            several => {
                let ends = |r: &PortRange| (bytes(r.first().get()), bytes(r.last().get()));
                let set = Set::new(SetKind::Ports, several.iter().map(ends).collect());
                self.exprs.push(Expr::Lookup { negated, set });
            }
        }
    }

    fn owners(&mut self, negated: bool, owners: &[Owner], groups: &Groups) -> Result<(), NoGroup> {
        let (mut field, mut kind) = (MetaField::Gid, SetKind::Gids);
        let mut ids = Vec::new();
        for owner in owners {
            let (first, last) = match owner {
                Owner::Uid(uid) => (uid.get(), uid.get()),
                Owner::Uids(uids) => (uids.first().get(), uids.last().get()),
                Owner::Gid(gid) => (gid.get(), gid.get()),
                Owner::Group(name) => {
                    let gid = groups.get(name).ok_or_else(|| NoGroup(name.clone()))?.get();
                    (gid, gid)
                }
            };
            if matches!(owner, Owner::Uid(_) | Owner::Uids(_)) {
                (field, kind) = (MetaField::Uid, SetKind::Uids);
            }
            ids.push((first.to_ne_bytes().to_vec(), last.to_ne_bytes().to_vec()));
        }
        self.exprs.push(Expr::LoadMeta(field));
        if let [(first, last)] = ids.as_slice() {
            if first == last {
                self.compare(negated, first.clone());
            } else {
                let [first, last] = [first, last].map(|id| in_network_order(id));
                self.exprs.extend([Expr::Swap, Expr::Range { negated, first, last }]);
            }
        } else {
            let set = Set::new(kind, ids);
            self.exprs.push(Expr::Lookup { negated, set });
        }
        Ok(())
    }

    /// Any of the states: their bits are not all zero.
    fn state(&mut self, states: &[ConnState]) {
        // NF_CT_STATE_INVALID_BIT, NF_CT_STATE_BIT()
        let bit = |state: &ConnState| match state {
            ConnState::Invalid => 1,
            ConnState::Established => 2,
            ConnState::Related => 4,
            ConnState::New => 8,
        };
        let mask: u32 = states.iter().map(bit).fold(0, |mask, bit| mask | bit);
        self.exprs.extend([
            Expr::LoadCt(CtField::State),
            Expr::Mask(mask.to_ne_bytes().to_vec()),
            Expr::Compare(Comparison::Ne, vec![0; 4]),
        ]);
    }
}

/// `RTN_LOCAL` (`linux/rtnetlink.h`).
pub(crate) const LOCAL: u32 = 2;

/// FIN, SYN, RST and ACK; SYN (RFC 9293 section 3.1).
pub(crate) const FLAGS: [u8; 1] = [0x17];
pub(crate) const SYN: [u8; 1] = [2];

/// Whether bytes of a header are the flags of TCP.
pub(crate) const fn is_flags(header: Header, offset: u32, length: u32) -> bool {
    matches!((header, offset, length), (Header::Transport, 13, 1))
}

/// Of FIN, SYN, RST and ACK only SYN is set.
pub(crate) fn only_syn(negated: bool) -> [Expr; 3] {
    let how = if negated { Comparison::Ne } else { Comparison::Eq };
    [
        Expr::LoadPayload { header: Header::Transport, offset: 13, length: 1 },
        Expr::Mask(FLAGS.to_vec()),
        Expr::Compare(how, SYN.to_vec()),
    ]
}

/// The family's number in `linux/netfilter.h`: `NFPROTO_IPV4`, `NFPROTO_IPV6`.
pub const fn nfproto(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// A whole name with its zeros, or the beginning of one.
pub(crate) fn interface_name(name: &InterfacePattern) -> Vec<u8> {
    const IFNAMSIZ: usize = 16;
    if let Some(beginning) = name.as_str().strip_suffix('+') {
        return beginning.as_bytes().to_vec();
    }
    let mut bytes = name.as_str().as_bytes().to_vec();
    bytes.resize(IFNAMSIZ, 0);
    bytes
}

/// The first and the last address of a network.
pub(super) fn range(cidr: Cidr) -> (Vec<u8>, Vec<u8>) {
    let first = match cidr.network().address() {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let last = first.iter().zip(mask(cidr)).map(|(byte, mask)| byte | !mask).collect();
    (first, last)
}

pub(super) fn mask(cidr: Cidr) -> Vec<u8> {
    let ones = u32::from(cidr.length());
    match cidr.family() {
        Family::V4 => u32::MAX.checked_shl(32 - ones).unwrap_or(0).to_be_bytes().to_vec(),
        Family::V6 => u128::MAX.checked_shl(128 - ones).unwrap_or(0).to_be_bytes().to_vec(),
    }
}
