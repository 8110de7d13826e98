//! `millrace lint` as a program: many documents, exit codes by severity, and both outputs.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use serde_json::Value;

const SOUND: &str = "kind: Pod\nmetadata: {name: sound}\nspec: {containers: [{name: app}]}\n";
const NOTED: &str =
    "kind: Job\nmetadata: {name: noted}\nspec: {template: {spec: {containers: [{name: app}]}}}\n";
const WARNED: &str = "kind: Deployment\nmetadata: {name: warned, namespace: shop}\nspec:\n  \
                      template:\n    metadata:\n      annotations:\n        \
                      traffic.sidecar.istio.io/excludeInboundPorts: \"8080\"\n    spec:\n      \
                      containers: [{name: app, ports: [{containerPort: 8080}]}]\n";
const WRONG: &str = "kind: Pod\nmetadata: {name: wrong}\nspec:\n  containers:\n  - {name: app, \
                     securityContext: {runAsUser: 1337}}\n";

/// Exit code, standard output and standard error with this as standard input.
fn lint(text: &str, args: &[&str]) -> Result<(Option<i32>, String, String)> {
    let mut command = Command::new(binary::millrace()?);
    command.arg("lint").args(args).arg("-");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    child.stdin.take().context("a pipe was asked for")?.write_all(text.as_bytes())?;
    let output = child.wait_with_output()?;
    let [out, err] =
        [output.stdout, output.stderr].map(|b| String::from_utf8_lossy(&b).into_owned());
    Ok((output.status.code(), out, err))
}

/// Verify that the exit code is that of the worst of all documents.
#[test]
fn the_worst_counts() -> Result<()> {
    for (documents, code) in [
        (&[SOUND][..], 0),
        (&[SOUND, NOTED], 0),
        (&[NOTED, WARNED, SOUND], 3),
        (&[WRONG, WARNED], 5),
    ] {
        let (found, out, err) = lint(&documents.join("---\n"), &[])?;
        ensure!(found == Some(code), "{found:?}, not {code}\n{out}{err}");
    }
    Ok(())
}

/// Verify that each finding is told with its reason and fix, under what it was found in.
#[test]
fn findings_are_told_with_reason_and_fix() -> Result<()> {
    let (_, out, _) = lint(&[SOUND, WARNED].join("---\n"), &[])?;
    ensure!(
        out.starts_with("-: Pod sound: nothing wrong was found\n-: Deployment shop/warned\n"),
        "{out}"
    );
    ensure!(
        out.contains("warning: annotation traffic.sidecar.istio.io/excludeInboundPorts: "),
        "{out}"
    );
    ensure!(out.contains("[excluded-port]\n      why: ") && out.contains("\n      fix: "), "{out}");
    let (_, out, _) = lint(&[SOUND, WRONG].join("---\n"), &["--output", "json"])?;
    let found: Value = serde_json::from_str(&out)?;
    ensure!(found["workloads"][0]["findings"] == Value::Array(Vec::new()), "{found:#}");
    let finding = &found["workloads"][1]["findings"][0];
    ensure!(finding["severity"] == "error" && finding["code"] == "runs-as-proxy", "{found:#}");
    ensure!(finding["at"] == "container app" && finding["why"].is_string(), "{found:#}");
    ensure!(finding["fix"].as_str().is_some_and(|fix| fix.contains("runAsUser")), "{found:#}");
    Ok(())
}

/// Verify that what can't be read is named, with the file.
#[test]
fn what_is_no_manifest_is_refused() -> Result<()> {
    for (text, what) in [
        ("kind: Service\n", "neither a pod"),
        ("a: [", "-: this can't be read"),
        ("kind: Pod\nmetadata: {name: x, annotations: {a: 80}}\n", "document 1, Pod x"),
    ] {
        let (code, out, err) = lint(text, &[])?;
        ensure!(code == Some(1) && out.is_empty() && err.contains(what), "{text}: {code:?} {err}");
    }
    let missing = Command::new(binary::millrace()?).args(["lint", "/nowhere.yaml"]).output()?;
    let err = String::from_utf8_lossy(&missing.stderr);
    ensure!(missing.status.code() == Some(1) && err.contains("/nowhere.yaml"), "{err}");
    let none = Command::new(binary::millrace()?).arg("lint").output()?;
    ensure!(none.status.code() == Some(2));
    Ok(())
}

/// Verify that a file without a pod leaves the findings of the other files, wherever it stands.
#[test]
fn a_file_without_a_pod_leaves_the_others() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("svc.yaml");
    std::fs::write(&file, "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n")?;
    let file = file.to_str().context("UTF-8")?;
    let (code, out, err) = lint(WRONG, &[file])?;
    ensure!(code != Some(1) && out.contains("[runs-as-proxy]"), "{code:?}: {out}{err}");
    ensure!(out.contains("svc.yaml: passed over"), "{out}");
    Ok(())
}

/// Verify that what can't be read, and what makes no pods, leaves the findings of the others.
#[test]
fn one_that_cant_be_read_leaves_the_others() -> Result<()> {
    let bad =
        "kind: Pod\nmetadata: {name: x, labels: {a: true}}\nspec: {containers: [{name: a}]}\n";
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: s}\n";
    let file = [bad, WRONG, service].join("---\n");
    let (code, out, err) = lint(&file, &[])?;
    ensure!(
        code == Some(1) && err.contains("metadata.labels.a is true") && err.contains("in quotes"),
        "{err}"
    );
    ensure!(
        out.contains("[runs-as-proxy]") && out.contains("known to make pods: Service s"),
        "{out}"
    );
    let (code, out, _) = lint(&file, &["--output", "json"])?;
    let found: Value = serde_json::from_str(&out)?;
    ensure!(code == Some(1) && found["workloads"][0]["name"] == "wrong", "{found:#}");
    ensure!(
        found["notRead"][0]["why"].is_string() && found["passedOver"][0]["name"] == "s",
        "{found:#}"
    );
    Ok(())
}
