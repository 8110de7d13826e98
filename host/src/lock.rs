//! One run at a time in a namespace, and who holds the lock of iptables.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use netlink_packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::{major, minor};

use crate::nflog::confirmed;
use crate::privilege::Hint;

/// The lock of a network namespace: a number of logs (`nfnetlink_log`) or, on kernels without these,
/// of queues (`nfnetlink_queue`) that one socket at a time listens to. The kernel lets nobody have it
/// who may not change the namespace's rules (`netlink_net_capable()` with `CAP_NET_ADMIN` in
/// `nfnetlink.c`), has one for each network namespace, needs no file for it, and takes it back when
/// the last process that has the socket ends (`NETLINK_URELEASE`). No packet goes to it unless
/// a rule says so.
///
/// Everybody asks in this order, so that they agree. Two that begin while the kernel loads the first
/// module may have one each: what then keeps them apart is that a transaction of `nf_tables` holds only
/// if nobody else has changed anything since the look, and the lock of iptables-legacy.
const LOCKS: [Kind; 2] = [
    // `NFNL_SUBSYS_ULOG`, `NFULNL_MSG_CONFIG`
    Kind { message: 4 << 8 | 1, list: "nfnetlink_log" },
    // `NFNL_SUBSYS_QUEUE`, `NFQNL_MSG_CONFIG`
    Kind { message: 3 << 8 | 2, list: "nfnetlink_queue" },
];
/// The number: not one that people choose.
const NUMBER: u16 = 28_018;
/// `NFULA_CFG_CMD` and `NFQA_CFG_CMD`, of which `NFULNL_CFG_CMD_BIND` and `NFQNL_CFG_CMD_BIND` are
/// one value too.
const COMMAND: u16 = 1;
const BIND: u8 = 1;
/// A multicast group of netfilter that nobody sends to; joining it needs what the lock needs.
const SILENT: u32 = 32;
/// How often it is asked for while somebody has it.
const PAUSE: Duration = Duration::from_millis(2);
/// The name of the lock on kernels that have none of the others, which is for iptables-legacy alone: a
/// unix socket in the abstract namespace. Anybody can have it, so nobody waits long for it.
const NAME: &str = "millrace-run";
const SHORT: Duration = Duration::from_secs(1);

/// What a socket can be the only one to listen to.
#[derive(Clone, Copy, Debug)]
struct Kind {
    message: u16,
    /// The file in `/proc/net/netfilter` that tells who does.
    list: &'static str,
}

/// A process that holds a lock, as `/proc` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id, as seen from here.
    pub pid: u32,
    /// `/proc/PID/comm`: up to 15 bytes, and whatever the process says of itself.
    pub name: String,
}

impl fmt::Display for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "process {} ({})", self.pid, self.name)
    }
}

/// A lock could not be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Held by another run until the deadline; by which process, where `/proc` shows it.
    #[error(
        "another run of Millrace in this network namespace did not end in time: {}; wait for it, \
         or give --wait more time",
        holder(.0.as_ref())
    )]
    Busy(Option<Process>),
    /// It may not be taken.
    #[error(
        "the lock of the network namespace can't be taken: EPERM; this needs the capability NET_ADMIN \
         in the user namespace that owns the network namespace{}",
        Hint::look()
    )]
    Forbidden,
    /// It can't be taken at all.
    #[error("the lock of the network namespace can't be taken: {0}")]
    Failed(#[from] io::Error),
}

impl LockError {
    /// Whether somebody else holds it.
    pub const fn is_busy(&self) -> bool {
        matches!(self, Self::Busy(_))
    }
}

/// Who holds a lock, in words.
pub(crate) fn holder(process: Option<&Process>) -> String {
    process.map_or_else(
        || "who holds the lock can't be seen from here".to_owned(),
        |p| format!("{p} holds the lock"),
    )
}

/// The lock of the calling thread's network namespace, until it is dropped. Programs that are
/// started meanwhile hold it too: a restore that outlives a killed run is still a change in
/// progress.
#[derive(Debug)]
pub struct RunLock {
    held: Held,
}

/// The socket whose end frees the lock.
#[derive(Debug)]
enum Held {
    Netlink(Socket),
    Name(UnixDatagram),
    /// Nothing: somebody else keeps the name.
    None,
}

impl RunLock {
    /// Keep it from programs that are started from now on: it ends with this value.
    ///
    /// # Errors
    /// What `fcntl(2)` says of `F_SETFD`.
    pub fn alone(self) -> io::Result<Self> {
        let fd = match &self.held {
            Held::Netlink(socket) => socket.as_fd(),
            Held::Name(socket) => socket.as_fd(),
            Held::None => return Ok(self),
        };
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(self)
    }

    /// Take it, waiting until the deadline.
    ///
    /// # Errors
    /// When it is held until then.
    pub fn take(deadline: Instant) -> Result<Self, LockError> {
        let mut socket = match Socket::new(NETLINK_NETFILTER) {
            Ok(socket) => socket,
            Err(error) if error.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => {
                return Self::by_name(deadline);
            }
            Err(error) => return Err(error.into()),
        };
        socket.bind_auto()?;
        let mut may = false;
        for kind in LOCKS {
            loop {
                match confirmed(&socket, &kind.request()) {
                    Ok(()) => {
                        inherited(&socket)?;
                        return Ok(Self { held: Held::Netlink(socket) });
                    }
                    // Nobody knows messages of this kind.
                    Err(Errno::EINVAL | Errno::EOPNOTSUPP) => break,
                    // Somebody has it, or it may not be had.
                    Err(Errno::EPERM | Errno::EBUSY | Errno::EEXIST) => {
                        may = may || socket.add_membership(SILENT).is_ok();
                        if !may {
                            return Err(LockError::Forbidden);
                        }
                    }
                    Err(errno) => return Err(io::Error::from(errno).into()),
                }
                if Instant::now() >= deadline {
                    return Err(LockError::Busy(kind.holder()));
                }
                thread::sleep(PAUSE);
            }
        }
        Self::by_name(deadline)
    }

    /// Where the kernel has no other lock. It is gone without when somebody keeps it.
    fn by_name(deadline: Instant) -> Result<Self, LockError> {
        let address = SocketAddr::from_abstract_name(NAME)?;
        let deadline = deadline.min(Instant::now() + SHORT);
        loop {
            match UnixDatagram::bind_addr(&address) {
                Ok(socket) => {
                    inherited(&socket)?;
                    return Ok(Self { held: Held::Name(socket) });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if Instant::now() >= deadline {
                        return Ok(Self { held: Held::None });
                    }
                    thread::sleep(PAUSE);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Have programs that are started have the socket too.
fn inherited(socket: impl AsFd) -> io::Result<()> {
    fcntl(socket, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

impl Kind {
    /// `struct nlmsghdr`, `struct nfgenmsg`, and one attribute.
    fn request(self) -> Vec<u8> {
        // A queue's command goes on with a family, which BIND does not read; of a log's, the kernel reads
        // the first byte alone.
        let attribute = [8_u16.to_ne_bytes(), COMMAND.to_ne_bytes(), [BIND, 0], [0; 2]].concat();
        let flags = NLM_F_REQUEST | NLM_F_ACK;
        let length = 20 + u32::try_from(attribute.len()).unwrap_or_default();
        let kind = [self.message.to_ne_bytes(), flags.to_ne_bytes()].concat();
        let netfilter = [[0, 0], NUMBER.to_be_bytes()].concat();
        [&length.to_ne_bytes()[..], &kind, &[0; 8], &netfilter, &attribute].concat()
    }

    /// Who has it, if that can be seen.
    fn holder(self) -> Option<Process> {
        let read = |file: &str| fs::read_to_string(format!("/proc/thread-self/net/{file}")).ok();
        let port = listener(&read(&format!("netfilter/{}", self.list))?)?;
        socket_holder(&netlink_inode(&read("netlink")?, port)?)
    }
}

/// The netlink port that has our number: `28018 1234 0 1 4096 100 0x00000000 1`.
fn listener(list: &str) -> Option<u32> {
    list.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace();
        (words.next()? == NUMBER.to_string()).then(|| words.next()?.parse().ok()).flatten()
    })
}

/// The inode of the netfilter socket with this port:
/// `sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode`.
fn netlink_inode(sockets: &str, port: u32) -> Option<String> {
    let [protocol, port] = [NETLINK_NETFILTER.to_string(), port.to_string()];
    sockets.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        (words.get(1..3)? == [&protocol, &port]).then(|| words.get(9).map(|i| (*i).to_owned()))?
    })
}

/// Who has a socket open.
fn socket_holder(inode: &str) -> Option<Process> {
    let link = PathBuf::from(format!("socket:[{inode}]"));
    numbered("/proc")?.find_map(|pid| {
        let mut files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        files
            .any(|f| f.is_ok_and(|f| fs::read_link(f.path()).is_ok_and(|l| l == link)))
            .then(|| process(pid))
            .flatten()
    })
}

fn numbered(folder: &str) -> Option<impl Iterator<Item = u32>> {
    let entries = fs::read_dir(folder).ok()?;
    Some(entries.filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok()))
}

fn process(pid: u32) -> Option<Process> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(Process { pid, name: name.trim().to_owned() })
}

/// The lock file of iptables-legacy (`iptables(8)`, `XTABLES_LOCKFILE`).
pub fn xtables_lock_file() -> PathBuf {
    std::env::var_os("XTABLES_LOCKFILE")
        .map_or_else(|| PathBuf::from("/run/xtables.lock"), PathBuf::from)
}

/// Who holds a lock file (`proc_locks(5)`), if that can be seen.
pub fn file_holder(path: &Path) -> Option<Process> {
    let file = path.metadata().ok()?;
    let locks = fs::read_to_string("/proc/locks").ok()?;
    process(holding_pid(&locks, (major(file.dev()), minor(file.dev())), file.ino())?)
}

/// Each container has its own file of the name, often with the same inode number, so the device
/// counts too. Some file systems (btrfs) give another device there than to `stat`: then a lock
/// counts that is the only one with the number.
fn holding_pid(locks: &str, (major, minor): (u64, u64), inode: u64) -> Option<u32> {
    let end = format!(":{inode}");
    let mut alike = Vec::new();
    for line in locks.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        // `1: FLOCK  ADVISORY  WRITE 123 00:16:456 0 EOF`; one that waits has `->` in front.
        let [_, "FLOCK", _, _, pid, place, ..] = words.as_slice() else { continue };
        let Some(device) = place.strip_suffix(&end) else { continue };
        let pid = pid.parse().ok()?;
        if device == format!("{major:02x}:{minor:02x}") {
            return Some(pid);
        }
        alike.push(pid);
    }
    alike.pop().filter(|_| alike.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_told_from_one_with_the_same_number_elsewhere() {
        let one = "1: FLOCK  ADVISORY  WRITE 11 00:16:45 0 EOF\n";
        let text = format!(
            "{one}1: -> FLOCK  ADVISORY  WRITE 13 00:1e:45 0 EOF\n2: FLOCK  ADVISORY  WRITE 12 00:1e:45 0 EOF\n"
        );
        assert_eq!(holding_pid(&text, (0, 0x1e), 45), Some(12));
        assert_eq!(holding_pid(&text, (0, 0x99), 45), None);
        assert_eq!(holding_pid(one, (0, 0x99), 45), Some(11));
        assert_eq!(holding_pid(one, (0, 0x16), 4), None);
    }

    #[test]
    fn who_listens_is_found_by_port_and_protocol() {
        let list = "    0    77     0 2 65535 100 0x00000000 1\n28018 41234     0 1  4096 100\n";
        assert_eq!(listener(list), Some(41_234));
        assert_eq!(listener("2801 41234 0 1"), None);
        let sockets = "sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode\n\
            0 0 41234 00000000 0 0 0 2 0 11\n0 12 4123 00000000 0 0 0 2 0 12\n\
            0 12 41234 80000000 0 0 0 2 0 13\n";
        assert_eq!(netlink_inode(sockets, 41_234).as_deref(), Some("13"));
        assert_eq!(netlink_inode(sockets, 1), None);
    }
}
