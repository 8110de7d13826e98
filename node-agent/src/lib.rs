//! The node agent of Millrace: it installs the CNI plugin on a node and keeps it installed, whatever
//! others do with the same files.
//!
//! ```text
//! folder ──► observe ──► plan (pure) ──► install, uninstall
//!                          │ list, settings, foreign
//! api ──► pods ──► server ◄── the plugin
//!          │ processes ──► audit ──► repair
//!          ├─► nri ◄── the container runtime
//!          └ namespaces ──► ambient ──► ztunnel ◄── ztunnels, which are told of pods
//! ```

pub mod ambient;
pub mod api;
pub mod audit;
mod binaries;
pub mod binary;
pub mod cli;
pub mod events;
pub mod flags;
pub mod folder;
mod follow;
pub mod foreign;
pub mod health;
pub mod install;
pub mod kept;
pub mod kubeconfig;
pub mod list;
pub mod metrics;
pub mod namespaces;
pub mod nri;
pub mod observe;
pub mod own_folder;
pub mod plan;
pub mod pods;
pub mod processes;
pub mod repair;
pub mod rivalry;
pub mod run;
pub mod server;
pub mod settings;
pub mod state;
pub mod status;
mod steps;
pub mod taint;
pub mod taken;
pub mod uninstall;
pub mod watch;
pub mod ztunnel;

use std::process::ExitCode;

/// Run the command line of `millrace-node`.
pub fn main() -> ExitCode {
    cli::main()
}
