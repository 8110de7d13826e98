//! The node agent killed at random moments of everything that it does: no list names a binary that
//! isn't there, none is half written, and the next run ends the work.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::node::{Node, Random};
use serde_json::{Value, json};

const LIST: &str = "10-net.conflist";
const OWNED: &str = "02-istio-cni.conflist";
/// How often it is killed in each of the five tasks.
const ROUNDS: u64 = 20;

fn list(last: &[&str]) -> String {
    let mut plugins = vec![json!({ "type": "bridge" })];
    plugins.extend(last.iter().map(|kind| {
        json!({ "type": kind, "exclude_namespaces": ["kube-system"], "plugin_log_level": "debug" })
    }));
    json!({ "cniVersion": "1.0.0", "name": "net", "plugins": plugins }).to_string()
}

fn kinds(text: &str) -> Result<Vec<String>> {
    let value: Value = serde_json::from_str(text).with_context(|| format!("no JSON: {text:?}"))?;
    let plugins = value["plugins"].as_array().context("no plugins")?;
    plugins.iter().map(|p| Ok(p["type"].as_str().context("no type")?.to_owned())).collect()
}

/// What has to hold at every moment.
fn holds(node: &Node) -> Result<Vec<String>> {
    let names = node.names(node.conf())?;
    let first = names.iter().find(|name| name.ends_with(".conflist")).context("no list")?;
    let mut called = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(".conflist")) {
        let kinds = kinds(&fs::read_to_string(node.conf().join(name))?)?;
        ensure!(kinds[0] == "bridge", "{name}: {kinds:?}");
        for kind in &kinds[1..] {
            let binary = fs::metadata(node.bin().join(kind)).with_context(|| kind.clone())?;
            ensure!(binary.mode() & 0o111 != 0 && binary.len() > 20, "{kind}: {binary:?}");
        }
        if name == first {
            ensure!(kinds.len() <= 2, "a pod is captured twice: {kinds:?}");
            called = kinds[1..].to_vec();
        }
    }
    Ok(called)
}

fn mk_istio(node: &Node) -> Result<()> {
    let path = node.bin().join("istio-cni");
    fs::write(&path, format!("#!/bin/sh\n# {}\nexit 0\n", "x".repeat(200_000)))?;
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?)
}

/// Kill a task at this moment of it; gives how long it took if it ended before.
fn kill_at(node: &Node, task: &str, args: &[&str], at: Duration) -> Result<()> {
    let mut agent = node.start(task, args)?;
    thread::sleep(at);
    agent.kill()
}

/// How long a task takes undisturbed.
fn takes(node: &Node, task: &str, args: &[&str]) -> Result<Duration> {
    let began = Instant::now();
    node.do_(task, args)?;
    Ok(began.elapsed())
}

/// What a task begins with, how it is started, and what its end calls.
struct Task {
    name: &'static str,
    before: fn(&Node) -> Result<()>,
    args: &'static [&'static str],
    verb: &'static str,
    calls: &'static [&'static str],
    /// What may be called while it is at work.
    between: &'static [&'static [&'static str]],
}

const OURS: &[&str] = &["millrace-cni"];
const THEIRS: &[&str] = &["istio-cni"];
const QUICK: &[&str] = &["--grace", "2ms"];
const BACK: &[&str] = &["--restore", "--grace", "2ms"];

fn fresh(node: &Node) -> Result<()> {
    for folder in [node.conf(), node.bin(), &node.folder().join("state"), &node.run_dir()] {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
        fs::create_dir(folder)?;
    }
    node.write(LIST, &list(&[]))
}

fn with_istio(node: &Node) -> Result<()> {
    fresh(node)?;
    mk_istio(node)?;
    node.write(LIST, &list(THEIRS))
}

fn with_owned(node: &Node) -> Result<()> {
    fresh(node)?;
    mk_istio(node)?;
    node.write(OWNED, &list(THEIRS))
}

fn installed(node: &Node) -> Result<()> {
    fresh(node)?;
    node.do_("install", &[]).map(drop)
}

/// Installed by an older release.
fn outdated(node: &Node) -> Result<()> {
    installed(node)?;
    let path = node.bin().join("millrace-cni");
    let mut old = fs::read(&path)?;
    old.truncate(old.len() / 2);
    fs::write(&path, old)?;
    node.write(LIST, &list(OURS))
}

fn taken(node: &Node) -> Result<()> {
    with_istio(node)?;
    node.do_("install", &[]).map(drop)
}

fn taken_owned(node: &Node) -> Result<()> {
    with_owned(node)?;
    node.do_("install", &[]).map(drop)
}

const TASKS: [Task; 7] = [
    Task {
        name: "install",
        before: fresh,
        verb: "install",
        args: &[],
        calls: OURS,
        between: &[&[], OURS],
    },
    Task {
        name: "takeover of an entry",
        before: with_istio,
        verb: "install",
        args: &[],
        calls: OURS,
        between: &[THEIRS, OURS],
    },
    Task {
        name: "takeover of a file",
        before: with_owned,
        verb: "install",
        args: &[],
        calls: OURS,
        between: &[THEIRS, OURS],
    },
    Task {
        name: "upgrade",
        before: outdated,
        verb: "install",
        args: &[],
        calls: OURS,
        between: &[OURS],
    },
    Task {
        name: "uninstall",
        before: installed,
        verb: "uninstall",
        args: QUICK,
        calls: &[],
        between: &[OURS, &[]],
    },
    Task {
        name: "restore of an entry",
        before: taken,
        verb: "uninstall",
        args: BACK,
        calls: THEIRS,
        between: &[OURS, THEIRS],
    },
    Task {
        name: "restore of a file",
        before: taken_owned,
        verb: "uninstall",
        args: BACK,
        calls: THEIRS,
        between: &[OURS, THEIRS],
    },
];

/// Verify what the head of this file says, a hundred times and more.
#[test]
fn killed_at_any_moment() -> Result<()> {
    let node = Node::new()?;
    let mut random = Random::new()?;
    for task in &TASKS {
        (task.before)(&node)?;
        let whole = takes(&node, task.verb, task.args).context(task.name)?;
        assert_eq!(holds(&node).context(task.name)?, task.calls, "{}", task.name);
        let whole = u64::try_from(whole.as_micros())?;
        for round in 0..ROUNDS {
            let context = || format!("{}, round {round}, seed {}", task.name, random.seed());
            let context = context();
            (task.before)(&node).with_context(|| context.clone())?;
            // Twice in a row: what is left of a run is in the way of the next one.
            for _ in 0..2 {
                let at = Duration::from_micros(random.below(whole * 6 / 5));
                kill_at(&node, task.verb, task.args, at)?;
                let called = holds(&node).with_context(|| context.clone())?;
                let called: Vec<&str> = called.iter().map(String::as_str).collect();
                ensure!(task.between.contains(&called.as_slice()), "{context}: {called:?}");
            }
            let ended = node.once(task.verb, task.args)?;
            // Where the first run came to its end, there is nothing left to put back.
            let nothing = String::from_utf8_lossy(&ended.stderr).contains("nothing to restore");
            ensure!(ended.status.success() || nothing, "{context}: {ended:?}");
            assert_eq!(holds(&node).with_context(|| context.clone())?, task.calls, "{context}");
            left_nothing(&node, task, &context)?;
        }
    }
    Ok(())
}

/// No file is left in the making, and none of what the task takes away.
fn left_nothing(node: &Node, task: &Task, context: &str) -> Result<()> {
    for folder in [node.conf(), node.bin(), Path::new(&node.run_dir())] {
        let names = node.names(folder)?;
        ensure!(names.iter().all(|name| !name.contains(".tmp")), "{context}: {names:?}");
    }
    if task.verb == "uninstall" {
        ensure!(!node.bin().join("millrace-cni").exists(), "{context}: the binary is left");
    }
    if task.calls == THEIRS {
        let binary = fs::read(node.bin().join("istio-cni"))?;
        ensure!(binary.starts_with(b"#!/bin/sh"), "{context}: the old binary is not back");
    }
    if task.name == "upgrade" {
        let new = fs::read(node.plugin())?;
        ensure!(
            fs::read(node.bin().join("millrace-cni"))? == new,
            "{context}: the old one is left"
        );
    }
    Ok(())
}
