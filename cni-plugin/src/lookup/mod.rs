//! Who knows what a runtime does not tell of a pod.

mod agent;
mod api;
mod resolver;

use std::time::{Duration, Instant};

use millrace_core::pod::PodFacts;

use crate::config::Config;
use crate::decide::Sources;

pub(crate) use agent::reach as reach_agent;
pub(crate) use api::reach as reach_api;

/// The annotation by which the API's mirror of a static pod tells the node's own id of it
/// (Kubernetes, «Well-Known Labels, Annotations and Taints»).
const MIRROR: &str = "kubernetes.io/config.mirror";

/// The sources that are configured, until a deadline.
#[derive(Debug)]
pub(crate) struct Configured<'c> {
    pub(crate) config: &'c Config,
    pub(crate) deadline: Instant,
}

impl Sources for Configured<'_> {
    fn agent(&mut self, pod: &PodFacts) -> Option<Result<PodFacts, String>> {
        let socket = self.config.agent_socket.as_deref()?;
        Some(agent::ask(socket, pod, self.deadline).and_then(|found| same(pod, found)))
    }

    fn api(&mut self, pod: &PodFacts) -> Option<Result<PodFacts, String>> {
        let kubeconfig = self.config.kubeconfig.as_deref()?;
        Some(api::ask(kubeconfig, pod, self.deadline))
    }
}

/// The pod that was found, if it is the one that is being started: one of the same name may have
/// been here before, or follow.
fn same(wanted: &PodFacts, found: PodFacts) -> Result<PodFacts, String> {
    let (Some(id), Some(other)) = (&wanted.uid, &found.uid) else { return Ok(found) };
    if id == other || found.annotation(MIRROR) == Some(id) {
        return Ok(found);
    }
    Err(format!("it knows another pod of this name, with the id {other} and not {id}"))
}

/// What is left until a deadline.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn another_pod_of_the_same_name_is_not_this_one() {
        let with = |uid: Option<&str>| PodFacts {
            uid: uid.map(str::to_owned),
            annotations: Some(BTreeMap::new()),
            ..PodFacts::default()
        };
        assert!(same(&with(Some("a")), with(Some("a"))).is_ok());
        assert!(same(&with(None), with(Some("a"))).is_ok());
        let error = same(&with(Some("a")), with(Some("b"))).unwrap_err();
        assert!(error.contains("another pod"), "{error}");
        let mut mirror = with(Some("b"));
        mirror.annotations = Some(BTreeMap::from([(MIRROR.to_owned(), "a".to_owned())]));
        assert!(same(&with(Some("a")), mirror).is_ok());
    }
}
