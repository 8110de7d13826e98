//! `millrace cleanup`

use std::time::Instant;

use anyhow::Result;
use millrace_core::plan::Wish;
use millrace_host::ebpf::Node;
use millrace_host::engine::{Drift, Request};
use millrace_host::exec;

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
    let outcome = session.run(&Request {
        rules: None,
        wish: Wish::Auto,
        drift: Drift::Replace,
        everything: false,
        dry_run: common.dry_run,
        wait: common.wait,
        groups: &facts.groups,
        marks: config::marks(None),
        exec,
    })?;
    let nothing = "nothing to do: nothing of Millrace or istio-iptables is here";
    print_outcome(&outcome, matches!(left, Ok(true)), nothing, common)?;
    left.map(|_| Exit::Ok)
}

/// Whether there was an eBPF capture to leave.
fn leave(ebpf: &Ebpf, common: &Common) -> Result<bool> {
    let node = Node::open_if_loaded(&ebpf.folder)?;
    let node = node.map(|node| node.until(Instant::now() + common.wait));
    node.map_or(Ok(false), |node| super::ebpf::leave(&node, common.dry_run))
}
