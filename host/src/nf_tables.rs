//! Which tables `nf_tables` has, asked of the kernel itself (`linux/netfilter/nf_tables.h`). Asking
//! makes nothing: neither a process nor a table.

use std::io;

use millrace_core::value::Family;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::nftables::{NfTablesMessage, TableAttribute, TableMessage};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

/// The kernel could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum NfTablesError {
    /// The socket failed.
    #[error("nf_tables can't be asked for its tables: {0}")]
    Socket(#[from] io::Error),
    /// The kernel's answer makes no sense.
    #[error("the kernel's list of nf_tables tables can't be read: {0}")]
    Answer(String),
    /// The kernel said no.
    #[error(
        "the kernel does not list the tables of nf_tables: {0}; this needs the capability \
         NET_ADMIN in the user namespace that owns the network namespace"
    )]
    Refused(Errno),
}

/// The IPv4 and IPv6 tables of `nf_tables` by name; `None` when the kernel has no `nf_tables`.
///
/// # Errors
/// When the kernel can't be asked.
pub fn tables() -> Result<Option<Vec<(Family, String)>>, NfTablesError> {
    let mut socket = match Socket::new(NETLINK_NETFILTER) {
        Ok(socket) => socket,
        Err(error) if is_absent(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&request(), 0)?;
    let mut tables = Vec::new();
    loop {
        let (bytes, _) = socket.recv_from_full()?;
        match read(&bytes, &mut tables)? {
            Step::More => {}
            Step::Done => return Ok(Some(tables)),
            // Without the module nfnetlink does not know the subsystem.
            Step::Failed(Errno::EINVAL | Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT) => {
                return Ok(None);
            }
            Step::Failed(errno) => return Err(NfTablesError::Refused(errno)),
        }
    }
}

/// Whether the kernel has `nf_tables`. Where it can't be asked, nothing says that it has not.
pub fn is_supported() -> bool {
    !matches!(tables(), Ok(None))
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT)
    )
}

/// `NFT_MSG_GETTABLE` for all families.
fn request() -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let message = NetfilterMessage::new(
        NetfilterHeader::new(NetfilterProtoFamily::Unspec, 0, 0),
        NetfilterMessageInner::NfTables(NfTablesMessage::GetTable(TableMessage {
            attributes: Vec::new(),
        })),
    );
    let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    bytes
}

/// How the answer goes on.
enum Step {
    More,
    Done,
    Failed(Errno),
}

/// Read one datagram of the answer.
fn read(bytes: &[u8], tables: &mut Vec<(Family, String)>) -> Result<Step, NfTablesError> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let packet = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
            .map_err(|e| NfTablesError::Answer(e.to_string()))?;
        match &packet.payload {
            NetlinkPayload::Done(_) => return Ok(Step::Done),
            NetlinkPayload::Error(error) => {
                return Ok(match error.code {
                    None => Step::Done,
                    Some(code) => Step::Failed(Errno::from_raw(-code.get())),
                });
            }
            NetlinkPayload::InnerMessage(message) => tables.extend(table(message)),
            _ => {}
        }
        // Messages are aligned to four bytes (netlink(7), NLMSG_ALIGN).
        let length = usize::try_from(packet.header.length).unwrap_or(0).next_multiple_of(4);
        if length == 0 {
            return Err(NfTablesError::Answer("a message without length".to_owned()));
        }
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(Step::More)
}

fn table(message: &NetfilterMessage) -> Option<(Family, String)> {
    let family = match message.header.family {
        NetfilterProtoFamily::IPv4 => Family::V4,
        NetfilterProtoFamily::IPv6 => Family::V6,
        _ => return None,
    };
    let NetfilterMessageInner::NfTables(NfTablesMessage::NewTable(table)) = &message.inner else {
        return None;
    };
    table.attributes.iter().find_map(|a| match a {
        TableAttribute::Name(name) => Some((family, name.clone())),
        _ => None,
    })
}
