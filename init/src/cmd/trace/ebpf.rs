//! Printing what the node's eBPF programs decide.

use std::fs::File;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use millrace_core::sim::{Direction, Protocol};
use millrace_core::trace::Filter;
use millrace_core::value::Port;
use millrace_host::ebpf::{Address, Class, Event, Node, Reports, Target};
use millrace_host::stop::Stop;
use serde_json::{Value, json};

use super::super::namespace;
use super::super::output::warn;
use super::{Count, now, tell};
use crate::cli::own::NetnsTarget;
use crate::cli::trace::{Sampled, Trace};
use crate::exit::Exit;
use crate::log::Log;

/// How long to wait at most before looking whether the time is up.
const TICK: Duration = Duration::from_millis(200);

pub(super) fn follow(trace: &Trace, sampled: &Sampled) -> Result<Exit> {
    // The pins are where the program was started.
    let node = Node::open(&sampled.folder)?;
    let mut reports = Reports::open(&sampled.folder)?;
    let together = "whether others trace can't be told";
    let traces = File::open(sampled.folder.join("maps")).context(together)?;
    let only = match &trace.common.place {
        NetnsTarget::Here => None,
        place => {
            namespace::enter(place)?;
            Some(Target::current()?.cookie())
        }
    };
    let stop = Stop::watch().context("signals can't be waited for")?;
    traces.lock_shared().context(together)?;
    node.sample(sampled.one_of)?;
    Log::own().info("following decisions; Ctrl-C ends it");
    let printed = print_all(trace, only, &mut reports, &stop);
    // The last of several traces ends the reports, also those that a killed one left on, of which
    // `node-bpf status` tells.
    if traces.try_lock().is_ok() {
        node.sample(0)?;
    }
    printed.map(|()| Exit::Ok)
}

fn print_all(trace: &Trace, only: Option<u64>, reports: &mut Reports, stop: &Stop) -> Result<()> {
    let began = Instant::now();
    let mut count = Count(trace.count);
    let mut known = 0;
    loop {
        let left = trace.timeout.map(|timeout| timeout.saturating_sub(began.elapsed()));
        let (events, stopped) = reports.wait(stop, left.unwrap_or(TICK).min(TICK))?;
        known += events.len();
        let wanted = events
            .iter()
            .filter(|event| only.is_none_or(|cookie| cookie == event.netns))
            .filter(|event| passes(&trace.filter, event));
        for event in wanted {
            let when = now();
            let reported = if trace.common.json {
                tell("", Some(&value(event, &when)))?
            } else {
                tell(&line(event, &when), None)?
            };
            if !reported || !count.next() {
                return Ok(());
            }
        }
        if stopped || left.is_some_and(|left| left.is_zero()) {
            if known == 0 {
                warn("nothing was decided: is the pod enrolled, and does it connect?");
            }
            return Ok(());
        }
    }
}

/// Whether a decision is one of those that are asked for.
fn passes(filter: &Filter, event: &Event) -> bool {
    let inbound = is_inbound(event);
    let (remote, local) = (ip(event.remote), ip(event.local));
    let (from, to, port) = if inbound {
        (remote, local, event.local_port)
    } else {
        (local, remote, event.remote_port)
    };
    let direction = if inbound { Direction::In } else { Direction::Out };
    filter.direction.is_none_or(|wanted| wanted == direction)
        && filter.uid.is_none_or(|uid| !inbound && uid.get() == event.uid)
        && filter.gid.is_none_or(|gid| !inbound && gid.get() == event.gid)
        && filter.protocol.is_none_or(|wanted| wanted == Protocol(event.protocol))
        && filter.source.is_none_or(|network| network.contains(from))
        && filter.destination.is_none_or(|network| network.contains(to))
        && filter.port.is_none_or(|ports| ports.contains(Port::new(port)))
}

fn ip(address: Address) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from(address.octets())).to_canonical()
}

fn class(event: &Event) -> &'static str {
    Class::ALL.get(usize::from(event.class)).map_or("unknown", |class| class.as_str())
}

const fn is_inbound(event: &Event) -> bool {
    event.inbound == 1
}

fn line(event: &Event, when: &str) -> String {
    let remote = SocketAddr::new(ip(event.remote), event.remote_port);
    let local = SocketAddr::new(ip(event.local), event.local_port);
    let (pod, protocol) = (event.netns, Protocol(event.protocol));
    let what = if is_inbound(event) {
        format!("{when} pod {pod}: {protocol} from {remote} to {local}")
    } else {
        let (uid, gid, pid) = (event.uid, event.gid, event.pid);
        format!("{when} pod {pod}: {protocol} to {remote} by process {pid} (uid={uid},gid={gid})")
    };
    match event.to {
        0 => format!("{what}: not captured ({})\n", class(event)),
        port => format!("{what}: to port {port} ({})\n", class(event)),
    }
}

fn value(event: &Event, when: &str) -> Value {
    let inbound = is_inbound(event);
    let remote = SocketAddr::new(ip(event.remote), event.remote_port);
    let local = SocketAddr::new(ip(event.local), event.local_port);
    let mut value = json!({
        "time": when,
        "pod": event.netns,
        "direction": if inbound { "in" } else { "out" },
        "protocol": Protocol(event.protocol).to_string(),
        "remote": remote.to_string(),
        "class": class(event),
        "port": (event.to != 0).then_some(event.to),
    });
    if let Some(object) = value.as_object_mut() {
        if inbound {
            object.insert("local".to_owned(), json!(local.to_string()));
        } else {
            object.insert("uid".to_owned(), json!(event.uid));
            object.insert("gid".to_owned(), json!(event.gid));
            object.insert("process".to_owned(), json!(event.pid));
        }
    }
    value
}
