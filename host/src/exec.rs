//! Running programs: an absolute path, a list of words, input, a deadline.

use std::ffi::OsString;
use std::io::{self, Read, Write as _};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use self::adopted::Adopted;
use self::said::explain;
use crate::sandbox::Sandbox;

mod adopted;
mod said;

static PROCESSES: AtomicUsize = AtomicUsize::new(0);

/// How many programs this process has run.
pub fn processes() -> usize {
    PROCESSES.load(Ordering::Relaxed)
}

/// The most that a program prints: more than all rules of a host with every port in use.
const MAX_PRINTED: usize = 256 * 1024 * 1024;

/// View of the file system, variables and limits of a program that is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// The view of the file system they get; none for this process's own.
    pub sandbox: Option<Sandbox>,
    /// Variables beside those of this process.
    pub env: Vec<(String, String)>,
    /// How many bytes they may print.
    pub most: usize,
    /// Whether they lead a process group of their own, which ends with them when their time is over.
    pub group: bool,
    /// Whether nothing that they start outlives them, in whatever group or session it is. While they
    /// run, this process must have nobody else start programs: what it can't tell from theirs ends too.
    pub adopts: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { sandbox: None, env: Vec::new(), most: MAX_PRINTED, group: false, adopts: false }
    }
}

/// A program that did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be started.
    #[error("{command} can't be started: {source}")]
    Start {
        /// Path and arguments, joined by spaces.
        command: String,
        /// What `fork(2)`, `execve(2)` or the sandbox's `unshare(2)` and `mount(2)` say.
        source: io::Error,
    },
    /// It ended with another exit status than 0, or by a signal.
    #[error("{command} failed ({status}): {}", explain(.stderr))]
    Failed {
        /// Path and arguments, joined by spaces.
        command: String,
        /// Its exit status, or the signal that ended it.
        status: ExitStatus,
        /// All that it wrote to stderr; bytes that are not UTF-8 are replaced.
        stderr: String,
    },
    /// It did not end in time, and was killed.
    #[error("{command} did not end within {waited:?} and was killed")]
    Deadline {
        /// Path and arguments, joined by spaces.
        command: String,
        /// How long [`Running::finish`] waited for its end.
        waited: Duration,
    },
    /// It prints without end, and was killed.
    #[error("{command} printed more than {most} bytes and was killed")]
    TooMuch {
        /// Path and arguments, joined by spaces.
        command: String,
        /// How much it may print.
        most: usize,
    },
    /// What it started could not be ended.
    #[error("what {command} started, and left behind, can't be killed: {source}")]
    Left {
        /// Path and arguments, joined by spaces.
        command: String,
        /// What `prctl(2)` or `/proc` say, or which processes do not end.
        source: io::Error,
    },
    /// Its output could not be read.
    #[error("what {command} prints can't be read: {source}")]
    Output {
        /// Path and arguments, joined by spaces.
        command: String,
        /// What `poll(2)`, `read(2)`, `write(2)` or `wait(2)` say.
        source: io::Error,
    },
}

/// A program that was started.
#[derive(Debug)]
pub struct Running {
    command: String,
    child: Child,
    input: Option<(ChildStdin, Vec<u8>)>,
    most: usize,
    group: bool,
    adopted: Option<Adopted>,
}

/// How far a talk came.
enum Talk {
    /// To the end of what was printed.
    Over(String, String),
    /// The deadline came first, with a pipe open or the process still running.
    Late,
    /// To the bound of what is printed.
    TooMuch,
}

/// Start a program. It inherits the environment.
///
/// # Errors
/// When it can't be started.
pub fn start(
    program: &Path,
    args: &[&str],
    input: Option<&str>,
    options: &Options,
) -> Result<Running, ExecError> {
    let command = std::iter::once(program.display().to_string())
        .chain(args.iter().map(|a| (*a).to_owned()))
        .collect::<Vec<_>>()
        .join(" ");
    let mut builder = Command::new(program);
    builder
        .args(args)
        .stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() })
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .envs(options.env.iter().map(|(name, value)| (name, value)));
    if options.group {
        builder.process_group(0);
    }
    if let Some(sandbox) = &options.sandbox {
        sandbox.prepare(&mut builder);
    }
    let failed = |source| ExecError::Start { command: command.clone(), source };
    let adopted = options.adopts.then(Adopted::start).transpose().map_err(failed)?;
    let mut child = builder.spawn().map_err(failed)?;
    PROCESSES.fetch_add(1, Ordering::Relaxed);
    let input = child.stdin.take().zip(input.map(|text| text.as_bytes().to_vec()));
    let Options { most, group, .. } = *options;
    Ok(Running { command, child, input, most, group, adopted })
}

impl Running {
    /// Wait for the end, and give what was printed.
    ///
    /// # Errors
    /// When the program fails or the deadline passes.
    pub fn finish(mut self, deadline: Instant) -> Result<String, ExecError> {
        let ended = self.ended(deadline);
        match self.adopted.take().map(Adopted::end) {
            Some(Err(source)) => Err(ExecError::Left { command: self.command, source }),
            _ => ended,
        }
    }

    fn ended(&mut self, deadline: Instant) -> Result<String, ExecError> {
        let began = Instant::now();
        let talked = self.talk(deadline).and_then(|talk| match talk {
            Talk::Over(stdout, stderr) => match self.wait(deadline)? {
                Some(status) => Ok(Ok((stdout, stderr, status))),
                None => Ok(Err(Talk::Late)),
            },
            unfinished => Ok(Err(unfinished)),
        });
        let command = self.command.clone();
        match talked {
            Ok(Ok((stdout, _, status))) if status.success() => Ok(stdout),
            Ok(Ok((_, stderr, status))) => Err(ExecError::Failed { command, status, stderr }),
            Ok(Err(unfinished)) => match self.kill() {
                Err(source) => Err(ExecError::Output { command, source }),
                Ok(()) if matches!(unfinished, Talk::TooMuch) => {
                    Err(ExecError::TooMuch { command, most: self.most })
                }
                Ok(()) => Err(ExecError::Deadline { command, waited: began.elapsed() }),
            },
            Err(source) => Err(ExecError::Output { command, source }),
        }
    }

    /// Write its input and read its output and its errors until it closes both. All three at once,
    /// so that no full pipe can stop the program.
    fn talk(&mut self, deadline: Instant) -> io::Result<Talk> {
        let mut stdout = Pipe::new(self.child.stdout.take())?;
        let mut stderr = Pipe::new(self.child.stderr.take())?;
        let mut written = 0;
        if let Some((pipe, _)) = &self.input {
            nonblocking(pipe)?;
        }
        while stdout.open() || stderr.open() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Talk::Late);
            }
            let mut waiting = Vec::new();
            waiting.extend(stdout.pipe.as_ref().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)));
            waiting.extend(stderr.pipe.as_ref().map(|p| PollFd::new(p.as_fd(), PollFlags::POLLIN)));
            waiting.extend(
                self.input.as_ref().map(|(p, _)| PollFd::new(p.as_fd(), PollFlags::POLLOUT)),
            );
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut waiting, timeout) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            stdout.read(self.most)?;
            stderr.read(self.most)?;
            if stdout.bytes.len() > self.most || stderr.bytes.len() > self.most {
                return Ok(Talk::TooMuch);
            }
            if let Some((pipe, bytes)) = &mut self.input {
                match pipe.write(&bytes[written..]) {
                    Ok(count) => written += count,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    // A program that ends early says itself why.
                    Err(e) if e.kind() == io::ErrorKind::BrokenPipe => written = bytes.len(),
                    Err(e) => return Err(e),
                }
                if written == bytes.len() {
                    self.input = None;
                }
            }
        }
        Ok(Talk::Over(stdout.text(), stderr.text()))
    }

    /// The status, or none when the deadline passes: a program can close its output and go on.
    fn wait(&mut self, deadline: Instant) -> io::Result<Option<ExitStatus>> {
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(Some(status));
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
            thread::sleep(Duration::from_micros(50));
        }
    }

    fn kill(&mut self) -> io::Result<()> {
        if self.group {
            // It may have ended, and others of its group not.
            let group = Pid::from_raw(self.child.id().cast_signed());
            let _gone = killpg(group, Signal::SIGKILL);
        }
        self.child.kill()?;
        self.child.wait().map(drop)
    }
}

/// One direction of what a program says.
struct Pipe<P> {
    pipe: Option<P>,
    bytes: Vec<u8>,
}

impl<P: Read + AsFd> Pipe<P> {
    fn new(pipe: Option<P>) -> io::Result<Self> {
        if let Some(pipe) = &pipe {
            nonblocking(pipe)?;
        }
        Ok(Self { pipe, bytes: Vec::new() })
    }

    const fn open(&self) -> bool {
        self.pipe.is_some()
    }

    /// Take what is there, up to a byte more than this altogether.
    fn read(&mut self, most: usize) -> io::Result<()> {
        let Some(pipe) = &mut self.pipe else { return Ok(()) };
        let room = (most + 1).saturating_sub(self.bytes.len());
        match pipe.take(room as u64).read_to_end(&mut self.bytes) {
            Ok(_) => self.pipe = None,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }

    fn text(self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

fn nonblocking(pipe: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(pipe, FcntlArg::F_GETFL)?);
    fcntl(pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Run a program to its end.
///
/// # Errors
/// When it can't be started, fails, or takes too long.
pub fn run(
    program: &Path,
    args: &[&str],
    input: Option<&str>,
    deadline: Instant,
    options: &Options,
) -> Result<String, ExecError> {
    start(program, args, input, options)?.finish(deadline)
}

/// Find a program on `PATH`, and then where system programs are.
pub fn find(name: &str) -> Option<PathBuf> {
    let path: OsString = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .filter(|folder| folder.is_absolute())
        .chain(system)
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    file.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(10)
    }

    #[test]
    fn input_that_is_larger_than_a_pipe_comes_back() {
        let text = "x".repeat(1 << 20);
        let out = run(&find("cat").unwrap(), &[], Some(&text), soon(), &Options::default());
        assert_eq!(out.unwrap(), text);
    }

    #[test]
    fn a_failure_says_the_command_and_what_it_said() {
        let args = ["-c", "echo no luck >&2; exit 3"];
        let error =
            run(&find("sh").unwrap(), &args, None, soon(), &Options::default()).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("exit status: 3") && text.contains("no luck"), "{text}");
    }

    #[test]
    fn a_program_that_hangs_is_killed() {
        let deadline = Instant::now() + Duration::from_millis(50);
        let result = run(&find("sleep").unwrap(), &["60"], None, deadline, &Options::default());
        assert!(matches!(result, Err(ExecError::Deadline { .. })), "{result:?}");
    }

    #[test]
    fn a_program_that_prints_without_end_is_killed() {
        let options = Options { most: 4096, ..Options::default() };
        let result = run(&find("yes").unwrap(), &[], None, soon(), &options);
        assert!(matches!(result, Err(ExecError::TooMuch { most: 4096, .. })), "{result:?}");
        let exact = run(&find("printf").unwrap(), &["%4096d", "1"], None, soon(), &options);
        assert_eq!(exact.unwrap().len(), 4096);
    }

    #[test]
    fn a_group_ends_as_a_whole() {
        let folder = tempfile::tempdir().unwrap();
        let pid = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! >{}; wait", pid.display());
        let options = Options { group: true, ..Options::default() };
        let deadline = Instant::now() + Duration::from_millis(500);
        let result = run(&find("sh").unwrap(), &["-c", &script], None, deadline, &options);
        assert!(matches!(result, Err(ExecError::Deadline { .. })), "{result:?}");
        // A machine that is slow enough did not even begin it.
        let Ok(pid) = std::fs::read_to_string(pid) else { return };
        let status = || std::fs::read_to_string(format!("/proc/{}/status", pid.trim()));
        let alive = || status().is_ok_and(|text| !text.contains("State:\tZ"));
        while alive() && Instant::now() < deadline + Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(10));
        }
        assert!(!alive());
    }
}
