//! `millrace apply`

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use millrace_host::capture::{self, Applied, By, Order, Pins};
use millrace_host::netns::is_of_the_machine;

use super::output::{print_outcome, warn};
use super::{config, ebpf, namespace};
use crate::cli::node::{Ebpf, Meant};
use crate::cli::own::{Apply, NetnsTarget};
use crate::exit::Exit;
use crate::log::Log;

/// How long eBPF's programs are waited for, however short the wait for rules is: to see what a pod has
/// takes a moment.
const LEAST: Duration = Duration::from_secs(1);

pub(crate) fn apply(apply: &Apply) -> Result<Exit> {
    let common = &apply.common;
    let (mut session, facts) = namespace::open(&common.place)?;
    let loaded = config::load(&apply.config, &facts, !common.dry_run)?;
    loaded.warnings.iter().for_each(|w| warn(w));
    if common.place == NetnsTarget::Here && is_of_the_machine() {
        warn(
            "none of --netns, --pid and --pod is given: this is about the traffic of the machine itself, not \
             of a pod",
        );
    }
    if !loaded.asks.is_empty() {
        bail!(
            "the command line behind -- sets only what is captured; namespace, dry run and \
             backend are flags of apply itself. Remove from it: {}",
            loaded.asks.join(", ")
        );
    }
    let ebpf = apply.config.ebpf.as_ref();
    let pins = ebpf.map(|Ebpf { folder, .. }| Pins { folder, expected: false });
    let by = match ebpf.map(|ebpf| ebpf.meant) {
        Some(Meant::Yes) => By::Ebpf,
        Some(Meant::Perhaps) => By::Any,
        Some(Meant::No) | None => By::Rules(apply.config.preference),
    };
    if let Some(passes) = facts.uncaptured_v6().filter(|_| !loaded.policy.ipv6.value) {
        Log::own().info(passes);
    }
    if let Some(absent) = facts.absent_v6(&loaded.policy.ipv6) {
        warn(&absent);
    }
    let desired = loaded.desired();
    let entered = namespace::entered(&common.place)?;
    let applied = capture::apply(
        &mut session,
        &Order {
            pins,
            entered: entered.as_ref(),
            dry_run: common.dry_run,
            text: common.dry_run || common.json,
            deadline: Instant::now() + common.wait.max(LEAST),
            ..Order::new(&desired, by, &facts.groups, common.wait)
        },
    )?;
    match applied {
        Applied { enrolled: Some((enrolled, cookie)), outcome, .. } => {
            ebpf::print_enrolled(enrolled, cookie, &outcome, by == By::Ebpf, common)?;
        }
        Applied { outcome, left, .. } => {
            let nothing = "no change: the rules are as desired";
            print_outcome(&outcome, left, nothing, common)?;
        }
    }
    Ok(Exit::Ok)
}
