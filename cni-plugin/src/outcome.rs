//! What became of a command and how long it took, which the node agent counts (docs/cni.md, «The node
//! agent»). It is reported once the runtime has its answer, in a line that nobody answers: no step of
//! it waits, and where it can't be sent it is lost.

use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, send, socket,
};

use crate::protocol::{Code, Command, Environment, Object};

/// The longest line, in bytes.
const MOST: usize = 160;

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// ADD captured the pod, or CHECK found it captured.
    Captured,
    /// The pod is not to be captured.
    Passed,
    /// DEL took what was the attachment's, if anything, and GC has nothing to do.
    Deleted,
    /// DEL left rules behind, for GC.
    LeftBehind,
    /// The request or its configuration is wrong: codes 1, 4, 6 and 7.
    BadRequest,
    /// Something can't be read: code 5.
    Io,
    /// Something did not answer in time: code 11.
    TryAgain,
    /// Nothing can be captured now: codes 50 and 51.
    Unavailable,
    /// The rules could not be written: code 100.
    NotCaptured,
    /// CHECK found other rules: code 101.
    Drifted,
    /// The pod asks for what can't be: codes 102 and 104.
    Refused,
    /// A fault of the plugin: code 103.
    Fault,
}

impl Outcome {
    /// Every outcome once, which [`Self::find`] goes through.
    pub const ALL: [Self; 12] = [
        Self::Captured,
        Self::Passed,
        Self::Deleted,
        Self::LeftBehind,
        Self::BadRequest,
        Self::Io,
        Self::TryAgain,
        Self::Unavailable,
        Self::NotCaptured,
        Self::Drifted,
        Self::Refused,
        Self::Fault,
    ];

    /// Its name, in reports and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Captured => "captured",
            Self::Passed => "passed",
            Self::Deleted => "deleted",
            Self::LeftBehind => "left_behind",
            Self::BadRequest => "bad_request",
            Self::Io => "io",
            Self::TryAgain => "try_again",
            Self::Unavailable => "unavailable",
            Self::NotCaptured => "not_captured",
            Self::Drifted => "drifted",
            Self::Refused => "refused",
            Self::Fault => "fault",
        }
    }

    /// The outcome of this name.
    pub fn find(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|outcome| outcome.as_str() == name)
    }
}

impl From<Code> for Outcome {
    fn from(code: Code) -> Self {
        match code {
            Code::IncompatibleVersion | Code::BadEnvironment | Code::Decode | Code::BadConfig => {
                Self::BadRequest
            }
            Code::Io => Self::Io,
            Code::TryAgain => Self::TryAgain,
            Code::NotAvailable | Code::LimitedConnectivity => Self::Unavailable,
            Code::NotCaptured => Self::NotCaptured,
            Code::Drifted => Self::Drifted,
            Code::BadAnnotation | Code::TwoMeshes => Self::Refused,
            Code::Internal => Self::Fault,
        }
    }
}

/// The commands whose outcome is reported.
pub const REPORTED: [Command; 3] = [Command::Add, Command::Check, Command::Del];

/// Reports the outcome of one command, once.
#[derive(Debug)]
struct Reporter {
    address: UnixAddr,
    command: Command,
    began: Instant,
    is_done: AtomicBool,
}

static REPORTER: OnceLock<Reporter> = OnceLock::new();

/// Have the outcome of this command reported to the agent that the configuration names, if it names
/// one. Whatever else is wrong with the configuration is no matter here.
pub(crate) fn prepare(env: &Environment, config: Option<&Object>, began: Instant) {
    let reporter = config.and_then(|config| Reporter::new(env, config, began));
    if let Some(reporter) = reporter {
        // There is one command in a process.
        let _first = REPORTER.set(reporter);
    }
}

/// Report the outcome, unless it was reported. Takes no lock and no memory: a signal handler may
/// call it.
pub(crate) fn report(outcome: Outcome) {
    if let Some(reporter) = REPORTER.get() {
        reporter.report(outcome);
    }
}

impl Reporter {
    fn new(env: &Environment, config: &Object, began: Instant) -> Option<Self> {
        let word = env.get("CNI_COMMAND")?;
        let command = REPORTED.into_iter().find(|command| command.as_str() == word)?;
        let path: String = serde_json::from_str(config.get("agent_socket")?.get()).ok()?;
        let address = UnixAddr::new(Path::new(&path)).ok().filter(|_| path.starts_with('/'))?;
        Some(Self { address, command, began, is_done: AtomicBool::new(false) })
    }

    fn report(&self, outcome: Outcome) {
        if self.is_done.swap(true, Ordering::Relaxed) {
            return;
        }
        let micros = u32::try_from(self.began.elapsed().as_micros()).unwrap_or(u32::MAX);
        let (command, outcome) = (self.command.as_str(), outcome.as_str());
        let mut line = [0; MOST];
        let mut rest = &mut line[..];
        let written = writeln!(
            rest,
            "{{\"version\":1,\"done\":{{\"command\":\"{command}\",\"outcome\":\"{outcome}\",\
             \"micros\":{micros}}}}}"
        );
        let length = MOST - rest.len();
        if written.is_ok() {
            // An agent that is not there, or does not keep up, misses it.
            let _sent = self.send(&line[..length]);
        }
    }

    /// Send a line. The socket does not block: where the agent's queue is full, connect(2) fails at
    /// once (unix(7), EAGAIN), and the line is shorter than the buffer of a new connection.
    fn send(&self, line: &[u8]) -> nix::Result<()> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
        connect(fd.as_raw_fd(), &self.address)?;
        send(fd.as_raw_fd(), line, MsgFlags::MSG_NOSIGNAL).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;
    use crate::config::object;

    fn reporter(command: &str, config: &str) -> Option<Reporter> {
        let env = Environment::from_iter([("CNI_COMMAND".to_owned(), command.to_owned())]);
        Reporter::new(&env, &object(config).unwrap(), Instant::now())
    }

    fn at(path: &Path) -> Reporter {
        let config = serde_json::json!({ "agent_socket": path, "deadline": 7 });
        reporter("ADD", &config.to_string()).unwrap()
    }

    #[test]
    fn every_code_has_an_outcome_and_every_outcome_a_name() {
        let names: BTreeSet<&str> = Outcome::ALL.iter().map(|outcome| outcome.as_str()).collect();
        assert_eq!(names.len(), Outcome::ALL.len());
        for outcome in Outcome::ALL {
            assert_eq!(Outcome::find(outcome.as_str()), Some(outcome));
        }
        for code in Code::ALL {
            assert!(Outcome::ALL.contains(&code.into()), "{code:?}");
        }
        assert_eq!(Outcome::find("x"), None);
    }

    #[test]
    fn it_is_reported_where_an_agent_is_named() {
        for (command, config, is) in [
            ("DEL", r#"{"agent_socket":"/a"}"#, true),
            ("CHECK", r#"{"agent_socket":"/a"}"#, true),
            ("GC", r#"{"agent_socket":"/a"}"#, false),
            ("add", r#"{"agent_socket":"/a"}"#, false),
            ("ADD", r#"{"agent_socket":""}"#, false),
            ("ADD", r#"{"agent_socket":"a"}"#, false),
            ("ADD", r#"{"agent_socket":7}"#, false),
            ("ADD", "{}", false),
        ] {
            assert_eq!(reporter(command, config).is_some(), is, "{command} {config}");
        }
        let long = format!(r#"{{"agent_socket":"/{}"}}"#, "a".repeat(200));
        assert!(reporter("ADD", &long).is_none());
    }

    #[test]
    fn it_is_one_line_and_sent_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let reporter = at(&path);
        for outcome in [Outcome::BadRequest, Outcome::Captured] {
            reporter.report(outcome);
        }
        let (stream, _) = listener.accept().unwrap();
        let lines: Vec<String> = BufReader::new(stream).lines().collect::<Result<_, _>>().unwrap();
        assert_eq!(lines.len(), 1);
        let line: serde_json::Value = serde_json::from_str(&lines[0]).unwrap();
        assert_eq!(line["version"], 1);
        assert_eq!(line["done"]["command"], "ADD");
        assert_eq!(line["done"]["outcome"], "bad_request");
        assert!(line["done"]["micros"].is_u64());
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err());
    }

    #[test]
    fn the_longest_line_has_room() {
        let longest = |names: &[&str]| names.iter().map(|name| name.len()).max().unwrap();
        let outcome = longest(&Outcome::ALL.map(Outcome::as_str));
        let frame = r#"{"version":1,"done":{"command":"CHECK","outcome":"","micros":4294967295}}"#;
        assert!(frame.len() + outcome < MOST);
    }

    /// Verify that an agent that is not there or accepts nobody is no reason to wait: with sockets
    /// that block, this would never end.
    #[test]
    fn nobody_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        at(&path).report(Outcome::Captured);
        let listener = UnixListener::bind(&path).unwrap();
        nix::sys::socket::listen(&listener, nix::sys::socket::Backlog::new(1).unwrap()).unwrap();
        for _ in 0..10 {
            at(&path).report(Outcome::Captured);
        }
        drop(listener);
        at(&path).report(Outcome::Captured);
    }
}
