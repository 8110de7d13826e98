//! What the probe program and the harness say to each other, as JSON.

use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// Transport protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Proto {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A user and group to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User id: real, effective, saved and that of new sockets.
    pub uid: u32,
    /// Group id, likewise; there are no supplementary groups.
    pub gid: u32,
}

/// A socket that `probe serve` listens on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listen {
    /// Transport protocol.
    pub proto: Proto,
    /// Address and port. A UDP listener answers from here, so it should be one address.
    pub addr: SocketAddr,
    /// Whether the socket takes connections to addresses that are not the host's (`IP_TRANSPARENT`).
    pub transparent: bool,
}

/// What `probe serve` does.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Serve {
    /// Who the listeners are, in their answers.
    pub name: String,
    /// Who owns the sockets.
    pub identity: Identity,
    /// The sockets.
    pub listen: Vec<Listen>,
}

/// What `probe dial` does: one connection, or one datagram and its reply.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Dial {
    /// Who dials.
    pub identity: Identity,
    /// Transport protocol.
    pub proto: Proto,
    /// Source address, if it is not the kernel's choice.
    pub from: Option<IpAddr>,
    /// Source port, if it is not the kernel's choice.
    pub from_port: Option<u16>,
    /// Dial from an address of somebody else, and with this packet mark, as a proxy that keeps its
    /// client's address does.
    pub transparent_mark: Option<u32>,
    /// Destination.
    pub to: SocketAddr,
    /// How long to wait for the connection and again for the answer, in milliseconds.
    pub timeout_ms: u32,
}

/// What `probe stray` does: send a SYN+ACK that belongs to no connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stray {
    /// Source address.
    pub from: IpAddr,
    /// Destination.
    pub to: SocketAddr,
    /// How long to wait for a reset, in milliseconds.
    pub timeout_ms: u32,
}

/// What a listener saw of a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Who listens.
    pub name: String,
    /// The port that was listened on.
    pub port: u16,
    /// Address of the client as the listener saw it.
    pub peer: SocketAddr,
    /// The listener's own address on this connection.
    pub local: SocketAddr,
    /// The destination before any translation (`SO_ORIGINAL_DST`). Not known for UDP.
    pub original: Option<SocketAddr>,
}

impl Answer {
    /// Connect by TCP, and wait so long for each of the connection and the answer.
    pub fn of(to: SocketAddr, patience: Duration) -> Result<Self> {
        let stream = TcpStream::connect_timeout(&to, patience).context("connect")?;
        stream.set_read_timeout(Some(patience))?;
        Self::read(stream)
    }

    /// Wait for what a listener says by TCP: one line.
    pub fn read(stream: impl Read) -> Result<Self> {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("answer {line:?}"))
    }
}

/// Why nothing answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failure {
    /// Refused at once.
    Refused,
    /// No answer in time.
    TimedOut,
    /// No way to get there.
    Unreachable,
    /// The connection was made, then broken.
    Reset,
    /// Something else, in words.
    Other(String),
}

/// How a dial ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Somebody answered.
    Answered {
        /// The answer.
        answer: Answer,
        /// The client's own address on this connection.
        client: SocketAddr,
    },
    /// Nobody did.
    Failed(Failure),
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { answer: a, client } => {
                write!(
                    f,
                    "{}:{} answered {client}, saw {} -> {}",
                    a.name, a.port, a.peer, a.local
                )?;
                a.original.map_or(Ok(()), |o| write!(f, ", original destination {o}"))
            }
            Self::Failed(failure) => write!(f, "{failure:?}"),
        }
    }
}
