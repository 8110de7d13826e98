//! The pure core of Millrace. Data flows one way and nothing here does input or output:
//!
//! ```text
//! flags, environment, file ──► dialect::*::Raw ──resolve(Raw, &HostFacts)──► policy::CapturePolicy
//!                                                                               │ capture
//!                                                                               ▼
//!                                                                        capture::Program
//!                                                                               │ capture::lower
//!                                                                               ▼
//!   iptables::render ◄──────────────────────────────── ruleset::Ruleset, nft::NftRuleset
//!        │ text                                                                 │
//!        ▼                                                                      ▼
//!   dump, dry run                 observed::Observed ──────────────────► plan::Plan (effects)
//! ```
#![forbid(unsafe_code)]

pub mod capture;
pub mod desired;
pub mod dialect;
pub mod ebpf;
pub mod facts;
pub mod finding;
pub mod ids;
pub mod infer;
pub mod iptables;
pub mod manifest;
mod neighbours;
pub mod nft;
pub mod object;
pub mod observed;
pub mod ownership;
pub mod plan;
pub mod pod;
pub mod policy;
pub mod preflight;
pub mod report;
pub mod ruleset;
pub mod sim;
pub mod source;
pub mod status;
pub mod trace;
pub mod value;
pub mod verify;
pub mod visible;
