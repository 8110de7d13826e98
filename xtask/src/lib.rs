//! The tasks behind `cargo xtask`, one module per command, and the rules of the repository that
//! `cargo xtask lint` and the policy tests share.
#![forbid(unsafe_code)]

mod apt;
pub mod bench;
pub mod book;
pub mod build_ebpf;
pub mod deb;
pub mod dist;
pub mod elf;
pub mod image;
pub mod lint;
pub mod man;
pub mod policy;
pub mod repo;
pub mod sbom;
pub mod truth;
pub mod vm;
