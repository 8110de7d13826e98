//! The CNI specification 1.1.0, as far as it says what a plugin must do: a test for each sentence,
//! named after it. What it asks of plugins that make interfaces or delegate to others concerns
//! none that is chained behind them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::cni::{Call, Host, Pod, mesh};
use serde_json::{Value, json};

const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// What the plugins before may have said, with much that no version knows.
fn previous(version: &str) -> Value {
    json!({
        "zebra": { "kept": [1, null, "x"] },
        "cniVersion": version,
        "interfaces": [
            { "name": "cni0", "mac": "0a:00:00:00:00:01" },
            { "name": "eth0", "sandbox": "/run/netns/x", "mtu": 1500, "socketPath": "/s" },
        ],
        "ips": [{ "version": "4", "address": "10.1.0.2/24", "interface": 1 }],
        "routes": [{ "dst": "0.0.0.0/0", "advmss": 1460, "scope": 0 }],
        "dns": {},
    })
}

fn mesh_add(host: &Host, pod: &Pod) -> Call {
    Call::new(host, "ADD", pod, mesh(&[]))
}

// Section 2, «Parameters».

/// «`CNI_COMMAND`: indicates the desired operation; ADD, DEL, CHECK, GC, or VERSION», and STATUS.
#[test]
fn an_unknown_command_must_be_an_error() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    for command in ["", "add", "UPDATE"] {
        let said = mesh_add(&host, &pod).to(command).run(&host)?.failure(4)?;
        ensure!(said.contains("CNI_COMMAND"), "{said}");
    }
    ensure!(!host.rules(&pod)?.contains("millrace"));
    Ok(())
}

/// «`CNI_CONTAINERID`: must not be empty, must start with an alphanumeric character, optionally
/// followed by any combination of alphanumeric characters, underscore, dot or hyphen».
#[test]
fn a_container_id_must_be_well_formed() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    for command in ["ADD", "CHECK", "DEL"] {
        for bad in ["", "-a", ".a", "a/b", "../a", "a b", "a\u{e9}"] {
            let call = mesh_add(&host, &pod).to(command).with_env("CNI_CONTAINERID", bad);
            let said = call.run(&host)?.failure(4)?;
            ensure!(said.contains("CNI_CONTAINERID"), "{said}");
        }
    }
    ensure!(!host.rules(&pod)?.contains("millrace"));
    Ok(())
}

/// «`CNI_IFNAME`: if the plugin is unable to use this interface name it must return an error».
#[test]
fn an_interface_name_that_cannot_be_used_must_be_an_error() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    for bad in ["", ".", "..", "a/b", "a:b", "a b", "1234567890123456"] {
        let call = mesh_add(&host, &pod).with_env("CNI_IFNAME", bad);
        let said = call.run(&host)?.failure(4)?;
        ensure!(said.contains("CNI_IFNAME"), "{said}");
    }
    Ok(())
}

/// Section 5, «Error», code 4: «The error message must contain the names of invalid variables».
#[test]
fn the_message_must_name_every_variable_that_is_missing() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let needed = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"];
    for (command, names) in
        [("ADD", &needed[..]), ("CHECK", &needed), ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"])]
    {
        let mut call = mesh_add(&host, &pod).to(command);
        for name in names {
            call = call.without_env(name);
        }
        let said = call.run(&host)?.failure(4)?;
        ensure!(names.iter().all(|name| said.contains(name)), "{command}: {said}");
    }
    Ok(())
}

// Section 2, «Errors».

/// «A plugin must exit with a return code of 0 on success, and non-zero on failure»; its error is
/// an object on standard output.
#[test]
fn a_plugin_must_exit_with_0_on_success_and_otherwise_on_failure() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    mesh_add(&host, &pod).run(&host)?.success()?;
    for (stdin, code) in [("", 6), ("{", 6), ("[]", 6), ("null", 6), ("{\"a\":", 6)] {
        mesh_add(&host, &pod).run_with(&host, stdin)?.failure(code)?;
    }
    for bad in [json!(""), json!("a b"), json!(7), json!(null)] {
        let said = mesh_add(&host, &pod).with_key("name", bad).run(&host)?.failure(7)?;
        ensure!(said.contains("name") && said.contains(&pod.name), "{said}");
    }
    Ok(())
}

// Section 2, «ADD».

/// «If the CNI plugin is successful, it must output a result structure on standard out», whose
/// version is that of the request (section 5, «ADD Success»), in every version.
#[test]
fn add_must_output_a_result_of_the_version_of_the_request() -> Result<()> {
    let host = Host::new()?;
    for version in VERSIONS {
        for annotations in [mesh(&[]), json!({})] {
            let pod = host.pod()?;
            let call = Call::new(&host, "ADD", &pod, annotations)
                .with_key("cniVersion", json!(version))
                .with_key("prevResult", previous("0.4.0"));
            let result = call.run(&host)?.success()?;
            assert_eq!(result["cniVersion"], version);
            let alone = call.without_key("prevResult").run(&host)?.success()?;
            assert_eq!(alone, json!({ "cniVersion": version }));
        }
    }
    Ok(())
}

/// Section 5: «If a plugin makes no changes that would be reflected in the Success result type,
/// then it must output a result equivalent to the provided prevResult».
#[test]
fn add_must_pass_prev_result_on() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    // Order, unknown members, white space, numbers that no float can hold.
    let text =
        r#"{"z":1500000000000000001,"cniVersion":"1.1.0","ips":[],"a":{"n":1e999,"é":"\u00e9"}}"#;
    for annotations in [mesh(&[]), json!({})] {
        let call = Call::new(&host, "ADD", &pod, annotations).without_key("prevResult");
        let stdin = call.config.to_string().replacen('{', &format!("{{\"prevResult\":{text},"), 1);
        let reply = call.run_with(&host, &stdin)?;
        assert_eq!(reply.code, Some(0), "{reply:?}");
        assert_eq!(reply.text, text);
        // Only the version is that of the request.
        let older = call.with_key("cniVersion", json!("0.4.0")).config.to_string();
        let older = older.replacen('{', &format!("{{\"prevResult\":{text},"), 1);
        let reply = mesh_add(&host, &pod).run_with(&host, &older)?;
        assert_eq!(reply.text, text.replace("1.1.0", "0.4.0"));
    }
    for bad in [json!([]), json!("x"), json!(7)] {
        mesh_add(&host, &pod).with_key("prevResult", bad).run(&host)?.failure(6)?;
    }
    Ok(())
}

// Section 2, «DEL».

/// «Plugins MUST accept multiple DEL calls for the same (`CNI_CONTAINERID`, `CNI_IFNAME`) pair, and
/// return success if the interface in question, or any modifications added, are missing».
#[test]
fn del_must_succeed_again_and_with_everything_missing() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let add = mesh_add(&host, &pod);
    let del = add.clone().to("DEL");
    // Without an ADD before, and after one, more than once.
    del.run(&host)?.success()?;
    add.run(&host)?.success()?;
    for _ in 0..3 {
        assert_eq!(del.run(&host)?.success()?, Value::Null);
        ensure!(!host.rules(&pod)?.contains("millrace"));
    }
    // Each thing that ADD has is missing by itself, then all of them.
    add.run(&host)?.success()?;
    let bare = del.clone().without_key("prevResult").without_key("runtimeConfig");
    bare.run(&host)?.success()?;
    bare.clone().with_env("CNI_NETNS", "").run(&host)?.success()?;
    bare.clone().without_env("CNI_NETNS").without_env("CNI_ARGS").run(&host)?.success()?;
    bare.clone().with_env("CNI_NETNS", "/run/netns/gone").run(&host)?.success()?;
    for stdin in ["", "{", "[]", "{}", r#"{"cniVersion":"9.9.9","name":7,"deadline":"x"}"#] {
        bare.run_with(&host, stdin)?.success()?;
    }
    host.remove(&pod)?;
    del.run(&host)?.success()?;
    Ok(())
}

/// «Upon receiving a DEL command, a plugin should delete … or undo any modifications applied in
/// its ADD functionality», also after an ADD that failed or never ran to its end.
#[test]
fn del_must_undo_what_add_did() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let before = host.inside(&pod, millrace_tests::snapshot::Snapshot::take)?;
    for backend in ["nftables", "iptables"] {
        for mode in ["REDIRECT", "TPROXY"] {
            let annotations = mesh(&[("sidecar.istio.io/interceptionMode", mode)]);
            let call =
                Call::new(&host, "ADD", &pod, annotations).with_key("backend", json!(backend));
            call.run(&host)?.success()?;
            let captured = host.inside(&pod, millrace_tests::snapshot::Snapshot::take)?;
            ensure!(!before.differences(&captured).is_empty(), "{backend} {mode}");
            call.to("DEL").run(&host)?.success()?;
            let after = host.inside(&pod, millrace_tests::snapshot::Snapshot::take)?;
            assert_eq!(before.differences(&after), "", "{backend} {mode}");
        }
    }
    Ok(())
}

/// Section 3, «Lifecycle & Ordering»: «Plugins must handle being executed concurrently across
/// different containers».
#[test]
fn plugins_must_handle_being_executed_concurrently() -> Result<()> {
    let host = Host::new()?;
    let pods: Vec<Pod> = (0..12).map(|_| host.pod()).collect::<Result<_>>()?;
    // Every other one begins where its neighbour ends.
    for pod in pods.iter().step_by(2) {
        mesh_add(&host, pod).run(&host)?.success()?;
    }
    for turn in 0..4 {
        let calls = pods.iter().enumerate().map(|(index, pod)| {
            let command = if (index + turn) % 2 == 0 { "DEL" } else { "ADD" };
            mesh_add(&host, pod).to(command).start(&host)
        });
        for child in calls.collect::<Result<Vec<_>>>()? {
            let output = child.wait_with_output()?;
            ensure!(output.status.success(), "{output:?}");
        }
        for (index, pod) in pods.iter().enumerate() {
            let captured = host.rules(pod)?.contains("table inet millrace");
            assert_eq!(captured, (index + turn) % 2 != 0, "pod {index} at turn {turn}");
        }
        assert_eq!(host.state_dir().read_dir()?.count(), pods.len() / 2);
    }
    Ok(())
}

// Section 2, «CHECK».

/// «The plugin must return an error if … firewall rules … are missing or are in an invalid state»,
/// and «must handle CHECK being called immediately after an ADD».
#[test]
fn check_must_see_that_rules_are_missing_and_pass_right_after_add() -> Result<()> {
    let host = Host::new()?;
    for backend in ["nftables", "iptables", "auto"] {
        let pod = host.pod()?;
        let add = mesh_add(&host, &pod).with_key("backend", json!(backend));
        let check = add.clone().to("CHECK");
        let said = check.run(&host)?.failure(101)?;
        ensure!(said.contains(&pod.name) && said.contains("no rules"), "{said}");
        add.run(&host)?.success()?;
        for _ in 0..2 {
            let began = Instant::now();
            assert_eq!(check.run(&host)?.success()?, Value::Null);
            ensure!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        }
        // Any rule that is gone is noticed, and so is one more.
        let table = if backend == "iptables" { "ip nat" } else { "inet millrace" };
        let text =
            host.inside(&pod, |inside| inside.run("nft", &["--handle", "list", "table", table]));
        let text = text.with_context(|| format!("table {table}"))?;
        let (chain, handle) = first_rule(&text)?;
        host.inside(&pod, |inside| {
            let table = table.split(' ').collect::<Vec<_>>();
            let [family, name] = table.as_slice() else { anyhow::bail!("a table") };
            inside.run("nft", &["delete", "rule", family, name, &chain, "handle", &handle])
        })?;
        let said = check.run(&host)?.failure(101)?;
        ensure!(said.contains("to repair"), "{said}");
        add.run(&host)?.success()?;
        check.run(&host)?.success()?;
        host.inside(&pod, |inside| inside.run("nft", &["flush", "ruleset"]))?;
        check.run(&host)?.failure(101)?;
    }
    Ok(())
}

/// The first rule of a listing with handles: its chain and its handle.
fn first_rule(text: &str) -> Result<(String, String)> {
    let mut chain = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("chain ") {
            name.split(' ').next().unwrap_or_default().clone_into(&mut chain);
        } else if let Some((rule, handle)) = line.rsplit_once("# handle ")
            && (rule.contains("counter") || rule.contains("return") || rule.contains("jump"))
        {
            return Ok((chain, handle.to_owned()));
        }
    }
    anyhow::bail!("no rule in\n{text}")
}

/// «The plugin must consult the prevResult», so there must be one; and a pod that is not captured
/// is as it should be without rules.
#[test]
fn check_must_be_given_prev_result_and_passes_a_pod_outside_the_mesh() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let plain = Call::new(&host, "CHECK", &pod, json!({}));
    plain.run(&host)?.success()?;
    let said = plain.without_key("prevResult").run(&host)?.failure(7)?;
    ensure!(said.contains("prevResult"), "{said}");
    Ok(())
}

/// «The plugin must allow for a later chained plugin to have modified networking resources».
#[test]
fn check_must_allow_for_what_later_plugins_do() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let add = mesh_add(&host, &pod);
    add.run(&host)?.success()?;
    host.inside(&pod, |inside| {
        inside.ip("addr add 10.9.9.9/32 dev lo\nroute add 10.9.0.0/16 dev lo")?;
        inside.feed(
            "nft",
            &["-f", "-"],
            "table inet firewall { chain input { type filter hook input priority 0; accept; }; }",
        )
    })?;
    add.to("CHECK").run(&host)?.success()?;
    Ok(())
}

// Section 2, «STATUS».

/// «A plugin must exit with a zero (success) return code if the plugin is ready to service ADD
/// requests. If … not able …, it must exit with a non-zero return code and output an error».
#[test]
fn status_must_tell_whether_add_would_work() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let status = mesh_add(&host, &pod).to("STATUS");
    let status = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS"]
        .into_iter()
        .fold(status, Call::without_env)
        .without_key("prevResult")
        .without_key("runtimeConfig");
    assert_eq!(status.run(&host)?.success()?, Value::Null);
    // Without annotations from the runtime somebody has to be asked, and nobody is there.
    let blind = status.clone().with_key("capabilities", json!({}));
    let said = blind.run(&host)?.failure(50)?;
    ensure!(said.contains("kubeconfig"), "{said}");
    let gone = blind.with_key("agent_socket", json!("/no/agent.sock"));
    let gone = gone.with_key("kubeconfig", json!("/no/kubeconfig"));
    let said = gone.run(&host)?.failure(50)?;
    ensure!(said.contains("/no/agent.sock") && said.contains("/no/kubeconfig"), "{said}");
    // Nor does a runtime tell them where the entry has no capabilities at all: ADD fails as well.
    let bare = mesh_add(&host, &pod).without_key("capabilities").without_key("runtimeConfig");
    for (call, part) in [
        (bare.clone(), "set kubeconfig"),
        (bare.with_key("kubeconfig", json!("/no/kubeconfig")), "/no/kubeconfig"),
    ] {
        let call = call.with_key("deadline", json!("1s"));
        ensure!(call.run(&host)?.failure(11)?.contains(part), "{part}");
        let said = call.clone().to("STATUS").run(&host)?.failure(50)?;
        ensure!(said.contains(part), "{said}");
        // One that tells them with the request does so with others.
        let told = mesh_add(&host, &pod).without_key("capabilities").to("STATUS");
        told.run(&host)?.success()?;
    }
    Ok(())
}

/// «A plugin MUST NOT rely on STATUS being called», and «Plugins should always expect other CNI
/// operations (like ADD, DEL, etc) even if STATUS returns an error».
#[test]
fn a_plugin_must_not_rely_on_status() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let add = mesh_add(&host, &pod);
    // On a new host nobody has called it yet.
    add.run(&host)?.success()?;
    let status = add.clone().to("STATUS").with_key("capabilities", json!({}));
    status.without_key("runtimeConfig").run(&host)?.failure(50)?;
    for command in ["CHECK", "DEL", "ADD", "CHECK", "DEL"] {
        add.clone().to(command).run(&host)?.success()?;
    }
    Ok(())
}

// Section 2, «GC».

/// What is not listed goes, whether its namespace is there or not; what is listed stays; null is
/// an empty list; «a plugin should continue; removing as many resources as possible».
#[test]
fn gc_must_remove_what_is_not_valid_and_nothing_else() -> Result<()> {
    let host = Host::new()?;
    let pods: Vec<Pod> = (0..4).map(|_| host.pod()).collect::<Result<_>>()?;
    for pod in &pods {
        mesh_add(&host, pod).run(&host)?.success()?;
    }
    // Another network's pods are none of this one's business.
    let other = host.pod()?;
    mesh_add(&host, &other).with_key("name", json!("other")).run(&host)?.success()?;
    host.remove(&pods[1])?;
    // What is left of a namespace when its runtime dies between unmounting and removing it.
    host.remove(&pods[3])?;
    let empty = pods[3].netns.to_str().context("a path")?;
    host.namespace.run("touch", &[empty])?;
    let gc = |valid: Value| {
        let call = mesh_add(&host, &pods[0]).to("GC").with_key("cni.dev/valid-attachments", valid);
        call.without_key("prevResult").without_env("CNI_CONTAINERID").without_env("CNI_NETNS")
    };
    let captured =
        |pod: &Pod| -> Result<bool> { Ok(host.rules(pod)?.contains("table inet millrace")) };
    let valid = json!([{ "containerID": pods[0].id, "ifname": "eth0" }]);
    assert_eq!(gc(valid.clone()).run(&host)?.success()?, Value::Null);
    ensure!(captured(&pods[0])? && !captured(&pods[2])? && captured(&other)?);
    assert_eq!(host.state_dir().read_dir()?.count(), 2);
    gc(valid).run(&host)?.success()?;
    gc(Value::Null).run(&host)?.success()?;
    ensure!(!captured(&pods[0])? && captured(&other)?);
    let said = gc(json!([])).without_key("cni.dev/valid-attachments").run(&host)?.failure(7)?;
    ensure!(said.contains("cni.dev/valid-attachments"), "{said}");
    Ok(())
}

// Section 2, «VERSION».

/// Section 5, «VERSION»: «Plugins must output … cniVersion: the value of cniVersion specified on
/// input; supportedVersions: a list of supported specification versions».
#[test]
fn version_must_name_the_supported_versions() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    for version in VERSIONS {
        let reply = mesh_add(&host, &pod)
            .to("VERSION")
            .with_env("CNI_NETNS", "dummy")
            .with_env("CNI_IFNAME", "dummy")
            .without_env("CNI_CONTAINERID")
            .run_with(&host, &json!({ "cniVersion": version }).to_string())?;
        let wanted = json!({ "cniVersion": version, "supportedVersions": VERSIONS });
        assert_eq!(reply.success()?, wanted);
    }
    Ok(())
}

// Section 1 and 5, versions.

/// Code 1: «Incompatible CNI version»; a command must not be used with a version that has it not.
#[test]
fn a_version_that_is_not_spoken_must_be_refused() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let add = mesh_add(&host, &pod);
    for bad in ["0.1.0", "0.2.0", "2.0.0", "x", ""] {
        let said = add.clone().with_key("cniVersion", json!(bad)).run(&host)?.failure(1)?;
        ensure!(said.contains(bad) && said.contains("1.1.0"), "{said}");
    }
    add.clone().without_key("cniVersion").run(&host)?.failure(1)?;
    for (command, first) in [("CHECK", 2), ("GC", 4), ("STATUS", 4)] {
        for version in &VERSIONS[..first] {
            let call = add.clone().to(command).with_key("cniVersion", json!(version));
            call.run(&host)?.failure(1)?;
        }
    }
    ensure!(!host.rules(&pod)?.contains("millrace"));
    Ok(())
}

/// «In addition, stderr can be used for unstructured output such as logs»: standard output holds
/// nothing else than the result, and each line of the log is an object with its decision.
#[test]
fn the_log_must_not_be_on_standard_output() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    for (annotations, decision) in [(mesh(&[]), "captured"), (json!({}), "not captured")] {
        let call = Call::new(&host, "ADD", &pod, annotations)
            .with_key("unknown_key", json!(1))
            .with_key("plugin_log_level", json!("debug"));
        let reply = call.run(&host)?;
        reply.success()?;
        let lines = reply.lines()?;
        let last = lines.last().context("no line")?;
        assert_eq!(last["msg"], decision);
        assert_eq!(last["pod"], pod.name);
        assert_eq!(last["containerId"], pod.id);
        ensure!(last["durationMs"].is_number(), "{last}");
        ensure!(lines.iter().any(|l| l["msg"].to_string().contains("unknown_key")), "{lines:?}");
        if decision == "not captured" {
            ensure!(last["reason"].to_string().contains("sidecar.istio.io/status"), "{last}");
        }
    }
    Ok(())
}
