//! A line on standard error for whoever waits at a terminal; nothing where it is none.

use std::io::{self, IsTerminal as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// What is over within this time has no line.
const AFTER: Duration = Duration::from_secs(1);
/// How long a line stays until it is written anew.
const EVERY: Duration = Duration::from_millis(200);
/// Clears what is behind the cursor in its line (ECMA-48, EL).
const CLEAR: &str = "\x1b[K";

/// Work that is shown while it takes longer than a second. Its end takes the line away.
///
/// A thread writes the line, so that it goes on while one step takes long.
#[derive(Debug)]
pub struct Progress {
    done: Arc<AtomicUsize>,
    writer: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Progress {
    /// Work in `total` steps, such as 23 connections; in one of unknown length without.
    pub fn start(what: &str, total: Option<(usize, &'static str)>) -> Self {
        let done = Arc::new(AtomicUsize::new(0));
        let writer = io::stderr().is_terminal().then(|| {
            let (stop, stopped) = channel::<()>();
            let (what, done) = (what.to_owned(), Arc::clone(&done));
            let start = Instant::now();
            let write = move || {
                let mut wait = AFTER;
                while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                    wait = EVERY;
                    let line = line(&what, done.load(Ordering::Relaxed), total, start.elapsed());
                    write(&format!("{line}{CLEAR}\r"));
                }
                if wait == EVERY {
                    write(CLEAR);
                }
            };
            // Without a thread there is no line, and the work is done all the same.
            let thread = Builder::new().name("progress".to_owned()).spawn(write);
            thread.ok().map(|thread| (stop, thread))
        });
        Self { done, writer: writer.flatten() }
    }

    /// One more step is done.
    pub fn step(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((stop, thread)) = self.writer.take() {
            drop(stop);
            let _ended = thread.join();
        }
    }
}

/// What ends a line on standard error, so that nothing of a longer line of progress is left behind it.
pub fn line_end() -> &'static str {
    if io::stderr().is_terminal() { "\x1b[K\n" } else { "\n" }
}

fn line(what: &str, done: usize, total: Option<(usize, &str)>, took: Duration) -> String {
    let steps = total.map_or_else(String::new, |(all, name)| format!("{done} of {all} {name}, "));
    format!("{what}: {steps}{} s", took.as_secs())
}

fn write(text: &str) {
    let mut err = io::stderr().lock();
    // A terminal that has gone is no reason to stop the work.
    let _written = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        let took = Duration::from_millis(3900);
        assert_eq!(
            line("verify", 4, Some((23, "connections")), took),
            "verify: 4 of 23 connections, 3 s"
        );
        assert_eq!(line("explain", 0, None, took), "explain: 3 s");
    }
}
