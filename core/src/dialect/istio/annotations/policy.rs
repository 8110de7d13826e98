//! From a pod's annotations and its proxy's container to a policy.

use std::collections::BTreeMap;

use super::decide::DISABLE;
use super::injected::proxy_metadata;
use super::lists::{interfaces, networks, ports, text};
use super::{
    EXCLUDE_INBOUND_PORTS, EXCLUDE_INTERFACES, EXCLUDE_OUTBOUND_NETWORKS, EXCLUDE_OUTBOUND_PORTS,
    INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_NETWORKS, INCLUDE_OUTBOUND_PORTS, KUBEVIRT_INTERFACES,
    MODE, PROXY_CONFIG, PROXY_CONTAINER, REROUTE_INTERFACES,
};
use crate::dialect::error::ConfigErrors;
use crate::dialect::istio::resolve::{DNS_PORT, PROXY_ID};
use crate::dialect::istio::{Raw, TPROXY_DEFAULTS, parse_bool};
use crate::dialect::{ValueReader, parts};
use crate::pod::{Container, PodFacts};
use crate::policy::{
    CapturePolicy, Conventions, DnsCapture, DnsScope, DnsTarget, IdentityMatching, Inbound,
    InboundMode, InboundSelection, Interfaces, NetworkSelection, Outbound, ProxyIdentity,
};
use crate::source::{Source, Sourced};
use crate::value::{Gid, ListenPort, Mark, Port, PortRange, RouteTable, Uid};

const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;
const TUNNEL_PORT: u16 = 15008;
/// Inbound ports of the proxy itself: merged metrics, health, metrics.
pub(in crate::dialect::istio) const PROXY_PORTS: [u16; 3] = [15020, 15021, 15090];

/// What holds where a pod doesn't say otherwise, or where it is not known what it says.
#[derive(Clone, Debug, Default)]
pub struct Defaults {
    /// The proxy's user, where its container is not known.
    pub uid: Option<Sourced<Uid>>,
    /// The proxy's group, where its container is not known.
    pub gid: Option<Sourced<Gid>>,
    /// The proxy's variables, where its container is not known; annotations come on top.
    pub proxy_env: BTreeMap<String, Sourced<String>>,
    /// The variables of the program itself: `ISTIO_OUTBOUND_OWNER_GROUPS`,
    /// `ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE` and `ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR`.
    pub env: BTreeMap<String, String>,
}

/// How a pod is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// What is captured, in no mesh's words.
    pub policy: CapturePolicy,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// The policy of a pod that is captured. Both families always are: a pod may get an address later.
///
/// # Errors
/// All annotations that are wrong, at once.
pub fn policy(pod: &PodFacts, defaults: &Defaults) -> Result<Captured, ConfigErrors> {
    let container = pod.container(PROXY_CONTAINER);
    let mut maker =
        Maker { pod, container, defaults, reader: ValueReader::default(), warnings: Vec::new() };
    let policy = maker.policy();
    let Maker { reader, warnings, .. } = maker;
    let policy = reader.finish(policy)?;
    Ok(Captured { policy, warnings })
}

struct Maker<'a> {
    pod: &'a PodFacts,
    container: Option<&'a Container>,
    defaults: &'a Defaults,
    reader: ValueReader,
    warnings: Vec<String>,
}

impl Maker<'_> {
    fn policy(&mut self) -> Option<CapturePolicy> {
        let environment = Raw::new([], self.defaults.env.clone());
        let inbound = self.inbound();
        let interfaces = self.interfaces();
        let outbound = self.outbound(&environment);
        let loopback = environment.variable("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR");
        let localhost = parts::localhost(&mut self.reader, &loopback);
        let variables = self.variables();
        let dns = self.switch(&variables, "ISTIO_META_DNS_CAPTURE").and_then(dns);
        let drop_invalid = self.switch(&variables, "INVALID_DROP");
        // Whether the proxy is off was decided before; what can't be known or meant is said.
        let _off = self.switch(&variables, DISABLE);
        Some(CapturePolicy {
            ipv6: Sourced::new(true, Source::Always),
            proxy: self.proxy()?,
            inbound: inbound?,
            outbound: outbound?,
            interfaces,
            localhost: localhost?,
            dns,
            drop_invalid,
            conventions: Conventions::OWN,
        })
    }

    fn inbound(&mut self) -> Option<Inbound> {
        let mode = text(self.pod, &MODE);
        let mode = match mode.value.as_str() {
            "REDIRECT" => Some(InboundMode::Redirect),
            "TPROXY" => {
                let own = |value| Source::Default(value);
                let (mark, table) = TPROXY_DEFAULTS;
                Some(InboundMode::Tproxy {
                    mark: Sourced::new(Mark::new(mark)?, own("the TPROXY mark".to_owned())),
                    table: Sourced::new(
                        RouteTable::new(table)?,
                        own("the TPROXY routing table".to_owned()),
                    ),
                    source: mode.source,
                })
            }
            other => {
                let expected = "the mode is REDIRECT or TPROXY; a pod that is not to be captured \
                                is one without a sidecar";
                self.reader.wrong(&mode.source, other, expected);
                None
            }
        };
        let include = text(self.pod, &INCLUDE_INBOUND_PORTS);
        let except = text(self.pod, &EXCLUDE_INBOUND_PORTS);
        let mut except = ports(&mut self.reader, &except);
        for port in PROXY_PORTS.map(|port| PortRange::from(Port::new(port))) {
            if !except.iter().any(|e| e.value == port) {
                except.push(Sourced::new(port, Source::Always));
            }
        }
        let selection = if include.value.trim() == "*" {
            InboundSelection::AllExcept { source: include.source, except }
        } else if include.value.trim().is_empty() {
            InboundSelection::Nothing
        } else {
            // The injector hands exclusions on only where everything is captured.
            let ports = ports(&mut self.reader, &include);
            InboundSelection::Only { ports, except: Vec::new() }
        };
        Some(Inbound {
            port: fixed(INBOUND_PORT, "the inbound port")?,
            tunnel_port: Some(fixed(TUNNEL_PORT, "the tunnel port")?),
            mode: mode?,
            selection,
            except_sources: Vec::new(),
            probes: Vec::new(),
        })
    }

    fn outbound(&mut self, environment: &Raw) -> Option<Outbound> {
        let include = text(self.pod, &INCLUDE_OUTBOUND_NETWORKS);
        let included = match include.value.as_str() {
            "*" => NetworkSelection::All(include.source),
            _ => NetworkSelection::Only(networks(&mut self.reader, &include)),
        };
        let (pod, reader) = (self.pod, &mut self.reader);
        Some(Outbound {
            port: fixed(OUTBOUND_PORT, "the outbound port")?,
            networks: included,
            ports: ports(reader, &text(pod, &INCLUDE_OUTBOUND_PORTS)),
            except_ports: ports(reader, &text(pod, &EXCLUDE_OUTBOUND_PORTS)),
            except_networks: networks(reader, &text(pod, &EXCLUDE_OUTBOUND_NETWORKS)),
            except_users: Vec::new(),
            except_flows: Vec::new(),
            localhost_to: None,
            groups: parts::groups(
                reader,
                environment.variable("ISTIO_OUTBOUND_OWNER_GROUPS"),
                &environment.variable("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE"),
                None,
            ),
        })
    }

    fn interfaces(&mut self) -> Interfaces {
        let newer = self.pod.annotation(REROUTE_INTERFACES.name).is_some();
        let reroute = if newer { REROUTE_INTERFACES } else { KUBEVIRT_INTERFACES };
        Interfaces {
            excluded: interfaces(&mut self.reader, &text(self.pod, &EXCLUDE_INTERFACES)),
            rerouted: interfaces(&mut self.reader, &text(self.pod, &reroute)),
        }
    }

    /// The proxy's ids. The reference takes 0 for «not set».
    fn proxy(&mut self) -> Option<ProxyIdentity> {
        let uid = self.id("runAsUser", |c| c.user, self.defaults.uid.as_ref(), Uid::new)?;
        let gid = self.id("runAsGroup", |c| c.group, self.defaults.gid.as_ref(), Gid::new)?;
        let matching = IdentityMatching::OneByOne;
        Some(ProxyIdentity { uids: vec![uid], gids: vec![gid], matching, marks: None })
    }

    fn id<T: Copy>(
        &mut self,
        field: &str,
        of: impl Fn(&Container) -> Option<u32>,
        default: Option<&Sourced<T>>,
        new: impl Fn(u32) -> Option<T>,
    ) -> Option<Sourced<T>> {
        let own = || Some(Sourced::new(new(PROXY_ID)?, Source::Default(field.to_owned())));
        let Some(container) = self.container else { return default.cloned().or_else(own) };
        let source = Source::Host(format!("container {PROXY_CONTAINER}, {field}"));
        match of(container) {
            None => own(),
            Some(0) => {
                self.warnings.push(format!(
                    "{source} is 0, which is taken for {PROXY_ID}: a proxy that really runs as \
                     root has its own connections captured"
                ));
                own()
            }
            Some(number) => {
                let id = new(number);
                if id.is_none() {
                    let expected = "an id is a number from 1 to 4294967294";
                    self.reader.wrong(&source, &number.to_string(), expected);
                }
                id.map(|id| Sourced::new(id, source))
            }
        }
    }

    /// The proxy's variables: its container's; where that is not known, those that an annotation
    /// gives it, on top of the node's.
    fn variables(&mut self) -> BTreeMap<String, Sourced<String>> {
        if let Some(container) = self.container {
            let from =
                |name: &str| Source::Host(format!("container {PROXY_CONTAINER}, variable {name}"));
            let own = |(name, value): (&String, &String)| {
                (name.clone(), Sourced::new(value.clone(), from(name)))
            };
            return container.env.iter().map(own).collect();
        }
        let mut variables = self.defaults.proxy_env.clone();
        match proxy_metadata(self.pod) {
            Ok(metadata) => {
                let source = Source::Annotation(PROXY_CONFIG.to_owned());
                for (name, value) in metadata {
                    variables.insert(name, Sourced::new(value, source.clone()));
                }
            }
            Err(error) => self.warnings.push(format!(
                "annotation {PROXY_CONFIG} can't be read, so it sets no variable: {error}"
            )),
        }
        variables
    }

    /// Who switched a variable on; what is neither true nor false is no word, and neither is what
    /// the pod's manifest does not tell.
    fn switch(
        &mut self,
        variables: &BTreeMap<String, Sourced<String>>,
        name: &str,
    ) -> Option<Source> {
        if let Some(container) = self.container.filter(|container| container.is_elsewhere(name)) {
            let listed = container.env_elsewhere.iter().any(|other| other == name);
            let how = if listed { "has its value" } else { "may have a value" };
            self.warnings.push(format!(
                "container {PROXY_CONTAINER}, variable {name}: it {how} from elsewhere ({}), which \
                 is not known, and is taken for false",
                if listed { "valueFrom" } else { "envFrom" }
            ));
        }
        let text = variables.get(name).filter(|text| !text.value.is_empty())?;
        match parse_bool(&text.value) {
            Ok(on) => on.then(|| text.source.clone()),
            Err(error) => {
                let (source, value) = (&text.source, &text.value);
                self.warnings
                    .push(format!("{source}: {name} is {value:?}, which is ignored: {error}"));
                None
            }
        }
    }
}

fn fixed(port: u16, what: &str) -> Option<Sourced<ListenPort>> {
    Some(Sourced::new(ListenPort::new(port)?, Source::Default(what.to_owned())))
}

fn dns(source: Source) -> Option<DnsCapture> {
    let port = fixed(DNS_PORT, "the DNS port")?;
    let scope = DnsScope::All(source.clone());
    Some(DnsCapture { to: DnsTarget::Listener(port), source, scope })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::GroupSelection;

    fn pod(annotations: &[(&str, &str)]) -> PodFacts {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        PodFacts { annotations: Some(annotations.iter().map(own).collect()), ..PodFacts::default() }
    }

    fn made(annotations: &[(&str, &str)]) -> CapturePolicy {
        policy(&pod(annotations), &Defaults::default()).unwrap().policy
    }

    fn numbers(ports: &[Sourced<PortRange>]) -> Vec<u16> {
        ports.iter().map(|p| p.value.first().get()).collect()
    }

    #[test]
    fn a_pod_without_annotations_gets_the_defaults() {
        let policy = made(&[]);
        assert!(policy.ipv6.value);
        assert_eq!(policy.proxy.uids[0].value.get(), 1337);
        assert_eq!(policy.proxy.gids[0].value.get(), 1337);
        assert_eq!(policy.inbound.mode, InboundMode::Redirect);
        let InboundSelection::AllExcept { source, except } = &policy.inbound.selection else {
            panic!("every port is captured");
        };
        assert_eq!(*source, Source::Default(INCLUDE_INBOUND_PORTS.name.to_owned()));
        assert_eq!(numbers(except), [15020, 15021, 15090]);
        assert_eq!(numbers(&policy.outbound.except_ports), [15020]);
        assert!(matches!(policy.outbound.groups, GroupSelection::AllExcept(_)));
        assert!(policy.dns.is_none() && policy.drop_invalid.is_none());
    }

    #[test]
    fn every_value_knows_its_annotation() {
        let policy = made(&[
            (EXCLUDE_INBOUND_PORTS.name, "80, 15021"),
            (EXCLUDE_OUTBOUND_NETWORKS.name, "10.0.0.0/8,fd00::/8"),
            (EXCLUDE_INTERFACES.name, "eth1, net1.5"),
            (KUBEVIRT_INTERFACES.name, "old0"),
            (REROUTE_INTERFACES.name, "new0"),
        ]);
        let InboundSelection::AllExcept { except, .. } = &policy.inbound.selection else {
            panic!("every port is captured");
        };
        assert_eq!(numbers(except), [80, 15021, 15020, 15090]);
        assert_eq!(except[1].source, Source::Annotation(EXCLUDE_INBOUND_PORTS.name.to_owned()));
        assert_eq!(except[2].source, Source::Always);
        assert_eq!(policy.outbound.except_networks.len(), 2);
        let excluded: Vec<&str> =
            policy.interfaces.excluded.iter().map(|i| i.value.as_str()).collect();
        assert_eq!(excluded, ["eth1", "net1.5"]);
        assert_eq!(policy.interfaces.rerouted.len(), 1);
        assert_eq!(policy.interfaces.rerouted[0].value.as_str(), "new0");
    }

    #[test]
    fn every_bad_value_is_told_with_its_annotation() {
        let bad = [
            (MODE.name, "NONE"),
            (INCLUDE_OUTBOUND_NETWORKS.name, "10.0.0.0/33"),
            (EXCLUDE_OUTBOUND_NETWORKS.name, "10.0.0.0/8, 11.0.0.0/8"),
            (INCLUDE_INBOUND_PORTS.name, "80,http"),
            (EXCLUDE_INBOUND_PORTS.name, "80,"),
            (INCLUDE_OUTBOUND_PORTS.name, "65536"),
            (EXCLUDE_OUTBOUND_PORTS.name, "80 -j ACCEPT"),
            (EXCLUDE_INTERFACES.name, "eth0;reboot"),
            (REROUTE_INTERFACES.name, "1234567890123456"),
        ];
        let errors = policy(&pod(&bad), &Defaults::default()).unwrap_err();
        for (name, _) in bad {
            let source = Source::Annotation(name.to_owned());
            assert_eq!(errors.0.iter().filter(|e| e.source_name == source).count(), 1, "{name}");
        }
        assert_eq!(errors.0.len(), bad.len());
        assert!(errors.to_string().contains(
            "annotation traffic.sidecar.istio.io/excludeOutboundPorts: \"80 -j ACCEPT\": a port is"
        ));
        // `*` means all only by itself, and never excludes.
        for (name, value) in [
            (EXCLUDE_OUTBOUND_NETWORKS.name, "*"),
            (INCLUDE_OUTBOUND_NETWORKS.name, "*,10.0.0.0/8"),
            (EXCLUDE_INBOUND_PORTS.name, "*"),
        ] {
            assert!(policy(&pod(&[(name, value)]), &Defaults::default()).is_err(), "{name}");
        }
    }

    #[test]
    fn an_empty_list_is_a_list() {
        let policy =
            made(&[(INCLUDE_INBOUND_PORTS.name, ""), (INCLUDE_OUTBOUND_NETWORKS.name, "")]);
        assert_eq!(policy.inbound.selection, InboundSelection::Nothing);
        assert_eq!(policy.outbound.networks, NetworkSelection::Only(Vec::new()));
    }

    #[test]
    fn variables_come_from_the_container_else_from_the_annotation_else_from_the_node() {
        let key = "ISTIO_META_DNS_CAPTURE".to_owned();
        let node = Source::File("proxy_env".to_owned());
        let defaults = Defaults {
            proxy_env: BTreeMap::from([(
                key.clone(),
                Sourced::new("true".to_owned(), node.clone()),
            )]),
            ..Defaults::default()
        };
        let source = |pod: &PodFacts| policy(pod, &defaults).unwrap().policy.dns.map(|d| d.source);
        assert_eq!(source(&pod(&[])), Some(node));
        let off = "proxyMetadata:\n  ISTIO_META_DNS_CAPTURE: \"false\"\n";
        assert_eq!(source(&pod(&[(PROXY_CONFIG, off)])), None);
        let proxy = Container {
            name: PROXY_CONTAINER.to_owned(),
            env: BTreeMap::from([(key, "1".to_owned())]),
            user: Some(0),
            group: Some(5),
            ..Container::default()
        };
        let known = PodFacts { containers: Some(vec![proxy]), ..pod(&[(PROXY_CONFIG, off)]) };
        assert!(source(&known).unwrap().to_string().contains("variable ISTIO_META_DNS_CAPTURE"));
        let captured = policy(&known, &defaults).unwrap();
        assert_eq!(captured.policy.proxy.uids[0].value.get(), 1337);
        assert_eq!(captured.policy.proxy.gids[0].value.get(), 5);
        assert!(captured.warnings[0].contains("runAsUser is 0"));
    }

    #[test]
    fn what_a_variable_has_from_elsewhere_is_a_warning_by_its_name() {
        const SWITCHES: [&str; 3] = ["ISTIO_META_DNS_CAPTURE", "INVALID_DROP", "DISABLE_ENVOY"];
        let warned = |env: &[&str], elsewhere: &[&str]| {
            let own = |name: &&str| ((*name).to_owned(), "true".to_owned());
            let proxy = Container {
                name: PROXY_CONTAINER.to_owned(),
                env: env.iter().map(own).collect(),
                env_elsewhere: elsewhere.iter().map(|name| (*name).to_owned()).collect(),
                ..Container::default()
            };
            let known = PodFacts { containers: Some(vec![proxy]), ..pod(&[]) };
            policy(&known, &Defaults::default()).unwrap().warnings
        };
        for name in SWITCHES {
            let warnings = warned(&[], &["POD_NAME", name]);
            assert_eq!(warnings.len(), 1, "{warnings:?}");
            assert!(warnings[0].contains(name) && warnings[0].contains("(valueFrom)"), "{name}");
        }
        let warnings = warned(&[], &["*"]);
        assert!(SWITCHES.iter().zip(&warnings).all(|(name, warning)| warning.contains(name)));
        assert!(warnings.iter().all(|warning| warning.contains("may have a value from elsewhere")));
        assert_eq!(warned(&[], &["ISTIO_META_"]), Vec::<String>::new());
        assert_eq!(warned(&[], &["ISTIO_META_*"]).len(), 1);
        // A value of its own counts.
        assert_eq!(warned(&SWITCHES, &["*"]), Vec::<String>::new());
    }

    #[test]
    fn a_switch_that_is_no_switch_is_a_warning() {
        let text = "proxyMetadata: {INVALID_DROP: \"yes\"}";
        let captured = policy(&pod(&[(PROXY_CONFIG, text)]), &Defaults::default()).unwrap();
        assert!(captured.policy.drop_invalid.is_none());
        assert!(captured.warnings[0].contains("INVALID_DROP is \"yes\""));
        let broken = policy(&pod(&[(PROXY_CONFIG, "{")]), &Defaults::default()).unwrap();
        assert!(broken.warnings[0].contains(PROXY_CONFIG));
    }
}
