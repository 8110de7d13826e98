//! `millrace apply`

use std::time::Instant;

use anyhow::{Result, bail};
use millrace_core::ebpf::beside_found;
use millrace_core::plan::Wish;
use millrace_core::preflight::Backend;
use millrace_host::ebpf::Node;
use millrace_host::engine::{Drift, Request, Rules};
use millrace_host::exec;
use millrace_host::observe::Look;
use millrace_host::tracked::Tracked;

use super::output::{print_outcome, untracked, warn};
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
    let mut ruleset = loaded.ruleset();
    let mut native = match &loaded.nft {
        Some(nft) if common.dry_run || common.json => Some(nft.ready_with_text(&facts.groups)?),
        Some(nft) => Some(nft.ready(&facts.groups)?),
        None => None,
    };
    let mut node = ebpf.map_or(Ok(None), |ebpf| Node::open_if_loaded(&ebpf.folder));
    let enrolled = matches!(&node, Ok(Some(node)) if ebpf::is_enrolled(node)?);
    let leave = |node: Node| ebpf::leave(&node.until(Instant::now() + common.wait), common.dry_run);
    let mut exec = exec::Options::default();
    if !common.dry_run {
        namespace::check_ids(&common.place, &loaded.policy, &facts.groups)?;
    }
    if !common.dry_run && namespace::has_own_users(&common.place)? {
        let by_nftables = matches!(apply.config.wish, Wish::Backend(Backend::Nftables));
        if !enrolled {
            // What a run that died left can't be reached from among the pod's users.
            if let Ok(there) = &mut node
                && let Some(node) = there.take()
            {
                leave(node)?;
            }
            exec = namespace::as_owner(&common.place)?;
        } else if !by_nftables {
            bail!(
                "the pod has users of its own and is captured by eBPF, which can't be left from among \
                 them: change to --backend nftables first"
            );
        }
    }
    let elsewhere = ebpf.filter(|_| !enrolled).and_then(|ebpf| ebpf::elsewhere(&ebpf.folder));
    if elsewhere.is_some() {
        // What belongs to a capture that goes on stays.
        let there = beside_found(&session.observe(&exec, Look::Chains)?).routing;
        let routings = native.as_mut().map(|native| &mut native.routing);
        for routing in routings.into_iter().chain([&mut ruleset.routing]) {
            routing.localhost_everywhere.clone_from(&there.localhost_everywhere);
        }
    }
    // What eBPF has captured is not seen by rules as it begins, and goes on as it was.
    let tracked = (enrolled && !common.dry_run).then(Tracked::begin);
    let _tracked = tracked.map(|tracked| tracked.map_err(|error| warn(&untracked(&error))));
    let outcome = session.run(&Request {
        rules: Some(Rules { iptables: &ruleset, native: native.as_ref() }),
        wish: apply.config.wish,
        drift: Drift::Replace,
        everything: false,
        dry_run: common.dry_run,
        wait: common.wait,
        groups: &facts.groups,
        marks: config::marks(Some(&loaded.policy)),
        exec,
    })?;
    // The rules capture the pod now.
    let left = match node {
        Ok(None) => false,
        Ok(Some(node)) => leave(node)?,
        Err(error) => {
            warn(&format!("whether eBPF captures the pod as well can't be seen: {error}"));
            false
        }
    };
    if let Some(why) = elsewhere.filter(|_| !left && !common.dry_run) {
        warn(&format!(
            "the rules capture the pod, and {why}, and have it leave with `millrace cleanup`"
        ));
    }
    let nothing = "no change: the rules are as wanted";
    print_outcome(&outcome, left, nothing, common)?;
    Ok(Exit::Ok)
}
