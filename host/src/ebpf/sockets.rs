//! Which sockets listen: asked by `sock_diag(7)`, which walks through listeners only, however many
//! connections the node has.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;

use super::netlink::Kernel;

/// `TCP_ESTABLISHED`, `TCP_CLOSE_WAIT` (`net/tcp_states.h`).
const ESTABLISHED: u8 = 1;
const CLOSE_WAIT: u8 = 8;

/// A listening TCP socket, as `sock_diag(7)` lists it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProxySocket {
    /// 4 or 6: the version of IP.
    pub(super) family: u16,
    pub(super) inode: u64,
    /// Whether one of IPv6 takes no IPv4 (`IPV6_V6ONLY`).
    pub(super) v6_only: bool,
}

/// The listeners on a TCP port, in the namespace that the calling thread is in.
///
/// # Errors
/// When the kernel can't be asked: `sock_diag` for TCP may be a module that is missing.
pub(super) fn listeners(port: u16) -> io::Result<Vec<ProxySocket>> {
    let kernel = Kernel::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for (name, id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        // The kernel leaves out other ports.
        let id = SocketId { source_port: port, ..id };
        let family = if name == AF_INET { 4 } else { 6 };
        let listening = list(&kernel, name, StateFlags::LISTEN, id)?;
        found.extend(listening.iter().map(|response| ProxySocket {
            family,
            inode: response.header.inode.into(),
            v6_only: response.nlas.contains(&Nla::SkV6Only(true)),
        }));
    }
    Ok(found)
}

/// Where the TCP socket at this address is connected to, in the namespace that the calling thread is
/// in: as the kernel has it, whatever `getpeername()` is made to say. None if there is no such
/// socket.
///
/// # Errors
/// When the kernel can't be asked.
pub fn peer(from: SocketAddr) -> io::Result<Option<SocketAddr>> {
    let (family, id) = match from {
        SocketAddr::V4(_) => (AF_INET, SocketId::new_v4()),
        SocketAddr::V6(_) => (AF_INET6, SocketId::new_v6()),
    };
    let id = SocketId { source_port: from.port(), ..id };
    let sockets = list(&Kernel::open(NETLINK_SOCK_DIAG)?, family, StateFlags::all(), id)?;
    let mut of_it = sockets.into_iter().map(|response| response.header.socket_id);
    let found = of_it.find(|id| (id.source_address, id.source_port) == (from.ip(), from.port()));
    Ok(found.map(|id| (id.destination_address, id.destination_port).into()))
}

/// The TCP connections of the namespace that the calling thread is in, each socket from its own end to the
/// other, and whether it lasts until somebody closes it.
///
/// # Errors
/// When the kernel can't be asked.
pub fn connections() -> io::Result<Vec<(SocketAddr, SocketAddr, bool)>> {
    let kernel = Kernel::open(NETLINK_SOCK_DIAG)?;
    let mut found = Vec::new();
    for (family, any) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
        let states = StateFlags::all() & !(StateFlags::LISTEN | StateFlags::CLOSE);
        for response in list(&kernel, family, states, any)? {
            let id = response.header.socket_id;
            let end = |ip: IpAddr, port| SocketAddr::new(ip.to_canonical(), port);
            let from = end(id.source_address, id.source_port);
            let to = end(id.destination_address, id.destination_port);
            let lasting = matches!(response.header.state, ESTABLISHED | CLOSE_WAIT);
            found.push((from, to, lasting));
        }
    }
    Ok(found)
}

/// All TCP sockets of a family, in these states and with this port.
fn list(
    kernel: &Kernel,
    family: u8,
    states: StateFlags,
    socket_id: SocketId,
) -> io::Result<Vec<InetResponse>> {
    let extensions = ExtensionFlags::empty();
    let request = InetRequest { family, protocol: IPPROTO_TCP, extensions, states, socket_id };
    let answers = kernel.list(SockDiagMessage::InetRequest(request))?.into_iter();
    let response = |answer| match answer {
        SockDiagMessage::InetResponse(response) => Some(*response),
        _ => None,
    };
    Ok(answers.filter_map(response).collect())
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
            let found = listeners(address.port()).unwrap();
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found.iter().all(|found| found.family == family && found.inode != 0));
            // Not the listener's port after it is closed: a process that another test is about to
            // start may have a copy of it for a moment.
            let elsewhere = client.local_addr().unwrap();
            assert!(listeners(elsewhere.port()).unwrap().is_empty());
        }
    }
}
