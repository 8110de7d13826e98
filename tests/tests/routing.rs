//! Policy routing, routes of every kind and the choice of a source address: `millrace explain` of a
//! live namespace says of each connection what the kernel's own look-up says.

use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::millrace;
use millrace_tests::netns::Namespace;
use serde_json::Value;

/// A connection: its destination, the source it is bound to, its user, its mark.
type Asked = (&'static str, Option<&'static str>, u32, u32);

/// What becomes of a connection: the interface that it leaves by and its source, delivered here, or
/// nowhere.
#[derive(Debug, PartialEq, Eq)]
enum Way {
    Out { interface: String, source: String },
    Here,
    Nowhere,
}

/// A namespace with two ways out and both families.
fn pod(lines: &str) -> Result<Namespace> {
    let namespace = Namespace::new()?;
    namespace.ip("link set lo up\n\
         link add eth0 type veth peer name peer0\nlink set eth0 up\nlink set peer0 up\n\
         link add net1 type veth peer name peer1\nlink set net1 up\nlink set peer1 up\n\
         addr add 10.4.0.2/24 dev eth0\naddr add 10.55.0.2/24 dev net1\n\
         addr add fd00:4::2/64 dev eth0 nodad\naddr add fd00:55::2/64 dev net1 nodad\n\
         route add default via 10.4.0.1\nroute add default via fd00:4::1\n")?;
    for line in lines.lines().filter(|line| !line.is_empty()) {
        namespace.run("ip", &line.split(' ').collect::<Vec<_>>())?;
    }
    Ok(namespace)
}

/// What the kernel says. A socket that is bound to no address is looked up again by IPv4 with the source
/// that the first look-up chose, as `connect()` does.
fn kernel(namespace: &Namespace, asked: Asked) -> Result<Way> {
    let (to, source, uid, mark) = asked;
    let get = |source: Option<&str>| -> Result<Value> {
        let mut command = Command::new("ip");
        command.args(["-json", "route", "get", to, "uid", &uid.to_string()]);
        command.args(["mark", &mark.to_string()]);
        command.args(source.map(|source| ["from", source]).into_iter().flatten());
        let output = namespace.output(&mut command)?;
        if !output.status.success() {
            return Ok(Value::Null);
        }
        let found: Value = serde_json::from_slice(&output.stdout)?;
        Ok(found[0].clone())
    };
    let first = get(source)?;
    let chosen = source.or(first["prefsrc"].as_str()).map(str::to_owned);
    let found = match (&chosen, source) {
        (Some(chosen), None) if to.contains('.') => get(Some(chosen))?,
        _ => first,
    };
    if found.is_null() || found["type"] == "unreachable" {
        return Ok(Way::Nowhere);
    }
    if found["type"] == "local" {
        return Ok(Way::Here);
    }
    let interface = found["dev"].as_str().context("dev")?.to_owned();
    Ok(Way::Out { interface, source: chosen.context("prefsrc")? })
}

fn explained(namespace: &Namespace, asked: Asked) -> Result<Way> {
    let (to, source, uid, mark) = asked;
    let to = if to.contains(':') { format!("[{to}]:443/tcp") } else { format!("{to}:443/tcp") };
    let (uid, mark) = (format!("uid={uid}"), mark.to_string());
    let mut words = vec!["explain", "--live", "--output", "json", "--from", &uid];
    words.extend(["--to", &to, "--mark", &mark]);
    words.extend(source.map(|source| ["--src", source]).into_iter().flatten());
    let output = namespace.output(&mut millrace(&words)?)?;
    ensure!(output.status.success(), "{words:?}: {output:?}");
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let fate = &found["fate"];
    match fate["fate"].as_str().context("fate")? {
        "passed" => {
            let source = fate["source"].as_str().context("source")?;
            let (source, _port) = source.rsplit_once(':').context("a port")?;
            let interface = fate["interface"].as_str().context("interface")?.to_owned();
            Ok(Way::Out { interface, source: source.trim_matches(['[', ']']).to_owned() })
        }
        "delivered" => Ok(Way::Here),
        "dropped" => Ok(Way::Nowhere),
        _ => anyhow::bail!("{found:#}"),
    }
}

const V4: [Asked; 10] = [
    ("198.51.100.8", None, 1000, 0),
    ("198.51.100.8", None, 1337, 0),
    ("198.51.100.8", None, 1000, 0x10),
    ("198.51.100.8", Some("10.55.0.2"), 1000, 0),
    ("203.0.113.9", None, 1000, 0),
    ("10.4.0.77", None, 1000, 0),
    ("10.55.0.77", None, 1000, 0),
    ("10.4.0.2", None, 1000, 0),
    ("127.0.0.1", None, 1000, 0),
    ("10.77.0.9", None, 1000, 0),
];

const V6: [Asked; 7] = [
    ("2001:db8::8", None, 1000, 0),
    ("2001:db8::8", None, 1337, 0),
    ("2001:db8::8", None, 1000, 0x10),
    ("fd00:4::77", None, 1000, 0),
    ("fd00:55::77", None, 1000, 0),
    ("fd00:99::1", None, 1000, 0),
    ("::1", None, 1000, 0),
];

fn is_told(what: &str, lines: &str) -> Result<()> {
    let namespace = pod(lines).with_context(|| what.to_owned())?;
    for asked in V4.into_iter().chain(V6) {
        let context = || format!("{what}: {asked:?}");
        let real = kernel(&namespace, asked).with_context(context)?;
        assert_eq!(explained(&namespace, asked).with_context(context)?, real, "{what}: {asked:?}");
    }
    Ok(())
}

/// Verify rules by source, user, mark, destination and interface, inverted ones, and those that leave
/// short prefixes out.
#[test]
fn rules_are_followed() -> Result<()> {
    let table = "route add default via 10.55.0.1 dev net1 table 100\n\
                 route add default via fd00:55::1 dev net1 table 100\n";
    for rule in [
        "rule add from 10.55.0.2 lookup 100",
        "rule add uidrange 1000-1000 lookup 100\n-6 rule add uidrange 1000-1000 lookup 100",
        "rule add fwmark 0x10/0xf0 lookup 100\n-6 rule add fwmark 0x10/0xf0 lookup 100",
        "rule add not fwmark 0x10 lookup 100\n-6 rule add not fwmark 0x10 lookup 100",
        "rule add to 203.0.113.0/24 lookup 100\n-6 rule add to 2001:db8::/32 lookup 100",
        "rule add iif lo lookup 100\n-6 rule add iif lo lookup 100",
        "rule add iif eth0 lookup 100",
        "rule add tos 0x10 lookup 100",
        "rule add not tos 0x10 lookup 100",
        "-6 rule add tos 0x10 lookup 100",
        "-6 rule add not tos 0x10 lookup 100",
        "rule add pref 90 lookup main suppress_prefixlength 0\nrule add pref 100 lookup 100",
        "rule add to 203.0.113.0/24 unreachable",
        "rule add to 203.0.113.0/24 blackhole",
        "rule add to 203.0.113.0/24 nop",
    ] {
        is_told(rule, &format!("{table}{rule}\n"))?;
    }
    Ok(())
}

/// Verify routes of every kind, metrics, and sources that a route names.
#[test]
fn routes_are_followed() -> Result<()> {
    for routes in [
        "",
        "route add unreachable 203.0.113.0/24\nroute add unreachable 2001:db8::/32",
        "route add blackhole 203.0.113.0/24",
        "route add prohibit 203.0.113.0/24",
        "route add throw 203.0.113.0/24",
        "route add local 203.0.113.9 dev lo table local",
        "route add 203.0.113.0/24 via 10.55.0.1",
        "route add 203.0.113.0/24 tos 0x10 via 10.55.0.1",
        "route add 203.0.113.0/24 via 10.99.0.1 dev net1 onlink",
        "addr add 10.4.0.9/24 dev eth0\nroute add 203.0.113.0/24 via 10.4.0.1 src 10.4.0.9",
        "route add default via 10.55.0.1 metric 50\n-6 route add default via fd00:55::1 metric 50",
        "route del default\n-6 route del default",
    ] {
        is_told(routes, &format!("{routes}\n"))?;
    }
    Ok(())
}

/// Verify which of several addresses a connection comes from.
#[test]
fn the_source_is_the_kernels_choice() -> Result<()> {
    for addresses in [
        "addr add 10.4.0.9/24 dev eth0",
        "addr add 10.77.0.2/24 dev eth0\nroute change default via 10.77.0.1",
        "addr add 10.77.0.2/24 dev eth0",
        "addr add 10.77.0.2/32 dev lo\naddr del 10.4.0.2/24 dev eth0\nroute add 10.4.0.0/24 dev eth0\n\
         route add default via 10.4.0.1",
        "addr add 10.88.0.2/24 scope link dev net1\nroute add 203.0.113.0/24 dev net1",
        "addr add 10.66.0.2 peer 10.77.0.9 dev net1",
        "addr del 10.4.0.2/24 dev eth0\naddr add 10.77.0.2 peer 10.4.0.3/32 dev eth0\n\
         addr add 10.4.0.2 peer 10.4.0.1/32 dev eth0\nroute add default via 10.4.0.1",
        "addr del 10.4.0.2/24 dev eth0\naddr add 10.66.0.5/24 dev eth0\n\
         addr add 10.4.0.2 peer 10.77.0.0/24 dev eth0\nroute add 10.4.0.1 dev eth0 scope link\n\
         route add default via 10.4.0.1",
        "addr del 10.4.0.2/24 dev eth0\naddr add 10.4.0.2/24 dev eth0 scope link\n\
         addr add 10.99.0.1/32 dev lo\nroute add default dev eth0 scope global",
        "addr add 2001:db8:4::2/64 dev eth0 nodad\naddrlabel add prefix 2001:db8::/32 label 5",
        "addr add 2001:db8:4::2/64 dev eth0 nodad\n\
         addrlabel add prefix 2001:db8::/32 dev net1 label 5",
        "addr add 2001:db8:4::2/64 dev eth0 nodad",
        "addr add 2001:db8:4::2/64 dev eth0 nodad preferred_lft 0",
        "addr add 2001:db8:4::2/64 dev net1 nodad",
        "addr add fd00:99::2/64 dev eth0 nodad",
        "addr add ::6/128 dev lo nodad",
        "addr del ::1/128 dev lo",
        "addr del fd00:4::2/64 dev eth0\n-6 route add default dev eth0 metric 5",
    ] {
        is_told(addresses, &format!("{addresses}\n"))?;
    }
    Ok(())
}

/// Verify that of a route to this host and a longer one to elsewhere the kernel's is taken: until the first
/// rule of policy routing is added the longer one, and never again once that has gone.
#[test]
fn the_longest_prefix_of_two_tables_wins() -> Result<()> {
    let rule = "rule add from 192.0.2.1 lookup 100\n";
    let gone = format!("{rule}rule del from 192.0.2.1 lookup 100\n");
    for wide in [
        "addr add 10.4.0.7/16 dev lo",
        "route add local 10.4.0.0/16 dev lo",
        "addr add 10.4.0.7/16 dev lo\nroute add 10.4.0.2/32 dev net1",
    ] {
        for rules in ["", rule, &gone] {
            is_told(&format!("{wide} {rules}"), &format!("{wide}\n{rules}"))?;
        }
    }
    Ok(())
}

/// Verify that an address that changes from time to time is taken where that is wanted.
#[test]
fn temporary_addresses_are_taken_where_they_are_wanted() -> Result<()> {
    for wanted in [1, 2] {
        let namespace = pod("")?;
        namespace.run("sysctl", &["-qw", &format!("net.ipv6.conf.eth0.use_tempaddr={wanted}")])?;
        let lines = "-6 addr add 2001:db8:4::2/64 dev eth0 nodad mngtmpaddr";
        namespace.run("ip", &lines.split(' ').collect::<Vec<_>>())?;
        let usable = |namespace: &Namespace| {
            namespace.run("ip", &["-6", "addr", "show", "dev", "eth0", "temporary", "-tentative"])
        };
        until("a temporary address", || Ok(usable(&namespace)?.contains("inet6")))?;
        let asked = ("2001:db8::8", None, 1000, 0);
        assert_eq!(explained(&namespace, asked)?, kernel(&namespace, asked)?, "{wanted}");
    }
    Ok(())
}

fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while !holds()? {
        ensure!(Instant::now() < end, "no {what}");
        sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Verify that a route by a link without a carrier is passed over where a setting says so, and that else
/// what is sent there is said to be lost.
#[test]
fn a_link_without_a_carrier_is_told() -> Result<()> {
    let routes = "route add 203.0.113.0/24 via 10.55.0.1\n\
                  route add 203.0.113.0/24 via 10.4.0.1 metric 500\n\
                  route add 2001:db8::/64 via fd00:55::1\nroute add 2001:db8::/64 via fd00:4::1 metric 5000\n";
    for ignored in [true, false] {
        let namespace = pod(routes)?;
        for family in ["ipv4", "ipv6"] {
            let on = u8::from(ignored);
            let setting = format!("net.{family}.conf.all.ignore_routes_with_linkdown={on}");
            namespace.run("sysctl", &["-qw", &setting])?;
        }
        namespace.run("ip", &["link", "set", "peer1", "down"])?;
        let routes = || namespace.run("ip", &["route", "show", "203.0.113.0/24"]);
        until("route that is down", || Ok(routes()?.contains("linkdown")))?;
        for to in ["203.0.113.9", "2001:db8::8"] {
            let asked = (to, None, 1000, 0);
            let (said, real) = (explained(&namespace, asked)?, kernel(&namespace, asked)?);
            if ignored {
                assert_eq!(said, real, "{to}");
                ensure!(matches!(said, Way::Out { interface, .. } if interface == "eth0"), "{to}");
            } else {
                ensure!(matches!(real, Way::Out { interface, .. } if interface == "net1"), "{to}");
                assert_eq!(said, Way::Nowhere, "{to}");
            }
        }
    }
    Ok(())
}

/// A default route with a path by each interface.
const SPREAD: &str =
    "route del default\nroute add default nexthop via 10.4.0.1 nexthop via 10.55.0.1 dev net1\n";

/// Verify that a route with several paths is told where they lead to one end, and else said not to be.
#[test]
fn paths_of_one_route_are_not_guessed() -> Result<()> {
    let namespace = pod(SPREAD)?;
    let asked = |extra: &[&str]| -> Result<Value> {
        let words = ["explain", "--live", "--output", "json", "--from", "uid=1000"];
        let words = [&words[..], &["--to", "198.51.100.8:443/tcp"], extra].concat();
        let output = namespace.output(&mut millrace(words)?)?;
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let found = asked(&[])?;
    assert_eq!(found["fate"]["interface"], "eth0 or net1", "{found:#}");
    // A socket gets the address of one path, and the kernel chooses another path for the packet.
    for rule in ["-o net1", "-s 10.4.0.2 -o net1", "-s 10.55.0.2"] {
        let words = |verb: &str| format!("{verb} OUTPUT {rule} -j DROP");
        namespace.run("iptables", &words("-A").split(' ').collect::<Vec<_>>())?;
        let found = asked(&[])?;
        assert_eq!(found["fate"]["fate"], "unknown", "{rule}: {found:#}");
        namespace.run("iptables", &words("-D").split(' ').collect::<Vec<_>>())?;
    }
    namespace.output(&mut millrace(["apply", "--backend", "nftables"])?)?;
    let found = asked(&[])?;
    assert_eq!(found["fate"]["port"], 15001, "{found:#}");
    // Whichever path it takes it leaves, which verify tries, with both next hops known.
    for (hop, link) in [("10.4.0.1", "eth0"), ("10.55.0.1", "net1"), ("fd00:4::1", "eth0")] {
        let words = ["neigh", "add", hop, "lladdr", "02:00:00:00:00:01", "dev", link];
        namespace.run("ip", &words)?;
    }
    let output = namespace.output(&mut millrace(["verify"])?)?;
    let said = String::from_utf8_lossy(&output.stdout);
    let left = |line: &&str| line.starts_with("ok") && line.contains("left the pod untouched");
    let left: Vec<&str> = said.lines().filter(left).collect();
    ensure!(output.status.success(), "{said}");
    for to in ["203.0.113.2:61000/tcp", "203.0.113.2:61000/udp"] {
        ensure!(left.iter().any(|line| line.contains(to)), "{to}: {said}");
    }
    Ok(())
}

/// Verify that what comes in is held against the way back, as `rp_filter` says, and against settings.
#[test]
fn what_comes_in_is_held_against_the_way_back() -> Result<()> {
    for (settings, lines, source) in [
        ("", "", "198.51.100.8"),
        ("rp_filter=1", "", "198.51.100.8"),
        ("rp_filter=1", "", "10.55.0.9"),
        ("rp_filter=2", "", "10.55.0.9"),
        ("rp_filter=1", SPREAD, "198.51.100.8"),
        ("rp_filter=2", SPREAD, "198.51.100.8"),
        ("rp_filter=2", "route del default\n", "198.51.100.8"),
        ("rp_filter=0", "route del default\n", "198.51.100.8"),
        ("", "", "10.4.0.2"),
        ("accept_local=1", "", "10.4.0.2"),
        ("accept_local=1", "", "10.55.0.2"),
        ("accept_local=1 net.ipv4.conf.eth0.rp_filter=1", "", "10.4.0.2"),
        ("accept_local=1 net.ipv4.conf.eth0.rp_filter=1", "", "10.55.0.2"),
        ("accept_local=1 net.ipv4.conf.eth0.rp_filter=2", "", "10.55.0.2"),
        ("", "route add unreachable 203.0.113.0/24\nrule add fwmark 1 lookup 100\n", "203.0.113.9"),
    ] {
        let what = format!("{settings} {lines}{source}");
        let namespace = pod(lines).with_context(|| what.clone())?;
        if !settings.is_empty() {
            let words = format!("-qw net.ipv4.conf.eth0.{settings}");
            namespace.run("sysctl", &words.split(' ').collect::<Vec<_>>())?;
        }
        let mut get = Command::new("ip");
        get.args(["route", "get", "10.4.0.2", "from", source, "iif", "eth0"]);
        let taken = namespace.output(&mut get)?.status.success();
        let words = ["explain", "--live", "--output", "json", "--in", "--src", source];
        let words = [&words[..], &["--iface", "eth0", "--to", "10.4.0.2:80/tcp"]].concat();
        let output = namespace.output(&mut millrace(words)?)?;
        let found: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(found["fate"]["fate"] == "delivered", taken, "{what}: {found:#}");
    }
    Ok(())
}

/// Verify that what rules of somebody lead to IPv6's localhost gets there by the interfaces alone that have
/// a route to it, as eBPF capture makes them.
#[test]
fn localhost_is_behind_what_leads_there() -> Result<()> {
    let route = "-6 route add local ::1 dev eth0 table local proto 109\n";
    let mut ends = Vec::new();
    for lines in ["", route] {
        let namespace = pod(lines)?;
        let rules = "table ip6 theirs {\n chain c { type nat hook prerouting priority -100\n \
                     tcp dport 80 dnat to ::1\n }\n}\n";
        namespace.feed("nft", &["-f", "-"], rules)?;
        let mut get = Command::new("ip");
        get.args(["-json", "-6", "route", "get", "::1", "from", "fd00:4::9", "iif", "eth0"]);
        let output = namespace.output(&mut get)?;
        let said: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let arrives = output.status.success() && said[0]["type"] == "local";
        let words = ["explain", "--live", "--output", "json", "--in", "--src", "fd00:4::9"];
        let words = [&words[..], &["--iface", "eth0", "--to", "[fd00:4::2]:80/tcp"]].concat();
        let output = namespace.output(&mut millrace(words)?)?;
        let found: Value = serde_json::from_slice(&output.stdout)?;
        assert_eq!(found["fate"]["fate"] == "delivered", arrives, "{lines}: {found:#}");
        ends.push(arrives);
    }
    assert_eq!(ends, [false, true]);
    Ok(())
}
