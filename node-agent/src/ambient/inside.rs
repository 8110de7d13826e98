//! What is done in a pod's network namespace, each time on a thread of its own: one that enters a namespace
//! ends with it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use millrace_cni::causes::chain;
use millrace_cni::running::has_one_of;
use millrace_core::desired::Desired;
use millrace_core::dialect::MARKS;
use millrace_core::dialect::ambient::{CILIUM_DIALECT, DIALECT};
use millrace_core::observed::Observed;
use millrace_core::plan::Preference;
use millrace_core::policy::CapturePolicy;
use millrace_core::status::dialect;
use millrace_core::value::Groups;
use millrace_host::capture::{
    By, CaptureError, Difference, Farewell, Order, apply, check, fit, leave,
};
use millrace_host::engine::Session;
use millrace_host::exec;
use millrace_host::netns::Netns;

use crate::processes::{Process, key};

/// How long the rules of one pod may take to be seen or written.
const PATIENCE: Duration = Duration::from_secs(10);
/// Where a datagram would go of which only the way is asked; none is sent.
const ANY_PORT: u16 = 9;

/// Processes of pods, by the ids of these.
pub(super) type Processes = BTreeMap<String, Vec<Process>>;

/// A namespace that somebody is served in.
pub(super) type Shared = Arc<Netns>;

/// What a pod's namespace holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Held {
    /// The rules that it is to have.
    Whole,
    /// None of them.
    Nothing,
    /// Others than it is to have; which differ, in a line.
    Drifted(String),
}

/// Do something in a namespace.
async fn inside<T: Send + 'static>(
    netns: &Shared,
    f: impl FnOnce() -> Result<T, CaptureError> + Send + 'static,
) -> Result<T, String> {
    let netns = Arc::clone(netns);
    let done = tokio::task::spawn_blocking(move || {
        thread::scope(|scope| {
            let own = scope.spawn(|| {
                netns.enter()?;
                f()
            });
            own.join()
        })
    });
    match done.await {
        // What the verifier and programs say has many lines.
        Ok(Ok(done)) => done.map_err(|error| chain(&error).replace('\n', " ")),
        Ok(Err(_)) | Err(_) => Err("a fault of the agent's own, see its log".to_owned()),
    }
}

/// What a pod's namespace holds of this policy.
pub(super) async fn held(
    netns: &Shared,
    policy: CapturePolicy,
    preference: Preference,
) -> Result<Held, String> {
    let look = move || {
        let mut session = Session::open()?;
        let desired = Desired::new(fit(&mut session, policy)?, &DIALECT);
        let groups = Groups::new();
        check(&mut session, &Order::new(&desired, By::Rules(preference), &groups, PATIENCE))
    };
    Ok(match inside(netns, look).await?.difference {
        None => Held::Whole,
        Some(Difference::Missing(_)) => Held::Nothing,
        Some(Difference::Drifted(why)) => Held::Drifted(why),
    })
}

/// Have rules of this policy in a pod's namespace, in the place of other rules of ours. Gives what the pod's
/// owner should know.
pub(super) async fn capture(
    netns: &Shared,
    policy: CapturePolicy,
    preference: Preference,
) -> Result<Vec<String>, String> {
    let write = move || {
        let mut session = Session::open()?;
        let desired = Desired::new(fit(&mut session, policy)?, &DIALECT);
        let groups = Groups::new();
        // No rule names a user, so the pod's own ones need not be entered.
        let order = Order::new(&desired, By::Rules(preference), &groups, PATIENCE);
        apply(&mut session, &order).map(|applied| applied.outcome.warnings)
    };
    inside(netns, write).await
}

/// Take the rules out of a pod's namespace, unless they are of a sidecar. Gives whether there were any.
pub(super) async fn release(netns: &Shared) -> Result<bool, String> {
    let write = || {
        let mut session = Session::open()?;
        let own = [DIALECT.name, CILIUM_DIALECT.name];
        let chosen = |observed: &Observed, _: bool| {
            observed.interrupted || dialect(observed).is_some_and(|name| own.contains(&name))
        };
        let farewell = Farewell {
            folder: None,
            entered: None,
            chosen: Some(&chosen),
            marks: MARKS.to_vec(),
            groups: &Groups::new(),
            dry_run: false,
            wait: PATIENCE,
            exec: exec::Options::default(),
        };
        leave(&mut session, &farewell).map(|left| left.outcome.is_some())
    };
    inside(netns, write).await
}

/// The namespace of a pod, by its processes: of several the oldest's that has one of its addresses.
pub(super) async fn find(
    processes: Arc<Processes>,
    uid: &str,
    addresses: Vec<IpAddr>,
) -> Result<Option<Shared>, String> {
    let key = key(uid);
    let look = tokio::task::spawn_blocking(move || {
        let mut failure = None;
        for (netns, _) in processes.get(&key).into_iter().flatten().filter_map(Process::open) {
            let has = thread::scope(|scope| scope.spawn(|| has_one_of(&netns, &addresses)).join());
            match has {
                Ok(Ok(true)) => return Ok(Some(Arc::new(netns))),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => failure = Some(error.msg),
                Err(_) => failure = Some("a fault of the agent's own, see its log".to_owned()),
            }
        }
        failure.map_or(Ok(None), Err)
    });
    look.await.map_err(|error| error.to_string())?
}

/// The addresses by which this node reaches these ones of a pod: where its probes come from.
pub(super) fn ways_to(pod: &[IpAddr]) -> Vec<IpAddr> {
    let mut ways: Vec<IpAddr> = pod.iter().filter_map(|address| way_to(*address)).collect();
    ways.sort_unstable();
    ways.dedup();
    ways
}

fn way_to(address: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // The kernel chooses a source as it does for a connection (`udp(7)`); nothing is sent.
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect((address, ANY_PORT)).ok()?;
    let source = socket.local_addr().ok()?.ip();
    (!source.is_loopback() && !source.is_unspecified() && source != address).then_some(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_of_its_own_is_no_way_of_the_node() {
        let own: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        assert_eq!(ways_to(&own), Vec::<IpAddr>::new());
    }
}
