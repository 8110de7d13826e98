//! Connections of a captured pod that were recorded under a mesh's own tool, really made again.

#[expect(clippy::unwrap_used, reason = "a recording that can't be read should stop the test")]
#[path = "../../core/tests/support/verdicts.rs"]
mod verdicts;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context as _, Result, bail, ensure};
use verdicts::{RecordedVerdict, Who};

use crate::process::{Listeners, dial};
use crate::topology::{APP, Family, Layout, ROOT, Spot, Stack, Topology};
use crate::wire::{Dial, Identity, Listen, Outcome, Proto, Serve};

/// A recording: a command line, and connections of a pod that it captured, each with its end.
#[derive(Debug)]
pub struct Recording {
    words: Vec<String>,
    verdicts: Vec<RecordedVerdict>,
}

/// A mesh's proxy.
#[derive(Clone, Copy, Debug)]
pub struct Proxy {
    /// Who it runs as.
    pub identity: Identity,
    /// Where it listens, in both families.
    pub ports: &'static [u16],
    /// Where it takes DNS queries on localhost; 0 for nowhere.
    pub dns: u16,
    /// Whether it passes connections on from an address of its own in IPv6 as well.
    pub passthrough_v6: bool,
}

/// A pod with a proxy, an application and neighbours on the ports of the recordings.
#[derive(Debug)]
pub struct Recorded {
    /// Its namespaces.
    pub topology: Topology,
    proxy: Proxy,
    _listeners: [Listeners; 3],
}

impl Recording {
    /// Read one.
    pub fn read(text: &str) -> Self {
        let (words, verdicts) = verdicts::read(text);
        Self { words, verdicts }
    }

    /// The command line.
    pub fn words(&self) -> Vec<&str> {
        self.words.iter().map(String::as_str).collect()
    }

    /// Verify that each connection ends in a pod where it did, in these families. Gives how many were made:
    /// those to or from an address that a family has none of are not.
    pub fn verify(&self, pod: &Recorded, families: &[Family]) -> Result<usize> {
        let mut made = 0;
        for family in families {
            for verdict in &self.verdicts {
                if let Some(end) = pod.measured(verdict, *family)? {
                    made += 1;
                    ensure!(end == verdict.end, "{family:?}: {}, but {end}", verdict.line);
                }
            }
        }
        Ok(made)
    }
}

impl Recorded {
    /// A pod that nothing captures yet.
    pub fn new(stack: Stack, proxy: Proxy) -> Result<Self> {
        let mut topology = Topology::new(stack, Layout::default())?;
        topology.stop_listeners();
        let everywhere = |ports: &[u16]| -> Vec<Listen> {
            let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
            let all = ports.iter().flat_map(|port| any.map(|ip| SocketAddr::new(ip, *port)));
            all.map(|addr| Listen { proto: Proto::Tcp, addr, transparent: false }).collect()
        };
        let datagrams = |spot: Spot, ports: &[u16]| -> Result<Vec<Listen>> {
            let families = stack.families().iter();
            let all = families.flat_map(|family| ports.iter().map(|port| spot.at(*family, *port)));
            let listen = |addr| Ok(Listen { proto: Proto::Udp, addr: addr?, transparent: false });
            all.map(listen).collect()
        };
        let mut own = everywhere(proxy.ports);
        if proxy.dns != 0 {
            own.extend(datagrams(Spot::Localhost, &[proxy.dns])?);
        }
        let mut app = everywhere(&[8080, 4190, 15008, 15090]);
        app.extend(datagrams(Spot::Localhost, &[53, 8600])?);
        let mut peer = everywhere(&[9999, 53, 443]);
        peer.extend(datagrams(Spot::Peer, &[53])?);
        let start = |namespace, name: &str, identity, listen| {
            Listeners::start(namespace, &Serve { name: name.to_owned(), identity, listen })
        };
        let listeners = [
            start(&topology.pod, "pod", proxy.identity, own)?,
            start(&topology.pod, "pod", ROOT, app)?,
            start(&topology.outside, "peer", ROOT, peer)?,
        ];
        Ok(Self { topology, proxy, _listeners: listeners })
    }

    /// Where a connection really ends, in the words of the recording. None where the family has no such
    /// address.
    fn measured(&self, verdict: &RecordedVerdict, family: Family) -> Result<Option<String>> {
        let spot = match verdict.to.as_str() {
            "pod" => Spot::Pod,
            "peer" => Spot::Peer,
            "127.0.0.1" => Spot::Localhost,
            "127.0.0.2" => Spot::Localhost2,
            other => bail!("{other} is nowhere here"),
        };
        let from = match &verdict.from {
            Some(_) if family == Family::V6 && !self.proxy.passthrough_v6 => return Ok(None),
            Some(from) if family == Family::V4 => Some(from.parse()?),
            Some(_) => Some(Spot::Passthrough.ip(family).context("an address")?),
            None => None,
        };
        let Some(to) = spot.ip(family) else { return Ok(None) };
        let topology = &self.topology;
        let (namespace, identity) = match verdict.who {
            Who::Peer => (&topology.outside, ROOT),
            Who::App => (&topology.pod, APP),
            Who::Proxy => (&topology.pod, self.proxy.identity),
        };
        let request = Dial {
            identity,
            proto: if verdict.udp { Proto::Udp } else { Proto::Tcp },
            from,
            from_port: None,
            transparent_mark: None,
            to: SocketAddr::new(to, verdict.port),
            timeout_ms: 5000,
        };
        let Outcome::Answered { answer, .. } = dial(namespace, &request)? else {
            return Ok(Some("nobody".to_owned()));
        };
        let localhost = Spot::Localhost.ip(family) == Some(answer.local.ip());
        let (name, port) = (answer.name, answer.port);
        Ok(Some(match (verdict.udp, localhost) {
            (true, _) => format!("{name}:udp{port}"),
            (false, true) => format!("{name}:{port}@lo"),
            (false, false) => format!("{name}:{port}@ip"),
        }))
    }
}
