//! A ztunnel as the agent sees it: it connects, says hello, acknowledges, holds the namespaces that it is
//! passed, and connects again; in the pods it listens where the real one does, if it is to, and answers
//! with the original destination. What the agent does against the protocol is noted, and ends the test.

mod client;
mod pod;
mod server;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_node::ztunnel::messages::{Request, WorkloadInfo};

pub use client::{Client, Heard};
use pod::Proxy;
pub use server::{Server, id, netns, place, workload};

/// How long something is waited for that has to happen at once.
const PATIENCE: Duration = Duration::from_mins(1);
/// How soon it is noticed that it is to end, and how soon it connects again.
const TURN: Duration = Duration::from_millis(10);

/// A ztunnel; it ends with the value, and its sockets with it.
#[derive(Debug)]
pub struct Ztunnel {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    /// The name that its listeners answer with; none where it has none.
    name: Option<String>,
    ends: AtomicBool,
    held: Mutex<Held>,
}

/// What it was told, and what it has.
#[derive(Debug, Default)]
pub struct Held {
    /// The pods that it serves, by their uid.
    pub pods: BTreeMap<String, Pod>,
    /// Whether it is connected and its snapshot is complete.
    pub is_ready: bool,
    /// What it was told, in order, over all its connections: `add UID`, `keep UID`, `del UID`, `snapshot`.
    pub heard: Vec<String>,
    /// How often it said hello.
    pub hellos: usize,
    /// What the agent did against the protocol.
    wrong: Vec<String>,
    /// Errors that it answers with to some pods.
    refused: BTreeMap<String, String>,
    named: BTreeSet<String>,
}

/// A pod that is served.
#[derive(Debug)]
pub struct Pod {
    /// Its names.
    pub info: WorkloadInfo,
    /// Its network namespace: device and inode.
    pub netns: (u64, u64),
    _netns: OwnedFd,
    _proxy: Option<Proxy>,
}

impl Ztunnel {
    /// One that listens nowhere, on the agent's socket; it may be there later.
    pub fn start(path: &Path) -> Self {
        Self::begin(path, None)
    }

    /// One that listens in the pods, on 15001, 15006 and 15008 in both families, and answers by this name.
    pub fn proxying(path: &Path, name: &str) -> Self {
        Self::begin(path, Some(name.to_owned()))
    }

    fn begin(path: &Path, name: Option<String>) -> Self {
        let path = path.to_owned();
        let (ends, held) = (AtomicBool::new(false), Mutex::default());
        let shared = Arc::new(Shared { path, name, ends, held });
        let own = Arc::clone(&shared);
        let thread = Some(thread::spawn(move || own.run()));
        Self { shared, thread }
    }

    /// What it was told, and what it has.
    pub fn held(&self) -> MutexGuard<'_, Held> {
        self.shared.held()
    }

    /// Answer with an error to a pod from now on; an empty one is none.
    pub fn refuse(&self, uid: &str, error: &str) {
        self.held().refused.insert(uid.to_owned(), error.to_owned());
    }

    /// Wait until something holds of it.
    pub fn until(&self, what: &str, holds: impl Fn(&Held) -> bool) -> Result<()> {
        let began = Instant::now();
        loop {
            let held = self.held();
            ensure!(held.wrong.is_empty(), "against the protocol: {:?}", held.wrong);
            if holds(&held) {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "never so: {what}\n{held:?}");
            drop(held);
            thread::sleep(TURN);
        }
    }

    /// Wait until its snapshot is complete.
    pub fn until_ready(&self) -> Result<()> {
        self.until("a ztunnel is ready", |held| held.is_ready)
    }
}

impl Drop for Ztunnel {
    fn drop(&mut self) {
        self.shared.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A test that panicked elsewhere says more.
            let _ended = thread.join();
        }
    }
}

impl Shared {
    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        while !self.ends.load(Ordering::Relaxed) {
            // The agent may not be there yet, or may go at any time.
            if let Ok(client) = Client::connect(&self.path)
                && client.hello().is_ok()
            {
                if let Err(error) = self.connection(&client) {
                    self.held().wrong.push(format!("{error:#}"));
                }
                self.held().is_ready = false;
            }
            thread::sleep(TURN);
        }
        self.held().pods.clear();
    }

    /// Until the connection ends, which is no error, or something comes that ztunnel would not take.
    fn connection(&self, client: &Client) -> Result<()> {
        let mut has_snapshot = false;
        {
            let mut held = self.held();
            held.hellos += 1;
            held.named.clear();
        }
        while !self.ends.load(Ordering::Relaxed) {
            let (request, fds) = match client.receive(TURN)? {
                Heard::Nothing => continue,
                Heard::End => break,
                Heard::Request(request, fds) => (request, fds),
            };
            let error = self.take(request, fds, &mut has_snapshot)?;
            // It may have ended the connection meanwhile.
            if client.ack(&error.unwrap_or_default()).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Gives the error that is answered.
    fn take(
        &self,
        request: Request,
        mut fds: Vec<OwnedFd>,
        has_snapshot: &mut bool,
    ) -> Result<Option<String>> {
        let netns = fds.pop();
        ensure!(fds.is_empty(), "{} file descriptors came at once", fds.len() + 1);
        let mut held = self.held();
        let (line, error) = match (request, netns) {
            (Request::Add(add), Some(netns)) => {
                let info = add.workload_info.context("a pod without its names")?;
                if !*has_snapshot {
                    held.named.insert(add.uid.clone());
                }
                let refused = held.refused.get(&add.uid).filter(|error| !error.is_empty()).cloned();
                let error = match refused {
                    Some(error) => Some(error),
                    None => {
                        self.serve(&mut held, &add.uid, info, netns).err().map(|e| format!("{e:#}"))
                    }
                };
                (format!("add {}", add.uid), error)
            }
            (Request::Keep(keep), None) => {
                ensure!(!*has_snapshot, "keep of {} after the snapshot", keep.uid);
                held.named.insert(keep.uid.clone());
                (format!("keep {}", keep.uid), None)
            }
            (Request::Del(del), None) => {
                if *has_snapshot {
                    held.pods.remove(&del.uid);
                } else {
                    held.named.remove(&del.uid);
                }
                (format!("del {}", del.uid), None)
            }
            (Request::SnapshotSent(_), None) => {
                ensure!(!*has_snapshot, "the snapshot was complete already");
                *has_snapshot = true;
                let named = std::mem::take(&mut held.named);
                held.pods.retain(|uid, _| named.contains(uid));
                held.is_ready = true;
                ("snapshot".to_owned(), None)
            }
            (request, None) => bail!("{request:?} without a file descriptor"),
            (request, Some(_)) => bail!("{request:?} with a file descriptor"),
        };
        held.heard.push(line);
        Ok(error)
    }

    /// A pod that is served already, in the same namespace, is left as it is.
    fn serve(&self, held: &mut Held, uid: &str, info: WorkloadInfo, netns: OwnedFd) -> Result<()> {
        let file = File::from(netns);
        let meta = file.metadata().context("a namespace")?;
        let id = (meta.dev(), meta.ino());
        if held.pods.get(uid).is_some_and(|pod| pod.netns == id) {
            return Ok(());
        }
        held.pods.remove(uid);
        let own = file.try_clone().context("a namespace")?;
        let proxy = self.name.as_ref().map(|name| Proxy::start(own.into(), name)).transpose()?;
        let pod = Pod { info, netns: id, _netns: file.into(), _proxy: proxy };
        held.pods.insert(uid.to_owned(), pod);
        Ok(())
    }
}
