//! Signals in the middle of a run: a process that is stopped and goes on again and again, as a debugger
//! or a freezer of cgroups has it, does what it does otherwise.

use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, unattended};
use millrace_tests::ebpf::{Cgroup, FOLDER, mount_bpffs};
use millrace_tests::topology::{Layout, Stack, Topology};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often a run is stopped: it has to come to its end once nobody stops it any more.
const STOPS: usize = 60;

/// Shorter than what the verifier takes for one of the programs.
const BETWEEN: Duration = Duration::from_millis(4);

/// Run `millrace` in a pod, stop it again and again, and give what it printed.
fn stopped(topology: &Topology, args: &[&str], code: i32) -> Result<String> {
    let mut command = millrace(args)?;
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = topology.pod.enter(|| command.spawn())??;
    let pid = Pid::from_raw(child.id().cast_signed());
    for _ in 0..STOPS {
        if child.try_wait()?.is_some() {
            break;
        }
        kill(pid, Signal::SIGSTOP)?;
        kill(pid, Signal::SIGCONT)?;
        sleep(BETWEEN);
    }
    let output = child.wait_with_output()?;
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8(printed).context("it prints UTF-8")?;
    ensure!(output.status.code() == Some(code), "{args:?}: {}\n{printed}", output.status);
    Ok(printed)
}

/// Verify that the kernel takes the programs however often the verifier is interrupted: it says then that
/// the call has to be made again.
#[test]
fn programs_are_loaded() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let cgroup = Cgroup::path()?.display().to_string();
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    mount_bpffs(&topology.pod)?;
    let place = ["--bpffs", FOLDER];
    let load = ["node-bpf", "load", "--cgroup", &cgroup, "--max-pods", "64"];
    stopped(&topology, &[&load[..], &place].concat(), 0)?;
    let said = stopped(&topology, &[&load[..], &place].concat(), 0)?;
    ensure!(said.contains("10 replaced"), "{said}");
    let backend = ["--backend", "ebpf"];
    stopped(&topology, &[&["apply"], &backend[..], &place].concat(), 0)?;
    let said = stopped(&topology, &[&["status"], &backend[..], &place].concat(), 0)?;
    ensure!(said.contains("captured"), "{said}");
    let said = stopped(&topology, &[&["preflight"], &backend[..], &place].concat(), 0)?;
    ensure!(said.contains("ebpf"), "{said}");
    stopped(&topology, &[&["cleanup"], &place[..]].concat(), 0)?;
    stopped(&topology, &[&["node-bpf", "unload"], &place[..]].concat(), 0).map(drop)
}

/// Verify that rules are made, compared, tried and removed.
#[test]
fn rules_are_made() -> Result<()> {
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        let topology = unattended(backend, &[])?;
        stopped(&topology, &["cleanup"], 0)?;
        stopped(&topology, &["status"], 3)?;
        stopped(&topology, &["apply", "--backend", backend], 0)?;
        stopped(&topology, &["status"], 0)?;
        stopped(&topology, &["explain", "--from", "uid=1000", "--to", "10.71.0.10:80"], 0)?;
        stopped(&topology, &["verify", "--timeout", "10s"], 0)?;
    }
    Ok(())
}
