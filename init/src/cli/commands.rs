//! The commands of Millrace with their flags, for the help and to read them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};
use millrace_core::dialect::native::settings::{SETTINGS, Setting, Shape};
use millrace_host::cri::CONTAINERD;

use super::ask::{diff_args, manifest_arg, question_args, questions_args, source_args};
use super::trace;

fn program() -> Command {
    Command::new("millrace")
        .bin_name("millrace")
        .about("Diverts a pod's traffic into its mesh proxy")
        .version(env!("CARGO_PKG_VERSION"))
        .no_binary_name(true)
        .subcommand_required(false)
        .disable_help_subcommand(true)
        .max_term_width(100)
        .after_help(
            "Started under the name istio-iptables, as `pilot-agent istio-iptables`, as \
             linkerd2-proxy-init or as `consul connect redirect-traffic`, it is that tool, and as kumactl \
             two commands of that one. `--help` behind istio-iptables, linkerd, kuma or consul lists its \
             flags; `millrace help exit-codes` lists exit codes.",
        )
}

/// The command of this name.
type Make = fn() -> Command;

/// Every command by its name, in the order of the help.
const COMMANDS: &[(&str, Make)] = &[
    ("apply", apply),
    ("dump", dump),
    ("cleanup", cleanup),
    ("status", status),
    ("preflight", preflight),
    ("explain", explain),
    ("diff", diff),
    ("graph", graph),
    ("verify", verify),
    ("trace", trace),
    ("lint", lint),
    ("node-bpf", super::node::node_bpf_command),
    ("istio-iptables", istio_iptables),
    ("linkerd", linkerd),
    ("kuma", kuma),
    ("consul", consul),
    ("osm", osm),
    ("schema", schema),
    ("dial", dial),
];

/// All commands, for the help as well.
pub(crate) fn command() -> Command {
    COMMANDS.iter().fold(program(), |all, (_, make)| all.subcommand(make()))
}

/// One of them: to describe them all takes as long as to read what a namespace holds.
pub(crate) fn alone(name: &str) -> Option<Command> {
    let (_, make) = COMMANDS.iter().find(|(known, _)| *known == name)?;
    Some(program().subcommand(make()))
}

fn istio_iptables() -> Command {
    Command::new("istio-iptables")
        .about("Do what istio-iptables does: same flags, environment, rules and exit codes")
        .disable_help_flag(true)
        .arg(words("words"))
}

fn linkerd() -> Command {
    Command::new("linkerd")
        .about("Do what Linkerd's proxy-init does: same flags, rules and exit codes")
        .disable_help_flag(true)
        .arg(words("words"))
}

fn kuma() -> Command {
    Command::new("kuma")
        .about("Do what `kumactl install transparent-proxy` and its uninstall do: same flags, variables, files, rules and exit codes")
        .disable_help_flag(true)
        .arg(words("words"))
}

fn consul() -> Command {
    Command::new("consul")
        .about("Do what consul connect redirect-traffic does: same flags, rules and exit codes")
        .disable_help_flag(true)
        .arg(words("words"))
}

fn osm() -> Command {
    Command::new("osm")
        .about("Do what the init container of Open Service Mesh does, by settings of its MeshConfig and annotations")
        .disable_help_flag(true)
        .arg(words("words"))
}

fn schema() -> Command {
    Command::new("schema").about("Print the JSON schema of --config").display_order(100)
}

fn dial() -> Command {
    let words = Arg::new("words").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true);
    Command::new("dial").hide(true).arg(words)
}

/// Every word that follows, as it is.
fn words(name: &'static str) -> Arg {
    Arg::new(name)
        .num_args(0..)
        .trailing_var_arg(true)
        .allow_hyphen_values(true)
        .value_parser(clap::value_parser!(OsString))
        .hide(true)
}

fn apply() -> Command {
    let command = Command::new("apply")
        .about("Write the rules that capture a pod's traffic")
        .long_about(
            "Write the rules that capture a pod's traffic: what is there of an earlier run of \
             Millrace or of a mesh's tool is replaced, whatever its settings were; rules of \
             others are not touched. When anything fails, what was there before is put back. A \
             second run finds nothing to do. By eBPF it is one entry in the maps of the node's \
             programs instead of rules.",
        )
        .after_help("Exit codes: 0 done or nothing to do; 1 a bad configuration, or something failed; 2 the command line can't be read; 4 a lock was held for longer than --wait.")
        .arg(dry_run());
    super::node::with_ebpf(settings(in_namespace(command).arg(wait()).arg(iptables())))
}

fn dump() -> Command {
    let command = Command::new("dump")
        .about("Print rules, each with the reason it is there")
        .long_about(
            "Print the rules that a configuration gives (--from-config; no privilege is needed, \
             and nothing of the host is looked at but /etc/resolv.conf when its servers are asked \
             for), or those of Millrace and of meshes' tools that a namespace holds; those of others are \
             left out. As text, with a comment in front of each rule, that of one --family is input \
             for iptables-restore or ip6tables-restore --noflush; with --backend nftables, that of \
             both is for nft -f.",
        )
        .after_help("Exit codes: 0 printed; 1 a bad configuration, or something failed; 2 the command line can't be read.")
        .arg(
            Arg::new("from-config")
                .long("from-config")
                .help("Print what the configuration gives, not what is there")
                .action(ArgAction::SetTrue),
        )
        .arg(family());
    settings(in_namespace(command)).arg(behind_dashes())
}

fn cleanup() -> Command {
    let command = Command::new("cleanup")
        .about("Remove what Millrace, istio-iptables or Linkerd's proxy-init left, and nothing else")
        .long_about(
            "Remove what Millrace, istio-iptables or Linkerd's proxy-init left, whatever its settings were: chains, \
             rules, policy routing and addresses, in both iptables and both families, and the \
             pod's entry in the maps of eBPF programs. Rules of others keep their order and their \
             counters.",
        )
        .after_help("Exit codes: 0 done or nothing to do; 1 something failed; 2 the command line can't be read; 4 a lock was held for longer than --wait.")
        .arg(dry_run());
    in_namespace(command).arg(wait()).args(super::node::leaving())
}

fn status() -> Command {
    let command = Command::new("status")
        .about("Say whether a pod's traffic is captured, and by what")
        .long_about(
            "Say whether a pod's traffic is captured, and by what. With a configuration, the rules \
             are held against it; without one, against the settings that can be read back from \
             the rules themselves. Where eBPF captures, it is the pod's entry, with how often each \
             decision was taken.",
        )
        .after_help("Exit codes: 0 captured; 1 something failed; 2 the command line can't be read; 3 not captured; 5 drifted: rules are there, but not whole, or not those of the configuration.");
    super::node::with_ebpf(settings(in_namespace(command))).arg(behind_dashes())
}

fn preflight() -> Command {
    let command = Command::new("preflight")
        .about("Say which backends can work here, and what the others lack")
        .long_about(
            "Say what this namespace, kernel and container have: capabilities, nf_tables and its \
             expressions, iptables' own tables, programs, IPv6, and everything that eBPF capture is \
             made of; which backends can capture with that what the settings say, and what is missing \
             for the others. Without settings it is the default, and TPROXY, DNS and invalid packets are \
             spoken of where they alone can't be had. \
             Nothing is changed in the namespace; the kernel may load modules that it is asked \
             for.",
        )
        .after_help("Exit codes: 0 the backend can capture what the settings say (without --backend: any of them); 1 it can't, or something failed; 2 the command line can't be read.")
        .arg(
            Arg::new("backend")
                .long("backend")
                .value_name("BACKEND")
                .help("The backend that has to work [default: any]")
                .value_parser(["iptables", "iptables-nft", "iptables-legacy", "nftables", "ebpf"]),
        )
        .arg(super::node::bpffs());
    capture(in_namespace(command)).arg(behind_dashes())
}

fn explain() -> Command {
    let command = Command::new("explain")
        .about("Say where a connection goes, and by which rules")
        .long_about(
            "Walk a connection through rules as the kernel does, and print each rule that it \
             meets, whether it matched and why not, why the rule is there, and the end: which port \
             it is delivered to and with which original destination, or where it leaves. The rules \
             are those of a configuration, of files, of a pod's manifest or of a namespace. Where \
             eBPF captures, what its programs decide is told like rules. What is not known is \
             named, and never guessed.",
        )
        .after_help("Exit codes: 0 explained; 1 something failed, or the rules hold something that matters and is not known; 2 the command line can't be read.");
    let command = settings(source_args(questions_args(in_namespace(command))));
    super::node::with_ebpf(command).arg(behind_dashes())
}

fn diff() -> Command {
    diff_args(
        Command::new("diff")
            .about("Say for which connections rules differ, and in which rules")
            .long_about(
                "Compare rules by what they do: the connections that are treated otherwise, with \
                 an example of each, and then the rules. A and B are each one of: a command line \
                 in one word ('apply --dns all', 'istio-iptables -p 15001 -b *', 'linkerd -p 4143 -o 4140'), a configuration \
                 file, a pod's manifest, a file of iptables-save, ip6tables-save or \
                 `nft -j list ruleset` (several with commas between them), `live` for this \
                 namespace, `netns:NAME`, `pid:N`, or `pod:NAME`.",
            )
            .after_help("Exit codes, as of diff(1): 0 traffic is treated alike; 1 it is treated otherwise; 2 something failed, or the command line can't be read."),
    )
}

fn verify() -> Command {
    let command = Command::new("verify")
        .about("Prove by real connections that a pod's traffic is captured")
        .long_about(
            "Prove by real connections that a pod's traffic is captured as its configuration says: \
             those of the application, of the proxy and of somebody outside, in both families, by \
             TCP and UDP. Each is made, and where it arrives is seen: by listeners of this command, \
             by what a running proxy accepts, or on its way out of the pod. Without a configuration, \
             what is expected is read back from the rules or from eBPF's maps. For somebody outside \
             there is a network namespace with a link into the pod (198.19.255.252/30, \
             2001:2:0:ffff::/126), which ends with this command, however it ends; a warning names \
             the rules that treat the pod's own interfaces in another way. Then the rules that are \
             there are compared with the configuration, as diff does: each kind of connections of \
             which the proxy gets one that it should not, or does not get one that it should, is \
             told with an example, the first 8 of them. What rules of others do with what is not \
             captured, and what can't be told, is a warning, and so are rules that may not be read. \
             What can't be seen without NET_RAW is not counted as good. What can't be tried without a capability is \
             said and left out.",
        )
        .after_help("Exit codes: 0 every connection that could be made arrived where it should, and the rules capture no other otherwise; 1 something failed; 2 the command line can't be read; 126 one did not, rules capture others otherwise, or none could be made.")
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("DURATION")
                .help("How long one connection may take to arrive")
                .default_value("1s"),
        );
    let command = super::node::with_ebpf(settings(in_namespace(command)));
    command.arg(manifest_arg()).arg(behind_dashes())
}

fn trace() -> Command {
    let command = Command::new("trace")
        .about("Follow real connections through the rules, as they are made")
        .long_about(
            "Follow real connections through the rules, as they are made, and print each rule that \
             one meets, why it is there, and where the connection ends. The kernel tells of them \
             because a table of this command asks it to; the table ends with this command, however \
             it ends. It takes Linux 5.12 or later and the capability NET_ADMIN. Rules of \
             iptables-legacy are told of by the kernel's log, which one program alone can hear in a \
             namespace; when a trace of them is killed, `status` tells that the log is not as it was, \
             and `cleanup` or the next trace puts that right. With --backend ebpf, what the node's \
             eBPF programs decide is told instead, of every pod unless one is named.",
        )
        .after_help("Exit codes: 0 ended by --count, --timeout or a signal; 1 something failed; 2 the command line can't be read.");
    trace::args(in_namespace(command))
}

fn lint() -> Command {
    Command::new("lint")
        .about("Find common mistakes in manifests of pods, each with the reason and the fix")
        .long_about(
            "Look through manifests for mistakes that keep a pod's traffic out of the mesh, or the \
             pod from starting: annotations and ports that contradict each other, users that are the \
             proxy's, probes, DNS, containers that need the network too early. A file may hold any \
             number of documents, YAML or JSON: pods, and whatever makes pods. Nothing but the files \
             is looked at.",
        )
        .after_help("Exit codes: 0 nothing worse than notes; 1 a file can't be read, or there is no pod in it; 2 the command line can't be read; 3 warnings; 5 errors.")
        .arg(
            Arg::new("file")
                .value_name("FILE")
                .help("Manifests; - is standard input")
                .required(true)
                .num_args(1..)
                .value_parser(clap::value_parser!(PathBuf)),
        )
        .arg(output())
}

fn graph() -> Command {
    let command = Command::new("graph")
        .about("Draw rules as a picture")
        .long_about(
            "Draw rules as a picture: chains, which rule leads from one to another, and where \
             packets end. Where the rules have counters, as those of a namespace have, the lines \
             are as wide as the traffic that went there. With a connection to ask about, as \
             `millrace explain` takes it, its way is highlighted.",
        )
        .after_help("Exit codes: 0 drawn; 1 something failed; 2 the command line can't be read.")
        .arg(
            Arg::new("format")
                .long("format")
                .value_name("FORMAT")
                .help("Mermaid's text, Graphviz' text, or the picture itself")
                .value_parser(["mermaid", "dot", "svg"])
                .default_value("mermaid"),
        )
        .arg(family());
    let command = settings(source_args(question_args(place_args(command))));
    super::node::with_ebpf(command).arg(behind_dashes())
}

fn family() -> Arg {
    Arg::new("family")
        .long("family")
        .help("This family only")
        .value_name("FAMILY")
        .value_parser(["ipv4", "ipv6"])
}

/// The namespace, and how the result is printed.
fn in_namespace(command: Command) -> Command {
    place_args(command).arg(output())
}

pub(super) fn runtime_endpoint() -> Arg {
    Arg::new("runtime-endpoint")
        .long("runtime-endpoint")
        .value_name("SOCKET")
        .default_value(CONTAINERD)
}

fn place_args(command: Command) -> Command {
    command
        .arg(
            Arg::new("netns")
                .long("netns")
                .value_name("PATH|PID|NAME")
                .help("Network namespace: a path, a process id, or a name of `ip netns`; entering another one needs CAP_SYS_ADMIN [default: this one]")
                .conflicts_with_all(["pid", "pod"]),
        )
        .arg(
            Arg::new("pid")
                .long("pid")
                .value_name("PID")
                .help("The network namespace of this process")
                .value_parser(clap::value_parser!(u32).range(1..))
                .conflicts_with("pod"),
        )
        .arg(
            Arg::new("pod")
                .long("pod")
                .value_name("[NAMESPACE/]NAME|ID")
                .help("The network namespace of this pod of the node, as the container runtime knows it"),
        )
        .arg(
            runtime_endpoint()
                .help("Where the container runtime listens (CRI), for --pod")
                .requires("pod"),
        )
}

fn output() -> Arg {
    Arg::new("output")
        .long("output")
        .value_name("FORMAT")
        .help("How to print the result")
        .value_parser(["text", "json"])
        .default_value("text")
}

fn dry_run() -> Arg {
    Arg::new("dry-run")
        .long("dry-run")
        .help("Say what would be done, and touch nothing")
        .action(ArgAction::SetTrue)
}

pub(super) fn wait() -> Arg {
    Arg::new("wait")
        .long("wait")
        .value_name("DURATION")
        .help("How long to wait for another run, and for the xtables lock, for which a part of a second counts as a whole one")
        .default_value("30s")
}

fn iptables() -> Arg {
    Arg::new("iptables")
        .long("iptables")
        .value_name("WHICH")
        .help("Write the rules by the programs of this iptables, and not by netlink")
        .value_parser(["nft", "legacy"])
}

fn behind_dashes() -> Arg {
    Arg::new("tool")
        .num_args(1..)
        .last(true)
        .allow_hyphen_values(true)
        .value_name("TOOL FLAGS")
        .help(
            "A command line of a mesh's tool as the configuration, with its environment: \
             istio-iptables, linkerd (proxy-init), kumactl install transparent-proxy or consul \
             connect redirect-traffic",
        )
        .value_parser(clap::value_parser!(OsString))
}

/// The settings, and what carries them out.
fn settings(command: Command) -> Command {
    capture(command.arg(
                Arg::new("backend")
                    .long("backend")
                    .value_name("BACKEND")
                    .help("What carries the rules out; auto: what holds rules of an earlier run, else nftables if the kernel has it, else iptables. Only iptables-legacy needs programs")
                    .value_parser(["auto", "nftables", "iptables", "iptables-nft", "iptables-legacy"])
                    .default_value("auto"),
            ))
}

/// The settings, and the file they can come from.
fn capture(mut command: Command) -> Command {
    command = command.arg(
        Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help("Read settings from this file, YAML or JSON (`millrace schema`); flags beat it")
            .help_heading("Settings")
            .value_parser(clap::value_parser!(PathBuf)),
    );
    for setting in SETTINGS {
        command = command.arg(argument(setting));
    }
    command
}

fn argument(setting: &'static Setting) -> Arg {
    let arg = Arg::new(setting.flag)
        .long(setting.flag)
        .help(match setting.default {
            "" => setting.help.to_owned(),
            default => format!("{} [default: {default}]", setting.help),
        })
        .help_heading("Settings")
        .action(ArgAction::Append)
        .value_name(value_name(setting.shape));
    match setting.shape {
        Shape::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        _ => arg.num_args(1).allow_hyphen_values(true),
    }
}

const fn value_name(shape: Shape) -> &'static str {
    match shape {
        Shape::ListenPort => "PORT",
        Shape::Ports { .. } => "PORTS",
        Shape::Networks { .. } => "CIDRS",
        Shape::Network => "CIDR",
        Shape::Uids => "UIDS",
        Shape::Gids => "GIDS",
        Shape::Groups { .. } => "GROUPS",
        Shape::Interfaces => "NAMES",
        Shape::Addresses => "ADDRESSES",
        Shape::Choice(_) => "WORD",
        Shape::Mark => "MARK",
        Shape::Table => "TABLE",
        Shape::Switch => "BOOL",
    }
}
