//! From what was typed to a policy and the way to carry it out.

use std::net::Ipv4Addr;

use super::flags::Linkerd;
use super::options::{Mode, Options};
use crate::dialect::error::{ConfigError, ConfigErrors};
use crate::dialect::list::{Most, ValueReader, items};
use crate::dialect::raw::{self, unreadable};
use crate::policy::{
    CapturePolicy, Conventions, DnsConvention, ExceptPorts, GroupSelection, IdentityMatching,
    Inbound, InboundMode, InboundSelection, Interfaces, Local, NetworkSelection, Outbound, Phase,
    ProxyIdentity, SelfCall,
};
use crate::source::{Source, Sourced};
use crate::value::{Cidr, ListenPort, Port, PortRange, ValueError};

/// Flags as they were typed.
pub type Raw = raw::Raw<Linkerd>;

/// What Linkerd takes for granted: whatever leaves by `lo` stays in the pod, whoever sends it.
pub(super) const CONVENTIONS: Conventions = Conventions {
    local: Local::Lo,
    self_call: SelfCall::Pass,
    passthrough: false,
    except_ports: ExceptPorts { phase: Phase::Last, udp: false },
    except_networks: Phase::Last,
    except_users: Phase::Last,
    interfaces_last: false,
    dns: DnsConvention::AMONG_OUTBOUND,
};

/// All settings, checked: the policy that they make, and what to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What is captured, in no mesh's words.
    pub policy: CapturePolicy,
    /// How and where it is written, and whether at all.
    pub options: Options,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Check everything that was typed, in proxy-init's order.
///
/// # Errors
/// All that is wrong, at once.
pub fn resolve(raw: &Raw) -> Result<Resolved, ConfigErrors> {
    let mut resolver = Resolver { raw, reader: ValueReader::default(), warnings: Vec::new() };
    let mode = resolver.mode();
    let policy = resolver.policy();
    let options = resolver.options(mode);
    let Resolver { reader, warnings, .. } = resolver;
    let (policy, options) = reader.finish(policy.zip(options))?;
    Ok(Resolved { policy, options, warnings })
}

/// What proxy-init says of a configuration that it does not take: it ends at the first thing. None
/// where it takes what is wrong.
pub fn said(errors: &ConfigErrors) -> Option<String> {
    let ConfigError { source_name, value, .. } = errors.0.first()?;
    let (Source::Flag(name) | Source::Default(name)) = source_name else { return None };
    match name.rsplit("--").next()? {
        "iptables-mode" => {
            let modes = "valid values are only \"legacy\", \"nft\" and \"plain\"";
            Some(format!("--iptables-mode {modes}"))
        }
        "firewall-bin-path" => {
            let names =
                "valid values are only \"iptables-legacy\", \"iptables-nft\" and \"iptables\"";
            Some(format!("--firewall-bin-path {names}"))
        }
        port @ ("incoming-proxy-port" | "outgoing-proxy-port") => {
            Some(format!("--{port} must be a valid TCP port number"))
        }
        "subnets-to-ignore" => Some(format!("{value} is not a valid CIDR address")),
        _ => None,
    }
}

struct Resolver<'a> {
    raw: &'a Raw,
    reader: ValueReader,
    warnings: Vec<String>,
}

impl Resolver<'_> {
    fn mode(&mut self) -> Option<Mode> {
        let [mode, path] = ["iptables-mode", "firewall-bin-path"].map(|flag| self.raw.text(flag));
        let (text, expected) = if mode.value.is_empty() {
            (path, "the name of iptables is iptables-legacy, iptables-nft or iptables, no path")
        } else {
            (mode, "the iptables to use is legacy, nft or plain")
        };
        match text.value.as_str() {
            "legacy" | "iptables-legacy" | "" => Some(Mode::Legacy),
            "nft" | "iptables-nft" => Some(Mode::Nft),
            "plain" | "iptables" => Some(Mode::Plain),
            other => {
                self.reader.wrong(&text.source, other, expected);
                None
            }
        }
    }

    fn options(&mut self, mode: Option<Mode>) -> Option<Options> {
        let (raw, reader) = (self.raw, &mut self.reader);
        let netns = raw.text("netns").value;
        let seconds = raw.text("timeout-close-wait-secs");
        let close_wait = whole(&seconds.value).and_then(|seconds| u32::try_from(seconds).ok());
        if close_wait.is_none() {
            unreadable(reader, &seconds, "a time is a whole number of seconds".to_owned());
        }
        Some(Options {
            simulate: raw.switch(reader, "simulate").value,
            netns: (!netns.is_empty()).then_some(netns),
            wait_flag: raw.switch(reader, "use-wait-flag").value,
            close_wait: close_wait.filter(|seconds| *seconds != 0),
            native: raw.switch(reader, "native-nftables").value,
            wait: raw.duration(reader, "wait"),
            mode: mode?,
            mode_by_default: ["iptables-mode", "firewall-bin-path"]
                .iter()
                .all(|flag| raw.text(flag).value.is_empty()),
        })
    }

    fn policy(&mut self) -> Option<CapturePolicy> {
        let inbound = self.listener("incoming-proxy-port");
        let outbound = self.listener("outgoing-proxy-port");
        let subnets = self.raw.text("subnets-to-ignore");
        let except_sources =
            self.reader.each(&subnets, Most::Targets, &items(&subnets.value), |item| {
                item.trim().parse::<Cidr>().map_err(|error| error.to_string())
            });
        let proxy = self.proxy();
        let selection = self.selection();
        let except_ports = self.ignored("outbound-ports-to-ignore");
        let outgoing = self.raw.text("outgoing-proxy-port").source;
        Some(CapturePolicy {
            ipv6: self.raw.switch(&mut self.reader, "ipv6"),
            proxy,
            inbound: Inbound {
                port: inbound?,
                tunnel_port: None,
                mode: InboundMode::Redirect,
                selection,
                except_sources,
                probes: Vec::new(),
            },
            outbound: Outbound {
                port: outbound?,
                networks: NetworkSelection::All(outgoing),
                ports: Vec::new(),
                except_ports,
                except_networks: Vec::new(),
                except_users: Vec::new(),
                except_flows: Vec::new(),
                localhost_to: None,
                groups: GroupSelection::AllExcept(Vec::new()),
            },
            interfaces: Interfaces::default(),
            localhost: Sourced::new(Cidr::host(Ipv4Addr::LOCALHOST.into()), Source::Always),
            dns: None,
            drop_invalid: None,
            conventions: CONVENTIONS,
        })
    }

    fn listener(&mut self, flag: &'static str) -> Option<Sourced<ListenPort>> {
        let text = self.raw.text(flag);
        if let (Source::Default(name), "") = (&text.source, text.value.as_str()) {
            let expected = "it has to be given: there is no default";
            self.reader.wrong(&Source::Flag(name.clone()), &text.value, expected);
            return None;
        }
        self.reader.one(&text)
    }

    fn proxy(&mut self) -> ProxyIdentity {
        let [uid, gid] = ["proxy-uid", "proxy-gid"].map(|flag| self.raw.text(flag));
        let uids: Vec<_> = self.identity(&uid).into_iter().collect();
        let gids: Vec<_> = self.identity(&gid).into_iter().collect();
        if uids.is_empty() && gids.is_empty() {
            self.warnings.push(
                "neither proxy-uid nor proxy-gid says who the proxy is: its own connections \
                 are captured too, and come back to it"
                    .to_owned(),
            );
        }
        ProxyIdentity { uids, gids, matching: IdentityMatching::Any, marks: None }
    }

    /// A user or group; none for -1.
    fn identity<T>(&mut self, text: &Sourced<String>) -> Option<Sourced<T>>
    where
        T: std::str::FromStr<Err = ValueError>,
    {
        if text.value == "-1" {
            return None;
        }
        match text.value.parse() {
            Ok(id) => Some(text.with(id)),
            Err(error) => {
                self.reader.wrong(&text.source, &text.value, format!("{error}; -1 is for none"));
                None
            }
        }
    }

    fn selection(&mut self) -> InboundSelection {
        let listed = self.raw.text("ports-to-redirect");
        let except = self.ignored("inbound-ports-to-ignore");
        if matches!(listed.source, Source::Default(_)) {
            return InboundSelection::AllExcept { source: listed.source, except };
        }
        // An empty item is wrong here: without it, every port would be meant.
        let items: Vec<&str> = listed.value.split(',').collect();
        let ports = self.reader.each(&listed, Most::Targets, &items, |item| {
            item.parse::<Port>().map_err(|error| error.to_string())
        });
        let ports = ports.into_iter().map(|port| port.with(port.value.into())).collect();
        InboundSelection::Only { ports, except }
    }

    /// Ports and ranges that are left alone.
    fn ignored(&mut self, flag: &'static str) -> Vec<Sourced<PortRange>> {
        let texts = self.raw.texts(flag);
        let of = |text: &Sourced<String>| {
            self.reader.each(text, Most::Targets, &items(&text.value), |item| {
                let expected =
                    "a port is a number from 0 to 65535, a range is first-last, low to high";
                range(item.trim()).ok_or_else(|| expected.to_owned())
            })
        };
        texts.iter().flat_map(of).collect()
    }
}

/// A port `N` or a range `A-B`; none where it is neither.
fn range(text: &str) -> Option<PortRange> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    PortRange::new(first.parse().ok()?, last.parse().ok()?)
}

/// A whole number without sign, and in no other than the decimal system.
fn whole(text: &str) -> Option<u64> {
    let decimal =
        text.bytes().all(|b| b.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    if decimal { text.parse().ok() } else { None }
}
