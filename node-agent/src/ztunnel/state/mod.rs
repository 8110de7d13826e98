//! What is known of pods, and what each connection was told of them: from both follows what a connection is
//! to be told next. Nothing waits in a queue, so a slow client costs what the pods do, and no more.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::messages::{
    AddWorkload, DelWorkload, KeepWorkload, Request, SnapshotSent, WorkloadInfo, WorkloadRequest,
};
use super::{NotAcknowledged, Workload};

/// A connection, by the order in which they said hello.
pub(super) type Id = u64;

/// A change of a pod; a later one is greater.
pub(super) type Change = u64;

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct State {
    pods: BTreeMap<String, Pod>,
    connections: BTreeMap<Id, Told>,
    is_complete: bool,
    changes: Change,
    hellos: Id,
}

#[derive(Debug)]
struct Pod {
    /// None where the pod is served already, and nobody here has its namespace.
    served: Option<(WorkloadInfo, Arc<OwnedFd>)>,
    change: Change,
}

/// What was told by a connection and acknowledged.
#[derive(Debug, Default)]
struct Told {
    pods: BTreeMap<String, Acknowledged>,
    /// The pod that it is being told of.
    asked: Option<String>,
    has_snapshot: bool,
}

#[derive(Debug)]
struct Acknowledged {
    change: Change,
    /// What ztunnel answered instead; it tries again by itself.
    error: Option<String>,
}

/// What a connection is to be told next.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) request: WorkloadRequest,
    pub(super) netns: Option<Arc<OwnedFd>>,
    what: What,
}

#[derive(Debug)]
enum What {
    /// A pod is served, or to be kept.
    Named(String, Change),
    Gone(String),
    Snapshot,
}

impl Step {
    fn new(payload: Request, netns: Option<Arc<OwnedFd>>, what: What) -> Self {
        Self { request: WorkloadRequest { payload: Some(payload) }, netns, what }
    }

    fn named(uid: &str, pod: &Pod) -> Self {
        let what = What::Named(uid.to_owned(), pod.change);
        let uid = uid.to_owned();
        match &pod.served {
            Some((info, netns)) => {
                let add = AddWorkload { uid, workload_info: Some(info.clone()) };
                Self::new(Request::Add(add), Some(Arc::clone(netns)), what)
            }
            None => Self::new(Request::Keep(KeepWorkload { uid }), None, what),
        }
    }

    /// Whether an error is something that ztunnel gets over by itself.
    pub(super) const fn may_fail(&self) -> bool {
        self.netns.is_some()
    }
}

/// What a pod would be added by.
pub(super) fn add(workload: Workload) -> (String, WorkloadInfo) {
    let Workload { uid, name, namespace, service_account } = workload;
    (uid, WorkloadInfo { name, namespace, service_account })
}

impl State {
    /// A pod is to be served from now on.
    pub(super) fn add(&mut self, uid: String, info: WorkloadInfo, netns: OwnedFd) -> Change {
        self.put(uid, Some((info, Arc::new(netns))))
    }

    /// A pod is served already, and stays so; one that can be added is left as it is.
    pub(super) fn keep(&mut self, uid: &str) {
        if !self.pods.contains_key(uid) {
            self.put(uid.to_owned(), None);
        }
    }

    fn put(&mut self, uid: String, served: Option<(WorkloadInfo, Arc<OwnedFd>)>) -> Change {
        self.changes += 1;
        self.pods.insert(uid, Pod { served, change: self.changes });
        self.changes
    }

    /// A pod is not to be served any more. Its namespace is closed once nobody is being told of it.
    pub(super) fn delete(&mut self, uid: &str) {
        self.pods.remove(uid);
    }

    /// All pods that are served are known.
    pub(super) const fn complete(&mut self) {
        self.is_complete = true;
    }

    /// A connection said hello.
    pub(super) fn enter(&mut self) -> Id {
        self.hellos += 1;
        self.connections.insert(self.hellos, Told::default());
        self.hellos
    }

    /// A connection has ended.
    pub(super) fn leave(&mut self, id: Id) {
        self.connections.remove(&id);
    }

    /// How many have said hello so far.
    pub(super) const fn hellos(&self) -> u64 {
        self.hellos
    }

    /// How many connections there are.
    pub(super) fn connected(&self) -> usize {
        self.connections.len()
    }

    /// What a connection is to be told, and is told from now on; none where there is nothing for now.
    pub(super) fn next(&mut self, id: Id) -> Option<Step> {
        let step = self.step(id)?;
        if let (What::Named(uid, _), Some(told)) = (&step.what, self.connections.get_mut(&id)) {
            told.asked = Some(uid.clone());
        }
        Some(step)
    }

    fn step(&self, id: Id) -> Option<Step> {
        let told = self.connections.get(&id)?;
        if let Some(gone) = told.pods.keys().find(|uid| !self.pods.contains_key(*uid)) {
            let del = DelWorkload { uid: gone.clone() };
            return Some(Step::new(Request::Del(del), None, What::Gone(gone.clone())));
        }
        let is_newest = self.connections.last_key_value().is_some_and(|(newest, _)| *newest == id);
        if !told.has_snapshot || is_newest {
            let is_new = |(uid, pod): &(&String, &Pod)| {
                let at = told.pods.get(*uid).map(|acknowledged| acknowledged.change);
                at != Some(pod.change) && (pod.served.is_some() || !told.has_snapshot)
            };
            let oldest = self.pods.iter().filter(is_new).min_by_key(|(_, pod)| pod.change);
            if let Some((uid, pod)) = oldest {
                return Some(Step::named(uid, pod));
            }
        }
        let snapshot = || Step::new(Request::SnapshotSent(SnapshotSent {}), None, What::Snapshot);
        (self.is_complete && !told.has_snapshot).then(snapshot)
    }

    /// A connection answered to what it was told: with an error, or without one.
    pub(super) fn answered(&mut self, id: Id, step: Step, error: Option<String>) {
        let Some(told) = self.connections.get_mut(&id) else { return };
        told.asked = None;
        match step.what {
            What::Named(uid, change) => drop(told.pods.insert(uid, Acknowledged { change, error })),
            What::Gone(uid) => drop(told.pods.remove(&uid)),
            What::Snapshot => told.has_snapshot = true,
        }
    }

    /// What became of a pod that was added; none as long as it isn't known.
    pub(super) fn added(&self, uid: &str, change: Change) -> Option<Result<(), NotAcknowledged>> {
        if !self.pods.contains_key(uid) {
            return Some(Err(NotAcknowledged::Deleted));
        }
        let Some((_, newest)) = self.connections.last_key_value() else {
            return Some(Err(NotAcknowledged::NotConnected));
        };
        let acknowledged = newest.pods.get(uid).filter(|at| at.change >= change)?;
        Some(match &acknowledged.error {
            Some(error) => Err(NotAcknowledged::Refused(error.clone())),
            None => Ok(()),
        })
    }

    /// Whether no connection holds a pod as one that is served, or it was added again.
    pub(super) fn is_gone(&self, uid: &str) -> bool {
        let holds = |told: &Told| told.pods.contains_key(uid) || told.asked.as_deref() == Some(uid);
        self.pods.contains_key(uid) || !self.connections.values().any(holds)
    }
}

#[cfg(test)]
mod tests;
