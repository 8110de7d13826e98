//! All that a program starts, also what leaves its process group: this process takes orphans in, and
//! ends them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

/// How long it may take until nothing is left: what is killed ends at once, unless the kernel holds it.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(1);

/// While this lives, whoever loses its parent below this process becomes a child of it (`prctl(2)`,
/// `PR_SET_CHILD_SUBREAPER`).
#[derive(Debug)]
pub(super) struct Adopted {
    /// Children that were there before, which are none of this.
    before: BTreeSet<i32>,
}

impl Adopted {
    /// Take orphans in from now on.
    pub(super) fn start() -> io::Result<Self> {
        let before = children()?;
        set_child_subreaper(true)?;
        Ok(Self { before })
    }

    /// Kill and reap every child that came since, and what those leave, until none is left. Of who is
    /// still below this process, one is always its child: so nobody is missed.
    pub(super) fn end(self) -> io::Result<()> {
        let until = Instant::now() + PATIENCE;
        loop {
            let children = children()?;
            let mut left = children.difference(&self.before).peekable();
            if left.peek().is_none() {
                return Ok(());
            }
            if Instant::now() >= until {
                let left = left.map(ToString::to_string).collect::<Vec<_>>().join(", ");
                return Err(io::Error::other(format!("the processes {left} do not end")));
            }
            for pid in left.copied().map(Pid::from_raw) {
                // It may end by itself meanwhile.
                let _gone = kill(pid, Signal::SIGKILL);
                let _reaped = waitpid(pid, Some(WaitPidFlag::WNOHANG));
            }
            thread::sleep(PAUSE);
        }
    }
}

impl Drop for Adopted {
    fn drop(&mut self) {
        let _off = set_child_subreaper(false);
    }
}

/// The children of this process, also those that ended and were not reaped.
fn children() -> io::Result<BTreeSet<i32>> {
    let own = Pid::this().as_raw();
    let mut children = BTreeSet::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        match fs::read_to_string(format!("/proc/{pid}/stat")) {
            Ok(stat) if parent(&stat) == Some(own) => drop(children.insert(pid)),
            Ok(_) => {}
            Err(error) if is_gone(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(children)
}

fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32)
}

/// The parent that a process's `stat` tells, behind its name in brackets and its state
/// (`proc_pid_stat(5)`).
fn parent(stat: &str) -> Option<i32> {
    let (_, behind) = stat.rsplit_once(") ")?;
    behind.split(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_parent_is_read_whatever_the_name_is() {
        assert_eq!(parent("7 (sh) S 5 7 7 0 -1"), Some(5));
        assert_eq!(parent("7 (a) S 1 (b) Z 12 7 7 0 -1"), Some(12));
        assert_eq!(parent("7 (sh)"), None);
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        assert!(children().unwrap().contains(&pid));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!children().unwrap().contains(&pid));
    }
}
