//! Pods of ambient mode on a node: its agent tells ztunnel of them first and captures them then, whether they
//! run already or a runtime starts them, and has them leave the other way round. Who answers a connection says
//! whether a pod is captured.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::cni::{Call, Mood, Pod};
use millrace_tests::node::Agent;
use millrace_tests::node_stage::{Running, Stage, events, said};
use millrace_tests::process::dial;
use millrace_tests::topology::APP;
use millrace_tests::wire::{Dial, Outcome, Proto};
use millrace_tests::ztunnel::Ztunnel;
use serde_json::{Value, json};

/// The label of pods and namespaces.
const MODE: &str = "istio.io/dataplane-mode";
/// What answers outside.
const HOST: &str = "10.1.0.1:80";

fn socket(stage: &Stage) -> PathBuf {
    stage.node.folder().join("ztunnel/ztunnel.sock")
}

/// Start the agent with ambient mode, and these flags beside.
fn start(stage: &Stage, more: &[&str]) -> Result<Agent> {
    let socket = socket(stage);
    let own =
        ["--ambient", "--repair", "off", "--ztunnel-socket", socket.to_str().context("a path")?];
    stage.start(&[&own, more].concat())
}

/// Say of a pod what its API says, with these labels and annotations.
fn tell(stage: &Stage, own: &Running, labels: &Value, annotations: &Value) {
    let spec = json!({
        "nodeName": Stage::NODE, "containers": [{ "name": "app" }], "serviceAccountName": "till",
    });
    own.tell(stage, &json!({ "labels": labels, "annotations": annotations, "spec": spec }));
}

/// A pod that runs without any label, in a namespace with or without one.
fn running(stage: &Stage, number: u32, mode: Option<&str>) -> Result<Running> {
    let own = Running::new(stage, number)?;
    tell(stage, &own, &json!({}), &json!({}));
    label(stage, mode);
    Ok(own)
}

fn label(stage: &Stage, mode: Option<&str>) {
    let labels = mode.map_or_else(|| json!({}), |mode| json!({ MODE: mode }));
    stage.api.put_namespace("shop", &labels);
}

/// The annotation by which others see that a pod is served.
fn annotation(stage: &Stage, path: &str) -> Value {
    let held = stage.api.held(path).unwrap_or_default();
    held["metadata"]["annotations"]["ambient.istio.io/redirection"].clone()
}

fn is_enrolled(stage: &Stage, own: &Running) -> bool {
    annotation(stage, &own.path()) == "enabled"
}

/// Who answers a pod that connects to the host, and what it was seen to want.
fn outward(stage: &Stage, pod: &Pod) -> Result<(String, Option<SocketAddr>)> {
    let answer = stage.host.dial(Some(pod), APP, HOST)?.context("nobody answers")?;
    Ok((answer.name, answer.original))
}

/// Who answers a connection to the pod from this address of the host.
fn inward(stage: &Stage, from: &str) -> Result<String> {
    let request = Dial {
        identity: APP,
        proto: Proto::Tcp,
        from: Some(from.parse()?),
        from_port: None,
        transparent_mark: None,
        to: "10.1.0.2:8080".parse()?,
        timeout_ms: 5000,
    };
    match dial(&stage.host.namespace, &request)? {
        Outcome::Answered { answer, .. } => Ok(answer.name),
        Outcome::Failed(failure) => anyhow::bail!("{failure:?}"),
    }
}

/// Verify that a pod which runs is left as it is while no ztunnel is there, and that this is said; that it is
/// captured as soon as one serves it, but for the probes of its node; that it leaves with its label, and
/// nothing of it stays.
#[test]
fn a_pod_that_runs_is_enrolled_and_leaves() -> Result<()> {
    let stage = Stage::new()?;
    let own = running(&stage, 11, Some("ambient"))?;
    stage.host.namespace.ip("addr add 10.1.0.99/24 dev up0")?;
    let _host = stage.host.serve(None, "host", HOST)?;
    let _app = stage.host.serve(Some(&own.pod), "app", "10.1.0.2:8080")?;
    stage.api.become_(Mood::ReadOnly);
    let mut agent = start(&stage, &[])?;
    stage.node.until("it can't be told of", || stage.node.log().contains("can't be written"))?;
    stage.api.become_(Mood::Well);
    stage.node.until("it is told of", || said(&stage, &own.uid, "AmbientEnrolFailed"))?;
    let told = events(&stage, &own.uid);
    ensure!(told[0].1.contains("no ztunnel is connected"), "{told:?}");
    ensure!(outward(&stage, &own.pod)?.0 == "host" && !is_enrolled(&stage, &own));
    ensure!(stage.counts("ztunnel_connected 0"), "{}", stage.node.log());
    stage.node.until("it is counted", || {
        stage.counts("millrace_node_ambient_pods{state=\"failed\"} 1")
    })?;

    let ztunnel = Ztunnel::proxying(&socket(&stage), "ztunnel");
    ztunnel.until_ready()?;
    stage.node.until("it is enrolled", || is_enrolled(&stage, &own))?;
    let original = Some(HOST.parse()?);
    ensure!(outward(&stage, &own.pod)? == ("ztunnel".to_owned(), original));
    ensure!(inward(&stage, "10.1.0.99")? == "ztunnel" && inward(&stage, "10.1.0.1")? == "app");
    let info = ztunnel.held().pods.get(&own.uid).map(|pod| pod.info.clone()).context("the pod")?;
    let names = [&info.name, &info.namespace, &info.service_account];
    ensure!(names == [own.pod.name.as_str(), "shop", "till"], "{info:?}");
    for line in [
        "ztunnel_connected 1",
        "millrace_node_ambient_pods{state=\"enrolled\"} 1",
        "nodeagent_reconcile_events_total{type=\"add\"} 1",
    ] {
        stage.node.until(line, || stage.counts(line))?;
    }

    label(&stage, None);
    stage.node.until("it has left", || annotation(&stage, &own.path()).is_null())?;
    ensure!(outward(&stage, &own.pod)?.0 == "host" && inward(&stage, "10.1.0.99")? == "app");
    ensure!(!stage.host.rules(&own.pod)?.contains("istio"), "{}", stage.host.rules(&own.pod)?);
    let routes = |inside: &millrace_tests::netns::Namespace| inside.run("ip", &["rule"]);
    ensure!(!stage.host.inside(&own.pod, routes)?.contains("lookup 100"));
    ztunnel.until("it is not served", |held| held.pods.is_empty())?;
    ensure!(said(&stage, &own.uid, "AmbientLeft"));
    agent.stop()
}

/// Verify that the node's settings count: which pods, from where probes come, and what is captured.
#[test]
fn the_nodes_settings_count() -> Result<()> {
    let stage = Stage::new()?;
    let own = running(&stage, 15, Some("ambient"))?;
    stage.host.namespace.ip("addr add 10.1.0.99/24 dev up0\naddr add 10.1.0.98/24 dev up0")?;
    let _host = stage.host.serve(None, "host", HOST)?;
    let _app = stage.host.serve(Some(&own.pod), "app", "10.1.0.2:8080")?;
    let ztunnel = Ztunnel::proxying(&socket(&stage), "ztunnel");
    let selectors = r#"[{"podSelector":{"matchLabels":{"mesh":"yes"}}}]"#;
    let flags = [
        ["--ambient-selectors", selectors],
        ["--ambient-node-ips", "10.1.0.99"],
        ["--ambient-dns-capture", "false"],
        ["--ambient-ipv6", "false"],
    ];
    let mut agent = start(&stage, flags.as_flattened())?;
    ztunnel.until_ready()?;
    ensure!(ztunnel.held().pods.is_empty() && outward(&stage, &own.pod)?.0 == "host");
    tell(&stage, &own, &json!({ "mesh": "yes" }), &json!({}));
    stage.node.until("it is enrolled", || is_enrolled(&stage, &own))?;
    ensure!(outward(&stage, &own.pod)?.0 == "ztunnel");
    ensure!(inward(&stage, "10.1.0.98")? == "ztunnel" && inward(&stage, "10.1.0.99")? == "app");
    let rules = stage.host.rules(&own.pod)?;
    ensure!(!rules.contains("15053") && !rules.contains("ip6 "), "{rules}");
    agent.stop()
}

/// Verify that what the chart gives to the agent is enough for it.
#[test]
fn the_chart_gives_what_it_takes() -> Result<()> {
    let stage = Stage::new()?;
    let own = running(&stage, 14, Some("ambient"))?;
    let _host = stage.host.serve(None, "host", HOST)?;
    let ztunnel = Ztunnel::proxying(&socket(&stage), "ztunnel");
    let path = socket(&stage);
    let flags =
        ["--ambient", "--repair", "off", "--ztunnel-socket", path.to_str().context("a path")?];
    let mut agent = stage.start_confined("ambient", None, &flags)?;
    stage.node.until("it is enrolled", || is_enrolled(&stage, &own))?;
    ensure!(outward(&stage, &own.pod)?.0 == "ztunnel");
    ensure!(ztunnel.held().pods.contains_key(&own.uid));
    agent.kill()
}

/// Verify that a pod stays captured and served whatever becomes of the agent; that one which is there again
/// changes nothing of that, writes rules that somebody took away meanwhile, and has a pod leave whose label went
/// meanwhile.
#[test]
fn an_agent_that_was_killed_goes_on() -> Result<()> {
    let stage = Stage::new()?;
    let own = running(&stage, 12, None)?;
    tell(&stage, &own, &json!({ MODE: "ambient" }), &json!({}));
    let _host = stage.host.serve(None, "host", HOST)?;
    let ztunnel = Ztunnel::proxying(&socket(&stage), "ztunnel");
    let mut agent = start(&stage, &[])?;
    stage.node.until("it is enrolled", || is_enrolled(&stage, &own))?;
    agent.kill()?;
    ensure!(outward(&stage, &own.pod)?.0 == "ztunnel");
    let before = stage.host.rules(&own.pod)?;
    let mut agent = start(&stage, &[])?;
    for _ in 0..20 {
        ensure!(outward(&stage, &own.pod)?.0 == "ztunnel");
    }
    ztunnel.until("its snapshot is complete again", |held| held.is_ready && held.hellos > 1)?;
    ensure!(outward(&stage, &own.pod)?.0 == "ztunnel" && stage.host.rules(&own.pod)? == before);
    ensure!(!ztunnel.held().heard.iter().any(|line| line.starts_with("del")));
    agent.kill()?;

    stage.host.inside(&own.pod, |inside| inside.run("nft", &["flush", "ruleset"]).map(drop))?;
    ensure!(outward(&stage, &own.pod)?.0 == "host");
    let hellos = ztunnel.held().hellos;
    let mut agent = start(&stage, &["--ambient-reconcile", "false"])?;
    ztunnel.until("the annotation is believed", |held| held.is_ready && held.hellos > hellos)?;
    ensure!(outward(&stage, &own.pod)?.0 == "host");
    agent.kill()?;
    let mut agent = start(&stage, &[])?;
    let is_captured = || outward(&stage, &own.pod).is_ok_and(|(who, _)| who == "ztunnel");
    stage.node.until("it is captured again", is_captured)?;
    agent.kill()?;

    tell(&stage, &own, &json!({}), &json!({ "ambient.istio.io/redirection": "enabled" }));
    let mut agent = start(&stage, &[])?;
    stage.node.until("it has left", || annotation(&stage, &own.path()).is_null())?;
    ensure!(outward(&stage, &own.pod)?.0 == "host");
    ztunnel.until("it is not served", |held| held.pods.is_empty())?;
    agent.stop()
}

/// Verify that a pod is captured as its annotations say, also where they change while it runs; that what is
/// wrong with them is said by name, and changes nothing; and that a pod which is gone is served no longer.
#[test]
fn annotations_count_while_a_pod_runs() -> Result<()> {
    let stage = Stage::new()?;
    let own = running(&stage, 13, Some("ambient"))?;
    let _host = stage.host.serve(None, "host", HOST)?;
    let ztunnel = Ztunnel::proxying(&socket(&stage), "ztunnel");
    let mut agent = start(&stage, &["--repair-period", "300ms"])?;
    let reaches = |name: &'static str| {
        stage.node.until(name, || outward(&stage, &own.pod).is_ok_and(|(who, _)| who == name))
    };
    reaches("ztunnel")?;
    let excluded = |ports: &str| json!({ "traffic.sidecar.istio.io/excludeOutboundPorts": ports });
    tell(&stage, &own, &json!({}), &excluded("80"));
    reaches("host")?;
    tell(&stage, &own, &json!({}), &excluded("web"));
    let is_said = || {
        events(&stage, &own.uid).iter().any(|(reason, note)| {
            reason == "AmbientEnrolFailed" && note.contains("excludeOutboundPorts")
        })
    };
    stage.node.until("the annotation is named", is_said)?;
    ensure!(outward(&stage, &own.pod)?.0 == "host");
    tell(&stage, &own, &json!({}), &json!({}));
    reaches("ztunnel")?;
    // Somebody takes the rules away.
    stage.host.inside(&own.pod, |inside| inside.run("nft", &["flush", "ruleset"]).map(drop))?;
    reaches("ztunnel")?;
    // The namespace wants it, and the pod doesn't.
    tell(&stage, &own, &json!({ MODE: "none" }), &json!({}));
    reaches("host")?;
    tell(&stage, &own, &json!({}), &json!({}));
    reaches("ztunnel")?;
    stage.api.remove_pod("shop", &own.pod.name);
    ztunnel.until("it is not served", |held| held.pods.is_empty())?;
    agent.stop()
}

/// An ADD of the plugin as the agent has it installed.
fn add(stage: &Stage, pod: &Pod) -> Call {
    let ips = json!([{ "address": "10.1.0.2/24" }, { "address": "fd01::2/64" }]);
    Call::new(&stage.host, "ADD", pod, json!({}))
        .with_key("ambient_enabled", json!(true))
        .with_key("exclude_namespaces", json!(["kube-system"]))
        .with_key("agent_socket", json!(stage.node.run_dir().join("agent.sock")))
        .with_key("prevResult", json!({ "cniVersion": "1.1.0", "interfaces": [], "ips": ips }))
}

/// Verify that ADD of a pod of ambient mode returns when it is captured and served, and fails where it is not:
/// without a ztunnel, and without an agent; and that it is nothing to any other pod.
#[test]
fn a_pod_that_starts_is_enrolled_before_add_returns() -> Result<()> {
    let stage = Stage::new()?;
    let pod = stage.host.linked_pod()?;
    let path = format!("/api/v1/namespaces/shop/pods/{}", pod.name);
    let put = |labels: &Value| {
        let spec = json!({ "nodeName": Stage::NODE, "containers": [{ "name": "app" }] });
        let status = json!({ "phase": "Pending" });
        let manifest = json!({ "labels": labels, "spec": spec, "status": status });
        stage.api.put_pod("shop", &pod.name, &pod.uid(), &manifest);
    };
    put(&json!({ MODE: "ambient" }));
    let _host = stage.host.serve(None, "host", HOST)?;
    let call = add(&stage, &pod);
    let msg = call.run(&stage.host)?.failure(11)?;
    ensure!(msg.contains("agent.sock"), "{msg}");
    let mut agent = start(&stage, &[])?;
    stage.node.until("it is ready", || stage.is_ready())?;
    let list = stage.node.conf().join("10-net.conflist");
    let list: Value = serde_json::from_str(&std::fs::read_to_string(list)?)?;
    ensure!(list["plugins"][1]["ambient_enabled"] == true, "{list}");
    let msg = call.run(&stage.host)?.failure(11)?;
    ensure!(msg.contains("no ztunnel is connected"), "{msg}");
    ensure!(outward(&stage, &pod)?.0 == "host" && stage.host.rules(&pod)?.is_empty());

    let ztunnel = Ztunnel::proxying(&socket(&stage), "ztunnel");
    ztunnel.until_ready()?;
    ensure!(ztunnel.held().pods.is_empty(), "what failed is served");
    ztunnel.refuse(&pod.uid(), "no ports are left");
    let msg = call.run(&stage.host)?.failure(11)?;
    ensure!(msg.contains("no ports are left"), "{msg}");
    ensure!(outward(&stage, &pod)?.0 == "host" && stage.host.rules(&pod)?.is_empty());
    ztunnel.refuse(&pod.uid(), "");
    call.run(&stage.host)?.success()?;
    ensure!(outward(&stage, &pod)? == ("ztunnel".to_owned(), Some(HOST.parse()?)));
    ensure!(ztunnel.held().pods.contains_key(&pod.uid()));
    stage.node.until("it is annotated", || annotation(&stage, &path) == "enabled")?;
    ensure!(events(&stage, &pod.uid()).is_empty(), "{:?}", events(&stage, &pod.uid()));
    // A runtime may call it again.
    call.run(&stage.host)?.success()?;
    ensure!(outward(&stage, &pod)?.0 == "ztunnel");
    let rules = stage.host.rules(&pod)?;
    ensure!(rules.contains("10.1.0.1") && rules.contains("fd01::1"), "{rules}");

    put(&json!({ MODE: "none" }));
    let has_left = || outward(&stage, &pod).is_ok_and(|(who, _)| who == "host");
    stage.node.until("it has left", has_left)?;
    ztunnel.until("it is not served", |held| held.pods.is_empty())?;
    call.run(&stage.host)?.success()?;
    ensure!(outward(&stage, &pod)?.0 == "host" && ztunnel.held().pods.is_empty());
    agent.stop()?;
    // Nobody is asked for a pod of an excluded namespace.
    let args = format!("K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME={}", pod.name);
    call.with_env("CNI_ARGS", &args).run(&stage.host)?.success().map(drop)
}

/// Verify that what was to be served and never was is not told to the ztunnel that comes later, and that a pod which
/// is captured is told to one that is new to it, whatever its annotations say by then.
#[test]
fn a_ztunnel_that_comes_later_hears_of_what_it_serves() -> Result<()> {
    let stage = Stage::new()?;
    let own = running(&stage, 16, Some("ambient"))?;
    let mut agent = start(&stage, &[])?;
    stage.node.until("it is told of", || said(&stage, &own.uid, "AmbientEnrolFailed"))?;
    label(&stage, None);
    stage.node.until("it is not counted", || {
        stage.counts("millrace_node_ambient_pods{state=\"failed\"} 0")
    })?;
    let ztunnel = Ztunnel::proxying(&socket(&stage), "ztunnel");
    ztunnel.until_ready()?;
    ensure!(ztunnel.held().pods.is_empty(), "a pod without a label is served");

    label(&stage, Some("ambient"));
    stage.node.until("it is enrolled", || is_enrolled(&stage, &own))?;
    agent.stop()?;
    drop(ztunnel);
    let wrong = json!({
        "ambient.istio.io/redirection": "enabled",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "http",
    });
    tell(&stage, &own, &json!({}), &wrong);
    let mut agent = start(&stage, &[])?;
    let ztunnel = Ztunnel::proxying(&socket(&stage), "ztunnel");
    ztunnel.until("it is told of the pod", |held| held.pods.contains_key(&own.uid))?;
    agent.stop()
}

/// Verify that rules which an agent left that died before it annotated the pod go where the pod is not to be served any
/// more.
#[test]
fn rules_that_no_annotation_tells_of_go() -> Result<()> {
    let stage = Stage::new()?;
    let own = running(&stage, 17, Some("ambient"))?;
    let _host = stage.host.serve(None, "host", HOST)?;
    let mut agent = start(&stage, &[])?;
    let ztunnel = Ztunnel::proxying(&socket(&stage), "ztunnel");
    stage.node.until("it is enrolled", || is_enrolled(&stage, &own))?;
    ensure!(outward(&stage, &own.pod)?.0 == "ztunnel");
    agent.stop()?;
    drop(ztunnel);
    tell(&stage, &own, &json!({}), &json!({}));
    label(&stage, None);
    let mut agent = start(&stage, &[])?;
    let is_free = || outward(&stage, &own.pod).is_ok_and(|(who, _)| who == "host");
    stage.node.until("its rules are gone", is_free)?;
    stage.node.until("it is said", || said(&stage, &own.uid, "AmbientLeft"))?;
    agent.stop()
}
