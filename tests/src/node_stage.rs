//! A node whose agent asks a Kubernetes API, on a host of its own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use millrace_host::ebpf::default_cgroup;
use serde_json::{Value, json};

use crate::chart::{objects, of_kind, repository};
use crate::cni::{Api, Host, Pod, SIDECAR, STATUS};
use crate::node::{Agent, Node};
use crate::topology::APP;

/// A host with an API server, and a node there with an agent.
#[derive(Debug)]
pub struct Stage {
    /// The host.
    pub host: Host,
    /// The API server.
    pub api: Api,
    /// The node.
    pub node: Node,
}

impl Stage {
    /// The node's name.
    pub const NODE: &str = "node-1";
    /// Where the agent says whether it is ready.
    pub const HEALTH: &str = "127.0.0.1:18000";
    /// Where it tells what it counted.
    pub const METRICS: &str = "127.0.0.1:18014";

    /// With a list of plugins, and a service account.
    pub fn new() -> Result<Self> {
        let host = Host::new()?;
        let api = Api::start(&host)?;
        let node = Node::new()?;
        node.write("10-net.conflist", r#"{"name":"net","plugins":[{"type":"bridge"}]}"#)?;
        let account = node.folder().join("account");
        fs::create_dir(&account).context("a service account")?;
        fs::copy(api.token(), account.join("token")).context("its token")?;
        fs::copy(api.token().with_file_name("ca.pem"), account.join("ca.crt"))
            .context("its authority")?;
        Ok(Self { host, api, node })
    }

    /// Start the agent, with these flags as well.
    pub fn start(&self, args: &[&str]) -> Result<Agent> {
        let args = self.flags(args)?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.host.namespace.enter(|| self.node.run(&args))?
    }

    /// The same as a container does, by these words: what they are put before is its command.
    pub fn start_by(&self, words: &[&str], args: &[&str]) -> Result<Agent> {
        let args = self.flags(args)?;
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        self.host.namespace.enter(|| self.node.run_by(words, &args))?
    }

    /// Start it with the capabilities that a golden file of the chart gives, but for this one, and no more: in a
    /// namespace of processes of its own, with the host's processes elsewhere.
    pub fn start_confined(
        &self,
        chart: &str,
        without: Option<&str>,
        args: &[&str],
    ) -> Result<Agent> {
        const SCRIPT: &str = "set -e; caps=$1; folder=$2; shift 2; mkdir -p \"$folder\"; \
                              mount --bind -o ro /proc \"$folder\"; mount -t proc proc /proc; \
                              exec setpriv --no-new-privs --bounding-set=-all,$caps --inh-caps=-all \"$@\"";
        let text = fs::read_to_string(repository(&format!("tests/golden/chart/{chart}.yaml")))?;
        let objects = objects(&text)?;
        let spec = &of_kind(&objects, "DaemonSet")?["spec"]["template"]["spec"];
        let added = spec["containers"][0]["securityContext"]["capabilities"]["add"].clone();
        let all: Vec<String> = serde_json::from_value(added)?;
        ensure!(without.is_none_or(|name| all.iter().any(|own| own == name)), "{all:?}");
        let left = all.iter().filter(|own| Some(own.as_str()) != without);
        let caps: Vec<String> = left.map(|own| format!("+{}", own.to_lowercase())).collect();
        let caps = caps.join(",");
        let proc = self.node.folder().join("proc");
        let proc = proc.to_str().context("a path")?;
        let unshare = ["unshare", "--mount", "--pid", "--fork", "--kill-child"];
        let words = [&unshare[..], &["sh", "-c", SCRIPT, "sh", &caps, proc]].concat();
        self.start_by(&words, &[args, &["--proc-dir", proc]].concat())
    }

    fn flags(&self, more: &[&str]) -> Result<Vec<String>> {
        let account = self.node.folder().join("account");
        let port = self.api.port().to_string();
        let own = [
            "--kubeconfig",
            "service-account",
            "--service-account",
            account.to_str().context("a path")?,
            "--kubernetes-host",
            "127.0.0.1",
            "--kubernetes-port",
            &port,
            "--node-name",
            Self::NODE,
            "--health-address",
            Self::HEALTH,
            "--metrics-address",
            Self::METRICS,
        ];
        Ok(own.iter().chain(more).map(|word| (*word).to_owned()).collect())
    }

    /// What is answered at an address: the status, and the body.
    pub fn get(&self, address: &str, path: &str) -> Result<(u16, String)> {
        let stream = self.host.namespace.enter(|| TcpStream::connect(address))?;
        let mut stream = stream.context("connecting")?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let code = text.split(' ').nth(1).context("no status")?.parse()?;
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned());
        Ok((code, body.unwrap_or_default()))
    }

    /// Whether the agent is ready.
    pub fn is_ready(&self) -> bool {
        self.get(Self::HEALTH, "/readyz").is_ok_and(|(code, _)| code == 200)
    }

    /// Whether the agent counts so: a line of its metrics begins with this.
    pub fn counts(&self, line: &str) -> bool {
        let metrics = self.get(Self::METRICS, "/metrics").map(|(_, text)| text);
        metrics.is_ok_and(|text| text.lines().any(|found| found.starts_with(line)))
    }
}

/// A pod that runs: a process in its namespaces and its cgroup, until the end of the value.
#[derive(Debug)]
pub struct Running {
    /// Its namespace and its name.
    pub pod: Pod,
    /// Its id in Kubernetes.
    pub uid: String,
    child: Child,
    cgroup: PathBuf,
}

impl Running {
    /// Start it on a stage, and tell the API of it: with a sidecar, and the address of a pod with a link.
    pub fn new(stage: &Stage, number: u32) -> Result<Self> {
        let pod = stage.host.linked_pod()?;
        let uid = format!("{:08x}-1111-2222-3333-{number:012x}", std::process::id());
        let child = stage.host.inside(&pod, |inside| {
            let mut sleep = Command::new("sleep");
            let child = inside.enter(|| sleep.arg("600").stdin(Stdio::null()).spawn())?;
            child.context("a process")
        })?;
        let root = default_cgroup().context("no cgroup v2 is mounted")?;
        let own = root.join(format!("millrace-repair-{}-{number}", std::process::id()));
        let cgroup = own.join(format!("kubepods-besteffort-pod{}.slice", uid.replace('-', "_")));
        let own = Self { pod, uid, child, cgroup };
        fs::create_dir_all(&own.cgroup).context("a cgroup")?;
        fs::write(own.cgroup.join("cgroup.procs"), own.child.id().to_string())?;
        own.tell(stage, &json!({}));
        Ok(own)
    }

    /// Tell the API of it, with these members beside.
    pub fn tell(&self, stage: &Stage, more: &Value) {
        let containers =
            json!([{ "name": "app" }, { "name": "istio-proxy", "args": ["proxy", "sidecar"] }]);
        let ips = json!([{ "ip": "10.1.0.2" }, { "ip": "fd01::2" }]);
        let mut manifest = json!({
            "annotations": { STATUS: SIDECAR },
            "ownerReferences": [{ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r" }],
            "spec": { "nodeName": Stage::NODE, "containers": containers },
            "status": { "phase": "Running", "podIP": "10.1.0.2", "podIPs": ips },
        });
        for (key, value) in more.as_object().into_iter().flatten() {
            manifest[key] = value.clone();
        }
        stage.api.put_pod("shop", &self.pod.name, &self.uid, &manifest);
    }

    /// Who answers when the application in it connects to the host.
    pub fn reaches(&self, stage: &Stage) -> Result<String> {
        let answer = stage.host.dial(Some(&self.pod), APP, "10.1.0.1:80")?;
        Ok(answer.context("nobody answers")?.name)
    }

    /// Its path in the API.
    pub fn path(&self) -> String {
        format!("/api/v1/namespaces/shop/pods/{}", self.pod.name)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _status = self.child.wait();
        for folder in [Some(self.cgroup.as_path()), self.cgroup.parent()].into_iter().flatten() {
            // An empty cgroup is in nobody's way, where it can't be removed.
            let _stays = fs::remove_dir(folder);
        }
    }
}

/// The Events that were written for a pod, by their reasons and notes.
pub fn events(stage: &Stage, uid: &str) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let written = stage.api.written().into_iter();
    let events = written.filter(|(to, _)| to.starts_with("POST ") && to.ends_with("/events"));
    let own = events.filter(|(_, event)| event["regarding"]["uid"] == uid);
    own.map(|(_, event)| (text(&event["reason"]), text(&event["note"]))).collect()
}

/// Whether an Event of this reason was written for it.
pub fn said(stage: &Stage, uid: &str, reason: &str) -> bool {
    events(stage, uid).iter().any(|(said, _)| said == reason)
}
