//! What the plugin asks and reports (docs/cni.md, «The node agent»): a pod, or what became of a command,
//! in a line of JSON over a socket that root alone reaches.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use millrace_cni::outcome::{Outcome, REPORTED};
use millrace_cni::protocol::Command;
use millrace_core::from_objects;
use millrace_core::pod::PodFacts;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout_at};

use crate::ambient::{Answer, Enroller};
use crate::install::SOCKET_BEING_MADE;
use crate::metrics::{Answered, Metrics};
use crate::pods::{Pod, Pods, one};
use crate::state::Shared;

/// Bytes of the longest line that is read from a connection.
const MOST: usize = 16 * 1024;
/// How long one may take with its answer: the plugin waits for two seconds.
const PATIENCE: Duration = Duration::from_secs(4);
/// The same where a pod is to be enrolled: as long as the plugin takes at most.
const LONGEST: Duration = Duration::from_secs(15);
/// How many are answered at once. Of more, the oldest is given up: whoever comes new is answered,
/// whatever the others do.
const AT_ONCE: usize = 256;
/// How soon it is tried again where no connection can be had.
const PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct Line {
    version: u32,
    pod: Option<PodQuery>,
    enrol: Option<Enrol>,
    done: Option<Done>,
    nri: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct PodQuery {
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
}

/// A pod with the addresses that it got; its network namespace is the file descriptor beside the line.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct Enrol {
    pod: PodQuery,
    #[serde(default)]
    addresses: Vec<IpAddr>,
}

/// What became of a command: names of the plugin's, and microseconds.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct Done {
    command: String,
    outcome: String,
    micros: u32,
}

from_objects!(Line, PodQuery, Enrol, Done);

/// A line of the plugin that was understood.
#[derive(Debug)]
enum Said {
    /// It asks for a pod.
    Question(PodFacts),
    /// It asks to have a pod served by the node's proxy.
    Enrol(PodFacts, Vec<IpAddr>),
    /// It reports what became of a command, and waits for no answer.
    Report(Command, Outcome, Duration),
    /// `millrace-node status` asks whether the runtime is connected.
    Connection,
}

/// Answers the plugin's questions about pods of this node, on a unix socket.
#[derive(Clone)]
pub struct Server {
    /// The pods that are known.
    pub pods: Arc<Pods>,
    /// Who is asked about the others.
    pub client: Client,
    /// Where answers and the plugin's reports are counted.
    pub metrics: Metrics,
    /// Who enrols pods with the node's proxy; none where nobody does.
    pub enroller: Option<Arc<Enroller>>,
    /// Who knows whether the runtime is connected.
    pub shared: Arc<Shared>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("pods", &self.pods.count()).finish_non_exhaustive()
    }
}

/// Listen at this path, in the place of an agent that listened there before: it is there whole, with
/// its mode, before it has the name.
///
/// # Errors
/// When that can't be done.
pub fn listen(path: &Path) -> io::Result<StdListener> {
    let temp = path.with_file_name(SOCKET_BEING_MADE);
    match std::fs::remove_file(&temp) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = StdListener::bind(&temp)?;
    std::fs::set_permissions(&temp, std::fs::Permissions::from_mode(0o600))?;
    std::fs::rename(&temp, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

impl Server {
    /// Accept connections for ever, and answer at most `AT_ONCE` of them at a time.
    ///
    /// # Errors
    /// When the runtime can't have the listener.
    pub async fn serve(self, listener: StdListener) -> io::Result<()> {
        let listener = UnixListener::from_std(listener)?;
        let mut served: VecDeque<AbortHandle> = VecDeque::with_capacity(AT_ONCE);
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // No file descriptor is left, or the client went away.
                sleep(PAUSE).await;
                continue;
            };
            if served.len() == AT_ONCE
                && let Some(oldest) = served.pop_front()
                && !oldest.is_finished()
            {
                oldest.abort();
                self.metrics.answered(Answered::GivenUp);
            }
            let own = self.clone();
            let task = tokio::spawn(async move {
                if let Some(how) = own.connection(stream).await {
                    own.metrics.answered(how);
                }
            });
            served.push_back(task.abort_handle());
        }
    }

    /// Gives how a question was answered; none where there was a report.
    async fn connection(&self, stream: UnixStream) -> Option<Answered> {
        let own = rustix::process::geteuid().as_raw();
        if !stream.peer_cred().is_ok_and(|peer| peer.uid() == 0 || peer.uid() == own) {
            return Some(Answered::Refused);
        }
        let began = Instant::now();
        let asked = timeout_at(began + PATIENCE, line(&stream)).await;
        let Ok(Ok((line, netns))) = asked else { return Some(Answered::Nothing) };
        if line.is_empty() {
            return Some(Answered::Nothing);
        }
        let (limit, said) = match said(&line) {
            Ok(Said::Report(command, outcome, took)) => {
                self.metrics.served(command, outcome, took);
                return None;
            }
            Ok(Said::Connection) => {
                // Who asked in vain says so.
                let mut stream = stream;
                let _sent = send(&mut stream, &[&self.shared.connection(), "\n"]).await;
                return None;
            }
            said @ Ok(Said::Enrol(..)) => (LONGEST, said),
            said => (PATIENCE, said),
        };
        let answered = timeout_at(began + limit, async {
            let (answer, how) = match said {
                Ok(Said::Question(wanted)) => {
                    let (answer, how) = self.answer(&wanted).await;
                    (answer.map(Reply::Pod), how)
                }
                Ok(Said::Enrol(wanted, addresses)) => {
                    let (answer, how) = self.enrol(&wanted, addresses, netns).await;
                    (answer.map(Reply::Enrolment), how)
                }
                Ok(Said::Report(..) | Said::Connection) => return Answered::Nothing,
                Err(why) => (Err(why), Answered::Bad),
            };
            let mut stream = stream;
            let sent = match answer {
                // A manifest is long, and here once, however many wait for it.
                Ok(Reply::Pod(pod)) => {
                    send(&mut stream, &["{\"pod\":", &pod.manifest, "}\n"]).await
                }
                Ok(Reply::Enrolment(answer)) => {
                    let reply = match answer {
                        Answer::Enrolled => json!({ "enrolled": true }),
                        Answer::Bypassed(why) => json!({ "enrolled": false, "reason": why }),
                    };
                    send(&mut stream, &[&format!("{reply}\n")]).await
                }
                Err(why) => {
                    let text = format!("{{\"error\":{}}}\n", Value::String(why));
                    send(&mut stream, &[&text]).await
                }
            };
            if sent.is_ok() { how } else { Answered::Nothing }
        });
        Some(answered.await.unwrap_or(Answered::Nothing))
    }

    async fn enrol(
        &self,
        wanted: &PodFacts,
        addresses: Vec<IpAddr>,
        netns: Option<OwnedFd>,
    ) -> (Result<Answer, String>, Answered) {
        let Some(enroller) = self.enroller.clone() else {
            let why = "the node agent enrols no pods: it runs without --ambient";
            return (Ok(Answer::Bypassed(why.to_owned())), Answered::Known);
        };
        let Some(netns) = netns else {
            let why = "no file descriptor of its network namespace came with the question";
            return (Err(why.to_owned()), Answered::Bad);
        };
        let (pod, how) = match self.answer(wanted).await {
            (Ok(pod), how) => (pod, how),
            (Err(why), how) => return (Err(why), how),
        };
        // Whatever is begun is brought to an end, though nobody waits any more.
        let enrolled = tokio::spawn(async move { enroller.enrol(&pod, addresses, netns).await });
        match enrolled.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(answer) => (Ok(answer), how),
            Err(why) => (Err(why), Answered::Failed),
        }
    }

    /// What is known of a pod, for the agent itself.
    ///
    /// # Errors
    /// Why nothing is.
    pub(crate) async fn tell(&self, wanted: &PodFacts) -> Result<PodFacts, String> {
        let PodFacts { namespace, name, uid, .. } = wanted.clone();
        let wanted = question(PodQuery { namespace, name, uid })?;
        let (answer, _) = self.answer(&wanted).await;
        answer?.about(&wanted).map_err(|why| why.to_string())
    }

    async fn answer(&self, wanted: &PodFacts) -> (Result<Pod, String>, Answered) {
        if let Some(pod) = self.pods.find(wanted) {
            return (Ok(pod), Answered::Known);
        }
        // It may be newer than what was told of.
        match one(self.client.clone(), wanted).await {
            Ok(Some(pod)) => match pod.about(wanted) {
                Ok(_) => (Ok(pod), Answered::Asked),
                Err(why) => (Err(why.to_string()), Answered::NoPod),
            },
            Ok(None) => (Err("the Kubernetes API knows no such pod".to_owned()), Answered::NoPod),
            Err(why) => (Err(why), Answered::Failed),
        }
    }
}

/// What is answered.
enum Reply {
    Pod(Pod),
    Enrolment(Answer),
}

/// Read up to the end of a line, or to `MOST` bytes, with the file descriptor that came beside it. Of several
/// the first is kept.
async fn line(stream: &UnixStream) -> io::Result<(Vec<u8>, Option<OwnedFd>)> {
    let (mut line, mut fd) = (Vec::new(), None);
    while line.len() < MOST && !line.ends_with(b"\n") {
        stream.readable().await?;
        let mut part = [0; 4096];
        let (count, found) = match stream.try_io(Interest::READABLE, || receive(stream, &mut part))
        {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            received => received?,
        };
        fd = fd.or(found);
        if count == 0 {
            break;
        }
        let end = part[..count].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&part[..end.map_or(count, |at| at + 1)]);
    }
    Ok((line, fd))
}

fn receive(stream: &UnixStream, part: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = recvmsg(stream, &mut [IoSliceMut::new(part)], &mut control, flags)?;
    let mut found = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            // All of them are closed but the first.
            for fd in fds {
                found = found.or(Some(fd));
            }
        }
    }
    Ok((received.bytes, found))
}

async fn send(stream: &mut UnixStream, parts: &[&str]) -> io::Result<()> {
    for part in parts {
        stream.write_all(part.as_bytes()).await?;
    }
    Ok(())
}

/// Read a line of JSON (version 1), of at most `MOST` bytes with its newline.
fn said(line: &[u8]) -> Result<Said, String> {
    if !line.ends_with(b"\n") {
        return Err(format!("the question is no line of at most {MOST} bytes"));
    }
    let line: Line =
        serde_json::from_slice(line).map_err(|error| format!("that is no question: {error}"))?;
    if line.version != 1 {
        return Err(format!("version {} is not spoken here, but 1 is", line.version));
    }
    match line {
        Line { pod: Some(wanted), .. } => question(wanted).map(Said::Question),
        Line { enrol: Some(Enrol { pod, addresses }), .. } => {
            question(pod).map(|pod| Said::Enrol(pod, addresses))
        }
        Line { done: Some(done), .. } => report(&done),
        Line { nri: Some(true), .. } => Ok(Said::Connection),
        Line { .. } => Err("it asks for no pod, and reports nothing".to_owned()),
    }
}

/// What became of a command. Names that are not known would be labels without end.
fn report(done: &Done) -> Result<Said, String> {
    let command = REPORTED.into_iter().find(|command| command.as_str() == done.command);
    match (command, Outcome::find(&done.outcome)) {
        (Some(command), Some(outcome)) => {
            Ok(Said::Report(command, outcome, Duration::from_micros(done.micros.into())))
        }
        _ => Err("it reports a command or an outcome that is not known here".to_owned()),
    }
}

/// The pod that is asked for.
fn question(wanted: PodQuery) -> Result<PodFacts, String> {
    let is_name = |text: &String| {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.".contains(c);
        // A path to the API server is made of it.
        !text.is_empty()
            && text.len() <= 253
            && ![".", ".."].contains(&text.as_str())
            && text.chars().all(plain)
    };
    let PodQuery { namespace, name, uid } = wanted;
    match (namespace.filter(is_name), name.filter(is_name)) {
        (Some(namespace), Some(name)) => Ok(PodFacts {
            namespace: Some(namespace),
            name: Some(name),
            uid,
            ..PodFacts::default()
        }),
        _ => Err("it asks for no pod: that has a namespace and a name".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_are_read() {
        let text = "{\"version\":1,\"pod\":{\"namespace\":\"a\",\"name\":\"b\",\"uid\":\"c\"}}\n";
        let Said::Question(pod) = said(text.as_bytes()).unwrap() else { panic!("a question") };
        let parts = [pod.namespace, pod.name, pod.uid].map(Option::unwrap);
        assert_eq!(parts, ["a", "b", "c"]);
        assert!(said(text.trim_end().as_bytes()).unwrap_err().contains("no line"));
        assert!(matches!(said(b"{\"version\":1,\"nri\":true}\n"), Ok(Said::Connection)));
        for bad in [
            "",
            "{}",
            r#"{"version":1,"nri":false}"#,
            r#"[1,{"namespace":"a","name":"b"},null]"#,
            r#"{"version":1,"pod":["a","b","c"]}"#,
            r#"{"version":2,"pod":{"namespace":"a","name":"b"}}"#,
            r#"{"version":1,"pod":{"namespace":"a"}}"#,
            r#"{"version":1,"pod":{"namespace":"a","name":"../b"}}"#,
            r#"{"version":1,"pod":{"namespace":"a","name":".."}}"#,
            r#"{"version":1,"pod":{"namespace":"a","name":"B?x"}}"#,
        ] {
            assert!(said(format!("{bad}\n").as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_pod_that_is_to_be_enrolled_is_read_with_its_addresses() {
        let pod = r#"{"namespace":"a","name":"b","uid":"c"}"#;
        let text = format!(
            "{{\"version\":1,\"enrol\":{{\"pod\":{pod},\"addresses\":[\"10.0.0.1\",\"fd00::1\"]}}}}\n"
        );
        let Said::Enrol(pod, addresses) = said(text.as_bytes()).unwrap() else { panic!("{text}") };
        assert_eq!((pod.uid.as_deref(), addresses.len()), (Some("c"), 2));
        let bad = text.replace("fd00::1", "host");
        assert!(said(bad.as_bytes()).is_err());
        assert!(said(text.replace("\"b\"", "\"../b\"").as_bytes()).is_err());
    }

    /// Verify that a line is whole however it comes, and that a descriptor beside it is kept.
    #[test]
    fn a_descriptor_comes_with_a_line() {
        use std::io::Write as _;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (mut there, here) = std::os::unix::net::UnixStream::pair().unwrap();
            here.set_nonblocking(true).unwrap();
            let here = UnixStream::from_std(here).unwrap();
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut control = rustix::net::SendAncillaryBuffer::new(&mut space);
            let own = std::fs::File::open("/proc/self/ns/net").unwrap();
            let fds = [std::os::fd::AsFd::as_fd(&own)];
            assert!(control.push(rustix::net::SendAncillaryMessage::ScmRights(&fds)));
            let part = [io::IoSlice::new(b"abc")];
            let flags = rustix::net::SendFlags::empty();
            rustix::net::sendmsg(&there, &part, &mut control, flags).unwrap();
            there.write_all(b"def\nx").unwrap();
            let (text, fd) = line(&here).await.unwrap();
            assert_eq!(text, b"abcdef\n");
            let id = |meta: std::fs::Metadata| std::os::unix::fs::MetadataExt::ino(&meta);
            let got = std::fs::File::from(fd.unwrap());
            assert_eq!(id(got.metadata().unwrap()), id(own.metadata().unwrap()));
        });
    }

    #[test]
    fn reports_are_read() {
        let text = |command: &str, outcome: &str, micros: &str| {
            format!(
                "{{\"version\":1,\"done\":{{\"command\":{command:?},\"outcome\":{outcome:?},\
                 \"micros\":{micros}}}}}\n"
            )
        };
        let good = said(text("DEL", "left_behind", "1500").as_bytes()).unwrap();
        let Said::Report(command, outcome, took) = good else { panic!("{good:?}") };
        assert_eq!((command, outcome), (Command::Del, Outcome::LeftBehind));
        assert_eq!(took, Duration::from_micros(1500));
        for (command, outcome, micros) in [
            ("GC", "captured", "1"),
            ("add", "captured", "1"),
            ("ADD", "Captured", "1"),
            ("ADD", "captured", "-1"),
            ("ADD", "captured", "1e400"),
            ("ADD", "captured", "4294967296"),
        ] {
            let text = text(command, outcome, micros);
            assert!(said(text.as_bytes()).is_err(), "{text}");
        }
    }

    /// Verify that the socket of an agent that was killed is no obstacle, and that nobody but its user
    /// may connect.
    #[test]
    fn an_agent_takes_the_place_of_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.sock");
        let first = listen(&path).unwrap();
        let second = listen(&path).unwrap();
        drop(first);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
        assert!(second.accept().is_ok());
        drop(client);
    }
}
