//! The Kubernetes API, through `kube`. What that needs (a runtime, TLS) is made only when it is
//! asked.

use std::path::Path;
use std::time::{Duration, Instant};

use http::{Request, Response, StatusCode};
use http_body_util::{LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::{Body, ClientBuilder, ConfigExt as _};
use millrace_core::from_objects;
use millrace_core::pod::{Answer, PodFacts};
use millrace_host::netlink::runtime;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::time::{sleep, timeout};
use tower::{BoxError, ServiceBuilder};

use super::resolver::Resolver;
use super::{MAX_ANSWER, kubeconfig, left};
use crate::causes::chain;

/// How long one answer is waited for.
const PATIENCE: Duration = Duration::from_secs(4);
/// How often it is asked.
const ATTEMPTS: u32 = 10;
/// The first pause between two attempts; twice as long each time.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Why an attempt told nothing, and whether to make another one.
struct Failure {
    why: String,
    /// Whether another attempt may succeed.
    passing: bool,
}

/// Asks, and can tell where it was when there is no answer.
struct Asker {
    client: Client,
    resolver: Resolver,
    deadline: Instant,
}

/// Ask about a pod, until the deadline.
pub(super) fn ask(
    kubeconfig: &Path,
    pod: &PodFacts,
    deadline: Instant,
) -> Result<PodFacts, String> {
    let part = |text: &Option<String>| text.as_deref().map(encode).unwrap_or_default();
    let path = format!("/api/v1/namespaces/{}/pods/{}", part(&pod.namespace), part(&pod.name));
    run(kubeconfig, deadline, async |asker| {
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let asked = asker.get(&path).await.and_then(|answer: Answer| {
                // A pod that was made anew may not have arrived at every server yet.
                answer.about(pod).map_err(|why| Failure { why: why.to_string(), passing: true })
            });
            let failure = match asked {
                Ok(found) => return Ok(found),
                Err(failure) => failure,
            };
            let over = attempt == ATTEMPTS || left(deadline) <= pause;
            if over || !failure.passing {
                let times = if attempt == 1 { "once" } else { &format!("{attempt} times") };
                return Err(format!("{} (asked {times})", failure.why));
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
            attempt += 1;
        }
    })
}

/// What a Kubernetes API tells of itself.
#[derive(Deserialize)]
#[serde(remote = "Self")]
struct Version {
    #[serde(rename = "major")]
    _major: String,
}

from_objects!(Version);

/// Whether it answers one `GET /version` before the deadline.
pub(crate) fn reach(kubeconfig: &Path, deadline: Instant) -> Result<(), String> {
    run(kubeconfig, deadline, async |asker| {
        let version = asker.get::<Version>("/version").await;
        version.map(drop).map_err(|failure| failure.why)
    })
}

/// Run something on a runtime of its own, with a client.
fn run<T>(
    kubeconfig: &Path,
    deadline: Instant,
    f: impl AsyncFnOnce(&Asker) -> Result<T, String>,
) -> Result<T, String> {
    let runtime = runtime().map_err(|error| error.to_string())?;
    runtime.block_on(async { f(&Asker::new(kubeconfig, deadline).await?).await })
}

impl Asker {
    async fn new(kubeconfig: &Path, deadline: Instant) -> Result<Self, String> {
        let failed = |why: String| format!("kubeconfig {}: {why}", kubeconfig.display());
        let config = kubeconfig::load(kubeconfig, deadline);
        let config = config.await.map_err(|error| failed(error.to_string()))?;
        let bad = |error: kube::Error| failed(chain(&error));
        // As `Client::try_from` does it, but for names of hosts, which a static program has to look
        // up by itself, and for the length of answers.
        let resolver = Resolver::default();
        let mut http = HttpConnector::new_with_resolver(resolver.clone());
        http.enforce_http(false);
        let https = config.rustls_https_connector_with_connector(http).map_err(bad)?;
        let limit = |answer: Response<Incoming>| answer.map(|body| Limited::new(body, MAX_ANSWER));
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer().map_err(bad)?)
            .map_err(BoxError::from)
            .map_response(limit)
            .service(legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(https));
        let client = ClientBuilder::new(service, config.default_namespace).build();
        Ok(Self { client, resolver, deadline })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let request = Request::get(path)
            .body(Vec::new())
            .map_err(|error| Failure { why: error.to_string(), passing: false })?;
        let limit = left(self.deadline).min(PATIENCE);
        match timeout(limit, self.client.request(request)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(failure(&error)),
            Err(_) => {
                let looking_up = self.resolver.looking_up();
                let at = looking_up.map(|what| format!("; it was looking up {what}"));
                let why = format!("no answer within {limit:.1?}{}", at.unwrap_or_default());
                Err(Failure { why, passing: true })
            }
        }
    }
}

fn failure(error: &kube::Error) -> Failure {
    if is_too_long(error) {
        let why = format!("its answer is longer than {MAX_ANSWER} bytes");
        return Failure { why, passing: false };
    }
    let kube::Error::Api(status) = error else {
        // Whoever answers with something else may do better the next time.
        return Failure { why: chain(error), passing: true };
    };
    let remedy = match StatusCode::from_u16(status.code) {
        Ok(StatusCode::UNAUTHORIZED) => {
            "; the kubeconfig's credentials are not, or no longer, accepted"
        }
        Ok(StatusCode::FORBIDDEN) => "; the kubeconfig's user needs the verb get on pods",
        _ => "",
    };
    // A pod that is not there yet may be soon; credentials are read anew in each run only.
    let passing = !matches!(status.code, 400..=403 | 405 | 406);
    Failure { why: format!("{} {}{remedy}", status.code, status.message), passing }
}

fn is_too_long(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<LengthLimitError>() || error.source().is_some_and(is_too_long)
}

/// A part of a path, with everything but letters, digits and `-_.~` encoded (RFC 3986, 2.1).
fn encode(text: &str) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"-_.~".contains(b);
    text.bytes()
        .map(|b| if plain(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_part_of_a_path() {
        assert_eq!(encode("web-0.a_b~"), "web-0.a_b~");
        assert_eq!(encode("../x?y z"), "..%2Fx%3Fy%20z");
    }

    #[test]
    fn a_kubeconfig_that_is_not_there_is_named() {
        let deadline = Instant::now() + Duration::from_secs(1);
        let error = ask(Path::new("/no/kubeconfig"), &PodFacts::default(), deadline).unwrap_err();
        assert!(error.contains("/no/kubeconfig"), "{error}");
    }
}
