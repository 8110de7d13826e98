//! What the agent counts, by the names that dashboards of istio-cni know and by its own.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use millrace_cni::outcome::Outcome;
use millrace_cni::protocol::Command;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

use crate::audit::{Seen, State as Capture};
use crate::install::{InstallError, Report};
use crate::plan::{Cause, State};

/// How an installation went, in istio-cni's words.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Result {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Written {
    cause: Cause,
}

/// How a question of the plugin was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Answered {
    /// With a pod that was known.
    Known,
    /// With a pod that the API was asked for.
    Asked,
    /// There is no such pod.
    NoPod,
    /// The API did not tell.
    Failed,
    /// The line can't be read, or asks for no pod.
    Bad,
    /// Who asked is neither root nor the agent's own user (`SO_PEERCRED`).
    Refused,
    /// Nobody waited for the answer, or asked nothing in time.
    Nothing,
    /// It was given up for others that came after it.
    GivenUp,
}

impl Answered {
    /// Its name, and the status that istio-cni's agent, which speaks HTTP, would give.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Known => ("known", "200"),
            Self::Asked => ("asked", "200"),
            Self::NoPod => ("no_pod", "404"),
            Self::Failed => ("failed", "500"),
            Self::Bad => ("bad", "400"),
            Self::Refused => ("refused", "403"),
            Self::Nothing => ("nothing", "408"),
            Self::GivenUp => ("given_up", "429"),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    response_code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answer {
    answer: &'static str,
}

/// A command of the plugin, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Served {
    command: &'static str,
    outcome: &'static str,
}

/// A request of the runtime, and what became of it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Hooked {
    request: &'static str,
    outcome: &'static str,
}

/// Upper bounds of the durations of commands, in seconds: a pod that needs nobody takes some
/// milliseconds, and the deadline is 15 s.
const DURATIONS: [f64; 13] =
    [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

fn durations() -> Histogram {
    Histogram::new(DURATIONS)
}

/// What was done about a pod, in istio-cni's words.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Repaired {
    r#type: &'static str,
    result: &'static str,
}

/// What was done about a pod that the node's proxy serves, or is to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconciled {
    r#type: &'static str,
}

/// How far pods are that the node's proxy is to serve.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Enrolled {
    state: &'static str,
}

/// The states of these pods, as they are counted.
const ENROLLED: [&str; 3] = ["enrolled", "waiting", "failed"];

/// What holds of pods, and why, in a word.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Held {
    state: &'static str,
    reason: &'static str,
}

/// The registry behind `/metrics`, and the counters, gauges and histograms in it.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Mutex<Registry>>,
    ready: Gauge,
    installs: Family<Result, Counter>,
    written: Family<Written, Counter>,
    passes: Counter,
    codes: Family<Code, Counter>,
    answers: Family<Answer, Counter>,
    served: Family<Served, Histogram, fn() -> Histogram>,
    hooked: Family<Hooked, Histogram, fn() -> Histogram>,
    connected: Gauge,
    pods: Gauge,
    failures: Counter,
    repaired: Family<Repaired, Counter>,
    held: Family<Held, Gauge>,
    looks: Counter,
    reconciled: Family<Reconciled, Counter>,
    enrolled: Family<Enrolled, Gauge>,
    ztunnels: Gauge,
}

impl EncodeLabelValue for Cause {
    fn encode(
        &self,
        encoder: &mut LabelValueEncoder<'_>,
    ) -> std::result::Result<(), std::fmt::Error> {
        encoder.write_str(match self {
            Self::Missing => "missing",
            Self::Moved => "moved",
            Self::Changed => "changed",
            Self::TakenOver => "taken_over",
            Self::Withdrawn => "withdrawn",
            Self::Followed => "followed",
        })
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::default();
        let (ready, installs) = (Gauge::default(), Family::default());
        let (written, passes) = (Family::default(), Counter::default());
        registry.register(
            "istio_cni_install_ready",
            "Whether the plugin is installed and called for each pod",
            ready.clone(),
        );
        registry.register("istio_cni_installs", "Installations, by result", installs.clone());
        registry.register(
            "millrace_node_conf_writes",
            "Writes of CNI configurations, by what made them necessary",
            written.clone(),
        );
        registry.register(
            "millrace_node_passes",
            "How often everything that is installed was looked at",
            passes.clone(),
        );
        let (codes, answers) = (Family::default(), Family::default());
        let (pods, failures) = (Gauge::default(), Counter::default());
        registry.register(
            "istio_cni_plugin_requests",
            "Questions of the plugin, by the status of HTTP that the answer would have",
            codes.clone(),
        );
        registry.register(
            "millrace_node_plugin_questions",
            "Questions of the plugin, by how they were answered",
            answers.clone(),
        );
        let served: Family<Served, _, _> =
            Family::new_with_constructor(durations as fn() -> Histogram);
        registry.register_with_unit(
            "millrace_node_plugin_duration",
            "How long commands of the plugin took, by what became of them",
            Unit::Seconds,
            served.clone(),
        );
        let hooked: Family<Hooked, _, _> =
            Family::new_with_constructor(durations as fn() -> Histogram);
        registry.register_with_unit(
            "millrace_node_nri_duration",
            "How long requests of the runtime took that decided about a pod, by what became of them",
            Unit::Seconds,
            hooked.clone(),
        );
        let connected = Gauge::default();
        registry.register(
            "millrace_node_nri_connected",
            "Whether the runtime tells the agent of each pod",
            connected.clone(),
        );
        registry.register("millrace_node_pods", "Pods of the node that are known", pods.clone());
        registry.register(
            "millrace_node_pods_failures",
            "How often the pods of the node could not be listed or watched",
            failures.clone(),
        );
        let (repaired, held) = (Family::<Repaired, Counter>::default(), Family::default());
        let looks = Counter::default();
        // What never was is told as 0, so that the first time is seen as a change.
        for r#type in ["repair", "delete", "label"] {
            for result in ["success", "fail", "skip"] {
                drop(repaired.get_or_create(&Repaired { r#type, result }));
            }
        }
        for (state, reason) in Capture::NAMES {
            drop(held.get_or_create(&Held { state, reason }));
        }
        registry.register(
            "istio_cni_repair_pods_repaired",
            "What was done about pods that were not captured as they should be",
            repaired.clone(),
        );
        registry.register(
            "millrace_node_pods_capture",
            "Pods that run, by whether they are captured as they should be, and why",
            held.clone(),
        );
        registry.register(
            "millrace_node_repair_passes",
            "How often all pods that run were looked at",
            looks.clone(),
        );
        let (reconciled, ztunnels) = (Family::<Reconciled, Counter>::default(), Gauge::default());
        let enrolled = Family::<Enrolled, Gauge>::default();
        for r#type in ["add", "delete", "fail"] {
            drop(reconciled.get_or_create(&Reconciled { r#type }));
        }
        for state in ENROLLED {
            drop(enrolled.get_or_create(&Enrolled { state }));
        }
        registry.register(
            "nodeagent_reconcile_events",
            "Pods that were enrolled with the node's proxy, left it, or could not",
            reconciled.clone(),
        );
        registry.register(
            "millrace_node_ambient_pods",
            "Pods that the node's proxy serves, or is to, by how far that is",
            enrolled.clone(),
        );
        registry.register(
            "ztunnel_connected",
            "How many proxies of the node are connected",
            ztunnels.clone(),
        );
        let registry = Arc::new(Mutex::new(registry));
        Self {
            registry,
            ready,
            installs,
            written,
            passes,
            codes,
            answers,
            served,
            hooked,
            connected,
            pods,
            failures,
            repaired,
            held,
            looks,
            reconciled,
            enrolled,
            ztunnels,
        }
    }
}

impl Metrics {
    /// Count what a pass did.
    pub fn passed(&self, result: &std::result::Result<Report, InstallError>) {
        self.passes.inc();
        let installed = match result {
            Ok(report) => {
                for cause in &report.causes {
                    self.written.get_or_create(&Written { cause: *cause }).inc();
                }
                let installed = matches!(report.state, State::Installed { .. });
                if installed && (!report.causes.is_empty() || self.ready.get() == 0) {
                    self.installs.get_or_create(&Result { result: "SUCCESS" }).inc();
                }
                installed
            }
            Err(error) => {
                let result = match error {
                    InstallError::Binary(_) => "COPY_BINARIES_FAILURE",
                    InstallError::Kubeconfig(_) => "CREATE_KUBECONFIG_FAILURE",
                    _ => "CREATE_CNI_CONFIG_FAILURE",
                };
                self.installs.get_or_create(&Result { result }).inc();
                false
            }
        };
        self.ready.set(installed.into());
    }

    /// Count a question of the plugin.
    pub fn answered(&self, how: Answered) {
        let (answer, response_code) = how.names();
        self.codes.get_or_create(&Code { response_code }).inc();
        self.answers.get_or_create(&Answer { answer }).inc();
    }

    /// Count a command of the plugin, which took so long.
    pub fn served(&self, command: Command, outcome: Outcome, took: Duration) {
        let labels = Served { command: command.as_str(), outcome: outcome.as_str() };
        self.served.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Count a request of the runtime, which took so long.
    pub fn hooked(&self, request: &'static str, outcome: Outcome, took: Duration) {
        let labels = Hooked { request, outcome: outcome.as_str() };
        self.hooked.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// Note whether the runtime is connected, and whether that alone has new pods captured.
    pub fn connected(&self, is: bool, alone: bool) {
        self.connected.set(is.into());
        if alone {
            self.ready.set(is.into());
        }
    }

    /// Note how many pods are known, and how often they could not be followed.
    pub fn follow(&self, pods: usize, failures: u64) {
        self.pods.set(i64::try_from(pods).unwrap_or(i64::MAX));
        self.failures.inner().store(failures, Ordering::Relaxed);
    }

    /// Count what was done about a pod, and how that went.
    pub fn repaired(&self, r#type: &'static str, result: &'static str) {
        self.repaired.get_or_create(&Repaired { r#type, result }).inc();
    }

    /// Note what holds of all pods that run.
    pub fn looked(&self, pods: &[&Seen]) {
        for (state, reason) in Capture::NAMES {
            let count = pods.iter().filter(|seen| seen.holds().names() == (state, reason)).count();
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            self.held.get_or_create(&Held { state, reason }).set(count);
        }
        self.looks.inc();
    }

    /// Count what was done about a pod that the node's proxy serves, or is to: `add`, `delete` or `fail`.
    pub fn reconciled(&self, r#type: &'static str) {
        self.reconciled.get_or_create(&Reconciled { r#type }).inc();
    }

    /// Note how many pods are enrolled, wait for that or failed.
    pub fn ambient_pods(&self, counts: [i64; 3]) {
        for (state, count) in ENROLLED.into_iter().zip(counts) {
            self.enrolled.get_or_create(&Enrolled { state }).set(count);
        }
    }

    /// Note how many proxies are connected.
    pub fn ztunnels(&self, count: usize) {
        self.ztunnels.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// All of it, in the text format of `OpenMetrics` 1.0.0.
    pub fn text(&self) -> String {
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        let mut text = String::new();
        // Writing into a text does not fail.
        let _written = encode(&mut text, &registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashboards_of_istio_cni_find_their_names() {
        let metrics = Metrics::default();
        let state = State::Installed { file: "x".to_owned() };
        let causes = vec![Cause::Missing, Cause::TakenOver];
        metrics.passed(&Ok(Report {
            state: state.clone(),
            words: Vec::new(),
            causes,
            again: false,
        }));
        metrics.passed(&Ok(Report { state, words: Vec::new(), causes: Vec::new(), again: false }));
        let text = metrics.text();
        for line in [
            "istio_cni_install_ready 1\n",
            "istio_cni_installs_total{result=\"SUCCESS\"} 1\n",
            "millrace_node_conf_writes_total{cause=\"taken_over\"} 1\n",
            "millrace_node_passes_total 2\n",
            "# EOF\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        metrics.served(Command::Add, Outcome::Captured, Duration::from_micros(700));
        metrics.served(Command::Add, Outcome::Captured, Duration::from_secs(15));
        let text = metrics.text();
        let name = "millrace_node_plugin_duration_seconds";
        let labels = "command=\"ADD\",outcome=\"captured\"";
        for line in [
            format!("# TYPE {name} histogram\n"),
            format!("{name}_count{{{labels}}} 2\n"),
            format!("{name}_sum{{{labels}}} 15.0007\n"),
            format!("{name}_bucket{{le=\"0.0005\",{labels}}} 0\n"),
            format!("{name}_bucket{{le=\"0.001\",{labels}}} 1\n"),
            format!("{name}_bucket{{le=\"5.0\",{labels}}} 1\n"),
            format!("{name}_bucket{{le=\"+Inf\",{labels}}} 2\n"),
        ] {
            assert!(text.contains(&line), "{line}: {text}");
        }
        metrics.reconciled("add");
        metrics.ambient_pods([2, 1, 0]);
        metrics.ztunnels(1);
        let text = metrics.text();
        for line in [
            "nodeagent_reconcile_events_total{type=\"add\"} 1\n",
            "nodeagent_reconcile_events_total{type=\"fail\"} 0\n",
            "millrace_node_ambient_pods{state=\"enrolled\"} 2\n",
            "ztunnel_connected 1\n",
        ] {
            assert!(text.contains(line), "{line}: {text}");
        }
        metrics.passed(&Err(InstallError::Busy));
        let text = metrics.text();
        assert!(text.contains("istio_cni_install_ready 0\n"), "{text}");
        assert!(text.contains("{result=\"CREATE_CNI_CONFIG_FAILURE\"} 1\n"), "{text}");
    }
}
