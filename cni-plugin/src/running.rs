//! Pods that run: what ADD would do with one of which everything is known, and whether that is what
//! holds in its namespace. For the node agent, which finds those that started without this plugin.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use millrace_core::pod::PodFacts;
use millrace_host::capture::Difference;
use millrace_host::netns::Netns;
use nix::ifaddrs::getifaddrs;

use crate::capture::Want;
use crate::config::{Config, object};
use crate::decide::{Captured, Disposition, Need, Origin, Sources, resolve};
use crate::protocol::{CniError, Code, Environment};
use crate::verb::{enter, failed};

/// What ADD would do with pods, by the plugin's entry.
#[derive(Clone, Debug)]
pub struct Rules {
    config: Config,
    env: Environment,
}

/// What ADD would do with a pod.
#[derive(Clone, Debug)]
pub enum AddOutcome {
    /// Leave it alone, and why.
    Left(String),
    /// Capture it by this policy.
    Captured(Box<Capture>),
}

/// How a pod is to be captured.
#[derive(Clone, Debug)]
pub struct Capture {
    captured: Captured,
    config: Config,
}

/// Nobody: the API told everything already.
struct Nobody;

impl Sources for Nobody {
    fn agent(&mut self, _pod: &PodFacts, _need: Need) -> Option<Result<PodFacts, String>> {
        None
    }

    fn api(&mut self, _pod: &PodFacts, _need: Need) -> Option<Result<PodFacts, String>> {
        None
    }
}

impl Rules {
    /// By an entry of the plugin as a runtime passes it, and the environment that it would run in.
    ///
    /// # Errors
    /// When the plugin would not take it.
    pub fn new(entry: &str, env: Environment) -> Result<Self, CniError> {
        Ok(Self { config: Config::parse(&object(entry)?)?, env })
    }

    /// What ADD would do with a pod.
    ///
    /// # Errors
    /// When it would be refused.
    pub fn outcome(&self, pod: PodFacts) -> Result<AddOutcome, CniError> {
        let config = &self.config;
        let decided = resolve(pod, Origin::Api, config, self.env.clone(), &mut Nobody)?;
        Ok(match &decided.verdict {
            Disposition::Pass(why) => AddOutcome::Left(decided.passed(why)),
            Disposition::Capture(captured) => AddOutcome::Captured(Box::new(Capture {
                captured: captured.as_ref().clone(),
                config: config.clone(),
            })),
        })
    }
}

impl Capture {
    /// Hold what is there against what is wanted, as CHECK does. The calling thread stays in the
    /// namespace.
    ///
    /// # Errors
    /// When it can't be seen.
    pub fn check(
        &self,
        netns: &Netns,
        path: &Path,
        deadline: Instant,
    ) -> Result<Option<Difference>, CniError> {
        let mut pod = enter(netns, path)?;
        pod.check(self.want(netns, deadline)).map_err(|error| failed(&error))
    }

    /// Capture the pod, as ADD does, whatever is there. The calling thread stays in the namespace.
    ///
    /// # Errors
    /// Why not; nothing is changed then.
    pub fn apply(&self, netns: &Netns, path: &Path, deadline: Instant) -> Result<(), CniError> {
        let mut pod = enter(netns, path)?;
        pod.apply(self.want(netns, deadline)).map(drop).map_err(|error| failed(&error))
    }

    fn want<'a>(&'a self, netns: &'a Netns, deadline: Instant) -> Want<'a> {
        let Captured { mesh, policy } = self.captured.clone();
        Want { policy, mesh, config: &self.config, netns, deadline }
    }
}

/// Whether an interface of a namespace has one of these addresses. The calling thread stays in the
/// namespace.
///
/// # Errors
/// When it can't be seen.
pub fn has_one_of(netns: &Netns, addresses: &[IpAddr]) -> Result<bool, CniError> {
    netns.enter().map_err(|error| failed(&error.into()))?;
    let interfaces = getifaddrs().map_err(|errno| {
        CniError::new(Code::Io, format!("its interfaces can't be listed: {errno}"))
    })?;
    let held = interfaces.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())))
    });
    Ok(held.into_iter().any(|address| addresses.contains(&address)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(containers: &str, annotations: &str) -> PodFacts {
        let text = format!(
            "{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"a\",\"namespace\":\"b\",\"uid\":\"c\",\
             \"annotations\":{{{annotations}}}}},\"spec\":{{\"containers\":[{containers}]}}}}"
        );
        serde_json::from_str(&text).unwrap()
    }

    /// Verify that a pod of which everything is known is decided about as by ADD, and that nobody has to
    /// be asked.
    #[test]
    fn a_known_pod_is_decided_about_as_by_add() {
        let entry = r#"{"cniVersion":"1.0.0","name":"n","type":"t","exclude_namespaces":["x"],
                        "proxy_identity":"lookup"}"#;
        let rules = Rules::new(entry, Environment::new()).unwrap();
        let (app, proxy) = (r#"{"name":"app"}"#, r#"{"name":"istio-proxy"}"#);
        let status = r#""sidecar.istio.io/status":"{}""#;
        let wanted = |pod| rules.outcome(pod);
        assert!(matches!(wanted(pod(app, "")), Ok(AddOutcome::Left(_))));
        let meshed = pod(&format!("{app},{proxy}"), status);
        assert!(matches!(wanted(meshed.clone()), Ok(AddOutcome::Captured(_))));
        let excluded = PodFacts { namespace: Some("x".to_owned()), ..meshed };
        assert!(matches!(wanted(excluded), Ok(AddOutcome::Left(why)) if why.contains('x')));
        let wrong = format!("{status},\"sidecar.istio.io/interceptionMode\":\"SOME\"");
        assert!(wanted(pod(&format!("{app},{proxy}"), &wrong)).is_err());
        assert!(Rules::new("{}", Environment::new()).is_err());
    }
}
