//! The command lines of Millrace's own commands, made from the table of settings.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command};
use millrace_core::dialect::istio::parse_duration;
use millrace_core::dialect::native::settings::{SETTINGS, Setting, Shape};
use millrace_core::observed::Variant;
use millrace_core::plan::Wish;
use millrace_core::preflight::Backend;
use millrace_core::value::Family;

/// A command with everything that was typed.
#[derive(Debug)]
pub(crate) enum Own {
    Apply(Apply),
    Dump(Dump),
    Cleanup(Common),
    Status(Status),
    Preflight(Preflight),
    Schema,
    /// The other half of `--run-validation`: dials as another user.
    Dial(Vec<String>),
    /// `istio-iptables` with the words behind it.
    Istio(Vec<OsString>),
}

/// Options of every command that looks at a namespace.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub(crate) netns: Option<String>,
    pub(crate) json: bool,
    pub(crate) wait: Duration,
    pub(crate) dry_run: bool,
}

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) file: Option<PathBuf>,
    pub(crate) flags: Vec<(String, String)>,
    /// A command line of istio-iptables instead.
    pub(crate) istio: Option<Vec<OsString>>,
    /// What carries the rules out.
    pub(crate) wish: Wish,
}

impl Config {
    /// Whether the backend is left open.
    pub(crate) fn is_open(&self) -> bool {
        self.wish == Wish::Auto && self.istio.is_none()
    }

    /// Whether any configuration was given.
    pub(crate) const fn is_given(&self) -> bool {
        self.file.is_some()
            || !self.flags.is_empty()
            || self.istio.is_some()
            || !matches!(self.wish, Wish::Auto)
    }
}

#[derive(Debug)]
pub(crate) struct Apply {
    pub(crate) common: Common,
    pub(crate) config: Config,
}

#[derive(Debug)]
pub(crate) struct Dump {
    pub(crate) common: Common,
    pub(crate) config: Config,
    pub(crate) from_config: bool,
    pub(crate) family: Option<Family>,
}

#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) common: Common,
    pub(crate) config: Config,
}

#[derive(Debug)]
pub(crate) struct Preflight {
    pub(crate) common: Common,
    /// The backend that has to work; any of them without.
    pub(crate) backend: Option<String>,
}

/// Why the command line gives no command.
#[derive(Debug)]
pub(crate) enum NotTyped {
    /// Help or the version was asked for; this is it.
    Print(String),
    /// It can't be read.
    Bad(String),
}

/// Read the words behind the program's name.
pub(crate) fn read(words: Vec<OsString>) -> Result<Own, NotTyped> {
    let known = words.first().and_then(|word| alone(word.to_str()?)).unwrap_or_else(command);
    let matches = known.try_get_matches_from(words).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => NotTyped::Print(error.to_string()),
        _ => NotTyped::Bad(error.to_string().trim_end().to_owned()),
    })?;
    let Some((name, m)) = matches.subcommand() else {
        return Err(NotTyped::Print(command().render_help().to_string()));
    };
    Ok(match name {
        "apply" => Own::Apply(Apply { common: common(m)?, config: config(m)? }),
        "dump" => Own::Dump(Dump {
            common: common(m)?,
            config: config(m)?,
            from_config: m.get_flag("from-config"),
            family: m.get_one::<String>("family").map(|f| match f.as_str() {
                "ipv6" => Family::V6,
                _ => Family::V4,
            }),
        }),
        "cleanup" => Own::Cleanup(common(m)?),
        "status" => Own::Status(Status { common: common(m)?, config: config(m)? }),
        "preflight" => Own::Preflight(Preflight {
            common: common(m)?,
            backend: m.get_one::<String>("backend").cloned(),
        }),
        "schema" => Own::Schema,
        "dial" => Own::Dial(texts(m, "words")),
        _ => Own::Istio(m.get_many::<OsString>("words").into_iter().flatten().cloned().collect()),
    })
}

fn texts(m: &ArgMatches, name: &str) -> Vec<String> {
    m.get_many::<String>(name).into_iter().flatten().cloned().collect()
}

fn common(m: &ArgMatches) -> Result<Common, NotTyped> {
    let text = |name: &str| m.try_get_one::<String>(name).ok().flatten();
    let wait = text("wait").map_or("30s", String::as_str);
    let wait = parse_duration(wait).map_err(|e| NotTyped::Bad(format!("--wait {wait:?}: {e}")))?;
    Ok(Common {
        netns: text("netns").cloned(),
        json: text("output").is_some_and(|o| o == "json"),
        wait,
        dry_run: m.try_get_one::<bool>("dry-run").ok().flatten().copied().unwrap_or(false),
    })
}

fn config(m: &ArgMatches) -> Result<Config, NotTyped> {
    let flags: Vec<(String, String)> = SETTINGS
        .iter()
        .flat_map(|s| texts(m, s.flag).into_iter().map(|v| (s.flag.to_owned(), v)))
        .collect();
    let file = m.get_one::<PathBuf>("config").cloned();
    let words = m.try_get_many::<OsString>("istio").ok().flatten();
    let istio = words.map(|w| w.cloned().collect::<Vec<_>>());
    let istio = match istio.as_deref() {
        None => None,
        Some([name, rest @ ..]) if name == "istio-iptables" => Some(rest.to_vec()),
        Some(_) => {
            return Err(NotTyped::Bad(
                "behind -- comes a command line of istio-iptables: -- istio-iptables -p 15001 ..."
                    .to_owned(),
            ));
        }
    };
    if istio.is_some() && (file.is_some() || !flags.is_empty()) {
        let message = "a configuration comes from Millrace's own flags and file or from a command \
                       line of istio-iptables behind --, not from both";
        return Err(NotTyped::Bad(message.to_owned()));
    }
    let wish = wish(m)?;
    if istio.is_some() && wish != Wish::Auto {
        let message = "a command line of istio-iptables says itself what carries the rules out: \
                       --native-nftables or --force-iptables-binary";
        return Err(NotTyped::Bad(message.to_owned()));
    }
    Ok(Config { file, flags, istio, wish })
}

/// What carries the rules out.
fn wish(m: &ArgMatches) -> Result<Wish, NotTyped> {
    let word = |name: &str| m.try_get_one::<String>(name).ok().flatten().map(String::as_str);
    let backend = word("backend").unwrap_or("auto");
    let programs = match word("iptables") {
        Some("nft") => Some(Variant::Nft),
        Some("legacy") => Some(Variant::Legacy),
        _ => None,
    };
    Ok(match (backend, programs) {
        ("auto" | "iptables", Some(variant))
        | ("iptables-nft", Some(variant @ Variant::Nft))
        | ("iptables-legacy", Some(variant @ Variant::Legacy)) => Wish::Programs(variant),
        (_, Some(variant)) => {
            return Err(NotTyped::Bad(format!(
                "--iptables {} goes with --backend iptables or iptables-{0}, not with {backend}",
                variant.as_str()
            )));
        }
        ("iptables", None) => Wish::Iptables,
        (name, None) => {
            Backend::ALL.into_iter().find(|b| b.as_str() == name).map_or(Wish::Auto, Wish::Backend)
        }
    })
}

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
            "Started under the name istio-iptables, or as `pilot-agent istio-iptables`, it is that \
             tool. `millrace istio-iptables --help` lists its flags.",
        )
}

/// The command of this name.
type Make = fn() -> Command;

/// Every command by its name, in the order of the help.
const COMMANDS: [(&str, Make); 8] = [
    ("apply", apply),
    ("dump", dump),
    ("cleanup", cleanup),
    ("status", status),
    ("preflight", preflight),
    ("istio-iptables", istio_iptables),
    ("schema", schema),
    ("dial", dial),
];

/// All commands, for the help as well.
pub(crate) fn command() -> Command {
    COMMANDS.iter().fold(program(), |all, (_, make)| all.subcommand(make()))
}

/// One of them: to describe them all takes as long as to read what a namespace holds.
fn alone(name: &str) -> Option<Command> {
    let (_, make) = COMMANDS.iter().find(|(known, _)| *known == name)?;
    Some(program().subcommand(make()))
}

fn istio_iptables() -> Command {
    Command::new("istio-iptables")
        .about("Do what istio-iptables does: same flags, environment, rules and exit codes")
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
             Millrace or of istio-iptables is replaced, whatever its settings were; rules of \
             others are not touched. When anything fails, what was there before is put back. A \
             second run finds nothing to do.",
        )
        .after_help("Exit codes: 0 done or nothing to do; 1 a bad configuration, or something failed; 2 the command line can't be read; 4 a lock was held for longer than --wait.")
        .arg(dry_run());
    settings(in_namespace(command).arg(wait()).arg(iptables()))
}

fn dump() -> Command {
    let command = Command::new("dump")
        .about("Print rules, each with the reason it is there")
        .long_about(
            "Print the rules that a configuration gives (--from-config; no privilege is needed, \
             and nothing of the host is looked at but /etc/resolv.conf when its servers are asked \
             for), or those that a namespace holds. As text it is input for iptables-restore \
             --noflush with a comment in front of each rule; with --backend nftables, for nft -f.",
        )
        .after_help("Exit codes: 0 printed; 1 a bad configuration, or something failed; 2 the command line can't be read.")
        .arg(
            Arg::new("from-config")
                .long("from-config")
                .help("Print what the configuration gives, not what is there")
                .action(ArgAction::SetTrue),
        )
        .arg(
            Arg::new("family")
                .long("family")
                .help("Print this family only")
                .value_name("FAMILY")
                .value_parser(["ipv4", "ipv6"]),
        );
    settings(in_namespace(command)).arg(behind_dashes())
}

fn cleanup() -> Command {
    let command = Command::new("cleanup")
        .about("Remove what Millrace or istio-iptables left, and nothing else")
        .long_about(
            "Remove what Millrace or istio-iptables left, whatever its settings were: chains, \
             rules, policy routing and addresses, in both iptables and both families. Rules of \
             others keep their order and their counters.",
        )
        .after_help("Exit codes: 0 done or nothing to do; 1 something failed; 2 the command line can't be read; 4 a lock was held for longer than --wait.")
        .arg(dry_run());
    in_namespace(command).arg(wait())
}

fn status() -> Command {
    let command = Command::new("status")
        .about("Say whether a pod's traffic is captured, and by what")
        .long_about(
            "Say whether a pod's traffic is captured, and by what. With a configuration, the rules \
             are held against it; without one, against the settings that can be read back from \
             the rules themselves.",
        )
        .after_help("Exit codes: 0 captured; 1 something failed; 2 the command line can't be read; 3 not captured; 5 drifted: rules are there, but not whole, or not those of the configuration.");
    settings(in_namespace(command)).arg(behind_dashes())
}

fn preflight() -> Command {
    let command = Command::new("preflight")
        .about("Say which backends can work here, and what the others lack")
        .long_about(
            "Say what this namespace, kernel and container have: capabilities, nf_tables and its \
             expressions, iptables' own tables, programs, IPv6; which backends can work with that, \
             and what is missing for the others. Nothing is changed in the namespace; the kernel \
             may load modules that it is asked for.",
        )
        .after_help("Exit codes: 0 the backend works (without --backend: any of them); 1 it does not, or something failed; 2 the command line can't be read.")
        .arg(
            Arg::new("backend")
                .long("backend")
                .value_name("BACKEND")
                .help("The backend that has to work [default: any]")
                .value_parser(["iptables", "iptables-nft", "iptables-legacy", "nftables"]),
        );
    in_namespace(command)
}

fn in_namespace(command: Command) -> Command {
    command
        .arg(
            Arg::new("netns")
                .long("netns")
                .value_name("PATH|PID|NAME")
                .help("Network namespace: a path, a process id, or a name of `ip netns`; entering another one needs CAP_SYS_ADMIN [default: this one]"),
        )
        .arg(
            Arg::new("output")
                .long("output")
                .value_name("FORMAT")
                .help("How to print the result")
                .value_parser(["text", "json"])
                .default_value("text"),
        )
}

fn dry_run() -> Arg {
    Arg::new("dry-run")
        .long("dry-run")
        .help("Say what would be done, and touch nothing")
        .action(ArgAction::SetTrue)
}

fn wait() -> Arg {
    Arg::new("wait")
        .long("wait")
        .value_name("DURATION")
        .help("How long to wait for another run, and in whole seconds for the xtables lock")
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
    Arg::new("istio")
        .num_args(1..)
        .last(true)
        .allow_hyphen_values(true)
        .value_name("istio-iptables FLAGS")
        .help("A command line of istio-iptables as the configuration, with its environment")
        .value_parser(clap::value_parser!(OsString))
}

/// The settings, and the file they can come from.
fn settings(mut command: Command) -> Command {
    command = command
        .arg(
            Arg::new("backend")
                .long("backend")
                .value_name("BACKEND")
                .help("What carries the rules out; auto: what holds rules of an earlier run, else nftables if the kernel has it, else iptables. Only iptables-legacy needs programs")
                .value_parser(["auto", "nftables", "iptables", "iptables-nft", "iptables-legacy"])
                .default_value("auto"),
        )
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .help(
                    "Read settings from this file, YAML or JSON (`millrace schema`); flags beat it",
                )
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

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(words: &[&str]) -> Result<Own, NotTyped> {
        read(words.iter().map(OsString::from).collect())
    }

    #[test]
    fn the_commands_are_sound() {
        command().debug_assert();
    }

    #[test]
    fn settings_and_options_are_read() {
        let words =
            ["apply", "--netns", "pod", "--proxy-uid", "1", "--proxy-uid", "2", "--wait", "5s"];
        let Own::Apply(apply) = typed(&words).unwrap() else { panic!("not apply") };
        assert_eq!(apply.common.netns.as_deref(), Some("pod"));
        assert_eq!(apply.common.wait, Duration::from_secs(5));
        assert_eq!(apply.config.flags.len(), 2);
    }

    #[test]
    fn a_command_line_of_istio_iptables_is_a_configuration() {
        let words = ["dump", "--from-config", "--", "istio-iptables", "-p", "1"];
        let Own::Dump(dump) = typed(&words).unwrap() else { panic!("not dump") };
        assert_eq!(dump.config.istio.unwrap().len(), 2);
        assert!(typed(&["dump", "--", "-p", "1"]).is_err());
        assert!(typed(&["dump", "--dns", "all", "--", "istio-iptables"]).is_err());
    }

    #[test]
    fn everything_behind_istio_iptables_is_its_own() {
        let words = ["istio-iptables", "-p", "15001", "--help", "-x", "", "--dry-run=false"];
        let Own::Istio(rest) = typed(&words).unwrap() else { panic!("not istio-iptables") };
        assert_eq!(rest.len(), 6);
    }

    #[test]
    fn what_is_not_known_is_an_error() {
        assert!(matches!(typed(&["apply", "--no"]), Err(NotTyped::Bad(_))));
        assert!(matches!(typed(&["apply", "--wait", "x"]), Err(NotTyped::Bad(_))));
        assert!(matches!(typed(&["nothing"]), Err(NotTyped::Bad(_))));
        assert!(matches!(typed(&[]), Err(NotTyped::Print(_))));
        assert!(matches!(typed(&["--help"]), Err(NotTyped::Print(_))));
    }
}
