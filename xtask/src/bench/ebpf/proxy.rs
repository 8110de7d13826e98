//! An application that speaks to a server through a proxy: three threads on one processor. The
//! proxy asks for the original destination, as every proxy does, and then speaks to a server of the
//! pod.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::time::ClockId;

use super::by::{BenchPod, OUTBOUND, Way};
use super::connect::{TOO_LONG, came_for, close_at_once, cpu, listen, micros};
use super::node::BenchNode;

/// Where the server listens, in the pod: what is sent to localhost is not captured.
const SERVER: u16 = 9000;
/// What a request and its answer are long.
const MESSAGE: usize = 64;
/// How much is written at once to a stream, and how much the proxy reads at most.
const BLOCK: usize = 64 * 1024;

/// How much is sent.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Requests on one connection.
    pub requests: usize,
    /// Connections of one request each.
    pub connections: usize,
    /// Blocks of 64 KiB of one stream.
    pub blocks: usize,
    /// Streams in a round: how fast one is depends on how it begins.
    pub streams: usize,
}

/// What it cost.
#[derive(Clone, Copy, Debug)]
pub struct Served {
    /// Requests in a second.
    pub rate: f64,
    /// Processor time of one, of all three parties together, in microseconds.
    pub cpu: f64,
}

/// What requests of one round cost.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// On one connection.
    pub requests: Served,
    /// A connection for each.
    pub connections: Served,
}

/// How long many requests took together.
fn served(count: usize, work: impl FnOnce() -> Result<()>) -> Result<Served> {
    let (before, start) = (cpu(ClockId::CLOCK_PROCESS_CPUTIME_ID)?, Instant::now());
    work()?;
    let (wall, now) = (start.elapsed(), cpu(ClockId::CLOCK_PROCESS_CPUTIME_ID)?);
    let used = now.saturating_sub(before);
    let count = f64::from(u32::try_from(count)?);
    Ok(Served { rate: count / wall.as_secs_f64(), cpu: micros(used) / count })
}

/// Send requests, on one connection and on one for each.
///
/// # Errors
/// When a connection fails or goes elsewhere.
pub fn sample(pod: &BenchPod, load: Load, node: &BenchNode) -> Result<Sample> {
    let to = pod.destination(Way::Out);
    let asked = pod.by.captures().then_some(to);
    pod.inside(node, || {
        let (proxy, server) = (listen(OUTBOUND)?, listen(SERVER)?);
        let requests = with(
            || echo(&server, 1),
            || relay(&proxy, asked, 1),
            || {
                let mut stream = dial(to)?;
                ask(&mut stream)?;
                served(load.requests, || (0..load.requests).try_for_each(|_| ask(&mut stream)))
            },
        )?;
        let connections = with(
            || echo(&server, load.connections),
            || relay(&proxy, asked, load.connections),
            || {
                served(load.connections, || {
                    (0..load.connections).try_for_each(|_| {
                        let mut stream = dial(to)?;
                        ask(&mut stream)?;
                        close_at_once(&stream)
                    })
                })
            },
        )?;
        Ok(Sample { requests, connections })
    })
}

/// Send one stream of so many blocks; what each of them cost.
///
/// # Errors
/// When the connection fails or goes elsewhere.
pub fn stream(pod: &BenchPod, blocks: usize, node: &BenchNode) -> Result<Served> {
    let to = pod.destination(Way::Out);
    let asked = pod.by.captures().then_some(to);
    pod.inside(node, || {
        let (proxy, server) = (listen(OUTBOUND)?, listen(SERVER)?);
        with(
            || swallow(&server, blocks * BLOCK),
            || forward(&proxy, asked),
            || {
                let (mut stream, block) = (dial(to)?, vec![7; BLOCK]);
                served(blocks, || {
                    (0..blocks).try_for_each(|_| stream.write_all(&block))?;
                    // The server's word that it has everything.
                    stream.read_exact(&mut [0]).context("the server's end")
                })
            },
        )
    })
}

/// Server, proxy and client side by side; what the client measured.
fn with<T>(
    server: impl FnOnce() -> Result<()> + Send,
    proxy: impl FnOnce() -> Result<()> + Send,
    client: impl FnOnce() -> Result<T>,
) -> Result<T> {
    thread::scope(|scope| {
        let others = [scope.spawn(server), scope.spawn(proxy)];
        let measured = client();
        for other in others {
            other.join().unwrap_or_else(|_| bail!("a benchmark thread panicked"))?;
        }
        measured
    })
}

fn dial(to: SocketAddrV4) -> Result<TcpStream> {
    let stream = TcpStream::connect(to).with_context(|| format!("a connection to {to}"))?;
    ready(stream)
}

/// A stream that sends at once, and fails when nothing comes.
fn ready(stream: TcpStream) -> Result<TcpStream> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(TOO_LONG.unsigned_abs())))?;
    Ok(stream)
}

fn accept(listener: &TcpListener) -> Result<TcpStream> {
    let (stream, _) = listener.accept().context("nobody came")?;
    ready(stream)
}

fn ask(stream: &mut TcpStream) -> Result<()> {
    let mut answer = [0; MESSAGE];
    stream.write_all(&[1; MESSAGE])?;
    stream.read_exact(&mut answer).context("an answer")?;
    ensure!(answer == [1; MESSAGE], "another answer than the server's");
    Ok(())
}

/// Take over what one side sends, until it has no more. A reset is an end as well.
fn pass(from: &mut TcpStream, buffer: &mut [u8]) -> Result<usize> {
    match from.read(buffer) {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(0),
        other => other.context("reading"),
    }
}

/// The server: every message comes back.
fn echo(server: &TcpListener, connections: usize) -> Result<()> {
    let mut buffer = [0; MESSAGE];
    for _ in 0..connections {
        let mut stream = accept(server)?;
        loop {
            let length = pass(&mut stream, &mut buffer)?;
            if length == 0 {
                break;
            }
            stream.write_all(&buffer[..length])?;
        }
    }
    Ok(())
}

/// The server: it counts, and says so when it has everything.
fn swallow(server: &TcpListener, all: usize) -> Result<()> {
    let (mut stream, mut buffer) = (accept(server)?, vec![0; BLOCK]);
    let mut left = all;
    while left > 0 {
        let length = pass(&mut stream, &mut buffer)?;
        ensure!(length > 0, "{left} bytes did not come");
        left = left.saturating_sub(length);
    }
    stream.write_all(&[1])?;
    Ok(())
}

/// A connection that came to the proxy, and the proxy's own to the server.
fn both(proxy: &TcpListener, asked: Option<SocketAddrV4>) -> Result<(TcpStream, TcpStream)> {
    let client = accept(proxy)?;
    if let Some(to) = asked {
        came_for(&client, to)?;
    }
    Ok((client, dial(SocketAddrV4::new(Ipv4Addr::LOCALHOST, SERVER))?))
}

/// The proxy: a message there, its answer back.
fn relay(proxy: &TcpListener, asked: Option<SocketAddrV4>, connections: usize) -> Result<()> {
    let mut buffer = [0; MESSAGE];
    for _ in 0..connections {
        let (mut client, mut server) = both(proxy, asked)?;
        loop {
            let length = pass(&mut client, &mut buffer)?;
            if length == 0 {
                break;
            }
            server.write_all(&buffer[..length])?;
            server.read_exact(&mut buffer[..length])?;
            client.write_all(&buffer[..length])?;
        }
        close_at_once(&server)?;
    }
    Ok(())
}

/// The proxy: everything there, and the server's word back.
fn forward(proxy: &TcpListener, asked: Option<SocketAddrV4>) -> Result<()> {
    let (mut client, mut server) = both(proxy, asked)?;
    let mut back = server.try_clone()?;
    let mut answers = client.try_clone()?;
    thread::scope(|scope| {
        let end = scope.spawn(move || -> Result<()> {
            let mut word = [0];
            back.read_exact(&mut word)?;
            Ok(answers.write_all(&word)?)
        });
        let mut buffer = vec![0; BLOCK];
        loop {
            let length = pass(&mut client, &mut buffer)?;
            if length == 0 {
                break;
            }
            server.write_all(&buffer[..length])?;
        }
        end.join().unwrap_or_else(|_| bail!("a benchmark thread panicked"))
    })
}
