//! From nothing to captured and back, beside rules of others.

use anyhow::Result;
use millrace_tests::capture::{Variant, millrace_in_pod};
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Layout, Stack, Topology};

/// Verify that a pod goes from not captured to captured and back, and that each step done twice
/// changes nothing the second time.
#[test]
fn a_pod_is_captured_and_let_go() -> Result<()> {
    for variant in Variant::ALL {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let before = Snapshot::take(&topology.pod)?;
        let run = |args: &[&str], code| millrace_in_pod(&topology, args, code);
        let apply = ["apply", "--iptables", variant.as_str(), "--mode", "tproxy", "--dns", "all"];
        run(&["status"], 3)?;
        run(&apply, 0)?;
        run(&["status"], 0)?;
        let captured = Snapshot::take(&topology.pod)?;
        let again = run(&apply, 0)?;
        assert!(again.contains("no change"), "{again}");
        assert_eq!(captured.differences(&Snapshot::take(&topology.pod)?), "");
        run(&["cleanup"], 0)?;
        run(&["status"], 3)?;
        assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");
        let again = run(&["cleanup"], 0)?;
        assert!(again.contains("nothing to do"), "{again}");
    }
    Ok(())
}
