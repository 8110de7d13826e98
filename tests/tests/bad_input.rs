//! Bad input: each message word for word, and no rule is left.
//!
//! `golden/bad_input.txt` holds the commands as a shell takes them, each with its exit code and
//! all that it says. `UPDATE_GOLDEN=1` writes it anew: read the difference.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};
use millrace_tests::binary;
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Layout, Stack, Topology};

/// What a command says, with its exit code in front, and without the time of log lines.
fn said(topology: &Topology, line: &str) -> Result<String> {
    let script = format!("millrace() {{ \"$0\" \"$@\"; }}\n{line}");
    let mut command = Command::new("bash");
    command.args(["-c", &script]).arg(binary::millrace()?);
    command.env_clear().env("PATH", std::env::var_os("PATH").context("PATH")?);
    let output = topology.pod.output(&mut command)?;
    let mut text = format!("{}\n", output.status.code().unwrap_or(-1));
    for line in
        String::from_utf8(output.stdout)?.lines().chain(String::from_utf8(output.stderr)?.lines())
    {
        let time = line.split_once("Z\t").filter(|(time, _)| time.starts_with("20"));
        text.push_str(time.map_or(line, |(_, rest)| rest));
        text.push('\n');
    }
    Ok(text)
}

/// Verify every command of the file.
#[test]
fn every_bad_input_is_named() -> Result<()> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/bad_input.txt");
    let golden = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let before = Snapshot::take(&topology.pod)?;
    let mut found = String::new();
    let mut cases = 0;
    for line in golden.lines().filter_map(|line| line.strip_prefix("$ ")) {
        let said = said(&topology, line)?;
        assert!(!said.starts_with("0\n"), "{line} did not fail");
        found.push_str(&format!("$ {line}\n{said}\n"));
        cases += 1;
    }
    assert!(cases >= 60, "only {cases} cases");
    assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return fs::write(&path, found).with_context(|| path.display().to_string());
    }
    for (found, golden) in found.lines().zip(golden.lines()) {
        assert_eq!(found, golden);
    }
    assert_eq!(found.len(), golden.len());
    Ok(())
}
