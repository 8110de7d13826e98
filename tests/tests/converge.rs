//! Any run over any earlier state ends in exactly the wanted state, a second run changes nothing,
//! and a cleanup leaves nothing but what others wrote: on the real kernel, with random
//! configurations over random states.

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{Variant, millrace};
use millrace_tests::others;
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Layout, Stack, Topology};
use proptest::prelude::*;
use proptest::sample::subsequence;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

/// Settings of istio-iptables, each of which may be there.
const ISTIO: [&str; 24] = [
    "-m TPROXY",
    "-t 77",
    "-r 99",
    "-p 15101",
    "-z 15106",
    "-u 2000",
    "-u 1337,2000",
    "-g 5",
    "-b 80,8080",
    "-d 15090,15021",
    "-i 10.0.0.0/8,fd00::/8",
    "-x 10.96.0.1/32,fd96::/16",
    "-q 5432",
    "-o 9092,1:5",
    "-c eth7",
    "-k tap0",
    "-k tap0,tap1",
    "--redirect-dns",
    "--capture-all-dns",
    "--drop-invalid",
    "--dual-stack",
    "--ipv6-as-reference",
    "--match-any-proxy-id",
    "--force-apply",
];

/// Settings of Millrace's own.
const OWN: [&str; 17] = [
    "--mode tproxy",
    "--tproxy-mark 78",
    "--tproxy-table 98",
    "--outbound-port 15101",
    "--inbound-port 15106",
    "--proxy-uid 2000,2001",
    "--proxy-gid 7",
    "--include-inbound-ports 80,8080",
    "--exclude-inbound-ports 15090",
    "--include-outbound-cidrs 10.0.0.0/8",
    "--exclude-outbound-cidrs fd96::/16",
    "--exclude-outbound-ports 9092",
    "--exclude-interfaces eth7",
    "--reroute-interfaces tap0",
    "--dns servers",
    "--dns all",
    "--drop-invalid",
];

/// Settings of Linkerd's proxy-init.
const LINKERD: [&str; 8] = [
    "-u 2102",
    "-g 7",
    "-r 80,8080",
    "--inbound-ports-to-ignore 4190,100-200",
    "--outbound-ports-to-ignore 443,6443",
    "--subnets-to-ignore 10.0.0.0/8,fd00::/8",
    "--ipv6=false",
    "-w",
];

/// What carries rules out; without a word, what does already.
const ISTIO_WAYS: [&str; 4] =
    ["", "--force-iptables-binary nft", "--force-iptables-binary legacy", "--native-nftables"];
const LINKERD_WAYS: [&str; 4] =
    ["--iptables-mode plain", "", "--iptables-mode nft", "--native-nftables"];
const OWN_WAYS: [&str; 5] =
    ["", "--iptables nft", "--iptables legacy", "--backend nftables", "--backend iptables-nft"];

/// What runs of istio-iptables leave when they are killed, repeated or cleaned up with other flags,
/// and what people do to its chains; `IPT` stands for iptables of a variant and family.
const LEFTOVERS: [&[&str]; 8] = [
    // Every run with TPROXY adds one more rule.
    &[
        "ip rule add fwmark 1337 lookup 133",
        "ip rule add fwmark 1337 lookup 133 pref 32700",
        "ip -6 rule add fwmark 1337 lookup 133",
        "ip route add local default dev lo table 133",
    ],
    // A cleanup without the flags of the run before.
    &[
        "IPT -t nat -N ISTIO_INBOUND",
        "IPT -t nat -N ISTIO_IN_REDIRECT",
        "IPT -t nat -A PREROUTING -p tcp -j ISTIO_INBOUND",
        "IPT -t nat -A ISTIO_INBOUND -p tcp --dport 80 -j ISTIO_IN_REDIRECT",
    ],
    // A reconcile that was killed behind its guardrails.
    &[
        "IPT -I INPUT 1 -p udp -j DROP",
        "IPT -I INPUT 1 -p tcp -j DROP",
        "IPT -I FORWARD 1 -p udp -j DROP",
        "IPT -I FORWARD 1 -p tcp -j DROP",
        "IPT -I OUTPUT 1 -p udp -j DROP",
        "IPT -I OUTPUT 1 -p tcp -j DROP",
    ],
    &["IPT -t raw -N ISTIO_OUTPUT_DNS", "IPT -t mangle -N ISTIO_TPROXY"],
    &[
        "IPT -t nat -N ISTIO_OUTPUT",
        "IPT -t nat -A OUTPUT -j ISTIO_OUTPUT",
        "IPT -t nat -I OUTPUT 1 -p tcp -j ISTIO_OUTPUT",
    ],
    &["IPT -t nat -N MILLRACE_OUTPUT", "IPT -t nat -A MILLRACE_OUTPUT -d 127.9.9.9/8 -j ACCEPT"],
    &[
        "IPT -t mangle -N ISTIO_DIVERT",
        "IPT -t mangle -A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark",
        "IPT -t mangle -A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark",
    ],
    &[
        "ip -6 addr add ::6/128 dev lo",
        "ip link property add dev lo altname \
      millrace-change-in-progress",
    ],
];

#[derive(Clone, Debug)]
enum Step {
    Run(Vec<String>),
    Leftover(usize, Variant),
}

fn variants() -> impl Strategy<Value = Variant> {
    prop_oneof![Just(Variant::Nft), Just(Variant::Legacy)]
}

/// A command line that writes rules, by a way that was named or by any.
fn runs(named: bool) -> impl Strategy<Value = Vec<String>> {
    let line = |command: &'static str, flags: Vec<&str>, way: &'static str| {
        let line = format!("{command} {} {way}", flags.join(" "));
        line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<String>>()
    };
    let ways = prop::sample::select(&ISTIO_WAYS[usize::from(named)..]);
    let istio = (subsequence(ISTIO.to_vec(), 0..8), ways)
        .prop_map(move |(flags, way)| line("istio-iptables -i * -b * --reconcile", flags, way));
    let ways = prop::sample::select(&OWN_WAYS[usize::from(named)..]);
    let own = (subsequence(OWN.to_vec(), 0..6), ways)
        .prop_map(move |(flags, way)| line("apply", flags, way));
    let ways = prop::sample::select(&LINKERD_WAYS[usize::from(named)..]);
    let linkerd = (subsequence(LINKERD.to_vec(), 0..6), ways)
        .prop_map(move |(flags, way)| line("linkerd -p 4143 -o 4140", flags, way));
    prop_oneof![istio, own, linkerd]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let leftover = (0..LEFTOVERS.len(), variants()).prop_map(|(i, v)| Step::Leftover(i, v));
    prop::collection::vec(prop_oneof![runs(false).prop_map(Step::Run), leftover], 0..4)
}

/// Run millrace; it must succeed.
fn run(topology: &Topology, args: &[String]) -> Result<String> {
    let output = topology.pod.output(&mut millrace(args)?)?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{args:?}: {}: {said}", output.status);
    Ok(said)
}

/// Do what is left over. What can't be done because it is there already is left out.
fn leave(topology: &Topology, lines: &[&str], variant: Variant) -> Result<()> {
    for line in lines {
        for program in ["iptables", "ip6tables"] {
            let line = line.replace("IPT", &format!("{program}-{}", variant.as_str()));
            let mut words = line.split_ascii_whitespace();
            let mut command = std::process::Command::new(words.next().context("a program")?);
            let v4_only = line.contains("127.") && program == "ip6tables";
            if !v4_only {
                topology.pod.output(command.args(words))?;
            }
        }
    }
    Ok(())
}

/// Rules that are not of others.
fn ours(snapshot: &Snapshot) -> Vec<String> {
    let theirs: Vec<String> = others::of_others(snapshot)
        .into_iter()
        .flat_map(|(name, rules)| rules.into_iter().map(move |r| format!("{name}: {r}")))
        .collect();
    let all = snapshot.chains.iter();
    let all = all.flat_map(|(name, rules)| rules.iter().map(move |r| format!("{name}: {r}")));
    all.filter(|rule| !theirs.contains(rule)).collect()
}

/// From nothing through all steps to the wanted state, and back to nothing.
fn converges(steps: &[Step], last: &[String], foreign: Option<Variant>) -> Result<()> {
    let fresh = Topology::new(Stack::Dual, Layout::default())?;
    let used = Topology::new(Stack::Dual, Layout::default())?.settled()?;
    let fresh = fresh.settled()?;
    let untaken = Snapshot::take(&used.pod)?;
    for topology in [&fresh, &used] {
        foreign.map_or(Ok(()), |variant| others::write(&topology.pod, variant))?;
    }
    let beside = Snapshot::take(&used.pod)?;
    run(&fresh, last)?;
    for step in steps {
        match step {
            Step::Run(args) => run(&used, args).map(drop)?,
            Step::Leftover(index, variant) => leave(&used, LEFTOVERS[*index], *variant)?,
        }
    }
    run(&used, last)?;
    let wanted = Snapshot::take(&fresh.pod)?.without_counters();
    let found = Snapshot::take(&used.pod)?;
    others::untouched(&beside, &found)?;
    let bare = found.clone().without_counters();
    let wanted_ours = ours(&wanted);
    ensure!(wanted_ours == ours(&bare), "wanted {wanted_ours:#?}, found {:#?}", ours(&bare));
    // Link-local addresses are of the link, not of the configuration; and who added a route means
    // nothing for what it does.
    let lines = |lines: &[String]| -> Vec<String> {
        let lines = lines.iter().filter(|l| !l.contains("fe80"));
        lines.map(|l| l.replace(" proto static", "")).collect()
    };
    ensure!(wanted.rules == bare.rules, "{:?} {:?}", wanted.rules, bare.rules);
    ensure!(lines(&wanted.routes) == lines(&bare.routes), "{:?}", bare.routes);
    ensure!(lines(&wanted.addresses).len() == lines(&bare.addresses).len(), "{bare:?}");

    if !last.contains(&"--force-apply".to_owned()) {
        let again = run(&used, last)?;
        ensure!(again.contains("no change: the rules are as desired"), "{again}");
        let after = Snapshot::take(&used.pod)?;
        ensure!(after.clone().without_counters() == bare, "{}", found.differences(&after));
    }

    run(&used, &["cleanup".to_owned()])?;
    let cleaned = Snapshot::take(&used.pod)?;
    others::untouched(&beside, &cleaned)?;
    ensure!(ours(&cleaned).is_empty(), "{:?}", ours(&cleaned));
    ensure!(cleaned.rules == untaken.rules, "{:?}", cleaned.rules);
    ensure!(cleaned.routes == untaken.routes, "{:?}", cleaned.routes);
    ensure!(cleaned.addresses == untaken.addresses, "{:?}", cleaned.addresses);
    Ok(())
}

/// Verify for some random ways, the same ones each time: `MILLRACE_SEED` is another beginning,
/// `PROPTEST_CASES` asks for more.
#[test]
fn any_run_over_any_state_converges() {
    let seed: u64 =
        std::env::var("MILLRACE_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(20_260);
    println!("MILLRACE_SEED={seed}");
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24);
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 60, ..Config::default() };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_be_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let all = (steps(), runs(true), prop::option::of(variants()));
    let result = runner.run(&all, |(steps, last, foreign)| {
        converges(&steps, &last, foreign).map_err(|e| TestCaseError::fail(format!("{e:#}")))
    });
    if let Err(error) = result {
        panic!("MILLRACE_SEED={seed}\n{error}");
    }
}
