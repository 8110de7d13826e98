//! `millrace verify`: what is expected is proved by real connections, whatever carries the rules
//! out, whoever listens and whoever runs it; and nothing of it is left.

use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, millrace_in_pod, ran, unattended, verified, wrapped};
use millrace_tests::ebpf::{self, Cgroup, FOLDER};
use millrace_tests::process::Listeners;
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{Layout, Stack, Topology};
use serde_json::Value;

const BACKENDS: [&str; 3] = ["iptables-nft", "iptables-legacy", "nftables"];

const SETTINGS: [&str; 8] = [
    "--exclude-inbound-ports",
    "15090",
    "--exclude-outbound-cidrs",
    "10.96.0.1/32,fd96::/64",
    "--exclude-outbound-ports",
    "9092",
    "--dns",
    "all",
];

/// Verify that every connection arrives where it should with each backend, in both families and
/// directions, by TCP and UDP, with and without the configuration; and that nothing is left.
#[test]
fn every_backend_is_proved() -> Result<()> {
    for backend in BACKENDS {
        let topology = unattended(backend, &SETTINGS)?;
        is_proved(&topology, &[]).with_context(|| backend.to_owned())?;
    }
    Ok(())
}

/// The same where eBPF captures; and that another entry than the configuration's is found, and that
/// a pod that eBPF does not capture is no success.
#[test]
fn ebpf_is_proved() -> Result<()> {
    let (_cgroup, topology) = captured_by_ebpf(&SETTINGS)?;
    is_proved(&topology, &["--bpffs", FOLDER])?;
    let other =
        [&["--bpffs", FOLDER, "--exclude-outbound-ports", "61000"], &SETTINGS[..4]].concat();
    let found = verified(&topology, &other, 126)?;
    let connections = found["connections"].as_array().context("connections")?;
    let wrong = |c: &&Value| c["passed"] == false && c["result"]["port"] == 15001;
    ensure!(connections.iter().any(|c| wrong(&c)), "{found:#}");
    millrace_in_pod(&topology, &["cleanup", "--bpffs", FOLDER], 0)?;
    let said = millrace_in_pod(&topology, &["verify", "--backend", "ebpf", "--bpffs", FOLDER], 1)?;
    ensure!(said.contains("eBPF does not capture this pod"), "{said}");
    Ok(())
}

/// Verify that somebody outside connects where new interfaces have IPv6 switched off, and the pod's own not.
#[test]
fn new_interfaces_without_ipv6() -> Result<()> {
    let (_cgroup, topology) = captured_by_ebpf(&[])?;
    let count = |found: &Value| found["connections"].as_array().map(Vec::len);
    let before = verified(&topology, &["--bpffs", FOLDER], 0)?;
    topology.pod.run("sysctl", &["-qw", "net.ipv6.conf.default.disable_ipv6=1"])?;
    let after = verified(&topology, &["--bpffs", FOLDER], 0)?;
    ensure!(after["nobodyOutside"].is_null() && count(&before) == count(&after), "{after:#}");
    Ok(())
}

/// Verify that IPv6 is told that eBPF does not capture.
#[test]
fn ipv6_that_ebpf_leaves_is_told() -> Result<()> {
    let passes = "IPv6 is not captured, and there is an IPv6 address";
    for (settings, is_told) in [(&["--ipv6", "off"][..], true), (&[], false)] {
        let (_cgroup, topology) = captured_by_ebpf(settings)?;
        let found = verified(&topology, &["--bpffs", FOLDER], 0)?;
        let told = found["notMet"].as_array().context("notMet")?;
        ensure!(told.contains(&passes.into()) == is_told, "{found:#}");
        let said = millrace_in_pod(&topology, &["status", "--bpffs", FOLDER], 0)?;
        ensure!(said.contains(&format!("note: {passes}")) == is_told, "{said}");
    }
    Ok(())
}

/// Verify that a namespace without rules is said to be not captured, and that who may not try everything is
/// not told that all of it is proved.
#[test]
fn what_is_not_there_and_what_is_not_tried() -> Result<()> {
    let topology = unattended("nftables", &[])?;
    let said = millrace_in_pod(&topology, &["verify", "--timeout", "10s"], 0)?;
    ensure!(said.starts_with("verified: "), "{said}");
    let nobody = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--inh-caps=-all"];
    let mut verify =
        wrapped(&nobody, &millrace(["verify", "--backend", "nftables", "--timeout", "10s"])?);
    let (code, said) = ran(&topology.pod, &mut verify)?;
    ensure!(code == Some(0) && said.contains("verified in part: "), "{code:?}: {said}");
    ensure!(!said.contains(", 0 not tried"), "{said}");
    millrace_in_pod(&topology, &["cleanup"], 0)?;
    let said = millrace_in_pod(&topology, &["verify"], 1)?;
    ensure!(said.contains("not captured: nothing of Millrace or a mesh's tool is here"), "{said}");
    // Who may try next to nothing proves nothing by what arrives anyway.
    let mut verify = wrapped(&nobody, &millrace(["verify", "--outbound-port", "15001"])?);
    let (code, said) = ran(&topology.pod, &mut verify)?;
    ensure!(code == Some(126) && said.contains("not verified: "), "{code:?}: {said}");
    Ok(())
}

/// A pod that eBPF captures with these settings; nobody listens in it.
fn captured_by_ebpf(settings: &[&str]) -> Result<(Cgroup, Topology)> {
    let (cgroup, mut topology) = ebpf::captured(settings)?;
    topology.stop_listeners();
    Ok((cgroup, topology))
}

/// Whether a pod with [`SETTINGS`] is proved to have them, with and without saying them.
fn is_proved(topology: &Topology, options: &[&str]) -> Result<()> {
    let before = Snapshot::take(&topology.pod)?.without_counters();
    let found = verified(topology, &[options, &SETTINGS].concat(), 0)?;
    assert_eq!((&found["failed"], &found["skipped"]), (&0.into(), &0.into()), "{found:#}");
    let connections = found["connections"].as_array().context("connections")?;
    for (maker, protocol) in [
        ("application", "tcp"),
        ("application", "udp"),
        ("proxy", "tcp"),
        ("proxy", "udp"),
        ("outside", "tcp"),
        ("outside", "udp"),
    ] {
        for family in [".", "["] {
            let is = |c: &&Value| {
                let to = c["to"].as_str().unwrap_or_default();
                c["maker"] == maker && c["protocol"] == protocol && to.contains(family)
            };
            let count = connections.iter().filter(is).count();
            ensure!(count > 0, "no {protocol} of {maker} to {family}");
        }
    }
    for family in [".", "["] {
        let answered = |c: &&Value| {
            let to = c["to"].as_str().unwrap_or_default();
            let asked = c["protocol"] == "udp" && to.contains(family) && to.ends_with(":53");
            asked && c["maker"] == "application" && c["result"]["port"] == 15053
        };
        ensure!(connections.iter().any(|c| answered(&c)), "no DNS query to {family}: {found:#}");
    }
    let unheard = |c: &&Value| c["unheard"] == 15006 && c["passed"] == true;
    assert_eq!(connections.iter().filter(unheard).count(), 2, "{found:#}");
    let captured = |c: &&Value| c["result"]["port"] == 15006 && c["maker"] == "outside";
    assert_eq!(connections.iter().filter(captured).count(), 2, "{found:#}");
    assert_eq!(verified(topology, options, 0)?["failed"], 0);
    let after = Snapshot::take(&topology.pod)?.without_counters();
    assert_eq!(before.differences(&after), "");
    Ok(())
}

/// Verify that TPROXY is proved by transparent listeners.
#[test]
fn tproxy_is_proved() -> Result<()> {
    for backend in BACKENDS {
        let settings = [&SETTINGS[..], &["--mode", "tproxy"]].concat();
        let found = verified(&unattended(backend, &settings)?, &settings, 0)?;
        assert_eq!((&found["failed"], &found["skipped"]), (&0.into(), &0.into()), "{found:#}");
        let connections = found["connections"].as_array().context("connections")?;
        let handed = |c: &&Value| c["expected"]["how"] == "transparent" && c["passed"] == true;
        ensure!(connections.iter().filter(handed).count() >= 2, "{found:#}");
        let unheard = |c: &&Value| c["unheard"] == 15006 && c["passed"] == true;
        assert_eq!(connections.iter().filter(unheard).count(), 4, "{found:#}");
        let reused = |c: &&Value| c["reused"] == true && c["passed"] == true;
        assert_eq!(connections.iter().filter(reused).count(), 4, "{found:#}");
    }
    Ok(())
}

/// Verify that TPROXY which lets connections on to the application is found: the reference's native
/// rules without their guard.
#[test]
fn what_gets_past_a_proxy_that_does_not_listen_is_found() -> Result<()> {
    let mut topology = Topology::new(Stack::Dual, Layout::default())?;
    topology.stop_listeners();
    let apply = ["istio-iptables", "--native-nftables", "-m", "TPROXY", "-i", "*", "-b", "*"];
    millrace_in_pod(&topology, &apply, 0)?;
    assert_eq!(verified(&topology, &[], 0)?["failed"], 0);
    topology.pod.run("nft", &["delete", "table", "inet", "istio-proxy-guard"])?;
    let found = verified(&topology, &[], 126)?;
    let connections = found["connections"].as_array().context("connections")?;
    let wrong: Vec<_> = connections.iter().filter(|c| c["passed"] == false).collect();
    // In each family: without a listener, and as an earlier one, with and without.
    let open = |c: &&&Value| c["unheard"] == 15006 || c["reused"] == true;
    ensure!(wrong.len() == 6 && wrong.iter().filter(open).count() == 6, "{found:#}");
    let explain = ["explain", "--in", "--src", "10.70.0.1", "--to-port", "8080", "--live"];
    let said = millrace_in_pod(&topology, &explain, 0)?;
    let open = "=> without a transparent listener on port 15006: delivered as it is\n";
    ensure!(said.contains(open), "{said}");
    millrace_in_pod(&topology, &apply, 0)?;
    let said = millrace_in_pod(&topology, &explain, 0)?;
    let closed = "=> without a transparent listener on port 15006: dropped: a rule says so\n";
    ensure!(said.contains(closed), "{said}");
    Ok(())
}

/// Verify that a rule that is missing is found, by the connections that need it, with the reason.
#[test]
fn what_is_missing_is_found() -> Result<()> {
    for (rule, maker) in [
        ("MILLRACE_REDIRECT -p tcp -j REDIRECT --to-ports 15001", "application"),
        ("PREROUTING -p tcp -j MILLRACE_INBOUND", "outside"),
        ("MILLRACE_OUTPUT -m owner --uid-owner 1337 -j RETURN", "proxy"),
    ] {
        let topology = unattended("iptables-nft", &["--exclude-inbound-ports", "15090"])?;
        let delete = format!("-t nat -D {rule}");
        topology.pod.run("iptables-nft", &delete.split(' ').collect::<Vec<_>>())?;
        let settings = ["--exclude-inbound-ports", "15090"];
        let found = verified(&topology, &settings, 126)?;
        let connections = found["connections"].as_array().context("connections")?;
        let failed: Vec<&Value> = connections.iter().filter(|c| c["passed"] == false).collect();
        ensure!(!failed.is_empty() && failed.iter().all(|c| c["maker"] == maker), "{found:#}");
        ensure!(failed.iter().all(|c| !c["because"][0].is_null()), "{found:#}");
        let (code, said) =
            ran(&topology.pod, &mut millrace([&["verify"], &settings[..]].concat())?)?;
        ensure!(code == Some(126) && said.contains("FAILED"), "{said}");
        ensure!(said.contains("; expected ") && said.contains("because "), "{said}");
    }
    Ok(())
}

/// Verify that an arrival is what somebody got: a connection that rules lead to the proxy and a rule of
/// somebody else drops on its way, answers to no test, and one that leaves has to be seen to leave.
#[test]
fn what_is_dropped_or_led_elsewhere_is_found() -> Result<()> {
    let settings = ["--exclude-outbound-ports", "9092"];
    let cases: [(&str, &str, &str); 6] = [
        ("-A INPUT -i lo -p tcp --dport 15001 -j DROP", ":61", "led"),
        ("-A INPUT -i lo -p tcp --dport 15001 -j REJECT", ":61", "failed"),
        ("-A OUTPUT -p tcp --dport 9092 -j DROP", ":9092", "unseen"),
        (
            "-A OUTPUT -p tcp --dport 9092 -j REJECT --reject-with icmp-host-unreachable",
            ":9092",
            "failed",
        ),
        (
            "-t nat -I OUTPUT -p tcp --dport 9092 -j DNAT --to-destination 198.51.100.77:80",
            ":9092",
            "led",
        ),
        (
            "-t nat -I OUTPUT -p tcp --dport 61000:61099 -j DNAT --to-destination 198.51.100.77:80",
            ":61",
            "led",
        ),
    ];
    for backend in ["iptables-nft", "nftables"] {
        for (rule, port, seen) in cases {
            let topology = unattended(backend, &settings)?;
            topology.pod.run("iptables-nft", &rule.split(' ').collect::<Vec<_>>())?;
            let found = verified(&topology, &settings, 126)?;
            let connections = found["connections"].as_array().context("connections")?;
            let is_it = |c: &&Value| {
                let to = c["to"].as_str().unwrap_or_default();
                c["maker"] == "application"
                    && c["protocol"] == "tcp"
                    && to.contains('.')
                    && !to.starts_with("127.")
                    && to.contains(port)
                    && c["passed"] == false
            };
            let failed = connections.iter().find(is_it);
            let failed = failed.with_context(|| format!("{backend}, {rule}: {found:#}"))?;
            assert_eq!(failed["result"]["seen"], seen, "{backend}, {rule}: {failed:#}");
        }
    }
    Ok(())
}

/// Verify that it says what its own link goes around: rules that name the pod's interfaces.
#[test]
fn what_is_gone_around_is_said() -> Result<()> {
    let topology = unattended("nftables", &[])?;
    let said = verified(&topology, &[], 0)?;
    assert_eq!(said["notMet"], serde_json::json!([]));
    let rule = "-t mangle -A PREROUTING -i eth0 -p tcp -j DROP";
    topology.pod.run("iptables-nft", &rule.split(' ').collect::<Vec<_>>())?;
    let said = verified(&topology, &[], 126)?;
    let about = |text: &Value| {
        let text = text.as_str().unwrap_or_default();
        text.contains("by eth0: dropped") && text.contains("-i eth0")
    };
    let list = said["notMet"].as_array().context("notMet")?;
    let around = |text: &&Value| text.as_str().is_some_and(|text| text.contains("was tried over"));
    let around: Vec<_> = list.iter().filter(around).collect();
    ensure!(!around.is_empty() && around.into_iter().all(about), "{said:#}");
    // No connection that is made comes by that interface, and every one that others make is lost.
    ensure!(said["failed"] == 0 && said["otherwise"][0]["expected"]["port"] == 15006, "{said:#}");
    Ok(())
}

/// Verify that of two at once the second waits for the first, and tries everything as well.
#[test]
fn two_at_once_try_everything() -> Result<()> {
    let topology = unattended("nftables", &[])?;
    let words = ["verify", "--output", "json", "--inbound-port", "15006"];
    let mut children = Vec::new();
    for _ in 0..2 {
        let mut command = millrace(words)?;
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        children.push(topology.pod.enter(|| command.spawn())??);
    }
    for child in children {
        let output = child.wait_with_output()?;
        ensure!(output.status.code() == Some(0), "{output:?}");
        let found: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(found["skipped"] == 0 && found["nobodyOutside"].is_null(), "{found:#}");
        let list = found["connections"].as_array().into_iter().flatten();
        ensure!(list.filter(|c| c["maker"] == "outside").count() > 0, "{found:#}");
    }
    Ok(())
}

/// Verify that connections are followed to a proxy that already runs.
#[test]
fn a_running_proxy_is_no_hindrance() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    for backend in BACKENDS {
        millrace_in_pod(&topology, &["apply", "--backend", backend], 0)?;
        let found = verified(&topology, &["--inbound-port", "15006"], 0)?;
        let connections = found["connections"].as_array().context("connections")?;
        let by_proxy = |c: &&Value| c["result"]["own"] == false && c["result"]["port"] == 15001;
        ensure!(connections.iter().filter(by_proxy).count() >= 2, "{found:#}");
        ensure!(found["skipped"] == 0, "{found:#}");
    }
    Ok(())
}

/// The same where eBPF captures, of which connection tracking sees nothing.
#[test]
fn a_running_proxy_is_no_hindrance_to_ebpf() -> Result<()> {
    let (_cgroup, topology) = ebpf::captured(&[])?;
    let found = verified(&topology, &["--bpffs", FOLDER], 0)?;
    let connections = found["connections"].as_array().context("connections")?;
    for port in [15001, 15006] {
        let by_proxy = |c: &&Value| c["result"]["own"] == false && c["result"]["port"] == port;
        ensure!(connections.iter().filter(by_proxy).count() >= 2, "{port}: {found:#}");
    }
    ensure!(found["skipped"] == 0, "{found:#}");
    Ok(())
}

/// Verify that a user without any capability proves what it can, and is told what it can't.
#[test]
fn any_user_can_verify() -> Result<()> {
    let topology = unattended("iptables-nft", &[])?;
    let program = millrace([""; 0])?;
    let program = program.get_program().to_str().context("a path")?.to_owned();
    for (user, own, other) in [("1000", "application", "proxy"), ("1337", "proxy", "application")] {
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={user}"), &format!("--regid={user}")]);
        command.args(["--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]);
        command.args([&program, "verify", "--output", "json", "--inbound-port", "15006"]);
        let output = topology.pod.output(&mut command)?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.code() == Some(0), "{output:?}");
        let found: Value = serde_json::from_str(&said)?;
        let passed = |maker: &str, wanted: Value| {
            let list = found["connections"].as_array().into_iter().flatten();
            list.filter(|c| c["maker"] == maker && c["passed"] == wanted).count()
        };
        // What leaves is seen by who may watch alone.
        let unclear = |c: &&Value| c["maker"] == own && c["passed"].is_null();
        let list = || found["connections"].as_array().into_iter().flatten();
        ensure!(passed(own, true.into()) > 2, "{found:#}");
        let leaves = |c: &Value| {
            c["expected"]["fate"] == "leaves"
                && c["result"]["blind"].as_str().is_some_and(|why| why.contains("NET_RAW"))
        };
        ensure!(list().filter(unclear).all(leaves), "{found:#}");
        ensure!(passed(other, true.into()) == 0 && passed(other, Value::Null) > 0, "{found:#}");
        ensure!(found["nobodyOutside"].as_str().is_some_and(|w| w.contains("SYS_ADMIN")));
    }
    Ok(())
}

/// Verify that nothing is left when it is killed in the middle.
#[test]
fn killed_it_leaves_nothing() -> Result<()> {
    let topology = unattended("iptables-nft", &[])?;
    topology.pod.run("iptables-nft", &["-t", "nat", "-F", "MILLRACE_REDIRECT"])?;
    let before = Snapshot::take(&topology.pod)?.without_counters();
    let mut command = millrace(["verify", "--timeout", "60s", "--inbound-port", "15006"])?;
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = topology.pod.enter(|| command.spawn())??;
    let link = || topology.pod.output(Command::new("ip").args(["link", "show", "millrace-verify"]));
    let until = |there: bool| -> Result<()> {
        let began = Instant::now();
        while link()?.status.success() != there {
            ensure!(began.elapsed() < Duration::from_secs(10), "there: {there}");
        }
        Ok(())
    };
    until(true)?;
    child.kill()?;
    child.wait()?;
    until(false)?;
    let after = Snapshot::take(&topology.pod)?.without_counters();
    assert_eq!(before.differences(&after), "");
    Ok(())
}

/// Verify that without rules and without a configuration it is asked for.
#[test]
fn something_has_to_be_expected() -> Result<()> {
    let topology = Topology::new(Stack::V4, Layout::default())?;
    let (code, said) = ran(&topology.pod, &mut millrace(["verify"])?)?;
    ensure!(code == Some(1) && said.contains("give the configuration"), "{said}");
    Ok(())
}

/// Verify that what is expected may come from a file, from a command line of istio-iptables and from
/// a pod's manifest, and that the namespace may be named by path and by process.
#[test]
fn every_source_and_place_is_taken() -> Result<()> {
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    let path = topology.pod.path();
    let path = path.to_str().context("UTF-8")?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.path().join(name);
        std::fs::write(&path, text)?;
        Ok(path.to_str().context("UTF-8")?.to_owned())
    };
    let good = |args: &[&str]| -> Result<()> {
        let words = [&["verify", "--output", "json"], args].concat();
        let output = millrace(words)?.output()?;
        ensure!(output.status.code() == Some(0), "{args:?}: {output:?}");
        let found: Value = serde_json::from_slice(&output.stdout)?;
        ensure!(found["failed"] == 0 && found["skipped"] == 0, "{args:?}: {found:#}");
        Ok(())
    };
    let config = file("config.yaml", "outbound: {excludePorts: [9092]}\nproxy: {uids: [1337]}\n")?;
    millrace_in_pod(&topology, &["apply", "--backend", "nftables", "--config", &config], 0)?;
    good(&["--netns", path, "--config", &config])?;
    let inside = std::fs::metadata(path)?;
    let is_inside = |pid: &u32| {
        let own = std::fs::metadata(format!("/proc/{pid}/ns/net"));
        own.is_ok_and(|own| own.ino() == inside.ino())
    };
    let pid = topology.listeners().iter().map(Listeners::pid).find(is_inside);
    let pid = pid.context("no process in the pod")?.to_string();
    good(&["--pid", &pid, "--config", &config])?;

    let flags = [
        "-p",
        "15001",
        "-z",
        "15006",
        "-u",
        "1337",
        "-m",
        "REDIRECT",
        "-i",
        "*",
        "-b",
        "*",
        "-d",
        "15090,15021,15020",
        "-o",
        "9092",
        "--dual-stack",
    ];
    let istio = [&["istio-iptables"], &flags[..]].concat();
    millrace_in_pod(&topology, &["cleanup"], 0)?;
    millrace_in_pod(&topology, &istio, 0)?;
    good(&[&["--netns", path, "--"], &istio[..]].concat())?;
    let manifest = file(
        "pod.yaml",
        "kind: Pod\nmetadata:\n  name: a\n  namespace: b\n  annotations:\n    \
         sidecar.istio.io/status: '{}'\n    \
         traffic.sidecar.istio.io/excludeOutboundPorts: \"9092\"\nspec:\n  containers: \
         [{name: istio-proxy}, {name: app}]\n",
    )?;
    good(&["--netns", path, "--manifest", &manifest])?;
    // Another manifest is not what is there.
    let other = file("other.yaml", &std::fs::read_to_string(&manifest)?.replace("9092", "9093"))?;
    let output = millrace(["verify", "--netns", path, "--manifest", &other])?.output()?;
    ensure!(output.status.code() == Some(126), "{output:?}");
    Ok(())
}
