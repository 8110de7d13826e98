//! The conversation with `nf_tables`: dumps, and transactions that happen as a whole or not at all.

use std::cell::{Cell, RefCell};
use std::io;

use millrace_core::nft::expr::Expr;
use millrace_core::nft::needs::{NAT_CHAIN, needs};
use millrace_core::observed::TableId;
use netlink_packet_core::{
    DefaultNla, Emitable as _, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NlaBuffer, NlasIterator,
};
use netlink_packet_netfilter::nftables::{
    ChainAttribute, GenMessage, NfTablesMessage, TableMessage,
};
use netlink_packet_netfilter::none::ControlMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::decode::decode;
use super::raw::{Answer, Attributes, kind};
use super::read::{RULE_EXPRESSIONS, owned_table};
use crate::netlink::{Unreadable, messages};
use crate::privilege::Hint;

/// The kernel could not be asked, or did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The netlink socket failed, or the kernel did not answer within 30 s.
    #[error("nf_tables can't be asked: {0}")]
    Socket(#[from] io::Error),
    /// The kernel's answer makes no sense.
    #[error("the kernel's answer about nf_tables can't be read: {0}")]
    Answer(String),
    /// The kernel does not list something.
    #[error("nf_tables does not list its {what}: {why}{}", remedy(*.why))]
    Refused {
        /// What was to be listed, such as `tables` or `chains`.
        what: &'static str,
        /// The kernel's errno: `EPERM` without `NET_ADMIN`.
        why: Errno,
    },
    /// The kernel refused a transaction, and nothing of it happened.
    #[error("nf_tables refuses {what}: {why}{}{}{}", said(.text), remedy(*.why), lacks(*.why, .needs))]
    Rejected {
        /// The step that was refused, such as `chain c of table t`; else `the transaction`.
        what: String,
        /// The kernel's errno; [`is_missing`] tells which mean that the kernel lacks something.
        why: Errno,
        /// The kernel's own words; empty where it has none.
        text: String,
        /// What it needs of the kernel beside `nf_tables` itself.
        needs: Vec<String>,
    },
    /// There are no tables that belong to a process.
    #[error(
        "this kernel has no tables of nf_tables that end with the process that made them (flag owner), \
         which a trace needs to leave nothing behind: Linux 5.12 or later has them"
    )]
    Ownerless,
    /// A table is a process's own, and nobody else may change it.
    #[error(
        "nf_tables refuses {what}: the table {table} is owned by the process that made it (flag owner, \
         netlink port {port}, most often its process id), and nobody else may change it; end that \
         process"
    )]
    Owned {
        /// The step that was refused, such as `chain c of table t`.
        what: String,
        /// Name of the table, without its family.
        table: String,
        /// Netlink port of the socket that made it (`NFTA_TABLE_OWNER`).
        port: u32,
    },
    /// A map of somebody else leads to a chain that is to be removed.
    #[error(
        "chain {chain} of {table} can't be removed: map {map} of that table, which is somebody else's, \
         leads to it; take the element out of the map, or remove the map (`nft list map{} {map}`)",
        .table.to_string().trim_start_matches("table")
    )]
    Led {
        /// Name of the chain that was to be removed.
        chain: String,
        /// The table that the chain and the map are in.
        table: TableId,
        /// Name of the map that has a jump or goto to it.
        map: String,
    },
    /// Somebody else changed something since it was looked at.
    #[error("nf_tables was changed by somebody else at the same time, again and again")]
    Changed,
    /// A rule that was read from the kernel can't be written again.
    #[error("{what} was not understood when it was read, and can't be written again: {expression}")]
    NotUnderstood {
        /// The rule: by number, chain and table, or as iptables writes it.
        what: String,
        /// The first expression that is not known, by name, or the rule's text.
        expression: String,
    },
    /// A rule can't be written.
    #[error("{what} can't be written: {why}")]
    Unwritable {
        /// The rule as iptables writes it, or the chain that it should be in.
        what: String,
        /// Why, in words: a group without a number, too many ports, an unknown handle.
        why: String,
    },
    /// There is more than anybody has, so that whoever looks at somebody's namespace runs out of memory.
    #[error(
        "this namespace has more in nf_tables than is read: {MOST_ANSWERS} rules, chains and sets, in {} MiB",
        MOST_BYTES >> 20
    )]
    TooMuch,
    /// The kernel has no `nf_tables`.
    #[error("the kernel has no nf_tables: load the module nf_tables, or use iptables-legacy")]
    Absent,
}

impl From<Unreadable> for NftError {
    fn from(error: Unreadable) -> Self {
        Self::Answer(error.to_string())
    }
}

impl NftError {
    /// Whether the kernel lacks something that a transaction needs.
    pub const fn is_unsupported(&self) -> bool {
        matches!(self, Self::Rejected { why, .. } if is_missing(*why))
    }
}

fn said(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(" ({text})") }
}

fn remedy(why: Errno) -> String {
    match why {
        Errno::EPERM | Errno::EACCES => format!(
            "; this needs the capability NET_ADMIN in the user namespace that owns the network \
             namespace{}",
            Hint::look()
        ),
        _ => String::new(),
    }
}

/// What the kernel may lack of `needs`; empty unless [`is_missing`] says so of the errno.
fn lacks(why: Errno, needs: &[String]) -> String {
    if needs.is_empty() || !is_missing(why) {
        return String::new();
    }
    format!(
        "; the kernel may lack {}: load it, or use another backend (`millrace preflight` says \
         which can work)",
        needs.join(" or ")
    )
}

/// Whether an error says that the kernel does not have something.
pub const fn is_missing(why: Errno) -> bool {
    matches!(why, Errno::ENOENT | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT)
}

/// What a part of a transaction needs of the kernel.
fn needs_of(step: &Step) -> Vec<String> {
    match &step.message {
        NfTablesMessage::NewChain(chain) => {
            let nat = ChainAttribute::Type("nat".to_owned());
            chain.attributes.contains(&nat).then(|| NAT_CHAIN.to_owned()).into_iter().collect()
        }
        NfTablesMessage::NewRule(rule) => {
            let attributes = rule.attributes.as_slice();
            let mut bytes = vec![0; attributes.buffer_len()];
            attributes.emit(&mut bytes);
            let elements = Attributes(&bytes).list(RULE_EXPRESSIONS);
            let exprs: Vec<Expr> = elements.filter_map(|e| decode(e, |_| None).ok()).collect();
            needs(&exprs)
        }
        _ => Vec::new(),
    }
}

/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM: u16 = 10;
/// How long an answer may take, in seconds.
const PATIENCE: i64 = 30;
/// What every socket has room for: half of the kernel's smallest default.
const ROOM: usize = 64 * 1024;
/// Room for an answer. The kernel fills at most 32 KiB of it with a list (`netlink_dump`), or an
/// error with the message that it is about, which is no longer than its longest attribute.
const ANSWER: usize = 128 * 1024;
/// `MSG_TRUNC` (`recv(2)`): say how long an answer is that does not fit.
const MSG_TRUNC: i32 = 0x20;
/// `NFNL_MSG_BATCH_BEGIN`, `NFNL_BATCH_GENID`
const BATCH_BEGIN: u8 = 16;
const BATCH_GENERATION: u16 = 1;
/// `NFTA_GEN_ID`
const GENERATION_ID: u16 = 1;
/// `NLMSGERR_ATTR_MSG`
const ERROR_TEXT: u16 = 1;
/// `NLM_F_CAPPED`, `NLM_F_ACK_TLVS`
const CAPPED: u16 = 0x100;
const WITH_ATTRIBUTES: u16 = 0x200;
/// `NLM_F_DUMP_INTR`
const INTERRUPTED: u16 = 0x10;
/// Bytes of `struct nlmsghdr`.
const HEADER: usize = 16;

/// A part of a transaction.
#[derive(Clone, Debug)]
pub(super) struct Step {
    /// The family of its table.
    pub(super) family: NetfilterProtoFamily,
    /// The request without its headers; which number it has is up to the transaction.
    pub(super) message: NfTablesMessage,
    /// Flags besides the usual ones.
    pub(super) flags: u16,
    /// What it is, for an error.
    pub(super) what: String,
}

/// A connection, for the namespace that the thread was in when it was made.
pub(super) struct Connection {
    socket: Socket,
    /// Where answers go, one after the other.
    room: RefCell<Vec<u8>>,
    /// How many answers there were since the last look at the generation, and how many bytes.
    received: Cell<(usize, usize)>,
}

/// As many rules, chains and sets are read at once; a node with services of a large cluster has a quarter.
const MOST_ANSWERS: usize = 400_000;
const MOST_BYTES: usize = 256 << 20;

impl Connection {
    /// Connect; `None` when the kernel knows no netfilter by netlink.
    pub(super) fn open() -> Result<Option<Self>, NftError> {
        let mut socket = match Socket::new(NETLINK_NETFILTER) {
            Ok(socket) => socket,
            Err(error) if is_absent(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        // The kernel answers at once; this is for one that never does.
        let patience = TimeVal::seconds(PATIENCE);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(io::Error::from)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Words beside the number of an error, where the kernel has any (since 4.12).
        let _result: io::Result<()> = socket.set_ext_ack(true);
        let room = RefCell::new(Vec::with_capacity(ANSWER));
        Ok(Some(Self { socket, room, received: Cell::default() }))
    }

    /// The kernel's number of this connection, which no other one in the namespace has.
    pub(super) fn port(&self) -> Result<u32, NftError> {
        let mut address = SocketAddr::new(0, 0);
        self.socket.get_address(&mut address)?;
        Ok(address.port_number())
    }

    /// All that there is of something; `None` when the kernel has no `nf_tables`.
    pub(super) fn dump(
        &self,
        family: NetfilterProtoFamily,
        message: NfTablesMessage,
        what: &'static str,
    ) -> Result<Option<Vec<Answer>>, NftError> {
        let inner = NetfilterMessageInner::NfTables(message);
        self.socket.send(&packet(family, 0, inner, NLM_F_REQUEST | NLM_F_DUMP, 0), 0)?;
        let mut answers = Vec::new();
        let mut interrupted = false;
        loop {
            for packet in self.receive()? {
                // Somebody made a change while this was listed.
                if packet.header.flags & INTERRUPTED != 0 {
                    interrupted = true;
                }
                match packet.payload {
                    NetlinkPayload::Done(_) if interrupted => return Err(NftError::Changed),
                    NetlinkPayload::Done(_) => return Ok(Some(answers)),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(Some(answers)),
                        Some(code) => match Errno::from_raw(-code.get()) {
                            // Without the module nfnetlink does not know the subsystem.
                            Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT => {
                                return Ok(None);
                            }
                            why => return Err(NftError::Refused { what, why }),
                        },
                    },
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    _ => {}
                }
            }
            let (count, bytes) = self.received.get();
            if count > MOST_ANSWERS || bytes > MOST_BYTES {
                return Err(NftError::TooMuch);
            }
        }
    }

    /// The number of the last change of anything in the namespace's `nf_tables`; `None` when the
    /// kernel has none.
    pub(super) fn generation(&self) -> Result<Option<u32>, NftError> {
        self.received.set((0, 0));
        let request = NfTablesMessage::GetGen(GenMessage { attributes: Vec::new() });
        let inner = NetfilterMessageInner::NfTables(request);
        self.socket.send(&packet(NetfilterProtoFamily::Unspec, 0, inner, NLM_F_REQUEST, 0), 0)?;
        let answers = self.receive()?;
        Ok(answers.iter().find_map(|packet| match &packet.payload {
            NetlinkPayload::InnerMessage(answer) if answer.kind == kind::GENERATION => {
                answer.attributes().number(GENERATION_ID)
            }
            _ => None,
        }))
    }

    /// Whether the kernel would do all of it: a transaction without an end is looked at and
    /// forgotten.
    pub(super) fn rehearse(&self, steps: &[Step]) -> Result<(), NftError> {
        let (bytes, sequence) = batch(steps, ControlMessage::BatchBegin);
        self.socket.send(&bytes, 0)?;
        self.answer(steps, sequence)
    }

    /// Do all of it, or nothing; nothing either when anything has changed since `generation`.
    pub(super) fn transact(&self, steps: &[Step], generation: Option<u32>) -> Result<(), NftError> {
        if steps.is_empty() {
            return Ok(());
        }
        let begin = generation.map_or(ControlMessage::BatchBegin, |generation| {
            let bytes = generation.to_be_bytes().to_vec();
            let attributes = vec![DefaultNla::new(BATCH_GENERATION, bytes)];
            ControlMessage::Other { message_type: BATCH_BEGIN, attributes }
        });
        let (mut bytes, sequence) = batch(steps, begin);
        bytes.extend(control(ControlMessage::BatchEnd, sequence.saturating_add(1)));
        // A transaction is one datagram, however large; who may send it may make room for it.
        if bytes.len() > ROOM {
            setsockopt(&self.socket, sockopt::SndBufForce, &(2 * bytes.len()))
                .map_err(io::Error::from)?;
        }
        self.socket.send(&bytes, 0)?;
        self.answer(steps, sequence).map_err(or_owned)
    }

    /// Wait for what becomes of a transaction.
    fn answer(&self, steps: &[Step], sequence: u32) -> Result<(), NftError> {
        loop {
            for packet in self.receive()? {
                let NetlinkPayload::Error(error) = packet.payload else { continue };
                let number = packet.header.sequence_number;
                if let Some(code) = error.code {
                    if Errno::from_raw(-code.get()) == Errno::ERESTART {
                        return Err(NftError::Changed);
                    }
                    let index = usize::try_from(number).ok().and_then(|n| n.checked_sub(1));
                    let step = index.and_then(|i| steps.get(i));
                    let what = step.map_or("the transaction", |s| &s.what).to_owned();
                    let text = words(&error.header, packet.header.flags).unwrap_or_default();
                    return Err(NftError::Rejected {
                        what,
                        why: Errno::from_raw(-code.get()),
                        text,
                        needs: step.map(needs_of).unwrap_or_default(),
                    });
                }
                if number == sequence {
                    return Ok(());
                }
            }
        }
    }

    fn receive(&self) -> Result<Vec<NetlinkMessage<Answer>>, NftError> {
        let mut bytes = self.room.borrow_mut();
        bytes.clear();
        let (length, _) = self.socket.recv_from(&mut *bytes, MSG_TRUNC)?;
        if length > bytes.len() {
            return Err(NftError::Answer(format!("{length} bytes at once are too many")));
        }
        let messages = messages(&bytes)?;
        let (count, sum) = self.received.get();
        self.received.set((count + messages.len(), sum + length));
        Ok(messages)
    }
}

/// The error with the table's owner, where that is why.
fn or_owned(error: NftError) -> NftError {
    let NftError::Rejected { what, why: Errno::EPERM, .. } = &error else { return error };
    let Some((table, port)) = owner_of(what) else { return error };
    NftError::Owned { what: what.clone(), table, port }
}

/// The table that is named in what was refused, with its owner, if it has one.
fn owner_of(what: &str) -> Option<(String, u32)> {
    let connection = Connection::open().ok()??;
    let request = NfTablesMessage::GetTable(TableMessage { attributes: Vec::new() });
    let tables = connection.dump(NetfilterProtoFamily::Unspec, request, "tables").ok()??;
    tables.iter().filter_map(owned_table).find(|(name, _)| what.split(' ').any(|word| word == name))
}

/// The kernel's own words about an error, which come behind the message that it is about
/// (kernel `Documentation/userspace-api/netlink/intro.rst`, "Ext ACK").
fn words(about: &[u8], flags: u16) -> Option<String> {
    if flags & WITH_ATTRIBUTES == 0 {
        return None;
    }
    let length = u32::from_ne_bytes(about.get(..4)?.try_into().ok()?);
    let length = usize::try_from(length).ok()?.next_multiple_of(4);
    let attributes = about.get(if flags & CAPPED == 0 { length } else { HEADER }..)?;
    let text = NlasIterator::new(attributes)
        .filter_map(Result::ok)
        .find(|nla: &NlaBuffer<&[u8]>| nla.kind() == ERROR_TEXT)?;
    let text = text.value().split(|byte| *byte == 0).next().unwrap_or_default();
    Some(String::from_utf8_lossy(text).into_owned())
}

fn control(message: ControlMessage, sequence: u32) -> Vec<u8> {
    let inner = NetfilterMessageInner::None(message);
    packet(NetfilterProtoFamily::Unspec, SUBSYSTEM, inner, NLM_F_REQUEST, sequence)
}

/// The beginning of a transaction and its steps, with the number of the last one.
fn batch(steps: &[Step], begin: ControlMessage) -> (Vec<u8>, u32) {
    let mut bytes = control(begin, 0);
    let mut sequence = 0;
    for (index, step) in steps.iter().enumerate() {
        sequence = u32::try_from(index + 1).unwrap_or(u32::MAX);
        // The last one is answered when all have happened.
        let ack = if index + 1 == steps.len() { NLM_F_ACK } else { 0 };
        let flags = NLM_F_REQUEST | NLM_F_CREATE | step.flags | ack;
        let inner = NetfilterMessageInner::NfTables(step.message.clone());
        bytes.extend(packet(step.family, 0, inner, flags, sequence));
    }
    (bytes, sequence)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT)
    )
}

fn packet(
    family: NetfilterProtoFamily,
    resource: u16,
    inner: NetfilterMessageInner,
    flags: u16,
    sequence: u32,
) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = flags;
    header.sequence_number = sequence;
    let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, resource), inner);
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}
