//! The chained CNI plugin: called by a container runtime for each pod, it writes the capture rules
//! of those in the mesh into their network namespaces, from outside.
//!
//! ```text
//! variables, standard input ──► protocol, config ──► decide ──► lookup (only where needed)
//!                                                      │
//!                              note ◄── verb ◄─────────┘
//!                                        │ capture, target
//!                                        ▼
//!                              host's engine, in the pod's namespace
//! ```

mod capture;
pub mod causes;
pub mod config;
mod decide;
mod file;
pub mod level;
pub mod log;
mod lookup;
mod mesh;
mod note;
pub mod outcome;
mod own_file;
pub mod protocol;
pub mod running;
mod sys_alarm;
mod target;
mod verb;

use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use millrace_core::visible::visible;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::config::{DEADLINE, object, schema, version_text};
use crate::level::Level;
use crate::log::line;
use crate::protocol::{CniError, Code, Command, Environment, Version};
use crate::verb::Served;

const USAGE: &str = "\
The chained CNI plugin of Millrace: captures the traffic of mesh pods.

A container runtime calls it with the variables and the standard input that the CNI specification
says; it is an entry {\"type\": \"millrace-cni\"} in a network's list of plugins. By hand:

  millrace-cni explain [--json]   say what ADD would do with the configuration on standard input
                                  and the pod in CNI_ARGS, and why; changes nothing
  millrace-cni schema             print the JSON schema of the plugin's entry
  millrace-cni --version
  millrace-cni --help
";

/// The longest standard input: annotations have at most 256 KiB, and a node few hundred pods.
const MAX_INPUT: usize = 16 * 1024 * 1024;
/// How long DEL waits for standard input, which it can do without.
const DEL_PATIENCE: Duration = Duration::from_secs(5);

/// Answer a runtime where there are no arguments, and else whoever typed them.
pub fn main() -> ExitCode {
    let began = Instant::now();
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        [] => answer(&environment(), began),
        ["explain"] => explain(false),
        ["explain", "--json"] => explain(true),
        ["schema"] => print(&format!("{:#}\n", schema())),
        ["--version"] => print(&format!("millrace-cni {}\n", env!("CARGO_PKG_VERSION"))),
        ["--help" | "-h"] | ["explain" | "schema", "--help" | "-h"] => print(USAGE),
        other => {
            complain(&format!("there is no `millrace-cni {}`\n\n{USAGE}", other.join(" ")));
            ExitCode::from(2)
        }
    }
}

/// Serve the runtime. Whatever happens, standard output is one JSON text or empty.
fn answer(env: &Environment, began: Instant) -> ExitCode {
    if !env.contains_key("CNI_COMMAND") {
        // As other plugins do for somebody who types their name.
        let versions = Version::ALL.map(Version::as_str).join(", ");
        complain(&format!("millrace-cni {}, CNI {versions}\n\n{USAGE}", env!("CARGO_PKG_VERSION")));
        return ExitCode::SUCCESS;
    }
    log_panics();
    let mut version = Version::NEWEST;
    let is_del = env.get("CNI_COMMAND").is_some_and(|word| word == Command::Del.as_str());
    let patience = if is_del { DEL_PATIENCE } else { DEADLINE };
    // The configuration, which may say otherwise, is not read yet.
    verb::bound(is_del, began, DEADLINE, version);
    let result = guarded(|| {
        let stdin = stdin(Some(began + patience));
        let stdin = stdin.as_deref();
        let config = stdin.ok().and_then(|stdin| object(stdin).ok());
        outcome::prepare(env, config.as_ref(), began);
        let named = config.as_ref().and_then(version_text);
        version = named.and_then(|text| Version::find(&text)).unwrap_or(version);
        verb::serve(env, stdin, began)
    });
    sys_alarm::answering();
    let (code, outcome) = match result {
        Ok(Served { text, outcome }) => (print(&text), outcome),
        Err(error) => {
            print(&error.to_json(version.as_str()));
            (ExitCode::FAILURE, Some(error.code.into()))
        }
    };
    if let Some(outcome) = outcome {
        outcome::report(outcome);
    }
    code
}

/// A panic is an error like any other to the runtime.
fn guarded(f: impl FnOnce() -> Result<Served, CniError>) -> Result<Served, CniError> {
    panic::catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_panic| {
        let msg = "millrace-cni has a fault and stopped; its log, on standard error, says where";
        Err(CniError::new(Code::Internal, msg))
    })
}

fn explain(as_json: bool) -> ExitCode {
    let (good, text) = match stdin(None) {
        Ok(stdin) => verb::explain(&environment(), &stdin, as_json),
        Err(error) => (false, format!("{error}\n")),
    };
    let printed = print(&if as_json { text.into() } else { visible(&text) });
    if good { printed } else { ExitCode::FAILURE }
}

/// The environment. What is no text is never taken for absent: it is read with the sign for that in
/// its place, and refused where it matters.
fn environment() -> Environment {
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect()
}

/// Standard input to its end, which has to come in time where there is a limit.
fn stdin(until: Option<Instant>) -> Result<String, CniError> {
    let failed = |why: &dyn std::fmt::Display| {
        CniError::new(Code::Io, format!("standard input can't be read: {why}"))
    };
    let stdin = io::stdin();
    let (mut bytes, mut part) = (Vec::new(), [0; 16 * 1024]);
    loop {
        let limit = until.map(|until| until.saturating_duration_since(Instant::now()));
        let limit = limit.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)], limit) {
            Ok(0) => return Err(failed(&"it does not end in time")),
            Err(Errno::EINTR) => continue,
            polled => polled.map_err(|errno| failed(&errno.desc()))?,
        };
        match nix::unistd::read(&stdin, &mut part).map_err(|errno| failed(&errno.desc()))? {
            0 => break,
            count => bytes.extend_from_slice(&part[..count]),
        }
        if bytes.len() > MAX_INPUT {
            return Err(failed(&format!("it is longer than {MAX_INPUT} bytes")));
        }
    }
    String::from_utf8(bytes).map_err(|error| failed(&error.utf8_error()))
}

/// Have a panic told as a line of the log, where it would be text.
fn log_panics() {
    panic::set_hook(Box::new(|info| {
        let line = line(Level::Error, &format!("fault: {info}"));
        complain(&format!("{}\n", serde_json::Value::Object(line)));
    }));
}

/// Print to standard output, at once.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Write to standard error. When even that can't be written, the exit code is left.
fn complain(text: &str) {
    let _written = io::stderr().lock().write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_for_the_runtime() {
        let error = guarded(|| panic!("a fault")).unwrap_err();
        assert_eq!(error.code, Code::Internal);
        let json: serde_json::Value = serde_json::from_str(&error.to_json("1.0.0")).unwrap();
        assert_eq!(json["code"], 103);
        assert_eq!(json["cniVersion"], "1.0.0");
    }

    #[test]
    fn every_setting_and_code_is_in_the_documentation() {
        let text = include_str!("../../docs/cni.md");
        for key in config::KEYS {
            assert!(text.contains(&format!("`{}`", key.name)), "{}", key.name);
        }
        for code in Code::ALL {
            assert!(text.contains(&format!("| {} |", code.number())), "{}", code.number());
        }
        let istio =
            millrace_core::dialect::istio::annotations::ANNOTATIONS.iter().map(|def| def.name);
        let others = millrace_core::dialect::sidecar::SIDECARS;
        let others = others.iter().flat_map(|of| of.annotations.iter().map(|def| def.name));
        let members = [config::LINKERD, config::KUMA, config::CONSUL];
        let members = members.into_iter().flatten().map(|key| key.name);
        for name in istio.chain(others).chain(members) {
            assert!(text.contains(&format!("`{name}`")), "{name}");
        }
    }
}
