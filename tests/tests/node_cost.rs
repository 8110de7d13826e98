//! What the node agent costs a node with 250 pods: memory, time of a processor while nothing happens, and
//! what it adds to the start of a pod that it is asked about.
//!
//! `cargo xtask bench agent` measures this with the binaries that are shipped: `MILLRACE_COST_SECONDS` says
//! for how long the agent is watched at rest, `MILLRACE_COST_RUNS` how many pods are added each way, and with
//! `MILLRACE_COST_GOALS` a goal of time that is missed is an error. Without these it is a short run, whose
//! figures of time say little.

use std::env;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::cni::{Call, SIDECAR, STATUS, mesh};
use millrace_tests::node_stage::Stage;
use serde_json::{Value, json};

/// As many pods as a large node has.
const PODS: usize = 250;
/// Seconds between two looks, where nothing changes (`--period`).
const PERIOD: u64 = 10;
/// The most memory that the agent may hold, in KiB: the one that is shipped, and the tests' own, which
/// is not optimized.
const MOST_MEMORY: (u64, u64) = (40 * 1024, 64 * 1024);
/// The most of a processor that it may take at rest.
const MOST_AT_REST: f64 = 0.005;
/// The most that a question to it may add to ADD, at the median.
const MOST_ADDED: Duration = Duration::from_micros(300);

fn number(name: &str, otherwise: u64) -> Result<u64> {
    match env::var(name) {
        Ok(text) => text.parse().with_context(|| name.to_owned()),
        Err(_) => Ok(otherwise),
    }
}

/// A pod as an injector leaves it, of some 8 KiB.
fn manifest() -> Value {
    let variables = |count: usize| -> Vec<Value> {
        let variable = |n| json!({ "name": format!("VARIABLE_{n}"), "value": "x".repeat(60) });
        (0..count).map(variable).collect()
    };
    let container = |name: &str, args: &[&str], count: usize| {
        json!({
            "name": name, "image": format!("registry.example/{name}:1.0.0"), "args": args,
            "env": variables(count),
            "resources": { "requests": { "cpu": "100m", "memory": "128Mi" } },
            "securityContext": { "runAsUser": 1337, "runAsGroup": 1337 },
        })
    };
    let containers =
        [container("app", &[], 40), container("istio-proxy", &["proxy", "sidecar"], 40)];
    json!({
        "spec": { "nodeName": Stage::NODE, "containers": containers },
        "annotations": { STATUS: SIDECAR },
    })
}

/// What the agent holds in memory, in KiB.
fn memory(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    line.trim().trim_end_matches(" kB").parse().context("VmRSS")
}

/// The time of a processor that all threads of a process took (schedstats, the first number).
fn processor(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(thread?.path().join("schedstat"))?;
        let first = text.split(' ').next().context("schedstat")?;
        nanos += first.parse::<u64>().context("schedstat")?;
    }
    Ok(Duration::from_nanos(nanos))
}

/// How often the agent looked at everything that is installed.
fn passes(stage: &Stage) -> Result<u64> {
    let (_, metrics) = stage.get(Stage::METRICS, "/metrics")?;
    let mut lines = metrics.lines();
    let line = lines.find_map(|line| line.strip_prefix("millrace_node_passes_total "));
    line.context("no passes are counted")?.parse().context("millrace_node_passes_total")
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Verify what the head of this file says.
#[test]
fn two_hundred_and_fifty_pods() -> Result<()> {
    let (seconds, runs) = (number("MILLRACE_COST_SECONDS", 3)?, number("MILLRACE_COST_RUNS", 11)?);
    let goals = env::var_os("MILLRACE_COST_GOALS").is_some();
    let stage = Stage::new()?;
    let pod = stage.host.pod()?;
    let manifest = manifest();
    for number in 1..PODS {
        let name = format!("pod-{number}");
        stage.api.put_pod("shop", &name, &format!("uid-of-{name}"), &manifest);
    }
    stage.api.put_pod("shop", &pod.name, &pod.uid(), &manifest);
    let mut agent = stage.start(&[])?;
    let line = format!("millrace_node_pods {PODS}");
    stage.node.until(&line, || stage.is_ready() && stage.counts(&line))?;
    stage
        .node
        .until("pods were looked at", || stage.counts("millrace_node_repair_passes_total 1"))?;

    let (before, passes) = (processor(agent.pid())?, passes(&stage)?);
    let began = Instant::now();
    thread::sleep(Duration::from_secs(seconds));
    let took = processor(agent.pid())?.saturating_sub(before);
    let at_rest = took.as_secs_f64() / began.elapsed().as_secs_f64();
    // Nothing that the agent does itself is a reason for it to look again before its time; the last of what
    // it did at its start may be.
    let looks = self::passes(&stage)? - passes;
    ensure!(
        looks <= began.elapsed().as_secs() / PERIOD + 5,
        "{looks} looks in {:?}",
        began.elapsed()
    );

    let alone = Call::new(&stage.host, "ADD", &pod, mesh(&[]));
    let alone = alone.with_key("proxy_identity", json!("annotations"));
    let asking = Call::new(&stage.host, "ADD", &pod, Value::Null).without_key("runtimeConfig");
    let asking = asking.with_key("agent_socket", json!(stage.node.run_dir().join("agent.sock")));
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for run in 0..runs + 5 {
        for (call, times) in [(&alone, &mut without), (&asking, &mut with)] {
            let began = Instant::now();
            call.run(&stage.host)?.success()?;
            // The first ones find what later ones have at hand.
            if run >= 5 {
                times.push(began.elapsed());
            }
        }
    }
    let (without, with) = (median(without), median(with));
    let added = with.saturating_sub(without);
    let memory = memory(agent.pid())?;
    println!(
        "{PODS} pods: {:.1} MiB resident; at rest for {seconds} s {:.3} % of a processor; \
         ADD p50 {:.2} ms, through the agent {:.2} ms ({runs} each)",
        f64::from(u32::try_from(memory)?) / 1024.0,
        at_rest * 100.0,
        without.as_secs_f64() * 1e3,
        with.as_secs_f64() * 1e3,
    );
    // All of them were answered with what was known.
    let line = format!("millrace_node_plugin_questions_total{{answer=\"known\"}} {}", runs + 5);
    stage.node.until(&line, || stage.counts(&line))?;
    let is_shipped = env::var_os("MILLRACE_NODE_BIN").is_some();
    let most = if is_shipped { MOST_MEMORY.0 } else { MOST_MEMORY.1 };
    ensure!(memory < most, "{memory} KiB");
    if goals {
        ensure!(at_rest < MOST_AT_REST, "{:.3} % of a processor at rest", at_rest * 100.0);
        ensure!(added < MOST_ADDED, "{added:?} more with the agent");
    }
    agent.stop()
}
