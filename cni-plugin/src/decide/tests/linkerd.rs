//! Pods of Linkerd, and of Linkerd and Istio, where the entry expects them and where it does not.

use millrace_core::dialect::linkerd::annotations::{COMPONENT, INJECTED};

use super::*;

const EXPECTED: &str = r#","linkerd":{}"#;

/// A pod with these containers, of which those with a colon are init containers.
fn holding(containers: &[&str], annotations: &[(&str, &str)]) -> PodFacts {
    let container = |name: &&str| Container {
        name: name.trim_end_matches(':').to_owned(),
        init: name.ends_with(':'),
        ..Container::default()
    };
    PodFacts {
        labels: Some(BTreeMap::new()),
        containers: Some(containers.iter().map(container).collect()),
        ..pod(Some(annotations))
    }
}

fn api(pod: PodFacts) -> Fake {
    Fake { api: Some(Ok(pod)), ..Fake::default() }
}

/// What comes of a pod that only the API knows.
fn known(found: PodFacts, config: &Config) -> Result<Decided, CniError> {
    resolved(pod(None), config, &mut api(found))
}

fn mesh(decided: &Decided) -> Option<Mesh> {
    match &decided.verdict {
        Disposition::Capture(captured) => Some(captured.mesh),
        Disposition::Pass(_) => None,
    }
}

#[test]
fn containers_choose_the_mesh() {
    let status = [(STATUS, "true")];
    for (containers, annotations, wanted) in [
        (&["app", "linkerd-proxy"][..], &[][..], Some(Mesh::Linkerd)),
        (&["linkerd-network-validator:", "linkerd-proxy:", "app"], &[], Some(Mesh::Linkerd)),
        (&["linkerd-init:", "linkerd-proxy", "app"], &[], None),
        (&["app"], &[], None),
        (&["app", "istio-proxy"], &status, Some(Mesh::Istio)),
        (&["istio-init:", "istio-proxy"], &status, None),
        // A gateway of Istio's is no sidecar, and may have a proxy of Linkerd's.
        (&["istio-proxy", "linkerd-proxy"], &[], Some(Mesh::Linkerd)),
    ] {
        let decided = known(holding(containers, annotations), &config(EXPECTED)).unwrap();
        assert_eq!(mesh(&decided), wanted, "{containers:?}");
        assert_eq!(decided.warnings, Vec::<String>::new(), "{containers:?}");
        assert_eq!(decided.origins, [Origin::Runtime, Origin::Api]);
    }
}

#[test]
fn a_pod_that_passes_says_why_for_each_mesh() {
    let reason = |containers: &[&str], members| {
        let decided = known(holding(containers, &[]), &config(members)).unwrap();
        let Disposition::Pass(why) = &decided.verdict else { panic!("{decided:?}") };
        decided.passed(why)
    };
    let inside = reason(&["linkerd-init:", "linkerd-proxy"], EXPECTED);
    assert!(
        inside.ends_with("; its init container linkerd-init captures it from inside"),
        "{inside}"
    );
    let plain = "it has no container istio-proxy";
    let both = format!("{plain}; it has no container linkerd-proxy");
    assert_eq!(reason(&["app"], EXPECTED), both);
    assert_eq!(reason(&["app"], ""), plain);
}

#[test]
fn no_annotation_tells_enough_where_linkerd_is_expected() {
    let wishes = [("linkerd.io/inject", "enabled")];
    for annotations in [
        &[][..],
        &[("linkerd.io/inject", "disabled")],
        &wishes,
        &[(INJECTED, "stable")],
        &[(STATUS, SIDECAR)],
        &[(STATUS, r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"#)],
    ] {
        let error =
            resolved(pod(Some(annotations)), &config(EXPECTED), &mut Fake::default()).unwrap_err();
        assert_eq!(error.code, Code::TryAgain, "{annotations:?}");
        for part in ["container linkerd-proxy", "set kubeconfig", "not started uncaptured"] {
            assert!(error.msg.contains(part), "{}", error.msg);
        }
    }
    // Nor does it where nobody is to be asked for a proxy's ids.
    let config_of = config(&format!(r#"{EXPECTED},"proxy_identity":"annotations""#));
    let reported = pod(Some(&[]));
    let mut fake = api(holding(&["linkerd-proxy"], &[]));
    assert_eq!(mesh(&resolved(reported, &config_of, &mut fake).unwrap()), Some(Mesh::Linkerd));
    // An excluded namespace is not asked about.
    let excluded = config(&format!(r#"{EXPECTED},"exclude_namespaces":["b"]"#));
    let decided = resolved(pod(None), &excluded, &mut Fake::default()).unwrap();
    assert!(matches!(decided.verdict, Disposition::Pass(Passed::Namespace(_))));
}

#[test]
fn a_pod_of_two_meshes_is_an_error_that_names_both() {
    let status = [(STATUS, "true")];
    for (containers, members) in [
        (&["istio-proxy", "linkerd-proxy"][..], EXPECTED),
        (&["istio-proxy", "linkerd-proxy"], ""),
        (&["linkerd-init:", "istio-proxy", "linkerd-proxy"], EXPECTED),
        (&["linkerd-init:", "istio-proxy", "linkerd-proxy"], ""),
        (&["istio-init:", "istio-proxy", "linkerd-proxy"], EXPECTED),
    ] {
        let error = known(holding(containers, &status), &config(members)).unwrap_err();
        assert_eq!(error.code, Code::TwoMeshes, "{containers:?}: {}", error.msg);
        for part in ["container istio-proxy of Istio", "container linkerd-proxy of Linkerd"] {
            assert!(error.msg.contains(part), "{}", error.msg);
        }
    }
    // Where nothing is left for this plugin to capture, it is not its business.
    let inside = ["istio-init:", "linkerd-init:", "istio-proxy", "linkerd-proxy"];
    assert_eq!(mesh(&known(holding(&inside, &status), &config(EXPECTED)).unwrap()), None);
}

#[test]
fn what_the_injector_wrote_is_not_unproved_by_who_knows_no_proxy() {
    let injected = [(INJECTED, "stable")];
    let reported = || pod(Some(&injected));
    for found in [holding(&["app"], &[]), holding(&["app"], &injected)] {
        let error = resolved(reported(), &config(EXPECTED), &mut api(found)).unwrap_err();
        assert_eq!(error.code, Code::TryAgain);
        for part in ["knows no container linkerd-proxy", INJECTED] {
            assert!(error.msg.contains(part), "{}", error.msg);
        }
    }
    // Nor by an answer that contradicts itself.
    let torn = known(holding(&["app"], &injected), &config(EXPECTED)).unwrap_err();
    assert_eq!(torn.code, Code::TryAgain);
    // The next one is asked.
    let mut fake =
        Fake { agent: Some(Ok(holding(&["app"], &[]))), ..api(holding(&["linkerd-proxy"], &[])) };
    let decided = resolved(reported(), &config(EXPECTED), &mut fake).unwrap();
    assert_eq!(
        (mesh(&decided), fake.asked),
        (Some(Mesh::Linkerd), vec![Origin::Agent, Origin::Api])
    );
    // What the runtime tells counts, whatever the answer has.
    let reported = pod(Some(&[("config.linkerd.io/proxy-uid", "7")]));
    let other = holding(&["linkerd-proxy"], &[("config.linkerd.io/proxy-uid", "8")]);
    assert_eq!(uid(&resolved(reported, &config(EXPECTED), &mut api(other)).unwrap()), 7);
}

#[test]
fn where_the_entry_does_not_expect_it_a_pod_passes_with_a_warning() {
    let proven = pod(Some(&[(INJECTED, "stable")]));
    let decided = resolved(proven, &config(""), &mut Fake::default()).unwrap();
    assert_eq!(mesh(&decided), None);
    for part in [INJECTED, "no key linkerd", "linkerd-init"] {
        assert!(decided.warnings[0].contains(part), "{:?}", decided.warnings);
    }
    let seen = known(holding(&["linkerd-proxy"], &[]), &config("")).unwrap();
    assert_eq!(mesh(&seen), None);
    assert!(seen.warnings[0].contains("container linkerd-proxy"), "{:?}", seen.warnings);
    // There is nothing to say of others.
    for containers in [&["linkerd-init:", "linkerd-proxy"][..], &["app"]] {
        let decided = known(holding(containers, &[]), &config("")).unwrap();
        assert_eq!(decided.warnings, Vec::<String>::new(), "{containers:?}");
    }
}

#[test]
fn the_policy_is_the_nodes_with_the_pods_annotations_on_top() {
    let node = config(
        r#","linkerd":{"incoming-proxy-port":5143,"outgoing-proxy-port":5140,"proxy-uid":12102,
           "outbound-ports-to-ignore":["25"],"ipv6":false}"#,
    );
    let annotations = [("config.linkerd.io/skip-outbound-ports", "3306-3307")];
    let mut found = holding(&["linkerd-proxy"], &annotations);
    found.labels = Some(BTreeMap::from([(COMPONENT.to_owned(), "proxy-injector".to_owned())]));
    let decided = known(found, &node).unwrap();
    let Disposition::Capture(captured) = &decided.verdict else { panic!("{decided:?}") };
    let policy = &captured.policy;
    assert_eq!((policy.inbound.port.value.get(), policy.outbound.port.value.get()), (5143, 5140));
    assert_eq!(uid(&decided), 12102);
    assert!(!policy.ipv6.value);
    let first = |port: &millrace_core::source::Sourced<millrace_core::value::PortRange>| {
        port.value.first().get()
    };
    let except: Vec<u16> = policy.outbound.except_ports.iter().map(first).collect();
    assert_eq!(except, [3306, 443, 6443]);
    let bad = holding(&["linkerd-proxy"], &[("config.linkerd.io/skip-subnets", "10.0.0.0/40")]);
    let error = known(bad, &node).unwrap_err();
    assert_eq!(error.code, Code::BadAnnotation);
    for part in ["config.linkerd.io/skip-subnets", "10.0.0.0/40", "correct its annotations"] {
        assert!(error.msg.contains(part), "{}", error.msg);
    }
}

#[test]
fn a_container_outside_kubernetes_is_never_linkerds() {
    let nobody = |annotations| PodFacts { name: None, namespace: None, ..pod(annotations) };
    let mut fake = Fake::default();
    let decided = resolved(nobody(None), &config(EXPECTED), &mut fake).unwrap();
    assert!(matches!(decided.verdict, Disposition::Pass(Passed::NoPod)));
    let text = format!(r#"{EXPECTED},"annotations":{{"{STATUS}":{}}}"#, serde_json::json!(SIDECAR));
    let decided = resolved(nobody(None), &config(&text), &mut fake).unwrap();
    assert_eq!(mesh(&decided), Some(Mesh::Istio));
    // With annotations it is a pod, and one without a name nobody can be asked about.
    let error = resolved(nobody(Some(&[])), &config(EXPECTED), &mut fake).unwrap_err();
    assert_eq!((error.code, fake.asked), (Code::TryAgain, vec![]));
}
