//! The namespace that a command works in: by process, and by pod.

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, millrace_in_pod};
use millrace_tests::process::Listeners;
use millrace_tests::topology::{Layout, Stack, Topology};

/// Verify that a process leads to its namespace, and that one that is not there is named.
#[test]
fn by_process() -> Result<()> {
    let topology = Topology::new(Stack::V4, Layout::default())?;
    millrace_in_pod(&topology, &["apply"], 0)?;
    let place = topology.pod.path();
    let inside = |listeners: &&Listeners| {
        let path = format!("/proc/{}/ns/net", listeners.pid());
        let (a, b) = (std::fs::metadata(path), std::fs::metadata(&place));
        matches!((a, b), (Ok(a), Ok(b)) if std::os::unix::fs::MetadataExt::ino(&a)
            == std::os::unix::fs::MetadataExt::ino(&b))
    };
    let pid = topology.listeners().iter().find(inside).context("no process in the pod")?.pid();
    let output = millrace(["status", "--pid", &pid.to_string()])?.output()?;
    ensure!(output.status.code() == Some(0), "{output:?}");
    let gone = millrace(["status", "--pid", "4194305"])?.output()?;
    let said = String::from_utf8_lossy(&gone.stderr);
    ensure!(gone.status.code() == Some(1) && said.contains("--pid 4194305"), "{said}");
    Ok(())
}
