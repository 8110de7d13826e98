//! Pods that the node's proxy serves: each is told to the proxy first and captured then, so it is never
//! captured towards a proxy that doesn't know it; and it leaves the other way round.
//!
//! ```text
//! pods, namespaces ──► decide (core) ──► tell the proxy ──► rules in the pod ──► annotation
//!       the plugin's ADD ──┘
//! ```

mod add;
mod entry;
mod inside;
mod leave;
mod settings;
mod write;

pub use add::Answer;
pub use settings::Settings;

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube_runtime::events::EventType;
use millrace_cni::causes::chain;
use millrace_cni::config::{Backend, Config as PluginConfig, object};
use millrace_core::dialect::ambient::enrol::{
    Enrolment, NodeSettings, Served, decide, is_annotated, served,
};
use millrace_core::plan::Preference;
use millrace_core::pod::PodFacts;
use millrace_core::preflight;
use serde_json::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Mutex as Turn, Notify};
use tokio::time::{Instant, sleep, sleep_until};

use crate::api::Clients;
use crate::events::Events;
use crate::install::{Config, settings};
use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::pods::{Name, Pod, Pods};
use crate::processes::of_pods;
use crate::ztunnel::{Workload, Ztunnel};
use entry::{Entry, Failure};
use inside::{Held, Processes, Shared};
use write::{What, Write};

/// How soon it is looked again for the lists of pods and namespaces, and whether the proxy has come.
const SOON: Duration = Duration::from_millis(200);
/// How long a pod that the plugin enrolled may be missing in the list of pods.
const UNLISTED: Duration = Duration::from_mins(2);

/// What the enroller works with.
#[derive(Debug)]
pub struct Parts {
    /// What the operator set.
    pub settings: Settings,
    /// The name of the node.
    pub node: String,
    /// Path of the host's `/proc`.
    pub proc: PathBuf,
    /// How often the rules of pods are looked at.
    pub period: Duration,
    /// The pods of the node.
    pub pods: Arc<Pods>,
    /// All namespaces.
    pub namespaces: Arc<Namespaces>,
    /// Where it is counted.
    pub metrics: Metrics,
}

/// Enrols pods with the node's proxy, and lets them leave.
pub struct Enroller {
    parts: Parts,
    config: Config,
    clients: Clients,
    events: Events,
    ztunnel: Ztunnel,
    /// What is known of each pod, by its id. Whoever does something about a pod holds its turn.
    known: Mutex<HashMap<String, Arc<Turn<Entry>>>>,
    /// Tells the pass that the plugin enrolled one.
    added: Notify,
    /// What is to be written to the API, and who takes it from there.
    writes: UnboundedSender<Write>,
    written: Turn<UnboundedReceiver<Write>>,
}

impl std::fmt::Debug for Enroller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enroller").field("settings", &self.parts.settings).finish_non_exhaustive()
    }
}

/// What holds for all pods at a moment.
struct Node {
    settings: NodeSettings,
    preference: Preference,
}

impl Enroller {
    /// With a proxy that is told.
    pub fn new(parts: Parts, config: Config, clients: Clients, ztunnel: Ztunnel) -> Self {
        let events = Events::new(clients.patient.clone(), &parts.node);
        let (known, added) = (Mutex::default(), Notify::new());
        let (writes, written) = unbounded_channel();
        let written = Turn::new(written);
        Self { parts, config, clients, events, ztunnel, known, added, writes, written }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Arc<Turn<Entry>>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entry(&self, uid: &str) -> Arc<Turn<Entry>> {
        Arc::clone(self.known().entry(uid.to_owned()).or_default())
    }

    fn node(&self) -> Result<Node, String> {
        let entry = settings(&self.config).map_err(|error| chain(&error))?.request();
        let read = object(&entry).and_then(|object| PluginConfig::parse(&object));
        let plugin = read.map_err(|error| error.msg)?;
        let own = &self.parts.settings;
        let settings = NodeSettings {
            selectors: own.selectors.clone(),
            excluded_namespaces: plugin.exclude_namespaces,
            dns_capture: own.dns_capture,
            ipv6: own.ipv6,
        };
        let preference = match plugin.backend {
            // eBPF sees no packets of the proxy.
            Backend::Auto | Backend::Ebpf => Preference::Auto,
            Backend::Nftables => Preference::Backend(preflight::Backend::Nftables),
            Backend::Iptables => Preference::Iptables,
        };
        Ok(Node { settings, preference })
    }

    /// Do it for ever, as soon as pods and namespaces are known.
    pub async fn run(&self) {
        tokio::select! {
            () = self.follow() => {}
            () = self.write_all() => {}
        }
    }

    async fn follow(&self) {
        let Parts { pods, namespaces, .. } = &self.parts;
        while pods.trouble().is_some() || namespaces.trouble().is_some() {
            sleep(SOON).await;
        }
        // The proxy goes on serving these whatever happens here, until their rules are out.
        for (_, pod) in pods.all() {
            if pod.facts().is_ok_and(|facts| is_annotated(&facts)) && !pod.has_ended {
                self.ztunnel.keep(&pod.uid);
            }
        }
        let (mut is_first, mut hellos) = (true, self.ztunnel.hellos());
        loop {
            let next = match self.pass(is_first).await {
                Ok(next) => {
                    // Every pod was come to: what is not named now is not served any more.
                    if std::mem::take(&mut is_first) {
                        self.ztunnel.snapshot_is_complete();
                    }
                    next
                }
                Err(why) => {
                    tracing::error!("pods can't be enrolled, which is tried again: {why}");
                    Instant::now() + self.parts.period
                }
            };
            loop {
                self.parts.metrics.ztunnels(self.ztunnel.connected());
                let before = std::mem::replace(&mut hellos, self.ztunnel.hellos());
                if hellos > before {
                    // Whatever failed for want of it is tried at once.
                    self.retry();
                    break;
                }
                tokio::select! {
                    () = pods.changed.notified() => break,
                    () = namespaces.changed.notified() => {
                        self.retry();
                        break;
                    }
                    () = self.added.notified() => break,
                    () = sleep_until(next) => break,
                    () = sleep(SOON) => {}
                }
            }
        }
    }

    fn retry(&self) {
        for entry in self.known().values() {
            if let Ok(mut entry) = entry.try_lock() {
                entry.retry();
            }
        }
    }

    /// Look at all pods. Gives when it is to be done again where nothing changes.
    async fn pass(&self, is_first: bool) -> Result<Instant, String> {
        let node = self.node()?;
        let pods = self.parts.pods.all();
        let mut processes = None;
        let mut next = Instant::now() + self.parts.period;
        let mut counts = [0; 3];
        for (name, pod) in &pods {
            let turn = self.entry(&pod.uid);
            // The plugin is at it.
            let Ok(mut entry) = turn.try_lock() else { continue };
            entry.listed(&pod.version);
            if entry.is_early() {
                next = next.min(entry.next.unwrap_or(next));
            } else {
                let before = entry.failures;
                let done = self.step(&node, name, pod, &mut entry, &mut processes, is_first).await;
                match done {
                    Ok(()) => entry.worked(),
                    Err(failure) => self.failed(name, pod, &mut entry, failure),
                }
                if entry.failures > before {
                    next = next.min(entry.next.unwrap_or(next));
                }
            }
            if let Some(at) = entry.state() {
                counts[at] += 1;
            }
        }
        self.parts.metrics.ambient_pods(counts);
        self.forget(&pods.iter().map(|(_, pod)| pod.uid.as_str()).collect()).await;
        Ok(next)
    }

    fn failed(&self, name: &Name, pod: &Pod, entry: &mut Entry, failure: Failure) {
        let Failure { reason, why, is_loud } = failure;
        self.parts.metrics.reconciled("fail");
        let said = format!("{reason} {why}");
        if is_loud && entry.said.as_ref() != Some(&said) {
            entry.said = Some(said);
            self.write(name, pod, What::Event(EventType::Warning, reason, why));
        } else {
            tracing::debug!(pod = format!("{}/{}", name.0, name.1), "{reason}: {why}");
        }
        entry.failed();
    }

    /// Do what is to be done about a pod.
    async fn step(
        &self,
        node: &Node,
        name: &Name,
        pod: &Pod,
        entry: &mut Entry,
        processes: &mut Option<Arc<Processes>>,
        is_first: bool,
    ) -> Result<(), Failure> {
        if pod.has_ended {
            if entry.netns.is_some() || entry.is_told {
                self.gone(&pod.uid, entry).await;
            }
            return Ok(());
        }
        let facts = pod.facts().map_err(|error| Failure::enrol(error.to_string()))?;
        entry.seen(is_annotated(&facts));
        // A namespace that is gone takes its pods with it.
        let Some(labels) = self.parts.namespaces.labels(&name.0) else { return Ok(()) };
        let is_served = decide(&facts, &labels, &node.settings) == Enrolment::Served;
        if !is_served {
            let is_marked = is_annotated(&facts) && entry.asked != Some(false);
            let is_ours = entry.is_captured() || entry.is_told || is_marked;
            if !is_ours {
                // It was to be served, and never was.
                if entry.netns.is_some() {
                    self.gone(&pod.uid, entry).await;
                }
                // An agent that died may have left rules there that no annotation tells of.
                if is_first && !facts.host_network {
                    self.sweep(name, pod, processes).await?;
                }
                return Ok(());
            }
            return self.release(name, pod, &facts, entry, processes).await;
        }
        // What ends is not begun with, and is served until it has ended.
        let is_served_already = entry.is_captured() || is_annotated(&facts);
        if pod.is_over && !is_served_already {
            return Ok(());
        }
        let addresses =
            if pod.addresses.is_empty() { entry.addresses.clone() } else { pod.addresses.clone() };
        if addresses.is_empty() {
            return Ok(());
        }
        let is_due = entry.is_due(self.parts.period);
        if is_due || entry.netns.is_none() {
            let found = inside::find(self.processes(processes).await?, &pod.uid, addresses.clone());
            entry.entered(found.await.map_err(Failure::enrol)?);
        }
        let Some(netns) = entry.netns.clone() else {
            return Err(entry.unseen(Failure::enrol));
        };
        if pod.is_over {
            return self.tell(pod, &facts, entry, &netns).await;
        }
        let served = match self.served(&facts, node, &addresses) {
            Ok(served) => served,
            Err(failure) => {
                // A proxy that is new to it hears of it whatever its annotations say by now.
                if is_served_already {
                    self.tell(pod, &facts, entry, &netns).await?;
                }
                return Err(failure);
            }
        };
        for warning in &served.warnings {
            tracing::debug!(pod = format!("{}/{}", name.0, name.1), "{warning}");
        }
        let trusts = is_first && !self.parts.settings.reconciles && is_annotated(&facts);
        if trusts {
            entry.looked(Held::Whole, &served.policy);
        } else if is_due || entry.captured.as_ref() != Some(&served.policy) {
            let held = inside::held(&netns, served.policy.clone(), node.preference).await;
            entry.looked(held.map_err(Failure::enrol)?, &served.policy);
        }
        self.tell(pod, &facts, entry, &netns).await?;
        if !entry.is_captured() {
            self.capture(name, pod, entry, &netns, served, node.preference).await?;
        }
        if !is_annotated(&facts) && entry.asked != Some(true) {
            entry.asked = Some(true);
            self.write(name, pod, What::Annotation(true));
        }
        Ok(())
    }

    fn served(
        &self,
        facts: &PodFacts,
        node: &Node,
        addresses: &[IpAddr],
    ) -> Result<Served, Failure> {
        let mut probes = inside::ways_to(addresses);
        probes.extend(&self.parts.settings.node_ips);
        probes.sort_unstable();
        probes.dedup();
        served(facts, &node.settings, &probes)
            .map_err(|errors| Failure::enrol(errors.to_string().replace('\n', "; ")))
    }

    async fn processes(
        &self,
        processes: &mut Option<Arc<Processes>>,
    ) -> Result<Arc<Processes>, Failure> {
        if let Some(processes) = processes {
            return Ok(Arc::clone(processes));
        }
        let proc = self.parts.proc.clone();
        let look = tokio::task::spawn_blocking(move || {
            of_pods(&proc).map_err(|why| format!("{}: {why}", proc.display()))
        });
        let seen = look.await.map_err(|error| error.to_string()).and_then(|seen| seen);
        let seen = Arc::new(seen.map_err(Failure::enrol)?);
        *processes = Some(Arc::clone(&seen));
        Ok(seen)
    }

    /// Have the proxy serve a pod, and wait until it does.
    async fn tell(
        &self,
        pod: &Pod,
        facts: &PodFacts,
        entry: &mut Entry,
        netns: &Shared,
    ) -> Result<(), Failure> {
        if entry.is_told {
            return Ok(());
        }
        let named = |text: &Option<String>| text.clone().unwrap_or_default();
        let workload = Workload {
            uid: pod.uid.clone(),
            name: named(&facts.name),
            namespace: named(&facts.namespace),
            service_account: service_account(&pod.manifest),
        };
        let netns = netns.descriptor().map_err(|error| Failure::enrol(error.to_string()))?;
        match self.ztunnel.add(workload, netns).await {
            Ok(()) => {
                entry.is_told = true;
                Ok(())
            }
            // It is captured as it should be, and the proxy is told as soon as it comes.
            Err(why) => Err(Failure {
                is_loud: !entry.is_captured(),
                ..Failure::enrol(format!("the node's proxy does not serve it: {why}"))
            }),
        }
    }

    async fn capture(
        &self,
        name: &Name,
        pod: &Pod,
        entry: &mut Entry,
        netns: &Shared,
        served: Served,
        preference: Preference,
    ) -> Result<(), Failure> {
        let written = inside::capture(netns, served.policy.clone(), preference).await;
        let warnings = match written {
            Ok(warnings) => warnings,
            Err(why) => {
                if entry.holds == Some(Held::Nothing) {
                    self.untell(&pod.uid, entry).await;
                }
                return Err(Failure::enrol(why));
            }
        };
        for warning in warnings.iter().chain(&served.warnings) {
            tracing::warn!(pod = format!("{}/{}", name.0, name.1), "{warning}");
        }
        let note = match entry.holds.take() {
            Some(Held::Drifted(why)) => format!("its rules were written anew: {why}"),
            _ => "the node's proxy serves it, and its traffic is captured".to_owned(),
        };
        entry.captured = Some(served.policy);
        self.parts.metrics.reconciled("add");
        self.write(name, pod, What::Event(EventType::Normal, "AmbientEnrolled", note));
        Ok(())
    }
}

/// `spec.serviceAccountName`, which the API sets on every pod.
fn service_account(manifest: &str) -> String {
    let manifest: Value = serde_json::from_str(manifest).unwrap_or_default();
    manifest["spec"]["serviceAccountName"].as_str().unwrap_or("default").to_owned()
}
