//! `millrace trace`: real connections are followed through the rules of every backend, and nothing
//! of it is left, however it ends.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, millrace_in_pod, ran, wrapped};
use millrace_tests::netns::Namespace;
use millrace_tests::process::dial;
use millrace_tests::topology::{APP, Family, Layout, PROXY, ROOT, Spot, Stack, Topology};
use millrace_tests::wire::{Dial, Identity, Proto};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const BACKENDS: [&str; 3] = ["iptables-nft", "iptables-legacy", "nftables"];

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A trace that runs in a namespace.
struct Following {
    child: Child,
    /// Lines of its standard output.
    said: Receiver<String>,
    /// Lines of its standard error.
    noted: Receiver<String>,
}

/// Lines as they are written, until nobody takes them any more.
fn lines(from: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

impl Following {
    /// Start one, and wait until it follows connections.
    fn start(namespace: &Namespace, args: &[&str]) -> Result<Self> {
        let mut command = millrace([&["trace"], args].concat())?;
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = namespace.enter(|| command.spawn())??;
        let said = lines(child.stdout.take().context("a pipe was asked for")?);
        let noted = lines(child.stderr.take().context("a pipe was asked for")?);
        let following = Self { child, said, noted };
        let line = following.noted.recv_timeout(PATIENCE).context("it says nothing")?;
        ensure!(line.contains("following connections"), "{line}");
        Ok(following)
    }

    /// The next connection that it tells of.
    fn next(&self) -> Result<Value> {
        let line = self.said.recv_timeout(PATIENCE).context("it tells of no connection")?;
        serde_json::from_str(&line).with_context(|| format!("it said {line:?}"))
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id().cast_signed()), signal).context("a signal")
    }

    /// Its end: how, and what it said until then.
    fn end(mut self) -> Result<(ExitStatus, String)> {
        let began = Instant::now();
        let mut said = Vec::new();
        let status = loop {
            if let Some(status) = self.child.try_wait()? {
                break status;
            }
            ensure!(began.elapsed() < PATIENCE, "it does not end");
            said.extend(self.said.recv_timeout(Duration::from_millis(10)));
        };
        said.extend(self.said.iter().chain(self.noted.iter()));
        Ok((status, said.join("\n")))
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

fn captured(backend: &str, settings: &[&str]) -> Result<Topology> {
    let topology = Topology::new(Stack::Dual, Layout { transparent: true, ..Layout::default() })?;
    millrace_in_pod(&topology, &[&["apply", "--backend", backend], settings].concat(), 0)?;
    Ok(topology)
}

fn dials(
    namespace: &Namespace,
    who: Identity,
    proto: Proto,
    to: Spot,
    port: u16,
    family: Family,
) -> Result<String> {
    let ip = to.ip(family).context("an address")?;
    let to = std::net::SocketAddr::new(ip, port);
    dial(
        namespace,
        &Dial {
            identity: who,
            proto,
            from: None,
            from_port: None,
            transparent_mark: None,
            to,
            timeout_ms: 2000,
        },
    )?;
    Ok(to.to_string())
}

/// The rules that a connection met, as text.
fn rules(found: &Value) -> Vec<String> {
    let way = found["way"].as_array().into_iter().flatten();
    way.filter(|step| step["step"] == "rule").map(|step| step["rule"]["rule"].to_string()).collect()
}

fn hooks(found: &Value) -> Vec<&str> {
    let way = found["way"].as_array().into_iter().flatten();
    way.filter(|step| step["step"] == "hook").filter_map(|step| step["hook"].as_str()).collect()
}

/// What a trace may leave: tables, who logs packets, names of `lo`.
fn traces(pod: &Namespace) -> Result<[String; 3]> {
    let loggers = pod.run("cat", &["/proc/net/netfilter/nf_log"])?;
    let loggers = loggers.lines().map(|line| line.split('(').next().unwrap_or_default());
    let names = pod.run("ip", &["link", "show", "lo"])?;
    Ok([pod.run("nft", &["list", "tables"])?, loggers.collect::<Vec<_>>().join("\n"), names])
}

/// Everything is as it was; the kernel may take a moment to remove a table.
fn leaves_nothing(pod: &Namespace, before: &[String; 3]) -> Result<()> {
    let began = Instant::now();
    loop {
        let now = traces(pod)?;
        if now == *before {
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(10), "{before:?} {now:?}");
    }
}

/// Verify that connections of the application, of the proxy and from outside are told of with the
/// rules that they meet and where they end, with each backend, in both families.
#[test]
fn every_backend_is_followed() -> Result<()> {
    for backend in BACKENDS {
        let topology = captured(backend, &["--dns", "all", "--exclude-inbound-ports", "9090"])?;
        let (pod, outside) = (&topology.pod, &topology.outside);
        let before = traces(pod)?;
        let trace = Following::start(pod, &["--output", "json"])?;
        for family in [Family::V4, Family::V6] {
            let to = dials(pod, APP, Proto::Tcp, Spot::Service, 80, family)?;
            let found = trace.next()?;
            let fate = &found["fate"];
            ensure!(fate["fate"] == "delivered" && fate["port"] == 15001, "{backend}: {found:#}");
            ensure!(fate["original"] == to && fate["how"] == "translated", "{found:#}");
            ensure!(found["packet"]["destination"] == to, "{found:#}");
            // The raw table is met again where it comes in by lo.
            let way = hooks(&found);
            ensure!(way.first() == Some(&"OUTPUT") && way.last() == Some(&"INPUT"), "{found:#}");
            ensure!(way.contains(&"PREROUTING"), "{found:#}");
            let first = found["way"].as_array().and_then(|way| way.get(1)).context("a rule")?;
            ensure!(first["rule"]["reason"]["purpose"].is_string(), "{backend}: {found:#}");
            ensure!(rules(&found).iter().any(|r| r.contains("15001")), "{found:#}");

            let to = dials(pod, PROXY, Proto::Tcp, Spot::Service, 80, family)?;
            let found = trace.next()?;
            let fate = &found["fate"];
            ensure!(fate["fate"] == "passed" && fate["interface"] == "eth0", "{found:#}");
            ensure!(fate["destination"] == to, "{found:#}");
            ensure!(rules(&found).last().is_some_and(|r| r.contains("1337")), "{found:#}");

            let to = dials(pod, APP, Proto::Udp, Spot::Dns, 53, family)?;
            let found = trace.next()?;
            let fate = &found["fate"];
            ensure!(fate["port"] == 15053 && fate["original"] == to, "{backend}: {found:#}");
            ensure!(found["packet"]["protocol"] == "udp", "{found:#}");

            let to = dials(outside, ROOT, Proto::Tcp, Spot::Pod, 8080, family)?;
            let found = trace.next()?;
            let fate = &found["fate"];
            ensure!(found["direction"] == "in" && found["packet"]["in"] == "eth0", "{found:#}");
            ensure!(fate["port"] == 15006 && fate["original"] == to, "{found:#}");
            ensure!(hooks(&found) == ["PREROUTING", "INPUT"], "{found:#}");

            dials(outside, ROOT, Proto::Tcp, Spot::Pod, 9090, family)?;
            let found = trace.next()?;
            let fate = &found["fate"];
            ensure!(fate["port"] == 9090 && fate["how"] == "unchanged", "{found:#}");
            ensure!(rules(&found).last().is_some_and(|r| r.contains("9090")), "{found:#}");
        }
        trace.signal(Signal::SIGINT)?;
        let (status, said) = trace.end()?;
        ensure!(status.code() == Some(0), "{status} {said}");
        leaves_nothing(pod, &before)?;
    }
    Ok(())
}

/// Verify that only what is asked for is told of, and that it ends by itself after `--count`.
#[test]
fn the_filter_lets_nothing_else_through() -> Result<()> {
    use Family::{V4, V6};
    for backend in BACKENDS {
        let topology = captured(backend, &[])?;
        let (pod, outside) = (&topology.pod, &topology.outside);
        let before = traces(pod)?;
        let service = Spot::Service.ip(V4).context("an address")?.to_string();
        let exact = format!("{service}:443/tcp");
        for (filter, nth) in [
            (&["--from", "uid=1337"][..], 1),
            (&["--from", "gid=1000", "--to-port", "443"], 3),
            (&["--in"], 2),
            (&["--in", "--iface", "eth0"], 2),
            (&["--to", &exact], 3),
            (&["--proto", "udp"], 4),
            (&["--src", "fd70::2/128"], 5),
            (&["--to", "10.72.0.0/16"], 6),
            (&["--mark", "0", "--in"], 2),
        ] {
            let words = [&["--output", "json", "--count", "1"], filter].concat();
            let trace = Following::start(pod, &words)?;
            let made = [
                dials(pod, APP, Proto::Tcp, Spot::Service, 80, V4)?,
                dials(pod, PROXY, Proto::Tcp, Spot::Service, 80, V4)?,
                dials(outside, ROOT, Proto::Tcp, Spot::Pod, 8080, V4)?,
                dials(pod, APP, Proto::Tcp, Spot::Service, 443, V4)?,
                dials(pod, APP, Proto::Udp, Spot::Service, 9999, V4)?,
                dials(pod, APP, Proto::Tcp, Spot::Service, 80, V6)?,
                dials(pod, APP, Proto::Tcp, Spot::Other, 80, V4)?,
            ];
            let found = trace.next()?;
            ensure!(found["packet"]["destination"] == made[nth], "{filter:?}: {found:#}");
            let (status, said) = trace.end()?;
            ensure!(status.code() == Some(0) && said.is_empty(), "{status} {said}");
        }
        leaves_nothing(pod, &before)?;
    }
    Ok(())
}

/// Verify that it ends by itself after `--timeout`, by SIGTERM, when nobody reads any more, and when
/// it is killed, and that nothing is left each time.
#[test]
fn nothing_is_left_however_it_ends() -> Result<()> {
    for backend in BACKENDS {
        let topology = captured(backend, &[])?;
        let pod = &topology.pod;
        let before = traces(pod)?;
        let trace = Following::start(pod, &["--timeout", "300ms"])?;
        let (status, said) = trace.end()?;
        ensure!(status.code() == Some(0) && said.is_empty(), "{status} {said}");
        leaves_nothing(pod, &before)?;

        let mut trace = Following::start(pod, &[])?;
        ensure!(pod.run("nft", &["list", "tables"])?.contains("millrace-trace"), "no table");
        trace.signal(Signal::SIGKILL)?;
        trace.child.wait()?;
        if backend == "iptables-legacy" {
            the_killed_is_found(pod, &before)?;
        }
        leaves_nothing(pod, &before)?;

        let trace = Following::start(pod, &[])?;
        trace.signal(Signal::SIGTERM)?;
        ensure!(trace.end()?.0.code() == Some(0));
        leaves_nothing(pod, &before)?;

        let mut head = millrace(["trace"])?;
        head.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut head = pod.enter(|| head.spawn())??;
        let noted = lines(head.stderr.take().context("a pipe was asked for")?);
        noted.recv_timeout(PATIENCE).context("it says nothing")?;
        drop(head.stdout.take());
        // A process that another test is just starting may still hold the other end for a moment.
        let began = Instant::now();
        while head.try_wait()?.is_none() {
            ensure!(began.elapsed() < PATIENCE, "it tells nobody");
            dials(pod, APP, Proto::Tcp, Spot::Service, 80, Family::V4)?;
        }
        let trace = Following { child: head, said: noted, noted: channel().1 };
        let (status, said) = trace.end()?;
        ensure!(status.code() == Some(0) && said.is_empty(), "{status} {said}");
        leaves_nothing(pod, &before)?;
    }
    Ok(())
}

/// Who logs packets stays changed when a trace is killed: `status` tells, and `cleanup` puts it right.
fn the_killed_is_found(pod: &Namespace, before: &[String; 3]) -> Result<()> {
    // Who it is depends on the modules of the machine.
    let logger = before[1].lines().find_map(|line| line.trim_start().strip_prefix("2 "));
    let logger = logger.context("IPv4 has a logger, or NONE")?.trim();
    let run = |args: &[&str]| ran(pod, &mut millrace(args)?);
    let (code, said) = run(&["status"])?;
    ensure!(code == Some(0) && said.contains("a trace was killed here"), "{code:?} {said}");
    // A later trace puts it right, too; while it runs, it is nobody's leftover.
    let trace = Following::start(pod, &[])?;
    ensure!(!run(&["status"])?.1.contains("a trace was killed here"));
    trace.signal(Signal::SIGTERM)?;
    ensure!(trace.end()?.0.code() == Some(0));
    ensure!(!run(&["status"])?.1.contains("a trace was killed here"));

    let mut trace = Following::start(pod, &[])?;
    trace.signal(Signal::SIGKILL)?;
    trace.child.wait()?;
    let (code, said) = run(&["cleanup", "--dry-run"])?;
    let again = format!("IPv4 packets are logged by {logger} again, as before a trace");
    ensure!(code == Some(0) && said.contains(&again), "{said}");
    let (code, said) = run(&["cleanup"])?;
    ensure!(code == Some(0) && said.contains(&again), "{said}");
    Ok(())
}

/// Verify that of two traces of iptables-legacy the second one is told why it can't be.
#[test]
fn only_one_hears_iptables_legacy() -> Result<()> {
    let topology = captured("iptables-legacy", &[])?;
    let pod = &topology.pod;
    let before = traces(pod)?;
    let one = Following::start(pod, &["--output", "json"])?;
    let (code, said) = ran(pod, &mut millrace(["trace"])?)?;
    ensure!(code == Some(1) && said.contains("only one can"), "{said}");
    dials(pod, APP, Proto::Tcp, Spot::Service, 80, Family::V6)?;
    ensure!(one.next()?["fate"]["port"] == 15001);
    one.signal(Signal::SIGINT)?;
    ensure!(one.end()?.0.code() == Some(0));
    leaves_nothing(pod, &before)
}

/// Verify that a rule which discards is told of as the end, with each backend.
#[test]
fn what_is_dropped_is_told() -> Result<()> {
    for (backend, program) in [
        ("iptables-nft", "iptables-nft"),
        ("iptables-legacy", "iptables-legacy"),
        ("nftables", "nft"),
    ] {
        let topology = captured(backend, &[])?;
        let pod = &topology.pod;
        if program == "nft" {
            let rules = "table inet other {\nchain in {\ntype filter hook input priority 0\n\
                         tcp dport 15006 drop\n}\n}\n";
            pod.feed("nft", &["-f", "-"], rules)?;
        } else {
            pod.run(program, &["-A", "INPUT", "-p", "tcp", "--dport", "15006", "-j", "DROP"])?;
        }
        let trace = Following::start(pod, &["--output", "json", "--in"])?;
        let to = dials(&topology.outside, ROOT, Proto::Tcp, Spot::Pod, 8080, Family::V4)?;
        let found = trace.next()?;
        ensure!(found["packet"]["destination"] == to, "{found:#}");
        ensure!(found["fate"]["fate"] == "dropped", "{backend}: {found:#}");
        ensure!(
            found["fate"]["why"].as_str().is_some_and(|why| why.contains("15006")),
            "{found:#}"
        );
    }
    Ok(())
}

/// Verify that the rules of istio-iptables are followed in each of its layouts.
#[test]
fn the_references_layouts_are_followed() -> Result<()> {
    for layout in [
        &["--native-nftables"][..],
        &["--force-iptables-binary", "nft"],
        &["--force-iptables-binary", "legacy"],
    ] {
        let topology = Topology::new(Stack::Dual, Layout::default())?;
        let pod = &topology.pod;
        let flags = ["istio-iptables", "-u", "1337", "-i", "*", "-b", "*", "--dual-stack"];
        millrace_in_pod(&topology, &[&flags[..], layout].concat(), 0)?;
        let trace = Following::start(pod, &["--output", "json"])?;
        for family in [Family::V4, Family::V6] {
            let to = dials(pod, APP, Proto::Tcp, Spot::Service, 80, family)?;
            let found = trace.next()?;
            ensure!(found["fate"]["port"] == 15001 && found["fate"]["original"] == to, "{found:#}");
            let met = found["way"].as_array().into_iter().flatten();
            let met: Vec<&Value> = met.filter(|step| step["step"] == "rule").collect();
            let last = met.last().context("no rule")?["rule"]["chain"].as_str();
            ensure!(matches!(last, Some("ISTIO_REDIRECT" | "istio-redirect")), "{found:#}");
            ensure!(met.iter().all(|m| m["rule"]["reason"]["purpose"].is_string()), "{found:#}");
        }
    }
    Ok(())
}

/// Verify that rules that change while they are followed are read again.
#[test]
fn rules_that_change_are_read_again() -> Result<()> {
    for backend in BACKENDS {
        let topology = captured(backend, &[])?;
        let pod = &topology.pod;
        let trace = Following::start(pod, &["--output", "json"])?;
        for port in [15101, 15001] {
            let text = port.to_string();
            let change = ["apply", "--backend", backend, "--outbound-port", &text];
            millrace_in_pod(&topology, &change, 0)?;
            dials(pod, APP, Proto::Tcp, Spot::Service, 80, Family::V4)?;
            let found = trace.next()?;
            ensure!(found["fate"]["port"] == port, "{found:#}");
            ensure!(rules(&found).iter().any(|r| r.contains(&text)), "{backend}: {found:#}");
        }
    }
    Ok(())
}

/// Verify that every packet of a connection is told of when that is asked for.
#[test]
fn every_packet_can_be_followed() -> Result<()> {
    for backend in BACKENDS {
        let topology = captured(backend, &[])?;
        let words = ["--output", "json", "--every-packet", "--from", "uid=1337", "--count", "3"];
        let trace = Following::start(&topology.pod, &words)?;
        dials(&topology.pod, PROXY, Proto::Tcp, Spot::Service, 80, Family::V4)?;
        let told = [trace.next()?, trace.next()?, trace.next()?];
        let [first, others @ ..] = &told;
        ensure!(!rules(first).is_empty(), "{first:#}");
        for other in others {
            ensure!(other["packet"]["source"] == first["packet"]["source"], "{other:#}");
            // Address translation is decided once for a connection.
            ensure!(rules(other).is_empty() && other["fate"]["fate"] == "passed", "{other:#}");
        }
        ensure!(trace.end()?.0.code() == Some(0));
    }
    Ok(())
}

/// Verify that who lacks the capability is told which.
#[test]
fn the_capability_is_named() -> Result<()> {
    let topology = captured("nftables", &[])?;
    let program = millrace(["trace", "--count", "1"])?;
    let plain = ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups"];
    let plain = [&plain[..], &["--bounding-set=-all", "--inh-caps=-all"]].concat();
    let (code, said) = ran(&topology.pod, &mut wrapped(&plain, &program))?;
    ensure!(code == Some(1) && said.contains("NET_ADMIN"), "{code:?} {said}");
    Ok(())
}

/// Verify that TPROXY's listener is told, with each backend.
#[test]
fn tproxy_is_followed() -> Result<()> {
    for backend in BACKENDS {
        let topology = captured(backend, &["--mode", "tproxy"])?;
        let trace = Following::start(&topology.pod, &["--output", "json", "--in"])?;
        for family in [Family::V4, Family::V6] {
            let to = dials(&topology.outside, ROOT, Proto::Tcp, Spot::Pod, 8080, family)?;
            let found = trace.next()?;
            let fate = &found["fate"];
            ensure!(fate["how"] == "transparent" && fate["port"] == 15006, "{backend}: {found:#}");
            ensure!(fate["original"] == to && fate["destination"] == to, "{found:#}");
        }
    }
    Ok(())
}

/// Verify that two traces at once tell each of its own connections alone.
#[test]
fn two_at_once_do_not_meet() -> Result<()> {
    let topology = captured("iptables-nft", &[])?;
    let pod = &topology.pod;
    let before = traces(pod)?;
    let one = ["--output", "json", "--from", "uid=1000"];
    let two = ["--output", "json", "--from", "uid=1337"];
    let (one, two) = (Following::start(pod, &one)?, Following::start(pod, &two)?);
    for _ in 0..5 {
        dials(pod, APP, Proto::Tcp, Spot::Service, 80, Family::V4)?;
        dials(pod, PROXY, Proto::Tcp, Spot::Service, 80, Family::V4)?;
    }
    for _ in 0..5 {
        let (found, other) = (one.next()?, two.next()?);
        ensure!(found["fate"]["port"] == 15001, "{found:#}");
        ensure!(other["fate"]["fate"] == "passed", "{other:#}");
        ensure!(rules(&found).len() == 3 && rules(&other).len() == 2, "{found:#} {other:#}");
    }
    for trace in [one, two] {
        trace.signal(Signal::SIGINT)?;
        let (status, said) = trace.end()?;
        ensure!(status.code() == Some(0) && said.is_empty(), "{status} {said}");
    }
    leaves_nothing(pod, &before)
}
