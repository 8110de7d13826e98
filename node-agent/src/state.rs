//! What the agent's parts know of each other.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use serde_json::json;
use tokio::sync::Notify;

use crate::install::{InstallError, Report};
use crate::metrics::Metrics;
use crate::namespaces::Namespaces;
use crate::plan::State;
use crate::pods::Pods;
use millrace_cni::causes::chain;

/// How much longer than its period a pass may take before it hangs.
const PATIENCE: Duration = Duration::from_mins(1);

/// By what new pods are captured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Hooks {
    /// The CNI plugin, which the agent installs
    #[default]
    Cni,
    /// The agent, as a plugin of the container runtime (NRI); the CNI plugin's entry is removed
    Nri,
    /// Both: whichever comes second finds the pod captured
    Both,
}

impl Hooks {
    /// Whether the CNI plugin is installed.
    pub const fn installs(self) -> bool {
        matches!(self, Self::Cni | Self::Both)
    }

    /// What captures new pods once the agent has ended.
    pub const fn stays(self) -> &'static str {
        match self {
            Self::Nri => {
                "until it is back, the runtime starts pods without it, and they are captured then"
            }
            Self::Cni | Self::Both => {
                "the CNI plugin stays installed, and `millrace-node uninstall` removes it"
            }
        }
    }

    /// Whether the agent is the runtime's plugin.
    pub const fn connects(self) -> bool {
        matches!(self, Self::Nri | Self::Both)
    }
}

/// What the installer, the HTTP servers and the repairer have in common.
#[derive(Debug)]
pub struct Shared {
    /// What `/metrics` answers with.
    pub metrics: Metrics,
    /// The pods of the node, where they are followed.
    pub pods: Option<Arc<Pods>>,
    /// All namespaces, where they are followed.
    pub namespaces: Option<Arc<Namespaces>>,
    period: Duration,
    hook: Hooks,
    installation: Mutex<Installation>,
    /// Why the runtime is not connected; none where it is.
    unconnected: Mutex<Option<String>>,
    look: Notify,
}

#[derive(Debug)]
struct Installation {
    last: Instant,
    reasons: Vec<String>,
    words: Vec<String>,
}

impl Shared {
    /// Before the first pass: not ready, and the time for that pass begins.
    pub fn new(period: Duration, pods: Option<Arc<Pods>>) -> Self {
        let reasons = vec!["the first look at the node is not finished".to_owned()];
        let last = Instant::now();
        let installation = Mutex::new(Installation { last, reasons, words: Vec::new() });
        let unconnected = Mutex::new(Some("it was not tried yet".to_owned()));
        let (hook, look) = (Hooks::default(), Notify::new());
        Self {
            metrics: Metrics::default(),
            pods,
            namespaces: None,
            period,
            hook,
            installation,
            unconnected,
            look,
        }
    }

    /// The same, where namespaces are followed.
    #[must_use]
    pub fn with_namespaces(self, namespaces: Option<Arc<Namespaces>>) -> Self {
        Self { namespaces, ..self }
    }

    /// The same, where pods are captured by this.
    #[must_use]
    pub fn with_hook(self, hook: Hooks) -> Self {
        Self { hook, ..self }
    }

    fn unconnected(&self) -> MutexGuard<'_, Option<String>> {
        self.unconnected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Note that the runtime tells of each pod from now on.
    pub fn connected(&self) {
        *self.unconnected() = None;
        self.metrics.connected(true, !self.hook.installs());
    }

    /// Note that it does not, and log why where that is new.
    pub fn disconnected(&self, why: &str) {
        self.metrics.connected(false, !self.hook.installs());
        let mut unconnected = self.unconnected();
        if unconnected.as_deref() != Some(why) {
            tracing::warn!("not connected to the runtime, which is tried again: {why}");
        }
        *unconnected = Some(why.to_owned());
    }

    /// Whether the runtime tells of each pod.
    pub fn is_connected(&self) -> bool {
        self.unconnected().is_none()
    }

    /// The same, as a line of JSON for who asks the agent: with why, where it does not.
    pub fn connection(&self) -> String {
        let why = if self.hook.connects() {
            self.unconnected().clone()
        } else {
            Some("this agent does not connect to it (--hook cni)".to_owned())
        };
        json!({ "nri": { "connected": why.is_none(), "why": why } }).to_string()
    }

    /// Have pods that run be looked at now.
    pub fn look_at_pods(&self) {
        self.look.notify_one();
    }

    /// Until that is wanted.
    pub async fn asked_to_look(&self) {
        self.look.notified().await;
    }

    /// Note what a pass did that has no list name the plugin.
    pub fn withdrawn(&self, result: &Result<Vec<PathBuf>, InstallError>) {
        let mut installation = self.installation();
        let reasons = match result {
            Ok(written) => {
                for file in written {
                    tracing::info!("{} names the plugin no longer", file.display());
                }
                Vec::new()
            }
            Err(error) => vec![chain(error)],
        };
        if let Some(why) = reasons.first().filter(|_| installation.reasons != reasons) {
            tracing::warn!("the plugin's entry can't be removed: {why}");
        }
        *installation = Installation { last: Instant::now(), reasons, words: Vec::new() };
    }

    fn installation(&self) -> MutexGuard<'_, Installation> {
        self.installation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Note what a pass found, and log what is new.
    pub fn passed(&self, result: &Result<Report, InstallError>) {
        self.metrics.passed(result);
        let mut installation = self.installation();
        let reasons = match result {
            // Somebody else was writing: what was planned may not be so.
            Ok(Report { state: State::Installed { .. }, again: true, .. }) => {
                installation.reasons.clone()
            }
            Ok(Report { state: State::Installed { .. }, .. }) => Vec::new(),
            Ok(Report { state: State::Waiting(why) | State::Blocked(why), .. }) => {
                vec![why.clone()]
            }
            Err(error) => vec![chain(error)],
        };
        let known = installation.words.clone();
        let words = result.as_ref().map_or(known, |report| report.words.clone());
        if installation.reasons != reasons {
            match (reasons.first(), result) {
                (Some(why), _) => tracing::warn!("the plugin is not installed: {why}"),
                (None, Ok(Report { state: State::Installed { file }, .. })) => {
                    tracing::info!("the plugin is installed: {file} has its entry");
                }
                (None, _) => {}
            }
        }
        for word in words.iter().filter(|word| !installation.words.contains(word)) {
            tracing::warn!("{word}");
        }
        *installation = Installation { last: Instant::now(), reasons, words };
    }

    /// Everything that is counted, as Prometheus reads it.
    pub fn metrics(&self) -> String {
        if let Some(pods) = &self.pods {
            self.metrics.follow(pods.count(), pods.failures());
        }
        self.metrics.text()
    }

    /// Whether new pods are captured, by one of the ways that are wanted.
    pub fn is_installed(&self) -> bool {
        let by_cni = self.hook.installs() && self.installation().reasons.is_empty();
        by_cni || self.hook.connects() && self.is_connected()
    }

    /// Why it is not alive; nothing where it is.
    pub fn dead(&self) -> Vec<String> {
        let since = self.installation().last.elapsed();
        let hangs = since > self.period.saturating_mul(3) + PATIENCE;
        hangs
            .then(|| format!("the installer has not finished a pass for {} s", since.as_secs()))
            .into_iter()
            .collect()
    }

    /// Why it is not ready; nothing where it is.
    pub fn not_ready(&self) -> Vec<String> {
        let mut reasons = self.dead();
        reasons
            .extend(self.installation().reasons.iter().map(|why| format!("installation: {why}")));
        let unconnected = self.unconnected().clone().filter(|_| self.hook.connects());
        reasons.extend(unconnected.map(|why| format!("runtime: {why}")));
        let trouble = self.pods.as_ref().and_then(|pods| pods.trouble());
        reasons.extend(trouble.map(|why| format!("pods: {why}")));
        let trouble = self.namespaces.as_ref().and_then(|namespaces| namespaces.trouble());
        reasons.extend(trouble.map(|why| format!("namespaces: {why}")));
        reasons
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_when_it_is_installed_and_says_why_not() {
        let shared = Shared::new(Duration::from_secs(1), None);
        assert!(shared.not_ready()[0].contains("first look") && shared.dead().is_empty());
        let report =
            |state| Ok(Report { state, words: Vec::new(), causes: Vec::new(), again: false });
        shared.passed(&report(State::Waiting("no list".to_owned())));
        assert_eq!(shared.not_ready(), ["installation: no list"]);
        shared.passed(&Err(InstallError::Busy));
        assert!(shared.not_ready()[0].contains("kept changing"));
        shared.passed(&report(State::Installed { file: "x".to_owned() }));
        assert!(shared.not_ready().is_empty());
    }

    #[test]
    fn each_way_that_is_wanted_has_to_be_there() {
        let installed = || {
            let state = State::Installed { file: "x".to_owned() };
            Ok(Report { state, words: Vec::new(), causes: Vec::new(), again: false })
        };
        let nri = Shared::new(Duration::from_secs(1), None).with_hook(Hooks::Nri);
        nri.withdrawn(&Ok(Vec::new()));
        assert_eq!(nri.not_ready(), ["runtime: it was not tried yet"]);
        assert!(!nri.is_installed());
        nri.connected();
        assert!(nri.not_ready().is_empty() && nri.is_installed());
        nri.disconnected("gone");
        assert_eq!(nri.not_ready(), ["runtime: gone"]);
        assert_eq!(nri.connection(), r#"{"nri":{"connected":false,"why":"gone"}}"#);
        let both = Shared::new(Duration::from_secs(1), None).with_hook(Hooks::Both);
        both.passed(&installed());
        assert!(both.is_installed() && both.not_ready().len() == 1);
        both.connected();
        assert!(both.not_ready().is_empty());
        assert_eq!(both.connection(), r#"{"nri":{"connected":true,"why":null}}"#);
        let cni = Shared::new(Duration::from_secs(1), None);
        cni.passed(&installed());
        assert!(cni.not_ready().is_empty());
        cni.connected();
        assert!(cni.connection().contains("--hook cni"));
        cni.passed(&Err(InstallError::Busy));
        assert!(!cni.is_installed());
    }

    #[test]
    fn a_pass_that_hangs_is_no_life() {
        let shared = Shared::new(Duration::ZERO, None);
        let long_ago = Instant::now().checked_sub(PATIENCE * 2).unwrap();
        shared.installation().last = long_ago;
        assert!(shared.dead()[0].contains("has not finished"));
        assert!(!shared.not_ready().is_empty());
    }
}
