//! The log: in istio-iptables mode in its form and on standard output, otherwise on standard
//! error.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::time::SystemTime;

use millrace_core::dialect::istio::parse_bool;
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

/// Where messages go.
#[derive(Debug)]
pub(crate) struct Log {
    least: Level,
    json: bool,
    targets: Vec<Target>,
    /// The errors so far, whether anybody reads them or not.
    errors: Vec<String>,
}

/// As many errors are kept.
const MOST_ERRORS: usize = 256;

impl Log {
    /// For Millrace's own commands.
    pub(crate) fn own() -> Self {
        Self { least: Level::Info, json: false, targets: vec![Target::Stderr], errors: Vec::new() }
    }

    /// For istio-iptables, before its flags are read.
    pub(crate) fn istio() -> Self {
        Self { least: Level::Info, json: false, targets: vec![Target::Stdout], errors: Vec::new() }
    }

    /// Set a log flag of istio-iptables. Those that have no effect here are taken as well.
    pub(crate) fn set(&mut self, flag: &str, values: &[String]) -> Result<(), String> {
        match flag {
            "log_target" => {
                self.targets = values.iter().map(|v| target(v)).collect::<Result<_, _>>()?;
            }
            "log_as_json" => {
                let value = values.last().map_or("true", String::as_str);
                self.json = parse_bool(value).map_err(|e| format!("--log_as_json: {e}"))?;
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
        let time = humantime::format_rfc3339_micros(SystemTime::now());
        let level = level.as_str();
        let line = if self.json {
            json!({ "level": level, "time": time.to_string(), "msg": message }).to_string()
        } else {
            format!("{time}\t{level}\t{}", visible(message))
        };
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
}
