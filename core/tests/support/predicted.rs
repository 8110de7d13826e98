//! Recorded connections as questions to the simulator, and its answers in the words of the recording.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use millrace_core::sim::{Fate, Identity, Protocol, Question};

use super::verdicts::{RecordedVerdict, Who};

/// A recorded connection in a pod with the address 10.4.0.2, whose proxy is this user.
pub(crate) fn question(verdict: &RecordedVerdict, proxy: u32) -> Question {
    let to = match verdict.to.as_str() {
        "pod" => "10.4.0.2",
        "peer" => "10.9.9.9",
        address => address,
    };
    let to = SocketAddr::new(to.parse().unwrap(), verdict.port);
    let protocol = if verdict.udp { Protocol::UDP } else { Protocol::TCP };
    let id = match verdict.who {
        Who::Peer => return Question::inward("10.1.2.3".parse().unwrap(), protocol, to),
        Who::App => 1000,
        Who::Proxy => proxy,
    };
    let source = verdict.from.as_ref().map(|from| from.parse().unwrap());
    Question { source, ..Question::out(Identity { uid: id, gid: id }, protocol, to) }
}

/// Where it ends, in the words of the recording.
pub(crate) fn end(verdict: &RecordedVerdict, fate: &Fate) -> String {
    let (who, port, at) = match fate {
        Fate::Delivered { port, destination, .. } => ("pod", *port, destination.ip()),
        Fate::Passed { destination, .. } => ("peer", destination.port(), destination.ip()),
        other => return format!("{other:?}"),
    };
    let localhost = at == IpAddr::V4(Ipv4Addr::LOCALHOST);
    match (verdict.udp, localhost) {
        (true, _) => format!("{who}:udp{port}"),
        (false, true) => format!("{who}:{port}@lo"),
        (false, false) => format!("{who}:{port}@ip"),
    }
}
