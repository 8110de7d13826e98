//! Pods that run: the node agent finds those that are not captured as they should be, says so, and does
//! what it was told to. Each is a namespace with a process in a cgroup as the kubelet makes them, and who
//! answers a connection says whether it is captured.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::cni::{Call, Mood, SIDECAR, STATUS};
use millrace_tests::node_stage::{Running, Stage, events, said};
use serde_json::json;

const SOON: [&str; 2] = ["--repair-period", "200ms"];

/// Verify that a pod which started without the plugin is found and told of once, and stays as it is; that
/// it is captured where it runs when that is wanted, also when somebody takes its rules away again; and
/// that a pod that is captured is left alone.
#[test]
fn a_pod_that_runs_uncaptured_is_captured() -> Result<()> {
    let stage = Stage::new()?;
    let own = Running::new(&stage, 1)?;
    let _host = stage.host.serve(None, "host", "10.1.0.1:80")?;
    let _proxy = stage.host.proxy(&own.pod)?;
    ensure!(own.reaches(&stage)? == "host");
    let mut agent = stage.start(&SOON)?;
    stage.node.until("it is told of", || said(&stage, &own.uid, "NotCaptured"))?;
    let bad = "millrace_node_pods_capture{state=\"not_captured\",reason=\"no_rules\"} 1";
    stage.node.until("it is counted", || stage.counts(bad))?;
    let passes = stage.api.take_requests();
    drop(passes);
    ensure!(own.reaches(&stage)? == "host", "a report changes something");
    agent.stop()?;
    ensure!(events(&stage, &own.uid).len() == 1, "{:?}", events(&stage, &own.uid));

    let mut agent = stage.start(&[&SOON[..], &["--repair", "in-place"]].concat())?;
    stage.node.until("it is captured", || own.reaches(&stage).is_ok_and(|who| who == "proxy"))?;
    stage.node.until("it is told of", || said(&stage, &own.uid, "CaptureRepaired"))?;
    let good = "millrace_node_pods_capture{state=\"captured\",reason=\"as_wanted\"} 1";
    stage.node.until("it is counted", || stage.counts(good))?;
    let repaired = "istio_cni_repair_pods_repaired_total{type=\"repair\",result=\"success\"}";
    ensure!(stage.counts(&format!("{repaired} 1")), "{}", stage.node.log());
    // Somebody flushes what is there.
    stage.host.inside(&own.pod, |inside| inside.run("nft", &["flush", "ruleset"]).map(drop))?;
    stage.node.until("it is captured anew", || stage.counts(&format!("{repaired} 2")))?;
    ensure!(own.reaches(&stage)? == "proxy");
    agent.stop()
}

/// Verify that with what the chart gives to the agent, and no more, a pod that runs is captured: in a
/// namespace of processes of its own, with the host's processes elsewhere; and that of the capabilities
/// for it none can be left out.
#[test]
fn the_chart_gives_what_it_takes() -> Result<()> {
    let stage = Stage::new()?;
    let own = Running::new(&stage, 5)?;
    let _host = stage.host.serve(None, "host", "10.1.0.1:80")?;
    let _proxy = stage.host.proxy(&own.pod)?;
    let args = [&SOON[..], &["--repair", "in-place"]].concat();
    for without in [Some("SYS_ADMIN"), Some("NET_ADMIN"), Some("SYS_PTRACE"), None] {
        let mut agent = stage.start_confined("repair", without, &args)?;
        let (state, who) = match without {
            None => ("state=\"captured\",reason=\"as_wanted\"", "proxy"),
            Some("SYS_PTRACE") => ("state=\"unknown\",reason=\"no_process\"", "host"),
            Some(_) => ("state=\"unknown\",reason=\"failed\"", "host"),
        };
        let line = format!("millrace_node_pods_capture{{{state}}} 1");
        stage.node.until(&format!("without {without:?}: {line}"), || stage.counts(&line))?;
        ensure!(own.reaches(&stage)? == who, "without {without:?}");
        agent.kill()?;
        stage.node.until("it is gone", || stage.get(Stage::HEALTH, "/livez").is_err())?;
    }
    Ok(())
}

/// Verify that where the plugin is not installed, no pod that runs is captured, which another plugin may
/// have done; and that it is as soon as it is installed.
#[test]
fn nothing_is_captured_where_the_plugin_is_not() -> Result<()> {
    let stage = Stage::new()?;
    let own = Running::new(&stage, 6)?;
    let list = r#"{"name":"net","plugins":[{"type":"bridge"},{"type":"istio-cni"}]}"#;
    stage.node.write("10-net.conflist", list)?;
    let args = [&SOON[..], &["--repair", "in-place", "--take-over", "none"]].concat();
    let mut agent = stage.start(&args)?;
    stage.node.until("it is told of", || said(&stage, &own.uid, "NotCaptured"))?;
    ensure!(!stage.host.rules(&own.pod)?.contains("millrace"));
    stage.node.write("10-net.conflist", r#"{"name":"net","plugins":[{"type":"bridge"}]}"#)?;
    stage.node.until("it is captured", || said(&stage, &own.uid, "CaptureRepaired"))?;
    agent.stop()
}

/// Verify that rules of which a part is missing are told from rules that are not there, and that a pod
/// that the plugin captured is as it should be.
#[test]
fn drift_is_told_from_nothing() -> Result<()> {
    let stage = Stage::new()?;
    let own = Running::new(&stage, 2)?;
    Call::new(&stage.host, "ADD", &own.pod, json!({ STATUS: SIDECAR }))
        .run(&stage.host)?
        .success()?;
    let mut agent = stage.start(&SOON)?;
    let good = "millrace_node_pods_capture{state=\"captured\",reason=\"as_wanted\"} 1";
    stage.node.until("it is as it should be", || stage.counts(good))?;
    ensure!(events(&stage, &own.uid).is_empty(), "{:?}", events(&stage, &own.uid));
    let rules = stage.host.rules(&own.pod)?;
    let table = rules.lines().find(|line| line.starts_with("table")).context("a table")?;
    let chain = rules.lines().find(|line| line.contains("chain ")).context("a chain")?;
    let (table, chain) = (table.trim_end_matches(" {"), chain.trim().trim_end_matches(" {"));
    let words = format!("{} {chain}", table.replace("table ", "flush chain "));
    let words = words.replace(" chain ", " ").replacen("flush ", "flush chain ", 1);
    stage.host.inside(&own.pod, |inside| {
        let words: Vec<&str> = words.split(' ').filter(|word| !word.is_empty()).collect();
        inside.run("nft", &words).map(drop)
    })?;
    stage.node.until("it drifted", || said(&stage, &own.uid, "CaptureDrifted"))?;
    let bad = "millrace_node_pods_capture{state=\"drifted\",reason=\"rules_differ\"} 1";
    stage.node.until("it is counted", || stage.counts(bad))?;
    agent.stop()
}

/// Verify that a pod without its own address, of which no process is seen, that is in no mesh or has the
/// node's network is no reason to do anything.
#[test]
fn who_is_not_to_be_captured_is_left_alone() -> Result<()> {
    let stage = Stage::new()?;
    let own = Running::new(&stage, 3)?;
    let spec = json!({ "nodeName": Stage::NODE, "containers": [{ "name": "app" }] });
    own.tell(&stage, &json!({ "annotations": {}, "spec": spec }));
    let mut agent = stage.start(&[&SOON[..], &["--repair", "in-place"]].concat())?;
    let counts = |state: &str, reason: &str| {
        let line = format!("millrace_node_pods_capture{{state=\"{state}\",reason=\"{reason}\"}} 1");
        stage.node.until(&line, || stage.counts(&line))
    };
    counts("left", "not_in_mesh")?;
    // Its process is in a namespace that does not have its address.
    own.tell(
        &stage,
        &json!({ "status": { "phase": "Running", "podIPs": [{ "ip": "10.9.9.9" }] } }),
    );
    counts("unknown", "no_process")?;
    own.tell(&stage, &json!({ "status": { "phase": "Pending" } }));
    counts("starting", "no_address")?;
    let containers = json!([{ "name": "app" }, { "name": "istio-proxy" }]);
    let spec = json!({ "nodeName": Stage::NODE, "hostNetwork": true, "containers": containers });
    own.tell(&stage, &json!({ "spec": spec }));
    counts("left", "not_in_mesh")?;
    ensure!(!stage.host.rules(&own.pod)?.contains("millrace"));
    // What ADD would refuse is said to be so.
    own.tell(
        &stage,
        &json!({ "annotations": {
        STATUS: SIDECAR, "sidecar.istio.io/interceptionMode": "SOME" } }),
    );
    counts("unknown", "refused")?;
    ensure!(!stage.host.rules(&own.pod)?.contains("millrace"));
    agent.stop()
}

/// Verify that the taint is taken off the node when the agent is ready and not before, and that others
/// stay there.
#[test]
fn the_taint_goes_when_it_is_ready() -> Result<()> {
    let stage = Stage::new()?;
    let path = format!("/api/v1/nodes/{}", Stage::NODE);
    let other = json!({ "key": "gpu", "effect": "NoSchedule" });
    let own = json!({ "key": "cni.istio.io/not-ready", "effect": "NoSchedule" });
    stage.api.put(
        &path,
        json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": { "name": Stage::NODE, "resourceVersion": "1" },
            "spec": { "taints": [other, own] },
        }),
    );
    let taints = || stage.api.held(&path).unwrap_or_default()["spec"]["taints"].clone();
    fs::remove_file(stage.node.conf().join("10-net.conflist"))?;
    let mut agent = stage.start(&["--untaint", "cni.istio.io/not-ready"])?;
    stage.node.until("it answers", || stage.get(Stage::HEALTH, "/livez").is_ok())?;
    stage.node.until("it follows pods", || {
        let ready = stage.get(Stage::HEALTH, "/readyz").map(|(_, text)| text).unwrap_or_default();
        ready.contains("installation: ") && !ready.contains("pods: ")
    })?;
    ensure!(taints() == json!([other, own]), "{}", taints());
    // The first time, somebody else is faster.
    stage.api.become_(Mood::FailingFirst(409, 1));
    stage.node.write("10-net.conflist", r#"{"name":"net","plugins":[{"type":"bridge"}]}"#)?;
    stage.node.until("the taint is gone", || taints() == json!([other]))?;
    agent.stop()
}

/// Verify that a pod is labelled once, and deleted only where another one takes its place, and that an API
/// which refuses is no end of anything.
#[test]
fn pods_are_labelled_or_deleted() -> Result<()> {
    let stage = Stage::new()?;
    let own = Running::new(&stage, 4)?;
    let label = ["--repair", "label", "--repair-label", "broken=yes"];
    let mut agent = stage.start(&[&SOON[..], &label].concat())?;
    stage.node.until("it is labelled", || {
        let held = stage.api.held(&own.path()).unwrap_or_default();
        held["metadata"]["labels"]["broken"] == "yes"
    })?;
    stage.node.until("it is told of", || said(&stage, &own.uid, "LabelledUncaptured"))?;
    agent.stop()?;

    let repaired = |kind: &str, result: &str| {
        format!("istio_cni_repair_pods_repaired_total{{type=\"{kind}\",result=\"{result}\"}}")
    };
    own.tell(&stage, &json!({ "ownerReferences": null }));
    let mut agent = stage.start(&[&SOON[..], &["--repair", "delete"]].concat())?;
    let skipped = repaired("delete", "skip");
    let some = |line: &str| !stage.counts(&format!("{line} 0"));
    stage.node.until("it has no owner", || stage.counts(&skipped) && some(&skipped))?;
    ensure!(stage.api.held(&own.path()).is_some());
    stage.api.become_(Mood::ReadOnly);
    own.tell(&stage, &json!({}));
    let failed = repaired("delete", "fail");
    stage.node.until("it may not be deleted", || stage.counts(&failed) && some(&failed))?;
    ensure!(stage.api.held(&own.path()).is_some());
    stage.api.become_(Mood::Well);
    stage.node.until("it is deleted", || stage.api.held(&own.path()).is_none())?;
    let deleted = repaired("delete", "success");
    stage.node.until("it is counted", || stage.counts(&format!("{deleted} 1")))?;
    let (_, body) = stage
        .api
        .written()
        .into_iter()
        .rfind(|(to, _)| *to == format!("DELETE {}", own.path()))
        .context("a deletion")?;
    ensure!(body["preconditions"]["uid"] == own.uid.as_str(), "{body}");
    stage.node.until("it is told of", || said(&stage, &own.uid, "DeletedUncaptured"))?;
    agent.stop()
}
