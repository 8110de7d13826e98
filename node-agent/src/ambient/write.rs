//! What is written of pods to the API: one after another, while nothing else waits for it.

use std::time::Duration;

use kube::api::{Api, Patch, PatchParams};
use kube_runtime::events::EventType;
use millrace_core::dialect::ambient::enrol::{ENABLED, REDIRECTION};
use serde_json::json;
use tokio::time::sleep;

use super::Enroller;
use crate::api::within;
use crate::pods::{Name, Pod, Record, resource};

/// How long after a failure it goes on.
const PAUSE: Duration = Duration::from_secs(1);

/// Something of a pod that is to be written.
#[derive(Debug)]
pub(super) struct Write {
    pub(super) name: Name,
    pub(super) pod: Pod,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// An Event.
    Event(EventType, &'static str, String),
    /// The annotation that the pod is captured and served, or none.
    Annotation(bool),
}

impl Enroller {
    /// Write something as soon as all before it was.
    pub(super) fn write(&self, name: &Name, pod: &Pod, what: What) {
        let write = Write { name: name.clone(), pod: pod.clone(), what };
        // The other end is this one's own.
        let _sent = self.writes.send(write);
    }

    /// Write what is to be written, for ever.
    pub(super) async fn write_all(&self) {
        let mut writes = self.written.lock().await;
        while let Some(Write { name, pod, what }) = writes.recv().await {
            // Either says itself what went wrong.
            let written = match what {
                What::Event(kind, reason, note) => {
                    self.events.say(&name, &pod, kind, reason, note).await
                }
                What::Annotation(is_there) => self.annotate(&name, &pod, is_there).await,
            };
            if written.is_ok() {
                continue;
            }
            // What the API did not take is written again.
            let entry = self.known().get(&pod.uid).cloned();
            if let Some(entry) = entry {
                entry.lock().await.unwritten();
            }
            sleep(PAUSE).await;
            self.added.notify_one();
        }
    }

    async fn annotate(&self, name: &Name, pod: &Pod, is_there: bool) -> Result<(), String> {
        // The id is a precondition. Annotations go by the status as well, which is the smaller right.
        let annotations = json!({ REDIRECTION: is_there.then_some(ENABLED) });
        let patch = json!({ "metadata": { "uid": pod.uid, "annotations": annotations } });
        let client = self.clients.patient.clone();
        let api: Api<Record> = Api::namespaced_with(client, &name.0, &resource());
        let params = PatchParams::default();
        let written = within(api.patch_status(&name.1, &params, &Patch::Merge(&patch))).await;
        if let Err(why) = &written {
            let pod = format!("{}/{}", name.0, name.1);
            tracing::warn!(pod, "its annotation {REDIRECTION} can't be written: {why}");
        }
        written.map(drop)
    }
}
