//! A connection with the addresses and ports of an earlier one: where connection tracking still holds
//! that one, and the proxy has lost its socket, the new one is captured all the same.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_tests::capture::{millrace, ran};
use millrace_tests::netns::Namespace;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, connect, listen, setsockopt,
    socket, sockopt,
};
use nix::sys::time::TimeVal;

const PODS: [&str; 2] = ["10.62.0.1", "fd62::1"];
const OUTSIDE: [&str; 2] = ["10.62.0.2", "fd62::2"];
/// What is captured, what is not, and the proxy's.
const APP: u16 = 8080;
const SPARED: u16 = 15090;
const PROXY: u16 = 15006;
/// How long whoever accepts may take.
const PATIENCE: Duration = Duration::from_mins(1);

const OWN: [&str; 5] = ["apply", "--mode", "tproxy", "--exclude-inbound-ports", "15090"];
const ISTIO: [&str; 10] =
    ["istio-iptables", "-m", "TPROXY", "-i", "*", "-b", "*", "-d", "15090", "--dual-stack"];
/// The guard of rules that stay as the reference writes them.
const GUARD: &str = "istio-proxy-guard";

/// Every way to capture by TPROXY: the command line, and whether it has a guard.
const WAYS: [(&[&str], &[&str], bool); 7] = [
    (&OWN, &["--backend", "nftables"], false),
    (&OWN, &["--backend", "iptables-nft"], false),
    (&OWN, &["--backend", "iptables-legacy"], false),
    (&ISTIO, &["--native-nftables"], true),
    (&ISTIO, &[], true),
    (&ISTIO, &["--force-iptables-binary", "nft"], true),
    (&ISTIO, &["--force-iptables-binary", "legacy"], true),
];

/// A pod and who is outside.
fn pair() -> Result<(Namespace, Namespace)> {
    let (pod, outside) = (Namespace::new()?, Namespace::new()?);
    pod.ip(&format!(
        "link set lo up\nlink add eth0 type veth peer name eth0 netns {}\nlink set eth0 up\n\
         addr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
        outside.path().display(),
        PODS[0],
        PODS[1]
    ))?;
    outside.ip(&format!(
        "link set lo up\nlink set eth0 up\naddr add {}/24 dev eth0\naddr add {}/64 dev eth0 nodad\n",
        OUTSIDE[0], OUTSIDE[1]
    ))?;
    Ok((pod, outside))
}

/// A socket that is bound; its port may have been used before.
fn bound(at: SocketAddr, transparent: bool) -> Result<OwnedFd> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if at.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&fd, sockopt::IpTransparent, &transparent)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(at)).with_context(|| format!("binding {at}"))?;
    Ok(fd)
}

fn listener(pod: &Namespace, family: usize, port: u16) -> Result<TcpListener> {
    let any: IpAddr = ["0.0.0.0", "::"][family].parse()?;
    pod.enter(|| {
        let fd = bound(SocketAddr::new(any, port), port == PROXY)?;
        listen(&fd, Backlog::new(16)?)?;
        let listener = TcpListener::from(fd);
        listener.set_nonblocking(true)?;
        Ok(listener)
    })?
}

/// The connection from this port; none when nobody answers in time.
fn dial(
    outside: &Namespace,
    family: usize,
    from: u16,
    to: u16,
    time: i64,
) -> Result<Option<TcpStream>> {
    let at =
        |ips: [&str; 2], port| Ok::<_, anyhow::Error>(SocketAddr::new(ips[family].parse()?, port));
    let (from, to) = (at(OUTSIDE, from)?, at(PODS, to)?);
    let deadline = Instant::now() + PATIENCE;
    outside.enter(|| {
        loop {
            let fd = bound(from, false)?;
            setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(time, 0))?;
            return match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
                Ok(()) => Ok(Some(TcpStream::from(fd))),
                Err(Errno::EINPROGRESS | Errno::ETIMEDOUT) => Ok(None),
                // A program that another test has just started has a copy of every socket until it is
                // executed: the earlier connection's as well.
                Err(Errno::EADDRNOTAVAIL) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                }
                Err(errno) => Err(errno).with_context(|| format!("connecting to {to}")),
            };
        }
    })?
}

/// Who accepted: the place of the listener, and the connection.
fn accepted(listeners: &[&TcpListener]) -> Result<(usize, TcpStream)> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        for (at, listener) in listeners.iter().enumerate() {
            match listener.accept() {
                Ok((stream, _)) => return Ok((at, stream)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
        }
        thread::sleep(Duration::from_millis(5));
    }
    bail!("nobody accepted")
}

/// End a connection without a word to the other end, as a machine does that fails.
fn lose(stream: TcpStream) -> Result<()> {
    setsockopt(&stream, sockopt::TcpRepair, &1)?;
    drop(stream);
    Ok(())
}

/// Who gets connections whose addresses and ports were an earlier one's.
struct Found {
    /// Whether the proxy got the one to a captured port.
    captured: bool,
    /// Whether somebody got it while the proxy does not listen.
    unheard: bool,
}

fn found(pod: &Namespace, outside: &Namespace, family: usize) -> Result<Found> {
    let app = listener(pod, family, APP)?;
    let spared = listener(pod, family, SPARED)?;
    let proxy = listener(pod, family, PROXY)?;
    let everybody = [&app, &spared, &proxy];
    let connect = |from, to| -> Result<(usize, TcpStream, TcpStream)> {
        let client = dial(outside, family, from, to, 60)?.context("nobody answers")?;
        let (who, server) = accepted(&everybody)?;
        Ok((who, client, server))
    };
    // What is not captured stays so.
    for _ in 0..2 {
        let (who, client, server) = connect(40_001, SPARED)?;
        ensure!(who == 1, "{who} got what is not captured");
        lose(server)?;
        lose(client)?;
    }
    // The proxy has ended the earlier one, and waits for what may be left of it.
    for _ in 0..2 {
        let (who, client, server) = connect(40_002, APP)?;
        ensure!(who == 2, "{who} got what the proxy has ended before");
        drop(server);
        drop(client);
    }
    let (who, client, server) = connect(40_003, APP)?;
    ensure!(who == 2, "{who} got the first one");
    lose(server)?;
    lose(client)?;
    let (again, client, server) = connect(40_003, APP)?;
    lose(server)?;
    lose(client)?;
    drop(proxy);
    let client = dial(outside, family, 40_003, APP, 2)?;
    Ok(Found { captured: again == 2, unheard: client.is_some() })
}

/// Verify that every backend captures them, and drops them while the proxy does not listen.
#[test]
fn what_has_an_earlier_ones_addresses_is_captured() -> Result<()> {
    for (command, how, _) in WAYS {
        let (pod, outside) = pair()?;
        let (code, said) = ran(&pod, &mut millrace([command, how].concat())?)?;
        ensure!(code == Some(0), "{how:?}: {said}");
        for family in 0..2 {
            let found =
                found(&pod, &outside, family).with_context(|| format!("{command:?} {how:?}"))?;
            ensure!(found.captured, "{command:?} {how:?}, family {family}: the application got it");
            ensure!(!found.unheard, "{command:?} {how:?}, family {family}: not dropped");
        }
    }
    Ok(())
}

/// Verify that rules without their guard let them on to the application, that every command says so,
/// and that the next run adds it.
#[test]
fn rules_without_their_guard_are_told() -> Result<()> {
    for (command, how, guarded) in WAYS {
        if !guarded {
            continue;
        }
        let (pod, outside) = pair()?;
        let apply = || millrace([command, how].concat());
        let explain = || -> Result<String> {
            let words = ["explain", "--live", "--in", "--src", "10.62.0.2", "--to-port", "8080"];
            Ok(ran(&pod, &mut millrace(words)?)?.1)
        };
        let open = "=> with the addresses and ports of an earlier connection that is still tracked, \
                    and whose socket is gone: delivered as it is";
        let status = || ran(&pod, &mut millrace(["status"])?);
        let (code, said) = ran(&pod, &mut apply()?)?;
        ensure!(code == Some(0), "{said}");
        let (code, said) = status()?;
        ensure!(code == Some(0) && !said.contains("guard"), "{how:?}: {said}");
        let said = explain()?;
        ensure!(!said.contains(open) && said.contains("transparent socket"), "{how:?}: {said}");
        pod.run("nft", &["delete", "table", "inet", GUARD])?;
        let (code, said) = status()?;
        let names = said.contains(&format!("table inet {GUARD} is missing"));
        ensure!(code == Some(5) && names, "{how:?}: {code:?} {said}");
        ensure!(said.contains("with TPROXY, a new connection"), "{how:?}: {said}");
        let said = explain()?;
        ensure!(said.contains(open), "{how:?}: {said}");
        let found = found(&pod, &outside, 0)?;
        ensure!(!found.captured && found.unheard, "{how:?}: the rules alone capture it");
        let (code, said) = ran(&pod, &mut apply()?)?;
        ensure!(code == Some(0) && said.contains(GUARD), "{how:?}: {said}");
        let (code, said) = ran(&pod, &mut apply()?)?;
        ensure!(code == Some(0) && said.contains("no change"), "{how:?}: {said}");
        let (code, said) = ran(&pod, &mut millrace(["cleanup"])?)?;
        ensure!(code == Some(0), "{how:?}: {said}");
        ensure!(pod.run("nft", &["list", "tables"])?.find("istio").is_none(), "{how:?}");
    }
    Ok(())
}
