//! The probe program: `probe serve|dial|stray JSON`, with a value of [`crate::wire`].

mod dial;
mod serve;
mod socket;
mod stray;

pub use serve::{answer, original_destination};

use std::io::Write as _;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde::Serialize;

/// The whole program: prints its result as one line of JSON on standard output.
pub fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _written = writeln!(std::io::stderr(), "probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> Result<()> {
    let [command, json] = words else { bail!("usage: probe serve|dial|stray JSON") };
    match command.as_str() {
        "serve" => serve::serve(&serde_json::from_str(json).context("what to serve")?),
        "dial" => print(&dial::dial(&serde_json::from_str(json).context("what to dial")?)?),
        "stray" => print(&stray::stray(&serde_json::from_str(json).context("what to send")?)?),
        other => bail!("there is no `probe {other}`"),
    }
}

fn print(value: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_string(value).context("the result")?;
    line.push('\n');
    std::io::stdout().write_all(line.as_bytes()).context("standard output")
}
