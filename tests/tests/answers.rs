//! What `explain` and `diff` say of what they can't know: who chose a default, what a message of ICMP has in
//! place of a port, what a set of ipset holds.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::capture::{millrace, printed};
use millrace_tests::netns::Namespace;

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
        let (code, text) = printed(&["explain", "--netns", &path, "--to", "10.9.9.9:80/tcp"])?;
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
        let (code, text) = printed(&["explain", "--netns", &path, "--to", "[fe80::9]:80/tcp"])?;
        ensure!(code == Some(0) && !text.contains("(flag --ipv6"), "{backend}: {text}");
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
            let (code, text) = printed(&[&["explain", "--netns", &path], way].concat())?;
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
            let (found, text) = printed(&[&["explain", "--to", to][..], &place].concat())?;
            ensure!(found == Some(code) && text.contains(wanted), "{to}: {found:?}: {text}");
        }
    }
    Ok(())
}

/// Two files of a rule each, in OUTPUT or in the chain that `-A` names; `;` stands between several.
fn compared(table: &str, one: &str, other: &str) -> Result<(Option<i32>, String)> {
    let folder = tempfile::tempdir()?;
    let chains = match table {
        "nat" => &["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"][..],
        "filter" => &["INPUT", "FORWARD", "OUTPUT"],
        "raw" => &["PREROUTING", "OUTPUT"],
        _ => &["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"],
    };
    let chains: Vec<String> =
        chains.iter().map(|chain| format!(":{chain} ACCEPT [0:0]\n")).collect();
    let chains = chains.concat();
    let save = |name: &str, rules: &str| -> Result<String> {
        let path = folder.path().join(name);
        let line = |rule: &str| match rule.trim() {
            "" => String::new(),
            rule if rule.starts_with("-A ") => format!("{rule}\n"),
            rule => format!("-A OUTPUT {rule}\n"),
        };
        let rules: String = rules.split(';').map(line).collect();
        fs::write(
            &path,
            format!("# Generated by iptables-save\n*{table}\n{chains}:X - [0:0]\n{rules}COMMIT\n"),
        )?;
        Ok(path.to_str().context("UTF-8")?.to_owned())
    };
    printed(&["diff", &save("one", one)?, &save("other", other)?])
}

/// Verify that rules differ that do something to packets which is not where their connection goes, or with
/// packets that start none: whatever it is, and whichever side has it.
#[test]
fn what_the_way_of_first_packets_does_not_show_is_compared() -> Result<()> {
    for (table, one, other, wanted) in [
        // Packets that start no connection.
        ("filter", "-A INPUT -m conntrack --ctstate ESTABLISHED -j DROP", "", "established"),
        ("filter", "-A INPUT -m conntrack --ctdir REPLY -j DROP", "", "that answer in"),
        ("filter", "-A INPUT -m conntrack --ctstate INVALID -j DROP", "", "belong to no"),
        ("filter", "-m conntrack --ctstate UNTRACKED -j REJECT", "", "not tracked"),
        ("filter", "-A INPUT -m conntrack --ctstate RELATED -j DROP", "", "announced"),
        ("filter", "-A INPUT -p tcp ! --syn -m conntrack --ctstate NEW -j DROP", "", "midst"),
        (
            "filter",
            "-A INPUT -p icmp --icmp-type 5 -j DROP;-A INPUT -m conntrack --ctstate NEW -j DROP",
            "-A INPUT -m conntrack --ctstate NEW -j DROP",
            "of an established connection: icmp",
        ),
        (
            "filter",
            "-A INPUT -p tcp -m conntrack --ctstate ESTABLISHED -j REJECT --reject-with tcp-reset",
            "-A INPUT -p tcp -m conntrack --ctstate ESTABLISHED -j REJECT",
            "tcp reset -> nothing else",
        ),
        // What comes over lo is known to tracking before it is asked.
        (
            "raw",
            "-A PREROUTING -i lo -m conntrack --ctstate ESTABLISHED -j DROP",
            "",
            "established connection",
        ),
        ("raw", "-A PREROUTING -m conntrack --ctdir REPLY -j DROP", "", "that answer in"),
        // To many hosts, and from none.
        ("filter", "-d 224.0.0.251/32 -p udp -j DROP", "", "224.0.0.251"),
        ("filter", "-d 255.255.255.255/32 -j DROP", "", "255.255.255.255"),
        ("filter", "-A INPUT -s 0.0.0.0/32 -p udp -j DROP", "", "0.0.0.0"),
        // Of hosts and interfaces of which a file says nothing.
        ("filter", "-A FORWARD -p tcp -j DROP", "", "FORWARD"),
        ("filter", "-A INPUT -i eth7 -p tcp -m conntrack --ctstate NEW -j DROP", "", "in by eth7"),
        ("filter", "-A INPUT -i eth+ -j DROP", "-A INPUT -i eth0 -j DROP", "in by eth+"),
        ("filter", "! -o lo -j DROP", "-o eth0 -j DROP", "out by another"),
        ("nat", "-A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE", "", "172.17.0.0/16"),
        // Zones, and what is not tracked.
        ("raw", "-p udp -j CT --zone 3", "-p udp -j CT --zone 4", "zone 3 -> zone 4"),
        ("raw", "-A PREROUTING -p udp --sport 53 -j CT --zone 3", "", "zone 3 -> zone 0"),
        ("raw", "-p udp -j NOTRACK", "", "not tracked -> "),
        // Sources, and how ports are chosen.
        (
            "nat",
            "-A POSTROUTING -j SNAT --to-source 10.0.0.1",
            "-A POSTROUTING -j SNAT --to-source 10.0.0.2",
            "from 10.0.0.1 -> from 10.0.0.2",
        ),
        (
            "nat",
            "-A POSTROUTING -j MASQUERADE --random",
            "-A POSTROUTING -j MASQUERADE",
            "chosen random",
        ),
        (
            "nat",
            "-p udp -m udp --dport 53 -j REDIRECT --to-ports 15053 --random",
            "-p udp -m udp --dport 53 -j REDIRECT --to-ports 15053",
            "chosen random",
        ),
        // Marks that are left, and those that a connection brings.
        ("mangle", "-p tcp -j MARK --set-mark 1", "", "mark 0x1 -> mark as it was"),
        (
            "mangle",
            "-p tcp -j CONNMARK --set-mark 1",
            "-p tcp -j CONNMARK --set-mark 2",
            "connection's mark 0x1 -> connection's mark 0x2",
        ),
        (
            "mangle",
            "-A PREROUTING -m connmark --mark 5 -j CONNMARK --restore-mark",
            "",
            "mark 0x5 -> mark as it was",
        ),
        (
            "mangle",
            "-A PREROUTING -j CONNMARK --restore-mark;-A PREROUTING -m mark --mark 7 -j DROP",
            "-A PREROUTING -j CONNMARK --restore-mark",
            "dropped -> goes on",
        ),
        // The transparent socket that a packet is handed to.
        (
            "mangle",
            "-A PREROUTING -p tcp -j TPROXY --on-port 7020 --on-ip 0.0.0.0 --tproxy-mark 1/1",
            "-A PREROUTING -p tcp -j TPROXY --on-port 7020 --on-ip 127.0.0.1 --tproxy-mark 1/1",
            "for a transparent socket at 127.0.0.1",
        ),
        // What is done to packets.
        ("mangle", "-p tcp -j TOS --set-tos 0x10/0x3f", "", "TOS --set-tos 0x10/0x3f"),
        ("mangle", "-p tcp -j DSCP --set-dscp 0x10", "", "DSCP --set-dscp 0x10"),
        ("mangle", "-p tcp -j TTL --ttl-set 64", "", "TTL --ttl-set 64"),
        ("mangle", "-p tcp -j TCPMSS --set-mss 1400", "-p tcp -j TCPMSS --set-mss 1300", "1300"),
        ("mangle", "-A POSTROUTING -p tcp -j CLASSIFY --set-class 1:10", "", "CLASSIFY"),
        ("mangle", "-p udp -j CHECKSUM --checksum-fill", "", "CHECKSUM"),
        ("filter", "-p tcp -j TEE --gateway 10.0.0.1", "-p tcp -j TEE --gateway 10.0.0.2", "TEE"),
        ("filter", "-p udp -j SET --add-set a src", "-p udp -j SET --add-set a dst", "a dst"),
        ("filter", "-j REJECT --reject-with icmp-host-prohibited", "-j REJECT", "host-prohibited"),
        // What is not known.
        (
            "filter",
            "-p tcp -j NFQUEUE --queue-num 1",
            "-p tcp -j NFQUEUE --queue-num 2",
            "can't be",
        ),
        ("raw", "-A PREROUTING -p tcp -j CT --helper ftp", "", "ct helper set ftp -> nothing else"),
        ("mangle", "-p tcp -j SECMARK --selctx a", "", "can't be told: -j SECMARK"),
        (
            "filter",
            "-A INPUT -m conntrack --ctstate INVALID -m limit --limit 1/s -j DROP",
            "",
            "limit",
        ),
    ] {
        for [first, second] in [[one, other], [other, one]] {
            let (code, text) = compared(table, first, second)?;
            ensure!(code == Some(1), "{first}, {second}: {code:?}: {text}");
            ensure!(first != one || text.contains(wanted), "{one}: {wanted}: {text}");
        }
    }
    Ok(())
}

/// Verify that what does the same in other words is no difference.
#[test]
fn the_same_in_other_words_is_no_difference() -> Result<()> {
    for (table, one, other) in [
        (
            "filter",
            "-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
            "-A INPUT -m state --state RELATED,ESTABLISHED -j ACCEPT",
        ),
        ("filter", "-A INPUT -p tcp -m tcp --dport 80 -j ACCEPT", ""),
        (
            "filter",
            "-A INPUT -p tcp -j X;-A X -m conntrack --ctstate ESTABLISHED -j DROP",
            "-A INPUT -p tcp -m conntrack --ctstate ESTABLISHED -j DROP",
        ),
        (
            "nat",
            "-A POSTROUTING -p tcp -j X;-A X -j SNAT --to-source 10.0.0.1",
            "-A POSTROUTING -p tcp -j SNAT --to-source 10.0.0.1",
        ),
        ("mangle", "-m mark --mark 5 -j MARK --set-mark 5", ""),
        ("mangle", "-j MARK --set-mark 1", "-j MARK --set-mark 3;-j MARK --and-mark 1"),
        ("filter", "-j REJECT", "-j REJECT --reject-with icmp-port-unreachable;-j DROP"),
        ("filter", "-A INPUT -m comment --comment \"x -j DROP\" -p tcp -j ACCEPT", ""),
    ] {
        let (code, text) = compared(table, one, other)?;
        ensure!(code == Some(0), "{one}, {other}: {code:?}: {text}");
        ensure!(
            text.starts_with("traffic: no connection is treated differently\nrules:"),
            "{text}"
        );
    }
    // One configuration by two backends, and what each says of itself.
    let modes = ["--mode redirect", "--mode tproxy", "--dns all", "--dns all --mode tproxy"];
    for mode in modes {
        let by = |backend: &str| format!("apply --ipv6 on {mode} --backend {backend}");
        let (code, text) = printed(&["diff", &by("nftables"), &by("iptables-legacy")])?;
        ensure!(code == Some(0) && text.contains("no connection is"), "{mode}: {code:?}: {text}");
    }
    Ok(())
}

/// Verify that a pod has the rules of the settings that it was captured with, each of them, and is treated as
/// these say.
#[test]
fn a_pod_is_as_its_settings_say() -> Result<()> {
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        for flags in [
            "--dns all --exclude-outbound-cidrs 10.0.0.0/8",
            "--mode tproxy",
            "--mode tproxy --ipv6 off",
            "--ipv6 off --dns all",
        ] {
            let pod = pod()?;
            pod.ip("addr add fd00:4::2/64 dev eth0 nodad\nroute add default via fd00:4::1\n")?;
            let words = format!("apply --backend {backend} {flags}");
            pod.output(&mut millrace(words.split(' '))?)?;
            let output = pod.output(&mut millrace(["diff", "live", &words])?)?;
            let text = String::from_utf8(output.stdout)?;
            let alike = "traffic: no connection is treated differently\nrules: the same\n";
            ensure!(output.status.success() && text == alike, "{words}: {text}");
        }
    }
    Ok(())
}

/// Verify that of packets of no socket it is said that they have none, where rules of owners treat them
/// differently: one of iptables that asks for another owner holds for them, one of nftables does not.
#[test]
fn packets_of_no_socket_are_told() -> Result<()> {
    let by = |backend: &str| format!("apply --include-groups 77 --dns all --backend {backend}");
    let (code, text) = printed(&["diff", &by("nftables"), &by("iptables-nft")])?;
    let packets: Vec<&str> = text.lines().filter(|line| line.contains(" OUTPUT: ")).collect();
    ensure!(code == Some(1) && !packets.is_empty(), "{code:?}: {text}");
    ensure!(packets.iter().all(|line| line.contains(" of no socket")), "{text}");
    Ok(())
}

/// Verify that rules that treat connections alike and log them in another way are no same rules, wherever
/// a comment has what looks like a target.
#[test]
fn what_is_told_of_packets_is_compared() -> Result<()> {
    for (table, one, other) in [
        ("filter", "-p tcp -j LOG --log-prefix a", "-p tcp -j LOG --log-prefix b"),
        ("filter", "-p tcp -j NFLOG --nflog-group 1", "-p tcp -j NFLOG --nflog-group 2"),
        ("filter", "-p tcp -j NFLOG --nflog-group 1", "-p tcp -j LOG"),
        ("filter", "-p udp --dport 53 -j LOG", "-p udp --dport 53"),
        (
            "filter",
            "-m comment --comment \"-j\" -j LOG --log-prefix a",
            "-m comment --comment \"-j\" -j LOG --log-prefix b",
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

/// Verify that native rules that log or do something in another way differ, saved and live, and that the
/// same do not.
#[test]
fn what_native_rules_do_is_compared() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let listed = |at: usize, rule: &str| -> Result<(Namespace, String)> {
        let pod = pod()?;
        let kind =
            if rule.contains("masquerade") { "nat hook postrouting" } else { "filter hook output" };
        let table = format!(
            "table inet t {{\n chain out {{\n  type {kind} priority 0;\n  {rule}\n }}\n}}\n"
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
        "meta priority set 1:10",
        "meta priority set 1:11",
        "tcp option maxseg size set 1400",
        "tcp option maxseg size set rt mtu",
        "reject",
        "reject with icmpx admin-prohibited",
        "reject with icmpx host-unreachable",
        "masquerade",
        "masquerade random",
        "masquerade fully-random,persistent",
    ];
    let all =
        rules.iter().enumerate().map(|(at, rule)| listed(at, rule)).collect::<Result<Vec<_>>>()?;
    for (at, (pod, list)) in all.iter().enumerate() {
        let live = format!("netns:{}", pod.path().display());
        let (_, text) = printed(&["diff", &live, list])?;
        ensure!(text.contains("rules: the same"), "{}: {text}", rules[at]);
        for (place, (_, other)) in all.iter().enumerate().skip(at + 1) {
            // Who is told is no part of what is done to packets.
            let logs = [at, place].iter().all(|rule| rules[*rule].starts_with("log"));
            for one in [list, &live] {
                let (code, text) = printed(&["diff", one, other])?;
                ensure!(text.contains("\n+ "), "{}: {one}, {other}: {text}", rules[at]);
                let wanted = if logs { Some(0) } else { Some(1) };
                ensure!(code == wanted, "{}, {}: {code:?}: {text}", rules[at], rules[place]);
            }
        }
    }
    Ok(())
}

/// Verify that who asks for IPv6 where it is switched off is told so, and that nothing is found wrong with
/// rules that have nothing to capture; and that verify says what is wrong where `lo` alone has none.
#[test]
fn ipv6_that_is_switched_off_is_told() -> Result<()> {
    let millrace = binary::millrace()?;
    let millrace = millrace.to_str().context("UTF-8")?;
    let here = |pod: &Namespace, words: &str| -> Result<String> {
        pod.run("sh", &["-c", &format!("{millrace} {words} 2>&1; echo code $?")])
    };
    let pod = pod()?;
    pod.run("sysctl", &["-qw", "net.ipv6.conf.all.disable_ipv6=1"])?;
    for _again in 0..2 {
        let text = here(&pod, "apply --backend nftables --ipv6 on")?;
        let told = "IPv6 is to be captured (flag --ipv6), and no interface has an IPv6 address";
        ensure!(text.contains(told) && text.ends_with("code 0\n"), "{text}");
        ensure!(!text.contains("off on lo"), "{text}");
    }
    let text = here(&pod, "status --ipv6 on")?;
    ensure!(text.ends_with("code 0\n"), "{text}");
    // Nobody asks for it.
    let text = here(&pod, "apply --backend nftables")?;
    ensure!(!text.contains("IPv6 is to be captured"), "{text}");

    let pod = self::pod()?;
    pod.ip("addr add fd00::2/64 dev eth0 nodad\n")?;
    here(&pod, "apply --backend nftables --ipv6 on")?;
    pod.run("sysctl", &["-qw", "net.ipv6.conf.lo.disable_ipv6=1"])?;
    let text = here(&pod, "verify --ipv6 on")?;
    for to in ["[::1]:61000/tcp", "[fd00::2]:61000/tcp"] {
        let line = text.lines().find(|line| line.contains(&format!("(uid=0,gid=0) to {to}")));
        ensure!(
            line.is_some_and(|line| line.contains("IPv6 is switched off on lo")),
            "{to}: {text}"
        );
    }
    Ok(())
}
