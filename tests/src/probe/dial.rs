//! `probe dial`: one connection or one datagram, as somebody.

use std::io::{self, BufRead as _, BufReader};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::sys::socket::{SockaddrStorage, connect, setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::socket;
use crate::wire::{Dial, Outcome, Proto};

/// Dial, and say how it ended. An error is one of the probe itself.
pub(super) fn dial(dial: &Dial) -> Result<Outcome> {
    socket::own_sockets_as(dial.identity)?;
    let fd = prepare(dial)?;
    socket::become_identity(dial.identity)?;
    let answered = match dial.proto {
        Proto::Tcp => over_tcp(fd, dial.to),
        Proto::Udp => over_udp(fd, dial.to),
    };
    match answered {
        Ok((line, client)) => {
            let answer = serde_json::from_str(&line).with_context(|| format!("answer {line:?}"))?;
            Ok(Outcome::Answered { answer, client })
        }
        Err(error) => Ok(Outcome::Failed(socket::failure(&error))),
    }
}

fn prepare(dial: &Dial) -> Result<OwnedFd> {
    let fd = socket::new(dial.proto, dial.to)?;
    let wait = TimeVal::milliseconds(dial.timeout_ms.into());
    setsockopt(&fd, sockopt::SendTimeout, &wait).context("SO_SNDTIMEO")?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &wait).context("SO_RCVTIMEO")?;
    if let Some(mark) = dial.transparent_mark {
        socket::make_transparent(&fd)?;
        setsockopt(&fd, sockopt::Mark, &mark).context("SO_MARK")?;
    }
    if dial.from.is_some() || dial.from_port.is_some() {
        let ip = dial.from.unwrap_or_else(|| socket::any(dial.to));
        socket::bind_to(&fd, SocketAddr::new(ip, dial.from_port.unwrap_or(0)))?;
    }
    Ok(fd)
}

fn over_tcp(fd: OwnedFd, to: SocketAddr) -> io::Result<(String, SocketAddr)> {
    // std can't connect a socket that it has not made itself.
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
    let stream = TcpStream::from(fd);
    let client = stream.local_addr()?;
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line)? == 0 {
        return Err(io::Error::from_raw_os_error(nix::libc::ECONNRESET));
    }
    Ok((line, client))
}

/// The socket is connected, so an answer from any other address than `to` is not one.
fn over_udp(fd: OwnedFd, to: SocketAddr) -> io::Result<(String, SocketAddr)> {
    let socket = UdpSocket::from(fd);
    socket.connect(to)?;
    let client = socket.local_addr()?;
    socket.send(b"who")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer)?;
    let bytes = buffer.get(..length).unwrap_or_default();
    Ok((String::from_utf8_lossy(bytes).into_owned(), client))
}
