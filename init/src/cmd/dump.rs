//! `millrace dump`

use anyhow::{Result, bail};
use millrace_core::dialect::FOOTPRINTS;
use millrace_core::facts::HostFacts;
use millrace_core::nft::{NftRuleset, render_transaction, render_with_reasons, rule_text};
use millrace_core::observed::Observed;
use millrace_core::plan::PASSTHROUGH_LINK;
use millrace_core::report::{
    FamilyReport, dump_text, of_dump, of_ruleset, restore_text, routing_text,
};
use millrace_core::ruleset::Home;
use millrace_core::status::{read_back, read_native_back};
use millrace_core::value::Family;
use millrace_host::exec;
use millrace_host::facts::resolv_conf;
use millrace_host::observe::Depth;
use serde_json::{Value, json};

use super::ebpf::instead_of_rules;
use super::output::{print_for_programs, print_json, warn};
use super::{config, namespace};
use crate::cli::own::Dump;
use crate::exit::Exit;

pub(crate) fn dump(dump: &Dump) -> Result<Exit> {
    if dump.from_config {
        return from_config(dump);
    }
    if dump.config.is_given() {
        bail!("a configuration goes with --from-config; without it, the namespace is dumped");
    }
    let (mut session, facts) = namespace::open(&dump.common.place)?;
    let options = exec::Options::default();
    let mut observed = session.observe(&options, Depth::Fast)?;
    // A rule that somebody else wrote has a text that iptables' own program may know.
    if observed.holdings.iter().any(|holding| holding.dump.is_unclear()) {
        observed = session.observe(&options, Depth::Verbatim).unwrap_or(observed);
    }
    session.take_warnings().iter().for_each(|w| warn(w));
    observed.asleep().for_each(|text| warn(&text));
    if let Some(why) = instead_of_rules() {
        warn(&why);
    }
    from_namespace(dump, &observed, &facts)
}

/// Whether a family was asked for.
fn wants(dump: &Dump, family: Family) -> bool {
    dump.family.is_none_or(|f| f == family)
}

/// The rules of a configuration. Nothing of the host is looked at but the resolver's
/// configuration: the rules are those of a pod with an address of each family, or of IPv4 alone.
fn from_config(dump: &Dump) -> Result<Exit> {
    let mut addresses = vec!["192.0.2.1".parse()?];
    if wants(dump, Family::V6) {
        addresses.push("2001:db8::1".parse()?);
    }
    let facts = HostFacts { addresses, resolv_conf: Some(resolv_conf()), ..HostFacts::default() };
    let loaded = config::load(&dump.config, &facts, false)?;
    loaded.warnings.iter().for_each(|w| warn(w));
    if let Some(nft) = loaded.nft.as_ref().filter(|_| !dump.config.is_open()) {
        if dump.common.json {
            print_json(
                &json!({ "source": "configuration", "nftables": nftables(Some(nft), &[]) }),
            )?;
        } else {
            print_for_programs(&render_with_reasons(nft))?;
        }
        return Ok(Exit::Ok);
    }
    let ruleset = loaded.ruleset();
    if dump.common.json {
        let families: Vec<FamilyReport> =
            of_ruleset(&ruleset).into_iter().filter(|report| wants(dump, report.family)).collect();
        let routing = json!({
            "tproxy": ruleset.routing.marked.filter(|route| route.transparent).map(|route| {
                json!({ "mark": route.mark.value, "table": route.table.get() })
            }),
            "marked": ruleset.routing.marked.filter(|route| !route.transparent).map(|route| {
                json!({
                    "mark": route.mark.value, "mask": route.mark.mask, "table": route.table.get(),
                    "priority": route.priority,
                })
            }),
            "passthroughAddress": ruleset.routing.passthrough_v6.is_some(),
            "passthroughInterface": ruleset.routing.passthrough_v6.map(|home| match home {
                Home::Loopback => "lo",
                Home::Own => PASSTHROUGH_LINK,
            }),
        });
        print_json(&json!({
            "source": "configuration",
            "families": families,
            "routing": routing,
            "nftables": ruleset.guard.as_ref().map(|guard| nftables(Some(guard), &[])),
        }))?;
    } else {
        let mut text = String::new();
        for family in ruleset.families().filter(|f| wants(dump, *f)) {
            text.push_str(&restore_text(&ruleset, family));
        }
        text.push_str(&routing_text(&ruleset));
        if let Some(guard) = &ruleset.guard {
            text.push_str("# a table of nftables beside them\n");
            for line in render_transaction(guard).lines() {
                text.push_str(&format!("# nft {line}\n"));
            }
        }
        print_for_programs(&text)?;
    }
    Ok(Exit::Ok)
}

/// The rules of ours that a namespace holds. The reasons are those of the settings that can be
/// read back from the rules.
fn from_namespace(dump: &Dump, observed: &Observed, facts: &HostFacts) -> Result<Exit> {
    let found = read_back(observed);
    let mut families = Vec::new();
    for holding in observed.holdings.iter().filter(|h| wants(dump, h.family)) {
        let explained =
            found.iter().find(|f| f.variant == holding.variant).and_then(|f| f.ruleset.as_ref());
        let chains = of_dump(&holding.dump, holding.family, FOOTPRINTS, explained, &facts.groups);
        if !chains.is_empty() {
            let iptables = Some(holding.variant.to_string());
            families.push(FamilyReport { family: holding.family, iptables, chains });
        }
    }
    let native: Vec<&str> = observed.native.iter().map(|(name, _)| name.as_str()).collect();
    let rules = read_native_back(observed).map(|found| found.ruleset);
    let rules = rules.or_else(|| {
        let guard = found.iter().find_map(|f| f.ruleset.as_ref()?.guard.clone())?;
        let as_there = guard.native(&facts.groups).is_ok_and(|tables| tables == observed.native);
        as_there.then_some(guard)
    });
    if dump.common.json {
        let native = nftables(rules.as_ref(), &native);
        print_json(&json!({ "source": "namespace", "families": families, "nftables": native }))?;
    } else {
        let mut text: String = families.iter().map(dump_text).collect();
        match rules {
            Some(rules) => text.push_str(&render_with_reasons(&rules)),
            None => {
                for name in native {
                    text.push_str(&format!(
                        "# no settings give just the rules of table inet {name}; \
                         `nft list table inet {name}` prints them\n"
                    ));
                }
            }
        }
        print_for_programs(&text)?;
    }
    Ok(Exit::Ok)
}

/// Native nftables: the names of the tables, their text, and each rule with its reason, where the
/// settings are known.
fn nftables(rules: Option<&NftRuleset>, tables: &[&str]) -> Value {
    let Some(rules) = rules else {
        return json!({ "tables": tables });
    };
    let mut listed = Vec::new();
    for table in rules.tables() {
        for chain in rules.chains(table) {
            for emission in &chain.rules {
                listed.push(json!({
                    "table": rules.layout.table(table),
                    "chain": rules.layout.chain(table, &chain.chain),
                    "rule": rule_text(rules.layout, table, &emission.rule),
                    "reason": emission.reason,
                }));
            }
        }
    }
    let mut names: Vec<&str> =
        rules.tables().filter_map(|table| rules.layout.table(table)).collect();
    names.dedup();
    json!({ "tables": names, "text": render_transaction(rules), "rules": listed })
}
