//! Pods with users of their own (`hostUsers: false`). Rules that name users are written from inside the pod's
//! user namespace, which a process with several threads can't enter (`setns(2)`): the plugin does it, in a
//! process of its own, as for a runtime.

use std::collections::{BTreeMap, HashSet};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use millrace_cni::protocol::{CniError, Code};
use millrace_core::from_objects;
use millrace_core::pod::PodFacts;
use serde::Deserialize;
use serde_json::json;

use crate::install::{Config, settings};
use millrace_cni::causes::chain;

/// Where the plugin keeps its notes, in the agent's folder for what does not outlive a reboot.
const NOTES: &str = "nri";
/// The interface that it is called for.
const INTERFACE: &str = "eth0";
/// How often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(2);
/// How much longer than its deadline it may take, at which it ends by itself.
const LONGER: Duration = Duration::from_millis(50);

/// An error of the plugin.
#[derive(Debug, Deserialize)]
#[serde(remote = "Self")]
struct Failed {
    code: u32,
    msg: String,
    #[serde(default)]
    details: String,
}

from_objects!(Failed);

/// Have the plugin's ADD capture a pod, before a deadline.
///
/// # Errors
/// What the plugin says, or why it can't be run.
pub(super) fn add(
    config: &Config,
    pod: &PodFacts,
    sandbox: &str,
    netns: &Path,
    until: Instant,
) -> Result<(), CniError> {
    let internal = |why: String| CniError::new(Code::Io, why);
    let entry = entry(config, pod, until).map_err(internal)?;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let args = [
        ("K8S_POD_NAMESPACE", text(&pod.namespace)),
        ("K8S_POD_NAME", text(&pod.name)),
        ("K8S_POD_UID", text(&pod.uid)),
    ];
    let args = args.map(|(name, value)| format!("{name}={value}")).join(";");
    let failed = |why: std::io::Error| {
        internal(format!("the plugin {} can't be run: {why}", config.plugin.display()))
    };
    let mut child = Command::new(&config.plugin)
        .env("CNI_COMMAND", "ADD")
        .env("CNI_CONTAINERID", sandbox)
        .env("CNI_NETNS", netns)
        .env("CNI_IFNAME", INTERFACE)
        .env("CNI_ARGS", args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(failed)?;
    // It may end without reading, and says why then.
    let _written = child.stdin.take().map(|mut stdin| stdin.write_all(entry.as_bytes()));
    let status = ended(&mut child, until + LONGER).map_err(failed)?;
    let Some(status) = status else {
        let why = "the plugin does not end in time; it is tried again";
        return Err(CniError::new(Code::TryAgain, why));
    };
    if status.success() {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(1 << 20).read_to_string(&mut said).map_err(failed)?;
    }
    let Ok(Failed { code, msg, details }) = serde_json::from_str(&said) else {
        return Err(internal(format!("the plugin ended with {status}, without a word")));
    };
    let code = Code::ALL.into_iter().find(|known| known.number() == code);
    Err(CniError { code: code.unwrap_or(Code::Internal), msg, details })
}

/// Its status once it has ended; none where it had to be ended.
fn ended(child: &mut Child, until: Instant) -> std::io::Result<Option<std::process::ExitStatus>> {
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= until {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

/// The plugin's entry, with what a runtime adds to it.
fn entry(config: &Config, pod: &PodFacts, until: Instant) -> Result<String, String> {
    let annotations: BTreeMap<_, _> = pod.annotations.clone().unwrap_or_default();
    let told = json!({ "io.kubernetes.cri.pod-annotations": annotations });
    let left = until.saturating_duration_since(Instant::now()).as_millis().max(1);
    let settings = settings(config).map_err(|error| chain(&error))?;
    Ok(settings
        .with("state_dir", json!(config.run_dir.join(NOTES)))
        .with("deadline", json!(format!("{left}ms")))
        .with("runtimeConfig", told)
        .request())
}

/// Take away the plugin's notes on pods that are not among these.
pub(super) fn keep(config: &Config, sandboxes: &HashSet<String>) {
    for (path, sandbox) in notes(config) {
        if !sandboxes.contains(&sandbox) {
            remove(&path);
        }
    }
}

/// Take away the plugin's note on a pod.
pub(super) fn forget(config: &Config, sandbox: &str) {
    for (path, own) in notes(config) {
        if own == sandbox {
            remove(&path);
        }
    }
}

/// Notes, and the pods' ids in their names.
fn notes(config: &Config) -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir(config.run_dir.join(NOTES)).into_iter().flatten().flatten();
    let note = |entry: std::fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        Some((entry.path(), name.split(':').nth(1)?.to_owned()))
    };
    entries.filter_map(note).collect()
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::warn!("{} can't be removed: {error}", path.display());
    }
}
