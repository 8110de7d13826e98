//! `millrace trace`

mod ebpf;
mod netfilter;

use std::io;
use std::time::SystemTime;

use anyhow::Result;
use serde_json::Value;

use super::output::{print, print_json_line};
use crate::cli::trace::Trace;
use crate::exit::Exit;

pub(crate) fn trace(trace: &Trace) -> Result<Exit> {
    match &trace.ebpf {
        Some(sampled) => ebpf::follow(trace, sampled),
        None => netfilter::follow(trace),
    }
}

/// How many are still to be told of.
#[derive(Debug)]
struct Count(Option<u64>);

impl Count {
    /// One more was told of: whether there is to be another.
    fn next(&mut self) -> bool {
        self.0 = self.0.map(|left| left.saturating_sub(1));
        self.0 != Some(0)
    }
}

/// The time, as traces tell it.
fn now() -> String {
    humantime::format_rfc3339_micros(SystemTime::now()).to_string()
}

/// Print one thing as soon as it is known: text, or JSON in one line. Whether there is still
/// somebody who reads it.
fn tell(text: &str, value: Option<&Value>) -> Result<bool> {
    let printed = match value {
        Some(value) => print_json_line(value),
        None => print(text),
    };
    match printed {
        Err(error) if is_broken_pipe(&error) => Ok(false),
        printed => printed.map(|()| true),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
