//! Ways to connect that are not `connect()` of a plain TCP socket: each reaches the proxy with the right
//! original destination, or is refused; none gets past it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_tests::capture::millrace_in_pod;
use millrace_tests::ebpf::{APPLY, Cgroup, FOLDER, captured, enrol};
use millrace_tests::netns::Namespace;
use millrace_tests::probe::original_destination;
use millrace_tests::process::Listeners;
use millrace_tests::sys_calls::{become_real_user, drop_capabilities, mptcp_socket, uring_connect};
use millrace_tests::topology::Spot::{Peer, Pod, Service};
use millrace_tests::topology::{APP, Family, PROXY, ROOT, Topology};
use millrace_tests::wire::{Answer, Listen, Proto, Serve};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, SockaddrStorage, bind, connect, listen,
    sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::Value;

const PATIENCE: TimeVal = TimeVal::new(5, 0);
const FAMILIES: [Family; 2] = [Family::V4, Family::V6];
/// `MSG_FASTOPEN` (linux/socket.h).
const FASTOPEN: MsgFlags = MsgFlags::from_bits_retain(0x2000_0000);

fn tcp(to: SocketAddr) -> Result<OwnedFd> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    Ok(socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?)
}

fn patient(fd: OwnedFd) -> Result<OwnedFd> {
    setsockopt(&fd, sockopt::SendTimeout, &PATIENCE)?;
    setsockopt(&fd, sockopt::ReceiveTimeout, &PATIENCE)?;
    Ok(fd)
}

/// What the proxy says of a connection to `to`, which the application believes to have.
fn proxied(fd: OwnedFd, to: SocketAddr) -> Result<()> {
    let stream = TcpStream::from(fd);
    ensure!(stream.peer_addr()? == to, "{to}: the peer is {}", stream.peer_addr()?);
    let answer = Answer::read(&stream)?;
    is_captured(&answer, to)
}

/// Whether the proxy has it, and knows where it was meant to go.
fn is_captured(answer: &Answer, to: SocketAddr) -> Result<()> {
    ensure!(answer.name == "proxy" && answer.port == 15001, "{to}: {answer:?}");
    ensure!(answer.original == Some(to), "{to}: {answer:?}");
    let own = Pod.at(if to.is_ipv4() { Family::V4 } else { Family::V6 }, 0)?.ip();
    ensure!(answer.peer.ip() == own, "{to}: {answer:?}");
    Ok(())
}

/// A counter of the namespace that the thread is in (`/proc/net/netstat`).
fn counter(name: &str) -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/netstat")?;
    let mut lines = text.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        let place = names.split(' ').position(|known| known == name);
        if let Some(value) = place.and_then(|place| values.split(' ').nth(place)) {
            return Ok(value.parse()?);
        }
    }
    bail!("the kernel does not count {name}")
}

/// A captured pod in which, and around which, data may come with the first packet without a cookie,
/// to every socket that begins to listen (`tcp_fastopen` in the kernel's ip-sysctl.rst).
fn fast_pod(flags: &[&str]) -> Result<(Cgroup, Topology, Vec<Listeners>)> {
    let (cgroup, mut topology) = captured(flags)?;
    topology.stop_listeners();
    for namespace in [&topology.pod, &topology.outside] {
        namespace.enter(|| std::fs::write("/proc/sys/net/ipv4/tcp_fastopen", "1543"))??;
    }
    let start = |namespace: &Namespace, name: &str, identity, ports: &[u16]| {
        let addrs = ports.iter().flat_map(|port| FAMILIES.map(|family| any(family, *port)));
        let listen = addrs.map(|addr| Listen { proto: Proto::Tcp, addr, transparent: false });
        let (name, listen) = (name.to_owned(), listen.collect());
        Listeners::start(namespace, &Serve { name, identity, listen })
    };
    let listeners = vec![
        start(&topology.pod, "proxy", PROXY, &[15001, 15006])?,
        start(&topology.pod, "app", APP, &[8080])?,
        start(&topology.outside, "outside", ROOT, &[80, 8080])?,
    ];
    Ok((cgroup, topology, listeners))
}

/// Every address of a family.
fn any(family: Family, port: u16) -> SocketAddr {
    match family {
        Family::V4 => SocketAddr::from(([0, 0, 0, 0], port)),
        Family::V6 => SocketAddr::from(([0_u16; 8], port)),
    }
}

/// Verify both ways in which an application opens a connection with its first data, and that the
/// data really went with the first packet.
#[test]
fn fast_open_outbound() -> Result<()> {
    let (_cgroup, topology, listeners) = fast_pod(&[])?;
    drop(listeners);
    topology.pod.enter(|| -> Result<()> {
        for family in FAMILIES {
            let to = Service.at(family, 80)?;
            let proxy = TcpListener::bind(any(family, 15001))?;
            setsockopt(&proxy, sockopt::ReceiveTimeout, &PATIENCE)?;
            let before = (counter("TCPFastOpenActive")?, counter("TCPFastOpenPassive")?);
            let at_once = patient(tcp(to)?)?;
            sendto(at_once.as_raw_fd(), b"data", &SockaddrStorage::from(to), FASTOPEN)?;
            takes_data(&proxy, &at_once.into(), to).context("MSG_FASTOPEN")?;
            let later = patient(tcp(to)?)?;
            setsockopt(&later, sockopt::TcpFastOpenConnect, &true)?;
            connect(later.as_raw_fd(), &SockaddrStorage::from(to))?;
            let mut later = TcpStream::from(later);
            later.write_all(b"data")?;
            takes_data(&proxy, &later, to).context("TCP_FASTOPEN_CONNECT")?;
            let after = (counter("TCPFastOpenActive")?, counter("TCPFastOpenPassive")?);
            ensure!(after == (before.0 + 2, before.1 + 2), "{before:?} -> {after:?}");
        }
        Ok(())
    })?
}

/// Whether the proxy gets what an application sends to `to`, which that believes to be its peer.
fn takes_data(proxy: &TcpListener, application: &TcpStream, to: SocketAddr) -> Result<()> {
    let family = if to.is_ipv4() { Family::V4 } else { Family::V6 };
    let (mut accepted, from) = proxy.accept()?;
    let mut data = [0; 4];
    accepted.read_exact(&mut data)?;
    ensure!(&data == b"data" && from.ip() == Pod.at(family, 0)?.ip(), "{data:?} from {from}");
    // Its answer ends the handshake, if that has not ended yet.
    accepted.write_all(b"answer")?;
    (&*application).read_exact(&mut data)?;
    ensure!(application.peer_addr()? == to, "the peer is {}", application.peer_addr()?);
    ensure!(original_destination(&accepted)? == to, "the original destination");
    Ok(())
}

/// Verify that it bypasses the proxy where it should be.
#[test]
fn fast_open_to_excluded_ports() -> Result<()> {
    let (_cgroup, topology, _listeners) = fast_pod(&["--exclude-outbound-ports", "8080"])?;
    topology.pod.enter(|| -> Result<()> {
        for family in FAMILIES {
            let to = Service.at(family, 8080)?;
            let fd = patient(tcp(to)?)?;
            sendto(fd.as_raw_fd(), b"data", &SockaddrStorage::from(to), FASTOPEN)?;
            let answer = Answer::read(&TcpStream::from(fd))?;
            ensure!(answer.name == "outside" && answer.local == to, "{answer:?}");
        }
        Ok(())
    })?
}

/// Verify that a connection from outside that brings data with its first packet is the proxy's, with
/// the destination as its own address.
#[test]
fn fast_open_inbound() -> Result<()> {
    let (_cgroup, topology, _listeners) = fast_pod(&[])?;
    for family in FAMILIES {
        let to = Pod.at(family, 8080)?;
        let passive = || topology.pod.enter(|| counter("TCPFastOpenPassive"));
        let before = passive()??;
        let answer = topology.outside.enter(|| -> Result<Answer> {
            let fd = patient(tcp(to)?)?;
            sendto(fd.as_raw_fd(), b"data", &SockaddrStorage::from(to), FASTOPEN)?;
            Answer::read(&TcpStream::from(fd))
        })??;
        ensure!(answer.name == "proxy" && answer.port == 15006, "{to}: {answer:?}");
        ensure!(answer.local == to && answer.original == Some(to), "{to}: {answer:?}");
        ensure!(passive()?? == before + 1, "{to}: the data came later");
    }
    Ok(())
}

/// A listening socket of multipath TCP.
fn mptcp_listener(on: SocketAddr) -> Result<OwnedFd> {
    let fd = mptcp_socket(on.is_ipv4()).context("the kernel has multipath TCP (CONFIG_MPTCP)")?;
    setsockopt(&fd, sockopt::ReuseAddr, &true)?;
    if on.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    setsockopt(&fd, sockopt::ReceiveTimeout, &PATIENCE)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(on))?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(fd)
}

/// Verify that an application whose sockets are of multipath TCP reaches the proxy, whose are not, and
/// sees the peer that it asked for.
#[test]
fn multipath_tcp_outbound() -> Result<()> {
    let (_cgroup, topology) = captured(&[])?;
    topology.pod.enter(|| -> Result<()> {
        for family in FAMILIES {
            let to = Service.at(family, 80)?;
            let fd = mptcp_socket(to.is_ipv4()).context("CONFIG_MPTCP, net.mptcp.enabled")?;
            let fd = patient(fd)?;
            connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).context("connect")?;
            let stream = TcpStream::from(fd);
            ensure!(stream.peer_addr()? == to, "{to}");
            is_captured(&Answer::read(&stream)?, to)?;
        }
        Ok(())
    })?
}

/// Verify that a client of multipath TCP from outside is the proxy's.
#[test]
fn multipath_tcp_inbound() -> Result<()> {
    let (_cgroup, topology) = captured(&[])?;
    for family in FAMILIES {
        let to = Pod.at(family, 8080)?;
        let answer = topology.outside.enter(|| -> Result<Answer> {
            let fd = patient(mptcp_socket(to.is_ipv4())?)?;
            connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).context("connect")?;
            Answer::read(&TcpStream::from(fd))
        })??;
        ensure!(answer.name == "proxy" && answer.port == 15006, "{to}: {answer:?}");
        ensure!(answer.local == to, "{to}: {answer:?}");
    }
    Ok(())
}

/// Verify a proxy that listens with multipath TCP, as programs in Go do unless they are told
/// otherwise: outbound connections are its own, inbound ones are refused, since the kernel hands none
/// to such a socket, and nobody is told that they are handed.
#[test]
fn a_proxy_of_multipath_tcp() -> Result<()> {
    let (_cgroup, mut topology) = captured(&[])?;
    topology.stop_listeners();
    for family in FAMILIES {
        let (outbound, inbound) = topology.pod.enter(|| {
            anyhow::Ok((mptcp_listener(any(family, 15001))?, mptcp_listener(any(family, 15006))?))
        })??;
        let to = Service.at(family, 80)?;
        topology.pod.enter(|| -> Result<()> {
            let fd = patient(tcp(to)?)?;
            connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).context("connect")?;
            ensure!(original_destination(&accepted(&outbound)?)? == to, "outbound");
            Ok(())
        })??;
        let (to, from) = (Pod.at(family, 8080)?, Peer.at(family, 0)?.ip().to_string());
        topology.outside.enter(|| -> Result<()> {
            let refused = connect(patient(tcp(to)?)?.as_raw_fd(), &SockaddrStorage::from(to));
            ensure!(refused == Err(Errno::ECONNREFUSED), "{to}: {refused:?}");
            Ok(())
        })??;
        let to = to.to_string();
        let words = ["explain", "--live", "--bpffs", FOLDER, "--in", "--src", &from, "--to", &to];
        let said = millrace_in_pod(&topology, &words, 0)?;
        ensure!(said.contains("=> refused"), "{said}");
        millrace_in_pod(&topology, &["cleanup", "--bpffs", FOLDER], 0)?;
        let said = millrace_in_pod(&topology, &APPLY, 1)?;
        ensure!(said.contains("not of multipath TCP"), "{said}");
        drop((outbound, inbound));
        enrol(&topology, &[])?;
    }
    Ok(())
}

fn accepted(listener: &OwnedFd) -> Result<TcpStream> {
    let listener = TcpListener::from(listener.try_clone()?);
    Ok(listener.accept().context("accept")?.0)
}

/// Verify connections that the kernel makes for an application by `io_uring`, at once and by a worker
/// of its own: who the application is decides.
#[test]
fn io_uring() -> Result<()> {
    let (_cgroup, topology) = captured(&[])?;
    for (family, elsewhere) in FAMILIES.into_iter().flat_map(|f| [(f, false), (f, true)]) {
        let to = Service.at(family, 80)?;
        topology.pod.enter(|| -> Result<()> {
            let fd = patient(tcp(to)?)?;
            uring_connect(fd.as_fd(), to, elsewhere).context(
                "io_uring: it takes a kernel with CONFIG_IO_URING, and kernel.io_uring_disabled=0",
            )?;
            proxied(fd, to).with_context(|| format!("by a worker: {elsewhere}"))?;
            Ok(())
        })??;
        // The proxy's own goes where it is sent.
        topology.pod.enter(|| -> Result<()> {
            become_real_user(1337)?;
            let fd = patient(tcp(to)?)?;
            uring_connect(fd.as_fd(), to, elsewhere)?;
            let answer = Answer::read(&TcpStream::from(fd))?;
            ensure!(answer.name == "outside" && answer.local == to, "{elsewhere}: {answer:?}");
            Ok(())
        })??;
    }
    Ok(())
}

/// Verify that a process that may not take its socket off a device is refused, and that this is
/// counted, instead of getting past the proxy or waiting for ever.
#[test]
fn a_device_without_privilege() -> Result<()> {
    let (_cgroup, topology) = captured(&[])?;
    for family in FAMILIES {
        let to = Service.at(family, 80)?;
        topology.pod.enter(|| -> Result<()> {
            drop_capabilities()?;
            let fd = patient(tcp(to)?)?;
            setsockopt(&fd, sockopt::BindToDevice, &"eth0".into())?;
            let refused = connect(fd.as_raw_fd(), &SockaddrStorage::from(to));
            ensure!(refused == Err(Errno::EPERM), "{to}: {refused:?}");
            Ok(())
        })??;
    }
    let words = ["status", "--backend", "ebpf", "--bpffs", FOLDER, "--output", "json"];
    let status: Value = serde_json::from_str(&millrace_in_pod(&topology, &words, 0)?)?;
    ensure!(status["counters"]["device"] == 2, "{status:#}");
    Ok(())
}

/// Verify what is said of an address that the pod gets after it was enrolled where the kernel does not tell
/// the programs of it: of an IPv6 socket that has a port, of one that may be bound to any address, and of a
/// link-local address. What goes there reaches the proxy, as if it were elsewhere, and stays in the pod once
/// the configuration is applied again.
#[test]
fn later_addresses_that_are_not_told() -> Result<()> {
    let (_cgroup, topology) = captured(&[])?;
    topology.pod.ip("addr add 10.99.0.5/24 dev eth0\naddr add fd99::5/64 dev eth0 nodad\n\
         addr add fe80::99/64 dev eth0 nodad")?;
    let ask = |to: &str, from: Option<&str>, anywhere: bool| -> Result<String> {
        let to: SocketAddr = to.parse()?;
        topology.pod.enter(|| -> Result<String> {
            let fd = patient(tcp(to)?)?;
            if anywhere {
                setsockopt(&fd, sockopt::IpFreebind, &true)?;
            }
            if let Some(from) = from {
                let from: SocketAddr = from.parse()?;
                bind(fd.as_raw_fd(), &SockaddrStorage::from(from))?;
            }
            let to = match to {
                SocketAddr::V6(mut to) if to.ip().is_unicast_link_local() => {
                    to.set_scope_id(if_nametoindex("eth0")?);
                    to.into()
                }
                to => to,
            };
            connect(fd.as_raw_fd(), &SockaddrStorage::from(to))?;
            Ok(Answer::read(TcpStream::from(fd))?.name)
        })?
    };
    let cases = [
        ("[fd99::5]:8080", Some("[fd70::2]:0"), false),
        ("[fd99::5]:8080", None, true),
        ("10.99.0.5:8080", None, true),
        ("[fe80::99]:8080", None, false),
    ];
    for (who, again) in [("proxy", false), ("app", true)] {
        if again {
            enrol(&topology, &[])?;
        }
        for (to, from, anywhere) in cases {
            let answer = ask(to, from, anywhere).with_context(|| to.to_owned())?;
            ensure!(answer == who, "{to}, from {from:?}, anywhere {anywhere}: {answer}");
        }
    }
    Ok(())
}
