//! Whoever the plugin asks may lie, be slow, say nothing or never end: the node agent, the API, DNS,
//! the files and programs of a kubeconfig. What is no answer is none, and the deadline
//! holds for every command.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::cni::{Api, Call, Host, Mood, NAME, Pod, mesh};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

/// The deadline of calls that are to fail, of those that are to capture, of those that name none, and of DEL.
const SHORT: Duration = Duration::from_millis(1500);
const LONG: Duration = Duration::from_secs(6);
const DEFAULT: Duration = Duration::from_secs(15);
const DEL: Duration = Duration::from_secs(10);

/// A call whose pod's annotations the runtime does not tell.
fn blind(host: &Host, command: &str, pod: &Pod) -> Call {
    Call::new(host, command, pod, Value::Null).without_key("runtimeConfig")
}

/// The pod that the plugin asks for, as it is, and what it must not be taken for.
fn lies(pod: &Pod) -> (Value, Vec<(&'static str, Value)>) {
    let whole = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": pod.name, "namespace": "shop", "uid": pod.uid() },
        "spec": { "containers": [{ "name": "app" }] },
    });
    let edited = |edit: &dyn Fn(&mut Value)| {
        let mut value = whole.clone();
        edit(&mut value);
        value
    };
    let lies = vec![
        ("nothing", json!({})),
        ("a list", json!([])),
        ("a status", json!({ "kind": "Status", "status": "Failure", "code": 503 })),
        ("an array", json!([whole["apiVersion"], "Pod", whole["metadata"], whole["spec"]])),
        ("an array of a kind", json!(["Pod", whole["metadata"], whole["spec"]])),
        ("no kind but null", edited(&|pod| pod["kind"] = Value::Null)),
        ("another version", edited(&|pod| pod["apiVersion"] = json!("v2"))),
        (
            "a container without a name",
            edited(&|pod| pod["spec"]["containers"][0]["name"] = json!("")),
        ),
        ("another kind", edited(&|pod| pod["kind"] = json!("ConfigMap"))),
        ("metadata alone", edited(&|pod| pod["spec"] = Value::Null)),
        ("no containers", edited(&|pod| pod["spec"]["containers"] = json!([]))),
        ("another name", edited(&|pod| pod["metadata"]["name"] = json!("other"))),
        ("another namespace", edited(&|pod| pod["metadata"]["namespace"] = json!("other"))),
        ("another id", edited(&|pod| pod["metadata"]["uid"] = json!("other"))),
        ("no id", edited(&|pod| pod["metadata"]["uid"] = Value::Null)),
    ];
    (whole, lies)
}

/// Verify that what is said instead of the pod lets no pod through, and doesn't unprove what
/// annotations prove; `ask` makes a call ask the liar.
fn lets_nothing_through(
    host: &Host,
    pod: &Pod,
    lie: &str,
    ask: &dyn Fn(Call) -> Call,
) -> Result<()> {
    let refused = |call: Call| -> Result<()> {
        let said = ask(call).with_key("deadline", json!("1500ms")).run(host)?.failure(11)?;
        ensure!(said.contains("may be in the mesh"), "{lie}: {said}");
        ensure!(!host.rules(pod)?.contains("millrace"), "{lie}");
        Ok(())
    };
    refused(blind(host, "ADD", pod))?;
    let known = Call::new(host, "ADD", pod, mesh(&[]));
    if lie == "nothing" {
        refused(blind(host, "CHECK", pod))?;
        refused(known.clone().with_key("proxy_identity", json!("lookup")))?;
    }
    let add = ask(known).with_key("deadline", json!("6s"));
    let reply = add.run(host)?;
    reply.success()?;
    ensure!(reply.log.contains("\"warn\""), "{lie}: {reply:?}");
    ensure!(host.rules(pod)?.contains("millrace"), "{lie}");
    add.clone().to("CHECK").run(host)?.success()?;
    add.to("DEL").run(host)?.success()?;
    Ok(())
}

/// Verify that an API that answers with anything but the pod has not answered.
#[test]
fn an_api_that_lies() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let pod = host.pod()?;
    let kubeconfig = json!(api.kubeconfig("127.0.0.1")?);
    let ask = |call: Call| call.with_key("kubeconfig", kubeconfig.clone());
    let (whole, lies) = lies(&pod);
    for (lie, value) in lies {
        api.become_(Mood::Saying(value.to_string()));
        lets_nothing_through(&host, &pod, lie, &ask)?;
    }
    // Who knows no id has to be told one.
    let args = format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={}", pod.name);
    let by_name = ask(blind(&host, "ADD", &pod)).with_env("CNI_ARGS", &args);
    let mut anybody = whole.clone();
    anybody["metadata"]["uid"] = Value::Null;
    api.become_(Mood::Saying(anybody.to_string()));
    let said = by_name.clone().with_key("deadline", json!("1500ms")).run(&host)?.failure(11)?;
    ensure!(said.contains("no metadata.uid"), "{said}");
    api.become_(Mood::Saying(whole.to_string()));
    by_name.run(&host)?.success()?;
    // That it is the pod itself is no lie: without a proxy and unknown to annotations, it passes.
    api.become_(Mood::Saying(whole.to_string()));
    ask(blind(&host, "ADD", &pod)).run(&host)?.success()?;
    ensure!(!host.rules(&pod)?.contains("millrace"));
    // But whose annotations name a proxy has one.
    lets_go_only_by_annotations(&host, &pod, &ask)
}

/// Verify that a pod whose annotations name the proxy is captured, or refused where its ids are to
/// be looked up, when the one who is asked knows no proxy.
fn lets_go_only_by_annotations(host: &Host, pod: &Pod, ask: &dyn Fn(Call) -> Call) -> Result<()> {
    let known = ask(Call::new(host, "ADD", pod, mesh(&[])));
    let said = known.clone().with_key("proxy_identity", json!("lookup")).run(host)?.failure(11)?;
    ensure!(said.contains("knows no container istio-proxy"), "{said}");
    known.run(host)?.success()?;
    ensure!(host.rules(pod)?.contains("millrace"));
    Ok(())
}

/// How a node agent answers.
#[derive(Clone, Debug)]
enum Agent {
    Saying(String),
    Silent,
    Dripping,
    Endless,
}

impl Agent {
    /// Answer so, to everybody who comes, at this path.
    fn start(self, path: &Path) -> Result<()> {
        let listener = UnixListener::bind(path)?;
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let own = self.clone();
                thread::spawn(move || own.answer(&stream));
            }
        });
        Ok(())
    }

    fn answer(&self, stream: &UnixStream) {
        // Who goes away before the end has the test's attention, not the agent's.
        let _read = BufReader::new(stream).read_line(&mut String::new());
        let mut stream = stream;
        match self {
            Self::Saying(text) => drop(stream.write_all(text.as_bytes())),
            Self::Silent => drop(BufReader::new(stream).read_line(&mut String::new())),
            Self::Dripping => {
                while stream.write_all(b" ").is_ok() {
                    thread::sleep(Duration::from_millis(100));
                }
            }
            Self::Endless => while stream.write_all(&[b' '; 4096]).is_ok() {},
        }
    }
}

/// Verify that an agent that answers with anything but the pod has not answered.
#[test]
fn an_agent_that_lies() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let (whole, lies) = lies(&pod);
    for (number, (lie, value)) in lies.iter().enumerate() {
        let socket = host.folder().join(format!("agent-{number}"));
        Agent::Saying(format!("{}\n", json!({ "pod": value }))).start(&socket)?;
        let ask = |call: Call| call.with_key("agent_socket", json!(socket));
        lets_nothing_through(&host, &pod, lie, &ask)?;
    }
    let socket = host.folder().join("agent");
    Agent::Saying(format!("{}\n", json!({ "pod": whole }))).start(&socket)?;
    lets_go_only_by_annotations(&host, &pod, &|call| call.with_key("agent_socket", json!(socket)))
}

/// Verify that every command keeps its deadline with somebody who is asked so, and that each does
/// what it can without an answer. What ADD fails with has to say this.
fn keeps_the_deadline(host: &Host, what: &str, key: &str, value: &Value, says: &str) -> Result<()> {
    let pod = host.pod()?;
    let asking =
        |call: Call| call.with_key(key, value.clone()).with_key("deadline", json!("1500ms"));
    for command in ["ADD", "CHECK"] {
        let reply =
            asking(blind(host, command, &pod)).run_by(host, SHORT).context(what.to_owned())?;
        let said = reply.failure(11).with_context(|| what.to_owned())?;
        ensure!(said.contains(says), "{what}: {said}");
    }
    let status = asking(blind(host, "STATUS", &pod)).with_key("capabilities", json!({}));
    status.run_by(host, SHORT).context(what.to_owned())?;
    // Long enough for the capture itself.
    let known = |command: &str| {
        let call = Call::new(host, command, &pod, mesh(&[])).with_key(key, value.clone());
        call.with_key("deadline", json!("6s")).with_key("cni.dev/valid-attachments", json!([]))
    };
    for (command, captured) in [("ADD", true), ("CHECK", true), ("GC", false), ("DEL", false)] {
        let deadline = if command == "DEL" { DEL } else { LONG };
        let reply = known(command).run_by(host, deadline).context(what.to_owned())?;
        reply.success().with_context(|| what.to_owned())?;
        assert_eq!(host.rules(&pod)?.contains("millrace"), captured, "{what}: {command}");
    }
    Ok(())
}

/// Verify the deadline with agents that are slow, silent, endless, or don't even take the call.
#[test]
fn an_agent_that_is_slow() -> Result<()> {
    let host = Host::new()?;
    for (agent, says) in [
        (Agent::Silent, "no answer in time"),
        (Agent::Dripping, "no answer in time"),
        (Agent::Endless, "agent"),
    ] {
        let what = format!("{agent:?}");
        let socket = host.folder().join(format!("agent-{what}"));
        agent.start(&socket)?;
        keeps_the_deadline(&host, &what, "agent_socket", &json!(socket), says)?;
    }
    let socket = host.folder().join("busy");
    let busy = UnixListener::bind(&socket)?;
    nix::sys::socket::listen(&busy, nix::sys::socket::Backlog::new(0)?)?;
    let _waiting = UnixStream::connect(&socket)?;
    keeps_the_deadline(&host, "busy", "agent_socket", &json!(socket), "busy")
}

/// Verify the deadline, and the bound of what is read, with APIs that are slow, endless or silent.
#[test]
fn an_api_that_is_slow() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let kubeconfig = api.kubeconfig("127.0.0.1")?;
    for mood in
        [Mood::Slow(Duration::from_mins(1)), Mood::Endless(Some(Duration::from_millis(100)))]
    {
        api.become_(mood.clone());
        let what = format!("{mood:?}");
        keeps_the_deadline(&host, &what, "kubeconfig", &json!(kubeconfig), "no answer within")?;
    }
    api.become_(Mood::Endless(None));
    let pod = host.pod()?;
    let add = blind(&host, "ADD", &pod).with_key("kubeconfig", json!(kubeconfig));
    let limited = ["prlimit", "--data=268435456"];
    let said = add.run_under(&host, &limited)?.failure(11)?;
    ensure!(said.contains("longer than 4194304 bytes"), "{said}");
    // A machine that is busy may see the deadline first.
    keeps_the_deadline(&host, "endless", "kubeconfig", &json!(kubeconfig), "the Kubernetes API")?;
    let silent = host.namespace.enter(|| TcpListener::bind("127.0.0.1:0"))??;
    let text = fs::read_to_string(&kubeconfig)?;
    let (before, after) = text.split_once("127.0.0.1:").context("a server")?;
    let (_, after) = after.split_once('\'').context("a quote")?;
    let text = format!("{before}127.0.0.1:{}'{after}", silent.local_addr()?.port());
    let kubeconfig = host.folder().join("silent");
    fs::write(&kubeconfig, text)?;
    keeps_the_deadline(&host, "silent", "kubeconfig", &json!(kubeconfig), "no answer within")
}

fn fifo(host: &Host) -> Result<PathBuf> {
    let path = host.folder().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).context("a FIFO")?;
    Ok(path)
}

fn script(host: &Host, name: &str, text: &str) -> Result<PathBuf> {
    let path = host.folder().join(name);
    fs::write(&path, format!("#!/bin/sh\n{text}\n"))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    Ok(path)
}

/// Verify the deadline with files that nobody writes to or that don't end, and with programs that
/// hang, as kubeconfigs name them.
#[test]
fn files_and_programs_that_do_not_end() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let fifo = fifo(&host)?;
    let long = host.folder().join("long");
    fs::write(&long, vec![b'#'; 1024 * 1024 + 1])?;
    for (path, says) in [
        (fifo.as_path(), "no regular file"),
        (Path::new("/dev/zero"), "no regular file"),
        (&long, "longer than 1048576 bytes"),
    ] {
        let what = path.display().to_string();
        keeps_the_deadline(&host, &what, "kubeconfig", &json!(path), says)?;
    }
    let hangs = script(&host, "hangs", "sleep 600 & wait")?;
    let endless = script(&host, "endless", "yes")?;
    let (fifo, hangs, endless) = (fifo.display(), hangs.display(), endless.display());
    let exec = "apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never";
    for (user, says) in [
        (format!("tokenFile: {fifo}"), "no regular file"),
        (format!("client-certificate: {fifo}, client-key: {fifo}"), "no regular file"),
        (format!("exec: {{{exec}, command: {hangs}}}"), "did not end within"),
        (format!("exec: {{{exec}, command: {endless}}}"), "endless"),
    ] {
        let kubeconfig = api.kubeconfig_of("127.0.0.1", &user)?;
        keeps_the_deadline(&host, &user, "kubeconfig", &json!(kubeconfig), says)?;
    }
    let text = fs::read_to_string(api.kubeconfig("127.0.0.1")?)?;
    let (before, after) = text.split_once("certificate-authority: ").context("an authority")?;
    let (_, after) = after.split_once('}').context("a brace")?;
    let kubeconfig = host.folder().join("authority");
    fs::write(&kubeconfig, format!("{before}certificate-authority: {fifo}}}{after}"))?;
    keeps_the_deadline(&host, "authority", "kubeconfig", &json!(kubeconfig), "no regular file")
}

/// The processes that sleep for this long, which nobody else does.
fn sleepers(time: &str) -> Vec<String> {
    let of = |pid: &String| fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|pid| of(pid).starts_with("sleep\0") && of(pid).contains(time)).collect()
}

/// Verify that nothing that a kubeconfig's program starts outlives it, in whatever session it is, whether
/// the program ends in time and gives credentials or not.
#[test]
fn what_a_program_leaves_behind() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let pod = host.pod()?;
    api.put_pod("shop", &pod.name, &pod.uid(), &json!({}));
    let token = fs::read_to_string(api.token())?;
    let credential = json!({ "kind": "ExecCredential", "status": { "token": token } });
    // Nobody else sleeps for this long.
    let time = format!("600.{}", std::process::id());
    let closed = "</dev/null >/dev/null 2>&1";
    for (name, text, is_good) in [
        ("holds its output", format!("setsid sleep {time} & exit 0"), false),
        ("hangs", format!("setsid sleep {time} & sleep {time}"), false),
        ("leaves a daemon", format!("setsid sleep {time} {closed} &\necho '{credential}'"), true),
        (
            "leaves a daemon of a daemon",
            format!(
                "setsid sh -c 'setsid sleep {time} & sleep {time}' {closed} &\necho '{credential}'"
            ),
            true,
        ),
    ] {
        let program = script(&host, &name.replace(' ', "-"), &text)?;
        let exec = "apiVersion: client.authentication.k8s.io/v1, interactiveMode: Never";
        let user = format!("exec: {{{exec}, command: {}}}", program.display());
        let kubeconfig = json!(api.kubeconfig_of("127.0.0.1", &user)?);
        let add = blind(&host, "ADD", &pod).with_key("kubeconfig", kubeconfig);
        if is_good {
            add.run_by(&host, DEFAULT)?.success().context(name)?;
        } else {
            let add = add.with_key("deadline", json!("1500ms"));
            let said = add.run_by(&host, SHORT)?.failure(11).context(name)?;
            ensure!(said.contains("was killed"), "{name}: {said}");
        }
        let left = sleepers(&time);
        ensure!(left.is_empty(), "{name}: {left:?}");
    }
    Ok(())
}

/// Verify that a program that gives credentials is run once, with what it is to know, and that what
/// a kubeconfig has beyond what is supported is refused by its name.
#[test]
fn what_kubeconfigs_name() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let pod = host.pod()?;
    api.put_pod("shop", &pod.name, &pod.uid(), &json!({}));
    let runs = host.folder().join("runs");
    let token = fs::read_to_string(api.token())?;
    let credential = json!({ "kind": "ExecCredential", "status": { "token": token } });
    let text =
        format!("echo \"$KIND $KUBERNETES_EXEC_INFO\" >>{}\necho '{credential}'", runs.display());
    let program = script(&host, "credential", &text)?;
    // Relative to the kubeconfig, as other files are.
    let user = "exec: {apiVersion: client.authentication.k8s.io/v1, command: ./credential, \
                env: [{name: KIND, value: own}]}";
    let kubeconfig = api.kubeconfig_of("127.0.0.1", user)?;
    fs::copy(&program, kubeconfig.with_file_name("credential"))?;
    let add = blind(&host, "ADD", &pod);
    add.clone().with_key("kubeconfig", json!(kubeconfig)).run(&host)?.success()?;
    let runs = fs::read_to_string(&runs)?;
    ensure!(runs.lines().count() == 1 && runs.starts_with("own {"), "{runs}");
    let (_, info) = runs.split_once(' ').context("what the program was told")?;
    assert_eq!(serde_json::from_str::<Value>(info)?["kind"], "ExecCredential");

    let text = fs::read_to_string(api.kubeconfig("127.0.0.1")?)?;
    let proxied =
        text.replace("cluster: {server", "cluster: {proxy-url: 'http://127.0.0.1:1', server");
    let provided = api.kubeconfig_of("127.0.0.1", "auth-provider: {name: gcp}")?;
    let provided = fs::read_to_string(provided)?;
    let kubeconfig = host.folder().join("kubeconfig");
    for (text, name) in [(proxied, "proxy-url"), (provided, "auth-provider")] {
        fs::write(&kubeconfig, text)?;
        let add = add.clone().with_key("kubeconfig", json!(kubeconfig));
        let said = add.run(&host)?.failure(11)?;
        ensure!(said.contains(name) && said.contains("not supported"), "{said}");
        let status = add.to("STATUS").with_key("capabilities", json!({}));
        let said = status.run(&host)?.failure(50)?;
        ensure!(said.contains(name), "{said}");
    }
    Ok(())
}

/// Answer questions for addresses of IPv4 with 127.0.0.1, and no others.
fn answer_for_ipv4(socket: &UdpSocket) {
    let mut question = [0; 512];
    while let Ok((length, client)) = socket.recv_from(&mut question) {
        // A header of 12 bytes, the name's labels, a zero, type and class (RFC 1035, section 4).
        let Some(end) = question[12..length].iter().position(|byte| *byte == 0) else { continue };
        let end = 12 + end + 1;
        if question[end..end + 2] != [0, 1] {
            continue;
        }
        let mut answer = question[..2].to_vec();
        answer.extend([0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        answer.extend(&question[12..end + 4]);
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
        // Who went away asks no more.
        let _sent = socket.send_to(&answer, client);
    }
}

/// Verify that a server's name in /etc/hosts is enough where DNS says nothing, that the wait for DNS
/// is bounded and named, and that an answer for one family is enough.
#[test]
fn dns_that_says_nothing() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let pod = host.pod()?;
    api.put_pod("shop", &pod.name, &pod.uid(), &json!({}));
    host.cover("/etc/resolv.conf", "nameserver 127.0.0.1\n")?;
    host.cover("/etc/hosts", "127.0.0.1 localhost\n")?;
    let dns = host.namespace.enter(|| UdpSocket::bind("127.0.0.1:53"))??;
    let named = json!(api.kubeconfig(NAME)?);
    keeps_the_deadline(&host, "DNS", "kubeconfig", &named, &format!("looking up {NAME}"))?;
    let add = blind(&host, "ADD", &pod).with_key("kubeconfig", named);
    let said = add.clone().with_key("deadline", json!("1500ms")).run(&host)?.failure(11)?;
    ensure!(said.contains("/etc/hosts does not have, by DNS at 127.0.0.1"), "{said}");
    host.cover("/etc/hosts", &format!("127.0.0.1 localhost {NAME}\n"))?;
    let reply = add.run_by(&host, DEFAULT)?;
    reply.success()?;
    // Far less than DNS is waited for.
    let took = reply.lines()?.pop().context("a line")?["durationMs"].as_f64();
    ensure!(took.is_some_and(|ms| ms < 10_000.0), "{reply:?}");
    host.cover("/etc/hosts", "127.0.0.1 localhost\n")?;
    thread::spawn(move || answer_for_ipv4(&dns));
    add.run_by(&host, DEFAULT)?.success()?;
    Ok(())
}
