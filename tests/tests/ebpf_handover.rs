//! A load that moves the programs before somebody else's. Alone in its process, since it is killed at
//! calls by their numbers, which depend on what others attach to the same cgroup.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::millrace_in_pod;
use millrace_tests::ebpf::{
    Cgroup, FOLDER, asked, enrol, killed_or_done, load, load_args, numbered,
};
use millrace_tests::netns::Namespace;
use millrace_tests::sys_bpf;
use millrace_tests::topology::{Layout, Stack, Topology};
use millrace_tests::wire::Answer;

const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 71, 0, 10)), 80);
const NAMES: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 73, 0, 53)), 53);
const PATIENCE: Duration = Duration::from_secs(10);
const PROGRAMS: usize = 10;

fn captured(pod: &Namespace) -> Result<()> {
    let answer = pod.enter(|| Answer::of(SERVICE, PATIENCE))??;
    ensure!(answer.name == "proxy" && answer.original == Some(SERVICE), "{answer:?}");
    Ok(())
}

/// Verify that what the pod sends is captured, and its proxy told the original destination, wherever a
/// load is killed that moves the programs before somebody else's: they are attached at two places then.
#[test]
fn moving_is_killed() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let path = Cgroup::path()?;
    let cgroup = File::open(&path)?;
    let args = load_args(path.to_str().context("a path that is not UTF-8")?);
    let topology = Topology::new(Stack::V4, Layout::default())?;
    load(&topology.pod)?;
    enrol(&topology, &["--dns", "all"])?;
    let first = sys_bpf::attach_first(&cgroup)?;
    let places = numbered(&topology.pod, &args, &["BPF_LINK_DETACH"])?;
    drop(first);
    let links = Path::new(FOLDER).join("links");
    let mut twice = BTreeSet::new();
    for at in places {
        let what = || format!("killed at {at}");
        millrace_in_pod(&topology, &args, 0)?;
        let _theirs = sys_bpf::attach_first(&cgroup)?;
        killed_or_done(&topology.pod, &args, at)?;
        captured(&topology.pod).with_context(what)?;
        for connected in [false, true] {
            let is = topology.pod.enter(|| asked(NAMES, connected))?.with_context(what)?;
            ensure!(is == NAMES, "{}, connected {connected}: {is}", what());
        }
        for pin in topology.pod.enter(|| fs::read_dir(&links))?? {
            twice.insert(pin?.file_name());
        }
    }
    ensure!(twice.len() == 2 * PROGRAMS + 1, "never attached at two places: {twice:?}");
    millrace_in_pod(&topology, &args, 0)?;
    captured(&topology.pod)
}
