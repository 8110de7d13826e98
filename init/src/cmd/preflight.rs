//! `millrace preflight`

use anyhow::Result;
use millrace_core::preflight::{Backend, verdicts};
use millrace_host::ebpf::features;
use millrace_host::preflight::look;
use serde_json::json;

use super::namespace;
use super::output::{print, print_json};
use crate::cli::own::Preflight;
use crate::exit::Exit;

pub(crate) fn preflight(preflight: &Preflight) -> Result<Exit> {
    namespace::enter(&preflight.common.place)?;
    let mut findings = look();
    findings.extend(features(&preflight.bpffs));
    let verdicts = verdicts(&findings);
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
            let works = if verdict.works { "works" } else { "does not work" };
            text.push_str(&format!("{} {works}\n", verdict.backend.as_str()));
            for missing in &verdict.missing {
                text.push_str(&format!("    {missing}\n"));
            }
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
