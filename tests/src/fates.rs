//! Random policies and connections, and what really becomes of these, held against what the
//! simulator says.

use std::net::{IpAddr, SocketAddr};
use std::thread;

use anyhow::{Context as _, Result, ensure};
use millrace_core::sim::{
    Direction, Fate, How, Known, Namespace as Surroundings, Outcome as Told, Program, Protocol,
    Question, Reply, of_dump, of_listed, of_native,
};
use millrace_core::status::read_back;
use millrace_host::engine::Session;
use millrace_host::observe::Depth;
use millrace_host::{exec, surroundings};

use crate::binary;
use crate::capture::{millrace, ran};
pub use crate::dice::Dice;
use crate::dumps;
use crate::ebpf::{self, APPLY};
use crate::netns::Namespace;
use crate::process::{self, Listeners};
use crate::topology::{APP, Family, Layout, PROXY, ROOT, Spot, Stack, Topology};
use crate::wire::{Dial, Failure, Identity, Listen, Outcome, Proto, Serve};

/// Ports that somebody listens on, both in the pod and outside.
const TCP_PORTS: [u16; 8] = [22, 80, 443, 8000, 8005, 8080, 9090, 15021];
const UDP_PORTS: [u16; 3] = [53, 80, 9090];
/// Where the proxy listens for queries.
const DNS_PORT: u16 = 15053;

/// The flags of a random policy for `millrace apply`.
pub fn policy(dice: &mut Dice) -> Vec<String> {
    let ports = ["", "80", "80,443", "22,8000:8010", "15021,9090", "8080"];
    let networks = ["", "10.71.0.0/16,fd71::/16", "10.72.0.10/32", "fd72::10/128", "10.64.0.0/10"];
    let choices: [(&str, &[&str]); 19] = [
        ("mode", &["redirect", "redirect", "tproxy"]),
        ("proxy-uid", &["1337", "1337,5", "5"]),
        ("proxy-gid", &["", "", "1337", "7"]),
        ("include-inbound-ports", &["*", "*", "", "80", "80,8000:8010"]),
        ("exclude-inbound-ports", &ports),
        ("exclude-inbound-cidrs", &["", "", "10.71.0.0/16,fd71::/16", "10.70.0.1/32"]),
        (
            "include-outbound-cidrs",
            &["*", "*", "", "10.71.0.0/16,fd71::/16", "127.0.0.2/32,10.70.0.2/32"],
        ),
        ("exclude-outbound-cidrs", &networks),
        ("include-outbound-ports", &["", "", "80,8005"]),
        ("exclude-outbound-ports", &ports),
        ("include-groups", &["*", "*", "*", "", "1000,202"]),
        ("exclude-groups", &["", "", "202", "1000"]),
        ("exclude-users", &["", "", "1000", "0,5"]),
        ("exclude-interfaces", &["", "", "eth1", "eth+"]),
        ("reroute-interfaces", &["", "", "eth1"]),
        ("localhost-cidr", &["127.0.0.1/32", "127.0.0.0/8", "127.0.0.0/30"]),
        ("dns", &["off", "all", "servers"]),
        ("dns-servers", &["10.73.0.53,fd73::53"]),
        ("ipv6", &["on", "on", "on", "off"]),
    ];
    let mut flags: Vec<String> = Vec::new();
    for (name, values) in choices {
        flags.extend([format!("--{name}"), dice.pick(values).to_owned()]);
    }
    if dice.one_in(3) {
        flags.push("--drop-invalid".to_owned());
    }
    flags
}

/// A connection: the question, and how it is really asked.
#[derive(Clone, Debug)]
pub struct Try {
    /// The question.
    pub question: Question,
    from: Where,
    dial: Dial,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Pod,
    Outside,
    Side,
}

impl Try {
    /// The same by a socket whose port the kernel chooses, where its address is not given either.
    #[must_use]
    pub fn unbound(mut self) -> Self {
        if self.from == Where::Pod && self.dial.from.is_none() {
            self.dial.from_port = None;
        }
        self
    }

    /// The same from another port, with more time.
    #[must_use]
    pub fn again(&self, ground: &mut Ground) -> Self {
        let mut again = self.clone();
        again.question.source_port = ground.next_port();
        again.dial.from_port = self.dial.from_port.map(|_| again.question.source_port);
        again.dial.timeout_ms = 4000;
        again
    }

    /// The question, with the port that the kernel chose.
    pub fn as_answered(&self, outcome: &Outcome) -> Question {
        let mut question = self.question.clone();
        if let (None, Outcome::Answered { answer, .. }) = (self.dial.from_port, outcome) {
            question.source_port = answer.peer.port();
        }
        question
    }
}

/// A pod with two neighbours, in which every port of the questions has a listener.
#[derive(Debug)]
pub struct Ground {
    pub(crate) topology: Topology,
    _listeners: Vec<Listeners>,
    port: u16,
}

const FAMILIES: [Family; 2] = [Family::V4, Family::V6];

/// Whom both neighbours play.
pub(crate) const SERVICES: [Spot; 4] = [Spot::Service, Spot::Other, Spot::Dns, Spot::OtherDns];

impl Ground {
    /// Make it.
    pub fn new() -> Result<Self> {
        let layout = Layout { side: true, transparent: true, ..Layout::default() };
        let mut topology = Topology::new(Stack::Dual, layout)?;
        topology.stop_listeners();
        // Both neighbours reach the pod's other addresses too, and whoever has the pod in between;
        // either can be asked for a service, so that every way out leads to an answer.
        topology
            .outside
            .ip("route add 10.80.0.0/24 via 10.70.0.2\nroute add fd80::/64 via fd70::2\n\
             route add 10.77.0.0/24 via 10.70.0.2\nroute add fd77::/64 via fd70::2\n")?;
        let beside = topology.side.as_ref().context("a side was asked for")?;
        for spot in SERVICES {
            for ip in FAMILIES.iter().filter_map(|family| spot.ip(*family)) {
                let length = if ip.is_ipv4() { 32 } else { 128 };
                let flags = if ip.is_ipv4() { "" } else { " nodad" };
                beside.ip(&format!("addr add {ip}/{length} dev lo{flags}\n"))?;
            }
        }
        let tcp = |ports: &[u16], transparent| {
            let any = |port: u16| ["0.0.0.0", "::"].map(|ip| (ip.parse::<IpAddr>(), port));
            let mut listen = Vec::new();
            for (ip, port) in ports.iter().flat_map(|port| any(*port)) {
                let addr = SocketAddr::new(ip?, port);
                listen.push(Listen { proto: Proto::Tcp, addr, transparent });
            }
            anyhow::Ok(listen)
        };
        let udp = |spots: &[Spot], ports: &[u16]| {
            let ips = spots.iter().flat_map(|spot| FAMILIES.map(|f| spot.ip(f))).flatten();
            let addrs = ips.flat_map(|ip| ports.iter().map(move |port| SocketAddr::new(ip, *port)));
            addrs
                .map(|addr| Listen { proto: Proto::Udp, addr, transparent: false })
                .collect::<Vec<_>>()
        };
        let mut proxy = tcp(&[15001, 15008, 15053], false)?;
        proxy.extend(tcp(&[15006], true)?);
        proxy.extend(
            ["0.0.0.0:15006", "[::]:15006"]
                .into_iter()
                .map(str::parse)
                .map(|addr| Ok(Listen { proto: Proto::Udp, addr: addr?, transparent: true }))
                .collect::<Result<Vec<_>>>()?,
        );
        proxy.extend(udp(&[Spot::Localhost], &[DNS_PORT]));
        let mut app = tcp(&TCP_PORTS, false)?;
        app.extend(tcp(&[53], false)?);
        let own = [Spot::Pod, Spot::PodSide, Spot::Localhost, Spot::Localhost2];
        app.extend(udp(&own, &UDP_PORTS));
        let mut others = tcp(&TCP_PORTS, false)?;
        others.extend(tcp(&[53, 15001, 15006, 15008], false)?);
        let mut outside = others.clone();
        outside.extend(udp(&SERVICES, &UDP_PORTS));
        outside.extend(udp(&[Spot::Peer], &UDP_PORTS));
        let mut side = others;
        side.extend(udp(&SERVICES, &UDP_PORTS));
        side.extend(udp(&[Spot::Side], &UDP_PORTS));
        let start = |namespace: &Namespace, name: &str, identity, listen| {
            Listeners::start(namespace, &Serve { name: name.to_owned(), identity, listen })
        };
        let listeners = vec![
            start(&topology.pod, "proxy", PROXY, proxy)?,
            start(&topology.pod, "app", APP, app)?,
            start(&topology.outside, "outside", ROOT, outside)?,
            start(topology.side.as_ref().context("a side was asked for")?, "side", ROOT, side)?,
        ];
        Ok(Self { topology, _listeners: listeners, port: 20_000 })
    }

    /// Capture the pod.
    pub fn apply(&self, backend: &str, flags: &[String]) -> Result<()> {
        let program = binary::millrace()?;
        let program = program.to_str().context("the path is not UTF-8")?;
        let mut words = vec!["apply", "--backend", backend];
        words.extend(flags.iter().map(String::as_str));
        self.topology.pod.run(program, &words).map(drop)
    }

    /// The rules that the pod holds, and what is around them.
    pub fn rules(&self) -> Result<(Program, Surroundings)> {
        self.topology.pod.enter(|| {
            let mut session = Session::open()?;
            let observed = session.observe(&exec::Options::default(), Depth::Fast)?;
            let mut nobody = |_, _: &str, _: &_| None;
            let groups = millrace_core::value::Groups::new();
            let mut tables = Vec::new();
            for holding in &observed.holdings {
                let holder = holding.variant.to_string();
                tables.extend(of_dump(
                    &holding.dump,
                    holding.family,
                    &holder,
                    &groups,
                    &mut nobody,
                ));
            }
            tables.extend(of_native(&observed.native));
            ensure!(
                !observed.native.is_empty() || !read_back(&observed).is_empty(),
                "the pod holds no rules"
            );
            let mut around = surroundings::namespace()?;
            listeners(&mut around);
            Ok((Program::new(tables), around))
        })?
    }

    /// Put native rules of somebody into the pod, in place of all that are there, and read them from
    /// the kernel, with what is around them.
    pub fn hold(&self, rules: &str) -> Result<(Program, Surroundings)> {
        self.topology.pod.feed("nft", &["-f", "-"], &format!("flush ruleset\n{rules}"))?;
        let tables = self.topology.pod.enter(|| {
            let listed = millrace_host::nft::list(&|_, _| false)?;
            anyhow::Ok(of_listed(&listed, &millrace_host::nft::interfaces()))
        })??;
        Ok((Program::new(tables), self.around()?))
    }

    /// Run `iptables` with these words, one rule each, in place of all rules that are there, and read
    /// them as its own program prints them.
    pub fn hold_iptables(&self, rules: &[&str]) -> Result<(Program, Surroundings)> {
        self.topology.pod.feed("nft", &["-f", "-"], "flush ruleset\n")?;
        for rule in rules {
            let words: Vec<&str> = rule.split_ascii_whitespace().collect();
            self.topology.pod.run("iptables-nft", &words)?;
        }
        Ok((self.printed("iptables-nft")?, self.around()?))
    }

    fn around(&self) -> Result<Surroundings> {
        self.topology.pod.enter(|| {
            let mut around = surroundings::namespace()?;
            listeners(&mut around);
            anyhow::Ok(around)
        })?
    }

    /// Load the node's programs for the pod.
    pub fn load_ebpf(&self) -> Result<()> {
        ebpf::load(&self.topology.pod)
    }

    /// Capture the pod by eBPF, and say what it holds, read back from the kernel, and what is around
    /// it. None if eBPF refuses the policy.
    pub fn by_ebpf(&self, flags: &[String]) -> Result<Option<(Program, Surroundings)>> {
        let flags = flags.iter().map(String::as_str);
        let mut command = millrace(APPLY.into_iter().chain(flags))?;
        let (code, said) = ran(&self.topology.pod, &mut command)?;
        if code != Some(0) {
            ensure!(said.contains("eBPF can't carry this configuration out"), "{said}");
            return Ok(None);
        }
        let (tables, enrolled) = ebpf::tables(&self.topology.pod)?;
        let mut around = self.around()?;
        around.enrolled = enrolled;
        Ok(Some((Program::new(tables), around)))
    }

    /// The same rules as the backend's own programs print them.
    pub fn printed(&self, backend: &str) -> Result<Program> {
        Ok(Program::new(dumps::of_backend(&self.topology.pod, backend)?))
    }

    fn next_port(&mut self) -> u16 {
        self.port = if self.port >= 60_000 { 20_000 } else { self.port + 1 };
        self.port
    }

    /// A random connection. Its source port is used once, so that no earlier one is mistaken for it.
    pub fn connection(&mut self, dice: &mut Dice) -> Try {
        self.next_port();
        let from = dice.pick(&[Where::Pod, Where::Pod, Where::Pod, Where::Outside, Where::Side]);
        let family = dice.pick(&FAMILIES);
        let inward = from != Where::Pod;
        let spots: &[Spot] = match from {
            Where::Pod => &[
                Spot::Pod,
                Spot::PodSide,
                Spot::Peer,
                Spot::Side,
                Spot::Service,
                Spot::Service,
                Spot::Other,
                Spot::Dns,
                Spot::OtherDns,
                Spot::Localhost,
                Spot::Localhost2,
            ],
            Where::Outside => &[Spot::Pod, Spot::Pod, Spot::PodSide, Spot::Side],
            Where::Side => &[Spot::PodSide, Spot::Pod, Spot::Peer],
        };
        let spot = dice.pick(spots);
        let to = spot.ip(family).or_else(|| Spot::Localhost.ip(family));
        let to = to.unwrap_or(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST));
        let own = matches!(spot, Spot::Pod | Spot::PodSide | Spot::Localhost | Spot::Localhost2);
        let source = match from {
            Where::Pod if own && dice.one_in(3) => Spot::Passthrough.ip(family),
            Where::Pod => None,
            // The side has the services' addresses itself.
            Where::Outside if spot == Spot::Side => Spot::Peer.ip(family),
            Where::Outside => dice.pick(&[Spot::Peer, Spot::Service, Spot::Other]).ip(family),
            Where::Side => Spot::Side.ip(family),
        };
        // The kernel has `::6` only while rules are there that need it.
        let source = source.filter(|_| from != Where::Pod || family == Family::V4);
        let proto = dice.pick(&[Proto::Tcp, Proto::Tcp, Proto::Udp]);
        let port = match proto {
            Proto::Tcp if dice.one_in(5) => dice.pick(&[53, 15008]),
            Proto::Tcp => dice.pick(&TCP_PORTS),
            Proto::Udp => dice.pick(&UDP_PORTS),
        };
        let identity = match from {
            Where::Pod => dice.pick(&[
                APP,
                PROXY,
                ROOT,
                Identity { uid: 5, gid: 5 },
                Identity { uid: 1000, gid: 202 },
                Identity { uid: 1000, gid: 1337 },
                Identity { uid: 9, gid: 7 },
            ]),
            _ => ROOT,
        };
        // A transparent proxy passes on with the mark of the connection it accepted. To outside such a
        // socket has a source by IPv4 where one that is not transparent has none, which nobody asks about.
        let marks = own || family == Family::V6;
        let marked = !inward && marks && proto == Proto::Tcp && identity == PROXY && dice.one_in(3);
        let question = Question {
            direction: if inward { Direction::In } else { Direction::Out },
            protocol: if proto == Proto::Tcp { Protocol::TCP } else { Protocol::UDP },
            source,
            source_port: self.port,
            destination: to,
            port,
            owner: (!inward)
                .then_some(millrace_core::sim::Identity { uid: identity.uid, gid: identity.gid }),
            mark: if marked { 1337 } else { 0 },
            interface: match from {
                Where::Pod => None,
                Where::Outside => Some("eth0".to_owned()),
                Where::Side => Some("eth1".to_owned()),
            },
            known: Known::New,
        };
        let dial = Dial {
            identity,
            proto,
            from: source,
            from_port: Some(self.port),
            transparent_mark: marked.then_some(1337),
            to: SocketAddr::new(to, port),
            timeout_ms: 400,
        };
        Try { question, from, dial }
    }

    /// Make the connections, all at once.
    pub fn make(&self, tries: &[Try]) -> Result<Vec<Outcome>> {
        thread::scope(|scope| {
            let threads: Vec<_> = tries
                .iter()
                .map(|one| {
                    scope.spawn(|| {
                        let side = self.topology.side.as_ref().context("there is a side")?;
                        let namespace = match one.from {
                            Where::Pod => &self.topology.pod,
                            Where::Outside => &self.topology.outside,
                            Where::Side => side,
                        };
                        process::dial(namespace, &one.dial)
                    })
                })
                .collect();
            let join = |thread: thread::ScopedJoinHandle<'_, Result<Outcome>>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(join).collect()
        })
    }
}

/// Who listens in the pod.
pub(crate) fn listeners(around: &mut Surroundings) {
    let identity = |i: Identity| millrace_core::sim::Identity { uid: i.uid, gid: i.gid };
    for port in [15001, 15006, 15008, 15053] {
        around.listeners.insert(port, identity(PROXY));
    }
    for port in TCP_PORTS.into_iter().chain(UDP_PORTS) {
        around.listeners.insert(port, identity(APP));
    }
}

/// Whether two backends treated a connection alike. It has another source port each time.
pub fn alike(one: &Outcome, other: &Outcome) -> bool {
    match (one, other) {
        (Outcome::Answered { answer: a, .. }, Outcome::Answered { answer: b, .. }) => {
            (&a.name, a.port, a.peer.ip(), a.local) == (&b.name, b.port, b.peer.ip(), b.local)
        }
        (one, other) => one == other,
    }
}

/// Whether a sender is the one that was foretold, if one was.
fn comes_from(peer: SocketAddr, source: SocketAddr) -> bool {
    // By which interface an address of a link is reached is no part of what is foretold.
    let is_same = source.ip().is_unspecified() || peer.ip() == source.ip();
    is_same && peer.port() == source.port()
}

/// Why what really happened is not what was foretold; none if it is.
pub fn differs(
    program: &Program,
    around: &Surroundings,
    question: &Question,
    outcome: &Outcome,
) -> Option<String> {
    let told = program.explain(around, question);
    let same = match (&told.answer.fate, &told.reply, outcome) {
        (Fate::Refused { .. }, _, Outcome::Failed(failure)) => {
            // What is refused at once says so by other numbers too, and a datagram's sender is told
            // that it may not.
            matches!(failure, Failure::Refused | Failure::Unreachable | Failure::Other(_))
        }
        // Of UDP nobody listens there but on a loopback address.
        (Fate::Delivered { port: DNS_PORT, destination, .. }, _, Outcome::Failed(failure))
            if question.protocol == Protocol::UDP && !destination.ip().is_loopback() =>
        {
            let unheard = told.unheard.as_ref().map(|unheard| &unheard.outcome);
            (*failure == Failure::Refused) == (unheard == Some(&Told::Refused))
        }
        (_, Some(Reply::Lost { .. } | Reply::Broken { .. }) | None, Outcome::Failed(failure)) => {
            *failure != Failure::Refused
        }
        (
            Fate::Delivered { port, how, destination, original, source },
            Some(Reply::Arrives),
            Outcome::Answered { answer, .. },
        ) => {
            let tcp = question.protocol == Protocol::TCP;
            // Where no rule needs it, the kernel tracks no connections and knows no original.
            let known = match how {
                How::Translated if original != destination => answer.original == Some(*original),
                _ => answer.original.is_none_or(|o| o == *original),
            };
            ["proxy", "app"].contains(&answer.name.as_str())
                && answer.port == *port
                && comes_from(answer.peer, *source)
                && (!tcp || (answer.local == *destination && known))
        }
        (
            Fate::Passed { destination, source, interface },
            Some(Reply::Arrives),
            Outcome::Answered { answer, .. },
        ) => {
            // A route with several paths has it leave by one of them.
            let behind = |name| if name == "eth1" { "side" } else { "outside" };
            interface.split(" or ").any(|name| answer.name == behind(name))
                && answer.port == destination.port()
                && answer.local.ip() == destination.ip()
                && comes_from(answer.peer, *source)
        }
        _ => false,
    };
    (!same).then(|| {
        let text = millrace_core::sim::report::explanation_text(program, question, &told);
        format!("{question}\nreally: {outcome}\n{text}")
    })
}
