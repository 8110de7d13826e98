//! As many pods as a node has, and some of them take all the room for connections that they can: the
//! others go on.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_core::dialect::native;
use millrace_core::facts::HostFacts;
use millrace_core::policy::CapturePolicy;
use millrace_host::ebpf::{Node, Options, Target};
use millrace_tests::capture::millrace;
use millrace_tests::ebpf::{Cgroup, FOLDER, load_with, mount_bpffs, options};
use millrace_tests::netns::Namespace;
use millrace_tests::probe::original_destination;
use millrace_tests::sys_calls::{become_user, raise_open_files};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
use serde_json::Value;

/// How many pods a node is said to have at most.
const PODS: usize = 250;
/// How many of them attack at once, in the end.
const ATTACKERS: usize = 20;
/// How many connections a pod of the others has at once.
const CONNECTIONS: usize = 10;
/// Whoever runs in the attackers' pods.
const SOMEBODY: u32 = 1000;
/// For all pods: those that attack could fill it, were it not for the others.
const MAX_CONNECTIONS: u32 = 3200;

/// A pod with nothing but `lo`, and its proxy.
struct Pod {
    namespace: Namespace,
    proxy: TcpListener,
}

impl Pod {
    /// A pod that is captured by the programs that are in the mounts of `home`.
    fn new(home: &Namespace, policy: &CapturePolicy) -> Result<Self> {
        let namespace = home.sibling(File::open(Namespace::new()?.path())?)?;
        namespace.ip("link set lo up\n")?;
        let proxy = namespace.enter(|| -> Result<_> {
            let target = Target::current()?;
            let entry = target.entry(policy, &BTreeMap::new())?;
            Node::open(Path::new(FOLDER))?.enrol(&target, &entry)?;
            Ok(TcpListener::bind("127.0.0.1:15001")?)
        })??;
        Ok(Self { namespace, proxy })
    }

    /// Have connections, as many as this at once, each of which has to reach the proxy with its
    /// destination.
    fn goes_on(&self) -> Result<()> {
        let to = destination()?;
        let mut held = Vec::new();
        for n in 0..CONNECTIONS {
            let connected = self
                .namespace
                .enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(30)))?;
            held.push(connected.with_context(|| format!("connection {n}"))?);
            let (accepted, _) = self.proxy.accept()?;
            let told = original_destination(&accepted)?;
            ensure!(told == to, "connection {n}: {told}");
            held.push(accepted);
        }
        Ok(())
    }

    /// As a user without privilege, take all the room for connections that there is for the pod, with
    /// ones that nobody accepts.
    fn attacks(&self) -> Result<Vec<OwnedFd>> {
        let stream =
            || socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_NONBLOCK, None);
        self.namespace.enter(|| -> Result<_> {
            become_user(SOMEBODY)?;
            let mut held = Vec::new();
            let to = SockaddrStorage::from(destination()?);
            let mut refused = 0;
            while refused < 10 {
                let attempt = stream()?;
                match connect(attempt.as_raw_fd(), &to) {
                    Ok(()) | Err(Errno::EINPROGRESS) => held.push(attempt),
                    Err(Errno::EPERM) => refused += 1,
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(held)
        })?
    }
}

/// What `status` says that a pod has and can have.
fn room(pod: &Namespace) -> Result<(u64, u64)> {
    let words = ["status", "--backend", "ebpf", "--bpffs", FOLDER, "--output", "json"];
    let output = pod.output(&mut millrace(words)?)?;
    ensure!(output.status.success(), "{output:?}");
    let status: Value = serde_json::from_slice(&output.stdout)?;
    let number = |name: &str| status[name].as_u64().with_context(|| format!("{status:#}"));
    Ok((number("connections")?, number("maxConnections")?))
}

fn destination() -> Result<SocketAddr> {
    Ok("198.51.100.10:80".parse()?)
}

/// Verify that of 250 pods all go on while one takes all the room that it can, and while twenty do, and
/// that `status` shows what each has and can have.
#[test]
fn pods_go_on_under_attack() -> Result<()> {
    raise_open_files()?;
    let _cgroup = Cgroup::enter()?;
    let home = Namespace::new()?;
    mount_bpffs(&home)?;
    let (max_pods, max_connections) = (u32::try_from(PODS)? + 6, MAX_CONNECTIONS);
    load_with(&home, &Options { max_pods, max_connections, ..options()? })?;
    let raw = native::Raw::new(BTreeMap::new(), std::iter::empty());
    let policy = native::resolve(&raw, &HostFacts::default(), false)?;
    let pods = |count: usize| -> Result<Vec<Pod>> {
        (0..count).map(|_| Pod::new(&home, &policy)).collect()
    };
    let (attackers, others) = (pods(ATTACKERS)?, pods(PODS - ATTACKERS)?);
    let others_go_on = |when: &str| -> Result<()> {
        for (n, pod) in others.iter().enumerate() {
            pod.goes_on().with_context(|| format!("{when}: pod {n}"))?;
        }
        Ok(())
    };
    let mut held = Vec::new();
    let share = u64::from(MAX_CONNECTIONS / 16);
    for (n, attacker) in attackers.iter().enumerate() {
        held.push(attacker.attacks()?);
        let (has, most) = room(&attacker.namespace)?;
        ensure!(has >= most && has <= share, "attacker {n} has {has} of {most}");
        if n == 0 {
            assert_eq!(has, share);
            others_go_on("one attacks")?;
        }
    }
    let all: usize = held.iter().map(Vec::len).sum();
    // It is an attack: more than half of what there is.
    ensure!(all > usize::try_from(MAX_CONNECTIONS)? / 2, "{all} connections");
    others_go_on("twenty attack")?;
    drop(held);
    let attackers: Vec<Namespace> = attackers.into_iter().map(|pod| pod.namespace).collect();
    // What was taken is free again.
    let end = Instant::now() + Duration::from_mins(1);
    for attacker in &attackers {
        while room(attacker)? != (0, share) {
            ensure!(Instant::now() < end, "{:?}", room(attacker)?);
        }
    }
    others_go_on("nobody attacks any more")
}
