//! Who is captured: the reference's checks in its order, each only where what it asks is known.

use std::collections::BTreeMap;
use std::fmt;

use super::injected::{Injected, injected, proxy_metadata};
use super::{INIT_CONTAINER, INJECT, PROXY_CONFIG, PROXY_CONTAINER, STATUS};
use crate::dialect::istio::parse_bool;
use crate::pod::{Container, Elsewhere, PodFacts, expand};

/// The names of the pods that the reference's own node agent runs in begin so.
const AGENT_PREFIX: &str = "istio-cni-node-";
/// The variable that switches a proxy off.
pub(super) const DISABLE: &str = "DISABLE_ENVOY";
/// What a proxy is that takes what is sent to it, and that nothing is captured for (Istio,
/// `model.NodeType`; `ingress` in releases before 1.5).
const NO_SIDECARS: [&str; 4] = ["router", "waypoint", "ztunnel", "ingress"];

/// What holds for every pod of a node.
#[derive(Clone, Copy, Debug, Default)]
pub struct Node<'a> {
    /// Namespaces whose pods are left alone.
    pub excluded_namespaces: &'a [String],
    /// The namespace of the node agent.
    pub agent_namespace: Option<&'a str>,
}

/// What is to be done with a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is not captured, and this is why.
    Pass(Passed),
    /// It is captured, by the settings that its annotations say.
    Capture,
    /// It may have to be captured: somebody has to be asked.
    Ask(Unknown),
}

/// Why a pod is not captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passed {
    /// It is no pod of Kubernetes.
    NoPod,
    /// Its namespace, named here, is one of those that the node excludes.
    Namespace(String),
    /// It is the node agent.
    Agent,
    /// A container captures it from inside.
    InitContainer,
    /// Its proxy is switched off.
    Disabled,
    /// None of its containers is called `istio-proxy`.
    NoProxy,
    /// Its proxy is no sidecar, but this.
    NoSidecar(String),
    /// Its label (true) or annotation (false) says that it is to have no proxy.
    Refused {
        /// Whether the label says so.
        label: bool,
    },
    /// The injector has not been here.
    NotInjected,
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoPod => f.write_str("it is no pod of Kubernetes: CNI_ARGS names none"),
            Self::Namespace(name) => write!(f, "namespace {name} is excluded"),
            Self::Agent => f.write_str("it is the node agent's own pod"),
            Self::InitContainer => {
                write!(f, "its init container {INIT_CONTAINER} captures it from inside")
            }
            Self::Disabled => {
                write!(f, "{DISABLE} switches its container {PROXY_CONTAINER} off")
            }
            Self::NoProxy => write!(f, "it has no container {PROXY_CONTAINER}"),
            Self::NoSidecar(kind) => write!(f, "its proxy is a {kind:?} and no sidecar"),
            Self::Refused { label } => {
                let what = if *label { "label" } else { "annotation" };
                write!(f, "its {what} {INJECT} says that it is to have no proxy")
            }
            Self::NotInjected => {
                write!(f, "no proxy was injected: it has no annotation {STATUS}")
            }
        }
    }
}

/// What has to be known before it can be decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The annotations: the container runtime gives none.
    Annotations,
    /// The labels: the annotation that they may contradict says that there is to be no proxy.
    Labels,
    /// The containers: the status annotation does not tell them.
    Containers,
    /// The containers: an annotation gives the proxy a variable that switches it off.
    Disabled,
    /// What kind of proxy it has: its container is known, and does not tell.
    Role {
        /// The argument that says it, as it is written.
        word: String,
        /// The variable that it needs, where that has its value from elsewhere.
        from: Option<Elsewhere>,
    },
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Annotations => f.write_str("the container runtime gives no annotations"),
            Self::Labels => write!(
                f,
                "annotation {INJECT} says that it is to have no proxy, {STATUS} says that it has \
                 one, and its labels are not known"
            ),
            Self::Containers => {
                write!(f, "annotation {STATUS} does not tell what was injected")
            }
            Self::Disabled => write!(
                f,
                "annotation {PROXY_CONFIG} switches the proxy off with {DISABLE}, and its \
                 container is not known"
            ),
            Self::Role { word, from } => {
                write!(
                    f,
                    "whether its proxy is a sidecar can't be told: container {PROXY_CONTAINER} has \
                     the arguments \"proxy\" and {word:?}, "
                )?;
                match from {
                    Some(elsewhere) => write!(f, "and {elsewhere}"),
                    None => write!(
                        f,
                        "and a proxy is a sidecar, or one of {}, for which nothing is captured",
                        NO_SIDECARS.join(", ")
                    ),
                }?;
                f.write_str("; write its role into the arguments")
            }
        }
    }
}

impl Unknown {
    /// Whether somebody who is asked for the pod may tell it: otherwise they did, and it is not in
    /// what they told.
    pub const fn may_be_reported(&self) -> bool {
        !matches!(self, Self::Role { .. })
    }
}

/// Decide about a pod by what is known of it.
pub fn decide(pod: &PodFacts, node: Node<'_>) -> Decision {
    let (Some(name), Some(namespace)) = (filled(pod.name.as_ref()), filled(pod.namespace.as_ref()))
    else {
        return Decision::Pass(Passed::NoPod);
    };
    if name.starts_with(AGENT_PREFIX) && node.agent_namespace == Some(namespace) {
        return Decision::Pass(Passed::Agent);
    }
    if node.excluded_namespaces.iter().any(|n| n == namespace) {
        return Decision::Pass(Passed::Namespace(namespace.to_owned()));
    }
    decide_by_contents(pod)
}

/// Decide about a pod by its annotations, labels and containers alone, whatever it is called.
pub fn decide_by_contents(pod: &PodFacts) -> Decision {
    if pod.annotations.is_none() {
        return Decision::Ask(Unknown::Annotations);
    }
    match &pod.containers {
        Some(containers) => {
            if let Some(passed) = by_containers(containers) {
                return Decision::Pass(passed);
            }
        }
        None if pod.annotation(STATUS).is_none() => return Decision::Pass(Passed::NotInjected),
        None => match injected(pod) {
            Injected::InitContainer => return Decision::Pass(Passed::InitContainer),
            Injected::Unclear => return Decision::Ask(Unknown::Containers),
            Injected::Sidecar if proxy_metadata(pod).is_ok_and(|env| is_off(&env)) => {
                return Decision::Ask(Unknown::Disabled);
            }
            Injected::Sidecar => {}
        },
    }
    if let Some(decision) = by_wish(pod) {
        return decision;
    }
    if pod.annotation(STATUS).is_none() {
        return Decision::Pass(Passed::NotInjected);
    }
    match pod.container(PROXY_CONTAINER).map(role) {
        Some(Role::Unclear(unknown)) => Decision::Ask(unknown),
        _ => Decision::Capture,
    }
}

fn filled(text: Option<&String>) -> Option<&str> {
    text.map(String::as_str).filter(|text| !text.is_empty())
}

fn by_containers(containers: &[Container]) -> Option<Passed> {
    if containers.iter().any(|c| c.name == INIT_CONTAINER) {
        return Some(Passed::InitContainer);
    }
    let Some(proxy) = containers.iter().find(|c| c.name == PROXY_CONTAINER) else {
        return Some(Passed::NoProxy);
    };
    if is_off(&proxy.env) {
        return Some(Passed::Disabled);
    }
    match role(proxy) {
        Role::Other(kind) => Some(Passed::NoSidecar(kind)),
        Role::Sidecar | Role::Unclear(_) => None,
    }
}

/// What a proxy is.
enum Role {
    Sidecar,
    /// This, which takes only what is sent to it.
    Other(String),
    Unclear(Unknown),
}

/// What a container's arguments say, as the kubelet hands them over. A proxy is a sidecar if they
/// say nothing.
fn role(proxy: &Container) -> Role {
    let [first, word, ..] = proxy.args.as_slice() else { return Role::Sidecar };
    if expand(first, proxy).as_deref() != Ok("proxy") {
        return Role::Sidecar;
    }
    let unclear = |from| Role::Unclear(Unknown::Role { word: word.clone(), from });
    match expand(word, proxy) {
        Ok(kind) if ["sidecar", ""].contains(&kind.as_str()) => Role::Sidecar,
        Ok(kind) if NO_SIDECARS.contains(&kind.as_str()) => Role::Other(kind),
        Ok(_) => unclear(None),
        Err(elsewhere) => unclear(Some(elsewhere)),
    }
}

/// Whether a proxy with these variables is switched off.
fn is_off(env: &BTreeMap<String, String>) -> bool {
    env.get(DISABLE).is_some_and(|text| parse_bool(text) == Ok(true))
}

/// The label counts, then the annotation; what is neither true nor false is no word.
fn by_wish(pod: &PodFacts) -> Option<Decision> {
    let label = pod.labels.as_ref().map(|labels| labels.get(INJECT));
    let wish = match label.flatten() {
        Some(text) => parse_bool(text).ok().map(|on| (on, true)),
        None => pod.annotation(INJECT).and_then(|text| parse_bool(text).ok()).map(|on| (on, false)),
    };
    match (wish, &pod.labels) {
        (Some((false, false)), None) => Some(Decision::Ask(Unknown::Labels)),
        (Some((false, label)), _) => Some(Decision::Pass(Passed::Refused { label })),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIDECAR: &str = r#"{"containers":["istio-proxy"]}"#;

    fn pod(annotations: &[(&str, &str)]) -> PodFacts {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        PodFacts {
            name: Some("a".to_owned()),
            namespace: Some("b".to_owned()),
            annotations: Some(annotations.iter().map(own).collect()),
            ..PodFacts::default()
        }
    }

    fn with(annotations: &[(&str, &str)], containers: &[&Container]) -> PodFacts {
        PodFacts {
            labels: Some(BTreeMap::new()),
            containers: Some(containers.iter().map(|c| (*c).clone()).collect()),
            ..pod(annotations)
        }
    }

    fn container(name: &str) -> Container {
        Container { name: name.to_owned(), ..Container::default() }
    }

    fn decided(pod: &PodFacts) -> Decision {
        decide(pod, Node::default())
    }

    #[test]
    fn annotations_alone_tell_most() {
        assert_eq!(decided(&pod(&[])), Decision::Pass(Passed::NotInjected));
        assert_eq!(decided(&pod(&[(STATUS, SIDECAR)])), Decision::Capture);
        assert_eq!(decided(&pod(&[(STATUS, "true")])), Decision::Ask(Unknown::Containers));
        let off = "proxyMetadata: {DISABLE_ENVOY: \"true\"}";
        let off = pod(&[(STATUS, SIDECAR), (PROXY_CONFIG, off)]);
        assert_eq!(decided(&off), Decision::Ask(Unknown::Disabled));
        let refused = pod(&[(STATUS, SIDECAR), (INJECT, "false")]);
        assert_eq!(decided(&refused), Decision::Ask(Unknown::Labels));
        let unknown = PodFacts { annotations: None, ..pod(&[]) };
        assert_eq!(decided(&unknown), Decision::Ask(Unknown::Annotations));
    }

    #[test]
    fn who_it_is_comes_before_what_is_in_it() {
        let unknown = PodFacts { annotations: None, ..pod(&[]) };
        let excluded = vec!["kube-system".to_owned(), "b".to_owned()];
        let node = Node { excluded_namespaces: &excluded, agent_namespace: Some("b") };
        assert_eq!(decide(&unknown, node), Decision::Pass(Passed::Namespace("b".to_owned())));
        let agent = PodFacts { name: Some("istio-cni-node-x".to_owned()), ..unknown.clone() };
        assert_eq!(decide(&agent, node), Decision::Pass(Passed::Agent));
        for nameless in [None, Some(String::new())] {
            let nobody = PodFacts { namespace: nameless, ..unknown.clone() };
            assert_eq!(decide(&nobody, node), Decision::Pass(Passed::NoPod));
        }
    }

    #[test]
    fn containers_are_checked_in_the_references_order() {
        let proxy = container(PROXY_CONTAINER);
        let status = [(STATUS, "true")];
        assert_eq!(decided(&with(&status, &[&proxy])), Decision::Capture);
        assert_eq!(decided(&with(&[], &[&proxy])), Decision::Pass(Passed::NotInjected));
        let init = container(INIT_CONTAINER);
        assert_eq!(
            decided(&with(&status, &[&init, &proxy])),
            Decision::Pass(Passed::InitContainer)
        );
        let app = container("app");
        assert_eq!(decided(&with(&status, &[&app])), Decision::Pass(Passed::NoProxy));
        let mut off = proxy.clone();
        off.env.insert("DISABLE_ENVOY".to_owned(), "T".to_owned());
        assert_eq!(decided(&with(&status, &[&off])), Decision::Pass(Passed::Disabled));
        let mut router = proxy.clone();
        router.args = vec!["proxy".to_owned(), "router".to_owned()];
        assert_eq!(
            decided(&with(&status, &[&router])),
            Decision::Pass(Passed::NoSidecar("router".to_owned()))
        );
        for known in ["waypoint", "ztunnel", "ingress"] {
            router.args[1] = known.to_owned();
            let passed = Passed::NoSidecar(known.to_owned());
            assert_eq!(decided(&with(&status, &[&router])), Decision::Pass(passed));
        }
        // What the containers say beats what the status annotation says.
        assert_eq!(decided(&with(&[(STATUS, SIDECAR)], &[&app])), Decision::Pass(Passed::NoProxy));
    }

    #[test]
    fn a_role_that_can_not_be_told_is_never_taken_for_one_that_is_not_captured() {
        let status = [(STATUS, SIDECAR)];
        let proxy = |args: [&str; 2]| Container {
            args: args.map(str::to_owned).to_vec(),
            env: BTreeMap::from([
                ("OWN".to_owned(), "sidecar".to_owned()),
                ("GATEWAY".to_owned(), "router".to_owned()),
            ]),
            env_elsewhere: vec!["ROLE".to_owned()],
            ..container(PROXY_CONTAINER)
        };
        for (args, wanted) in [
            (["proxy", "$(OWN)"], Decision::Capture),
            (["proxy", "$(GATEWAY)"], Decision::Pass(Passed::NoSidecar("router".to_owned()))),
            // Nothing but the word «proxy» is followed by a role.
            (["$(ROLE)", "router"], Decision::Capture),
        ] {
            assert_eq!(decided(&with(&status, &[&proxy(args)])), wanted, "{args:?}");
        }
        for (word, why) in [
            ("$(ROLE)", "variable ROLE has its value from elsewhere"),
            ("$(NONE)", "one of router, waypoint"),
            ("Router", "one of router, waypoint"),
            ("--domain", "one of router, waypoint"),
        ] {
            let proxy = proxy(["proxy", word]);
            let Decision::Ask(unknown) = decided(&with(&status, &[&proxy])) else {
                panic!("{word}");
            };
            let text = unknown.to_string();
            assert!(!unknown.may_be_reported(), "{word}");
            assert!(text.contains(why) && text.contains(&format!("{word:?}")), "{text}");
            // What is not injected, or not to be, needs no role.
            assert_eq!(decided(&with(&[], &[&proxy])), Decision::Pass(Passed::NotInjected));
            let mut refused = with(&status, &[&proxy]);
            refused.labels.as_mut().unwrap().insert(INJECT.to_owned(), "false".to_owned());
            assert_eq!(decided(&refused), Decision::Pass(Passed::Refused { label: true }));
        }
    }

    #[test]
    fn the_label_beats_the_annotation_of_its_name() {
        let proxy = container(PROXY_CONTAINER);
        let refused = with(&[(STATUS, "true"), (INJECT, "false")], &[&proxy]);
        assert_eq!(decided(&refused), Decision::Pass(Passed::Refused { label: false }));
        let mut wanted = refused.clone();
        wanted.labels.as_mut().unwrap().insert(INJECT.to_owned(), "true".to_owned());
        assert_eq!(decided(&wanted), Decision::Capture);
        let mut odd = refused;
        odd.labels.as_mut().unwrap().insert(INJECT.to_owned(), "perhaps".to_owned());
        assert_eq!(decided(&odd), Decision::Capture);
    }
}
