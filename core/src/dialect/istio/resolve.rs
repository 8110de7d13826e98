//! From what was typed to a policy and the way to carry it out.

use std::time::Duration;

use super::Raw;
use crate::dialect::error::ConfigErrors;
use crate::dialect::list::{ValueReader, items};
use crate::dialect::parts::{self, Beside};
use crate::dialect::raw::unreadable;
use crate::facts::HostFacts;
use crate::observed::Variant;
use crate::policy::{
    CapturePolicy, Conventions, DnsCapture, DnsScope, DnsTarget, IdentityMatching, Inbound,
    InboundMode, Interfaces, Outbound, ProxyIdentity,
};
use crate::source::{Source, Sourced};
use crate::value::{Family, Gid, ListenPort, Port, Uid};

/// The port on which the proxy answers DNS queries.
pub(super) const DNS_PORT: u16 = 15053;
/// The proxy's user and group when nobody says otherwise.
pub(super) const PROXY_ID: u32 = 1337;

/// Which iptables must be used.
pub type ForcedVariant = Option<Variant>;

/// What istio-iptables is asked to do besides the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Native nftables instead of iptables.
    pub native: bool,
    /// Choose about IPv6 as the reference does.
    pub ipv6_as_reference: bool,
    /// Change nothing, and log what would be done.
    pub dry_run: bool,
    /// Where a dry run writes what would be done.
    pub dry_run_file: Option<String>,
    /// Write neither rules nor routes.
    pub skip_rule_apply: bool,
    /// Send real connections and see.
    pub run_validation: bool,
    /// The port they go to.
    pub probe_port: Port,
    /// How long they may take.
    pub probe_timeout: Duration,
    /// Work from the host's file system.
    pub cni_mode: bool,
    /// The namespace to work in.
    pub network_namespace: Option<String>,
    /// Replace rules of an earlier run that differ; without it, differing ones are an error.
    pub reconcile: bool,
    /// Remove what an earlier run left, and write nothing.
    pub cleanup_only: bool,
    /// Write rules that are there already.
    pub force_apply: bool,
    /// The iptables that is asked for; none lets the rules that are there decide.
    pub variant: ForcedVariant,
    /// How long to wait for locks.
    pub wait: Duration,
}

/// All settings, checked: the policy that they make, and what to do with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// What is captured, in no mesh's words.
    pub policy: CapturePolicy,
    /// How and where it is written, and what is done besides.
    pub options: Options,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Check everything that was typed against what the pod is like.
///
/// # Errors
/// All that is wrong, at once.
pub fn resolve(raw: &Raw, facts: &HostFacts) -> Result<Resolved, ConfigErrors> {
    let mut r = Resolver { raw, facts, reader: ValueReader::default(), warnings: Vec::new() };
    let options = r.options();
    let policy = r.policy(options.as_ref());
    let Resolver { reader, warnings, .. } = r;
    let (options, policy) = reader.finish(options.zip(policy))?;
    Ok(Resolved { policy, options, warnings })
}

struct Resolver<'a> {
    raw: &'a Raw,
    facts: &'a HostFacts,
    reader: ValueReader,
    warnings: Vec<String>,
}

impl Resolver<'_> {
    fn options(&mut self) -> Option<Options> {
        let raw = self.raw;
        let (probe_text, reader) = (raw.text("iptables-probe-port"), &mut self.reader);
        let probe_port = probe_text.value.parse().map_err(|e: crate::value::ValueError| {
            unreadable(reader, &probe_text, e.to_string());
        });
        let forced = raw.text("force-iptables-binary");
        let variant = match forced.value.as_str() {
            "" => None,
            "nft" => Some(Variant::Nft),
            "legacy" => Some(Variant::Legacy),
            other => {
                reader.wrong(&forced.source, other, "which iptables is legacy, nft or empty");
                None
            }
        };
        let text = |value: Sourced<String>| Some(value.value).filter(|v| !v.is_empty());
        Some(Options {
            native: raw.switch(reader, "native-nftables").value,
            ipv6_as_reference: raw.switch(reader, "ipv6-as-reference").value,
            dry_run: raw.switch(reader, "dry-run").value,
            dry_run_file: text(raw.variable("DRY_RUN_FILE_PATH")),
            skip_rule_apply: raw.switch(reader, "skip-rule-apply").value,
            run_validation: raw.switch(reader, "run-validation").value,
            probe_timeout: raw.duration(reader, "probe-timeout"),
            cni_mode: raw.switch(reader, "cni-mode").value,
            network_namespace: text(raw.text("network-namespace")),
            reconcile: raw.switch(reader, "reconcile").value,
            cleanup_only: raw.switch(reader, "cleanup-only").value,
            force_apply: raw.switch(reader, "force-apply").value,
            wait: raw.duration(reader, "wait"),
            probe_port: probe_port.ok()?,
            variant,
        })
    }

    fn policy(&mut self, options: Option<&Options>) -> Option<CapturePolicy> {
        let writes = options.is_some_and(|o| !o.dry_run && !o.cleanup_only && !o.skip_rule_apply);
        let ipv6 = self.ipv6(writes);
        let proxy = self.proxy();
        let inbound = self.inbound();
        let outbound = self.outbound(writes);
        let interfaces = Interfaces {
            excluded: self.reader.names(&self.raw.text("istio-exclude-interfaces")),
            rerouted: self.reader.names(&self.raw.text("kube-virt-interfaces")),
        };
        let loopback = self.raw.variable("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR");
        let localhost = parts::localhost(&mut self.reader, &loopback);
        let dns = self.dns();
        if let Some(dns) = dns.as_ref().filter(|dns| dns.scope.is_empty(ipv6.value)) {
            self.warnings.push(format!(
                "{}: DNS is not captured, since no server in /etc/resolv.conf is of a family that is",
                dns.source
            ));
        }
        let drop_invalid = self.raw.switch(&mut self.reader, "drop-invalid");
        Some(CapturePolicy {
            ipv6,
            proxy,
            inbound: inbound?,
            outbound: outbound?,
            interfaces,
            localhost: localhost?,
            dns,
            drop_invalid: drop_invalid.value.then_some(drop_invalid.source),
            conventions: Conventions::OWN,
        })
    }

    /// Whether IPv6 is captured. The reference looks at the first address only, unless it is
    /// told that the pod is dual-stack; a pod's other family then goes past the proxy.
    fn ipv6(&mut self, writes: bool) -> Sourced<bool> {
        let dual = self.raw.switch(&mut self.reader, "dual-stack");
        let as_reference = self.raw.switch(&mut self.reader, "ipv6-as-reference");
        let usable: Vec<Family> = self.facts.usable_addresses().map(Family::of).collect();
        let host = Source::Host("addresses".to_owned());
        if usable.is_empty() && writes {
            self.reader.wrong(
                &host,
                "",
                "no valid local IP address found: the pod needs an address that is neither \
                 loopback nor link-local before its traffic can be captured",
            );
        }
        let any = usable.contains(&Family::V6);
        let reference = any && (dual.value || usable.first() == Some(&Family::V6));
        if as_reference.value {
            if any && !reference {
                self.warnings.push(format!(
                    "the pod has an IPv6 address, and its IPv6 connections are not captured: {} \
                     asks for the reference's choice",
                    as_reference.source
                ));
            }
            return as_reference.with(reference);
        }
        if any && !reference {
            self.warnings.push(
                "the pod has an IPv6 address behind an IPv4 one: its IPv6 connections are \
                 captured too, which istio-iptables does only with --dual-stack"
                    .to_owned(),
            );
        }
        Sourced::new(any, if dual.value { dual.source } else { host })
    }

    fn proxy(&mut self) -> ProxyIdentity {
        let mut uid = self.raw.text("proxy-uid");
        if items(&uid.value).is_empty() {
            let user = self.raw.variable("ENVOY_USER");
            uid = match self.facts.users.get(&user.value) {
                Some(id) => user.with(id.to_string()),
                None => uid.with(PROXY_ID.to_string()),
            };
        }
        let gid = self.raw.text("proxy-gid");
        let any = self.raw.switch(&mut self.reader, "match-any-proxy-id");
        let uids: Vec<Sourced<Uid>> = self.reader.names(&uid);
        let gids: Vec<Sourced<Gid>> = if items(&gid.value).is_empty() {
            let same = |uid: &Sourced<Uid>| Gid::new(uid.value.get()).map(|id| gid.with(id));
            uids.iter().filter_map(same).collect()
        } else {
            self.reader.names(&gid)
        };
        let matching = if any.value { IdentityMatching::Any } else { IdentityMatching::OneByOne };
        if !any.value && uids.len() > 1 {
            self.warnings.push(format!(
                "several proxy user ids: rules in the form of istio-iptables make only the \
                 first one ({}) work; --match-any-proxy-id makes all of them work",
                uids[0].value
            ));
        }
        ProxyIdentity { uids, gids, matching, marks: None }
    }

    fn inbound(&mut self) -> Option<Inbound> {
        let raw = self.raw;
        let port = self.reader.one(&raw.text("inbound-capture-port"));
        let tunnel_port = self.reader.one(&raw.text("inbound-tunnel-port"));
        let mark = parts::mark(&mut self.reader, &raw.text("istio-inbound-tproxy-mark"));
        let table = self.reader.one(&raw.text("istio-inbound-tproxy-route-table"));
        let mode = raw.text("istio-inbound-interception-mode");
        if !["", "REDIRECT", "TPROXY"].contains(&mode.value.as_str()) {
            self.warnings.push(format!(
                "{}: {:?} means REDIRECT, as everything does that is not exactly TPROXY",
                mode.source, mode.value
            ));
        }
        let tproxy = mode.value == "TPROXY";
        let selection = parts::inbound(
            &mut self.reader,
            raw.text("istio-inbound-ports"),
            &raw.text("istio-local-exclude-ports"),
            Beside::None,
        );
        let mode = if tproxy {
            InboundMode::Tproxy { mark: mark?, table: table?, source: mode.source }
        } else {
            InboundMode::Redirect
        };
        Some(Inbound {
            port: port?,
            tunnel_port: Some(tunnel_port?),
            mode,
            selection,
            except_sources: Vec::new(),
            probes: Vec::new(),
        })
    }

    fn outbound(&mut self, writes: bool) -> Option<Outbound> {
        let raw = self.raw;
        let port = self.reader.one(&raw.text("envoy-port"));
        let networks = parts::networks(&mut self.reader, raw.text("istio-service-cidr"));
        let ports = self.reader.list(&raw.text("istio-outbound-ports"));
        let except_ports = self.reader.list(&raw.text("istio-local-outbound-ports-exclude"));
        let except_networks = self.reader.list(&raw.text("istio-service-exclude-cidr"));
        let groups = parts::groups(
            &mut self.reader,
            raw.variable("ISTIO_OUTBOUND_OWNER_GROUPS"),
            &raw.variable("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"),
            writes.then_some(&self.facts.groups),
        );
        Some(Outbound {
            port: port?,
            networks,
            ports,
            except_ports,
            except_networks,
            except_users: Vec::new(),
            except_flows: Vec::new(),
            localhost_to: None,
            groups,
        })
    }

    fn dns(&mut self) -> Option<DnsCapture> {
        let redirect = self.raw.switch(&mut self.reader, "redirect-dns");
        let all = self.raw.switch(&mut self.reader, "capture-all-dns");
        if !redirect.value {
            return None;
        }
        let scope = if all.value {
            DnsScope::All(all.source)
        } else {
            let servers = parts::resolvers(&mut self.reader, self.facts, &redirect.source)?;
            if servers.is_empty() {
                self.warnings.push(format!(
                    "{}: DNS is not captured, since /etc/resolv.conf names no server",
                    redirect.source
                ));
                return None;
            }
            DnsScope::Servers(servers)
        };
        let port = ListenPort::new(DNS_PORT)?;
        let port = Sourced::new(port, Source::Default("the DNS port".to_owned()));
        Some(DnsCapture { to: DnsTarget::Listener(port), source: redirect.source, scope })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_mode_that_is_none_means_redirect_with_a_warning() {
        let facts =
            HostFacts { addresses: vec!["10.0.0.1".parse().unwrap()], ..HostFacts::default() };
        let warned = |mode: &str| {
            let flags = [("istio-inbound-interception-mode".to_owned(), mode.to_owned())];
            let raw = Raw::new(flags, BTreeMap::new());
            let resolved = resolve(&raw, &facts).unwrap();
            assert_eq!(resolved.policy.inbound.mode == InboundMode::Redirect, mode != "TPROXY");
            resolved.warnings.iter().any(|warning| warning.contains("means REDIRECT"))
        };
        for mode in ["NONE", "none", "redirect", "tproxy"] {
            assert!(warned(mode), "{mode}");
        }
        assert!(!warned("REDIRECT") && !warned("TPROXY") && !warned(""));
    }
}
