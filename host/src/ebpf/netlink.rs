//! Lists that the kernel gives by netlink, asked one after the other on one socket.

use std::fmt::Debug;
use std::io;

use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::netlink::messages;

/// How long to wait for the kernel, which answers at once, in seconds.
const PATIENCE: i64 = 10;
/// Room for the answers of one datagram (`NLMSG_GOODSIZE` is at most 32 KiB here).
const ROOM: usize = 32 * 1024;

/// Who is asked, in the namespace that the calling thread was in when it was opened.
pub(super) struct Kernel(Socket);

impl Kernel {
    /// Open a socket of a protocol of `netlink(7)`, such as `NETLINK_SOCK_DIAG`.
    pub(super) fn open(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        // Nobody but the kernel can answer then. It also binds the socket.
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Everything that a request is about. After an error, answers may still be on their way.
    pub(super) fn list<T>(&self, request: T) -> io::Result<Vec<T>>
    where
        T: NetlinkSerializable + NetlinkDeserializable + Debug,
    {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.0.send(&bytes, 0)?;
        let mut list = Vec::new();
        let mut room = Vec::with_capacity(ROOM);
        loop {
            room.clear();
            self.0.recv(&mut room, 0)?;
            for answer in messages(&room).map_err(io::Error::other)? {
                match answer.payload {
                    NetlinkPayload::InnerMessage(one) => list.push(one),
                    NetlinkPayload::Done(_) => return Ok(list),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }
}
