//! From what was typed to a policy and the way to carry it out.

use std::net::Ipv4Addr;
use std::time::Duration;

use super::flags::{Osm, POD_IP};
use crate::dialect::error::ConfigErrors;
use crate::dialect::list::{Most, ValueReader, items};
use crate::dialect::raw;
use crate::policy::{
    CapturePolicy, Conventions, DnsConvention, DnsTcp, ExceptPorts, GroupSelection,
    IdentityMatching, Inbound, InboundMode, InboundSelection, Interfaces, NetworkSelection,
    Outbound, Phase, ProxyIdentity,
};
use crate::source::{Source, Sourced};
use crate::value::{Cidr, Family, ListenPort, Port, PortRange, Uid};

/// Flags as they were typed, and the environment.
pub type Raw = raw::Raw<Osm>;

/// What Open Service Mesh takes for granted: as Istio, but for the address that the proxy passes connections on
/// from, and with exclusions behind everything else.
pub(super) const CONVENTIONS: Conventions = Conventions {
    passthrough: false,
    except_ports: ExceptPorts { phase: Phase::Last, udp: false },
    except_users: Phase::Last,
    interfaces_last: true,
    dns: DnsConvention::Ahead {
        tcp: DnsTcp::Captured,
        spares_proxy: false,
        in_front: false,
        zones: false,
    },
    ..Conventions::OWN
};

/// What nobody chooses of its proxy: the user, and where it listens.
const USER: Option<Uid> = Uid::new(1500);
const INBOUND: Option<ListenPort> = ListenPort::new(15003);
const OUTBOUND: Option<ListenPort> = ListenPort::new(15001);
/// The proxy's own ports: of its metrics, and of the answers to probes.
pub(super) const OWN: [u16; 5] = [15010, 15901, 15902, 15903, 15904];

/// What it is asked to do besides what is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The namespace to work in, and who named it.
    pub netns: Option<Sourced<String>>,
    /// Change nothing, and print the rules instead.
    pub dry_run: bool,
    /// Native nftables instead of iptables.
    pub native: bool,
    /// How long to wait for locks.
    pub wait: Duration,
}

/// All settings, checked: the policy that they make, and what to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What is captured, in no mesh's words.
    pub policy: CapturePolicy,
    /// Where it is written, by which backend, and whether at all.
    pub options: Options,
}

/// Check everything that was typed.
///
/// # Errors
/// All that is wrong, at once.
pub fn resolve(raw: &Raw) -> Result<Resolved, ConfigErrors> {
    let mut resolver = Resolver { raw, reader: ValueReader::default() };
    let policy = resolver.policy();
    let options = resolver.options();
    let policy = resolver.reader.finish(policy)?;
    Ok(Resolved { policy, options })
}

struct Resolver<'a> {
    raw: &'a Raw,
    reader: ValueReader,
}

impl Resolver<'_> {
    fn options(&mut self) -> Options {
        let netns = self.raw.text("netns");
        let (raw, reader) = (self.raw, &mut self.reader);
        Options {
            netns: (!netns.value.is_empty()).then_some(netns),
            dry_run: raw.switch(reader, "dry-run").value,
            native: raw.switch(reader, "native-nftables").value,
            wait: raw.duration(reader, "wait"),
        }
    }

    fn policy(&mut self) -> Option<CapturePolicy> {
        let mut except = self.ports("inbound-port-exclusion-list");
        let own = OWN.map(|port| always(PortRange::single(Port::new(port))));
        let said: Vec<PortRange> = except.iter().map(|port| port.value).collect();
        except.extend(own.into_iter().filter(|port| !said.contains(&port.value)));
        let except_ports = self.ports("outbound-port-exclusion-list");
        let except_networks = self.networks("outbound-ip-range-exclusion-list");
        let only = self.networks("outbound-ip-range-inclusion-list");
        let nics = self.raw.text("network-interface-exclusion-list");
        let excluded = self.reader.names(&nics);
        let localhost_to = self.local_proxy();
        Some(CapturePolicy {
            ipv6: always(false),
            proxy: ProxyIdentity {
                uids: vec![always(USER?)],
                gids: Vec::new(),
                matching: IdentityMatching::OneByOne,
                marks: None,
            },
            inbound: Inbound {
                port: always(INBOUND?),
                tunnel_port: None,
                mode: InboundMode::Redirect,
                selection: InboundSelection::AllExcept { source: Source::Always, except },
                except_sources: Vec::new(),
                probes: Vec::new(),
            },
            outbound: Outbound {
                port: always(OUTBOUND?),
                networks: if only.is_empty() {
                    NetworkSelection::All(Source::Always)
                } else {
                    NetworkSelection::Only(only)
                },
                ports: Vec::new(),
                except_ports,
                except_networks,
                except_users: Vec::new(),
                localhost_to,
                except_flows: Vec::new(),
                groups: GroupSelection::AllExcept(Vec::new()),
            },
            interfaces: Interfaces { excluded, rerouted: Vec::new() },
            localhost: always(Cidr::host(Ipv4Addr::LOCALHOST.into())),
            dns: None,
            drop_invalid: None,
            conventions: CONVENTIONS,
        })
    }

    /// Where the proxy's connections to localhost go instead.
    fn local_proxy(&mut self) -> Option<Sourced<Ipv4Addr>> {
        let mode = self.raw.text("local-proxy-mode");
        match mode.value.as_str() {
            "Localhost" => None,
            "PodIP" => {
                let address = self.raw.variable(POD_IP);
                let Ok(ip) = address.value.parse() else {
                    let expected = "--local-proxy-mode PodIP needs the pod's IPv4 address here";
                    self.reader.wrong(&address.source, &address.value, expected);
                    return None;
                };
                Some(address.with(ip))
            }
            other => {
                self.reader.wrong(&mode.source, other, "a mode is Localhost or PodIP");
                None
            }
        }
    }

    fn ports(&mut self, flag: &'static str) -> Vec<Sourced<PortRange>> {
        let text = self.raw.text(flag);
        self.reader.each(&text, Most::Targets, &items(&text.value), |item| {
            let port = item.trim().parse::<Port>().ok().filter(|port| port.get() != 0);
            port.map(Into::into).ok_or_else(|| "a port is a number from 1 to 65535".to_owned())
        })
    }

    fn networks(&mut self, flag: &'static str) -> Vec<Sourced<Cidr>> {
        let text = self.raw.text(flag);
        self.reader.each(&text, Most::Targets, &items(&text.value), |item| {
            let network = item.trim().parse::<Cidr>().map_err(|error| error.to_string())?;
            if network.family() == Family::V6 {
                return Err("Open Service Mesh captures IPv4 alone: leave this network out".into());
            }
            Ok(network)
        })
    }
}

const fn always<T>(value: T) -> Sourced<T> {
    Sourced::new(value, Source::Always)
}
