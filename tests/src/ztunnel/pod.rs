//! ztunnel's sockets in a pod: they are of its process, with its mark, in the pod's network namespace.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, bind, listen, setsockopt, socket,
    sockopt,
};

use crate::probe;

/// The mark of its packets.
const MARK: u32 = 1337;
/// Outbound, inbound, and inbound from other ztunnels.
const PORTS: [u16; 3] = [15001, 15006, 15008];
/// How soon it is noticed that it is to end, in milliseconds.
const TURN: u8 = 20;

/// Listeners in a pod; they end with the value.
#[derive(Debug)]
pub(super) struct Proxy {
    stops: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listen in a pod, and tell each client who answers by this name and what it wanted.
    pub(super) fn start(netns: OwnedFd, name: &str) -> Result<Self> {
        let (name, stops) = (name.to_owned(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stops);
        let (ready, is_ready) = mpsc::channel();
        let thread = thread::spawn(move || match listeners(netns) {
            Ok(listeners) => {
                let _told = ready.send(Ok(()));
                while !stopped.load(Ordering::Relaxed) {
                    turn(&listeners, &name);
                }
            }
            Err(error) => drop(ready.send(Err(error))),
        });
        is_ready.recv().context("the proxy's thread has ended")??;
        Ok(Self { stops, thread: Some(thread) })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stops.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A test that panicked elsewhere says more.
            let _ended = thread.join();
        }
    }
}

/// The calling thread is in the pod from now on.
fn listeners(netns: OwnedFd) -> Result<Vec<TcpListener>> {
    setns(netns, CloneFlags::CLONE_NEWNET).context("entering the pod")?;
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let all = PORTS.iter().flat_map(|port| any.map(|ip| SocketAddr::new(ip, *port)));
    all.map(|at| listener(at).with_context(|| format!("listening on {at} in the pod"))).collect()
}

fn listener(at: SocketAddr) -> Result<TcpListener> {
    let family = if at.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(family, SockType::Stream, flags, None)?;
    if at.is_ipv6() {
        setsockopt(&fd, sockopt::Ipv6V6Only, &true)?;
    }
    // Another ztunnel may listen here at the same time.
    setsockopt(&fd, sockopt::ReusePort, &true)?;
    setsockopt(&fd, sockopt::Mark, &MARK)?;
    bind(fd.as_raw_fd(), &SockaddrStorage::from(at))?;
    listen(&fd, Backlog::MAXCONN)?;
    Ok(TcpListener::from(fd))
}

/// Answer whoever is there, or wait for some time.
fn turn(listeners: &[TcpListener], name: &str) {
    let readable = |listener| PollFd::new(listener, PollFlags::POLLIN);
    let mut ready: Vec<PollFd<'_>> = listeners.iter().map(|at| readable(at.as_fd())).collect();
    if !matches!(poll(&mut ready, PollTimeout::from(TURN)), Ok(count) if count > 0) {
        return;
    }
    for listener in listeners {
        // A client that goes away is no reason to stop.
        let Ok((stream, peer)) = listener.accept() else { continue };
        let _answered = probe::answer(name, listener, stream, peer);
    }
}
