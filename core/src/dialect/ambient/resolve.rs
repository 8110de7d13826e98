//! From what was typed to a policy and what to do with it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::MARKS;
use super::flags::Ambient;
use crate::dialect::error::ConfigErrors;
use crate::dialect::list::{Most, ValueReader, items};
use crate::dialect::{go, raw};
use crate::facts::HostFacts;
use crate::policy::{
    CapturePolicy, Conventions, DnsCapture, DnsConvention, DnsScope, DnsTarget, GroupSelection,
    IdentityMatching, Inbound, InboundMode, InboundSelection, Interfaces, NetworkSelection,
    Outbound, Phase, Probe, ProxyIdentity, SelfCall,
};
use crate::source::{Source, Sourced};
use crate::value::{Cidr, Family, InterfacePattern, ListenPort, ValueError};

/// Flags as they were typed, and the environment.
pub type Raw = raw::Raw<Ambient>;

/// What ambient mode takes for granted. Exclusions are Millrace's addition: they are asked for when those
/// of a sidecar are.
pub(super) const CONVENTIONS: Conventions = Conventions {
    self_call: SelfCall::Pass,
    passthrough: false,
    except_users: Phase::First,
    dns: DnsConvention::AMONG_OUTBOUND,
    ..Conventions::OWN
};

/// What nobody chooses of its proxy.
const INBOUND: Option<ListenPort> = ListenPort::new(15006);
const OUTBOUND: Option<ListenPort> = ListenPort::new(15001);
const TUNNEL: Option<ListenPort> = ListenPort::new(15008);
const DNS: Option<ListenPort> = ListenPort::new(15053);

/// The address of the node's probes where nobody says another one.
const fn usual_probe(family: Family) -> &'static str {
    match family {
        Family::V4 => "169.254.7.127",
        Family::V6 => "fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
    }
}

/// The agent whose names the rules have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Names of Istio's agent, with DNS capture and its usual probe addresses by default.
    Istio,
    /// Names of Cilium's agent, with neither DNS capture nor probe addresses by default.
    Cilium,
}

/// What is done with the rules of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Write the rules, in the place of others of ours.
    Apply,
    /// Say whether they are there.
    Check,
    /// Remove all rules of ours.
    Remove,
    /// Print the rules; nothing is changed.
    Print,
}

/// What is asked for besides what is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The agent whose names the rules have.
    pub flavour: Flavour,
    /// What is done with them; one of the four.
    pub action: Action,
    /// What carries them out, and who said so.
    pub backend: Sourced<String>,
    /// The place to work in, with the flag that names it: `netns`, `pid` or `pod`.
    pub place: Option<(&'static str, Sourced<String>)>,
    /// How long to wait for locks.
    pub wait: Duration,
}

/// All settings, checked: the policy that they make, and what to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What is captured, in no mesh's words.
    pub policy: CapturePolicy,
    /// Whose rules they are, what is done with them, and where.
    pub options: Options,
}

/// Where to work: the flag that says so and its value, before anything else is known.
///
/// # Errors
/// Several are given.
pub fn netns_target(raw: &Raw) -> Result<Option<(&'static str, Sourced<String>)>, ConfigErrors> {
    let mut reader = ValueReader::default();
    let given = ["netns", "pid", "pod"].map(|flag| (flag, raw.text(flag)));
    let mut given = given.into_iter().filter(|(_, text)| !text.value.is_empty());
    let first = given.next();
    if let (Some((flag, _)), Some((_, other))) = (&first, given.next()) {
        let expected = format!("--{flag} names a place already");
        reader.unusable(&other.source, &other.value, expected);
    }
    reader.finish(Some(first))
}

/// Check everything that was typed against what the pod is like.
///
/// # Errors
/// All that is wrong, at once.
pub fn resolve(raw: &Raw, facts: &HostFacts) -> Result<Resolved, ConfigErrors> {
    let place = netns_target(raw)?;
    let mut resolver = Resolver { raw, facts, reader: ValueReader::default() };
    let flavour = resolver.flavour();
    let policy = resolver.policy(flavour.unwrap_or(Flavour::Istio));
    let action = resolver.action();
    let wait = raw.duration(&mut resolver.reader, "wait");
    let policy = resolver.reader.finish(policy)?;
    let flavour = flavour.unwrap_or(Flavour::Istio);
    let options = Options { flavour, action, backend: raw.text("backend"), place, wait };
    Ok(Resolved { policy, options })
}

struct Resolver<'a> {
    raw: &'a Raw,
    facts: &'a HostFacts,
    reader: ValueReader,
}

impl Resolver<'_> {
    fn flavour(&mut self) -> Option<Flavour> {
        let text = self.raw.text("as");
        match text.value.as_str() {
            "istio" => Some(Flavour::Istio),
            "cilium" => Some(Flavour::Cilium),
            other => {
                self.reader.wrong(&text.source, other, "rules are as istio or as cilium");
                None
            }
        }
    }

    fn action(&mut self) -> Action {
        let switches =
            [("check", Action::Check), ("remove", Action::Remove), ("dry-run", Action::Print)];
        let mut wanted = Action::Apply;
        for (flag, action) in switches {
            let switch = self.raw.switch(&mut self.reader, flag);
            if switch.value && wanted != Action::Apply {
                let expected = "of --check, --remove and --dry-run one can be done";
                self.reader.unusable(&switch.source, "true", expected);
            } else if switch.value {
                wanted = action;
            }
        }
        wanted
    }

    fn policy(&mut self, flavour: Flavour) -> Option<CapturePolicy> {
        let raw = self.raw;
        let ipv6 = self.ipv6();
        let dns = self.dns(flavour);
        let bypass = raw.switch(&mut self.reader, "bypass-inbound-capture");
        let selection = if bypass.value {
            InboundSelection::Nothing
        } else {
            let except = self.reader.list(&raw.text("exclude-inbound-ports"));
            InboundSelection::AllExcept { source: Source::Always, except }
        };
        let inbound = Inbound {
            port: always(INBOUND?),
            tunnel_port: Some(always(TUNNEL?)),
            mode: InboundMode::Redirect,
            selection,
            except_sources: self.reader.list(&raw.text("exclude-inbound-cidrs")),
            probes: self.probes(flavour),
        };
        let outbound = Outbound {
            port: always(OUTBOUND?),
            networks: NetworkSelection::All(Source::Always),
            ports: Vec::new(),
            except_ports: self.reader.list(&raw.text("exclude-outbound-ports")),
            except_networks: self.reader.list(&raw.text("exclude-outbound-cidrs")),
            except_users: Vec::new(),
            localhost_to: None,
            except_flows: Vec::new(),
            groups: GroupSelection::AllExcept(Vec::new()),
        };
        let interfaces = Interfaces {
            excluded: self.interfaces("exclude-interfaces"),
            rerouted: self.interfaces("reroute-virtual-interfaces"),
        };
        Some(CapturePolicy {
            ipv6: ipv6?,
            proxy: ProxyIdentity {
                uids: Vec::new(),
                gids: Vec::new(),
                matching: IdentityMatching::Any,
                marks: Some(MARKS),
            },
            inbound,
            outbound,
            interfaces,
            localhost: always(Cidr::host(Ipv4Addr::LOCALHOST.into())),
            dns,
            drop_invalid: None,
            conventions: CONVENTIONS,
        })
    }

    /// Blanks around names mean nothing, as in the annotation.
    fn interfaces(&mut self, flag: &'static str) -> Vec<Sourced<InterfacePattern>> {
        let text = self.raw.text(flag);
        self.reader.each(&text, Most::Names, &items(&text.value), |item| {
            item.trim().parse().map_err(|error: ValueError| error.to_string())
        })
    }

    fn ipv6(&mut self) -> Option<Sourced<bool>> {
        let text = self.raw.text("ipv6");
        match text.value.as_str() {
            "on" => Some(text.with(true)),
            "off" => Some(text.with(false)),
            // It may get more than `::1` at any time.
            "auto" => {
                let any = self.facts.addresses.iter().any(IpAddr::is_ipv6);
                Some(Sourced::new(any, Source::Host("addresses".to_owned())))
            }
            other => {
                self.reader.wrong(&text.source, other, "it is one of auto, on, off");
                None
            }
        }
    }

    /// What of DNS is captured; an error is in the reader.
    fn dns(&mut self, flavour: Flavour) -> Option<DnsCapture> {
        let text = self.raw.text("dns-capture");
        let wanted = if text.value.is_empty() {
            flavour == Flavour::Istio
        } else {
            go::parse_bool(&text.value).unwrap_or_else(|error| {
                raw::unreadable(&mut self.reader, &text, error.to_string());
                false
            })
        };
        let source = text.source;
        wanted.then_some(())?;
        let to = DnsTarget::Listener(always(DNS?));
        Some(DnsCapture { to, source: source.clone(), scope: DnsScope::All(source) })
    }

    fn probes(&mut self, flavour: Flavour) -> Vec<Sourced<Probe>> {
        let text = self.raw.text("node-ips");
        let node = self.reader.each(&text, Most::Names, &items(&text.value), |item| {
            let address: Option<IpAddr> = item.trim().parse().ok();
            let usable = address.filter(|a| !a.is_unspecified() && !a.to_canonical().is_loopback());
            usable.map(Probe::Node).ok_or_else(|| {
                "a node's address is one of IPv4 or IPv6, such as 192.0.2.1".to_owned()
            })
        });
        let usual = flavour == Flavour::Istio && node.is_empty();
        let translated = [
            (Family::V4, self.raw.text("host-probe-snat-ip")),
            (Family::V6, self.raw.text("host-probe-snat-ipv6")),
        ];
        let translated = translated.map(|(family, text)| self.translated(family, &text, usual));
        translated.into_iter().flatten().chain(node).collect()
    }

    /// The address that the node's own is translated to; an error is in the reader.
    fn translated(
        &mut self,
        family: Family,
        text: &Sourced<String>,
        usual: bool,
    ) -> Option<Sourced<Probe>> {
        let value = match text.value.as_str() {
            "" if usual => usual_probe(family),
            "" | "none" => return None,
            value => value,
        };
        let address = value.parse().ok().filter(|address: &IpAddr| {
            Family::of(*address) == family
                && !address.is_unspecified()
                && *address != IpAddr::V4(Ipv4Addr::LOCALHOST)
        });
        if address.is_none() {
            let expected = format!("an address of {family}, such as {}", usual_probe(family));
            self.reader.wrong(&text.source, value, expected);
        }
        address.map(|address| text.with(Probe::Translated(address)))
    }
}

const fn always<T>(value: T) -> Sourced<T> {
    Sourced::new(value, Source::Always)
}
