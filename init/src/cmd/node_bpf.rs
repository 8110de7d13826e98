//! `millrace node-bpf`

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use millrace_host::ebpf::{
    EbpfError, Faults, Node, OBJECT, Options, is_in_bpffs, lacking, usual_cgroup,
};
use serde_json::{Value, json};

use super::ebpf::{counters_text, pod_json};
use super::handover::to_nftables;
use super::output::{counted, finish, print, print_json, warn};
use crate::cli::node::{NodeBpf, Task};
use crate::exit::Exit;

pub(crate) fn node_bpf(command: &NodeBpf) -> Result<Exit> {
    let (text, value, exit) = match &command.task {
        Task::Load { cgroup, accelerate, max_pods, max_networks, max_connections, spares } => {
            let cgroup = cgroup.clone().or_else(usual_cgroup);
            let cgroup: PathBuf =
                cgroup.context("no cgroup v2 is mounted; mount one, or name it with --cgroup")?;
            let options = Options {
                cgroup,
                accelerate: *accelerate,
                max_pods: *max_pods,
                max_networks: *max_networks,
                max_connections: *max_connections,
                spares: *spares,
                object: OBJECT,
            };
            let loaded = Node::load(&command.folder, &options, command.wait);
            let (_, loaded) = loaded.map_err(|error| {
                if error.is_busy() || matches!(error, EbpfError::Unable(_)) {
                    return error.into();
                }
                // The kernel's error is of one program; what it lacks is said by preflight's look.
                let lacking = lacking(&command.folder);
                let error = anyhow::Error::new(error);
                match lacking {
                    Some(what) => error.context(format!("eBPF can't work here: {what}")),
                    None => error,
                }
            })?;
            let mut text = format!(
                "{} attached, {} replaced; {}\n",
                counted(loaded.attached.len(), "program"),
                loaded.replaced.len(),
                counted(loaded.pods, "pod")
            );
            if !loaded.restored.is_empty() {
                text.push_str(&format!("put back: {}\n", loaded.restored.join(", ")));
            }
            let order = loaded.order.reported();
            if let Some(order) = &order {
                warn(order);
            }
            let value = json!({
                "attached": loaded.attached,
                "replaced": loaded.replaced,
                "restored": loaded.restored,
                "pods": loaded.pods,
                "order": order,
            });
            (text, value, Exit::Ok)
        }
        Task::Unload { to_nftables: to_rules, force } => {
            let moved = if *to_rules { to_nftables(&command.folder, command.wait)? } else { 0 };
            let there = Node::unload(&command.folder, command.wait, *force)?;
            let text = if there {
                "unloaded\n".to_owned()
            } else {
                format!("nothing to do: {}\n", no_programs(command))
            };
            let text = match moved {
                0 => text,
                _ => format!("nftables captures {}\n{text}", counted(moved, "pod")),
            };
            (text, json!({ "changed": there, "moved": moved }), Exit::Ok)
        }
        Task::Collect => {
            let node = Node::open(&command.folder)?.until(Instant::now() + command.wait);
            let gone = node.collect()?;
            (
                format!("entries of pods that are gone, removed: {gone}\n"),
                json!({ "gone": gone }),
                Exit::Ok,
            )
        }
        Task::Status => status(command)?,
    };
    let printed = if command.json { print_json(&value) } else { print(&text) };
    finish(printed, matches!(command.task, Task::Status))?;
    Ok(exit)
}

fn no_programs(command: &NodeBpf) -> String {
    format!("{} holds no programs of Millrace", command.folder.display())
}

fn status(command: &NodeBpf) -> Result<(String, Value, Exit)> {
    let node = match Node::open(&command.folder) {
        Err(EbpfError::NotLoaded(_)) if is_in_bpffs(&command.folder) => {
            let why = no_programs(command);
            let text = format!("not loaded: {why}\n");
            return Ok((text, json!({ "loaded": false, "why": why }), Exit::NotCaptured));
        }
        opened => opened?,
    };
    let state = node.state()?;
    let pods = node.pods()?;
    let mut text = format!("loaded: {} attached", counted(state.attached.len(), "program"));
    if let Some(faults) = state.faults.reported() {
        text.push_str(&format!(", {faults}"));
    }
    if !state.current {
        text.push_str(", of another version");
    }
    if state.accelerated {
        text.push_str(", accelerated");
    }
    if state.sample > 0 {
        text.push_str(&format!(", reporting one of {} decisions", state.sample));
    }
    let spares = counted(state.spares, "program");
    text.push_str(&format!("\n{}, {spares} for more\n", counted(pods.len(), "pod")));
    let order = node.order()?.reported();
    if let Some(order) = &order {
        text.push_str(&format!("note: {order}\n"));
    }
    for pod in &pods {
        let netns = pod.netns.map_or("gone".to_owned(), |inode| format!("net:[{inode}]"));
        text.push_str(&format!("pod {} {netns}\n", pod.cookie));
        if let Some(fault) = pod.fault().filter(|_| pod.netns.is_some()) {
            text.push_str(&format!("  note: {fault}\n"));
        }
        text.push_str(&counters_text(pod, "  "));
    }
    let value = json!({
        "loaded": true,
        "attached": state.attached,
        "missing": state.faults.missing,
        "lost": state.faults.lost,
        "current": state.current,
        "accelerated": state.accelerated,
        "sample": state.sample,
        "connections": state.connections,
        "spares": state.spares,
        "order": order,
        "pods": pods.iter().map(pod_json).collect::<Vec<_>>(),
    });
    let known = pods.iter().all(|pod| pod.netns.is_none() || pod.fault().is_none());
    let whole = known && state.faults == Faults::default();
    Ok((text, value, if whole { Exit::Ok } else { Exit::Drifted }))
}
