//! `millrace-cni explain`: what ADD would do with a request, and why. Nothing is changed; whoever
//! ADD would ask is asked.

use std::time::Instant;

use serde_json::{Value, json};

use crate::capture::Wanted;
use crate::config::{Config, object};
use crate::decide::{Decided, Origin, Verdict, WHY_CAPTURED, called, resolve, told};
use crate::lookup::Configured;
use crate::protocol::{CniError, Code, Environment, PodArgs};

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
    let config = Config::parse(&object(stdin)?)?;
    let mut config = config;
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
    let pod = told(args, &config);
    let whom = called(&pod);
    let decided = resolve(pod, Origin::Runtime, &config, env.clone(), &mut sources)
        .map_err(|error| error.about(&whom))?;
    Ok((config, decided))
}

fn to_json(config: &Config, decided: &Decided) -> Value {
    let (outcome, reason, rules) = match &decided.verdict {
        Verdict::Pass(why) => ("pass", why.to_string(), None),
        Verdict::Capture(captured) => {
            let rules = Wanted::new(&captured.policy).text();
            ("capture", WHY_CAPTURED.to_owned(), Some(rules))
        }
    };
    json!({
        "outcome": outcome,
        "pod": called(&decided.pod),
        "knownFrom": decided.origins,
        "reason": reason,
        "warnings": warnings(config, decided),
        "nftables": rules,
    })
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
        Verdict::Pass(why) => text.push_str(&format!("{whom} is not captured: {why}\n")),
        Verdict::Capture(captured) => {
            let wanted = Wanted::new(&captured.policy);
            text.push_str(&format!("{whom} is captured: {WHY_CAPTURED}\n{}", wanted.explained()));
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
