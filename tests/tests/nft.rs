//! Native nftables by netlink: what is written is what nft would have made of the text, what is
//! read is what was written, and a transaction that fails leaves no trace.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use millrace_core::capture::to_nft;
use millrace_core::dialect::istio::{self, NFT_LAYOUT, Raw};
use millrace_core::dialect::native;
use millrace_core::facts::HostFacts;
use millrace_core::iptables::Extension;
use millrace_core::nft::expr::{Expr, NftVerdict};
use millrace_core::nft::tables::{Base, NativeChain, NativeTables};
use millrace_core::nft::xtables::XtRule;
use millrace_core::nft::{NftRuleset, Statement, guarded, merge, render_transaction};
use millrace_core::ruleset::{Chain, ChainName};
use millrace_core::value::Family;
use millrace_host::nft::{
    Changes, Listing, NftError, ReadScope, TableFamily, change, look, rehearse,
};
use millrace_tests::capture::{millrace, ran};
use millrace_tests::cases::{self, Config, app, outside};
use millrace_tests::istio as istio_words;
use millrace_tests::netns::Namespace;
use millrace_tests::process;
use millrace_tests::scenario::captured;
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{APP, Layout, Spot, Stack, Topology};
use millrace_tests::wire::{Dial, Outcome, Proto};

const NAMES: [&str; 5] =
    ["istio-proxy-nat", "istio-proxy-mangle", "istio-proxy-raw", "istio-proxy-guard", "millrace"];

/// What the calling thread's namespace holds.
fn seen() -> Result<Listing> {
    let wanted = ReadScope { native: &NAMES, iptables: false, rules: true };
    look(wanted)?.context("the kernel has no nf_tables")
}

/// Write tables in place of these.
fn replace(names: &[&str], tables: &NativeTables, generation: Option<u32>) -> Result<(), NftError> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let groups = BTreeMap::new();
    let changes = Changes { names: &names, tables, edits: &[], groups: &groups };
    change(&changes, generation)
}

/// The ruleset of a command line of istio-iptables in a pod with both families.
fn ruleset(flags: &[&str], env: &[(&str, &str)]) -> Result<NftRuleset> {
    let facts = HostFacts {
        addresses: vec!["10.70.0.2".parse()?, "fd70::2".parse()?],
        resolv_conf: Some(Ok("nameserver 10.73.0.53\nnameserver fd73::53\n".to_owned())),
        ..HostFacts::default()
    };
    let env: BTreeMap<String, String> =
        env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let words = ["istio-iptables"].iter().chain(flags);
    let words: Vec<String> = words.map(|word| (*word).to_owned()).collect();
    let raw = Raw::new(istio_words::pairs(&words)?, env);
    let resolved = istio::resolve(&raw, &facts)?;
    Ok(to_nft(&resolved.policy, &NFT_LAYOUT, true))
}

/// The same in Millrace's own table.
fn own(ruleset: &NftRuleset) -> NftRuleset {
    merge(&NftRuleset { layout: &native::NFT_LAYOUT, ..renamed(ruleset) })
}

/// Rules with the chains of Millrace's own table.
fn renamed(ruleset: &NftRuleset) -> NftRuleset {
    let (theirs, ours) = (NFT_LAYOUT.chains.chains(), native::NFT_LAYOUT.chains.chains());
    let name = |chain: &ChainName| {
        let at = theirs.iter().position(|c| *c == chain).unwrap_or(0);
        ours[at].clone()
    };
    let mut ruleset = ruleset.clone();
    for emission in &mut ruleset.emissions {
        if let Chain::User(chain) = &mut emission.chain {
            *chain = name(chain);
        }
        for statement in &mut emission.rule {
            if let Statement::Jump(chain) = statement {
                *chain = name(chain);
            }
        }
    }
    ruleset
}

/// What nft prints of a namespace, without counters and handles.
fn listed(namespace: &Namespace) -> Result<String> {
    namespace.run("nft", &["--stateless", "list", "ruleset"])
}

fn kernel(ruleset: &NftRuleset) -> Result<NativeTables> {
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
    let in_own_table: Vec<_> =
        all.iter().map(|(name, ruleset)| (format!("{name}, own table"), own(ruleset))).collect();
    let with_guard = |(name, ruleset): &(String, NftRuleset)| {
        let rules = guarded(ruleset.clone());
        (rules != *ruleset).then(|| (format!("{name}, with its guard"), rules))
    };
    let with_guard: Vec<_> = all.iter().filter_map(with_guard).collect();
    all.extend(in_own_table);
    all.extend(with_guard);
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
        let wanted = kernel(&ruleset)?;
        let before = ours.enter(seen)??.native;
        let before: Vec<&str> = before.iter().map(|(name, _)| name.as_str()).collect();
        ours.enter(|| replace(&before, &wanted, None))?.with_context(|| name.clone())?;
        assert_eq!(listed(&ours)?, listed(&theirs)?, "{name}");
        let found = ours.enter(seen)??.native;
        assert_eq!(found, wanted, "{name}");
    }
    ours.enter(|| replace(&NAMES, &NativeTables::new(), None))??;
    assert_eq!(listed(&ours)?, "");
    Ok(())
}

/// Verify that rules which nft wrote are read as those that Millrace would write.
#[test]
fn what_nft_wrote_is_read() -> Result<()> {
    for (name, ruleset) in rulesets()? {
        let namespace = Namespace::new()?;
        namespace.feed("nft", &["-f", "-"], &render_transaction(&ruleset))?;
        let found = namespace.enter(seen)??.native;
        let wanted = kernel(&ruleset)?;
        assert_eq!(found, wanted, "{name}");
    }
    Ok(())
}

/// Verify that a transaction with a part that the kernel refuses changes nothing, and that the
/// part is named.
#[test]
fn a_transaction_that_fails_leaves_no_trace() -> Result<()> {
    let namespace = Namespace::new()?;
    let good = kernel(&ruleset(&["-i", "*", "-b", "*"], &[])?)?;
    namespace.run("nft", &["add", "table", "inet", "somebody-elses"])?;
    for before in [NativeTables::new(), good.clone()] {
        namespace.enter(|| replace(&NAMES, &before, None))??;
        let listed_before = listed(&namespace)?;
        let mut bad = good.clone();
        let (_, chains) = bad.first_mut().context("the table")?;
        let nowhere = Expr::Verdict(NftVerdict::Jump("nowhere".to_owned()));
        let rules = vec![Ok(vec![nowhere])];
        chains.push(("last".to_owned(), NativeChain { rules, ..NativeChain::default() }));
        let error = namespace.enter(|| replace(&NAMES, &bad, None))?.unwrap_err().to_string();
        let wanted = "nf_tables refuses rule 1 of chain last of table istio-proxy-nat: ENOENT";
        assert!(error.starts_with(wanted), "{error}");
        assert_eq!(listed(&namespace)?, listed_before);
    }
    Ok(())
}

const SIDECAR: [&str; 7] =
    ["istio-iptables", "-i", "*", "-b", "*", "--native-nftables", "--redirect-dns"];

/// Run millrace with nothing on its PATH.
fn run(topology: &Topology, args: &[&str], code: i32) -> Result<String> {
    let mut command = millrace(args)?;
    command.env("PATH", "/nowhere");
    let (exit, said) = ran(&topology.pod, &mut command)?;
    assert_eq!(exit, Some(code), "{args:?}: {said}");
    Ok(said)
}

/// Verify that a pod is captured and let go by netlink alone, that a second run leaves the counters
/// as they are, and that a change by somebody else is seen.
#[test]
fn a_pod_is_captured_without_any_program() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let before = Snapshot::take(&topology.pod)?;
    run(&topology, &["status"], 3)?;
    run(&topology, &SIDECAR, 0)?;
    let said = run(&topology, &["status"], 0)?;
    assert!(said.starts_with("captured: IPv4 and IPv6 by nftables"), "{said}");
    let said = run(&topology, &["dump"], 0)?;
    let wanted = "# tunnels to port 15008 reach the proxy as they are (default of -e/--inbound-tunnel-port)\n\
                  add rule inet istio-proxy-nat istio-inbound meta l4proto tcp tcp dport 15008 ";
    assert!(said.contains(wanted), "{said}");
    let wanted = [&["status", "--"][..], &SIDECAR].concat();
    run(&topology, &wanted, 0)?;
    run(&topology, &[&wanted[..], &["-o", "9092"]].concat(), 5)?;

    let attempts = [app().tcp(Spot::Service, 80), outside().tcp(Spot::Pod, 8080)];
    assert_eq!(captured(&topology, &attempts)?.len(), 4);
    // The kernel may look for its neighbours in between, which the chains of the table raw count.
    for tries_left in (0..5).rev() {
        let counted = topology.pod.run("nft", &["list", "ruleset"])?;
        let again = run(&topology, &SIDECAR, 0)?;
        assert!(again.contains("no change: the rules are as desired"), "{again}");
        let after = topology.pod.run("nft", &["list", "ruleset"])?;
        assert!(after.contains("packets 2 bytes"), "{after}");
        if after == counted {
            break;
        }
        assert!(tries_left > 0, "{after}\nand before\n{counted}");
    }

    topology.pod.run("nft", &["insert rule inet istio-proxy-nat istio-output accept"])?;
    run(&topology, &wanted, 5)?;
    let said = run(&topology, &["status"], 5)?;
    assert!(said.contains("no settings give just these rules"), "{said}");
    let said = run(&topology, &["dump"], 0)?;
    assert!(said.contains("`nft list table inet istio-proxy-nat` prints them"), "{said}");
    let said = run(&topology, &SIDECAR, 0)?;
    assert!(said.contains("done: nftables transaction of"), "{said}");
    run(&topology, &wanted, 0)?;

    run(&topology, &["cleanup"], 0)?;
    run(&topology, &["status"], 3)?;
    assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");
    Ok(())
}

/// Verify that any user with the capability `NET_ADMIN` alone can do it.
#[test]
fn net_admin_is_enough() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let plain = millrace(SIDECAR)?;
    let mut command = std::process::Command::new("/usr/bin/setpriv");
    command.args([
        "--reuid=1000",
        "--regid=1000",
        "--clear-groups",
        "--bounding-set=-all,+net_admin",
    ]);
    command.args(["--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin"]);
    command.arg(plain.get_program()).args(SIDECAR).env("PATH", "/nowhere");
    let (code, said) = ran(&topology.pod, &mut command)?;
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(captured(&topology, &[app().tcp(Spot::Service, 80)])?.len(), 2);

    let mut command = std::process::Command::new("/usr/bin/setpriv");
    command.args(["--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all"]);
    command.arg(plain.get_program()).args(SIDECAR);
    let (code, said) = ran(&topology.pod, &mut command)?;
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("the capability NET_ADMIN"), "{said}");
    Ok(())
}

/// Verify that IPv6 is left alone in a pod without it, though the tables serve both families; with
/// the reference's rules the application does not reach itself by `::1`.
#[test]
fn ipv6_is_left_alone_where_it_is_not_captured() -> Result<()> {
    let (config, reference) = (SIDECAR, [&SIDECAR[..], &["--ipv6-as-reference"]].concat());
    for (args, reaches) in [(&config[..], true), (&reference, false)] {
        let topology = Topology::new(Stack::V4, Layout::default())?;
        // The proxy does not capture loopback, unless a rule that names no address sends it there.
        run(&topology, &[args, &["-i", "127.0.0.1/32", "-q", "8080"]].concat(), 0)?;
        let dial = Dial {
            identity: APP,
            proto: Proto::Tcp,
            from: None,
            from_port: None,
            transparent_mark: None,
            to: "[::1]:8080".parse()?,
            timeout_ms: 1000,
        };
        let outcome = process::dial(&topology.pod, &dial)?;
        let by_app = matches!(&outcome, Outcome::Answered { answer, .. } if answer.name == "app");
        assert_eq!(by_app, reaches, "{args:?}: {outcome}");
    }
    Ok(())
}

/// Verify that a transaction is refused when anything has changed since the look, and that a run
/// looks again then.
#[test]
fn somebody_else_writes_at_the_same_time() -> Result<()> {
    let namespace = Namespace::new()?;
    let wanted = kernel(&ruleset(&["-i", "*", "-b", "*"], &[])?)?;
    let stale = namespace.enter(seen)??.generation;
    namespace.run("nft", &["add", "table", "inet", "somebody-elses"])?;
    let error = namespace.enter(|| replace(&NAMES, &wanted, stale))?.unwrap_err();
    assert!(matches!(error, NftError::Changed), "{error}");
    assert_eq!(listed(&namespace)?, "table inet somebody-elses {\n}\n");
    let fresh = namespace.enter(seen)??.generation;
    namespace.enter(|| replace(&NAMES, &wanted, fresh))??;

    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| -> Result<u32> {
            let mut writes = 0;
            while !done.load(Ordering::Relaxed) {
                let text = "add table inet other\ndelete table inet other\n";
                topology.pod.feed("nft", &["-f", "-"], text)?;
                writes += 1;
                // A busy neighbour, not one that leaves no room at all.
                thread::sleep(Duration::from_millis(20));
            }
            Ok(writes)
        });
        let runs = (0..20).try_for_each(|turn| -> Result<()> {
            let port = if turn % 2 == 0 { "9092" } else { "9093" };
            run(&topology, &[&SIDECAR[..], &["-o", port, "--reconcile"]].concat(), 0)?;
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        let writes = writer.join().map_err(|_panic| anyhow::anyhow!("the writer panicked"))??;
        runs?;
        assert!(writes > 5, "only {writes} other changes");
        Ok(())
    })?;
    let last = [&["status", "--"][..], &SIDECAR, &["-o", "9093"]].concat();
    run(&topology, &last, 0)?;
    Ok(())
}

/// Verify that what the kernel does not have is named with its option: no kernel has this match of
/// iptables.
#[test]
fn what_the_kernel_lacks_is_named() -> Result<()> {
    let extension = Extension { name: "nosuch".to_owned(), revision: 0, data: vec![0; 8] };
    let rule = XtRule { exprs: vec![Expr::Match(extension)], protocol: None };
    let base = Base { kind: "nat".to_owned(), hook: 3, priority: -100 };
    let namespace = Namespace::new()?;
    let family = TableFamily::Ip(Family::V4);
    let error = namespace.enter(|| rehearse(family, "nat", &base, &rule))?.unwrap_err();
    let wanted = "the kernel may lack nft_compat (CONFIG_NFT_COMPAT) or xt_nosuch \
                  (CONFIG_NETFILTER_XT_MATCH_NOSUCH): load it";
    assert!(error.to_string().contains(wanted), "{error}");
    assert!(error.is_unsupported(), "{error}");
    Ok(())
}

/// Verify that ten thousand exclusions make no rule more than ten, that they are written at once,
/// and that a second run knows them again.
#[test]
fn rules_do_not_grow_with_exclusions() -> Result<()> {
    let exclude = |networks: u32, ports: u16| -> (String, String) {
        let networks: Vec<String> = (0..networks)
            .map(|n| format!("11.{}.{}.0/25", n / 250, n % 250))
            .chain((0..networks).map(|n| format!("fd11:{n:x}::/64")))
            .collect();
        let ports: Vec<String> = (0..ports).map(|n| (20_000 + 2 * n).to_string()).collect();
        (networks.join(","), ports.join(","))
    };
    let mut counts = Vec::new();
    for (networks, ports) in [(10, 10), (10_000, 5_000)] {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let (networks, ports) = exclude(networks, ports);
        let folder = tempfile::tempdir()?;
        let file = folder.path().join("config.yaml");
        std::fs::write(
            &file,
            format!(
                "outbound: {{excludeNetworks: [\"{}\"], excludePorts: [{ports}]}}\n",
                networks.replace(',', "\",\"")
            ),
        )?;
        let file = file.to_str().context("a path")?.to_owned();
        let args = ["apply", "--backend", "nftables", "--config", &file];
        run(&topology, &args, 0)?;
        let again = run(&topology, &args, 0)?;
        assert!(again.contains("no change: the rules are as desired"), "{again}");
        let text =
            topology.pod.run("nft", &["--stateless", "list", "table", "inet", "millrace"])?;
        counts.push(text.lines().filter(|line| line.contains("counter")).count());
        let attempts = [app().tcp(Spot::Service, 80), outside().tcp(Spot::Pod, 8080)];
        assert_eq!(captured(&topology, &attempts)?.len(), 4);
    }
    assert_eq!(counts[0], counts[1]);
    Ok(())
}
