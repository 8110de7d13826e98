//! How pods leave: the rules go first, then the proxy is told.

use std::collections::HashSet;
use std::sync::Arc;

use kube_runtime::events::EventType;
use millrace_core::dialect::ambient::enrol::is_annotated;
use millrace_core::pod::PodFacts;
use tokio::sync::Mutex as Turn;

use super::entry::{Entry, Failure};
use super::inside::{self, Processes};
use super::write::What;
use super::{Enroller, UNLISTED};
use crate::pods::{Name, Pod};

/// What an Event says of a pod that has left.
const LEFT: &str = "its traffic is not captured any more, and the node's proxy doesn't serve it";

impl Enroller {
    /// Have the proxy serve a pod no longer.
    pub(super) async fn untell(&self, uid: &str, entry: &mut Entry) {
        entry.is_told = false;
        if let Err(why) = self.ztunnel.delete(uid).await {
            tracing::warn!(uid, "the node's proxy was told that a pod has left: {why}");
        }
    }

    /// Let a pod leave: its rules go first.
    pub(super) async fn release(
        &self,
        name: &Name,
        pod: &Pod,
        facts: &PodFacts,
        entry: &mut Entry,
        processes: &mut Option<Arc<Processes>>,
    ) -> Result<(), Failure> {
        if entry.netns.is_none() {
            let seen = self.processes(processes).await?;
            let found = inside::find(seen, &pod.uid, pod.addresses.clone()).await;
            entry.entered(found.map_err(Failure::leave)?);
        }
        let Some(netns) = entry.netns.clone() else {
            return Err(entry.unseen(Failure::leave));
        };
        inside::release(&netns).await.map_err(Failure::leave)?;
        self.gone(&pod.uid, entry).await;
        self.parts.metrics.reconciled("delete");
        self.write(name, pod, What::Event(EventType::Normal, "AmbientLeft", LEFT.to_owned()));
        if is_annotated(facts) {
            entry.asked = Some(false);
            self.write(name, pod, What::Annotation(false));
        }
        Ok(())
    }

    /// Take rules of this mode out of a pod that nobody serves, where there are some.
    pub(super) async fn sweep(
        &self,
        name: &Name,
        pod: &Pod,
        processes: &mut Option<Arc<Processes>>,
    ) -> Result<(), Failure> {
        // Most such pods have nothing to do with this mode: in them nothing is said of it.
        let quiet = |why| Failure { is_loud: false, ..Failure::leave(why) };
        let seen = self.processes(processes).await?;
        let found = inside::find(seen, &pod.uid, pod.addresses.clone()).await;
        let Some(netns) = found.map_err(quiet)? else { return Ok(()) };
        if !netns.is_current() && inside::release(&netns).await.map_err(quiet)? {
            self.parts.metrics.reconciled("delete");
            self.write(name, pod, What::Event(EventType::Normal, "AmbientLeft", LEFT.to_owned()));
        }
        Ok(())
    }

    pub(super) async fn gone(&self, uid: &str, entry: &mut Entry) {
        self.untell(uid, entry).await;
        entry.left();
    }

    /// Forget pods that are gone, with their namespaces.
    pub(super) async fn forget(&self, listed: &HashSet<&str>) {
        let gone: Vec<(String, Arc<Turn<Entry>>)> = {
            let known = self.known();
            let gone = known.iter().filter(|(uid, _)| !listed.contains(uid.as_str()));
            gone.map(|(uid, entry)| (uid.clone(), Arc::clone(entry))).collect()
        };
        for (uid, turn) in gone {
            let Ok(mut entry) = turn.try_lock() else { continue };
            if !entry.is_listed && entry.since.elapsed() < UNLISTED {
                continue;
            }
            if entry.is_told {
                self.parts.metrics.reconciled("delete");
            }
            // It may have been kept, without anything else being known of it.
            self.gone(&uid, &mut entry).await;
            self.known().remove(&uid);
        }
    }
}
