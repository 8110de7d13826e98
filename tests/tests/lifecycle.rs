//! From nothing to captured and back, beside rules of others.

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{Capture as _, Millrace, Variant, config_args, millrace, ran};
use millrace_tests::cases::{self, Case};
use millrace_tests::others::{of_others, untouched, write, write_around};
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Layout, Stack, Topology};

/// Run millrace in a topology's pod, with variables; it must succeed.
fn run(topology: &Topology, args: &[&str], env: &[(&str, &str)]) -> Result<String> {
    let output = topology.pod.output(millrace(args)?.envs(env.iter().copied()))?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    ensure!(output.status.success(), "{args:?}: {}: {said}", output.status);
    Ok(said)
}

fn status_said(topology: &Topology) -> Result<(Option<i32>, String)> {
    let output = topology.pod.output(&mut millrace(["status"])?)?;
    Ok((output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned()))
}

fn status(topology: &Topology) -> Result<Option<i32>> {
    status_said(topology).map(|(code, _)| code)
}

/// A pod with rules of others is captured, captured again, let go, and let go again.
fn live_through(case: &Case, variant: Variant) -> Result<()> {
    let topology = Topology::new(Stack::Dual, case.layout)?;
    let untaken = Snapshot::take(&topology.pod)?;
    write(&topology.pod, variant)?;
    // Packets count on the others' rules.
    cases_packets(&topology)?;
    let before = Snapshot::take(&topology.pod)?;
    assert_eq!(status(&topology)?, Some(3));

    Millrace { variant }.apply(&topology, &case.config)?;
    let applied = Snapshot::take(&topology.pod)?;
    untouched(&before, &applied)?;
    let (code, said) = status_said(&topology)?;
    ensure!(code == Some(0), "{said}");

    // Whatever others do around our rules, they are not drift; our own order among them is kept.
    write_around(&topology.pod, variant)?;
    let around = Snapshot::take(&topology.pod)?;
    let args = config_args(&case.config, variant, topology.stack);
    let again = run(&topology, &args, case.config.env())?;
    ensure!(again.contains("no change: the rules are as desired"), "{again}");
    let after = Snapshot::take(&topology.pod)?;
    assert_eq!(around.clone().without_counters(), after.clone().without_counters());
    untouched(&around, &after)?;

    run(&topology, &["cleanup"], &[])?;
    let cleaned = Snapshot::take(&topology.pod)?;
    untouched(&around, &cleaned)?;
    let left: usize = of_others(&cleaned).iter().map(|(_, rules)| rules.len()).sum();
    let all: usize = cleaned.chains.values().map(Vec::len).sum();
    ensure!(left == all, "something is left: {cleaned:#?}");
    let routing = |s: &Snapshot| (s.rules.clone(), s.routes.clone(), s.addresses.clone());
    assert_eq!(routing(&cleaned), routing(&untaken));
    assert_eq!(status(&topology)?, Some(3));
    let again = run(&topology, &["cleanup"], &[])?;
    ensure!(again.contains("nothing to do"), "{again}");
    untouched(&cleaned, &Snapshot::take(&topology.pod)?)
}

/// Connections that the rules of others count.
fn cases_packets(topology: &Topology) -> Result<()> {
    use cases::Fate::Direct;
    use millrace_tests::topology::Spot;
    let probes = [
        cases::app().tcp(Spot::Service, 80).gets(Direct),
        cases::proxy().tcp(Spot::Service, 80).gets(Direct),
        cases::outside().tcp(Spot::Pod, 8080).gets(Direct),
    ];
    let ports = cases::Ports { outbound: 15001, inbound: 15006, dns: 15053 };
    let astray = millrace_tests::scenario::astray(topology, ports, &probes)?;
    ensure!(astray.is_empty(), "{astray:?}");
    Ok(())
}

/// Verify for every case of the traffic matrix.
fn every_case(variant: Variant) -> Result<()> {
    for case in cases::all() {
        live_through(&case, variant).with_context(|| format!("{:?}, {variant:?}", case.name))?;
    }
    Ok(())
}

#[test]
fn pods_are_captured_and_let_go_by_iptables_nft() -> Result<()> {
    every_case(Variant::Nft)
}

#[test]
fn pods_are_captured_and_let_go_by_iptables_legacy() -> Result<()> {
    every_case(Variant::Legacy)
}

/// Verify that TPROXY in a routing table that holds a route of somebody else is refused before
/// anything is changed, naming the route; that another table is taken; and that a route which comes
/// later is seen, and left when everything of ours goes.
#[test]
fn a_routing_table_of_somebody_else_is_left_alone() -> Result<()> {
    let foreign = [
        (
            "route add default via 10.70.0.1 dev eth0 table 133",
            "IPv4 default via 10.70.0.1 dev eth0",
        ),
        (
            "route add fd99::/64 via fd70::1 dev eth0 table 133",
            "IPv6 fd99::/64 via fd70::1 dev eth0",
        ),
        ("route add unreachable default metric 9 table 133", "IPv4 unreachable default"),
    ];
    let applies: [&[&str]; 4] = [
        &["apply", "--mode", "tproxy", "--backend", "nftables"],
        &["apply", "--mode", "tproxy", "--backend", "iptables-nft"],
        &["apply", "--mode", "tproxy", "--backend", "iptables-legacy"],
        &["istio-iptables", "-m", "TPROXY", "-b", "*", "-i", "*", "--dual-stack"],
    ];
    for (apply, (route, named)) in applies.into_iter().zip(foreign.iter().cycle()) {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let untaken = Snapshot::take(&topology.pod)?;
        topology.pod.ip(&format!("{route}\n"))?;
        let before = Snapshot::take(&topology.pod)?;
        for _ in 0..2 {
            let (code, said) = ran(&topology.pod, &mut millrace(apply)?)?;
            ensure!(code == Some(1) && said.contains(&format!("{named} table 133")), "{said}");
            assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");
        }
        let flag = if apply.contains(&"apply") { "--tproxy-table" } else { "-r" };
        run(&topology, &[apply, &[flag, "200"]].concat(), &[])?;
        assert_eq!(status(&topology)?, Some(0));
        run(&topology, &["cleanup"], &[])?;
        assert_eq!(before.differences(&Snapshot::take(&topology.pod)?), "");

        topology.pod.ip(&format!("{}\n", route.replace("route add", "route del")))?;
        assert_eq!(untaken.differences(&Snapshot::take(&topology.pod)?), "");
        run(&topology, apply, &[])?;
        assert_eq!(status(&topology)?, Some(0));
        let later = route.replace("default via", "10.9.0.0/16 via");
        topology.pod.ip(&format!("{later}\n"))?;
        let (code, said) = status_said(&topology)?;
        ensure!(code != Some(0) && said.contains("holds routes of somebody else"), "{said}");
        run(&topology, &["cleanup"], &[])?;
        topology.pod.ip(&format!("{}\n", later.replace("route add", "route del")))?;
        assert_eq!(untaken.differences(&Snapshot::take(&topology.pod)?), "");
    }
    Ok(())
}

/// Verify that IPv6's passthrough address is missed where its interface is gone, is good where an
/// earlier version had it, and is moved from there by the next run.
#[test]
fn the_passthrough_address_moves_to_an_interface_of_its_own() -> Result<()> {
    for backend in ["nftables", "iptables-nft"] {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let untaken = Snapshot::take(&topology.pod)?;
        let apply = ["apply", "--backend", backend];
        run(&topology, &apply, &[])?;
        let address = |device| topology.pod.run("ip", &["-o", "-6", "addr", "show", "dev", device]);
        ensure!(address("millrace0")?.contains("inet6 ::6/128"));
        ensure!(run(&topology, &apply, &[])?.contains("no change"));
        topology.pod.ip("link del millrace0\n")?;
        let (code, said) = status_said(&topology)?;
        ensure!(code != Some(0) && said.contains("interface millrace0"), "{said}");
        run(&topology, &apply, &[])?;
        // Its address alone is not enough: what the kernel doesn't route is sent from by nobody.
        let route = ["-6", "route", "del", "local", "::6", "dev", "millrace0", "table", "local"];
        topology.pod.run("ip", &route)?;
        ensure!(address("millrace0")?.contains("inet6 ::6/128"));
        let (code, said) = status_said(&topology)?;
        ensure!(code != Some(0) && said.contains("interface millrace0"), "{said}");
        run(&topology, &apply, &[])?;
        ensure!(status_said(&topology)?.0 == Some(0));
        topology.pod.ip("link del millrace0\n")?;
        topology.pod.ip("addr add ::6/128 dev lo\n")?;
        let (code, said) = status_said(&topology)?;
        ensure!(code == Some(0), "{said}");
        run(&topology, &apply, &[])?;
        ensure!(address("millrace0")?.contains("inet6 ::6/128"));
        ensure!(!address("lo")?.contains("::6/128"));
        run(&topology, &["cleanup"], &[])?;
        assert_eq!(untaken.differences(&Snapshot::take(&topology.pod)?), "");
    }
    Ok(())
}
