//! Events on pods, which `kubectl describe pod` shows.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube_runtime::events::{Event, EventType, Recorder, Reporter};

use crate::api::within;
use crate::pods::{Name, Pod};

/// The longest note of an Event, in bytes (Kubernetes, events.k8s.io/v1).
const NOTE: usize = 1024;
/// Who says so.
const REPORTER: &str = "millrace-node";

/// Writes Events on pods, in the name of a node's agent.
pub struct Events(Recorder);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// Of the agent of this node.
    pub fn new(client: Client, node: &str) -> Self {
        let reporter =
            Reporter { controller: REPORTER.to_owned(), instance: Some(node.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Log something of a pod, and write an Event of it.
    ///
    /// # Errors
    /// When the API does not take it.
    pub async fn say(
        &self,
        name: &Name,
        pod: &Pod,
        type_: EventType,
        reason: &str,
        note: String,
    ) -> Result<(), String> {
        let called = format!("{}/{}", name.0, name.1);
        match type_ {
            EventType::Normal => tracing::info!(pod = called, "{reason}: {note}"),
            EventType::Warning => tracing::warn!(pod = called, "{reason}: {note}"),
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(shortened(note)),
            action: "Capture".to_owned(),
            secondary: None,
        };
        let reference = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(name.0.clone()),
            name: Some(name.1.clone()),
            uid: Some(pod.uid.clone()),
            ..ObjectReference::default()
        };
        let written = within(self.0.publish(&event, &reference)).await;
        if let Err(why) = &written {
            tracing::warn!(pod = called, "the Event can't be written: {why}");
        }
        written
    }
}

fn shortened(mut note: String) -> String {
    if note.len() > NOTE {
        note.truncate(note.floor_char_boundary(NOTE - '…'.len_utf8()));
        note.push('…');
    }
    note
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_short_enough() {
        assert_eq!(shortened("x".to_owned()), "x");
        let long = shortened("ä".repeat(NOTE));
        assert!(long.len() <= NOTE && long.ends_with('…'));
    }
}
