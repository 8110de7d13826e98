//! The server: who connects, what is known of pods, and whether it was acknowledged.

use std::collections::VecDeque;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use millrace_host::netns::NetnsRef;
use prost::Message as _;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::connection::{self, Ended};
use super::messages::{AddWorkload, LONGEST, Request, WorkloadRequest};
use super::socket::{PacketListener, Packets};
use super::state::{self, State};
use super::{NotAcknowledged, ServeError, Workload};
use crate::own_folder::open_own;

/// How many connections there are at once: of more, the oldest is ended. A node has one ztunnel, and two
/// while one replaces the other.
const AT_ONCE: usize = 8;
/// Between two connections: one that comes again and again costs no more than this allows.
const PAUSE: Duration = Duration::from_millis(50);
/// How long [`Ztunnel::add`] and [`Ztunnel::delete`] wait. A newer ztunnel may be silent as long as a
/// connection lasts, and the one before it be told then; each has [`connection::PATIENCE`].
const WAIT: Duration = Duration::from_secs(15);

/// The server of ZDS. A clone is the same server, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct Ztunnel {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    state: Arc<watch::Sender<State>>,
    accepting: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Connections end with the task that accepted them.
        self.accepting.abort();
    }
}

impl Ztunnel {
    /// Listen at this path, `/var/run/ztunnel/ztunnel.sock` for Istio's ztunnel, for root alone (mode
    /// 0600), in a folder of the agent's own, which is made where it is missing. A socket of an earlier
    /// agent is replaced.
    ///
    /// # Errors
    /// When the folder can't be the agent's own, or the socket can't be made: also where something that is no
    /// socket is there.
    ///
    /// # Panics
    /// Outside of a tokio runtime, or in one without I/O or time.
    pub fn serve(path: &Path) -> Result<Self, ServeError> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        open_own(folder).map_err(ServeError::Folder)?;
        let listener = PacketListener::bind(path)
            .map_err(|source| ServeError::Socket { path: path.to_owned(), source })?;
        let state = Arc::new(watch::Sender::new(State::default()));
        let task = tokio::spawn(accept(listener, Arc::clone(&state)));
        Ok(Self { inner: Arc::new(Inner { state, accepting: task.abort_handle() }) })
    }

    /// Every pod that is served by a ztunnel, or may be, was given to [`Self::add`] or [`Self::keep`]. To
    /// be called once: before it, no ztunnel is told that its snapshot is complete, so none gives up a pod
    /// that the agent has not come to yet, and none becomes ready.
    pub fn snapshot_is_complete(&self) {
        self.inner.state.send_modify(State::complete);
    }

    /// Have a pod served, and wait until the newest ztunnel has acknowledged it: then it listens in the
    /// pod. The pod is part of every later snapshot, whatever this gives and even if it is given up, until
    /// [`Self::delete`], and its namespace stays as long; but not where it is
    /// [`NotAcknowledged::Impossible`]. A pod may be added again, with another namespace or after an error.
    ///
    /// # Errors
    /// When it isn't acknowledged, or not in time.
    pub async fn add(&self, workload: Workload, netns: OwnedFd) -> Result<(), NotAcknowledged> {
        check_namespace(&netns)?;
        let (uid, info) = state::add(workload);
        let add = AddWorkload { uid: uid.clone(), workload_info: Some(info.clone()) };
        check_size(add)?;
        let mut changes = self.inner.state.subscribe();
        let mut change = 0;
        self.inner.state.send_modify(|state| change = state.add(uid.clone(), info, netns));
        let done = async {
            loop {
                if let Some(result) = changes.borrow_and_update().added(&uid, change) {
                    return result;
                }
                if changes.changed().await.is_err() {
                    return Err(NotAcknowledged::NotConnected);
                }
            }
        };
        timeout(WAIT, done).await.unwrap_or(Err(NotAcknowledged::Late))
    }

    /// Say in snapshots that a pod is served already, where its network namespace is not known (yet): a
    /// ztunnel that serves it goes on, another can't begin. Of a pod that was added, nothing changes.
    pub fn keep(&self, uid: &str) {
        self.inner.state.send_modify(|state| state.keep(uid));
    }

    /// Have a pod served no longer, and wait until every ztunnel that was told of it has acknowledged that.
    /// It is forgotten at once, whatever this gives; one that is not known is no error.
    ///
    /// # Errors
    /// When it isn't acknowledged in time; such a connection is ended.
    pub async fn delete(&self, uid: &str) -> Result<(), NotAcknowledged> {
        let mut changes = self.inner.state.subscribe();
        self.inner.state.send_modify(|state| state.delete(uid));
        let gone = changes.wait_for(|state| state.is_gone(uid));
        match timeout(WAIT, gone).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(NotAcknowledged::NotConnected),
            Err(_) => Err(NotAcknowledged::Late),
        }
    }

    /// How many have said hello so far: it grows with each that connects, however soon another one has gone.
    pub fn hellos(&self) -> u64 {
        self.inner.state.borrow().hellos()
    }

    /// How many ztunnels have said hello and are still connected.
    pub fn connected(&self) -> usize {
        self.inner.state.borrow().connected()
    }
}

/// A namespace that is none makes ztunnel try again for ever; the agent's own would have the whole node
/// served as a pod.
fn check_namespace(netns: &OwnedFd) -> Result<(), NotAcknowledged> {
    let impossible = |why: String| NotAcknowledged::Impossible(why);
    let path = format!("/proc/self/fd/{}", netns.as_raw_fd());
    let netns = NetnsRef::at(path.into()).open().map_err(|why| impossible(why.to_string()))?;
    if netns.is_current() {
        return Err(impossible("its network namespace is the agent's own".to_owned()));
    }
    Ok(())
}

fn check_size(add: AddWorkload) -> Result<(), NotAcknowledged> {
    if add.uid.is_empty() {
        return Err(NotAcknowledged::Impossible("it has no uid".to_owned()));
    }
    let length = WorkloadRequest { payload: Some(Request::Add(add)) }.encoded_len();
    if length > LONGEST {
        let why = format!("its names take {length} bytes, and ztunnel reads {LONGEST}");
        return Err(NotAcknowledged::Impossible(why));
    }
    Ok(())
}

/// Accept connections for ever.
async fn accept(listener: PacketListener, state: Arc<watch::Sender<State>>) {
    let own = rustix::process::geteuid().as_raw();
    let mut tasks = JoinSet::new();
    let mut served: VecDeque<AbortHandle> = VecDeque::with_capacity(AT_ONCE);
    loop {
        match listener.accept().await {
            Ok((socket, peer)) if [0, own].contains(&peer.uid()) => {
                while tasks.try_join_next().is_some() {}
                served.retain(|task| !task.is_finished());
                if served.len() == AT_ONCE
                    && let Some(oldest) = served.pop_front()
                {
                    tracing::warn!(
                        "{AT_ONCE} ztunnels are connected: the oldest connection is ended"
                    );
                    oldest.abort();
                }
                let (state, pid) = (Arc::clone(&state), peer.pid());
                served.push_back(tasks.spawn(serve(socket, state, pid)));
            }
            Ok((_, peer)) => {
                let uid = peer.uid();
                tracing::warn!("user {uid} connected to ztunnel's socket, which is root's alone");
            }
            // No file descriptor is left, or the client went away.
            Err(error) => tracing::warn!("a ztunnel can't be accepted: {error}"),
        }
        sleep(PAUSE).await;
    }
}

async fn serve(socket: Packets, state: Arc<watch::Sender<State>>, pid: Option<i32>) {
    match connection::serve(&socket, &state).await {
        Ended::Closed => tracing::info!(pid, "a ztunnel disconnected"),
        why => tracing::warn!(pid, "the connection of a ztunnel is ended: {why}"),
    }
}
