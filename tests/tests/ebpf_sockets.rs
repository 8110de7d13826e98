//! What sockets see of eBPF capture: the application the peer that it asked for, the proxy the
//! application and where it meant to go.

use std::io::IoSlice;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_tests::capture::millrace_in_pod;
use millrace_tests::ebpf::{Cgroup, FOLDER, captured, enrol, load};
use millrace_tests::process::{Listeners, dial};
use millrace_tests::sys_calls::prefer_device;
use millrace_tests::topology::Spot::{Dns, Localhost, OtherDns, Peer, Pod, Service};
use millrace_tests::topology::{APP, Family, Layout, PROXY, ROOT, Stack, Topology};
use millrace_tests::wire::{Answer, Dial, Failure, Identity, Listen, Outcome, Proto, Serve};
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg, setsockopt, sockopt};

const PATIENCE: Duration = Duration::from_secs(5);

/// The same as an address of an IPv6 socket.
fn mapped(addr: SocketAddr) -> SocketAddr {
    match addr.ip() {
        IpAddr::V4(ip) => SocketAddr::new(ip.to_ipv6_mapped().into(), addr.port()),
        IpAddr::V6(_) => addr,
    }
}

fn answer(stream: &TcpStream) -> Result<Answer> {
    stream.set_read_timeout(Some(PATIENCE))?;
    Answer::read(stream)
}

/// Send and receive by a socket that may be connected; gives the answer and who it came from.
fn query(socket: &UdpSocket, to: Option<SocketAddr>) -> Result<(Answer, SocketAddr)> {
    socket.set_read_timeout(Some(PATIENCE))?;
    match to {
        Some(to) => socket.send_to(b"who", to)?,
        None => socket.send(b"who")?,
    };
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    Ok((serde_json::from_slice(buffer.get(..length).context("a length")?)?, from))
}

/// Verify that with sockets of IPv4, of IPv6 and of IPv6 with IPv4-mapped addresses the application
/// sees the peer that it asked for and its pod's address, and the proxy the application and where
/// it meant to go.
#[test]
fn connections() -> Result<()> {
    let (_cgroup, topology) = captured(&[])?;
    let v4 = Service.at(Family::V4, 80)?;
    let v6 = Service.at(Family::V6, 80)?;
    for (to, family) in [(v4, Family::V4), (v6, Family::V6), (mapped(v4), Family::V4)] {
        let original = if family == Family::V4 { v4 } else { v6 };
        topology.pod.enter(|| -> Result<()> {
            let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
            let answer = answer(&stream)?;
            ensure!(stream.peer_addr()? == to, "{to}: the peer is {}", stream.peer_addr()?);
            let local = stream.local_addr()?;
            let own = Pod.at(family, local.port())?;
            ensure!(local == if to == v4 || to == v6 { own } else { mapped(own) }, "{to}: {local}");
            ensure!(answer.name == "proxy" && answer.port == 15001, "{to}: {answer:?}");
            ensure!(answer.original == Some(original), "{to}: {answer:?}");
            ensure!(answer.peer == own, "{to}: {answer:?}");
            Ok(())
        })??;
    }
    Ok(())
}

/// Verify that all of IPv6 can be excluded, and nothing else is with it.
#[test]
fn a_network_around_ipv4() -> Result<()> {
    let (_cgroup, topology) = captured(&["--exclude-outbound-cidrs", "::/0"])?;
    for (family, name) in [(Family::V4, "proxy"), (Family::V6, "outside")] {
        let to = Service.at(family, 80)?;
        topology.pod.enter(|| -> Result<()> {
            let answer = answer(&TcpStream::connect_timeout(&to, PATIENCE)?)?;
            ensure!(answer.name == name, "{to}: {answer:?}");
            Ok(())
        })??;
    }
    Ok(())
}

/// Verify that a non-blocking `connect()` sees the same peer before the connection is there.
#[test]
fn the_peer_is_known_at_once() -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, connect, socket};
    let (_cgroup, topology) = captured(&[])?;
    let to = Service.at(Family::V4, 443)?;
    topology.pod.enter(|| -> Result<()> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Inet, SockType::Stream, flags, None)?;
        match connect(fd.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => {}
            Err(error) => bail!("connect: {error}"),
        }
        let stream = TcpStream::from(fd);
        stream.set_nonblocking(false)?;
        let answer = answer(&stream)?;
        ensure!(stream.peer_addr()? == to && answer.original == Some(to), "{answer:?}");
        Ok(())
    })?
}

/// Verify that what reaches the proxy uncaptured has its own address as the original one, as with
/// connection tracking, and that each family is asked for by its own option.
#[test]
fn what_nobody_rewrote() -> Result<()> {
    let (_cgroup, topology) = captured(&[])?;
    for family in [Family::V4, Family::V6] {
        let to = Localhost.at(family, 15001)?;
        topology.pod.enter(|| -> Result<()> {
            let answer = answer(&TcpStream::connect_timeout(&to, PATIENCE)?)?;
            ensure!(answer.original == Some(to), "{to}: {answer:?}");
            Ok(())
        })??;
    }
    // Outside pods the option is the kernel's own, which without connection tracking has no answer.
    topology.outside.enter(|| -> Result<()> {
        let to = Peer.at(Family::V4, 80)?;
        let answer = answer(&TcpStream::connect_timeout(&to, PATIENCE)?)?;
        ensure!(answer.original.is_none(), "{answer:?}");
        Ok(())
    })?
}

/// Verify DNS queries of one socket to several servers, connected and not: each answer comes from
/// the server that was asked.
#[test]
fn queries() -> Result<()> {
    let (_cgroup, topology) = captured(&["--dns", "all"])?;
    for family in [Family::V4, Family::V6] {
        let any = if family == Family::V4 { "0.0.0.0:0" } else { "[::]:0" };
        let servers = [Dns.at(family, 53)?, OtherDns.at(family, 53)?, Dns.at(family, 53)?];
        topology.pod.enter(|| -> Result<()> {
            let socket = UdpSocket::bind(any)?;
            for to in servers {
                let (answer, from) = query(&socket, Some(to))?;
                ensure!(answer.port == 15053 && from == to, "{to}: {answer:?} from {from}");
                ensure!(answer.peer.ip() == Localhost.at(family, 0)?.ip(), "{to}: {answer:?}");
            }
            for to in servers {
                socket.connect(to)?;
                ensure!(socket.peer_addr()? == to, "{to}: {}", socket.peer_addr()?);
                let (answer, from) = query(&socket, None)?;
                ensure!(answer.port == 15053 && from == to, "{to}: {answer:?} from {from}");
            }
            Ok(())
        })??;
    }
    let socket_of_both = |to: SocketAddr| -> Result<()> {
        let (answer, from) = query(&UdpSocket::bind("[::]:0")?, Some(mapped(to)))?;
        ensure!(answer.port == 15053 && from == mapped(to), "{answer:?} from {from}");
        Ok(())
    };
    let to = Dns.at(Family::V4, 53)?;
    topology.pod.enter(|| socket_of_both(to))?
}

/// Send a query whose message names a device by which it is to leave, and a source.
fn query_by(socket: &UdpSocket, device: u32, source: IpAddr, to: SocketAddr) -> Result<()> {
    let data = [IoSlice::new(b"who")];
    let send = |info: &[ControlMessage<'_>]| {
        let name = SockaddrStorage::from(to);
        sendmsg(socket.as_raw_fd(), &data, info, MsgFlags::empty(), Some(&name))
    };
    match source {
        IpAddr::V4(source) => {
            let address = |ip: Ipv4Addr| libc::in_addr { s_addr: u32::from_ne_bytes(ip.octets()) };
            send(&[ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
                ipi_ifindex: device.cast_signed(),
                ipi_spec_dst: address(source),
                ipi_addr: address(Ipv4Addr::UNSPECIFIED),
            })])?;
        }
        IpAddr::V6(source) => {
            send(&[ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
                ipi6_ifindex: device,
                ipi6_addr: libc::in6_addr { s6_addr: source.octets() },
            })])?;
        }
    }
    Ok(())
}

/// Verify that a query whose message (`IP_PKTINFO`, `IPV6_PKTINFO`) or socket (`IP_UNICAST_IF`,
/// `IPV6_UNICAST_IF`) names the device by which it is to leave reaches the proxy as any other one does,
/// also when it names its source, or its socket is bound to an address or connected; and that what
/// makes that so goes with capture.
#[test]
fn queries_that_name_a_device() -> Result<()> {
    let (_cgroup, topology) = captured(&["--dns", "all"])?;
    let ours = |family: &str| {
        topology.pod.run("ip", &[family, "route", "show", "table", "local", "proto", "109"])
    };
    ensure!(ours("-4")?.contains("local 127.0.0.1 dev eth0"), "{}", ours("-4")?);
    ensure!(ours("-6")?.contains("local ::1 dev eth0"), "{}", ours("-6")?);
    for family in [Family::V4, Family::V6] {
        let (to, own) = (Dns.at(family, 53)?, Pod.at(family, 0)?.ip());
        let v4 = to.is_ipv4();
        let any: IpAddr =
            if v4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        topology.pod.enter(|| -> Result<()> {
            let device = if_nametoindex("eth0")?;
            for (bound, source) in [(any, any), (any, own), (own, any)] {
                let socket = UdpSocket::bind((bound, 0))?;
                query_by(&socket, device, source, to)?;
                let what = || format!("a message from {source}, of a socket bound to {bound}");
                answered(&socket, to).with_context(what)?;
            }
            for (bound, connected) in [(any, false), (own, false), (any, true), (own, true)] {
                let what = || format!("a socket bound to {bound}, connected: {connected}");
                let socket = UdpSocket::bind((bound, 0))?;
                prefer_device(socket.as_fd(), device, v4)?;
                if connected {
                    socket.connect(to).and_then(|()| socket.send(b"who")).with_context(what)?;
                } else {
                    socket.send_to(b"who", to)?;
                }
                answered(&socket, to).with_context(what)?;
            }
            Ok(())
        })??;
    }
    millrace_in_pod(&topology, &["cleanup", "--bpffs", FOLDER], 0)?;
    ensure!(ours("-4")?.is_empty() && ours("-6")?.is_empty());
    Ok(())
}

/// Whether the proxy answers a query, as the server that was asked.
fn answered(socket: &UdpSocket, to: SocketAddr) -> Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer)?;
    let answer: Answer = serde_json::from_slice(buffer.get(..length).context("a length")?)?;
    ensure!(answer.port == 15053 && from == to, "{answer:?} from {from}");
    Ok(())
}

/// Verify that an address that the pod gets after it was enrolled is one of its own as any other one:
/// what goes there stays in the pod, what comes there is the proxy's; and that calls to elsewhere
/// come from it once the pod has no other. And that a pod may have any number of them.
#[test]
fn addresses_that_come_later() -> Result<()> {
    let (_cgroup, topology) = captured(&[])?;
    topology.outside.ip("addr add 10.99.0.1/24 dev eth0\naddr add fd99::1/64 dev eth0 nodad\n")?;
    topology.pod.ip("addr add 10.99.0.5/24 dev eth0\naddr add fd99::5/64 dev eth0 nodad\n")?;
    let timeout_ms = 10_000;
    let (proto, transparent_mark, from_port) = (Proto::Tcp, None, None);
    let ask = |namespace, identity, from: Option<&str>, to: SocketAddr| -> Result<Answer> {
        let from = from.map(str::parse).transpose()?;
        let request = Dial { identity, proto, from, from_port, transparent_mark, to, timeout_ms };
        match dial(namespace, &request)? {
            Outcome::Answered { answer, .. } => Ok(answer),
            other @ Outcome::Failed(_) => bail!("{to}, from {from:?} as {identity:?}: {other}"),
        }
    };
    let (pod, outside) = (&topology.pod, &topology.outside);
    let later: [SocketAddr; 2] = ["10.99.0.5:8080".parse()?, "[fd99::5]:8080".parse()?];
    for to in later {
        let (own, passthrough) =
            if to.is_ipv4() { ("10.70.0.2", "127.0.0.6") } else { ("fd70::2", "::6") };
        // Of a socket of IPv6 that has a port the kernel does not tell.
        let bound = Some(own).filter(|_| to.is_ipv4());
        for (identity, from) in [(APP, None), (APP, bound), (PROXY, Some(passthrough))] {
            let answer = ask(pod, identity, from, to)?;
            ensure!(answer.name == "app", "{identity:?} from {from:?}: {answer:?}");
        }
        let answer = ask(pod, PROXY, None, to)?;
        ensure!(answer.name == "proxy" && answer.original == Some(to), "{answer:?}");
        let answer = ask(outside, ROOT, None, to)?;
        ensure!(answer.name == "proxy" && answer.original == Some(to), "{answer:?}");
    }
    let status = ["status", "--backend", "ebpf", "--bpffs", FOLDER];
    millrace_in_pod(&topology, &status, 0)?;
    topology.pod.ip("addr del 10.70.0.2/24 dev eth0\naddr del fd70::2/64 dev eth0\n\
         route replace default via 10.99.0.1\nroute replace default via fd99::1\n")?;
    for (family, own) in [(Family::V4, later[0].ip()), (Family::V6, later[1].ip())] {
        let to = Service.at(family, 80)?;
        let answer = ask(pod, APP, None, to)?;
        ensure!(answer.name == "proxy" && answer.original == Some(to), "{answer:?}");
        ensure!(answer.peer.ip() == own, "it comes from {}", answer.peer);
    }
    let many: Vec<String> =
        (1..=40).map(|n| format!("addr add 10.98.0.{n}/32 dev eth0\n")).collect();
    let many = many.concat();
    topology.pod.ip(&many)?;
    enrol(&topology, &["--exclude-outbound-ports", "443"])?;
    let answer = ask(pod, APP, None, "10.98.0.40:8080".parse()?)?;
    ensure!(answer.name == "app", "{answer:?}");
    Ok(())
}

/// Verify that datagrams know no difference between addresses of the time of the enrolment and later ones:
/// queries from these, of sockets that are bound and connected and not, are the proxy's and answered as by
/// the server, also once the pod has no other address, and other datagrams to them stay in the pod.
#[test]
fn datagrams_of_addresses_that_come_later() -> Result<()> {
    let (_cgroup, topology) = captured(&["--dns", "all"])?;
    topology.outside.ip("addr add 10.99.0.1/24 dev eth0\naddr add fd99::1/64 dev eth0 nodad\n")?;
    topology.pod.ip("addr add 10.99.0.5/24 dev eth0\naddr add fd99::5/64 dev eth0 nodad\n")?;
    let ask = || -> Result<()> {
        for (family, later) in [(Family::V4, "10.99.0.5"), (Family::V6, "fd99::5")] {
            let later: IpAddr = later.parse()?;
            let any: IpAddr = match family {
                Family::V4 => Ipv4Addr::UNSPECIFIED.into(),
                Family::V6 => Ipv6Addr::UNSPECIFIED.into(),
            };
            // The last is a server of the pod's own.
            let servers = [Dns.at(family, 53)?, SocketAddr::new(later, 53)];
            for (bound, to) in [any, later].into_iter().flat_map(|b| servers.map(|to| (b, to))) {
                let what = || format!("from {bound} to {to}");
                let socket = UdpSocket::bind((bound, 0))?;
                let (answer, from) = query(&socket, Some(to)).with_context(what)?;
                ensure!(answer.port == 15053 && from == to, "{}: {answer:?} {from}", what());
                socket.connect(to)?;
                let (answer, from) = query(&socket, None).with_context(what)?;
                ensure!(answer.port == 15053 && from == to, "{}: {answer:?} {from}", what());
            }
            let (own, mut buffer) = (UdpSocket::bind((later, 9191))?, [0; 8]);
            own.set_read_timeout(Some(PATIENCE))?;
            UdpSocket::bind((any, 0))?.send_to(b"who", (later, 9191))?;
            let (_, from) = own.recv_from(&mut buffer).context("nothing stayed in the pod")?;
            ensure!(from.ip() == later, "from {from}");
        }
        Ok(())
    };
    topology.pod.enter(ask)?.context("beside the first addresses")?;
    topology.pod.ip("addr del 10.70.0.2/24 dev eth0\naddr del fd70::2/64 dev eth0\n\
         route replace default via 10.99.0.1\nroute replace default via fd99::1\n")?;
    topology.pod.enter(ask)?.context("instead of the first addresses")
}

/// Verify that a socket that is bound to a device reaches the proxy as well, and that a query of
/// such a socket, which may need its device for other datagrams, is refused.
#[test]
fn sockets_bound_to_a_device() -> Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, connect, socket};
    let (_cgroup, topology) = captured(&["--dns", "all"])?;
    for family in [Family::V4, Family::V6] {
        let to = Service.at(family, 80)?;
        let server = Dns.at(family, 53)?;
        topology.pod.enter(|| -> Result<()> {
            let kind = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
            let fd = socket(kind, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            setsockopt(&fd, sockopt::BindToDevice, &"eth0".into())?;
            setsockopt(&fd, sockopt::SendTimeout, &nix::sys::time::TimeVal::new(5, 0))?;
            connect(fd.as_raw_fd(), &SockaddrStorage::from(to)).context("connect")?;
            let answer = answer(&TcpStream::from(fd))?;
            ensure!(answer.port == 15001 && answer.original == Some(to), "{answer:?}");
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let udp = UdpSocket::bind(any)?;
            setsockopt(&udp, sockopt::BindToDevice, &"eth0".into())?;
            let error = query(&udp, Some(server)).err().context("it is refused")?;
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            ensure!(kind == Some(std::io::ErrorKind::PermissionDenied), "{error:#}");
            Ok(())
        })??;
    }
    Ok(())
}

fn from_outside(topology: &Topology, family: Family, port: u16) -> Result<Outcome> {
    let to = Pod.at(family, port)?;
    let identity = ROOT;
    let (from, from_port, transparent_mark) = (None, None, None);
    let timeout_ms = 3000;
    let proto = Proto::Tcp;
    dial(
        &topology.outside,
        &Dial { identity, proto, from, from_port, transparent_mark, to, timeout_ms },
    )
}

fn listen(topology: &Topology, name: &str, identity: Identity, on: &[&str]) -> Result<Listeners> {
    let listen = |addr: &&str| -> Result<Listen> {
        Ok(Listen { proto: Proto::Tcp, addr: addr.parse()?, transparent: false })
    };
    let listen = on.iter().map(listen).collect::<Result<_>>()?;
    Listeners::start(&topology.pod, &Serve { name: name.to_owned(), identity, listen })
}

/// Verify that inbound connections are refused, and do not reach the application, for as long as
/// the proxy does not listen in their family; that its listener is found when it begins to listen;
/// and that what is not captured gets through all the while.
#[test]
fn while_the_proxy_does_not_listen() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let mut topology = Topology::new(Stack::Dual, Layout::default())?;
    topology.stop_listeners();
    load(&topology.pod)?;
    enrol(&topology, &["--exclude-inbound-ports", "9090"])?;
    let app = ["0.0.0.0:8080", "[::]:8080", "0.0.0.0:9090", "[::]:9090"];
    let _app = listen(&topology, "app", APP, &app)?;
    let refused = |family, when: &str| -> Result<()> {
        let out = from_outside(&topology, family, 8080)?;
        ensure!(out == Outcome::Failed(Failure::Refused), "{when}, {family:?}: {out}");
        Ok(())
    };
    let by = |family, name: &str, port: u16, to: u16| -> Result<()> {
        match from_outside(&topology, family, to)? {
            Outcome::Answered { answer, .. } if answer.name == name && answer.port == port => {
                ensure!(answer.local == Pod.at(family, to)?, "{answer:?}");
                Ok(())
            }
            other => bail!("{family:?}: {other}"),
        }
    };
    let both = [Family::V4, Family::V6];
    for family in both {
        refused(family, "not yet")?;
        by(family, "app", 9090, 9090)?;
    }
    let v4 = listen(&topology, "proxy", PROXY, &["0.0.0.0:15006"])?;
    by(Family::V4, "proxy", 15006, 8080)?;
    refused(Family::V6, "IPv4 only")?;
    let v6 = listen(&topology, "proxy", PROXY, &["[::]:15006"])?;
    both.iter().try_for_each(|family| by(*family, "proxy", 15006, 8080))?;
    drop(v4);
    refused(Family::V4, "no more")?;
    by(Family::V6, "proxy", 15006, 8080)?;
    drop(v6);
    both.iter().try_for_each(|family| refused(*family, "gone"))?;
    // Back again, and on localhost alone, which no one outside can reach by itself.
    let _proxy = listen(&topology, "proxy", PROXY, &["127.0.0.1:15006", "[::1]:15006"])?;
    both.iter().try_for_each(|family| by(*family, "proxy", 15006, 8080))?;
    Ok(())
}

/// Verify that one listener of IPv6 takes both families, also when it listened before the pod was
/// captured, and that of several sockets on the port any may end.
#[test]
fn several_listeners() -> Result<()> {
    use std::net::TcpListener;
    let _cgroup = Cgroup::enter()?;
    let mut topology = Topology::new(Stack::Dual, Layout::default())?;
    topology.stop_listeners();
    load(&topology.pod)?;
    let listener = || -> Result<TcpListener> {
        use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, bind, listen, socket};
        let fd = socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        setsockopt(&fd, sockopt::ReusePort, &true)?;
        setsockopt(&fd, sockopt::ReuseAddr, &true)?;
        let addr: SocketAddr = "[::]:15006".parse()?;
        bind(fd.as_raw_fd(), &SockaddrStorage::from(addr))?;
        listen(&fd, Backlog::MAXCONN)?;
        Ok(TcpListener::from(fd))
    };
    let connects = |when: &str| -> Result<()> {
        for family in [Family::V4, Family::V6] {
            let to = Pod.at(family, 8080)?;
            let connected = topology.outside.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
            connected.with_context(|| format!("{when}, {family:?}"))?;
        }
        Ok(())
    };
    let first = topology.pod.enter(listener)??;
    enrol(&topology, &[])?;
    connects("one that listened before")?;
    let mut others = Vec::new();
    for _ in 0..3 {
        others.push(topology.pod.enter(listener)??);
    }
    connects("four")?;
    drop(first);
    connects("without the first")?;
    others.truncate(1);
    connects("with the second alone")?;
    others.push(topology.pod.enter(listener)??);
    others.remove(0);
    connects("with a new one alone")?;
    others.clear();
    let to = Pod.at(Family::V4, 8080)?;
    let end = Instant::now() + PATIENCE;
    // A child that another test is about to start may hold them a little longer.
    loop {
        let refused = topology.outside.enter(|| TcpStream::connect_timeout(&to, PATIENCE))?;
        let kind = refused.err().map(|error| error.kind());
        if kind == Some(std::io::ErrorKind::ConnectionRefused) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "without any: {kind:?}");
        std::thread::yield_now();
    }
}
