//! Harness of the live suites: network namespaces, a pod with its neighbours, listeners and
//! clients that really run as a user, and the table of cases that says where packets must go.
//!
//! Everything here needs root; nothing is skipped when it is missing.
//!
//! ```text
//! cases (a configuration, its connections, their fates)
//!    |  scenario::verify
//!    v
//! Topology (pod, outside, side)  <-  Capture::apply (the millrace binary, or another backend)
//!    |  probe serve, probe dial, as the user they play
//!    v
//! what really answered, held against the fate
//! ```

pub mod binary;
pub mod capture;
pub mod cases;
pub mod chart;
pub mod cni;
pub mod dice;
pub mod dumps;
pub mod ebpf;
pub mod fates;
pub mod istio;
pub mod netns;
pub mod node;
pub mod node_stage;
pub mod nri;
pub mod others;
pub mod probe;
pub mod process;
pub mod recorded;
pub mod scenario;
pub mod snapshot;
pub mod stage;
pub mod sys_bpf;
pub mod sys_calls;
pub mod topology;
pub mod transition;
pub mod truth;
pub mod wire;
pub mod ztunnel;
