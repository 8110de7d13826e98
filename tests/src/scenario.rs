//! Playing a case: capture, connect, hold what happened against what must.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};

use crate::capture::{Capture, IptablesByNetlink, Millrace, NativeNftables, OwnNftables, Variant};
use crate::cases::{Attempt, Case, Config, Fate, Kind, Ports, Probe, Site};
use crate::netns::Namespace;
use crate::process::{dial, stray};
use crate::snapshot;
use crate::topology::{Family, Stack, Topology};
use crate::wire::{Answer, Dial, Failure, Outcome, Proto, Stray};

/// How long a connection that must succeed may take, in milliseconds: generous, as it is only
/// waited for in full when the test fails.
const PATIENCE_MS: u32 = 5000;
/// How long nothing must come back where nothing may, in milliseconds.
const SILENCE_MS: u32 = 400;

/// Play a case with millrace, with each backend, in pods with IPv4, IPv6 and both.
pub fn verify(case: &Case) -> Result<()> {
    for stack in Stack::ALL {
        for variant in Variant::ALL {
            play(case, &Millrace { variant }, stack)?;
        }
        if matches!(case.config, Config::Istio { .. }) {
            play(case, &NativeNftables, stack)?;
        }
        play(case, &IptablesByNetlink, stack)?;
        play(case, &OwnNftables, stack)?;
    }
    Ok(())
}

/// Play a case in a pod of its own. The error names every connection that went astray.
pub fn play(case: &Case, capture: &dyn Capture, stack: Stack) -> Result<()> {
    let what = || format!("case {:?}, {}, {stack:?}", case.name, capture.name());
    let mut topology = Topology::new(stack, case.layout).with_context(what)?;
    capture.apply(&topology, &case.config).with_context(what)?;
    let mut wrong = astray(&topology, case.ports, &case.probes).with_context(what)?;
    if !case.later.is_empty() {
        topology.proxy_comes(case.layout).with_context(what)?;
        wrong.extend(astray(&topology, case.ports, &case.later).with_context(what)?);
    }
    ensure!(
        wrong.is_empty(),
        "{}:\n  {}\nThe pod then has:\n{}",
        what(),
        wrong.join("\n  "),
        snapshot::rules_text(&topology.pod)?
    );
    Ok(())
}

/// Make the connections in a pod, in every family that it has, and tell which went astray.
pub fn astray(topology: &Topology, ports: Ports, probes: &[Probe]) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut made = 0;
    let mut clients = BTreeSet::new();
    for &family in topology.stack.families() {
        for probe in probes {
            let Some(line) = line_up(&probe.attempt, family) else { continue };
            let timeout_ms = if probe.fate == Fate::TimedOut { SILENCE_MS } else { PATIENCE_MS };
            let mut outcome = send(topology, &line, timeout_ms)?;
            // Address translation gives a client another port where an earlier connection to another
            // destination, which is not forgotten yet, had the same (`get_unique_tuple()` of the
            // kernel's `nf_nat_core.c`). Only then is it tried again, from another port.
            if let Outcome::Answered { client, .. } = outcome
                && !clients.insert(client)
                && has_another_port(&outcome)
            {
                outcome = send(topology, &line, timeout_ms)?;
            }
            made += 1;
            if let Err(why) = judge(probe.fate, line.attempt.kind, line.to, ports, &outcome) {
                wrong.push(format!("{line:?} must be {:?}, but {why}: {outcome}", probe.fate));
            }
        }
    }
    // A case about loopback addresses that IPv6 has none of still has others.
    ensure!(made > 0, "no connection of the case can be made here");
    Ok(wrong)
}

/// Make the connections in a pod, in every family that it has, and tell which of them the proxy
/// answered, on whatever port.
pub fn captured(topology: &Topology, attempts: &[Attempt]) -> Result<BTreeSet<String>> {
    let mut captured = BTreeSet::new();
    for &family in topology.stack.families() {
        for line in attempts.iter().filter_map(|attempt| line_up(attempt, family)) {
            let outcome = send(topology, &line, PATIENCE_MS)?;
            if matches!(&outcome, Outcome::Answered { answer, .. } if answer.name == "proxy") {
                captured.insert(format!("{line:?}"));
            }
        }
    }
    Ok(captured)
}

/// A connection with the addresses of one family.
#[derive(Clone, Copy)]
struct Line {
    attempt: Attempt,
    from: Option<IpAddr>,
    to: SocketAddr,
}

impl std::fmt::Debug for Line {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Attempt { client, kind, .. } = self.attempt;
        let crate::wire::Identity { uid, gid } = client.identity;
        write!(f, "{kind:?} from {:?} as {uid}:{gid}", client.place)?;
        if let Some(from) = self.from {
            write!(f, " with {from}")?;
        }
        write!(f, " to {}", self.to)
    }
}

/// None where the family lacks an address.
fn line_up(attempt: &Attempt, family: Family) -> Option<Line> {
    let to = SocketAddr::new(attempt.to.ip(family)?, attempt.port);
    let from = match attempt.client.from {
        Some(spot) => Some(spot.ip(family)?),
        None => None,
    };
    Some(Line { attempt: *attempt, from, to })
}

fn send(topology: &Topology, line: &Line, timeout_ms: u32) -> Result<Outcome> {
    let client = line.attempt.client;
    let namespace: &Namespace = match client.place {
        Site::Pod => &topology.pod,
        Site::Outside => &topology.outside,
        Site::Side => topology.side.as_ref().context("the case's layout has no side")?,
    };
    let proto = match line.attempt.kind {
        Kind::Tcp => Proto::Tcp,
        Kind::Udp => Proto::Udp,
        Kind::Stray => {
            let from = if line.to.is_ipv4() { Family::V4 } else { Family::V6 };
            let from = crate::topology::Spot::Peer.ip(from).context("the peer has an address")?;
            let failure = stray(namespace, &Stray { from, to: line.to, timeout_ms })?;
            return Ok(Outcome::Failed(failure));
        }
    };
    let request = Dial {
        identity: client.identity,
        proto,
        from: line.from,
        from_port: client.from_port,
        transparent_mark: client.transparent_mark,
        to: line.to,
        timeout_ms,
    };
    dial(namespace, &request)
}

/// Whether only the client's port was changed.
fn has_another_port(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Answered { answer, client }
        if answer.peer.ip() == client.ip() && answer.peer.port() != client.port())
}

/// Hold an outcome against a fate; the error says what is wrong with it.
fn judge(
    fate: Fate,
    kind: Kind,
    to: SocketAddr,
    ports: Ports,
    outcome: &Outcome,
) -> Result<(), String> {
    let (answer, client) = match (fate, outcome) {
        (Fate::Reset, Outcome::Failed(Failure::Reset))
        | (Fate::Refused, Outcome::Failed(Failure::Refused))
        | (Fate::TimedOut, Outcome::Failed(Failure::TimedOut)) => return Ok(()),
        (Fate::Reset | Fate::Refused | Fate::TimedOut, _) => {
            return Err("it ended otherwise".to_owned());
        }
        (_, Outcome::Failed(_)) => return Err("nobody answered".to_owned()),
        (_, Outcome::Answered { answer, client }) => (answer, *client),
    };
    if answer.peer != client {
        return Err("the client's address was changed".to_owned());
    }
    answered_by(fate, kind, to, ports, answer)
}

fn answered_by(
    fate: Fate,
    kind: Kind,
    to: SocketAddr,
    ports: Ports,
    answer: &Answer,
) -> Result<(), String> {
    let same = |what: &str, is: SocketAddr, wanted: SocketAddr| {
        if is == wanted { Ok(()) } else { Err(format!("the {what} is {is}, not {wanted}")) }
    };
    // UDP has no way to ask for it; nothing tracks connections where nothing is captured.
    let original = |needed: bool| match answer.original {
        Some(is) => same("original destination", is, to),
        None if needed => Err("the original destination is not known".to_owned()),
        None => Ok(()),
    };
    let tcp = kind == Kind::Tcp;
    let proxy_on = |port: u16| {
        if answer.name == "proxy" && answer.port == port {
            return Ok(());
        }
        Err(format!("{}:{} answered, not the proxy on {port}", answer.name, answer.port))
    };
    match fate {
        Fate::Direct if answer.port != to.port() => Err("somebody else answered".to_owned()),
        Fate::Direct => same("local address", answer.local, to).and_then(|()| original(false)),
        Fate::Outbound => proxy_on(ports.outbound).and_then(|()| original(tcp)),
        Fate::Inbound => proxy_on(ports.inbound).and_then(|()| original(tcp)),
        Fate::InboundUntranslated => {
            proxy_on(ports.inbound).and_then(|()| same("local address", answer.local, to))
        }
        Fate::Dns => proxy_on(ports.dns).and_then(|()| original(tcp)),
        Fate::Reset | Fate::Refused | Fate::TimedOut => Err("somebody answered".to_owned()),
    }
}
