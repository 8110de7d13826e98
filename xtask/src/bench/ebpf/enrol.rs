//! Capturing pods by one process, which knows their policy: the time from being in the pod's
//! namespace to its being captured.

use std::fs::File;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use millrace_core::preflight::Backend;
use millrace_host::ebpf::Target;
use nix::sched::{CloneFlags, setns};

use super::by::{By, DesiredEntry, enrol};
use super::node::BenchNode;
use crate::bench::many::{Rulesets, pod};
use crate::bench::pair::on_a_thread;

/// Capture so many new pods, one after the other; how long each took.
///
/// # Errors
/// When one can't be captured.
pub fn capture(by: By, count: usize, node: &BenchNode) -> Result<Vec<Duration>> {
    let pods: Vec<File> = (0..count).map(|_| pod()).collect::<Result<_>>()?;
    on_a_thread(|| {
        let mut each = Vec::new();
        let mut cookies = Vec::new();
        for pod in &pods {
            setns(pod, CloneFlags::CLONE_NEWNET).context("entering a namespace")?;
            each.push(match by {
                By::Ebpf => {
                    cookies.push(Target::current()?.cookie());
                    let wanted = DesiredEntry::here(&[])?;
                    timed(|| enrol(node, &wanted.entry))?
                }
                By::Nftables => {
                    let rules = Rulesets::here(&[])?;
                    timed(|| rules.capture(Backend::Nftables))?
                }
                By::Iptables => {
                    let rules = Rulesets::here(&[])?;
                    timed(|| rules.capture(Backend::IptablesNft))?
                }
                By::Nothing | By::Loaded => Duration::ZERO,
            });
        }
        for cookie in cookies {
            node.node.leave(cookie)?;
        }
        Ok(each)
    })
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed())
}
