//! What the kernel tells of traced packets in its own tables of iptables: it logs every rule that one
//! meets (`trace_packet()` of `ip_tables.c` and `ip6_tables.c`), to whom logs of the family go in the
//! namespace (`nf_log.c`). That is `nfnetlink_log` while a trace runs; who it was before is noted as
//! alternative names of `lo`, so that a trace which was killed can be cleaned up behind.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use millrace_core::observed::Logger;
use millrace_core::plan::Change;
use millrace_core::ruleset::Hook;
use millrace_core::trace::{Head, Heard, RuleRef, Said, Tables, TraceVerdict};
use millrace_core::value::Family;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::nflog::{ConfigCmd, ConfigMode, ConfigNla, config_request};
use netlink_packet_netfilter::{NetfilterMessage, NetfilterProtoFamily};
use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::{TimeVal, TimeValLike as _};

use crate::link::{LinkError, Net};
use crate::netlink::messages;
use crate::nft::{Answer, Attributes, NftError, drain, interface, netlink_family};

/// The group that the kernel's own logs go to (`default_loginfo` in `nfnetlink_log.c`).
const GROUP: u16 = 0;
/// The kernel's name of the logger that sends by netlink (`nfulnl_logger` in `nfnetlink_log.c`).
const BY_NETLINK: &str = "nfnetlink_log";
/// What of a packet is told: enough for its headers.
const HEADERS: u32 = 128;
/// Room for what the kernel tells while nobody reads.
const ROOM: usize = 8 * 1024 * 1024;
/// How long an answer may take, in seconds.
const PATIENCE: i64 = 5;
/// `NFNL_SUBSYS_ULOG`, `NFULNL_MSG_PACKET`
const PACKET: u16 = 4 << 8;
/// `NFULA_PACKET_HDR`, `NFULA_MARK`, `NFULA_IFINDEX_INDEV`, `NFULA_IFINDEX_OUTDEV`
const ATTRIBUTES: (u16, u16, u16, u16) = (1, 2, 4, 5);
/// `NFULA_PAYLOAD`, `NFULA_PREFIX`, `NFULA_UID`, `NFULA_GID`
const MORE: (u16, u16, u16, u16) = (9, 10, 11, 14);

/// What the kernel logs can't be heard.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another netlink socket is bound to group 0 (`EBUSY` or `EPERM`).
    #[error(
        "another program receives the kernel's packet log in this namespace (nfnetlink_log, group \
         0), and only one can at a time: another trace of iptables-legacy, or a log daemon. Stop \
         it, or wait until it ends"
    )]
    Taken,
    /// A configuration request of `nfnetlink_log` failed (`NFULNL_MSG_CONFIG`).
    #[error("the kernel refuses to deliver its packet log (nfnetlink_log): {what}: {why}")]
    Refused {
        /// Which setting of the logger was asked for, in words, such as `group 0`.
        what: &'static str,
        /// The kernel's errno: `EPERM` without `NET_ADMIN`, `EAGAIN` without an answer in 5 s.
        why: Errno,
    },
    /// The netlink socket can't be opened, bound or set up.
    #[error("the socket for the kernel's packet log can't be set up: {0}")]
    Socket(#[from] io::Error),
    /// Who logs can't be seen.
    #[error("{path} can't be read: {source}")]
    File {
        /// The file in `/proc` that names the logger of each family.
        path: &'static str,
        /// What `open(2)` or `read(2)` say.
        source: io::Error,
    },
    /// What was changed can't be noted.
    #[error(transparent)]
    Link(#[from] LinkError),
}

/// Hears what the kernel logs of traced packets. As long as it does, nobody else can.
pub(crate) struct Log {
    socket: Socket,
    /// What is to be as it was.
    changed: Vec<Logger>,
}

impl AsFd for Log {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Log {
    /// Begin to hear the kernel's tables of iptables of these families.
    pub(crate) fn open(families: &[Family]) -> Result<Self, LogError> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        // More room than others may have is a privilege; without it, less has to do.
        let _forced = setsockopt(&socket, sockopt::RcvBufForce, &ROOM);
        let patience = TimeVal::seconds(PATIENCE);
        setsockopt(&socket, sockopt::ReceiveTimeout, &patience).map_err(io::Error::from)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let mut log = Self { socket, changed: Vec::new() };
        // Whoever has the group is alone with the notes, too.
        let bind = ConfigNla::Cmd(ConfigCmd::Bind);
        match log.ask(NetfilterProtoFamily::Unspec, bind, "group 0") {
            Err(LogError::Refused { why: Errno::EBUSY | Errno::EPERM, .. }) if is_heard() => {
                return Err(LogError::Taken);
            }
            result => result?,
        }
        let copy = ConfigNla::Mode(ConfigMode::new_packet(HEADERS));
        log.ask(NetfilterProtoFamily::Unspec, copy, "the beginning of packets")?;
        // Each is told of at once.
        log.ask(NetfilterProtoFamily::Unspec, ConfigNla::QThresh(1), "each packet by itself")?;
        let net = Net::open()?;
        let noted = net.loggers()?;
        for family in families {
            let before = match noted.iter().find(|noted| noted.family == *family) {
                // A trace that was killed changed it.
                Some(noted) => noted.clone(),
                None => Logger { family: *family, name: current(*family)? },
            };
            if before.name == BY_NETLINK {
                continue;
            }
            net.logger(Change::Add, &before)?;
            log.changed.push(before);
            let take = ConfigNla::Cmd(ConfigCmd::PfBind);
            log.ask(netlink_family(*family), take, "logs of a family")?;
        }
        log.socket.set_non_blocking(true)?;
        Ok(log)
    }

    fn ask(
        &self,
        family: NetfilterProtoFamily,
        what: ConfigNla,
        words: &'static str,
    ) -> Result<(), LogError> {
        ask(&self.socket, family, what).map_err(|why| LogError::Refused { what: words, why })
    }

    /// Everything that has been told; whether there was more than there was room for.
    pub(crate) fn hear(&self, heard: &mut Vec<Heard>) -> Result<bool, NftError> {
        let mut lost = false;
        drain(&self.socket, &mut lost, |bytes| {
            for message in messages::<Answer>(bytes)? {
                if message.header.message_type == PACKET
                    && let NetlinkPayload::InnerMessage(answer) = message.payload
                {
                    heard.extend(read(answer.family, answer.attributes()));
                }
            }
            Ok(())
        })?;
        Ok(lost)
    }

    /// End it, and have everything as it was.
    pub(crate) fn close(mut self) -> Result<(), LogError> {
        self.put_back()
    }

    fn put_back(&mut self) -> Result<(), LogError> {
        let changed = std::mem::take(&mut self.changed);
        if changed.is_empty() {
            return Ok(());
        }
        let net = Net::open()?;
        changed.iter().try_for_each(|logger| restore(&net, logger))
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // What can't be put back stays noted.
        let _result = self.put_back();
    }
}

/// Let those log again who did before a trace, and forget the note.
pub(crate) fn restore(net: &Net, logger: &Logger) -> Result<(), LogError> {
    let path = format!("/proc/sys/net/netfilter/nf_log/{}", number(logger.family));
    if fs::write(path, &logger.name).is_err() {
        // Where that may not be written, the kernel can be asked for nobody, which is what a namespace
        // without logs needs.
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        let nobody = ConfigNla::Cmd(ConfigCmd::PfUnbind);
        ask(&socket, netlink_family(logger.family), nobody)
            .map_err(|why| LogError::Refused { what: "nobody for a family", why })?;
    }
    Ok(net.logger(Change::Remove, logger)?)
}

fn ask(socket: &Socket, family: NetfilterProtoFamily, what: ConfigNla) -> Result<(), Errno> {
    let request = config_request(family, GROUP, vec![what]);
    let mut bytes = vec![0; request.buffer_len()];
    request.serialize(&mut bytes);
    confirmed(socket, &bytes)
}

/// Have the kernel do what a message says, which asks for an answer.
pub(crate) fn confirmed(socket: &Socket, request: &[u8]) -> Result<(), Errno> {
    let errno = |error: io::Error| Errno::from_raw(error.raw_os_error().unwrap_or(nix::libc::EIO));
    socket.send_to(request, &SocketAddr::new(0, 0), 0).map_err(errno)?;
    loop {
        let mut bytes = Vec::with_capacity(4096);
        socket.recv(&mut bytes, 0).map_err(errno)?;
        let answer = NetlinkMessage::<NetfilterMessage>::deserialize(&bytes)
            .map_err(|_error| Errno::EBADMSG)?;
        // What is told of a packet may come in front of the answer.
        if let NetlinkPayload::Error(error) = answer.payload {
            return error.code.map_or(Ok(()), |code| Err(Errno::from_raw(-code.get())));
        }
    }
}

const fn number(family: Family) -> u8 {
    match family {
        Family::V4 => 2,
        Family::V6 => 10,
    }
}

/// Who logs packets of a family now; `NONE` is nobody.
fn current(family: Family) -> Result<String, LogError> {
    const PATH: &str = "/proc/thread-self/net/netfilter/nf_log";
    let text = fs::read_to_string(PATH).map_err(|source| LogError::File { path: PATH, source })?;
    let own = text.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == number(family).to_string()).then(|| words.next()).flatten()
    });
    Ok(own.unwrap_or("NONE").to_owned())
}

/// Whether somebody hears what the kernel logs in this namespace.
pub(crate) fn is_heard() -> bool {
    let text = fs::read_to_string("/proc/thread-self/net/netfilter/nfnetlink_log");
    let group = |line: &str| line.split_ascii_whitespace().next() == Some("0");
    text.is_ok_and(|text| text.lines().any(group))
}

fn read(family: u8, a: Attributes<'_>) -> Option<Heard> {
    let family = Family::ALL.into_iter().find(|f| number(*f) == family)?;
    let (table, chain, place) = rule(a.text(MORE.1)?)?;
    // `struct nfulnl_msg_packet_hdr`
    let hook = u32::from(*a.get(ATTRIBUTES.0)?.get(2)?);
    let mut head = Head::of_packet(a.get(MORE.0)?)?;
    head.input = a.number(ATTRIBUTES.2).map(interface);
    head.output = a.number(ATTRIBUTES.3).map(interface);
    head.mark = a.number(ATTRIBUTES.1).unwrap_or(0);
    (head.uid, head.gid) = (a.number(MORE.2), a.number(MORE.3));
    Some(Heard {
        tables: Tables::Legacy(family),
        table,
        chain,
        said: Said::Rule(RuleRef::Number(place), TraceVerdict::On),
        id: None,
        hook: Hook::ALL.into_iter().find(|known| known.number() == hook),
        head: Some(head),
    })
}

/// `TRACE: table:chain:type:number `, where a chain's name may hold colons itself.
fn rule(prefix: &str) -> Option<(String, String, usize)> {
    let rest = prefix.strip_prefix("TRACE: ")?.trim_end();
    let (table, rest) = rest.split_once(':')?;
    let (rest, number) = rest.rsplit_once(':')?;
    let (chain, _kind) = rest.rsplit_once(':')?;
    Some((table.to_owned(), chain.to_owned(), number.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::rule;

    #[test]
    fn rules_are_read_off_the_prefix() {
        let own =
            |table: &str, chain: &str, number| Some((table.to_owned(), chain.to_owned(), number));
        assert_eq!(rule("TRACE: nat:OUTPUT:rule:1 "), own("nat", "OUTPUT", 1));
        assert_eq!(rule("TRACE: raw:PREROUTING:policy:12 "), own("raw", "PREROUTING", 12));
        assert_eq!(rule("TRACE: nat:a:b:return:3 "), own("nat", "a:b", 3));
        for other in
            ["", "TRACE: ", "TRACE: nat:OUTPUT:rule:x ", "somebody's own: nat:OUTPUT:rule:1 "]
        {
            assert_eq!(rule(other), None, "{other}");
        }
    }
}
