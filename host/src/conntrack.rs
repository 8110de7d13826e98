//! What the kernel's connection tracking knows of a connection: where it really went
//! (`linux/netfilter/nfnetlink_conntrack.h`). Asking needs the capability `NET_ADMIN`.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use netlink_packet_core::{
    DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_netfilter::conntrack::{
    ConntrackAttribute, ConntrackMessage, IPTuple, ProtoInfo, ProtoInfoTCP, ProtoTuple, Protocol,
    Status, Tuple,
};
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr as KernelAddr};
use nix::errno::Errno;

/// `CTA_ZONE`
const ZONE: u16 = 18;
/// `TCP_CONNTRACK_ESTABLISHED` (`linux/netfilter/nf_conntrack_tcp.h`)
const ESTABLISHED: u8 = 3;
/// Bytes of the buffer for one datagram; what is behind them would be cut off.
const ANSWER: usize = 16 * 1024;

/// A connection as it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// TCP, or else UDP.
    pub tcp: bool,
    /// Where it was made from.
    pub from: SocketAddr,
    /// Where it was made to.
    pub to: SocketAddr,
}

/// Connection tracking of the namespace that the thread was in when it was opened.
pub struct Conntrack {
    socket: Socket,
}

impl Conntrack {
    /// Open a netlink socket to conntrack in the calling thread's network namespace.
    ///
    /// # Errors
    /// When there is no netlink.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&KernelAddr::new(0, 0))?;
        Ok(Self { socket })
    }

    /// Who answers in a connection: where it went. `None` when it is not tracked in this zone.
    ///
    /// # Errors
    /// `EPERM` without `NET_ADMIN`; `ENOENT` is no error, but `None`.
    pub fn answerer(&self, flow: &Flow, zone: u16) -> Result<Option<SocketAddr>, Errno> {
        self.send(flow, zone, ConntrackMessage::Get)?;
        let mut found = None;
        self.answers(|message| {
            if let ConntrackMessage::New(attributes) = message {
                found = attributes.iter().find_map(|attribute| match attribute {
                    ConntrackAttribute::CtaTupleReply(tuple) => source(tuple),
                    _ => None,
                });
            }
        })?;
        Ok(found)
    }

    /// Remove a connection's conntrack entry (`IPCTNL_MSG_CT_DELETE`), if there is one.
    ///
    /// # Errors
    /// `EPERM` without `NET_ADMIN`; `ENOENT` is no error.
    pub fn forget(&self, flow: &Flow, zone: u16) -> Result<(), Errno> {
        self.send(flow, zone, ConntrackMessage::Delete)?;
        self.answers(|_| {})
    }

    /// Hold a connection of TCP for one that is established, was never translated, and is forgotten
    /// when it has been silent for this long.
    ///
    /// # Errors
    /// `EPERM` without `NET_ADMIN`, `EEXIST` where there is one.
    pub fn suppose(&self, flow: &Flow, silent: Duration) -> Result<(), Errno> {
        let back = Flow { tcp: flow.tcp, from: flow.to, to: flow.from };
        let tcp = ProtoInfo::TCP(vec![ProtoInfoTCP::State(ESTABLISHED)]);
        let seconds = u32::try_from(silent.as_secs()).unwrap_or(u32::MAX);
        let more = vec![
            ConntrackAttribute::CtaTupleReply(ends(&back)),
            // The kernel makes it confirmed, and refuses what says otherwise.
            ConntrackAttribute::CtaStatus(Status::SeenReply | Status::Assured | Status::Confirmed),
            ConntrackAttribute::CtaTimeout(seconds),
            ConntrackAttribute::CtaProtoInfo(vec![tcp]),
        ];
        self.sent(flow, 0, more, NLM_F_CREATE | NLM_F_EXCL, ConntrackMessage::New)?;
        self.answers(|_| {})
    }

    fn send(
        &self,
        flow: &Flow,
        zone: u16,
        message: fn(Vec<ConntrackAttribute>) -> ConntrackMessage,
    ) -> Result<(), Errno> {
        self.sent(flow, zone, Vec::new(), 0, message)
    }

    fn sent(
        &self,
        flow: &Flow,
        zone: u16,
        more: Vec<ConntrackAttribute>,
        flags: u16,
        message: fn(Vec<ConntrackAttribute>) -> ConntrackMessage,
    ) -> Result<(), Errno> {
        let mut attributes = vec![ConntrackAttribute::CtaTupleOrig(ends(flow))];
        attributes.extend(more);
        if zone != 0 {
            let zone = DefaultNla::new(ZONE, zone.to_be_bytes().to_vec());
            attributes.push(ConntrackAttribute::Other(zone));
        }
        let family = match flow.to {
            SocketAddr::V4(_) => NetfilterProtoFamily::IPv4,
            SocketAddr::V6(_) => NetfilterProtoFamily::IPv6,
        };
        let inner = NetfilterMessageInner::Conntrack(message(attributes));
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), inner);
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map(drop).map_err(|error| errno(&error))
    }

    /// Everything until the kernel says that it is done.
    fn answers(&self, mut take: impl FnMut(&ConntrackMessage)) -> Result<(), Errno> {
        loop {
            let mut bytes = Vec::with_capacity(ANSWER);
            self.socket.recv(&mut bytes, 0).map_err(|error| errno(&error))?;
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let packet = NetlinkMessage::<NetfilterMessage>::deserialize(rest)
                    .map_err(|_error| Errno::EBADMSG)?;
                // Messages are aligned to four bytes (netlink(7), NLMSG_ALIGN).
                let length = usize::try_from(packet.header.length).unwrap_or(0);
                let length = length.next_multiple_of(4).max(4);
                rest = rest.get(length..).unwrap_or_default();
                match packet.payload {
                    NetlinkPayload::Error(error) => {
                        return match error.code.map(|code| Errno::from_raw(-code.get())) {
                            None | Some(Errno::ENOENT) => Ok(()),
                            Some(errno) => Err(errno),
                        };
                    }
                    NetlinkPayload::InnerMessage(message) => {
                        if let NetfilterMessageInner::Conntrack(message) = &message.inner {
                            take(message);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

/// The ends of a connection's packets.
fn ends(flow: &Flow) -> Vec<Tuple> {
    let protocol = if flow.tcp { Protocol::Tcp } else { Protocol::Udp };
    vec![
        Tuple::Ip(vec![
            IPTuple::SourceAddress(flow.from.ip()),
            IPTuple::DestinationAddress(flow.to.ip()),
        ]),
        Tuple::Proto(vec![
            ProtoTuple::Protocol(protocol),
            ProtoTuple::SourcePort(flow.from.port()),
            ProtoTuple::DestinationPort(flow.to.port()),
        ]),
    ]
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// Where packets of a direction come from.
fn source(tuple: &[Tuple]) -> Option<SocketAddr> {
    let ip = tuple.iter().find_map(|part| match part {
        Tuple::Ip(parts) => parts.iter().find_map(|part| match part {
            IPTuple::SourceAddress(ip) => Some(*ip),
            _ => None,
        }),
        _ => None,
    })?;
    let port = tuple.iter().find_map(|part| match part {
        Tuple::Proto(parts) => parts.iter().find_map(|part| match part {
            ProtoTuple::SourcePort(port) => Some(*port),
            _ => None,
        }),
        _ => None,
    })?;
    Some(SocketAddr::new(ip, port))
}
