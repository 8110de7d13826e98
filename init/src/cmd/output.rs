//! Printing what was done.

use std::fmt;
use std::io::{self, IsTerminal as _, Write as _};

use anyhow::{Context as _, Result};
use millrace_core::plan::Effect;
use millrace_core::visible::{visible, visible_json};
use millrace_host::engine::Outcome;
use serde_json::{Value, json};

use crate::cli::own::Common;
use crate::log::Log;
use crate::paint::{Color, Painter, painted};

/// Where an error of printing comes from.
#[derive(Clone, Copy, Debug)]
struct StandardOutput;

impl fmt::Display for StandardOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output")
    }
}

/// Whether an error is that the reader of standard output has gone, as `head` does when it has enough.
pub(crate) fn reader_has_gone(error: &anyhow::Error) -> bool {
    let broken = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
    error.is::<StandardOutput>() && error.downcast_ref::<io::Error>().is_some_and(broken)
}

/// Print text for people to standard output: what others have written in it does nothing there.
pub(super) fn print(text: &str) -> Result<()> {
    print_exactly(&visible(text))
}

/// Print text for people in colour, where that is wanted.
pub(super) fn print_painted(text: &str, color: Color, painter: Painter) -> Result<()> {
    if color.is_on() { print_exactly(&painted(&visible(text), painter)) } else { print(text) }
}

/// Print text that programs read, as it is; for people where it is a terminal.
pub(super) fn print_for_programs(text: &str) -> Result<()> {
    if io::stdout().is_terminal() { print(text) } else { print_exactly(text) }
}

fn print_exactly(text: &str) -> Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context(StandardOutput)
}

/// Print a value as JSON.
pub(super) fn print_json(value: &Value) -> Result<()> {
    print_exactly(&visible_json(&format!("{value:#}\n")))
}

/// Print a value as JSON in a line of its own.
pub(super) fn print_json_line(value: &Value) -> Result<()> {
    print_exactly(&visible_json(&format!("{value}\n")))
}

/// So many of something, whose plural has an s.
pub(super) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// Say what was done. It is done, whether or not that can be printed: a full disk, or a reader that has
/// gone, is no reason to do it again. An error is one only where printing was `all`.
pub(super) fn finish(printed: Result<()>, all: bool) -> Result<()> {
    match printed {
        Err(error) if !all => {
            let why = super::reported(&error);
            warn(&format!("what was done can't be printed, but is done: {why}"));
            Ok(())
        }
        printed => printed,
    }
}

/// What a run did, as JSON; `maps` says whether it changed eBPF's maps as well.
pub(super) fn outcome_json(outcome: &Outcome, maps: bool, dry_run: bool) -> Result<Value> {
    Ok(json!({
        "changed": (maps || !outcome.effects.is_empty()) && !dry_run,
        "dryRun": dry_run,
        "backend": outcome.choice.map(|c| c.method.backend),
        "why": outcome.choice.map(|c| c.why),
        "interrupted": outcome.interrupted,
        "unseen": outcome.unseen,
        "processes": outcome.processes,
        "warnings": outcome.warnings,
        "effects": serde_json::to_value(&outcome.effects)?,
    }))
}

/// What a run did, in lines; the text of the rules only where it was not carried out.
pub(super) fn outcome_text(outcome: &Outcome, nothing: Option<&str>, dry_run: bool) -> String {
    let mut text = String::new();
    if let Some(choice) = &outcome.choice {
        text.push_str(&format!("using {choice}\n"));
    }
    if outcome.interrupted {
        text.push_str("an earlier run was interrupted here\n");
    }
    match (outcome.unseen, outcome.effects.is_empty()) {
        (false, true) => text.extend(nothing.into_iter().flat_map(|nothing| [nothing, "\n"])),
        (true, true) => text.push_str("what would be removed can't be seen\n"),
        (true, false) => text.push_str("where nothing of Millrace or a mesh's tool is:\n"),
        (false, false) => {}
    }
    for effect in outcome.effects.iter().filter(|e| !matches!(e, Effect::Marker { .. })) {
        let would = if dry_run { "would do: " } else { "" };
        text.push_str(&format!("{would}{effect}\n"));
        let lines = match effect {
            Effect::Restore { input: text, .. } | Effect::Native { text, .. } if dry_run => text,
            _ => "",
        };
        if !lines.is_empty() {
            for line in lines.lines() {
                text.push_str(&format!("    {line}\n"));
            }
        }
    }
    text
}

/// Print what a run did, after which the pod has left eBPF capture if it was in it.
pub(super) fn print_outcome(
    outcome: &Outcome,
    left: bool,
    nothing: &str,
    common: &Common,
) -> Result<()> {
    for warning in &outcome.warnings {
        warn(warning);
    }
    let dry_run = common.dry_run;
    if common.json {
        let mut value = outcome_json(outcome, left, dry_run)?;
        if let Some(object) = value.as_object_mut().filter(|_| left) {
            object.insert("ebpf".to_owned(), json!("removed"));
        }
        return finish(print_json(&value), dry_run);
    }
    let mut text = outcome_text(outcome, Some(nothing).filter(|_| !left), dry_run);
    if left {
        let would = if dry_run { "would do: " } else { "" };
        text.push_str(&format!("{would}the pod leaves eBPF capture\n"));
    }
    finish(print(&text), dry_run)
}

/// Log what a run did that wrote rules; its warnings are told by who knows the rest of them.
pub(super) fn log_outcome(outcome: &Outcome, log: &mut Log) {
    if let Some(choice) = &outcome.choice {
        log.info(&format!("using {choice}"));
    }
    if outcome.interrupted {
        log.info("an earlier run was interrupted here; it is finished now");
    }
    if outcome.effects.is_empty() {
        log.info("no change: the rules are as desired");
    }
    log_effects(&outcome.effects, log);
}

/// Log each effect but the marker's; at level debug also the text of rules.
pub(super) fn log_effects(effects: &[Effect], log: &mut Log) {
    for effect in effects.iter().filter(|e| !matches!(e, Effect::Marker { .. })) {
        log.info(&format!("done: {effect}"));
        if let Effect::Restore { input: text, .. } | Effect::Native { text, .. } = effect {
            log.debug(&format!("input:\n{text}"));
        }
    }
}

/// Say what the user should know, beside the result.
pub(super) fn warn(message: &str) {
    Log::own().warn(message);
}
