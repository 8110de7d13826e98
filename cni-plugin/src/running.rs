//! ADD without a runtime that calls for it: what it would do with a pod, whether that is what holds in the
//! pod's namespace, and doing it. For the node agent, which finds pods that started without this plugin, and
//! is told of new ones by another way.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use millrace_core::pod::PodFacts;
use millrace_host::capture::Difference;
use millrace_host::netns::Netns;
use nix::ifaddrs::getifaddrs;

use crate::capture::Want;
use crate::config::{Config, object};
use crate::decide::{self, Captured, Disposition, Need, Origin, Sources, resolve};
use crate::protocol::{CniError, Code, Environment};
use crate::verb::{captured_by, collect, enter, failed, not_started};

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

/// What ADD would do with a pod, and what the user should know.
#[derive(Clone, Debug)]
pub struct Added {
    /// What it would do.
    pub outcome: AddOutcome,
    /// Warnings, a line each.
    pub warnings: Vec<String>,
}

/// What captures a pod that was to be captured.
#[derive(Clone, Debug)]
pub struct Started {
    /// The mesh whose proxy it has.
    pub mesh: &'static str,
    /// eBPF, or the backend of its rules.
    pub by: String,
    /// Whether something was changed for it: else it was captured already.
    pub changed: bool,
    /// Warnings, a line each.
    pub warnings: Vec<String>,
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

/// One who is asked about pods.
struct One<F>(F);

impl<F: FnMut(&PodFacts) -> Result<PodFacts, String>> Sources for One<F> {
    fn agent(&mut self, pod: &PodFacts, _need: Need) -> Option<Result<PodFacts, String>> {
        Some((self.0)(pod))
    }

    fn api(&mut self, _pod: &PodFacts, _need: Need) -> Option<Result<PodFacts, String>> {
        None
    }
}

/// How a pod is called in messages.
pub fn called(pod: &PodFacts) -> String {
    decide::called(pod)
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
        self.resolved(pod, Origin::Api, &mut Nobody).map(|added| added.outcome)
    }

    /// What ADD would do with a pod of which a runtime tells so much; who knows more is asked where ADD
    /// asks the node agent.
    ///
    /// # Errors
    /// When it would be refused.
    pub fn added(
        &self,
        pod: PodFacts,
        ask: impl FnMut(&PodFacts) -> Result<PodFacts, String>,
    ) -> Result<Added, CniError> {
        self.resolved(pod, Origin::Runtime, &mut One(ask))
    }

    fn resolved(
        &self,
        pod: PodFacts,
        origin: Origin,
        sources: &mut dyn Sources,
    ) -> Result<Added, CniError> {
        let config = &self.config;
        let decided = resolve(pod, origin, config, self.env.clone(), sources)?;
        let outcome = match &decided.verdict {
            Disposition::Pass(why) => AddOutcome::Left(decided.passed(why)),
            Disposition::Capture(captured) => AddOutcome::Captured(Box::new(Capture {
                captured: captured.as_ref().clone(),
                config: config.clone(),
            })),
        };
        Ok(Added { outcome, warnings: decided.warnings })
    }

    /// Forget pods that are gone, where eBPF captures, as DEL does.
    ///
    /// # Errors
    /// Why their entries are left behind.
    pub fn forget(&self, until: Instant) -> Result<(), String> {
        collect(&self.config.bpffs, until).map_err(|error| error.to_string())
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
        let checked = pod.check(self.want(netns, deadline)).map_err(|error| failed(&error))?;
        Ok(checked.difference)
    }

    /// Capture the pod, as ADD does, whatever is there. The calling thread stays in the namespace.
    ///
    /// # Errors
    /// Why not; nothing is changed then.
    pub fn apply(&self, netns: &Netns, path: &Path, deadline: Instant) -> Result<(), CniError> {
        let mut pod = enter(netns, path)?;
        pod.apply(self.want(netns, deadline)).map(drop).map_err(|error| failed(&error))
    }

    /// Capture a pod that is to start, as ADD does. The calling thread stays in the namespace.
    ///
    /// # Errors
    /// What the runtime is told, which is not to start it.
    pub fn start(
        &self,
        netns: &Netns,
        path: &Path,
        deadline: Instant,
    ) -> Result<Started, CniError> {
        let applied = enter(netns, path).and_then(|mut pod| {
            pod.apply(self.want(netns, deadline)).map_err(|error| failed(&error))
        });
        let applied = applied.map_err(not_started)?;
        let (by, changed) = captured_by(&applied);
        let mesh = self.captured.mesh.dialect().name;
        Ok(Started { mesh, by, changed, warnings: applied.outcome.warnings })
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
        let meshed_again = meshed.clone();
        let excluded = PodFacts { namespace: Some("x".to_owned()), ..meshed };
        assert!(matches!(wanted(excluded), Ok(AddOutcome::Left(why)) if why.contains('x')));
        // Annotations that tell of a proxy are taken from a runtime, and only the rest is asked for.
        let runtimes = PodFacts { containers: None, labels: None, ..meshed_again };
        let mut asked = 0;
        let added = rules.added(runtimes.clone(), |_| {
            asked += 1;
            Ok(pod(&format!("{app},{proxy}"), status))
        });
        assert!(matches!(added.unwrap().outcome, AddOutcome::Captured(_)));
        assert_eq!(asked, 1);
        let refused = rules.added(runtimes, |_| Err("asleep".to_owned())).unwrap_err();
        assert_eq!(refused.code, Code::TryAgain);
        assert!(refused.msg.contains("asleep"), "{refused}");
        let wrong = format!("{status},\"sidecar.istio.io/interceptionMode\":\"SOME\"");
        assert!(wanted(pod(&format!("{app},{proxy}"), &wrong)).is_err());
        assert!(Rules::new("{}", Environment::new()).is_err());
    }
}
