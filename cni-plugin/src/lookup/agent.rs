//! The node agent: a unix socket, a line of JSON there, one back (docs/cni.md, «The node agent»).

use std::io::{self, IoSlice, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use millrace_core::from_objects;
use millrace_core::pod::{Answer, PodFacts};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::geteuid;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde::Deserialize;
use serde_json::json;

use super::{MAX_ANSWER, left};

/// The longest that is waited for it: it is on this machine.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Deserialize)]
#[serde(remote = "Self")]
struct Line {
    pod: Option<Answer>,
    enrolled: Option<bool>,
    reason: Option<String>,
    error: Option<String>,
}

/// Whether the node's proxy serves a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Enrolment {
    /// It does, and the pod is captured.
    Served,
    /// It is not to, and this is why.
    Bypassed(String),
}

from_objects!(Line);

/// Send the pod's name and uid in a line, and read one back, within [`PATIENCE`].
pub(super) fn ask(path: &Path, pod: &PodFacts, deadline: Instant) -> Result<PodFacts, String> {
    let deadline = soon(deadline);
    let stream = open(path, deadline).map_err(|error| format!("{}: {error}", path.display()))?;
    let request = json!({
        "version": 1,
        "pod": { "namespace": pod.namespace, "name": pod.name, "uid": pod.uid },
    });
    let text = talk(stream, &format!("{request}\n"), None, deadline)
        .map_err(|why| format!("{}: {why}", path.display()))?;
    let wrong = |why: String| format!("{}: its answer makes no sense: {why}", path.display());
    match serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))? {
        Line { error: Some(error), .. } => Err(error),
        // That it is a pod is said by where it stands.
        Line { pod: Some(found), .. } => {
            found.of_a_pod().about(pod).map_err(|why| wrong(why.to_string()))
        }
        Line { .. } => Err(format!("{}: its answer holds no pod", path.display())),
    }
}

/// Have a pod enrolled with the node's proxy, if it is to be: its network namespace is sent along.
pub(crate) fn enrol(
    path: &Path,
    pod: &PodFacts,
    addresses: &[IpAddr],
    netns: BorrowedFd<'_>,
    deadline: Instant,
) -> Result<Enrolment, String> {
    let at = |why: String| format!("{}: {why}", path.display());
    let stream = open(path, deadline).map_err(at)?;
    let named = json!({ "namespace": pod.namespace, "name": pod.name, "uid": pod.uid });
    let request = json!({ "version": 1, "enrol": { "pod": named, "addresses": addresses } });
    let text = talk(stream, &format!("{request}\n"), Some(netns), deadline).map_err(at)?;
    let line = serde_json::from_slice(&text);
    match line.map_err(|error| at(format!("its answer makes no sense: {error}")))? {
        Line { error: Some(error), .. } => Err(error),
        Line { enrolled: Some(true), .. } => Ok(Enrolment::Served),
        Line { enrolled: Some(false), reason, .. } => {
            Ok(Enrolment::Bypassed(reason.unwrap_or_default()))
        }
        Line { .. } => Err(at("its answer does not say whether the pod is enrolled".to_owned())),
    }
}

/// Whether its socket takes a connection, before the deadline and within [`PATIENCE`].
pub(crate) fn reach(path: &Path, deadline: Instant) -> Result<(), String> {
    let deadline = soon(deadline);
    open(path, deadline).map(drop).map_err(|error| format!("{}: {error}", path.display()))
}

fn soon(deadline: Instant) -> Instant {
    deadline.min(Instant::now() + PATIENCE)
}

/// Say this, with a file descriptor beside it where there is one, and hear a line, all of it before the
/// deadline.
fn talk(
    mut stream: UnixStream,
    request: &str,
    fd: Option<BorrowedFd<'_>>,
    deadline: Instant,
) -> Result<Vec<u8>, String> {
    let reported = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock => "no answer in time".to_owned(),
        _ => error.to_string(),
    };
    // It is shorter than any socket's buffer, which the peer would have to have filled.
    let sent = match fd {
        Some(fd) => beside(&stream, request.as_bytes(), fd).map_err(reported)?,
        None => 0,
    };
    stream.write_all(&request.as_bytes()[sent..]).map_err(reported)?;
    let mut line = Vec::new();
    let mut part = [0; 16 * 1024];
    loop {
        let left = left(deadline);
        if left.is_zero() {
            return Err("no answer in time".to_owned());
        }
        stream.set_read_timeout(Some(left)).map_err(reported)?;
        let count = match stream.read(&mut part) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(reported)?,
        };
        let end = part[..count].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&part[..end.unwrap_or(count)]);
        if line.len() > MAX_ANSWER {
            return Err(format!("its answer is longer than {MAX_ANSWER} bytes"));
        }
        if end.is_some() || count == 0 {
            return Ok(line);
        }
    }
}

/// Send a file descriptor with the beginning of a text; gives how much of that was sent.
fn beside(stream: &UnixStream, text: &[u8], fd: BorrowedFd<'_>) -> io::Result<usize> {
    let fds = [fd];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(io::Error::other("a file descriptor has no room beside the question"));
    }
    Ok(sendmsg(stream, &[IoSlice::new(text)], &mut control, SendFlags::NOSIGNAL)?)
}

/// Connect, with a limit on everything that may take time. Who answers has to be root, or who
/// runs this: anybody else could have a pod started uncaptured.
fn open(path: &Path, deadline: Instant) -> Result<UnixStream, String> {
    let wait = left(deadline).max(Duration::from_millis(1));
    let text = |errno: nix::Error| errno.desc().to_owned();
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(text)?;
    let limit = TimeVal::new(
        i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        i64::from(wait.subsec_micros()),
    );
    // A full queue makes connect() wait as long as sending does (unix(7)).
    setsockopt(&fd, sockopt::SendTimeout, &limit).map_err(text)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path).map_err(text)?).map_err(text)?;
    let peer = getsockopt(&fd, sockopt::PeerCredentials).map_err(text)?;
    if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
        return Err(format!("user {} listens there, who is not root", peer.uid()));
    }
    Ok(UnixStream::from(fd))
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader};
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(300)
    }

    fn wanted() -> PodFacts {
        let text = |text: &str| Some(text.to_owned());
        PodFacts { name: text("a"), namespace: text("b"), uid: text("u"), ..PodFacts::default() }
    }

    /// What is made of what an agent says.
    fn reported(say: impl FnOnce(&UnixStream) + Send + 'static) -> Result<PodFacts, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            say(&stream);
            (line, stream)
        });
        let result = ask(&path, &wanted(), soon());
        let (line, _stream) = agent.join().unwrap();
        let request: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(request["pod"]["name"], "a");
        result
    }

    fn answered(answer: &str) -> Result<PodFacts, String> {
        answered_so(answer.to_owned())
    }

    fn answered_so(answer: String) -> Result<PodFacts, String> {
        reported(move |mut stream| stream.write_all(answer.as_bytes()).unwrap())
    }

    #[test]
    fn a_pod_is_read_off_its_manifest() {
        let pod = answered(
            "{\"pod\":{\"metadata\":{\"name\":\"a\",\"namespace\":\"b\",\"uid\":\"u\"},\
             \"spec\":{\"containers\":[{\"name\":\"c\"}]}}}\n",
        )
        .unwrap();
        assert_eq!(pod.uid.as_deref(), Some("u"));
        assert_eq!(pod.containers.unwrap()[0].name, "c");
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert_eq!(answered("{\"error\":\"no such pod\"}\n").unwrap_err(), "no such pod");
        assert!(answered("{}\n").unwrap_err().contains("no pod"));
        assert!(answered("{\"pod\":{}}\n").unwrap_err().contains("makes no sense"));
        assert!(answered("no\n").unwrap_err().contains("makes no sense"));
        let pod = "{\"metadata\":{\"name\":\"a\",\"namespace\":\"b\",\"uid\":\"u\"},\
                   \"spec\":{\"containers\":[{\"name\":\"c\"}]}}";
        for lie in [
            format!("[{pod},null]"),
            format!("{{\"pod\":{}}}", pod.replacen('{', "{\"kind\":null,", 1)),
            format!("{{\"pod\":{}}}", pod.replacen('{', "{\"apiVersion\":\"v2\",", 1)),
        ] {
            assert!(
                answered_so(format!("{lie}\n")).unwrap_err().contains("makes no sense"),
                "{lie}"
            );
        }
        // Nothing, while the connection stays open.
        assert!(answered("").unwrap_err().contains("no answer in time"));
    }

    #[test]
    fn the_time_is_for_all_of_an_answer_and_not_for_each_byte() {
        let began = Instant::now();
        let error = reported(move |mut stream| {
            while stream.write_all(b" ").is_ok() && began.elapsed() < Duration::from_secs(30) {
                thread::sleep(Duration::from_millis(20));
            }
        });
        assert!(error.unwrap_err().contains("no answer in time"));
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }

    #[test]
    fn an_answer_without_end_is_given_up() {
        let error = reported(|mut stream| while stream.write_all(&[b' '; 4096]).is_ok() {});
        let error = error.unwrap_err();
        // A machine that is slow enough sees the deadline first.
        assert!(error.contains("longer than") || error.contains("in time"), "{error}");
    }

    /// Verify that a pod is enrolled where the agent says so, and that everything else is told apart.
    #[test]
    fn enrolment_is_what_the_agent_says() {
        let answered = |answer: &'static str| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("agent.sock");
            let listener = UnixListener::bind(&path).unwrap();
            let agent = thread::spawn(move || {
                let (mut stream, _) = listener.accept().unwrap();
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
                line
            });
            let own = std::fs::File::open("/proc/self/ns/net").unwrap();
            let fd = std::os::fd::AsFd::as_fd(&own);
            let result = enrol(&path, &wanted(), &["10.0.0.1".parse().unwrap()], fd, soon());
            let line: serde_json::Value = serde_json::from_str(&agent.join().unwrap()).unwrap();
            assert_eq!(line["enrol"]["pod"]["name"], "a");
            assert_eq!(line["enrol"]["addresses"][0], "10.0.0.1");
            result
        };
        assert_eq!(answered("{\"enrolled\":true}\n"), Ok(Enrolment::Served));
        let bypassed = Enrolment::Bypassed("why".to_owned());
        assert_eq!(answered("{\"enrolled\":false,\"reason\":\"why\"}\n"), Ok(bypassed));
        assert_eq!(answered("{\"error\":\"no proxy\"}\n"), Err("no proxy".to_owned()));
        assert!(answered("{}\n").unwrap_err().contains("does not say"));
        assert!(answered("no\n").unwrap_err().contains("makes no sense"));
    }

    #[test]
    fn who_is_not_there_is_named() {
        let error = ask(Path::new("/no/agent.sock"), &PodFacts::default(), soon()).unwrap_err();
        assert!(error.starts_with("/no/agent.sock: "), "{error}");
        assert!(reach(Path::new("/no/agent.sock"), soon()).is_err());
    }
}
