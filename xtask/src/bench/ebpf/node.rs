//! A node of one cgroup, with a bpffs that nobody else sees: what else runs on the machine never
//! meets the programs, and nothing is left of them when the benchmark ends, however it ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use millrace_host::ebpf::{Node, OBJECT, Options, default_cgroup};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use crate::bench::pair::on_a_thread;

/// How long another run may take; there is none.
const WAIT: Duration = Duration::from_secs(30);

/// The cgroups of the benchmark: its own, and in it one for the threads that meet the programs.
#[derive(Debug)]
struct Cgroups {
    before: PathBuf,
    own: PathBuf,
    captured: PathBuf,
}

impl Cgroups {
    fn new() -> Result<Self> {
        let root = default_cgroup().context("no cgroup v2 is mounted")?;
        let text = fs::read_to_string("/proc/self/cgroup")?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"));
        let before = root.join(path.context("this process is in no cgroup v2")?);
        let own = root.join(format!("millrace-bench-{}", std::process::id()));
        let captured = own.join("captured");
        fs::create_dir(&own).with_context(|| format!("can't make the cgroup {}", own.display()))?;
        let cgroups = Self { before, own, captured };
        fs::write(cgroups.own.join("cgroup.procs"), std::process::id().to_string())?;
        fs::create_dir(&cgroups.captured)?;
        // Of a threaded cgroup single threads can be members.
        fs::write(cgroups.captured.join("cgroup.type"), "threaded")?;
        Ok(cgroups)
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        drop(fs::write(self.before.join("cgroup.procs"), std::process::id().to_string()));
        drop(fs::remove_dir(&self.captured));
        drop(fs::remove_dir(&self.own));
    }
}

/// The programs, loaded.
#[derive(Debug)]
pub struct BenchNode {
    cgroups: Cgroups,
    folder: PathBuf,
    /// As Millrace knows them.
    pub node: Node,
}

impl BenchNode {
    /// Do something with the programs loaded. The threads that it starts see them as well.
    ///
    /// # Errors
    /// When they can't be loaded, and those of the work.
    pub fn with<T: Send>(work: impl FnOnce(&Self) -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWNS).context("can't make a mount namespace; be root")?;
            let none = None::<&str>;
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(none, "/", none, private, none).context("mounts of its own")?;
            let scratch = tempfile::tempdir().context("can't make a scratch folder")?;
            mount(Some("bpf"), scratch.path(), Some("bpf"), MsFlags::empty(), none)
                .context("a bpffs")?;
            let result = Self::load(scratch.path()).and_then(|node| work(&node));
            nix::mount::umount(scratch.path()).context("the bpffs")?;
            result
        })
    }

    fn load(mount: &Path) -> Result<Self> {
        let folder = mount.join("millrace");
        let cgroups = Cgroups::new()?;
        let options = Options {
            object: OBJECT,
            cgroup: cgroups.captured.clone(),
            accelerate: false,
            max_pods: 1024,
            max_networks: 1 << 17,
            max_connections: 1 << 18,
            spares: 256,
        };
        let (node, _) = Node::load(&folder, &options, WAIT)?;
        Ok(Self { cgroups, folder, node })
    }

    /// Let the calling thread, and those that it starts, meet the programs.
    ///
    /// # Errors
    /// When it can't change its cgroup.
    pub fn enter(&self) -> Result<()> {
        // 0 is the thread that writes.
        fs::write(self.cgroups.captured.join("cgroup.threads"), "0").context("changing the cgroup")
    }
}

impl Drop for BenchNode {
    fn drop(&mut self) {
        // Also undone by the end of the mount namespace.
        drop(Node::unload(&self.folder, WAIT, true));
    }
}
