//! `millrace cleanup`

use std::path::Path;
use std::time::Instant;

use anyhow::{Result, bail};
use millrace_core::ebpf::beside_found;
use millrace_core::plan::Wish;
use millrace_host::ebpf::{DEFAULT_FOLDER, Node};
use millrace_host::engine::{Drift, Request, Rules};
use millrace_host::exec;
use millrace_host::observe::Look;

use super::ebpf::elsewhere;
use super::output::print_outcome;
use super::{config, namespace};
use crate::cli::node::Ebpf;
use crate::cli::own::{Cleanup, Common};
use crate::exit::Exit;

pub(crate) fn cleanup(cleanup: &Cleanup) -> Result<Exit> {
    let common = &cleanup.common;
    let (mut session, facts) = namespace::open(&common.place)?;
    // One way to capture that can't be looked at must not keep the other from being taken back.
    let left = cleanup.ebpf.as_ref().map_or(Ok(false), |ebpf| leave(ebpf, common));
    let exec =
        if common.dry_run { exec::Options::default() } else { namespace::as_owner(&common.place)? };
    // What belongs to a capture that goes on stays.
    let folder = cleanup.ebpf.as_ref().map_or(Path::new(DEFAULT_FOLDER), |ebpf| &ebpf.folder);
    let elsewhere = if matches!(left, Ok(true)) { None } else { elsewhere(folder) };
    let kept = if elsewhere.is_some() {
        Some(beside_found(&session.observe(&exec, Look::Chains)?))
    } else {
        None
    };
    let mut outcome = session.run(&Request {
        rules: kept.as_ref().map(|kept| Rules { iptables: kept, native: None }),
        wish: Wish::Auto,
        drift: Drift::Replace,
        everything: false,
        dry_run: common.dry_run,
        wait: common.wait,
        groups: &facts.groups,
        marks: config::marks(None),
        exec,
    })?;
    let nothing = if kept.is_some() {
        "nothing to do: no rules of Millrace or a mesh's tool are here"
    } else {
        "nothing to do: nothing of Millrace or a mesh's tool is here"
    };
    // By which backend no rules are written does not matter.
    outcome.choice = None;
    print_outcome(&outcome, matches!(left, Ok(true)), nothing, common)?;
    left?;
    match elsewhere {
        Some(why) => bail!("{why}; what belongs to that capture is left as it is"),
        None => Ok(Exit::Ok),
    }
}

/// Whether there was an eBPF capture to leave.
fn leave(ebpf: &Ebpf, common: &Common) -> Result<bool> {
    let node = Node::open_if_loaded(&ebpf.folder)?;
    let node = node.map(|node| node.until(Instant::now() + common.wait));
    node.map_or(Ok(false), |node| super::ebpf::leave(&node, common.dry_run))
}
