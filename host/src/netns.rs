//! Network namespaces: naming one, entering it, telling two apart.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::str::FromStr;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};

/// The calling thread's own namespace.
const OWN: &str = "/proc/thread-self/ns/net";

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
    /// There is nothing there.
    #[error("there is no network namespace {path}: {source}")]
    Open {
        /// Where it was looked for.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is something else.
    #[error("{0} is not a network namespace")]
    Other(PathBuf),
    /// It may not be entered.
    #[error(
        "network namespace {path} can't be entered: {source}; entering one needs the capability \
         SYS_ADMIN, in the user namespace that owns it and in one's own"
    )]
    Enter {
        /// The namespace.
        path: PathBuf,
        /// Why.
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

/// What tells namespaces apart: device and inode (`namespaces(7)`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetnsId(u64, u64);

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0, self.1)
    }
}

/// An open namespace.
#[derive(Debug)]
pub struct Netns {
    path: PathBuf,
    file: File,
    id: NetnsId,
}

impl NetnsRef {
    /// Open it.
    ///
    /// # Errors
    /// When it isn't there or may not be seen.
    pub fn open(&self) -> Result<Netns, NetnsError> {
        let path = self.path.clone();
        let failed = |source| NetnsError::Open { path: path.clone(), source };
        let file = File::open(&path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        let id = NetnsId(meta.dev(), meta.ino());
        Ok(Netns { path, file, id })
    }
}

impl Netns {
    /// What tells it from others.
    pub const fn id(&self) -> NetnsId {
        self.id
    }

    /// Whether the calling thread is in it.
    pub fn is_current(&self) -> bool {
        std::fs::metadata(OWN).is_ok_and(|m| NetnsId(m.dev(), m.ino()) == self.id)
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

#[cfg(test)]
mod tests {
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
        let file = "/proc/self/status".parse::<NetnsRef>().unwrap().open().unwrap();
        assert!(matches!(file.enter(), Err(NetnsError::Other(_))));
    }
}
