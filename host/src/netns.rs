//! Network namespaces: naming one, entering it, telling two apart.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::str::FromStr;

use millrace_core::ebpf::IdMap;
use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};
use nix::unistd::{Gid, Uid, setresgid, setresuid};

use crate::sys_netns;

/// The calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";
/// The user namespace that it is in.
const OWN_USERS: &str = "/proc/thread-self/ns/user";

/// A namespace that was named: a path, a process id, or a name of `ip netns` (`ip-netns(8)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetnsRef {
    path: PathBuf,
}

/// A namespace can't be used.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// It is no path, process id or name.
    #[error(
        "{0:?} is no network namespace: give a path (with a /), a process id, or a name of \
         `ip netns`"
    )]
    Name(String),
    /// The path can't be opened or looked at: `ENOENT` where nothing is there.
    #[error("there is no network namespace {path}: {source}")]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// What `open(2)`, `fstat(2)` or `fstatfs(2)` say.
        source: io::Error,
    },
    /// The file at this path is no namespace (nsfs), or one of another kind.
    #[error("{0} is not a network namespace")]
    Other(PathBuf),
    /// It may not be entered.
    #[error(
        "network namespace {path} can't be entered: {source}; entering one needs the capability \
         SYS_ADMIN, in the user namespace that owns it and in one's own"
    )]
    Enter {
        /// The path that it was opened by.
        path: PathBuf,
        /// What `setns(2)` says: `EPERM` without the capability.
        source: Errno,
    },
    /// The user namespace that owns it may not be entered.
    #[error("the user namespace that owns the network namespace {path} can't be entered: {source}")]
    Owner {
        /// The path that the network namespace was opened by.
        path: PathBuf,
        /// The errno of asking for its owner (`ioctl_ns(2)`) or that one's ids, or of entering it.
        source: Errno,
    },
}

impl FromStr for NetnsRef {
    type Err = NetnsError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |b: u8| b.is_ascii_graphic() && b != b'/';
        let path = if text.contains('/') {
            PathBuf::from(text)
        } else if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            PathBuf::from(format!("/proc/{text}/ns/net"))
        } else if text.bytes().all(plain) && !["", ".", ".."].contains(&text) {
            PathBuf::from(format!("/run/netns/{text}"))
        } else {
            return Err(NetnsError::Name(text.to_owned()));
        };
        Ok(Self { path })
    }
}

impl NetnsRef {
    /// The namespace of a process (`proc_pid_ns(5)`).
    pub fn of_process(pid: u32) -> Self {
        Self { path: PathBuf::from(format!("/proc/{pid}/ns/net")) }
    }

    /// The namespace at a path.
    pub const fn at(path: PathBuf) -> Self {
        Self { path }
    }
}

/// What tells namespaces apart: device and inode (`namespaces(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetnsId(u64, u64);

impl NetnsId {
    fn of(meta: &Metadata) -> Self {
        Self(meta.dev(), meta.ino())
    }
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

/// A network namespace that stays as long as this has it open, whoever leaves it.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
    id: NetnsId,
}

/// Whether the calling thread's namespace is that of the machine itself: the one of the first process, seen
/// from the processes that the machine began with (`PROC_PID_INIT_INO` of the kernel's
/// `include/linux/proc_ns.h`, v6.18). In a container it isn't told, and so it is not.
pub fn is_of_the_machine() -> bool {
    const FIRST_PROCESSES: u64 = 0xEFFF_FFFC;
    let id = |path| fs::metadata(path).map(|meta| NetnsId::of(&meta)).ok();
    let first = fs::metadata("/proc/self/ns/pid").is_ok_and(|meta| meta.ino() == FIRST_PROCESSES);
    let own = id(OWN);
    first && own.is_some() && own == id("/proc/1/ns/net")
}

/// The network namespaces that can be entered, by their inodes: those that are mounted somewhere
/// (`proc_pid_mountinfo(5)`), and those of processes.
pub fn known() -> BTreeMap<u64, PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut known: BTreeMap<u64, PathBuf> = mounts.lines().filter_map(mounted).collect();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let number = process.file_name();
        let path = process.path().join("ns/net");
        if number.as_encoded_bytes().iter().all(u8::is_ascii_digit)
            && let Ok(meta) = fs::metadata(&path)
        {
            known.entry(meta.ino()).or_insert(path);
        }
    }
    known
}

/// `36 35 0:4 net:[4026532281] /run/netns/pod rw - nsfs nsfs rw`
fn mounted(line: &str) -> Option<(u64, PathBuf)> {
    let mut words = line.split(' ').skip(3);
    let inode = words.next()?.strip_prefix("net:[")?.strip_suffix(']')?.parse().ok()?;
    // Spaces and the like are written in octal; no pod's path has any.
    Some((inode, words.next().filter(|path| !path.contains('\\'))?.into()))
}

impl NetnsRef {
    /// Open its file, without entering it.
    ///
    /// # Errors
    /// When it isn't there, may not be seen, or is no namespace.
    pub fn open(&self) -> Result<Netns, NetnsError> {
        let path = self.path.clone();
        let failed = |source| NetnsError::Open { path: path.clone(), source };
        // Opening a FIFO would wait for somebody who writes.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
        let file = file.map_err(failed)?;
        let system = fstatfs(&file).map_err(|errno| failed(errno.into()))?.filesystem_type();
        if system != NSFS_MAGIC {
            return Err(NetnsError::Other(path));
        }
        let id = NetnsId::of(&file.metadata().map_err(failed)?);
        Ok(Netns { path, file, id })
    }
}

impl Netns {
    /// What tells it from others.
    pub const fn id(&self) -> NetnsId {
        self.id
    }

    /// A descriptor of it, for somebody else.
    ///
    /// # Errors
    /// When none is left.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.file.try_clone().map(OwnedFd::from)
    }

    /// Whether the calling thread is in it.
    pub fn is_current(&self) -> bool {
        fs::metadata(OWN).is_ok_and(|meta| NetnsId::of(&meta) == self.id)
    }

    /// Enter it with the calling thread; nothing is done, and no privilege needed, when the
    /// thread is there already.
    ///
    /// # Errors
    /// When it is no network namespace, or the capability is missing.
    pub fn enter(&self) -> Result<(), NetnsError> {
        if self.is_current() {
            return Ok(());
        }
        setns(&self.file, CloneFlags::CLONE_NEWNET).map_err(|source| match source {
            Errno::EINVAL | Errno::EBADF => NetnsError::Other(self.path.clone()),
            source => NetnsError::Enter { path: self.path.clone(), source },
        })
    }
}

/// The users and groups of the user namespace that owns a network namespace, as this process's own has
/// them.
pub(crate) fn ids_of(netns: &File) -> io::Result<(IdMap, IdMap)> {
    let owner = sys_netns::owner(netns)?;
    let id = |meta: Metadata| (meta.dev(), meta.ino());
    if fs::metadata(OWN_USERS).map(id)? == owner.metadata().map(id)? {
        return Ok((IdMap::identity(), IdMap::identity()));
    }
    let (users, groups) = sys_netns::ids(&owner)?;
    let both = IdMap::parse(&users).zip(IdMap::parse(&groups));
    both.ok_or_else(|| io::Error::other("the kernel's table of its ids can't be read"))
}

/// The ids that the calling thread's own user namespace has; all of them where that can't be seen.
pub fn own_ids() -> (IdMap, IdMap) {
    let [users, groups] = ["uid_map", "gid_map"].map(|name| {
        let text = fs::read_to_string(format!("/proc/thread-self/{name}")).ok();
        text.and_then(|text| IdMap::parse(&text)).unwrap_or_else(IdMap::identity)
    });
    (users, groups)
}

impl Netns {
    /// Be in the user namespace that owns it, as its root, from now on. Needed where rules are
    /// written that name users: the kernel takes them only from there (`owner_check` in
    /// `net/netfilter/xt_owner.c`), and they are ids of that namespace, which are those that the
    /// pod's processes have. There is no way back. Gives whether it is another one.
    ///
    /// # Errors
    /// When it may not be entered, or this process has more than one thread (`setns(2)`).
    pub fn enter_owner(&self) -> Result<bool, NetnsError> {
        let Some(owner) = self.other_owner()? else { return Ok(false) };
        setns(&owner, CloneFlags::CLONE_NEWUSER).map_err(|source| self.not_owner(source))?;
        // Capabilities are there without it; programs that are run keep them as root alone. A
        // namespace without a root runs none.
        let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
        let _root = setresgid(gid, gid, gid).and_then(|()| setresuid(uid, uid, uid));
        Ok(true)
    }

    /// Whether the user namespace that owns it is another one than the calling thread's.
    ///
    /// # Errors
    /// When that can't be seen.
    pub fn has_own_users(&self) -> Result<bool, NetnsError> {
        Ok(self.other_owner()?.is_some())
    }

    /// The ids that processes of its owner can have, as the calling thread's own user namespace has
    /// them.
    ///
    /// # Errors
    /// When they can't be seen.
    pub fn ids(&self) -> Result<(IdMap, IdMap), NetnsError> {
        if !self.has_own_users()? {
            return Ok(own_ids());
        }
        ids_of(&self.file).map_err(|error| {
            let errno = error.raw_os_error().map_or(Errno::EIO, Errno::from_raw);
            self.not_owner(errno)
        })
    }

    /// The user namespace that owns it, if it is another one than the calling thread's.
    fn other_owner(&self) -> Result<Option<File>, NetnsError> {
        let owner = sys_netns::owner(&self.file).map_err(|source| self.not_owner(source))?;
        let id = |meta: Metadata| (meta.dev(), meta.ino());
        let own = fs::metadata(OWN_USERS).map(id);
        let same = own.is_ok_and(|own| owner.metadata().map(id).is_ok_and(|owner| owner == own));
        Ok((!same).then_some(owner))
    }

    fn not_owner(&self, source: Errno) -> NetnsError {
        match source {
            Errno::ENOTTY | Errno::EBADF => NetnsError::Other(self.path.clone()),
            source => NetnsError::Owner { path: self.path.clone(), source },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use nix::sys::stat::Mode;
    use nix::unistd::mkfifo;

    use super::*;

    #[test]
    fn names_paths_and_processes_are_told_apart() {
        let path = |text: &str| text.parse::<NetnsRef>().unwrap().path.display().to_string();
        assert_eq!(path("pod"), "/run/netns/pod");
        assert_eq!(path("42"), "/proc/42/ns/net");
        assert_eq!(path("./x"), "./x");
        for bad in ["", ".", "..", "a b", "a\n", "\u{e9}"] {
            assert!(bad.parse::<NetnsRef>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_mounted_namespace_is_found() {
        let line = "36 35 0:4 net:[4026532281] /run/netns/pod rw shared:1 - nsfs nsfs rw";
        assert_eq!(mounted(line), Some((4_026_532_281, "/run/netns/pod".into())));
        assert_eq!(mounted("36 35 0:4 / /proc rw - proc proc rw"), None);
        assert_eq!(mounted("36 35 0:4 mnt:[4026532281] /run/x rw - nsfs nsfs rw"), None);
    }

    #[test]
    fn an_inode_alone_is_not_enough_to_tell_two_apart() {
        let open = |path: &str| NetnsId::of(&fs::metadata(path).unwrap());
        // The root of both file systems is inode 1.
        let (proc, sys) = (open("/proc"), open("/sys"));
        assert_eq!(proc.1, sys.1);
        assert_ne!(proc, sys);
        assert_eq!(proc, open("/proc/."));
    }

    #[test]
    fn ones_own_namespace_is_entered_without_doing_anything() {
        let own: NetnsRef = OWN.parse().unwrap();
        let own = own.open().unwrap();
        assert!(own.is_current());
        own.enter().unwrap();
    }

    #[test]
    fn what_is_no_namespace_is_refused_by_name() {
        let gone = "no-such-namespace".parse::<NetnsRef>().unwrap().open().unwrap_err();
        assert!(gone.to_string().contains("/run/netns/no-such-namespace"), "{gone}");
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        for other in [fifo.as_path(), Path::new("/proc/self/status"), folder.path()] {
            let opened = NetnsRef::at(other.to_owned()).open();
            assert!(matches!(opened, Err(NetnsError::Other(_))), "{other:?}");
        }
    }
}
