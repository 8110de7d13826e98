//! Waiting until something changes in folders (inotify(7)), and no longer than a period: a folder on
//! a file system that tells nothing is looked at all the same.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, Reader, WatchFlags};
use rustix::io::Errno;

/// How long changes that come together are waited for.
const TOGETHER: Duration = Duration::from_millis(5);

/// An inotify instance that watches folders.
#[derive(Debug)]
pub struct Watch {
    inotify: OwnedFd,
}

impl Watch {
    /// Make an inotify instance that watches nothing yet.
    ///
    /// # Errors
    /// When the kernel has no inotify instance left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { inotify: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)? })
    }

    /// Watch a folder from now on. One that is watched already stays so, and one that was made anew
    /// is watched as such. Gives whether it is there.
    pub fn add(&self, folder: &Path) -> bool {
        let what = WatchFlags::CREATE
            | WatchFlags::MOVE
            | WatchFlags::DELETE
            | WatchFlags::CLOSE_WRITE
            | WatchFlags::MODIFY
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        inotify::add_watch(&self.inotify, folder, what).is_ok()
    }

    /// Wait for a change, or for the end of this time. Gives whether there was one.
    ///
    /// # Errors
    /// When it can't be waited for.
    pub fn wait(&self, limit: Duration) -> io::Result<bool> {
        let changed = readable(self.inotify.as_fd(), limit)?;
        if changed {
            std::thread::sleep(TOGETHER);
            self.drain()?;
        }
        Ok(changed)
    }

    fn drain(&self) -> io::Result<()> {
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        let until = Instant::now() + TOGETHER;
        // Whoever writes without end does not keep this here.
        while Instant::now() < until {
            match reader.next() {
                Ok(_) => {}
                Err(Errno::AGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }
}

fn readable(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let limit = Timespec {
        tv_sec: i64::try_from(limit.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(limit.subsec_nanos()),
    };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    match poll(&mut fds, Some(&limit)) {
        Err(Errno::INTR) => Ok(false),
        polled => Ok(polled? > 0),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LONG: Duration = Duration::from_mins(1);

    #[test]
    fn changes_of_every_kind_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let watch = Watch::new().unwrap();
        assert!(watch.add(dir.path()) && watch.add(dir.path()));
        assert!(!watch.add(&at("none")));
        let none = Duration::from_millis(1);
        assert!(!watch.wait(none).unwrap());
        let changes: [&dyn Fn(); 4] = [
            &|| fs::write(at("a"), "x").unwrap(),
            &|| fs::write(at("a"), "y").unwrap(),
            &|| fs::rename(at("a"), at("b")).unwrap(),
            &|| fs::remove_file(at("b")).unwrap(),
        ];
        for change in changes {
            change();
            assert!(watch.wait(LONG).unwrap());
            while watch.wait(none).unwrap() {}
        }
    }
}
