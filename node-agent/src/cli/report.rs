//! What commands found and did, as it is printed.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use millrace_core::visible::{visible, visible_json};
use serde_json::json;

use super::print;
use crate::install::{Config, Report};
use crate::plan::State;
use crate::state::Hooks;
use crate::status::Status;
use crate::uninstall::Done;

/// Print whether the plugin is installed; the exit code is 0 only where it is.
pub(super) fn installed(config: &Config, report: Report) -> Result<ExitCode> {
    printed(config, Hooks::Cni, &Status { report, connected: None }, false)
}

/// Print what holds on the node; the exit code is 0 only where new pods are captured as this hook has it.
pub(super) fn printed(
    config: &Config,
    hook: Hooks,
    status: &Status,
    as_json: bool,
) -> Result<ExitCode> {
    let report = &status.report;
    let (state, what, first) = match &report.state {
        State::Installed { file } if hook.installs() => {
            let (list, binary) = (config.conf_dir.join(file), config.bin_dir.join(&config.kind));
            let (list, binary) = (list.display(), binary.display());
            ("installed", file, format!("installed: {list} has the entry, which calls {binary}"))
        }
        State::Installed { file } => {
            let first = format!("installed: the runtime at {file} tells the agent of each pod");
            ("installed", file, first)
        }
        State::Waiting(why) => ("waiting", why, format!("not installed yet: {why}")),
        State::Blocked(why) => ("blocked", why, format!("not installed: {why}")),
    };
    let text = if as_json {
        let mut value = json!({ "state": state, "what": what, "notes": report.words });
        if let Some(connected) = status.connected {
            value["connected"] = json!(connected);
        }
        visible_json(&format!("{value:#}\n")).into_owned()
    } else {
        let notes = report.words.iter().map(|word| format!("  {word}"));
        let lines: Vec<String> = std::iter::once(first).chain(notes).collect();
        visible(&format!("{}\n", lines.join("\n"))).into_owned()
    };
    print(&text)?;
    let installed = matches!(report.state, State::Installed { .. });
    Ok(if installed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What an uninstallation did, a line each.
pub(super) fn uninstalled(done: &Done) -> String {
    let paths = |word: &str, paths: &[PathBuf]| -> Vec<String> {
        paths.iter().map(|path| format!("  {word}: {}", path.display())).collect()
    };
    let restored = done.restored.iter().map(|what| format!("  restored: {what}"));
    let mut lines = vec!["uninstalled".to_owned()];
    lines.extend(restored);
    lines.extend(paths("written", &done.written));
    lines.extend(paths("removed", &done.removed));
    if lines.len() == 1 {
        lines.push("  nothing was there to change".to_owned());
    }
    lines.extend(done.words.iter().map(|word| format!("  {word}")));
    format!("{}\n", lines.join("\n"))
}
