//! The agent as a plugin of a container runtime: which pods it captures, leaves and refuses, what it does
//! about a runtime that is slow, lies or goes away, and that neither a second agent nor the CNI plugin is in
//! its way.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_node::nri::messages::{PodSandbox, Status};
use millrace_tests::cni::{Call, Mood, Pod, SIDECAR, STATUS, mesh};
use millrace_tests::node::{Agent, Node};
use millrace_tests::node_stage::Stage;
use millrace_tests::nri::{Plugin, Runtime, namespaces, sandbox};
use serde_json::{Value, json};

/// What a runtime gives a request when nobody says otherwise.
const LIMIT: Duration = Duration::from_secs(2);
/// Numbers of events.
const RUN: i32 = 1;
/// What is written for a captured pod.
const RULES: &str = "table inet millrace";

/// A stage with a runtime's socket.
struct Scene {
    stage: Stage,
    socket: PathBuf,
}

impl Scene {
    fn new() -> Result<Self> {
        let stage = Stage::new()?;
        let socket = stage.node.folder().join("nri.sock");
        Ok(Self { stage, socket })
    }

    fn runtime(&self) -> Result<Runtime> {
        Runtime::new(&self.socket)
    }

    fn agent(&self, hook: &str, more: &[&str]) -> Result<Agent> {
        let socket = self.socket.to_str().context("a path")?;
        let own = ["--hook", hook, "--nri-socket", socket];
        self.stage.start(&[&own[..], more].concat())
    }

    fn is_captured(&self, pod: &Pod) -> Result<bool> {
        Ok(self.stage.host.rules(pod)?.contains(RULES))
    }

    /// How often the agent logged this.
    fn said(&self, part: &str) -> usize {
        self.stage.node.log().matches(part).count()
    }

    fn list(&self) -> Result<String> {
        Ok(fs::read_to_string(self.stage.node.conf().join("10-net.conflist"))?)
    }
}

fn refused(answer: std::result::Result<(), Status>) -> Result<String> {
    let status = answer.err().context("it is not refused")?;
    ensure!(status.message.len() < 4000, "{status:?}");
    Ok(status.message)
}

fn accepted(answer: std::result::Result<(), Status>) -> Result<()> {
    answer.map_err(|status| anyhow::anyhow!("refused: {status:?}"))
}

/// Verify that a mesh pod is captured before its runtime goes on, by the newer and by the older way to tell of
/// it, and only once; that a plain pod and one with its node's network are left alone; that annotations which
/// are wrong are refused with the plugin's code, and that nothing is written for that pod.
#[test]
fn pods_are_captured_left_or_refused() -> Result<()> {
    let scene = Scene::new()?;
    let host = &scene.stage.host;
    let runtime = scene.runtime()?;
    let mut agent = scene.agent("nri", &[])?;
    let mut plugin = runtime.accept()?;
    ensure!(!scene.stage.is_ready(), "it is ready without a word of the pods");
    assert_eq!(plugin.configure(LIMIT)?, 0b1111);
    plugin.synchronize(Vec::new(), &[], true)?;
    plugin.synchronize(Vec::new(), &[], false)?;
    scene.stage.node.until("it is ready", || scene.stage.is_ready())?;
    ensure!(scene.stage.counts("millrace_node_nri_connected 1"));
    ensure!(scene.stage.counts("istio_cni_install_ready 1"));

    let pods = [host.pod()?, host.pod()?, host.pod()?, host.pod()?, host.pod()?];
    let [newer, older, plain, bad, lost] = &pods;
    let meshed = sandbox(newer, &mesh(&[]));
    accepted(plugin.run_pod(&meshed)?)?;
    ensure!(scene.is_captured(newer)?, "{}", scene.stage.node.log());
    let before = host.rules(newer)?;
    accepted(plugin.run_pod(&meshed)?)?;
    assert_eq!(host.rules(newer)?, before);
    assert_eq!(scene.said("captured already, as desired"), 1);
    accepted(plugin.state_change(RUN, &sandbox(older, &mesh(&[])))?)?;
    ensure!(scene.is_captured(older)?);

    accepted(plugin.run_pod(&sandbox(plain, &json!({ "a": "b" })))?)?;
    ensure!(!scene.is_captured(plain)?);
    let of_node = PodSandbox { linux: Some(namespaces(&[("pid", "")])), ..meshed.clone() };
    accepted(plugin.run_pod(&of_node)?)?;
    assert_eq!(scene.said("it has the network of its node"), 1);

    let name = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    let told = refused(plugin.run_pod(&sandbox(bad, &mesh(&[(name, "10.0.0.0/99")])))?)?;
    for part in ["millrace (code 102): ", name, "10.0.0.0/99", &format!("pod shop/{}", bad.name)] {
        ensure!(told.contains(part), "{part}: {told}");
    }
    ensure!(!scene.is_captured(bad)?);

    // A pod that can't be reached, or that is the node itself, is refused where it is in the mesh alone.
    for (path, what) in [("/run/netns/none", "no network namespace"), ("/proc/self/ns/net", "host")]
    {
        for (annotations, is_refused) in [(mesh(&[]), true), (json!({}), false)] {
            let linux = Some(namespaces(&[("network", path)]));
            let pod = PodSandbox { linux, ..sandbox(lost, &annotations) };
            let answer = plugin.run_pod(&pod)?;
            assert_eq!(answer.is_err(), is_refused, "{path} {annotations} {answer:?}");
            if is_refused {
                let told = refused(answer)?;
                ensure!(told.contains("code 4") && told.contains(what), "{told}");
            }
        }
    }
    for method in ["UpdatePodSandbox", "StopPodSandbox", "RemovePodSandbox", "CreateContainer"] {
        accepted(plugin.about(method, &meshed)?)?;
    }
    ensure!(scene.is_captured(newer)?, "a pod whose namespace is there lost its rules");
    accepted(plugin.call("Shutdown", Vec::new())?.map(drop))?;
    ensure!(plugin.call("Execute", Vec::new())?.is_err_and(|status| status.code == 12));
    let counted = "millrace_node_nri_duration_seconds_count{request=\"RunPodSandbox\",outcome=";
    for (outcome, count) in [("captured", 3), ("refused", 1), ("bad_request", 2)] {
        let line = format!("{counted}\"{outcome}\"}} {count}");
        ensure!(scene.stage.counts(&line), "{line}");
    }
    agent.stop()
}

/// Verify that a pod of which the runtime does not tell enough is looked up; and that it is refused, in the time
/// that the runtime has, where nobody tells, and where the runtime has less time than usual.
#[test]
fn an_answer_comes_in_time() -> Result<()> {
    let scene = Scene::new()?;
    let host = &scene.stage.host;
    let runtime = scene.runtime()?;
    let _agent = scene.agent("nri", &["--settings", r#"{"linkerd":{}}"#])?;
    let mut plugin = runtime.settled(LIMIT, Vec::new(), &[])?;
    let (known, unknown) = (host.pod()?, host.pod()?);
    let containers = json!([{ "name": "app" }, { "name": "linkerd-proxy" }]);
    let manifest = json!({ "spec": { "nodeName": Stage::NODE, "containers": containers } });
    scene.stage.api.put_pod("shop", &known.name, &known.uid(), &manifest);
    accepted(plugin.run_pod(&sandbox(&known, &json!({})))?)?;
    ensure!(!host.rules(&known)?.is_empty(), "{}", scene.stage.node.log());

    let told = refused(plugin.run_pod(&sandbox(&unknown, &json!({})))?)?;
    ensure!(told.contains("code 11") && told.contains("no such pod"), "{told}");
    scene.stage.api.become_(Mood::Slow(Duration::from_secs(20)));
    let began = Instant::now();
    let told = refused(plugin.run_pod(&sandbox(&unknown, &json!({})))?)?;
    ensure!(told.contains("code 11") && told.contains("in time"), "{told}");
    ensure!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    drop(plugin);

    let short = Duration::from_millis(800);
    let mut plugin = runtime.settled(short, Vec::new(), &[])?;
    let began = Instant::now();
    refused(plugin.run_pod(&sandbox(&unknown, &json!({})))?)?;
    ensure!(began.elapsed() < short, "{:?}", began.elapsed());
    Ok(())
}

/// Verify that a lost connection is made again at once, also to a runtime that was away; and that a runtime that
/// sends what no runtime sends, or does not go on, is left without keeping the agent from the next one, and
/// costs no memory.
#[test]
fn a_connection_is_made_again() -> Result<()> {
    let scene = Scene::new()?;
    let host = &scene.stage.host;
    let agent = scene.agent("nri", &[])?;
    thread::sleep(Duration::from_millis(300));
    ensure!(!scene.stage.is_ready());
    let runtime = scene.runtime()?;
    let plugin = runtime.settled(LIMIT, Vec::new(), &[])?;
    thread::sleep(Duration::from_millis(1100));
    drop(plugin);
    let began = Instant::now();
    let plugin = runtime.settled(LIMIT, Vec::new(), &[])?;
    ensure!(began.elapsed() < Duration::from_millis(500), "{:?}", began.elapsed());
    // The runtime is started anew: its socket is gone for a while, and then it is another one.
    drop((runtime, plugin));
    scene.stage.node.until("it is told", || !scene.stage.is_ready())?;
    ensure!(scene.stage.counts("millrace_node_nri_connected 0"));
    let runtime = scene.runtime()?;
    let mut plugin = runtime.settled(LIMIT, Vec::new(), &[])?;

    let frame = |channel: u32, length: u32| [channel.to_be_bytes(), length.to_be_bytes()].concat();
    let header = |length: u32, kind: u8| {
        [&frame(1, 10), &length.to_be_bytes()[..], &[0, 0, 0, 1], &[kind, 0]].concat()
    };
    let nonsense =
        [frame(0, 1), frame(9, 1), frame(1, u32::MAX), header(u32::MAX, 1), header(1, 7)];
    for bytes in nonsense {
        plugin.say(&bytes)?;
        ensure!(plugin.closes(Duration::from_secs(20))?, "{bytes:?}");
        plugin = runtime.settled(LIMIT, Vec::new(), &[])?;
    }
    drop(plugin);
    let mut silent = Plugin::on(runtime.stream(Duration::from_secs(20))?);
    // The end of a frame that never comes.
    silent.say(&frame(1, 100))?;
    ensure!(silent.closes(Duration::from_secs(30))?, "a frame without end");
    // All that a runtime may tell of, and more.
    let mut flood = runtime.accept()?;
    flood.configure(LIMIT)?;
    let long = PodSandbox { id: "x".repeat(3 << 20), ..PodSandbox::default() };
    let mut told = 0;
    while told < 40 && flood.synchronize(vec![long.clone()], &[], true).is_ok() {
        told += 1;
    }
    ensure!((10..30).contains(&told), "{told}");
    drop(flood);
    let mut plugin = runtime.settled(LIMIT, Vec::new(), &[])?;
    let pod = host.pod()?;
    accepted(plugin.run_pod(&sandbox(&pod, &mesh(&[])))?)?;
    ensure!(scene.is_captured(&pod)?);
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let most = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
    let most: u64 = most.trim().trim_end_matches(" kB").parse()?;
    ensure!(most < 300 << 10, "{most} kB");
    Ok(())
}

/// Verify that of pods that were there before the connection those without a container are captured, and their
/// first container is refused as long as that fails; and that those that run are looked at once more.
#[test]
fn pods_of_before_are_found() -> Result<()> {
    let scene = Scene::new()?;
    let host = &scene.stage.host;
    let pods = [host.pod()?, host.pod()?, host.pod()?];
    let [early, bad, running] = &pods;
    let name = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    let (early_one, bad_one) =
        (sandbox(early, &mesh(&[])), sandbox(bad, &mesh(&[(name, "10.0.0.0/99")])));
    let running_one = sandbox(running, &mesh(&[]));
    let runtime = scene.runtime()?;
    let _agent = scene.agent("nri", &["--repair-period", "1h"])?;
    let looks = |count: usize| format!("millrace_node_repair_passes_total {count}");
    scene.stage.node.until("pods are looked at", || scene.stage.counts(&looks(1)))?;
    let all = vec![early_one.clone(), bad_one.clone(), running_one.clone()];
    let mut plugin = runtime.settled(LIMIT, all, &[&running.id])?;
    scene.stage.node.until("it is captured", || scene.is_captured(early).is_ok_and(|is| is))?;
    scene.stage.node.until("pods are looked at", || scene.stage.counts(&looks(2)))?;
    accepted(plugin.about("CreateContainer", &early_one)?)?;
    let told = refused(plugin.about("CreateContainer", &bad_one)?)?;
    ensure!(told.contains("code 102"), "{told}");
    ensure!(!scene.is_captured(bad)?);
    // Older runtimes may leave a pod out that starts at that moment.
    let unheard = host.pod()?;
    accepted(plugin.about("CreateContainer", &sandbox(&unheard, &mesh(&[])))?)?;
    ensure!(scene.is_captured(&unheard)?);
    // A pod that runs is the repair's, which reports here.
    accepted(plugin.about("CreateContainer", &running_one)?)?;
    ensure!(!scene.is_captured(running)?);
    Ok(())
}

/// Verify that two agents at once, as an update may have them, capture a pod once: one of them finds it done.
#[test]
fn two_agents_capture_once() -> Result<()> {
    let scene = Scene::new()?;
    let host = &scene.stage.host;
    let runtime = scene.runtime()?;
    let _first = scene.agent("nri", &[])?;
    let mut first = runtime.settled(LIMIT, Vec::new(), &[])?;
    let second = Node::new()?;
    let (socket, account) = (scene.socket.clone(), scene.stage.node.folder().join("account"));
    let port = scene.stage.api.port().to_string();
    let args = [
        ["--hook", "nri"],
        ["--nri-socket", socket.to_str().context("a path")?],
        ["--node-name", Stage::NODE],
        ["--kubernetes-host", "127.0.0.1"],
        ["--kubernetes-port", &port],
        ["--service-account", account.to_str().context("a path")?],
    ]
    .concat();
    let _second = host.namespace.enter(|| second.run(&args))??;
    let mut other = runtime.settled(LIMIT, Vec::new(), &[])?;
    for _ in 0..10 {
        let pod = host.pod()?;
        let told = sandbox(&pod, &mesh(&[]));
        let (one, two) = thread::scope(|scope| {
            let one = scope.spawn(|| first.run_pod(&told));
            let two = other.run_pod(&told);
            (one.join(), two)
        });
        accepted(one.map_err(|_panic| anyhow::anyhow!("a fault"))??)?;
        accepted(two?)?;
        let rules = host.rules(&pod)?;
        assert_eq!(rules.matches(RULES).count(), 1, "{rules}");
        host.remove(&pod)?;
    }
    let logs = scene.stage.node.log() + &second.log();
    let count = |part: &str| logs.matches(part).count();
    let (done, found) = (count("\"message\":\"captured\""), count("captured already, as desired"));
    assert_eq!((done, found), (10, 10), "{logs}");
    Ok(())
}

/// Verify that with both hooks the plugin of the list captures and the agent finds that done; that the entry
/// stays in the list until the runtime tells of pods, and goes then where the agent alone is wanted; and that it
/// comes back.
#[test]
fn a_node_goes_from_one_hook_to_the_other() -> Result<()> {
    let scene = Scene::new()?;
    let host = &scene.stage.host;
    let mut agent = scene.agent("both", &[])?;
    scene.stage.node.until("the entry is there", || {
        scene.list().is_ok_and(|list| list.contains("millrace-cni"))
    })?;
    ensure!(!scene.stage.is_ready(), "it is ready with one of both");
    let runtime = scene.runtime()?;
    let mut plugin = runtime.settled(LIMIT, Vec::new(), &[])?;
    scene.stage.node.until("it is ready", || scene.stage.is_ready())?;
    let pod = host.pod()?;
    let reply = Call::new(host, "ADD", &pod, json!({ STATUS: SIDECAR })).run(host)?;
    ensure!(reply.code == Some(0), "{reply:?}");
    let rules = host.rules(&pod)?;
    ensure!(rules.contains(RULES));
    accepted(plugin.run_pod(&sandbox(&pod, &mesh(&[])))?)?;
    assert_eq!(host.rules(&pod)?, rules);
    assert_eq!(scene.said("captured already, as desired"), 1);
    agent.stop()?;
    drop((runtime, plugin));

    let mut agent = scene.agent("nri", &[])?;
    thread::sleep(Duration::from_millis(500));
    ensure!(scene.list()?.contains("millrace-cni"), "nobody captures");
    let runtime = scene.runtime()?;
    let _plugin = runtime.settled(LIMIT, Vec::new(), &[])?;
    scene.stage.node.until("the entry is gone", || {
        scene.list().is_ok_and(|list| !list.contains("millrace-cni"))
    })?;
    ensure!(scene.is_captured(&pod)?);
    agent.stop()?;

    let mut agent = scene.agent("cni", &[])?;
    scene.stage.node.until("the entry is back", || {
        scene.list().is_ok_and(|list| list.contains("millrace-cni"))
    })?;
    agent.stop()
}

/// Verify that of a pod with users of its own, whom the plugin captures in a process of its own, nothing is
/// believed but what is there: a plugin that succeeds and does nothing is a refusal.
#[test]
fn a_plugin_that_does_nothing_captures_nothing() -> Result<()> {
    let scene = Scene::new()?;
    let host = &scene.stage.host;
    let runtime = scene.runtime()?;
    // What the agent of this node brings in place of the plugin is `true`.
    let _agent = scene.agent("nri", &[])?;
    let mut plugin = runtime.settled(LIMIT, Vec::new(), &[])?;
    let mut unshare = Command::new("unshare");
    unshare.args(["--user", "--map-root-user", "--net", "sleep", "600"]);
    let mut process = host.namespace.enter(|| unshare.spawn())?.context("unshare")?;
    let path = format!("/proc/{}/ns/net", process.id());
    let of_host = host.namespace.enter(|| fs::read_link("/proc/thread-self/ns/net"))??;
    scene.stage.node.until("it has a network of its own", || {
        fs::read_link(&path).is_ok_and(|own| own != of_host)
    })?;
    let pod = host.pod()?;
    let told = sandbox(&pod, &mesh(&[]));
    let told = PodSandbox { linux: Some(namespaces(&[("network", &path)])), ..told };
    let answer = plugin.run_pod(&told);
    process.kill()?;
    process.wait()?;
    let told = refused(answer?)?;
    ensure!(told.contains("code 100") && told.contains("the plugin has captured it"), "{told}");
    Ok(())
}

/// Verify that a node that was uninstalled has no plugin of the runtime, while the agent runs and when it begins.
#[test]
fn an_uninstalled_node_has_none() -> Result<()> {
    let scene = Scene::new()?;
    let runtime = scene.runtime()?;
    let mut agent = scene.agent("nri", &[])?;
    let mut plugin = runtime.settled(LIMIT, Vec::new(), &[])?;
    scene.stage.node.do_("uninstall", &["--grace", "0s"])?;
    ensure!(plugin.closes(Duration::from_secs(20))?);
    ensure!(runtime.stream(Duration::from_secs(3)).is_err(), "it comes back");
    agent.stop()?;
    let _agent = scene.agent("nri", &["--install-again"])?;
    let _plugin = runtime.settled(LIMIT, Vec::new(), &[])?;
    Ok(())
}

/// Verify that `status` tells whether the runtime is connected, as the agent that runs knows it: in words, in
/// JSON and by its exit code; and that a list still names the plugin.
#[test]
fn status_tells_of_the_connection() -> Result<()> {
    let scene = Scene::new()?;
    let (runtime, node) = (scene.runtime()?, &scene.stage.node);
    let list = r#"{"name":"net","plugins":[{"type":"bridge"},{"type":"millrace-cni"}]}"#;
    node.write("10-net.conflist", list)?;
    let socket = scene.socket.to_str().context("a path")?;
    let told = |hook: &str| -> Result<(bool, Value)> {
        let args = ["--hook", hook, "--nri-socket", socket, "--json"];
        let output = node.once("status", &args)?;
        let said = serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
        Ok((output.status.success(), said))
    };
    let waits = |part: &str| -> Result<()> {
        let (is_done, said) = told("nri")?;
        ensure!(!is_done && said["state"] == "waiting" && said["connected"] == false, "{said}");
        ensure!(said["what"].as_str().is_some_and(|what| what.contains(part)), "{part}: {said}");
        Ok(())
    };
    waits("no agent answers on ")?;
    let note = told("nri")?.1["notes"].to_string();
    ensure!(note.contains("10-net.conflist names the plugin"), "{note}");
    let mut agent = scene.agent("nri", &[])?;
    let mut plugin = runtime.accept()?;
    waits("the runtime is not connected: it was not tried yet")?;

    plugin.configure(LIMIT)?;
    plugin.synchronize(Vec::new(), &[], false)?;
    node.until("it is ready", || scene.stage.is_ready())?;
    let is_removed = || scene.list().is_ok_and(|list| !list.contains("millrace-cni"));
    node.until("the entry is removed", is_removed)?;
    let wanted = json!({ "state": "installed", "what": socket, "notes": [], "connected": true });
    assert_eq!(told("nri")?, (true, wanted));
    let text = node.do_("status", &["--hook", "nri", "--nri-socket", socket])?;
    assert_eq!(text, format!("installed: the runtime at {socket} tells the agent of each pod\n"));
    // What the CNI plugin lacks is told where it is wanted, too.
    let (is_done, said) = told("both")?;
    ensure!(!is_done && said["state"] == "waiting" && said["connected"] == true, "{said}");
    ensure!(said["notes"].to_string().contains("tells the agent of each pod"), "{said}");
    ensure!(told("cni")?.1.get("connected").is_none());

    drop(plugin);
    node.until("it is gone", || !scene.stage.is_ready())?;
    waits("it closed the connection")?;
    agent.stop()?;
    waits("no agent answers on ")
}
