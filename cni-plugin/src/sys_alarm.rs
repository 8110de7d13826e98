//! The end of the time, when nothing else has ended it: whatever this process waits for then, a
//! file, a program, the kernel or somebody who does not read, it answers and ends. One that is
//! killed at any point leaves nothing half done, so it may end anywhere.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::alarm;

use crate::outcome::{self, Outcome};

/// How much later than the deadline: what ends by itself in time says more.
const GRACE: Duration = Duration::from_secs(2);

/// What is said at the end.
#[derive(Debug)]
pub(crate) struct LastWords {
    /// The error as JSON, for standard output; empty for a command that succeeds all the same.
    pub(crate) answer: String,
    /// A line of the log with its newline, for standard error.
    pub(crate) log: String,
    /// The exit code: 0 for DEL, else 1.
    pub(crate) code: u8,
    /// What became of the command, for the node agent.
    pub(crate) outcome: Outcome,
}

static WORDS: AtomicPtr<LastWords> = AtomicPtr::new(ptr::null_mut());
/// Whether standard output has something already.
static ANSWERED: AtomicBool = AtomicBool::new(false);

/// End the process so, soon after this deadline. Takes the place of an earlier end.
pub(crate) fn end(deadline: Instant, words: LastWords) {
    // The handler may read the earlier ones at any time: they are never freed.
    WORDS.store(Box::into_raw(Box::new(words)), Ordering::Release);
    let action = SigAction::new(SigHandler::Handler(ring), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler calls what signal-safety(7) allows alone, and reads what is never freed.
    if unsafe { sigaction(Signal::SIGALRM, &action) }.is_err() {
        return;
    }
    let left = deadline.saturating_duration_since(Instant::now()) + GRACE;
    let seconds = left.as_secs() + u64::from(left.subsec_nanos() > 0);
    alarm::set(u32::try_from(seconds).unwrap_or(u32::MAX));
}

/// From now on standard output is being written.
pub(crate) fn answering() {
    ANSWERED.store(true, Ordering::Relaxed);
}

extern "C" fn ring(_signal: libc::c_int) {
    // SAFETY: `end` stored a pointer from a box that is never freed before it set this handler.
    let Some(words) = (unsafe { WORDS.load(Ordering::Acquire).as_ref() }) else { return };
    say(2, words.log.as_bytes());
    if !ANSWERED.load(Ordering::Relaxed) {
        say(1, words.answer.as_bytes());
    }
    // Its calls do not wait, and socket(2), connect(2), send(2), close(2) and clock_gettime(2) are
    // among those that signal-safety(7) allows.
    outcome::report(words.outcome);
    // SAFETY: ends the process at once, which signal-safety(7) allows.
    unsafe { libc::_exit(libc::c_int::from(words.code)) }
}

/// Write to a descriptor, if that does not have to wait.
fn say(fd: libc::c_int, text: &[u8]) {
    let mut ready = libc::pollfd { fd, events: libc::POLLOUT, revents: 0 };
    // SAFETY: `ready` is one entry, and `text` is as long as is said. Both calls are among those
    // that signal-safety(7) allows.
    unsafe {
        if libc::poll(&raw mut ready, 1, 0) == 1 && ready.revents & libc::POLLOUT != 0 {
            libc::write(fd, text.as_ptr().cast(), text.len());
        }
    }
}
