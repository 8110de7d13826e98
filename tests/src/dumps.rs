//! What other programs print of rules, read as `explain` and `diff` read it.

use anyhow::{Context as _, Result, ensure};
use millrace_core::iptables::{Dump, render_rule};
use millrace_core::plan::Groups;
use millrace_core::sim::{SourceTable, of_dump, of_nft_json};
use millrace_core::value::Family;

use crate::netns::Namespace;

/// Read what a `-save` program printed. Every rule of it must be there, in its place, and what is
/// understood of it must have the same meaning once it is written again.
pub fn saved(text: &str) -> Result<Dump> {
    let dump = Dump::parse(text)?;
    let chains = || dump.tables.iter().flat_map(|table| &table.chains);
    let printed = text.lines().filter(|line| line.starts_with("-A ") || line.contains("] -A "));
    let mut left: Vec<&str> = printed.collect();
    for chain in chains() {
        for rule in &chain.rules {
            let line = format!("-A {} {}", chain.name, rule.text);
            let at = left.iter().position(|printed| printed.ends_with(line.trim_end()));
            left.remove(at.with_context(|| format!("{line} was not printed"))?);
            let Ok(known) = &rule.rule else { continue };
            let again = Dump::parse(&format!("*nat\n-A A {}\nCOMMIT\n", render_rule(known)))?;
            let [again] = again.tables[0].chains[0].rules.as_slice() else {
                anyhow::bail!("{line} is written as several rules")
            };
            ensure!(again.rule.as_ref() == Ok(known), "{line} is read as {known:?}");
        }
    }
    ensure!(left.is_empty(), "not read: {left:?}");
    Ok(dump)
}

/// Read what `nft -j list ruleset` printed. Every rule of it must be there, with all its parts.
pub fn listed(text: &str) -> Result<Vec<SourceTable>> {
    let listed = of_nft_json(text)?;
    let chains = listed.tables.iter().flat_map(|table| &table.chains);
    let rules = chains.map(|chain| chain.rules.len()).sum::<usize>();
    let printed = text.matches("{\"rule\": ").count();
    ensure!(rules >= printed, "{printed} rules were printed, and {rules} read:\n{text}");
    Ok(listed.tables)
}

/// The rules that a backend left in a namespace, as its own programs print them.
pub fn of_backend(namespace: &Namespace, backend: &str) -> Result<Vec<SourceTable>> {
    let Some(variant) = backend.strip_prefix("iptables-") else {
        return listed(&namespace.run("nft", &["-j", "list", "ruleset"])?);
    };
    let mut tables = Vec::new();
    for (family, program) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
        let dump = saved(&namespace.run(&format!("{program}-{variant}-save"), &["-c"])?)?;
        let mut nobody = |_, _: &str, _: &_| None;
        tables.extend(of_dump(&dump, family, backend, &Groups::new(), &mut nobody));
    }
    Ok(tables)
}
