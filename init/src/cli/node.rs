//! The command lines of eBPF capture: the node's programs, and what pods need of them.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use millrace_host::ebpf::DEFAULT_FOLDER;

use super::args::wait;
use super::own::{NotTyped, duration};

#[derive(Debug)]
pub(crate) struct NodeBpf {
    pub(crate) folder: PathBuf,
    pub(crate) json: bool,
    /// How long another run is waited for.
    pub(crate) wait: Duration,
    pub(crate) task: Task,
}

/// Where the pins are, and whether eBPF is to capture.
#[derive(Clone, Debug)]
pub(crate) struct Ebpf {
    pub(crate) folder: PathBuf,
    pub(crate) meant: Meant,
}

/// Whether it is eBPF that captures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meant {
    /// By `--backend ebpf`: that it can't is an error.
    Yes,
    /// If it does already, or can.
    Perhaps,
    /// Something else was asked for.
    No,
}

/// What is done with the node's programs.
#[derive(Debug)]
pub(crate) enum Task {
    Load {
        cgroup: Option<PathBuf>,
        accelerate: bool,
        max_pods: u32,
        max_networks: u32,
        max_connections: u32,
        spares: u32,
    },
    Unload {
        /// Rules are to capture the pods.
        to_nftables: bool,
        /// Pods may lose their capture.
        force: bool,
    },
    Status,
    Collect,
}

/// `--bpffs`, the folder of pins; `DEFAULT_FOLDER` without it.
pub(super) fn bpffs() -> Arg {
    Arg::new("bpffs")
        .long("bpffs")
        .value_name("FOLDER")
        .help("Folder of a bpffs that holds the programs of eBPF capture")
        .value_parser(value_parser!(PathBuf))
        .default_value(DEFAULT_FOLDER)
}

/// A command that carries a configuration out by eBPF as well.
pub(super) fn with_ebpf(command: Command) -> Command {
    let words = ["auto", "nftables", "iptables", "iptables-nft", "iptables-legacy", "ebpf"];
    let help = "Capture backend. auto: keep the one in use, otherwise eBPF where the node's programs are \
                loaded and support the settings, otherwise nftables if the kernel has it, otherwise \
                iptables. Only iptables-legacy needs binaries";
    command.mut_arg("backend", |backend| backend.value_parser(words).help(help)).arg(bpffs())
}

/// For a pod that leaves.
pub(super) fn leaving() -> [Arg; 2] {
    let backend = Arg::new("backend")
        .long("backend")
        .value_name("BACKEND")
        .help(
            "ebpf: fail if the pod can't be removed from eBPF capture; auto: remove it where \
             eBPF captures it",
        )
        .value_parser(["auto", "ebpf"])
        .default_value("auto");
    [backend, bpffs()]
}

/// `millrace node-bpf` for the help.
pub(super) fn node_bpf_command() -> Command {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("NUMBER")
            .help(help)
            .value_parser(value_parser!(u32).range(1..=16_777_216))
            .default_value(default)
    };
    let load = Command::new("load")
        .about("Load the programs and attach them; upgrade those that are there without a gap")
        .arg(
            Arg::new("cgroup")
                .long("cgroup")
                .value_name("FOLDER")
                .help(
                    "cgroup v2 to attach to: only processes below it can be captured [default: \
                     the first mounted one, or the kubepods cgroup in it where programs of others \
                     are attached to the first and can't be preceded]",
                )
                .value_parser(value_parser!(PathBuf)),
        )
        .arg(
            Arg::new("accelerate")
                .long("accelerate")
                .help("Hand data from socket to socket between application and proxy (docs/ebpf.md says what that breaks)")
                .action(ArgAction::SetTrue),
        )
        .arg(number("max-pods", "4096", "Maximum number of captured pods"))
        .arg(number(
            "max-networks",
            "1048576",
            "Maximum number of networks in all pods' settings together",
        ))
        .arg(number(
            "max-connections",
            "1048576",
            "Maximum number of tracked outbound TCP connections, of which one pod can use a sixteenth",
        ))
        .arg(
            number("spares", "256", "Number of pods for which sk_lookup programs are loaded in advance")
                .value_parser(value_parser!(u32).range(0..=65_536)),
        );
    let unload = Command::new("unload")
        .about(
            "Detach and remove the programs; refused while pods are captured, unless --to or \
             --force is given",
        )
        .arg(
            Arg::new("to")
                .long("to")
                .value_name("BACKEND")
                .help("Backend that takes over the captured pods, with the settings of each")
                .value_parser(["nftables"]),
        )
        .arg(
            Arg::new("force")
                .long("force")
                .help("Unload even if pods are left uncaptured")
                .action(ArgAction::SetTrue)
                .conflicts_with("to"),
        );
    let with_bpffs = |command: Command, example: &str| {
        let example = format!("Example:\n  millrace node-bpf {example}");
        command.arg(bpffs()).arg(output()).arg(wait()).after_help(example)
    };
    Command::new("node-bpf")
        .about("Load the programs of eBPF capture on a node, or unload them")
        .long_about(
            "The programs of eBPF capture are for the whole node: loaded once, attached at the \
             root of cgroup v2, pinned in a bpffs so that they stay. They divert nothing until a \
             pod is enrolled with `millrace apply --backend ebpf`.",
        )
        .after_help("Examples:\n  millrace node-bpf load\n  millrace node-bpf unload --to nftables\n\nExit codes: 0 done; 1 something failed; 2 the command line can't be read; 4 a lock was held for longer than --wait; status: 3 not loaded, 5 not whole.")
        .subcommand_required(true)
        .subcommands([
            with_bpffs(load, "load --max-pods 512"),
            with_bpffs(unload, "unload --to nftables"),
            with_bpffs(
                Command::new("status").about("Report programs, pods, and their counters"),
                "status --output json",
            ),
            with_bpffs(Command::new("gc").about("Remove what is left of pods that are gone"), "gc"),
        ])
}

fn output() -> Arg {
    Arg::new("output")
        .long("output")
        .value_name("FORMAT")
        .help("How to print the result")
        .value_parser(["text", "json"])
        .default_value("text")
}

pub(super) fn folder(m: &ArgMatches) -> PathBuf {
    m.get_one::<PathBuf>("bpffs").cloned().unwrap_or_else(|| PathBuf::from(DEFAULT_FOLDER))
}

/// Whether eBPF is meant, of a command that can.
pub(super) fn ebpf(m: &ArgMatches) -> Option<Ebpf> {
    m.try_get_one::<PathBuf>("bpffs").ok().flatten()?;
    let word = |name: &str| m.try_get_one::<String>(name).ok().flatten().map(String::as_str);
    let meant = match word("backend") {
        Some("ebpf") => Meant::Yes,
        Some("auto") if word("iptables").is_none() => Meant::Perhaps,
        _ => Meant::No,
    };
    Some(Ebpf { folder: folder(m), meant })
}

pub(super) fn node_bpf(m: &ArgMatches) -> Result<NodeBpf, NotTyped> {
    let (name, m) = m.subcommand().unwrap_or(("status", m));
    let number = |name: &str| m.get_one::<u32>(name).copied().unwrap_or(1);
    let task = match name {
        "load" => Task::Load {
            cgroup: m.get_one::<PathBuf>("cgroup").cloned(),
            accelerate: m.get_flag("accelerate"),
            max_pods: number("max-pods"),
            max_networks: number("max-networks"),
            max_connections: number("max-connections"),
            spares: number("spares"),
        },
        "unload" => Task::Unload { to_nftables: m.contains_id("to"), force: m.get_flag("force") },
        "gc" => Task::Collect,
        _ => Task::Status,
    };
    let wait = duration(m, "wait", "30s")?;
    Ok(NodeBpf { folder: folder(m), json: is_json(m), wait, task })
}

fn is_json(m: &ArgMatches) -> bool {
    m.get_one::<String>("output").is_some_and(|output| output == "json")
}
