//! Arguments that several commands have.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgAction, Command};
use millrace_core::dialect::native::settings::{SETTINGS, Setting, Shape};
use millrace_host::cri::CONTAINERD;

use crate::paint::Color;

pub(super) fn family() -> Arg {
    Arg::new("family")
        .long("family")
        .help("This family only")
        .value_name("FAMILY")
        .value_parser(["ipv4", "ipv6"])
}

/// The namespace, and how the result is printed.
pub(super) fn in_namespace(command: Command) -> Command {
    netns_args(command).arg(output())
}

pub(super) fn runtime_endpoint() -> Arg {
    Arg::new("runtime-endpoint")
        .long("runtime-endpoint")
        .value_name("SOCKET")
        .default_value(CONTAINERD)
}

pub(super) fn netns_args(command: Command) -> Command {
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

pub(super) fn output() -> Arg {
    Arg::new("output")
        .long("output")
        .value_name("FORMAT")
        .help("How to print the result")
        .value_parser(["text", "json"])
        .default_value("text")
}

/// For commands whose text is in colour.
pub(super) fn color() -> Arg {
    Arg::new("color")
        .long("color")
        .value_name("WHEN")
        .help("When to print in colour; auto: on a terminal, unless NO_COLOR is set")
        .value_parser(Color::NAMES)
        .default_value("auto")
}

pub(super) fn dry_run() -> Arg {
    Arg::new("dry-run")
        .long("dry-run")
        .help("Print what would be done, and change nothing")
        .action(ArgAction::SetTrue)
}

pub(super) fn wait() -> Arg {
    Arg::new("wait")
        .long("wait")
        .value_name("DURATION")
        .help("How long to wait for another run, and for the xtables lock (rounded up to whole seconds)")
        .default_value("30s")
}

pub(super) fn iptables() -> Arg {
    Arg::new("iptables")
        .long("iptables")
        .value_name("WHICH")
        .help("Write rules with the binaries of this iptables instead of netlink")
        .value_parser(["nft", "legacy"])
}

pub(super) fn behind_dashes() -> Arg {
    Arg::new("tool")
        .num_args(1..)
        .last(true)
        .allow_hyphen_values(true)
        .value_name("TOOL FLAGS")
        .help(
            "A command line of a mesh's tool as the configuration, with its environment: \
             istio-iptables, linkerd (proxy-init), kumactl install transparent-proxy, consul \
             connect redirect-traffic, osm, appmesh or ambient rules",
        )
        .value_parser(clap::value_parser!(OsString))
}

/// The settings, and what carries them out.
pub(super) fn settings(command: Command) -> Command {
    capture(command.arg(
                Arg::new("backend")
                    .long("backend")
                    .value_name("BACKEND")
                    .help("Capture backend. auto: keep the one in use, otherwise nftables if the kernel has it, otherwise iptables. Only iptables-legacy needs binaries")
                    .value_parser(["auto", "nftables", "iptables", "iptables-nft", "iptables-legacy"])
                    .default_value("auto"),
            ))
}

/// The settings, and the file they can come from.
pub(super) fn capture(mut command: Command) -> Command {
    command = command.arg(
        Arg::new("config")
            .long("config")
            .value_name("FILE")
            .help("Read settings from this file, YAML or JSON (`millrace schema`); flags win")
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
