//! Clients of the Kubernetes API, with the service account that the agent runs with.

use std::time::Duration;

use http::{Response, Uri};
use http_body_util::Limited;
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, Client, ClientBuilder, ConfigExt as _};
use tokio::time::timeout;
use tower::limit::RateLimitLayer;
use tower::timeout::TimeoutLayer;
use tower::{BoxError, ServiceBuilder};

use crate::kubeconfig::{Account, KubeconfigError};
use millrace_cni::causes::chain;

/// The longest answer, and the most that one watch tells before it is begun anew where it was: a pod
/// has at most 1.5 MiB (the limit of etcd).
const MOST: usize = 128 * 1024 * 1024;
/// How long a connection may take, and how long the API may leave what was sent without a word.
const CONNECT: Duration = Duration::from_secs(10);
const SILENT: Duration = Duration::from_secs(30);
/// How long the API may take to begin an answer.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long all of one may take.
const LONGEST: Duration = Duration::from_secs(30);
/// How many requests there are within this time at most, where nobody waits: who ends each watch at
/// once is not asked for the next one as fast as that.
const REQUESTS: u64 = 8;
const WITHIN: Duration = Duration::from_secs(4);

/// Why the API can't be asked.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The variables of Kubernetes name no API server.
    #[error(transparent)]
    Account(#[from] KubeconfigError),
    /// Its URL, which is no URI, and why.
    #[error("the API server {0:?} can't be used: {1}")]
    Server(String, http::uri::InvalidUri),
    /// kube makes no client: its TLS or its authentication can't be set up.
    #[error("there is no client of the Kubernetes API: {}", story(.0))]
    Client(kube::Error),
}

/// The API, by two clients: neither waits for the other.
#[derive(Clone)]
pub struct Clients {
    /// For what somebody waits for.
    pub prompt: Client,
    /// For the agent's own lists, watches and changes: at most `REQUESTS` of them `WITHIN` a time.
    pub patient: Client,
}

impl std::fmt::Debug for Clients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Clients")
    }
}

impl Clients {
    /// With a service account, whose token is read anew as it is renewed. Needs a runtime.
    ///
    /// # Errors
    /// When something of it is missing.
    pub fn new(account: &Account) -> Result<Self, ApiError> {
        let server = account.server()?;
        let uri: Uri = server.parse().map_err(|why| ApiError::Server(server.clone(), why))?;
        let mut config = kube::Config::new(uri);
        config.root_cert_file = Some(account.folder.join("ca.crt"));
        let token = account.folder.join("token");
        config.auth_info.token_file = Some(token.to_string_lossy().into_owned());
        let client = |limit| client(&config, limit).map_err(ApiError::Client);
        Ok(Self {
            prompt: client(None)?,
            patient: client(Some(RateLimitLayer::new(REQUESTS, WITHIN)))?,
        })
    }
}

/// A client as `Client::try_from` makes it, but that every wait and every answer has an end.
fn client(config: &kube::Config, limit: Option<RateLimitLayer>) -> Result<Client, kube::Error> {
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_connect_timeout(Some(CONNECT));
    http.set_keepalive(Some(SILENT));
    http.set_tcp_user_timeout(Some(SILENT));
    let https = config.rustls_https_connector_with_connector(http)?;
    let bounded = |answer: Response<Incoming>| answer.map(|body| Limited::new(body, MOST));
    let service = ServiceBuilder::new()
        .option_layer(limit)
        .map_err(BoxError::from)
        .layer(TimeoutLayer::new(PATIENCE))
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .map_response(bounded)
        .service(legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(https));
    Ok(ClientBuilder::new(service, config.default_namespace.clone()).build())
}

/// Wait for an answer that nobody else waits for.
///
/// # Errors
/// When it is a refusal, or does not come in time.
pub async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, String> {
    match timeout(LONGEST, request).await {
        Err(_late) => Err(format!("the Kubernetes API did not answer within {LONGEST:?}")),
        Ok(answer) => answer.map_err(|error| story(&error)),
    }
}

/// An error with its causes, each told once, and what to do about those that somebody can mend.
pub fn story(error: &kube::Error) -> String {
    if let kube::Error::Api(status) = error {
        return error_body(status.code, &status.message);
    }
    chain(error)
}

/// What the API said that it does not do, by the status of HTTP.
pub fn error_body(code: u16, message: &str) -> String {
    let remedy = match code {
        401 => "; the token of the service account is not, or no longer, accepted",
        403 => "; the service account lacks a verb: see docs/node-agent.md, «What the agent needs»",
        _ => "",
    };
    format!("{code} {message}{remedy}")
}
