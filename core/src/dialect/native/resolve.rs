//! From Millrace's own settings to a policy.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::settings::{self, Setting};
use crate::dialect::error::ConfigErrors;
use crate::dialect::list::{Most, ValueReader, items};
use crate::dialect::parts::{self, Beside};
use crate::facts::HostFacts;
use crate::policy::{
    CapturePolicy, Conventions, DnsCapture, DnsScope, DnsTarget, GroupSelection, IdentityMatching,
    Inbound, InboundMode, Interfaces, NetworkSelection, Outbound, ProxyIdentity,
};
use crate::source::{Source, Sourced};
use crate::value::Family;

/// Settings as they were typed.
#[derive(Clone, Debug, Default)]
pub struct Raw {
    values: BTreeMap<&'static str, Sourced<String>>,
    read_back: bool,
}

impl Raw {
    /// Take a file's values and flags, which beat them. A flag that is given several times adds
    /// up when it is a list; otherwise the last one counts.
    pub fn new(
        file: BTreeMap<&'static str, String>,
        flags: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let mut raw = Self::default();
        for (flag, value) in file {
            let key = settings::find(flag).map_or(flag, |s| s.key);
            raw.values.insert(flag, Sourced::new(value, Source::File(key.to_owned())));
        }
        for (flag, value) in flags {
            let Some(setting) = settings::find(&flag) else { continue };
            let source = Source::Flag(format!("--{flag}"));
            match raw.values.get_mut(setting.flag) {
                Some(old) if setting.shape.is_list() && old.source == source => {
                    old.value = format!("{},{value}", old.value);
                }
                _ => {
                    raw.values.insert(setting.flag, Sourced::new(value, source));
                }
            }
        }
        raw
    }

    /// The same as read back from rules: what is needless in them is there all the same.
    #[must_use]
    pub(crate) fn read_back(mut self) -> Self {
        self.read_back = true;
        self
    }

    fn text(&self, flag: &'static str) -> Sourced<String> {
        self.values.get(flag).cloned().unwrap_or_else(|| {
            let default = settings::find(flag).map_or("", |s: &Setting| s.default);
            Sourced::new(default.to_owned(), Source::Default(format!("--{flag}")))
        })
    }

    /// Settings that were typed and change nothing beside the others, in words.
    pub fn without_effect(&self) -> Vec<String> {
        let dns = self.text("dns");
        let needless: &[&str] = match dns.value.as_str() {
            "off" => &["dns-servers", "dns-port"],
            "all" => &["dns-servers"],
            _ => &[],
        };
        let typed = needless.iter().filter_map(|flag| self.values.get(flag));
        let typed = typed.filter(|text| !text.value.is_empty());
        typed
            .map(|text| format!("{} has no effect with --dns {}", text.source, dns.value))
            .collect()
    }

    fn is_set(&self, flag: &str) -> bool {
        self.values.contains_key(flag)
    }
}

/// Check everything that was typed against what the namespace is like. With `writes`, names must
/// exist: rules are going to be written.
///
/// # Errors
/// All that is wrong, at once.
pub fn resolve(raw: &Raw, facts: &HostFacts, writes: bool) -> Result<CapturePolicy, ConfigErrors> {
    let mut r = Resolver { raw, facts, writes, reader: ValueReader::default() };
    let policy = r.policy();
    r.reader.finish(policy)
}

struct Resolver<'a> {
    raw: &'a Raw,
    facts: &'a HostFacts,
    writes: bool,
    reader: ValueReader,
}

impl Resolver<'_> {
    fn policy(&mut self) -> Option<CapturePolicy> {
        let (ipv6, proxy, inbound) = (self.ipv6(), self.proxy(), self.inbound());
        let (outbound, dns) = (self.outbound(), self.dns());
        let interfaces = Interfaces {
            excluded: self.reader.names(&self.raw.text("exclude-interfaces")),
            rerouted: self.reader.names(&self.raw.text("reroute-interfaces")),
        };
        let localhost = parts::localhost(&mut self.reader, &self.raw.text("localhost-cidr"));
        let drop = self.choice("drop-invalid", &["true", "false"]);
        if let Some((dns, ipv6)) = dns.as_ref().zip(ipv6.as_ref())
            && dns.scope.is_empty(ipv6.value)
            && !self.reader.failed()
        {
            let expected = "no name server is known whose family is captured, so no query would be: \
                            name servers with --dns-servers, or capture all queries with --dns all";
            self.reader.wrong(&dns.source, "servers", expected);
        }
        Some(CapturePolicy {
            ipv6: ipv6?,
            proxy,
            inbound: inbound?,
            outbound: outbound?,
            interfaces,
            localhost: localhost?,
            dns,
            drop_invalid: drop.filter(|d| d.value == "true").map(|d| d.source),
            conventions: Conventions::OWN,
        })
    }

    /// A word of a few.
    fn choice(
        &mut self,
        flag: &'static str,
        words: &[&'static str],
    ) -> Option<Sourced<&'static str>> {
        let text = self.raw.text(flag);
        let word = words.iter().find(|w| **w == text.value);
        if word.is_none() {
            let expected = format!("it is one of {}", words.join(", "));
            self.reader.wrong(&text.source, &text.value, expected);
        }
        word.map(|w| text.with(*w))
    }

    fn ipv6(&mut self) -> Option<Sourced<bool>> {
        let choice = self.choice("ipv6", &["auto", "on", "off"])?;
        Some(match choice.value {
            "on" => choice.with(true),
            "off" => choice.with(false),
            _ => {
                let any = self.facts.usable_addresses().any(|a| Family::of(a) == Family::V6);
                Sourced::new(any, Source::Host("addresses".to_owned()))
            }
        })
    }

    fn proxy(&mut self) -> ProxyIdentity {
        let gids = self.reader.names(&self.raw.text("proxy-gid"));
        let only_gids = !gids.is_empty() && !self.raw.is_set("proxy-uid");
        let uids =
            if only_gids { Vec::new() } else { self.reader.names(&self.raw.text("proxy-uid")) };
        if uids.is_empty() && gids.is_empty() && !self.reader.failed() {
            let text = self.raw.text("proxy-uid");
            let expected = "the proxy needs a user id or a group id, or it would be sent its own \
                            connections";
            self.reader.wrong(&text.source, &text.value, expected);
        }
        ProxyIdentity { uids, gids, matching: IdentityMatching::Any, marks: None }
    }

    fn inbound(&mut self) -> Option<Inbound> {
        let raw = self.raw;
        let port = self.reader.one(&raw.text("inbound-port"));
        let tunnel_port = self.reader.one(&raw.text("tunnel-port"));
        let mark = parts::mark(&mut self.reader, &raw.text("tproxy-mark"));
        let table = self.reader.one(&raw.text("tproxy-table"));
        let mode = self.choice("mode", &["redirect", "tproxy"])?;
        let selection = parts::inbound(
            &mut self.reader,
            raw.text("include-inbound-ports"),
            &raw.text("exclude-inbound-ports"),
            if raw.read_back { Beside::All } else { Beside::Captured },
        );
        let mode = match mode.value {
            "tproxy" => InboundMode::Tproxy { mark: mark?, table: table?, source: mode.source },
            _ => InboundMode::Redirect,
        };
        Some(Inbound {
            port: port?,
            tunnel_port: Some(tunnel_port?),
            mode,
            selection,
            except_sources: self.reader.list(&raw.text("exclude-inbound-cidrs")),
            probes: Vec::new(),
        })
    }

    fn outbound(&mut self) -> Option<Outbound> {
        let raw = self.raw;
        let port = self.reader.one(&raw.text("outbound-port"));
        let networks: NetworkSelection =
            parts::networks(&mut self.reader, raw.text("include-outbound-cidrs"));
        let known = self.writes.then_some(&self.facts.groups);
        let groups: GroupSelection = parts::groups(
            &mut self.reader,
            raw.text("include-groups"),
            &raw.text("exclude-groups"),
            known,
        );
        Some(Outbound {
            port: port?,
            networks,
            ports: self.reader.list(&raw.text("include-outbound-ports")),
            except_ports: self.reader.list(&raw.text("exclude-outbound-ports")),
            except_networks: self.reader.list(&raw.text("exclude-outbound-cidrs")),
            except_users: self.reader.names(&raw.text("exclude-users")),
            except_flows: Vec::new(),
            localhost_to: None,
            groups,
        })
    }

    /// What of DNS is captured; an error is in the reader.
    fn dns(&mut self) -> Option<DnsCapture> {
        let port = self.reader.one(&self.raw.text("dns-port"));
        let choice = self.choice("dns", &["off", "servers", "all"])?;
        let scope = match choice.value {
            "off" => return None,
            "all" => DnsScope::All(choice.source.clone()),
            _ => DnsScope::Servers(self.servers(&choice.source)?),
        };
        Some(DnsCapture { to: DnsTarget::Listener(port?), source: choice.source, scope })
    }

    /// The servers that are named, else those of the resolver's configuration.
    fn servers(&mut self, asked_by: &Source) -> Option<Vec<Sourced<IpAddr>>> {
        let text = self.raw.text("dns-servers");
        if items(&text.value).is_empty() {
            return parts::resolvers(&mut self.reader, self.facts, asked_by);
        }
        let items = items(&text.value);
        Some(self.reader.each(&text, Most::Names, &items, parts::server))
    }
}
