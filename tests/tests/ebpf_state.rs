//! What eBPF capture knows of a connection ends with its sockets: nothing of it ever answers for
//! another one.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_host::ebpf::{Class, Node, Options};
use millrace_tests::capture::{millrace, ran};
use millrace_tests::ebpf::{
    APPLY, Cgroup, FOLDER, enrol, load, load_with, mount_bpffs, node, options,
};
use millrace_tests::netns::Namespace;
use millrace_tests::probe::original_destination;
use millrace_tests::topology::{Family, Layout, Spot, Stack, Topology};
use millrace_tests::wire::Answer;
use nix::errno::Errno;
use nix::libc::linger;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

const SERVICE: &str = "10.71.0.10:80";
const OTHER: &str = "10.72.0.10:443";
const PROXY: &str = "127.0.0.1:15001";

fn pod() -> Result<Topology> {
    let topology = Topology::new(Stack::V4, Layout::default())?;
    load(&topology.pod)?;
    enrol(&topology, &[])?;
    Ok(topology)
}

/// A socket with this address and port, which others may have had just before.
fn bound(from: &str) -> Result<OwnedFd> {
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    setsockopt(&fd, sockopt::SendTimeout, &TimeVal::new(5, 0))?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
    // Closed by a reset: the addresses are free at once, at both ends.
    setsockopt(&fd, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })?;
    let from: SocketAddr = from.parse()?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(from)).with_context(|| from.to_string())?;
    Ok(fd)
}

fn connect_to(fd: &OwnedFd, to: &str) -> Result<()> {
    let to: SocketAddr = to.parse()?;
    connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).with_context(|| to.to_string())
}

/// What the proxy is told of a connection from one address and port to another. A child that another
/// test is about to start may hold the socket before this one, so it is tried for a while.
fn original(from: &str, to: &str) -> Result<String> {
    let end = Instant::now() + Duration::from_secs(10);
    let fd = loop {
        let fd = bound(from)?;
        match connect_to(&fd, to) {
            Ok(()) => break fd,
            Err(error) => {
                let in_use = error.downcast_ref() == Some(&Errno::EADDRNOTAVAIL);
                ensure!(in_use && Instant::now() < end, "{error:#}");
                std::thread::yield_now();
            }
        }
    };
    let answer = Answer::read(TcpStream::from(fd))?;
    ensure!(answer.port == 15001, "{from} to {to}: {answer:?}");
    Ok(answer.original.map_or_else(String::new, |original| original.to_string()))
}

fn connections(namespace: &Namespace) -> Result<usize> {
    node(namespace, |node| Ok(node.state()?.connections))
}

/// Verify that connections with the same addresses and ports, captured and not, one after another,
/// each have their own original destination.
#[test]
fn reused_ports() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let topology = pod()?;
    topology.pod.enter(|| -> Result<()> {
        for _ in 0..100 {
            // The proxy sees 127.0.0.1:40001 each time.
            for to in [SERVICE, PROXY, OTHER, PROXY] {
                let told = original("127.0.0.1:40001", to)?;
                ensure!(told == to, "{to}: {told}");
            }
        }
        Ok(())
    })??;
    ensure!(connections(&topology.pod)? == 0, "something is left");
    Ok(())
}

/// Verify that a connection that nobody accepted leaves nothing behind once its socket is closed,
/// and nothing to a next attempt of the same socket.
#[test]
fn connections_that_nobody_accepts() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let mut topology = pod()?;
    topology.stop_listeners();
    let app = std::net::TcpListener::bind;
    topology.pod.enter(|| -> Result<()> {
        let count = || -> Result<usize> { Ok(Node::open(Path::new(FOLDER))?.state()?.connections) };
        let refused = |fd: &OwnedFd| -> Result<()> {
            let error = connect_to(fd, SERVICE).err().context("nobody listens")?;
            ensure!(error.downcast_ref() == Some(&Errno::ECONNREFUSED), "{error:#}");
            Ok(())
        };
        let first = bound("127.0.0.1:40002")?;
        refused(&first)?;
        ensure!(count()? == 0, "the connection is over");
        drop(first);
        // The same socket again, to somewhere else, uncaptured.
        let again = bound("127.0.0.1:40002")?;
        refused(&again)?;
        let listener = app("127.0.0.1:8099")?;
        connect_to(&again, "127.0.0.1:8099")?;
        let stream = TcpStream::from(again);
        ensure!(stream.peer_addr()? == listener.local_addr()?, "{:?}", stream.peer_addr());
        ensure!(count()? == 0, "the first attempt is over");
        Ok(())
    })?
}

/// Verify that a connection for whose original destination the pod has no room is refused, in either
/// family, and counted; that others are not; and that there is room again once one has ended.
#[test]
fn no_room_for_another_connection() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    mount_bpffs(&topology.pod)?;
    let few = Options { max_connections: 32, ..options()? };
    load_with(&topology.pod, &few)?;
    enrol(&topology, &["--exclude-outbound-ports", "443"])?;
    let (four, six) = (Spot::Service.at(Family::V4, 80)?, Spot::Service.at(Family::V6, 80)?);
    let proxy: SocketAddr = PROXY.parse()?;
    topology.pod.enter(|| -> Result<()> {
        for _ in 0..3 {
            let held = [TcpStream::connect(four)?, TcpStream::connect(six)?];
            for to in [four, six, four, six] {
                let error = TcpStream::connect(to).err().context("there is no room")?;
                ensure!(error.kind() == ErrorKind::PermissionDenied, "{to}: {error}");
            }
            // Neither needs any.
            drop(TcpStream::connect(proxy)?);
            drop(TcpStream::connect(OTHER)?);
            for stream in &held {
                let told = Answer::read(stream)?.original;
                ensure!(told == Some(stream.peer_addr()?), "a connection that was there: {told:?}");
            }
            drop(held);
            nothing_is_left()?;
        }
        Ok(())
    })??;
    let pods = node(&topology.pod, |node| Ok(node.pods()?))?;
    let counters = pods.first().context("a pod")?.counters.clone();
    let refused = counters.iter().find(|(class, _)| *class == Class::NoMemory);
    ensure!(refused.map(|(_, count)| *count) == Some(12), "{counters:?}");
    Ok(())
}

/// Verify that the proxy is told of a connection that is over before it is accepted, and that
/// nothing of it stays.
#[test]
fn over_before_it_is_accepted() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let mut topology = pod()?;
    topology.stop_listeners();
    topology.pod.enter(|| -> Result<()> {
        let listener = std::net::TcpListener::bind(PROXY)?;
        for at_once in [false, true] {
            let client = TcpStream::connect(SERVICE)?;
            if at_once {
                setsockopt(&client, sockopt::Linger, &linger { l_onoff: 1, l_linger: 0 })?;
            }
            drop(client);
            let (accepted, _) = listener.accept()?;
            let told = original_destination(&accepted)?;
            ensure!(told.to_string() == SERVICE, "closed by a reset {at_once}: {told}");
        }
        // Nor of one that nobody accepts.
        let client = TcpStream::connect(SERVICE)?;
        drop((listener, client));
        nothing_is_left()
    })?
}

/// Verify that nothing stays of a connection which the proxy closes after its client is gone: the kernel
/// answers for the client then, in both families, whichever interface has the client's address.
#[test]
fn closed_last_by_the_proxy() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let layout = Layout { side: true, ..Layout::default() };
    let mut topology = Topology::new(Stack::Dual, layout)?;
    load(&topology.pod)?;
    enrol(&topology, &[])?;
    topology.stop_listeners();
    topology.pod.enter(|| -> Result<()> {
        for (proxy, family, domain) in [
            (PROXY, Family::V4, AddressFamily::Inet),
            ("[::1]:15001", Family::V6, AddressFamily::Inet6),
        ] {
            let listener = std::net::TcpListener::bind(proxy)?;
            for home in [Spot::Pod, Spot::PodSide] {
                let from = home.at(family, 0)?;
                let client = socket(domain, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
                bind(client.as_raw_fd(), &SockaddrStorage::from(from))?;
                connect_to(&client, &Spot::Service.at(family, 80)?.to_string())?;
                let (mut accepted, peer) = listener.accept()?;
                ensure!(peer.ip() == from.ip(), "{peer} is not {from}");
                drop(client);
                ensure!(accepted.read(&mut [0])? == 0, "{from}");
                has_gone()?;
                drop(accepted);
                nothing_is_left().with_context(|| from.to_string())?;
            }
        }
        Ok(())
    })?
}

/// Wait until a client has heard that it is known to be gone: it is in `FIN_WAIT2` (`proc(5)`: state 05),
/// where the kernel keeps no more than what it needs to answer.
fn has_gone() -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        for table in ["tcp", "tcp6"] {
            let text = std::fs::read_to_string(format!("/proc/thread-self/net/{table}"))?;
            if text.lines().any(|line| line.split_ascii_whitespace().nth(3) == Some("05")) {
                return Ok(());
            }
        }
        ensure!(Instant::now() < end, "the client waits for what its end is answered");
        std::thread::yield_now();
    }
}

/// Wait until no connection is known any more: the proxy closes its ends on its own time.
fn nothing_is_left() -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while Node::open(Path::new(FOLDER))?.state()?.connections != 0 {
        ensure!(Instant::now() < end, "something is left");
        std::thread::yield_now();
    }
    Ok(())
}

/// Verify that two pods that share the programs and have the same addresses and ports, at the same
/// time, are kept apart.
#[test]
fn two_pods_with_the_same_addresses() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let (first, second) = (pod()?, Topology::new(Stack::V4, Layout::default())?);
    let net = File::open(second.pod.path()).context("a namespace")?;
    // The same programs, in the same mounts.
    let second_pod = first.pod.sibling(net)?;
    let (code, said) = ran(&second_pod, &mut millrace(APPLY)?)?;
    ensure!(code == Some(0), "{said}");
    ensure!(node(&first.pod, |node| Ok(node.pods()?.len()))? == 2, "two pods");
    let many = |namespace: &Namespace, to: &str| -> Result<()> {
        namespace.enter(|| -> Result<()> {
            for _ in 0..300 {
                let told = original("10.70.0.2:40003", to)?;
                ensure!(told == to, "{to}: {told}");
            }
            Ok(())
        })?
    };
    std::thread::scope(|scope| -> Result<()> {
        let other = scope.spawn(|| many(&second_pod, OTHER));
        many(&first.pod, SERVICE)?;
        other.join().map_err(|_panic| anyhow::anyhow!("a thread panicked"))?
    })?;
    ensure!(connections(&first.pod)? == 0, "something is left");
    Ok(())
}
