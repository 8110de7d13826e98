//! Names of hosts. The C library's look-ups load libraries at run time, which a static program
//! must not: names are looked up in `/etc/hosts` and in DNS, as `/etc/resolv.conf` says.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::select;
use hickory_resolver::config::ResolveHosts;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name as DnsName, RecordType};
use hickory_resolver::system_conf::parse_resolv_conf;
use hickory_resolver::{Hosts, TokioResolver};
use hyper_util::client::legacy::connect::dns::Name;
use tokio::time::timeout;
use tower::Service;

use crate::file;

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// How long the addresses of one family wait for those of the other (RFC 8305, section 3).
const GRACE: Duration = Duration::from_millis(50);

/// Looks names up. Its clones know together what is being looked up.
#[derive(Clone, Debug, Default)]
pub(super) struct Resolver {
    looking_up: Arc<Mutex<Option<String>>>,
}

impl Resolver {
    /// What is being looked up, and where, if it is.
    pub(super) fn looking_up(&self) -> Option<String> {
        self.looking_up.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, what: Option<String>) {
        *self.looking_up.lock().unwrap_or_else(PoisonError::into_inner) = what;
    }
}

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let own = self.clone();
        Box::pin(async move {
            let failed = |why: String| {
                io::Error::other(format!("the name {name} can't be looked up: {why}"))
            };
            let wanted = DnsName::from_utf8(name.as_str()).map_err(|e| failed(e.to_string()))?;
            let found = match in_hosts(&wanted, Path::new(HOSTS)) {
                found if !found.is_empty() => found,
                _ => {
                    let (resolver, servers) = dns().map_err(failed)?;
                    own.note(Some(format!(
                        "{name}, which {HOSTS} does not have, by DNS at {servers}"
                    )));
                    let found = by_dns(&resolver, &wanted).await;
                    own.note(None);
                    found.map_err(|why| {
                        failed(format!("{why}; {HOSTS} does not have it, DNS is at {servers}"))
                    })?
                }
            };
            // The connector puts the port in.
            let addresses: Vec<SocketAddr> = found.into_iter().map(|ip| (ip, 0).into()).collect();
            Ok(addresses.into_iter())
        })
    }
}

/// The addresses that a file of hosts has. Where it has any, DNS is not asked for more.
fn in_hosts(name: &DnsName, path: &Path) -> Vec<IpAddr> {
    let mut hosts = Hosts::default();
    let read = file::read(path).map(|text| hosts.read_hosts_conf(text.as_bytes()));
    if !matches!(read, Ok(Ok(()))) {
        return Vec::new();
    }
    let of = |kind| hosts.lookup_static_host(&Query::query(name.clone(), kind));
    let found = [RecordType::A, RecordType::AAAA].into_iter().filter_map(of);
    found.flat_map(|found| addresses(&found)).collect()
}

/// A resolver for the servers of the host, and these.
fn dns() -> Result<(TokioResolver, String), String> {
    let text = file::read(Path::new(RESOLV_CONF)).map_err(|error| error.to_string())?;
    let named = |error: &dyn std::fmt::Display| format!("{RESOLV_CONF}: {error}");
    let (config, options) = parse_resolv_conf(text).map_err(|error| named(&error))?;
    let servers: Vec<String> =
        config.name_servers().iter().map(|server| server.ip.to_string()).collect();
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    builder.options_mut().use_hosts_file = ResolveHosts::Never;
    let resolver = builder.build().map_err(|error| named(&error))?;
    Ok((resolver, servers.join(", ")))
}

/// Both families are asked for at once, and none waits long for the other: servers that never
/// answer for one of them are common.
async fn by_dns(resolver: &TokioResolver, name: &DnsName) -> Result<Vec<IpAddr>, String> {
    let of = async |kind| match resolver.lookup(name.clone(), kind).await {
        Ok(found) => Ok(addresses(&found)),
        Err(error) => Err(error.to_string()),
    };
    let (v4, v6) = (pin!(of(RecordType::A)), pin!(of(RecordType::AAAA)));
    let (first, rest) = select(v4, v6).await.factor_first();
    match first {
        Ok(mut found) if !found.is_empty() => {
            if let Ok(Ok(more)) = timeout(GRACE, rest).await {
                found.extend(more);
            }
            Ok(found)
        }
        first => rest.await.or(first),
    }
}

fn addresses(found: &hickory_resolver::lookup::Lookup) -> Vec<IpAddr> {
    found.answers().iter().filter_map(|record| record.data.ip_addr()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_hosts_is_enough_in_one_family() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("hosts");
        std::fs::write(&path, "10.0.0.1 localhost api.test # x\nfd00::1 six.test\n").unwrap();
        let of = |name: &str| in_hosts(&DnsName::from_utf8(name).unwrap(), &path);
        assert_eq!(of("API.test"), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
        assert_eq!(of("six.test."), ["fd00::1".parse::<IpAddr>().unwrap()]);
        assert_eq!(of("other.test"), Vec::<IpAddr>::new());
        let nowhere = in_hosts(&DnsName::from_utf8("a").unwrap(), folder.path());
        assert_eq!(nowhere, Vec::<IpAddr>::new());
    }
}
