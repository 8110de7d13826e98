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
pub mod config;
mod decide;
mod ebpf;
pub mod log;
mod lookup;
mod note;
pub mod protocol;
mod target;
mod verb;

use std::io::{self, Read as _, Write as _};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::Instant;

use crate::config::{object, schema, version_text};
use crate::log::{Level, line};
use crate::protocol::{CniError, Code, Environment, Version};

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

/// The whole program.
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
        ["--help"] => print(USAGE),
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
    let result = guarded(|| {
        let stdin = stdin();
        let stdin = stdin.as_deref();
        let named = stdin.ok().and_then(|stdin| version_text(&object(stdin).ok()?));
        version = named.and_then(|text| Version::find(&text)).unwrap_or(version);
        verb::serve(env, stdin, began)
    });
    match result {
        Ok(text) => print(&text),
        Err(error) => {
            print(&error.to_json(version.as_str()));
            ExitCode::FAILURE
        }
    }
}

/// A panic is an error like any other to the runtime.
fn guarded(f: impl FnOnce() -> Result<String, CniError>) -> Result<String, CniError> {
    panic::catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_panic| {
        let msg = "millrace-cni has a fault and stopped; its log, on standard error, says where";
        Err(CniError::new(Code::Internal, msg))
    })
}

fn explain(as_json: bool) -> ExitCode {
    let (good, text) = match stdin() {
        Ok(stdin) => verb::explain(&environment(), &stdin, as_json),
        Err(error) => (false, format!("{error}\n")),
    };
    let printed = print(&text);
    if good { printed } else { ExitCode::FAILURE }
}

/// The environment, as far as it is text.
fn environment() -> Environment {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    std::env::vars_os().filter_map(text).collect()
}

fn stdin() -> Result<String, CniError> {
    let mut text = String::new();
    io::stdin().lock().read_to_string(&mut text).map_err(|error| {
        CniError::new(Code::Io, format!("standard input can't be read: {error}"))
    })?;
    Ok(text)
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
        for def in millrace_core::dialect::istio::annotations::ANNOTATIONS {
            assert!(text.contains(&format!("`{}`", def.name)), "{}", def.name);
        }
    }
}
