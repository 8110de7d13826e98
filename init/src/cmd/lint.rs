//! `millrace lint`

use anyhow::{Context as _, Result, bail};
use millrace_core::dialect::lint;
use millrace_core::finding::{Finding, Severity};
use millrace_core::manifest::{self, BadObject, Name, Namespace, Workload};
use serde_json::{Value, json};

use super::output::{print, print_json};
use super::pods::text;
use crate::cli::own::Lint;
use crate::exit::Exit;

/// What was found in all files.
#[derive(Default)]
struct Linted {
    workloads: Vec<(String, Workload, Vec<Finding>)>,
    /// What can't be read, which says nothing of the others.
    bad: Vec<(String, BadObject)>,
    /// Objects that make no pods as far as is known, each with its file.
    others: Vec<(String, Name)>,
}

pub(crate) fn lint(command: &Lint) -> Result<Exit> {
    let mut all = Linted::default();
    let mut read = Vec::new();
    for path in &command.files {
        let what = || path.display().to_string();
        let found = manifest::read(&text(path).with_context(what)?).with_context(what)?;
        read.push((what(), found));
    }
    // A namespace may be described in another file than its pods.
    let namespaces: Vec<Namespace> =
        read.iter().flat_map(|(_, found)| found.namespaces.clone()).collect();
    for (file, found) in read {
        let what = || file.clone();
        for workload in found.workloads {
            let findings = lint::lint(&workload, &namespaces);
            all.workloads.push((what(), workload, findings));
        }
        all.bad.extend(found.bad.into_iter().map(|bad| (what(), bad)));
        all.others.extend(found.others.into_iter().map(|name| (what(), name)));
    }
    // Among others, a file without a pod is no reason to say nothing of them.
    if all.workloads.is_empty() && all.bad.is_empty() {
        let files: Vec<_> = command.files.iter().map(|path| path.display().to_string()).collect();
        bail!("{}: there is neither a pod in it nor anything that makes pods", files.join(", "));
    }
    if command.json {
        print_json(&as_json(&all))?;
    } else {
        print(&as_text(&all))?;
    }
    if !all.bad.is_empty() {
        let lines = all.bad.iter().map(|(file, why)| format!("{file}: {why}"));
        bail!(lines.collect::<Vec<_>>().join("\n"));
    }
    let findings = all.workloads.iter().flat_map(|(.., findings)| findings);
    Ok(match findings.map(|finding| finding.severity).max() {
        None | Some(Severity::Note) => Exit::Ok,
        Some(Severity::Warning) => Exit::NotCaptured,
        Some(Severity::Error) => Exit::Drifted,
    })
}

fn as_json(all: &Linted) -> Value {
    let workload = |(file, workload, findings): &(String, Workload, Vec<Finding>)| {
        let Name { kind, namespace, name } = &workload.name;
        json!({
            "file": file,
            "kind": kind,
            "namespace": namespace,
            "name": name,
            "findings": findings,
        })
    };
    let bad = |(file, why): &(String, BadObject)| json!({ "file": file, "why": why.to_string() });
    let other = |(file, Name { kind, namespace, name }): &(String, Name)| json!({ "file": file, "kind": kind, "namespace": namespace, "name": name });
    json!({
        "workloads": all.workloads.iter().map(workload).collect::<Vec<_>>(),
        "notRead": all.bad.iter().map(bad).collect::<Vec<_>>(),
        "passedOver": all.others.iter().map(other).collect::<Vec<_>>(),
    })
}

fn as_text(all: &Linted) -> String {
    let mut text = String::new();
    for (file, workload, findings) in &all.workloads {
        text.push_str(&format!("{file}: {}", workload.name));
        if findings.is_empty() {
            text.push_str(": nothing wrong was found");
        }
        text.push('\n');
        for finding in findings {
            text.push_str(&format!("  {}\n", finding.to_string().replace('\n', "\n  ")));
        }
    }
    for of_file in all.others.chunk_by(|(one, _), (other, _)| one == other) {
        let names: Vec<String> = of_file.iter().map(|(_, name)| name.to_string()).collect();
        let file = &of_file[0].0;
        text.push_str(&format!(
            "{file}: passed over, not known to make pods: {}\n",
            names.join(", ")
        ));
    }
    text
}
