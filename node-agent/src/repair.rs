//! What is done about pods that run uncaptured, or captured otherwise than they should be: those that
//! started before the plugin was there, or whose rules somebody changed.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::ValueEnum;
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube_runtime::events::EventType;
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use crate::api::within;
use crate::audit::{Seen, State, Unknown, look, rules};
use crate::events::Events;
use crate::install::Config;
use crate::pods::{Name, Pod, Record, resource};
use crate::processes::of_pods;
use crate::state::Shared;

/// How soon it is looked again for the list of pods.
const SOON: Duration = Duration::from_millis(100);
/// How many pods one pass deletes at most: a wrong setting is seen before all of a node is gone.
const DELETED_AT_ONCE: usize = 5;

/// What is done about a pod that is not captured as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// Don't check running pods
    Off,
    /// Report by an Event on the pod and a metric
    Report,
    /// Capture the pod without a restart
    InPlace,
    /// Delete the pod, so that its controller recreates it
    Delete,
    /// Label the pod (--repair-label)
    Label,
}

impl Mode {
    /// Whether a pod that it was done to depends on the plugin.
    const fn needs_plugin(self) -> bool {
        matches!(self, Self::InPlace | Self::Delete)
    }
}

/// How pods that run are dealt with.
#[derive(Clone, Debug)]
pub struct Repair {
    /// What is done about a pod that runs and is not captured as it should be.
    pub mode: Mode,
    /// How long from the beginning of one pass over all pods to that of the next.
    pub period: Duration,
    /// The label's name and value.
    pub label: (String, String),
    /// Path of the host's `/proc`, which has the processes of all pods.
    pub proc: PathBuf,
    /// `metadata.name` of the Node.
    pub node: String,
    /// The key of the taint that is taken off it.
    pub untaint: Option<String>,
}

/// What is to be done about a pod beside looking at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Deed {
    Nothing,
    Delete,
    Label,
    /// It would be, but this is in the way.
    Skip(&'static str),
}

/// Decide what is done about a pod in this state.
fn deed(mode: Mode, state: &State, pod: &Pod, is_installed: bool, deleted: usize) -> Deed {
    if !state.is_bad() {
        return Deed::Nothing;
    }
    match mode {
        Mode::Off | Mode::Report | Mode::InPlace => Deed::Nothing,
        Mode::Label => Deed::Label,
        Mode::Delete if !pod.has_owner => {
            Deed::Skip("it is not deleted: it has no owner that would make it anew")
        }
        Mode::Delete if !is_installed => Deed::Skip(
            "it is not deleted: the plugin is not installed, so the next one would not be captured",
        ),
        Mode::Delete if deleted >= DELETED_AT_ONCE => {
            Deed::Skip("it is not deleted yet: others are, in this pass")
        }
        Mode::Delete => Deed::Delete,
    }
}

/// Looks at pods and does what is to be done, for ever.
pub struct Repairer {
    repair: Repair,
    config: Config,
    shared: Arc<Shared>,
    client: Client,
    events: Events,
    /// What was last said of each pod, by its id.
    reported: HashMap<String, String>,
    /// Of how many pods no process was seen.
    lost: usize,
}

impl std::fmt::Debug for Repairer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Repairer").field("repair", &self.repair).finish_non_exhaustive()
    }
}

impl Repairer {
    /// With a client for what nobody waits for.
    pub fn new(repair: Repair, config: Config, shared: Arc<Shared>, client: Client) -> Self {
        let events = Events::new(client.clone(), &repair.node);
        Self { repair, config, shared, client, events, reported: HashMap::new(), lost: 0 }
    }

    /// Do it for ever; at first as soon as the pods are known.
    pub async fn run(mut self) {
        if self.repair.mode == Mode::Off {
            return std::future::pending().await;
        }
        while self.shared.pods.as_ref().is_none_or(|pods| pods.trouble().is_some()) {
            sleep(SOON).await;
        }
        // Those that do something to pods do it where the plugin is installed alone.
        let until = Instant::now() + self.repair.period;
        while self.repair.mode.needs_plugin()
            && !self.shared.is_installed()
            && Instant::now() < until
        {
            sleep(SOON).await;
        }
        loop {
            let next = Instant::now() + self.repair.period;
            if let Err(why) = self.pass().await {
                tracing::error!(
                    "running pods can't be checked, which is tried again in {:?} (--repair-period): {why}",
                    self.repair.period
                );
            }
            // Somebody who sees more may know that it is time.
            tokio::select! {
                () = sleep_until(next) => {}
                () = self.shared.asked_to_look() => {}
            }
        }
    }

    async fn pass(&mut self) -> Result<(), String> {
        let pods = self.shared.pods.as_ref().map(|pods| pods.all()).unwrap_or_default();
        let pods: Vec<(Name, Pod)> = pods.into_iter().filter(|(_, pod)| !pod.is_over).collect();
        let ids: HashSet<&String> = pods.iter().map(|(_, pod)| &pod.uid).collect();
        self.reported.retain(|uid, _| ids.contains(uid));
        let rules = rules(&self.config)?;
        // Where it is not installed, another plugin may have captured them.
        let repairs = self.repair.mode == Mode::InPlace && self.shared.is_installed();
        let proc = self.repair.proc.clone();
        let looked = tokio::task::spawn_blocking(move || {
            let processes = of_pods(&proc).map_err(|why| format!("{}: {why}", proc.display()))?;
            let seen = |(name, pod)| {
                let seen = look(&rules, &pod, &processes, repairs);
                (name, pod, seen)
            };
            Ok::<Vec<_>, String>(pods.into_iter().map(seen).collect())
        });
        let looked = looked.await.map_err(|error| error.to_string())??;
        let seen: Vec<&Seen> = looked.iter().map(|(_, _, seen)| seen).collect();
        self.shared.metrics.looked(&seen);
        let is_lost = |seen: &&&Seen| matches!(seen.state, State::Unknown(Unknown::NoProcess, _));
        let lost = seen.iter().filter(is_lost).count();
        let before = std::mem::replace(&mut self.lost, lost);
        if lost > before {
            tracing::warn!(
                "no process of {lost} running pods can be seen, so that they are not checked: run the \
                 agent with hostPID, or with the host's /proc as --proc-dir"
            );
        }
        let mut deleted = 0;
        for (name, pod, seen) in looked {
            self.deal(&name, &pod, &seen, &mut deleted).await;
        }
        Ok(())
    }

    async fn deal(&mut self, name: &Name, pod: &Pod, seen: &Seen, deleted: &mut usize) {
        let metrics = self.shared.metrics.clone();
        let is_installed = self.shared.is_installed();
        let state = &seen.state;
        let (kind, reason, note) = match (&seen.repaired, state) {
            (Some(Ok(())), _) => {
                metrics.repaired("repair", "success");
                // It has to be said each time that it was necessary.
                self.reported.remove(&pod.uid);
                let note = format!("it was captured where it runs, as {}", state.why());
                (EventType::Normal, "CaptureRepaired", note)
            }
            (Some(Err(why)), _) => {
                metrics.repaired("repair", "fail");
                let note = format!("{}; it can't be captured where it runs: {why}", state.why());
                (EventType::Warning, "CaptureRepairFailed", note)
            }
            (None, State::NotCaptured(why)) => {
                (EventType::Warning, "NotCaptured", format!("its traffic is not captured: {why}"))
            }
            (None, State::Drifted(why)) => {
                let note = format!("its traffic is not captured as it should be: {why}");
                (EventType::Warning, "CaptureDrifted", note)
            }
            // That may be the agent's fault, and is said of all of them at once.
            (
                None,
                State::Captured
                | State::Left(_)
                | State::Starting
                | State::Unknown(Unknown::NoProcess, _),
            ) => {
                self.reported.remove(&pod.uid);
                return;
            }
            (None, State::Unknown(_, why)) => {
                let note = format!("whether its traffic is captured can't be told: {why}");
                (EventType::Warning, "CaptureUnknown", note)
            }
        };
        let (mut note, mut reason) = (note, reason);
        match deed(self.repair.mode, state, pod, is_installed, *deleted) {
            Deed::Nothing => {}
            Deed::Skip(why) => {
                metrics.repaired("delete", "skip");
                note = format!("{note}; {why}");
            }
            Deed::Delete => match self.delete(name, pod).await {
                Ok(()) => {
                    *deleted += 1;
                    metrics.repaired("delete", "success");
                    (note, reason) = (format!("it is deleted: {note}"), "DeletedUncaptured");
                }
                Err(why) => {
                    metrics.repaired("delete", "fail");
                    note = format!("it can't be deleted ({why}): {note}");
                }
            },
            Deed::Label => match self.label(name, pod).await {
                Ok(true) => {
                    metrics.repaired("label", "success");
                    let (key, value) = &self.repair.label;
                    note = format!("it got the label {key}={value}: {note}");
                    reason = "LabelledUncaptured";
                }
                // It has been said.
                Ok(false) => {
                    metrics.repaired("label", "skip");
                    return;
                }
                Err(why) => {
                    metrics.repaired("label", "fail");
                    note = format!("it can't be labelled ({why}): {note}");
                }
            },
        }
        let said = format!("{reason} {note}");
        if self.reported.get(&pod.uid) == Some(&said) {
            return;
        }
        // What the API did not hear is said again in the next pass.
        let written = self.events.say(name, pod, kind, reason, note).await;
        if written.is_ok() && seen.repaired != Some(Ok(())) {
            self.reported.insert(pod.uid.clone(), said);
        }
    }

    fn api(&self, name: &Name) -> Api<Record> {
        Api::namespaced_with(self.client.clone(), &name.0, &resource())
    }

    /// Delete the pod that was looked at, and no other of its name.
    async fn delete(&self, name: &Name, pod: &Pod) -> Result<(), String> {
        let same = Preconditions {
            uid: Some(pod.uid.clone()),
            resource_version: Some(pod.version.clone()),
        };
        let params = DeleteParams { preconditions: Some(same), ..DeleteParams::default() };
        within(self.api(name).delete(&name.1, &params)).await.map(drop)
    }

    /// Label it; false where it has the label.
    async fn label(&self, name: &Name, pod: &Pod) -> Result<bool, String> {
        let (key, value) = &self.repair.label;
        let facts = pod.facts().map_err(|error| error.to_string())?;
        if facts.labels.unwrap_or_default().get(key) == Some(value) {
            return Ok(false);
        }
        // The id is a precondition. Labels go by the status as well, which is the smaller right.
        let patch = json!({ "metadata": { "uid": pod.uid, "labels": { key.as_str(): value } } });
        let (api, params) = (self.api(name), PatchParams::default());
        within(api.patch_status(&name.1, &params, &Patch::Merge(&patch))).await.map(|_| true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(has_owner: bool) -> Pod {
        Pod {
            uid: "u".to_owned(),
            version: "1".to_owned(),
            manifest: "{}".into(),
            addresses: Vec::new(),
            is_over: false,
            has_ended: false,
            has_owner,
        }
    }

    /// Verify that a pod is deleted only where another one takes its place and is captured, and that no
    /// pod is touched that is as it should be, or of which nothing is known.
    #[test]
    fn a_pod_is_not_deleted_for_nothing() {
        let bad = State::NotCaptured("x".to_owned());
        let decide = |mode, state: &State, owner, installed, deleted| {
            deed(mode, state, &pod(owner), installed, deleted)
        };
        assert_eq!(decide(Mode::Delete, &bad, true, true, 0), Deed::Delete);
        for (owner, installed, deleted) in
            [(false, true, 0), (true, false, 0), (true, true, DELETED_AT_ONCE)]
        {
            let decided = decide(Mode::Delete, &bad, owner, installed, deleted);
            assert!(matches!(decided, Deed::Skip(_)), "{owner} {installed} {deleted}");
        }
        let drifted = State::Drifted("x".to_owned());
        assert_eq!(decide(Mode::Label, &drifted, false, false, 9), Deed::Label);
        for mode in [Mode::Off, Mode::Report, Mode::InPlace] {
            assert_eq!(decide(mode, &bad, true, true, 0), Deed::Nothing);
        }
        let unknown = State::Unknown(Unknown::NoProcess, String::new());
        for state in [State::Captured, State::Left(String::new()), State::Starting, unknown] {
            for mode in [Mode::Delete, Mode::Label] {
                assert_eq!(decide(mode, &state, true, true, 0), Deed::Nothing, "{state:?}");
            }
        }
    }
}
