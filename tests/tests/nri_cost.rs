//! What capture costs the start of a pod's sandbox, with containerd 2: by the agent as its plugin, by the CNI
//! plugin in the list, and by neither, in one run and in turns.
//!
//! `cargo xtask bench nri` measures this: `MILLRACE_COST_RUNS` says how many pods are measured of each way
//! and number at once. Without it it is a short run, whose figures say little.

use std::env;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::cni::{Containerd, List, mesh};
use millrace_tests::node::Agent;
use millrace_tests::node_stage::Stage;
use serde_json::{Value, json};

/// How many pods start at once.
const AT_ONCE: [usize; 3] = [1, 4, 16];

/// A node of its own, whose pods are captured in one way.
struct Way {
    name: &'static str,
    is_captured: bool,
    stage: Stage,
    containerd: Containerd,
    _agent: Option<Agent>,
}

impl Way {
    fn new(name: &'static str, subnet: u8) -> Result<Self> {
        let mut stage = Stage::new()?;
        stage.node = stage.node.with_plugin(&binary::millrace_cni()?);
        let mut list = List::bridge(&stage.host, "1.0.0", subnet);
        if name != "CNI" {
            let _entry = list.plugins.pop();
        }
        let containerd = Containerd::start_newer(&stage.host, &list)?;
        let mut agent = None;
        if name == "NRI" {
            agent = Some(stage.start(&["--hook", "nri", "--repair", "off"])?);
            stage.node.until("it is ready", || stage.is_ready())?;
        }
        Ok(Self { name, is_captured: name != "neither", stage, containerd, _agent: agent })
    }

    /// Run so many pods at once and end them. Gives how long each of them took to start.
    fn run(&self, round: usize, at_once: usize) -> Result<Vec<Duration>> {
        let names: Vec<String> =
            (0..at_once).map(|number| format!("pod-{at_once}-{round}-{number}")).collect();
        let pods = self.containerd.run_pods(&names, &mesh(&[]))?;
        for sandbox in &pods {
            let is_captured = self.stage.host.rules(&sandbox.pod)?.contains("table inet millrace");
            ensure!(is_captured == self.is_captured, "{}: {}", self.name, self.stage.node.log());
            self.containerd.remove_pod(&sandbox.pod.id)?;
        }
        Ok(pods.iter().map(|sandbox| sandbox.took).collect())
    }

    /// How many requests the agent decided, and how long they took it in all.
    fn decided(&self) -> Result<Value> {
        let (_, metrics) = self.stage.get(Stage::METRICS, "/metrics")?;
        let value = |what: &str| {
            let name = format!("millrace_node_nri_duration_seconds_{what}");
            let line = metrics.lines().find(|line| {
                line.starts_with(&name)
                    && line.contains("RunPodSandbox")
                    && line.contains("captured")
            });
            let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            value.with_context(|| format!("no {name} in {metrics}"))
        };
        Ok(json!({ "count": value("count")?, "seconds": value("sum")? }))
    }
}

/// Verify that each way starts its pods as it should, and print how long that took.
#[test]
fn latency_of_a_sandbox() -> Result<()> {
    let runs: usize = match env::var("MILLRACE_COST_RUNS") {
        Ok(text) => text.parse().context("MILLRACE_COST_RUNS")?,
        Err(_) => 1,
    };
    let ways = [Way::new("neither", 70)?, Way::new("CNI", 71)?, Way::new("NRI", 72)?];
    let mut rows = Vec::new();
    for at_once in AT_ONCE {
        let mut taken = vec![Vec::new(); ways.len()];
        for round in 0..=runs.div_ceil(at_once) {
            for turn in 0..ways.len() {
                // Nobody always comes first, or always after the same one.
                let index = (turn + round) % ways.len();
                let took = ways[index].run(round, at_once)?;
                // The first ones find what later ones have at hand.
                if round > 0 {
                    taken[index].extend(took.iter().map(|took| took.as_secs_f64() * 1e3));
                }
            }
        }
        for (way, taken) in ways.iter().zip(taken) {
            ensure!(taken.len() >= runs, "{} of {runs} pods of {}", taken.len(), way.name);
            rows.push(json!({ "way": way.name, "at_once": at_once, "took_ms": taken }));
        }
    }
    let [_, _, nri] = &ways;
    println!("sandboxes: {}", json!({ "rows": rows, "agent": nri.decided()? }));
    Ok(())
}
