//! Tables of iptables-nft by netlink: what is there is what iptables-nft-restore would have left.

use anyhow::{Context as _, Result, ensure};
use millrace_core::plan::Preference;
use millrace_core::preflight::Backend;
use millrace_core::ruleset::{Match, Owner, Ruleset};
use millrace_core::value::Groups;
use millrace_tests::capture::{Capture as _, IptablesByNetlink, Millrace, Variant, write};
use millrace_tests::cases;
use millrace_tests::istio::golden;
use millrace_tests::netns::Namespace;
use millrace_tests::scenario::astray;
use millrace_tests::topology::{Stack, Topology};

/// A namespace whose loopback interface is up: routes of TPROXY need it.
fn pod() -> Result<Namespace> {
    let namespace = Namespace::new()?;
    namespace.run("ip", &["link", "set", "lo", "up"])?;
    Ok(namespace)
}

/// What iptables itself says is there: rules, order, policies and counters. Rules of `nat` meet each
/// connection once; how many packets of it others meet is up to the kernel, so that of those it is
/// told whether there were any.
fn saved(namespace: &Namespace) -> Result<String> {
    let mut lines = Vec::new();
    for program in ["iptables-nft-save", "ip6tables-nft-save"] {
        let text = namespace.run(program, &["-c"])?;
        let mut table = "";
        // The comments hold the time.
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            table = line.strip_prefix('*').unwrap_or(table);
            lines.push(match line.split_once("] ") {
                Some((counters, rule)) if table != "nat" => {
                    let none = if counters == "[0:0" { "no packets" } else { "packets" };
                    format!("{program} {table}: {none}: {rule}\n")
                }
                _ => format!("{program} {table}: {line}\n"),
            });
        }
    }
    Ok(lines.concat())
}

fn same(ours: &str, theirs: &str) -> Result<()> {
    let pairs = ours.lines().zip(theirs.lines());
    let lines: Vec<_> = pairs.filter(|(a, b)| a != b).map(|(a, b)| format!("{a}\n{b}")).collect();
    ensure!(ours == theirs, "by netlink and by programs:\n{}", lines.join("\n"));
    Ok(())
}

/// The same rules for programs that don't know the groups of the golden files.
fn numbered(ruleset: &Ruleset, groups: &Groups) -> Ruleset {
    let mut ruleset = ruleset.clone();
    let emissions = ruleset.v4.iter_mut().chain(ruleset.v6.iter_mut().flatten());
    for m in emissions.flat_map(|emission| &mut emission.rule.matches) {
        if let Match::Owner { owner, .. } = m
            && let Owner::Group(name) = owner
        {
            *owner = Owner::Gid(groups[name]);
        }
    }
    ruleset
}

/// Verify for every golden file, over the rules of the one before as well.
#[test]
fn golden_rules_are_those_of_iptables_nft_restore() -> Result<()> {
    let (files, groups) = golden();
    let (netlink, programs) =
        (Preference::Backend(Backend::IptablesNft), Preference::Binaries(Variant::Nft));
    let [after_others, after_others_too] = [pod()?, pod()?];
    for (path, ruleset) in files {
        let what = || path.display().to_string();
        let [ours, theirs] = [pod()?, pod()?];
        assert_eq!(write(&ours, &ruleset, netlink, &groups).with_context(what)?, 0);
        let numbered = numbered(&ruleset, &groups);
        assert!(write(&theirs, &numbered, programs, &groups).with_context(what)? > 0);
        same(&saved(&ours)?, &saved(&theirs)?).with_context(what)?;

        write(&after_others, &ruleset, netlink, &groups).with_context(what)?;
        write(&after_others_too, &numbered, programs, &groups).with_context(what)?;
        same(&saved(&after_others)?, &saved(&after_others_too)?).with_context(what)?;
    }
    Ok(())
}

/// Verify for every case of the traffic matrix that the same packets count in the same rules.
#[test]
fn counters_are_those_of_iptables_nft_restore() -> Result<()> {
    for case in cases::all() {
        let [ours, theirs] =
            [Topology::new(Stack::Dual, case.layout)?, Topology::new(Stack::Dual, case.layout)?];
        IptablesByNetlink.apply(&ours, &case.config).context(case.name)?;
        Millrace { variant: Variant::Nft }.apply(&theirs, &case.config).context(case.name)?;
        for topology in [&ours, &theirs] {
            astray(topology, case.ports, &case.probes).context(case.name)?;
        }
        same(&saved(&ours.pod)?, &saved(&theirs.pod)?).context(case.name)?;
    }
    Ok(())
}
