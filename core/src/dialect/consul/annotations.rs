//! A pod's annotations, as consul-cni reads them: who is captured, and how. The injector has put all
//! settings into one of them, as JSON.

use super::flags::CONFIG as CONFIG_FLAG;
use super::resolve::{Raw, resolve};
use super::{DIALECT, MESH};
use crate::dialect::error::{ConfigError, ConfigErrors};
use crate::dialect::raw::FileValues;
use crate::dialect::sidecar::{
    AnnotationDef, Captured, Decision, Effect, Lack, Passed, ReportedBy, Sidecar, Unknown,
    annotated, def,
};
use crate::pod::{Container, PodFacts};
use crate::source::Source;

/// The container that the proxy runs in; of a pod of several services one each, with its name behind.
pub const PROXY_CONTAINER: &str = "consul-dataplane";
/// The init container that captures a pod from inside, where its variable has the settings.
pub const INIT_CONTAINER: &str = "consul-connect-inject-init";
/// The variable of that container with all settings, as JSON.
pub const INIT_VARIABLE: &str = "CONSUL_REDIRECT_TRAFFIC_CONFIG";
/// The annotation that the injector writes when it puts a proxy in.
pub const INJECTED: &str = "consul.hashicorp.com/connect-inject-status";
/// The same, of the second version of the mesh.
pub const MESH_INJECTED: &str = "consul.hashicorp.com/mesh-inject-status";
/// The annotation that the injector writes where the pod's traffic is to be captured.
pub const TRANSPARENT: &str = "consul.hashicorp.com/transparent-proxy-status";
/// The annotation with all settings as JSON, which the injector writes.
pub const CONFIG: &str = "consul.hashicorp.com/redirect-traffic-config";
/// Whether IPv6 is captured as well.
pub const DUAL_STACK: &str = "consul.hashicorp.com/dual-stack";

/// How pods of Consul are known and captured by the CNI plugin.
pub static SIDECAR: Sidecar = Sidecar {
    mesh: &MESH,
    dialect: &DIALECT,
    proxy: PROXY_CONTAINER,
    has_several: true,
    inside: INIT_CONTAINER,
    reported_by: ReportedBy::Annotations,
    decide,
    injected: INJECTED,
    names_proxy: is_injected,
    policy,
    check: |_settings| Ok(()),
    annotations: ANNOTATIONS,
    leave: "annotation consul.hashicorp.com/connect-inject: \"false\"",
};

/// Every annotation that says how a pod is captured.
pub const ANNOTATIONS: &[AnnotationDef] =
    &[def(CONFIG, CONFIG_FLAG, Effect::Replaces), def(DUAL_STACK, "dual-stack", Effect::Replaces)];

/// Whether the injector says that it put a proxy in.
fn is_injected(pod: &PodFacts) -> bool {
    [INJECTED, MESH_INJECTED].into_iter().any(|name| said(pod, name).is_some())
}

/// What an annotation says, where that is anything.
fn said<'p>(pod: &'p PodFacts, name: &str) -> Option<&'p str> {
    pod.annotation(name).filter(|text| !text.is_empty())
}

/// Whether a container captures the pod that it is in.
fn captures(container: &Container) -> bool {
    container.init
        && container.name.starts_with(INIT_CONTAINER)
        && container.env.get(INIT_VARIABLE).is_some_and(|text| !text.is_empty())
}

/// Decide about a pod. Annotations tell enough where they have its settings: without these, its containers
/// may capture it.
pub fn decide(pod: &PodFacts) -> Decision {
    if pod.annotations.is_none() {
        return Decision::Ask(Unknown::Annotations);
    }
    if !is_injected(pod) {
        let (mesh, annotation, lack) = (MESH.name, INJECTED, Lack::of(pod, INJECTED));
        return Decision::Pass(Passed::NotInjected { mesh, annotation, lack });
    }
    if pod.containers.iter().flatten().any(captures) {
        return Decision::Pass(Passed::InitContainer(INIT_CONTAINER));
    }
    if said(pod, TRANSPARENT).is_none() {
        let lack = Lack::of(pod, TRANSPARENT);
        return Decision::Pass(Passed::NotTransparent(TRANSPARENT, lack));
    }
    if said(pod, CONFIG).is_none() && pod.containers.is_none() {
        let (annotation, container) = (TRANSPARENT, INIT_CONTAINER);
        return Decision::Ask(Unknown::Inside { annotation, container });
    }
    Decision::Capture
}

/// How a pod is captured on a node with these settings.
///
/// # Errors
/// All that is wrong with its settings, at once, and that it has none.
pub fn policy(pod: &PodFacts, settings: &FileValues) -> Result<Captured, ConfigErrors> {
    if said(pod, CONFIG).is_none() {
        let wrong = ConfigError {
            source_name: Source::Annotation(CONFIG.to_owned()),
            value: pod.annotation(CONFIG).unwrap_or_default().to_owned(),
            expected: format!(
                "it is missing, and nothing else tells what to capture: the injector writes it \
                 beside {TRANSPARENT} where it is told that there is a CNI plugin \
                 (connectInject.cni.enabled)"
            ),
            usage: false,
        };
        return Err(ConfigErrors(vec![wrong]));
    }
    let raw = annotated(Raw::default().with_file(settings.clone()), pod, ANNOTATIONS);
    let resolved = resolve(&raw, None)?;
    let mut warnings = resolved.warnings;
    if matches!(raw.text("dual-stack").source, Source::Default(_)) {
        warnings.push(format!(
            "IPv4 alone is captured, since the pod has no annotation {DUAL_STACK}: where the proxy \
             listens on IPv6 as well, set dual-stack in the plugin's configuration key consul"
        ));
    }
    Ok(Captured { policy: resolved.policy, warnings })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::source::Sourced;

    const SETTINGS: &str =
        r#"{"ProxyUserID":"5995","ProxyInboundPort":20000,"ExcludeUIDs":["5996"]}"#;

    fn pod(annotations: &[(&str, &str)]) -> PodFacts {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        PodFacts { annotations: Some(annotations.iter().map(own).collect()), ..PodFacts::default() }
    }

    fn init(settings: &str) -> Container {
        Container {
            name: INIT_CONTAINER.to_owned(),
            init: true,
            env: BTreeMap::from([(INIT_VARIABLE.to_owned(), settings.to_owned())]),
            ..Container::default()
        }
    }

    #[test]
    fn annotations_tell_and_containers_where_they_lack_the_settings() {
        let (injected, newer) = ((INJECTED, "injected"), (MESH_INJECTED, "injected"));
        let (transparent, config) = ((TRANSPARENT, "enabled"), (CONFIG, SETTINGS));
        let not_injected = |lack| {
            Decision::Pass(Passed::NotInjected { mesh: "Consul", annotation: INJECTED, lack })
        };
        let opaque = |lack| Decision::Pass(Passed::NotTransparent(TRANSPARENT, lack));
        let inside = Unknown::Inside { annotation: TRANSPARENT, container: INIT_CONTAINER };
        for (annotations, wanted) in [
            (&[][..], not_injected(Lack::Absent)),
            (&[(INJECTED, ""), transparent, config], not_injected(Lack::Empty)),
            (&[injected, config], opaque(Lack::Absent)),
            (&[injected, (TRANSPARENT, ""), config], opaque(Lack::Empty)),
            (&[injected, transparent, config], Decision::Capture),
            (&[newer, transparent, config], Decision::Capture),
            (&[injected, transparent], Decision::Ask(inside)),
        ] {
            assert_eq!(decide(&pod(annotations)), wanted, "{annotations:?}");
        }
        // No message says that an annotation is absent which is there.
        for (lack, text) in [(Lack::Absent, "it has no annotation"), (Lack::Empty, "is empty")] {
            for decision in [not_injected(lack), opaque(lack)] {
                let Decision::Pass(why) = decision else { panic!("{decision:?}") };
                assert!(why.to_string().contains(text), "{why}");
            }
        }
        let unknown = PodFacts { annotations: None, ..pod(&[]) };
        assert_eq!(decide(&unknown), Decision::Ask(Unknown::Annotations));
        let holding = |container| PodFacts {
            containers: Some(vec![container]),
            ..pod(&[injected, transparent])
        };
        let captured = holding(init(SETTINGS));
        assert_eq!(decide(&captured), Decision::Pass(Passed::InitContainer(INIT_CONTAINER)));
        assert_eq!(decide(&holding(init(""))), Decision::Capture);
    }

    #[test]
    fn a_pod_of_several_services_has_a_proxy_for_each() {
        let named = |name: &str| Container { name: name.to_owned(), ..Container::default() };
        for (name, wanted) in [
            ("consul-dataplane", true),
            ("consul-dataplane-web", true),
            ("consul-dataplaneweb", false),
            ("app", false),
        ] {
            assert_eq!(SIDECAR.is_proxy(&named(name)), wanted, "{name}");
        }
    }

    #[test]
    fn the_policy_is_that_of_the_settings_each_with_its_key() {
        let found = policy(&pod(&[(CONFIG, SETTINGS), (DUAL_STACK, "true")]), &FileValues::new());
        let Captured { policy, warnings } = found.unwrap();
        assert!(policy.ipv6.value && warnings.is_empty());
        let uid = &policy.proxy.uids[0];
        assert_eq!(uid.value.get(), 5995);
        assert_eq!(
            uid.source.to_string(),
            "configuration key ProxyUserID of annotation consul.hashicorp.com/redirect-traffic-config"
        );
        assert_eq!(policy.outbound.port.value.get(), 15001);
        assert_eq!(policy.outbound.except_users[0].value.get(), 5996);
    }

    #[test]
    fn without_a_word_about_ipv6_the_node_tells_and_else_it_is_said() {
        let plain = pod(&[(CONFIG, SETTINGS)]);
        let found = policy(&plain, &FileValues::new()).unwrap();
        assert!(!found.policy.ipv6.value);
        assert!(found.warnings[0].contains(DUAL_STACK), "{:?}", found.warnings);
        let source = Source::File("consul.dual-stack".to_owned());
        let node = FileValues::from([("dual-stack", Sourced::new("true".to_owned(), source))]);
        let found = policy(&plain, &node).unwrap();
        assert!(found.policy.ipv6.value && found.warnings.is_empty());
        let own = pod(&[(CONFIG, SETTINGS), (DUAL_STACK, "false")]);
        assert!(!policy(&own, &node).unwrap().policy.ipv6.value);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_annotation() {
        for (annotations, parts) in [
            (&[][..], &[CONFIG, "it is missing", "cni.enabled"][..]),
            (&[(CONFIG, "")], &[CONFIG, "it is missing"]),
            (&[(CONFIG, "{foo}")], &[CONFIG, "{foo}", "no JSON"]),
            (&[(CONFIG, "{}")], &["ProxyUserID", "ProxyInboundPort"]),
            (
                &[(
                    CONFIG,
                    r#"{"ProxyUserID":"5995","ProxyInboundPort":20000,"ExcludeUIDs":["x"]}"#,
                )],
                &["ExcludeUIDs of annotation", CONFIG, "\"x\""],
            ),
            (&[(CONFIG, SETTINGS), (DUAL_STACK, "both")], &[DUAL_STACK, "both"]),
        ] {
            let text = policy(&pod(annotations), &FileValues::new()).unwrap_err().to_string();
            for part in parts {
                assert!(text.contains(part), "{annotations:?}: {text}");
            }
        }
    }
}
