//! From what was typed to a policy and the way to carry it out.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use super::flags::Kuma;
use super::flows;
use super::options::{Options, Programs};
use crate::dialect::error::{ConfigError, ConfigErrors};
use crate::dialect::flags::BETWEEN;
use crate::dialect::list::{Most, ValueReader, items};
use crate::dialect::parts;
use crate::dialect::raw::{self, unreadable};
use crate::facts::HostFacts;
use crate::policy::{
    CapturePolicy, Conventions, DnsCapture, DnsConvention, DnsScope, DnsTarget, DnsTcp,
    ExceptPorts, Flow, GroupSelection, IdentityMatching, Inbound, InboundMode, InboundSelection,
    Interfaces, Local, NetworkSelection, Outbound, Phase, ProxyIdentity, SelfCall, passthrough,
};
use crate::source::{Source, Sourced};
use crate::value::{Cidr, Family, ListenPort, PortRange, Uid};

/// Settings as they were typed.
pub type Raw = raw::Raw<Kuma>;

/// What Kuma takes for granted: DNS queries by UDP are asked for before anything about TCP, and excluded
/// networks and flows before them.
pub(super) const CONVENTIONS: Conventions = Conventions {
    local: Local::LoAndLocalhost,
    self_call: SelfCall::Inbound,
    passthrough: true,
    except_ports: ExceptPorts { phase: Phase::First, udp: false },
    except_networks: Phase::Ahead,
    except_users: Phase::Last,
    interfaces_last: false,
    dns: DnsConvention::Ahead {
        tcp: DnsTcp::Bypassed,
        spares_proxy: true,
        in_front: true,
        zones: true,
    },
};

/// The user that Kuma's proxy runs as, by id and by name.
const USER: (&str, &str) = ("5678", "kuma-dp");

/// What Millrace does not do of what kumactl does or did, by the flag that asks for it, and what to do
/// instead.
const REFUSED: [(&str, &str); 5] = [
    ("vnet", "packets of other interfaces can't be treated as the pod's own: leave it out"),
    (
        "iptables-logs",
        "packets are not logged: leave it out, and follow them with `millrace trace`",
    ),
    (
        "store-firewalld",
        "firewalld is not told of the rules: leave it out, and run this at each start",
    ),
    (
        "exclude-inbound-ports-for-uids",
        "who sent what arrives is not known to the kernel: leave it out, and exclude ports or networks",
    ),
    (
        "ebpf-enabled",
        "there is no capture by eBPF here, as there is none in kumactl any more: leave it out",
    ),
];

/// All settings, checked: the policy that they make, and what to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What is captured, in no mesh's words.
    pub policy: CapturePolicy,
    /// How rules are written, and whether at all.
    pub options: Options,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Check everything that was typed.
///
/// # Errors
/// All that is wrong, at once.
pub fn resolve(raw: &Raw, facts: &HostFacts) -> Result<Resolved, ConfigErrors> {
    let mut resolver =
        Resolver { raw, facts, reader: ValueReader::default(), warnings: Vec::new() };
    resolver.refuse();
    let policy = resolver.policy();
    let options = resolver.options();
    let Resolver { reader, warnings, .. } = resolver;
    let (policy, options) = reader.finish(policy.zip(Some(options)))?;
    Ok(Resolved { policy, options, warnings })
}

/// What kumactl says of a configuration that it does not take: it ends at the first thing. None where
/// it takes what is wrong.
pub fn said(errors: &ConfigErrors) -> Option<String> {
    let ConfigError { source_name, value, .. } = errors.0.first()?;
    let Source::Flag(name) = source_name else { return None };
    match name.trim_start_matches("--") {
        "redirect-all-dns-traffic" if value == "true" => {
            let flags = "'--redirect-dns' or '--redirect-all-dns-traffic'";
            Some(format!("only one of {flags} should be specified"))
        }
        "exclude-outbound-ports-for-uids" => flows::read(value).err()?.said(),
        _ => None,
    }
}

struct Resolver<'a> {
    raw: &'a Raw,
    facts: &'a HostFacts,
    reader: ValueReader,
    warnings: Vec<String>,
}

impl Resolver<'_> {
    fn refuse(&mut self) {
        for (flag, instead) in REFUSED {
            let text = self.raw.text(flag);
            // A switch that can't be read is wrong, and no refusal.
            let is_switch = matches!(flag, "iptables-logs" | "store-firewalld" | "ebpf-enabled");
            let asked = if is_switch { self.switch(flag) } else { !text.value.is_empty() };
            if asked {
                self.reader.wrong(&text.source, &text.value, instead);
            }
        }
    }

    fn switch(&mut self, flag: &'static str) -> bool {
        self.raw.switch(&mut self.reader, flag).value
    }

    fn options(&mut self) -> Options {
        for flag in ["wait-interval", "max-retries", "iptables-log-level"] {
            self.whole(flag);
        }
        self.raw.duration(&mut self.reader, "sleep-between-retries");
        Options {
            dry_run: self.switch("dry-run"),
            verbose: self.switch("verbose"),
            comments: !self.switch("disable-comments"),
            inbound_in_front: self.switch("redirect-inbound-insert-instead-of-append"),
            outbound_in_front: self.switch("redirect-outbound-insert-instead-of-append"),
            programs: self.programs(),
            native: self.switch("native-nftables"),
            wait: Duration::from_secs(self.whole("wait").into()),
        }
    }

    /// A whole number without sign.
    fn whole(&mut self, flag: &'static str) -> u32 {
        let text = self.raw.text(flag);
        text.value.parse().unwrap_or_else(|_e| {
            unreadable(&mut self.reader, &text, "it is a whole number".to_owned());
            0
        })
    }

    /// Which iptables is named by its programs: nothing of them is run but what the names tell.
    fn programs(&mut self) -> Programs {
        let text = self.raw.text("iptables-executables");
        let named = self.reader.each(&text, Most::Names, &items(&text.value), |item| {
            let expected = "it is NAME:PATH, the name one of iptables, iptables-save, \
                            iptables-restore, ip6tables, ip6tables-save and ip6tables-restore";
            let (name, path) = item.split_once(':').ok_or(expected)?;
            let (family, program) = name.split_once('-').unwrap_or((name, ""));
            let known = ["iptables", "ip6tables"].contains(&family)
                && ["", "save", "restore"].contains(&program)
                && !path.is_empty();
            let file = path.rsplit('/').next().unwrap_or_default();
            known.then(|| file.to_owned()).ok_or_else(|| expected.to_owned())
        });
        let all = |what: &str| !named.is_empty() && named.iter().all(|n| n.value.contains(what));
        let (programs, which) = match (all("-nft"), all("-legacy")) {
            (true, _) => (Programs::Nft, "iptables-nft is used, as they are called"),
            (_, true) => (Programs::Legacy, "iptables-legacy is used, as they are called"),
            _ => (Programs::Any, "which iptables is used is found out"),
        };
        if !named.is_empty() {
            let warning = format!("{}: the programs named there are not run: {which}", text.source);
            self.warnings.push(warning);
        }
        programs
    }

    fn policy(&mut self) -> Option<CapturePolicy> {
        let ipv6 = self.ipv6();
        let proxy = self.proxy();
        let inbound = self.inbound();
        let outbound = self.outbound();
        let dns = self.dns(ipv6.value);
        let drop_invalid = self.raw.switch(&mut self.reader, "drop-invalid-packets");
        let zones = !self.switch("skip-dns-conntrack-zone-split");
        Some(CapturePolicy {
            ipv6,
            proxy: proxy?,
            inbound: inbound?,
            outbound: outbound?,
            interfaces: Interfaces::default(),
            localhost: Sourced::new(Cidr::host(Ipv4Addr::LOCALHOST.into()), Source::Always),
            dns,
            drop_invalid: drop_invalid.value.then_some(drop_invalid.source),
            conventions: Conventions { dns: CONVENTIONS.dns.with_zones(zones), ..CONVENTIONS },
        })
    }

    /// IPv6 is captured where the host has an address of it that is not loopback's.
    fn ipv6(&mut self) -> Sourced<bool> {
        let mode = self.raw.text("ip-family-mode");
        let own = passthrough(Family::V6);
        let is_of_host =
            |a: &&IpAddr| Family::of(**a) == Family::V6 && !a.is_loopback() && **a != own;
        let has = self.facts.addresses.iter().find(is_of_host).is_some();
        match mode.value.to_ascii_lowercase().as_str() {
            "dualstack" | "" if has => mode.with(true),
            "dualstack" | "" => Sourced::new(false, Source::Host("addresses".to_owned())),
            "ipv4" => mode.with(false),
            _ => {
                let expected = "the families to capture are dualstack or ipv4";
                self.reader.wrong(&mode.source, &mode.value, expected);
                mode.with(false)
            }
        }
    }

    fn proxy(&mut self) -> Option<ProxyIdentity> {
        let uid = self.user()?;
        let matching = IdentityMatching::OneByOne;
        Some(ProxyIdentity { uids: vec![uid], gids: Vec::new(), matching, marks: None })
    }

    /// The proxy's user: its id, which needs not be one of the host's users, or its name.
    fn user(&mut self) -> Option<Sourced<Uid>> {
        let (id, name) = USER;
        let text = self.raw.text("kuma-dp-user");
        let known = |name: &str| self.facts.users.get(name).copied();
        let user = if !text.value.is_empty() {
            text.value.parse().ok().or_else(|| known(&text.value))
        } else if self.switch("cni-mode") {
            id.parse().ok()
        } else {
            let of_id = self.facts.users.values().copied().find(|uid| uid.to_string() == id);
            of_id.or_else(|| known(name))
        };
        if user.is_none() {
            let expected = if text.value.is_empty() {
                format!("there is no user {id} and none called {name} here: name the proxy's user")
            } else {
                "no user here is called so: name the proxy's user, or give its id".to_owned()
            };
            self.reader.wrong(&text.source, &text.value, expected);
        }
        Some(text.with(user?))
    }

    fn inbound(&mut self) -> Option<Inbound> {
        let port: Option<Sourced<ListenPort>> =
            self.reader.one(&self.raw.text("redirect-inbound-port"));
        let enabled = self.raw.switch(&mut self.reader, "redirect-inbound");
        let [only, except] =
            ["include-inbound-ports", "exclude-inbound-ports"].map(|flag| self.ports(flag));
        let selection = match (enabled.value, only.is_empty()) {
            (false, _) => InboundSelection::Nothing,
            (true, true) => InboundSelection::AllExcept { source: enabled.source, except },
            (true, false) => InboundSelection::Only { ports: only, except: Vec::new() },
        };
        Some(Inbound {
            port: port?,
            tunnel_port: None,
            mode: InboundMode::Redirect,
            selection,
            except_sources: self.networks("exclude-inbound-ips"),
            probes: Vec::new(),
        })
    }

    fn outbound(&mut self) -> Option<Outbound> {
        let port: Option<Sourced<ListenPort>> =
            self.reader.one(&self.raw.text("redirect-outbound-port"));
        let enabled = self.raw.switch(&mut self.reader, "redirect-outbound");
        if !enabled.value {
            let expected = "connections of the pod are always captured: leave out networks instead";
            self.reader.wrong(&enabled.source, "false", expected);
        }
        let [ports, except] =
            ["include-outbound-ports", "exclude-outbound-ports"].map(|flag| self.ports(flag));
        let (networks, except_ports) = if ports.is_empty() {
            (NetworkSelection::All(enabled.source), except)
        } else {
            (NetworkSelection::Only(Vec::new()), Vec::new())
        };
        Some(Outbound {
            port: port?,
            networks,
            ports,
            except_ports,
            except_networks: self.networks("exclude-outbound-ips"),
            except_users: Vec::new(),
            except_flows: self.flows(),
            localhost_to: None,
            groups: GroupSelection::AllExcept(Vec::new()),
        })
    }

    /// Ports of comma lists, blanks around them aside.
    fn ports(&mut self, flag: &'static str) -> Vec<Sourced<PortRange>> {
        let texts = self.raw.texts(flag);
        let of = |text: &Sourced<String>| {
            let list: Vec<&str> = items(&text.value).into_iter().map(str::trim).collect();
            self.reader.each(text, Most::Targets, &list, |item| {
                let port: Result<ListenPort, _> = item.parse();
                port.map(|port| port.port().into())
                    .map_err(|_e| "a port is a number from 1 to 65535".to_owned())
            })
        };
        texts.iter().flat_map(of).collect()
    }

    /// Networks and addresses of a comma list.
    fn networks(&mut self, flag: &'static str) -> Vec<Sourced<Cidr>> {
        let text = self.raw.text(flag);
        self.reader.each(&text, Most::Targets, &items(&text.value), |item| {
            let address = item.parse::<IpAddr>().map(|ip| Cidr::host(ip.to_canonical()));
            address.or_else(|_e| item.parse()).map_err(|_e| {
                "it is an address or a network, such as 10.0.0.1, 172.16.0.0/16 or fd00::/8"
                    .to_owned()
            })
        })
    }

    fn flows(&mut self) -> Vec<Sourced<Flow>> {
        let text = self.raw.text("exclude-outbound-ports-for-uids");
        // A variable has commas between them, as all lists of it.
        let between = if matches!(text.source, Source::Env(_)) { ',' } else { BETWEEN };
        let list: Vec<&str> = text.value.split(between).filter(|item| !item.is_empty()).collect();
        self.reader.each(&text, Most::Names, &list, |item| {
            flows::read(item).map_err(|error| error.to_string())
        })
    }

    /// What of DNS is captured; an error is in the reader.
    fn dns(&mut self, ipv6: bool) -> Option<DnsCapture> {
        let port = self.reader.one(&self.raw.text("redirect-dns-port"));
        let [servers, all] = ["redirect-dns", "redirect-all-dns-traffic"]
            .map(|flag| self.raw.switch(&mut self.reader, flag));
        let typed =
            |switch: &Sourced<bool>| switch.value && matches!(switch.source, Source::Flag(_));
        if typed(&servers) && typed(&all) {
            let expected = "queries to the servers of resolv.conf are captured, or all of them";
            self.reader.wrong(&all.source, "true", expected);
        }
        // Where it is no flag, it says which queries, and the other one whether any.
        if !servers.value && !typed(&all) {
            return None;
        }
        let (source, scope) = if all.value {
            (all.source.clone(), DnsScope::All(all.source))
        } else {
            let named = parts::resolvers(&mut self.reader, self.facts, &servers.source)?;
            (servers.source, DnsScope::Servers(named))
        };
        if scope.is_empty(ipv6) {
            self.warnings.push(format!(
                "{source}: no name server of a family that is captured is in {}: no DNS queries are captured",
                self.raw.text("resolv-conf").value
            ));
            return None;
        }
        Some(DnsCapture { to: DnsTarget::Listener(port?), source, scope })
    }
}
