//! A pod that starts: the plugin asks for it, and its ADD waits.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use millrace_core::dialect::ambient::enrol::{Enrolment, Labels, decide};
use millrace_host::netns::NetnsRef;
use tokio::time::{Instant, timeout};

use super::Enroller;
use super::entry::Failure;
use super::inside::{self, Shared};
use crate::namespaces::labels_of;
use crate::pods::Pod;

/// How long the proxy is waited for while the plugin waits, which has to be told of a failure as well.
const PROMPT: Duration = Duration::from_secs(8);

/// What became of a pod that the plugin asked to enrol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is captured, and the proxy knows it.
    Enrolled,
    /// It is not to be, and this is why.
    Bypassed(String),
}

impl Enroller {
    /// Enrol a pod whose namespace a runtime has just made; it has these addresses.
    ///
    /// # Errors
    /// Why it is not enrolled though it should be; nothing captures it then.
    pub async fn enrol(
        &self,
        pod: &Pod,
        addresses: Vec<IpAddr>,
        netns: OwnedFd,
    ) -> Result<Answer, String> {
        let node = self.node()?;
        let facts = pod.facts().map_err(|error| error.to_string())?;
        let namespace = facts.namespace.clone().unwrap_or_default();
        let Some(labels) = self.labels(&namespace).await? else {
            return Err(format!("the Kubernetes API knows no namespace {namespace}"));
        };
        if let Enrolment::Bypassed(reason) = decide(&facts, &labels, &node.settings) {
            return Ok(Answer::Bypassed(reason.to_string()));
        }
        let path = format!("/proc/self/fd/{}", netns.as_raw_fd());
        let opened = NetnsRef::at(path.into()).open().map_err(|error| error.to_string())?;
        if opened.is_current() {
            return Err("the network namespace is the agent's own".to_owned());
        }
        let turn = self.entry(&pod.uid);
        let mut entry = turn.lock().await;
        let netns: Shared = Arc::new(opened);
        entry.begun(Arc::clone(&netns));
        let enrolled = async {
            let served = self.served(&facts, &node, &addresses)?;
            let told = timeout(PROMPT, self.tell(pod, &facts, &mut entry, &netns)).await;
            told.unwrap_or_else(|_late| {
                Err(Failure::enrol(format!("the node's proxy did not answer within {PROMPT:?}")))
            })?;
            let warnings = inside::capture(&netns, served.policy.clone(), node.preference).await;
            Ok::<_, Failure>((warnings.map_err(Failure::enrol)?, served))
        };
        match enrolled.await {
            Ok((warnings, served)) => {
                for warning in warnings.iter().chain(&served.warnings) {
                    tracing::warn!(pod = format!("{namespace}/{}", pod.uid), "{warning}");
                }
                entry.captured = Some(served.policy);
                entry.addresses = addresses;
                entry.checked = Some(Instant::now());
                self.parts.metrics.reconciled("add");
                drop(entry);
                self.added.notify_one();
                Ok(Answer::Enrolled)
            }
            Err(Failure { why, .. }) => {
                self.parts.metrics.reconciled("fail");
                // The runtime takes the namespace away, and comes again with another one, or with this.
                if let Err(why) = inside::release(&netns).await {
                    tracing::warn!(uid = pod.uid, "rules of a pod that was refused stay: {why}");
                }
                self.gone(&pod.uid, &mut entry).await;
                Err(why)
            }
        }
    }

    async fn labels(&self, namespace: &str) -> Result<Option<Labels>, String> {
        // What is followed may be old where following fails.
        let namespaces = &self.parts.namespaces;
        match namespaces.labels(namespace) {
            Some(labels) if namespaces.is_followed() => Ok(Some(labels)),
            _ => labels_of(self.clients.prompt.clone(), namespace).await,
        }
    }
}
