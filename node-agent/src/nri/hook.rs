//! What is done about a pod that the runtime tells of: the CNI plugin's decision and capture, by the agent
//! itself. What fails is a refusal, so that no pod starts uncaptured.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use millrace_cni::outcome::Outcome;
use millrace_cni::protocol::{CniError, Code};
use millrace_cni::running::{AddOutcome, Added, called};
use millrace_core::pod::PodFacts;
use millrace_host::netns::{Netns, NetnsRef};
use tokio::runtime::Handle;
use tokio::time::timeout_at;

use super::messages::{Event, PodSandbox};
use super::users;
use crate::audit::{on_a_thread, rules};
use crate::install::{Config, UNINSTALLED};
use crate::kept::Store;
use crate::server::Server;
use crate::state::Shared;

/// How long a pod that was there at the connection, without a container, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How many pods are remembered. No node has as many.
const MOST_DECIDED: usize = 10_000;
/// The type of a network namespace.
const NETWORK: &str = "network";

/// Decides about pods and captures them, for the runtime.
pub struct Hook {
    config: Config,
    proc: PathBuf,
    server: Server,
    shared: Arc<Shared>,
    runtime: Handle,
    /// The ids of pods that were decided about, or had a container when the connection was made. In others
    /// nothing runs yet: they are decided about at their first container.
    decided: Mutex<HashSet<String>>,
}

/// Which network a pod has.
enum Network {
    Own(Netns, PathBuf),
    Node,
}

/// What became of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Passed,
    Captured,
    Nothing,
}

impl std::fmt::Debug for Hook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hook").field("proc", &self.proc).finish_non_exhaustive()
    }
}

impl Hook {
    /// By the settings of the plugin's entry, with who knows the pods. Needs a runtime.
    pub fn new(config: Config, proc: PathBuf, server: Server, shared: Arc<Shared>) -> Self {
        let (runtime, decided) = (Handle::current(), Mutex::default());
        Self { config, proc, server, shared, runtime, decided }
    }

    /// Note that there is no connection, and why.
    pub fn disconnected(&self, why: &str) {
        self.shared.disconnected(why);
    }

    /// Why the runtime is to do without the plugin, where it is.
    pub fn withheld(&self) -> Option<String> {
        let store = Store::open_if_there(&self.config.state_dir).ok().flatten()?;
        store.is_uninstalled().is_ok_and(|is| is).then(|| UNINSTALLED.to_owned())
    }

    fn decided(&self) -> MutexGuard<'_, HashSet<String>> {
        self.decided.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The runtime has told of all that there is: from now on it tells of each pod. Pods without a
    /// container are decided about now, and before their first container; those that run are looked at.
    pub fn synchronized(
        self: &Arc<Self>,
        mut pods: Vec<PodSandbox>,
        with_containers: HashSet<String>,
    ) {
        let count = pods.len();
        users::keep(&self.config, &pods.iter().map(|pod| pod.id.clone()).collect());
        pods.retain(|pod| !with_containers.contains(&pod.id));
        let waiting = pods;
        *self.decided() = with_containers;
        self.shared.connected();
        tracing::info!(
            "connected to the runtime, which has {count} pods, {} of them without a container",
            waiting.len()
        );
        self.shared.look_at_pods();
        let own = Arc::clone(self);
        let _task = tokio::task::spawn_blocking(move || {
            for pod in waiting {
                let began = Instant::now();
                // Its first container is refused as long as this fails.
                let _said = own.serve(Event::CreateContainer, &pod, began, began + PATIENCE);
            }
        });
    }

    /// Do what an event asks for, until a deadline. This may take the thread's time.
    ///
    /// # Errors
    /// Why the pod, or its container, is not to start.
    pub fn serve(
        &self,
        event: Event,
        pod: &PodSandbox,
        began: Instant,
        until: Instant,
    ) -> Result<(), CniError> {
        let result = match event {
            Event::CreateContainer if self.decided().contains(&pod.id) => Ok(Done::Nothing),
            Event::RunPodSandbox | Event::CreateContainer => self.start(pod, until),
            // The rules end with the pod's namespace: as long as something can run in it, they stay.
            Event::StopPodSandbox => Ok(Done::Nothing),
            Event::RemovePodSandbox => {
                self.forget(pod, until);
                Ok(Done::Nothing)
            }
        };
        self.note(event, pod, result.is_ok());
        let outcome = match &result {
            Ok(Done::Nothing) => return Ok(()),
            Ok(Done::Passed) => Outcome::Passed,
            Ok(Done::Captured) => Outcome::Captured,
            Err(error) => error.code.into(),
        };
        self.shared.metrics.hooked(event.method(), outcome, began.elapsed());
        result.map(drop).map_err(|error| {
            let facts = facts(pod);
            tracing::error!(
                pod = called(&facts),
                sandbox = pod.id,
                code = error.code.number(),
                "refused: {} {}",
                error.msg,
                error.details
            );
            error.about(&called(&facts))
        })
    }

    /// Note whether a pod is decided about. Those that are forgotten are decided about once more.
    fn note(&self, event: Event, pod: &PodSandbox, is_done: bool) {
        let mut decided = self.decided();
        match event {
            Event::RemovePodSandbox => drop(decided.take(&pod.id)),
            Event::RunPodSandbox | Event::CreateContainer if is_done => {
                if decided.len() >= MOST_DECIDED {
                    decided.clear();
                }
                let _is_new = decided.insert(pod.id.clone());
            }
            Event::RunPodSandbox | Event::CreateContainer | Event::StopPodSandbox => {}
        }
    }

    fn start(&self, pod: &PodSandbox, until: Instant) -> Result<Done, CniError> {
        let facts = facts(pod);
        let name = called(&facts);
        let passed = |why: &str| {
            tracing::info!(pod = name, sandbox = pod.id, "not captured: {why}");
            Ok(Done::Passed)
        };
        let network = self.network(pod);
        if matches!(network, Ok(Network::Node)) {
            return passed("it has the network of its node");
        }
        let rules = rules(&self.config).map_err(|why| CniError::new(Code::BadConfig, why))?;
        let Added { outcome, warnings } = rules.added(facts.clone(), |pod| self.ask(pod, until))?;
        for warning in warnings {
            tracing::warn!(pod = name, "{warning}");
        }
        let capture = match outcome {
            AddOutcome::Left(why) => return passed(&why),
            AddOutcome::Captured(capture) => capture,
        };
        let (netns, path) = match network {
            Ok(Network::Own(netns, path)) => (netns, path),
            Ok(Network::Node) => return Ok(Done::Passed),
            Err(why) => return Err(CniError::new(Code::BadEnvironment, why)),
        };
        if netns.has_own_users().is_ok_and(|own| own) {
            users::add(&self.config, &facts, &pod.id, &path, until).map_err(|error| {
                let msg = error.msg.strip_prefix(&format!("{name}: ")).map(str::to_owned);
                CniError { msg: msg.unwrap_or_else(|| error.msg.clone()), ..error }
            })?;
            let held = on_a_thread(|| capture.check(&netns, &path, until))?;
            if let Some(difference) = held {
                let why = format!("the plugin has captured it, and still: {difference}");
                return Err(CniError::new(Code::NotCaptured, why));
            }
            tracing::info!(pod = name, sandbox = pod.id, "captured, among users of its own");
            return Ok(Done::Captured);
        }
        // A thread that enters a namespace ends with it.
        let started = on_a_thread(|| capture.start(&netns, &path, until))?;
        for warning in &started.warnings {
            tracing::warn!(pod = name, "{warning}");
        }
        let (mesh, by) = (started.mesh, started.by);
        if started.changed {
            tracing::info!(pod = name, sandbox = pod.id, mesh, by, "captured");
        } else {
            tracing::info!(pod = name, sandbox = pod.id, mesh, by, "captured already, as desired");
        }
        Ok(Done::Captured)
    }

    /// Ask for a pod what the runtime does not tell: those that are known, and else the API, which gets
    /// two thirds of the time that is left.
    fn ask(&self, pod: &PodFacts, until: Instant) -> Result<PodFacts, String> {
        let left = until.saturating_duration_since(Instant::now());
        let limit = Instant::now() + left * 2 / 3;
        let asked = async { timeout_at(limit.into(), self.server.tell(pod)).await };
        self.runtime
            .block_on(asked)
            .unwrap_or_else(|_late| Err("the Kubernetes API does not answer in time".to_owned()))
    }

    /// The network of a pod, by what the runtime tells and by its first process.
    ///
    /// # Errors
    /// Why it can't be told.
    fn network(&self, pod: &PodSandbox) -> Result<Network, String> {
        let linux = pod.linux.as_ref();
        let namespaces = linux.map(|linux| linux.namespaces.as_slice()).unwrap_or_default();
        let told = namespaces.iter().find(|namespace| namespace.r#type == NETWORK);
        let path = told.map(|namespace| PathBuf::from(&namespace.path));
        let path = path.filter(|path| path.is_absolute());
        let by_path = path.as_deref().map(open);
        let process = self.proc.join(pod.pid.to_string()).join("ns/net");
        let by_process = (pod.pid != 0).then(|| open(&process));
        let (netns, path) = match (by_path, by_process) {
            (Some(Ok(netns)), _) => (netns, path.unwrap_or_default()),
            (_, Some(Ok(netns))) => (netns, process),
            // Namespaces without a network are those of a pod that has its node's.
            (None, _) if told.is_none() && !namespaces.is_empty() => return Ok(Network::Node),
            (Some(Err(why)), _) | (None, Some(Err(why))) => return Err(why),
            (None, None) => {
                return Err(
                    "the runtime tells neither its network namespace nor a process".to_owned()
                );
            }
        };
        let own = [self.proc.join("1/ns/net"), PathBuf::from("/proc/self/ns/net")];
        if !own.iter().any(|own| open(own).is_ok_and(|own| own.id() == netns.id())) {
            return Ok(Network::Own(netns, path));
        }
        if told.is_none() {
            return Ok(Network::Node);
        }
        Err(format!(
            "{} is the network namespace of the host or of the agent, which is never captured: nothing \
             was changed",
            path.display()
        ))
    }

    /// Forget pods that are gone, where eBPF captures.
    fn forget(&self, pod: &PodSandbox, until: Instant) {
        users::forget(&self.config, &pod.id);
        let forgotten = rules(&self.config).and_then(|rules| rules.forget(until));
        if let Err(why) = forgotten {
            tracing::warn!("entries of pods that are gone are left behind: {why}");
        }
    }
}

fn open(path: &Path) -> Result<Netns, String> {
    NetnsRef::at(path.to_owned()).open().map_err(|error| error.to_string())
}

/// What the runtime tells of a pod, which is what it tells a CNI plugin.
fn facts(pod: &PodSandbox) -> PodFacts {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    PodFacts {
        name: text(&pod.name),
        namespace: text(&pod.namespace),
        uid: text(&pod.uid),
        annotations: Some(pod.annotations.clone().into_iter().collect()),
        ..PodFacts::default()
    }
}
