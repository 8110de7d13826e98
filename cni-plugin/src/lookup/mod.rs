//! Who knows what a runtime does not tell of a pod.

mod agent;
mod api;
mod kubeconfig;
mod resolver;

use std::time::{Duration, Instant};

use millrace_core::pod::PodFacts;

use crate::config::Config;
use crate::decide::{Need, Sources};

pub(crate) use agent::{Enrolment, enrol, reach as reach_agent};
pub(crate) use api::reach as reach_api;

/// The longest answer; a pod has at most 1.5 MiB (the limit of etcd).
const MAX_ANSWER: usize = 4 * 1024 * 1024;
/// Where a pod can be captured without an answer, each source gets this part of the time, and no
/// more than this: the rest is for the capture.
const SHARE: u32 = 3;
const MOST: Duration = Duration::from_secs(5);

/// The sources that are configured, until a deadline.
#[derive(Debug)]
pub(crate) struct Configured<'c> {
    pub(crate) config: &'c Config,
    pub(crate) deadline: Instant,
}

impl Configured<'_> {
    fn until(&self, need: Need) -> Instant {
        match need {
            Need::Must => self.deadline,
            Need::May => {
                let share = (self.config.deadline / SHARE).min(MOST);
                self.deadline.min(Instant::now() + share)
            }
        }
    }
}

impl Sources for Configured<'_> {
    fn agent(&mut self, pod: &PodFacts, need: Need) -> Option<Result<PodFacts, String>> {
        let socket = self.config.agent_socket.as_deref()?;
        Some(agent::ask(socket, pod, self.until(need)))
    }

    fn api(&mut self, pod: &PodFacts, need: Need) -> Option<Result<PodFacts, String>> {
        let kubeconfig = self.config.kubeconfig.as_deref()?;
        Some(api::ask(kubeconfig, pod, self.until(need)))
    }
}

/// What is left until a deadline.
fn left(deadline: Instant) -> Duration {
    deadline.saturating_duration_since(Instant::now())
}
