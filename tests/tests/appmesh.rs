//! Millrace in place of App Mesh's init container: connections, really made, that end where they were measured to
//! end, by the commands that it prints, run by the real iptables, and by each of its backends.

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, ran};
use millrace_tests::recorded::{Proxy, Recorded, Recording};
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Family, Stack};
use millrace_tests::wire::Identity;

const VERDICTS: &str = include_str!("../../core/tests/appmesh/verdicts.txt");

/// App Mesh's proxy, as its injector has it.
const PROXY: Proxy = Proxy {
    identity: Identity { uid: 1337, gid: 1337 },
    ports: &[15000, 15001],
    dns: 0,
    passthrough_v6: false,
};

/// Run a command in the pod with a variable of the init container.
fn run(pod: &Recorded, words: &[&str], enabled: &str) -> Result<String> {
    let mut command = millrace(words)?;
    let variables = [("APPMESH_START_ENABLED", enabled), ("APPMESH_ENABLE_IPV6", "1")];
    let (code, said) = ran(&pod.topology.pod, command.envs(variables))?;
    ensure!(code == Some(0), "{words:?}: {code:?} {said}");
    Ok(said)
}

/// Verify that 17 connections end where they were measured to end, in both families, whoever writes the rules;
/// that a second run changes nothing, that the mesh is named, and that its own command removes all of it.
#[test]
fn connections() -> Result<()> {
    let recording = Recording::read(VERDICTS);
    let words = recording.words();
    for flags in [&["--dry-run"][..], &[], &["--native-nftables"]] {
        let pod = Recorded::new(Stack::Dual, PROXY)?;
        let before = Snapshot::take(&pod.topology.pod)?;
        let again = [words.as_slice(), flags].concat();
        let said = run(&pod, &again, "1")?;
        if flags == ["--dry-run"] {
            let script = said.replace("iptables -t", "iptables-nft -t");
            let script = script.replace("ip6tables -t", "ip6tables-nft -t");
            pod.topology.pod.run("sh", &["-e", "-c", &script])?;
        } else {
            let again = run(&pod, &again, "1")?;
            ensure!(again.contains("no change: the rules are as desired"), "{flags:?}: {again}");
        }
        let status = run(&pod, &["status"], "1")?;
        ensure!(status.contains("captured") && status.contains("AWS App Mesh"), "{status}");
        let made = recording.verify(&pod, &[Family::V4, Family::V6]);
        let made = made.with_context(|| format!("{flags:?}"))?;
        ensure!(made >= 17 + 15, "{flags:?}: {made} connections were made");
        run(&pod, &["appmesh"], "0")?;
        let (code, said) = ran(&pod.topology.pod, &mut millrace(["status"])?)?;
        ensure!(code == Some(3), "{flags:?}: {said}");
        let left = before.differences(&Snapshot::take(&pod.topology.pod)?);
        ensure!(flags == ["--dry-run"] || left.is_empty(), "{flags:?}: {left}");
    }
    Ok(())
}

/// Verify that the binaries of iptables-legacy write rules that are read back, and that a chain which older images
/// make, and nothing leads to, goes with them. What these do to policy routing is neither drift nor touched.
#[test]
fn rules_of_older_images() -> Result<()> {
    let pod = Recorded::new(Stack::V4, PROXY)?;
    let inside = &pod.topology.pod;
    let printed = run(&pod, &["appmesh", "--app-ports=8080", "--enable-ipv6=0", "--dry-run"], "1")?;
    inside.run("ip", &["rule", "add", "fwmark", "0x1e7700ce", "lookup", "100"])?;
    inside.run("ip", &["route", "add", "local", "default", "dev", "lo", "table", "100"])?;
    let before = Snapshot::take(inside)?;
    let script = printed.replace("iptables -t", "iptables-legacy -t");
    inside.run("sh", &["-e", "-c", &script])?;
    inside.run("iptables-legacy", &["-t", "mangle", "-N", "APPMESH_INGRESS"])?;
    let status = run(&pod, &["status"], "1")?;
    let older = "rules as an older release of AWS App Mesh wrote them";
    ensure!(status.contains("captured") && status.contains(older), "{status}");
    run(&pod, &["appmesh"], "0")?;
    let (code, said) = ran(inside, &mut millrace(["status"])?)?;
    ensure!(code == Some(3), "{said}");
    let left = before.differences(&Snapshot::take(inside)?);
    ensure!(left.is_empty(), "{left}");
    Ok(())
}
