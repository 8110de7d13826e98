//! The traffic matrix with eBPF: every case, in pods with IPv4, IPv6 and both. The fates are those
//! of the rules; what this backend can't do it has to refuse.

use anyhow::{Result, ensure};
use millrace_host::ebpf::Options;
use millrace_tests::cases;
use millrace_tests::ebpf::{OnNode, Shared, is_refusal, options};
use millrace_tests::scenario::play;
use millrace_tests::topology::Stack;

/// Cases that are refused. The reasons are those of `core/src/ebpf/unsupported.rs`.
const REFUSED: [&str; 15] = [
    "packets of no connection dropped",
    "an excluded interface",
    "an excluded interface, TPROXY",
    "a rerouted interface",
    "a rerouted interface, some networks",
    "TPROXY",
    "TPROXY, some ports",
    "TPROXY, no ports",
    "TPROXY, another mark and table",
    "TPROXY with DNS",
    "TPROXY before the proxy listens",
    "TPROXY, some ports, before the proxy listens",
    "TPROXY to a listener that is not transparent",
    "own TPROXY before the proxy listens",
    "own TPROXY to a listener that is not transparent",
];

fn every_case(stack: Stack) -> Result<()> {
    // Each case has a pod, and what a pod leaves in the programs goes when there is need.
    let shared = Shared::load(&Options { max_pods: 256, ..options()? })?;
    let mut wrong = Vec::new();
    let mut refused = Vec::new();
    let played = |case| shared.enter(|| play(case, &OnNode, stack))?;
    for case in &cases::all() {
        match played(case) {
            Ok(()) => {}
            Err(error) if is_refusal(&error) => refused.push(case.name),
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    ensure!(refused == REFUSED, "refused were {refused:#?}");
    Ok(())
}

#[test]
fn every_case_in_a_pod_with_ipv4() -> Result<()> {
    every_case(Stack::V4)
}

#[test]
fn every_case_in_a_pod_with_ipv6() -> Result<()> {
    every_case(Stack::V6)
}

#[test]
fn every_case_in_a_pod_with_both() -> Result<()> {
    every_case(Stack::Dual)
}
