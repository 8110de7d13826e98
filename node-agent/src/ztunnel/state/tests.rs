//! What is told in which order, and that all are told in the end.

use std::collections::BTreeSet;
use std::fs::File;

use proptest::prelude::*;

use super::*;
use crate::ztunnel::messages::Request;

fn netns() -> OwnedFd {
    File::open("/dev/null").unwrap().into()
}

fn info() -> WorkloadInfo {
    WorkloadInfo::default()
}

/// What there is to tell, in short, and that it was acknowledged.
fn told(state: &mut State, id: Id) -> String {
    let Some(step) = state.next(id) else { return "nothing".to_owned() };
    let text = match step.request.payload.clone().unwrap() {
        Request::Add(add) => format!("add {}", add.uid),
        Request::Keep(keep) => format!("keep {}", keep.uid),
        Request::Del(del) => format!("del {}", del.uid),
        Request::SnapshotSent(_) => "snapshot".to_owned(),
    };
    assert_eq!(step.netns.is_some(), text.starts_with("add"), "{text}");
    state.answered(id, step, None);
    text
}

#[test]
fn a_snapshot_waits_until_all_is_known() {
    let mut state = State::default();
    let id = state.enter();
    state.add("a".to_owned(), info(), netns());
    state.keep("b");
    let said = [told(&mut state, id), told(&mut state, id), told(&mut state, id)];
    assert_eq!(said, ["add a", "keep b", "nothing"]);
    state.complete();
    state.add("c".to_owned(), info(), netns());
    let said = [told(&mut state, id), told(&mut state, id), told(&mut state, id)];
    assert_eq!(said, ["add c", "snapshot", "nothing"]);
    // ztunnel takes no keep from here on.
    state.keep("d");
    assert_eq!(told(&mut state, id), "nothing");
    state.add("d".to_owned(), info(), netns());
    assert_eq!(told(&mut state, id), "add d");
}

#[test]
fn what_is_acknowledged_is_known() {
    let mut state = State::default();
    let first = state.add("a".to_owned(), info(), netns());
    assert_eq!(state.added("a", first), Some(Err(NotAcknowledged::NotConnected)));
    let old = state.enter();
    assert_eq!(state.added("a", first), None);
    let step = state.next(old).unwrap();
    assert!(step.may_fail());
    let second = state.add("a".to_owned(), info(), netns());
    state.answered(old, step, Some("no".to_owned()));
    assert_eq!(state.added("a", first), Some(Err(NotAcknowledged::Refused("no".to_owned()))));
    assert_eq!(state.added("a", second), None);
    assert_eq!(told(&mut state, old), "add a");
    assert_eq!(state.added("a", second), Some(Ok(())));
    let new = state.enter();
    assert_eq!(state.added("a", second), None, "the newest counts");
    // It may have been told, whatever it answers.
    let step = state.next(new).unwrap();
    state.delete("a");
    assert_eq!(state.added("a", second), Some(Err(NotAcknowledged::Deleted)));
    assert_eq!(told(&mut state, old), "del a");
    assert!(!state.is_gone("a"));
    state.answered(new, step, None);
    assert!(!state.is_gone("a"));
    assert_eq!(told(&mut state, new), "del a");
    assert!(state.is_gone("a"));
}

/// A ztunnel, as it takes what it is told.
#[derive(Debug, Default)]
struct Client {
    id: Option<Id>,
    served: BTreeSet<String>,
    named: BTreeSet<String>,
    has_snapshot: bool,
}

impl Client {
    fn enter(&mut self, state: &mut State) {
        self.leave(state);
        self.id = Some(state.enter());
        self.named.clear();
        self.has_snapshot = false;
    }

    fn leave(&mut self, state: &mut State) {
        if let Some(id) = self.id.take() {
            state.leave(id);
        }
    }

    /// Gives whether there was anything.
    fn step(&mut self, state: &mut State, error: bool) -> bool {
        let Some((id, step)) = self.id.and_then(|id| Some((id, state.next(id)?))) else {
            return false;
        };
        match step.request.payload.clone().unwrap() {
            Request::Add(add) => {
                self.named.insert(add.uid.clone());
                self.served.insert(add.uid);
            }
            Request::Keep(keep) => {
                assert!(!self.has_snapshot);
                self.named.insert(keep.uid);
            }
            Request::Del(del) => {
                assert!(self.named.remove(&del.uid), "{} was never named", del.uid);
                if self.has_snapshot {
                    self.served.remove(&del.uid);
                }
            }
            Request::SnapshotSent(_) => {
                assert!(!std::mem::replace(&mut self.has_snapshot, true));
                self.served.retain(|uid| self.named.contains(uid));
            }
        }
        let error = (error && step.may_fail()).then(|| "not yet".to_owned());
        state.answered(id, step, error);
        true
    }
}

#[derive(Clone, Debug)]
enum Event {
    Add(u8),
    Keep(u8),
    Delete(u8),
    Enter(usize),
    Leave(usize),
    Step(usize, bool),
    Complete,
}

fn event() -> impl Strategy<Value = Event> {
    let (pod, client) = (0..6_u8, 0..3_usize);
    prop_oneof![
        3 => pod.clone().prop_map(Event::Add),
        1 => pod.clone().prop_map(Event::Keep),
        2 => pod.prop_map(Event::Delete),
        2 => client.clone().prop_map(Event::Enter),
        1 => client.clone().prop_map(Event::Leave),
        8 => (client, any::<bool>()).prop_map(|(client, error)| Event::Step(client, error)),
        1 => Just(Event::Complete),
    ]
}

proptest! {
    /// Whatever happens in whatever order, no ztunnel is told what it doesn't take; once there is nothing to
    /// tell, the newest serves all pods that were added, and none serves one that is gone.
    #[test]
    fn all_are_told_in_the_end(events in prop::collection::vec(event(), 0..80)) {
        let mut state = State::default();
        let mut clients: [Client; 3] = std::array::from_fn(|_| Client::default());
        for event in events {
            match event {
                Event::Add(pod) => drop(state.add(pod.to_string(), info(), netns())),
                Event::Keep(pod) => state.keep(&pod.to_string()),
                Event::Delete(pod) => state.delete(&pod.to_string()),
                Event::Enter(client) => clients[client].enter(&mut state),
                Event::Leave(client) => clients[client].leave(&mut state),
                Event::Step(client, error) => drop(clients[client].step(&mut state, error)),
                Event::Complete => state.complete(),
            }
        }
        state.complete();
        for client in &mut clients {
            let steps = (0..100).take_while(|_| client.step(&mut state, false)).count();
            prop_assert!(steps < 40, "{steps} steps");
        }
        let newest = clients.iter().filter(|client| client.id.is_some()).max_by_key(|client| client.id);
        for client in clients.iter().filter(|client| client.id.is_some()) {
            prop_assert!(client.has_snapshot);
            prop_assert!(client.served.iter().all(|uid| state.pods.contains_key(uid)));
        }
        if let Some(newest) = newest {
            for (uid, pod) in &state.pods {
                prop_assert!(pod.served.is_none() || newest.served.contains(uid), "{uid}");
                prop_assert!(pod.served.is_none() || state.added(uid, pod.change).is_some());
            }
        }
    }
}
