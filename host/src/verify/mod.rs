//! Live proof: connections are really made, by the users that rules tell apart, from inside the pod
//! and from somebody outside who is there only for this; and where each arrives is seen: by own listeners,
//! by what a running process accepted, or on its way out of the pod.

mod dial;
mod listen;
mod outside;
mod wire;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use millrace_core::sim::Protocol;
use millrace_core::value::Family;
use millrace_core::verify::{Check, Expected, Finding, Seen};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};

use crate::conntrack::{Conntrack, Flow};
use crate::ebpf;
use crate::sysctl::lo_has_no_ipv6;
use dial::{Dialled, bound, dial, owned};
use listen::{ListeningSocket, Spot};
use outside::Outside;
use wire::{Awaited, Wire, is_own};

/// The zones that connections may be tracked in: none, and those that DNS capture uses.
const ZONES: [u16; 3] = [0, 1, 2];
/// Between two looks at connection tracking, where nothing else tells.
const STEP: Duration = Duration::from_millis(20);

/// What a proof needs beside the checks.
#[derive(Debug)]
pub struct Prover {
    outside: Result<Outside, String>,
    patience: Duration,
}

impl Prover {
    /// The link by which somebody outside reaches the pod, as long as the proof takes.
    pub const LINK: &str = outside::LINK;

    /// Prepare a proof in the calling thread's namespace, whose own addresses these are. Nobody is
    /// outside where that may not be arranged. `patience` is how long a connection may take.
    pub fn open(addresses: &[IpAddr], patience: Duration) -> Self {
        Self { outside: Outside::open(addresses), patience }
    }

    /// The addresses of who is outside.
    pub fn outside(&self) -> Vec<IpAddr> {
        self.outside.as_ref().map(Outside::addresses).unwrap_or_default()
    }

    /// Why nobody is outside; none when somebody is.
    pub fn nobody_outside(&self) -> Option<&str> {
        self.outside.as_ref().err().map(String::as_str)
    }

    /// Make the connections, one after the other; `made` is called behind each.
    pub fn run(&self, checks: Vec<Check>, made: impl Fn()) -> Vec<Finding> {
        let mut listeners = Vec::new();
        let mut taken = Vec::new();
        for spot in spots(&checks) {
            match ListeningSocket::open(spot) {
                Ok(listener) => listeners.push(listener),
                Err(errno) => taken.push((spot, errno)),
            }
        }
        let (conntrack, wire) = (Conntrack::open().ok(), Wire::open());
        let mut run = Run { prover: self, listeners, taken, conntrack, wire };
        let finding = |check: Check| {
            let seen = match check.unheard {
                Some(port) => run.without(port, &check)?,
                None => run.check(&check),
            };
            made();
            Some(Finding::new(check, seen))
        };
        checks.into_iter().filter_map(finding).collect()
    }

    /// Take everything away again. Without this the kernel does, when the process ends.
    ///
    /// # Errors
    /// When the link can't be removed.
    pub fn close(self) -> Result<(), String> {
        self.outside.map_or(Ok(()), Outside::close)
    }
}

/// A port that nothing listens on, in either family.
pub fn free_port() -> Option<u16> {
    (61_000..61_100).find(|port| {
        let free = |family, protocol| {
            let spot = Spot { family, protocol, port: *port, transparent: false };
            !matches!(ListeningSocket::open(spot), Err(Errno::EADDRINUSE))
        };
        Family::ALL.iter().all(|f| free(*f, Protocol::TCP) && free(*f, Protocol::UDP))
    })
}

/// Where listeners are needed: where connections are to arrive, and where they were meant to.
fn spots(checks: &[Check]) -> Vec<Spot> {
    let mut spots: Vec<Spot> = Vec::new();
    for check in checks {
        let Expected::Arrives { port, how, .. } = &check.expected else { continue };
        let transparent = *how == millrace_core::sim::How::Transparent;
        for (port, transparent) in [(*port, transparent), (check.to.port(), false)] {
            let family = Family::of(check.to.ip());
            let spot = Spot { family, protocol: check.protocol, port, transparent };
            let same =
                |s: &&mut Spot| (s.family, s.protocol, s.port) == (family, check.protocol, port);
            match spots.iter_mut().find(same) {
                Some(known) => known.transparent |= transparent,
                None => spots.push(spot),
            }
        }
    }
    spots
}

struct Run<'a> {
    prover: &'a Prover,
    listeners: Vec<ListeningSocket>,
    taken: Vec<(Spot, Errno)>,
    conntrack: Option<Conntrack>,
    wire: Result<Wire, Errno>,
}

impl Run<'_> {
    /// The same while nobody listens on a port; none where a running process does.
    fn without(&mut self, port: u16, check: &Check) -> Option<Seen> {
        let family = Family::of(check.to.ip());
        let is =
            |spot: &Spot| (spot.family, spot.protocol, spot.port) == (family, check.protocol, port);
        let at = self.listeners.iter().position(|listener| is(&listener.spot))?;
        let ListeningSocket { spot, .. } = self.listeners.swap_remove(at);
        let seen = self.check(check);
        match ListeningSocket::open(spot) {
            Ok(listener) => self.listeners.push(listener),
            Err(errno) => self.taken.push((spot, errno)),
        }
        Some(seen)
    }

    fn check(&self, check: &Check) -> Seen {
        let not_tried = |why: String| Seen::NotTried { why };
        let family = Family::of(check.to.ip());
        let socket = match (check.owner, &self.prover.outside) {
            (Some(owner), _) => owned(owner, family, check.protocol),
            (None, Ok(outside)) => outside.socket(family, check.protocol),
            (None, Err(why)) => Err(why.clone()),
        };
        let socket = match socket {
            Ok(socket) => socket,
            Err(why) => return not_tried(why),
        };
        // Nobody of an earlier check may be taken for this one's.
        for listener in &self.listeners {
            while matches!(listener.take(), Ok(Some(_))) {}
        }
        if let Ok(wire) = &self.wire {
            wire.drain();
        }
        if check.reused
            && let Err(why) = self.suppose(&socket, check)
        {
            return not_tried(why);
        }
        let source = check.owner.and(check.source);
        let from = match dial(&socket, check.owner, check.protocol, source, check.to) {
            Dialled::From(from) => from,
            Dialled::Refused(errno @ (Errno::ENETUNREACH | Errno::EHOSTUNREACH)) => {
                let why = without_v6(check.to.ip());
                let why =
                    why.unwrap_or_else(|| "there is no route to that address from here".into());
                return not_tried(format!("{errno}: {why}"));
            }
            Dialled::Refused(errno @ Errno::EADDRNOTAVAIL) => {
                return Seen::Failed { why: format!("{errno}: the source address is not there") };
            }
            Dialled::Refused(errno) => return Seen::Failed { why: errno.to_string() },
        };
        let flow = Flow { tcp: check.protocol == Protocol::TCP, from, to: check.to };
        let seen = self.follow(check, &socket, &flow);
        drop(socket);
        if let Some(conntrack) = &self.conntrack {
            for zone in ZONES {
                // Who may not make it forget has seen nothing of it either.
                let _forgotten = conntrack.forget(&flow, zone);
            }
        }
        seen
    }

    /// Have connection tracking hold an earlier connection with the addresses and ports of the one that
    /// is to be made.
    fn suppose(&self, socket: &OwnedFd, check: &Check) -> Result<(), String> {
        let source = check.source.ok_or("where it comes from is not known")?;
        let from = bound(socket, source).map_err(|errno| errno.to_string())?;
        let flow = Flow { tcp: true, from, to: check.to };
        let tracked = self.conntrack.as_ref().ok_or("connection tracking can't be asked")?;
        let silent = self.prover.patience + Duration::from_secs(1);
        tracked.suppose(&flow, silent).map_err(|errno| {
            format!("{errno}: connection tracking takes no connection; it needs NET_ADMIN")
        })
    }

    /// Where a connection is that connection tracking knows: who answers.
    fn answerer(&self, flow: &Flow) -> Option<SocketAddr> {
        let conntrack = self.conntrack.as_ref()?;
        let mut found = ZONES.iter().filter_map(|zone| conntrack.answerer(flow, *zone).ok()?);
        found.next()
    }

    /// See where it comes out.
    fn follow(&self, check: &Check, socket: &OwnedFd, flow: &Flow) -> Seen {
        let deadline = Instant::now() + self.prover.patience;
        let tcp = check.protocol == Protocol::TCP;
        let mut awaited = Awaited::new();
        loop {
            for listener in &self.listeners {
                while let Ok(Some(arrival)) = listener.take() {
                    if arrival.from == flow.from {
                        let tracked = || self.answerer(flow).map(|_| flow.to);
                        let original = arrival.original.or_else(tracked);
                        let port = Some(listener.spot.port);
                        return Seen::Arrived { port, original, own: true };
                    }
                }
            }
            let leaving = self.wire.as_ref().ok().and_then(|wire| wire.left(flow, &mut awaited));
            let next_hop = check.owner.is_some() && !awaited.is_empty();
            match leaving.filter(|_| check.owner.is_some()) {
                Some(to) if to == flow.to => return Seen::Left,
                Some(to) => return Seen::Led { to, taken: false },
                None => {}
            }
            // Behind the last hook connection tracking has it, with nobody else in it.
            if check.owner.is_some()
                && !is_own(flow.to.ip())
                && self.answerer(flow) == Some(flow.to)
            {
                return Seen::Left;
            }
            match getsockopt(socket, sockopt::SocketError) {
                Ok(0) => {}
                Ok(error) => return self.failed(check, flow, Errno::from_raw(error), next_hop),
                Err(errno) => return Seen::Failed { why: errno.to_string() },
            }
            let answered = if tcp { is_connected(socket) } else { is_answered(socket) };
            if answered && !self.is_ours(check) {
                return self.accepted(check, flow);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return match self.answerer(flow) {
                    Some(to) if to != flow.to => Seen::Led { to, taken: self.is_taken(&to) },
                    _ => {
                        let off = check.owner.and_then(|_| without_v6(check.to.ip()));
                        Seen::Unseen { blind: off.or_else(|| self.blind(next_hop)) }
                    }
                };
            }
            self.wait(socket, left.min(STEP));
        }
    }

    /// Why a packet may have left without being seen.
    fn blind(&self, next_hop: bool) -> Option<String> {
        match &self.wire {
            Err(errno) => Some(format!("{errno}; to watch takes the capability NET_RAW")),
            Ok(_) if next_hop => Some("its next hop did not answer".to_owned()),
            Ok(_) => None,
        }
    }

    /// Whether a process that runs here has the port, so that it could not be listened on. A datagram
    /// that it does not answer can't be seen.
    fn is_taken(&self, to: &SocketAddr) -> bool {
        let family = Family::of(to.ip());
        is_own(to.ip())
            && self.taken.iter().any(|(spot, _)| {
                (spot.family, spot.port, spot.protocol) == (family, to.port(), Protocol::UDP)
            })
    }

    /// Whether a listener of ours has the port where it is to arrive; it may not have looked yet.
    fn is_ours(&self, check: &Check) -> bool {
        let Expected::Arrives { port, .. } = &check.expected else { return false };
        let same = |spot: &Spot| {
            (spot.family, spot.protocol, spot.port)
                == (Family::of(check.to.ip()), check.protocol, *port)
        };
        self.listeners.iter().any(|listener| same(&listener.spot))
    }

    /// Somebody else accepted or answered it.
    fn accepted(&self, check: &Check, flow: &Flow) -> Seen {
        match self.answerer(flow) {
            Some(at) if at != flow.to && !is_own(at.ip()) => Seen::Led { to: at, taken: false },
            Some(at) if at != flow.to => {
                Seen::Arrived { port: Some(at.port()), original: Some(flow.to), own: false }
            }
            // eBPF connects sockets elsewhere, where connection tracking sees nothing of it.
            None if check.owner.is_some()
                && let Ok(Some(at)) = ebpf::peer(flow.from)
                && at != flow.to =>
            {
                Seen::Arrived { port: Some(at.port()), original: None, own: false }
            }
            // A transparent socket takes it without any translation.
            _ => Seen::Arrived { port: None, original: None, own: false },
        }
    }

    fn failed(&self, check: &Check, flow: &Flow, errno: Errno, next_hop: bool) -> Seen {
        // A rule may say so as well: the packet itself was not seen to leave.
        if check.owner.is_some()
            && !is_own(flow.to.ip())
            && matches!(errno, Errno::EHOSTUNREACH | Errno::ENETUNREACH | Errno::ECONNREFUSED)
            && let Some(why) = self.blind(next_hop)
        {
            return Seen::Unseen { blind: Some(format!("{errno}; {why}")) };
        }
        let mut why = errno.to_string();
        if let Some((spot, errno)) = self.taken.iter().find(|(spot, _)| {
            matches!(&check.expected, Expected::Arrives { port, .. } if *port == spot.port)
                && spot.family == Family::of(check.to.ip())
        }) {
            why = format!("{why}; port {} can't be listened on: {errno}", spot.port);
        }
        Seen::Failed { why }
    }

    fn wait(&self, socket: &OwnedFd, patience: Duration) {
        let mut fds = vec![PollFd::new(socket.as_fd(), PollFlags::POLLERR)];
        let listeners = self.listeners.iter();
        fds.extend(listeners.map(|l| PollFd::new(l.as_fd(), PollFlags::POLLIN)));
        // Interrupted or not: everything is looked at anew.
        let _ready = poll(&mut fds, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX));
    }
}

/// Whether a TCP socket has its other end.
fn is_connected(socket: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd as _;
    nix::sys::socket::getpeername::<nix::sys::socket::SockaddrStorage>(socket.as_raw_fd()).is_ok()
}

/// Whether a datagram was answered.
fn is_answered(socket: &OwnedFd) -> bool {
    use std::os::fd::AsRawFd as _;
    let mut byte = [0];
    nix::sys::socket::recv(socket.as_raw_fd(), &mut byte, nix::sys::socket::MsgFlags::MSG_PEEK)
        .is_ok()
}

/// Why nothing comes to an address of this host's own, where IPv6 is switched off on `lo`, by which it goes.
fn without_v6(to: IpAddr) -> Option<String> {
    let off = to.is_ipv6() && is_own(to) && lo_has_no_ipv6();
    off.then(|| {
        "IPv6 is switched off on lo: set the sysctl net.ipv6.conf.lo.disable_ipv6 to 0".to_owned()
    })
}
