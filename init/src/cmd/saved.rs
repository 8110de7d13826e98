//! Rules that somebody saved, and what is wrong with them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context as _, Error, Result, bail};
use millrace_core::infer::of_saved;
use millrace_core::iptables::Dump;
use millrace_core::observed::{Holding, Observed, Variant};
use millrace_core::sim::{DEEPEST, Namespace, Program, loadable, of_dump, of_nft_json};
use millrace_core::status::{read_back, read_native_back};
use millrace_core::value::{Family, Groups};
use millrace_host::file;

use super::bounds;
use super::output::warn;
use super::rules::{Rules, explain_native, explained_tables};

/// The text of a file, and how it was named.
pub(super) struct Saved {
    pub(super) what: String,
    pub(super) text: String,
}

pub(super) fn of_saved_rules(files: &[Saved], addresses: &[IpAddr]) -> Result<Rules> {
    let mut tables = Vec::new();
    let mut observed = Observed::default();
    let (mut names, mut arp) = (BTreeSet::new(), Vec::new());
    for Saved { what: named, text } in files {
        let what = || named.clone();
        if is_json(text) {
            let listed = of_nft_json(text).with_context(what)?;
            let left_out =
                listed.left_out.iter().map(|w| format!("{w}: no packet is walked there"));
            left_out.for_each(|text| warn(&text));
            for table in &listed.names {
                if !names.insert(table.clone()) {
                    bail!("{named}: {table} is in a file before it already");
                }
            }
            loadable(&listed.tables).map_err(Error::msg).with_context(what)?;
            tables.extend(listed.tables);
            let asks =
                |table: &String| warn(&format!("{table}: whether it lets ARP past is not told"));
            listed.arp.iter().for_each(asks);
            arp.extend(listed.arp);
            continue;
        }
        for part in Dump::parse_all(text).with_context(what)? {
            // Comments alone are no rules of anybody.
            if part.dump.tables.is_empty() {
                continue;
            }
            let family = match part.family {
                Some(family) => family,
                None => family_of(&part.dump, named)?,
            };
            let read = of_dump(&part.dump, family, "iptables", &Groups::new(), &mut |_, _, _| None);
            loadable(&read).map_err(Error::msg).with_context(what)?;
            let variant = Variant::Nft;
            observed.holdings.push(Holding { variant, family, dump: part.dump });
        }
    }
    beside_legacy(files, &observed)?;
    // nftables' listing has the rules of both families, whoever wrote them.
    let listed = files.iter().any(|file| is_json(&file.text));
    let given = |family: &Family| listed || observed.holdings.iter().any(|h| h.family == *family);
    let untold: Vec<Family> = Family::ALL.into_iter().filter(|family| !given(family)).collect();
    observed.native = of_saved(&tables);
    let native = read_native_back(&observed).map(|found| found.ruleset);
    if let Some(native) = &native {
        explain_native(&mut tables, native);
    }
    let explained = read_back(&observed).into_iter().find_map(|found| found.ruleset);
    // What was read is not needed beside what it means.
    for holding in std::mem::take(&mut observed.holdings) {
        tables.extend(explained_tables(&holding, "iptables", explained.as_ref(), &Groups::new()));
    }
    let routing = explained.map(|ruleset| ruleset.routing);
    let routing = routing.or_else(|| native.map(|native| native.routing)).unwrap_or_default();
    let namespace = Namespace::pod(addresses, &routing);
    let program = Program::new(tables).without(untold).asking_arp(arp).nested_to(DEEPEST);
    Ok(Rules { program, namespace, live: false, ebpf: None })
}

/// Refuse rules of which their program says that there are others beside them, unless those are given too.
fn beside_legacy(files: &[Saved], observed: &Observed) -> Result<()> {
    for Saved { what, text } in files {
        let says =
            |line: &str| line.starts_with("# Warning: ") && line.contains("-legacy tables present");
        let Some(line) = text.lines().map(str::trim).find(|line| says(line)) else { continue };
        let family = if line.contains("ip6tables") { Family::V6 } else { Family::V4 };
        if observed.holdings.iter().filter(|holding| holding.family == family).count() < 2 {
            bail!("{what}: {line}: give what that prints as well");
        }
    }
    Ok(())
}

/// What is said of families of which nothing is told, since no rules of them were given.
pub(super) fn untold(families: &[Family]) -> impl Iterator<Item = String> {
    families.iter().map(|family| {
        let program = match family {
            Family::V4 => "iptables-save",
            Family::V6 => "ip6tables-save",
        };
        format!("nothing is told of {family}: no rules of it were given, as {program} prints them")
    })
}

/// A file of rules. A comment of a rule may hold any bytes; elsewhere what stands for one that is no
/// UTF-8 is refused with its line.
pub(super) fn saved(path: &Path) -> Result<String> {
    let bytes = file::bytes(path, bounds::MOST)?;
    let text = String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned());
    if is_json(&text) {
        bounds::json(&text)?;
    } else {
        bounds::lines(&text)?;
    }
    Ok(text)
}

/// Whether a file of rules is what `nft -j list ruleset` prints, or is meant to be.
pub(super) fn is_json(text: &str) -> bool {
    text.trim_start().starts_with('{')
}

/// The family of a dump without a line that says what made it: its addresses say it.
fn family_of(dump: &Dump, what: &str) -> Result<Family> {
    let rules = dump.tables.iter().flat_map(|table| &table.chains).flat_map(|chain| &chain.rules);
    let words = rules.flat_map(|rule| rule.text.split_ascii_whitespace());
    let address = |word: &str| word.split('/').next()?.parse().ok().map(Family::of);
    let mut found: Vec<Family> = words.filter_map(address).collect();
    found.sort();
    found.dedup();
    match found[..] {
        [family] => Ok(family),
        [] => {
            warn(&format!("{what}: nothing in it says a family: it is taken for IPv4"));
            Ok(Family::V4)
        }
        _ => bail!(
            "{what}: it has addresses of both families; a dump is of one: save each by itself"
        ),
    }
}
