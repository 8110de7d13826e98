//! The command line. Every flag has a variable, for a pod's manifest.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};
use millrace_core::visible::visible;
use serde_json::json;
use tracing_subscriber::filter::LevelFilter;

mod plain;
mod report;

use self::plain::Plain;
use crate::flags::{Address, AmbientFlags, AmbientSwitch, HookFlags, NodeName, RepairFlags};
use crate::foreign::Mesh;
use crate::install::{Config, Installer, PLUGIN, until_installed};
use crate::kubeconfig::{self, Account};
use crate::list::is_file_name;
use crate::plan::{Mode, is_list, is_single};
use crate::run;
use crate::status::status;
use crate::uninstall::Way;

const EXIT_CODES: &str = "Exit codes:
  0  done; for install and status: the plugin is installed as the flags and variables ask for
  1  it is not, or something went wrong: why is printed
  2  the command line is wrong";

/// What stands below the flags in the help of a command: how it is called, and its exit codes.
fn with_example(words: &str) -> String {
    format!("Example:\n  millrace-node {words}\n\n{EXIT_CODES}")
}

/// Installs the CNI plugin of Millrace on a node, and keeps it installed.
#[derive(Debug, Parser)]
#[command(
    name = "millrace-node",
    bin_name = "millrace-node",
    version,
    max_term_width = 100,
    after_help = EXIT_CODES
)]
struct Cli {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install the plugin and keep it installed until a signal arrives; it stays installed then
    #[command(after_help = with_example("run --node-name node-1 --repair delete"))]
    Run(Box<Run>),
    /// Install the plugin once, also where it was uninstalled
    #[command(after_help = with_example("install --wait 1m"))]
    Install(Once),
    /// Remove the plugin: its entry first, then its binary
    #[command(after_help = with_example("uninstall --restore"))]
    Uninstall(Uninstall),
    /// Report whether new pods are captured on this node as the flags ask for, and change nothing
    #[command(after_help = with_example("status --json"))]
    Status(Status),
}

#[derive(Debug, Args)]
struct Run {
    #[command(flatten)]
    what: What,
    /// How often to check the installation when no file change is reported (inotify)
    #[arg(long, env = "MILLRACE_NODE_PERIOD", value_name = "DURATION", default_value = "10s",
          value_parser = humantime::parse_duration)]
    period: Duration,
    /// Listen address for /livez and /readyz, or none
    #[arg(
        long,
        env = "MILLRACE_NODE_HEALTH_ADDRESS",
        value_name = "ADDRESS",
        default_value = "[::]:8000"
    )]
    health_address: Address,
    /// Listen address for /metrics, or none
    #[arg(
        long,
        env = "MILLRACE_NODE_METRICS_ADDRESS",
        value_name = "ADDRESS",
        default_value = "[::]:15014"
    )]
    metrics_address: Address,
    #[command(flatten)]
    hook: HookFlags,
    #[command(flatten)]
    repair: RepairFlags,
    #[command(flatten)]
    ambient: AmbientFlags,
    /// Install even after `millrace-node uninstall`, which otherwise holds until `millrace-node install`
    #[arg(long, env = "MILLRACE_NODE_INSTALL_AGAIN")]
    install_again: bool,
}

#[derive(Debug, Args)]
struct Once {
    #[command(flatten)]
    what: What,
    /// How long to wait for a list of plugins
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = humantime::parse_duration)]
    wait: Duration,
}

#[derive(Debug, Args)]
struct Uninstall {
    #[command(flatten)]
    what: What,
    /// Put back what was taken over: entries, files and binaries
    #[arg(long)]
    restore: bool,
    /// Leave the binary in place: CRI-O calls DEL of the plugins that a pod was started with
    #[arg(long)]
    keep_binary: bool,
    /// How long to keep the binary after the entry is removed, so that runtimes reload the list
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = humantime::parse_duration)]
    grace: Duration,
}

#[derive(Debug, Args)]
struct Status {
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    hook: HookFlags,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What is installed, and where.
#[derive(Debug, Args)]
struct What {
    /// Folder of the runtime's CNI plugins
    #[arg(
        long,
        env = "MILLRACE_NODE_CNI_BIN_DIR",
        value_name = "FOLDER",
        default_value = "/opt/cni/bin"
    )]
    cni_bin_dir: PathBuf,
    /// Folder of CNI configurations
    #[arg(
        long,
        env = "MILLRACE_NODE_CNI_CONF_DIR",
        value_name = "FOLDER",
        default_value = "/etc/cni/net.d"
    )]
    cni_conf_dir: PathBuf,
    /// The agent's folder for the plugin's kubeconfig and socket; it needs the same path on the host
    #[arg(
        long,
        env = "MILLRACE_NODE_RUN_DIR",
        value_name = "FOLDER",
        default_value = "/run/millrace-node"
    )]
    run_dir: PathBuf,
    /// The agent's folder for what it took over; it has to outlive the agent
    #[arg(
        long,
        env = "MILLRACE_NODE_STATE_DIR",
        value_name = "FOLDER",
        default_value = "/var/lib/millrace-node"
    )]
    state_dir: PathBuf,
    /// The plugin's binary that is installed [default: millrace-cni beside this program]
    #[arg(long, env = "MILLRACE_NODE_PLUGIN", value_name = "FILE")]
    plugin: Option<PathBuf>,
    /// The name that the binary gets, which is the type of the plugin's entry
    #[arg(
        long,
        env = "MILLRACE_NODE_PLUGIN_NAME",
        value_name = "NAME",
        default_value = PLUGIN
    )]
    plugin_name: String,
    /// Where to put the plugin's entry
    #[arg(long, env = "MILLRACE_NODE_MODE", value_enum, default_value = "chained")]
    mode: Mode,
    /// File name: of the list to add the entry to instead of the first one (chained), or of the
    /// file that the agent writes (the other modes)
    #[arg(long, env = "MILLRACE_NODE_CONF_FILE", value_name = "NAME")]
    conf_file: Option<String>,
    /// Settings of the plugin: a JSON object of keys of its entry
    #[arg(long, env = "MILLRACE_NODE_SETTINGS", value_name = "JSON", default_value = "{}")]
    settings: String,
    /// Namespaces whose pods are not captured, comma-separated
    #[arg(
        long,
        env = "MILLRACE_NODE_EXCLUDE_NAMESPACES",
        value_name = "NAMES",
        value_delimiter = ','
    )]
    exclude_namespaces: Option<Vec<String>>,
    /// Where the plugin's kubeconfig comes from: service-account, none, or its absolute path
    #[arg(
        long,
        env = "MILLRACE_NODE_KUBECONFIG",
        value_name = "SOURCE",
        default_value = "service-account"
    )]
    kubeconfig: kubeconfig::From,
    /// Folder of the service account
    #[arg(
        long,
        env = "MILLRACE_NODE_SERVICE_ACCOUNT",
        value_name = "FOLDER",
        default_value = "/var/run/secrets/kubernetes.io/serviceaccount"
    )]
    service_account: PathBuf,
    /// Host of the Kubernetes API
    #[arg(long, env = "KUBERNETES_SERVICE_HOST", value_name = "HOST", default_value = "")]
    kubernetes_host: String,
    /// Port of the Kubernetes API
    #[arg(long, env = "KUBERNETES_SERVICE_PORT", value_name = "PORT", default_value = "443")]
    kubernetes_port: String,
    /// Name of this node: the agent watches its pods and serves them to the plugin over a Unix
    /// socket; without it, the plugin queries the API itself
    #[arg(long, env = "MILLRACE_NODE_NAME", value_name = "NAME")]
    node_name: Option<NodeName>,
    /// Plugins to replace, keeping the settings of their entries, comma-separated: istio-cni,
    /// linkerd-cni, or none
    #[arg(
        long,
        env = "MILLRACE_NODE_TAKE_OVER",
        value_name = "PLUGINS",
        default_value = "istio-cni"
    )]
    take_over: String,
    #[command(flatten)]
    ambient: AmbientSwitch,
    /// The least severe messages that are logged: debug, info, warn or error
    #[arg(long, env = "MILLRACE_NODE_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    log_level: LevelFilter,
}

impl What {
    fn config(self) -> Result<Config> {
        let plugin = match self.plugin {
            Some(plugin) => plugin,
            None => std::env::current_exe()
                .context(
                    "the path of this program can't be read; name the plugin's binary with \
                     --plugin",
                )?
                .with_file_name("millrace-cni"),
        };
        if !is_file_name(&self.plugin_name) {
            bail!("--plugin-name {:?} is no name of a file", self.plugin_name);
        }
        if let Some(mesh) = Mesh::of(&self.plugin_name) {
            bail!(
                "--plugin-name {:?} is a name of {mesh}, which is another plugin",
                self.plugin_name
            );
        }
        if let Some(file) = &self.conf_file {
            file_of(self.mode, file)?;
        }
        let mut settings = self.ambient.read(&self.settings).context("--settings")?;
        if let Some(namespaces) = self.exclude_namespaces {
            if settings.has("exclude_namespaces") {
                bail!(
                    "--settings has exclude_namespaces, and --exclude-namespaces is there as well"
                );
            }
            let names: Vec<_> = namespaces.into_iter().filter(|name| !name.is_empty()).collect();
            settings = settings.with("exclude_namespaces", json!(names));
        }
        for (flag, path) in [("--run-dir", &self.run_dir), ("--state-dir", &self.state_dir)] {
            if !path.is_absolute() {
                bail!("{flag} {} has to be an absolute path", path.display());
            }
        }
        let meshes = self.take_over.split(',').filter(|text| !["", "none"].contains(text));
        let take_over = meshes.map(|text| text.parse::<Mesh>().map_err(anyhow::Error::msg));
        let take_over = take_over.collect::<Result<_>>().context("--take-over")?;
        Ok(Config {
            bin_dir: self.cni_bin_dir,
            conf_dir: self.cni_conf_dir,
            run_dir: self.run_dir,
            state_dir: self.state_dir,
            plugin,
            kind: self.plugin_name,
            mode: self.mode,
            file: self.conf_file,
            settings,
            kubeconfig: self.kubeconfig,
            account: Account {
                folder: self.service_account,
                host: self.kubernetes_host,
                port: self.kubernetes_port,
            },
            serves: self.node_name.is_some(),
            take_over,
        })
    }
}

/// A name that runtimes read as the mode needs it.
fn file_of(mode: Mode, file: &str) -> Result<()> {
    let (good, wanted) = match mode {
        Mode::Chained => (true, ""),
        Mode::OwnFile => (is_list(file), ".conflist"),
        Mode::DropIn | Mode::Standalone => (is_single(file), ".conf"),
    };
    if !is_file_name(file) {
        bail!("--conf-file {file:?} is no name of a file");
    }
    if !good {
        bail!("--conf-file {file:?} has to end in {wanted} in this mode");
    }
    Ok(())
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let what = match &cli.command {
        Task::Run(run) => &run.what,
        Task::Install(once) => &once.what,
        Task::Uninstall(uninstall) => &uninstall.what,
        Task::Status(status) => &status.what,
    };
    let log = tracing_subscriber::fmt().with_max_level(what.log_level).with_writer(io::stderr);
    match cli.command {
        Task::Run(_) => log.json().flatten_event(true).init(),
        // Somebody reads along.
        _ => log.event_format(Plain).init(),
    }
    match execute(cli.command) {
        Ok(code) => code,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(task: Task) -> Result<ExitCode> {
    match task {
        Task::Run(run) => {
            let run = *run;
            let node = run.what.node_name.clone();
            let HookFlags { hook, nri_socket } = run.hook;
            run.what.ambient.goes_with(hook, node.is_some())?;
            let ambient = run.ambient.settings(run.what.ambient);
            let installer = Installer::new(run.what.config()?)?;
            if run.install_again {
                installer.install_again()?;
            }
            let places = run::Places {
                period: run.period,
                health: run.health_address.0,
                metrics: run.metrics_address.0,
                hook,
                nri_socket,
                repair: node.map(|node| run.repair.repair(&node.0)),
                ambient,
            };
            run::run(installer, places).map(|()| ExitCode::SUCCESS)
        }
        Task::Install(once) => {
            let config = once.what.config()?;
            let mut installer = Installer::new(config.clone())?;
            installer.install_again()?;
            let report = until_installed(&mut installer, once.wait)?;
            report::installed(&config, report)
        }
        Task::Uninstall(own) => {
            let way = Way { restore: own.restore, keep_binary: own.keep_binary, grace: own.grace };
            let done = Installer::new(own.what.config()?)?.uninstall(way)?;
            print(&visible(&report::uninstalled(&done))).map(|()| ExitCode::SUCCESS)
        }
        Task::Status(own) => {
            let config = own.what.config()?;
            report::printed(&config, own.hook.hook, &status(&config, &own.hook)?, own.json)
        }
    }
}

fn print(text: &str) -> Result<()> {
    io::stdout().lock().write_all(text.as_bytes()).context("standard output")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_flag_is_in_the_documentation() {
        let text = include_str!("../../docs/node-agent.md");
        for command in Cli::command().get_subcommands() {
            assert!(text.contains(&format!("millrace-node {}", command.get_name())));
            for arg in command.get_arguments().filter_map(|arg| arg.get_long()) {
                if arg != "help" {
                    assert!(text.contains(&format!("`--{arg}`")), "--{arg}");
                }
            }
        }
    }

    #[test]
    fn every_command_has_an_example_that_is_read() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().unwrap().to_string();
            let start = format!("millrace-node {} ", command.get_name());
            let line = help.lines().map(str::trim).find(|line| line.starts_with(&start));
            Cli::try_parse_from(line.unwrap().split(' ')).unwrap();
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    fn config(words: &[&str]) -> Result<Config> {
        let words = [&["millrace-node", "status"], words].concat();
        match Cli::try_parse_from(words)?.command {
            Task::Status(status) => status.what.config(),
            _ => bail!("another command"),
        }
    }

    #[test]
    fn what_is_wrong_is_refused_by_the_name_of_its_flag() {
        for (words, part) in [
            (&["--settings", "{\"x\":1}"] as &[&str], "x"),
            (
                &["--settings", "{\"exclude_namespaces\":[]}", "--exclude-namespaces", "a"],
                "--exclude",
            ),
            (&["--plugin-name", "a/b"], "--plugin-name"),
            (&["--plugin-name", "istio-cni"], "another plugin"),
            (&["--conf-file", "../x"], "--conf-file"),
            (&["--mode", "own-file", "--conf-file", "x.conf"], ".conflist"),
            (&["--mode", "drop-in", "--conf-file", "x.conflist"], ".conf"),
            (&["--take-over", "kuma-cni"], "istio-cni or linkerd-cni"),
            (&["--run-dir", "x"], "--run-dir"),
            (&["--kubeconfig", "x"], "--kubeconfig"),
            (&["--node-name", "a,b=c"], "--node-name"),
        ] {
            let error = format!("{:#}", config(words).unwrap_err());
            assert!(error.contains(part), "{words:?}: {error}");
        }
        let good = config(&["--take-over", "none", "--exclude-namespaces", "a,b"]).unwrap();
        assert!(good.take_over.is_empty());
        assert_eq!(good.settings.members()["exclude_namespaces"], json!(["a", "b"]));
        assert_eq!(config(&["--take-over", "istio-cni,linkerd-cni"]).unwrap().take_over.len(), 2);
    }
}
