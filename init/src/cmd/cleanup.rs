//! `millrace cleanup`

use anyhow::Result;
use millrace_core::plan::Wish;
use millrace_host::engine::{Drift, Request};
use millrace_host::exec;

use super::output::print_outcome;
use super::{config, namespace};
use crate::cli::own::Cleanup;
use crate::exit::Exit;

pub(crate) fn cleanup(cleanup: &Cleanup) -> Result<Exit> {
    let common = &cleanup.common;
    let (mut session, facts) = namespace::open(&common.place)?;
    if let Some(ebpf) = &cleanup.ebpf {
        super::ebpf::leave(ebpf, common.dry_run)?;
    }
    let outcome = session.run(&Request {
        rules: None,
        wish: Wish::Auto,
        drift: Drift::Replace,
        everything: false,
        dry_run: common.dry_run,
        wait: common.wait,
        groups: &facts.groups,
        marks: config::marks(None),
        exec: exec::Options::default(),
    })?;
    let nothing = "nothing to do: nothing of Millrace or istio-iptables is here";
    print_outcome(&outcome, nothing, common.json, common.dry_run)?;
    Ok(Exit::Ok)
}
