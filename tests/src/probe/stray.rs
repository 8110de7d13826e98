//! `probe stray`: a packet that belongs to no connection.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, recv, sendto,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

use super::socket::bind_to;
use crate::wire::{Failure, Stray};

const RST: u8 = 0x04;
const SYN_ACK: u8 = 0x12;

/// Send a SYN+ACK out of nowhere, which connection tracking calls INVALID, and wait for the reset
/// that a host which lets it in sends back. Gives `Reset` or `TimedOut`.
///
/// The sender's own TCP has nothing to do with it: the source port is one that nobody uses.
pub(super) fn stray(stray: &Stray) -> Result<Failure> {
    const FROM_PORT: u16 = 61_001;
    let fd = raw_socket(stray)?;
    let from = SocketAddr::new(stray.from, FROM_PORT);
    let segment = segment(from, stray.to);
    // The port of a raw socket's address means nothing, and IPv6 wants it to be 0 (raw(7), ipv6(7)).
    let to = SockaddrStorage::from(SocketAddr::new(stray.to.ip(), 0));
    let sent = sendto(fd.as_raw_fd(), &segment, &to, MsgFlags::empty()).context("sendto()")?;
    ensure!(sent == segment.len(), "only {sent} bytes were sent");
    let end = Instant::now() + Duration::from_millis(stray.timeout_ms.into());
    let mut buffer = [0; 2048];
    while Instant::now() < end {
        match recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => {
                let packet = buffer.get(..length).unwrap_or_default();
                if is_reset(packet, stray.to, FROM_PORT) {
                    return Ok(Failure::Reset);
                }
            }
            Err(Errno::EAGAIN) => break,
            Err(error) => return Err(error).context("recv()"),
        }
    }
    Ok(Failure::TimedOut)
}

fn raw_socket(stray: &Stray) -> Result<OwnedFd> {
    let family = if stray.from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let fd = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)
        .context("a raw socket")?;
    let wait = TimeVal::milliseconds(stray.timeout_ms.into());
    setsockopt(&fd, sockopt::ReceiveTimeout, &wait).context("SO_RCVTIMEO")?;
    bind_to(&fd, SocketAddr::new(stray.from, 0))?;
    Ok(fd)
}

/// A TCP header without data (RFC 9293, 3.1).
fn segment(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    let mut tcp = Vec::with_capacity(20);
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(1_u32.to_be_bytes()); // sequence number
    tcp.extend(1_u32.to_be_bytes()); // acknowledgement number
    tcp.extend([0x50, SYN_ACK]); // 5 words of header
    tcp.extend(1024_u16.to_be_bytes()); // window
    tcp.extend([0; 4]); // checksum, urgent pointer
    let sum = checksum(from.ip(), to.ip(), &tcp).to_be_bytes();
    tcp.splice(16..18, sum);
    tcp
}

/// The checksum over pseudo header and segment (RFC 9293, 3.1; RFC 8200, 8.1): connection tracking
/// checks it.
fn checksum(from: IpAddr, to: IpAddr, tcp: &[u8]) -> u16 {
    let mut bytes = Vec::new();
    for ip in [from, to] {
        match ip {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    bytes.extend([0, 6]); // protocol TCP
    bytes.extend(u16::try_from(tcp.len()).unwrap_or(u16::MAX).to_be_bytes());
    bytes.extend(tcp);
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| match pair {
            [high, low] => u32::from(u16::from_be_bytes([*high, *low])),
            [high, ..] => u32::from(*high) << 8,
            [] => 0,
        })
        .sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// Whether a packet as a raw socket gives it (with its IP header in IPv4 only) is a reset from
/// there to our port.
fn is_reset(packet: &[u8], from: SocketAddr, our_port: u16) -> bool {
    let skip = if from.is_ipv4() {
        packet.first().map_or(0, |first| usize::from(first & 0x0f) * 4)
    } else {
        0
    };
    let Some(tcp) = packet.get(skip..) else { return false };
    let port = |at: usize| Some(u16::from_be_bytes([*tcp.get(at)?, *tcp.get(at + 1)?]));
    port(0) == Some(from.port())
        && port(2) == Some(our_port)
        && tcp.get(13).is_some_and(|flags| flags & RST != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checksum_makes_the_sum_over_everything_zero() {
        for (from, to) in [("10.70.0.1:1", "10.70.0.2:8080"), ("[fd70::1]:1", "[fd70::2]:8080")] {
            let (from, to) = (from.parse().unwrap(), to.parse().unwrap());
            let tcp = segment(from, to);
            assert_eq!(checksum(from.ip(), to.ip(), &tcp), 0, "{from}");
        }
    }

    #[test]
    fn a_reset_is_told_from_other_packets() {
        let from: SocketAddr = "[fd70::2]:8080".parse().unwrap();
        let mut tcp = segment(from, "[fd70::1]:61001".parse().unwrap());
        assert!(!is_reset(&tcp, from, 61_001));
        tcp[13] = RST;
        assert!(is_reset(&tcp, from, 61_001));
        assert!(!is_reset(&tcp, from, 61_002));
        assert!(!is_reset(&[], from, 61_001));
    }
}
