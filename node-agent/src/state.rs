//! What the agent's parts know of each other.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::install::{InstallError, Report};
use crate::metrics::Metrics;
use crate::plan::State;
use crate::pods::Pods;
use millrace_cni::causes::chain;

/// How much longer than its period a pass may take before it hangs.
const PATIENCE: Duration = Duration::from_mins(1);

/// What the installer, the HTTP servers and the repairer have in common.
#[derive(Debug)]
pub struct Shared {
    /// What `/metrics` answers with.
    pub metrics: Metrics,
    /// The pods of the node, where they are followed.
    pub pods: Option<Arc<Pods>>,
    period: Duration,
    installation: Mutex<Installation>,
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
        Self { metrics: Metrics::default(), pods, period, installation }
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

    /// Whether the plugin is installed.
    pub fn is_installed(&self) -> bool {
        self.installation().reasons.is_empty()
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
        let trouble = self.pods.as_ref().and_then(|pods| pods.trouble());
        reasons.extend(trouble.map(|why| format!("pods: {why}")));
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
    fn a_pass_that_hangs_is_no_life() {
        let shared = Shared::new(Duration::ZERO, None);
        let long_ago = Instant::now().checked_sub(PATIENCE * 2).unwrap();
        shared.installation().last = long_ago;
        assert!(shared.dead()[0].contains("has not finished"));
        assert!(!shared.not_ready().is_empty());
    }
}
