//! What is around a pod's rules and can't be told of, or costs too much: `millrace explain` of a live
//! namespace names it in place of a guess, and comes to an end.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_tests::capture::{millrace, printed};
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

/// Verify that what policies of `IPsec` decide is named: one blocks a connection that rules and routes let leave.
#[test]
fn policies_of_ipsec_are_named() -> Result<()> {
    let pod = pod()?;
    let leaves = ["--to", "10.9.9.9:80/tcp"];
    let (code, text) = asked(&pod, &leaves)?;
    ensure!(code == Some(0) && text.contains("=> leaves by eth0"), "{text}");
    pod.ip("xfrm policy add dst 10.9.9.9/32 dir out action block\n")?;
    let real = pod.enter(|| UdpSocket::bind("0.0.0.0:0")?.send_to(&[0], "10.9.9.9:80"))?;
    ensure!(real.is_err(), "{real:?}");
    for asks in [&leaves[..], &["--in", "--src", "10.9.9.9", "--to-port", "80"]] {
        let (code, text) = asked(&pod, asks)?;
        ensure!(code == Some(1) && text.contains("ip xfrm policy"), "{text}");
    }
    let (code, text) = asked(&pod, &["--to", "127.0.0.1:80/tcp"])?;
    ensure!(code == Some(0), "{text}");
    Ok(())
}

/// Verify that what comes in by a port of a bridge is named: the bridge gets it, and not the namespace.
#[test]
fn ports_of_bridges_are_named() -> Result<()> {
    let pod = pod()?;
    let inward = ["--in", "--src", "10.4.0.1", "--to-port", "80"];
    let (code, text) = asked(&pod, &inward)?;
    ensure!(code == Some(0), "{text}");
    pod.ip("link add br0 type bridge\nlink set br0 up\nlink set eth0 master br0\n")?;
    let (code, text) = asked(&pod, &inward)?;
    ensure!(code == Some(1) && text.contains("it is a port of"), "{text}");
    // What leaves by it is answered by way of the bridge.
    let (_, text) = asked(&pod, &["--to", "10.9.9.9:80/tcp"])?;
    let answer = "whether the answer arrives is not known: what the interface that it is a port of";
    ensure!(text.contains(answer), "{text}");
    // A macvlan that has all of it is no other case.
    let below = self::pod()?;
    below.ip("link add mv0 link eth0 type macvlan mode passthru\nlink set mv0 up\n")?;
    let (code, text) = asked(&below, &inward)?;
    ensure!(code == Some(1) && text.contains("it is a port of"), "{text}");
    Ok(())
}

/// Verify that who looks at a namespace does not pay for each rule that asks a large set or map: what that would be
/// is more than a machine has.
#[test]
fn rules_share_what_they_ask() -> Result<()> {
    let address = |at: u32| format!("20.{}.{}.{}", at >> 16, at >> 8 & 255, at & 255);
    let all = |line: &dyn Fn(u32) -> String| (0..5000).map(line).collect::<Vec<_>>();
    let elements = all(&|at| address(3 * at)).join(", ");
    let verdicts = all(&|at| format!("{} : drop", address(3 * at))).join(", ");
    let sets = format!(
        "set s {{ type ipv4_addr; flags interval; elements = {{ {elements} }}\n}}\n\
         map m {{ type ipv4_addr : verdict; elements = {{ {verdicts} }}\n}}\n"
    );
    let asks_set = all(&|at| format!("ip daddr @s tcp dport {} meta mark set {}", at + 1, at + 1));
    let asks_map = all(&|at| format!("tcp dport {} ip daddr vmap @m", at + 1));
    for (rules, told) in [(asks_set, true), (asks_map, false)] {
        let pod = pod()?;
        let chain = "type filter hook output priority 0;";
        let rules = rules.join("\n");
        let table = format!("table ip t {{\n{sets}chain c {{\n{chain}\n{rules}\n}}\n}}\n");
        pod.feed("nft", &["-f", "-"], &table)?;
        let (code, text) = asked(&pod, &["--to", "9.9.9.9:80/tcp"])?;
        let named = text.contains("can't be told: ") && text.contains("in the map m");
        ensure!(if told { code == Some(0) } else { code == Some(1) && named }, "{code:?} {text}");
        let place = pod.path().display().to_string();
        let side = format!("netns:{place}");
        for words in [&["explain", "--all", "--netns", &place][..], &["diff", "apply", &side]] {
            let most = peak(words)?;
            ensure!(most < 1000, "{words:?}: {most} MiB");
        }
    }
    Ok(())
}

/// The most memory that a command has had, in MiB (`proc_pid_status(5)`), as long as it was looked at.
fn peak(words: &[&str]) -> Result<u64> {
    let mut child = millrace(words)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let path = format!("/proc/{}/status", child.id());
    let mut most = 0;
    loop {
        let status = fs::read_to_string(&path).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.trim().strip_suffix(" kB"));
        most = number.and_then(|number| number.parse().ok()).unwrap_or(0).max(most);
        if let Some(status) = child.try_wait()? {
            // 1 says that something can't be told, or differs.
            ensure!(matches!(status.code(), Some(0 | 1)), "{words:?}: {status}");
            return Ok(most / 1024);
        }
        thread::sleep(Duration::from_millis(5));
    }
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

/// What a connection to an address outside comes to: refused, or nothing within a moment.
fn is_refused(pod: &Namespace, to: &str) -> Result<bool> {
    let to: SocketAddr = to.parse()?;
    of_refused(pod.enter(|| TcpStream::connect_timeout(&to, PATIENCE).map(drop))?)
}

/// The same of a datagram.
fn is_datagram_refused(pod: &Namespace, to: &str) -> Result<bool> {
    let to: SocketAddr = to.parse()?;
    of_refused(pod.enter(|| {
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(to)?;
        socket.send(b"?")?;
        socket.recv(&mut [0]).map(drop)
    })?)
}

const PATIENCE: Duration = Duration::from_millis(700);

fn of_refused(came_to: io::Result<()>) -> Result<bool> {
    match came_to {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => {
            Ok(false)
        }
        other => bail!("{other:?}"),
    }
}

fn rule(pod: &Namespace, rule: &str) -> Result<()> {
    pod.run("iptables", &rule.split(' ').collect::<Vec<_>>()).map(drop)
}

/// With each rule alone, whether who asks hears of a refusal, for real and as it is told by `says`.
fn is_heard(
    pod: &Namespace,
    program: &str,
    rules: &[(&str, bool)],
    real: impl Fn() -> Result<bool>,
    says: impl Fn() -> Result<bool>,
) -> Result<()> {
    for (words, heard) in rules {
        let run = |words: &str| pod.run(program, &words.split(' ').collect::<Vec<_>>());
        run(words)?;
        ensure!(real()? == *heard, "{program} {words}: really");
        ensure!(says()? == *heard, "{program} {words}: told");
        run(&words.replace("-A OUTPUT", "-D OUTPUT"))?;
    }
    Ok(())
}

/// Whether a connection is said to be refused where nobody listens on the port that it is led to.
fn says_refused_without(pod: &Namespace, words: &[&str]) -> Result<bool> {
    let (_, text) = asked(pod, words)?;
    let told = text.lines().find(|line| line.contains("without a listener on port"));
    Ok(told.with_context(|| text.clone())?.ends_with(": refused"))
}

/// Verify that the kernel's reset of a port on which nobody listens goes its own way through the rules: it
/// answers the connection, has the kernel's socket by IPv4 alone, and may be dropped.
#[test]
fn who_tells_of_no_listener_may_not_be_heard() -> Result<()> {
    let pod = pod()?;
    pod.ip("addr add fd00:4::2/64 dev eth0 nodad\nroute add default via fd00:4::1\n")?;
    pod.output(&mut millrace(["apply", "--backend", "nftables"])?)?;
    let rules = [
        ("-t raw -A OUTPUT -p tcp --sport 15001 -j DROP", false),
        ("-A OUTPUT -p tcp -m conntrack --ctstate ESTABLISHED -j DROP", false),
        ("-A OUTPUT -p tcp -m conntrack --ctstate RELATED -j DROP", true),
        ("-A OUTPUT -p tcp --sport 15001 -m owner --socket-exists -j DROP", false),
        ("-A OUTPUT -p tcp --sport 15001 -m owner --uid-owner 0 -j DROP", true),
        // Tracking has not seen it yet.
        ("-t raw -A OUTPUT -p tcp --sport 15001 -m conntrack --ctstate RELATED -j DROP", true),
        ("-t raw -A OUTPUT -p tcp --sport 15001 -m conntrack --ctstate INVALID -j DROP", false),
    ];
    let says = || says_refused_without(&pod, &["--to", "10.9.9.9:80/tcp"]);
    is_heard(&pod, "iptables", &rules, || is_refused(&pod, "10.9.9.9:80"), says)?;
    let rules = [
        ("-A OUTPUT -p tcp --sport 15001 -m owner --socket-exists -j DROP", true),
        ("-A OUTPUT -p tcp --tcp-flags RST RST -m owner ! --socket-exists -j DROP", false),
    ];
    let says = || says_refused_without(&pod, &["--to", "[2001:db8::7]:80/tcp"]);
    is_heard(&pod, "ip6tables", &rules, || is_refused(&pod, "[2001:db8::7]:80"), says)
}

/// Verify that the message about a UDP port on which nobody listens is for tracking to find the connection of,
/// and that its sender knows nothing of it otherwise.
#[test]
fn who_tells_of_no_port_may_not_be_understood() -> Result<()> {
    let pod = pod()?;
    rule(&pod, "-t nat -A OUTPUT -p udp --dport 90 -j REDIRECT --to-ports 91")?;
    let rules = [
        ("-t raw -A OUTPUT -p icmp -m conntrack --ctstate RELATED -j DROP", true),
        ("-t raw -A OUTPUT -p icmp -m conntrack --ctstate INVALID -j DROP", false),
        ("-t raw -A OUTPUT -p icmp -m connmark --mark 0 -j DROP", true),
        ("-t raw -A OUTPUT -p icmp -j NOTRACK", false),
        ("-t raw -A OUTPUT -p icmp -j CT --zone 3", true),
        ("-t raw -A OUTPUT -p udp -j CT --zone 3", false),
        ("-A OUTPUT -p icmp -m conntrack --ctstate RELATED -j DROP", false),
        ("-A OUTPUT -p icmp -m owner --socket-exists -j DROP", false),
    ];
    let says = || says_refused_without(&pod, &["--to", "10.9.9.9:90/udp"]);
    is_heard(&pod, "iptables", &rules, || is_datagram_refused(&pod, "10.9.9.9:90"), says)
}

/// Verify that a message of ICMP that tells of a refusal has a socket, which rules can ask for.
#[test]
fn what_tells_of_a_refusal_has_the_kernels_socket() -> Result<()> {
    let pod = pod()?;
    rule(&pod, "-A OUTPUT -p tcp --dport 81 -j REJECT")?;
    let rules = [
        ("-A OUTPUT -p icmp -m owner --socket-exists -j DROP", false),
        ("-A OUTPUT -p icmp -m owner ! --socket-exists -j DROP", true),
        ("-A OUTPUT -p icmp -m owner --uid-owner 0 -j DROP", true),
    ];
    let says = || {
        let (_, text) = asked(&pod, &["--to", "10.9.9.9:81/tcp"])?;
        Ok(text.contains("=> refused, and the sender is told"))
    };
    is_heard(&pod, "iptables", &rules, || is_refused(&pod, "10.9.9.9:81"), says)
}

/// Verify that addresses of more than one host are in no class of connections.
#[test]
fn broadcast_is_in_no_class() -> Result<()> {
    let (_, text) = asked(&pod()?, &["--all"])?;
    ensure!(text.contains("any protocol 10.4.0.2,127.0.0.0-127.255.255.254 "), "{text}");
    ensure!(text.contains("any protocol not 10.4.0.2,10.4.0.255,127.0.0.0/8 "), "{text}");
    Ok(())
}

/// Verify that a source port that was not asked about is any that the kernel may choose, so that what rules do
/// to some of them is not told of all.
#[test]
fn a_source_port_is_not_supposed() -> Result<()> {
    let pod = pod()?;
    let to = ["--to", "10.9.9.9:80/tcp"];
    let refused = |words: &[&str]| -> Result<Option<bool>> {
        let (code, text) = asked(&pod, &[&to[..], words].concat())?;
        let refused = text.contains("=> refused, and the sender is told");
        ensure!((code == Some(1)) == text.contains("its source port decides"), "{text}");
        Ok((code == Some(0)).then_some(refused))
    };
    rule(&pod, "-A OUTPUT -p tcp --sport 32768:40000 -j REJECT")?;
    ensure!(refused(&[])?.is_none());
    ensure!(refused(&["--src-port", "33000"])? == Some(true));
    ensure!(refused(&["--src", "10.4.0.2:50000"])? == Some(false));
    rule(&pod, "-A OUTPUT -p tcp --sport 40001:65535 -j REJECT")?;
    ensure!(refused(&[])? == Some(true) && is_refused(&pod, "10.9.9.9:80")?);
    // Each port by itself, in more rules than are looked at one by one.
    rule(&pod, "-F OUTPUT")?;
    let each = (32_768..61_000).step_by(2);
    let each = each.map(|port| format!("-A OUTPUT -p tcp --sport {port} -j REJECT\n"));
    let text = format!("*filter\n{}COMMIT\n", each.collect::<String>());
    pod.feed("iptables-restore", &["--noflush"], &text)?;
    ensure!(refused(&[])?.is_none());
    // The kernel's range is read.
    rule(&pod, "-F OUTPUT")?;
    rule(&pod, "-A OUTPUT -p tcp --sport 10000:20000 -j REJECT")?;
    ensure!(refused(&[])? == Some(false));
    pod.run("sysctl", &["-qw", "net.ipv4.ip_local_port_range=10000 20000"])?;
    ensure!(refused(&[])? == Some(true) && is_refused(&pod, "10.9.9.9:80")?);
    // So is it where a rule drops what answers.
    rule(&pod, "-F OUTPUT")?;
    rule(&pod, "-A INPUT -p tcp --dport 10000:15000 -j DROP")?;
    let (_, text) = asked(&pod, &to)?;
    ensure!(text.contains("whether the answer arrives is not known: its source port"), "{text}");
    // What a translation gives at random is no port that was asked about.
    rule(&pod, "-F INPUT")?;
    rule(&pod, "-t nat -A POSTROUTING -p tcp -j MASQUERADE --random-fully")?;
    let asks = [&to[..], &["--src-port", "45000"]].concat();
    let (_, text) = asked(&pod, &asks)?;
    ensure!(text.contains("from 10.4.0.2\n") && text.contains("the answer arrives"), "{text}");
    rule(&pod, "-t raw -A PREROUTING -p tcp --dport 1024:32767 -j DROP")?;
    let (_, text) = asked(&pod, &asks)?;
    ensure!(text.contains("not known: which source port a random translation gives"), "{text}");
    Ok(())
}

/// Verify that a question which can't be meant is refused, and what the pod has is not said to be missing.
#[test]
fn what_can_not_be_is_not_answered() -> Result<()> {
    let pod = pod()?;
    pod.ip("addr add fd00:4::2/64 dev eth0 nodad\naddr add fd99::7/128 dev lo nodad\n")?;
    for (words, said) in [
        (&["--in", "--src", "10.4.0.1", "--to", "[fd00:4::2]:80"][..], "the other IP version"),
        (&["--src", "fd00:4::2", "--to", "10.9.9.9:80"], "the other IP version"),
        (&["--in", "--src", "10.4.0.1", "--iface", "no", "--to-port", "80"], "no such interface"),
        (&["--to", "10.9.9.9:80", "--iface", "eth0"], "--iface goes with --in"),
        (&["--to", "10.9.9.9:80", "--src-port", "0"], "--src-port"),
        (&["--to", "10.9.9.9:80", "--src", "10.4.0.2:"], "a source is ADDRESS"),
        (&["--to", "10.9.9.9:80", "--src", "10.4.0.2:0"], "a source is ADDRESS"),
    ] {
        let (code, text) = asked(&pod, words)?;
        ensure!(code != Some(0) && text.contains(said), "{words:?}: {text}");
    }
    let (_, text) = asked(&pod, &["--src", "fd99::7", "--to", "[fd00:4::2]:80"])?;
    ensure!(!text.contains("has no address"), "{text}");
    let (_, text) = asked(&pod, &["--src", "fd99::8", "--to", "[fd00:4::2]:80"])?;
    ensure!(text.contains("has no address"), "{text}");
    Ok(())
}
