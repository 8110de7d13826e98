//! Programs that are loaded before there is a pod for them: each is one pod's at most, and without
//! one a pod is captured as well.

use std::fs::File;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use millrace_host::ebpf::{Node, Options, State};
use millrace_tests::capture::{millrace, millrace_in_pod, ran, wrapped};
use millrace_tests::ebpf::{APPLY, Cgroup, FOLDER, WAIT, load_with, mount_bpffs, node, options};
use millrace_tests::netns::Namespace;
use millrace_tests::topology::{Layout, Stack, Topology};
use millrace_tests::wire::Answer;

const LEAVE: [&str; 5] = ["cleanup", "--backend", "ebpf", "--bpffs", FOLDER];
/// The application of a pod, from outside.
const APPLICATION: &str = "10.70.0.2:8080";
const PATIENCE: Duration = Duration::from_secs(10);

/// A pod, and programs with so many spares.
fn with_spares(spares: u32) -> Result<Topology> {
    let topology = Topology::new(Stack::V4, Layout::default())?;
    mount_bpffs(&topology.pod)?;
    load_with(&topology.pod, &Options { spares, ..options()? })?;
    Ok(topology)
}

fn state(topology: &Topology) -> Result<State> {
    node(&topology.pod, |node| Ok(node.state()?))
}

/// The numbers of the programs of all pods.
fn numbers(topology: &Topology) -> Result<Vec<u32>> {
    node(&topology.pod, |node| Ok(node.pods()?.iter().map(|pod| pod.pod.lookup).collect()))
}

fn has_spares(topology: &Topology, wanted: usize) -> Result<()> {
    let spares = state(topology)?.spares;
    ensure!(spares == wanted, "{spares} spares, not {wanted}");
    Ok(())
}

/// Who answers somebody outside a pod.
fn answers(outside: &Namespace) -> Result<String> {
    let to: SocketAddr = APPLICATION.parse()?;
    outside.enter(|| -> Result<String> { Ok(Answer::of(to, PATIENCE)?.name) })?
}

fn apply(namespace: &Namespace) -> Result<()> {
    let (code, said) = ran(namespace, &mut millrace(APPLY)?)?;
    ensure!(code == Some(0), "{said}");
    Ok(())
}

/// Verify that pods take spares, that more pods than spares are captured all the same, that spares
/// come back with pods that leave, and that no program is a second pod's.
#[test]
fn spares_are_taken_and_replaced() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let first = with_spares(1)?;
    let second = Topology::new(Stack::V4, Layout::default())?;
    let guest = first.pod.sibling(File::open(second.pod.path())?)?;
    has_spares(&first, 1)?;
    apply(&first.pod)?;
    has_spares(&first, 0)?;
    let own = numbers(&first)?;
    apply(&guest)?;
    has_spares(&first, 0)?;
    let both = numbers(&first)?;
    ensure!(both.len() == 2 && both.first() != both.last(), "{both:?}");
    for pair in [&first, &second] {
        ensure!(answers(&pair.outside)? == "proxy", "an inbound connection is not captured");
    }
    millrace_in_pod(&first, &LEAVE, 0)?;
    has_spares(&first, 1)?;
    ensure!(answers(&first.outside)? == "app", "the pod has left");
    ensure!(answers(&second.outside)? == "proxy", "the other one has not");
    apply(&first.pod)?;
    ensure!(answers(&first.outside)? == "proxy", "it is back");
    ensure!(!numbers(&first)?.iter().any(|number| own.contains(number)), "a number came again");
    Ok(())
}

/// Verify that an upgrade replaces the programs of pods and the spares, that there may be none, and
/// that nothing is left of any.
#[test]
fn spares_are_renewed() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let topology = with_spares(3)?;
    apply(&topology.pod)?;
    has_spares(&topology, 2)?;
    let before = numbers(&topology)?;
    for (spares, wanted) in [(3, 3), (5, 5), (2, 2), (0, 0)] {
        let options = Options { spares, ..options()? };
        ensure!(
            load_with(&topology.pod, &options)?.pods == 1,
            "the pod's program was not replaced"
        );
        has_spares(&topology, wanted)?;
        ensure!(answers(&topology.outside)? == "proxy", "with {spares} spares");
    }
    ensure!(numbers(&topology)? == before, "the pod's number has changed");
    millrace_in_pod(&topology, &LEAVE, 0)?;
    has_spares(&topology, 0)?;
    apply(&topology.pod)?;
    ensure!(answers(&topology.outside)? == "proxy", "without spares");
    let there = topology.pod.enter(|| Node::unload(Path::new(FOLDER), WAIT, true))??;
    let left = topology.pod.enter(|| Path::new(FOLDER).exists())?;
    ensure!(there && !left, "something is left");
    ensure!(answers(&topology.outside)? == "app", "it is unloaded");
    Ok(())
}

/// Verify that what another version had attached beside this one's programs is taken away.
#[test]
fn programs_of_an_earlier_version() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let topology = with_spares(0)?;
    let links = Path::new(FOLDER).join("links");
    let earlier = links.join("mr_earlier");
    let rename = || std::fs::rename(links.join("mr_sockops"), &earlier);
    topology.pod.enter(rename)??;
    ensure!(state(&topology)?.faults.missing == ["mr_sockops"], "{:?}", state(&topology)?);
    let loaded = load_with(&topology.pod, &options()?)?;
    ensure!(loaded.attached == ["mr_sockops"], "it was not attached");
    ensure!(state(&topology)?.faults.missing.is_empty(), "{:?}", state(&topology)?);
    ensure!(!topology.pod.enter(|| earlier.exists())?, "the earlier one is still there");
    Ok(())
}

/// Verify that a run that dies around the moment at which it takes a spare leaves nothing that
/// answers for another pod, and nothing that stays.
#[test]
fn taking_one_is_killed() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let first = with_spares(4)?;
    let second = Topology::new(Stack::V4, Layout::default())?;
    let guest = first.pod.sibling(File::open(second.pod.path())?)?;
    // In front of the moment, and at the next call of bpf(2) behind it.
    for (calls, spares) in [("unlink", 4), ("unlink,bpf", 3)] {
        let file = tempfile::NamedTempFile::new().context("a trace")?;
        let path = file.path().to_str().context("a path that is not UTF-8")?;
        let trace = format!("trace={calls}");
        let strace = ["strace", "-qq", "-o", path, "-e", &trace, "-e", "signal=none"];
        let (code, said) = ran(&first.pod, &mut wrapped(&strace, &millrace(APPLY)?))?;
        ensure!(code == Some(0), "{said}");
        let said = std::fs::read_to_string(path).context("a trace")?;
        let taken =
            said.lines().position(|line| line.contains("/spares/") && line.contains("unlink("));
        let taken = taken.with_context(|| format!("no spare was taken: {said}"))?;
        millrace_in_pod(&first, &LEAVE, 0)?;
        has_spares(&first, 4)?;
        // Calls are counted for each kind.
        let behind = calls != "unlink";
        let kind = |line: &&str| line.contains("bpf(") == behind;
        let before = said.lines().take(taken).filter(kind).count();
        let name = if behind { "bpf" } else { "unlink" };
        let inject = format!("inject={name}:signal=KILL:when={}", before + 1);
        let strace = ["strace", "-qq", "-o", "/dev/null", "-e", &trace, "-e", &inject];
        let status = first.pod.output(&mut wrapped(&strace, &millrace(APPLY)?))?.status;
        if status.signal() != Some(9) {
            bail!("it was not killed: {status}");
        }
        has_spares(&first, spares)?;
        ensure!(answers(&first.outside)? == "app", "it was not enrolled");
        // What was the first pod's nearly is now the second one's.
        apply(&guest)?;
        ensure!(answers(&first.outside)? == "app", "the other pod was enrolled");
        ensure!(answers(&second.outside)? == "proxy", "the other pod is captured");
        apply(&first.pod)?;
        ensure!(answers(&first.outside)? == "proxy", "it is captured");
        let (code, said) = ran(&guest, &mut millrace(LEAVE)?)?;
        ensure!(code == Some(0), "{said}");
        ensure!(answers(&first.outside)? == "proxy", "the other pod has left");
        millrace_in_pod(&first, &LEAVE, 0)?;
        node(&first.pod, |node| Ok(node.collect()?))?;
        has_spares(&first, 4)?;
        let left = node(&first.pod, |node| Ok(node.sizes()?))?;
        ensure!(left == millrace_host::ebpf::Sizes::default(), "{calls}: {left:?}");
    }
    Ok(())
}
