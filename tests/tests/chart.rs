//! The chart: what it renders for each platform, and that the agent takes it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use millrace_cni::outcome::Outcome;
use millrace_cni::protocol::Command as Verb;
use millrace_node::install::Report;
use millrace_node::metrics::{Answered, Metrics};
use millrace_node::plan::{Cause, State};
use millrace_tests::binary;
use millrace_tests::chart::{
    known, kustomize, lint, objects, of_kind, render, render_packed, repository, text,
};
use serde_json::{Value, json};
use xtask::image::{INIT, NODE};

/// Names of golden files, and their values.
fn cases() -> Vec<(String, Value)> {
    let mut cases: Vec<_> = [
        ("default", json!({})),
        (
            "everything",
            json!({
                "istioOwnedCNIConfig": true,
                "affinity": { "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{ "matchExpressions": [{ "key": "mesh", "operator": "Exists" }] }]
                } } },
                "env": { "KUBERNETES_SERVICE_HOST": "api.example", "KUBERNETES_SERVICE_PORT": 6443 },
                "global": {
                    "imagePullSecrets": ["pull"],
                    "logging": { "level": "default:info,cni:debug" },
                    "nativeNftables": true,
                },
                "resourceQuotas": { "enabled": true },
                "millrace": {
                    "image": "registry.example/mesh/millrace-node:0.1.0",
                    "appArmorProfile": { "type": "RuntimeDefault" },
                    "securityContextConstraints": true,
                    "monitoring": {
                        "podMonitor": true, "alerts": true, "dashboard": true,
                        "labels": { "release": "prometheus" },
                    },
                },
            }),
        ),
        (
            "nri",
            json!({ "millrace": { "hook": "nri",
                                  "nri": { "tolerateAnnotation": "mesh.example/tolerate" } } }),
        ),
        ("ambient", json!({ "ambient": { "enabled": true, "dnsCapture": false } })),
        ("repair", repairing(json!({}))),
        (
            "repair-delete",
            json!({
                "platform": "openshift",
                "repair": { "enabled": true, "deletePods": true },
                "millrace": { "capabilities": [] },
            }),
        ),
        (
            "repair-label",
            repairing(json!({ "labelPods": true, "brokenPodLabelKey": "mesh.example/broken",
                              "brokenPodLabelValue": "yes" })),
        ),
        (
            "uninstall",
            json!({ "millrace": { "uninstall": { "enabled": true, "restore": true } } }),
        ),
    ]
    .into_iter()
    .map(|(name, values)| (name.to_owned(), values))
    .collect();
    cases.extend(platforms().into_iter().map(|name| (name.clone(), json!({ "platform": name }))));
    cases
}

/// Values with which pods that run are repaired, and the node's taint is taken off.
fn repairing(mut way: Value) -> Value {
    way["enabled"] = json!(true);
    json!({ "repair": way, "millrace": { "untaint": "cni.istio.io/not-ready" } })
}

/// Every platform that has a file.
fn platforms() -> Vec<String> {
    let folder = repository("deploy/chart/files/platforms");
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let stem =
        |entry: fs::DirEntry| Some(Path::new(&entry.file_name()).file_stem()?.to_str()?.to_owned());
    let mut names: Vec<_> = entries.filter_map(stem).collect();
    names.sort();
    names
}

fn rendered() -> Result<Vec<(String, BTreeMap<String, String>)>> {
    let cases = cases();
    let values: Vec<_> = cases.iter().map(|(_, values)| values.clone()).collect();
    let all = cases.into_iter().zip(render(&values)?);
    all.map(|((name, _), rendered)| {
        let rendered = rendered.map_err(anyhow::Error::msg).context(name.clone())?;
        Ok((name, rendered))
    })
    .collect()
}

/// A file that is to be like this; with `UPDATE_GOLDEN` it is written.
fn golden(path: &str, text: &str) -> Result<()> {
    let path = repository(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return fs::write(&path, text).with_context(|| path.display().to_string());
    }
    let kept = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    for (number, (kept, now)) in kept.lines().zip(text.lines()).enumerate() {
        ensure!(
            kept == now,
            "{}:{}: {kept:?} is {now:?} now: write it with UPDATE_GOLDEN=1, and read the change",
            path.display(),
            number + 1
        );
    }
    ensure!(kept == text, "{}: its end differs", path.display());
    Ok(())
}

/// Verify that each platform gets what is kept for it, made of objects that Kubernetes knows.
#[test]
fn every_platform_gets_what_is_kept() -> Result<()> {
    let names = platforms();
    for name in [
        "aks",
        "bottlerocket",
        "eks",
        "gke",
        "k3d",
        "k3s",
        "microk8s",
        "minikube",
        "openshift",
        "talos",
    ] {
        ensure!(names.iter().any(|own| own == name), "{name}");
    }
    for (name, files) in rendered()? {
        let text = text(&files);
        let objects = objects(&text).context(name.clone())?;
        ensure!(objects.len() >= 5, "{name}: {} objects", objects.len());
        for object in &objects {
            known(object).context(name.clone())?;
        }
        golden(&format!("tests/golden/chart/{name}.yaml"), &text)?;
    }
    Ok(())
}

/// Verify that the agent's image has the name that `cargo xtask image` gives it, with the same prefix and
/// without one, and that no page has another one.
#[test]
fn the_image_is_the_one_that_is_made() -> Result<()> {
    const MESH: &str = "registry.example/mesh";
    let [usual, named] = [xtask::image::PREFIX, MESH].map(|prefix| NODE.reference(prefix));
    let rendered =
        render(&[json!({}), json!({ "hub": MESH }), json!({ "global": { "hub": MESH } })])?;
    for (rendered, wanted) in rendered.into_iter().zip([&usual, &named, &named]) {
        let set = objects(&text(&rendered.map_err(anyhow::Error::msg)?))?;
        let set = of_kind(&set, "DaemonSet")?;
        let image = &set["spec"]["template"]["spec"]["containers"][0]["image"];
        assert_eq!(image, &json!(wanted));
    }
    let base = kustomize("deploy/kustomize/base")?;
    ensure!(base.contains(&format!("image: {usual}")), "{base}");
    let mut seen = 0;
    for page in ["docs/install.md", "docs/chart.md", "docs/meshes.md", "deploy/chart/values.yaml"] {
        let text = fs::read_to_string(repository(page))?;
        let words = text.split(|c: char| c.is_whitespace() || "`=\"'()".contains(c));
        let words = words.map(|word| word.trim_end_matches([',', '.']));
        for word in words.filter(|word| word.contains("/millrace-") && word.contains(':')) {
            let named = [&INIT, &NODE].iter().any(|recipe| {
                [xtask::image::PREFIX, MESH].iter().any(|prefix| recipe.reference(prefix) == word)
            });
            ensure!(named || word == "REGISTRY/millrace-init:TAG", "{page}: {word}");
            seen += 1;
        }
    }
    ensure!(seen > 3, "{seen} images");
    Ok(())
}

/// Verify that a field that there is not is found.
#[test]
fn a_field_that_is_not_known_is_found() -> Result<()> {
    let files = render(&[json!({})])?.remove(0).map_err(anyhow::Error::msg)?;
    let mut set = of_kind(&objects(&text(&files))?, "DaemonSet")?.clone();
    set["spec"]["template"]["spec"]["containers"][0]["livenesProbe"] = json!({});
    let error = format!("{:#}", known(&set).unwrap_err());
    ensure!(error.contains("livenesProbe"), "{error}");
    Ok(())
}

/// Verify that `helm lint --strict` finds nothing in any case; an icon is all that it would like.
#[test]
fn helm_lint_finds_nothing() -> Result<()> {
    let values: Vec<_> = cases().into_iter().map(|(_, values)| values).collect();
    for finding in lint(&values)?.iter().flatten() {
        ensure!(finding.severity < 2, "{finding:?}");
    }
    let broken = lint(&[json!({ "platform": 7 })])?;
    ensure!(broken.iter().flatten().any(|finding| finding.severity == 3), "{broken:?}");
    Ok(())
}

/// Verify that the archive of the chart has all that the folder has.
#[test]
fn the_packed_chart_renders_the_same() -> Result<()> {
    let values = json!({
        "platform": "openshift", "millrace": { "monitoring": { "alerts": true, "dashboard": true } }
    });
    let folder = tempfile::tempdir()?;
    let packed = render_packed(folder.path(), &values)?.map_err(anyhow::Error::msg)?;
    let plain = render(&[values])?.remove(0).map_err(anyhow::Error::msg)?;
    ensure!(packed == plain);
    Ok(())
}

/// Variables of a process by their names.
type Variables = BTreeMap<String, String>;

/// The variables that a rendering gives to the agent, and its containers' arguments.
fn given(files: &BTreeMap<String, String>) -> Result<(Variables, Vec<Vec<String>>)> {
    let objects = objects(&text(files))?;
    let data = of_kind(&objects, "ConfigMap")?["data"].clone();
    let mut variables: Variables = serde_json::from_value(data)?;
    let spec = &of_kind(&objects, "DaemonSet")?["spec"]["template"]["spec"];
    let mut args = Vec::new();
    for list in ["initContainers", "containers"] {
        for container in spec[list].as_array().into_iter().flatten() {
            args.push(serde_json::from_value(container["args"].clone())?);
            for variable in container["env"].as_array().into_iter().flatten() {
                let name = variable["name"].as_str().context("a name")?;
                let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
                    Some("spec.nodeName") => "node-1",
                    _ => variable["value"].as_str().context("a value")?,
                };
                variables.insert(name.to_owned(), value.to_owned());
            }
        }
    }
    Ok((variables, args))
}

/// Verify that the agent has every flag and variable that is rendered.
#[test]
fn the_agent_has_what_is_rendered() -> Result<()> {
    let help = |command: &str| -> Result<String> {
        let output = Command::new(binary::millrace_node()?).args([command, "--help"]).output()?;
        ensure!(output.status.success(), "{command}");
        Ok(String::from_utf8(output.stdout)?)
    };
    let of_run = help("run")?;
    for (name, files) in rendered()? {
        let (variables, args) = given(&files)?;
        ensure!(variables.len() > 10, "{variables:?}");
        for variable in variables.keys() {
            ensure!(of_run.contains(&format!("[env: {variable}=")), "{name}: {variable}");
        }
        for args in args {
            let (command, flags) = args.split_first().context("a command")?;
            let text = help(command)?;
            for flag in flags {
                ensure!(text.contains(&format!(" {flag}")), "{name}: {command} {flag}");
            }
        }
    }
    Ok(())
}

/// Verify that the agent installs the plugin with what is rendered, on folders in place of the host's.
#[test]
fn the_agent_installs_with_what_is_rendered() -> Result<()> {
    for (name, files) in rendered()? {
        let node = tempfile::tempdir()?;
        let folder = |name: &str| node.path().join(name);
        for name in ["net.d", "bin", "account", "run", "state"] {
            fs::create_dir(folder(name))?;
        }
        for file in ["token", "ca.crt"] {
            fs::write(folder("account").join(file), "x")?;
        }
        let list = r#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}"#;
        fs::write(folder("net.d").join("10-net.conflist"), list)?;
        let (mut variables, _) = given(&files)?;
        for (variable, name) in [
            ("CNI_BIN_DIR", "bin"),
            ("CNI_CONF_DIR", "net.d"),
            ("RUN_DIR", "run"),
            ("STATE_DIR", "state"),
        ] {
            let place = folder(name).to_str().context("UTF-8")?.to_owned();
            let was = variables.insert(format!("MILLRACE_NODE_{variable}"), place);
            ensure!(was.is_some(), "{name}: {variable} is not rendered");
        }
        let output = Command::new(binary::millrace_node()?)
            .arg("install")
            .env_clear()
            .env("KUBERNETES_SERVICE_HOST", "192.0.2.1")
            .env("MILLRACE_NODE_SERVICE_ACCOUNT", folder("account"))
            .env("MILLRACE_NODE_PLUGIN", binary::millrace_cni()?)
            .envs(&variables)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        let file = match variables["MILLRACE_NODE_MODE"].as_str() {
            "own-file" => "00-millrace.conflist",
            "standalone" => "istio-cni.conf",
            _ => "10-net.conflist",
        };
        ensure!(output.status.success(), "{name}: {output:?}");
        ensure!(
            said.starts_with("installed: ") && said.contains(&format!("/{file} has")),
            "{name}: {said}"
        );
        let written = fs::read_to_string(folder("net.d").join(file))?;
        for part in [r#""type":"millrace-cni""#, r#""exclude_namespaces":["kube-system"]"#] {
            ensure!(written.contains(part), "{name}: {written}");
        }
    }
    Ok(())
}

/// Verify that every metric in an alert or on the dashboard is one that the agent has, and every one of
/// its own is on the dashboard.
#[test]
fn alerts_and_dashboard_are_made_of_metrics_that_exist() -> Result<()> {
    let metrics = Metrics::default();
    let state = State::Installed { file: "x".to_owned() };
    let (words, causes) = (Vec::new(), vec![Cause::Missing]);
    // What counts by labels is there once it counted.
    metrics.passed(&Ok(Report { state, words, causes, again: false }));
    metrics.answered(Answered::Known);
    metrics.served(Verb::Add, Outcome::Captured, Duration::from_millis(4));
    metrics.hooked("RunPodSandbox", Outcome::Captured, Duration::from_millis(4));
    let exposed = metrics.text();
    let mut names = Vec::new();
    for line in exposed.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').context("a name and a kind")?;
        match kind {
            "counter" => names.push(format!("{name}_total")),
            "histogram" => {
                names.extend(["bucket", "count"].map(|part| format!("{name}_{part}")));
            }
            _ => names.push(name.to_owned()),
        }
    }
    ensure!(names.len() >= 4, "{exposed}");
    for file in ["alerts.yaml", "dashboard.json"] {
        let text = fs::read_to_string(repository("deploy/chart/files").join(file))?;
        let groups: Value = serde_saphyr::from_str(&text)?;
        let mut found = 0;
        for expression in expressions(&groups) {
            let words = expression.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            let prefixes = ["istio_cni", "millrace_node", "nodeagent_", "ztunnel_"];
            let own = |word: &&str| prefixes.iter().any(|prefix| word.starts_with(prefix));
            let metrics: Vec<_> = words.filter(own).collect();
            ensure!(!metrics.is_empty(), "{file}: {expression}");
            for metric in metrics {
                ensure!(names.iter().any(|name| name == metric), "{file}: {metric}: {names:?}");
            }
            found += 1;
        }
        ensure!(found >= 4, "{file}: {found} expressions");
    }
    let dashboard = fs::read_to_string(repository("deploy/chart/files/dashboard.json"))?;
    for name in names {
        ensure!(dashboard.contains(&name), "{name} is on no panel");
    }
    Ok(())
}

fn expressions(value: &Value) -> Vec<&str> {
    match value {
        Value::Array(values) => values.iter().flat_map(expressions).collect(),
        Value::Object(members) => members
            .iter()
            .flat_map(|(name, value)| match (name.as_str(), value) {
                ("expr", Value::String(text)) => vec![text.as_str()],
                (_, value) => expressions(value),
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// A rendering as kustomize has it: what Helm alone has is left out, and the settings' `ConfigMap` has
/// the name that it gets without a hash.
fn without_engine(text: &str) -> Result<BTreeMap<String, Value>> {
    let mut found = BTreeMap::new();
    for mut object in objects(text)? {
        if object["kind"] == "Namespace" {
            continue;
        }
        strip(&mut object);
        let name = format!("{} {}", object["kind"], object["metadata"]["name"]);
        ensure!(found.insert(name.clone(), object).is_none(), "{name} is there twice");
    }
    Ok(found)
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(members) => {
            for name in [
                "app.kubernetes.io/managed-by",
                "app.kubernetes.io/instance",
                "helm.sh/chart",
                "millrace.io/settings",
            ] {
                members.remove(name);
            }
            members.values_mut().for_each(strip);
        }
        Value::Array(values) => values.iter_mut().for_each(strip),
        Value::String(text) => {
            if let Some((name, hash)) = text.rsplit_once('-')
                && name == "millrace-node-config"
                && hash.len() == 10
            {
                *text = name.to_owned();
            }
        }
        _ => {}
    }
}

/// Verify that the kustomization is the chart: its base is what the chart renders without values, and is
/// written with `UPDATE_GOLDEN`; each overlay is a platform.
#[test]
fn the_kustomization_is_the_chart() -> Result<()> {
    let files = render(&[json!({})])?.remove(0).map_err(anyhow::Error::msg)?;
    let mut base =
        "# What the chart renders without values; the tests hold it to that.\n".to_owned();
    for (name, text) in &files {
        if name.ends_with("NOTES.txt") || name.ends_with("configmap.yaml") {
            continue;
        }
        let engine = |line: &&str| {
            [
                "app.kubernetes.io/managed-by:",
                "app.kubernetes.io/instance:",
                "helm.sh/chart:",
                "millrace.io/settings:",
                "# New settings",
            ]
            .iter()
            .all(|part| !line.contains(part))
        };
        let lines: Vec<_> = text.trim().lines().filter(engine).collect();
        base.push_str(&format!("---\n{}\n", lines.join("\n")));
    }
    golden("deploy/kustomize/base/millrace-node.yaml", &base)?;
    let data = of_kind(&objects(&text(&files))?, "ConfigMap")?["data"].clone();
    let variables: BTreeMap<String, String> = serde_json::from_value(data)?;
    let lines = variables.iter().map(|(name, value)| format!("{name}={value}\n"));
    golden("deploy/kustomize/base/settings.env", &lines.collect::<String>())?;

    let overlays = fs::read_dir(repository("deploy/kustomize/overlays"))?;
    let mut cases = vec![("base".to_owned(), json!({}))];
    for overlay in overlays {
        let name = overlay?.file_name().into_string();
        let name = name.map_err(|name| anyhow::anyhow!("{} is no text", name.display()))?;
        let values = match name.as_str() {
            "repair" => repairing(json!({})),
            "nri" => json!({ "millrace": { "hook": "nri" } }),
            platform => json!({ "platform": platform }),
        };
        cases.push((format!("overlays/{name}"), values));
    }
    ensure!(cases.len() >= 3, "{cases:?}");
    let values: Vec<_> = cases.iter().map(|(_, values)| values.clone()).collect();
    for ((folder, _), rendered) in cases.iter().zip(render(&values)?) {
        let text_of_chart = text(&rendered.map_err(anyhow::Error::msg)?);
        let made = kustomize(&format!("deploy/kustomize/{folder}"))?;
        for object in objects(&made)? {
            known(&object).context(folder.clone())?;
        }
        let (chart, made) = (without_engine(&text_of_chart)?, without_engine(&made)?);
        let names = |of: &BTreeMap<String, Value>| of.keys().cloned().collect::<Vec<_>>();
        ensure!(names(&chart) == names(&made), "{folder}: {:?} {:?}", names(&chart), names(&made));
        for (name, object) in &chart {
            let other = &made[name];
            ensure!(object == other, "{folder}: {name}:\n{object:#}\n{other:#}");
        }
    }
    Ok(())
}
