//! A Kubernetes API, as far as it tells of pods and namespaces: get, list and watch over HTTPS,
//! and the ways in which a real one fails.

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
use http_body_util::{Either, Full};
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
    /// With blanks, for ever: as fast as they are read, or one after each such pause.
    Endless(Option<Duration>),
}

#[derive(Debug)]
struct State {
    mood: Mood,
    objects: BTreeMap<String, Value>,
    requests: Vec<String>,
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
                "resourceVersion": RESOURCE_VERSION.to_string(),
                "labels": manifest["labels"], "annotations": manifest["annotations"],
            },
            "spec": manifest["spec"],
        });
        if pod["spec"].is_null() {
            pod["spec"] = json!({ "containers": [{ "name": "app" }] });
        }
        self.state().objects.insert(format!("/api/v1/namespaces/{namespace}/pods/{name}"), pod);
        let path = format!("/api/v1/namespaces/{namespace}");
        let version = RESOURCE_VERSION.to_string();
        let metadata = json!({ "name": namespace, "resourceVersion": version });
        let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": metadata });
        self.state().objects.insert(path, namespace);
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

type Answer = Response<Either<Full<Bytes>, Blanks>>;

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
        Mood::Endless(pause) => return Ok(Response::new(Either::Right(Blanks::new(pause)))),
        Mood::Well => {}
    }
    let token = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    if token != Some(&format!("Bearer {TOKEN}")) {
        return Ok(status(401));
    }
    if request.method() != Method::GET {
        return Ok(status(403));
    }
    Ok(found(&request, &lock(&state)))
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
    let items: Vec<&Value> =
        state.objects.iter().filter(|(key, _)| belongs(key)).map(|(_, value)| value).collect();
    let query = request.uri().query().unwrap_or_default();
    if !query.split('&').any(|pair| matches!(pair, "watch=true" | "watch=1")) {
        let metadata = json!({ "resourceVersion": RESOURCE_VERSION.to_string() });
        let list = json!({
            "apiVersion": "v1", "kind": format!("{kind}List"), "metadata": metadata, "items": items,
        });
        return reply(200, list.to_string());
    }
    // A watch that is too old ends in an event, not in a status of HTTP.
    let since = query.split('&').find_map(|pair| pair.strip_prefix("resourceVersion="));
    let too_old = since.and_then(|v| v.parse().ok()).is_some_and(|v: u64| v < RESOURCE_VERSION);
    let events: Vec<Value> = if too_old && since != Some("0") {
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
