//! The end and the start of containerd itself, as when its service is restarted: what it runs goes on.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Containerd;

/// A file whose being there says that an end of containerd is wanted.
const RESTARTS: &str = "restarts";
/// One that keeps it from starting again.
const STOPPED: &str = "stopped";
/// What the kernel calls its process; those of pods have longer names.
const NAME: &str = "containerd\n";

/// What process 1 of its namespace of processes does: that has to outlive it, and so do its pods.
pub(super) fn script(paths: &str, config: &Path, folder: &Path) -> String {
    let (config, folder) = (config.display(), folder.display());
    format!(
        "ulimit -n 20000; {paths}true || exit; \
         while :; do containerd --config {config} & wait $!; \
         [ -e {folder}/{RESTARTS} ] || exit; \
         while [ -e {folder}/{STOPPED} ]; do sleep 0.05; done; done"
    )
}

impl Containerd {
    /// End it by a signal, and wait until it has ended. What it runs goes on.
    pub fn stop(&self, signal: Signal) -> Result<()> {
        for name in [RESTARTS, STOPPED] {
            fs::write(self.folder.join(name), "").with_context(|| name.to_owned())?;
        }
        let pid = self.process()?.context("containerd has ended already")?;
        kill(pid, signal).context("ending containerd")?;
        for _ in 0..600 {
            if self.process()?.is_none() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("containerd does not end on {signal}:\n{}", self.log())
    }

    /// Start it again, and wait until it is ready.
    pub fn start_again(&mut self) -> Result<()> {
        fs::remove_file(self.folder.join(STOPPED)).context("it was not stopped")?;
        self.wait_until_ready()
    }

    /// Its process, as this namespace of processes numbers it.
    fn process(&self) -> Result<Option<Pid>> {
        let first = children(self.child.id())?;
        let shell = first.first().context("all of containerd has ended")?;
        let is_it = |pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == NAME)
        };
        let own = children(*shell)?.into_iter().find(is_it);
        own.map(|pid| Ok(Pid::from_raw(i32::try_from(pid)?))).transpose()
    }
}

fn children(pid: u32) -> Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    text.split_whitespace().map(|word| word.parse().context("a process")).collect()
}
