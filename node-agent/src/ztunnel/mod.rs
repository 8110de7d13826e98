//! ZDS, by which ztunnel is told of the pods that it serves: a socket on which the agent is the server, and
//! over which it passes the pods' network namespaces. ztunnel opens its sockets in them.
//!
//! A ztunnel connects (`SOCK_SEQPACKET`, one message is one packet) and says hello. It is sent each pod
//! that is known, then that the snapshot is complete, then what changes. It acknowledges each message; one
//! that does not do so within five seconds, or sends anything else, is disconnected, connects again and
//! begins anew. What it had finished until then it need not do again: a pod that it serves already is
//! acknowledged at once.
//!
//! Where there are several, as when one replaces another, the newest is the one that said hello last:
//!
//! - A pod that comes is told to the newest alone, and is there once that has acknowledged it.
//! - A pod that goes is told to each that was told of it.
//! - An older one finishes its snapshot, and keeps what it has, whose connections it drains in its own
//!   time; both listen in the pods meanwhile (`SO_REUSEPORT`).
//! - Where the newest goes first, the one before it is told what it missed.
//!
//! istio-cni does the first three; an older ztunnel never hears there of pods that came meanwhile. Besides,
//! a connection is the newest there as soon as it is accepted, and stays in use after a late answer, which
//! is then taken for the answer to the next message (`cni/pkg/nodeagent/ztunnelserver.go`, commit
//! 86c9f01f).
//!
//! ```text
//! server (who connects, add, delete) ──► connection (hello, request, answer) ──► socket (packets)
//!                  └──────── state (what is to be told to whom) ────┘              messages
//! ```
//!
//! # Cilium
//!
//! Cilium runs Istio's ztunnel, so on the socket all is the same: its agent has its own copy of the
//! messages (`pkg/ztunnel/pb/zds_ztunnel.proto`), with the same numbers, on a socket of the same kind. So
//! there is no switch but the path: `/var/run/cilium/ztunnel.sock` where `ztunnel-zds-unix-addr` says
//! nothing else.
//!
//! What differs is how its agent behaves (`pkg/ztunnel/zds/server.go`), none of which a ztunnel depends on.
//! It never sends Keep and has no deadlines; an error in any answer ends the connection, also one that
//! ztunnel would get over; a new connection ends the one before it, so two never serve at once; and a
//! change is told once, to the connection that takes it first.
//!
//! Its ztunnel also has its certificates and the addresses of workloads from that agent, which are not to
//! be had here. So this serves Cilium's ztunnel only where something else gives it these.
//!
//! How sure that is: the messages were compared, the rest was read in Cilium's source in several versions
//! without a release's number, which differ in details. Nothing was tried with its images.

mod connection;
pub mod messages;
mod server;
mod socket;
mod state;

use std::io;
use std::path::PathBuf;

pub use server::Ztunnel;

use crate::folder::FolderError;

/// What ztunnel is told of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// `metadata.uid`, by which the pod is known from then on; not empty.
    pub uid: String,
    /// `metadata.name`
    pub name: String,
    /// `metadata.namespace`
    pub namespace: String,
    /// `spec.serviceAccountName`
    pub service_account: String,
}

/// The socket can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Its folder is not the agent's own.
    #[error("ztunnel's socket can't be made: {0}")]
    Folder(FolderError),
    /// It can't be made in its folder.
    #[error("ztunnel's socket {path} can't be made: {source}")]
    Socket {
        /// Where it was to be.
        path: PathBuf,
        /// What the system says; [`io::ErrorKind::AlreadyExists`] where something that is no socket is there.
        source: io::Error,
    },
}

/// A pod is not known to be served, or to be served no longer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAcknowledged {
    /// There is none to tell; the next one that connects is told.
    #[error("no ztunnel is connected")]
    NotConnected,
    /// ztunnel's error; it has the namespace, and tries again by itself every five seconds.
    #[error("ztunnel does not serve the pod yet: {0}")]
    Refused(String),
    /// No answer came in time; it is still to be told.
    #[error("ztunnel did not answer in time")]
    Late,
    /// The pod was deleted while its addition waited.
    #[error("the pod was deleted meanwhile")]
    Deleted,
    /// No ztunnel could serve this, and none is told.
    #[error("ztunnel can't be told of the pod: {0}")]
    Impossible(String),
}
