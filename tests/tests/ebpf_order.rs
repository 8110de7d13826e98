//! Beside a socket load balancer: programs that put a backend's address in the place of a service's.
//! The proxy has to be told the service's, wherever those are attached and whenever; where the kernel
//! can't do that, everybody is told who comes first.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_core::ebpf::Order;
use millrace_host::ebpf::{Node, Options, features};
use millrace_tests::capture::millrace_in_pod;
use millrace_tests::ebpf::{
    Cgroup, FOLDER, WAIT, asked, enrol, load_with, mount_bpffs, node, options,
};
use millrace_tests::netns::Namespace;
use millrace_tests::sys_bpf::{PREORDER, balance};
use millrace_tests::topology::{Family, Layout, Spot, Stack, Topology};
use millrace_tests::wire::Answer;

const PATIENCE: Duration = Duration::from_secs(10);

/// Cgroups one below the other: the upper one, the one whose processes Millrace's programs decide for,
/// and one of its own below.
struct Cgroups {
    upper: PathBuf,
    /// Goes last.
    _outer: Cgroup,
}

impl Cgroups {
    fn new() -> Result<Self> {
        let outer = Cgroup::enter()?;
        let upper = Cgroup::path()?.join("upper");
        let cgroups = Self { upper, _outer: outer };
        fs::create_dir_all(cgroups.lower())?;
        Ok(cgroups)
    }

    fn middle(&self) -> PathBuf {
        self.upper.join("pods")
    }

    fn lower(&self) -> PathBuf {
        self.middle().join("pod")
    }
}

/// Let this process, with all its threads, go to a cgroup.
fn go(cgroup: &Path) -> Result<()> {
    let processes = cgroup.join("cgroup.procs");
    fs::write(&processes, std::process::id().to_string())
        .with_context(|| processes.display().to_string())
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        if let Ok(outer) = Cgroup::path() {
            let _stays_otherwise = go(&outer);
        }
        let end = Instant::now() + Duration::from_secs(2);
        for cgroup in [self.lower(), self.middle(), self.upper.clone()] {
            // A program that has just ended leaves it a little later.
            while fs::remove_dir(&cgroup).is_err() && Instant::now() < end {
                std::thread::yield_now();
            }
        }
    }
}

/// Where the load balancer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Above,
    Same,
    Below,
}

/// What is a service's address, and its backend's.
const SERVICE: (Spot, Spot) = (Spot::Service, Spot::Other);
const NAMES: (Spot, Spot) = (Spot::Dns, Spot::OtherDns);

fn balanced(cgroup: &Path, flags: u32) -> Result<Vec<OwnedFd>> {
    let mut v4: Vec<(Ipv4Addr, Ipv4Addr)> = Vec::new();
    let mut v6: Vec<(Ipv6Addr, Ipv6Addr)> = Vec::new();
    for (service, backend) in [SERVICE, NAMES] {
        for family in [Family::V4, Family::V6] {
            match (service.ip(family), backend.ip(family)) {
                (Some(IpAddr::V4(from)), Some(IpAddr::V4(to))) => v4.push((from, to)),
                (Some(IpAddr::V6(from)), Some(IpAddr::V6(to))) => v6.push((from, to)),
                other => bail!("{other:?}"),
            }
        }
    }
    balance(&File::open(cgroup)?, &v4, &v6, flags).context("a load balancer")
}

/// Whether the proxy is told the service's address, and a client of DNS is answered by whom it asked, in
/// both families, with and without `connect()`. False where it is the backend's everywhere.
fn service_is_known(pod: &Namespace) -> Result<bool> {
    let mut known = Vec::new();
    for family in [Family::V4, Family::V6] {
        let service = SERVICE.0.at(family, 80)?;
        let backend = SERVICE.1.at(family, 80)?;
        let answer = pod.enter(|| Answer::of(service, PATIENCE))??;
        ensure!(answer.name == "proxy", "{answer:?}");
        known.push(is_first(answer.original.context("the proxy is told")?, service, backend)?);

        let (service, backend) = (NAMES.0.at(family, 53)?, NAMES.1.at(family, 53)?);
        for connected in [false, true] {
            let from = pod.enter(|| asked(service, connected))??;
            known.push(is_first(from, service, backend)?);
        }
    }
    let first = known.contains(&true);
    ensure!(known.iter().all(|one| *one == first), "it depends: {known:?}");
    Ok(first)
}

fn is_first(is: SocketAddr, service: SocketAddr, backend: SocketAddr) -> Result<bool> {
    ensure!(is == service || is == backend, "{is} is neither {service} nor {backend}");
    Ok(is == service)
}

/// Whether this kernel calls programs before others' that were there first.
fn kernel_can() -> Result<bool> {
    let findings = features(Path::new("/nowhere"));
    let finding = findings.iter().find(|one| one.what.contains("BPF_F_PREORDER"));
    Ok(finding.context("a finding")?.there)
}

/// What everybody says where somebody else comes first.
fn is_told(topology: &Topology, order: &Order) -> Result<()> {
    let status = ["node-bpf", "status", "--bpffs", FOLDER];
    let said = millrace_in_pod(topology, &status, 0)?;
    let preflight = millrace_in_pod(topology, &["preflight", "--bpffs", FOLDER], 0)?;
    ensure!(preflight.ends_with("\nebpf works\n"), "they are loaded: {preflight}");
    let Some(told) = order.reported() else {
        ensure!(!said.contains("note: "), "{said}");
        ensure!(preflight.contains("yes connections before any other program"), "{preflight}");
        return Ok(());
    };
    for part in ["cil_sock4_conne", "Cilium's", "socketLB.hostNamespaceOnly=true"] {
        ensure!(told.contains(part), "{told}");
    }
    ensure!(said.contains(&format!("note: {told}")), "{said}");
    ensure!(preflight.contains(&told), "{preflight}");
    Ok(())
}

/// Load beside a load balancer, in one order or the other, and look who is told what.
fn play(cgroups: &Cgroups, at: At, before: bool, flags: u32) -> Result<bool> {
    let balancer = match at {
        At::Above => cgroups.upper.clone(),
        At::Same => cgroups.middle(),
        At::Below => cgroups.lower(),
    };
    go(&cgroups.lower())?;
    let mut topology = Topology::new(Stack::Dual, Layout::default())?;
    mount_bpffs(&topology.pod)?;
    let options = Options { cgroup: cgroups.middle(), ..options()? };
    let theirs = if before { Some(balanced(&balancer, flags)?) } else { None };
    load_with(&topology.pod, &options)?;
    enrol(&topology, &["--dns", "all"])?;
    let theirs = match theirs {
        Some(theirs) => theirs,
        None => balanced(&balancer, flags)?,
    };
    let mut known = service_is_known(&topology.pod)?;
    let order = node(&topology.pod, |node| Ok(node.order()?))?;
    ensure!(known == (order == Order::First), "known {known}, but {order:?}");
    is_told(&topology, &order)?;
    // It is replaced by its owner, and the node's programs by another load.
    drop(theirs);
    let theirs = balanced(&balancer, flags)?;
    let loaded = load_with(&topology.pod, &options)?;
    let again = service_is_known(&topology.pod)?;
    ensure!(again == (loaded.order == Order::First), "known {again}, but {:?}", loaded.order);
    ensure!(again || !known, "a load has made it worse: {:?}", loaded.order);
    known &= again;
    drop(theirs);
    topology.pod.enter(|| Node::unload(Path::new(FOLDER), WAIT, true))??;
    topology.stop_listeners();
    Ok(known)
}

/// Verify the order with a load balancer above, at the same cgroup and below, that was there before and
/// that comes later. One test, as it is the process that goes from cgroup to cgroup.
#[test]
fn the_proxy_is_told_the_service() -> Result<()> {
    let cgroups = Cgroups::new()?;
    let can = kernel_can()?;
    for at in [At::Above, At::Same, At::Below] {
        for before in [true, false] {
            let what = || format!("{at:?}, before {before}, the kernel can {can}");
            let known = play(&cgroups, at, before, 0).with_context(what)?;
            // Without the flag, programs below come first, and of one cgroup the earlier ones. In the
            // second part of the play the load balancer comes anew, behind what is there.
            let wanted = match at {
                _ if can => true,
                At::Above => true,
                At::Same => !before,
                At::Below => false,
            };
            ensure!(known == wanted, "{}: the service is known: {known}", what());
        }
    }
    // Nobody comes before one above that asks for the same.
    if can {
        let known = play(&cgroups, At::Above, false, PREORDER)?;
        ensure!(!known, "the load balancer came second");
    }
    Ok(())
}
