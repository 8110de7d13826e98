//! Two network namespaces with a pair of veth between them: a pod and somebody outside.

use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Stdio};
use std::thread;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sched::{CloneFlags, setns, unshare};

/// The pod's address.
pub const POD: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The other's address.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// Two namespaces, which live as long as this.
#[derive(Debug)]
pub struct Pair {
    pod: File,
    outside: File,
}

impl Pair {
    /// Make them.
    ///
    /// # Errors
    /// Without root, or without the program `ip`.
    pub fn new() -> Result<Self> {
        on_a_thread(|| {
            let outside = namespace()?;
            configure("link set lo up\n")?;
            let pod = namespace()?;
            let path = format!("/proc/{}/fd/{}", std::process::id(), outside.as_raw_fd());
            configure(&format!(
                "link set lo up\nlink add eth0 type veth peer name eth0 netns {path}\n\
                 addr add {POD}/24 dev eth0\nlink set eth0 up\n"
            ))?;
            setns(&outside, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
            configure(&format!("addr add {OUTSIDE}/24 dev eth0\nlink set eth0 up\n"))?;
            Ok(Self { pod, outside })
        })
    }

    /// Do something in the pod, on a thread of its own; programs that it starts are there as well.
    ///
    /// # Errors
    /// Those of the work.
    pub fn in_pod<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        within(&self.pod, work)
    }

    /// The same outside.
    ///
    /// # Errors
    /// Those of the work.
    pub fn outside<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        within(&self.outside, work)
    }
}

fn within<T: Send>(namespace: &File, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    on_a_thread(|| {
        setns(namespace, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
        work()
    })
}

/// A namespace belongs to a thread: this one ends with the work and affects no other.
///
/// # Errors
/// Those of the work.
pub fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    thread::scope(|scope| {
        let worker = scope.spawn(work);
        worker.join().unwrap_or_else(|_| bail!("a benchmark thread panicked"))
    })
}

/// The calling thread's new namespace.
pub fn namespace() -> Result<File> {
    unshare(CloneFlags::CLONE_NEWNET)
        .context("can't make a network namespace; run the benchmark as root")?;
    File::open("/proc/thread-self/ns/net").context("can't open the namespace through /proc")
}

/// Give the calling thread's namespace links and addresses, in the words of `ip -batch`.
pub fn configure(batch: &str) -> Result<()> {
    let mut ip = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("can't start `ip`; install iproute2")?;
    let stdin = ip.stdin.take();
    stdin.context("`ip` has no input")?.write_all(batch.as_bytes())?;
    let status = ip.wait()?;
    ensure!(status.success(), "`ip -batch` could not set the addresses: {status}");
    Ok(())
}
