//! One run at a time in a namespace, and who holds the lock of iptables.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::stat::{major, minor};

/// The name of the lock: a unix socket in the abstract namespace, of which each network namespace
/// has its own (`unix(7)`, `network_namespaces(7)`). It needs no file system, and the kernel takes
/// it back when its holder dies.
const NAME: &str = "millrace-run";

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its id, as seen from here.
    pub pid: u32,
    /// Its name.
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
    /// Somebody else holds it.
    #[error(
        "another run of Millrace in this network namespace did not end in time: {}; wait for it, \
         or give --wait more time",
        holder(.0.as_ref())
    )]
    Busy(Option<Process>),
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
    _socket: UnixDatagram,
}

impl RunLock {
    /// Take it, waiting until the deadline.
    ///
    /// # Errors
    /// When it is held until then.
    pub fn take(deadline: Instant) -> Result<Self, LockError> {
        let address = SocketAddr::from_abstract_name(NAME)?;
        loop {
            match UnixDatagram::bind_addr(&address) {
                Ok(socket) => {
                    fcntl(socket.as_fd(), FcntlArg::F_SETFD(FdFlag::empty()))
                        .map_err(io::Error::from)?;
                    return Ok(Self { _socket: socket });
                }
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                    if Instant::now() >= deadline {
                        return Err(LockError::Busy(socket_holder()));
                    }
                    thread::sleep(Duration::from_millis(2));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Who has the socket of the lock open.
fn socket_holder() -> Option<Process> {
    let sockets = fs::read_to_string("/proc/thread-self/net/unix").ok()?;
    let name = format!("@{NAME}");
    let inode = sockets.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(6);
        let inode = words.next()?;
        (words.next() == Some(&name)).then(|| inode.to_owned())
    })?;
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
}
