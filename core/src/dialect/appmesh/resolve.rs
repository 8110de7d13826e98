//! From variables and flags to a policy and the way to carry it out.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::flags::AppMesh;
use crate::dialect::error::ConfigErrors;
use crate::dialect::list::{Most, ValueReader, items};
use crate::dialect::raw;
use crate::policy::{
    CapturePolicy, Conventions, DnsConvention, DnsTcp, ExceptPorts, GroupSelection,
    IdentityMatching, Inbound, InboundMode, InboundSelection, Interfaces, Local, NetworkSelection,
    Outbound, Phase, ProxyIdentity, SelfCall,
};
use crate::source::{Source, Sourced};
use crate::value::{Cidr, Port, PortRange};

/// Flags as they were typed, and the environment.
pub type Raw = raw::Raw<AppMesh>;

/// What App Mesh takes for granted: what goes to an address of the pod or comes from one is left alone,
/// whoever sends it, and TCP alone is asked anything.
pub(super) const CONVENTIONS: Conventions = Conventions {
    local: Local::Addresses,
    self_call: SelfCall::Pass,
    passthrough: false,
    except_ports: ExceptPorts { phase: Phase::Last, udp: false },
    // There are none, so what leaves the user of a socket alone is about the proxy.
    except_users: Phase::Last,
    dns: DnsConvention::Ahead {
        tcp: DnsTcp::Captured,
        spares_proxy: false,
        in_front: false,
        zones: false,
    },
    ..Conventions::OWN
};

/// The port that is never captured on its way out (SSH).
const ALWAYS_IGNORED: Port = Port::new(22);

/// What it is asked to do besides what is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Whether rules are written, or removed.
    pub enabled: Sourced<bool>,
    /// The namespace to work in, and who named it.
    pub netns: Option<Sourced<String>>,
    /// Change nothing, and print the rules instead.
    pub dry_run: bool,
    /// Native nftables instead of iptables.
    pub native: bool,
    /// How long to wait for locks.
    pub wait: Duration,
}

/// Check what is not about the rules themselves.
///
/// # Errors
/// All that is wrong, at once.
pub fn options(raw: &Raw) -> Result<Options, ConfigErrors> {
    let mut resolver = Resolver { raw, reader: ValueReader::default() };
    let enabled = resolver.one_or_zero("start-enabled");
    let netns = raw.text("netns");
    let reader = &mut resolver.reader;
    let options = Options {
        enabled,
        netns: (!netns.value.is_empty()).then_some(netns),
        dry_run: raw.switch(reader, "dry-run").value,
        native: raw.switch(reader, "native-nftables").value,
        wait: raw.duration(reader, "wait"),
    };
    resolver.reader.finish(Some(options))
}

/// What the variables and flags capture.
///
/// # Errors
/// All that is wrong, at once.
pub fn policy(raw: &Raw) -> Result<CapturePolicy, ConfigErrors> {
    let mut resolver = Resolver { raw, reader: ValueReader::default() };
    let policy = resolver.policy();
    resolver.reader.finish(policy)
}

struct Resolver<'a> {
    raw: &'a Raw,
    reader: ValueReader,
}

impl Resolver<'_> {
    fn policy(&mut self) -> Option<CapturePolicy> {
        let ipv6 = self.one_or_zero("enable-ipv6");
        let (uid, gid) = (self.raw.text("ignore-uid"), self.raw.text("ignore-gid"));
        if uid.value.is_empty() && gid.value.is_empty() {
            self.reader.wrong(
                &uid.source,
                "",
                "the proxy is told by its user, by its group, or both",
            );
        }
        let uids = if uid.value.is_empty() { None } else { self.reader.one(&uid) };
        let gids = if gid.value.is_empty() { None } else { self.reader.one(&gid) };
        let inbound = self.reader.one(&self.raw.text("envoy-ingress-port"));
        let outbound = self.reader.one(&self.raw.text("envoy-egress-port"));
        let selection = self.inbound();
        let mut except_ports = self.ports("egress-ignored-ports");
        let always = PortRange::single(ALWAYS_IGNORED);
        if except_ports.iter().all(|port| port.value != always) {
            except_ports.push(Sourced::new(always, Source::Always));
        }
        let except_networks = self.networks();
        Some(CapturePolicy {
            ipv6,
            proxy: ProxyIdentity {
                uids: Vec::from_iter(uids),
                gids: Vec::from_iter(gids),
                matching: IdentityMatching::Any,
                marks: None,
            },
            inbound: Inbound {
                port: inbound?,
                tunnel_port: None,
                mode: InboundMode::Redirect,
                selection,
                except_sources: Vec::new(),
                probes: Vec::new(),
            },
            outbound: Outbound {
                port: outbound?,
                networks: NetworkSelection::All(Source::Always),
                ports: Vec::new(),
                except_ports,
                except_networks,
                except_users: Vec::new(),
                localhost_to: None,
                except_flows: Vec::new(),
                groups: GroupSelection::AllExcept(Vec::new()),
            },
            interfaces: Interfaces::default(),
            localhost: Sourced::new(Cidr::host(Ipv4Addr::LOCALHOST.into()), Source::Always),
            dns: None,
            drop_invalid: None,
            conventions: CONVENTIONS,
        })
    }

    /// The ports of the application, of which at least one has to be named.
    fn inbound(&mut self) -> InboundSelection {
        let text = self.raw.text("app-ports");
        if items(&text.value).is_empty() {
            let expected =
                "APPMESH_APP_PORTS has to name the application's ports: 0 where it has none";
            self.reader.wrong(&text.source, &text.value, expected);
        }
        // The injector's word for none.
        let mut ports = self.ports("app-ports");
        ports.retain(|port| port.value != PortRange::single(Port::new(0)));
        if ports.is_empty() {
            InboundSelection::Nothing
        } else {
            InboundSelection::Only { ports, except: Vec::new() }
        }
    }

    fn one_or_zero(&mut self, flag: &'static str) -> Sourced<bool> {
        let text = self.raw.text(flag);
        let is_one = text.value == "1";
        if !is_one && !["0", ""].contains(&text.value.as_str()) {
            self.reader.wrong(&text.source, &text.value, "this is 1 or 0");
        }
        text.with(is_one)
    }

    fn ports(&mut self, flag: &'static str) -> Vec<Sourced<PortRange>> {
        let text = self.raw.text(flag);
        self.reader.each(&text, Most::Targets, &items(&text.value), |item| {
            item.trim().parse::<PortRange>().map_err(|error| error.to_string())
        })
    }

    fn networks(&mut self) -> Vec<Sourced<Cidr>> {
        let text = self.raw.text("egress-ignored-ip");
        self.reader.each(&text, Most::Targets, &items(&text.value), |item| {
            let item = item.trim();
            match item.parse::<IpAddr>() {
                Ok(address) => Ok(Cidr::host(address)),
                Err(_) => item.parse::<Cidr>().map_err(|error| error.to_string()),
            }
        })
    }
}
