//! One connection to the runtime: registration, and the answers to its requests. Whatever the runtime sends,
//! what waits here has a bound.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use millrace_cni::protocol::{CniError, Code};
use millrace_core::visible::visible;
use prost::Message as _;
use prost::encoding::{DecodeContext, WireType, decode_key, skip_field};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout, timeout_at};

use super::frames::{Assembly, Channel, FRAME_HEADER, Kind, Message, encode, frame};
use super::hook::Hook;
use super::messages::{
    AboutPod, Configure, Configured, Event, PLUGIN, PodSandbox, RUNTIME, RegisterPlugin, Request,
    Response, StateChange, Status, Synchronize, Synchronized,
};
use super::{INDEX, NAME};

/// The version of NRI whose messages are spoken.
const VERSION: &str = "v0.12.2";
/// How many requests are worked on at once. Runtimes send one after the other.
const AT_ONCE: usize = 32;
/// How long the runtime may take to read an answer, and to send the rest of a frame.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take from the registration to the last word of what there is.
const SETTLED: Duration = Duration::from_mins(1);
/// How long a request may take where the runtime does not tell: its own default.
const LIMIT: Duration = Duration::from_secs(2);
/// Of the time for a request, what the work may take, and after what an answer is sent in any case. A
/// runtime that waits in vain drops the plugin and starts the pod.
const WORK: f64 = 0.6;
const ANSWER: f64 = 0.75;
/// How many bytes may tell of what there is.
const MOST_KNOWN: usize = 64 << 20;
/// How many pods and containers a node may have: the kubelet takes 110 pods, if nobody says otherwise.
const MOST_TOLD: usize = 50_000;
/// The longest message of a refusal, in bytes.
const MOST_SAID: usize = 2048;
/// How much is read at once.
const CHUNK: usize = 64 * 1024;
/// How often it is looked whether the node was uninstalled.
const LOOK: Duration = Duration::from_secs(1);
/// The stream of the one request that is made here.
const REGISTRATION: u32 = 1;

/// Codes of gRPC.
const FAILED_PRECONDITION: i32 = 9;
const UNIMPLEMENTED: i32 = 12;
const UNAVAILABLE: i32 = 14;
const RESOURCE_EXHAUSTED: i32 = 8;
const INVALID_ARGUMENT: i32 = 3;

/// What a method gives: its message, or why not.
type Answer = Result<Vec<u8>, Status>;

struct Session {
    hook: Arc<Hook>,
    answers: mpsc::Sender<Vec<u8>>,
    places: Arc<Semaphore>,
    /// How long a request may take, in microseconds.
    limit: AtomicU64,
    is_settled: AtomicBool,
}

/// What the runtime has told of, so far.
#[derive(Default)]
struct Known {
    pods: Vec<PodSandbox>,
    with_containers: HashSet<String>,
    bytes: usize,
    /// How many pods and containers these were.
    told: usize,
}

/// Serve a connection until it ends; gives why it did.
pub async fn run(stream: UnixStream, hook: &Arc<Hook>) -> String {
    let (reader, writer) = stream.into_split();
    let (answers, to_send) = mpsc::channel(AT_ONCE);
    let session = Session {
        hook: Arc::clone(hook),
        answers,
        places: Arc::new(Semaphore::new(AT_ONCE)),
        limit: AtomicU64::new(micros(LIMIT)),
        is_settled: AtomicBool::new(false),
    };
    tokio::select! {
        Err(why) = session.read(reader) => why,
        Err(why) = write(writer, to_send) => why,
        why = session.watch() => why,
    }
}

async fn write(
    mut writer: OwnedWriteHalf,
    mut to_send: mpsc::Receiver<Vec<u8>>,
) -> Result<(), String> {
    while let Some(bytes) = to_send.recv().await {
        match timeout(PATIENCE, writer.write_all(&bytes)).await {
            Err(_late) => return Err(format!("it reads no answer within {PATIENCE:?}")),
            Ok(written) => written.map_err(|error| error.to_string())?,
        }
    }
    // The session holds a sender as long as it lives.
    std::future::pending().await
}

impl Session {
    /// Register, and serve what comes.
    async fn read(&self, mut reader: OwnedReadHalf) -> Result<(), String> {
        self.register().await?;
        let mut known = Known::default();
        let (mut plugin, mut runtime) = (Assembly::default(), Assembly::default());
        let mut chunk = vec![0; CHUNK];
        loop {
            let mut header = [0; FRAME_HEADER];
            reader.read_exact(&mut header).await.map_err(|error| lost(&error))?;
            let (channel, mut left) = frame(header).map_err(|error| error.to_string())?;
            while left > 0 {
                let part = &mut chunk[..left.min(CHUNK)];
                let read = timeout(PATIENCE, reader.read_exact(part)).await;
                let read = read.map_err(|_late| "a frame has no end".to_owned())?;
                left -= read.map_err(|error| lost(&error))?;
                let assembly = match channel {
                    Channel::Plugin => &mut plugin,
                    Channel::Runtime => &mut runtime,
                };
                for message in assembly.take(part).map_err(|error| error.to_string())? {
                    match channel {
                        Channel::Plugin => self.asked(&message, &mut known).await?,
                        Channel::Runtime => answered(&message)?,
                    }
                }
            }
        }
    }

    /// Until the runtime doesn't settle in time, or the node is uninstalled.
    async fn watch(&self) -> String {
        let began = Instant::now();
        loop {
            sleep(LOOK).await;
            if let Some(why) = self.hook.withheld() {
                return why;
            }
            if !self.is_settled.load(Ordering::Relaxed) && began.elapsed() > SETTLED {
                return format!("it did not tell of its pods within {SETTLED:?}");
            }
        }
    }

    async fn register(&self) -> Result<(), String> {
        let register = RegisterPlugin {
            plugin_name: NAME.to_owned(),
            plugin_idx: INDEX.to_owned(),
            nri_version: VERSION.to_owned(),
        };
        let request = Request {
            service: RUNTIME.to_owned(),
            method: "RegisterPlugin".to_owned(),
            payload: register.encode_to_vec(),
            timeout_nano: 0,
        };
        let data = request.encode_to_vec();
        let message = Message { stream: REGISTRATION, kind: Kind::Request, data };
        self.send(Channel::Runtime, &message).await
    }

    async fn send(&self, channel: Channel, message: &Message) -> Result<(), String> {
        send(&self.answers, channel, message).await
    }

    /// Serve a request. What can take time goes on by itself.
    async fn asked(&self, message: &Message, known: &mut Known) -> Result<(), String> {
        if message.kind != Kind::Request {
            return Err("it answers what it was not asked".to_owned());
        }
        let began = Instant::now();
        let request = Request::decode(message.data.as_slice())
            .map_err(|error| format!("a request can't be read: {error}"))?;
        let answer = if request.service == PLUGIN {
            match request.method.as_str() {
                "Configure" => self.configure(&request.payload),
                "Synchronize" => self.synchronize(&request.payload, known),
                method => match about(method, &request.payload) {
                    Ok(Some((event, pod))) => {
                        // Who asks on without reading answers is read no further.
                        match Arc::clone(&self.places).try_acquire_owned() {
                            Err(_full) => Err(refused(&CniError::new(
                                Code::TryAgain,
                                format!("the runtime asks for more than {AT_ONCE} pods at once"),
                            ))),
                            Ok(place) => {
                                let limit = self.limit(request.timeout_nano);
                                self.serve(message.stream, (event, pod), (began, limit), place);
                                return Ok(());
                            }
                        }
                    }
                    Ok(None) => Ok(Vec::new()),
                    Err(status) => Err(status),
                },
            }
        } else {
            Err(status(UNIMPLEMENTED, &format!("there is no service {}", request.service)))
        };
        self.send(Channel::Plugin, &response(message.stream, answer)).await
    }

    fn configure(&self, payload: &[u8]) -> Answer {
        let configure = Configure::decode(payload).map_err(|error| unreadable(&error))?;
        if let Ok(millis) = u64::try_from(configure.request_timeout)
            && millis > 0
        {
            self.limit.store(millis.saturating_mul(1000), Ordering::Relaxed);
        }
        let Configure { runtime_name, runtime_version, nri_version, .. } = configure;
        tracing::info!(
            "the runtime {} {} (NRI {}) takes the plugin",
            visible(&runtime_name),
            visible(&runtime_version),
            visible(&nri_version),
        );
        Ok(Configured { events: Event::mask() }.encode_to_vec())
    }

    fn synchronize(&self, payload: &[u8], known: &mut Known) -> Answer {
        known.bytes = known.bytes.saturating_add(payload.len());
        if known.bytes > MOST_KNOWN {
            *known = Known::default();
            let why = format!("more than {MOST_KNOWN} bytes tell of pods and containers");
            return Err(status(RESOURCE_EXHAUSTED, &why));
        }
        known.told = known.told.saturating_add(told(payload).map_err(|error| unreadable(&error))?);
        if known.told > MOST_TOLD {
            *known = Known::default();
            let why = format!("a node has no more than {MOST_TOLD} pods and containers");
            return Err(status(RESOURCE_EXHAUSTED, &why));
        }
        let part = Synchronize::decode(payload).map_err(|error| unreadable(&error))?;
        known.pods.extend(part.pods);
        known.with_containers.extend(part.containers.into_iter().map(|c| c.pod_sandbox_id));
        if !part.more {
            let Known { pods, with_containers, .. } = std::mem::take(known);
            self.is_settled.store(true, Ordering::Relaxed);
            self.hook.synchronized(pods, with_containers);
        }
        Ok(Synchronized { more: part.more }.encode_to_vec())
    }

    /// How long a request may take that says so in nanoseconds.
    fn limit(&self, nanos: i64) -> Duration {
        let told = u64::try_from(nanos).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos);
        let limit = Duration::from_micros(self.limit.load(Ordering::Relaxed));
        told.map_or(limit, |told| told.min(limit))
    }

    /// Serve a request about a pod, and answer in time whatever becomes of it.
    fn serve(
        &self,
        stream: u32,
        (event, pod): (Event, PodSandbox),
        (began, limit): (Instant, Duration),
        place: OwnedSemaphorePermit,
    ) {
        let (until, last) = (began + limit.mul_f64(WORK), began + limit.mul_f64(ANSWER));
        let (hook, answers) = (Arc::clone(&self.hook), self.answers.clone());
        // Taken until the work is done and the answer is sent, whichever comes last.
        let place = Arc::new(place);
        // It ends by its deadline, whatever becomes of the connection.
        let _task = tokio::spawn(async move {
            let working = Arc::clone(&place);
            let work = tokio::task::spawn_blocking(move || {
                let _working = working;
                hook.serve(event, &pod, began, until)
            });
            let answer = match timeout_at(last.into(), work).await {
                Ok(Ok(done)) => done.map_err(|error| refused(&error)),
                Ok(Err(_panic)) => Err(refused(&CniError::new(
                    Code::Internal,
                    "the agent has a fault; its log says where",
                ))),
                Err(_late) => Err(refused(&CniError::new(
                    Code::TryAgain,
                    format!("it is not done after {limit:.1?} less a quarter: it is tried again"),
                ))),
            };
            let response = response(stream, answer.map(|()| Vec::new()));
            // Where the connection is gone the next one tells of the pod.
            let _sent = send(&answers, Channel::Plugin, &response).await;
            drop(place);
        });
    }
}

/// How many pods and containers a part of what there is tells of.
fn told(mut payload: &[u8]) -> Result<usize, prost::DecodeError> {
    let mut count = 0;
    while !payload.is_empty() {
        let (tag, kind) = decode_key(&mut payload)?;
        skip_field(kind, tag, &mut payload, DecodeContext::default())?;
        count += usize::from(kind == WireType::LengthDelimited);
    }
    Ok(count)
}

/// The event that a method tells of, with its pod; none where nothing is to be done about it.
fn about(method: &str, payload: &[u8]) -> Result<Option<(Event, PodSandbox)>, Status> {
    let no_pod = || status(INVALID_ARGUMENT, "it tells of no pod");
    if method == "StateChange" {
        let change = StateChange::decode(payload).map_err(|error| unreadable(&error))?;
        return match Event::find(change.event) {
            Some(event) => Ok(Some((event, change.pod.ok_or_else(no_pod)?))),
            None => Ok(None),
        };
    }
    if let Some(event) = Event::ALL.into_iter().find(|event| event.method() == method) {
        let about = AboutPod::decode(payload).map_err(|error| unreadable(&error))?;
        return Ok(Some((event, about.pod.ok_or_else(no_pod)?)));
    }
    match method {
        // A pod's resources say nothing of its network; and what ends is seen by the connection's end.
        "UpdatePodSandbox" | "PostUpdatePodSandbox" | "Shutdown" => Ok(None),
        other => Err(status(UNIMPLEMENTED, &format!("there is no method {other}"))),
    }
}

/// The answer to the registration.
fn answered(message: &Message) -> Result<(), String> {
    if (message.kind, message.stream) != (Kind::Response, REGISTRATION) {
        return Err("it asks for what only a runtime has".to_owned());
    }
    let response = Response::decode(message.data.as_slice())
        .map_err(|error| format!("its answer can't be read: {error}"))?;
    match response.status {
        Some(Status { code, message }) if code != 0 => {
            Err(format!("it refuses the plugin: {}", visible(&message)))
        }
        _ => Ok(()),
    }
}

fn response(stream: u32, answer: Answer) -> Message {
    let response = match answer {
        Ok(payload) => Response { status: None, payload },
        Err(status) => Response { status: Some(status), payload: Vec::new() },
    };
    Message { stream, kind: Kind::Response, data: response.encode_to_vec() }
}

async fn send(
    answers: &mpsc::Sender<Vec<u8>>,
    channel: Channel,
    message: &Message,
) -> Result<(), String> {
    let bytes = encode(channel, message).map_err(|error| error.to_string())?;
    answers.send(bytes).await.map_err(|_closed| "the connection is closed".to_owned())
}

/// What the runtime is told of a pod that is refused.
fn refused(error: &CniError) -> Status {
    let code = if error.code == Code::TryAgain { UNAVAILABLE } else { FAILED_PRECONDITION };
    let between = if error.details.is_empty() { "" } else { ": " };
    let CniError { msg, details, .. } = error;
    status(code, &format!("{NAME} (code {}): {msg}{between}{details}", error.code.number()))
}

fn status(code: i32, why: &str) -> Status {
    let mut message = visible(why).into_owned();
    if message.len() > MOST_SAID {
        message.truncate(message.floor_char_boundary(MOST_SAID));
        message.push('…');
    }
    Status { code, message }
}

fn unreadable(error: &prost::DecodeError) -> Status {
    status(INVALID_ARGUMENT, &format!("the request can't be read: {error}"))
}

fn lost(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::UnexpectedEof => "it closed the connection".to_owned(),
        _ => error.to_string(),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_has_the_code_and_one_short_line() {
        let error = CniError::new(Code::BadAnnotation, "pod a/b: no\nway").with_details("x");
        let told = refused(&error);
        assert_eq!(told.code, FAILED_PRECONDITION);
        assert!(told.message.starts_with("millrace (code 102): pod a/b: no"), "{told:?}");
        assert!(told.message.ends_with(": x"), "{told:?}");
        let long = refused(&CniError::new(Code::TryAgain, "ä".repeat(MOST_SAID)));
        assert_eq!(long.code, UNAVAILABLE);
        assert!(long.message.len() <= MOST_SAID + 3 && long.message.ends_with('…'));
    }

    #[test]
    fn older_and_newer_runtimes_tell_the_same() {
        let pod = PodSandbox { id: "x".to_owned(), ..PodSandbox::default() };
        for event in Event::ALL {
            let newer = AboutPod { pod: Some(pod.clone()) }.encode_to_vec();
            let older = StateChange { event: event.number(), pod: Some(pod.clone()) };
            assert_eq!(about(event.method(), &newer), Ok(Some((event, pod.clone()))));
            assert_eq!(
                about("StateChange", &older.encode_to_vec()),
                Ok(Some((event, pod.clone())))
            );
            assert!(about(event.method(), &[]).is_err());
        }
        let other = StateChange { event: 7, pod: None }.encode_to_vec();
        assert_eq!(about("StateChange", &other), Ok(None));
        assert_eq!(about("UpdatePodSandbox", &[]), Ok(None));
        assert_eq!(about("Execute", &[]).unwrap_err().code, UNIMPLEMENTED);
    }

    /// Verify that pods and containers are counted before any is read.
    #[test]
    fn what_a_node_has_is_counted() {
        let part = Synchronize { pods: vec![PodSandbox::default(); 5], ..Synchronize::default() };
        assert_eq!(told(&part.encode_to_vec()), Ok(5));
        assert_eq!(told(&[]), Ok(0));
        assert!(told(&[0x0a, 0xff]).is_err());
    }
}
