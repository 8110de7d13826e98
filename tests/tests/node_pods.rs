//! What the node agent tells the plugin of pods: from what the API told it, or by asking, whatever
//! state the API is in; and whom it tells.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::cni::{Call, Mood, SIDECAR, STATUS, mesh};
use millrace_tests::node_stage::Stage;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

const NODE: &str = Stage::NODE;

/// What is asked of an agent.
trait Ask {
    fn hold(&self, name: &str, node: &str);
    fn connect(&self) -> Result<UnixStream>;
    fn say(&self, question: &Value) -> Result<Value>;

    /// What is answered to the question for a pod.
    fn ask(&self, name: &str, uid: &str) -> Result<Value> {
        self.say(&question(name, uid))
    }

    fn knows(&self, name: &str) -> bool {
        self.ask(name, &uid(name)).is_ok_and(|answer| answer["pod"]["metadata"]["name"] == name)
    }

    /// Whether a pod is known without a question to the API.
    fn knows_by_itself(&self, name: &str) -> bool;
}

impl Ask for Stage {
    fn hold(&self, name: &str, node: &str) {
        let spec = json!({ "nodeName": node, "containers": [{ "name": "app" }] });
        self.api.put_pod("shop", name, &uid(name), &json!({ "spec": spec }));
    }

    fn connect(&self) -> Result<UnixStream> {
        let stream = UnixStream::connect(self.node.run_dir().join("agent.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        Ok(stream)
    }

    fn say(&self, question: &Value) -> Result<Value> {
        let mut stream = self.connect()?;
        writeln!(stream, "{question}")?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| line)
    }

    fn knows_by_itself(&self, name: &str) -> bool {
        self.api.take_requests();
        let knows = self.knows(name);
        let asked = self.api.take_requests();
        knows && !asked.iter().any(|request| request.contains(&format!("/pods/{name}")))
    }
}

fn uid(name: &str) -> String {
    format!("uid-of-{name}")
}

fn question(name: &str, uid: &str) -> Value {
    json!({ "version": 1, "pod": { "namespace": "shop", "name": name, "uid": uid } })
}

/// Verify that pods of the node are known without a question, that others are asked for, and that
/// what there is not is said so; and that what is counted is told by the names that dashboards know.
#[test]
fn pods_are_known_or_asked_for() -> Result<()> {
    let stage = Stage::new()?;
    stage.hold("here", NODE);
    stage.hold("there", "node-2");
    let mut agent = stage.start(&[])?;
    stage.node.until("it is ready", || stage.is_ready())?;
    ensure!(stage.knows_by_itself("here"), "{}", stage.node.log());
    ensure!(stage.knows("there") && !stage.knows_by_itself("there"));
    for (name, id) in [("none", uid("none")), ("here", "another".to_owned())] {
        let answer = stage.ask(name, &id)?;
        let said = answer["error"].as_str().unwrap_or_default();
        ensure!(said.contains("no such pod") || said.contains("another pod"), "{answer}");
    }
    ensure!(stage.ask("../x", "y")?["error"].is_string());
    // Which one is meant without an id, the API knows alone.
    stage.api.take_requests();
    let answer =
        stage.say(&json!({ "version": 1, "pod": { "namespace": "shop", "name": "here" } }))?;
    ensure!(answer["pod"]["metadata"]["uid"] == uid("here"), "{answer}");
    ensure!(!stage.api.take_requests().is_empty());
    stage.hold("new", NODE);
    ensure!(stage.knows("new"), "the informer's lag is a hole");
    stage.node.until("it is told of", || stage.knows_by_itself("new"))?;
    stage.api.remove_pod("shop", "new");
    stage.node.until("it is forgotten", || !stage.knows("new"))?;
    let (_, metrics) = stage.get(Stage::METRICS, "/metrics")?;
    for name in [
        "istio_cni_install_ready 1",
        "istio_cni_plugin_requests_total{response_code=\"200\"}",
        "millrace_node_plugin_questions_total{answer=\"known\"}",
        "millrace_node_plugin_questions_total{answer=\"asked\"}",
        "millrace_node_pods 1",
    ] {
        ensure!(metrics.contains(name), "{name}: {metrics}");
    }
    assert_eq!(stage.get(Stage::HEALTH, "/livez")?.0, 200);
    assert_eq!(stage.get(Stage::METRICS, "/readyz")?.0, 404);
    agent.stop()
}

/// Verify that whatever becomes of the API, pods that are known stay known, a pod that is not known is
/// an error that says why, and that all of it is known again when the API is well.
#[test]
fn an_api_in_trouble() -> Result<()> {
    let stage = Stage::new()?;
    stage.hold("old", NODE);
    let mut agent = stage.start(&[])?;
    stage.node.until("it is known", || stage.knows_by_itself("old"))?;
    for (number, mood) in [
        Mood::Failing(401),
        Mood::Failing(403),
        Mood::Failing(410),
        Mood::Failing(500),
        Mood::Slow(Duration::from_secs(5)),
        Mood::Saying("{".to_owned()),
    ]
    .into_iter()
    .enumerate()
    {
        stage.api.become_(mood.clone());
        stage.api.break_watches();
        // What happens meanwhile is told to nobody.
        let name = format!("new-{number}");
        stage.hold(&name, NODE);
        ensure!(stage.knows("old"), "{mood:?}");
        let answer = stage.ask("none", "none")?;
        let said = answer["error"].as_str().unwrap_or_default();
        let part = match &mood {
            Mood::Failing(code) => code.to_string(),
            Mood::Slow(_) => "did not answer within".to_owned(),
            _ => String::new(),
        };
        ensure!(!said.is_empty() && said.contains(&part), "{mood:?}: {answer}");
        stage.api.forget();
        stage.api.become_(Mood::Well);
        stage.node.until("it is told of", || stage.knows_by_itself(&name))?;
        ensure!(stage.knows_by_itself("old"));
    }
    // A watch from too long ago is told so in an event.
    stage.hold("elsewhere", "node-2");
    stage.api.forget();
    stage.api.break_watches();
    stage.hold("last", NODE);
    stage.node.until("it is told of", || stage.knows_by_itself("last"))?;
    agent.stop()
}

/// Verify that it is not ready, and says why, until pods were listed; and that it goes on without an
/// API.
#[test]
fn without_an_api() -> Result<()> {
    let mut stage = Stage::new()?;
    stage.hold("old", NODE);
    stage.api.become_(Mood::Failing(403));
    let mut agent = stage.start(&[])?;
    let says = |part: &str| {
        stage
            .get(Stage::HEALTH, "/readyz")
            .is_ok_and(|(code, text)| code == 503 && text.contains(part))
    };
    stage.node.until("it says why", || says("lacks a verb"))?;
    assert_eq!(stage.get(Stage::HEALTH, "/livez")?.0, 200);
    stage.api.become_(Mood::Well);
    stage.node.until("it is ready", || stage.is_ready())?;
    stage.api.stop();
    ensure!(stage.knows("old"));
    ensure!(stage.ask("none", "none")?["error"].is_string());
    agent.stop()
}

/// Verify that an id that was is never answered once another pod has the name, whoever lags behind:
/// what the agent was told, or the API.
#[test]
fn an_old_pod_is_never_answered() -> Result<()> {
    let stage = Stage::new()?;
    stage.hold("web", NODE);
    let mut agent = stage.start(&[])?;
    stage.node.until("it is known", || stage.knows_by_itself("web"))?;
    // The agent lags behind: it can't be told of the new one, and then not even the API tells.
    stage.api.become_(Mood::Failing(500));
    stage.api.break_watches();
    let answer = stage.ask("web", "new")?;
    ensure!(answer["error"].as_str().is_some_and(|said| said.contains("500")), "{answer}");
    let spec = json!({ "nodeName": NODE, "containers": [{ "name": "app" }] });
    stage.api.put_pod("shop", "web", "new", &json!({ "spec": spec }));
    stage.api.become_(Mood::Well);
    let answer = stage.ask("web", "new")?;
    ensure!(answer["pod"]["metadata"]["uid"] == "new", "{answer}");
    stage.node.until("it is told of", || {
        stage.api.take_requests();
        let answer = stage.ask("web", "new").unwrap_or_default();
        answer["pod"]["metadata"]["uid"] == "new" && stage.api.take_requests().is_empty()
    })?;
    // What the API holds now is not what was asked for.
    let answer = stage.ask("web", &uid("web"))?;
    ensure!(answer["error"].as_str().is_some_and(|said| said.contains("another pod")), "{answer}");
    agent.stop()
}

/// Verify that clients that say nothing, half of it, too much, nonsense, or don't read what they are
/// told keep nobody else from an answer, are left in time, and cost no memory.
#[test]
fn hostile_clients() -> Result<()> {
    let stage = Stage::new()?;
    let long = "x".repeat(1024 * 1024);
    let env = json!([{ "name": "LONG", "value": long }]);
    let spec = json!({ "nodeName": NODE, "containers": [{ "name": "app", "env": env }] });
    stage.api.put_pod("shop", "long", &uid("long"), &json!({ "spec": spec }));
    stage.hold("here", NODE);
    let mut agent = stage.start(&[])?;
    stage.node.until("they are known", || {
        ["here", "long"].iter().all(|name| stage.knows_by_itself(name))
    })?;
    let mut held = Vec::new();
    for number in 0..600 {
        let mut stream = stage.connect()?;
        let said = match number % 6 {
            0 => String::new(),
            1 => "{\"version\":1".to_owned(),
            2 => "x".repeat(64 * 1024),
            3 => "\0\n".to_owned(),
            4 => "[".repeat(8000) + "\n",
            // It is not read, and longer than any buffer.
            _ => format!("{}\n", question("long", &uid("long"))),
        };
        // The agent may be fed up before all of it is said.
        let _said = stream.write_all(said.as_bytes());
        held.push(stream);
        if number % 50 == 49 {
            ensure!(stage.knows("here"), "after {number}");
        }
    }
    ensure!(stage.knows("here"));
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident: u64 = resident.context("VmRSS")?.trim().trim_end_matches(" kB").parse()?;
    ensure!(resident < 128 * 1024, "{resident} KiB");
    for mut stream in held {
        // Whatever was said there, it ends.
        let ended = std::io::copy(&mut stream, &mut std::io::sink());
        let reset = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ConnectionReset;
        ensure!(ended.as_ref().map_or_else(reset, |_| true), "{ended:?}");
    }
    ensure!(stage.knows("here"));
    let (_, metrics) = stage.get(Stage::METRICS, "/metrics")?;
    for answer in ["bad", "nothing", "given_up"] {
        let name = format!("millrace_node_plugin_questions_total{{answer=\"{answer}\"}}");
        ensure!(metrics.contains(&name), "{name}: {metrics}");
    }
    agent.stop()
}

/// Verify that nobody but root is answered, even where the socket could be reached.
#[test]
fn only_root_is_answered() -> Result<()> {
    let stage = Stage::new()?;
    stage.hold("here", NODE);
    let mut agent = stage.start(&[])?;
    stage.node.until("it is known", || stage.knows("here"))?;
    let socket = stage.node.run_dir().join("agent.sock");
    assert_eq!(fs::metadata(&socket)?.permissions().mode() & 0o777, 0o600);
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666))?;
    for folder in [stage.node.folder().to_owned(), stage.node.run_dir()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))?;
    }
    let text = "import socket, sys\n\
                s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])\n\
                s.sendall((sys.argv[2] + '\\n').encode()); print(s.makefile().read())";
    let ask = |user: u32| -> Result<String> {
        let mut python = Command::new("python3");
        python.args(["-c", text]).arg(&socket).arg(question("here", &uid("here")).to_string());
        let output = python.uid(user).gid(user).stdin(Stdio::null()).output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    ensure!(ask(0)?.contains("\"pod\""));
    let refused = ask(1000)?;
    ensure!(!refused.contains("pod"), "{refused}");
    agent.stop()
}

/// Verify that the plugin starts a pod by what the agent tells it, with no API of its own, and that the
/// agent counts what became of each command and how long it took; and that an agent that is frozen or
/// gone is no reason to wait.
#[test]
fn the_plugin_asks_it() -> Result<()> {
    let stage = Stage::new()?;
    let (meshed, plain) = (stage.host.pod()?, stage.host.pod()?);
    let containers =
        json!([{ "name": "app" }, { "name": "istio-proxy", "args": ["proxy", "sidecar"] }]);
    let spec = json!({ "nodeName": NODE, "containers": containers });
    let manifest = json!({ "spec": spec, "annotations": { STATUS: SIDECAR } });
    stage.api.put_pod("shop", &meshed.name, &meshed.uid(), &manifest);
    stage.hold(&plain.name, NODE);
    let mut agent = stage.start(&[])?;
    stage.node.until("it is ready", || stage.is_ready())?;
    let socket = json!(stage.node.run_dir().join("agent.sock"));
    for (pod, captured) in [(&meshed, true), (&plain, false)] {
        let call = Call::new(&stage.host, "ADD", pod, Value::Null).without_key("runtimeConfig");
        call.with_key("agent_socket", socket.clone()).run(&stage.host)?.success()?;
        assert_eq!(stage.host.rules(pod)?.contains("millrace"), captured, "{pod:?}");
    }
    let known = |command: &str, annotations: Value| {
        let call = Call::new(&stage.host, command, &meshed, annotations);
        call.with_key("agent_socket", socket.clone())
            .with_key("proxy_identity", json!("annotations"))
    };
    known("CHECK", mesh(&[])).run(&stage.host)?.success()?;
    let bad = mesh(&[("sidecar.istio.io/interceptionMode", "x")]);
    known("ADD", bad).run(&stage.host)?.failure(102)?;
    known("ADD", mesh(&[])).with_key("backend", json!("x")).run(&stage.host)?.failure(7)?;
    known("DEL", mesh(&[])).run(&stage.host)?.success()?;
    known("CHECK", mesh(&[])).run(&stage.host)?.failure(101)?;
    for (labels, count) in [
        ("command=\"ADD\",outcome=\"captured\"", 1),
        ("command=\"ADD\",outcome=\"passed\"", 1),
        ("command=\"CHECK\",outcome=\"captured\"", 1),
        ("command=\"ADD\",outcome=\"refused\"", 1),
        ("command=\"ADD\",outcome=\"bad_request\"", 1),
        ("command=\"DEL\",outcome=\"deleted\"", 1),
        ("command=\"CHECK\",outcome=\"drifted\"", 1),
    ] {
        let name = "millrace_node_plugin_duration_seconds";
        let line = format!("{name}_count{{{labels}}} {count}");
        stage.node.until(&line, || stage.counts(&line))?;
        let most = format!("{name}_bucket{{le=\"+Inf\",{labels}}} {count}");
        ensure!(stage.counts(&most), "{most}");
        let sum = format!("{name}_sum{{{labels}}} ");
        let (_, metrics) = stage.get(Stage::METRICS, "/metrics")?;
        let seconds = metrics.lines().find_map(|line| line.strip_prefix(&sum)).context(sum)?;
        ensure!(seconds.parse::<f64>()? > 0.0, "{labels}: {seconds}");
    }
    // A report is no question.
    ensure!(stage.counts("millrace_node_plugin_questions_total{answer=\"known\"} 2"));
    ensure!(!stage.counts("millrace_node_plugin_questions_total{answer=\"bad\"}"));
    let pid = Pid::from_raw(i32::try_from(agent.pid())?);
    kill(pid, Signal::SIGSTOP)?;
    for _ in 0..3 {
        // Answers would be waited for two seconds each.
        known("ADD", mesh(&[])).with_key("deadline", json!("30s")).run(&stage.host)?.success()?;
    }
    kill(pid, Signal::SIGCONT)?;
    let line =
        "millrace_node_plugin_duration_seconds_count{command=\"ADD\",outcome=\"captured\"} 4";
    stage.node.until(line, || stage.counts(line))?;
    agent.stop()?;
    known("ADD", mesh(&[])).run(&stage.host)?.success().map(drop)
}
