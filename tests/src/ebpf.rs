//! Capture by eBPF in the suites: the programs are pinned in a bpffs that only a namespace's mounts
//! have, so they end with it, however the test ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_core::dialect::{istio, native};
use millrace_core::ebpf::{read, sources};
use millrace_core::sim::{SourceTable, of_ebpf};
use millrace_core::value::Groups;
use millrace_host::ebpf::{Enrolled, Loaded, Node, OBJECT, Options, Target, default_cgroup};
use millrace_host::engine::Session;
use millrace_host::facts;
use nix::mount::{MsFlags, mount};

use crate::capture::{Capture, millrace, millrace_in_pod, ran, wrapped};
use crate::cases::Config;
use crate::netns::Namespace;
use crate::topology::{Layout, Stack, Topology};

/// Where a namespace's mounts have their bpffs, and its pins.
pub const MOUNT: &str = "/run/bpf";
/// The folder of the pins.
pub const FOLDER: &str = "/run/bpf/millrace";
/// Where the mounts of a [`Shared`] have their bpffs, for those that are made of them.
const SHARED: &str = "/sys/fs/bpf";
/// How long another run may take, also on a busy machine: no test is about the time that this gives.
pub const WAIT: Duration = Duration::from_mins(5);
/// A pod is captured, whatever was there.
pub const APPLY: [&str; 5] = ["apply", "--backend", "ebpf", "--bpffs", FOLDER];

/// The file of a cgroup that has its processes, and takes others.
const PROCESSES: &str = "cgroup.procs";

/// How many values of [`Cgroup`] there are.
static INSIDE: Mutex<usize> = Mutex::new(0);

/// A cgroup of this test process's own, for as long as there is such a value: programs that are
/// attached there see its sockets and those of its children, and nobody else's.
#[derive(Debug)]
pub struct Cgroup(());

impl Cgroup {
    /// Go there, with all threads.
    pub fn enter() -> Result<Self> {
        let mut inside = INSIDE.lock().unwrap_or_else(PoisonError::into_inner);
        if *inside == 0 {
            let own = Self::path()?;
            std::fs::create_dir_all(&own).with_context(|| own.display().to_string())?;
            let processes = own.join(PROCESSES);
            std::fs::write(&processes, std::process::id().to_string())
                .with_context(|| processes.display().to_string())?;
        }
        *inside += 1;
        Ok(Self(()))
    }

    /// Where it is, also when nobody is there.
    pub fn path() -> Result<PathBuf> {
        let root = default_cgroup().context("no cgroup v2 is mounted")?;
        Ok(root.join(format!("millrace-test-{}", std::process::id())))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let mut inside = INSIDE.lock().unwrap_or_else(PoisonError::into_inner);
        *inside -= 1;
        if *inside == 0 {
            let (Some(root), Ok(own)) = (default_cgroup(), Self::path()) else { return };
            let end = Instant::now() + Duration::from_secs(2);
            // Children of tests that need no cgroup began in this one as well, and go on. Those that
            // have been killed leave it a little later. Where all of it fails, the folder stays: an
            // empty cgroup is in nobody's way.
            while std::fs::remove_dir(&own).is_err() && Instant::now() < end {
                let all = std::fs::read_to_string(own.join(PROCESSES)).unwrap_or_default();
                for process in all.lines() {
                    let _ended_meanwhile = std::fs::write(root.join(PROCESSES), process);
                }
                std::thread::yield_now();
            }
        }
    }
}

/// A cgroup that is in nobody's way and that nobody is in: what other tests of this process load is called
/// neither before nor after what is attached there.
#[derive(Debug)]
pub struct Apart(PathBuf);

impl Apart {
    /// One for each name.
    pub fn new(name: &str) -> Result<Self> {
        let root = default_cgroup().context("no cgroup v2 is mounted")?;
        let own = root.join(format!("millrace-test-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&own).with_context(|| own.display().to_string())?;
        Ok(Self(own))
    }

    /// How the suites load the programs, but for the cgroup.
    pub fn options(&self) -> Result<Options> {
        Ok(Options { cgroup: self.0.clone(), ..options()? })
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        // An empty cgroup is in nobody's way, where it can't be removed.
        let _stays = std::fs::remove_dir(&self.0);
    }
}

/// How the suites load the programs.
pub fn options() -> Result<Options> {
    Ok(Options {
        cgroup: Cgroup::path()?,
        accelerate: false,
        max_pods: 64,
        max_networks: 100_000,
        max_connections: 10_000,
        spares: 1,
        object: OBJECT,
    })
}

/// Give a namespace's mounts a bpffs.
pub fn mount_bpffs(namespace: &Namespace) -> Result<()> {
    namespace.enter(|| -> Result<()> {
        std::fs::create_dir_all(MOUNT)?;
        mount(Some("bpf"), MOUNT, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        Ok(())
    })?
}

/// Load the programs, or load them again, where there is a bpffs.
pub fn load_with(namespace: &Namespace, options: &Options) -> Result<Loaded> {
    let (_, loaded) = namespace.enter(|| Node::load(Path::new(FOLDER), options, WAIT))??;
    Ok(loaded)
}

/// Give a namespace's mounts a bpffs and the programs.
pub fn load(namespace: &Namespace) -> Result<()> {
    mount_bpffs(namespace)?;
    load_with(namespace, &options()?).map(drop)
}

/// A pod that has the programs. The cgroup comes first, so that it ends last.
pub fn loaded(stack: Stack) -> Result<(Cgroup, Topology)> {
    let cgroup = Cgroup::enter()?;
    let topology = Topology::new(stack, Layout::default())?;
    load(&topology.pod)?;
    Ok((cgroup, topology))
}

/// Capture a pod that has the programs, with the settings of these flags.
pub fn enrol(topology: &Topology, flags: &[&str]) -> Result<String> {
    let args = [&APPLY, flags].concat();
    millrace_in_pod(topology, &args, 0)
}

/// A pod with both families that is captured with these flags.
pub fn captured(flags: &[&str]) -> Result<(Cgroup, Topology)> {
    let (cgroup, topology) = loaded(Stack::Dual)?;
    enrol(&topology, flags)?;
    Ok((cgroup, topology))
}

/// Ask a DNS server, which the proxy answers for. Whom the kernel says to be asked: of a socket that is
/// not connected by where its answer comes from.
pub fn asked(server: SocketAddr, connected: bool) -> Result<SocketAddr> {
    let own: IpAddr =
        if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((own, 0))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    if connected {
        socket.connect(server)?;
        socket.send(b"who")?;
    } else {
        socket.send_to(b"who", server)?;
    }
    let mut answer = [0; 2048];
    let (length, from) = socket.recv_from(&mut answer)?;
    let answer = String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned();
    ensure!(answer.contains("proxy"), "{answer}");
    if connected { Ok(socket.peer_addr()?) } else { Ok(from) }
}

/// A command's calls of bpf(2) that are one of these, by their numbers among all of them.
pub fn numbered(namespace: &Namespace, args: &[&str], calls: &[&str]) -> Result<Vec<usize>> {
    let file = tempfile::NamedTempFile::new().context("a trace")?;
    let path = file.path().to_str().context("a path that is not UTF-8")?;
    let strace = ["strace", "-qq", "-o", path, "-e", "trace=bpf", "-e", "signal=none"];
    let (code, said) = ran(namespace, &mut wrapped(&strace, &millrace(args)?))?;
    ensure!(code == Some(0), "{said}");
    let trace = std::fs::read_to_string(path).context("a trace")?;
    let changes = |line: &str| calls.iter().any(|call| line.contains(call));
    let numbered = trace.lines().zip(1..).filter(|(line, _)| changes(line));
    Ok(numbered.map(|(_, at)| at).collect())
}

/// Run a command that dies in front of its nth call; whether it did.
pub fn killed_or_done(namespace: &Namespace, args: &[&str], at: usize) -> Result<bool> {
    let inject = format!("inject=bpf:signal=KILL:when={at}");
    let strace = ["strace", "-qq", "-o", "/dev/null", "-e", "trace=bpf", "-e", &inject];
    let output = namespace.output(&mut wrapped(&strace, &millrace(args)?))?;
    match (output.status.code(), output.status.signal()) {
        (_, Some(9)) => Ok(true),
        (Some(0), _) => Ok(false),
        _ => bail!("{args:?} was not killed at {at}: {}", output.status),
    }
}

/// The words of a load into a cgroup.
pub fn load_args(cgroup: &str) -> Vec<&str> {
    let sizes = ["--max-pods", "64", "--max-connections", "1000", "--spares", "2"];
    [&["node-bpf", "load", "--bpffs", FOLDER, "--cgroup", cgroup][..], &sizes].concat()
}

/// What the programs of a namespace's mounts have.
pub fn node<T: Send>(
    namespace: &Namespace,
    ask: impl FnOnce(&Node) -> Result<T> + Send,
) -> Result<T> {
    namespace.enter(|| ask(&Node::open(Path::new(FOLDER))?))?
}

/// What the programs do in a pod that is captured, and the addresses that they let its connections come
/// from, read back from their maps.
pub fn tables(namespace: &Namespace) -> Result<(Vec<SourceTable>, Vec<IpAddr>)> {
    namespace.enter(|| -> Result<_> {
        let node = Node::open(Path::new(FOLDER))?;
        let target = Target::current()?;
        let entry = node.entry(&target)?.context("the pod is enrolled")?;
        let policy = read(&entry, &native::DIALECT)?;
        let listening = node.listening(&target, entry.pod.inbound_port)?;
        Ok((of_ebpf(&policy, &Groups::new(), listening), sources(&entry.pod).collect()))
    })?
}

/// Programs that are loaded once, for many pods: to load them is most of what a case costs.
#[derive(Debug)]
pub struct Shared {
    node: Namespace,
    _cgroup: Cgroup,
}

impl Shared {
    /// Load them.
    pub fn load(options: &Options) -> Result<Self> {
        let cgroup = Cgroup::enter()?;
        let node = Namespace::new()?;
        node.enter(|| -> Result<()> {
            mount(Some("bpf"), SHARED, Some("bpf"), MsFlags::empty(), None::<&str>)?;
            see_shared()
        })??;
        load_with(&node, options)?;
        Ok(Self { node, _cgroup: cgroup })
    }

    /// Run a closure that makes pods, which [`OnNode`] captures.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        self.node.enter(f)
    }
}

/// Give the mounts of this thread what is shared.
fn see_shared() -> Result<()> {
    std::fs::create_dir_all(MOUNT)?;
    mount(Some(SHARED), MOUNT, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    Ok(())
}

/// Millrace's eBPF capture by programs of the pod's own mounts, also for configurations that come as
/// istio-iptables' flags.
#[derive(Clone, Copy, Debug)]
pub struct Ebpf;

impl Capture for Ebpf {
    fn name(&self) -> String {
        "millrace with eBPF".to_owned()
    }

    fn apply(&self, topology: &Topology, config: &Config) -> Result<()> {
        load(&topology.pod)?;
        capture(topology, config)
    }
}

/// The same by programs that many pods share.
#[derive(Clone, Copy, Debug)]
pub struct OnNode;

impl Capture for OnNode {
    fn name(&self) -> String {
        "millrace with eBPF of a node".to_owned()
    }

    fn apply(&self, topology: &Topology, config: &Config) -> Result<()> {
        topology.pod.enter(see_shared)??;
        capture(topology, config)
    }
}

fn capture(topology: &Topology, config: &Config) -> Result<()> {
    let Config::Istio { flags, env } = config else {
        return enrol(topology, config.flags()).map(drop);
    };
    let words = ["istio-iptables"].iter().chain(flags);
    let words: Vec<String> = words.map(|word| (*word).to_owned()).collect();
    let flags = crate::istio::pairs(&words)?;
    let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let raw = istio::Raw::new(flags, env.collect());
    topology.pod.enter(|| -> Result<()> {
        let mut session = Session::open()?;
        let facts = facts::gather(session.net())?;
        let policy = istio::resolve(&raw, &facts)?.policy;
        let target = Target::current()?;
        let entry = target.entry(&policy, &facts.groups)?;
        let node = Node::open(Path::new(FOLDER))?;
        match node.enrol(&target, &entry)? {
            Enrolled::Added => {}
            other => bail!("the pod was new, but it was {other:?}"),
        }
        // As with every backend, what the proxy passes on comes from an address of the pod's own.
        if policy.ipv6.value {
            session.net().passthrough(millrace_core::plan::Change::Add)?;
        }
        Ok(())
    })?
}

/// Whether an error is that the configuration is refused, here or by the program.
pub fn is_refusal(error: &anyhow::Error) -> bool {
    let said = |cause: &(dyn std::error::Error + 'static)| {
        cause.to_string().contains("eBPF can't carry this configuration out")
    };
    error.chain().any(said)
}
