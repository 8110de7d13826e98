//! Without privilege: nothing is changed, the message says what to grant, and a dry run works.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::capture::{millrace, millrace_in_pod, ran, wrapped};
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Layout, Stack, Topology};

/// Nobody, and root without the one capability that counts.
const UNPRIVILEGED: [&[&str]; 2] = [
    &["/usr/bin/setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"],
    &["/usr/bin/setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"],
];

const ISTIO: [&str; 8] = ["istio-iptables", "-u", "1337", "-i", "*", "-b", "*", "--redirect-dns"];
const APPLY: [&str; 5] = ["apply", "--mode", "tproxy", "--dns", "all"];

/// A pod, captured in each way or not at all.
fn pods() -> Result<Vec<Topology>> {
    let mut pods = vec![Topology::new(Stack::Dual, Layout::default())?];
    for way in [
        ["--iptables", "nft"],
        ["--iptables", "legacy"],
        ["--backend", "iptables-nft"],
        ["--backend", "nftables"],
    ] {
        let pod = Topology::new(Stack::Dual, Layout::default())?;
        millrace_in_pod(&pod, &["apply", way[0], way[1]], 0)?;
        pods.push(pod);
    }
    Ok(pods)
}

/// Verify that each command ends with one error, which says what to grant, and changes nothing.
#[test]
fn a_capability_is_missing() -> Result<()> {
    for topology in pods()? {
        let before = Snapshot::take(&topology.pod)?;
        let force = [&ISTIO[..], &["--force-apply"]].concat();
        let clean = [&ISTIO[..], &["--cleanup-only"]].concat();
        for args in [&ISTIO[..], &force, &clean, &APPLY, &["cleanup"], &["status"], &["dump"]] {
            for without in UNPRIVILEGED {
                let mut command = wrapped(without, &millrace(args)?);
                let (code, said) = ran(&topology.pod, &mut command)?;
                let what = format!("{args:?} with {without:?}: {said}");
                assert_eq!(code, Some(1), "{what}");
                ensure!(said.contains("NET_ADMIN"), "{what}");
                assert_eq!(said.matches("EPERM").count(), 1, "{what}");
                let errors =
                    said.lines().filter(|l| l.starts_with("Error:") || l.contains("\terror\t"));
                assert_eq!(errors.count(), 1, "{what}");
            }
        }
        assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");
    }
    Ok(())
}

/// Verify that a dry run needs no privilege, starts no process, and changes nothing.
#[test]
fn a_dry_run_needs_nothing() -> Result<()> {
    let clean = [&ISTIO[..], &["--cleanup-only"]].concat();
    let restores = ["Running iptables restore with: iptables-restore", "-A ISTIO_OUTPUT -j"];
    let unseen = "the existing rules can't be read";
    let rules = [
        unseen,
        "would do: nftables transaction of millrace",
        "    add rule inet millrace nat-output counter jump nat-outbound",
    ];
    let routing = ["would do: add IPv4 rule priority"];
    for topology in pods()? {
        let before = Snapshot::take(&topology.pod)?;
        for (args, wanted) in [
            (&ISTIO[..], &restores[..]),
            (&clean, &[unseen]),
            (&APPLY, &rules),
            (&APPLY, &routing),
            (&["cleanup"], &[unseen, "what would be removed can't be seen"]),
        ] {
            let folder = tempfile::tempdir().context("a trace")?;
            let trace = folder.path().join("trace");
            let path = trace.to_str().context("a path that is not UTF-8")?;
            let mut inner = millrace([args, &["--dry-run"]].concat())?;
            inner.env("PATH", "");
            let inner = wrapped(UNPRIVILEGED[0], &inner);
            let strace = [
                "/usr/bin/strace",
                "-f",
                "-qq",
                "-e",
                "trace=execve,fork,vfork,clone,clone3",
                "-o",
            ];
            let mut command = wrapped(&[&strace[..], &[path]].concat(), &inner);
            let (code, said) = ran(&topology.pod, &mut command)?;
            let what = format!("{args:?}: {said}");
            assert_eq!(code, Some(0), "{what}");
            for text in wanted {
                ensure!(said.contains(text), "{text:?} is not in {what}");
            }
            let trace = fs::read_to_string(&trace).context("a trace")?;
            let starts = format!("execve(\"{}\"", binary::millrace()?.display());
            let own = trace.lines().position(|line| line.contains(&starts));
            let own = own.with_context(|| format!("millrace was not run in\n{trace}"))?;
            assert_eq!(trace.lines().count(), own + 1, "{what}\n{trace}");
        }
        assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");
    }
    Ok(())
}

/// Verify that a dry run with privilege, which looks at what is there, changes nothing either.
#[test]
fn a_dry_run_changes_nothing() -> Result<()> {
    for topology in pods()? {
        let before = Snapshot::take(&topology.pod)?;
        let clean = [&ISTIO[..], &["--cleanup-only"]].concat();
        for args in [&ISTIO[..], &clean, &APPLY, &["cleanup"]] {
            millrace_in_pod(&topology, &[args, &["--dry-run"]].concat(), 0)?;
            let after = Snapshot::take(&topology.pod)?;
            let [before, after] = [&before, &after].map(|s| s.clone().without_counters());
            assert_eq!(before.differences(&after), "", "{args:?}");
        }
    }
    Ok(())
}
