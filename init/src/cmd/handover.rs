//! Pods that leave eBPF capture for rules, each without a moment in which nothing captures it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_core::desired::Desired;
use millrace_core::dialect::native;
use millrace_core::ebpf::read;
use millrace_core::plan::Preference;
use millrace_core::preflight::Backend;
use millrace_host::capture::{self, Applied, By, Order, Pins};
use millrace_host::ebpf::{EbpfError, EnrolledPod, Node, Target};
use millrace_host::engine::Session;
use millrace_host::facts;
use millrace_host::netns::{NetnsRef, known};

use super::output::warn;

/// Have nftables capture every pod that is enrolled, in the same way. How many there were.
pub(super) fn to_nftables(folder: &Path, wait: Duration) -> Result<usize> {
    let node = match Node::open(folder) {
        Err(EbpfError::NotLoaded(_)) => return Ok(0),
        opened => opened?.until(Instant::now() + wait),
    };
    let places = known();
    let home = NetnsRef::at("/proc/thread-self/ns/net".into()).open()?;
    let pods = node.pods()?;
    let there: Vec<&EnrolledPod> = pods.iter().filter(|pod| pod.netns.is_some()).collect();
    for pod in &there {
        hand_over(&node, folder, pod, &places, wait)
            .with_context(|| format!("pod {} stays captured by eBPF", pod.cookie))?;
    }
    home.enter()?;
    Ok(there.len())
}

/// Rules first, then the pod leaves. The calling thread stays in its namespace.
fn hand_over(
    node: &Node,
    folder: &Path,
    pod: &EnrolledPod,
    places: &BTreeMap<u64, PathBuf>,
    wait: Duration,
) -> Result<()> {
    let inode = pod.netns.unwrap_or_default().into();
    let path = places.get(&inode).with_context(|| {
        format!("its network namespace net:[{inode}] is neither mounted here nor a process's")
    })?;
    NetnsRef::at(path.clone()).open()?.enter()?;
    let target = Target::current()?;
    ensure!(
        target.cookie() == pod.cookie,
        "{} leads to a different network namespace now",
        path.display()
    );
    let entry = node.entry(&target)?.context("it is no longer enrolled")?;
    let policy = read(&entry, &native::DIALECT)?;
    let mut session = Session::open()?;
    let groups = facts::groups();
    let desired = Desired::new(policy, &native::DIALECT);
    // These are known by the pod's own ids from outside as well.
    let by = By::Rules(Preference::Backend(Backend::Nftables));
    let pins = Some(Pins { folder, expected: false });
    let order = Order { pins, ..Order::new(&desired, by, &groups, wait) };
    let Applied { outcome, .. } = capture::apply(&mut session, &order)?;
    outcome.warnings.iter().for_each(|warning| warn(warning));
    Ok(())
}
