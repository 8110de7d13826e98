//! Who is asked about a pod, and what is made of the answers.

mod linkerd;

use millrace_core::dialect::istio::annotations::STATUS;
use millrace_core::pod::Container;

use super::*;
use crate::config::object;

const SIDECAR: &str = r#"{"containers":["istio-proxy"]}"#;

/// Answers that are given once each.
#[derive(Default)]
struct Fake {
    agent: Option<Result<PodFacts, String>>,
    api: Option<Result<PodFacts, String>>,
    asked: Vec<Origin>,
}

impl Sources for Fake {
    fn agent(&mut self, _pod: &PodFacts, _need: Need) -> Option<Result<PodFacts, String>> {
        self.asked.push(Origin::Agent);
        self.agent.take()
    }

    fn api(&mut self, _pod: &PodFacts, _need: Need) -> Option<Result<PodFacts, String>> {
        self.asked.push(Origin::Api);
        self.api.take()
    }
}

fn config(members: &str) -> Config {
    let text = format!(r#"{{"cniVersion":"1.0.0","name":"net"{members}}}"#);
    Config::parse(&object(&text).unwrap()).unwrap()
}

fn pod(annotations: Option<&[(&str, &str)]>) -> PodFacts {
    let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
    PodFacts {
        name: Some("a".to_owned()),
        namespace: Some("b".to_owned()),
        annotations: annotations.map(|list| list.iter().map(own).collect()),
        ..PodFacts::default()
    }
}

fn full(user: u32) -> PodFacts {
    let proxy =
        Container { name: "istio-proxy".to_owned(), user: Some(user), ..Container::default() };
    PodFacts {
        labels: Some(BTreeMap::new()),
        containers: Some(vec![proxy]),
        ..pod(Some(&[(STATUS, "true")]))
    }
}

fn resolved(pod: PodFacts, config: &Config, fake: &mut Fake) -> Result<Decided, CniError> {
    resolve(pod, Origin::Runtime, config, BTreeMap::new(), fake)
}

fn uid(decided: &Decided) -> u32 {
    let Disposition::Capture(captured) = &decided.verdict else { panic!("{decided:?}") };
    captured.policy.proxy.uids[0].value.get()
}

#[test]
fn pods_that_annotations_show_to_be_outside_ask_nobody() {
    for annotations in [&[][..], &[("x", "y")][..]] {
        let mut fake = Fake { api: Some(Ok(full(7))), ..Fake::default() };
        let decided = resolved(pod(Some(annotations)), &config(""), &mut fake).unwrap();
        assert!(matches!(decided.verdict, Disposition::Pass(_)));
        assert_eq!(fake.asked, []);
    }
}

#[test]
fn an_excluded_namespace_passes_when_nothing_is_known_and_nobody_answers() {
    let config = config(r#","exclude_namespaces":["b"]"#);
    let mut fake = Fake::default();
    let decided = resolved(pod(None), &config, &mut fake).unwrap();
    assert!(matches!(decided.verdict, Disposition::Pass(Passed::Namespace(_))));
    assert_eq!(fake.asked, []);
}

#[test]
fn the_agent_comes_before_the_api() {
    let mut fake = Fake { agent: Some(Ok(full(7))), api: Some(Ok(full(8))), asked: vec![] };
    assert_eq!(uid(&resolved(pod(None), &config(""), &mut fake).unwrap()), 7);
    assert_eq!(fake.asked, [Origin::Agent]);
    let mut fake = Fake { agent: Some(Err("x".to_owned())), api: Some(Ok(full(8))), asked: vec![] };
    let decided = resolved(pod(None), &config(""), &mut fake).unwrap();
    assert_eq!(uid(&decided), 8);
    assert_eq!(decided.origins, [Origin::Runtime, Origin::Api]);
}

#[test]
fn a_pod_that_nobody_knows_is_not_let_through() {
    for annotations in [None, Some(&[(STATUS, "true")][..])] {
        let mut fake = Fake {
            agent: Some(Err("it is gone".to_owned())),
            api: Some(Err("it is down".to_owned())),
            asked: vec![],
        };
        let error = resolved(pod(annotations), &config(""), &mut fake).unwrap_err();
        assert_eq!(error.code, Code::TryAgain);
        for part in ["it is gone", "it is down", "may be in the mesh"] {
            assert!(error.msg.contains(part), "{}", error.msg);
        }
        let alone = resolved(pod(annotations), &config(""), &mut Fake::default()).unwrap_err();
        assert_eq!(alone.code, Code::TryAgain);
        assert!(alone.msg.contains("set kubeconfig"), "{}", alone.msg);
    }
}

#[test]
fn a_proxy_that_is_not_known_is_looked_up_and_gets_the_defaults_if_that_fails() {
    let known = || pod(Some(&[(STATUS, SIDECAR)]));
    let api = |answer| Fake { api: Some(answer), ..Fake::default() };
    let auto = config(r#","proxy_uid":9"#);
    let decided = resolved(known(), &auto, &mut api(Ok(full(8)))).unwrap();
    assert_eq!((uid(&decided), decided.warnings.as_slice()), (8, &[][..]));
    let mut fake = Fake { agent: Some(Err("gone".to_owned())), ..api(Err("down".to_owned())) };
    let decided = resolved(known(), &auto, &mut fake).unwrap();
    assert_eq!((uid(&decided), fake.asked), (9, vec![Origin::Agent, Origin::Api]));
    let warning = &decided.warnings[0];
    for part in ["gone", "down", "DNS", "proxy_env"] {
        assert!(warning.contains(part), "{warning}");
    }
    // Nobody is configured.
    assert_eq!(uid(&resolved(known(), &auto, &mut Fake::default()).unwrap()), 9);
    let lookup = config(r#","proxy_identity":"lookup""#);
    assert_eq!(uid(&resolved(known(), &lookup, &mut api(Ok(full(8)))).unwrap()), 8);
    let error = resolved(known(), &lookup, &mut api(Err("down".to_owned()))).unwrap_err();
    assert_eq!(error.code, Code::TryAgain);
    let mut fake = api(Ok(full(8)));
    let nobody = config(r#","proxy_identity":"annotations""#);
    assert_eq!(uid(&resolved(known(), &nobody, &mut fake).unwrap()), 1337);
    assert_eq!(fake.asked, []);
}

#[test]
fn a_proxy_whose_ids_are_of_a_range_is_never_taken_for_the_defaults() {
    let ranged = || pod(Some(&[(STATUS, SIDECAR), (SCC, "restricted-v2")]));
    let down = || Fake { api: Some(Err("down".to_owned())), ..Fake::default() };
    let error = resolved(ranged(), &config(""), &mut down()).unwrap_err();
    assert_eq!(error.code, Code::TryAgain);
    assert!(error.msg.contains(SCC) && error.msg.contains("down"), "{}", error.msg);
    let reported = config(r#","proxy_uid":9"#);
    assert_eq!(uid(&resolved(ranged(), &reported, &mut down()).unwrap()), 9);
    let any = pod(Some(&[(STATUS, SIDECAR), (SCC, "anyuid")]));
    assert_eq!(uid(&resolved(any, &config(""), &mut down()).unwrap()), 1337);
}

#[test]
fn what_annotations_prove_is_not_unproved_by_who_knows_no_proxy() {
    let without = || {
        let app = Container { name: "app".to_owned(), ..Container::default() };
        Some(Ok(PodFacts { containers: Some(vec![app]), ..full(7) }))
    };
    let both = || Fake { agent: without(), api: without(), asked: vec![] };
    let api = |answer| Fake { api: answer, ..Fake::default() };
    let known = pod(Some(&[(STATUS, SIDECAR)]));
    let annotations = known.annotations.clone();
    let decided = resolved(known.clone(), &config(""), &mut both()).unwrap();
    assert_eq!(uid(&decided), 1337);
    assert!(decided.warnings[0].contains("knows no container"), "{:?}", decided.warnings);
    let lookup = config(r#","proxy_identity":"lookup""#);
    assert_eq!(resolved(known, &lookup, &mut both()).unwrap_err().code, Code::TryAgain);
    // A template that may be a gateway's doesn't make the container doubtful.
    let gateway = pod(Some(&[(STATUS, SIDECAR), ("inject.istio.io/templates", "gateway")]));
    let error = resolved(gateway, &config(""), &mut both()).unwrap_err();
    assert_eq!(error.code, Code::TryAgain);
    // Nor is it by an answer that contradicts itself.
    let torn = without().map(|found| Ok(PodFacts { annotations, ..found? }));
    let error = resolved(pod(None), &config(""), &mut api(torn)).unwrap_err();
    assert_eq!(error.code, Code::TryAgain);
    // Where annotations don't name it, the containers tell.
    let unclear = pod(Some(&[(STATUS, "true")]));
    let decided = resolved(unclear, &config(""), &mut both()).unwrap();
    assert!(matches!(decided.verdict, Disposition::Pass(Passed::NoProxy)));
}

#[test]
fn a_container_outside_kubernetes_is_captured_by_the_configuration_alone() {
    let nobody = || PodFacts { name: Some("c1".to_owned()), ..PodFacts::default() };
    let mut fake = Fake::default();
    let decided = resolved(nobody(), &config(""), &mut fake).unwrap();
    assert!(matches!(decided.verdict, Disposition::Pass(Passed::NoPod)));
    let text = format!(r#","annotations":{{"{STATUS}":{}}}"#, serde_json::json!(SIDECAR));
    let decided = resolved(nobody(), &config(&text), &mut fake).unwrap();
    assert!(matches!(decided.verdict, Disposition::Capture(_)));
    assert_eq!(decided.origins, [Origin::Configuration]);
    let unclear = config(&format!(r#","annotations":{{"{STATUS}":"true"}}"#));
    let error = resolved(nobody(), &unclear, &mut fake).unwrap_err();
    assert_eq!(error.code, Code::BadConfig);
    assert_eq!(fake.asked, []);
}

#[test]
fn a_pod_whose_name_is_not_told_is_decided_by_its_annotations() {
    let nameless = |annotations| PodFacts { name: None, namespace: None, ..pod(annotations) };
    let mut fake = Fake::default();
    let mut of = |annotations| resolved(nameless(annotations), &config(""), &mut fake);
    assert!(matches!(of(Some(&[(STATUS, SIDECAR)])).unwrap().verdict, Disposition::Capture(_)));
    let plain = of(Some(&[])).unwrap();
    assert!(matches!(plain.verdict, Disposition::Pass(Passed::NoPod)));
    assert_eq!(of(Some(&[(STATUS, "true")])).unwrap_err().code, Code::TryAgain);
    assert!(matches!(of(None).unwrap().verdict, Disposition::Pass(Passed::NoPod)));
}

#[test]
fn bad_annotations_are_named_with_value_and_remedy() {
    let name = "traffic.sidecar.istio.io/excludeOutboundPorts";
    let bad = pod(Some(&[(STATUS, SIDECAR), (name, "80;reboot")]));
    let error = resolved(bad, &config(""), &mut Fake::default()).unwrap_err();
    assert_eq!(error.code, Code::BadAnnotation);
    for part in [name, "80;reboot", "a port is"] {
        assert!(error.msg.contains(part), "{}", error.msg);
    }
}

#[test]
fn a_proxy_whose_role_can_not_be_told_is_refused_with_the_reason() {
    let reported = |runtime: Option<&[(&str, &str)]>, word: &str| {
        let mut found =
            PodFacts { annotations: pod(Some(&[(STATUS, SIDECAR)])).annotations, ..full(7) };
        let proxy = &mut found.containers.as_mut().unwrap()[0];
        proxy.args = vec!["proxy".to_owned(), word.to_owned()];
        proxy.env_elsewhere = vec!["ROLE".to_owned()];
        let mut fake = Fake { api: Some(Ok(found)), ..Fake::default() };
        resolved(pod(runtime), &config(""), &mut fake)
    };
    for runtime in [None, Some(&[(STATUS, SIDECAR)][..])] {
        let error = reported(runtime, "$(ROLE)").unwrap_err();
        assert_eq!(error.code, Code::TryAgain);
        for part in
            ["may be in the mesh", "\"$(ROLE)\"", "variable ROLE has its value from elsewhere"]
        {
            assert!(error.msg.contains(part), "{}", error.msg);
        }
        // Somebody was asked, and told all there is.
        assert!(!error.msg.contains("nobody is configured"), "{}", error.msg);
        let decided = reported(runtime, "router").unwrap();
        assert!(matches!(decided.verdict, Disposition::Pass(Passed::NoSidecar(_))));
        assert_eq!(uid(&reported(runtime, "sidecar").unwrap()), 7);
    }
}

#[test]
fn what_a_proxy_has_from_elsewhere_is_a_warning_by_its_name() {
    let mut found = full(7);
    let name = "ISTIO_META_DNS_CAPTURE";
    found.containers.as_mut().unwrap()[0].env_elsewhere = vec![name.to_owned()];
    let mut fake = Fake { api: Some(Ok(found)), ..Fake::default() };
    let decided = resolved(pod(None), &config(""), &mut fake).unwrap();
    let warned = decided.warnings.iter().any(|warning| warning.contains(name));
    assert!(uid(&decided) == 7 && warned, "{:?}", decided.warnings);
}

#[test]
fn a_switch_of_another_mesh_that_is_none_is_refused_where_the_mesh_is_expected() {
    let name = "kuma.io/sidecar-injected";
    let injected = |text: &str| pod(Some(&[(name, text)]));
    let expected = config(r#","kuma":{}"#);
    let error = resolved(injected("TRUE"), &expected, &mut Fake::default()).unwrap_err();
    assert_eq!(error.code, Code::BadAnnotation);
    for part in [name, "\"TRUE\"", "true or false", "correct its annotations"] {
        assert!(error.msg.contains(part), "{}", error.msg);
    }
    let error = resolved(injected("yes"), &expected, &mut Fake::default()).unwrap_err();
    assert_eq!(error.code, Code::TryAgain);
    let decided = resolved(injected("no"), &expected, &mut Fake::default()).unwrap();
    let Disposition::Pass(why) = &decided.verdict else { panic!("{decided:?}") };
    let why = decided.passed(why);
    assert!(why.contains(&format!("its annotation {name} says so")), "{why}");
    // Elsewhere another plugin may make sense of it.
    let decided = resolved(injected("TRUE"), &config(""), &mut Fake::default()).unwrap();
    assert!(matches!(decided.verdict, Disposition::Pass(_)));
    assert!(decided.warnings[0].contains("\"TRUE\""), "{:?}", decided.warnings);
}
