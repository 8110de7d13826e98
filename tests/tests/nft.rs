//! Native nftables by netlink: what is written is what nft would have made of the text, what is
//! read is what was written, and a transaction that fails leaves no trace.

#[path = "../../core/tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use millrace_core::dialect::istio::{self, NFT_LAYOUT, Raw};
use millrace_core::facts::HostFacts;
use millrace_core::nft::expr::{Expr, Verdict};
use millrace_core::nft::tables::{NativeChain, NativeTables};
use millrace_core::nft::{NftRuleset, compile, render_transaction};
use millrace_host::nft::{read, replace};
use millrace_tests::cases::{self, Config};
use millrace_tests::netns::Namespace;

const NAMES: [&str; 3] = ["istio-proxy-nat", "istio-proxy-mangle", "istio-proxy-raw"];

/// The ruleset of a command line of istio-iptables in a pod with both families.
fn ruleset(flags: &[&str], env: &[(&str, &str)]) -> Result<NftRuleset> {
    let facts = HostFacts {
        addresses: vec!["10.70.0.2".parse()?, "fd70::2".parse()?],
        resolv_conf: Some(Ok("nameserver 10.73.0.53\nnameserver fd73::53\n".to_owned())),
        ..HostFacts::default()
    };
    let env: BTreeMap<String, String> =
        env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let words = ["istio-iptables"].iter().chain(flags).filter(|word| !word.starts_with("--log"));
    let words: Vec<String> = words.map(|word| (*word).to_owned()).collect();
    let raw = Raw::new(support::read_argv(&words), env);
    let resolved = istio::resolve(&raw, &facts)?;
    Ok(compile(&resolved.policy, &NFT_LAYOUT, true))
}

/// What nft prints of a namespace, without counters and handles.
fn listed(namespace: &Namespace) -> Result<String> {
    namespace.run("nft", &["--stateless", "list", "ruleset"])
}

fn native(ruleset: &NftRuleset) -> Result<NativeTables> {
    Ok(ruleset.native(&BTreeMap::new())?)
}

/// Every ruleset of the traffic matrix, and some that it lacks.
fn rulesets() -> Result<Vec<(String, NftRuleset)>> {
    let mut all = Vec::new();
    for case in cases::all() {
        if let Config::Istio { flags, env } = &case.config {
            all.push((case.name.to_owned(), ruleset(flags, env)?));
        }
    }
    let more: [&[&str]; 3] = [
        &["-b", "80,9000:9010", "-d", "1", "-o", "1000:2000", "-i", "*", "-c", "cali+,eth0.100"],
        &["-b", "*", "-i", "10.0.0.0/9,fd00::/7,0.0.0.0/0", "-m", "TPROXY", "--drop-invalid"],
        &["-u", "1,2", "-g", "3,4", "--match-any-proxy-id", "-i", "*", "--redirect-dns"],
    ];
    for flags in more {
        all.push((flags.join(" "), ruleset(flags, &[])?));
    }
    Ok(all)
}

/// Verify for each ruleset, one after the other in the same namespace: each replaces the one
/// before.
#[test]
fn netlink_writes_what_nft_would() -> Result<()> {
    let ours = Namespace::new()?;
    for (name, ruleset) in rulesets()? {
        let theirs = Namespace::new()?;
        theirs.feed("nft", &["-f", "-"], &render_transaction(&ruleset)).context(name.clone())?;
        let wanted = native(&ruleset)?;
        ours.enter(|| replace(&NAMES, &wanted))?.with_context(|| name.clone())?;
        assert_eq!(listed(&ours)?, listed(&theirs)?, "{name}");
        let found = ours.enter(|| read(&NAMES))??;
        assert_eq!(found, wanted, "{name}");
    }
    ours.enter(|| replace(&NAMES, &NativeTables::new()))??;
    assert_eq!(listed(&ours)?, "");
    Ok(())
}

/// Verify that rules which nft wrote are read as those that Millrace would write.
#[test]
fn what_nft_wrote_is_read() -> Result<()> {
    for (name, ruleset) in rulesets()? {
        let namespace = Namespace::new()?;
        namespace.feed("nft", &["-f", "-"], &render_transaction(&ruleset))?;
        let found = namespace.enter(|| read(&NAMES))??;
        let wanted = native(&ruleset)?;
        assert_eq!(found, wanted, "{name}");
    }
    Ok(())
}

/// Verify that a transaction with a part that the kernel refuses changes nothing, and that the
/// part is named.
#[test]
fn a_transaction_that_fails_leaves_no_trace() -> Result<()> {
    let namespace = Namespace::new()?;
    let good = native(&ruleset(&["-i", "*", "-b", "*"], &[])?)?;
    namespace.run("nft", &["add", "table", "inet", "somebody-elses"])?;
    for before in [NativeTables::new(), good.clone()] {
        namespace.enter(|| replace(&NAMES, &before))??;
        let listed_before = listed(&namespace)?;
        let mut bad = good.clone();
        let (_, chains) = bad.first_mut().context("the table")?;
        let nowhere = Expr::Verdict(Verdict::Jump("nowhere".to_owned()));
        let rules = vec![Ok(vec![nowhere])];
        chains.push(("last".to_owned(), NativeChain { base: None, rules }));
        let error = namespace.enter(|| replace(&NAMES, &bad))?.unwrap_err().to_string();
        let wanted = "nf_tables refuses rule 1 of chain last of table istio-proxy-nat: ENOENT";
        assert!(error.starts_with(wanted), "{error}");
        assert_eq!(listed(&namespace)?, listed_before);
    }
    Ok(())
}
