//! What the chart gives to the agent: the rights for what is asked for, and no others.

use anyhow::{Context as _, Result};
use millrace_tests::chart::{objects, of_kind, render, text};
use serde_json::{Value, json};

/// Verify that each of istio-cni's ways to repair is the agent's, and that rights are given for what is
/// asked for alone.
#[test]
fn ways_to_repair_and_their_rights() -> Result<()> {
    let capabilities = ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"];
    let in_api = ["events", "delete", "pods/status", "nodes", "namespaces"];
    for (values, mode, allowed) in [
        (json!({}), "off", &[][..]),
        (json!({ "repair": { "enabled": true } }), "in-place", &["events"][..]),
        (json!({ "repair": { "enabled": true, "repairPods": true } }), "in-place", &["events"]),
        (json!({ "repair": { "enabled": true, "repairPods": false } }), "report", &["events"]),
        (
            json!({ "repair": { "enabled": true, "deletePods": true, "repairPods": false } }),
            "delete",
            &["events", "delete"],
        ),
        (
            json!({ "repair": { "enabled": true, "labelPods": true } }),
            "label",
            &["events", "pods/status"],
        ),
        (json!({ "millrace": { "untaint": "a.example/b" } }), "off", &["nodes"]),
        (
            json!({ "repair": { "enabled": true }, "ambient": { "enabled": true },
                    "millrace": { "uninstall": { "enabled": true } } }),
            "off",
            &[],
        ),
        (
            json!({ "cni": { "ambient": { "enabled": true } } }),
            "off",
            &["events", "pods/status", "namespaces"],
        ),
        (
            json!({ "profile": "openshift-ambient" }),
            "off",
            &["events", "pods/status", "namespaces"],
        ),
    ] {
        let files = render(std::slice::from_ref(&values))?.remove(0).map_err(anyhow::Error::msg)?;
        let objects = objects(&text(&files))?;
        let data = &of_kind(&objects, "ConfigMap")?["data"];
        assert_eq!(data["MILLRACE_NODE_REPAIR"], mode, "{values}");
        let label = data["MILLRACE_NODE_REPAIR_LABEL"].as_str();
        let usual = (mode == "label").then_some("cni.istio.io/uninitialized=true");
        assert_eq!(label, usual, "{values}");
        let enrols = allowed.contains(&"namespaces");
        let variable = data["MILLRACE_NODE_AMBIENT"].as_str();
        assert_eq!(variable, enrols.then_some("true"), "{values}");
        let enters = mode != "off" || enrols;
        let spec = &of_kind(&objects, "DaemonSet")?["spec"]["template"]["spec"];
        assert_eq!(spec["hostPID"], Value::Null, "{values}");
        let container = &spec["containers"][0];
        let added = container["securityContext"]["capabilities"]["add"].as_array();
        let added = added.context("capabilities")?;
        for capability in capabilities {
            assert_eq!(added.contains(&json!(capability)), enters, "{values}: {capability}");
        }
        for (list, of) in [("volumes", spec), ("volumeMounts", container)] {
            let all = of[list].as_array().context(list)?;
            for (name, expected) in [("proc", enters), ("ztunnel", enrols)] {
                let named = all.iter().any(|own| own["name"] == name);
                assert_eq!(named, expected, "{values}: {list}: {name}");
            }
        }
        let rules = of_kind(&objects, "ClusterRole")?["rules"].to_string();
        for right in in_api {
            let has = rules.contains(&format!("\"{right}\""));
            assert_eq!(has, allowed.contains(&right), "{values}: {right}: {rules}");
        }
    }
    Ok(())
}

/// Verify that the agent gets what it takes to be the runtime's plugin where it is one alone.
#[test]
fn hooks_and_their_rights() -> Result<()> {
    let uninstalled = json!({ "millrace": { "hook": "nri", "uninstall": { "enabled": true } } });
    let of = |hook: &str| json!({ "millrace": { "hook": hook } });
    for (values, hook) in [
        (of("cni"), None),
        (of("nri"), Some("nri")),
        (of("both"), Some("both")),
        (uninstalled, None),
    ] {
        let files = render(std::slice::from_ref(&values))?.remove(0).map_err(anyhow::Error::msg)?;
        let objects = objects(&text(&files))?;
        let data = &of_kind(&objects, "ConfigMap")?["data"];
        assert_eq!(data["MILLRACE_NODE_HOOK"].as_str(), hook, "{values}");
        let spec = &of_kind(&objects, "DaemonSet")?["spec"]["template"]["spec"];
        let container = &spec["containers"][0];
        let socket = hook.map(|_| "/host/nri/nri.sock");
        assert_eq!(data["MILLRACE_NODE_NRI_SOCKET"].as_str(), socket, "{values}");
        assert_eq!(data["MILLRACE_NODE_PROC_DIR"].as_str(), hook.map(|_| "/host/proc"), "{values}");
        let added = container["securityContext"]["capabilities"]["add"].to_string();
        for capability in ["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"] {
            assert_eq!(added.contains(capability), hook.is_some(), "{values}: {capability}");
        }
        for (list, of) in [("volumes", spec), ("volumeMounts", container)] {
            for name in ["proc", "nri"] {
                let mut each = of[list].as_array().context(list)?.iter();
                let is = each.any(|own| own["name"] == name);
                assert_eq!(is, hook.is_some(), "{values}: {list}: {name}");
            }
        }
    }
    Ok(())
}
