//! The namespace that a command works in: by process, and by pod.

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, millrace_in_pod, ran};
use millrace_tests::cni::{Containerd, Host, List, mesh};
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

/// Verify that a pod that containerd runs is found by its name, with and without its namespace,
/// and by its id; and that one that it does not run is named, with those that it does.
#[test]
fn by_pod() -> Result<()> {
    let host = Host::new()?;
    let list = List::bridge(&host, "1.0.0", 60);
    let containerd = Containerd::start(&host, &list)?;
    let sandbox = containerd.run_pod("by-name", &mesh(&[]))?;
    let endpoint = format!("unix://{}", containerd.socket().display());
    let run = |command: &str, pod: &str| {
        let words = [command, "--pod", pod, "--runtime-endpoint", &endpoint];
        ran(&host.namespace, &mut millrace(words)?)
    };
    for name in ["by-name", "shop/by-name", &sandbox.pod.id, &sandbox.pod.id[..13]] {
        let (code, said) = run("status", name)?;
        ensure!(code == Some(0) && said.starts_with("captured: IPv4 and IPv6"), "{name}: {said}");
    }
    let question = ["--to", "10.9.9.9:80", "--runtime-endpoint", &endpoint];
    let words = [&["explain", "--pod", "shop/by-name"], &question[..]].concat();
    let (code, said) = ran(&host.namespace, &mut millrace(words)?)?;
    let told =
        ["original destination 10.9.9.9:80", "captured outbound connections go to port 15001"];
    ensure!(code == Some(0) && told.iter().all(|part| said.contains(part)), "{said}");
    let words = ["diff", "istio-iptables -i *", "pod:by-name", "--runtime-endpoint", &endpoint];
    let (code, said) = ran(&host.namespace, &mut millrace(words)?)?;
    ensure!(code == Some(1) && said.contains("traffic:"), "{said}");
    let (code, said) = run("status", "other/by-name")?;
    let told = ["--pod \"other/by-name\"", "runs no pod other/by-name", "it runs shop/by-name"];
    ensure!(code == Some(1) && told.iter().all(|part| said.contains(part)), "{said}");
    let (code, said) = run("verify", "by-name")?;
    ensure!(code == Some(0) && said.contains(" as expected, 0 not, 0 not tried"), "{said}");
    let (code, said) = run("cleanup", "by-name")?;
    ensure!(code == Some(0), "{said}");
    assert_eq!(run("status", "by-name")?.0, Some(3));
    containerd.remove_pod(&sandbox.pod.id)
}
