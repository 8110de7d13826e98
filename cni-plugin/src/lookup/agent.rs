//! The node agent: a unix socket, a line of JSON there, one back (docs/cni.md, «The node agent»).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use millrace_core::pod::PodFacts;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use nix::unistd::geteuid;
use serde::Deserialize;
use serde_json::json;

use super::left;

/// The longest that is waited for it: it is on this machine.
const PATIENCE: Duration = Duration::from_secs(2);
/// The longest answer; a pod has at most 1.5 MiB (the limit of etcd).
const MAX_ANSWER: u64 = 4 * 1024 * 1024;

#[derive(Deserialize)]
struct Answer {
    pod: Option<PodFacts>,
    error: Option<String>,
}

/// Ask about a pod.
pub(super) fn ask(path: &Path, pod: &PodFacts, deadline: Instant) -> Result<PodFacts, String> {
    let stream = open(path, deadline).map_err(|error| format!("{}: {error}", path.display()))?;
    let request = json!({
        "version": 1,
        "pod": { "namespace": pod.namespace, "name": pod.name, "uid": pod.uid },
    });
    let text = talk(stream, &format!("{request}\n")).map_err(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => format!("{}: no answer in time", path.display()),
        _ => format!("{}: {error}", path.display()),
    })?;
    let answer: Answer = serde_json::from_str(&text)
        .map_err(|error| format!("{}: its answer makes no sense: {error}", path.display()))?;
    match answer {
        Answer { error: Some(error), .. } => Err(error),
        Answer { pod: Some(pod), .. } => Ok(pod),
        Answer { .. } => Err(format!("{}: its answer holds no pod", path.display())),
    }
}

/// Whether it listens.
pub(crate) fn reach(path: &Path, deadline: Instant) -> Result<(), String> {
    open(path, deadline).map(drop).map_err(|error| format!("{}: {error}", path.display()))
}

fn talk(stream: UnixStream, request: &str) -> std::io::Result<String> {
    (&stream).write_all(request.as_bytes())?;
    let mut text = String::new();
    BufReader::new(stream.take(MAX_ANSWER)).read_line(&mut text)?;
    Ok(text)
}

/// Connect, with a limit on everything that may take time. Who answers has to be root, or who
/// runs this: anybody else could have a pod started uncaptured.
fn open(path: &Path, deadline: Instant) -> Result<UnixStream, String> {
    let wait = left(deadline).min(PATIENCE).max(Duration::from_millis(1));
    let text = |errno: nix::Error| errno.desc().to_owned();
    let fd = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
        .map_err(text)?;
    let limit = TimeVal::new(
        i64::try_from(wait.as_secs()).unwrap_or(i64::MAX),
        i64::from(wait.subsec_micros()),
    );
    // A full queue makes connect() wait as long as sending does (unix(7)).
    setsockopt(&fd, sockopt::SendTimeout, &limit).map_err(text)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &limit).map_err(text)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path).map_err(text)?).map_err(text)?;
    let peer = getsockopt(&fd, sockopt::PeerCredentials).map_err(text)?;
    if peer.uid() != 0 && peer.uid() != geteuid().as_raw() {
        return Err(format!("user {} listens there, who is not root", peer.uid()));
    }
    Ok(UnixStream::from(fd))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_millis(300)
    }

    /// What is made of an answer.
    fn answered(answer: &'static str) -> Result<PodFacts, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let agent = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (&stream).write_all(answer.as_bytes()).unwrap();
            (line, stream)
        });
        let pod = PodFacts { name: Some("a".to_owned()), ..PodFacts::default() };
        let result = ask(&path, &pod, soon());
        let (line, _stream) = agent.join().unwrap();
        let request: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(request["pod"]["name"], "a");
        result
    }

    #[test]
    fn a_pod_is_read_off_its_manifest() {
        let pod = answered(
            "{\"pod\":{\"metadata\":{\"uid\":\"u\"},\"spec\":{\"containers\":[{\"name\":\"c\"}]}}}\n",
        )
        .unwrap();
        assert_eq!(pod.uid.as_deref(), Some("u"));
        assert_eq!(pod.containers.unwrap()[0].name, "c");
    }

    #[test]
    fn what_is_no_answer_is_an_error() {
        assert_eq!(answered("{\"error\":\"no such pod\"}\n").unwrap_err(), "no such pod");
        assert!(answered("{}\n").unwrap_err().contains("no pod"));
        assert!(answered("no\n").unwrap_err().contains("makes no sense"));
        // Nothing, while the connection stays open.
        assert!(answered("").unwrap_err().contains("no answer in time"));
    }

    #[test]
    fn who_is_not_there_is_named() {
        let error = ask(Path::new("/no/agent.sock"), &PodFacts::default(), soon()).unwrap_err();
        assert!(error.starts_with("/no/agent.sock: "), "{error}");
        assert!(reach(Path::new("/no/agent.sock"), soon()).is_err());
    }
}
