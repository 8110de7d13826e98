//! Which sockets listen: asked by `sock_diag(7)`, which walks through listeners only, however many
//! connections the node has.

use std::io;
use std::net::SocketAddr as IpSocketAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// How long to wait for the kernel, which answers at once, in seconds.
const PATIENCE: i64 = 10;
/// Room for the answers of one datagram (`NLMSG_GOODSIZE` is at most 32 KiB here).
const ROOM: usize = 32 * 1024;

/// A socket that listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Listener {
    /// 4 or 6.
    pub(super) family: u16,
    pub(super) inode: u64,
    /// Whether one of IPv6 takes no IPv4 (`IPV6_V6ONLY`).
    pub(super) v6_only: bool,
}

/// The listeners on a TCP port in the namespace that the calling thread is in: 4 or 6 for their
/// family, and their inodes.
///
/// # Errors
/// When the kernel can't be asked: `sock_diag` for TCP may be a module that is missing.
pub(super) fn listening(port: u16) -> io::Result<Vec<(u16, u64)>> {
    Ok(listeners(port)?.into_iter().map(|listener| (listener.family, listener.inode)).collect())
}

/// The same, with everything that is known of them.
///
/// # Errors
/// The same.
pub(super) fn listeners(port: u16) -> io::Result<Vec<Listener>> {
    let socket = open()?;
    let mut found = Vec::new();
    for (name, id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let request = InetRequest {
            family: name,
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::LISTEN,
            // The kernel leaves out other ports.
            socket_id: SocketId { source_port: port, ..id },
        };
        let family = if name == AF_INET { 4 } else { 6 };
        found.extend(dump(&socket, request)?.iter().map(|response| Listener {
            family,
            inode: response.header.inode.into(),
            v6_only: response.nlas.contains(&Nla::SkV6Only(true)),
        }));
    }
    Ok(found)
}

fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Where the TCP socket at this address is connected to, in the namespace that the calling thread is
/// in: as the kernel has it, whatever `getpeername()` is made to say. None if there is no such
/// socket.
///
/// # Errors
/// When the kernel can't be asked.
pub fn peer(from: IpSocketAddr) -> io::Result<Option<IpSocketAddr>> {
    let socket = open()?;
    let (family, id) = match from {
        IpSocketAddr::V4(_) => (AF_INET, SocketId::new_v4()),
        IpSocketAddr::V6(_) => (AF_INET6, SocketId::new_v6()),
    };
    let request = InetRequest {
        family,
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId { source_port: from.port(), ..id },
    };
    let ends = dump(&socket, request)?.into_iter().map(|response| response.header.socket_id);
    let mut of_it =
        ends.filter(|id| (id.source_address, id.source_port) == (from.ip(), from.port()));
    Ok(of_it.next().map(|id| (id.destination_address, id.destination_port).into()))
}

/// All sockets that a request is about.
fn dump(socket: &Socket, request: InetRequest) -> io::Result<Vec<InetResponse>> {
    let mut message = NetlinkMessage::from(SockDiagMessage::InetRequest(request));
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    let mut responses = Vec::new();
    let mut room = Vec::with_capacity(ROOM);
    loop {
        room.clear();
        socket.recv(&mut room, 0)?;
        let mut rest = room.as_slice();
        while !rest.is_empty() {
            let answer = NetlinkMessage::<SockDiagMessage>::deserialize(rest);
            let answer = answer.map_err(io::Error::other)?;
            match answer.payload {
                NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(response)) => {
                    responses.push(*response);
                }
                NetlinkPayload::Done(_) => return Ok(responses),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                _ => {}
            }
            let length = usize::try_from(answer.header.length).map_err(io::Error::other)?;
            // Messages begin at multiples of 4.
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn listeners_are_told_from_connections() {
        let [four, six] = ["127.0.0.1:0", "[::1]:0"].map(|name| TcpListener::bind(name).unwrap());
        for (listener, family) in [(four, 4), (six, 6)] {
            let address = listener.local_addr().unwrap();
            let client = TcpStream::connect(address).unwrap();
            let (_connection, _) = listener.accept().unwrap();
            let found = listening(address.port()).unwrap();
            let inodes: Vec<u64> = found.iter().map(|(_, inode)| *inode).collect();
            assert_eq!(found.len(), 1, "{found:?}");
            assert_eq!(found.iter().map(|(family, _)| *family).next(), Some(family));
            assert!(inodes.iter().all(|inode| *inode != 0));
            // Not the listener's port after it is closed: a process that another test is about to
            // start may have a copy of it for a moment.
            let elsewhere = client.local_addr().unwrap();
            assert!(listening(elsewhere.port()).unwrap().is_empty());
        }
    }
}
