//! What others left, or have beside ours: rules of old releases without their chains, rules that look like
//! ours, maps that lead to our chains, and another capture that shares a chain with ours.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, ran};
use millrace_tests::netns::Namespace;

/// A pod with an address outside.
fn pod() -> Result<Namespace> {
    let pod = Namespace::new()?;
    pod.ip(
        "link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth0 up\nlink set eth1 up\n\
         addr add 10.63.0.2/24 dev eth0\nroute add default via 10.63.0.1\n",
    )?;
    Ok(pod)
}

fn run(pod: &Namespace, words: &[&str]) -> Result<(Option<i32>, String)> {
    ran(pod, &mut millrace(words)?)
}

/// The rules of a family, without comments and counters.
fn saved(pod: &Namespace, program: &str) -> Result<String> {
    let text = pod.run(program, &[])?;
    let lines = text.lines().filter(|line| line.starts_with("-A ") || line.starts_with('*'));
    Ok(lines.flat_map(|line| [line, "\n"]).collect())
}

fn rules(pod: &Namespace, program: &str) -> Result<usize> {
    Ok(saved(pod, program)?.lines().filter(|line| line.starts_with("-A ")).count())
}

/// How the shell script of releases up to 1.6 refused IPv6.
const REFUSAL: &str = "*filter\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\n\
    -A INPUT -i lo -d ::1 -j ACCEPT\n-A INPUT -j REJECT\nCOMMIT\n";

/// DNS capture of releases up to 1.22, without the chains that it stood beside.
fn dns(uid: &str) -> String {
    format!(
        "*nat\n-A OUTPUT -p udp --dport 53 -m owner --uid-owner {uid} -j RETURN\n\
         -A OUTPUT -p udp --dport 53 -m owner --gid-owner {uid} -j RETURN\n\
         -A OUTPUT -d 10.44.0.1/32 -p udp --dport 53 -j REDIRECT --to-ports 15053\nCOMMIT\n\
         *raw\n-A OUTPUT -p udp --dport 53 -m owner --uid-owner {uid} -j CT --zone 1\n\
         -A OUTPUT -p udp --sport 15053 -m owner --uid-owner {uid} -j CT --zone 2\n\
         -A OUTPUT -d 10.44.0.1/32 -p udp --dport 53 -j CT --zone 2\n\
         -A PREROUTING -s 10.44.0.1/32 -p udp --sport 53 -j CT --zone 1\nCOMMIT\n"
    )
}

/// DNS capture of 1.7 and 1.8, for a proxy of this user and group that answers on a port.
fn translated(id: &str, port: u16) -> String {
    format!(
        "*nat\n-A OUTPUT -p udp --dport 53 -m owner --uid-owner {id} -j RETURN\n\
         -A OUTPUT -p udp --dport 53 -m owner --gid-owner {id} -j RETURN\n\
         -A OUTPUT -p udp --dport 53 -j DNAT --to-destination 127.0.0.1:{port}\n\
         -A POSTROUTING -p udp --dport {port} -j SNAT --to-source 127.0.0.1\nCOMMIT\n"
    )
}

/// DNS capture of 1.6.
const ALL_QUERIES: &str = "*nat\n-A OUTPUT -p udp --dport 53 -m owner --gid-owner 1337 -j RETURN\n\
    -A OUTPUT -p udp --dport 53 -j REDIRECT --to-ports 15013\nCOMMIT\n";

/// What 1.8 wrote with DNS capture and TPROXY.
const TRANSLATED: &str = "*mangle\n:ISTIO_DIVERT - [0:0]\n\
    -A OUTPUT -s 127.0.0.1/32 ! -d 127.0.0.1/32 -p tcp -j MARK --set-mark 1337\nCOMMIT\n\
    *nat\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_REDIRECT - [0:0]\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\n\
    -A OUTPUT -p udp --dport 53 -m owner --uid-owner 7 -j RETURN\n\
    -A OUTPUT -p udp --dport 53 -j DNAT --to-destination 127.0.0.1:15053\n\
    -A POSTROUTING -p udp --dport 15053 -j SNAT --to-source 127.0.0.1\n\
    -A ISTIO_OUTPUT -m owner --uid-owner 7 -j RETURN\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n\
    -A ISTIO_REDIRECT -p tcp --dport 53 -j REDIRECT --to-ports 15053\n\
    -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";

/// What 1.22 wrote with DNS capture of some groups, root's among them, and with what traces are told.
const OF_GROUPS: &str = "*nat\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_REDIRECT - [0:0]\n\
    -A OUTPUT -p tcp -j NFLOG --nflog-prefix \"JumpOutbound\" --nflog-group 1337 --nflog-size 20\n\
    -A OUTPUT -p tcp -j ISTIO_OUTPUT\n\
    -A OUTPUT -p udp --dport 53 -m owner --uid-owner 1337 -j RETURN\n\
    -A OUTPUT -p udp --dport 53 -m owner ! --gid-owner 0 -m owner ! --gid-owner 8 -j RETURN\n\
    -A OUTPUT -p udp --dport 53 -j REDIRECT --to-port 15053\n\
    -A ISTIO_OUTPUT -m owner ! --gid-owner 0 -m owner ! --gid-owner 8 -j RETURN\n\
    -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n\
    -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";

/// How 1.0 refused IPv6.
const FIRST_REFUSAL: &str = "*filter\n-A INPUT -m state --state ESTABLISHED -j ACCEPT\n\
    -A INPUT -j REJECT\nCOMMIT\n";

/// Whether a DNS server at the pod's own address is reached.
fn reaches_dns(pod: &Namespace) -> Result<bool> {
    pod.enter(|| {
        let server = UdpSocket::bind("10.63.0.2:53")?;
        let client = UdpSocket::bind("10.63.0.2:0")?;
        client.connect("10.63.0.2:53")?;
        server.set_read_timeout(Some(Duration::from_millis(300)))?;
        client.set_read_timeout(Some(Duration::from_millis(300)))?;
        client.send(b"query")?;
        let mut query = [0; 8];
        let Ok((_, from)) = server.recv_from(&mut query) else { return Ok(false) };
        server.send_to(b"answer", from)?;
        Ok(matches!(client.recv(&mut query), Ok(6)))
    })?
}

/// Ways to take all away.
const CLEANUPS: [&[&str]; 2] = [&["cleanup"], &["istio-iptables", "--cleanup-only"]];

/// Verify that rules of old releases which stand alone are named, and taken away, in both iptables.
#[test]
fn what_old_releases_left_alone_is_known() -> Result<()> {
    for variant in ["nft", "legacy"] {
        let texts = [dns("1337"), translated("1337", 15053), translated("1337", 15013)];
        let texts = texts.into_iter().chain([ALL_QUERIES.to_owned()]).map(|text| ("", text));
        let refusals = [REFUSAL, FIRST_REFUSAL].map(|text| ("6", text.to_owned()));
        for (six, text) in texts.chain(refusals) {
            for cleanup in CLEANUPS {
                let pod = pod()?;
                let all_queries = six.is_empty() && !text.contains("10.44.0.1");
                ensure!(reaches_dns(&pod)?, "no DNS in an empty pod");
                let save = format!("ip{six}tables-{variant}-save");
                pod.feed(&format!("ip{six}tables-{variant}-restore"), &["--noflush"], &text)?;
                ensure!(rules(&pod, &save)? > 0, "nothing was restored");
                ensure!(reaches_dns(&pod)? != all_queries, "{variant}: {text}");
                let (code, said) = run(&pod, &["status"])?;
                ensure!(code == Some(5) && said.contains("are left"), "{variant}: {code:?} {said}");
                let (code, said) = run(&pod, cleanup)?;
                ensure!(code == Some(0), "{variant}: {said}");
                ensure!(rules(&pod, &save)? == 0, "{variant}: {}", saved(&pod, &save)?);
                ensure!(reaches_dns(&pod)?, "{variant}: no DNS after cleanup: {text}");
                let (code, said) = run(&pod, &["status"])?;
                ensure!(code == Some(3), "{variant}: {said}");
            }
        }
    }
    Ok(())
}

/// Verify that what stands beside the chains goes with them, and a rule of somebody else stays.
#[test]
fn what_old_releases_wrote_goes_as_a_whole() -> Result<()> {
    for (variant, text) in ["nft", "legacy"]
        .into_iter()
        .flat_map(|variant| [TRANSLATED, OF_GROUPS].map(|text| (variant, text)))
    {
        for way in CLEANUPS {
            let pod = pod()?;
            let (program, save) =
                (format!("iptables-{variant}"), format!("iptables-{variant}-save"));
            pod.feed(&format!("{program}-restore"), &["--noflush"], text)?;
            let theirs = ["-t", "nat", "-A", "POSTROUTING", "-p", "udp", "--dport", "15054"];
            let theirs = [&theirs[..], &["-j", "SNAT", "--to-source", "127.0.0.1"]].concat();
            pod.run(&program, &theirs)?;
            ensure!(!reaches_dns(&pod)?, "{variant}: DNS is not captured: {text}");
            let (code, said) = run(&pod, &["status"])?;
            ensure!(code == Some(5), "{variant}: {code:?} {said}");
            let (code, said) = run(&pod, way)?;
            ensure!(code == Some(0), "{variant} {way:?}: {said}");
            let left = saved(&pod, &save)?;
            let rules: Vec<&str> = left.lines().filter(|line| line.starts_with("-A ")).collect();
            ensure!(rules.len() == 1 && rules[0].contains("15054"), "{variant} {way:?}: {left}");
            ensure!(reaches_dns(&pod)?, "{variant}: no DNS after cleanup: {text}");
        }
    }
    Ok(())
}

/// Verify that a run puts today's rules in their place.
#[test]
fn what_old_releases_left_is_replaced() -> Result<()> {
    for (variant, dns) in [
        ("nft", dns("1337")),
        ("legacy", dns("1337")),
        ("nft", translated("1337", 15053)),
        ("legacy", translated("1337", 15053)),
    ] {
        let pod = pod()?;
        pod.feed(&format!("ip6tables-{variant}-restore"), &["--noflush"], REFUSAL)?;
        pod.feed(&format!("iptables-{variant}-restore"), &["--noflush"], &dns)?;
        let apply = ["istio-iptables", "--reconcile", "-i", "*", "-b", "*", "-u", "1337"];
        let forced = [&apply[..], &["--force-iptables-binary", variant]].concat();
        let (code, said) = run(&pod, &forced)?;
        ensure!(code == Some(0), "{variant}: {said}");
        ensure!(
            rules(&pod, &format!("ip6tables-{variant}-save"))? == 0,
            "{variant}: IPv6 is refused"
        );
        let left = saved(&pod, &format!("iptables-{variant}-save"))?;
        ensure!(!left.contains("15053") && left.contains("ISTIO_OUTPUT"), "{variant}: {left}");
        ensure!(reaches_dns(&pod)?, "{variant}: no DNS: {left}");
        let (code, said) = run(&pod, &["status"])?;
        ensure!(code == Some(0), "{variant}: {said}");
    }
    Ok(())
}

/// Verify that what others wrote in the same words, for another user, stays.
#[test]
fn dns_capture_of_others_stays() -> Result<()> {
    let like = translated("1337", 15053);
    let (_, alone) = like.split_once("--gid-owner 1337 -j RETURN\n").unwrap_or_default();
    let others = [
        ("", dns("5678")),
        ("", translated("5678", 15053)),
        ("", translated("1337", 5353)),
        ("", like.replace("127.0.0.1:", "127.0.0.2:")),
        (
            "",
            like.replace("OUTPUT -p udp --dport 53 -j", "OUTPUT -d 10.9.9.9 -p udp --dport 53 -j"),
        ),
        ("", format!("*nat\n{alone}")),
        ("", ALL_QUERIES.replace("15013", "15014")),
        ("6", FIRST_REFUSAL.replace("COMMIT", "-A OUTPUT -d fd00::/8 -j ACCEPT\nCOMMIT")),
        ("6", FIRST_REFUSAL.replace("-A INPUT -j REJECT", "-A INPUT -p tcp -j REJECT")),
    ];
    for variant in ["nft", "legacy"] {
        for (six, text) in &others {
            let pod = pod()?;
            let program = format!("ip{six}tables-{variant}");
            pod.feed(&format!("{program}-restore"), &["--noflush"], text)?;
            let save = format!("{program}-save");
            let before = saved(&pod, &save)?;
            let (code, said) = run(&pod, &["status"])?;
            ensure!(code == Some(3), "{variant}: {said}{text}");
            for cleanup in CLEANUPS {
                run(&pod, cleanup)?;
                ensure!(saved(&pod, &save)? == before, "{variant}: {}", saved(&pod, &save)?);
            }
        }
    }
    Ok(())
}

const SIDECAR: [&str; 7] = ["istio-iptables", "-i", "*", "-b", "*", "-u", "1337"];

/// Verify that an interface's rules of somebody else in front of ours stay where the kernel's numbers tell
/// that they are younger.
#[test]
fn interfaces_that_others_spare_stay() -> Result<()> {
    for (variant, behind) in [("nft", false), ("nft", true)] {
        let pod = pod()?;
        let program = format!("iptables-{variant}");
        let (code, said) =
            run(&pod, &[&SIDECAR[..], &["--force-iptables-binary", variant]].concat())?;
        ensure!(code == Some(0), "{said}");
        let rules = [("PREROUTING", "-i"), ("OUTPUT", "-o")];
        for (chain, by) in rules {
            if behind {
                pod.run(&program, &["-t", "nat", "-A", chain, "-d", "10.9.9.9", "-j", "ACCEPT"])?;
            }
            pod.run(&program, &["-t", "nat", "-I", chain, "1", by, "tun0", "-j", "RETURN"])?;
        }
        let cleanup = ["istio-iptables", "--cleanup-only", "--force-iptables-binary", variant];
        let (code, said) = run(&pod, &cleanup)?;
        ensure!(code == Some(0), "{said}");
        let left = saved(&pod, &format!("{program}-save"))?;
        for (chain, by) in rules {
            let rule = format!("-A {chain} {by} tun0 -j RETURN");
            ensure!(left.contains(&rule), "{variant}: {rule} is gone:\n{left}");
        }
        ensure!(!left.contains("ISTIO"), "{left}");
    }
    Ok(())
}

/// Verify that with iptables-legacy, where nothing tells whose an interface's rules are, cleanup names those
/// that go and those that stay, and none that are nobody's but the capture's or somebody else's.
#[test]
fn interfaces_whose_rules_nothing_tells_of_are_named() -> Result<()> {
    let pod = pod()?;
    let own = ["--force-iptables-binary", "legacy", "-c", "net1"];
    let rules = [("PREROUTING", "-i"), ("OUTPUT", "-o")];
    let spare = |place: &str, interface: &str| -> Result<()> {
        for (chain, by) in rules {
            let at = [place, chain, by, interface, "-j", "RETURN"];
            pod.run("iptables-legacy", &[&["-t", "nat"][..], &at].concat())?;
        }
        Ok(())
    };
    // Without a chain of ours they are nobody's business.
    spare("-A", "tun9")?;
    let (code, said) = run(&pod, &["cleanup"])?;
    ensure!(code == Some(0) && !said.contains("tun9"), "{said}");
    pod.run("iptables-legacy", &["-t", "nat", "-F"])?;
    let (code, said) = run(&pod, &[&SIDECAR[..], &own].concat())?;
    ensure!(code == Some(0), "{said}");
    spare("-I", "tun0")?;
    spare("-A", "tun1")?;
    for words in [&["cleanup", "--dry-run"][..], &["cleanup"]] {
        let (code, said) = run(&pod, words)?;
        ensure!(code == Some(0), "{said}");
        for (chain, by) in rules {
            for (interface, what) in [("tun0", "goes"), ("tun1", "stays")] {
                let rule = format!("-A {chain} {by} {interface} -j RETURN (table nat); it {what}");
                ensure!(said.contains(&rule), "{words:?}: {rule} is not named: {said}");
            }
        }
    }
    let left = saved(&pod, "iptables-legacy-save")?;
    ensure!(left.contains("tun1") && !left.contains("tun0") && !left.contains("ISTIO"), "{left}");
    Ok(())
}

/// Verify that a map which leads to a chain of ours is named, with its table, and that nothing has
/// happened.
#[test]
fn a_map_that_leads_to_a_chain_of_ours_is_named() -> Result<()> {
    let pod = pod()?;
    let (code, said) = run(&pod, &SIDECAR)?;
    ensure!(code == Some(0), "{said}");
    let map = "add map ip nat theirs { type ipv4_addr : verdict; }\n\
               add element ip nat theirs { 192.0.2.7 : jump ISTIO_OUTPUT }\n";
    pod.feed("nft", &["-f", "-"], map)?;
    let before = saved(&pod, "iptables-nft-save")?;
    let (code, said) = run(&pod, &["cleanup"])?;
    ensure!(code == Some(1), "{code:?} {said}");
    for part in ["chain ISTIO_OUTPUT of table ip nat", "map theirs", "nft list map ip nat theirs"] {
        ensure!(said.contains(part), "{part} is not named: {said}");
    }
    ensure!(saved(&pod, "iptables-nft-save")? == before);
    pod.run("nft", &["flush", "map", "ip", "nat", "theirs"])?;
    let (code, said) = run(&pod, &["cleanup"])?;
    ensure!(code == Some(0), "{said}");
    Ok(())
}

/// Ambient mode's rules in a pod.
const AMBIENT: &str = "*mangle\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
    -A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\n\
    -A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff\n\
    -A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff\nCOMMIT\n\
    *nat\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
    -A OUTPUT -j ISTIO_OUTPUT\n-A PREROUTING -j ISTIO_PRERT\n\
    -A ISTIO_PRERT -s 169.254.7.127/32 -p tcp -m tcp -j ACCEPT\n\
    -A ISTIO_OUTPUT -d 169.254.7.127/32 -p tcp -m tcp -j ACCEPT\n\
    -A ISTIO_PRERT ! -d 127.0.0.1/32 -p tcp -m tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006\n\
    -A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT\n\
    -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT\n\
    -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001\nCOMMIT\n";

/// Verify that ambient mode's capture is never left half: a sidecar's rules, which have a chain of the same
/// name, take its place as a whole; and where both stand among each other, that is told, and both go.
#[test]
fn a_chain_that_is_shared_with_ambient_mode_goes_as_a_whole() -> Result<()> {
    for variant in ["nft", "legacy"] {
        let pod = pod()?;
        let (restore, save) =
            (format!("iptables-{variant}-restore"), format!("iptables-{variant}-save"));
        let rules = |text: &str| text.lines().filter(|line| line.starts_with("-A")).count();
        pod.feed(&restore, &["--noflush"], AMBIENT)?;
        let apply = [&SIDECAR[..], &["--force-iptables-binary", variant]].concat();
        let before = saved(&pod, &save)?;
        let (code, said) = run(&pod, &apply)?;
        ensure!(code == Some(1) && said.contains("nothing was changed"), "{variant}: {said}");
        ensure!(saved(&pod, &save)? == before, "{variant}: {}", saved(&pod, &save)?);
        let (code, said) = run(&pod, &[&apply[..], &["--reconcile"]].concat())?;
        ensure!(code == Some(0), "{variant}: {code:?} {said}");
        let there = saved(&pod, &save)?;
        ensure!(!there.contains("ISTIO_PRERT") && there.contains("ISTIO_INBOUND"), "{there}");
        let (code, said) = run(&pod, &["status"])?;
        ensure!(code == Some(0) && said.contains("rules of istio-iptables"), "{variant}: {said}");
        let (code, said) = run(&pod, &["cleanup"])?;
        ensure!(code == Some(0) && rules(&saved(&pod, &save)?) == 0, "{variant}: {said}");
        pod.feed(&restore, &["--noflush"], AMBIENT)?;
        let ours = "*nat\n:ISTIO_INBOUND - [0:0]\n:ISTIO_REDIRECT - [0:0]\n\
            -A PREROUTING -p tcp -j ISTIO_INBOUND\n\
            -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN\n\
            -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n\
            -A ISTIO_OUTPUT -j ISTIO_REDIRECT\n\
            -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";
        pod.feed(&restore, &["--noflush"], ours)?;
        let (code, said) = run(&pod, &["status"])?;
        let named = said.contains("Istio's ambient mode") && said.contains("istio-iptables");
        ensure!(code == Some(5) && named, "{variant}: {code:?} {said}");
        let (code, said) = run(&pod, &["cleanup"])?;
        ensure!(code == Some(0) && rules(&saved(&pod, &save)?) == 0, "{variant}: {said}");
    }
    Ok(())
}

/// Verify that a chain of others that the kernel calls before ours is told of, whatever carries ours out;
/// and that nothing is said of a table that is dormant but that it is.
#[test]
fn chains_of_others_and_dormant_tables_are_told_of() -> Result<()> {
    let deciding = "add table inet theirs\n\
        add chain inet theirs early { type filter hook output priority -200; }\n\
        add rule inet theirs early tcp dport 443 drop\n";
    for (how, table) in [("iptables-legacy", None), ("iptables-nft", Some("ip nat"))] {
        let pod = pod()?;
        let (code, said) = run(&pod, &["apply", "--backend", how])?;
        ensure!(code == Some(0), "{said}");
        pod.feed("nft", &["-f", "-"], deciding)?;
        let (_, said) = run(&pod, &["status"])?;
        ensure!(said.contains("chain early of table inet theirs"), "{how}: {said}");
        pod.feed("nft", &["-f", "-"], "add table inet theirs { flags dormant; }\n")?;
        let (code, said) = run(&pod, &["status"])?;
        ensure!(code == Some(0) && !said.contains("early"), "{how}: {said}");
        let Some(table) = table else { continue };
        let explain = ["explain", "--live", "--from", "uid=1000", "--to", "198.51.100.7:80/tcp"];
        let (_, said) = run(&pod, &explain)?;
        ensure!(said.contains("MILLRACE_OUTPUT"), "{said}");
        pod.feed("nft", &["-f", "-"], &format!("add table {table} {{ flags dormant; }}\n"))?;
        let dormant = format!("table {table} is dormant");
        let (_, said) = run(&pod, &explain)?;
        ensure!(said.contains(&dormant) && !said.contains("MILLRACE_OUTPUT"), "{said}");
        for words in [&["dump"][..], &["status"]] {
            let (_, said) = run(&pod, words)?;
            ensure!(said.contains(&dormant), "{words:?}: {said}");
        }
    }
    let pod = pod()?;
    pod.feed("nft", &["-f", "-"], "add table inet millrace { flags dormant; }\n")?;
    let (code, said) = run(&pod, &["status"])?;
    ensure!(code == Some(5) && said.contains("table inet millrace is dormant"), "{code:?} {said}");
    Ok(())
}

/// Verify that an interface of somebody else by the name of ours is neither taken for it nor removed, and
/// that ours is told from it.
#[test]
fn an_interface_that_is_called_like_ours_is_refused() -> Result<()> {
    let alias = "the address that a mesh proxy passes connections on from";
    let others = [
        format!("link add millrace0 type bridge\nlink set millrace0 alias \"{alias}\"\n"),
        "link add millrace0 type veth peer name other0\nlink set millrace0 up\n".to_owned(),
    ];
    for other in others {
        let pod = pod()?;
        pod.ip("addr add fd63::2/64 dev eth0 nodad\n")?;
        pod.ip(&other)?;
        let before = pod.run("ip", &["-o", "link"])?;
        let (code, said) = run(&pod, &["apply", "--backend", "nftables", "--ipv6", "on"])?;
        ensure!(code == Some(1), "{other}: {code:?} {said}");
        ensure!(
            said.contains("millrace0") && said.contains("somebody else made it"),
            "{other}: {said}"
        );
        let (_, said) = run(&pod, &["cleanup"])?;
        ensure!(pod.run("ip", &["-o", "link"])? == before, "{other}: {said}");
        pod.ip("link del millrace0\n")?;
        let (code, said) = run(&pod, &["apply", "--backend", "nftables", "--ipv6", "on"])?;
        ensure!(code == Some(0), "{other}: {said}");
        run(&pod, &["cleanup"])?;
        let left = pod.run("ip", &["-o", "link"])?;
        ensure!(!left.contains("millrace0"), "{left}");
    }
    Ok(())
}

/// Verify that preflight says whether pairs of interfaces can be made, and makes none.
#[test]
fn preflight_asks_for_pairs_of_interfaces() -> Result<()> {
    let pod = pod()?;
    // Not their state: the kernel tells of a carrier a while after it is there (`linkwatch_event()`).
    let links = || -> Result<Vec<String>> {
        let listed = pod.run("ip", &["-o", "link"])?;
        let name = |line: &str| line.split(": ").nth(1).map(str::to_owned);
        Ok(listed.lines().filter_map(name).collect())
    };
    let before = links()?;
    ensure!(before.iter().any(|name| name.starts_with("eth0")), "{before:?}");
    let (_, said) = run(&pod, &["preflight"])?;
    let line = said.lines().find(|line| line.contains("pairs of interfaces"));
    let line = line.with_context(|| format!("nothing is said: {said}"))?;
    ensure!(line.starts_with("yes"), "{line}");
    let after = links()?;
    ensure!(after == before, "{before:?}: {after:?}");
    Ok(())
}
