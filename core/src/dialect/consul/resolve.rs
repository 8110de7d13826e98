//! From what was typed to a policy and the way to carry it out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::flags::{CONFIG, Consul};
use super::json::{self, Settings};
use crate::dialect::error::{ConfigError, ConfigErrors};
use crate::dialect::list::{Most, ValueReader, items};
use crate::dialect::raw;
use crate::policy::{
    CapturePolicy, Conventions, DnsCapture, DnsConvention, DnsScope, DnsServer, DnsTarget, DnsTcp,
    ExceptPorts, GroupSelection, IdentityMatching, Inbound, InboundMode, InboundSelection,
    Interfaces, Local, NetworkSelection, Outbound, Phase, ProxyIdentity, SelfCall,
};
use crate::source::{Source, Sourced};
use crate::value::{Cidr, ListenPort, Port, PortRange, Uid};

/// Flags as they were typed, and the environment.
pub type Raw = raw::Raw<Consul>;

/// What Consul takes for granted: only connections to localhost stay in the pod, and the proxy's own
/// pass.
pub(super) const CONVENTIONS: Conventions = Conventions {
    local: Local::Localhost,
    self_call: SelfCall::Pass,
    passthrough: false,
    except_ports: ExceptPorts { phase: Phase::Last, udp: false },
    except_networks: Phase::Last,
    except_users: Phase::Last,
    interfaces_last: false,
    dns: DnsConvention::Ahead {
        tcp: DnsTcp::Captured,
        spares_proxy: false,
        in_front: false,
        zones: false,
    },
};

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
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The settings as JSON, where they have to be read from standard input first.
pub fn reads_input(raw: &Raw) -> bool {
    raw.text(CONFIG).value == "-"
}

/// Check everything that was typed, in Consul's order. `input` is what standard input holds, where
/// settings are to be read from there.
///
/// # Errors
/// All that is wrong, at once.
pub fn resolve(raw: &Raw, input: Option<&str>) -> Result<Resolved, ConfigErrors> {
    let mut reader = ValueReader::default();
    let mut config = raw.text(CONFIG);
    if let Some(input) = input {
        input.clone_into(&mut config.value);
    }
    let settings = json::read(&mut reader, &config);
    let mut resolver = Resolver { raw, settings, reader };
    let policy = resolver.policy();
    let options = resolver.options();
    let policy = resolver.reader.finish(policy)?;
    Ok(Resolved { policy, options, warnings: Vec::new() })
}

/// What Consul says of a configuration that it does not take: it ends at the first thing. None where it
/// takes what is wrong.
pub fn said(errors: &ConfigErrors) -> Option<&'static str> {
    let said = |error: &ConfigError| {
        let known = [
            (NO_UID, "-proxy-uid is required"),
            (NO_PORT, "either -proxy-id or -proxy-inbound-port are required"),
            (
                BOTH,
                "-proxy-inbound-port or -proxy-outbound-port cannot be provided together with -proxy-id.",
            ),
            (NO_ADDRESS, "unable to parse consulDNSIP"),
            (NO_V6, "for dual stack ipv6 consulDNSIP required"),
            (NO_V4, "for non dual stack setup ipv4 consulDNSIP required"),
        ];
        known.into_iter().find(|(ours, _)| *ours == error.expected).map(|(_, theirs)| theirs)
    };
    errors.0.iter().find_map(said)
}

const NO_UID: &str = "the proxy's user id has to be given: flag -proxy-uid, or ProxyUserID as JSON";
const NO_PORT: &str = "the port for inbound connections has to be given: flag -proxy-inbound-port, or \
     ProxyInboundPort as JSON";
const BOTH: &str = "a proxy service has its own ports: give these or -proxy-id, not both";
const NO_AGENT: &str = "the proxy service would have to be looked up at a Consul agent, which Millrace does not ask: \
     give -proxy-inbound-port, -proxy-outbound-port and -exclude-inbound-port instead";
const NO_ADDRESS: &str = "the address for DNS queries is an IP address, such as 10.96.0.10";
const NO_V6: &str = "with -dual-stack the address for DNS queries is one of IPv6";
const NO_V4: &str = "without -dual-stack the address for DNS queries is one of IPv4";

struct Resolver<'a> {
    raw: &'a Raw,
    settings: Settings,
    reader: ValueReader,
}

impl Resolver<'_> {
    /// The value of a setting: what its flag says, else the JSON, else the default.
    fn text(&self, flag: &'static str) -> Sourced<String> {
        let typed = self.raw.text(flag);
        match self.settings.get(flag) {
            Some(setting) if matches!(typed.source, Source::Default(_)) => setting.clone(),
            _ => typed,
        }
    }

    fn is_given(&self, flag: &'static str) -> bool {
        let text = self.text(flag);
        !matches!(text.source, Source::Default(_)) && !text.value.is_empty()
    }

    fn options(&mut self) -> Options {
        let netns = self.text("netns");
        let (raw, reader) = (self.raw, &mut self.reader);
        Options {
            netns: (!netns.value.is_empty()).then_some(netns),
            dry_run: raw.switch(reader, "dry-run").value,
            native: raw.switch(reader, "native-nftables").value,
            wait: raw.duration(reader, "wait"),
        }
    }

    fn policy(&mut self) -> Option<CapturePolicy> {
        let uid = self.uid();
        let inbound = self.inbound_port();
        let outbound = self.reader.one::<ListenPort>(&self.text("proxy-outbound-port"));
        let ipv6 = self.raw.switch(&mut self.reader, "dual-stack");
        let dns = self.dns(ipv6.value);
        let except = self.ports("exclude-inbound-port");
        let except_ports = self.ports("exclude-outbound-port");
        let except_networks = self.each("exclude-outbound-cidr", Most::Targets, network);
        let except_users = self.each("exclude-uid", Most::Names, |item| {
            item.parse::<Uid>().map_err(|error| error.to_string())
        });
        let (inbound, outbound) = (inbound?, outbound?);
        let every = outbound.source.clone();
        Some(CapturePolicy {
            ipv6,
            proxy: ProxyIdentity {
                uids: vec![uid?],
                gids: Vec::new(),
                matching: IdentityMatching::Any,
                marks: None,
            },
            inbound: Inbound {
                selection: InboundSelection::AllExcept { source: inbound.source.clone(), except },
                port: inbound,
                tunnel_port: None,
                mode: InboundMode::Redirect,
                except_sources: Vec::new(),
                probes: Vec::new(),
            },
            outbound: Outbound {
                port: outbound,
                networks: NetworkSelection::All(every),
                ports: Vec::new(),
                except_ports,
                except_networks,
                except_users,
                localhost_to: None,
                except_flows: Vec::new(),
                groups: GroupSelection::AllExcept(Vec::new()),
            },
            interfaces: Interfaces::default(),
            localhost: Sourced::new(Cidr::host(Ipv4Addr::LOCALHOST.into()), Source::Always),
            dns,
            drop_invalid: None,
            conventions: CONVENTIONS,
        })
    }

    fn uid(&mut self) -> Option<Sourced<Uid>> {
        let uid = self.text("proxy-uid");
        if uid.value.is_empty() {
            self.reader.wrong(&uid.source, &uid.value, NO_UID);
            return None;
        }
        self.reader.one(&uid)
    }

    fn inbound_port(&mut self) -> Option<Sourced<ListenPort>> {
        let [id, port] = ["proxy-id", "proxy-inbound-port"].map(|flag| self.text(flag));
        if !id.value.is_empty() {
            let ports = ["proxy-inbound-port", "proxy-outbound-port"];
            let both = ports.into_iter().any(|port| self.is_given(port));
            self.reader.wrong(&id.source, &id.value, if both { BOTH } else { NO_AGENT });
            return None;
        }
        if port.value.is_empty() {
            self.reader.wrong(&port.source, &port.value, NO_PORT);
            return None;
        }
        self.reader.one(&port)
    }

    /// Where DNS queries are led to, an address of each family at most: with a port, those to that address
    /// alone.
    fn dns(&mut self, dual_stack: bool) -> Option<DnsCapture> {
        let [address, port] = ["consul-dns-ip", "consul-dns-port"].map(|flag| self.text(flag));
        let port = if port.value.is_empty() || port.value == "0" {
            None
        } else {
            match self.reader.one::<ListenPort>(&port) {
                Some(port) => Some(port),
                None => return None,
            }
        };
        if address.value.is_empty() {
            let port = port?;
            let localhost = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            let families = if dual_stack { 2 } else { 1 };
            let addresses = localhost.map(|address: IpAddr| port.with(address));
            return Some(capture(&addresses[..families], Some(port.value)));
        }
        let ip = address.value.parse().map(|ip: IpAddr| ip.to_canonical());
        let expected = match (ip, dual_stack) {
            (Ok(ip), dual_stack) if ip.is_ipv6() == dual_stack => {
                return Some(capture(&[address.with(ip)], port.map(|port| port.value)));
            }
            (Ok(_), true) => NO_V6,
            (Ok(_), false) => NO_V4,
            (Err(_), _) => NO_ADDRESS,
        };
        self.reader.wrong(&address.source, &address.value, expected);
        None
    }

    fn each<T>(
        &mut self,
        flag: &'static str,
        most: Most,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<Sourced<T>> {
        let texts = std::iter::once(self.text(flag)).chain(self.raw.more(flag).cloned());
        let texts: Vec<Sourced<String>> = texts.collect();
        let of = |text: &Sourced<String>| self.reader.each(text, most, &items(&text.value), &parse);
        texts.iter().flat_map(of).collect()
    }

    fn ports(&mut self, flag: &'static str) -> Vec<Sourced<PortRange>> {
        self.each(flag, Most::Targets, |item| ports(item).ok_or_else(|| EXPECTED.to_owned()))
    }
}

/// DNS queries, of each family to the address of it: with a port, those to that address alone.
fn capture(addresses: &[Sourced<IpAddr>], port: Option<ListenPort>) -> DnsCapture {
    let source = addresses.first().map_or(Source::Always, |address| address.source.clone());
    let server = |ip: &Sourced<IpAddr>| ip.with(DnsServer { address: ip.value, port });
    DnsCapture {
        to: DnsTarget::Servers(addresses.iter().map(server).collect()),
        scope: match port {
            Some(_) => DnsScope::Servers(addresses.to_vec()),
            None => DnsScope::All(source.clone()),
        },
        source,
    }
}

const EXPECTED: &str = "a port is a number from 0 to 65535, a range is first:last or first-last, low to high; names \
     of services are not looked up";

/// `N`, `A:B` or `A-B`; a range without an end goes to the first or last port there is.
fn ports(text: &str) -> Option<PortRange> {
    let between = text.split_once([':', '-']);
    let Some((first, last)) = between else { return Some(text.parse::<Port>().ok()?.into()) };
    let end = |text: &str, open: u16| match text {
        "" => Some(Port::new(open)),
        text => text.parse().ok(),
    };
    if (first, last) == ("", "") {
        return None;
    }
    PortRange::new(end(first, 0)?, end(last, u16::MAX)?)
}

/// A network, or an address alone.
fn network(text: &str) -> Result<Cidr, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Cidr::host(address.to_canonical()));
    }
    text.parse::<Cidr>().map_err(|error| format!("{error}, or an address"))
}
