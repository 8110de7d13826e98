//! Listeners that run in a namespace, and clients that dial from one.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::binary;
use crate::netns::Namespace;
use crate::wire::{Dial, Failure, Outcome, Serve, Stray};

/// Listeners in a namespace; they end with the value. Should this process be killed, they end too:
/// their standard input ends then.
#[derive(Debug)]
pub struct Listeners {
    child: Child,
}

impl Listeners {
    /// Start listeners, and wait until every one of them listens.
    pub fn start(namespace: &Namespace, serve: &Serve) -> Result<Self> {
        let mut command = Command::new(binary::probe()?);
        command.arg("serve").arg(serde_json::to_string(serve)?);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = namespace.enter(|| command.spawn())?.context("starting listeners")?;
        let mut listeners = Self { child };
        listeners.wait_until_ready().with_context(|| format!("listeners of {}", serve.name))?;
        Ok(listeners)
    }

    /// The process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    fn wait_until_ready(&mut self) -> Result<()> {
        let stdout = self.child.stdout.take().context("a pipe was asked for")?;
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line).context("waiting for listeners")?;
        if line == "ready\n" {
            return Ok(());
        }
        let mut said = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut said).context("waiting for listeners")?;
        }
        bail!("they did not get ready: {line}{said}")
    }
}

impl Drop for Listeners {
    fn drop(&mut self) {
        // A child that has ended already can't be killed, and that is well.
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Dial from a namespace.
pub fn dial(namespace: &Namespace, dial: &Dial) -> Result<Outcome> {
    probe(namespace, "dial", dial)
}

/// Send a SYN+ACK of no connection from a namespace: `Reset` if it got through, `TimedOut` if not.
pub fn stray(namespace: &Namespace, stray: &Stray) -> Result<Failure> {
    probe(namespace, "stray", stray)
}

fn probe<T: DeserializeOwned>(
    namespace: &Namespace,
    what: &str,
    request: &impl Serialize,
) -> Result<T> {
    let json = serde_json::to_string(request)?;
    let program = binary::probe()?;
    let program = program.to_str().context("the probe's path is not UTF-8")?;
    let text = namespace.run(program, &[what, &json])?;
    serde_json::from_str(&text).with_context(|| format!("probe {what} {json} said {text:?}"))
}
