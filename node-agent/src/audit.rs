//! Whether pods that run are captured as they should be, by the same reading of their manifests, the
//! same look at their rules and the same hand as the plugin's ADD and CHECK.

use std::collections::BTreeMap;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use millrace_cni::causes::chain;
use millrace_cni::protocol::CniError;
use millrace_cni::running::{AddOutcome, Capture, Rules, has_one_of};
use millrace_core::pod::PodFacts;
use millrace_host::capture::Difference;
use millrace_host::netns::Netns;

use crate::install::{Config, settings};
use crate::pods::Pod;
use crate::processes::{Process, key};

/// How long a look at one pod, or its capture, may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What holds of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// It has no address yet: ADD may not be over.
    Starting,
    /// It has nothing to be captured, and this is why.
    Left(String),
    /// It is captured as it should be.
    Captured,
    /// It should be captured, and nothing captures it; how that is known, in a line.
    NotCaptured(String),
    /// It is captured, but not as it should be.
    Drifted(String),
    /// It can't be told: for which reason, and that in words.
    Unknown(Unknown, String),
}

/// Why it can't be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// ADD would refuse it, or its manifest can't be read.
    Refused,
    /// No process of it is seen.
    NoProcess,
    /// The kernel does not tell.
    Failed,
}

impl State {
    /// All names and reasons, as they are counted.
    pub const NAMES: [(&str, &str); 8] = [
        ("starting", "no_address"),
        ("left", "not_in_mesh"),
        ("captured", "as_wanted"),
        ("not_captured", "no_rules"),
        ("drifted", "rules_differ"),
        ("unknown", "refused"),
        ("unknown", "no_process"),
        ("unknown", "failed"),
    ];

    /// Its name, and the reason in a word, as they are counted.
    pub const fn names(&self) -> (&'static str, &'static str) {
        Self::NAMES[match self {
            Self::Starting => 0,
            Self::Left(_) => 1,
            Self::Captured => 2,
            Self::NotCaptured(_) => 3,
            Self::Drifted(_) => 4,
            Self::Unknown(Unknown::Refused, _) => 5,
            Self::Unknown(Unknown::NoProcess, _) => 6,
            Self::Unknown(Unknown::Failed, _) => 7,
        }]
    }

    /// Whether it should be captured and is not, or not so.
    pub const fn is_bad(&self) -> bool {
        matches!(self, Self::NotCaptured(_) | Self::Drifted(_))
    }

    /// Why, where there is something to say.
    pub fn why(&self) -> &str {
        match self {
            Self::Starting | Self::Captured => "",
            Self::Left(why)
            | Self::NotCaptured(why)
            | Self::Drifted(why)
            | Self::Unknown(_, why) => why,
        }
    }
}

/// What a look at a pod found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Its state as observed, before anything was done.
    pub state: State,
    /// How its capture went, where it had to be captured.
    pub repaired: Option<Result<(), String>>,
}

impl Seen {
    /// Its state as observed, or captured where capturing it went well.
    pub fn holds(&self) -> &State {
        match &self.repaired {
            Some(Ok(())) => &State::Captured,
            _ => &self.state,
        }
    }
}

impl From<State> for Seen {
    fn from(state: State) -> Self {
        Self { state, repaired: None }
    }
}

/// What the plugin on this node does, by the settings of its entry.
///
/// # Errors
/// When they can't be read, or the plugin would not take them.
pub fn rules(config: &Config) -> Result<Rules, String> {
    let entry = settings(config).map_err(|error| chain(&error))?.request();
    // What the plugin reads of its environment is the runtime's, for which this one stands.
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    let env = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
    Rules::new(&entry, env).map_err(|error| error.msg)
}

/// Look at a pod that runs, and capture it where that is wanted and it is not.
pub fn look(
    rules: &Rules,
    pod: &Pod,
    processes: &BTreeMap<String, Vec<Process>>,
    repairs: bool,
) -> Seen {
    let facts = match pod.facts() {
        Ok(facts) => facts,
        Err(error) => return State::Unknown(Unknown::Refused, error.to_string()).into(),
    };
    if facts.host_network {
        return State::Left("it has the network of its node".to_owned()).into();
    }
    let capture = match wanted(rules, facts) {
        Ok(capture) => capture,
        Err(state) => return state.into(),
    };
    if pod.addresses.is_empty() {
        return State::Starting.into();
    }
    let own = processes.get(&key(&pod.uid)).map(Vec::as_slice).unwrap_or_default();
    // A container may have made namespaces of its own: the pod's is the one with its address.
    let mut failure = None;
    for (netns, path) in own.iter().filter_map(Process::open) {
        // A thread that enters a namespace ends with it.
        let seen = on_a_thread(|| match has_one_of(&netns, &pod.addresses) {
            Ok(true) => Some(Ok(held(&capture, &netns, &path, repairs))),
            Ok(false) => None,
            Err(error) => Some(Err(error)),
        });
        match seen {
            Some(Ok(seen)) => return seen,
            Some(Err(error)) => failure = Some(reported(&error)),
            None => {}
        }
    }
    if let Some(why) = failure {
        return State::Unknown(Unknown::Failed, why).into();
    }
    let why = "no process is seen that is in a network namespace with its address";
    State::Unknown(Unknown::NoProcess, why.to_owned()).into()
}

fn wanted(rules: &Rules, facts: PodFacts) -> Result<Box<Capture>, State> {
    match rules.outcome(facts) {
        Ok(AddOutcome::Captured(capture)) => Ok(capture),
        Ok(AddOutcome::Left(why)) => Err(State::Left(why)),
        Err(error) => Err(State::Unknown(Unknown::Refused, reported(&error))),
    }
}

/// What holds in a pod's namespace, and what was done about it.
fn held(capture: &Capture, netns: &Netns, path: &Path, repairs: bool) -> Seen {
    let check = || capture.check(netns, path, Instant::now() + PATIENCE);
    let state = match check() {
        Ok(None) => State::Captured,
        Ok(Some(Difference::Missing(why))) => State::NotCaptured(why),
        Ok(Some(Difference::Drifted(why))) => State::Drifted(why),
        Err(error) => State::Unknown(Unknown::Failed, reported(&error)),
    };
    if !repairs || !state.is_bad() {
        return state.into();
    }
    let applied = capture.apply(netns, path, Instant::now() + PATIENCE);
    // What counts is what is there afterwards.
    let repaired = match applied.and_then(|()| check()) {
        Ok(None) => Ok(()),
        Ok(Some(difference)) => Err(format!("it was captured anew, and still: {difference}")),
        Err(error) => Err(reported(&error)),
    };
    Seen { state, repaired: Some(repaired) }
}

fn reported(error: &CniError) -> String {
    match error.details.as_str() {
        "" => error.msg.clone(),
        details => format!("{}: {details}", error.msg),
    }
}

/// Do something on a thread of its own. A fault there is one here: it is the agent's.
pub(crate) fn on_a_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| match scope.spawn(f).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}
