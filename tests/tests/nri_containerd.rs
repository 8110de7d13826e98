//! Pods that containerd 2 runs while the agent is its plugin, and no entry of Millrace's is in the list of
//! the network's plugins: which are captured, and what becomes of those that start without the agent.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::chart::{objects, of_kind, repository};
use millrace_tests::cni::{Containerd, List, Sandbox, mesh};
use millrace_tests::node::Agent;
use millrace_tests::node_stage::Stage;
use millrace_tests::topology::ROOT;
use millrace_tests::wire::Answer;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

/// The first of the machine's users that are a pod's.
const FIRST_USER: u32 = 300_000;

/// A stage with containerd, whose network has its own plugins alone.
struct Scene {
    stage: Stage,
    containerd: Containerd,
}

impl Scene {
    fn new(subnet: u8) -> Result<Self> {
        Self::with(subnet, false)
    }

    /// With the plugin's entry in the list, or without.
    fn with(subnet: u8, entry: bool) -> Result<Self> {
        let mut stage = Stage::new()?;
        stage.node = stage.node.with_plugin(&binary::millrace_cni()?);
        let host = &stage.host;
        host.namespace
            .ip("addr add 198.51.100.7/32 dev lo\naddr add 2001:db8::7/128 dev lo nodad")?;
        let mut list = List::bridge(host, "1.0.0", subnet);
        if !entry {
            let _own = list.plugins.pop();
        }
        let containerd = Containerd::start_newer(host, &list)?;
        Ok(Self { stage, containerd })
    }

    /// Start the agent, and wait until the runtime tells it of pods.
    fn agent(&self) -> Result<Agent> {
        let agent = self.stage.start(&["--hook", "nri", "--repair", "off"])?;
        self.connected()?;
        Ok(agent)
    }

    fn connected(&self) -> Result<()> {
        self.stage.node.until("it is ready", || self.stage.is_ready())
    }

    fn is_captured(&self, sandbox: &Sandbox) -> Result<bool> {
        Ok(self.stage.host.rules(&sandbox.pod)?.contains("table inet millrace"))
    }

    fn dial(&self, container: &str, address: &str, port: u16) -> Result<Answer> {
        let text =
            self.containerd.exec(container, &["nc", "-w", "5", address, &port.to_string()])?;
        serde_json::from_str(&text).with_context(|| text)
    }
}

/// Verify that traffic of a mesh pod meets its proxy in both families and directions, also in a pod with users
/// of its own; that a plain pod and one with its node's network are left alone; and that the kubelet learns what
/// is wrong with annotations, and nothing is left of that pod.
#[test]
fn traffic_of_containers() -> Result<()> {
    let scene = Scene::new(60)?;
    let (host, containerd) = (&scene.stage.host, &scene.containerd);
    let services = ["198.51.100.7", "2001:db8::7"];
    let at = |address: &str, port: u16| {
        if address.contains(':') {
            format!("[{address}]:{port}")
        } else {
            format!("{address}:{port}")
        }
    };
    let _services: Vec<_> = services
        .iter()
        .map(|address| host.serve(None, "service", &at(address, 80)))
        .collect::<Result<_>>()?;
    let mut agent = scene.agent()?;
    let meshed = containerd.run_pod("meshed", &mesh(&[]))?;
    let users = containerd.run_pod_with_users("users", &mesh(&[]), FIRST_USER)?;
    let plain = containerd.run_pod("plain", &json!({ "a": "b" }))?;
    let log = scene.stage.node.log();
    ensure!(scene.is_captured(&meshed)? && scene.is_captured(&users)?, "{log}");
    ensure!(!scene.is_captured(&plain)?, "{log}");
    let of_node = containerd.run_pod_of_node("of-node", &mesh(&[]))?;
    ensure!(!host.namespace.run("nft", &["list", "ruleset"])?.contains("millrace"));
    ensure!(scene.stage.node.log().contains("it has the network of its node"), "{log}");
    for pod in [&meshed, &users] {
        assert_eq!(pod.addresses.len(), 2);
        let _proxy = host.proxy(&pod.pod)?;
        let app = containerd.run_container(pod, "app", 1000)?;
        let proxy = containerd.run_container(pod, "proxy", 1337)?;
        for (address, own) in services.iter().zip(&pod.addresses) {
            let out = scene.dial(&app, address, 80)?;
            assert_eq!((out.name.as_str(), out.port), ("proxy", 15001), "{out:?}");
            assert_eq!(out.original, Some(at(address, 80).parse()?), "{out:?}");
            assert_eq!(scene.dial(&proxy, address, 80)?.name, "service");
            let inbound = host.dial(None, ROOT, &at(own, 8080))?.context("inbound")?;
            assert_eq!((inbound.name.as_str(), inbound.port), ("proxy", 15006), "{inbound:?}");
        }
    }
    let other = containerd.run_container(&plain, "app", 1000)?;
    assert_eq!(scene.dial(&other, services[0], 80)?.name, "service");

    let name = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    let error = containerd.run_pod("bad", &mesh(&[(name, "10.0.0.0/99")])).unwrap_err();
    let error = format!("{error:#}");
    for part in ["millrace (code 102): pod shop/bad: ", name, "10.0.0.0/99"] {
        ensure!(error.contains(part), "{part}: {error}");
    }
    let mut left = [&meshed.pod.id, &users.pod.id, &plain.pod.id, &of_node];
    left.sort();
    let mut there = containerd.pods()?;
    there.sort();
    ensure!(there.iter().eq(left.iter().copied()), "{there:?}");
    let notes = scene.stage.node.run_dir().join("nri");
    assert_eq!(notes.read_dir()?.count(), 1);
    for id in there {
        containerd.remove_pod(&id)?;
    }
    assert_eq!(notes.read_dir()?.count(), 0);
    agent.stop()
}

/// Verify that the agent finds done what the plugin of the list has done, and says so.
#[test]
fn the_plugin_of_a_list_comes_first() -> Result<()> {
    let scene = Scene::with(65, true)?;
    let _agent = scene.agent()?;
    let pod = scene.containerd.run_pod("both", &mesh(&[]))?;
    ensure!(scene.is_captured(&pod)?);
    let log = scene.stage.node.log();
    ensure!(log.contains("captured already, as desired"), "{log}");
    scene.containerd.remove_pod(&pod.pod.id)?;
    Ok(())
}

/// Verify that thirty pods at once are all captured.
#[test]
fn thirty_pods_at_once() -> Result<()> {
    let scene = Scene::new(61)?;
    let _agent = scene.agent()?;
    let names: Vec<String> = (0..30).map(|number| format!("pod-{number}")).collect();
    for sandbox in scene.containerd.run_pods(&names, &mesh(&[]))? {
        ensure!(scene.is_captured(&sandbox)?, "{}\n{}", sandbox.pod.name, scene.stage.node.log());
    }
    Ok(())
}

/// Verify that a pod that started while the agent was killed, or stood still, is captured once the runtime is
/// connected again, before its first container where that is later; and that one which can't be has no container.
#[test]
fn pods_that_start_without_the_agent() -> Result<()> {
    let scene = Scene::new(62)?;
    let containerd = &scene.containerd;
    let mut agent = scene.agent()?;
    agent.kill()?;
    let early = containerd.run_pod("early", &mesh(&[]))?;
    let name = "traffic.sidecar.istio.io/excludeOutboundIPRanges";
    let bad = containerd.run_pod("bad", &mesh(&[(name, "10.0.0.0/99")]))?;
    ensure!(!scene.is_captured(&early)?);
    let agent = scene.agent()?;
    scene.stage.node.until("it is captured", || scene.is_captured(&early).is_ok_and(|is| is))?;
    let _app = containerd.run_container(&early, "app", 1000)?;
    let error = containerd.run_container(&bad, "app", 1000).unwrap_err();
    ensure!(format!("{error:#}").contains("millrace (code 102)"), "{error:#}");

    // It stands still: the runtime waits for so long as it does for a request, and goes on without it.
    let pid = Pid::from_raw(i32::try_from(agent.pid())?);
    kill(pid, Signal::SIGSTOP)?;
    let began = Instant::now();
    let still = containerd.run_pod("still", &mesh(&[]))?;
    ensure!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    ensure!(!scene.is_captured(&still)?);
    kill(pid, Signal::SIGCONT)?;
    scene.stage.node.until("it is captured", || scene.is_captured(&still).is_ok_and(|is| is))?;
    scene.connected()?;
    let later = containerd.run_pod("later", &mesh(&[]))?;
    ensure!(scene.is_captured(&later)?);
    Ok(())
}

/// Verify that agents which come and go while pods start leave none uncaptured.
#[test]
fn agents_that_come_and_go() -> Result<()> {
    let scene = Scene::new(63)?;
    let first = scene.agent()?;
    let (pods, agent) = thread::scope(|scope| -> Result<_> {
        let restarted = scope.spawn(|| -> Result<Agent> {
            let mut agent = first;
            for _ in 0..4 {
                thread::sleep(Duration::from_millis(500));
                agent.kill()?;
                agent = scene.stage.start(&["--hook", "nri", "--repair", "off"])?;
            }
            Ok(agent)
        });
        let mut pods = Vec::new();
        for round in 0..5 {
            let names: Vec<String> = (0..6).map(|number| format!("pod-{round}-{number}")).collect();
            pods.extend(scene.containerd.run_pods(&names, &mesh(&[]))?);
        }
        let agent = restarted.join().map_err(|_panic| anyhow::anyhow!("a fault"))??;
        Ok((pods, agent))
    })?;
    scene.connected()?;
    for sandbox in &pods {
        let what = format!("{} is captured", sandbox.pod.name);
        scene.stage.node.until(&what, || scene.is_captured(sandbox).is_ok_and(|is| is))?;
    }
    drop(agent);
    Ok(())
}

/// Verify that with what the chart gives to the agent, and no more, pods are captured, also those with users of
/// their own: without the folder of network namespaces, by their first processes alone.
#[test]
fn the_chart_gives_what_it_takes() -> Result<()> {
    const SCRIPT: &str = "set -e; caps=$1; folder=$2; shift 2; mkdir -p \"$folder\"; \
                          mount --bind /run/nri \"$folder\"; mount -t tmpfs tmpfs /run; \
                          exec setpriv --no-new-privs --bounding-set=-all,$caps --inh-caps=-all \"$@\"";
    let scene = Scene::new(64)?;
    let (stage, containerd) = (&scene.stage, &scene.containerd);
    let text = fs::read_to_string(repository("tests/golden/chart/nri.yaml"))?;
    let objects = objects(&text)?;
    let spec = &of_kind(&objects, "DaemonSet")?["spec"]["template"]["spec"];
    let added = spec["containers"][0]["securityContext"]["capabilities"]["add"].clone();
    let all: Vec<String> = serde_json::from_value(added)?;
    let folder = stage.node.folder().join("host-nri");
    let (proc, socket) = (containerd.proc()?, folder.join("nri.sock"));
    let text = |path: &Path| path.to_str().map(str::to_owned).context("a path");
    let (folder, proc, socket) = (text(&folder)?, text(&proc)?, text(&socket)?);
    let args = ["--hook", "nri", "--proc-dir", &proc, "--nri-socket", &socket];
    for without in [Some("SYS_ADMIN"), Some("NET_ADMIN"), Some("SYS_PTRACE"), None] {
        ensure!(without.is_none_or(|name| all.iter().any(|own| own == name)), "{all:?}");
        let left = all.iter().filter(|own| Some(own.as_str()) != without);
        let caps: Vec<String> = left.map(|own| format!("+{}", own.to_lowercase())).collect();
        let caps = caps.join(",");
        let words = ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", &caps, &folder];
        let mut agent = stage.start_by(&words, &args)?;
        scene.connected()?;
        let name = format!("pod-{}", without.unwrap_or("all").to_lowercase().replace('_', "-"));
        let run = containerd.run_pod(&name, &mesh(&[]));
        if without.is_some() {
            let error = format!("{:#}", run.err().context("it is not refused")?);
            ensure!(error.contains("millrace (code "), "without {without:?}: {error}");
        } else {
            let users = containerd.run_pod_with_users("users", &mesh(&[]), FIRST_USER)?;
            for sandbox in [run?, users] {
                ensure!(scene.is_captured(&sandbox)?, "{}", stage.node.log());
            }
        }
        agent.kill()?;
        stage.node.until("it is gone", || stage.get(Stage::HEALTH, "/livez").is_err())?;
    }
    Ok(())
}

/// Verify that pods outlive the runtime's restart, captured; that the agent says that it is not connected, and
/// is the runtime's plugin again by itself; and that pods of before, of right after and of later are captured.
#[test]
fn the_runtime_is_restarted() -> Result<()> {
    let mut scene = Scene::new(66)?;
    let _agent = scene.agent()?;
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let name = |what: &str| format!("{what}-{}", signal.as_str().to_lowercase());
        let before = scene.containerd.run_pod(&name("before"), &mesh(&[]))?;
        let app = scene.containerd.run_container(&before, "app", 1000)?;
        let rules = scene.stage.host.rules(&before.pod)?;
        ensure!(rules.contains("table inet millrace"), "{rules}");

        scene.containerd.stop(signal)?;
        let is_told =
            || !scene.stage.is_ready() && scene.stage.counts("millrace_node_nri_connected 0");
        scene.stage.node.until("the agent is told of it", is_told)?;
        assert_eq!(scene.stage.host.rules(&before.pod)?, rules);
        scene.containerd.start_again()?;
        // The agent may not have found the runtime yet: it decides about this one when it does.
        let right_after = scene.containerd.run_pod(&name("right-after"), &mesh(&[]))?;
        scene.connected()?;
        let is_captured = || scene.is_captured(&right_after).is_ok_and(|is| is);
        scene.stage.node.until("it is captured", is_captured)?;
        let later = scene.containerd.run_pod(&name("later"), &mesh(&[]))?;
        ensure!(scene.is_captured(&later)?, "{}", scene.stage.node.log());

        let there = scene.containerd.pods()?;
        ensure!(there.contains(&before.pod.id), "{there:?}");
        assert_eq!(scene.stage.host.rules(&before.pod)?, rules);
        let _proxy = scene.stage.host.proxy(&before.pod)?;
        let out = scene.dial(&app, "198.51.100.7", 80)?;
        assert_eq!((out.name.as_str(), out.port), ("proxy", 15001), "{out:?}");
        for sandbox in [&right_after, &later] {
            let _app = scene.containerd.run_container(sandbox, "app", 1000)?;
        }
        for sandbox in [before, right_after, later] {
            scene.containerd.remove_pod(&sandbox.pod.id)?;
        }
    }
    Ok(())
}

/// Verify that a node which is moved from the CNI plugin to NRI, to both and back, while pods start and end,
/// has every pod start, captured by the time that it is there; but for those that start while there is neither
/// an entry nor an agent, which are captured once there is one. Pods end under another hook than they began
/// with.
#[test]
fn a_node_that_is_moved_loses_no_pod() -> Result<()> {
    let mut scene = Scene::new(67)?;
    let folder = scene.stage.host.folder().join("containerd");
    let (conf, bin) = (folder.join("net.d"), folder.join("bin"));
    fs::remove_file(bin.join("millrace-cni")).context("the agent brings the plugin here")?;
    scene.stage.node = scene.stage.node.with_runtime(&conf, &bin);
    let (stage, containerd) = (&scene.stage, &scene.containerd);
    let start = |hook: &str| -> Result<Agent> {
        let agent = stage.start(&["--hook", hook, "--repair", "off"])?;
        scene.connected()?;
        let has_entry = || {
            let list = fs::read_to_string(conf.join("10-pods.conflist"));
            list.is_ok_and(|list| list.contains("millrace-cni") == (hook != "nri"))
        };
        stage.node.until("the list is as this hook has it", has_entry)?;
        Ok(agent)
    };
    // The API knows the pods, as a kubelet's does: the plugin asks the agent, and waits for those that
    // nobody knows.
    let run_pod = |name: &str| {
        let proxy = json!({ "name": "istio-proxy", "securityContext": { "runAsUser": 1337 } });
        let containers = json!([{ "name": "app" }, proxy]);
        let spec = json!({ "nodeName": Stage::NODE, "containers": containers });
        let manifest = json!({ "spec": spec, "annotations": mesh(&[]) });
        stage.api.put_pod("shop", name, &format!("uid-of-{name}"), &manifest);
        containerd.run_pod(name, &mesh(&[]))
    };
    let mut agent = start("cni")?;
    // The runtime reads the list when its watch of the folder tells of it.
    for attempt in 0.. {
        let pod = run_pod(&format!("first-{attempt}"))?;
        let is_captured = scene.is_captured(&pod)?;
        containerd.remove_pod(&pod.pod.id)?;
        if is_captured {
            break;
        }
        ensure!(attempt < 50, "the runtime does not read the list: {}", stage.node.log());
    }

    // Odd while nobody captures.
    let (gaps, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let begun = AtomicUsize::new(0);
    let some_begin = || {
        let before = begun.load(Ordering::SeqCst);
        stage.node.until("pods begin", || begun.load(Ordering::SeqCst) >= before + 3)
    };
    let kept = thread::scope(|scope| -> Result<_> {
        let moves = scope.spawn(|| {
            let moved = (|| -> Result<Agent> {
                let mut hook = "cni";
                for next in ["nri", "both", "nri", "both", "cni"] {
                    some_begin()?;
                    // An entry goes on capturing without an agent.
                    let is_gap = hook == "nri";
                    gaps.fetch_add(is_gap.into(), Ordering::SeqCst);
                    agent.stop()?;
                    agent = start(next)?;
                    gaps.fetch_add(is_gap.into(), Ordering::SeqCst);
                    hook = next;
                }
                some_begin()?;
                Ok(agent)
            })();
            is_over.store(true, Ordering::SeqCst);
            moved
        });
        let mut kept = Vec::new();
        while !is_over.load(Ordering::SeqCst) {
            let gap = gaps.load(Ordering::SeqCst);
            let number = begun.fetch_add(1, Ordering::SeqCst);
            let sandbox = run_pod(&format!("pod-{number}"))?;
            if gap.is_multiple_of(2) && gaps.load(Ordering::SeqCst) == gap {
                ensure!(scene.is_captured(&sandbox)?, "{}\n{}", sandbox.pod.name, stage.node.log());
            }
            if number.is_multiple_of(3) {
                containerd.remove_pod(&sandbox.pod.id)?;
            } else {
                kept.push(sandbox);
            }
        }
        let _agent = moves.join().map_err(|_panic| anyhow::anyhow!("a fault"))??;
        Ok(kept)
    })?;
    ensure!(kept.len() >= 10, "{} pods began meanwhile", kept.len());
    for sandbox in &kept {
        ensure!(scene.is_captured(sandbox)?, "{}\n{}", sandbox.pod.name, stage.node.log());
        containerd.remove_pod(&sandbox.pod.id)?;
    }
    ensure!(containerd.pods()?.is_empty(), "{:?}", containerd.pods());
    Ok(())
}
