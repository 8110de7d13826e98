//! A pod that its init container captures from inside: what that container is told, and where the
//! pod's annotations say otherwise.

use std::collections::{BTreeMap, BTreeSet};

use super::Raw;
use super::annotations::{
    AnnotationDef, EXCLUDE_INBOUND_PORTS, EXCLUDE_INTERFACES, EXCLUDE_OUTBOUND_NETWORKS,
    EXCLUDE_OUTBOUND_PORTS, INCLUDE_INBOUND_PORTS, INCLUDE_OUTBOUND_NETWORKS,
    INCLUDE_OUTBOUND_PORTS, INIT_CONTAINER, KUBEVIRT_INTERFACES, MODE, PROXY_PORTS,
    REROUTE_INTERFACES,
};
use super::flags::is_variable;
use crate::dialect::ValueReader;
use crate::dialect::init_container::{NotStated, words};
use crate::pod::{Container, Elsewhere, PodFacts};
use crate::policy::{CapturePolicy, InboundMode, InboundSelection, NetworkSelection};
use crate::source::Sourced;
use crate::value::{Port, PortRange};

/// The tool that writes the rules, and the name of its command.
const PROGRAM: &str = "istio-iptables";
/// The program's name may be a word of the program that it is part of: `pilot-agent istio-iptables`.
const BEFORE: usize = 2;
/// Switches of a run that writes no rules, or takes them away.
const WRITES_NOTHING: [&str; 3] = ["skip-rule-apply", "dry-run", "cleanup-only"];

/// The command line of the init container that captures a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitContainer {
    /// The words behind the program's name.
    pub words: Vec<String>,
    /// Variables of the container that the tool reads.
    pub env: BTreeMap<String, String>,
}

/// The command line of the pod's init container; none where it has no such container.
///
/// # Errors
/// When the manifest does not tell it.
pub fn init_container(pod: &PodFacts) -> Option<Result<InitContainer, NotStated>> {
    let container = pod.container(INIT_CONTAINER)?;
    Some(read(container))
}

fn read(container: &Container) -> Result<InitContainer, NotStated> {
    let words = words(container, &[PROGRAM], BEFORE)?;
    let elsewhere = |name: &String| NotStated::Elsewhere {
        container: container.name.clone(),
        source: Elsewhere(name.clone()),
    };
    // A whole ConfigMap may set anything.
    let matters = |name: &&String| name.ends_with('*') || is_variable(name);
    if let Some(name) = container.env_elsewhere.iter().find(matters) {
        return Err(elsewhere(name));
    }
    let mut env = BTreeMap::new();
    for (name, value) in container.env.iter().filter(|(name, _)| is_variable(name)) {
        if value.contains("$(") {
            return Err(elsewhere(name));
        }
        env.insert(name.clone(), value.clone());
    }
    Ok(InitContainer { words, env })
}

/// Which switch has a run write no rules, or take them away.
pub fn writes_nothing(raw: &Raw) -> Option<&'static str> {
    let mut reader = ValueReader::default();
    WRITES_NOTHING.into_iter().find(|name| raw.switch(&mut reader, name).value)
}

/// The annotations of a pod that say otherwise than this policy, which is what is written.
///
/// `annotated` is what the annotations mean.
pub fn contradictions(
    pod: &PodFacts,
    annotated: &CapturePolicy,
    written: &CapturePolicy,
) -> Vec<&'static str> {
    let (annotated, written) = (parts(annotated), parts(written));
    let differing = annotated.iter().zip(&written).filter(|(one, other)| one != other);
    let names = differing.flat_map(|((names, _), _)| names.iter().map(|def| def.name));
    names.filter(|name| pod.annotation(name).is_some()).collect()
}

/// The parts of a policy that annotations set, with these.
fn parts(policy: &CapturePolicy) -> [(&'static [AnnotationDef], String); 8] {
    // The proxy's own ports are left alone whatever anybody says.
    let ports = |list: &[Sourced<PortRange>]| {
        let own = PROXY_PORTS.map(|port| PortRange::from(Port::new(port)));
        let kept: Vec<_> = list.iter().filter(|port| !own.contains(&port.value)).cloned().collect();
        texts(&kept)
    };
    let (inbound, outbound) = (&policy.inbound, &policy.outbound);
    let mode = match &inbound.mode {
        InboundMode::Redirect => "REDIRECT",
        InboundMode::Tproxy { .. } => "TPROXY",
    };
    let selection = match &inbound.selection {
        InboundSelection::Nothing => "none".to_owned(),
        InboundSelection::Only { ports, .. } => texts(ports),
        InboundSelection::AllExcept { except, .. } => format!("all but {}", ports(except)),
    };
    let networks = match &outbound.networks {
        NetworkSelection::All(_) => "all".to_owned(),
        NetworkSelection::Only(list) => texts(list),
    };
    [
        (&[MODE], mode.to_owned()),
        (&[INCLUDE_INBOUND_PORTS, EXCLUDE_INBOUND_PORTS], selection),
        (&[INCLUDE_OUTBOUND_NETWORKS], networks),
        (&[EXCLUDE_OUTBOUND_NETWORKS], texts(&outbound.except_networks)),
        (&[INCLUDE_OUTBOUND_PORTS], texts(&outbound.ports)),
        (&[EXCLUDE_OUTBOUND_PORTS], ports(&outbound.except_ports)),
        (&[EXCLUDE_INTERFACES], texts(&policy.interfaces.excluded)),
        (&[REROUTE_INTERFACES, KUBEVIRT_INTERFACES], texts(&policy.interfaces.rerouted)),
    ]
}

/// A list in which neither order nor repetition counts.
fn texts<T: ToString>(list: &[Sourced<T>]) -> String {
    let set: BTreeSet<String> = list.iter().map(|item| item.value.to_string()).collect();
    set.into_iter().collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::super::annotations::{Defaults, policy};
    use super::*;

    fn container(command: &[&str], args: &[&str]) -> Container {
        let own = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect();
        Container {
            name: INIT_CONTAINER.to_owned(),
            init: true,
            command: own(command),
            args: own(args),
            ..Container::default()
        }
    }

    fn pod(annotations: &[(&str, &str)]) -> PodFacts {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        PodFacts { annotations: Some(annotations.iter().map(own).collect()), ..PodFacts::default() }
    }

    #[test]
    fn the_command_line_is_found() {
        for (command, args) in [
            (&[][..], &["istio-iptables", "-p", "1"][..]),
            (&[], &["-p", "1"]),
            (&["/usr/local/bin/pilot-agent"], &["istio-iptables", "-p", "1"]),
            (&["/usr/local/bin/pilot-agent", "istio-iptables"], &["-p", "1"]),
            (&["/usr/local/bin/istio-iptables", "-p"], &["1"]),
        ] {
            let found = read(&container(command, args)).unwrap();
            assert_eq!(found.words, ["-p", "1"], "{command:?} {args:?}");
        }
        for (command, args) in [
            (&["sh", "-c"][..], &["istio-iptables"][..]),
            (&[], &["validate"]),
            (&["own"], &["-p"]),
        ] {
            let error = read(&container(command, args)).unwrap_err();
            assert!(matches!(error, NotStated::Program { .. }), "{command:?} {args:?}");
        }
        assert_eq!(init_container(&pod(&[])), None);
    }

    #[test]
    fn what_the_manifest_does_not_tell_is_not_guessed() {
        let mut init = container(&[], &["istio-iptables", "-p", "$(PORT)"]);
        init.env.insert("PORT".to_owned(), "15099".to_owned());
        init.env.insert("ISTIO_META_DNS_CAPTURE".to_owned(), "true".to_owned());
        init.env_elsewhere = vec!["POD_NAME".to_owned()];
        let found = read(&init).unwrap();
        assert_eq!(found.words, ["-p", "15099"]);
        assert_eq!(found.env.keys().collect::<Vec<_>>(), ["ISTIO_META_DNS_CAPTURE"]);
        for name in ["INVALID_DROP", "*"] {
            let mut init = init.clone();
            init.env_elsewhere.push(name.to_owned());
            let error = read(&init).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(INIT_CONTAINER), "{error}");
        }
        init.env.insert("ISTIO_META_DNS_CAPTURE".to_owned(), "$(POD_NAME)".to_owned());
        assert!(matches!(read(&init), Err(NotStated::Elsewhere { .. })));
    }

    #[test]
    fn a_run_that_writes_nothing_is_known() {
        let of = |name: &str, value: &str| {
            writes_nothing(&Raw::new([(name.to_owned(), value.to_owned())], BTreeMap::new()))
        };
        assert_eq!(of("skip-rule-apply", "true"), Some("skip-rule-apply"));
        assert_eq!(of("cleanup-only", "1"), Some("cleanup-only"));
        assert_eq!(of("skip-rule-apply", "false"), None);
        assert_eq!(of("run-validation", "true"), None);
        let env = BTreeMap::from([("DRY_RUN".to_owned(), "true".to_owned())]);
        assert_eq!(writes_nothing(&Raw::new([], env)), Some("dry-run"));
    }

    #[test]
    fn annotations_that_say_otherwise_are_named() {
        let made = |annotations: &[(&str, &str)]| {
            policy(&pod(annotations), &Defaults::default()).unwrap().policy
        };
        let written = made(&[(EXCLUDE_OUTBOUND_NETWORKS.name, "10.0.0.0/8")]);
        let same = [(EXCLUDE_INBOUND_PORTS.name, "15020"), (MODE.name, "REDIRECT")];
        assert!(contradictions(&pod(&same), &made(&same), &written).is_empty());
        for (name, value) in [
            (MODE.name, "TPROXY"),
            (INCLUDE_INBOUND_PORTS.name, ""),
            (EXCLUDE_INBOUND_PORTS.name, "80"),
            (INCLUDE_OUTBOUND_NETWORKS.name, "11.0.0.0/8"),
            (EXCLUDE_OUTBOUND_NETWORKS.name, ""),
            (INCLUDE_OUTBOUND_PORTS.name, "80"),
            (EXCLUDE_OUTBOUND_PORTS.name, "80"),
            (EXCLUDE_INTERFACES.name, "net1"),
            (KUBEVIRT_INTERFACES.name, "net1"),
        ] {
            let own = [(name, value)];
            assert_eq!(contradictions(&pod(&own), &made(&own), &written), [name], "{name}");
        }
    }
}
