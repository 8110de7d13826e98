//! The agent's side: the server of ZDS alone, on a thread of its own.

use std::fs::File;
use std::future::Future;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use millrace_node::ztunnel::{NotAcknowledged, Workload, Ztunnel as Agent};
use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// How long something is waited for that has to happen at once.
const PATIENCE: Duration = Duration::from_mins(1);

/// An agent that serves a socket on a thread of its own; it ends with the value.
#[derive(Debug)]
pub struct Server {
    /// What is told of pods.
    pub agent: Agent,
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// An agent that has not said yet that it knows all.
    pub fn start(path: &Path) -> Result<Self> {
        let path = path.to_owned();
        let (tell, told) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let thread = thread::spawn(move || {
            runtime.block_on(async {
                let agent = Agent::serve(&path).map_err(|error| anyhow!("{error}"));
                let _told = tell.send(agent.map(|agent| (Handle::current(), agent)));
                let _stopped = stopped.await;
            });
        });
        let (handle, agent) = told.recv()??;
        Ok(Self { handle, agent, stop: Some(stop), thread: Some(thread) })
    }

    /// One that knows all that there is to know.
    pub fn complete(path: &Path) -> Result<Self> {
        let server = Self::start(path)?;
        server.agent.snapshot_is_complete();
        Ok(server)
    }

    fn wait<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        let (tell, told) = mpsc::channel();
        let _task = self.handle.spawn(async move { drop(tell.send(future.await)) });
        Ok(told.recv()?)
    }

    /// Add a pod, by the names of [`workload`], and wait as long as the agent does.
    pub fn add(&self, uid: &str, netns: &File) -> Result<Result<(), NotAcknowledged>> {
        let (agent, workload, netns) = (self.agent.clone(), workload(uid), netns.try_clone()?);
        self.wait(async move { agent.add(workload, netns.into()).await })
    }

    /// Delete a pod, and wait as long as the agent does.
    pub fn delete(&self, uid: &str) -> Result<Result<(), NotAcknowledged>> {
        let (agent, uid) = (self.agent.clone(), uid.to_owned());
        self.wait(async move { agent.delete(&uid).await })
    }

    /// Wait until so many ztunnels are connected.
    pub fn until_connected(&self, count: usize) -> Result<()> {
        let began = Instant::now();
        while self.agent.connected() != count {
            let connected = self.agent.connected();
            ensure!(began.elapsed() < PATIENCE, "{connected} are connected, and not {count}");
            thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A test that panicked elsewhere says more.
            let _ended = thread.join();
        }
    }
}

/// What ztunnel is told of a pod of this id.
pub fn workload(uid: &str) -> Workload {
    Workload {
        uid: uid.to_owned(),
        name: format!("{uid}-name"),
        namespace: "shop".to_owned(),
        service_account: format!("{uid}-account"),
    }
}

/// A folder, and the path of a socket in one below it that isn't there yet.
pub fn place() -> Result<(TempDir, PathBuf)> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("ztunnel/ztunnel.sock");
    Ok((folder, path))
}

/// A network namespace without anything in it.
pub fn netns() -> Result<File> {
    let made = thread::spawn(|| -> Result<File> {
        unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
        File::open("/proc/thread-self/ns/net").context("a network namespace")
    });
    made.join().unwrap_or_else(|_| Err(anyhow!("a panic")))
}

/// What tells network namespaces apart: device and inode.
pub fn id(netns: &File) -> Result<(u64, u64)> {
    let meta = netns.metadata()?;
    Ok((meta.dev(), meta.ino()))
}
