//! Tracing: a table that ends with its maker, and what the kernel tells of packets
//! (`nf_tables_trace.c`).

use std::os::fd::{AsFd, BorrowedFd};

use millrace_core::nft::tables::NativeTable;
use millrace_core::trace::report::Handles;
use millrace_core::trace::{Head, Heard, RuleRef, Said, TABLE_PREFIX, Tables, TraceVerdict};
use netlink_packet_core::NetlinkPayload;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    NfTablesMessage, RuleMessage, TableAttribute, TableFlags,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use nix::sys::socket::{setsockopt, sockopt};

use super::batch::{Batch, table};
use super::raw::{Answer, Attributes, kind};
use super::read::{RULE_HANDLE, TableFamily, chain_of, family_of};
use super::socket::{Connection, NftError};
use crate::netlink::messages;

/// `NFNLGRP_NFTRACE`
const GROUP: u32 = 9;
/// `NFTA_TRACE_TABLE`, `NFTA_TRACE_CHAIN`, `NFTA_TRACE_RULE_HANDLE`, `NFTA_TRACE_TYPE`,
/// `NFTA_TRACE_VERDICT`, `NFTA_TRACE_ID`
const TRACE: (u16, u16, u16, u16, u16, u16) = (1, 2, 3, 4, 5, 6);
/// `NFTA_TRACE_NETWORK_HEADER`, `NFTA_TRACE_TRANSPORT_HEADER`
const HEADERS: (u16, u16) = (8, 9);
/// `NFTA_TRACE_IIF`, `NFTA_TRACE_OIF`, `NFTA_TRACE_MARK`, `NFTA_TRACE_POLICY`
const REST: (u16, u16, u16, u16) = (10, 12, 14, 16);
/// `NFT_TRACETYPE_POLICY`, `NFT_TRACETYPE_RETURN`, `NFT_TRACETYPE_RULE`
const TYPE: (u32, u32, u32) = (1, 2, 3);
/// `NFTA_VERDICT_CODE`
const VERDICT_CODE: u16 = 1;
/// `NF_DROP`
const DROP: u32 = 0;
/// Room for what the kernel tells while nobody reads.
const ROOM: usize = 8 * 1024 * 1024;
/// The longest of the kernel's messages about a packet.
const MESSAGE: usize = 16 * 1024;

/// A table that the kernel removes as soon as this is gone, however that happens
/// (`NFT_TABLE_F_OWNER`, Linux 5.12).
pub(crate) struct OwnedTable {
    _owner: Connection,
    name: String,
}

impl OwnedTable {
    /// Make it, with a name that begins so and that no other one has.
    pub(crate) fn make(prefix: &str, content: &NativeTable) -> Result<Self, NftError> {
        let connection = Connection::open()?.ok_or(NftError::Absent)?;
        let name = format!("{prefix}{}", connection.port()?);
        let mut batch = owned(&name);
        batch.content(&name, content)?;
        connection.transact(batch.steps(), None).map_err(|error| ownerless(error, &name))?;
        Ok(Self { _owner: connection, name })
    }

    /// Whether the kernel has such tables, without making one.
    ///
    /// # Errors
    /// That it has none, or can't be asked.
    pub(crate) fn rehearse() -> Result<(), NftError> {
        let connection = Connection::open()?.ok_or(NftError::Absent)?;
        let name = format!("{TABLE_PREFIX}{}", connection.port()?);
        connection.rehearse(owned(&name).steps()).map_err(|error| ownerless(error, &name))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

fn owned(name: &str) -> Batch {
    let mut batch = Batch::new(NetfilterProtoFamily::Inet);
    let mut message = table(name);
    message.attributes.push(TableAttribute::Flags(TableFlags::Owner));
    batch.step(NfTablesMessage::NewTable(message), what(name));
    batch
}

fn what(name: &str) -> String {
    format!("table {name}")
}

/// A kernel that does not know the flag says no more than that the table is not well made.
fn ownerless(error: NftError, name: &str) -> NftError {
    match error {
        NftError::Rejected { what: refused, why: Errno::EINVAL | Errno::EOPNOTSUPP, .. }
            if refused == what(name) =>
        {
            NftError::Ownerless
        }
        error => error,
    }
}

/// Hears what the kernel tells of every packet that somebody traces in the namespace.
pub(crate) struct TraceSocket {
    socket: Socket,
}

impl AsFd for TraceSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// What was told since the last time.
#[derive(Debug, Default)]
pub(crate) struct TraceBatch {
    pub(crate) heard: Vec<Heard>,
    /// Whether there was more than there was room for.
    pub(crate) lost: bool,
}

impl TraceSocket {
    pub(crate) fn open() -> Result<Self, NftError> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        // More room than others may have is a privilege; without it, less has to do.
        let _forced = setsockopt(&socket, sockopt::RcvBufForce, &ROOM);
        socket.bind_auto()?;
        socket.add_membership(GROUP).map_err(|error| NftError::Refused {
            what: "traces",
            why: Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO)),
        })?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// Everything that has been told.
    pub(crate) fn hear(&self) -> Result<TraceBatch, NftError> {
        let mut all = TraceBatch::default();
        drain(&self.socket, &mut all.lost, |bytes| {
            for message in messages::<Answer>(bytes)? {
                if let NetlinkPayload::InnerMessage(answer) = message.payload {
                    all.heard.extend(heard(&answer));
                }
            }
            Ok(())
        })?;
        Ok(all)
    }
}

/// Read datagrams until there are no more.
pub(crate) fn drain(
    socket: &Socket,
    lost: &mut bool,
    mut take: impl FnMut(&[u8]) -> Result<(), NftError>,
) -> Result<(), NftError> {
    let mut bytes = Vec::with_capacity(MESSAGE);
    loop {
        bytes.clear();
        match socket.recv(&mut bytes, 0) {
            Ok(_) => take(&bytes)?,
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EAGAIN) => return Ok(()),
                Some(Errno::ENOBUFS) => *lost = true,
                Some(Errno::EINTR) => {}
                _ => return Err(error.into()),
            },
        }
    }
}

fn heard(answer: &Answer) -> Option<Heard> {
    if answer.kind != kind::TRACE {
        return None;
    }
    let tables = match family_of(answer)? {
        TableFamily::Inet => Tables::Inet,
        TableFamily::Ip(family) => Tables::Ip(family),
    };
    let a = answer.attributes();
    let code = || a.nested(TRACE.4)?.number(VERDICT_CODE);
    let dropped =
        |code: Option<u32>| if code == Some(DROP) { TraceVerdict::Drop } else { TraceVerdict::On };
    let kind = a.number(TRACE.3)?;
    let said = match kind {
        _ if kind == TYPE.0 => Said::Policy(dropped(a.number(REST.3))),
        _ if kind == TYPE.1 => Said::Return,
        // Without a rule it is the end of the chain's rules.
        _ if kind == TYPE.2 => a
            .long(TRACE.2)
            .map_or(Said::Return, |handle| Said::Rule(RuleRef::Handle(handle), dropped(code()))),
        _ => return None,
    };
    Some(Heard {
        tables,
        table: a.text(TRACE.0)?.to_owned(),
        chain: a.text(TRACE.1)?.to_owned(),
        said,
        id: a.number(TRACE.5),
        hook: None,
        head: head(a),
    })
}

fn head(a: Attributes<'_>) -> Option<Head> {
    let mut head = Head::read(a.get(HEADERS.0)?, a.get(HEADERS.1).unwrap_or_default())?;
    head.input = a.number(REST.0).map(interface);
    head.output = a.number(REST.1).map(interface);
    head.mark = a.number(REST.2).unwrap_or(0);
    Some(head)
}

/// The name of an interface; its number if it is gone.
pub(crate) fn interface(index: u32) -> String {
    let name = if_indextoname(index).ok().and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| format!("interface {index}"))
}

/// The number of the last change of anything in `nf_tables`.
///
/// # Errors
/// When the kernel does not tell.
pub fn generation() -> Result<Option<u32>, NftError> {
    Connection::open()?.ok_or(NftError::Absent)?.generation()
}

/// The numbers of all rules of families `ip`, `ip6` and `inet`.
///
/// # Errors
/// When the kernel does not list them.
pub fn handles() -> Result<Handles, NftError> {
    let connection = Connection::open()?.ok_or(NftError::Absent)?;
    let mut handles = Handles::new();
    let request = NfTablesMessage::GetRule(RuleMessage { attributes: Vec::new() });
    let answers = connection.dump(NetfilterProtoFamily::Unspec, request, "rules")?;
    for answer in answers.into_iter().flatten().filter(|answer| answer.kind == kind::RULE) {
        let tables = match family_of(&answer) {
            Some(TableFamily::Inet) => Tables::Inet,
            Some(TableFamily::Ip(family)) => Tables::Ip(family),
            None => continue,
        };
        let rule = answer.attributes();
        let (Some((table, chain)), Some(handle)) = (chain_of(rule), rule.long(RULE_HANDLE)) else {
            continue;
        };
        let key = (tables, table.to_owned(), chain.to_owned());
        handles.entry(key).or_default().push(handle);
    }
    Ok(handles)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_that_does_not_know_the_flag_is_told_from_other_refusals() {
        let rejected = |what: &str, why| NftError::Rejected {
            what: what.to_owned(),
            why,
            text: String::new(),
            needs: Vec::new(),
        };
        let found = |what: &str, why| ownerless(rejected(what, why), "millrace-trace-1");
        let table = "table millrace-trace-1";
        assert!(matches!(found(table, Errno::EINVAL), NftError::Ownerless));
        assert!(matches!(found(table, Errno::EPERM), NftError::Rejected { .. }));
        let rule = "rule 1 of chain x of table millrace-trace-1";
        assert!(matches!(found(rule, Errno::EINVAL), NftError::Rejected { .. }));
    }
}
