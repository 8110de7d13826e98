//! Unix sockets of packets (`SOCK_SEQPACKET`, `unix(7)`): one message is one packet. Neither the standard
//! library nor tokio makes any, but what they have for sockets of bytes waits and accepts for these as
//! well.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, chmodat, statat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, bind, listen,
    recvmsg, sendmsg, socket_with,
};
use tokio::io::Interest;
use tokio::net::unix::UCred;
use tokio::net::{UnixListener, UnixStream};

/// Bytes of the longest packet that is read. What ztunnel says of an error may be long; all else is short.
const MOST: usize = 4096;
/// How many may wait to be accepted.
const BACKLOG: i32 = 16;

/// A socket that listens.
#[derive(Debug)]
pub(super) struct PacketListener(UnixListener);

/// A connection.
#[derive(Debug)]
pub(super) struct Packets(UnixStream);

/// A packet that was received.
#[derive(Debug)]
pub(super) enum Packet {
    Whole(Vec<u8>),
    /// Its end is missing: it is longer than what is read.
    Cut,
    /// File descriptors came with it, which the kernel has closed.
    WithDescriptors,
    /// The other side has ended the connection, or sent a packet of nothing.
    End,
}

impl PacketListener {
    /// Listen at this path, in the place of one that listened there before: it is there whole, with its mode,
    /// before it has the name. What is no socket is not replaced.
    pub(super) fn bind(path: &Path) -> io::Result<Self> {
        match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::Socket => {
                return Err(io::Error::new(
                    io::ErrorKind::AlreadyExists,
                    "something that is no socket is there",
                ));
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".new");
        let temp = path.with_file_name(name);
        match std::fs::remove_file(&temp) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(&socket, &SocketAddrUnix::new(&temp)?)?;
        // Nobody can connect before it listens.
        chmodat(CWD, &temp, Mode::RUSR | Mode::WUSR, AtFlags::empty())?;
        listen(&socket, BACKLOG)?;
        std::fs::rename(&temp, path)?;
        UnixListener::from_std(StdListener::from(socket)).map(Self)
    }

    /// A connection, and who made it.
    pub(super) async fn accept(&self) -> io::Result<(Packets, UCred)> {
        let (stream, _) = self.0.accept().await?;
        let peer = stream.peer_cred()?;
        Ok((Packets(stream), peer))
    }
}

impl Packets {
    /// Send a packet, and with it a file descriptor where there is one.
    pub(super) async fn send(&self, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let send = || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            let fds = fd.as_slice();
            if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
                return Err(io::Error::other("a file descriptor has no room beside a packet"));
            }
            // A packet is sent whole or not at all.
            let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
            Ok(sendmsg(&self.0, &[IoSlice::new(bytes)], &mut control, flags)?)
        };
        self.0.async_io(Interest::WRITABLE, send).await.map(drop)
    }

    /// Wait for a packet. Nothing is lost where the wait is given up.
    pub(super) async fn receive(&self) -> io::Result<Packet> {
        self.0.async_io(Interest::READABLE, || receive(self.0.as_fd())).await
    }

    /// A packet that is here already.
    pub(super) fn received(&self) -> io::Result<Option<Packet>> {
        match receive(self.0.as_fd()) {
            Ok(packet) => Ok(Some(packet)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn receive(socket: BorrowedFd<'_>) -> io::Result<Packet> {
    let mut bytes = [0; MOST];
    // Without room for any, the kernel closes descriptors that were sent, and says so (`MSG_CTRUNC`).
    let mut nowhere = RecvAncillaryBuffer::default();
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut nowhere, flags)?;
    Ok(if received.flags.contains(ReturnFlags::CTRUNC) {
        Packet::WithDescriptors
    } else if received.flags.contains(ReturnFlags::TRUNC) {
        Packet::Cut
    } else if received.bytes == 0 {
        Packet::End
    } else {
        Packet::Whole(bytes[..received.bytes].to_vec())
    })
}
