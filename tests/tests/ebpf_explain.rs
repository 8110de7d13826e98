//! `explain`, `diff` and `graph` where eBPF captures: what is in the maps is what is told, in the same
//! words as of rules.

use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::capture::{millrace, millrace_in_pod, ran, wrapped};
use millrace_tests::ebpf::{FOLDER, captured, enrol, loaded};
use millrace_tests::topology::{Stack, Topology};
use millrace_tests::wire::Answer;
use serde_json::Value;

const SETTINGS: [&str; 10] = [
    "--exclude-outbound-ports",
    "9092,9000:9010",
    "--exclude-outbound-cidrs",
    "10.96.0.0/16,fd96::/64",
    "--exclude-inbound-ports",
    "15090",
    "--dns",
    "all",
    "--exclude-groups",
    "202",
];

fn live(topology: &Topology, words: &[&str]) -> Result<Value> {
    let live = ["explain", "--live", "--bpffs", FOLDER, "--output", "json"];
    let said = millrace_in_pod(topology, &[&live[..], words].concat(), 0)?;
    serde_json::from_str(&said).with_context(|| format!("{words:?}: {said}"))
}

/// The class that decided, and the flag that it is due to.
fn decided(found: &Value) -> (String, String) {
    let by = &found["decidedBy"][0];
    let class = by["rule"].as_str().unwrap_or_default().split(':').next().unwrap_or_default();
    let source = &by["reason"]["source"]["name"];
    (class.to_owned(), source.as_str().unwrap_or("always").to_owned())
}

/// Verify the end of each kind of connection, the class that decided it and the flag it is due to;
/// and that what is captured inbound is refused while nobody listens.
#[test]
fn a_captured_pod_is_explained() -> Result<()> {
    let (_cgroup, mut topology) = captured(&SETTINGS)?;
    let out: [(&[&str], Value, &str, &str); 8] = [
        (&["--to", "10.71.0.10:80/tcp"], 15001.into(), "network", "--include-outbound-cidrs"),
        (&["--to", "[fd71::10]:80/tcp"], 15001.into(), "network", "--include-outbound-cidrs"),
        (&["--to", "10.71.0.10:53/udp"], 15053.into(), "dns", "--dns"),
        (
            &["--to", "10.71.0.10:9005/tcp"],
            Value::Null,
            "excluded-port",
            "--exclude-outbound-ports",
        ),
        (
            &["--to", "10.96.3.3:80/tcp"],
            Value::Null,
            "excluded-network",
            "--exclude-outbound-cidrs",
        ),
        (&["--to", "10.71.0.10:80/tcp", "--from", "uid=1337"], Value::Null, "proxy", "--proxy-uid"),
        (
            &["--to", "10.71.0.10:80/tcp", "--from", "uid=1000,gid=202"],
            Value::Null,
            "group",
            "--exclude-groups",
        ),
        (
            &["--to", "10.70.0.2:80/tcp", "--from", "uid=1337"],
            15006.into(),
            "self-call",
            "--proxy-uid",
        ),
    ];
    for (words, port, class, flag) in out {
        let found = live(&topology, words)?;
        ensure!(found["fate"]["port"] == port, "{words:?}: {found:#}");
        ensure!(decided(&found) == (class.to_owned(), flag.to_owned()), "{words:?}: {found:#}");
        ensure!(found["reply"]["reply"] == "arrives", "{words:?}: {found:#}");
        if port != Value::Null {
            let to = words[1].rsplit_once('/').context("a protocol")?.0;
            ensure!(found["fate"]["original"] == to, "{words:?}: {found:#}");
        }
    }
    let inward = |port| ["--in", "--src", "10.70.0.1", "--to", "10.70.0.2", "--to-port", port];
    let found = live(&topology, &inward("8080"))?;
    ensure!(found["fate"]["port"] == 15006 && found["fate"]["how"] == "handed", "{found:#}");
    ensure!(found["fate"]["destination"] == "10.70.0.2:8080", "{found:#}");
    ensure!(decided(&found).0 == "inbound", "{found:#}");
    for (port, class) in [("15090", "other-inbound-port"), ("15008", "tunnel")] {
        let found = live(&topology, &inward(port))?;
        ensure!(found["fate"]["how"] == "unchanged" && decided(&found).0 == class, "{found:#}");
    }
    topology.stop_listeners();
    let found = live(&topology, &inward("8080"))?;
    ensure!(found["fate"]["fate"] == "refused" && decided(&found).0 == "refused", "{found:#}");
    Ok(())
}

/// Verify what the documentation shows.
#[test]
fn it_prints_what_the_documentation_says() -> Result<()> {
    let (_cgroup, topology) = loaded(Stack::V4)?;
    enrol(&topology, &[])?;
    let docs = include_str!("../../docs/ebpf.md");
    let shown = docs.split("```text\n").nth(1).and_then(|rest| rest.split("```").next());
    let shown = shown.context("an explanation")?;
    let command = docs.split('`').find_map(|text| text.strip_prefix("millrace explain --live "));
    let words = command.context("its command")?.split_whitespace();
    let words = ["explain", "--live", "--bpffs", FOLDER].into_iter().chain(words);
    let said = millrace_in_pod(&topology, &words.collect::<Vec<_>>(), 0)?;
    ensure!(said.contains(shown), "{said}");
    Ok(())
}

/// Verify that all connections are told in classes, that a pod is the same as its configuration, and
/// that what another one changes is named; and that there is a picture.
#[test]
fn classes_differences_and_pictures() -> Result<()> {
    let (_cgroup, topology) = captured(&SETTINGS)?;
    let classes = live(&topology, &["--all"])?;
    let classes = classes.as_array().context("classes")?;
    for (port, class) in [(15001, "network"), (15006, "inbound"), (15053, "dns")] {
        let is = |c: &&Value| c["outcome"]["port"] == port && decided(c).0 == class;
        ensure!(classes.iter().any(|c| is(&c)), "no {class}: {classes:#?}");
    }
    let diff = |with: String, code| {
        let words = ["diff", "live", &with, "--bpffs", FOLDER];
        millrace_in_pod(&topology, &words, code)
    };
    let same = format!("apply --backend ebpf --ipv6 on {}", SETTINGS.join(" "));
    let said = diff(same.clone(), 0)?;
    ensure!(said == "traffic: no connection is treated differently\nrules: the same\n", "{said}");
    let said = diff(same.replace("9092,", ""), 1)?;
    ensure!(said.contains("to tcp not") && said.contains("port 9092\n"), "{said}");
    ensure!(said.contains("leaves by eth0 -> redirected to port 15001"), "{said}");
    ensure!(said.contains("- ebpf outbound 2: excluded-port:"), "{said}");
    let said = diff(same.replace("--backend ebpf", "--backend iptables-nft"), 1)?;
    let inbound = "handed to port 15006, addresses untouched -> redirected to port 15006";
    ensure!(said.contains(inbound), "{said}");
    let graph = ["graph", "--live", "--bpffs", FOLDER, "--to", "10.71.0.10:80"];
    let said = millrace_in_pod(&topology, &graph, 0)?;
    ensure!(said.contains("connect(), sendmsg()") && said.contains("port 15006"), "{said}");
    Ok(())
}

/// Verify that a configuration is explained without privilege, in the words of its source; that what
/// eBPF can't do is refused; and that nobody is told "no rules" who may not look.
#[test]
fn configurations_and_who_may_not_look() -> Result<()> {
    let explain = |words: &[&str]| -> Result<(bool, String)> {
        let ask = ["explain", "--backend", "ebpf", "--to", "10.9.9.9:80/tcp"];
        let output = Command::new(binary::millrace()?).args(ask).args(words).output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.success(), String::from_utf8(text)?))
    };
    let (good, said) = explain(&[])?;
    let end = "=> delivered to 127.0.0.1 on port 15001, original destination 10.9.9.9:80";
    ensure!(good && said.contains(end) && said.contains("by ebpf outbound"), "{said}");
    let (good, said) = explain(&["--exclude-outbound-ports", "80"])?;
    let reason = "outbound port 80 is not captured (flag --exclude-outbound-ports)";
    ensure!(good && said.contains("=> leaves by eth0") && said.contains(reason), "{said}");
    let mut manifest = tempfile::NamedTempFile::new()?;
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    \
                sidecar.istio.io/status: '{}'\n    \
                traffic.sidecar.istio.io/excludeOutboundPorts: '80'\nspec:\n  \
                containers: [{name: istio-proxy}, {name: app}]\n";
    std::io::Write::write_all(&mut manifest, text.as_bytes())?;
    let (good, said) = explain(&["--manifest", manifest.path().to_str().context("UTF-8")?])?;
    let reason = "(annotation traffic.sidecar.istio.io/excludeOutboundPorts)";
    ensure!(good && said.contains("=> leaves by eth0") && said.contains(reason), "{said}");
    let (good, said) = explain(&["--mode", "tproxy"])?;
    ensure!(!good && said.contains("eBPF can't carry this configuration out"), "{said}");

    let (_cgroup, topology) = captured(&SETTINGS)?;
    let words = ["explain", "--live", "--bpffs", FOLDER, "--to", "10.71.0.10:80"];
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let (code, said) = ran(&topology.pod, &mut wrapped(&nobody, &millrace(words)?))?;
    ensure!(code == Some(1) && !said.contains("=>"), "{said}");
    let named = "whether eBPF captures here can't be seen";
    ensure!(said.contains(named) && said.contains("capabilities BPF"), "{said}");
    millrace_in_pod(&topology, &["cleanup", "--bpffs", FOLDER], 0)?;
    let words = [&words[..], &["--backend", "ebpf"]].concat();
    let said = millrace_in_pod(&topology, &words, 1)?;
    ensure!(said.contains("eBPF does not capture this pod"), "{said}");
    Ok(())
}

/// Verify that of a pod which eBPF captures nothing is told where another folder is asked: neither that
/// a connection leaves, nor that it is delivered.
#[test]
fn another_folder_knows_nothing() -> Result<()> {
    let (_cgroup, topology) = captured(&[])?;
    for words in [
        &["--to", "10.71.0.10:80/tcp"][..],
        &["--in", "--src", "10.71.0.10", "--to-port", "8080"][..],
    ] {
        let asked = [&["explain", "--live", "--bpffs", "/sys/fs/bpf/other"][..], words].concat();
        let said = millrace_in_pod(&topology, &asked, 1)?;
        ensure!(said.contains("=> can't be told: eBPF captures this pod"), "{said}");
        ensure!(said.contains("--bpffs"), "{said}");
    }
    let said = millrace_in_pod(&topology, &["graph", "--live", "--bpffs", "/sys/fs/bpf/other"], 1)?;
    ensure!(said.contains("not of all that decides: eBPF captures this pod"), "{said}");
    // It has no flag for the folder, and the default one does not hold this pod.
    let said = millrace_in_pod(&topology, &["dump"], 0)?;
    ensure!(said.contains("eBPF captures this pod"), "{said}");
    Ok(())
}

/// Verify that where somebody else's rules translate what eBPF has led, no more is promised to the receiver
/// than it sees: its own end of the connection.
#[test]
fn what_rules_translate_is_not_known_again() -> Result<()> {
    let to: SocketAddr = "10.71.0.10:80".parse()?;
    let after = "postrouting priority 100";
    for (chain, rule, name, changes) in [
        ("output priority -100", "tcp dport 15001 redirect to :8080", "app", true),
        (after, "oif lo ip saddr 10.70.0.2 snat to 127.0.0.9", "proxy", true),
        // The address that it has already.
        (after, "oif lo masquerade", "proxy", false),
        (after, "tcp dport 1 masquerade", "proxy", false),
    ] {
        let (_cgroup, topology) = captured(&[])?;
        let chain = format!("add chain ip other nat {{ type nat hook {chain}; }}");
        let rules = format!("add table ip other; {chain}; add rule ip other nat {rule}");
        topology.pod.run("nft", &[&rules])?;
        let found = live(&topology, &["--to", "10.71.0.10:80/tcp"])?;
        let answer = topology.pod.enter(|| Answer::read(TcpStream::connect(to)?))??;
        let original = answer.original.context("an original destination")?;
        ensure!(answer.name == name, "{rule}: {answer:?}");
        ensure!((original != to) == changes, "{rule}: {answer:?}");
        ensure!(found["fate"]["original"] == original.to_string(), "{rule}: {answer:?}: {found:#}");
    }
    Ok(())
}

/// Verify that programs are asked about what arrives as rules of others have translated it: where it comes
/// from, and where it goes.
#[test]
fn what_rules_translate_is_decided_as_it_is_then() -> Result<()> {
    let to: SocketAddr = "10.70.0.2:8080".parse()?;
    for (settings, chain, rule, name) in [
        // Nobody comes from the excluded network any more.
        (
            ["--exclude-inbound-cidrs", "10.70.0.1/32"],
            "input priority 100",
            "ip saddr 10.70.0.1 tcp dport 8080 snat to 10.70.0.9",
            "proxy",
        ),
        // And from this one everybody does.
        (
            ["--exclude-inbound-cidrs", "10.70.0.9/32"],
            "input priority 100",
            "ip saddr 10.70.0.1 tcp dport 8080 snat to 10.70.0.9",
            "app",
        ),
        (
            ["--exclude-inbound-ports", "8080"],
            "prerouting priority -100",
            "tcp dport 8080 redirect to :80",
            "proxy",
        ),
        (
            ["--exclude-inbound-ports", "80"],
            "prerouting priority -100",
            "tcp dport 8080 redirect to :80",
            "app",
        ),
    ] {
        let (_cgroup, topology) = captured(&settings)?;
        let chain = format!("add chain ip other nat {{ type nat hook {chain}; }}");
        let rules = format!("add table ip other; {chain}; add rule ip other nat {rule}");
        topology.pod.run("nft", &[&rules])?;
        let asked = ["--in", "--iface", "eth0", "--src", "10.70.0.1", "--to", "10.70.0.2:8080/tcp"];
        let found = live(&topology, &asked)?;
        let told = if found["fate"]["port"] == 15006 { "proxy" } else { "app" };
        let answer = topology.outside.enter(|| Answer::read(TcpStream::connect(to)?))??;
        ensure!(answer.name == name && told == name, "{settings:?}: {answer:?}: {found:#}");
    }
    Ok(())
}
