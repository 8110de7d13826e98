//! Verify pod by pod, in tables, who is captured and how: each check of istio-cni, each annotation
//! with its default and what it may be, and the rules against those of the command line that says
//! the same.

mod support;

use std::collections::BTreeMap;

use millrace_core::capture::to_iptables;
use millrace_core::dialect::istio;
use millrace_core::dialect::istio::annotations::{
    Captured, Decision, Defaults, Node, Passed, Unknown, decide, policy,
};
use millrace_core::iptables::render_restore;
use millrace_core::pod::PodFacts;
use millrace_core::report::routing_text;
use millrace_core::ruleset::Ruleset;
use millrace_core::value::Family;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::lines::ruleset;

const STATUS: &str = "sidecar.istio.io/status";
const INJECT: &str = "sidecar.istio.io/inject";
const TEMPLATES: &str = "inject.istio.io/templates";
const CONFIG: &str = "proxy.istio.io/config";
const SIDECAR: &str = r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"]}"#;
const NATIVE: &str = r#"{"initContainers":["istio-validation","istio-proxy"],"containers":null}"#;
const INIT: &str = r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"#;

/// A mesh pod's manifest, of which this is put in the place of what is there.
fn manifest(changes: &Value) -> PodFacts {
    let mut manifest = json!({
        "metadata": {
            "name": "web-0", "namespace": "shop",
            "annotations": { STATUS: SIDECAR }, "labels": { "app": "web" },
        },
        "spec": {
            "initContainers": [{ "name": "istio-validation" }],
            "containers": [{ "name": "web" }, { "name": "istio-proxy", "args": ["proxy", "sidecar"] }],
        },
    });
    for part in ["metadata", "spec"] {
        for (name, value) in changes.as_object().expect("an object") {
            if manifest[part].get(name).is_some() {
                manifest[part][name] = value.clone();
            }
        }
    }
    serde_json::from_value(manifest).expect("a manifest")
}

/// The same pod as a runtime tells of it: its name and its annotations.
fn told(pod: &PodFacts) -> PodFacts {
    PodFacts { labels: None, containers: None, ..pod.clone() }
}

fn proxy(members: &Value) -> Value {
    let mut proxy = members.clone();
    proxy["name"] = json!("istio-proxy");
    json!({ "containers": [{ "name": "web" }, proxy] })
}

fn env(name: &str, value: &str) -> Value {
    proxy(&json!({ "env": [{ "name": name, "value": value }] }))
}

/// Verify each check by what is in a pod that everything is known of.
#[test]
fn every_check_of_a_whole_pod() {
    let capture = || Decision::Capture;
    let pass = Decision::Pass;
    let annotations = |list: &[(&str, &str)]| {
        let mut map: BTreeMap<&str, &str> = BTreeMap::from([(STATUS, SIDECAR)]);
        map.extend(list.iter().copied());
        json!({ "annotations": map })
    };
    let labelled = |label: &str, annotation: &str| {
        let mut changes = annotations(&[(INJECT, annotation)]);
        changes["labels"] = json!({ INJECT: label });
        changes
    };
    let disabled = || pass(Passed::Disabled);
    let refused = |label| pass(Passed::Refused { label });
    let from_elsewhere = json!({ "env": [{ "name": "DISABLE_ENVOY", "valueFrom": {} }] });
    let cases = [
        ("a sidecar", json!({}), capture()),
        ("no container at all", json!({ "containers": [] }), pass(Passed::NoProxy)),
        ("no proxy", json!({ "containers": [{ "name": "web" }] }), pass(Passed::NoProxy)),
        (
            "a native sidecar",
            json!({ "initContainers": [{ "name": "istio-proxy" }], "containers": [{ "name": "web" }] }),
            capture(),
        ),
        (
            "an init container that captures",
            json!({ "initContainers": [{ "name": "istio-init" }] }),
            pass(Passed::InitContainer),
        ),
        (
            "a container of that name",
            json!({ "containers": [{ "name": "istio-init" }, { "name": "istio-proxy" }] }),
            pass(Passed::InitContainer),
        ),
        ("a proxy that is off", env("DISABLE_ENVOY", "true"), disabled()),
        ("off in another spelling", env("DISABLE_ENVOY", "1"), disabled()),
        ("not off", env("DISABLE_ENVOY", "false"), capture()),
        ("off is no word", env("DISABLE_ENVOY", "yes"), capture()),
        ("off by who knows what", proxy(&from_elsewhere), capture()),
        ("no arguments", proxy(&json!({})), capture()),
        ("other arguments", proxy(&json!({ "args": ["wait", "router"] })), capture()),
        ("one argument", proxy(&json!({ "args": ["proxy"] })), capture()),
        (
            "a router",
            proxy(&json!({ "args": ["proxy", "router", "--x"] })),
            pass(Passed::NoSidecar("router".to_owned())),
        ),
        ("refused by annotation", annotations(&[(INJECT, "false")]), refused(false)),
        ("wanted by annotation", annotations(&[(INJECT, "true")]), capture()),
        ("an annotation that is no word", annotations(&[(INJECT, "no")]), capture()),
        ("refused by label", labelled("f", "true"), refused(true)),
        ("the label counts", labelled("true", "false"), capture()),
        ("a label that is no word", labelled("maybe", "false"), capture()),
        ("not injected", json!({ "annotations": {} }), pass(Passed::NotInjected)),
        ("no annotations", json!({ "annotations": null }), pass(Passed::NotInjected)),
        ("a status that tells nothing", json!({ "annotations": { STATUS: "x" } }), capture()),
    ];
    for (name, changes, wanted) in cases {
        assert_eq!(decide(&manifest(&changes), Node::default()), wanted, "{name}");
    }
}

/// Verify what a pod's name decides, whatever is in it, and known of it.
#[test]
fn every_check_of_a_name() {
    let excluded = ["kube-system".to_owned(), "x".to_owned()];
    let node = Node { excluded_namespaces: &excluded, agent_namespace: Some("mesh") };
    let excluded = Decision::Pass(Passed::Namespace("kube-system".to_owned()));
    let unknown = Decision::Ask(Unknown::Annotations);
    let cases = [
        (None, None, Decision::Pass(Passed::NoPod)),
        (Some("a"), None, Decision::Pass(Passed::NoPod)),
        (None, Some("a"), Decision::Pass(Passed::NoPod)),
        (Some("a"), Some(""), Decision::Pass(Passed::NoPod)),
        (Some(""), Some("a"), Decision::Pass(Passed::NoPod)),
        (Some("istio-cni-node-abcde"), Some("mesh"), Decision::Pass(Passed::Agent)),
        (Some("istio-cni-node-abcde"), Some("other"), unknown.clone()),
        (Some("my-istio-cni-node-"), Some("mesh"), unknown.clone()),
        (Some("istio-cni-node-x"), Some("kube-system"), excluded.clone()),
        (Some("a"), Some("kube-system"), excluded),
        (Some("a"), Some("kube-system-2"), unknown.clone()),
        (Some("a"), Some("mesh"), unknown.clone()),
    ];
    for (name, namespace, wanted) in cases {
        let own = |text: &str| text.to_owned();
        let pod =
            PodFacts { name: name.map(own), namespace: namespace.map(own), ..PodFacts::default() };
        assert_eq!(decide(&pod, node), wanted, "{namespace:?}/{name:?}");
    }
    // Where it is not said who the agent is, nobody is.
    let agent = told(&manifest(&json!({ "name": "istio-cni-node-x" })));
    assert_eq!(decide(&agent, Node::default()), Decision::Capture);
}

/// Verify what annotations alone tell.
#[test]
fn every_check_of_annotations() {
    let off = r#"{"proxyMetadata":{"DISABLE_ENVOY":"true"}}"#;
    let on = "proxyMetadata:\n  DISABLE_ENVOY: \"false\"\n";
    let ask = Decision::Ask;
    let cases: [(&[(&str, &str)], Decision); 17] = [
        (&[], Decision::Pass(Passed::NotInjected)),
        (&[(INJECT, "true")], Decision::Pass(Passed::NotInjected)),
        (&[(STATUS, SIDECAR)], Decision::Capture),
        (&[(STATUS, NATIVE)], Decision::Capture),
        (&[(STATUS, SIDECAR), (INJECT, "true")], Decision::Capture),
        (&[(STATUS, SIDECAR), (INJECT, "no word")], Decision::Capture),
        (&[(STATUS, SIDECAR), (TEMPLATES, "sidecar")], Decision::Capture),
        (&[(STATUS, SIDECAR), (CONFIG, on)], Decision::Capture),
        (&[(STATUS, SIDECAR), (CONFIG, "{")], Decision::Capture),
        (&[(STATUS, INIT)], Decision::Pass(Passed::InitContainer)),
        (&[(STATUS, "")], ask(Unknown::Containers)),
        (&[(STATUS, "{}")], ask(Unknown::Containers)),
        (&[(STATUS, r#"{"containers":["web"]}"#)], ask(Unknown::Containers)),
        (&[(STATUS, SIDECAR), (TEMPLATES, "gateway")], ask(Unknown::Containers)),
        (&[(STATUS, SIDECAR), (TEMPLATES, "sidecar,custom")], ask(Unknown::Containers)),
        (&[(STATUS, SIDECAR), (INJECT, "false")], ask(Unknown::Labels)),
        (&[(STATUS, SIDECAR), (CONFIG, off)], ask(Unknown::Disabled)),
    ];
    for (annotations, wanted) in cases {
        let map: BTreeMap<&str, &str> = annotations.iter().copied().collect();
        let pod = told(&manifest(&json!({ "annotations": map })));
        assert_eq!(decide(&pod, Node::default()), wanted, "{annotations:?}");
    }
}

/// The rules that a pod's annotations, its proxy's container and the node's variables mean.
fn rules(pod: &PodFacts, variables: &[(&str, &str)]) -> Ruleset {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let defaults = Defaults { env: variables.iter().map(own).collect(), ..Defaults::default() };
    let Captured { policy, warnings } = policy(pod, &defaults).expect("good annotations");
    assert_eq!(warnings, Vec::<String>::new());
    to_iptables(&policy, &istio::LAYOUT)
}

fn text(rules: &Ruleset) -> String {
    let families = Family::ALL.map(|family| render_restore(rules, family));
    families.concat() + &routing_text(rules)
}

/// Verify for each annotation and variable that its rules, and without it those of its default,
/// are those of the command line with which istio-cni's reading of it would be said.
#[test]
fn the_rules_are_those_of_the_command_line() {
    /// What a pod without annotations means; a later flag takes the place of an earlier one.
    const DEFAULTS: &str = "istio-iptables -p 15001 -z 15006 -e 15008 -u 1337 -g 1337 -m REDIRECT \
                            -i * -x '' -b * -d 15020,15021,15090 -q '' -o 15020 -c '' -k '' \
                            -t 1337 -r 133";
    let pod = |annotations: &[(&str, &str)]| {
        let map: BTreeMap<String, &str> =
            annotations.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect();
        manifest(&json!({ "annotations": map }))
    };
    let traffic =
        |name: &str, value: &str| pod(&[(&format!("traffic.sidecar.istio.io/{name}"), value)]);
    let with = |members: Value| manifest(&proxy(&members));
    let user = |uid: u32, gid: u32| {
        with(json!({ "securityContext": { "runAsUser": uid, "runAsGroup": gid } }))
    };
    let variable = |name: &str, value: &str| manifest(&env(name, value));
    let mode = |value: &str| pod(&[("sidecar.istio.io/interceptionMode", value)]);
    let reroute = "istio.io/reroute-virtual-interfaces";
    let kubevirt = "traffic.sidecar.istio.io/kubevirtInterfaces";
    let cases = [
        (pod(&[]), ""),
        (mode("REDIRECT"), ""),
        (mode("TPROXY"), "-m TPROXY"),
        (traffic("includeOutboundIPRanges", "*"), ""),
        (traffic("includeOutboundIPRanges", ""), "-i ''"),
        (traffic("includeOutboundIPRanges", "10.0.0.0/8,fd00::/8"), "-i 10.0.0.0/8,fd00::/8"),
        (traffic("excludeOutboundIPRanges", ""), ""),
        (traffic("excludeOutboundIPRanges", "10.0.0.0/8,fd00::/8"), "-x 10.0.0.0/8,fd00::/8"),
        (traffic("includeInboundPorts", "*"), ""),
        (traffic("includeInboundPorts", " * "), ""),
        (traffic("includeInboundPorts", ""), "-b '' -d ''"),
        (traffic("includeInboundPorts", "80, 443 ,0,65535"), "-b 80,443,0,65535 -d ''"),
        (traffic("excludeInboundPorts", ""), ""),
        (traffic("excludeInboundPorts", "81"), "-d 81,15020,15021,15090"),
        (traffic("excludeInboundPorts", "15090, 81"), "-d 15090,81,15020,15021"),
        (traffic("includeOutboundPorts", "80, 443"), "-q 80,443"),
        (traffic("excludeOutboundPorts", ""), "-o ''"),
        (traffic("excludeOutboundPorts", "0, 65535"), "-o 0,65535"),
        (traffic("excludeInterfaces", "eth1, net1.5"), "-c eth1,net1.5"),
        (pod(&[(reroute, "a0,b_1-2")]), "-k a0,b_1-2"),
        (pod(&[(kubevirt, "a0")]), "-k a0"),
        (pod(&[(kubevirt, "a0"), (reroute, "b0")]), "-k b0"),
        (pod(&[(kubevirt, "a0"), (reroute, "")]), ""),
        (pod(&[("status.sidecar.istio.io/port", "1")]), ""),
        (with(json!({ "securityContext": {} })), ""),
        (user(42, 43), "-u 42 -g 43"),
        (
            manifest(&json!({ "initContainers":
                [{ "name": "istio-proxy", "securityContext": { "runAsUser": 7 } }],
                "containers": [] })),
            "-u 7",
        ),
        (variable("ISTIO_META_DNS_CAPTURE", "true"), "--redirect-dns --capture-all-dns"),
        (variable("ISTIO_META_DNS_CAPTURE", "0"), ""),
        (variable("INVALID_DROP", "T"), "--drop-invalid"),
        (variable("INVALID_DROP", "false"), ""),
        // Both families are captured with and without it.
        (variable("ISTIO_DUAL_STACK", "true"), ""),
        (variable("ISTIO_DUAL_STACK", "false"), ""),
    ];
    let line = |more: &str| {
        let mut words: Vec<&str> = DEFAULTS.split_ascii_whitespace().collect();
        let more: Vec<&str> = more.split_ascii_whitespace().collect();
        for pair in more.chunks(2).filter(|pair| !pair[0].starts_with("--")) {
            let at = words.iter().position(|word| *word == pair[0]).unwrap();
            words[at + 1] = pair[1];
        }
        words.extend(more.iter().copied().filter(|word| word.starts_with("--")));
        words.join(" ")
    };
    for (pod, flags) in &cases {
        let (found, wanted) = (text(&rules(pod, &[])), text(&ruleset(&line(flags))));
        assert_eq!(found, wanted, "{:?} is not {flags:?}", pod.annotations);
    }
    for (name, value) in [
        ("ISTIO_OUTBOUND_OWNER_GROUPS", "1000,2000"),
        ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "1000"),
        ("ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR", "127.0.0.0/8"),
    ] {
        let wanted = text(&ruleset(&format!("{name}={value} {}", line(""))));
        assert_eq!(text(&rules(&pod(&[]), &[(name, value)])), wanted, "{name}");
        assert_ne!(wanted, text(&ruleset(&line(""))), "{name} changes nothing");
    }
}

/// Verify for each annotation what it may not be.
#[test]
fn every_validation() {
    let ports: &[&str] = &[
        "x", "-1", "65536", "80,", ",80", "80,,81", "80:90", "80-90", "8 0", "0x50", "*,80", "+1",
    ];
    let networks: &[&str] = &[
        "10.0.0.0",
        "10.0.0.0/33",
        "fd00::/129",
        "10.0.0.0/8, 11.0.0.0/8",
        " 10.0.0.0/8",
        "10.0.0.0/8,",
        "*,10.0.0.0/8",
        "10.0.0.0/-1",
        "x/8",
    ];
    let interfaces: &[&str] =
        &["1eth", "-a", "_a", "a b", "a/b", "a:b", "a+", "sixteen-letters-", "a,", ",a", "\u{e9}"];
    let all: &[&str] = &["*"];
    let modes: &[&str] = &["", "NONE", "redirect", "tproxy", " REDIRECT", "REDIRECT,TPROXY"];
    let cases: [(&str, &[&[&str]]); 10] = [
        ("sidecar.istio.io/interceptionMode", &[modes]),
        ("traffic.sidecar.istio.io/includeOutboundIPRanges", &[networks]),
        ("traffic.sidecar.istio.io/excludeOutboundIPRanges", &[networks, all]),
        ("traffic.sidecar.istio.io/includeInboundPorts", &[ports]),
        ("traffic.sidecar.istio.io/excludeInboundPorts", &[ports, all]),
        ("traffic.sidecar.istio.io/includeOutboundPorts", &[ports, all]),
        ("traffic.sidecar.istio.io/excludeOutboundPorts", &[ports, all]),
        ("traffic.sidecar.istio.io/excludeInterfaces", &[interfaces]),
        ("istio.io/reroute-virtual-interfaces", &[interfaces]),
        ("traffic.sidecar.istio.io/kubevirtInterfaces", &[interfaces]),
    ];
    for (name, lists) in cases {
        for value in lists.iter().copied().flatten() {
            let pod = manifest(&json!({ "annotations": { STATUS: SIDECAR, name: value } }));
            let error = policy(&pod, &Defaults::default()).unwrap_err().to_string();
            assert!(error.contains(&format!("annotation {name}: ")), "{value:?}: {error}");
            assert_eq!(error.lines().count(), error.matches(name).count(), "{value:?}: {error}");
        }
    }
}

/// A pod of which all is known, whose annotations are those of the injector that made it.
fn pods() -> impl Strategy<Value = PodFacts> {
    let word = prop::option::of(prop::sample::select(vec!["true", "false", "maybe"]));
    let containers = (any::<bool>(), any::<bool>(), prop::option::of(any::<bool>()));
    let kind = prop::sample::select(vec!["sidecar", "router"]);
    let opaque = any::<bool>();
    let template = prop::option::of(prop::sample::select(vec!["sidecar", "gateway"]));
    (containers, word.clone(), word.clone(), word, kind, opaque, template, any::<bool>()).prop_map(
        |((init, has_proxy, native), label, annotation, off, kind, opaque, template, injected)| {
            let mut first = vec![];
            let mut second = vec![json!({ "name": "web" })];
            if init {
                first.push(json!({ "name": "istio-init" }));
            }
            if has_proxy {
                let env: Vec<Value> =
                    off.iter().map(|v| json!({ "name": "DISABLE_ENVOY", "value": v })).collect();
                let args = json!(["proxy", kind]);
                let proxy = json!({ "name": "istio-proxy", "args": args, "env": env });
                if native == Some(true) { &mut first } else { &mut second }.push(proxy);
            }
            let names = |list: &[Value]| -> Vec<Value> {
                list.iter().map(|c| c["name"].clone()).filter(|name| name != "web").collect()
            };
            let status = json!({ "initContainers": names(&first), "containers": names(&second) });
            let mut annotations = BTreeMap::new();
            if injected {
                let text = if opaque { "true".to_owned() } else { status.to_string() };
                annotations.insert(STATUS, text);
            }
            annotations.extend(annotation.map(|v| (INJECT, v.to_owned())));
            annotations.extend(template.map(|v| (TEMPLATES, v.to_owned())));
            let labels: BTreeMap<&str, &str> = label.map(|v| (INJECT, v)).into_iter().collect();
            manifest(&json!({
                "annotations": annotations, "labels": labels,
                "initContainers": first, "containers": second,
            }))
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Verify that who knows less never lets a pod pass that is captured when all is known.
    #[test]
    fn a_pod_of_the_mesh_never_passes(pod in pods()) {
        let whole = decide(&pod, Node::default());
        prop_assert!(!matches!(whole, Decision::Ask(_)), "{whole:?}");
        let unknown = PodFacts { annotations: None, ..told(&pod) };
        for known in [told(&pod), PodFacts { labels: None, ..pod.clone() }, unknown] {
            let decision = decide(&known, Node::default());
            let passes = matches!(decision, Decision::Pass(_));
            prop_assert!(!passes || whole != Decision::Capture, "{decision:?}, but {whole:?}");
        }
    }
}
