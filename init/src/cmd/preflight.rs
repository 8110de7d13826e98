//! `millrace preflight`

use anyhow::Result;
use millrace_core::dialect::native;
use millrace_core::facts::HostFacts;
use millrace_core::nft::needs;
use millrace_core::policy::CapturePolicy;
use millrace_core::preflight::{Backend, Support, Use, verdicts};
use millrace_core::value::Groups;
use millrace_host::ebpf::features;
use millrace_host::facts::resolv_conf;
use millrace_host::preflight::look;
use serde_json::json;

use super::config::{Loaded, load, rules_of};
use super::namespace;
use super::output::{print, print_json, warn};
use crate::cli::own::{Config, Preflight};
use crate::exit::Exit;

pub(crate) fn preflight(preflight: &Preflight) -> Result<Exit> {
    namespace::enter(&preflight.common.place)?;
    let mut findings = look();
    findings.extend(features(&preflight.bpffs));
    let asked = takes("", &preflight.config, None)?;
    // Who says what is to be captured wants to know of that alone.
    let Config { flags, file, tool, .. } = &preflight.config;
    let others = if flags.is_empty() && file.is_none() && tool.is_none() {
        let settings = OTHERS.iter();
        settings
            .map(|(name, flag)| takes(name, &preflight.config, Some(*flag)))
            .collect::<Result<Vec<_>>>()?
    } else {
        Vec::new()
    };
    let verdicts = verdicts(&findings, &asked, &others);
    if preflight.common.json {
        print_json(&json!({ "findings": findings, "backends": verdicts }))?;
    } else {
        let mut text = String::new();
        for finding in &findings {
            let there = if finding.there { "yes" } else { "no " };
            text.push_str(&format!("{there} {}", finding.what));
            if !finding.remedy.is_empty() {
                text.push_str(&format!(" ({})", finding.remedy));
            }
            text.push('\n');
        }
        for verdict in &verdicts {
            text.push_str(&reported(verdict));
        }
        print(&text)?;
    }
    let wanted = |backend: Backend| {
        preflight.backend.as_deref().is_none_or(|name| {
            let iptables = matches!(backend, Backend::IptablesNft | Backend::IptablesLegacy);
            backend.as_str() == name || name == "iptables" && iptables
        })
    };
    let good = verdicts.iter().any(|verdict| verdict.works && wanted(verdict.backend));
    Ok(if good { Exit::Ok } else { Exit::Failed })
}

/// Settings that take more of a kernel than the default does, and how they are said.
const OTHERS: [(&str, (&str, &str)); 3] = [
    ("--mode tproxy", ("mode", "tproxy")),
    ("--dns all", ("dns", "all")),
    ("--drop-invalid", ("drop-invalid", "true")),
];

/// What a configuration takes, with another setting or as it is. It is asked for a pod with an address of
/// each family; what the namespace has of them is no matter of what the kernel can.
fn takes(setting: &'static str, config: &Config, other: Option<(&str, &str)>) -> Result<Use> {
    let facts = HostFacts {
        addresses: vec!["192.0.2.1".parse()?, "2001:db8::1".parse()?],
        resolv_conf: Some(resolv_conf()),
        ..HostFacts::default()
    };
    let mut config = config.clone();
    config.flags.extend(other.map(|(flag, value)| (flag.to_owned(), value.to_owned())));
    let loaded = load(&config, &facts, false)?;
    for warning in &loaded.warnings {
        warn(warning);
    }
    let groups = Groups::new();
    let iptables = needs::of_ruleset(&loaded.ruleset(), &groups)?;
    let Loaded { policy, nft, .. } = loaded;
    let native = nft.unwrap_or_else(|| rules_of(&policy, &native::NFT_LAYOUT)).native(&groups)?;
    let made_of =
        vec![(Backend::Nftables, needs::of_native(&native)), (Backend::IptablesNft, iptables)];
    // That eBPF can't do it anywhere is no news about this kernel.
    let refused = if other.is_some() { Vec::new() } else { refused(&policy, &groups) };
    Ok(Use { setting, made_of, refused })
}

/// eBPF can't carry all out, whatever the kernel has.
fn refused(policy: &CapturePolicy, groups: &Groups) -> Vec<(Backend, String)> {
    let compiled = millrace_core::ebpf::compile(policy, groups);
    compiled
        .err()
        .map(|refusals| (Backend::Ebpf, refusals.to_string().replace('\n', "\n    ")))
        .into_iter()
        .collect()
}

fn reported(verdict: &Support) -> String {
    let name = verdict.backend.as_str();
    let works = if verdict.first.is_empty() { "works" } else { "will work" };
    let mut text = match (verdict.works, verdict.without.is_empty()) {
        (true, true) => format!("{name} {works}\n"),
        (true, false) => {
            let settings: Vec<&str> = verdict.without.iter().map(|w| w.setting).collect();
            format!("{name} {works}, but not with {}\n", settings.join(" or "))
        }
        (false, _) => format!("{name} does not work\n"),
    };
    for first in &verdict.first {
        text.push_str(&format!("    first, {first}\n"));
    }
    for missing in &verdict.missing {
        text.push_str(&format!("    {missing}\n"));
    }
    for without in &verdict.without {
        for missing in &without.missing {
            text.push_str(&format!("    {}: {missing}\n", without.setting));
        }
    }
    text
}
