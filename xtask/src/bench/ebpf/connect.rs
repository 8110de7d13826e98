//! Connections one after the other, client and proxy on one thread: nothing is waited for that the
//! kernel does not do in the call itself.

use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::libc::linger;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};
use nix::time::{ClockId, clock_gettime};

use super::by::{BenchPod, Way};
use super::node::BenchNode;
use crate::bench::stats::quantile;

/// A batch ends after this time, with fewer connections: a pod may be very slow.
const LONGEST: Duration = Duration::from_millis(250);
/// What takes longer does not happen at all.
pub const TOO_LONG: i64 = 10;

/// What a batch of connections cost.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Of `connect()` alone, in microseconds.
    pub p50: f64,
    /// The same.
    pub p99: f64,
    /// Connections in a second, each from `socket()` to `close()` at both ends.
    pub rate: f64,
    /// Processor time of one of them, in microseconds.
    pub cpu: f64,
}

/// Make connections.
///
/// # Errors
/// When one fails, or does not come to the proxy, or the proxy is told another destination.
pub fn batch(pod: &BenchPod, way: Way, count: usize, node: &BenchNode) -> Result<Batch> {
    let to = pod.destination(way);
    let asks = pod.by.captures();
    let listener = || listen(pod.proxy_port(way));
    match way {
        Way::Out => pod.inside(node, || make(&listener()?, to, asks, count)),
        Way::In => {
            let listener = pod.inside(node, listener)?;
            pod.pair.outside(|| {
                crate::bench::path::pin(0)?;
                make(&listener, to, asks, count)
            })
        }
    }
}

fn make(listener: &TcpListener, to: SocketAddrV4, asks: bool, count: usize) -> Result<Batch> {
    let mut latencies = Vec::with_capacity(count);
    let (before, start) = (cpu(ClockId::CLOCK_THREAD_CPUTIME_ID)?, Instant::now());
    while latencies.len() < count && start.elapsed() < LONGEST {
        let client = client()?;
        let name = SockaddrIn::from(to);
        let began = Instant::now();
        connect(client.as_raw_fd(), &name).with_context(|| format!("a connection to {to}"))?;
        latencies.push(began.elapsed());
        let (accepted, _) = listener.accept().context("the connection did not come")?;
        if asks {
            came_for(&accepted, to)?;
        }
        close_at_once(&client)?;
    }
    let (wall, now) = (start.elapsed(), cpu(ClockId::CLOCK_THREAD_CPUTIME_ID)?);
    latencies.sort_unstable();
    let made = f64::from(u32::try_from(latencies.len()).unwrap_or(u32::MAX));
    let at = |percent| quantile(&latencies, percent).map(micros).context("nothing was measured");
    Ok(Batch {
        p50: at(50)?,
        p99: at(99)?,
        rate: made / wall.as_secs_f64(),
        cpu: micros(now.saturating_sub(before)) / made,
    })
}

/// A listener that fails when nobody comes.
///
/// # Errors
/// When the port is taken.
pub fn listen(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .with_context(|| format!("listening on port {port}"))?;
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::seconds(TOO_LONG))?;
    Ok(listener)
}

fn client() -> Result<OwnedFd> {
    socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).context("a socket")
}

/// What the proxy is told has to be where the client connected to.
///
/// # Errors
/// When it is not.
pub fn came_for(accepted: &impl AsFd, to: SocketAddrV4) -> Result<()> {
    let told = nix::sys::socket::getsockopt(accepted, sockopt::OriginalDst)
        .context("asking for the original destination")?;
    let ip = Ipv4Addr::from(u32::from_be(told.sin_addr.s_addr));
    let told = SocketAddrV4::new(ip, u16::from_be(told.sin_port));
    ensure!(told == to, "a connection to {to} came with original destination {told}");
    Ok(())
}

/// Closed by a reset, a connection leaves no port behind that waits.
///
/// # Errors
/// When the socket is none.
pub fn close_at_once(socket: &impl AsFd) -> Result<()> {
    let at_once = linger { l_onoff: 1, l_linger: 0 };
    setsockopt(socket, sockopt::Linger, &at_once).context("a socket option")
}

/// Processor time, of a thread or of the whole program.
///
/// # Errors
/// When the kernel does not tell.
pub fn cpu(of: ClockId) -> Result<Duration> {
    Ok(clock_gettime(of).context("processor time")?.into())
}

/// In microseconds.
pub fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
