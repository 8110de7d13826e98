//! Capture by eBPF: programs for the whole node, which are attached once, and an entry in their
//! maps for each pod.
//!
//! ```text
//! <bpffs>/millrace/maps/*      PODS, NETWORKS, ...: what the programs look up
//! <bpffs>/millrace/links/*     one for each program at the cgroup
//! <bpffs>/millrace/pods/COOKIE a pod's link at its network namespace
//! <bpffs>/millrace/spares/*    programs for pods to come
//! ```
//!
//! The folder is root's alone: whoever could open it could lock it.
//!
//! A pod is captured from the moment its entry is in PODS, and no longer once it is gone. What is
//! made before the one and removed behind the other has no effect by itself, so that a run may die
//! anywhere; the next one, or [`Node::collect`], takes away what it left.

mod attached;
mod error;
mod features;
mod folder;
mod interrupted;
mod listener;
mod maps;
mod netlink;
mod node;
mod order;
mod pod;
mod preloaded;
mod program;
mod read;
mod sockets;
mod sys_bpf;
mod sys_sockets;
mod target;
mod trace;
mod whole;

pub use attached::Attached;
pub use error::EbpfError;
pub use features::{features, lacking, unprivileged};
pub use folder::{is_hidden, is_in_bpffs};
pub use millrace_ebpf_common::{Address, Class, Event};
pub use node::{Loaded, Node, Options, State, default_cgroup};
pub use order::usual_cgroup;
pub use pod::{Enrolled, EnrolledPod, Sizes};
pub use program::{OBJECT, SOURCES};
pub use sockets::{connections, peer};
pub use target::Target;
pub use trace::Reports;
pub use whole::Faults;

/// Where bpffs usually is (`bpf(2)`), with a folder of our own.
pub const DEFAULT_FOLDER: &str = "/sys/fs/bpf/millrace";
