//! `millrace lint`

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use millrace_core::dialect::istio::lint;
use millrace_core::finding::{Finding, Severity};
use millrace_core::manifest::{self, Workload};
use serde_json::{Value, json};

use super::output::{print, print_json};
use crate::cli::own::Lint;
use crate::exit::Exit;

pub(crate) fn lint(command: &Lint) -> Result<Exit> {
    let mut all = Vec::new();
    for path in &command.files {
        let what = || path.display().to_string();
        let workloads = manifest::read(&text(path).with_context(what)?).with_context(what)?;
        if workloads.is_empty() {
            bail!("{}: there is neither a pod in it nor anything that makes pods", what());
        }
        for workload in workloads {
            let findings = lint::lint(&workload);
            all.push((what(), workload, findings));
        }
    }
    if command.json {
        print_json(&json!({ "workloads": all.iter().map(as_json).collect::<Vec<_>>() }))?;
    } else {
        print(&as_text(&all))?;
    }
    let worst =
        all.iter().flat_map(|(.., findings)| findings).map(|finding| finding.severity).max();
    Ok(match worst {
        None | Some(Severity::Note) => Exit::Ok,
        Some(Severity::Warning) => Exit::NotCaptured,
        Some(Severity::Error) => Exit::Drifted,
    })
}

type Linted = (String, Workload, Vec<Finding>);

fn text(path: &Path) -> Result<String> {
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        return Ok(text);
    }
    Ok(std::fs::read_to_string(path)?)
}

/// A workload's kind, namespace and name.
fn name(workload: &Workload) -> String {
    let name = workload.name.as_deref().unwrap_or("without a name");
    match &workload.namespace {
        Some(namespace) => format!("{} {namespace}/{name}", workload.kind),
        None => format!("{} {name}", workload.kind),
    }
}

fn as_json((file, workload, findings): &Linted) -> Value {
    json!({
        "file": file,
        "kind": workload.kind,
        "namespace": workload.namespace,
        "name": workload.name,
        "findings": findings,
    })
}

fn as_text(all: &[Linted]) -> String {
    let mut text = String::new();
    for (file, workload, findings) in all {
        text.push_str(&format!("{file}: {}", name(workload)));
        if findings.is_empty() {
            text.push_str(": nothing wrong was found");
        }
        text.push('\n');
        for finding in findings {
            text.push_str(&format!("  {}\n", finding.to_string().replace('\n', "\n  ")));
        }
    }
    text
}
