//! A client of ZDS that does right or wrong as it is told, packet by packet.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_node::ztunnel::messages::{
    Ack, LONGEST, Request, Response, Version, WorkloadRequest, WorkloadResponse, ZdsHello,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use prost::Message as _;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, Shutdown, SocketAddrUnix, SocketFlags,
    SocketType, connect, recvmsg, sendmsg, shutdown, socket_with,
};

/// What a server that goes on would have said by now, on a machine however busy.
const PATIENCE: Duration = Duration::from_secs(30);

/// A connection to the agent.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
}

/// What came.
#[derive(Debug)]
pub enum Heard {
    /// A request, and the file descriptors with it.
    Request(Request, Vec<OwnedFd>),
    /// The agent has ended the connection.
    End,
    /// Nothing did in this time.
    Nothing,
}

impl Client {
    /// Connect, and say nothing.
    ///
    /// # Errors
    /// Where nobody listens there, or may be connected to.
    pub fn connect(path: &Path) -> Result<Self> {
        let kind = SocketType::SEQPACKET;
        let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        connect(&socket, &SocketAddrUnix::new(path)?)
            .with_context(|| path.display().to_string())?;
        Ok(Self { socket })
    }

    /// Say hello, as ztunnel does.
    pub fn hello(&self) -> Result<()> {
        self.send(&ZdsHello { version: Version::V1.into() }.encode_to_vec())
    }

    /// Acknowledge; with an error, unless it is empty.
    pub fn ack(&self, error: &str) -> Result<()> {
        self.send(&Self::ack_of(error))
    }

    /// The bytes of an acknowledgement.
    pub fn ack_of(error: &str) -> Vec<u8> {
        let ack = Response::Ack(Ack { error: error.to_owned() });
        WorkloadResponse { payload: Some(ack) }.encode_to_vec()
    }

    /// Send a packet.
    pub fn send(&self, bytes: &[u8]) -> Result<()> {
        self.send_with(bytes, &[])
    }

    /// Send a packet with file descriptors, at most 4.
    pub fn send_with(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ensure!(control.push(SendAncillaryMessage::ScmRights(fds)), "too many descriptors");
        }
        let parts = [IoSlice::new(bytes)];
        sendmsg(&self.socket, &parts, &mut control, SendFlags::NOSIGNAL).context("sendmsg()")?;
        Ok(())
    }

    /// End one's own side of the connection.
    pub fn shut(&self) -> Result<()> {
        shutdown(&self.socket, Shutdown::Write).context("shutdown()")
    }

    /// Wait for what comes. What ztunnel can't read is an error.
    pub fn receive(&self, limit: Duration) -> Result<Heard> {
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let limit = PollTimeout::try_from(limit).context("a time to wait")?;
        if poll(&mut ready, limit).context("poll()")? == 0 {
            return Ok(Heard::Nothing);
        }
        let mut bytes = [0; LONGEST];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        let received = recvmsg(&self.socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC);
        let received = match received {
            // What was sent and not read by the other side is lost with it.
            Err(Errno::CONNRESET) => return Ok(Heard::End),
            received => received.map_err(io::Error::from).context("recvmsg()")?,
        };
        let cut = ReturnFlags::TRUNC | ReturnFlags::CTRUNC;
        ensure!(!received.flags.intersects(cut), "it is too long: {:?}", received.flags);
        let mut fds = Vec::new();
        for message in control.drain() {
            match message {
                RecvAncillaryMessage::ScmRights(some) => fds.extend(some),
                _ => bail!("no file descriptors came, but something else"),
            }
        }
        if received.bytes == 0 {
            return Ok(Heard::End);
        }
        let request = WorkloadRequest::decode(&bytes[..received.bytes])?;
        Ok(Heard::Request(request.payload.context("a request without anything in it")?, fds))
    }

    /// The next request, which has to come.
    pub fn request(&self) -> Result<Request> {
        match self.receive(PATIENCE)? {
            Heard::Request(request, _) => Ok(request),
            other => bail!("no request, but {other:?}"),
        }
    }

    /// Wait for the end of the connection, whatever comes before it.
    pub fn is_ended(&self) -> Result<()> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Heard::End = self.receive(PATIENCE)? {
                return Ok(());
            }
        }
        bail!("the connection was not ended")
    }
}
