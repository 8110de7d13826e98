//! The benchmark measures what it says: run here with stand-ins for Millrace. Needs root.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

use nix::unistd::geteuid;
use serde_json::Value;
use xtask::repo;

/// Does what `millrace istio-iptables` and `millrace dump` are asked to do, with few rules and
/// too many processes.
const STAND_IN: &str = r#"#!/bin/sh
variant= excluded= families=iptables clean= dump=
while [ $# -gt 0 ]; do
    case $1 in
        dump) dump=yes ;;
        --force-iptables-binary) variant=$2; shift ;;
        -d) excluded=$2; shift ;;
        --dual-stack) families='iptables ip6tables' ;;
        --cleanup-only) clean=yes ;;
    esac
    shift
done
rules() {
    echo '# the rules'
    echo '* nat'
    if [ -z "$clean" ]; then
        echo '-N ISTIO_INBOUND'
        echo '-A PREROUTING -p tcp -j ISTIO_INBOUND'
        for port in $(echo "$excluded" | tr , ' '); do
            echo "-A ISTIO_INBOUND -p tcp --dport $port -j RETURN"
        done
    fi
    echo 'COMMIT'
}
if [ -n "$dump" ]; then
    rules
    exit
fi
for family in $families; do
    rules | "$family-$variant-restore" || exit
done
"#;

/// Passes over the test without root, except in CI, where nothing may be passed over.
fn can_run() -> bool {
    let root = geteuid().is_root();
    assert!(root || std::env::var_os("CI").is_none(), "the benchmark's test needs root");
    if !root {
        repo::say("skipped: making network namespaces needs root");
    }
    root
}

fn bench(binary: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["bench", "apply", "--runs", "1", "--variant", "nft", "--binary"])
        .arg(binary)
        .args(args)
        .output()
        .expect("xtask starts")
}

fn stand_in(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("millrace");
    fs::write(&path, STAND_IN).expect("the folder is ours");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("the file is ours");
    path
}

/// Verify that each operation of each kind of pod is measured for each contender.
#[test]
fn all_operations_are_measured() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = stand_in(folder.path());
    let output = bench(&path, &["--output", "json", "--against", path.to_str().unwrap()]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 4 * 2 * 4);
    for row in rows {
        assert!(row["wall_ms"]["median"].as_f64().unwrap() > 0.0, "{row}");
        assert!(row["cpu_ms"]["median"].as_f64().unwrap() > 0.0, "{row}");
        let families = if row["case"]["families"] == "dual" { 2 } else { 1 };
        // A pipe's two ends, and what counts the ports.
        let processes = row["processes"].as_u64().unwrap();
        match row["contender"].as_str().unwrap() {
            "floor" => assert_eq!(processes, families, "{row}"),
            "nothing" => assert_eq!(processes, 0, "{row}"),
            _ => assert!(processes > families, "{row}"),
        }
    }
}

/// Verify that a goal that is not reached is said, and fails only when asked to.
#[test]
fn a_missed_goal_is_said() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = stand_in(folder.path());
    let output = bench(&path, &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    assert!(text.contains("NOT reached: a no-op starts at most 2 processes"), "{text}");
    assert_eq!(bench(&path, &["--check"]).status.code(), Some(1));
}

/// Verify that a tool that does nothing is not taken for a fast one.
#[test]
fn a_tool_that_does_nothing_is_refused() {
    if !can_run() {
        return;
    }
    let output = bench(Path::new("/bin/true"), &[]);
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("left no rules"), "{stderr}");

    let folder = tempfile::tempdir().unwrap();
    let path = stand_in(folder.path());
    let output = bench(&path, &["--against", "/bin/true"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("reference left other rules than wanted"), "{stderr}");
}

/// Verify that connections, requests and pods are measured with each capture, and without.
#[test]
fn captures_are_measured_side_by_side() {
    if !can_run() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let plot = folder.path().join("plot.svg");
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["bench", "ebpf", "--quick", "--output", "json", "--plot"])
        .arg(&plot)
        .output()
        .expect("xtask starts");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = report["figures"].as_array().unwrap();
    for figure in figures {
        assert!(figure["median"].as_f64().unwrap() > 0.0, "{figure}");
    }
    let count = |by: &str| figures.iter().filter(|figure| figure["by"] == by).count();
    // Of connections 8 each for 0 and 10 exclusions, 6 of requests, 2 of pods.
    for by in ["eBPF", "nftables", "iptables-nft"] {
        assert_eq!(count(by), 2 * 8 + 6 + 2, "{by}");
    }
    for by in ["no capture", "eBPF, other pods"] {
        assert_eq!(count(by), 8 + 6, "{by}");
    }
    assert_eq!(report["goals"].as_array().unwrap().len(), 8);
    let svg = fs::read_to_string(plot).unwrap();
    assert!(svg.contains("Outbound, median") && svg.contains("iptables-nft"));
}
