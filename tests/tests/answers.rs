//! What `explain` and `diff` say of what they can't know: who chose a default, what a message of ICMP has in
//! place of a port, what a set of ipset holds.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::netns::Namespace;

/// What `millrace` prints, and its exit status.
fn said(words: &[&str]) -> Result<(Option<i32>, String)> {
    let output = Command::new(binary::millrace()?).args(words).output()?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.code(), text))
}

fn pod() -> Result<Namespace> {
    let namespace = Namespace::new()?;
    namespace.ip("link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth0 up\n\
         link set eth1 up\naddr add 10.4.0.2/24 dev eth0\nroute add default via 10.4.0.1\n\
         addr add fe80::8/64 dev eth0 nodad\n")?;
    Ok(namespace)
}

/// Verify that of rules that were read back each says the flag that was given, and of what nobody has to
/// give that it is the default.
#[test]
fn defaults_are_told_as_such() -> Result<()> {
    let millrace = binary::millrace()?;
    let millrace = millrace.to_str().context("UTF-8")?;
    for backend in ["nftables", "iptables-nft"] {
        let pod = pod()?;
        let path = pod.path().to_str().context("UTF-8")?.to_owned();
        pod.run(millrace, &["apply", "--backend", backend, "--outbound-port", "16001"])?;
        let (code, text) = said(&["explain", "--netns", &path, "--to", "10.9.9.9:80/tcp"])?;
        ensure!(
            code == Some(0) && text.contains("go to port 16001 (flag --outbound-port)"),
            "{text}"
        );
        for default in ["proxy-uid", "include-outbound-cidrs", "localhost-cidr"] {
            ensure!(text.contains(&format!("(default of --{default})")), "{backend}: {text}");
        }
        ensure!(
            text.matches("(flag ").count() == text.matches("(flag --outbound-port)").count(),
            "{text}"
        );
        // Nothing tells whether somebody asked for it, or the pod has no address.
        let (code, text) = said(&["explain", "--netns", &path, "--to", "[fe80::9]:80/tcp"])?;
        ensure!(code == Some(0) && !text.contains("(flag --ipv6)"), "{backend}: {text}");
        ensure!(text.contains("=> leaves by "), "{backend}: {text}");
    }
    // Nor of a mesh's tool, in whose tables other values stand for the same.
    let kuma = ["kuma", "install", "transparent-proxy", "--kuma-dp-user", "5678"];
    for (tool, flags, default) in [
        (&["istio-iptables", "-i", "*", "-b", "*"][..], &["-i/", "-b/"][..], "-u/--proxy-uid"),
        (
            &["linkerd", "-p", "4143", "-o", "4140", "-u", "2102"],
            &["-p/", "-o/", "-u/"],
            "-r/--ports-to-redirect",
        ),
        (&kuma, &["--kuma-dp-user"], "--redirect-outbound"),
    ] {
        let pod = pod()?;
        let path = pod.path().to_str().context("UTF-8")?.to_owned();
        pod.run(millrace, tool)?;
        let mut all = String::new();
        let inward = ["--in", "--src", "10.4.0.1", "--to-port", "81"];
        for way in [&["--to", "10.9.9.9:80/tcp"][..], &inward] {
            let (code, text) = said(&[&["explain", "--netns", &path], way].concat())?;
            ensure!(code == Some(0), "{tool:?}: {text}");
            all.push_str(&text);
        }
        let given = |word: &str| flags.iter().any(|flag| word.starts_with(flag));
        ensure!(all.split("(flag ").skip(1).all(given), "{tool:?}: {all}");
        ensure!(all.contains(&format!("(default of {default})")), "{tool:?}: {all}");
    }
    Ok(())
}

/// Verify that a port that is asked for whatever the protocol is can't be told of a message of ICMP, which
/// has its checksum there, and can of TCP.
#[test]
fn icmp_has_no_port() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let pod = pod()?;
    let table = "table ip t {\n chain out {\n  type filter hook output priority 0;\n  th dport 80 drop\n \
        }\n}\n";
    pod.feed("nft", &["-f", "-"], table)?;
    let list = folder.path().join("list");
    fs::write(&list, pod.run("nft", &["-j", "list", "ruleset"])?)?;
    let path = pod.path();
    let places = [
        ["--rules", list.to_str().context("UTF-8")?],
        ["--netns", path.to_str().context("UTF-8")?],
    ];
    for place in places {
        for (to, code, wanted) in [
            ("10.9.9.9:80/tcp", 0, "=> dropped"),
            ("10.9.9.9:81/udp", 0, "=> leaves by"),
            ("10.9.9.9/icmp", 1, "=> can't be told: what a protocol without ports has"),
        ] {
            let (found, text) = said(&[&["explain", "--to", to][..], &place].concat())?;
            ensure!(found == Some(code) && text.contains(wanted), "{to}: {found:?}: {text}");
        }
    }
    Ok(())
}

/// Two files of a rule each.
fn compared(table: &str, one: &str, other: &str) -> Result<(Option<i32>, String)> {
    let folder = tempfile::tempdir()?;
    let save = |name: &str, rule: &str| -> Result<String> {
        let path = folder.path().join(name);
        let chains = if table == "nat" { "OUTPUT" } else { "OUTPUT ACCEPT [0:0]\n:INPUT" };
        fs::write(&path, format!("*{table}\n:{chains} ACCEPT [0:0]\n-A OUTPUT {rule}\nCOMMIT\n"))?;
        Ok(path.to_str().context("UTF-8")?.to_owned())
    };
    said(&["diff", &save("one", one)?, &save("other", other)?])
}

/// Verify that rules that treat connections alike and log them, or choose ports, in another way are no same
/// rules.
#[test]
fn what_makes_no_difference_to_connections_is_compared() -> Result<()> {
    for (table, one, other) in [
        ("filter", "-p tcp -j LOG --log-prefix a", "-p tcp -j LOG --log-prefix b"),
        ("filter", "-p tcp -j NFLOG --nflog-group 1", "-p tcp -j NFLOG --nflog-group 2"),
        ("filter", "-p tcp -j NFLOG --nflog-group 1", "-p tcp -j LOG"),
        ("filter", "-p tcp -j TEE --gateway 10.0.0.1", "-p tcp -j TEE --gateway 10.0.0.2"),
        ("filter", "-p udp -j SET --add-set a src", "-p udp -j SET --add-set a dst"),
        (
            "filter",
            "-j REJECT --reject-with icmp-host-prohibited",
            "-j REJECT --reject-with icmp-net-prohibited",
        ),
        ("filter", "-p udp --dport 53 -j LOG", "-p udp --dport 53"),
        (
            "nat",
            "-p udp -m udp --dport 53 -j REDIRECT --to-ports 15053 --random",
            "-p udp -m udp --dport 53 -j REDIRECT --to-ports 15053",
        ),
    ] {
        let (code, text) = compared(table, one, other)?;
        ensure!(code == Some(0) && text.contains("\n+ IPv4 "), "{one}, {other}: {code:?}: {text}");
        let (code, text) = compared(table, one, one)?;
        ensure!(code == Some(0) && text.contains("rules: the same"), "{one}: {code:?}: {text}");
    }
    // Which of two ways a query goes.
    for (table, one, other) in [
        (
            "nat",
            "-p udp --dport 53 -j REDIRECT --to-ports 15053",
            "-p udp --dport 53 -j REDIRECT --to-ports 53",
        ),
        (
            "nat",
            "-p udp --dport 53 -j DNAT --to-destination 10.0.0.1",
            "-p udp --dport 53 -j DNAT --to-destination 10.0.0.2",
        ),
        ("raw", "-p udp --dport 53 -j CT --zone-orig 1", "-p udp --dport 53 -j CT --zone-reply 1"),
    ] {
        let (code, text) = compared(table, one, other)?;
        ensure!(
            code == Some(1) && text.starts_with("traffic: "),
            "{one}, {other}: {code:?}: {text}"
        );
    }
    Ok(())
}

/// Verify that of rules that ask for a set of ipset nothing says that connections are treated alike: two
/// sets of one name can hold other addresses, and are in no file of rules.
#[test]
fn sets_that_are_held_elsewhere_are_not_equal() -> Result<()> {
    for rule in [
        "-p tcp -m set --match-set bad dst -j DROP",
        "-p tcp -m recent --rcheck --name seen -j DROP",
        "-m bpf --object-pinned /sys/fs/bpf/one -j DROP",
    ] {
        let (code, text) = compared("filter", rule, rule)?;
        ensure!(code == Some(1) && text.contains("can't be told: -m "), "{rule}: {code:?}: {text}");
    }
    let (code, text) =
        compared("filter", "-m limit --limit 1/sec -j DROP", "-m limit --limit 1/sec -j DROP")?;
    ensure!(code == Some(0) && text.contains("rules: the same"), "{code:?}: {text}");
    Ok(())
}

/// Verify that native rules that log in another way differ, saved and live, and that the same do not.
#[test]
fn native_logs_are_compared() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let listed = |at: usize, rule: &str| -> Result<(Namespace, String)> {
        let pod = pod()?;
        let table = format!(
            "table inet t {{\n chain out {{\n  type filter hook output priority 0;\n  {rule}\n }}\n}}\n"
        );
        pod.feed("nft", &["-f", "-"], &table)?;
        let path = folder.path().join(at.to_string());
        fs::write(&path, pod.run("nft", &["-j", "list", "ruleset"])?)?;
        Ok((pod, path.to_str().context("UTF-8")?.to_owned()))
    };
    let rules = [
        "log prefix \"a\"",
        "log prefix \"b\"",
        "log prefix \"a\" level info",
        "log prefix \"a\" level warn flags all",
        "log prefix \"a\" flags tcp sequence,options flags skuid",
        "log group 2 snaplen 64 queue-threshold 3",
        "log group 3",
        "log",
    ];
    let all =
        rules.iter().enumerate().map(|(at, rule)| listed(at, rule)).collect::<Result<Vec<_>>>()?;
    for (at, (pod, list)) in all.iter().enumerate() {
        let live = format!("netns:{}", pod.path().display());
        let (_, text) = said(&["diff", &live, list])?;
        ensure!(text.contains("rules: the same"), "{}: {text}", rules[at]);
        for (_, other) in &all[at + 1..] {
            for one in [list, &live] {
                let (_, text) = said(&["diff", one, other])?;
                ensure!(text.contains("\n+ "), "{}: {one}, {other}: {text}", rules[at]);
            }
        }
    }
    Ok(())
}
