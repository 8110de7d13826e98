//! What eBPF capture knows of a connection ends with its sockets: nothing of it ever answers for
//! another one.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::capture::{millrace, ran};
use millrace_tests::ebpf::{Cgroup, FOLDER, enrol, load, node};
use millrace_tests::netns::Namespace;
use millrace_tests::topology::{Layout, Stack, Topology};
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

fn answer(fd: OwnedFd) -> Result<Answer> {
    let mut line = String::new();
    BufReader::new(TcpStream::from(fd)).read_line(&mut line)?;
    serde_json::from_str(&line).with_context(|| format!("answer {line:?}"))
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
    let answer = answer(fd)?;
    ensure!(answer.port == 15001, "{from} to {to}: {answer:?}");
    Ok(answer.original.map_or_else(String::new, |original| original.to_string()))
}

fn pending(namespace: &Namespace) -> Result<usize> {
    node(namespace, |node| Ok(node.state()?.pending))
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
    ensure!(pending(&topology.pod)? == 0, "something is left");
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
        let count = || -> Result<usize> {
            let node = millrace_host::ebpf::Node::open(std::path::Path::new(FOLDER))?;
            Ok(node.state()?.pending)
        };
        let refused = |fd: &OwnedFd| -> Result<()> {
            let error = connect_to(fd, SERVICE).err().context("nobody listens")?;
            ensure!(error.downcast_ref() == Some(&Errno::ECONNREFUSED), "{error:#}");
            Ok(())
        };
        let first = bound("127.0.0.1:40002")?;
        refused(&first)?;
        ensure!(count()? == 1, "the socket is still there");
        drop(first);
        let end = Instant::now() + Duration::from_secs(10);
        // A child that another test is about to start may hold it a little longer.
        while count()? != 0 {
            ensure!(Instant::now() < end, "the socket is closed");
            std::thread::yield_now();
        }
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

/// Verify that two pods that share the programs and have the same addresses and ports, at the same
/// time, are kept apart.
#[test]
fn two_pods_with_the_same_addresses() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let (first, second) = (pod()?, Topology::new(Stack::V4, Layout::default())?);
    let net = File::open(second.pod.path()).context("a namespace")?;
    // The same programs, in the same mounts.
    let second_pod = first.pod.sibling(net)?;
    let args = ["apply", "--backend", "ebpf", "--bpffs", FOLDER];
    let (code, said) = ran(&second_pod, &mut millrace(args)?)?;
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
    ensure!(pending(&first.pod)? == 0, "something is left");
    Ok(())
}
