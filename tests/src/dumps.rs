//! What other programs print of rules, read as `explain` and `diff` read it.

use std::collections::HashMap;

use anyhow::{Context as _, Result, ensure};
use millrace_core::iptables::{Dump, render_rule};
use millrace_core::sim::{SourceTable, of_dump, of_nft_json};
use millrace_core::value::{Family, Groups};

use crate::netns::Namespace;

/// What nft is asked for a list.
pub const LIST: [&str; 3] = ["-j", "list", "ruleset"];

/// Hold what a program printed against the readers of `explain`, where it printed rules.
pub fn check(program: &str, words: &[&str], printed: &str) -> Result<()> {
    let what = || format!("what {program} printed is not read:\n{printed}");
    if program.ends_with("-save") {
        saved(printed).with_context(what)?;
    } else if program == "nft" && words == LIST {
        listed(printed).with_context(what)?;
    }
    Ok(())
}

/// Read what a `-save` program printed. Every rule of it must be there, in its place, and what is
/// understood of it must have the same meaning once it is written again.
pub fn saved(text: &str) -> Result<Dump> {
    let dump = Dump::parse(text)?;
    let chains = || dump.tables.iter().flat_map(|table| &table.chains);
    let mut left: HashMap<&str, usize> = HashMap::new();
    for line in text.lines() {
        let line = line.split_once("] ").filter(|_| line.starts_with('[')).map_or(line, |(_, l)| l);
        if line.starts_with("-A ") {
            *left.entry(line.trim_end()).or_default() += 1;
        }
    }
    for chain in chains() {
        for rule in &chain.rules {
            let line = format!("-A {} {}", chain.name, rule.text);
            let printed = left.get_mut(line.trim_end()).filter(|count| **count > 0);
            *printed.with_context(|| format!("{line} was not printed"))? -= 1;
            let Ok(known) = &rule.rule else { continue };
            let again = Dump::parse(&format!("*nat\n-A A {}\nCOMMIT\n", render_rule(known)))?;
            let [again] = again.tables[0].chains[0].rules.as_slice() else {
                anyhow::bail!("{line} is written as several rules")
            };
            ensure!(again.rule.as_ref() == Ok(known), "{line} is read as {known:?}");
        }
    }
    left.retain(|_, count| *count > 0);
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
        return listed(&namespace.run("nft", &LIST)?);
    };
    let mut tables = Vec::new();
    for (family, program) in [(Family::V4, "iptables"), (Family::V6, "ip6tables")] {
        let dump = saved(&namespace.run(&format!("{program}-{variant}-save"), &["-c"])?)?;
        let mut nobody = |_, _: &str, _: &_| None;
        tables.extend(of_dump(&dump, family, backend, &Groups::new(), &mut nobody));
    }
    Ok(tables)
}
