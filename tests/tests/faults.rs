//! Things that go wrong on the way: the namespace is then as it was, and the message says why.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_host::lock::RunLock;
use millrace_tests::capture::{Variant, millrace, millrace_in_pod, ran, wrapped};
use millrace_tests::cases::{app, outside};
use millrace_tests::scenario::captured;
use millrace_tests::snapshot::Snapshot;
use millrace_tests::stage::Stage;
use millrace_tests::topology::Spot::{Pod, Service};
use millrace_tests::topology::{Layout, Stack, Topology};

const ISTIO: [&str; 9] =
    ["istio-iptables", "-u", "1337", "-i", "*", "-b", "*", "--redirect-dns", "--dual-stack"];
const TPROXY: [&str; 5] = ["apply", "--mode", "tproxy", "--dns", "all"];

fn pod() -> Result<Topology> {
    Topology::new(Stack::Dual, Layout { transparent: true, ..Layout::default() })
}

/// Only the chains whose counters are what they were. New connections alone count in nat, while
/// the kernel's own packets count elsewhere at any time; `ip6tables-nft-restore` 1.8.9 takes no
/// counters.
fn counted(mut snapshot: Snapshot) -> Snapshot {
    snapshot.chains.retain(|name, _| name.contains(" nat ") && !name.starts_with("IPv6 nft"));
    snapshot
}

/// Verify that a table that can't be written, whichever it is, puts back all the others, with
/// their counters, and that the program is named with what it said.
fn a_table_fails(variant: Variant) -> Result<()> {
    for old in [&[][..], &ISTIO] {
        for family in ["iptables", "ip6tables"] {
            for table in ["raw", "mangle", "nat"] {
                let topology = pod()?;
                if !old.is_empty() {
                    let choice = ["--force-iptables-binary", variant.as_str()];
                    millrace_in_pod(&topology, &[old, &choice].concat(), 0)?;
                    let attempts = [app().tcp(Service, 80), outside().tcp(Pod, 8080)];
                    assert_eq!(captured(&topology, &attempts)?.len(), 4);
                }
                let before = Snapshot::take(&topology.pod)?;
                let name = format!("{family}-{}-restore", variant.as_str());
                let stage = Stage::failing_at(&name, table)?;
                let args = [&TPROXY[..], &["--iptables", variant.as_str()]].concat();
                let (code, said) = ran(&topology.pod, &mut stage.millrace(args)?)?;
                let what = format!("{name}, {table}, from {old:?}: {said}");
                assert_eq!(code, Some(1), "{what}");
                let message = format!("{name}: the line is bad today");
                ensure!(said.contains(&message), "{what}");
                ensure!(said.contains("what was there before is there again"), "{what}");
                let after = Snapshot::take(&topology.pod)?;
                let (old, new) = (counted(before.clone()), counted(after.clone()));
                assert_eq!(old.differences(&new), "", "{what}");
                let bare = before.without_counters().differences(&after.without_counters());
                assert_eq!(bare, "", "{what}");
            }
        }
    }
    Ok(())
}

#[test]
fn a_table_fails_nft() -> Result<()> {
    a_table_fails(Variant::Nft)
}

#[test]
fn a_table_fails_legacy() -> Result<()> {
    a_table_fails(Variant::Legacy)
}

/// Verify that programs are not believed which say that they have written rules, and have not.
#[test]
fn programs_that_lie() -> Result<()> {
    for variant in Variant::ALL {
        for family in ["iptables", "ip6tables"] {
            let topology = pod()?;
            let before = Snapshot::take(&topology.pod)?;
            let stage = Stage::lying(&format!("{family}-{}-restore", variant.as_str()))?;
            let args = [&TPROXY[..], &["--iptables", variant.as_str()]].concat();
            let (code, said) = ran(&topology.pod, &mut stage.millrace(args)?)?;
            let what = format!("{family} {variant}: {said}");
            assert_eq!(code, Some(1), "{what}");
            ensure!(said.contains("the kernel does not have them"), "{what}");
            ensure!(said.contains("what was there before is there again"), "{what}");
            let after = Snapshot::take(&topology.pod)?;
            let differences = before.without_counters().differences(&after.without_counters());
            assert_eq!(differences, "", "{what}");
        }
    }
    Ok(())
}

/// Verify that with IPv6 switched off IPv4 is captured, and nothing is written for IPv6.
#[test]
fn ipv6_is_off() -> Result<()> {
    for variant in Variant::ALL {
        let istio = ["istio-iptables", "-u", "1337", "-i", "*", "-b", "*"];
        let istio = [&istio[..], &["--force-iptables-binary", variant.as_str()]].concat();
        for args in [istio, [&TPROXY[..], &["--iptables", variant.as_str()]].concat()] {
            let topology =
                Topology::new(Stack::V4, Layout { transparent: true, ..Layout::default() })?;
            for scope in ["all", "default", "lo", "eth0"] {
                let setting = format!("net.ipv6.conf.{scope}.disable_ipv6=1");
                topology.pod.run("sysctl", &["-qw", &setting])?;
            }
            let before = Snapshot::take(&topology.pod)?;
            millrace_in_pod(&topology, &args, 0)?;
            let attempts = [app().tcp(Service, 80), outside().tcp(Pod, 8080)];
            assert_eq!(captured(&topology, &attempts)?.len(), 2, "{args:?}");
            let after = Snapshot::take(&topology.pod)?;
            let v6: Vec<_> = after.chains.keys().filter(|c| c.starts_with("IPv6")).collect();
            assert_eq!(v6, Vec::<&String>::new(), "{args:?}");
            millrace_in_pod(&topology, &["cleanup"], 0)?;
            assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "", "{args:?}");
        }
    }
    Ok(())
}

/// Run millrace in a pod with its standard output on a device that is always full.
fn with_full_stdout(topology: &Topology, args: &[&str]) -> Result<(Option<i32>, String)> {
    let full = File::options().write(true).open("/dev/full").context("/dev/full")?;
    let mut command = millrace(args)?;
    command.stdin(Stdio::null()).stdout(full).stderr(Stdio::piped());
    let child = topology.pod.enter(|| command.spawn())??;
    let output = child.wait_with_output()?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Verify that output that can't be written is an error where it is all that was asked for, and a
/// warning where something was changed, which is done all the same.
#[test]
fn standard_output_is_full() -> Result<()> {
    let topology = pod()?;
    let nothing = Snapshot::take(&topology.pod)?;
    let (code, said) = with_full_stdout(&topology, &TPROXY)?;
    assert_eq!(code, Some(0), "{said}");
    ensure!(said.contains("standard output: No space left on device"), "{said}");
    millrace_in_pod(&topology, &["status"], 0)?;
    let again = millrace_in_pod(&topology, &TPROXY, 0)?;
    ensure!(again.contains("no change"), "{again}");
    let told = [(&["status"][..], 1), (&["dump"], 1), (&["schema"], 1), (&["--help"], 1)];
    for (args, wanted) in told.into_iter().chain([(&["cleanup"][..], 0)]) {
        let (code, said) = with_full_stdout(&topology, args)?;
        assert_eq!(code, Some(wanted), "{args:?}: {said}");
    }
    assert_eq!(nothing.differences(&Snapshot::take(&topology.pod)?), "");
    // What istio-iptables prints is its log, and a log that can't be written must not leave a pod
    // without capture.
    let (code, said) = with_full_stdout(&topology, &ISTIO)?;
    assert_eq!(code, Some(0), "{said}");
    millrace_in_pod(&topology, &["status"], 0)?;
    Ok(())
}

/// Verify that on a kernel without `nf_tables` iptables-legacy is used, and that who asks for
/// something else is told what is missing. The kernel's refusal is strace's.
#[test]
fn the_kernel_has_no_nf_tables() -> Result<()> {
    let strace = ["strace", "-qqq", "-o", "/dev/null", "-e", "trace=socket"];
    // The first sockets of a run are for routes and addresses, and its lock.
    let run = ["-e", "inject=socket:error=EPROTONOSUPPORT:when=3+"];
    let look = ["-e", "inject=socket:error=EPROTONOSUPPORT"];
    for (args, code, wanted) in [
        (&["apply"][..], 0, "using iptables-legacy: nf_tables can't be used here"),
        (&ISTIO, 0, "using iptables-legacy: nf_tables can't be used here"),
        (&["apply", "--backend", "nftables"], 1, "load the module nf_tables (CONFIG_NF_TABLES)"),
        (&["apply", "--backend", "iptables-nft"], 1, "load the module nf_tables"),
        (&["preflight"], 0, "nftables does not work\n    nf_tables in the kernel: load nf_tables"),
    ] {
        let topology = pod()?;
        let before = Snapshot::take(&topology.pod)?;
        let refuse: &[&str] = match args.first() {
            Some(&"preflight") => &look,
            _ => &run,
        };
        let wrapper = [&strace[..], refuse].concat();
        let (is, said) = ran(&topology.pod, &mut wrapped(&wrapper, &millrace(args)?))?;
        assert_eq!(is, Some(code), "{args:?}: {said}");
        ensure!(said.contains(wanted), "{args:?}: {said}");
        let after = Snapshot::take(&topology.pod)?;
        let captures = code == 0 && args != ["preflight"];
        assert_eq!(captures, before != after, "{args:?}: {said}");
    }
    Ok(())
}

/// Verify that a namespace whose name vanishes while a run waits in it is captured all the same,
/// and that a name which has gone before is an error.
#[test]
fn the_namespace_vanishes() -> Result<()> {
    let topology = pod()?;
    let folder = tempfile::tempdir()?;
    let name = folder.path().join("pod");
    symlink(topology.pod.path(), &name)?;
    let path = name.to_str().context("a path that is not UTF-8")?;
    let lock = topology.pod.enter(|| RunLock::take(Instant::now()))??.alone()?;
    let args = ["apply", "--netns", path, "--wait", "60s"];
    let run = millrace(args)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let wanted = fs::metadata(topology.pod.path())?.ino();
    let inside = format!("/proc/{}/ns/net", run.id());
    while fs::metadata(&inside)?.ino() != wanted {
        thread::sleep(Duration::from_millis(5));
    }
    fs::remove_file(&name)?;
    drop(lock);
    let output = run.wait_with_output()?;
    ensure!(output.status.success(), "{output:?}");
    millrace_in_pod(&topology, &["status"], 0)?;

    let said = millrace_in_pod(&topology, &args, 1)?;
    ensure!(said.contains(path) && said.contains("No such file or directory"), "{said}");
    Ok(())
}

/// Verify that a process without room for descriptors says so, changes nothing, and has no fault.
#[test]
fn no_descriptors_are_left() -> Result<()> {
    let topology = pod()?;
    let before = Snapshot::take(&topology.pod)?;
    for room in 4..16 {
        for args in [&TPROXY[..], &["status"], &["cleanup"]] {
            let inner = millrace(args)?;
            let limit = format!("--nofile={room}");
            let (code, said) = ran(&topology.pod, &mut wrapped(&["prlimit", &limit], &inner))?;
            let what = format!("{room}, {args:?}: {said}");
            ensure!(!said.contains("panicked"), "{what}");
            if code == Some(0) {
                millrace_in_pod(&topology, &["cleanup"], 0)?;
            } else {
                // C libraries have other words for it.
                let why = ["os error 24", "EMFILE"].iter().any(|why| said.contains(why));
                ensure!(why || code == Some(3), "{what}");
            }
        }
    }
    assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");
    Ok(())
}

/// Verify that a dry run's file that can't be written is an error that names it.
#[test]
fn the_dry_run_file_is_on_a_full_disk() -> Result<()> {
    let topology = pod()?;
    let before = Snapshot::take(&topology.pod)?;
    let full = "mkdir /run/full && mount -t tmpfs -o size=4k none /run/full && \
                head -c 4096 /dev/zero >/run/full/all";
    topology.pod.run("sh", &["-c", full])?;
    let dry_run = [&ISTIO[..], &["--dry-run"]].concat();
    for args in [dry_run.clone(), [&dry_run[..], &["--cleanup-only"]].concat()] {
        let mut command: Command = millrace(&args)?;
        command.env("DRY_RUN_FILE_PATH", "/run/full/rules");
        let (code, said) = ran(&topology.pod, &mut command)?;
        assert_eq!(code, Some(1), "{said}");
        ensure!(said.contains("DRY_RUN_FILE_PATH") && said.contains("/run/full/rules"), "{said}");
        ensure!(said.contains("No space left on device"), "{said}");
    }
    assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");
    Ok(())
}

/// Verify that a route that is refused takes back what was done before it, and that the remedy is
/// named.
#[test]
fn a_route_is_refused() -> Result<()> {
    for variant in Variant::ALL {
        let topology = pod()?;
        topology.pod.run("sysctl", &["-qw", "net.ipv6.conf.lo.disable_ipv6=1"])?;
        let before = Snapshot::take(&topology.pod)?;
        let args = [&TPROXY[..], &["--iptables", variant.as_str()]].concat();
        let said = millrace_in_pod(&topology, &args, 1)?;
        let route = "IPv6 route local default dev lo table 133 can't be added: EACCES";
        ensure!(said.contains(route), "{said}");
        ensure!(said.contains("IPv6 is switched off on lo: set the sysctl"), "{said}");
        ensure!(said.contains("what was there before is there again"), "{said}");
        assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");
    }
    Ok(())
}
