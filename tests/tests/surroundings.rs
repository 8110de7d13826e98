//! What is around a pod's rules and can't be told of, or costs too much: `millrace explain` of a live
//! namespace names it in place of a guess, and comes to an end.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millrace_tests::capture::printed;
use millrace_tests::netns::Namespace;

fn pod() -> Result<Namespace> {
    let namespace = Namespace::new()?;
    namespace.ip("link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth0 up\n\
         link set eth1 up\naddr add 10.4.0.2/24 dev eth0\nroute add default via 10.4.0.1\n")?;
    Ok(namespace)
}

fn asked(pod: &Namespace, words: &[&str]) -> Result<(Option<i32>, String)> {
    let path = pod.path();
    let path = path.to_string_lossy();
    printed(&[&["explain", "--netns", &*path][..], words].concat())
}

/// Verify that where no address can be a connection's source it isn't told that it is lost: the kernel sends
/// it from `0.0.0.0`.
#[test]
fn what_has_no_source_is_not_said_to_be_lost() -> Result<()> {
    let pod = pod()?;
    pod.ip("addr flush dev eth0\nroute add 10.4.0.1 dev eth0 scope link\nroute add default via 10.4.0.1\n")?;
    let (code, text) = asked(&pod, &["--to", "10.9.9.9:80/tcp"])?;
    ensure!(code == Some(1) && text.contains("a connection from 0.0.0.0"), "{text}");
    Ok(())
}

/// Verify that what a route sends by `lo` isn't said to leave: it comes in again, and the kernel tells the
/// sender that there is no network.
#[test]
fn what_leaves_by_lo_is_not_said_to_arrive() -> Result<()> {
    let pod = pod()?;
    pod.ip("addr add fd99::1/32 dev lo\n")?;
    let real = pod.enter(|| TcpStream::connect("[fd99::5]:8080").map(drop))?;
    ensure!(real.is_err_and(|error| error.kind() == ErrorKind::NetworkUnreachable));
    let (code, text) = asked(&pod, &["--to", "[fd99::5]:8080/tcp"])?;
    ensure!(code == Some(1) && text.contains("a route sends by lo"), "{text}");
    Ok(())
}

/// Verify that who accepts a connection with its mark is said not to be heard where that mark leads back
/// here.
#[test]
fn accepted_marks_are_followed() -> Result<()> {
    let pod = pod()?;
    pod.ip("rule add fwmark 7 lookup 99\nroute add local default dev lo table 99\n")?;
    let rules = "table ip t { chain c { type filter hook prerouting priority -150; \
                 tcp dport 80 meta mark set 7 tproxy to :15006 accept\n }\n}\n";
    pod.feed("nft", &["-f", "-"], rules)?;
    for (value, arrives) in [(0, true), (1, false)] {
        pod.run("sysctl", &["-qw", &format!("net.ipv4.tcp_fwmark_accept={value}")])?;
        let inward = ["--in", "--src", "10.9.9.9", "--iface", "eth0", "--to", "10.4.0.2:80/tcp"];
        let (_, text) = asked(&pod, &inward)?;
        ensure!(text.contains("port 15006"), "{text}");
        ensure!(text.contains("the answer arrives") == arrives, "{value}: {text}");
    }
    Ok(())
}

/// Verify that rules of policy routing, however many, don't keep who looks waiting.
#[test]
fn many_rules_of_policy_routing_are_no_wait() -> Result<()> {
    let from = |at: u32| {
        let (high, low) = (at / 250, at % 250 + 1);
        format!("rule add from 11.0.{high}.{low} fwmark {} lookup {}\n", at + 1, 300 + at)
    };
    let bit = |at: u32| format!("rule add fwmark {0:#x}/{0:#x} lookup 300\n", 1_u32 << at);
    let table = "route add default via 10.4.0.1 table 300\n";
    let all = |count: u32, line: &dyn Fn(u32) -> String| (0..count).map(line).collect::<String>();
    let routes = |count: u32| {
        let line = |at: u32| format!("route add default via 10.4.0.1 table {}\n", 300 + at);
        (0..count).map(line).collect::<String>()
    };
    for lines in [
        all(50, &from),
        all(50, &from) + &routes(50),
        all(31, &bit),
        all(31, &bit) + table,
        all(1000, &from) + &routes(1000),
    ] {
        let pod = pod()?;
        pod.ip(&lines)?;
        let began = Instant::now();
        let (code, text) = asked(&pod, &["--all"])?;
        ensure!(code == Some(0) || text.contains("can't be told"), "{code:?}: {text}");
        let took = began.elapsed();
        ensure!(took < Duration::from_mins(5), "{took:?}: {}", lines.lines().count());
    }
    Ok(())
}

/// Verify that rules which could discard packets of ARP are named where something leaves by a link, since no next
/// hop is found then, and that others, and connections that stay here, are told of as ever.
#[test]
fn rules_that_could_discard_arp_are_named() -> Result<()> {
    let at_eth0 = "type filter hook ingress device eth0 priority 0;";
    let netdev =
        |chain: &str| format!("table netdev t {{\nchain c {{\n{at_eth0}\n{chain}\n}}\n}}\n");
    let arp = |chain: &str| {
        format!(
            "table arp t {{\nchain c {{\ntype filter hook output priority 0;\n{chain}\n}}\n}}\n"
        )
    };
    for (rules, named) in [
        (arp("policy drop;"), "table arp t"),
        (arp("arp operation request drop"), "table arp t"),
        (netdev("policy drop; meta protocol ip accept"), "table netdev t"),
        (netdev("meta mark 0 drop"), "table netdev t"),
        (netdev("meta protocol != ip drop"), "table netdev t"),
        (netdev("meta protocol != ip accept"), ""),
        (arp("counter"), ""),
        (netdev("tcp dport 80 drop; ip6 nexthdr tcp drop"), ""),
    ] {
        let pod = pod()?;
        pod.feed("nft", &["-f", "-"], &rules)?;
        let (code, text) = asked(&pod, &["--to", "10.9.9.9:443/tcp"])?;
        if named.is_empty() {
            ensure!(code == Some(0) && text.contains("=> leaves by eth0"), "{rules}{text}");
        } else {
            let untold = text.contains("can't be told: ") && text.contains(named);
            ensure!(code == Some(1) && untold, "{rules}{code:?} {text}");
        }
        let (code, text) = asked(&pod, &["--to", "127.0.0.1:80/tcp"])?;
        ensure!(code == Some(0), "{rules}{text}");
    }
    Ok(())
}

/// Verify that it isn't told by the table `local` alone which addresses of IPv6 are local: the kernel asks all of
/// routing, of IPv4 that table alone.
#[test]
fn addresses_that_another_table_makes_local_are_named() -> Result<()> {
    let pod = pod()?;
    pod.ip("route add local 2001:db8:b::/64 dev lo table main\nroute add local 10.77.0.0/16 dev lo table main\n")?;
    let rules = "table inet t { chain c { type filter hook output priority 0;\nfib daddr type local drop\n}\n}\n";
    pod.feed("nft", &["-f", "-"], rules)?;
    let (code, text) = asked(&pod, &["--to", "[2001:db8:b::7]:80/tcp"])?;
    let untold = "can't be told: whether a route outside of table local makes it local";
    ensure!(code == Some(1) && text.contains(untold), "{code:?} {text}");
    let (code, text) = asked(&pod, &["--to", "10.77.0.7:80/tcp"])?;
    ensure!(code == Some(0), "{code:?} {text}");
    Ok(())
}
