//! The command lines of Millrace's own commands, made from the table of settings.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgMatches;
use clap::error::ErrorKind;
use millrace_core::dialect::istio::parse_duration;
use millrace_core::dialect::native::settings::SETTINGS;
use millrace_core::observed::Variant;
use millrace_core::plan::Preference;
use millrace_core::preflight::Backend;
use millrace_core::sim::graph::Format;
use millrace_core::value::Family;

use super::ask::{self, Asked, Sources, Typed};
use super::commands::{alone, command};
use super::help;
use super::node::{Ebpf, Meant, NodeBpf, ebpf, folder, node_bpf};
use super::tool::Tool;
use super::trace::{self, Trace};
use crate::paint::Color;

/// A command with everything that was typed.
#[derive(Debug)]
pub(crate) enum Own {
    Apply(Apply),
    Dump(Dump),
    Cleanup(Cleanup),
    NodeBpf(NodeBpf),
    Status(Status),
    Preflight(Preflight),
    Explain(Explain),
    Diff(Diff),
    Graph(Graph),
    Verify(Verify),
    Trace(Trace),
    Lint(Lint),
    Schema,
    /// The other half of `--run-validation`: dials as another user.
    Dial(Vec<String>),
    /// `istio-iptables` with the words behind it.
    Istio(Vec<OsString>),
    /// `linkerd` with the words behind it.
    Linkerd(Vec<OsString>),
    /// `kuma` with the words behind it.
    Kuma(Vec<OsString>),
    /// `consul` with the words behind it.
    Consul(Vec<OsString>),
    /// `osm` with the words behind it.
    Osm(Vec<OsString>),
    /// `appmesh` with the words behind it.
    AppMesh(Vec<OsString>),
    /// `ambient` with the words behind it.
    Ambient(Vec<OsString>),
}

/// The namespace that a command works in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NetnsTarget {
    /// The one that the program was started in.
    Here,
    /// By path, process id or name.
    Netns(String),
    /// That of the process with this id (`--pid`).
    Process(u32),
    /// That of a pod of this node.
    Pod {
        /// `NAME`, `NAMESPACE/NAME`, or the beginning of its sandbox's id.
        name: String,
        /// Where the container runtime listens.
        endpoint: PathBuf,
    },
}

/// Options of every command that looks at a namespace.
#[derive(Clone, Debug)]
pub(crate) struct Common {
    pub(crate) place: NetnsTarget,
    pub(crate) json: bool,
    pub(crate) color: Color,
    pub(crate) wait: Duration,
    pub(crate) dry_run: bool,
}

/// Where a configuration comes from.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    pub(crate) file: Option<PathBuf>,
    pub(crate) flags: Vec<(String, String)>,
    /// A command line of a mesh's tool instead.
    pub(crate) tool: Option<Tool>,
    /// Backend that writes the rules.
    pub(crate) preference: Preference,
    /// Whether eBPF does, with a command that can do it.
    pub(crate) ebpf: Option<Ebpf>,
}

impl Default for Config {
    fn default() -> Self {
        Self { file: None, flags: Vec::new(), tool: None, preference: Preference::Auto, ebpf: None }
    }
}

impl Config {
    /// Whether the backend is left open.
    pub(crate) fn is_open(&self) -> bool {
        self.preference == Preference::Auto && self.tool.is_none()
    }

    /// Whether eBPF is to carry it out.
    pub(crate) fn by_ebpf(&self) -> bool {
        self.ebpf.as_ref().is_some_and(|ebpf| ebpf.meant == Meant::Yes)
    }

    /// Whether any configuration was given.
    pub(crate) const fn is_given(&self) -> bool {
        self.file.is_some()
            || !self.flags.is_empty()
            || self.tool.is_some()
            || !matches!(self.preference, Preference::Auto)
    }

    /// Whether settings were given, and not only a backend.
    pub(crate) const fn has_settings(&self) -> bool {
        self.file.is_some() || !self.flags.is_empty() || self.tool.is_some()
    }
}

#[derive(Debug)]
pub(crate) struct Apply {
    pub(crate) common: Common,
    pub(crate) config: Config,
}

#[derive(Debug)]
pub(crate) struct Cleanup {
    pub(crate) common: Common,
    /// Whether a pod leaves eBPF capture.
    pub(crate) ebpf: Option<Ebpf>,
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
pub(crate) struct Verify {
    pub(crate) common: Common,
    pub(crate) config: Config,
    /// A pod's manifest as the configuration.
    pub(crate) manifest: Option<PathBuf>,
    /// How long a connection may take.
    pub(crate) patience: Duration,
}

#[derive(Debug)]
pub(crate) struct Preflight {
    pub(crate) common: Common,
    /// The backend that has to work; any of them without.
    pub(crate) backend: Option<String>,
    /// Where the pins of eBPF capture are.
    pub(crate) bpffs: PathBuf,
    /// What is to be captured.
    pub(crate) config: Config,
}

#[derive(Debug)]
pub(crate) struct Explain {
    pub(crate) common: Common,
    pub(crate) config: Config,
    pub(crate) sources: Sources,
    pub(crate) asked: Asked,
}

#[derive(Debug)]
pub(crate) struct Diff {
    pub(crate) json: bool,
    pub(crate) color: Color,
    pub(crate) sources: Sources,
    pub(crate) before: String,
    pub(crate) after: String,
}

#[derive(Debug)]
pub(crate) struct Lint {
    /// Manifests; `-` is standard input.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) json: bool,
}

#[derive(Debug)]
pub(crate) struct Graph {
    pub(crate) common: Common,
    pub(crate) config: Config,
    pub(crate) sources: Sources,
    pub(crate) format: Format,
    pub(crate) family: Option<Family>,
    pub(crate) asked: Option<Typed>,
}

/// Why the command line gives no command.
#[derive(Debug)]
pub(crate) enum NotTyped {
    /// Help or the version was asked for; this is it.
    Print(String),
    /// It can't be read, and why: what is printed before the exit.
    Bad(String),
}

/// Read the words behind the program's name.
pub(crate) fn read(words: Vec<OsString>) -> Result<Own, NotTyped> {
    let words = help::plain(words).map_err(NotTyped::Print)?;
    let known = words.first().and_then(|word| alone(word.to_str()?)).unwrap_or_else(command);
    let matches = known.try_get_matches_from(words).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => NotTyped::Print(error.to_string()),
        _ => NotTyped::Bad(error.to_string().trim_end().to_owned()),
    })?;
    let Some((name, m)) = matches.subcommand() else {
        return Err(NotTyped::Print(command().render_help().to_string()));
    };
    Ok(match name {
        "apply" => {
            let config = config(m)?;
            if config.tool.is_some() && !config.by_ebpf() {
                return Err(NotTyped::Bad(
                    "a command line of a mesh's tool behind -- needs --backend ebpf; to write \
                     rules, call the tool's own command, such as millrace linkerd"
                        .to_owned(),
                ));
            }
            Own::Apply(Apply { common: common(m)?, config })
        }
        "dump" => Own::Dump(Dump {
            common: common(m)?,
            config: config(m)?,
            from_config: m.get_flag("from-config"),
            family: family(m),
        }),
        "cleanup" => Own::Cleanup(Cleanup { common: common(m)?, ebpf: ebpf(m) }),
        "node-bpf" => Own::NodeBpf(node_bpf(m)?),
        "status" => Own::Status(Status { common: common(m)?, config: config(m)? }),
        "preflight" => Own::Preflight(Preflight {
            common: common(m)?,
            backend: m.get_one::<String>("backend").cloned(),
            bpffs: folder(m),
            // Which backend has to work is no choice of one.
            config: configured(m, Preference::Auto)?,
        }),
        "explain" => Own::Explain(Explain {
            common: common(m)?,
            config: config(m)?,
            sources: ask::sources(m),
            asked: ask::asked(m)?,
        }),
        "graph" => Own::Graph(Graph {
            common: common(m)?,
            config: config(m)?,
            sources: ask::sources(m),
            format: match texts(m, "format").concat().as_str() {
                "dot" => Format::Dot,
                "svg" => Format::Svg,
                _ => Format::Mermaid,
            },
            family: family(m),
            asked: ask::asked_for(m)?,
        }),
        "diff" => {
            let [before, after] = m.get_one::<[&'static str; 2]>("between").map_or_else(
                || ["before", "after"].map(|name| texts(m, name).join(" ")),
                |usual| usual.map(str::to_owned),
            );
            let Common { json, color, .. } = common(m)?;
            Own::Diff(Diff { json, color, sources: ask::sources(m), before, after })
        }
        "verify" => Own::Verify(Verify {
            common: common(m)?,
            config: config(m)?,
            manifest: m.get_one::<PathBuf>("manifest").cloned(),
            patience: duration(m, "timeout", "1s")?,
        }),
        "trace" => Own::Trace(trace::trace(m, common(m)?)?),
        "lint" => Own::Lint(Lint {
            files: m.get_many::<PathBuf>("file").into_iter().flatten().cloned().collect(),
            json: m.get_one::<String>("output").is_some_and(|o| o == "json"),
        }),
        "schema" => Own::Schema,
        "dial" => Own::Dial(texts(m, "words")),
        "linkerd" => Own::Linkerd(behind(m)),
        "kuma" => Own::Kuma(behind(m)),
        "consul" => Own::Consul(behind(m)),
        "osm" => Own::Osm(behind(m)),
        "appmesh" => Own::AppMesh(behind(m)),
        "ambient" => Own::Ambient(behind(m)),
        _ => Own::Istio(behind(m)),
    })
}

/// The configuration of a whole command line in one word, `apply FLAGS` or that of a mesh's tool; none
/// if it is no such thing.
pub(crate) fn configuration(line: &str) -> Option<Result<Config, String>> {
    // `''` is an empty word, as a shell has it.
    let words = line.split_ascii_whitespace().map(|word| word.trim_matches(['\'', '"']));
    let words: Vec<OsString> = words.map(OsString::from).collect();
    if let Some(tool) = Tool::of(&words) {
        return Some(Ok(Config { tool: Some(tool), ..Config::default() }));
    }
    (words.first()? == "apply").then(|| match read(words) {
        Ok(Own::Apply(apply)) => Ok(apply.config),
        Ok(_) => Err("this is no configuration".to_owned()),
        Err(NotTyped::Print(text) | NotTyped::Bad(text)) => Err(text),
    })
}

fn behind(m: &ArgMatches) -> Vec<OsString> {
    m.get_many::<OsString>("words").into_iter().flatten().cloned().collect()
}

fn family(m: &ArgMatches) -> Option<Family> {
    m.get_one::<String>("family").map(|f| match f.as_str() {
        "ipv6" => Family::V6,
        _ => Family::V4,
    })
}

fn texts(m: &ArgMatches, name: &str) -> Vec<String> {
    m.get_many::<String>(name).into_iter().flatten().cloned().collect()
}

fn common(m: &ArgMatches) -> Result<Common, NotTyped> {
    let text = |name: &str| m.try_get_one::<String>(name).ok().flatten();
    let wait = duration(m, "wait", "30s")?;
    Ok(Common {
        place: netns_target(m),
        json: text("output").is_some_and(|o| o == "json"),
        color: text("color").map_or(Color::Auto, |when| Color::named(when)),
        wait,
        dry_run: m.try_get_one::<bool>("dry-run").ok().flatten().copied().unwrap_or(false),
    })
}

pub(super) fn duration(m: &ArgMatches, flag: &str, default: &str) -> Result<Duration, NotTyped> {
    let text = m.try_get_one::<String>(flag).ok().flatten().map_or(default, String::as_str);
    parse_duration(text).map_err(|e| NotTyped::Bad(format!("--{flag} {text:?}: {e}")))
}

/// Where the container runtime listens.
pub(super) fn endpoint(m: &ArgMatches) -> PathBuf {
    let typed = m.try_get_one::<String>("runtime-endpoint").ok().flatten();
    let typed = typed.map(String::as_str).unwrap_or_default();
    typed.strip_prefix("unix://").unwrap_or(typed).into()
}

fn netns_target(m: &ArgMatches) -> NetnsTarget {
    let text = |name: &str| m.try_get_one::<String>(name).ok().flatten().cloned();
    if let Some(name) = text("pod") {
        return NetnsTarget::Pod { name, endpoint: endpoint(m) };
    }
    let process = m.try_get_one::<u32>("pid").ok().flatten().copied();
    process
        .map(NetnsTarget::Process)
        .or_else(|| text("netns").map(NetnsTarget::Netns))
        .unwrap_or(NetnsTarget::Here)
}

fn flags(m: &ArgMatches) -> Vec<(String, String)> {
    let setting =
        |flag: &'static str| texts(m, flag).into_iter().map(move |value| (flag.to_owned(), value));
    SETTINGS.iter().flat_map(|s| setting(s.flag)).collect()
}

fn file(m: &ArgMatches) -> Option<PathBuf> {
    m.get_one::<PathBuf>("config").cloned()
}

fn config(m: &ArgMatches) -> Result<Config, NotTyped> {
    Ok(Config { ebpf: ebpf(m), ..configured(m, preference(m)?)? })
}

/// What is to be captured.
fn configured(m: &ArgMatches, preference: Preference) -> Result<Config, NotTyped> {
    let (flags, file) = (flags(m), file(m));
    let words = m.try_get_many::<OsString>("tool").ok().flatten();
    let words: Option<Vec<OsString>> = words.map(|words| words.cloned().collect());
    let tool = words.as_deref().map(Tool::of);
    if let Some(None) = tool {
        return Err(NotTyped::Bad(
            "behind -- comes a command line of a mesh's tool (istio-iptables, linkerd, kumactl, \
             consul, osm, appmesh, ambient rules): -- istio-iptables -p 15001 ..."
                .to_owned(),
        ));
    }
    let tool = tool.flatten();
    if let Some((name, chooses)) = tool.as_ref().map(Tool::says) {
        if file.is_some() || !flags.is_empty() {
            return Err(NotTyped::Bad(format!(
                "a configuration comes from Millrace's own flags and file or from a command line of \
                 {name} behind --, not from both"
            )));
        }
        if preference != Preference::Auto {
            return Err(NotTyped::Bad(format!(
                "a command line of {name} says itself which backend is used: {chooses}"
            )));
        }
    }
    Ok(Config { file, flags, tool, preference, ebpf: None })
}

/// Backend that writes the rules.
fn preference(m: &ArgMatches) -> Result<Preference, NotTyped> {
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
        | ("iptables-legacy", Some(variant @ Variant::Legacy)) => Preference::Binaries(variant),
        (_, Some(variant)) => {
            return Err(NotTyped::Bad(format!(
                "--iptables {} goes with --backend iptables or iptables-{0}, not with {backend}",
                variant.as_str()
            )));
        }
        ("iptables", None) => Preference::Iptables,
        (name, None) => {
            let rules = Backend::OF_RULES.into_iter().find(|backend| backend.as_str() == name);
            rules.map_or(Preference::Auto, Preference::Backend)
        }
    })
}

#[cfg(test)]
mod tests;
