//! What the plugin's rules are written with, and rules in a pod that are not the plugin's.

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::millrace;
use millrace_tests::cni::{Call, Host, Pod, Reply, STATUS, mesh};
use millrace_tests::snapshot::Snapshot;
use serde_json::{Value, json};

/// The rules of iptables-legacy in a pod.
fn legacy(host: &Host, pod: &Pod) -> Result<String> {
    host.inside(pod, |inside| inside.run("iptables-legacy-save", &[]))
}

/// Make a call under strace, which refuses sockets of `nf_tables` as a kernel without it does.
fn without_nf_tables(host: &Host, call: &Call) -> Result<Reply> {
    // The first sockets are for addresses, a first look and the lock of the run.
    let refuse = "inject=socket:error=EPROTONOSUPPORT:when=4+";
    call.run_under(host, &["strace", "-qqq", "-o", "/dev/null", "-e", "trace=socket", "-e", refuse])
}

/// Verify that on a kernel without `nf_tables` iptables-legacy is used, by its programs, that CHECK
/// and DEL know its rules, and that who asks for nftables is told what is missing.
#[test]
fn the_kernel_has_no_nf_tables() -> Result<()> {
    let host = Host::new()?;
    for backend in ["auto", "iptables"] {
        let pod = host.pod()?;
        let add = Call::new(&host, "ADD", &pod, mesh(&[])).with_key("backend", json!(backend));
        let reply = without_nf_tables(&host, &add)?;
        reply.success()?;
        let last = reply.lines()?.pop().context("a line")?;
        ensure!(last["by"].to_string().contains("iptables-legacy"), "{last}");
        ensure!(legacy(&host, &pod)?.contains("MILLRACE_OUTPUT"));
        add.clone().to("CHECK").run(&host)?.success()?;
        add.to("DEL").run(&host)?.success()?;
        ensure!(!legacy(&host, &pod)?.contains("MILLRACE"));
    }
    let pod = host.pod()?;
    let add = Call::new(&host, "ADD", &pod, mesh(&[])).with_key("backend", json!("nftables"));
    let said = without_nf_tables(&host, &add)?.failure(100)?;
    ensure!(said.contains("load the module nf_tables") && said.contains(&pod.name), "{said}");
    Ok(())
}

/// Verify that CHECK fails where the kernel does not call the rules that are there.
#[test]
fn a_dormant_table_fails_check() -> Result<()> {
    let host = Host::new()?;
    for (backend, table) in [("nftables", "inet millrace"), ("iptables", "ip nat")] {
        let pod = host.pod()?;
        let add = Call::new(&host, "ADD", &pod, mesh(&[])).with_key("backend", json!(backend));
        add.run(&host)?.success()?;
        let check = add.clone().to("CHECK");
        check.run(&host)?.success()?;
        let sleep = format!("add table {table} {{ flags dormant; }}\n");
        host.inside(&pod, |inside| inside.feed("nft", &["-f", "-"], &sleep))?;
        let said = check.run(&host)?.failure(101)?;
        ensure!(said.contains(&format!("the flag dormant of table {table}")), "{said}");
        add.run(&host)?.success()?;
        check.run(&host)?.success()?;
    }
    Ok(())
}

/// Verify that rules which a container of the pod wrote from inside are left alone from ADD to
/// DEL, and that a capture of before is replaced by the one that is wanted now.
#[test]
fn rules_that_are_there_already() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let inside = |words: &[&str]| -> Result<()> {
        let command = millrace(words)?;
        let program = command.get_program().to_str().context("a path")?.to_owned();
        host.inside(&pod, |inside| inside.run(&program, words)).map(drop)
    };
    host.inside(&pod, |inside| inside.ip("addr add 10.1.0.2/24 dev lo"))?;
    inside(&["istio-iptables", "-u", "1337", "-i", "*", "-b", "*"])?;
    let before = host.inside(&pod, Snapshot::take)?;
    let init =
        json!({ STATUS: r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"# });
    let call = Call::new(&host, "ADD", &pod, init);
    for command in ["ADD", "CHECK", "DEL", "DEL"] {
        call.clone().to(command).run(&host)?.success()?;
        let now = host.inside(&pod, Snapshot::take)?;
        assert_eq!(before.differences(&now), "", "{command}");
    }
    let call = Call::new(&host, "ADD", &pod, mesh(&[]));
    call.run(&host)?.success()?;
    call.clone().to("CHECK").run(&host)?.success()?;
    let now = host.inside(&pod, Snapshot::take)?;
    ensure!(!now.chains.keys().any(|name| name.contains("ISTIO")), "{now:?}");
    call.to("DEL").run(&host)?.success()?;
    Ok(())
}

/// Verify that settings of before are replaced: another ADD of the same pod is as it says.
#[test]
fn another_configuration() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let name = "traffic.sidecar.istio.io/excludeOutboundPorts";
    let add = |ports: &str, backend: &str| {
        let annotations = mesh(&[(name, ports)]);
        Call::new(&host, "ADD", &pod, annotations).with_key("backend", json!(backend))
    };
    for (ports, backend) in [("1111", "auto"), ("2222", "auto"), ("3333", "iptables")] {
        add(ports, backend).run(&host)?.success()?;
        let rules = host.rules(&pod)?;
        for other in ["1111", "2222", "3333"] {
            assert_eq!(rules.contains(other), other == ports, "{ports}: {rules}");
        }
        add(ports, backend).to("CHECK").run(&host)?.success()?;
        let other: Value = json!(backend);
        add("4444", backend).with_key("backend", other).to("CHECK").run(&host)?.failure(101)?;
    }
    Ok(())
}

/// Chains of others that undo capture, each with what CHECK calls it.
const UNDOING: [(&str, &str); 7] = [
    (
        "add chain netdev x c { type filter hook ingress device eth0 priority 0; }\n\
         add rule netdev x c meta mark set 0x539",
        "chain c of table netdev x (ingress of eth0) may",
    ),
    (
        "add chain netdev x c { type filter hook egress device eth0 priority 0; }\n\
         add rule netdev x c tcp sport 15006 drop",
        "chain c of table netdev x (egress of eth0) may",
    ),
    (
        "add chain netdev x c { type filter hook ingress device eth0 priority 0; policy drop; }",
        "chain c of table netdev x (ingress of eth0) may",
    ),
    (
        "add chain netdev x c { type filter hook ingress device eth0 priority 0; }\n\
         add chain netdev x d\nadd rule netdev x d fwd to lo\nadd rule netdev x c jump d",
        "chain c of table netdev x (ingress of eth0) may",
    ),
    (
        "add chain netdev x c { type filter hook ingress device eth0 priority 0; }\n\
         add rule netdev x c ip protocol tcp tcp dport set 15020",
        "chain c of table netdev x (ingress of eth0) may",
    ),
    (
        "add table inet x\nadd chain inet x c { type filter hook ingress device eth0 priority 0; }\n\
         add rule inet x c tcp dport 8080 drop",
        "chain c of table inet x (ingress of eth0) may",
    ),
    (
        "add table ip x\nadd chain ip x c { type nat hook output priority -150; }\n\
         add rule ip x c tcp dport 9000 redirect to :9999",
        "chain c of table ip x (type nat, priority -150) is called before ours",
    ),
];

/// Chains that do nothing to captured connections, or are not called.
const HARMLESS: [&str; 3] = [
    "add chain netdev x c { type filter hook ingress device eth0 priority 0; }\n\
     add rule netdev x c dup to lo\nadd rule netdev x c counter accept",
    "add chain netdev x c { type filter hook ingress device eth0 priority 0; }\n\
     add rule netdev x c meta mark 0x539 meta priority set 1:1",
    "add chain netdev x c { type filter hook ingress device eth0 priority 0; policy drop; }\n\
     add table netdev x { flags dormant; }",
];

/// Verify that CHECK names chains of others that undo what captures, also those at interfaces, does not fail
/// by them, and names none that do nothing.
#[test]
fn what_others_undo_is_named_by_check() -> Result<()> {
    let host = Host::new()?;
    for backend in ["nftables", "iptables"] {
        let pod = host.pod()?;
        let add = Call::new(&host, "ADD", &pod, mesh(&[])).with_key("backend", json!(backend));
        let add = add.given(&host, &pod, "10.9.0.2/24")?;
        add.run(&host)?.success()?;
        let check = add.to("CHECK");
        let harmless = HARMLESS.map(|script| (script, None));
        let undoing = UNDOING.map(|(script, words)| (script, Some(words)));
        for (script, words) in undoing.into_iter().chain(harmless) {
            let feed =
                |text: &str| host.inside(&pod, |inside| inside.feed("nft", &["-f", "-"], text));
            feed(&format!("add table netdev x\n{script}\n"))?;
            let reply = check.run(&host)?;
            reply.success()?;
            let told = |line: &Value| {
                let said = line["msg"].as_str().unwrap_or_default();
                line["level"] == "warn" && words.is_none_or(|words| said.contains(words))
            };
            let told = reply.lines()?.iter().any(told);
            ensure!(told == words.is_some(), "{backend} {script}: {reply:?}");
            for table in ["netdev x", "inet x", "ip x"] {
                feed(&format!("add table {table}\ndelete table {table}\n"))?;
            }
        }
    }
    Ok(())
}
