//! The log: under the name of a mesh's tool in its form and on standard output, otherwise on
//! standard error.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::time::SystemTime;

use millrace_core::dialect::istio::parse_bool;
use millrace_core::source::Sourced;
use millrace_core::visible::visible;
use serde_json::json;

/// How severe a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Debug,
    Info,
    Warn,
    Error,
    Fatal,
    /// Only a limit: nothing is logged.
    None,
}

impl Level {
    const ALL: [Self; 6] =
        [Self::Debug, Self::Info, Self::Warn, Self::Error, Self::Fatal, Self::None];

    /// Its name in Go's logrus.
    const fn of_pairs(self) -> &'static str {
        match self {
            Self::Warn => "warning",
            other => other.as_str(),
        }
    }

    const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
            Self::Fatal => "fatal",
            Self::None => "none",
        }
    }
}

#[derive(Debug)]
enum Target {
    Stdout,
    Stderr,
    File(File),
}

/// How a message is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Time, level and message with tabs between them.
    Tabs,
    /// As Go's logrus: pairs of key and value.
    Pairs,
    Json,
    /// JSON with logrus' names of levels, and times in whole seconds.
    JsonOfPairs,
    /// Remarks as iptables-restore passes over them.
    Remarks,
}

/// The messages of one run, as the tool writes them whose command line was read.
#[derive(Debug)]
pub(crate) struct Log {
    least: Level,
    form: Form,
    targets: Vec<Target>,
    /// The errors so far, whether anybody reads them or not.
    errors: Vec<String>,
}

/// As many errors are kept.
const MOST_ERRORS: usize = 256;

impl Log {
    /// For Millrace's own commands: to standard error, with tabs between.
    pub(crate) fn own() -> Self {
        Self::to(Target::Stderr, Form::Tabs)
    }

    /// For istio-iptables, before its flags are read.
    pub(crate) fn istio() -> Self {
        Self::to(Target::Stdout, Form::Tabs)
    }

    /// For proxy-init. What is no format that it knows is plain, as there.
    pub(crate) fn linkerd(format: &str, level: &Sourced<String>) -> Result<Self, String> {
        let form = if format == "json" { Form::JsonOfPairs } else { Form::Pairs };
        let mut log = Self::to(Target::Stdout, form);
        log.least = match level.value.to_ascii_lowercase().as_str() {
            "trace" | "debug" => Level::Debug,
            "info" => Level::Info,
            "warn" | "warning" => Level::Warn,
            "error" => Level::Error,
            "fatal" | "panic" => Level::Fatal,
            other => {
                let levels = "panic, fatal, error, warn, info, debug or trace";
                return Err(format!("{}: {other:?}: a level is {levels}", level.source));
            }
        };
        Ok(log)
    }

    /// For kumactl, whose standard output may be rules.
    pub(crate) fn kuma() -> Self {
        Self::to(Target::Stderr, Form::Remarks)
    }

    fn to(target: Target, form: Form) -> Self {
        Self { least: Level::Info, form, targets: vec![target], errors: Vec::new() }
    }

    /// Set a log flag of istio-iptables. Those that have no effect here are taken as well.
    pub(crate) fn set(&mut self, flag: &str, values: &[String]) -> Result<(), String> {
        match flag {
            "log_target" => {
                self.targets = values.iter().map(|v| target(v)).collect::<Result<_, _>>()?;
            }
            "log_as_json" => {
                let value = values.last().map_or("true", String::as_str);
                let json = parse_bool(value).map_err(|e| format!("--log_as_json: {e}"))?;
                self.form = if json { Form::Json } else { Form::Tabs };
            }
            "log_output_level" => {
                for value in values {
                    self.least = least(value, self.least)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Whether anybody sees the least important messages.
    pub(crate) fn shows_debug(&self) -> bool {
        self.least <= Level::Debug
    }

    pub(crate) fn debug(&mut self, message: &str) {
        self.write(Level::Debug, message);
    }

    pub(crate) fn info(&mut self, message: &str) {
        self.write(Level::Info, message);
    }

    pub(crate) fn warn(&mut self, message: &str) {
        self.write(Level::Warn, message);
    }

    /// The errors so far, the first ones first.
    pub(crate) fn errors(&self) -> &[String] {
        &self.errors
    }

    pub(crate) fn error(&mut self, message: &str) {
        if self.errors.len() < MOST_ERRORS {
            self.errors.push(message.to_owned());
        }
        self.write(Level::Error, message);
    }

    fn write(&mut self, level: Level, message: &str) {
        if level < self.least {
            return;
        }
        let line = self.form.line(level, message, SystemTime::now());
        for target in &mut self.targets {
            // A log that can't be written must not stop the work.
            let _written = match target {
                Target::Stdout => writeln!(io::stdout().lock(), "{line}"),
                Target::Stderr => writeln!(io::stderr().lock(), "{line}"),
                Target::File(file) => writeln!(file, "{line}"),
            };
        }
    }
}

impl Form {
    fn line(self, level: Level, message: &str, now: SystemTime) -> String {
        let micros = || humantime::format_rfc3339_micros(now).to_string();
        let seconds = || humantime::format_rfc3339_seconds(now).to_string();
        match self {
            Self::Tabs => format!("{}\t{}\t{}", micros(), level.as_str(), visible(message)),
            Self::Json => {
                json!({ "level": level.as_str(), "time": micros(), "msg": message }).to_string()
            }
            Self::JsonOfPairs => {
                json!({ "level": level.of_pairs(), "msg": message, "time": seconds() }).to_string()
            }
            Self::Remarks => {
                let level = if level >= Level::Warn {
                    format!("[{}] ", level.of_pairs().to_uppercase())
                } else {
                    String::new()
                };
                let lines = message.lines().map(|line| format!("# {level}{}", visible(line)));
                lines.collect::<Vec<_>>().join("\n")
            }
            Self::Pairs => {
                let (time, level) = (seconds(), level.of_pairs());
                format!("time=\"{time}\" level={level} msg={}", word(message))
            }
        }
    }
}

/// A value that stands for itself, or in quotes.
fn word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._/@^+".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text.to_owned() } else { format!("{text:?}") }
}

fn target(name: &str) -> Result<Target, String> {
    match name {
        "stdout" => Ok(Target::Stdout),
        "stderr" => Ok(Target::Stderr),
        path => OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .map(Target::File)
            .map_err(|e| format!("--log_target {path:?}: {e}")),
    }
}

/// `[scope:]level` items; there is one scope here, so the default and unknown scopes' levels
/// count alike, the last one wins.
fn least(text: &str, before: Level) -> Result<Level, String> {
    let mut level = before;
    for item in text.split(',').filter(|i| !i.is_empty()) {
        let name = item.rsplit_once(':').map_or(item, |(_, name)| name);
        level = Level::ALL.into_iter().find(|l| l.as_str() == name).ok_or_else(|| {
            format!(
                "--log_output_level {item:?}: a level is debug, info, warn, error, fatal or none"
            )
        })?;
    }
    Ok(level)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_read_with_and_without_scope() {
        assert_eq!(least("default:info", Level::None), Ok(Level::Info));
        assert_eq!(least("all:debug,default:warn", Level::Info), Ok(Level::Warn));
        assert_eq!(least("", Level::Info), Ok(Level::Info));
        assert!(least("default:loud", Level::Info).is_err());
    }

    #[test]
    fn a_line_is_in_the_form_of_the_tool() {
        let line = |form: Form, message| form.line(Level::Warn, message, SystemTime::UNIX_EPOCH);
        assert_eq!(
            line(Form::Pairs, "a \"b\""),
            r#"time="1970-01-01T00:00:00Z" level=warning msg="a \"b\"""#
        );
        assert!(line(Form::Pairs, "iptables-save").ends_with(" msg=iptables-save"));
        assert_eq!(
            line(Form::JsonOfPairs, "a"),
            r#"{"level":"warning","msg":"a","time":"1970-01-01T00:00:00Z"}"#
        );
        assert_eq!(line(Form::Remarks, "a\nb"), "# [WARNING] a\n# [WARNING] b");
        assert_eq!(line(Form::Tabs, "a"), "1970-01-01T00:00:00.000000Z\twarn\ta");
    }
}
