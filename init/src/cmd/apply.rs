//! `millrace apply`

use std::time::Instant;

use anyhow::Result;
use millrace_host::ebpf::Node;
use millrace_host::engine::{Drift, Request, Rules};
use millrace_host::exec;

use super::output::{print_outcome, warn};
use super::{config, ebpf, namespace};
use crate::cli::node::{Ebpf, Meant};
use crate::cli::own::Apply;
use crate::exit::Exit;

pub(crate) fn apply(apply: &Apply) -> Result<Exit> {
    let common = &apply.common;
    let (mut session, facts) = namespace::open(&common.place)?;
    let loaded = config::load(&apply.config, &facts, !common.dry_run)?;
    loaded.warnings.iter().for_each(|w| warn(w));
    let ebpf = apply.config.ebpf.as_ref();
    if let Some(Ebpf { folder, meant }) = ebpf {
        let does = match meant {
            Meant::Yes => true,
            Meant::Perhaps => ebpf::can(folder, &mut session, &facts, &loaded.policy)?,
            Meant::No => false,
        };
        if does {
            let asked = *meant == Meant::Yes;
            return ebpf::apply(folder, asked, common, &mut session, &facts, &loaded.policy);
        }
    }
    let ruleset = loaded.ruleset();
    let native = match &loaded.nft {
        Some(nft) if common.dry_run || common.json => Some(nft.ready_with_text(&facts.groups)?),
        Some(nft) => Some(nft.ready(&facts.groups)?),
        None => None,
    };
    let outcome = session.run(&Request {
        rules: Some(Rules { iptables: &ruleset, native: native.as_ref() }),
        wish: apply.config.wish,
        drift: Drift::Replace,
        everything: false,
        dry_run: common.dry_run,
        wait: common.wait,
        groups: &facts.groups,
        marks: config::marks(Some(&loaded.policy)),
        exec: exec::Options::default(),
    })?;
    // The rules capture the pod now.
    let node = ebpf.map_or(Ok(None), |ebpf| Node::open_if_loaded(&ebpf.folder));
    let left = match node {
        Ok(None) => false,
        Ok(Some(node)) => ebpf::leave(&node.until(Instant::now() + common.wait), common.dry_run)?,
        Err(error) => {
            warn(&format!("whether eBPF captures the pod as well can't be seen: {error}"));
            false
        }
    };
    let nothing = "no change: the rules are as wanted";
    print_outcome(&outcome, left, nothing, common)?;
    Ok(Exit::Ok)
}
