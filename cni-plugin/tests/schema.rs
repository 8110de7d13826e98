//! Verify the published schema: the examples in the documentation fit it, and it takes and refuses
//! the values that the plugin takes and refuses.

use jsonschema::Validator;
use millrace_cni::config::{Config, KEYS, Owner, Shape, object, schema};
use serde_json::{Value, json};

/// The document that shows entries.
const DOCUMENT: &str = include_str!("../../docs/cni.md");

fn validator() -> Validator {
    let schema = schema();
    jsonschema::meta::validate(&schema).expect("the schema is one");
    jsonschema::draft202012::new(&schema).expect("the schema can be used")
}

/// The blocks of JSON in a document.
fn examples(text: &str) -> Vec<Value> {
    let blocks = text.split("```json\n").skip(1);
    let block = |rest: &str| rest.split("```").next().map(str::to_owned);
    blocks.filter_map(block).map(|text| serde_json::from_str(&text).expect(&text)).collect()
}

/// What the plugin says of an entry: the error, and whether it warns.
fn read(entry: &Value) -> (Result<(), String>, bool) {
    let mut entry = entry.clone();
    // What the runtime puts in.
    entry["cniVersion"] = json!("1.1.0");
    entry["name"] = json!("net");
    match Config::parse(&object(&entry.to_string()).expect("an object")) {
        Ok(config) => (Ok(()), !config.warnings.is_empty()),
        Err(error) => (Err(error.msg), false),
    }
}

/// Verify that every entry that is shown fits the schema, and is taken without a warning.
#[test]
fn the_examples_fit() {
    let validator = validator();
    let examples = examples(DOCUMENT);
    assert!(!examples.is_empty(), "docs/cni.md shows no entry");
    for example in examples {
        let errors: Vec<String> =
            validator.iter_errors(&example).map(|error| error.to_string()).collect();
        assert_eq!(errors, Vec::<String>::new(), "{example}");
        assert_eq!(read(&example), (Ok(()), false), "{example}");
    }
}

/// Verify that istio-cni's entry fits, as its installer writes it, but for the type.
#[test]
fn the_entry_of_istio_cni_fits() {
    let selector = json!({ "podSelector": { "matchLabels": { "a": "b" } } });
    let entry = json!({
        "type": "millrace-cni",
        "name": "istio-cni",
        "plugin_log_level": "info",
        "cni_agent_run_dir": "/var/run/istio-cni",
        "ambient_enabled": false,
        "enablement_selectors": [selector],
        "exclude_namespaces": ["kube-system"],
        "pod_namespace": "istio-system",
        "native_nftables": false,
        "enable_ambient_detection_retry": false,
        "ipam": {},
        "dns": {},
    });
    assert!(validator().is_valid(&entry));
    assert_eq!(read(&entry), (Ok(()), false));
    let older = json!({
        "cniVersion": "0.3.1",
        "type": "millrace-cni",
        "name": "istio-cni",
        "log_level": "info",
        "log_uds_address": "/var/run/istio-cni/log.sock",
        "cni_event_address": "/var/run/istio-cni/pluginevent.sock",
        "kubernetes": {
            "kubeconfig": "/etc/cni/net.d/ZZZ-istio-cni-kubeconfig",
            "exclude_namespaces": ["kube-system"],
        },
    });
    assert!(validator().is_valid(&older));
    assert_eq!(read(&older), (Ok(()), false));
    let all = KEYS.iter().filter(|key| key.owner == Owner::Istio);
    for key in all {
        let tried = [&entry, &older].iter().any(|entry| entry.get(key.name).is_some());
        assert!(tried, "{} is not tried", key.name);
    }
}

/// Values that a key of a shape takes, and values that it does not.
fn values(shape: Shape) -> (Vec<Value>, Vec<Value>) {
    match shape {
        Shape::Text => (vec![json!("x"), json!("")], vec![json!(1), json!([])]),
        Shape::Choice(words) => {
            (words.iter().map(|word| json!(word)).collect(), vec![json!("x"), json!(1)])
        }
        Shape::Switch => (vec![json!(true), json!(false)], vec![json!("true"), json!(1)]),
        Shape::Texts => (
            vec![json!([]), json!(["a", "b"])],
            vec![json!("a"), json!([1]), json!({}), json!([["a"]])],
        ),
        Shape::TextMap => {
            (vec![json!({}), json!({ "a": "b" })], vec![json!([]), json!({ "a": 1 }), json!("a")])
        }
        Shape::Id => (
            vec![json!(1), json!(4_294_967_294_u32)],
            vec![json!(0), json!(4_294_967_295_u32), json!(-1), json!("1"), json!(1.5)],
        ),
        Shape::Number(least) => (
            vec![json!(least), json!(least + 1)],
            vec![json!(least - 1), json!(-1), json!("5000"), json!(1.5)],
        ),
        Shape::Port => (
            vec![json!(1), json!(65535)],
            vec![json!(0), json!(65536), json!("80"), json!(1.5), json!([])],
        ),
        Shape::Ports => (
            vec![json!([]), json!([80, 443])],
            vec![json!(80), json!(["80"]), json!([0]), json!([65536]), json!("80,443")],
        ),
        Shape::IdOrNone => (
            vec![json!(-1), json!(0), json!(1), json!(4_294_967_294_u32)],
            vec![json!(-2), json!(4_294_967_295_u32), json!("1"), json!(1.5)],
        ),
        Shape::Object(_) => (vec![json!({})], vec![json!([]), json!("a"), json!(1)]),
        Shape::Duration => (
            vec![json!("15s"), json!("1m30s"), json!("1.5s"), json!("500ms"), json!("24h")],
            vec![json!("15"), json!(15), json!("s"), json!(""), json!("1 s"), json!("-1s")],
        ),
        Shape::Path => (vec![json!("/x"), json!("/")], vec![json!("x"), json!("./x"), json!(1)]),
        // A name alone is one where another key has its folder.
        Shape::PathOrName => (vec![json!("/x")], vec![json!("./x"), json!("a/b"), json!(1)]),
        Shape::Any => (vec![], vec![]),
    }
}

/// Verify for every key but those that the runtime writes that schema and plugin agree.
#[test]
fn schema_and_plugin_agree() {
    let validator = validator();
    for key in KEYS.iter().filter(|key| key.owner != Owner::Cni) {
        let (good, bad) = values(key.shape);
        for (values, wanted) in [(good, true), (bad, false)] {
            for value in values {
                let entry = json!({ "type": "millrace-cni", key.name: value });
                let what = format!("{}: {value}", key.name);
                assert_eq!(validator.is_valid(&entry), wanted, "the schema, {what}");
                let (read, warned) = read(&entry);
                // A level of the log that is none costs a warning: it must not stop a pod.
                let taken = read.is_ok() && !warned;
                assert_eq!(taken, wanted, "the plugin, {what}: {read:?}");
            }
        }
    }
    for unknown in ["exclude_namespace", "Kubeconfigs", "x"] {
        let entry = json!({ "type": "millrace-cni", unknown: 1 });
        assert!(!validator.is_valid(&entry), "{unknown}");
        assert_eq!(read(&entry), (Ok(()), true), "{unknown}");
    }
    let reserved = json!({ "type": "millrace-cni", "cni.dev/anything": 1 });
    assert!(validator.is_valid(&reserved) && read(&reserved) == (Ok(()), false));
}
