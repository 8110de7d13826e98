//! From what was typed to a policy, for Millrace's own commands.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result, anyhow, bail};
use millrace_core::capture::{to_iptables, to_nft};
use millrace_core::desired::Desired;
use millrace_core::dialect::ambient::Ambient;
use millrace_core::dialect::appmesh::AppMesh;
use millrace_core::dialect::consul::Consul;
use millrace_core::dialect::flags::Words as _;
use millrace_core::dialect::osm::Osm;
use millrace_core::dialect::{DIALECTS, Dialect, istio, kuma, linkerd, native};
use millrace_core::facts::HostFacts;
use millrace_core::nft::{NftLayout, NftRuleset, finished};
use millrace_core::plan::Preference;
use millrace_core::policy::CapturePolicy;
use millrace_core::preflight::Backend;
use millrace_core::ruleset::Layout;
use millrace_core::ruleset::Ruleset;
use millrace_core::source::Source;
use millrace_host::file;

use crate::cli::istio::{NotTyped, read};
use crate::cli::kuma::Asked;
use crate::cli::own::Config;
use crate::cli::tool::Tool;

/// The most that is read of a configuration file, in bytes: some hundred thousand networks.
const MOST: usize = 4 * 1024 * 1024;

/// A configuration with the names its rules have.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) policy: CapturePolicy,
    pub(super) layout: &'static Layout,
    /// Native nftables, where those may be what carries the rules out.
    pub(super) nft: Option<NftRuleset>,
    pub(super) warnings: Vec<String>,
    /// What a tool's command line asks for besides what is captured.
    pub(super) asks: Vec<&'static str>,
}

/// Those of flags that say something.
pub(super) fn besides<const N: usize>(flags: [(&'static str, bool); N]) -> Vec<&'static str> {
    flags.into_iter().filter_map(|(flag, says)| says.then_some(flag)).collect()
}

impl Loaded {
    pub(super) fn ruleset(&self) -> Ruleset {
        to_iptables(&self.policy, self.layout)
    }

    /// The same policy as native nftables, in the names that its tool has for them.
    pub(super) fn in_nftables(&self) -> Option<NftRuleset> {
        let is_own = |dialect: &&Dialect| dialect.footprint.layout == self.layout;
        let dialect = DIALECTS.iter().find(is_own)?;
        Some(rules_of(&self.policy, dialect.nft_layout))
    }

    /// The same, for whoever carries it out.
    pub(super) fn desired(&self) -> Desired {
        let (policy, native) = (self.policy.clone(), self.nft.clone());
        Desired { policy, iptables: self.ruleset(), native }
    }
}

/// Read a configuration. With `writes`, rules are going to be written: names must exist.
pub(super) fn load(config: &Config, facts: &HostFacts, writes: bool) -> Result<Loaded> {
    match &config.tool {
        Some(Tool::Istio(words)) => return load_istio(words.clone(), facts),
        Some(Tool::Linkerd(words)) => return load_linkerd(words.clone()),
        Some(Tool::Kuma(words)) => return load_kuma(words.clone(), facts),
        Some(Tool::Consul(words)) => return super::consul::load(words.clone()),
        Some(Tool::Osm(words)) => return super::osm::load(words.clone()),
        Some(Tool::AppMesh(words)) => return super::appmesh::load(words.clone()),
        Some(Tool::Ambient(words)) => return super::ambient::load(words.clone(), facts),
        None => {}
    }
    let values = match &config.file {
        None => BTreeMap::new(),
        Some(path) => {
            let what = || format!("--config {}", path.display());
            let text = file::text(path, MOST).with_context(what)?;
            native::read_file(&text).with_context(what)?
        }
    };
    of_values(values, config, facts, writes)
}

/// Read the text of a configuration file, without flags.
pub(super) fn of_text(text: &str, facts: &HostFacts) -> Result<Loaded> {
    of_values(native::read_file(text)?, &Config::default(), facts, false)
}

fn of_values(
    values: BTreeMap<&'static str, String>,
    config: &Config,
    facts: &HostFacts,
    writes: bool,
) -> Result<Loaded> {
    let raw = native::Raw::new(values, config.flags.iter().cloned());
    let policy = native::resolve(&raw, facts, writes)?;
    let native =
        matches!(config.preference, Preference::Auto | Preference::Backend(Backend::Nftables));
    let nft = native.then(|| rules_of(&policy, &native::NFT_LAYOUT));
    let warnings = raw.without_effect();
    Ok(Loaded { policy, layout: &native::LAYOUT, nft, warnings, asks: Vec::new() })
}

/// A command line of istio-iptables, with its environment, for looking only.
fn load_istio(words: Vec<std::ffi::OsString>, facts: &HostFacts) -> Result<Loaded> {
    of_istio(typed(words)?, environment()?, facts)
}

/// What a command line of Linkerd's proxy-init writes.
pub(super) fn load_linkerd(words: Vec<std::ffi::OsString>) -> Result<Loaded> {
    let flags = flags(crate::cli::linkerd::read(words))?;
    let linkerd::Resolved { policy, options, warnings } =
        linkerd::resolve(&linkerd::Raw::new(flags, BTreeMap::new()))?;
    let nft = options.native.then(|| rules_of(&policy, &linkerd::NFT_LAYOUT));
    let asks = besides([
        ("--netns", options.netns.is_some()),
        ("--simulate", options.simulate),
        ("--timeout-close-wait-secs", options.close_wait.is_some()),
        ("--native-nftables", options.native),
        ("--iptables-mode or --firewall-bin-path", !options.mode_by_default),
    ]);
    Ok(Loaded { policy, layout: &linkerd::LAYOUT, nft, warnings, asks })
}

/// A command line of `kumactl install transparent-proxy`, for looking only.
fn load_kuma(words: Vec<std::ffi::OsString>, facts: &HostFacts) -> Result<Loaded> {
    let flags = match crate::cli::kuma::read(words) {
        Ok(Asked::Install(flags)) => flags,
        Ok(Asked::Uninstall(_)) => bail!("kumactl uninstall transparent-proxy is no configuration"),
        Err(NotTyped::Help(text) | NotTyped::Bad(text)) => bail!(text),
    };
    let (raw, facts) = kuma_settings(flags, facts.clone())?;
    let kuma::Resolved { policy, options, warnings } = kuma::resolve(&raw, &facts)?;
    let nft = options.native.then(|| rules_of(&policy, &kuma::NFT_LAYOUT));
    let asks = besides([
        ("--dry-run", options.dry_run),
        ("--native-nftables", options.native),
        ("--iptables-executables", options.programs != kuma::Programs::Any),
    ]);
    Ok(Loaded { policy, layout: &kuma::LAYOUT, nft, warnings, asks })
}

/// What a command line of `kumactl install transparent-proxy` says with its environment and files, and
/// the host with the resolver's configuration that is named there.
pub(super) fn kuma_settings(
    flags: Vec<(String, String)>,
    mut facts: HostFacts,
) -> Result<(kuma::Raw, HostFacts)> {
    let mut raw = kuma::Raw::new(flags, environment()?);
    let files = raw.text("config").value;
    for name in files.split(',').filter(|name| !name.is_empty()) {
        let what = || format!("--config {name}");
        let text = match name {
            "-" => file::standard_input(MOST),
            path => file::text(path.as_ref(), MOST),
        };
        let values = kuma::read_file(&text.with_context(what)?).with_context(what)?;
        raw = raw.with_file(values);
    }
    let path = raw.text("resolv-conf");
    if !matches!(path.source, Source::Default(_)) {
        let text = file::text(path.value.as_ref(), MOST);
        facts.resolv_conf = Some(text.map_err(|why| format!("{} ({})", why, path.value)));
    }
    Ok((raw, facts))
}

/// The flags of a command line of istio-iptables.
pub(super) fn typed(words: Vec<std::ffi::OsString>) -> Result<Vec<(String, String)>> {
    flags(read(words).map(|typed| typed.flags))
}

pub(super) fn flags(
    typed: Result<Vec<(String, String)>, NotTyped>,
) -> Result<Vec<(String, String)>> {
    typed.map_err(|why| match why {
        NotTyped::Help(text) | NotTyped::Bad(text) => anyhow!(text),
    })
}

/// What istio-iptables writes with these flags and variables.
pub(super) fn of_istio(
    mut flags: Vec<(String, String)>,
    env: BTreeMap<String, String>,
    facts: &HostFacts,
) -> Result<Loaded> {
    let dry_run = flags.iter().any(|(flag, value)| flag == "dry-run" && value != "false");
    // Nothing is written here, so nothing has to exist.
    flags.push(("dry-run".to_owned(), "true".to_owned()));
    let istio::Resolved { policy, options, warnings } =
        istio::resolve(&istio::Raw::new(flags, env), facts)?;
    let nft = options.native.then(|| native_rules(&policy, &options));
    let asks = besides([
        ("--dry-run", dry_run),
        ("--skip-rule-apply", options.skip_rule_apply),
        ("--run-validation", options.run_validation),
        ("--network-namespace", options.network_namespace.is_some()),
        ("--cleanup-only", options.cleanup_only),
        ("--native-nftables", options.native),
    ]);
    Ok(Loaded { policy, layout: &istio::LAYOUT, nft, warnings, asks })
}

/// The native nftables of a command line of istio-iptables, and what Millrace adds to them.
pub(super) fn native_rules(policy: &CapturePolicy, options: &istio::Options) -> NftRuleset {
    finished(reference_rules(policy, options), true)
}

/// The same as istio-iptables writes them.
pub(super) fn reference_rules(policy: &CapturePolicy, options: &istio::Options) -> NftRuleset {
    to_nft(policy, &istio::NFT_LAYOUT, !options.ipv6_as_reference)
}

/// The native nftables of a policy in the names of any other tool.
pub(super) fn rules_of(policy: &CapturePolicy, layout: &'static NftLayout) -> NftRuleset {
    finished(to_nft(policy, layout, true), true)
}

/// Whether a variable sets something for any tool.
fn is_setting(variable: &str) -> bool {
    istio::flags::is_variable(variable)
        || kuma::Kuma::is_variable(variable)
        || Consul::is_variable(variable)
        || Osm::is_variable(variable)
        || AppMesh::is_variable(variable)
        || Ambient::is_variable(variable)
}

/// The environment, as far as it is text; settings have to be.
#[expect(clippy::unnecessary_debug_formatting, reason = "bytes that are no text are shown")]
pub(super) fn environment() -> Result<BTreeMap<String, String>> {
    let mut environment = BTreeMap::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else { continue };
        match value.into_string() {
            Ok(value) => drop(environment.insert(name, value)),
            Err(value) if is_setting(&name) => {
                bail!("environment variable {name}: {value:?} is not UTF-8, as every setting is");
            }
            Err(_) => {}
        }
    }
    Ok(environment)
}
