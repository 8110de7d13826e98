//! Whether a pod is captured, and how: what the runtime tells first, and only where that is not
//! enough whoever knows the pod.
//!
//! ```text
//! CNI_ARGS, runtimeConfig ──► decide ──► pass
//!                               │  └───► capture ──► identify ──► policy
//!                               ▼ ask                   │
//!                 node agent, else Kubernetes API ◄─────┘
//!                 else code 11, or what annotations tell
//! ```

use std::collections::BTreeMap;

use millrace_core::dialect::istio::annotations::{
    Captured, Decision, Defaults, Node, PROXY_CONTAINER, Passed, SCC, STATUS, Unknown, decide,
    decide_by_contents, ids_are_ranged, names_proxy, policy,
};
use millrace_core::pod::PodFacts;
use serde::Serialize;

use crate::config::{Config, ProxyIdentity};
use crate::protocol::{CniError, Code, PodArgs};

/// Who told what is known of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Origin {
    /// The runtime, with the request.
    Runtime,
    /// The plugin's configuration.
    Configuration,
    /// What an earlier request learned.
    Note,
    /// The node agent.
    Agent,
    /// The Kubernetes API.
    Api,
}

/// How much hangs on an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Without one the pod is refused.
    Must,
    /// Without one it is captured by what its annotations tell.
    May,
}

/// Who may be asked about a pod. None where nobody is configured.
pub(crate) trait Sources {
    /// Ask the node agent.
    fn agent(&mut self, pod: &PodFacts, need: Need) -> Option<Result<PodFacts, String>>;
    /// Ask the Kubernetes API.
    fn api(&mut self, pod: &PodFacts, need: Need) -> Option<Result<PodFacts, String>>;
}

/// Why a pod is captured.
pub(crate) const WHY_CAPTURED: &str = "its proxy is a sidecar, and nothing in it captures it";

/// What is to be done with a pod.
#[derive(Debug)]
pub(crate) enum Verdict {
    /// It is left alone.
    Pass(Passed),
    /// It is captured so.
    Capture(Box<Captured>),
}

/// A pod that was decided about.
#[derive(Debug)]
pub(crate) struct Decided {
    /// What is known of it.
    pub(crate) pod: PodFacts,
    /// Who told.
    pub(crate) origins: Vec<Origin>,
    /// What is to be done.
    pub(crate) verdict: Verdict,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
}

/// What the runtime tells of the pod.
pub(crate) fn told(args: PodArgs, config: &Config) -> PodFacts {
    PodFacts { annotations: config.pod_annotations.clone(), ..args.into() }
}

/// How a pod is called in messages.
pub(crate) fn called(pod: &PodFacts) -> String {
    match (&pod.namespace, &pod.name) {
        (Some(namespace), Some(name)) => format!("pod {namespace}/{name}"),
        (None, Some(name)) => format!("container {name}"),
        _ => "container without a pod's name".to_owned(),
    }
}

/// Decide about a pod, of which this is known from the runtime, or from a note beside it.
///
/// # Errors
/// Code 11 when it may be in the mesh and nobody can tell; 102 when its annotations are wrong.
pub(crate) fn resolve(
    pod: PodFacts,
    origin: Origin,
    config: &Config,
    env: BTreeMap<String, String>,
    sources: &mut dyn Sources,
) -> Result<Decided, CniError> {
    let mut decided = Decided {
        pod,
        origins: vec![origin],
        verdict: Verdict::Pass(Passed::NoPod),
        warnings: Vec::new(),
    };
    let node = Node {
        excluded_namespaces: &config.exclude_namespaces,
        agent_namespace: config.agent_namespace.as_deref(),
    };
    let mut decision = decide(&decided.pod, node);
    if decision == Decision::Pass(Passed::NoPod) && !config.annotations.is_empty() {
        decided.pod.annotations = Some(config.annotations.clone());
        decided.origins = vec![Origin::Configuration];
        decision = decide_by_contents(&decided.pod);
        if let Decision::Ask(unknown) = decision {
            // Nobody knows a container that is no pod.
            let msg = format!("the plugin's configuration key annotations: {unknown}");
            return Err(CniError::new(Code::BadConfig, msg));
        }
    } else if decision == Decision::Pass(Passed::NoPod) && decided.pod.annotations.is_some() {
        // Runtimes tell annotations of pods alone: one without a name may be in the mesh as well.
        match decide_by_contents(&decided.pod) {
            Decision::Pass(_) => {}
            other => decision = other,
        }
    } else {
        if let Decision::Ask(unknown) = decision {
            ask(&mut decided, unknown, sources)?;
            decision = decide(&decided.pod, node);
        }
        // A note without containers is on a pod that was captured without them.
        let known = origin == Origin::Note || decided.pod.containers.is_some();
        if decision == Decision::Capture && !known {
            identify(&mut decided, config, sources)?;
            decision = decide(&decided.pod, node);
        }
    }
    decided.verdict = match decision {
        Decision::Pass(why) => Verdict::Pass(why),
        Decision::Capture => {
            let mut captured = made(&decided.pod, config, env)?;
            decided.warnings.append(&mut captured.warnings);
            Verdict::Capture(Box::new(captured))
        }
        Decision::Ask(unknown) => return Err(unanswered(&unknown.to_string(), &[])),
    };
    Ok(decided)
}

fn made(
    pod: &PodFacts,
    config: &Config,
    env: BTreeMap<String, String>,
) -> Result<Captured, CniError> {
    let defaults = Defaults {
        uid: config.proxy_uid.clone(),
        gid: config.proxy_gid.clone(),
        proxy_env: config.proxy_env.clone(),
        env,
    };
    policy(pod, &defaults).map_err(|errors| {
        let list = errors.to_string().replace('\n', "; ");
        CniError::new(
            Code::BadAnnotation,
            format!("the pod can't be captured as it asks for: {list}; correct its annotations"),
        )
    })
}

/// Ask about a pod that may have to be captured.
fn ask(decided: &mut Decided, what: Unknown, sources: &mut dyn Sources) -> Result<(), CniError> {
    let failures = asked(decided, Need::Must, sources);
    failures.map_err(|failures| unanswered(&what.to_string(), &failures))
}

/// Find out about the proxy of a pod that is captured.
fn identify(
    decided: &mut Decided,
    config: &Config,
    sources: &mut dyn Sources,
) -> Result<(), CniError> {
    let failures = match config.proxy_identity {
        ProxyIdentity::Annotations => Vec::new(),
        ProxyIdentity::Auto => match asked(decided, Need::May, sources) {
            Ok(()) => return Ok(()),
            Err(failures) => failures,
        },
        ProxyIdentity::Lookup => {
            let what = "proxy_identity is lookup, and the proxy's container is not known";
            let failures = asked(decided, Need::Must, sources);
            return failures.map_err(|failures| unanswered(what, &failures));
        }
    };
    if config.proxy_uid.is_none() && ids_are_ranged(&decided.pod) {
        let what = format!(
            "annotation {SCC} says that its users are of a range of its namespace's own, so its \
             proxy's is not known: set proxy_uid and proxy_gid if it is the same in each pod"
        );
        return Err(unanswered(&what, &failures));
    }
    if !failures.is_empty() {
        decided.warnings.push(format!(
            "{}; the proxy's ids and variables, whether DNS is captured among them, are taken from \
             the pod's annotations, proxy_uid, proxy_gid and proxy_env",
            failures.join("; ")
        ));
    }
    Ok(())
}

/// Ask until somebody answers; gives why nobody did. What the runtime tells stays: it is what the
/// pod was made with.
fn asked(decided: &mut Decided, need: Need, sources: &mut dyn Sources) -> Result<(), Vec<String>> {
    let mut failures = Vec::new();
    let agent = sources.agent(&decided.pod, need);
    if answered(decided, Origin::Agent, agent, &mut failures) {
        return Ok(());
    }
    let api = sources.api(&decided.pod, need);
    if answered(decided, Origin::Api, api, &mut failures) {
        return Ok(());
    }
    Err(failures)
}

fn answered(
    decided: &mut Decided,
    origin: Origin,
    answer: Option<Result<PodFacts, String>>,
    failures: &mut Vec<String>,
) -> bool {
    let whom = if origin == Origin::Agent { "the node agent" } else { "the Kubernetes API" };
    match answer {
        None => false,
        Some(Err(why)) => {
            failures.push(format!("{whom} did not tell: {why}"));
            false
        }
        // What the pod was made with is proof; who says otherwise knows another pod, or lies.
        Some(Ok(found))
            if names_proxy(&decided.pod) && found.container(PROXY_CONTAINER).is_none() =>
        {
            failures.push(format!(
                "{whom} knows no container {PROXY_CONTAINER} of it, which annotation {STATUS} names"
            ));
            false
        }
        Some(Ok(found)) => {
            let pod = &mut decided.pod;
            pod.annotations = pod.annotations.take().or(found.annotations);
            pod.labels = found.labels;
            pod.containers = found.containers;
            decided.origins.push(origin);
            true
        }
    }
}

fn unanswered(what: &str, failures: &[String]) -> CniError {
    let asked = if failures.is_empty() {
        "nobody is configured who could be asked: set kubeconfig in the plugin's configuration, \
         or the capability io.kubernetes.cri.pod-annotations where the runtime has it"
            .to_owned()
    } else {
        failures.join("; ")
    };
    CniError::new(
        Code::TryAgain,
        format!(
            "it may be in the mesh, so it is not started uncaptured: {what}, and {asked}. It is \
             tried again"
        ),
    )
}

#[cfg(test)]
mod tests {
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
        let Verdict::Capture(captured) = &decided.verdict else { panic!("{decided:?}") };
        captured.policy.proxy.uids[0].value.get()
    }

    #[test]
    fn pods_that_annotations_show_to_be_outside_ask_nobody() {
        for annotations in [&[][..], &[("x", "y")][..]] {
            let mut fake = Fake { api: Some(Ok(full(7))), ..Fake::default() };
            let decided = resolved(pod(Some(annotations)), &config(""), &mut fake).unwrap();
            assert!(matches!(decided.verdict, Verdict::Pass(_)));
            assert_eq!(fake.asked, []);
        }
    }

    #[test]
    fn an_excluded_namespace_passes_when_nothing_is_known_and_nobody_answers() {
        let config = config(r#","exclude_namespaces":["b"]"#);
        let mut fake = Fake::default();
        let decided = resolved(pod(None), &config, &mut fake).unwrap();
        assert!(matches!(decided.verdict, Verdict::Pass(Passed::Namespace(_))));
        assert_eq!(fake.asked, []);
    }

    #[test]
    fn the_agent_comes_before_the_api() {
        let mut fake = Fake { agent: Some(Ok(full(7))), api: Some(Ok(full(8))), asked: vec![] };
        assert_eq!(uid(&resolved(pod(None), &config(""), &mut fake).unwrap()), 7);
        assert_eq!(fake.asked, [Origin::Agent]);
        let mut fake =
            Fake { agent: Some(Err("x".to_owned())), api: Some(Ok(full(8))), asked: vec![] };
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
        let told = config(r#","proxy_uid":9"#);
        assert_eq!(uid(&resolved(ranged(), &told, &mut down()).unwrap()), 9);
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
        let known = pod(Some(&[(STATUS, SIDECAR)]));
        let decided = resolved(known.clone(), &config(""), &mut both()).unwrap();
        assert_eq!(uid(&decided), 1337);
        assert!(decided.warnings[0].contains("knows no container"), "{:?}", decided.warnings);
        let lookup = config(r#","proxy_identity":"lookup""#);
        assert_eq!(resolved(known, &lookup, &mut both()).unwrap_err().code, Code::TryAgain);
        // A template that may be a gateway's doesn't make the container doubtful.
        let gateway = pod(Some(&[(STATUS, SIDECAR), ("inject.istio.io/templates", "gateway")]));
        let error = resolved(gateway, &config(""), &mut both()).unwrap_err();
        assert_eq!(error.code, Code::TryAgain);
        // Where annotations don't name it, the containers tell.
        let unclear = pod(Some(&[(STATUS, "true")]));
        let decided = resolved(unclear, &config(""), &mut both()).unwrap();
        assert!(matches!(decided.verdict, Verdict::Pass(Passed::NoProxy)));
    }

    #[test]
    fn a_container_outside_kubernetes_is_captured_by_the_configuration_alone() {
        let nobody = || PodFacts { name: Some("c1".to_owned()), ..PodFacts::default() };
        let mut fake = Fake::default();
        let decided = resolved(nobody(), &config(""), &mut fake).unwrap();
        assert!(matches!(decided.verdict, Verdict::Pass(Passed::NoPod)));
        let text = format!(r#","annotations":{{"{STATUS}":{}}}"#, serde_json::json!(SIDECAR));
        let decided = resolved(nobody(), &config(&text), &mut fake).unwrap();
        assert!(matches!(decided.verdict, Verdict::Capture(_)));
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
        assert!(matches!(of(Some(&[(STATUS, SIDECAR)])).unwrap().verdict, Verdict::Capture(_)));
        let plain = of(Some(&[])).unwrap();
        assert!(matches!(plain.verdict, Verdict::Pass(Passed::NoPod)));
        assert_eq!(of(Some(&[(STATUS, "true")])).unwrap_err().code, Code::TryAgain);
        assert!(matches!(of(None).unwrap().verdict, Verdict::Pass(Passed::NoPod)));
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
}
