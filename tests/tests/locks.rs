//! Locks that others hold, and two runs at once.

use std::io::{BufRead as _, BufReader};
use std::panic::resume_unwind;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_host::lock::RunLock;
use millrace_tests::capture::{Variant, millrace, millrace_in_pod, ran};
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Layout, Stack, Topology};

const FIRST: [&str; 5] = ["apply", "--mode", "tproxy", "--dns", "all"];
const SECOND: [&str; 5] = ["apply", "--outbound-port", "15101", "--inbound-port", "15106"];
const ISTIO: [&str; 7] = ["istio-iptables", "-u", "1337", "-i", "*", "-b", "*"];

/// A process that holds the xtables lock of a pod; it ends with the value.
struct Holder(Child);

impl Holder {
    /// Gives it once it holds the lock.
    fn start(topology: &Topology, seconds: &str) -> Result<Self> {
        let mut command = Command::new("flock");
        command.args(["--no-fork", "/run/xtables.lock", "sleep", seconds]);
        let holder = Self(topology.pod.enter(|| command.spawn())??);
        for _ in 0..500 {
            let mut attempt = Command::new("flock");
            attempt.args(["--nonblock", "/run/xtables.lock", "true"]);
            if !topology.pod.output(&mut attempt)?.status.success() {
                return Ok(holder);
            }
            thread::sleep(Duration::from_millis(10));
        }
        bail!("the lock was never taken")
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // One that has ended already can't be killed, and that is well.
        let _killed = self.0.kill();
        let _status = self.0.wait();
    }
}

fn legacy(args: &[&'static str]) -> Vec<&'static str> {
    let flag = if args[0] == "apply" { "--iptables" } else { "--force-iptables-binary" };
    [args, &[flag, "legacy"]].concat()
}

/// Verify that a lock that stays held ends the run in time, with the holder's name and with
/// nothing changed; and that so does a time too short for iptables to count.
#[test]
fn the_xtables_lock_is_held() -> Result<()> {
    for (args, wait) in [(&FIRST[..], "1s"), (&ISTIO[..], "1s"), (&FIRST[..], "10ms")] {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let before = Snapshot::take(&topology.pod)?;
        let holder = Holder::start(&topology, "60")?;
        let began = Instant::now();
        let said = millrace_in_pod(&topology, &[legacy(args), vec!["--wait", wait]].concat(), 4)?;
        ensure!(began.elapsed() < Duration::from_secs(20), "{:?}: {said}", began.elapsed());
        let name = format!("process {} (sleep) holds the lock", holder.0.id());
        ensure!(said.contains(&name) && said.contains("/run/xtables.lock"), "{said}");
        drop(holder);
        assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "", "{args:?}");
    }
    Ok(())
}

/// Verify that a lock that is released in time is only waited for, and that iptables-nft, which
/// has no lock, does not wait.
#[test]
fn the_xtables_lock_is_released() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let holder = Holder::start(&topology, "2")?;
    let began = Instant::now();
    millrace_in_pod(&topology, &[legacy(&FIRST), vec!["--wait", "50s"]].concat(), 0)?;
    ensure!(began.elapsed() > Duration::from_secs(1), "{:?}", began.elapsed());
    drop(holder);
    millrace_in_pod(&topology, &["status"], 0)?;
    millrace_in_pod(&topology, &["cleanup"], 0)?;

    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let _holder = Holder::start(&topology, "60")?;
    let nft = [&FIRST[..], &["--iptables", "nft", "--wait", "1s"]].concat();
    millrace_in_pod(&topology, &nft, 0)?;
    Ok(())
}

/// Verify that a run waits for another in the same namespace, and names it when it takes too long.
#[test]
fn another_run_is_going_on() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let before = Snapshot::take(&topology.pod)?;
    let run = topology.pod.enter(|| RunLock::take(Instant::now()))??.alone()?;
    for args in [&FIRST[..], &ISTIO, &["cleanup"]] {
        let said = millrace_in_pod(&topology, &[args, &["--wait", "300ms"]].concat(), 4)?;
        ensure!(said.contains(&format!("process {} (", std::process::id())), "{said}");
    }
    assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");
    // Looking needs no lock.
    millrace_in_pod(&topology, &["status"], 3)?;
    millrace_in_pod(&topology, &[&FIRST[..], &["--dry-run"]].concat(), 0)?;
    drop(run);
    millrace_in_pod(&topology, &[&FIRST[..], &["--wait", "300ms"]].concat(), 0)?;
    Ok(())
}

/// Binds everything that a run's lock was or is, as far as it may, and stays.
const SQUATTER: &str = r"
import socket, struct, sys, time
held = []
name = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
name.bind('\0millrace-run')
held.append(name)
for kind in (4 << 8 | 1, 3 << 8 | 2):
    s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
    s.bind((0, 0))
    command = struct.pack('=HHBBH', 8, 1, 1, 0, 0)
    header = struct.pack('=IHHII', 20 + len(command), kind, 5, 0, 0)
    s.send(header + struct.pack('!BBH', 0, 0, 28018) + command)
    held.append(s)
    print(struct.unpack('=i', s.recv(4096)[16:20])[0])
sys.stdout.flush()
time.sleep(600)
";

/// Verify that nobody without privilege can keep a pod's capture from being changed.
#[test]
fn nobody_without_privilege_holds_a_run_up() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let mut squatter = Command::new("setpriv");
    squatter.args(["--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all"]);
    squatter.args(["--bounding-set=-all", "--no-new-privs", "/usr/bin/python3", "-c", SQUATTER]);
    let squatter = squatter.stdout(Stdio::piped());
    let mut squatter = Holder(topology.pod.enter(|| squatter.spawn())??);
    let stdout = squatter.0.stdout.take().context("a pipe was asked for")?;
    let refused: Vec<String> = BufReader::new(stdout).lines().take(2).collect::<Result<_, _>>()?;
    assert_eq!(refused, ["-1", "-1"]);
    for args in [&FIRST[..], &ISTIO, &["cleanup"], &["apply"], &["cleanup"]] {
        let force = if args == ISTIO { &["--reconcile"][..] } else { &[] };
        millrace_in_pod(&topology, &[args, force, &["--wait", "2s"]].concat(), 0)?;
    }
    Ok(())
}

/// Verify that of two runs at once the namespace gets one's rules or the other's, never a mixture.
fn two_at_once(variant: Variant) -> Result<()> {
    let both = [&FIRST[..], &SECOND].map(|a| [a, &["--iptables", variant.as_str()]].concat());
    let mut wanted = Vec::new();
    for args in &both {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        millrace_in_pod(&topology, args, 0)?;
        wanted.push(Snapshot::take(&topology.pod)?.without_counters());
    }
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    for turn in 0..10 {
        let ends = thread::scope(|scope| {
            let start = |args: &Vec<&'static str>| {
                let command = millrace(args);
                let pod = &topology.pod;
                scope.spawn(move || ran(pod, &mut command?))
            };
            let join = |run: thread::ScopedJoinHandle<'_, _>| run.join();
            both.each_ref().map(start).map(join)
        });
        for end in ends {
            let (code, said) = end.unwrap_or_else(|panic| resume_unwind(panic))?;
            ensure!(matches!(code, Some(0 | 4)), "turn {turn}: {code:?}: {said}");
        }
        let is = Snapshot::take(&topology.pod)?.without_counters();
        let differences: Vec<_> = wanted.iter().map(|w| w.differences(&is)).collect();
        ensure!(
            differences.iter().any(String::is_empty),
            "turn {turn}: {}",
            differences.join("\n")
        );
        if turn % 2 == 1 {
            millrace_in_pod(&topology, &["cleanup"], 0)?;
        }
    }
    Ok(())
}

#[test]
fn two_at_once_nft() -> Result<()> {
    two_at_once(Variant::Nft)
}

#[test]
fn two_at_once_legacy() -> Result<()> {
    two_at_once(Variant::Legacy)
}
