//! What `status` and `apply` see of a namespace beside the rules themselves.

use anyhow::{Result, ensure};
use millrace_tests::capture::millrace;
use millrace_tests::netns::Namespace;
use millrace_tests::snapshot::Snapshot;

/// A pod with both families.
fn pod() -> Result<Namespace> {
    let pod = Namespace::new()?;
    pod.ip("link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth0 up\n\
        link set eth1 up\naddr add 10.4.0.2/24 dev eth0\naddr add fd00:4::2/64 dev eth0 nodad")?;
    Ok(pod)
}

/// A pod whose only addresses of IPv6 are those that the kernel gives every interface.
fn pod_of_ipv4() -> Result<Namespace> {
    let pod = Namespace::new()?;
    pod.ip("link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth0 up\n\
        link set eth1 up\naddr add 10.4.0.2/24 dev eth0\naddr add fe80::9/64 dev eth0 nodad")?;
    Ok(pod)
}

/// What millrace says, with its exit status.
fn said(pod: &Namespace, args: &[&str]) -> Result<(Option<i32>, String)> {
    let output = pod.output(&mut millrace(args)?)?;
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.code(), said))
}

/// Verify that `status` has an exit status, and says something.
fn is(pod: &Namespace, code: i32, what: &str) -> Result<()> {
    let (found, said) = said(pod, &["status"])?;
    ensure!(
        found == Some(code) && said.contains(what),
        "{code} and {what:?}, not {found:?}: {said}"
    );
    Ok(())
}

/// Apply; it must say something.
fn apply(pod: &Namespace, args: &[&str], what: &str) -> Result<()> {
    let (code, said) = said(pod, &[&["apply"], args].concat())?;
    ensure!(code == Some(0) && said.contains(what), "{args:?} and {what:?}, not {code:?}: {said}");
    Ok(())
}

/// Verify that a table which the kernel does not call is drift, and is called again after `apply`.
#[test]
fn a_dormant_table_is_drift_and_wakes() -> Result<()> {
    for (backend, table) in
        [("nftables", "inet millrace"), ("iptables-nft", "ip nat"), ("iptables-nft", "ip6 nat")]
    {
        let pod = pod()?;
        let args = ["--backend", backend];
        apply(&pod, &args, "")?;
        is(&pod, 0, "captured")?;
        pod.feed("nft", &["-f", "-"], &format!("add table {table} {{ flags dormant; }}\n"))?;
        is(&pod, 5, &format!("clear the flag dormant of table {table}"))?;
        apply(&pod, &args, "dormant")?;
        let listed = pod.run("nft", &["list", "ruleset"])?;
        ensure!(!listed.contains("dormant"), "{listed}");
        is(&pod, 0, "captured")?;
        apply(&pod, &args, "no change")?;
    }
    Ok(())
}

/// Verify that a chain of ours that drops by its policy is drift.
#[test]
fn a_policy_that_drops_is_drift() -> Result<()> {
    let pod = pod()?;
    let args = ["--backend", "nftables"];
    apply(&pod, &args, "")?;
    let chain = "chain inet millrace nat-output { policy drop; }\n";
    pod.feed("nft", &["-f", "-"], chain)?;
    is(&pod, 5, "drifted")?;
    apply(&pod, &args, "nftables")?;
    is(&pod, 0, "captured")?;
    ensure!(!pod.run("nft", &["list", "table", "inet", "millrace"])?.contains("policy drop"));
    Ok(())
}

/// Verify that a builtin chain of iptables-nft that hangs elsewhere is drift.
#[test]
fn a_builtin_chain_that_hangs_elsewhere_is_drift() -> Result<()> {
    let pod = pod()?;
    apply(&pod, &["--backend", "iptables-nft"], "")?;
    let rules = pod.run("nft", &["-s", "list", "table", "ip", "nat"])?;
    let moved = rules.replace("hook output priority -100", "hook output priority 50");
    ensure!(moved != rules, "{rules}");
    pod.feed("nft", &["-f", "-"], &format!("delete table ip nat\n{moved}"))?;
    is(&pod, 5, "drifted")
}

/// Verify that an interface that nothing gets through, IPv6 that is off on it, and a policy routing
/// rule in front of TPROXY's are drift.
#[test]
fn what_rules_need_is_looked_at() -> Result<()> {
    let pod = pod()?;
    apply(&pod, &["--mode", "tproxy"], "")?;
    is(&pod, 0, "captured")?;
    pod.ip("link set lo down")?;
    is(&pod, 5, "set lo up")?;
    apply(&pod, &["--mode", "tproxy"], "set lo up")?;
    is(&pod, 0, "captured")?;
    pod.ip("rule add pref 100 unreachable")?;
    is(&pod, 5, "priority 100 comes before the one for TPROXY")?;
    pod.ip("rule del pref 100\nrule add pref 100 from 10.9.0.0/16 lookup 100")?;
    is(&pod, 0, "captured")?;
    pod.run("sysctl", &["-qw", "net.ipv4.conf.all.src_valid_mark=1"])?;
    is(&pod, 5, "the sysctl src_valid_mark holds for")?;
    pod.run("sysctl", &["-qw", "net.ipv4.conf.all.src_valid_mark=0"])?;
    is(&pod, 0, "captured")?;
    pod.run("sysctl", &["-qw", "net.ipv6.conf.lo.disable_ipv6=1"])?;
    is(&pod, 5, "IPv6 is switched off on lo")
}

/// Verify that rules of others in front of ours are told, and are no drift.
#[test]
fn neighbours_in_front_are_told() -> Result<()> {
    let pod = pod()?;
    apply(&pod, &["--backend", "nftables"], "")?;
    let early = "table ip others {\n chain early {\n  type nat hook output priority -110;\n\
        \n  tcp dport 80 redirect to :1\n }\n chain late {\n  type filter hook input priority 0;\n\
        \n  tcp dport 9 drop\n }\n}\n";
    pod.feed("nft", &["-f", "-"], early)?;
    is(&pod, 0, "note: chain early of table ip others (type nat, priority -110)")?;
    let (_, text) = said(&pod, &["status"])?;
    ensure!(!text.contains("late"), "{text}");
    pod.run("nft", &["delete", "table", "ip", "others"])?;
    apply(&pod, &["--backend", "iptables-nft"], "")?;
    pod.run("iptables-nft", &["-t", "nat", "-I", "OUTPUT", "-d", "10.9.0.0/16", "-j", "ACCEPT"])?;
    is(&pod, 0, "note: a rule of others comes before ours in chain OUTPUT of IPv4 nat")
}

/// Verify that rules which go to a chain of ours are removed with it.
#[test]
fn rules_that_go_to_our_chains_are_no_obstacle() -> Result<()> {
    for (variant, chain) in
        [("nft", "ISTIO_OUTPUT"), ("nft", "MILLRACE_OUTPUT"), ("legacy", "ISTIO_OUTPUT")]
    {
        for backend in [Some("nftables"), Some("iptables-nft"), None] {
            let pod = pod()?;
            let program = format!("iptables-{variant}");
            pod.run(&program, &["-t", "nat", "-N", chain])?;
            pod.run(&program, &["-t", "nat", "-A", "OUTPUT", "-p", "tcp", "-g", chain])?;
            let args = backend.map_or(vec!["cleanup"], |name| vec!["apply", "--backend", name]);
            let (code, said) = said(&pod, &args)?;
            ensure!(code == Some(0), "{variant} {chain} {args:?}: {said}");
            let left = pod.run(&format!("{program}-save"), &[])?;
            ensure!(!left.contains("-g "), "{left}");
        }
    }
    Ok(())
}

/// What istio-iptables wrote up to 1.22 with DNS capture.
const OLDER: &str = "*raw\n\
    -A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 1337 -j CT --zone 1\n\
    -A OUTPUT -p udp -m udp --sport 15053 -m owner --uid-owner 1337 -j CT --zone 2\n\
    -A OUTPUT -d 10.44.0.1/32 -p udp -m udp --dport 53 -j CT --zone 2\n\
    -A PREROUTING -s 10.44.0.1/32 -p udp -m udp --sport 53 -j CT --zone 1\nCOMMIT\n\
    *nat\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_REDIRECT - [0:0]\n\
    -A OUTPUT -p tcp -j ISTIO_OUTPUT\n\
    -A OUTPUT -p udp -m udp --dport 53 -m owner --uid-owner 1337 -j RETURN\n\
    -A OUTPUT -d 10.44.0.1/32 -p udp -m udp --dport 53 -j REDIRECT --to-ports 15053\n\
    -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n\
    -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";

/// Verify that all that older releases of istio-iptables wrote is removed, and nothing beside it.
#[test]
fn older_rules_for_dns_are_removed() -> Result<()> {
    for variant in ["nft", "legacy"] {
        let ways: [&[&str]; 2] = [&["cleanup"], &["istio-iptables", "--cleanup-only"]];
        for way in ways {
            let pod = pod()?;
            pod.feed(&format!("iptables-{variant}-restore"), &["--noflush"], OLDER)?;
            let program = format!("iptables-{variant}");
            let backup = ["-m", "comment", "--comment", "skip -j ISTIO_OUTPUT for backup"];
            let rule = [&["-t", "nat", "-A", "OUTPUT"][..], &backup, &["-j", "RETURN"]].concat();
            pod.run(&program, &rule)?;
            let (code, said) = said(&pod, way)?;
            ensure!(code == Some(0), "{way:?}: {said}");
            let left = pod.run(&format!("{program}-save"), &[])?;
            let rules: Vec<&str> = left.lines().filter(|line| line.starts_with("-A")).collect();
            ensure!(rules.len() == 1 && rules[0].contains("backup"), "{variant} {way:?}: {left}");
        }
    }
    Ok(())
}

/// What Istio's ambient mode writes into a pod.
const AMBIENT: &str = "*mangle\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
    -A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\n\
    -A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff\n\
    -A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark\nCOMMIT\n\
    *nat\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
    -A OUTPUT -j ISTIO_OUTPUT\n-A PREROUTING -j ISTIO_PRERT\n\
    -A ISTIO_PRERT ! -d 127.0.0.1/32 -p tcp -m tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff \
    -j REDIRECT --to-ports 15006\n\
    -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001\n\
    COMMIT\n";

/// Verify that a pod which another mode captures is neither drifted nor half removed: it is named, with what
/// it lacks, and goes as a whole.
#[test]
fn an_ambient_pod_is_named_and_whole() -> Result<()> {
    for variant in ["nft", "legacy"] {
        let pod = pod()?;
        let empty = Snapshot::take(&pod)?;
        let whole = AMBIENT.replace(
            "-A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp",
            "-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT\n\
             -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -j ACCEPT\n\
             -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -p tcp",
        );
        pod.feed(&format!("iptables-{variant}-restore"), &["--noflush"], &whole)?;
        pod.ip("rule add fwmark 0x111/0xfff pref 32764 lookup 100\n\
            route add local 0.0.0.0/0 dev lo table 100")?;
        let wanted = format!("captured: IPv4 by iptables-{variant}, rules of Istio's ambient mode");
        is(&pod, 0, &wanted)?;
        pod.ip("rule del fwmark 0x111/0xfff")?;
        is(&pod, 5, "to repair: add IPv4 rule priority 32764 fwmark 0x111/0xfff lookup 100")?;
        let (code, said) = said(&pod, &["cleanup"])?;
        ensure!(code == Some(0), "{said}");
        let left = Snapshot::take(&pod)?;
        ensure!(left.rules == empty.rules, "{}", empty.differences(&left));
        let rules: Vec<_> = left.chains.values().flatten().collect();
        ensure!(rules.is_empty(), "{rules:?}");
    }
    let pod = pod()?;
    let table = "table inet istio-ambient-nat {\n chain prerouting {\n\
        \n  type nat hook prerouting priority -100;\n }\n}\n";
    pod.feed("nft", &["-f", "-"], table)?;
    is(&pod, 5, "rules of Istio's ambient mode")
}

/// Rules as istio-iptables 1.10 writes them.
const OF_1_10: &str = "*nat\n:ISTIO_INBOUND - [0:0]\n:ISTIO_IN_REDIRECT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n\
    :ISTIO_REDIRECT - [0:0]\n-A PREROUTING -p tcp -j ISTIO_INBOUND\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\n\
    -A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN\n-A ISTIO_INBOUND -p tcp --dport 22 -j RETURN\n\
    -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\n\
    -A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006\n\
    -A ISTIO_OUTPUT -s 127.0.0.6/32 -o lo -j RETURN\n\
    -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT\n\
    -A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN\n\
    -A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN\n\
    -A ISTIO_OUTPUT ! -d 127.0.0.1/32 -o lo -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT\n\
    -A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN\n\
    -A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN\n\
    -A ISTIO_OUTPUT -d 127.0.0.1/32 -j RETURN\n-A ISTIO_OUTPUT -j ISTIO_REDIRECT\n\
    -A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";

/// Verify that a pod that an older release captured is captured, that the form is named, and that what
/// is missing from it is told.
#[test]
fn rules_of_an_older_release_are_compared_in_its_form() -> Result<()> {
    let pod = pod()?;
    pod.feed("iptables-nft-restore", &[], OF_1_10)?;
    is(&pod, 0, "rules as istio-iptables up to 1.17 wrote them")?;
    // Nor does verify find that these rules do what they are to do in that form.
    let (_, proved) = said(&pod, &["verify", "--timeout", "300ms"])?;
    ensure!(!proved.contains("DIFFERS") && proved.contains("0 not, "), "{proved}");
    pod.run("iptables-nft", &["-t", "filter", "-A", "FORWARD", "-i", "eth9", "-j", "DROP"])?;
    let (_, text) = said(&pod, &["status"])?;
    ensure!(!text.contains("note: rules of others"), "{text}");
    let drop = ["-t", "filter", "-A", "INPUT", "-p", "tcp", "--dport", "15006", "-j", "DROP"];
    pod.run("iptables-nft", &drop)?;
    is(&pod, 0, "note: rules of others treat connections differently than desired")?;
    pod.run("iptables-nft", &["-t", "nat", "-D", "ISTIO_OUTPUT", "3"])?;
    is(&pod, 5, "up to 1.17 wrote them, and not whole in that form either")?;
    Ok(())
}

/// Verify that what `dump` prints of a configuration, done by hand, is everything that `status` wants.
#[test]
fn what_dump_prints_is_all_there_is_to_do() -> Result<()> {
    for extra in [&[][..], &["--mode", "tproxy"]] {
        let pod = pod()?;
        let (code, text) = said(&pod, &[&["dump", "--from-config"], extra].concat())?;
        ensure!(code == Some(0), "{text}");
        let (rules, routing) = text.split_once("# routing and addresses\n").unwrap_or_default();
        let (v4, v6) = rules.split_once("# IPv6\n").unwrap_or_default();
        pod.feed("iptables-nft-restore", &["--noflush"], v4)?;
        pod.feed("ip6tables-nft-restore", &["--noflush"], v6)?;
        let steps = routing.replace("# ", "");
        is(&pod, 5, "drifted")?;
        pod.feed("sh", &["-e"], &steps)?;
        is(&pod, 0, "captured")?;
        // Each step is one that is missed.
        pod.run("ip", &["link", "set", "millrace0", "alias", ""])?;
        is(&pod, 5, "interface millrace0")?;
    }
    Ok(())
}

/// Verify that a pod whose mode is another one than asked for lacks nothing twice, and keeps no policy
/// routing rule in silence.
#[test]
fn what_another_mode_left_is_told_once() -> Result<()> {
    let pod = pod()?;
    apply(&pod, &["--mode", "tproxy"], "")?;
    let (code, text) = said(&pod, &["status", "--mode", "redirect"])?;
    ensure!(code == Some(5), "{text}");
    for line in [
        "remove IPv4 rule priority 32133 fwmark 0x539/0xffffffff lookup 133",
        "remove IPv6 rule priority 32133 fwmark 0x539/0xffffffff lookup 133",
        "remove IPv4 route local default dev lo table 133",
        "remove IPv6 route local default dev lo table 133",
    ] {
        let count = text.lines().filter(|found| found.ends_with(line)).count();
        ensure!(count == 1, "{count} times {line}: {text}");
    }
    // The rule of istio-iptables has another priority, and is as good.
    apply(&pod, &["--mode", "tproxy", "--backend", "iptables-nft"], "")?;
    pod.ip("rule del priority 32133\nrule add fwmark 0x539 lookup 133")?;
    is(&pod, 0, "captured")?;
    Ok(())
}

/// Verify that it is told by what a pod is captured that is asked about by another backend.
#[test]
fn what_captures_instead_is_named() -> Result<()> {
    for backend in ["iptables-nft", "iptables-legacy"] {
        let pod = pod()?;
        let asked = ["status", "--backend", "nftables"];
        let (code, before) = said(&pod, &asked)?;
        ensure!(code == Some(3) && !before.contains("instead"), "{code:?}: {before}");
        apply(&pod, &["--backend", backend], "")?;
        let (code, found) = said(&pod, &asked)?;
        let wanted = format!("captured by {backend} instead");
        ensure!(code == Some(3) && found.contains(&wanted), "{code:?}: {found}");
        apply(&pod, &["--backend", "nftables"], "")?;
        let (code, found) = said(&pod, &asked)?;
        ensure!(code == Some(0) && !found.contains("instead"), "{code:?}: {found}");
    }
    Ok(())
}

/// Verify that nobody is told to take capture away, nor to move a rule in front of the end of a chain, where
/// somebody has added or moved a rule of ours and no configuration is given: then it is said that
/// nothing can be said; and what is missing is told with a configuration, or where only rules are.
#[test]
fn changed_rules_are_not_to_be_removed() -> Result<()> {
    let networks = ["-d", "198.51.100.0/24", "-j", "RETURN"];
    for variant in ["nft", "legacy"] {
        let backend = format!("iptables-{variant}");
        let own = ["apply", "--backend", &backend];
        let istio = ["istio-iptables", "-b", "*", "-i", "*"];
        let istio = if variant == "nft" { istio.to_vec() } else { own.to_vec() };
        for (apply, prefix) in [(own.to_vec(), "MILLRACE"), (istio, "ISTIO")] {
            if apply == own && prefix == "ISTIO" {
                continue;
            }
            let chain = format!("{prefix}_OUTPUT");
            let at_front = [&["-I", &chain][..], &networks].concat();
            let behind = [&["-A", &chain][..], &networks].concat();
            let again = vec!["-A", "OUTPUT", "-j", &chain];
            for change in [at_front, behind, vec!["-D", &chain, "2"], again] {
                let pod = pod()?;
                let (code, text) = said(&pod, &apply)?;
                ensure!(code == Some(0), "{apply:?}: {text}");
                pod.run(&backend, &[&["-t", "nat"][..], &change].concat())?;
                let (code, text) = said(&pod, &["status"])?;
                let said_so = text.contains("note: no settings give just these rules");
                let silent = !text.contains("to repair");
                ensure!(
                    code == Some(5) && said_so && silent,
                    "{prefix} {change:?}: {code:?}: {text}"
                );
            }
            // What only has to be added is said.
            let pod = pod()?;
            let (code, text) = said(&pod, &apply)?;
            ensure!(code == Some(0), "{apply:?}: {text}");
            let jump = pod.run(&format!("{backend}-save"), &["-t", "nat"])?;
            let jump = jump.lines().find(|line| line.starts_with("-A OUTPUT")).unwrap_or_default();
            let jump: Vec<&str> = jump.split_ascii_whitespace().skip(1).collect();
            pod.run(&backend, &[&["-t", "nat", "-D"][..], &jump].concat())?;
            is(&pod, 5, &format!("    -A OUTPUT -j {chain}\n"))?;
        }
    }
    Ok(())
}

/// Verify that rules of others which keep connections from being tracked, or refuse what is led to the proxy,
/// are told with every backend; and that rules as other tools write them are not.
#[test]
fn what_undoes_capture_is_told() -> Result<()> {
    let tracked = "keeps what it matches from being tracked";
    let refused = "refuses what is led to the proxy";
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        let other = if backend == "iptables-legacy" { "iptables-legacy" } else { "iptables-nft" };
        for (rule, told) in [
            ("-t raw -I PREROUTING -i eth0 -p tcp --dport 8080 -j NOTRACK", tracked),
            ("-t raw -A OUTPUT -p tcp --dport 80 -j CT --notrack", tracked),
            ("-t filter -I INPUT -p tcp --dport 15006 -j DROP", refused),
            ("-t filter -A OUTPUT -p tcp -m multiport --dports 80,15000:15001 -j REJECT", refused),
        ] {
            let pod = pod()?;
            apply(&pod, &["--backend", backend], "")?;
            let words: Vec<&str> = rule.split_ascii_whitespace().collect();
            pod.run(other, &words)?;
            let (code, text) = said(&pod, &["status"])?;
            ensure!(code == Some(0) && text.contains(told), "{backend} {rule}: {code:?}: {text}");
        }
        let pod = pod()?;
        apply(&pod, &["--backend", backend], "")?;
        let harmless = "*raw\n-A PREROUTING -d 169.254.20.10/32 -p udp -m udp --dport 53 -j NOTRACK\nCOMMIT\n\
            *filter\n:KUBE-FIREWALL - [0:0]\n:DOCKER-USER - [0:0]\n:cali-INPUT - [0:0]\n\
            -A INPUT -j KUBE-FIREWALL\n-A INPUT -j cali-INPUT\n-A FORWARD -j DOCKER-USER\n\
            -A KUBE-FIREWALL -m mark --mark 0x8000/0x8000 -j DROP\n\
            -A cali-INPUT -m conntrack --ctstate INVALID -j DROP\n\
            -A cali-INPUT -p tcp -m tcp --dport 22 -j REJECT\n\
            -A FORWARD -p tcp -m tcp --dport 15006 -j DROP\nCOMMIT\n";
        pod.feed(&format!("{other}-restore"), &["--noflush"], harmless)?;
        let (code, text) = said(&pod, &["status"])?;
        ensure!(code == Some(0) && !text.contains("note:"), "{backend}: {code:?}: {text}");
    }
    let pod = pod()?;
    apply(&pod, &["--backend", "nftables"], "")?;
    let table = "table inet theirs {\n chain out {\n  type route hook output priority -300;\n\
        \n  meta skuid 1000 notrack\n }\n}\n";
    pod.feed("nft", &["-f", "-"], table)?;
    is(&pod, 0, "note: chain out of table inet theirs (type route, priority -300)")
}

/// Verify that an IPv6 address of a pod in which IPv4 alone is captured is told, whatever captures.
#[test]
fn ipv6_that_passes_is_told() -> Result<()> {
    for backend in ["nftables", "iptables-nft", "iptables-legacy"] {
        let pod = pod()?;
        apply(&pod, &["--backend", backend], "")?;
        let (code, text) = said(&pod, &["status"])?;
        ensure!(code == Some(0) && !text.contains("is not captured"), "{backend}: {text}");
        let there = "IPv6 is not captured, and there is an IPv6 address";
        apply(&pod, &["--backend", backend, "--ipv6", "off"], there)?;
        is(&pod, 0, &format!("note: {there}"))?;
        // A pod of a cluster without IPv6 is not bothered with it.
        let pod = pod_of_ipv4()?;
        apply(&pod, &["--backend", backend], "")?;
        let (code, text) = said(&pod, &["status"])?;
        ensure!(code == Some(0) && !text.contains("IPv6 is not captured"), "{code:?}: {text}");
    }
    Ok(())
}

/// Verify that a tool's command line is compared with what is there, also where it says nothing of native
/// nftables and these are there: the same settings are whole, others are not, and where iptables was asked
/// for it is said what there is instead.
#[test]
fn settings_of_a_tool_are_those_of_native_rules() -> Result<()> {
    let native = "--native-nftables";
    for (tool, other) in [
        (&["istio-iptables", "-u", "1337", "-i", "*"][..], &["-o", "77"][..]),
        (
            &["linkerd", "-p", "4143", "-o", "4140", "-u", "2102"],
            &["--inbound-ports-to-ignore", "77"],
        ),
        (
            &["kuma", "install", "transparent-proxy", "--kuma-dp-user", "5678"],
            &["--exclude-inbound-ports", "77"],
        ),
        (
            &["consul", "connect", "redirect-traffic", "-proxy-uid=5995", "-proxy-inbound-port=2"],
            &["-exclude-inbound-port=77"],
        ),
    ] {
        let pod = pod()?;
        let (code, text) = said(&pod, &[tool, &[native]].concat())?;
        ensure!(code == Some(0), "{tool:?}: {code:?}: {text}");
        for (more, wanted) in [(&[][..], 0), (&[native], 0), (other, 5)] {
            let (code, text) = said(&pod, &[&["status", "--"], tool, more].concat())?;
            ensure!(code == Some(wanted) && text.contains(" by nftables"), "{tool:?}: {text}");
        }
        let (code, text) = said(&pod, &["status", "--backend", "iptables-nft"])?;
        let instead = "captured by native nftables instead, rules of ";
        ensure!(code == Some(3) && text.contains(instead), "{code:?}: {text}");
    }
    Ok(())
}
