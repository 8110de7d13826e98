//! What the agent answers over HTTP: whether it lives, whether it is ready and why not, and what it
//! counted.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Semaphore;

use crate::state::Shared;

/// How long a request's head may take, and how many are served at once.
const PATIENCE: Duration = Duration::from_secs(10);
const AT_ONCE: usize = 64;

/// Which paths an address serves by HTTP; all others are 404.
#[derive(Clone, Copy, Debug)]
pub enum What {
    /// `/livez`, `/readyz`, and `/healthz`, which is the first.
    Health,
    /// `/metrics`, as `application/openmetrics-text`.
    Metrics,
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Health => "health (/livez, /readyz)",
            Self::Metrics => "metrics (/metrics)",
        })
    }
}

/// Listen; where the kernel has no IPv6, any address of it means any of IPv4.
///
/// # Errors
/// When the address can't be had.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let bound = TcpListener::bind(address);
    let no_v6 = |error: &io::Error| {
        [Some(rustix::io::Errno::AFNOSUPPORT), Some(rustix::io::Errno::ADDRNOTAVAIL)]
            .contains(&rustix::io::Errno::from_io_error(error))
    };
    let listener = match bound {
        Err(error) if address.is_ipv6() && address.ip().is_unspecified() && no_v6(&error) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port()))?
        }
        bound => bound?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Accept connections for ever, and answer HTTP/1 on at most `AT_ONCE` of them at a time.
///
/// # Errors
/// When the runtime can't have the listener.
pub async fn serve(listener: TcpListener, what: What, shared: Arc<Shared>) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(AT_ONCE));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return Ok(()) };
        let Ok((stream, _)) = listener.accept().await else {
            // No file descriptor is left, or the client went away.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let shared = Arc::clone(&shared);
        // Ends with the connection.
        let _task = tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&request, what, &shared);
                async { Ok::<_, Infallible>(answer) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            let _end = builder.serve_connection(TokioIo::new(stream), service).await;
            drop(place);
        });
    }
}

fn answer(request: &Request<Incoming>, what: What, shared: &Shared) -> Response<Full<Bytes>> {
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return reply(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "GET alone\n".to_owned());
    }
    let verdict = |reasons: Vec<String>| {
        if reasons.is_empty() {
            return reply(StatusCode::OK, "text/plain", "ok\n".to_owned());
        }
        let text = format!("{}\n", reasons.join("\n"));
        reply(StatusCode::SERVICE_UNAVAILABLE, "text/plain", text)
    };
    match (what, request.uri().path()) {
        (What::Health, "/livez" | "/healthz") => verdict(shared.dead()),
        (What::Health, "/readyz") => verdict(shared.not_ready()),
        (What::Metrics, "/metrics") => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            reply(StatusCode::OK, kind, shared.metrics())
        }
        _ => reply(StatusCode::NOT_FOUND, "text/plain", "not found\n".to_owned()),
    }
}

fn reply(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let value = header::HeaderValue::from_static(kind);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}
