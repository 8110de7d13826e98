//! `millrace trace`: real connections are followed through the rules of every backend, and nothing
//! of it is left, however it ends.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, millrace_in_pod};
use millrace_tests::netns::Namespace;
use millrace_tests::process::dial;
use millrace_tests::topology::{APP, Family, Layout, PROXY, ROOT, Spot, Stack, Topology};
use millrace_tests::wire::{Dial, Identity, Proto};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const BACKENDS: [&str; 2] = ["iptables-nft", "nftables"];

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

/// No table of a trace is there; the kernel may take a moment to remove one.
fn leaves_nothing(pod: &Namespace) -> Result<()> {
    let began = Instant::now();
    loop {
        let tables = pod.run("nft", &["list", "tables"])?;
        if !tables.contains("millrace-trace") {
            return Ok(());
        }
        ensure!(began.elapsed() < Duration::from_secs(10), "{tables}");
    }
}

/// Verify that connections of the application, of the proxy and from outside are told of with the
/// rules that they meet and where they end, with each backend, in both families.
#[test]
fn every_backend_is_followed() -> Result<()> {
    for backend in BACKENDS {
        let topology = captured(backend, &["--dns", "all", "--exclude-inbound-ports", "9090"])?;
        let (pod, outside) = (&topology.pod, &topology.outside);
        let trace = Following::start(pod, &["--output", "json"])?;
        for family in [Family::V4, Family::V6] {
            let to = dials(pod, APP, Proto::Tcp, Spot::Service, 80, family)?;
            let found = trace.next()?;
            let fate = &found["fate"];
            ensure!(fate["fate"] == "delivered" && fate["port"] == 15001, "{backend}: {found:#}");
            ensure!(fate["original"] == to && fate["how"] == "translated", "{found:#}");
            ensure!(found["packet"]["destination"] == to, "{found:#}");
            // The raw table is met again where it comes in by lo.
            ensure!(hooks(&found) == ["OUTPUT", "PREROUTING", "INPUT"], "{found:#}");
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
        leaves_nothing(pod)?;
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
        leaves_nothing(pod)?;
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
        let trace = Following::start(pod, &["--timeout", "300ms"])?;
        let (status, said) = trace.end()?;
        ensure!(status.code() == Some(0) && said.is_empty(), "{status} {said}");
        leaves_nothing(pod)?;

        let mut trace = Following::start(pod, &[])?;
        ensure!(pod.run("nft", &["list", "tables"])?.contains("millrace-trace"), "no table");
        trace.signal(Signal::SIGKILL)?;
        trace.child.wait()?;
        leaves_nothing(pod)?;

        let trace = Following::start(pod, &[])?;
        trace.signal(Signal::SIGTERM)?;
        ensure!(trace.end()?.0.code() == Some(0));
        leaves_nothing(pod)?;

        let mut head = millrace(["trace"])?;
        head.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut head = pod.enter(|| head.spawn())??;
        let noted = lines(head.stderr.take().context("a pipe was asked for")?);
        noted.recv_timeout(PATIENCE).context("it says nothing")?;
        drop(head.stdout.take());
        dials(pod, APP, Proto::Tcp, Spot::Service, 80, Family::V4)?;
        let trace = Following { child: head, said: noted, noted: channel().1 };
        let (status, said) = trace.end()?;
        ensure!(status.code() == Some(0) && said.is_empty(), "{status} {said}");
        leaves_nothing(pod)?;
    }
    Ok(())
}

/// Verify that two traces at once tell each of its own connections alone.
#[test]
fn two_at_once_do_not_meet() -> Result<()> {
    let topology = captured("iptables-nft", &[])?;
    let pod = &topology.pod;
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
    leaves_nothing(pod)
}
