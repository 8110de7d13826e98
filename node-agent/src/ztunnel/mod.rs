//! ZDS, by which ztunnel is told of the pods that it serves: a socket on which the agent is the server, and over
//! which it passes the pods' network namespaces. ztunnel opens its sockets in them.
//!
//! A ztunnel connects (`SOCK_SEQPACKET`, one message is one packet) and says hello. It is sent each pod that is
//! known, then that the snapshot is complete, then what changes. It acknowledges each message; one that does
//! not do so within five seconds, or sends anything else, is disconnected, connects again and begins anew. What
//! it had finished until then it need not do again: a pod that it serves already is acknowledged at once.
//!
//! Where there are several, as when one replaces another, the newest is the one that said hello last:
//!
//! - A pod that comes is told to the newest alone, and is there once that has acknowledged it.
//! - A pod that goes is told to each that was told of it.
//! - An older one finishes its snapshot, and keeps what it has, whose connections it drains in its own time; both
//!   listen in the pods meanwhile (`SO_REUSEPORT`).
//! - Where the newest goes first, the one before it is told what it missed.
//!
//! The first three are as in istio-cni; the last is not, where pods that came meanwhile are not told to the older
//! one. Nor is a connection the newest there only once it has said hello, and there it stays after a late answer.
//!
//! ```text
//! server (who connects, add, delete) ──► connection (hello, request, answer) ──► socket (packets)
//!                  └──────── state (what is to be told to whom) ────┘              messages
//! ```
//!
//! # Cilium
//!
//! Cilium runs Istio's ztunnel, so on the socket all is the same: its agent has its own copy of the messages
//! (`pkg/ztunnel/pb/zds_ztunnel.proto`), with the same numbers, on a socket of the same kind. So there is no switch
//! but the path, which is `/var/run/cilium/ztunnel.sock` by default (`ztunnel-zds-unix-addr`; from another version
//! on it is no setting). What differs is within its agent (`pkg/ztunnel/zds/server.go`): it never sends Keep, has no
//! deadline, takes any error in an answer as the end of a connection, has two connections at most of which it ends
//! the older one, and hands a change to whichever connection asks first. A ztunnel can't tell the difference, but
//! from Cilium it also has its certificates and the addresses of workloads, which are not to be had here.
//!
//! This was read in Cilium's source, at several versions without a release's number, and never tried with its
//! images: sure of the messages, less so of the path.

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
    #[error("{0}")]
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
