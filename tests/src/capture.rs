//! Ways to capture a pod: the millrace program with either iptables, and whatever comes later.

use std::ffi::OsStr;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::dialect::{istio, native};
use millrace_core::nft;
pub use millrace_core::observed::Variant;
use millrace_core::plan::Preference;
use millrace_core::preflight::Backend;
use millrace_core::ruleset::Ruleset;
use millrace_core::value::Groups;
use millrace_host::engine::{Drift, Request, Rules, Session};
use millrace_host::{exec, facts};
use serde_json::Value;

use crate::binary;
use crate::cases::Config;
use crate::netns::Namespace;
use crate::topology::{Layout, Stack, Topology};

/// Something that can capture a pod as a configuration says.
pub trait Capture {
    /// Its name, for messages.
    fn name(&self) -> String;

    /// Capture the topology's pod.
    fn apply(&self, topology: &Topology, config: &Config) -> Result<()>;
}

/// The millrace program with one of the iptables.
#[derive(Clone, Copy, Debug)]
pub struct Millrace {
    /// Which iptables it is told to use.
    pub variant: Variant,
}

impl Capture for Millrace {
    fn name(&self) -> String {
        format!("millrace with iptables-{}", self.variant.as_str())
    }

    fn apply(&self, topology: &Topology, config: &Config) -> Result<()> {
        let mut command = millrace(config_args(config, self.variant, topology.stack))?;
        command.envs(config.env().iter().copied());
        let output = topology.pod.output(&mut command)?;
        let said = said(&output);
        ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
        Ok(())
    }
}

/// The millrace program writing the tables of iptables-nft itself.
#[derive(Clone, Copy, Debug)]
pub struct IptablesByNetlink;

impl Capture for IptablesByNetlink {
    fn name(&self) -> String {
        "millrace with iptables-nft by netlink".to_owned()
    }

    fn apply(&self, topology: &Topology, config: &Config) -> Result<()> {
        let mut args = match config {
            Config::Istio { .. } => vec!["istio-iptables"],
            Config::Apply { .. } => vec!["apply", "--backend", "iptables-nft"],
        };
        if matches!(config, Config::Istio { .. }) && topology.stack == Stack::Dual {
            args.push("--dual-stack");
        }
        without_programs(topology, config, args)
    }
}

/// Run millrace with a configuration's flags and environment, and no program to be found.
fn without_programs(topology: &Topology, config: &Config, mut args: Vec<&str>) -> Result<()> {
    args.extend(config.flags());
    let mut command = millrace(args)?;
    command.envs(config.env().iter().copied()).env("PATH", "/nowhere");
    let output = topology.pod.output(&mut command)?;
    let said = said(&output);
    ensure!(output.status.success(), "{command:?}: {}\n{said}", output.status);
    Ok(())
}

/// The millrace program with native nftables.
#[derive(Clone, Copy, Debug)]
pub struct NativeNftables;

impl Capture for NativeNftables {
    fn name(&self) -> String {
        "millrace with native nftables".to_owned()
    }

    fn apply(&self, topology: &Topology, config: &Config) -> Result<()> {
        without_programs(topology, config, vec!["istio-iptables", "--native-nftables"])
    }
}

/// Millrace's own nftables table, also for configurations that come as istio-iptables' flags.
#[derive(Clone, Copy, Debug)]
pub struct OwnNftables;

impl Capture for OwnNftables {
    fn name(&self) -> String {
        "millrace with its own nftables table".to_owned()
    }

    fn apply(&self, topology: &Topology, config: &Config) -> Result<()> {
        let Config::Istio { flags, env } = config else {
            let args = [&["apply", "--backend", "nftables"], config.flags()].concat();
            return millrace_in_pod(topology, &args, 0).map(drop);
        };
        let words = ["istio-iptables"].iter().chain(flags);
        let words: Vec<String> = words.map(|word| (*word).to_owned()).collect();
        let flags = crate::istio::pairs(&words)?;
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let raw = istio::Raw::new(flags, env.collect());
        topology.pod.enter(|| -> Result<()> {
            let mut session = Session::open()?;
            let facts = facts::gather(session.net())?;
            let policy = istio::resolve(&raw, &facts)?.policy;
            let rules = nft::merge(&to_nft(&policy, &native::NFT_LAYOUT, true));
            session.run(&Request {
                rules: Some(Rules {
                    iptables: &to_iptables(&policy, &native::LAYOUT),
                    native: Some(&rules.ready(&facts.groups)?),
                }),
                preference: Preference::Backend(Backend::Nftables),
                drift: Drift::Replace,
                everything: false,
                dry_run: false,
                wait: Duration::from_secs(10),
                groups: &facts.groups,
                marks: vec![istio::TPROXY_DEFAULTS],
                exec: exec::Options::default(),
            })?;
            Ok(())
        })?
    }
}

/// The command line for a configuration.
pub fn config_args(config: &Config, variant: Variant, stack: Stack) -> Vec<&'static str> {
    let (mut args, flag) = match config {
        Config::Istio { .. } => (vec!["istio-iptables"], "--force-iptables-binary"),
        Config::Apply { .. } => (vec!["apply"], "--iptables"),
    };
    args.extend(config.flags());
    args.extend([flag, variant.as_str()]);
    if matches!(config, Config::Istio { .. }) && stack == Stack::Dual {
        args.push("--dual-stack");
    }
    args
}

/// The millrace program with these arguments, and nothing of the caller's environment but PATH.
pub fn millrace<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Command> {
    let mut command = Command::new(binary::millrace()?);
    command.args(args).env_clear();
    command.env("PATH", std::env::var_os("PATH").context("PATH is not set")?);
    Ok(command)
}

/// Run millrace in a topology's pod and want this exit code. Gives all that it printed.
pub fn millrace_in_pod(topology: &Topology, args: &[&str], code: i32) -> Result<String> {
    let output = topology.pod.output(&mut millrace(args)?)?;
    let said = said(&output);
    if output.status.code() != Some(code) {
        bail!("millrace {}: {}, not {code}\n{said}", args.join(" "), output.status);
    }
    Ok(said)
}

/// Run a command in a namespace: its exit code, none if a signal ended it, and all that it printed.
pub fn ran(namespace: &Namespace, command: &mut Command) -> Result<(Option<i32>, String)> {
    let output = namespace.output(command)?;
    Ok((output.status.code(), said(&output)))
}

/// The command line of another command for a shell or a tool that runs it.
pub fn wrapped(wrapper: &[&str], inner: &Command) -> Command {
    let (program, args) = wrapper.split_first().unwrap_or((&"env", &[]));
    let mut command = Command::new(program);
    command.args(args).arg(inner.get_program()).args(inner.get_args()).env_clear();
    command.envs(inner.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command
}

fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|b| String::from_utf8_lossy(b));
    format!("{out}{err}")
}

/// A pod with rules of these settings; nobody listens in it.
///
/// # Errors
/// When it can't be made, or is not captured.
pub fn unattended(backend: &str, settings: &[&str]) -> Result<Topology> {
    let mut topology = Topology::new(Stack::Dual, Layout::default())?;
    topology.stop_listeners();
    millrace_in_pod(&topology, &[&["apply", "--backend", backend], settings].concat(), 0)?;
    Ok(topology)
}

/// What `millrace` prints where this process is, standard error behind the rest, and its exit code.
///
/// # Errors
/// When it can't be started.
pub fn printed(words: &[&str]) -> Result<(Option<i32>, String)> {
    let output = millrace(words)?.output()?;
    Ok((output.status.code(), said(&output)))
}

/// What `millrace verify` says of a pod, as JSON.
///
/// # Errors
/// When it ends with another exit code.
pub fn verified(topology: &Topology, settings: &[&str], code: i32) -> Result<Value> {
    let words = [&["verify", "--output", "json", "--timeout", "300ms"], settings].concat();
    let output = topology.pod.output(&mut millrace(words)?)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(code), "{settings:?}: {output:?}");
    serde_json::from_str(&said).context(said)
}

/// Write rules of iptables into a namespace. Gives how many programs were run.
///
/// # Errors
/// When they can't be written.
pub fn write(
    ns: &Namespace,
    ruleset: &Ruleset,
    preference: Preference,
    groups: &Groups,
) -> Result<usize> {
    let outcome = ns.enter(|| {
        Session::open()?.run(&Request {
            rules: Some(Rules { iptables: ruleset, native: None }),
            preference,
            drift: Drift::Replace,
            everything: false,
            dry_run: false,
            wait: Duration::from_secs(10),
            groups,
            marks: Vec::new(),
            exec: exec::Options::default(),
        })
    })??;
    Ok(outcome.processes)
}
