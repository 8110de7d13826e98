//! `millrace-cni explain`: what ADD would do with a request, and why. Nothing is changed; whoever
//! ADD would ask is asked.

use std::time::Instant;

use millrace_core::desired::Desired;
use serde_json::{Value, json};

use crate::capture::{explained, transaction};
use crate::config::{Config, object};
use crate::decide::{Captured, Decided, Disposition, Origin, called, reported, resolve};
use crate::lookup::Configured;
use crate::protocol::{CniError, Code, Environment, Object, PodArgs};

/// How entries of this plugin are called.
const TYPE: &str = "millrace-cni";
/// A pod of which nothing is told but its annotations.
const SOME_POD: &str = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod";

/// What ADD would do: whether it would succeed, and as text or JSON why.
pub(crate) fn explain(env: &Environment, stdin: &str, as_json: bool) -> (bool, String) {
    let began = Instant::now();
    let result = decided(env, stdin, began);
    let good = result.is_ok();
    let text = match (&result, as_json) {
        (Ok((config, decided)), true) => format!("{:#}\n", to_json(config, decided)),
        (Ok((config, decided)), false) => to_text(config, decided),
        (Err(error), true) => {
            let code = error.code.number();
            let error = json!({ "outcome": "fail", "code": code, "msg": error.msg });
            format!("{error:#}\n")
        }
        (Err(error), false) => {
            let code = error.code.number();
            format!("ADD fails with code {code}: {}\n", error.msg.replace("; ", ";\n    "))
        }
    };
    (good, text)
}

fn decided(env: &Environment, stdin: &str, began: Instant) -> Result<(Config, Decided), CniError> {
    let (entry, taken) = entry(object(stdin)?)?;
    let mut config = Config::parse(&entry)?;
    config.warnings.extend(taken);
    let args = env.get("CNI_ARGS").map_or_else(
        || {
            let named = "CNI_ARGS is not set: taken for a pod of Kubernetes, default/pod";
            config.warnings.push(named.to_owned());
            SOME_POD
        },
        String::as_str,
    );
    let args = PodArgs::parse(args)
        .map_err(|error| CniError::new(Code::BadEnvironment, error.to_string()))?;
    let mut sources = Configured { config: &config, deadline: began + config.deadline };
    let pod = reported(args, &config);
    let whom = called(&pod);
    let decided = resolve(pod, Origin::Runtime, &config, env.clone(), &mut sources);
    let decided = decided.map_err(|error| {
        // What was taken for what may be why it fails.
        let CniError { msg, .. } = error.clone().about(&whom);
        let msg = [msg].into_iter().chain(config.warnings.iter().cloned());
        CniError { msg: msg.collect::<Vec<_>>().join("; "), ..error }
    })?;
    Ok((config, decided))
}

/// The plugin's entry as a runtime passes it, which has the name and version of the list, and where it
/// was found if the whole list came.
fn entry(object: Object) -> Result<(Object, Option<String>), CniError> {
    let Some(plugins) = object.get("plugins") else { return Ok((object, None)) };
    let bad = |msg: String| CniError::new(Code::BadConfig, msg);
    let entries: Vec<Object> = serde_json::from_str(plugins.get())
        .map_err(|error| bad(format!("the list of plugins can't be read: {error}")))?;
    let kind = |entry: &Object| -> String {
        let kind = entry.get("type").and_then(|raw| serde_json::from_str(raw.get()).ok());
        kind.unwrap_or_else(|| "(no type)".to_owned())
    };
    let ours: Vec<usize> = (0..entries.len()).filter(|at| kind(&entries[*at]) == TYPE).collect();
    let [at] = ours[..] else {
        let kinds = entries.iter().map(kind).collect::<Vec<_>>().join(", ");
        return Err(bad(format!(
            "this is a list of {} plugins ({kinds}), and {} of them is of type {TYPE}: one has to be",
            entries.len(),
            if ours.is_empty() {
                "none".to_owned()
            } else {
                format!("more than one ({})", ours.len())
            },
        )));
    };
    let mut entry = entries[at].clone();
    for name in ["name", "cniVersion"] {
        let value = object.get(name).and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        if let Some(value) = value {
            entry.set_text(name, &value);
        }
    }
    let note = format!(
        "this is a whole list of {} plugins: entry {} of type {TYPE} was taken, with the list's name and \
         version, as a runtime does; what a runtime adds to it is missing, such as the pod's annotations",
        entries.len(),
        at + 1
    );
    Ok((entry, Some(note)))
}

fn to_json(config: &Config, decided: &Decided) -> Value {
    let (outcome, mesh, reason, rules) = match &decided.verdict {
        Disposition::Pass(why) => ("pass", None, decided.passed(why), None),
        Disposition::Capture(captured) => {
            let mesh = captured.mesh;
            let rules = transaction(&desired(captured));
            ("capture", Some(mesh), mesh.why().to_owned(), Some(rules))
        }
    };
    json!({
        "outcome": outcome,
        "pod": called(&decided.pod),
        "knownFrom": decided.origins,
        "mesh": mesh,
        "reason": reason,
        "warnings": warnings(config, decided),
        "nftables": rules,
    })
}

fn desired(captured: &Captured) -> Desired {
    Desired::new(captured.policy.clone(), captured.mesh.dialect())
}

fn warnings<'a>(config: &'a Config, decided: &'a Decided) -> Vec<&'a String> {
    config.warnings.iter().chain(&decided.warnings).collect()
}

fn to_text(config: &Config, decided: &Decided) -> String {
    let whom = called(&decided.pod);
    let mut text = String::new();
    for warning in warnings(config, decided) {
        text.push_str(&format!("warning: {warning}\n"));
    }
    let origins: Vec<String> = decided
        .origins
        .iter()
        .filter_map(|origin| serde_json::to_value(origin).ok()?.as_str().map(str::to_owned))
        .collect();
    text.push_str(&format!("known from: {}\n", origins.join(", ")));
    match &decided.verdict {
        Disposition::Pass(why) => {
            text.push_str(&format!("{whom} is not captured: {}\n", decided.passed(why)));
        }
        Disposition::Capture(captured) => {
            let rules = explained(&desired(captured));
            text.push_str(&format!("{whom} is captured: {}\n{rules}", captured.mesh.why()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(annotations: &Value) -> String {
        json!({
            "cniVersion": "1.0.0",
            "name": "net",
            "runtimeConfig": { "io.kubernetes.cri.pod-annotations": annotations },
        })
        .to_string()
    }

    #[test]
    fn a_whole_list_is_explained_by_its_entry() {
        let reported = |plugins: &Value| {
            let list = json!({ "cniVersion": "1.0.0", "name": "net", "plugins": plugins });
            explain(&Environment::new(), &list.to_string(), false)
        };
        let ours = json!({ "type": "millrace-cni", "exclude_namespaces": ["default"] });
        let other = json!({ "type": "bridge" });
        let (good, text) = reported(&json!([other, ours]));
        assert!(good && text.contains("entry 2 of type millrace-cni was taken"), "{text}");
        assert!(text.contains("namespace default is excluded"), "{text}");
        for (plugins, part) in [
            (json!([other]), "(bridge), and none of them"),
            (json!([ours, ours]), "more than one (2)"),
            (json!([{}]), "((no type)), and none"),
            (json!(7), "can't be read"),
        ] {
            let (good, text) = reported(&plugins);
            assert!(!good && text.contains("code 7") && text.contains(part), "{text}");
        }
    }

    #[test]
    fn rules_of_both_families_are_told() {
        let annotations =
            json!({ "sidecar.istio.io/status": "{\"containers\":[\"istio-proxy\"]}" });
        let (good, text) = explain(&Environment::new(), &request(&annotations), false);
        assert!(good && text.contains("-d 127.0.0.1/32") && text.contains("-d ::1/128"), "{text}");
        let found = |family| text.find(family).unwrap_or(usize::MAX);
        assert!(found("# IPv4") < found("# IPv6"), "{text}");
    }

    proptest! {
        /// Whatever comes in, there is an answer.
        #[test]
        fn no_input_is_a_fault(stdin in any::<String>(), args in any::<String>()) {
            let env = Environment::from([("CNI_ARGS".to_owned(), args)]);
            let (good, text) = explain(&env, &stdin, false);
            prop_assert!(!text.is_empty() && !good);
        }

        /// No value of an annotation is ever found in a rule, unless it is one.
        #[test]
        fn values_do_not_reach_rules(value in "[-a-z0-9;*|&$'\"\\\\ \n{}]{1,20}X[-a-z ;]{0,9}") {
            for name in ["excludeOutboundPorts", "includeInboundPorts", "excludeOutboundIPRanges"] {
                let annotations = json!({
                    "sidecar.istio.io/status": "{\"containers\":[\"istio-proxy\"]}",
                    format!("traffic.sidecar.istio.io/{name}"): value,
                });
                let stdin = request(&annotations);
                let (good, text) = explain(&Environment::new(), &stdin, true);
                prop_assert!(!good, "{text}");
                prop_assert!(text.contains("\"code\": 102"), "{text}");
            }
        }
    }
}
