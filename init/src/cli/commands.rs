//! The commands of Millrace with their flags, for the help and to read them.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};

use super::args::{
    behind_dashes, capture, color, dry_run, family, in_namespace, iptables, netns_args, output,
    settings, wait,
};
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
            "Invoked as istio-iptables, `pilot-agent istio-iptables`, linkerd2-proxy-init, \
             `consul connect redirect-traffic` or `kumactl install|uninstall transparent-proxy`, \
             it behaves as that tool. `--help` behind a mesh's command lists its flags; `millrace help \
             exit-codes` lists exit codes.",
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
    ("appmesh", appmesh),
    ("ambient", ambient),
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

fn appmesh() -> Command {
    Command::new("appmesh")
        .about("Do what the init container of AWS App Mesh does: same variables and rules")
        .disable_help_flag(true)
        .arg(words("words"))
}

fn ambient() -> Command {
    Command::new("ambient")
        .about("Write, check or remove the rules in a pod that a proxy of its node serves: Istio's ambient mode, Cilium's ztunnel")
        .disable_help_flag(true)
        .arg(words("words"))
}

fn schema() -> Command {
    Command::new("schema")
        .about("Print the JSON schema of --config")
        .after_help("Example:\n  millrace schema > config.schema.json")
        .display_order(100)
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
        .about("Capture a pod's traffic")
        .long_about(
            "Capture a pod's traffic. Rules of an earlier run of Millrace or of a mesh's tool are \
             replaced, whatever its settings were; rules of others are not touched. If anything \
             fails, the previous rules are restored. A second run changes nothing. With eBPF, the \
             pod gets an entry in the maps of the node's programs instead of rules. A command \
             line of a mesh's tool behind -- needs --backend ebpf.",
        )
        .after_help(
            "Examples:\n  millrace apply --netns pod-1 --config pod.yaml\n  millrace apply --pod \
             shop/web-0 --exclude-outbound-ports 5432\n\nExit codes: 0 done, or nothing to do; 1 \
             bad configuration, or it failed and the previous rules were restored; 2 the command \
             line can't be read; 4 a lock was held for longer than --wait.",
        )
        .arg(dry_run());
    let command = in_namespace(command).arg(wait()).arg(iptables());
    super::node::with_ebpf(settings(command)).arg(behind_dashes())
}

fn dump() -> Command {
    let command = Command::new("dump")
        .about("Print rules, with the reason for each")
        .long_about(
            "Print rules, with the reason for each: those of a configuration (--from-config; this \
             needs no privileges and reads nothing from the host but /etc/resolv.conf, for --dns \
             servers), or those of Millrace and of meshes' tools that a namespace holds. Rules \
             of others are left out. The text of one --family is input for \
             iptables-restore or ip6tables-restore --noflush; with --backend nftables, it is \
             input for nft -f.",
        )
        .after_help(
            "Examples:\n  millrace dump --netns pod-1\n  millrace dump --from-config -- \
             istio-iptables -u 1337 -b '*'\n\nExit codes: 0 printed; 1 bad configuration, or \
             something failed; 2 the command line can't be read.",
        )
        .arg(
            Arg::new("from-config")
                .long("from-config")
                .help("Print the rules of the configuration, not those of the namespace")
                .action(ArgAction::SetTrue),
        )
        .arg(family());
    settings(in_namespace(command)).arg(behind_dashes())
}

fn cleanup() -> Command {
    let command = Command::new("cleanup")
        .about("Remove the capture of Millrace or of a mesh's tool, and nothing else")
        .long_about(
            "Remove what Millrace or a mesh's tool left, whatever its settings were: chains, \
             rules, policy routing and addresses, in both iptables, nftables and both families, \
             and the pod's entry in the maps of eBPF programs. Rules of others keep their order \
             and their counters.",
        )
        .after_help(
            "Examples:\n  millrace cleanup --netns pod-1\n  millrace cleanup --pod shop/web-0 \
             --dry-run\n\nExit codes: 0 done, or nothing to do; 1 something failed; 2 the command \
             line can't be read; 4 a lock was held for longer than --wait.",
        )
        .arg(dry_run());
    in_namespace(command).arg(wait()).args(super::node::leaving())
}

fn status() -> Command {
    let command = Command::new("status")
        .about("Report whether a pod's traffic is captured, and by what")
        .long_about(
            "Report whether a pod's traffic is captured, and by what. With a configuration, the \
             rules are compared with it; without one, with the settings that can be read back \
             from the rules. Where eBPF captures, the pod's entry is reported, with how often \
             each decision was made.",
        )
        .after_help(
            "Examples:\n  millrace status --pod shop/web-0\n  millrace status --netns pod-1 \
             --config pod.yaml\n\nExit codes: 0 captured; 1 something failed; 2 the command line \
             can't be read; 3 not captured; 5 drifted: rules are there, but not complete, or not \
             those of the configuration.",
        );
    super::node::with_ebpf(settings(in_namespace(command).arg(color()))).arg(behind_dashes())
}

fn preflight() -> Command {
    let command = Command::new("preflight")
        .about("Report which backends work on this host, and what the others lack")
        .long_about(
            "Report what this namespace, kernel and container have: capabilities, nf_tables and \
             its expressions, iptables' own tables, binaries, IPv6, and everything that eBPF \
             capture needs; which backends support the settings, and what the others lack. \
             Without settings the verdict is for the defaults, and says if only TPROXY, DNS \
             capture or --drop-invalid is not supported. Nothing is changed in the namespace; the \
             kernel may autoload modules that a check uses.",
        )
        .after_help(
            "Examples:\n  millrace preflight\n  millrace preflight --backend nftables --mode \
             tproxy\n\nExit codes: 0 the backend supports the settings (without --backend: any \
             backend does); 1 it doesn't, or something failed; 2 the command line can't be read.",
        )
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
             meets, whether it matched and why not, why the rule is there, and the end: to which \
             port it is delivered with which original destination, or where it leaves. The rules \
             are those of a configuration, of files, of a pod's manifest or of a namespace. Where \
             eBPF captures, its decisions are shown as rules. What isn't modelled is named, and \
             never guessed.",
        )
        .after_help(
            "Examples:\n  millrace explain --pod shop/web-0 --from uid=1000 --to 10.96.0.1:443\n  \
             millrace explain --manifest web.yaml --in --src 10.1.2.3 --to-port 8080\n  millrace \
             explain --all --rules saved.rules\n\nExit codes: 0 explained; 1 something failed, or \
             it can't be told; 2 the command line can't be read.",
        );
    let command = settings(source_args(questions_args(in_namespace(command).arg(color()))));
    super::node::with_ebpf(command).arg(behind_dashes())
}

fn diff() -> Command {
    diff_args(
        Command::new("diff")
            .about("Say for which connections two sets of rules differ, and in which rules")
            .long_about(
            "Compare rules by what they do: the connections that are treated differently, with an \
             example of each, and then the rules. A and B are each one of: a command line in one \
             word ('apply --dns all', 'istio-iptables -p 15001 -b *', 'linkerd -p 4143 -o 4140'), \
             a configuration file, a pod's manifest, a file of iptables-save, ip6tables-save or \
             `nft -j list ruleset` (several, comma-separated), `live` for this namespace, \
             `netns:NAME`, `pid:N`, or `pod:NAME`.",
        )
            .after_help(
            "Examples:\n  millrace diff 'istio-iptables -b *' live\n  millrace diff --between \
             istio,linkerd\n\nExit codes: 0 traffic is treated alike; 1 it is treated \
             differently; 2 something failed, or the command line can't be read (as diff(1)).",
        ),
    )
}

fn verify() -> Command {
    let command = Command::new("verify")
        .about("Prove by real connections that a pod's traffic is captured")
        .long_about(
            "Prove by real connections that a pod's traffic is captured as configured: \
             connections of the application, of the proxy and from outside, in both families, by \
             TCP and UDP. Each is made, and where it arrives is observed: by listeners of this \
             command, by what a running proxy accepts, or on its way out of the pod. Without a \
             configuration, what is expected is read back from the rules or from the eBPF maps. \
             Outside is a network namespace with a link into the pod (198.19.255.252/30, \
             2001:2:0:ffff::/126), which ends with this command, even if it is killed; a warning \
             names rules that treat the pod's own interfaces differently. Then the rules in the \
             namespace are compared with the configuration, as diff does: each kind of connection \
             that the proxy gets and should not, or should get and does not, is reported with an \
             example, the first 8 of them. What rules of others do with connections that are not \
             captured, what can't be told, and rules that may not be read are warnings. Checks \
             that need a missing capability are reported as not tried.",
        )
        .after_help(
            "Examples:\n  millrace verify --pod shop/web-0\n  millrace verify --netns pod-1 \
             --config pod.yaml\n\nExit codes: 0 every connection that could be made arrived where \
             it should, and the comparison found nothing; 1 something failed; 2 the command line \
             can't be read; 126 one did not arrive, the rules differ, or no connection could be \
             made.",
        )
        .arg(
            Arg::new("timeout")
                .long("timeout")
                .value_name("DURATION")
                .help("How long one connection may take to arrive")
                .default_value("1s"),
        );
    let command = super::node::with_ebpf(settings(in_namespace(command).arg(color())));
    command.arg(manifest_arg()).arg(behind_dashes())
}

fn trace() -> Command {
    let command = Command::new("trace")
        .about("Follow real connections through the rules, as they are made")
        .long_about(
            "Follow real connections through the rules, as they are made, and print each rule \
             that one meets, why it is there, and where the connection ends. The kernel reports \
             them because a table of this command asks it to; the table goes with this command, \
             even if it is killed. It needs Linux 5.12 or later and the capability NET_ADMIN. \
             Rules of iptables-legacy are reported through the kernel's log, which only one \
             program can read in a namespace; if a trace of them is killed, `status` reports that \
             the log is not as it was, and `cleanup` or the next trace restores it. With \
             --backend ebpf, the decisions of the node's eBPF programs are shown instead, for \
             every pod unless one is named.",
        )
        .after_help(
            "Examples:\n  millrace trace --pod shop/web-0 --from uid=1000 --count 1\n\nExit \
             codes: 0 ended by --count, --timeout or a signal; 1 something failed; 2 the command \
             line can't be read.",
        );
    trace::args(in_namespace(command))
}

fn lint() -> Command {
    Command::new("lint")
        .about("Find common mistakes in manifests of pods, each with the reason and the fix")
        .long_about(
            "Check manifests for mistakes that keep a pod's traffic out of the mesh, or the pod \
             from starting: annotations and ports that contradict each other, users that are the \
             proxy's, probes, DNS, containers that need the network too early. A file may hold \
             any number of documents, YAML or JSON: pods, and whatever creates pods. Nothing but \
             the files is read.",
        )
        .after_help(
            "Examples:\n  millrace lint web.yaml\n  kubectl get deployments -o yaml | millrace \
             lint -\n\nExit codes: 0 nothing worse than notes; 1 a file can't be read, or there \
             is no pod in it; 2 the command line can't be read; 3 warnings; 5 errors.",
        )
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
             packets end. Where the rules have counters, as those of a namespace have, lines are \
             as wide as the traffic that they saw. With a connection, as `millrace explain` takes \
             it, its path is highlighted.",
        )
        .after_help(
            "Examples:\n  millrace graph --live --format svg > rules.svg\n  millrace graph --ipv6 \
             off --to 10.9.9.9:80\n\nExit codes: 0 drawn; 1 something failed, or the path, or who \
             decides, can't be told; 2 the command line can't be read.",
        )
        .arg(
            Arg::new("format")
                .long("format")
                .value_name("FORMAT")
                .help("Mermaid's text, Graphviz' text, or the picture itself")
                .value_parser(["mermaid", "dot", "svg"])
                .default_value("mermaid"),
        )
        .arg(family());
    let command = settings(source_args(question_args(netns_args(command))));
    super::node::with_ebpf(command).arg(behind_dashes())
}
