//! Making a connection as some user.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, getsockopt, socket, sockopt,
};

use super::listen::ProbeSocket;

/// User and group of a connection, and whether this process can make it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum As {
    /// This process, whose user and group these are.
    Oneself { uid: u32, gid: u32 },
    /// Another user, by another process.
    Other { uid: u32, gid: u32 },
}

impl As {
    pub(super) const fn uid(self) -> u32 {
        match self {
            Self::Oneself { uid, .. } | Self::Other { uid, .. } => uid,
        }
    }

    pub(super) const fn gid(self) -> u32 {
        match self {
            Self::Oneself { gid, .. } | Self::Other { gid, .. } => gid,
        }
    }
}

impl fmt::Display for As {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "user {} group {}", self.uid(), self.gid())
    }
}

/// A connection was not captured as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum DialError {
    /// It could not be tried.
    NotPossible(String),
    /// The user can't be used by this one.
    NotAllowed(String),
    /// It was made or tried, and did not reach the listener; why, in words.
    Failed(String),
}

/// Connect, and give the original destination that the listener saw; none when somebody else
/// took the connection.
pub(super) fn dial(
    user: As,
    from: Option<IpAddr>,
    to: SocketAddr,
    patience: Duration,
    listener: &ProbeSocket,
) -> Result<Option<SocketAddr>, DialError> {
    let failed = |e: io::Error| DialError::Failed(e.to_string());
    let held = match user {
        As::Oneself { .. } => Held::Socket(connect_from(from, to, patience).map_err(judge)?),
        As::Other { uid, gid } => Held::Child(spawn(uid, gid, from, to, patience)?),
    };
    // The connection is complete, or will be: the listener's end of it is what counts.
    let seen = listener.accept(patience).map_err(failed)?;
    if let Some((_, original)) = seen {
        return Ok(Some(original));
    }
    match held {
        Held::Socket(_) => Ok(None),
        Held::Child(child) => match said(child)? {
            None => Ok(None),
            Some(errno) => Err(judge(errno)),
        },
    }
}

/// What keeps a connection open.
enum Held {
    Socket(#[expect(dead_code, reason = "open until dropped")] OwnedFd),
    Child(Child),
}

/// What an error number means here.
fn judge(errno: Errno) -> DialError {
    match errno {
        Errno::ENETUNREACH | Errno::EHOSTUNREACH => DialError::NotPossible(format!(
            "{errno}: there is no route to that address from here, so nothing can be sent"
        )),
        Errno::EADDRNOTAVAIL => {
            DialError::Failed(format!("{errno}: the address is not there (::6 belongs on lo)"))
        }
        Errno::ECONNREFUSED => DialError::Failed(format!("{errno}: it was not captured")),
        Errno::ETIMEDOUT | Errno::EINPROGRESS => DialError::Failed(
            "nobody answered: it was not captured, or its answer was lost".to_owned(),
        ),
        other => DialError::Failed(other.to_string()),
    }
}

fn connect_from(
    from: Option<IpAddr>,
    to: SocketAddr,
    patience: Duration,
) -> Result<OwnedFd, Errno> {
    let domain = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(domain, SockType::Stream, flags, None)?;
    if let Some(from) = from {
        bind(fd.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    }
    match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
        Ok(()) => return Ok(fd),
        Err(Errno::EINPROGRESS) => {}
        Err(errno) => return Err(errno),
    }
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX))? == 0 {
        return Err(Errno::ETIMEDOUT);
    }
    match getsockopt(&fd, sockopt::SocketError)? {
        0 => Ok(fd),
        error => Err(Errno::from_raw(error)),
    }
}

/// Have this program's hidden command dial as another user.
fn spawn(
    uid: u32,
    gid: u32,
    from: Option<IpAddr>,
    to: SocketAddr,
    patience: Duration,
) -> Result<Child, DialError> {
    let from = from.map_or_else(|| "-".to_owned(), |a| a.to_string());
    let spawned = Command::new("/proc/self/exe")
        .args(["dial", &from, &to.to_string(), &patience.as_millis().to_string()])
        .uid(uid)
        .gid(gid)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    spawned.map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EPERM) => DialError::NotAllowed(format!(
            "user {uid} can't be used: it needs the capabilities SETUID and SETGID, or to be run by \
             that user"
        )),
        _ => DialError::NotPossible(format!("user {uid} can't be used: {error}")),
    })
}

/// What the other process says: an error number, or nothing when it was connected.
fn said(child: Child) -> Result<Option<Errno>, DialError> {
    let failed = |e: String| DialError::Failed(e);
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if text == "connected" {
        return Ok(None);
    }
    match text.parse() {
        Ok(number) => Ok(Some(Errno::from_raw(number))),
        Err(_) => Err(failed(format!("the other user's process said {text:?}"))),
    }
}

/// The hidden command: connect from an address (`-` for any) to another, say `connected` or an
/// error number, and end with 0 if the words made sense.
pub fn dial_main(words: &[String]) -> String {
    let [from, to, patience] = words else { return "22".to_owned() };
    let parsed = (from.parse().ok(), to.parse().ok(), patience.parse().ok());
    let (from, Some(to), Some(patience)) = parsed else { return "22".to_owned() };
    match connect_from(from, to, Duration::from_millis(patience)) {
        Ok(_) => "connected".to_owned(),
        Err(errno) => (errno as i32).to_string(),
    }
}
