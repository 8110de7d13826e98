//! `millrace explain` as a program: every source of rules gives the same answer.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::netns::Namespace;
use serde_json::Value;

const QUESTION: [&str; 4] = ["--from", "uid=1000", "--to", "10.9.9.9:80/tcp"];

fn explained(words: &[&str]) -> Result<Value> {
    let output = Command::new(binary::millrace()?)
        .args(["explain", "--output", "json"])
        .args(words)
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {error}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("{words:?}"))
}

fn is_captured(found: &Value) -> Result<()> {
    let fate = &found["fate"];
    ensure!(fate["port"] == 15001 && fate["original"] == "10.9.9.9:80", "{found:#}");
    ensure!(found["reply"]["reply"] == "arrives", "{found:#}");
    Ok(())
}

/// Verify a configuration, a command line of istio-iptables, and a pod's manifest.
#[test]
fn a_configuration_is_explained_without_privilege() -> Result<()> {
    is_captured(&explained(&QUESTION)?)?;
    let found = explained(&[&QUESTION[..], &["--exclude-outbound-ports", "80"]].concat())?;
    ensure!(found["outcome"]["outcome"] == "passed", "{found:#}");
    let by = &found["decidedBy"][1]["reason"]["source"];
    ensure!(by["kind"] == "flag" && by["name"] == "--exclude-outbound-ports", "{found:#}");
    let istio = ["--", "istio-iptables", "-u", "1337", "-i", "*"];
    is_captured(&explained(&[&QUESTION[..], &istio].concat())?)?;

    let mut manifest = tempfile::NamedTempFile::new()?;
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    \
                sidecar.istio.io/status: '{}'\n    \
                traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.9.0.0/16\nspec:\n  \
                containers: [{name: istio-proxy}, {name: app}]\n";
    std::io::Write::write_all(&mut manifest, text.as_bytes())?;
    let path = manifest.path().to_str().context("UTF-8")?;
    let found = explained(&[&QUESTION[..], &["--manifest", path]].concat())?;
    let chain = found["decidedBy"].as_array().context("rules")?;
    let reason = &chain.last().context("a rule")?["reason"]["source"];
    ensure!(reason["kind"] == "annotation", "{found:#}");
    Ok(())
}

/// Verify that live rules of either backend, and the same rules saved, give the same answer, with
/// reasons that were read back.
#[test]
fn live_and_saved_rules_are_explained() -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.ip("link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth0 up\n\
         link set eth1 up\naddr add 10.4.0.2/24 dev eth0\nroute add default via 10.4.0.1\n")?;
    let path = namespace.path();
    let path = path.to_str().context("UTF-8")?;
    let live = [&QUESTION[..], &["--netns", path]].concat();
    let millrace = binary::millrace()?;
    let millrace = millrace.to_str().context("UTF-8")?;
    namespace.run(millrace, &["apply", "--backend", "iptables-nft"])?;
    let found = explained(&live)?;
    is_captured(&found)?;
    ensure!(found["decidedBy"][0]["reason"]["purpose"].is_string(), "{found:#}");

    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rules");
    fs::write(&file, namespace.run("iptables-nft-save", &["-c"])?)?;
    let file = file.to_str().context("UTF-8")?;
    is_captured(&explained(&[&QUESTION[..], &["--rules", file]].concat())?)?;

    namespace.run(millrace, &["apply", "--backend", "nftables"])?;
    is_captured(&explained(&live)?)?;
    Ok(())
}

/// Verify that a rule which is not known is named, and makes the command fail.
#[test]
fn the_unknown_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rules");
    fs::write(
        &file,
        "*filter\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -m recent --update --name x -j DROP\nCOMMIT\n",
    )?;
    let output = Command::new(binary::millrace()?)
        .args(["explain", "--rules", file.to_str().context("UTF-8")?])
        .args(QUESTION)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "{:?}", output.status);
    ensure!(text.contains("=> can't be told: -m recent --update"), "{text}");
    Ok(())
}

/// Verify that two configurations, files and a namespace are compared by what they do.
#[test]
fn differences_are_told_by_traffic() -> Result<()> {
    let diff = |before: &str, after: &str| -> Result<(Option<i32>, String)> {
        let output = Command::new(binary::millrace()?).args(["diff", before, after]).output()?;
        ensure!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok((output.status.code(), String::from_utf8(output.stdout)?))
    };
    let (code, text) = diff("apply", "apply --exclude-outbound-ports 9092")?;
    ensure!(code == Some(1) && text.contains("tcp not 10.4.0.2,127.0.0.0/8 port 9092"), "{text}");
    ensure!(text.contains("redirected to port 15001 -> leaves by eth0"), "{text}");
    ensure!(
        text.contains("\n+ IPv4 nat MILLRACE_OUTPUT 1: -p tcp --dport 9092 -j RETURN"),
        "{text}"
    );

    let namespace = Namespace::new()?;
    namespace.ip("link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth0 up\n\
         link set eth1 up\naddr add 10.4.0.2/24 dev eth0\nroute add default via 10.4.0.1\n")?;
    let millrace = binary::millrace()?;
    namespace.run(
        millrace.to_str().context("UTF-8")?,
        &["apply", "--backend", "iptables-nft", "--ipv6", "on"],
    )?;
    let live = format!("netns:{}", namespace.path().display());
    let (code, text) = diff("apply --ipv6 on", &live)?;
    ensure!(code == Some(0) && text.contains("rules: the same"), "{text}");
    namespace.run("iptables-nft", &["-t", "nat", "-D", "OUTPUT", "1"])?;
    let (code, text) = diff("apply --ipv6 on", &live)?;
    ensure!(code == Some(1) && text.contains("-> leaves by eth0"), "{text}");

    let output = Command::new(binary::millrace()?).args(["diff", "apply", "/none"]).output()?;
    ensure!(output.status.code() == Some(2), "{:?}", output.status);
    Ok(())
}
