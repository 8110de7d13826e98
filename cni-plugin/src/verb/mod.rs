//! What each command does.

mod add;
mod check;
mod del;
mod explain;
mod gc;
mod status;

pub(crate) use del::collect;
pub(crate) use explain::explain;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use millrace_core::pod::PodFacts;
use millrace_host::capture::{Applied, CaptureError};
use millrace_host::ebpf::Enrolled;
use millrace_host::netns::{Netns, NetnsError};
use serde_json::{Map, Value, json};

use crate::capture::Pod;
use crate::config::{Config, Places, object, version_text};
use crate::decide::{called, reported};
use crate::level::Level;
use crate::log::{Log, line};
use crate::outcome::Outcome;
use crate::protocol::{
    CniError, Code, Command, Environment, Object, PodArgs, Request, Version, version_reply,
};
use crate::sys_alarm::{self, LastWords};

/// How long DEL waits for other runs, and GC for those in one namespace: what DEL leaves ends with
/// its namespace, or GC takes it away.
const MOMENT: Duration = Duration::from_secs(2);

/// How long DEL takes at most.
const LONGEST_DEL: Duration = Duration::from_secs(10);

/// A request with all that belongs to it.
struct Job<'e> {
    request: Request,
    config: Config,
    env: &'e Environment,
    pod: PodFacts,
    log: Log,
    deadline: Instant,
}

/// What a command that succeeded gives.
#[derive(Debug)]
pub(crate) struct Served {
    /// JSON for standard output; empty where the specification has no result.
    pub(crate) text: String,
    /// What became of it, where that is reported.
    pub(crate) outcome: Option<Outcome>,
}

impl Served {
    const fn new(text: String, outcome: Outcome) -> Self {
        Self { text, outcome: Some(outcome) }
    }

    const fn unreported(text: String) -> Self {
        Self { text, outcome: None }
    }
}

/// Bound the time of this process, whatever is slow.
pub(crate) fn bound(is_del: bool, began: Instant, limit: Duration, version: Version) {
    let (limit, meaning, outcome) = if is_del {
        let meaning = "rules may be left behind in the pod's network namespace";
        (LONGEST_DEL, meaning, Outcome::LeftBehind)
    } else {
        (limit, "it is tried again", Outcome::TryAgain)
    };
    let msg = format!(
        "it is not done after {}, and ends: something that it waits for is too slow; {meaning}",
        humantime::format_duration(limit)
    );
    let log = Value::Object(line(Level::Error, &msg)).to_string() + "\n";
    let (answer, code) = if is_del {
        (String::new(), 0)
    } else {
        (CniError::new(Code::TryAgain, msg).to_json(version.as_str()), 1)
    };
    sys_alarm::end(began + limit, LastWords { answer, log, code, outcome });
}

/// Serve a request, whose standard input may be unreadable.
///
/// # Errors
/// What the runtime is told.
pub(crate) fn serve(
    env: &Environment,
    stdin: Result<&str, &CniError>,
    began: Instant,
) -> Result<Served, CniError> {
    let readable = stdin.unwrap_or_default();
    let request = Request::parse(env).inspect_err(|error| refused(error, None, readable, began))?;
    if request.command == Command::Del {
        // Whatever is wrong with the configuration, what was done is undone.
        if let Err(error) = stdin {
            refused(error, Some(&request), readable, began);
        }
        return Ok(whatever_happens(|| del::del(&request, readable, began)));
    }
    let stdin = stdin.map_err(|error| {
        refused(error, Some(&request), readable, began);
        error.clone()
    })?;
    if request.command == Command::Version {
        let asked = object(stdin).ok().as_ref().and_then(version_text);
        return Ok(Served::unreported(version_reply(asked.as_deref())));
    }
    let mut job = Job::new(&request, stdin, env, began).map_err(|error| {
        let error = request.attributed(error, &named(&request));
        refused(&error, Some(&request), stdin, began);
        error
    })?;
    for warning in std::mem::take(&mut job.config.warnings) {
        job.log.warn(&warning);
    }
    let result = match job.request.command {
        Command::Check => check::check(&mut job),
        Command::Gc => gc::gc(&mut job).map(Served::unreported),
        Command::Status => status::status(&mut job).map(Served::unreported),
        _ => add::add(&mut job),
    };
    result.map_err(|error| {
        let error = request.attributed(error, &job.pod);
        job.log.done(Level::Error, &error.msg, members(&error));
        error
    })
}

/// Do this for DEL, which never fails: not even a fault of this program, which is logged as any,
/// keeps a pod from being deleted.
fn whatever_happens(f: impl FnOnce() -> Outcome) -> Served {
    let caught = catch_unwind(AssertUnwindSafe(f));
    Served::new(String::new(), caught.unwrap_or(Outcome::Fault))
}

/// Log a request that can't be read, as far as is known where.
fn refused(error: &CniError, request: Option<&Request>, stdin: &str, began: Instant) {
    let context = request.map(|request| context(request, &named(request)));
    let log = Places::read(&lenient(stdin)).log;
    Log::new(&log, context.unwrap_or_default(), began).done(
        Level::Error,
        &error.msg,
        members(error),
    );
}

/// The pod that a request names, if it can be read.
fn named(request: &Request) -> PodFacts {
    PodArgs::parse(&request.args).unwrap_or_default().into()
}

/// What the log says of an error beside its message.
fn members(error: &CniError) -> Map<String, Value> {
    let code = ("code".to_owned(), json!(error.code.number()));
    Map::from_iter([code, ("details".to_owned(), json!(error.details))])
}

impl Request {
    /// An error with the pod's name in front, where there is a pod: it is shown with its events.
    fn attributed(&self, error: CniError, pod: &PodFacts) -> CniError {
        match self.command {
            Command::Add | Command::Check => error.about(&called(pod)),
            _ => error,
        }
    }
}

impl<'e> Job<'e> {
    fn new(
        request: &Request,
        stdin: &str,
        env: &'e Environment,
        began: Instant,
    ) -> Result<Self, CniError> {
        let config = Config::parse(&object(stdin)?)?;
        let first = match request.command {
            Command::Check => Version::V040,
            Command::Gc | Command::Status => Version::V110,
            _ => Version::V030,
        };
        if config.version < first {
            let (word, version) = (request.command.as_str(), config.version);
            let msg =
                format!("{word} came with {first}, and the network's cniVersion is {version}");
            return Err(CniError::new(Code::IncompatibleVersion, msg));
        }
        let args = PodArgs::parse(&request.args)
            .map_err(|error| CniError::new(Code::BadEnvironment, error.to_string()))?;
        let pod = reported(args, &config);
        let log = Log::new(&config.log, context(request, &pod), began);
        bound(false, began, config.deadline, config.version);
        let deadline = began + config.deadline;
        Ok(Self { request: request.clone(), config, env, pod, log, deadline })
    }
}

/// What every line of the log says.
fn context(request: &Request, pod: &PodFacts) -> Map<String, Value> {
    let mut context = Map::new();
    let mut know = |name: &str, text: Option<&str>| {
        if let Some(text) = text.filter(|text| !text.is_empty()) {
            context.insert(name.to_owned(), json!(text));
        }
    };
    know("command", Some(request.command.as_str()));
    know("namespace", pod.namespace.as_deref());
    know("pod", pod.name.as_deref());
    know("podUid", pod.uid.as_deref());
    know("containerId", Some(&request.attachment.container_id));
    know("interface", Some(&request.attachment.ifname));
    context
}

/// What the runtime is told of a namespace that can't be entered.
fn no_namespace(error: &NetnsError) -> CniError {
    CniError::new(Code::BadEnvironment, format!("CNI_NETNS: {error}"))
}

/// Put the calling thread into a pod's namespace.
pub(crate) fn enter(netns: &Netns, path: &Path) -> Result<Pod, CniError> {
    netns.enter().map_err(|error| no_namespace(&error))?;
    Pod::open(path).map_err(|error| failed(&error.into()))
}

/// What the runtime is told of a run that failed.
pub(crate) fn failed(error: &CaptureError) -> CniError {
    // What the verifier says has many lines.
    let why = error.to_string().replace('\n', " ");
    if let CaptureError::Netns(error) = error {
        return match error {
            NetnsError::Owner { .. } => CniError::new(Code::NotCaptured, why),
            _ => no_namespace(error),
        };
    }
    if error.is_busy() && matches!(error, CaptureError::Ebpf(_)) {
        return CniError::new(Code::TryAgain, why);
    }
    if error.is_busy() {
        let msg = "another run is at work in its network namespace, and did not end in time; it \
                   is tried again";
        return CniError::new(Code::TryAgain, msg).with_details(why);
    }
    CniError::new(Code::NotCaptured, why)
}

/// The error with what it means for a pod that is to start.
pub(crate) fn not_started(error: CniError) -> CniError {
    if error.code == Code::TryAgain {
        return error;
    }
    CniError {
        msg: format!("its traffic can't be captured, so it is not started: {}", error.msg),
        ..error
    }
}

/// What captures a pod now, and whether anything was changed for it.
pub(crate) fn captured_by(applied: &Applied) -> (String, bool) {
    let Applied { enrolled, outcome, .. } = applied;
    let by = match enrolled {
        Some(_) => "eBPF".to_owned(),
        None => outcome.choice.map(|choice| choice.to_string()).unwrap_or_default(),
    };
    let entered = enrolled.is_some_and(|(enrolled, _)| enrolled != Enrolled::Unchanged);
    (by, entered || !outcome.effects.is_empty())
}

/// What standard input is, however broken: DEL makes the best of it.
fn lenient(stdin: &str) -> Object {
    object(stdin).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_does_not_make_del_fail() {
        let served = whatever_happens(|| panic!("a fault"));
        assert_eq!((served.text.as_str(), served.outcome), ("", Some(Outcome::Fault)));
    }
}
