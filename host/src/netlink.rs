//! What every conversation with the kernel by netlink has in common (`netlink(7)`).

use std::io;
use std::net::IpAddr;

use netlink_packet_core::{NetlinkDeserializable, NetlinkMessage};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use tokio::runtime::{Builder, Runtime};

/// Pairs of descriptors that a runtime may need.
const PAIRS: usize = 4;

/// What a conversation runs in, on the calling thread.
///
/// # Errors
/// `EMFILE` where there is no room for its descriptors: where tokio's feature `process` is on, its driver
/// for signals panics instead.
pub fn runtime() -> io::Result<Runtime> {
    let room: Result<Vec<_>, _> = (0..PAIRS).map(|_| pipe2(OFlag::O_CLOEXEC)).collect();
    drop(room?);
    Builder::new_current_thread().enable_io().enable_time().build()
}

/// Bytes that are no messages.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unreadable(String);

/// The messages of one datagram.
pub(crate) fn messages<T: NetlinkDeserializable>(
    bytes: &[u8],
) -> Result<Vec<NetlinkMessage<T>>, Unreadable> {
    let mut rest = bytes;
    let mut packets = Vec::new();
    while !rest.is_empty() {
        let packet =
            NetlinkMessage::<T>::deserialize(rest).map_err(|e| Unreadable(e.to_string()))?;
        // Messages are aligned to four bytes (netlink(7), NLMSG_ALIGN).
        let length = usize::try_from(packet.header.length).unwrap_or(0).next_multiple_of(4);
        if length == 0 {
            return Err(Unreadable("a message without length".to_owned()));
        }
        rest = rest.get(length..).unwrap_or_default();
        packets.push(packet);
    }
    Ok(packets)
}

/// The address of this end: of a point-to-point interface the kernel tells both
/// (`rtnetlink(7)`, `IFA_LOCAL`).
pub(crate) fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let of = |wanted: fn(&AddressAttribute) -> Option<IpAddr>| {
        message.attributes.iter().find_map(wanted)
    };
    let local = of(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        of(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}
