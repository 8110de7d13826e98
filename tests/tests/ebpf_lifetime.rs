//! The programs' own life: loaded twice, killed, replaced under load, beside somebody else's; pods
//! that go without a word, and maps that are full.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_host::ebpf::{EbpfError, Node, OBJECT, Options, Target};
use millrace_tests::capture::{millrace, millrace_in_pod, ran};
use millrace_tests::ebpf::{
    APPLY, Cgroup, FOLDER, WAIT, enrol, killed_or_done, load, load_args, load_with, loaded,
    mount_bpffs, node, numbered, options,
};
use millrace_tests::netns::Namespace;
use millrace_tests::sys_bpf;
use millrace_tests::topology::{Layout, Stack, Topology};
use millrace_tests::wire::Answer;

const SERVICE: &str = "10.71.0.10:80";
const PATIENCE: Duration = Duration::from_secs(10);
const PROGRAMS: usize = 10;

/// A pod without programs.
fn bare() -> Result<Topology> {
    let topology = Topology::new(Stack::V4, Layout::default())?;
    mount_bpffs(&topology.pod)?;
    Ok(topology)
}

/// A pod that is captured.
fn pod() -> Result<Topology> {
    let topology = Topology::new(Stack::V4, Layout::default())?;
    load(&topology.pod)?;
    enrol(&topology, &[])?;
    Ok(topology)
}

fn once(to: SocketAddr) -> Result<Answer> {
    Answer::of(to, PATIENCE)
}

/// Who answers a connection of the application's to a service.
fn answered(namespace: &Namespace) -> Result<String> {
    let to: SocketAddr = SERVICE.parse()?;
    let answer = namespace.enter(|| once(to))??;
    if answer.name == "proxy" {
        ensure!(answer.original == Some(to), "{answer:?}");
    }
    Ok(answer.name)
}

fn captured(namespace: &Namespace) -> Result<()> {
    let name = answered(namespace)?;
    ensure!(name == "proxy", "{name} answered");
    Ok(())
}

/// Verify that no connection of ten thousand is lost or uncaptured while programs are replaced all
/// the time, that one that was there before goes on, and that it does so without programs as well.
#[test]
fn replaced_under_load() -> Result<()> {
    const THREADS: usize = 4;
    const EACH: usize = 2500;
    let _cgroup = Cgroup::enter()?;
    let topology = pod()?;
    let to: SocketAddr = SERVICE.parse()?;
    let (mut ours, mut theirs) = topology.pod.enter(|| -> Result<_> {
        let listener = TcpListener::bind("127.0.0.1:8098")?;
        let ours = TcpStream::connect(listener.local_addr()?)?;
        Ok((ours, listener.accept()?.0))
    })??;
    let done = AtomicUsize::new(0);
    let loads = std::thread::scope(|scope| -> Result<usize> {
        let mut threads = Vec::new();
        for _ in 0..THREADS {
            threads.push(scope.spawn(|| {
                let result = topology.pod.enter(|| -> Result<()> {
                    for at in 0..EACH {
                        let answer = once(to).with_context(|| format!("connection {at}"))?;
                        let right = answer.name == "proxy" && answer.original == Some(to);
                        ensure!(right, "connection {at}: {answer:?}");
                    }
                    Ok(())
                });
                done.fetch_add(1, Ordering::SeqCst);
                result?
            }));
        }
        let mut loads = 0;
        while done.load(Ordering::SeqCst) < THREADS {
            let loaded = load_with(&topology.pod, &options()?)?;
            ensure!(loaded.replaced.len() == PROGRAMS && loaded.pods == 1, "{loaded:?}");
            loads += 1;
        }
        for thread in threads {
            thread.join().map_err(|_panic| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(loads)
    })?;
    ensure!(loads > 0, "nothing was replaced");
    let mut talk = || -> Result<()> {
        ours.write_all(b"x")?;
        theirs.read_exact(&mut [0])?;
        Ok(())
    };
    talk()?;
    topology.pod.enter(|| Node::unload(Path::new(FOLDER), WAIT, true))??;
    talk()?;
    let name = answered(&topology.pod)?;
    ensure!(name == "outside", "without programs {name} answered");
    Ok(())
}

/// The calls of bpf(2) that change something others see.
const CHANGES: [&str; 6] = [
    "BPF_OBJ_PIN",
    "BPF_LINK_CREATE",
    "BPF_LINK_UPDATE",
    "BPF_MAP_UPDATE_ELEM",
    "BPF_MAP_DELETE_ELEM",
    "BPF_PROG_ATTACH",
];

/// The calls of a command that change something, by their numbers among its calls of bpf(2).
fn changes(namespace: &Namespace, args: &[&str]) -> Result<Vec<usize>> {
    numbered(namespace, args, &CHANGES)
}

/// Run a command that dies in front of its nth call.
fn killed(namespace: &Namespace, args: &[&str], at: usize) -> Result<()> {
    ensure!(killed_or_done(namespace, args, at)?, "{args:?} makes fewer calls than {at}");
    Ok(())
}

/// Verify that a loader that is killed in front of any call that changes something leaves what the
/// next one completes.
#[test]
fn a_first_load_is_killed() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    // One that no other test loads into.
    let path = Cgroup::path()?.join("first");
    fs::create_dir_all(&path)?;
    let cgroup = File::open(&path)?;
    let args = load_args(path.to_str().context("a path that is not UTF-8")?);
    let topology = bare()?;
    let places = changes(&topology.pod, &args)?;
    ensure!(places.len() > 2 * PROGRAMS, "{places:?}");
    // Every sixth of them, and always the last. A loader asks about the programs of others, those of other
    // tests among them, so that it may make fewer calls than the one that was counted.
    let (mut died, places) = (0, places.iter().rev().step_by(6));
    let most = places.len() / 2;
    for at in places {
        let what = || format!("killed at {at}");
        millrace_in_pod(&topology, &["node-bpf", "unload", "--bpffs", FOLDER], 0)?;
        died += usize::from(killed_or_done(&topology.pod, &args, *at)?);
        millrace_in_pod(&topology, &args, 0).with_context(what)?;
        let state = node(&topology.pod, |node| Ok(node.state()?))?;
        ensure!(state.faults.missing.is_empty(), "{}: {state:?}", what());
        // The kernel detaches what a dead process had attached on its own time.
        let end = Instant::now() + PATIENCE;
        while sys_bpf::attached(&cgroup)?.len() != 1 {
            ensure!(Instant::now() < end, "{}: attached twice", what());
            std::thread::yield_now();
        }
    }
    ensure!(died > most, "{died}");
    drop(topology);
    fs::remove_dir(&path)?;
    Ok(())
}

fn captured_by(topology: &Topology, wanted: &str) -> Result<()> {
    let name = answered(&topology.pod)?;
    ensure!(name == wanted, "{name} answered, not {wanted}");
    Ok(())
}

/// Verify that a pod stays captured wherever an upgrade is killed.
#[test]
fn an_upgrade_is_killed() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let cgroup = Cgroup::path()?;
    let cgroup = cgroup.to_str().context("a path that is not UTF-8")?;
    let args = load_args(cgroup);
    let topology = pod()?;
    let places = changes(&topology.pod, &args)?;
    ensure!(places.len() > PROGRAMS, "{places:?}");
    let (mut died, places) = (0, places.iter().step_by(2));
    let most = places.len() / 2;
    for at in places {
        died += usize::from(killed_or_done(&topology.pod, &args, *at)?);
        captured(&topology.pod).with_context(|| format!("killed at {at}"))?;
    }
    ensure!(died > most, "{died}");
    let loaded = load_with(&topology.pod, &options()?)?;
    ensure!(loaded.replaced.len() == PROGRAMS && loaded.pods == 1, "{loaded:?}");
    captured(&topology.pod)
}

/// Verify that a pod is captured as before or as desired wherever enrolling it is killed, and that
/// the next run does the rest and leaves nothing behind.
#[test]
fn enrolling_is_killed() -> Result<()> {
    let (_cgroup, topology) = loaded(Stack::V4)?;
    let flags = ["--exclude-outbound-cidrs", "10.9.0.0/16", "--exclude-outbound-ports", "9092"];
    let args = [&APPLY[..], &flags].concat();
    let places = changes(&topology.pod, &args)?;
    ensure!(places.len() >= 6, "{places:?}");
    let leave = ["cleanup", "--backend", "ebpf", "--bpffs", FOLDER];
    for at in places {
        millrace_in_pod(&topology, &leave, 0)?;
        captured_by(&topology, "outside")?;
        killed(&topology.pod, &args, at)?;
        let name = answered(&topology.pod)?;
        let entries = node(&topology.pod, |node| Ok(node.pods()?.len()))?;
        let wanted = if entries == 0 { "outside" } else { "proxy" };
        ensure!(name == wanted, "killed at {at}: {entries} pods, but {name} answered");
        millrace_in_pod(&topology, &args, 0).with_context(|| format!("killed at {at}"))?;
        captured(&topology.pod)?;
        // What the killed run left of other policies goes, and the pod's own stays.
        node(&topology.pod, |node| Ok(node.collect()?))?;
        captured(&topology.pod)?;
        let left = node(&topology.pod, |node| Ok(node.sizes()?))?;
        ensure!(left.networks == 2 && left.ports == 1, "killed at {at}: {left:?}");
    }
    millrace_in_pod(&topology, &leave, 0)?;
    let left = node(&topology.pod, |node| Ok(node.sizes()?))?;
    ensure!(left == millrace_host::ebpf::Sizes::default(), "{left:?}");
    Ok(())
}

/// Verify that a proxy that begins to listen while its pod is being captured gets the pod's inbound
/// connections; and that of a run that dies there, which leaves the pod as it was, all is taken away.
#[test]
fn the_proxy_begins_to_listen_meanwhile() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let mut topology = Topology::new(Stack::V4, Layout::default())?;
    load(&topology.pod)?;
    topology.stop_listeners();
    let places = changes(&topology.pod, &APPLY)?;
    let mut waited = false;
    for at in places {
        millrace_in_pod(&topology, &["cleanup", "--bpffs", FOLDER], 0)?;
        killed(&topology.pod, &APPLY, at)?;
        let (listener, known, pods) = node(&topology.pod, |node| {
            let listener = TcpListener::bind("0.0.0.0:15006")?;
            let known = node.listening(&Target::current()?, 15006)?.v4;
            Ok((listener, known, node.pods()?.len()))
        })?;
        waited |= known && pods == 0;
        if pods == 0 {
            let gone = node(&topology.pod, |node| Ok(node.collect()?))?;
            ensure!(gone == 0, "killed at {at}: {gone} pods were captured");
            let left = node(&topology.pod, |node| Ok(node.sizes()?))?;
            ensure!(left == millrace_host::ebpf::Sizes::default(), "killed at {at}: {left:?}");
        }
        drop(listener);
    }
    ensure!(waited, "no listener was found before its pod was captured");
    Ok(())
}

/// Verify that what is left of a pod that is gone without a word is found and taken away, and other
/// pods are not.
#[test]
fn gone_without_a_word() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let (stays, goes) = (pod()?, Topology::new(Stack::V4, Layout::default())?);
    {
        let guest = stays.pod.sibling(File::open(goes.pod.path())?)?;
        let networks = ["--exclude-outbound-cidrs", "10.9.0.0/16"];
        let (code, said) = ran(&guest, &mut millrace([&APPLY[..], &networks].concat())?)?;
        ensure!(code == Some(0), "{said}");
    }
    ensure!(node(&stays.pod, |node| Ok(node.collect()?))? == 0, "both are there");
    drop(goes);
    // The kernel takes namespaces apart one after the other, on its own time.
    let end = Instant::now() + 6 * PATIENCE;
    let gone = || node(&stays.pod, |node| Ok(node.pods()?.iter().any(|pod| pod.netns.is_none())));
    while !gone()? {
        ensure!(Instant::now() < end, "the namespace is still there");
        std::thread::yield_now();
    }
    let said = millrace_in_pod(&stays, &["node-bpf", "gc", "--bpffs", FOLDER], 0)?;
    ensure!(said == "entries of pods that are gone, removed: 1\n", "{said}");
    let sizes = node(&stays.pod, |node| Ok(node.sizes()?))?;
    ensure!((sizes.pods, sizes.networks, sizes.counters) == (1, 0, 1), "{sizes:?}");
    captured(&stays.pod)
}

/// Verify that a pod whose policy does not fit is not enrolled by half, nor is one that was
/// captured before captured otherwise.
#[test]
fn full_maps() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let topology = bare()?;
    let few = Options { max_networks: 10, max_pods: 1, ..options()? };
    load_with(&topology.pod, &few)?;
    let many: Vec<String> = (0..20).map(|n| format!("10.{n}.9.0/24")).collect();
    let many = many.join(",");
    let too_many = [&APPLY[..], &["--exclude-outbound-cidrs", &many]].concat();
    let said = millrace_in_pod(&topology, &too_many, 1)?;
    ensure!(said.contains("the map NETWORKS is full"), "{said}");
    captured_by(&topology, "outside")?;
    let sizes = node(&topology.pod, |node| Ok(node.sizes()?))?;
    ensure!(sizes == millrace_host::ebpf::Sizes::default(), "{sizes:?}");
    enrol(&topology, &["--exclude-outbound-cidrs", "10.71.0.0/16"])?;
    captured_by(&topology, "outside")?;
    millrace_in_pod(&topology, &too_many, 1)?;
    captured_by(&topology, "outside")?;
    let sizes = node(&topology.pod, |node| Ok(node.sizes()?))?;
    ensure!((sizes.pods, sizes.networks) == (1, 2), "{sizes:?}");
    // There is room for one pod.
    let other = Topology::new(Stack::V4, Layout::default())?;
    let guest = topology.pod.sibling(File::open(other.pod.path())?)?;
    let (code, said) = ran(&guest, &mut millrace(APPLY)?)?;
    ensure!(code == Some(1) && said.contains(" is full"), "{said}");
    let sizes = node(&topology.pod, |node| Ok(node.sizes()?))?;
    ensure!((sizes.pods, sizes.counters, sizes.networks) == (1, 1, 2), "{sizes:?}");
    Ok(())
}

/// Verify ten thousand networks of one pod.
#[test]
fn ten_thousand_networks() -> Result<()> {
    let (_cgroup, topology) = loaded(Stack::V4)?;
    let networks = (0..10_000_u32).map(|n| format!("11.{}.{}.0/24", n / 250, n % 250));
    let file = tempfile::NamedTempFile::new()?;
    let list: Vec<String> = networks.chain(["10.72.0.0/16".to_owned()]).collect();
    let config = serde_json::json!({ "outbound": { "excludeNetworks": list } });
    fs::write(file.path(), config.to_string())?;
    enrol(&topology, &["--config", file.path().to_str().context("a path")?])?;
    captured(&topology.pod)?;
    let other: SocketAddr = "10.72.0.10:80".parse()?;
    let answer = topology.pod.enter(|| once(other))??;
    ensure!(answer.name == "outside", "{answer:?}");
    millrace_in_pod(&topology, &["cleanup", "--backend", "ebpf", "--bpffs", FOLDER], 0)?;
    let sizes = node(&topology.pod, |node| Ok(node.sizes()?))?;
    ensure!(sizes == millrace_host::ebpf::Sizes::default(), "{sizes:?}");
    Ok(())
}

/// Verify that of loaders at the same time each leaves everything whole and attached once.
#[test]
fn two_loaders() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let topology = bare()?;
    let options = options()?;
    std::thread::scope(|scope| -> Result<()> {
        let load = || load_with(&topology.pod, &options);
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(load)).collect();
        for thread in threads {
            thread.join().map_err(|_panic| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(())
    })?;
    let state = node(&topology.pod, |node| Ok(node.state()?))?;
    ensure!(state.faults.missing.is_empty(), "{state:?}");
    enrol(&topology, &[])?;
    captured(&topology.pod)
}

/// Verify that somebody else's program stays where it is among those of the cgroup: it runs as
/// before, and an upgrade changes no order.
#[test]
fn beside_somebody_elses_programs() -> Result<()> {
    // A cgroup that no other test of this process loads into.
    let _cgroup = Cgroup::enter()?;
    let path = Cgroup::path()?.join("others");
    fs::create_dir_all(&path)?;
    let cgroup = File::open(&path)?;
    let before = sys_bpf::attach(&cgroup)?;
    let alone = sys_bpf::attached(&cgroup)?;
    let topology = bare()?;
    let options = Options { cgroup: path.clone(), ..options()? };
    load_with(&topology.pod, &options)?;
    let two = sys_bpf::attached(&cgroup)?;
    // Before theirs, where the kernel can do that.
    let at = two.iter().position(|id| !alone.contains(id)).context("ours")?;
    let after = sys_bpf::attach(&cgroup)?;
    let three = sys_bpf::attached(&cgroup)?;
    ensure!(three.len() == 3 && three.starts_with(&two), "{alone:?}, {two:?}, then {three:?}");
    load_with(&topology.pod, &options)?;
    let upgraded = sys_bpf::attached(&cgroup)?;
    ensure!(upgraded.len() == 3 && upgraded.get(at) != three.get(at), "{three:?}, {upgraded:?}");
    let without = |mut ids: Vec<u32>| {
        ids.remove(at);
        ids
    };
    ensure!(without(upgraded.clone()) == without(three.clone()), "{three:?}, {upgraded:?}");
    topology.pod.enter(|| Node::unload(Path::new(FOLDER), WAIT, true))??;
    let left = sys_bpf::attached(&cgroup)?;
    ensure!(left == without(three.clone()), "{three:?}, {left:?}");
    drop((before, after));
    fs::remove_dir(&path)?;
    Ok(())
}

/// Verify that a program that the verifier does not accept is an error with the verifier's words,
/// and that what was loaded before stays.
#[test]
fn the_verifiers_words_are_kept() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let topology = pod()?;
    // The last instruction of every program, with no value to return in front of it.
    let exit = [0x95, 0, 0, 0, 0, 0, 0, 0];
    let clobber = [0xbf, 0x90, 0, 0, 0, 0, 0, 0]; // r0 = r9, which nobody has written
    let mut broken = OBJECT.to_vec();
    let mut places: Vec<usize> = Vec::new();
    for at in (0..broken.len().saturating_sub(16)).step_by(8) {
        if broken.get(at + 8..at + 16) == Some(&exit[..]) {
            places.push(at);
        }
    }
    for at in &places {
        if let Some(place) = broken.get_mut(*at..*at + 8) {
            place.copy_from_slice(&clobber);
        }
    }
    let object: &'static [u8] = Box::leak(broken.into_boxed_slice());
    let options = Options { object, ..options()? };
    let error = topology.pod.enter(|| Node::load(Path::new(FOLDER), &options, WAIT).map(drop))?;
    let Some(EbpfError::Program { name, log, .. }) = error.err() else {
        bail!("{} programs were broken, and loaded", places.len());
    };
    ensure!(name.starts_with("mr_") && log.contains("!read_ok"), "{name}: {log}");
    captured(&topology.pod)
}
