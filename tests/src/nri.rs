//! A container runtime, as far as a plugin of its Node Resource Interface can see it: it takes plugins on a
//! socket, asks them and reads what they answer, and can be slow, lie and go away.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_node::nri::frames::{Assembly, Channel, FRAME_HEADER, Kind, Message, encode, frame};
use millrace_node::nri::messages::{
    AboutPod, Configure, Configured, Container, LinuxNamespace, LinuxPodSandbox, PLUGIN,
    PodSandbox, RegisterPlugin, Request, Response, StateChange, Status, Synchronize, Synchronized,
};
use prost::Message as _;
use serde_json::Value;

use crate::cni::Pod;

/// How long a plugin may take for what it has to do at once.
const PATIENCE: Duration = Duration::from_secs(30);

/// A runtime that listens.
#[derive(Debug)]
pub struct Runtime {
    listener: UnixListener,
    path: PathBuf,
}

/// A plugin that is connected.
#[derive(Debug)]
pub struct Plugin {
    stream: UnixStream,
    own: Assembly,
    runtime: Assembly,
    messages: Vec<(Channel, Message)>,
    last: u32,
}

/// What a plugin answered.
pub type Answer = std::result::Result<Vec<u8>, Status>;

impl Runtime {
    /// Listen there, in the place of one that did before.
    pub fn new(path: &Path) -> Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let listener = UnixListener::bind(path).context("the runtime's socket")?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, path: path.to_owned() })
    }

    /// The next connection, within a time.
    pub fn stream(&self, limit: Duration) -> Result<UnixStream> {
        let until = Instant::now() + limit;
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            ensure!(Instant::now() < until, "nobody connects within {limit:?}");
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// The next plugin, which registers.
    pub fn accept(&self) -> Result<Plugin> {
        let mut plugin = Plugin::on(self.stream(PATIENCE)?);
        let (channel, message) = plugin.next(PATIENCE)?;
        ensure!((channel, message.kind) == (Channel::Runtime, Kind::Request), "{message:?}");
        let request = Request::decode(message.data.as_slice())?;
        ensure!(request.method == "RegisterPlugin", "{request:?}");
        ensure!(request.service == "nri.pkg.api.v1alpha1.Runtime", "{request:?}");
        let register = RegisterPlugin::decode(request.payload.as_slice())?;
        ensure!(register.plugin_name == "millrace", "{register:?}");
        ensure!(register.plugin_idx.len() == 2, "{register:?}");
        plugin.answer(message.stream, Ok(Vec::new()))?;
        Ok(plugin)
    }

    /// The next plugin, which registers and hears that there are these pods, of which those of the ids have
    /// containers. Requests may take this time.
    pub fn settled(
        &self,
        limit: Duration,
        pods: Vec<PodSandbox>,
        with_containers: &[&str],
    ) -> Result<Plugin> {
        let mut plugin = self.accept()?;
        plugin.configure(limit)?;
        plugin.synchronize(pods, with_containers, false)?;
        Ok(plugin)
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        // Another runtime may listen there by now.
        let _gone = fs::remove_file(&self.path);
    }
}

impl Plugin {
    /// Whoever is at the other end.
    pub fn on(stream: UnixStream) -> Self {
        let (own, runtime) = (Assembly::default(), Assembly::default());
        Self { stream, own, runtime, messages: Vec::new(), last: 0 }
    }

    /// Send bytes, whatever they are.
    pub fn say(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Whether it closes the connection within this time.
    pub fn closes(&mut self, limit: Duration) -> Result<bool> {
        self.stream.set_read_timeout(Some(limit))?;
        let mut byte = [0];
        loop {
            match self.stream.read(&mut byte) {
                Ok(0) => return Ok(true),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(true),
                Err(_) => return Ok(false),
            }
        }
    }

    fn next(&mut self, limit: Duration) -> Result<(Channel, Message)> {
        let until = Instant::now() + limit;
        while self.messages.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "it says nothing within {limit:?}");
            self.stream.set_read_timeout(Some(left))?;
            let mut header = [0; FRAME_HEADER];
            self.stream.read_exact(&mut header).context("a frame")?;
            let (channel, count) = frame(header)?;
            // What the runtime reads at once.
            ensure!(count <= 4096, "a part of {count} bytes");
            let mut part = vec![0; count];
            self.stream.read_exact(&mut part).context("a frame's part")?;
            let assembly = match channel {
                Channel::Plugin => &mut self.own,
                Channel::Runtime => &mut self.runtime,
            };
            let whole = assembly.take(&part)?;
            self.messages.extend(whole.into_iter().map(|message| (channel, message)));
        }
        Ok(self.messages.remove(0))
    }

    fn answer(&mut self, stream: u32, answer: Answer) -> Result<()> {
        let response = match answer {
            Ok(payload) => Response { status: None, payload },
            Err(status) => Response { status: Some(status), payload: Vec::new() },
        };
        let data = response.encode_to_vec();
        let message = Message { stream, kind: Kind::Response, data };
        Ok(self.say(&encode(Channel::Runtime, &message)?)?)
    }

    /// Ask, and don't wait. Gives the number that the answer will have.
    pub fn ask(&mut self, method: &str, payload: Vec<u8>) -> Result<u32> {
        self.last += 2;
        let stream = self.last - 1;
        let request = Request {
            service: PLUGIN.to_owned(),
            method: method.to_owned(),
            payload,
            timeout_nano: 0,
        };
        let message = Message { stream, kind: Kind::Request, data: request.encode_to_vec() };
        self.say(&encode(Channel::Plugin, &message)?)?;
        Ok(stream)
    }

    /// The answer of this number, within a time.
    pub fn answered(&mut self, stream: u32, limit: Duration) -> Result<Answer> {
        let (channel, message) = self.next(limit)?;
        ensure!((channel, message.kind) == (Channel::Plugin, Kind::Response), "{message:?}");
        ensure!(message.stream == stream, "{message:?} is no answer to {stream}");
        let response = Response::decode(message.data.as_slice())?;
        Ok(match response.status {
            Some(status) if status.code != 0 => Err(status),
            _ => Ok(response.payload),
        })
    }

    /// Ask, and wait for the answer.
    pub fn call(&mut self, method: &str, payload: Vec<u8>) -> Result<Answer> {
        let stream = self.ask(method, payload)?;
        self.answered(stream, PATIENCE)
    }

    /// Configure it, where requests may take this time. Gives the events that it wants.
    pub fn configure(&mut self, limit: Duration) -> Result<i32> {
        let configure = Configure {
            runtime_name: "fake".to_owned(),
            runtime_version: "1".to_owned(),
            request_timeout: i64::try_from(limit.as_millis())?,
            nri_version: String::new(),
        };
        let answer = self.call("Configure", configure.encode_to_vec())?;
        let answer = answer.map_err(|status| anyhow::anyhow!("{status:?}"))?;
        Ok(Configured::decode(answer.as_slice())?.events)
    }

    /// Tell it of pods that are there, of which those of the ids have containers.
    pub fn synchronize(
        &mut self,
        pods: Vec<PodSandbox>,
        with_containers: &[&str],
        more: bool,
    ) -> Result<()> {
        let containers = with_containers.iter();
        let containers =
            containers.map(|id| Container { pod_sandbox_id: (*id).to_owned() }).collect();
        let told = Synchronize { pods, containers, more };
        match self.call("Synchronize", told.encode_to_vec())? {
            Ok(answer) => {
                ensure!(Synchronized::decode(answer.as_slice())?.more == more, "more");
                Ok(())
            }
            Err(status) => bail!("{status:?}"),
        }
    }

    /// Tell it that a pod's sandbox runs, and hear whether it may.
    pub fn run_pod(&mut self, pod: &PodSandbox) -> Result<std::result::Result<(), Status>> {
        self.about("RunPodSandbox", pod)
    }

    /// Tell it of something about a pod.
    pub fn about(
        &mut self,
        method: &str,
        pod: &PodSandbox,
    ) -> Result<std::result::Result<(), Status>> {
        let about = AboutPod { pod: Some(pod.clone()) };
        Ok(self.call(method, about.encode_to_vec())?.map(drop))
    }

    /// The same as runtimes before NRI 0.12 tell it: by the event's number.
    pub fn state_change(
        &mut self,
        event: i32,
        pod: &PodSandbox,
    ) -> Result<std::result::Result<(), Status>> {
        let change = StateChange { event, pod: Some(pod.clone()) };
        Ok(self.call("StateChange", change.encode_to_vec())?.map(drop))
    }
}

/// A pod as a runtime tells of it, with a network namespace of its own.
pub fn sandbox(pod: &Pod, annotations: &Value) -> PodSandbox {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let annotations = annotations.as_object().into_iter().flatten();
    let annotations: HashMap<String, String> =
        annotations.map(|(name, value)| (name.clone(), text(value))).collect();
    PodSandbox {
        id: pod.id.clone(),
        name: pod.name.clone(),
        uid: pod.uid(),
        namespace: "shop".to_owned(),
        annotations,
        linux: Some(namespaces(&[("pid", ""), ("network", &pod.netns.display().to_string())])),
        pid: 0,
    }
}

/// Namespaces, by type and path.
pub fn namespaces(all: &[(&str, &str)]) -> LinuxPodSandbox {
    let namespace = |(of, path): &(&str, &str)| LinuxNamespace {
        r#type: (*of).to_owned(),
        path: (*path).to_owned(),
    };
    LinuxPodSandbox { namespaces: all.iter().map(namespace).collect() }
}
