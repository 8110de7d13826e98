//! Names of hosts. The C library's look-ups load libraries at run time, which a static program
//! must not: names are looked up in `/etc/hosts` and in DNS, as `/etc/resolv.conf` says.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use hickory_resolver::TokioResolver;
use hyper_util::client::legacy::connect::dns::Name;
use tower::Service;

/// Looks names up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Resolver;

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let resolver =
                TokioResolver::builder_tokio().and_then(hickory_resolver::ResolverBuilder::build);
            let found = match resolver {
                Ok(resolver) => resolver.lookup_ip(name.as_str()).await,
                Err(error) => Err(error),
            };
            let found = found.map_err(|error| io::Error::other(format!("{name}: {error}")))?;
            // The connector puts the port in.
            let addresses: Vec<SocketAddr> = found.iter().map(|ip| (ip, 0).into()).collect();
            Ok(addresses.into_iter())
        })
    }
}
