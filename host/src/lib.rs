//! Every effect of Millrace: namespaces, processes, netlink, files. What to do is decided in
//! `millrace-core`; here it is done.

pub mod capture;
pub mod conntrack;
#[cfg(feature = "cri")]
pub mod cri;
pub mod ebpf;
pub mod effect;
pub mod engine;
pub mod exec;
pub mod facts;
pub mod file;
pub mod link;
pub mod lock;
pub mod netlink;
pub mod netns;
pub mod nflog;
pub mod nft;
pub mod observe;
pub mod preflight;
mod privilege;
pub mod probe;
pub mod progress;
pub mod sandbox;
pub mod stop;
pub mod surroundings;
mod sys_netns;
mod sys_sandbox;
mod sys_xtables;
pub mod sysctl;
pub mod tools;
pub mod trace;
pub mod tracked;
pub mod verify;
pub mod xtables;

/// The heap of every program: musl's own asks the kernel for most blocks, and gives them back at once.
#[cfg(target_env = "musl")]
#[global_allocator]
static HEAP: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;
