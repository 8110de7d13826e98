//! A Kubernetes API, as far as it tells of pods and namespaces, and the node agent changes something:
//! get, list and watch, and Events, status and deletions, over HTTPS; and the ways in which a real one
//! fails.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use http_body_util::{BodyExt as _, Collected, Either, Full};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::time::{Sleep, sleep};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;

use super::Host;
use super::feed::{Changes, Feed, is_on};
use super::merge::{is_same, merge};

/// The name that its certificate has beside the address.
pub const NAME: &str = "api.test";
/// What its clients have to show.
const TOKEN: &str = "the-token-of-the-plugin";
/// The version of everything that it holds; whoever watches from an older one is too late.
const RESOURCE_VERSION: u64 = 100;

/// How it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Well,
    /// With this status, always.
    Failing(u16),
    /// With this status at first, so many times.
    FailingFirst(u16, usize),
    /// As it should, but only after this time.
    Slow(Duration),
    /// With status 200 and this text.
    Saying(String),
    /// As it should, but nobody may change anything.
    ReadOnly,
    /// With blanks, for ever: as fast as they are read, or one after each such pause.
    Endless(Option<Duration>),
}

#[derive(Debug)]
struct State {
    mood: Mood,
    objects: BTreeMap<String, Value>,
    requests: Vec<String>,
    written: Vec<(String, Value)>,
    changes: Arc<Mutex<Changes>>,
    /// The oldest version that can be watched from.
    oldest: u64,
}

impl State {
    /// The version of all that there is.
    fn version(&self) -> u64 {
        RESOURCE_VERSION + self.changes().count() as u64
    }

    fn changes(&self) -> MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn insert(&mut self, path: String, mut object: Value) {
        object["metadata"]["resourceVersion"] = json!((self.version() + 1).to_string());
        let old = self.objects.insert(path, object.clone());
        self.changes().tell(if old.is_some() { "MODIFIED" } else { "ADDED" }, &object);
    }

    fn remove(&mut self, path: &str) -> Option<Value> {
        let mut object = self.objects.remove(path)?;
        object["metadata"]["resourceVersion"] = json!((self.version() + 1).to_string());
        self.changes().tell("DELETED", &object);
        Some(object)
    }

    /// Change an object as a merge patch says (RFC 7386), unless that names another id or version.
    fn merge(&mut self, path: &str, patch: &Value) -> u16 {
        let version = (self.version() + 1).to_string();
        let Some(object) = self.objects.get_mut(path) else { return 404 };
        if !is_same(object, &patch["metadata"]) {
            return 409;
        }
        merge(object, patch);
        object["metadata"]["resourceVersion"] = json!(version);
        let object = object.clone();
        if path.contains("/pods/") {
            self.changes().tell("MODIFIED", &object);
        }
        200
    }
}

/// A running server; it ends with the value.
#[derive(Debug)]
pub struct Api {
    state: Arc<Mutex<State>>,
    folder: TempDir,
    port: u16,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Api {
    /// A server on a host's loopback, with a certificate of a new authority.
    pub fn start(host: &Host) -> Result<Self> {
        let folder = tempfile::tempdir().context("a folder for an API server")?;
        let tls = certificates(folder.path())?;
        fs::write(folder.path().join("token"), TOKEN).context("a token")?;
        let listener = host.namespace.enter(|| TcpListener::bind("127.0.0.1:0"))??;
        let port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        let state = Arc::new(Mutex::new(State {
            mood: Mood::Well,
            objects: BTreeMap::new(),
            requests: Vec::new(),
            written: Vec::new(),
            changes: Arc::default(),
            oldest: RESOURCE_VERSION,
        }));
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = Arc::clone(&state);
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    _ = stopped => {}
                    () = serve(listener, tls, shared) => {}
                }
            });
        });
        Ok(Self { state, folder, port, running: Some((stop, thread)) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Answer so from now on.
    pub fn become_(&self, mood: Mood) {
        self.state().mood = mood;
    }

    /// Hold a pod.
    pub fn put_pod(&self, namespace: &str, name: &str, uid: &str, manifest: &Value) {
        let mut pod = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": name, "namespace": namespace, "uid": uid,
                "labels": manifest["labels"], "annotations": manifest["annotations"],
                "ownerReferences": manifest["ownerReferences"],
            },
            "spec": manifest["spec"],
            "status": manifest["status"],
        });
        if pod["spec"].is_null() {
            pod["spec"] = json!({ "containers": [{ "name": "app" }] });
        }
        let path = format!("/api/v1/namespaces/{namespace}");
        if self.held(&path).is_none() {
            self.put_namespace(namespace, &json!({}));
        }
        self.state().insert(format!("{path}/pods/{name}"), pod);
    }

    /// Hold a namespace with these labels.
    pub fn put_namespace(&self, name: &str, labels: &Value) {
        let metadata = json!({ "name": name, "labels": labels });
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata });
        self.state().insert(format!("/api/v1/namespaces/{name}"), namespace);
    }

    /// Hold a pod no longer.
    pub fn remove_pod(&self, namespace: &str, name: &str) {
        let _gone = self.state().remove(&format!("/api/v1/namespaces/{namespace}/pods/{name}"));
    }

    /// Hold any object.
    pub fn put(&self, path: &str, object: Value) {
        self.state().objects.insert(path.to_owned(), object);
    }

    /// What it holds there.
    pub fn held(&self, path: &str) -> Option<Value> {
        self.state().objects.get(path).cloned()
    }

    /// What was created, changed or deleted: the request, and what came with it.
    pub fn written(&self) -> Vec<(String, Value)> {
        self.state().written.clone()
    }

    /// End all watches.
    pub fn break_watches(&self) {
        self.state().changes().break_watches();
    }

    /// Tell nobody of what was before now.
    pub fn forget(&self) {
        let mut state = self.state();
        state.oldest = state.version();
    }

    /// What was asked since the last time that this was.
    pub fn take_requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    /// A kubeconfig for this server, that names it so, with its authority and its token in files.
    pub fn kubeconfig(&self, server: &str) -> Result<PathBuf> {
        self.kubeconfig_of(server, &format!("tokenFile: {}", self.token().display()))
    }

    /// The same for a user who is described so.
    pub fn kubeconfig_of(&self, server: &str, user: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(format!("kubeconfig-{server}"));
        let folder = self.folder.path().display();
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: k, cluster: {{server: 'https://{server}:{}', \
             certificate-authority: {folder}/ca.pem}}}}]\n\
             users: [{{name: u, user: {{{user}}}}}]\n\
             contexts: [{{name: c, context: {{cluster: k, user: u}}}}]\n",
            self.port
        );
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        Ok(path)
    }

    /// Its port on the host's loopback.
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// Where a kubeconfig's token is.
    pub fn token(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    /// End it: its port is refused from now on.
    pub fn stop(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            // It may have ended by itself.
            let _sent = stop.send(());
            let _joined = thread.join();
        }
    }
}

impl Drop for Api {
    fn drop(&mut self) {
        self.stop();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An authority, whose certificate goes into the folder, and a server's certificate of it.
fn certificates(folder: &Path) -> Result<TlsAcceptor> {
    let mut authority = CertificateParams::new(Vec::new())?;
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    let pem = authority.self_signed(&key)?.pem();
    fs::write(folder.join("ca.pem"), pem).context("a certificate")?;
    let issuer = Issuer::new(authority, key);
    let key = KeyPair::generate()?;
    let names = vec!["127.0.0.1".to_owned(), NAME.to_owned()];
    let certificate = CertificateParams::new(names)?.signed_by(&key, &issuer)?;
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, state: Arc<Mutex<State>>) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener on a runtime");
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, state) = (tls.clone(), Arc::clone(&state));
        // Ends with the connection.
        let _task = tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request| answer(request, Arc::clone(&state)));
            // A client that goes away is no error of the server.
            let _end = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

type Answer = Response<Either<Full<Bytes>, Either<Blanks, Feed>>>;

/// A body without end.
struct Blanks {
    size: usize,
    pause: Duration,
    sleep: Pin<Box<Sleep>>,
}

impl Blanks {
    fn new(pause: Option<Duration>) -> Self {
        let size = if pause.is_some() { 1 } else { 16 * 1024 };
        let pause = pause.unwrap_or_default();
        Self { size, pause, sleep: Box::pin(sleep(pause)) }
    }
}

impl Body for Blanks {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        ready!(self.sleep.as_mut().poll(context));
        self.sleep = Box::pin(sleep(self.pause));
        Poll::Ready(Some(Ok(Frame::data(Bytes::from(vec![b' '; self.size])))))
    }
}

async fn answer(
    request: Request<Incoming>,
    state: Arc<Mutex<State>>,
) -> Result<Answer, Infallible> {
    let mood = {
        let mut state = lock(&state);
        state.requests.push(format!("{} {}", request.method(), request.uri()));
        let mood = state.mood.clone();
        if let Mood::FailingFirst(code, left) = mood {
            state.mood = if left <= 1 { Mood::Well } else { Mood::FailingFirst(code, left - 1) };
        }
        mood
    };
    match mood {
        Mood::Slow(time) => sleep(time).await,
        Mood::Failing(code) | Mood::FailingFirst(code, _) => return Ok(status(code)),
        Mood::Saying(text) => return Ok(reply(200, text)),
        Mood::Endless(pause) => {
            return Ok(Response::new(Either::Right(Either::Left(Blanks::new(pause)))));
        }
        Mood::ReadOnly if request.method() != Method::GET => return Ok(status(403)),
        Mood::Well | Mood::ReadOnly => {}
    }
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if token != Some(&format!("Bearer {TOKEN}")) {
        return Ok(status(401));
    }
    if request.method() != Method::GET {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map(Collected::to_bytes).unwrap_or_default();
        let body = serde_json::from_slice(&body).unwrap_or_default();
        return Ok(changed(&parts.method, parts.uri.path(), body, &mut lock(&state)));
    }
    Ok(found(&request, &lock(&state)))
}

/// Create an Event, change a pod's status or a node, delete a pod: what the node agent does.
fn changed(method: &Method, path: &str, body: Value, state: &mut State) -> Answer {
    state.written.push((format!("{method} {path}"), body.clone()));
    let (object, code) = match (method.as_str(), path.strip_suffix("/status")) {
        ("POST", None) if path.ends_with("/events") => (Some(body), 201),
        ("PATCH", None) if path.contains("/events/") => (Some(body), 200),
        ("PATCH", Some(pod)) => {
            let code = state.merge(pod, &body);
            (state.objects.get(pod).cloned(), code)
        }
        ("PATCH", None) if path.contains("/nodes/") => {
            let code = state.merge(path, &body);
            (state.objects.get(path).cloned(), code)
        }
        ("DELETE", None) if path.contains("/pods/") => match state.objects.get(path) {
            None => (None, 404),
            Some(object) if !is_same(object, &body["preconditions"]) => (None, 409),
            Some(_) => (state.remove(path), 200),
        },
        _ => (None, 403),
    };
    match object {
        Some(object) if code < 400 => reply(code, object.to_string()),
        _ => status(if code < 400 { 404 } else { code }),
    }
}

fn found(request: &Request<Incoming>, state: &State) -> Answer {
    let path = request.uri().path();
    if path == "/version" {
        return reply(200, json!({ "major": "1", "minor": "33" }).to_string());
    }
    if let Some(object) = state.objects.get(path) {
        return reply(200, object.to_string());
    }
    let kind = match path {
        "/api/v1/namespaces" => "Namespace",
        _ if path.ends_with("/pods") => "Pod",
        _ => return status(404),
    };
    let belongs = |key: &str| match path {
        "/api/v1/namespaces" => !key.contains("/pods/"),
        "/api/v1/pods" => key.contains("/pods/"),
        _ => key.starts_with(&format!("{path}/")),
    };
    let query = request.uri().query().unwrap_or_default();
    let selected = query.split('&').find_map(|pair| pair.strip_prefix("fieldSelector="));
    let node = selected.and_then(|text| text.strip_prefix("spec.nodeName%3D"));
    let items: Vec<&Value> = state
        .objects
        .iter()
        .filter(|(key, value)| belongs(key) && is_on(value, node))
        .map(|(_, value)| value)
        .collect();
    if !query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")) {
        let metadata = json!({ "resourceVersion": state.version().to_string() });
        let list = json!({
            "apiVersion": "v1", "kind": format!("{kind}List"), "metadata": metadata, "items": items,
        });
        return reply(200, list.to_string());
    }
    // A watch that is too old ends in an event, not in a status of HTTP.
    let since = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
    let since: Option<u64> = since.and_then(|version| version.parse().ok());
    let too_old = since.is_some_and(|version| version != 0 && version < state.oldest);
    if let Some(version) = since.filter(|version| !too_old && *version >= RESOURCE_VERSION) {
        let at = usize::try_from(version - RESOURCE_VERSION).unwrap_or(usize::MAX);
        let feed = Feed::new(&state.changes, at, kind, node.map(str::to_owned));
        let reply = Response::builder().status(200).header("content-type", "application/json");
        let reply = reply.body(Either::Right(Either::Right(feed)));
        return reply.expect("a status and a header that are good");
    }
    let events: Vec<Value> = if too_old {
        vec![json!({ "type": "ERROR", "object": status_object(410) })]
    } else {
        items.iter().map(|item| json!({ "type": "ADDED", "object": item })).collect()
    };
    let lines: Vec<String> = events.iter().map(ToString::to_string).collect();
    reply(200, lines.join("\n") + "\n")
}

fn status_object(code: u16) -> Value {
    let reason = match code {
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "NotFound",
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    json!({
        "apiVersion": "v1", "kind": "Status", "status": "Failure", "metadata": {},
        "message": format!("the server says {reason}"), "reason": reason, "code": code,
    })
}

fn status(code: u16) -> Answer {
    reply(code, status_object(code).to_string())
}

fn reply(code: u16, text: String) -> Answer {
    let reply = Response::builder().status(code).header("content-type", "application/json");
    let text = Either::Left(Full::new(Bytes::from(text)));
    reply.body(text).expect("a status and a header that are good")
}
