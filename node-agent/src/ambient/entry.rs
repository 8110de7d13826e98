//! What is known of a pod that is, or is to be, served by the node's proxy.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use millrace_core::policy::CapturePolicy;
use tokio::time::Instant;

use super::inside::{Held, Shared};

/// How soon what failed is tried again at first, and at last.
const FIRST: Duration = Duration::from_millis(500);
const LAST: Duration = Duration::from_secs(30);
/// How often a pod's processes may not be seen before that is said.
const PATIENT: u32 = 3;

/// What is known of a pod.
#[derive(Debug)]
pub(super) struct Entry {
    /// Since when.
    pub(super) since: Instant,
    /// Whether the list of pods has had it.
    pub(super) is_listed: bool,
    /// Its namespace.
    pub(super) netns: Option<Shared>,
    /// The addresses that the runtime told, until the API does.
    pub(super) addresses: Vec<IpAddr>,
    /// The policy that its rules carry out.
    pub(super) captured: Option<CapturePolicy>,
    /// What its namespace held when it was looked at, unless that was as it should be.
    pub(super) holds: Option<Held>,
    /// When it was last looked at.
    pub(super) checked: Option<Instant>,
    /// Whether the proxy has said that it serves it.
    pub(super) is_told: bool,
    /// How often in a row something failed, and when it is tried again.
    pub(super) failures: u32,
    pub(super) next: Option<Instant>,
    /// What was last said of it.
    pub(super) said: Option<String>,
    /// What its annotation is being made to say: whether it is served.
    pub(super) asked: Option<bool>,
    /// The version of its object.
    version: String,
}

/// Why something was not done about a pod.
#[derive(Debug)]
pub(super) struct Failure {
    /// The reason of the Event.
    pub(super) reason: &'static str,
    /// Why, in a line.
    pub(super) why: String,
    /// Whether an Event says so.
    pub(super) is_loud: bool,
}

impl Failure {
    /// It can't be enrolled.
    pub(super) const fn enrol(why: String) -> Self {
        Self { reason: "AmbientEnrolFailed", why, is_loud: true }
    }

    /// It can't leave.
    pub(super) const fn leave(why: String) -> Self {
        Self { reason: "AmbientLeaveFailed", why, is_loud: true }
    }
}

impl Default for Entry {
    fn default() -> Self {
        Self {
            since: Instant::now(),
            is_listed: false,
            netns: None,
            addresses: Vec::new(),
            captured: None,
            holds: None,
            checked: None,
            is_told: false,
            failures: 0,
            next: None,
            said: None,
            asked: None,
            version: String::new(),
        }
    }
}

impl Entry {
    /// The list of pods has it. What failed is tried at once where something of it has changed.
    pub(super) fn listed(&mut self, version: &str) {
        self.is_listed = true;
        if self.version != version {
            version.clone_into(&mut self.version);
            self.retry();
        }
    }

    /// Its annotation says whether it is served: is that what it was made to say?
    pub(super) fn seen(&mut self, is_annotated: bool) {
        if self.asked == Some(is_annotated) {
            self.asked = None;
        }
    }

    /// The API did not take what was written of it.
    pub(super) fn unwritten(&mut self) {
        (self.asked, self.said) = (None, None);
    }

    /// Whether rules capture it as they should.
    pub(super) const fn is_captured(&self) -> bool {
        self.captured.is_some()
    }

    /// Whether its namespace is to be looked at again.
    pub(super) fn is_due(&self, period: Duration) -> bool {
        self.checked.is_none_or(|at| at.elapsed() >= period)
    }

    /// Whether what failed is not tried again yet.
    pub(super) fn is_early(&self) -> bool {
        self.next.is_some_and(|next| Instant::now() < next)
    }

    /// Its processes are in this namespace. One without processes stays where it was.
    pub(super) fn entered(&mut self, found: Option<Shared>) {
        let Some(found) = found else { return };
        let is_same = self.netns.as_ref().is_some_and(|own| own.id() == found.id());
        if !is_same {
            self.left();
            self.netns = Some(Arc::clone(&found));
        }
    }

    /// Its processes are not seen. One that comes back after a reboot has its old address for a while, so that
    /// is said a little later.
    pub(super) fn unseen(&self, failure: fn(String) -> Failure) -> Failure {
        let why = "no process is seen that is in a network namespace with its address";
        Failure { is_loud: self.failures >= PATIENT, ..failure(why.to_owned()) }
    }

    /// A runtime has made it this namespace.
    pub(super) fn begun(&mut self, netns: Shared) {
        self.left();
        (self.since, self.netns) = (Instant::now(), Some(netns));
    }

    /// Its namespace was looked at: does it hold the rules of this policy?
    pub(super) fn looked(&mut self, held: Held, policy: &CapturePolicy) {
        self.captured = (held == Held::Whole).then(|| policy.clone());
        self.holds = Some(held).filter(|held| *held != Held::Whole);
        self.checked = Some(Instant::now());
    }

    /// Nothing is done about it any more.
    pub(super) fn left(&mut self) {
        let version = std::mem::take(&mut self.version);
        *self = Self { since: self.since, is_listed: self.is_listed, version, ..Self::default() };
    }

    /// All was done that was to be.
    pub(super) fn worked(&mut self) {
        (self.failures, self.next, self.said) = (0, None, None);
    }

    /// Something failed: it is tried again, later each time.
    pub(super) fn failed(&mut self) {
        let pause = FIRST.saturating_mul(1 << self.failures.min(6)).min(LAST);
        self.failures = self.failures.saturating_add(1);
        self.next = Some(Instant::now() + pause);
    }

    /// It is tried again at once.
    pub(super) const fn retry(&mut self) {
        self.next = None;
    }

    /// How it is counted: served, not yet, or failed. None where there is nothing to do about it.
    pub(super) const fn state(&self) -> Option<usize> {
        if self.failures > 0 {
            Some(2)
        } else if self.captured.is_some() && self.is_told {
            Some(0)
        } else if self.netns.is_some() {
            Some(1)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_is_tried_again_later_each_time_and_not_too_late() {
        let mut entry = Entry::default();
        assert!(!entry.is_early() && entry.is_due(LAST) && entry.state().is_none());
        let mut pauses = Vec::new();
        for _ in 0..9 {
            entry.failed();
            pauses.push(entry.next.unwrap().saturating_duration_since(Instant::now()));
        }
        assert!(entry.is_early() && entry.state() == Some(2));
        assert!(entry.unseen(Failure::enrol).is_loud);
        assert!(!Entry::default().unseen(Failure::enrol).is_loud);
        assert!(pauses[0] <= FIRST && pauses[8] <= LAST && pauses[8] > LAST / 2, "{pauses:?}");
        assert!(pauses.windows(2).all(|two| two[0] <= two[1] + FIRST), "{pauses:?}");
        entry.listed("7");
        assert!(!entry.is_early());
        entry.failed();
        entry.listed("7");
        assert!(entry.is_early());
        entry.listed("8");
        assert!(!entry.is_early());
        entry.worked();
        assert!(entry.state().is_none());
    }

    #[test]
    fn an_annotation_is_asked_for_until_it_is_seen() {
        let mut entry = Entry { asked: Some(true), ..Entry::default() };
        entry.seen(false);
        assert_eq!(entry.asked, Some(true));
        entry.seen(true);
        assert_eq!(entry.asked, None);
        entry.asked = Some(false);
        entry.unwritten();
        assert_eq!(entry.asked, None);
    }

    #[test]
    fn what_was_looked_at_is_captured_where_it_is_whole() {
        use millrace_core::dialect::ambient::enrol::{NodeSettings, Selectors, served};
        let node = NodeSettings {
            selectors: Selectors::default(),
            excluded_namespaces: Vec::new(),
            dns_capture: true,
            ipv6: true,
        };
        let policy = served(&millrace_core::pod::PodFacts::default(), &node, &[]).unwrap().policy;
        let mut entry = Entry::default();
        entry.looked(Held::Whole, &policy);
        assert!(entry.is_captured() && !entry.is_due(LAST) && entry.holds.is_none());
        entry.looked(Held::Drifted("x".to_owned()), &policy);
        assert!(!entry.is_captured() && entry.holds.is_some());
        entry.left();
        assert!(entry.holds.is_none() && entry.is_due(LAST));
    }
}
