//! What a process of one pod can do as a user without any privilege, and what others can send from
//! outside, with another pod's connections as the measure: all of them reach their proxy, with their
//! original destination.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_host::ebpf::{Node, Options, Target};
use millrace_tests::capture::{millrace, millrace_in_pod, ran};
use millrace_tests::ebpf::{
    APPLY, Cgroup, FOLDER, captured, enrol, load_with, mount_bpffs, options,
};
use millrace_tests::netns::Namespace;
use millrace_tests::probe::original_destination;
use millrace_tests::sys_calls::become_user;
use millrace_tests::topology::Spot::{Localhost, Passthrough, Pod, Service};
use millrace_tests::topology::{Family, Layout, Stack, Topology};
use millrace_tests::wire::Answer;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, listen,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::Value;

/// Whoever runs in the attacker's pod.
const SOMEBODY: u32 = 1000;
const PATIENCE: TimeVal = TimeVal::new(10, 0);
/// `MSG_FASTOPEN` (linux/socket.h).
const FASTOPEN: MsgFlags = MsgFlags::from_bits_retain(0x2000_0000);

/// An attacker's pod and another one, captured by the same programs.
struct Pods {
    attacker: Topology,
    /// The other one's network, with the mounts of the first.
    other: Namespace,
    _other: Topology,
    _cgroup: Cgroup,
}

fn pods(options: &Options) -> Result<Pods> {
    let cgroup = Cgroup::enter()?;
    let attacker = Topology::new(Stack::V4, Layout::default())?;
    mount_bpffs(&attacker.pod)?;
    load_with(&attacker.pod, options)?;
    enrol(&attacker, &[])?;
    let second = Topology::new(Stack::V4, Layout::default())?;
    let other = attacker.pod.sibling(File::open(second.pod.path())?)?;
    let (code, said) = ran(&other, &mut millrace(APPLY)?)?;
    ensure!(code == Some(0), "{said}");
    Ok(Pods { attacker, other, _other: second, _cgroup: cgroup })
}

impl Pods {
    /// Whether each connection of the other pod reaches its proxy with its destination.
    fn others_go_on(&self, when: &str) -> Result<()> {
        let to = Service.at(Family::V4, 80)?;
        self.other.enter(|| -> Result<()> {
            for n in 0..100 {
                let stream = TcpStream::connect_timeout(&to, Duration::from_secs(10))
                    .with_context(|| format!("{when}: connection {n}"))?;
                let told = Answer::read(&stream)?.original;
                ensure!(told == Some(to), "{when}: connection {n}: {told:?}");
            }
            Ok(())
        })?
    }
}

fn tcp(family: AddressFamily, flags: SockFlag) -> Result<OwnedFd> {
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC | flags, None)?)
}

/// Verify that half-open connections to a proxy of the attacker's own, which never accepts, take no
/// more than the pod's share, which `status` shows, and none of another pod's.
#[test]
fn half_open_connections() -> Result<()> {
    const SHARE: u64 = 100;
    const SOCKETS: usize = 400;
    let mut pods = pods(&Options { max_connections: 1600, ..options()? })?;
    pods.attacker.stop_listeners();
    let to = SockaddrStorage::from(Service.at(Family::V4, 80)?);
    let held = pods.attacker.pod.enter(|| -> Result<_> {
        become_user(SOMEBODY)?;
        let proxy = tcp(AddressFamily::Inet, SockFlag::empty())?;
        let at: SocketAddr = "0.0.0.0:15001".parse()?;
        bind(proxy.as_raw_fd(), &SockaddrStorage::from(at))?;
        listen(&proxy, Backlog::new(1)?)?;
        let mut held = vec![proxy];
        for _ in 0..SOCKETS {
            let socket = tcp(AddressFamily::Inet, SockFlag::SOCK_NONBLOCK)?;
            if connect(socket.as_raw_fd(), &to) == Err(Errno::EINPROGRESS) {
                held.push(socket);
            }
        }
        Ok(held)
    })??;
    let had = u64::try_from(held.len() - 1)?;
    ensure!(had == SHARE, "the attacker has {had} connections");
    pods.others_go_on("while the attacker holds its share")?;
    let words = ["status", "--backend", "ebpf", "--bpffs", FOLDER, "--output", "json"];
    let status: Value = serde_json::from_str(&millrace_in_pod(&pods.attacker, &words, 0)?)?;
    ensure!(status["connections"] == SHARE && status["maxConnections"] == SHARE, "{status:#}");
    ensure!(status["counters"]["no-memory"] == SOCKETS as u64 - SHARE, "{status:#}");
    drop(held);
    // The share is the pod's again.
    pods.attacker.pod.enter(|| -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            let node = Node::open(Path::new(FOLDER))?;
            let found = node.pod(Target::current()?.cookie())?.context("enrolled")?;
            if found.connections.0 == 0 {
                return Ok(());
            }
            ensure!(Instant::now() < end, "{:?} are left", found.connections);
            std::thread::yield_now();
        }
    })?
}

/// Verify that a socket whose `connect()` waits for its first data (`TCP_FASTOPEN_CONNECT`) keeps its
/// destination, however many connections of others fail between the decision and their SYN, and that
/// none of those is missed by another pod.
#[test]
fn connections_that_fail_before_they_begin() -> Result<()> {
    /// More than there are places for sockets between two steps, where places are shared.
    const FAILURES: usize = 70_000;
    const THREADS: usize = 4;
    let mut pods = pods(&options()?)?;
    pods.attacker.stop_listeners();
    let to = Service.at(Family::V4, 80)?;
    let there = SockaddrStorage::from(to);
    pods.attacker.pod.enter(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1543"))??;
    let (waiting, proxy) = pods.attacker.pod.enter(|| -> Result<_> {
        let proxy = TcpListener::bind("0.0.0.0:15001")?;
        setsockopt(&proxy, sockopt::ReceiveTimeout, &PATIENCE)?;
        become_user(SOMEBODY)?;
        let waiting = tcp(AddressFamily::Inet, SockFlag::empty())?;
        setsockopt(&waiting, sockopt::TcpFastOpenConnect, &true)?;
        connect(waiting.as_raw_fd(), &there)?;
        Ok((waiting, proxy))
    })??;
    let fail = |port: u16| -> Result<()> {
        pods.attacker.pod.enter(|| -> Result<()> {
            become_user(SOMEBODY)?;
            let from = SockaddrStorage::from(SocketAddr::from(([127, 0, 0, 1], port)));
            let bound = || -> Result<OwnedFd> {
                let socket = tcp(AddressFamily::Inet, SockFlag::empty())?;
                setsockopt(&socket, sockopt::ReuseAddr, &true)?;
                bind(socket.as_raw_fd(), &from)?;
                Ok(socket)
            };
            let first = bound()?;
            connect(first.as_raw_fd(), &there).context("the first one")?;
            for _ in 0..FAILURES / THREADS {
                // Its addresses are another connection's.
                let failed = connect(bound()?.as_raw_fd(), &there);
                ensure!(failed == Err(Errno::EADDRNOTAVAIL), "{failed:?}");
            }
            Ok(())
        })?
    };
    std::thread::scope(|scope| -> Result<()> {
        let threads: Vec<_> =
            [41_001, 41_002, 41_003, 41_004].map(|port| scope.spawn(move || fail(port))).into();
        while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            pods.others_go_on("while connections fail")?;
        }
        for thread in threads {
            thread.join().map_err(|_panic| anyhow::anyhow!("a thread panicked"))??;
        }
        Ok(())
    })?;
    let mut waiting = TcpStream::from(waiting);
    waiting.write_all(b"data")?;
    for _ in 0..=THREADS {
        let (mut accepted, from) = proxy.accept()?;
        if from.ip() == Pod.at(Family::V4, 0)?.ip() {
            let mut data = [0; 4];
            accepted.read_exact(&mut data)?;
            let told = original_destination(&accepted)?;
            ensure!(&data == b"data" && told == to, "{told}");
            return Ok(());
        }
    }
    anyhow::bail!("the connection did not reach the proxy")
}

/// A listener that takes data with the first packet.
fn fast_listener(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind(SocketAddr::from(([0_u16; 8], port)))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Of the next connection that a listener gets, its own address and the client's; none where there is
/// no connection.
fn taken(listener: &TcpListener) -> Result<Option<(IpAddr, IpAddr)>> {
    match listener.accept() {
        Ok((stream, from)) => {
            let own = stream.local_addr()?.ip();
            Ok(Some((own.to_canonical(), from.ip().to_canonical())))
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Verify that a connection from outside with an address of the pod itself as its source, or with that
/// from which proxies speak to the application, is the proxy's; and that what the pod sends itself
/// from there is not.
#[test]
fn forged_sources() -> Result<()> {
    let (_cgroup, mut topology) = captured(&[])?;
    topology.stop_listeners();
    let second: [IpAddr; 2] = ["10.70.0.22".parse()?, "fd70::22".parse()?];
    topology.pod.ip("addr add 10.70.0.22/24 dev eth0\naddr add fd70::22/64 dev eth0 nodad\n")?;
    // Of sockets of IPv6 that are bound to a port the kernel does not tell what is the pod's own.
    enrol(&topology, &[])?;
    // Neighbours that use the pod's addresses. With IPv4 the pod has to be made to take that.
    topology.outside.ip(
        "addr add 10.70.0.2/32 dev lo\naddr add fd70::2/128 dev lo nodad\naddr add ::6/128 dev lo nodad\n",
    )?;
    topology.pod.run(
        "sysctl",
        &["-qw", "net.ipv4.conf.all.accept_local=1", "net.ipv4.tcp_fastopen=1543"],
    )?;
    topology.outside.run("sysctl", &["-qw", "net.ipv4.tcp_fastopen=1543"])?;
    let (app, proxy) = topology
        .pod
        .enter(|| -> Result<_> { Ok((fast_listener(8080)?, fast_listener(15006)?)) })??;
    let send = |from: IpAddr, to: SocketAddr| -> Result<OwnedFd> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = tcp(family, SockFlag::SOCK_NONBLOCK)?;
        bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
        match sendto(socket.as_raw_fd(), b"data", &SockaddrStorage::from(to), FASTOPEN) {
            Ok(_) | Err(Errno::EINPROGRESS) => Ok(socket),
            Err(error) => Err(error.into()),
        }
    };
    // Whoever is the first to take it. What comes from outside can't be answered, so a packet that is
    // lost has to be sent anew.
    let taker = |namespace: &Namespace, from: IpAddr, to: SocketAddr| -> Result<&str> {
        let end = Instant::now() + Duration::from_mins(1);
        while Instant::now() < end {
            let _socket = namespace.enter(|| send(from, to))??;
            let soon = Instant::now() + Duration::from_secs(2);
            while Instant::now() < soon {
                for (name, listener) in [("app", &app), ("proxy", &proxy)] {
                    if taken(listener)? == Some((to.ip(), from)) {
                        return Ok(name);
                    }
                }
                std::thread::yield_now();
            }
        }
        anyhow::bail!("nobody has it")
    };
    let (pod4, pod6) = (Pod.at(Family::V4, 0)?.ip(), Pod.at(Family::V6, 0)?.ip());
    let six = Passthrough.at(Family::V6, 0)?.ip();
    let cases = [(pod4, second[0]), (pod6, second[1]), (six, second[1])];
    for (from, to) in cases {
        let to = SocketAddr::new(to, 8080);
        let by = taker(&topology.outside, from, to).with_context(|| format!("{from} to {to}"))?;
        ensure!(by == "proxy", "{from} to {to}, from outside: {by}");
    }
    let localhost = |family| Localhost.at(family, 0).map(|at| at.ip());
    let inside = [
        (pod4, pod4),
        (pod4, second[0]),
        (second[0], pod4),
        (Passthrough.at(Family::V4, 0)?.ip(), second[0]),
        (localhost(Family::V4)?, localhost(Family::V4)?),
        (pod6, pod6),
        (pod6, second[1]),
        (second[1], pod6),
        (six, second[1]),
        (localhost(Family::V6)?, localhost(Family::V6)?),
    ];
    for (from, to) in inside {
        let to = SocketAddr::new(to, 8080);
        let by = taker(&topology.pod, from, to).with_context(|| format!("{from} to {to}"))?;
        ensure!(by == "app", "{from} to {to}, in the pod: {by}");
    }
    Ok(())
}
