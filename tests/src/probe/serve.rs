//! `probe serve`: listeners that say who they are and what they see of each connection.

use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::cmsg_space;
use nix::libc::{sockaddr_in, sockaddr_in6};
use nix::sys::socket::{
    Backlog, ControlMessageOwned, MsgFlags, SockaddrStorage, getsockopt, listen, recvmsg,
    setsockopt, sockopt,
};

use super::socket;
use crate::wire::{Answer, Listen, Proto, Serve};

/// Serve until standard input ends: with the process that started this, however it ends. Prints
/// `ready` when every socket listens.
pub(super) fn serve(serve: &Serve) -> Result<()> {
    socket::own_sockets_as(serve.identity)?;
    let sockets = serve
        .listen
        .iter()
        .map(Socket::open)
        .collect::<Result<Vec<Socket>>>()
        .with_context(|| format!("listeners of {}", serve.name))?;
    // Who answers from addresses that are not this host's makes such sockets later, and needs the
    // capability for it.
    if !sockets.iter().any(|socket| matches!(socket, Socket::TransparentUdp(_))) {
        socket::become_identity(serve.identity)?;
    }
    for socket in sockets {
        let name = serve.name.clone();
        // Ends with the process.
        let _thread = thread::spawn(move || socket.serve(&name));
    }
    io::stdout().write_all(b"ready\n").context("standard output")?;
    let mut rest = Vec::new();
    io::stdin().read_to_end(&mut rest).map(drop).context("standard input")
}

/// How long a client may take to hear an answer.
const HEARS: Duration = Duration::from_secs(10);

enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
    /// It answers from the address that a datagram was sent to.
    TransparentUdp(UdpSocket),
}

impl Socket {
    fn open(wanted: &Listen) -> Result<Self> {
        let fd = socket::new(wanted.proto, wanted.addr)?;
        if wanted.transparent {
            socket::make_transparent(&fd)?;
        }
        socket::bind_to(&fd, wanted.addr)?;
        Ok(match wanted.proto {
            Proto::Tcp => {
                listen(&fd, Backlog::MAXCONN).context("listen()")?;
                Self::Tcp(TcpListener::from(fd))
            }
            Proto::Udp if wanted.transparent => {
                if wanted.addr.is_ipv4() {
                    setsockopt(&fd, sockopt::Ipv4OrigDstAddr, &true)
                        .context("IP_RECVORIGDSTADDR")?;
                } else {
                    setsockopt(&fd, sockopt::Ipv6OrigDstAddr, &true)
                        .context("IPV6_RECVORIGDSTADDR")?;
                }
                Self::TransparentUdp(UdpSocket::from(fd))
            }
            Proto::Udp => Self::Udp(UdpSocket::from(fd)),
        })
    }

    /// Answer for ever. A client that goes away is no reason to stop.
    fn serve(&self, name: &str) {
        loop {
            let answered = match self {
                Self::Tcp(listener) => listener
                    .accept()
                    .and_then(|(stream, peer)| answer(name, listener, stream, peer)),
                Self::Udp(socket) => udp(name, socket),
                Self::TransparentUdp(socket) => transparent_udp(name, socket),
            };
            if let Err(error) = answered {
                let _written = writeln!(io::stderr(), "probe: {name}: {error}");
            }
        }
    }
}

/// Tell a client who answers and what is seen of its connection, which it is to end.
///
/// # Errors
/// When it doesn't hear that.
pub fn answer(
    name: &str,
    listener: &TcpListener,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> io::Result<()> {
    let answer = Answer {
        name: name.to_owned(),
        port: listener.local_addr()?.port(),
        peer,
        local: stream.local_addr()?,
        original: original_destination(&stream).ok(),
    };
    let mut line = serde_json::to_string(&answer)?;
    line.push('\n');
    stream.write_all(line.as_bytes())?;
    // The end of the connection does not go with what is said: rules may tell them apart.
    stream.set_read_timeout(Some(HEARS))?;
    let _thread = thread::spawn(move || stream.read(&mut [0; 1]));
    Ok(())
}

fn udp(name: &str, socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 2048];
    let (_, peer) = socket.recv_from(&mut buffer)?;
    let local = socket.local_addr()?;
    let answer = Answer { name: name.to_owned(), port: local.port(), peer, local, original: None };
    socket.send_to(serde_json::to_string(&answer)?.as_bytes(), peer).map(drop)
}

/// As a transparent proxy does: a socket with the datagram's own destination answers.
fn transparent_udp(name: &str, socket: &UdpSocket) -> io::Result<()> {
    let mut buffer = [0; 2048];
    let mut space = cmsg_space!(sockaddr_in, sockaddr_in6);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let got = recvmsg::<SockaddrStorage>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::empty(),
    )?;
    let missing = || io::Error::other("a datagram without its addresses");
    let peer = got.address.as_ref().and_then(inet).ok_or_else(missing)?;
    let original = got.cmsgs()?.find_map(|part| match part {
        ControlMessageOwned::Ipv4OrigDstAddr(a) => Some(of_v4(&a)),
        ControlMessageOwned::Ipv6OrigDstAddr(a) => Some(of_v6(&a)),
        _ => None,
    });
    let original = original.ok_or_else(missing)?;
    let port = socket.local_addr()?.port();
    let answer =
        Answer { name: name.to_owned(), port, peer, local: original, original: Some(original) };
    let fd = socket::new(Proto::Udp, original).map_err(io::Error::other)?;
    socket::make_transparent(&fd).map_err(io::Error::other)?;
    socket::bind_to(&fd, original).map_err(io::Error::other)?;
    let back = UdpSocket::from(fd);
    back.connect(peer)?;
    back.send(serde_json::to_string(&answer)?.as_bytes()).map(drop)
}

fn inet(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|a| SocketAddrV4::from(*a).into());
    v4.or_else(|| address.as_sockaddr_in6().map(|a| SocketAddrV6::from(*a).into()))
}

fn of_v4(a: &sockaddr_in) -> SocketAddr {
    SocketAddrV4::new(u32::from_be(a.sin_addr.s_addr).into(), u16::from_be(a.sin_port)).into()
}

fn of_v6(a: &sockaddr_in6) -> SocketAddr {
    SocketAddrV6::new(a.sin6_addr.s6_addr.into(), u16::from_be(a.sin6_port), 0, 0).into()
}

/// Where an accepted connection was meant to go, as a proxy asks; an error where nothing knows.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    if stream.local_addr()?.is_ipv4() {
        Ok(of_v4(&getsockopt(stream, sockopt::OriginalDst)?))
    } else {
        Ok(of_v6(&getsockopt(stream, sockopt::Ip6tOriginalDst)?))
    }
}
