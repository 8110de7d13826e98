//! How a run behaves as a program: locks, two at once, dry runs, full disks, names, processes.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use millrace_tests::binary;
use millrace_tests::capture::{Variant, millrace};
use millrace_tests::netns::Namespace;
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Layout, Stack, Topology};

const REDIRECT: [&str; 8] = ["istio-iptables", "-u", "1337", "-i", "*", "-b", "*", "--dual-stack"];
const TPROXY: [&str; 10] = [
    "istio-iptables",
    "-i",
    "*",
    "-b",
    "*",
    "--dual-stack",
    "-m",
    "TPROXY",
    "--redirect-dns",
    "--capture-all-dns",
];

/// Run a command in a namespace; gives the exit code and all that was said.
fn run(namespace: &Namespace, command: &mut Command) -> Result<(i32, String)> {
    let output = namespace.output(command)?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&said).into_owned()))
}

fn look(namespace: &Namespace) -> Result<Snapshot> {
    Ok(Snapshot::take(namespace)?.without_counters())
}

/// Verify that the xtables lock is waited for, no longer than asked, and that its holder is named.
#[test]
fn the_xtables_lock_is_waited_for() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let before = look(&topology.pod)?;
    let hold = |seconds: &str| -> Result<std::process::Child> {
        let mut flock = Command::new("flock");
        flock.args(["--no-fork", "/run/xtables.lock", "sleep", seconds]);
        let child = topology.pod.enter(|| flock.stdin(Stdio::null()).spawn())??;
        let locks = || fs::read_to_string("/proc/locks").unwrap_or_default();
        while !locks().split_ascii_whitespace().any(|word| word == child.id().to_string()) {
            thread::sleep(Duration::from_millis(5));
        }
        Ok(child)
    };
    let legacy = [&REDIRECT[..], &["--force-iptables-binary", "legacy"]].concat();
    let mut holder = hold("60")?;
    let began = Instant::now();
    let (code, said) =
        run(&topology.pod, &mut millrace([&legacy[..], &["--wait", "1s"]].concat())?)?;
    assert_eq!(code, 4, "{said}");
    assert!((1..10).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let wanted = format!("process {} (sleep)", holder.id());
    assert!(said.contains(&wanted), "{wanted}: {said}");
    assert!(said.contains("give --wait more time"), "{said}");
    holder.kill()?;
    holder.wait()?;
    assert_eq!(before.differences(&look(&topology.pod)?), "");

    let mut holder = hold("1")?;
    let (code, said) = run(&topology.pod, &mut millrace(&legacy)?)?;
    assert_eq!(code, 0, "{said}");
    holder.wait()?;
    Ok(())
}

/// Verify that of two runs at once each is whole: what is there at the end is what one of them
/// wanted.
#[test]
fn two_runs_at_once_end_as_one_of_them() -> Result<()> {
    for variant in Variant::ALL {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let args = |flags: &[&'static str]| {
            [flags, &["--reconcile", "--force-iptables-binary", variant.as_str()]].concat()
        };
        let (first, second) = (args(&REDIRECT), args(&TPROXY));
        let mut ends = Vec::new();
        for one in [&first, &second] {
            let (code, said) = run(&topology.pod, &mut millrace(one)?)?;
            assert_eq!(code, 0, "{said}");
            ends.push(look(&topology.pod)?);
        }
        for _ in 0..10 {
            thread::scope(|scope| -> Result<()> {
                let start = |args| scope.spawn(|| run(&topology.pod, &mut millrace(args)?));
                for running in [start(first.clone()), start(second.clone())] {
                    let (code, said) = running.join().map_err(|_p| anyhow::anyhow!("panic"))??;
                    assert_eq!(code, 0, "{said}");
                }
                Ok(())
            })?;
            let now = look(&topology.pod)?;
            assert!(ends.contains(&now), "{}", ends[0].differences(&now));
        }
    }
    Ok(())
}

/// Verify that a dry run of every command touches nothing and needs neither privilege nor address
/// nor program.
#[test]
fn a_dry_run_needs_nothing_and_touches_nothing() -> Result<()> {
    let bare = Namespace::new()?;
    let captured = Topology::new(Stack::Dual, Layout::default())?;
    let (code, said) = run(&captured.pod, &mut millrace(REDIRECT)?)?;
    assert_eq!(code, 0, "{said}");
    let dry = |flags: &[&'static str]| [flags, &["--dry-run"]].concat();
    let cases = [
        (dry(&REDIRECT), "-A ISTIO_OUTPUT"),
        (dry(&TPROXY), "-A ISTIO_TPROXY"),
        (dry(&["istio-iptables", "--cleanup-only"]), ""),
        (dry(&["istio-iptables", "--force-apply", "-i", "*", "-b", "80"]), "-A ISTIO_INBOUND"),
        (dry(&["apply", "--ipv6", "on"]), "-A MILLRACE_OUTPUT"),
        (dry(&["cleanup"]), "what would be removed can't be seen"),
        (vec!["dump", "--from-config", "--mode", "tproxy"], "-A MILLRACE_TPROXY"),
    ];
    for namespace in [&bare, &captured.pod] {
        let before = look(namespace)?;
        for (args, wanted) in &cases {
            let plain = millrace(args)?;
            let mut command = Command::new("/usr/bin/setpriv");
            command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"]);
            command.arg("--bounding-set=-all").arg(plain.get_program()).args(args);
            command.env("PATH", "/nowhere");
            let (code, said) = run(namespace, &mut command)?;
            assert_eq!(code, 0, "{args:?}: {said}");
            assert!(said.contains(wanted), "{args:?}: {said}");
        }
        assert_eq!(before.differences(&look(namespace)?), "");
    }
    Ok(())
}

/// Verify that output which can't be written is an error, and that the rules are whole all the
/// same.
#[test]
fn a_full_disk_is_an_error() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    topology.pod.run("mount", &["-t", "tmpfs", "-o", "size=4k", "tmpfs", "/mnt"])?;
    topology.pod.run("dd", &["if=/dev/zero", "of=/mnt/fill", "bs=4k", "count=1", "status=none"])?;
    let mut command = millrace([&REDIRECT[..], &["--dry-run"]].concat())?;
    command.env("DRY_RUN_FILE_PATH", "/mnt/rules");
    let (code, said) = run(&topology.pod, &mut command)?;
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("DRY_RUN_FILE_PATH") && said.contains("No space left"), "{said}");

    for args in [&["apply"][..], &["cleanup"], &["status"], &["dump", "--from-config"]] {
        let words = format!("exec \"$0\" {} >/dev/full", args.join(" "));
        let program = binary::millrace()?;
        let mut command = Command::new("sh");
        command.arg("-c").arg(words).arg(&program);
        let (code, said) = run(&topology.pod, &mut command)?;
        assert_eq!(code, 1, "{args:?}: {said}");
        assert!(said.contains("standard output: No space left on device"), "{args:?}: {said}");
    }
    assert_eq!(run(&topology.pod, &mut millrace(["status"])?)?.0, 3, "the cleanup was whole");
    Ok(())
}

/// The number of programs that a command starts.
fn started(namespace: &Namespace, args: &[&str]) -> Result<usize> {
    let plain = millrace(args)?;
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-e", "trace=execve", "-e", "signal=none"]);
    command.arg(plain.get_program()).args(args);
    let (code, said) = run(namespace, &mut command)?;
    assert_eq!(code, 0, "{said}");
    let started = said.lines().filter(|l| l.contains("execve(") && l.trim_end().ends_with("= 0"));
    // One of them is millrace itself.
    started.count().checked_sub(1).context("strace saw nothing")
}

/// Verify how many programs an operation starts, at most.
#[test]
fn few_processes_are_started() -> Result<()> {
    for variant in Variant::ALL {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let force = ["--force-iptables-binary", variant.as_str(), "--reconcile"];
        for flags in [&REDIRECT[..], &TPROXY[..]] {
            let args = [flags, &force].concat();
            run(&topology.pod, &mut millrace(["cleanup"])?)?;
            assert!(started(&topology.pod, &args)? <= 4, "first apply of {args:?}");
            let again = started(&topology.pod, &args)?;
            assert!(again <= 2, "no-op of {args:?}: {again}");
        }
        assert!(started(&topology.pod, &["status"])? <= 2);
        assert!(started(&topology.pod, &["cleanup"])? <= 4);
        assert!(started(&topology.pod, &["cleanup"])? <= 2);
    }
    Ok(())
}

/// Verify that an image that has Millrace under another tool's name needs no other change.
#[test]
fn it_answers_to_the_names_of_istio() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut ends = Vec::new();
    for (name, words) in [("istio-iptables", &[][..]), ("pilot-agent", &["istio-iptables"][..])] {
        let link = folder.path().join(name);
        symlink(binary::millrace()?, &link)?;
        let namespace = Topology::new(Stack::V4, Layout::default())?;
        let mut command = Command::new(&link);
        command.args(words).args(&REDIRECT[1..]);
        let (code, said) = run(&namespace.pod, &mut command)?;
        assert_eq!(code, 0, "{said}");
        ends.push(look(&namespace.pod)?);
        let (code, said) = run(&namespace.pod, Command::new(&link).args(words).arg("--nothing"))?;
        assert_eq!(code, 255, "{said}");
    }
    assert_eq!(ends[0].chains, ends[1].chains);
    assert!(ends[0].chains.contains_key("IPv4 nft nat ISTIO_OUTPUT"), "{:?}", ends[0]);
    let (code, said) =
        run(&Namespace::new()?, Command::new(folder.path().join("pilot-agent")).arg("proxy"))?;
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("there is only the sub-command istio-iptables"), "{said}");
    Ok(())
}
