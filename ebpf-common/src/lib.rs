//! What the eBPF programs and those who load them have in common: the values of the maps, and the
//! one function that decides what becomes of a connection. Nothing here allocates or panics.
//!
//! ```text
//! hook (kernel)  -> Connection --+
//!                                v
//! PODS[netns cookie] -> Pod -> decide() -> Verdict: a port of the proxy, or let past; and why
//!                                ^
//! NETWORKS, PORTS, GROUPS, MORE -> Sets
//! ```
#![no_std]
#![expect(
    clippy::inline_always,
    reason = "programs for the kernel have few arguments in a call, and a small stack"
)]
#![expect(clippy::many_single_char_names, reason = "words of an address have no other names")]

mod address;
mod decide;
mod maps;
mod more;
mod sys_plain;
mod verdict;

pub use address::Address;
pub use decide::{Connection, Direction, Protocol, Sets, decide};
pub use maps::{
    CONNECTING, CONNECTING_TRIES, Client, Connecting, Event, Flow, FlowKey, GROUP_NAMED,
    GROUP_USER, GroupKey, LISTENER_PLACES, Lately, ListenerKey, NETWORK_DNS, NETWORK_EXCLUDED,
    NETWORK_INCLUDED, NETWORK_SOURCE, NetworkKey, Original, POD_ID_BITS, PORT_INBOUND,
    PORT_OUTBOUND_EXCLUDED, PORT_OUTBOUND_INCLUDED, PORTS_IN_CHUNK, Pod, PodFlags, PortChunk,
    PortKey, Settings,
};
pub use more::{FLOW_TCP, FLOW_UDP, MAX_FLOWS, More, MoreFlags, flow_key};
pub use sys_plain::Plain;
pub use verdict::{Class, Verdict};

/// How many proxy users, and how many proxy groups, a pod can have.
pub const MAX_IDENTITIES: usize = 8;

/// How many addresses of a pod are noted when it is enrolled, of both families.
pub const MAX_ADDRESSES: usize = 16;

/// How many counters a pod has: one for each [`Class`], and the last one for what it has in FLOWS.
pub const COUNTERS: usize = 32;

/// A pod can have one of so many of the node's places in FLOWS.
pub const SHARES: u32 = 16;

/// One of so many of the node's places in FLOWS is kept: of those each pod can have as many as any other,
/// whatever the others do.
pub const KEPT: u32 = 4;

/// Of the other places a pod can take another one while it has fewer than those that are free divided by
/// this: however many take all that they can, some are left.
pub const PART_OF_FREE: u64 = 8;

/// How many places in FLOWS a pod can have by now: a share of all of them, less where few of the `common`
/// ones are free, and never less than are its `own`.
///
/// ```
/// # use millrace_ebpf_common::most_places;
/// assert_eq!(most_places(65_536, 64, 786_432, 65_536), 65_536);
/// assert_eq!(most_places(65_536, 64, 786_432, 706_432), 10_000);
/// assert_eq!(most_places(65_536, 64, 786_432, 800_000), 64);
/// ```
#[inline(always)]
pub const fn most_places(share: u64, own: u64, common: u64, taken: u64) -> u64 {
    let part = common.saturating_sub(taken) / PART_OF_FREE;
    let most = if part < share { part } else { share };
    if most < own { own } else { most }
}

/// The value in the code of the `sk_lookup` program in whose place the loader writes the program's
/// number: each pod has one of its own, since the kernel gives it no way to ask for the pod.
pub const NUMBER_MARK: u64 = 0x6d69_6c6c_7261_6365;

/// Beside that number: the kernel tells at which interface a connection arrives.
pub const TELLS_INTERFACE: u64 = 1 << 32;
