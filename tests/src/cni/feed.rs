//! What an API server tells those who watch: every change since a version, as long as they listen.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use serde_json::{Value, json};
use tokio::time::{Sleep, sleep};

/// How often it is looked for something new.
const PAUSE: Duration = Duration::from_millis(5);

/// The changes of a server's objects.
#[derive(Debug, Default)]
pub(super) struct Changes {
    events: Vec<Value>,
    /// How often all watches were ended.
    breaks: usize,
}

/// One watch.
pub(super) struct Feed {
    changes: Arc<Mutex<Changes>>,
    at: usize,
    breaks: usize,
    kind: &'static str,
    node: Option<String>,
    sleep: Pin<Box<Sleep>>,
}

impl Changes {
    /// How many there were.
    pub(super) fn count(&self) -> usize {
        self.events.len()
    }

    /// Tell of one, which gives the object this version.
    pub(super) fn tell(&mut self, kind: &str, object: &Value) {
        self.events.push(json!({ "type": kind, "object": object }));
    }

    /// End all watches.
    pub(super) fn break_watches(&mut self) {
        self.breaks += 1;
    }
}

/// Whether a pod is on this node.
pub(super) fn is_on(object: &Value, node: Option<&str>) -> bool {
    node.is_none_or(|node| object["spec"]["nodeName"] == node)
}

impl Feed {
    /// What changes of a kind after so many changes, on this node alone if one is named.
    pub(super) fn new(
        changes: &Arc<Mutex<Changes>>,
        at: usize,
        kind: &'static str,
        node: Option<String>,
    ) -> Self {
        let breaks = changes.lock().unwrap_or_else(PoisonError::into_inner).breaks;
        Self { changes: Arc::clone(changes), at, breaks, kind, node, sleep: Box::pin(sleep(PAUSE)) }
    }
}

impl Body for Feed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            ready!(self.sleep.as_mut().poll(context));
            self.sleep = Box::pin(sleep(PAUSE));
            let changes = Arc::clone(&self.changes);
            let changes = changes.lock().unwrap_or_else(PoisonError::into_inner);
            if changes.breaks != self.breaks {
                return Poll::Ready(None);
            }
            let Some(event) = changes.events.get(self.at) else { continue };
            self.at += 1;
            let object = &event["object"];
            if object["kind"] == self.kind && is_on(object, self.node.as_deref()) {
                let line = Bytes::from(format!("{event}\n"));
                return Poll::Ready(Some(Ok(Frame::data(line))));
            }
        }
    }
}
