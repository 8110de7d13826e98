//! One connection of a ztunnel: its hello, and then a request and its answer in turn. An answer is known by
//! its place alone, so after one that is late or wrong nothing is certain any more, and the connection
//! ends: ztunnel makes another, and is told everything anew.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use prost::Message as _;
use tokio::sync::watch;
use tokio::time::timeout;

use super::messages::{Response, Version, WorkloadResponse, ZdsHello};
use super::socket::{Packet, Packets};
use super::state::{Id, State, Step};

/// How long a client may take for its hello, and for each answer; istio-cni's agent waits as long.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("it was closed")]
    Closed,
    #[error("there was no {0} within {PATIENCE:?}")]
    Late(&'static str),
    #[error("a packet came that nothing was asked for")]
    Unasked,
    #[error("a packet is longer than any of the protocol")]
    TooLong,
    #[error("file descriptors came with a packet: only the agent sends any")]
    Descriptors,
    #[error("its {0} can't be read: {1}")]
    Unreadable(&'static str, prost::DecodeError),
    #[error("it speaks version {0} of ZDS, and 1 is spoken here")]
    Version(i32),
    #[error("what came was no acknowledgement")]
    NoAnswer,
    #[error("it answered with an error, and only a new snapshot tells what it has: {0}")]
    Refused(String),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A connection that said hello; it is one of the state's as long as this lives.
struct Entered<'a> {
    state: &'a watch::Sender<State>,
    id: Id,
}

impl<'a> Entered<'a> {
    fn new(state: &'a watch::Sender<State>) -> Self {
        let mut id = 0;
        state.send_modify(|state| id = state.enter());
        Self { state, id }
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        self.state.send_modify(|state| state.leave(self.id));
    }
}

/// Serve a client until it ends.
pub(super) async fn serve(socket: &Packets, state: &watch::Sender<State>) -> Ended {
    match hello(socket).await {
        Err(why) => why,
        Ok(()) => tell(socket, state).await.err().unwrap_or(Ended::Closed),
    }
}

async fn hello(socket: &Packets) -> Result<(), Ended> {
    let what = "hello";
    let bytes = within(what, async { whole(socket.receive().await?) }).await?;
    let hello = ZdsHello::decode(&*bytes).map_err(|why| Ended::Unreadable(what, why))?;
    let is_spoken = hello.version == i32::from(Version::V1);
    if is_spoken { Ok(()) } else { Err(Ended::Version(hello.version)) }
}

/// Tell it all that there is to tell, for ever.
async fn tell(socket: &Packets, state: &watch::Sender<State>) -> Result<(), Ended> {
    let entered = Entered::new(state);
    tracing::info!(connection = entered.id, "a ztunnel said hello");
    let mut changes = state.subscribe();
    loop {
        changes.mark_unchanged();
        let mut next = None;
        state.send_if_modified(|state| {
            next = state.next(entered.id);
            // That somebody is told is of no use to others before there is an answer.
            false
        });
        let Some(step) = next else {
            tokio::select! {
                packet = socket.receive() => {
                    whole(packet?)?;
                    return Err(Ended::Unasked);
                }
                changed = changes.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return Err(Ended::Closed),
                },
            }
        };
        // What came before the question can't be its answer.
        if let Some(packet) = socket.received()? {
            whole(packet)?;
            return Err(Ended::Unasked);
        }
        let error = within("acknowledgement", ask(socket, &step)).await?;
        if let Some(error) = &error {
            if !step.may_fail() {
                return Err(Ended::Refused(error.clone()));
            }
            tracing::warn!(connection = entered.id, "ztunnel does not serve a pod yet: {error}");
        }
        state.send_modify(|state| state.answered(entered.id, step, error));
    }
}

async fn within<T>(
    what: &'static str,
    done: impl Future<Output = Result<T, Ended>>,
) -> Result<T, Ended> {
    timeout(PATIENCE, done).await.unwrap_or(Err(Ended::Late(what)))
}

/// Gives the error that it was answered with.
async fn ask(socket: &Packets, step: &Step) -> Result<Option<String>, Ended> {
    let fd = step.netns.as_ref().map(|netns| netns.as_fd());
    socket.send(&step.request.encode_to_vec(), fd).await?;
    let bytes = whole(socket.receive().await?)?;
    let response = WorkloadResponse::decode(&*bytes);
    match response.map_err(|why| Ended::Unreadable("answer", why))?.payload {
        Some(Response::Ack(ack)) => Ok(Some(ack.error).filter(|error| !error.is_empty())),
        None => Err(Ended::NoAnswer),
    }
}

fn whole(packet: Packet) -> Result<Vec<u8>, Ended> {
    match packet {
        Packet::Whole(bytes) => Ok(bytes),
        Packet::Cut => Err(Ended::TooLong),
        Packet::WithDescriptors => Err(Ended::Descriptors),
        Packet::End => Err(Ended::Closed),
    }
}
