//! The chart's values: each is in the schema, in the documentation and does what that says of it; those that
//! can't be applied are refused by name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::chart::{at_path, merge, render, repository, text};
use serde_json::{Value, json};

/// Values of istio-cni's chart.
const ISTIO_CNI: &str = "cniBinDir cniConfDir cniConfFileName cniNetnsDir istioOwnedCNIConfig \
    istioOwnedCNIConfigFileName excludeNamespaces affinity daemonSetLabels podAnnotations podLabels chained \
    provider ambient.enabled ambient.enablementSelectors ambient.dnsCapture ambient.ipv6 \
    ambient.reconcileIptablesOnStartup ambient.shareHostNetworkNamespace \
    ambient.enableAmbientDetectionRetry ambient.configDir repair.enabled repair.labelPods repair.deletePods \
    repair.repairPods repair.initContainerName repair.brokenPodLabelKey repair.brokenPodLabelValue \
    seccompProfile.type seLinuxOptions.type useAppArmorAnnotation resources.requests resourceQuotas.enabled \
    resourceQuotas.pods tolerations updateStrategy.type terminationGracePeriodSeconds revision env hub tag \
    variant image pullPolicy logging.level global.hub global.tag global.variant global.imagePullPolicy \
    global.imagePullSecrets global.logging.level global.logAsJson global.networkPolicy.enabled \
    global.nativeNftables global.resourceScope";

/// What the documentation says of a value.
struct Row {
    default: String,
    says: String,
}

fn documented() -> Result<BTreeMap<String, Row>> {
    let text = fs::read_to_string(repository("docs/chart.md"))?;
    let (_, tables) = text.split_once("\n## Values\n").context("the values")?;
    let mut rows = BTreeMap::new();
    for line in tables.lines().filter_map(|line| line.strip_prefix("| `")) {
        let (name, rest) = line.split_once("` | ").context(line.to_owned())?;
        let rest = rest.strip_suffix(" |").context(line.to_owned())?;
        // A default has no bar, or is in marks.
        let (default, says) = match rest.strip_prefix('`') {
            Some(rest) => rest.split_once("` | ").context(line.to_owned())?,
            None => rest.split_once("| ").context(line.to_owned())?,
        };
        let row = Row { default: default.trim().to_owned(), says: says.to_owned() };
        ensure!(rows.insert(name.to_owned(), row).is_none(), "{name} is there twice");
    }
    Ok(rows)
}

fn schema() -> Result<Value> {
    let text = fs::read_to_string(repository("deploy/chart/values.schema.json"))?;
    Ok(serde_json::from_str(&text)?)
}

fn values() -> Result<Value> {
    Ok(serde_saphyr::from_str(&fs::read_to_string(repository("deploy/chart/values.yaml"))?)?)
}

/// Names of values in the schema, with dots between them: those below which there is no other.
fn leaves(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    match schema["properties"].as_object() {
        Some(members) => {
            for (name, member) in members {
                let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(member, &inner, found);
            }
        }
        None => {
            found.insert(path.to_owned());
        }
    }
}

fn all() -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    leaves(&schema()?, "", &mut found);
    // The same values once more.
    ensure!(found.remove("cni"));
    Ok(found)
}

fn at<'a>(values: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(values, |value, name| value.get(name))
}

/// Verify that what the schema has is what the documentation has, with the default of `values.yaml`, and that
/// every value of istio-cni's is among it.
#[test]
fn every_value_is_in_the_schema_and_documented() -> Result<()> {
    let (names, rows, values) = (all()?, documented()?, values()?);
    let in_rows: BTreeSet<_> = rows.keys().cloned().collect();
    ensure!(names == in_rows, "{:?}", names.symmetric_difference(&in_rows).collect::<Vec<_>>());
    for (name, row) in &rows {
        let default = match at(&values, name) {
            None | Some(Value::Null) => String::new(),
            Some(Value::String(text)) if text.is_empty() => String::new(),
            Some(value) => value.to_string(),
        };
        ensure!(row.default == default, "{name}: {} is {default}", row.default);
    }
    for name in ISTIO_CNI.split_whitespace() {
        ensure!(names.contains(name), "{name} of istio-cni's chart");
    }
    // And what has a default is in the schema.
    let mut defaults = Vec::new();
    paths(&values, "", &mut defaults);
    for path in defaults {
        let mut inside = names.iter();
        let known = inside.any(|name| path == *name || path.starts_with(&format!("{name}.")));
        ensure!(known || at(&values, &path).is_some_and(|value| value == &json!({})), "{path}");
    }
    Ok(())
}

fn paths(value: &Value, path: &str, found: &mut Vec<String>) {
    match value.as_object() {
        Some(members) if !members.is_empty() => {
            for (name, member) in members {
                let inner = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                paths(member, &inner, found);
            }
        }
        _ => found.push(path.to_owned()),
    }
}

/// Verify that templates name no value that the schema lacks.
#[test]
fn templates_name_values_of_the_schema() -> Result<()> {
    let names = all()?;
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(repository("deploy/chart/templates"))? {
        let text = fs::read_to_string(entry?.path())?;
        for start in [".Values.", "$v."] {
            for rest in text.split(start).skip(1) {
                let end = |c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '_');
                let name = rest.split(end).next().unwrap_or_default().trim_end_matches('.');
                found.insert(name.to_owned());
            }
        }
    }
    ensure!(found.remove("cni") && found.len() > 60, "{found:?}");
    for name in found {
        let inside = |known: &String| *known == name || known.starts_with(&format!("{name}."));
        ensure!(names.iter().any(inside), "{name}");
    }
    Ok(())
}

/// Verify that the settings that the schema lets through are the plugin's.
#[test]
fn settings_are_the_plugins() -> Result<()> {
    let of_plugin: Value =
        serde_json::from_str(&fs::read_to_string(repository("docs/cni.schema.json"))?)?;
    let cni = [
        "cniVersion",
        "name",
        "type",
        "capabilities",
        "runtimeConfig",
        "prevResult",
        "args",
        "ipam",
        "dns",
    ];
    let keys = of_plugin["properties"].as_object().context("properties")?.keys();
    let keys: BTreeSet<_> = keys.filter(|key| !cni.contains(&key.as_str())).cloned().collect();
    let schema = schema()?;
    let own = &schema["properties"]["millrace"]["properties"]["settings"]["propertyNames"]["enum"];
    let own: BTreeSet<String> = serde_json::from_value(own.clone())?;
    ensure!(own == keys, "{:?}", own.symmetric_difference(&keys).collect::<Vec<_>>());
    Ok(())
}

/// A value that is another one than the default, and what it needs beside it.
fn probe(name: &str) -> Option<(Value, Value)> {
    let alone = |value| Some((value, json!({})));
    match name {
        "platform" | "global.platform" => alone(json!("k3s")),
        "profile" => alone(json!("openshift")),
        "cniConfFileName" => alone(json!("10-net.conflist")),
        "chained" => Some((json!(false), json!({ "provider": "multus" }))),
        "provider" => Some((json!("multus"), json!({ "chained": false }))),
        "istioOwnedCNIConfigFileName" => {
            Some((json!("01-own.conflist"), json!({ "istioOwnedCNIConfig": true })))
        }
        "variant" | "global.variant" | "logLevel" => alone(json!("debug")),
        "hub" | "global.hub" => alone(json!("registry.example/mesh")),
        "tag" | "global.tag" => alone(json!("9.9.9")),
        "pullPolicy" | "global.imagePullPolicy" => alone(json!("Never")),
        "logging.level" | "global.logging.level" => alone(json!("default:warn")),
        "excludeNamespaces" => alone(json!(["kube-system", "shop"])),
        "env" => alone(json!({ "MILLRACE_NODE_PLUGIN_NAME": "other-cni" })),
        "affinity" => alone(json!({ "podAntiAffinity": {} })),
        "seccompProfile.type" | "millrace.appArmorProfile.type" => alone(json!("Unconfined")),
        "seccompProfile.localhostProfile" => {
            Some((json!("own.json"), json!({ "seccompProfile": { "type": "Localhost" } })))
        }
        "useAppArmorAnnotation" => Some((
            json!(true),
            json!({ "millrace": { "appArmorProfile": { "type": "RuntimeDefault" } } }),
        )),
        "resources.requests" | "resources.limits" => alone(json!({ "memory": "1Gi" })),
        "resources.claims" => alone(json!([{ "name": "x" }])),
        "global.defaultResources" => {
            Some((json!({ "limits": { "cpu": "1" } }), json!({ "resources": null })))
        }
        "resourceQuotas.pods" => {
            Some((json!(1_000_000), json!({ "resourceQuotas": { "enabled": true } })))
        }
        "tolerations" => alone(json!([{ "operator": "Exists" }])),
        "updateStrategy.type" => alone(json!("OnDelete")),
        "updateStrategy.rollingUpdate.maxUnavailable" | "rollingMaxUnavailable" => {
            alone(json!("10%"))
        }
        "global.imagePullSecrets" => alone(json!(["pull"])),
        "global.resourceScope" => alone(json!("cluster")),
        "repair.labelPods" | "repair.deletePods" => {
            Some((json!(true), json!({ "repair": { "enabled": true } })))
        }
        "repair.repairPods" => Some((json!(false), json!({ "repair": { "enabled": true } }))),
        "repair.brokenPodLabelKey" | "repair.brokenPodLabelValue" => {
            Some((json!("probe"), json!({ "repair": { "enabled": true, "labelPods": true } })))
        }
        "ambient.dnsCapture" | "ambient.ipv6" | "ambient.reconcileIptablesOnStartup" => {
            Some((json!(false), json!({ "ambient": { "enabled": true } })))
        }
        "ambient.enablementSelectors" => {
            Some((json!([{ "podSelector": {} }]), json!({ "ambient": { "enabled": true } })))
        }
        "millrace.untaint" => alone(json!("mesh.example/not-ready")),
        "millrace.takeOver" => alone(json!(["istio-cni", "linkerd-cni"])),
        "millrace.hook" => alone(json!("nri")),
        "millrace.nri.socket" => {
            Some((json!("/run/other/nri.sock"), json!({ "millrace": { "hook": "nri" } })))
        }
        "millrace.nri.tolerateAnnotation" => {
            Some((json!("a.example/b"), json!({ "millrace": { "hook": "both" } })))
        }
        "millrace.settings" => alone(json!({ "deadline": "3s" })),
        "millrace.kubeconfig" => alone(json!("none")),
        "millrace.period" => alone(json!("1m")),
        "millrace.healthAddress" | "millrace.metricsAddress" => alone(json!("[::1]:9999")),
        "millrace.capabilities" => alone(json!(["CHOWN"])),
        "millrace.appArmorProfile.localhostProfile" => Some((
            json!("own"),
            json!({ "millrace": { "appArmorProfile": { "type": "Localhost" } } }),
        )),
        "millrace.uninstall.restore" | "millrace.uninstall.keepBinary" => {
            Some((json!(true), json!({ "millrace": { "uninstall": { "enabled": true } } })))
        }
        "millrace.monitoring.labels" => {
            Some((json!({ "a": "b" }), json!({ "millrace": { "monitoring": { "alerts": true } } })))
        }
        _ => None,
    }
}

/// The same by the shape that the schema gives to it.
fn probe_by_shape(schema: &Value, path: &str) -> Result<Value> {
    let pointer = format!("/properties/{}", path.replace('.', "/properties/"));
    let shape = schema.pointer(&pointer).with_context(|| path.to_owned())?;
    let is = |kind: &str| match &shape["type"] {
        Value::Array(kinds) => kinds.iter().any(|own| own == kind),
        own => own == kind,
    };
    Ok(match () {
        () if is("boolean") => json!(true),
        () if is("integer") => json!(77),
        () if is("string") => json!("/probe"),
        () if is("object") => json!({ "probe": "value" }),
        () if is("array") => json!([{ "probe": 1 }]),
        () => anyhow::bail!("{path}: no probe for {shape}"),
    })
}

/// Verify of every value that it changes what is rendered, is refused by its name or has no effect, as the
/// documentation says of it.
#[test]
fn every_value_does_what_is_said_of_it() -> Result<()> {
    let (schema, rows) = (schema()?, documented()?);
    let mut requests = Vec::new();
    for name in rows.keys() {
        let (value, beside) = match probe(name) {
            Some(probe) => probe,
            None => (probe_by_shape(&schema, name)?, json!({})),
        };
        let mut with = beside.clone();
        merge(&mut with, &at_path(name, value));
        requests.extend([beside, with]);
    }
    let mut renderings = render(&requests)?.into_iter();
    let mut kinds = [0; 3];
    for (name, row) in &rows {
        let (without, with) = (renderings.next(), renderings.next());
        let (without, with) = (without.context("a rendering")?, with.context("a rendering")?);
        let last = name.rsplit('.').next().unwrap_or(name);
        if row.says.starts_with("No effect") {
            ensure!(without.is_ok() && without == with, "{name} has an effect: {with:?}");
            kinds[0] += 1;
        } else if row.says.starts_with("Refused") {
            let error = with.err().with_context(|| format!("{name} is not refused"))?;
            ensure!(error.contains("can't be applied") && error.contains(last), "{error}");
            kinds[1] += 1;
        } else {
            let with = with.map_err(anyhow::Error::msg).context(name.clone())?;
            ensure!(without.as_ref() != Ok(&with), "{name} has no effect");
            kinds[2] += 1;
        }
    }
    ensure!(kinds.iter().all(|count| *count >= 4), "{kinds:?}");
    Ok(())
}

/// Verify that all that can't be carried out is refused with its name, at once, and that what is written
/// wrongly is found.
#[test]
fn what_can_not_be_had_is_refused_by_name() -> Result<()> {
    let cases = [
        (json!({ "profile": "ambient-moon" }), "profile ambient-moon"),
        (json!({ "profile": "platform-moon" }), "platform moon"),
        (json!({ "profile": "moon" }), "profile moon"),
        (json!({ "platform": "moon" }), "platform moon"),
        (json!({ "platform": "k3s", "global": { "platform": "gke" } }), "gke, k3s"),
        (json!({ "env": { "MILLRACE_NODE_AMBIENT": "true" } }), "env.MILLRACE_NODE_AMBIENT"),
        (json!({ "millrace": { "settings": { "ambient_enabled": true } } }), "set ambient.enabled"),
        (
            json!({ "ambient": { "enabled": true }, "millrace": { "hook": "nri" } }),
            "millrace.hook is nri",
        ),
        (json!({ "provider": "multus" }), "provider multus"),
        (json!({ "chained": false }), "chained false"),
        (
            json!({ "chained": false, "provider": "multus", "cniConfFileName": "x.conflist" }),
            "x.conflist",
        ),
        (json!({ "platform": "openshift", "istioOwnedCNIConfig": true }), "istioOwnedCNIConfig: "),
        (
            json!({ "istioOwnedCNIConfig": true, "cniConfFileName": "10-net.conflist" }),
            "cniConfFileName 10-net",
        ),
        (json!({ "istioOwnedCNIConfigFileName": "01-x.conflist" }), "istioOwnedCNIConfig to true"),
        (
            json!({ "istioOwnedCNIConfig": true, "istioOwnedCNIConfigFileName": "01-x.conf" }),
            ".conflist",
        ),
        (
            json!({ "istioOwnedCNIConfig": true, "istioOwnedCNIConfigFileName": "02-istio-cni.conflist" }),
            "02-istio-cni",
        ),
        (json!({ "millrace": { "dropIn": true }, "istioOwnedCNIConfig": true }), "dropIn"),
        (json!({ "image": "install-cni" }), "image install-cni"),
        (json!({ "global": { "hub": "docker.io/istio" } }), "hub docker.io/istio"),
        (json!({ "env": { "EXCLUDE_NAMESPACES": "a" } }), "env.EXCLUDE_NAMESPACES"),
        (json!({ "env": { "MILLRACE_NODE_MODE": "drop-in" } }), "env.MILLRACE_NODE_MODE"),
        (json!({ "env": { "MILLRACE_NODE_NAME": "x" } }), "env.MILLRACE_NODE_NAME"),
        (json!({ "env": { "MILLRACE_NODE_REPAIR": "delete" } }), "env.MILLRACE_NODE_REPAIR"),
        (json!({ "env": { "MILLRACE_NODE_UNTAINT": "x" } }), "env.MILLRACE_NODE_UNTAINT"),
        (json!({ "repair": { "repairPods": true } }), "repair.repairPods: repair.enabled is false"),
        (
            json!({ "repair": { "enabled": true, "repairPods": true, "deletePods": true } }),
            "repair.deletePods, repair.repairPods: one",
        ),
        (
            json!({ "repair": { "enabled": true }, "millrace": { "settings": { "backend": "ebpf" } } }),
            "backend is ebpf",
        ),
        (
            json!({ "millrace": { "hook": "nri", "settings": { "backend": "ebpf" } } }),
            "millrace.hook nri",
        ),
        (
            json!({ "millrace": { "nri": { "tolerateAnnotation": "a.example/b" } } }),
            "tolerateAnnotation",
        ),
        (json!({ "millrace": { "hook": "oci" } }), "hook"),
        (json!({ "millrace": { "nri": { "socket": "/nri.sock" } } }), "socket"),
        (json!({ "env": { "MILLRACE_NODE_HOOK": "nri" } }), "env.MILLRACE_NODE_HOOK"),
        (json!({ "repair": { "enabled": true, "brokenPodLabelKey": "a b" } }), "brokenPodLabelKey"),
        (json!({ "millrace": { "untaint": "a=b" } }), "untaint"),
        (json!({ "podLabels": { "k8s-app": "x" } }), "k8s-app"),
        (json!({ "global": { "logging": { "level": "loud" } } }), "loud"),
        (
            json!({ "global": { "nativeNftables": true }, "millrace": { "settings": { "backend": "ebpf" } } }),
            "nativeNftables",
        ),
        (json!({ "millrace": { "settings": { "exclude_namespaces": [] } } }), "exclude_namespaces"),
        (json!({ "millrace": { "settings": { "kubeconfig": "/x" } } }), "millrace.kubeconfig"),
        (json!({ "millrace": { "settings": { "bakend": "ebpf" } } }), "bakend"),
        (
            json!({ "millrace": { "uninstall": { "enabled": true }, "installAgain": true } }),
            "installAgain",
        ),
        (
            json!({ "millrace": { "metricsAddress": "none", "monitoring": { "podMonitor": true } } }),
            "metricsAddress",
        ),
        (json!({ "millrace": { "healthAddress": "8000" } }), "healthAddress"),
        (json!({ "millrace": { "runDir": "run" } }), "runDir"),
        (json!({ "excludeNamspaces": ["a"] }), "excludeNamspaces"),
        (json!({ "cni": { "excludeNamspaces": ["a"] } }), "excludeNamspaces"),
        (json!({ "excludeNamespaces": ["a,b"] }), "excludeNamespaces"),
        (json!({ "chained": "false" }), "chained"),
    ];
    let values: Vec<_> = cases.iter().map(|(values, _)| values.clone()).collect();
    for ((values, part), rendered) in cases.iter().zip(render(&values)?) {
        let error = rendered.err().with_context(|| format!("{values} is not refused"))?;
        ensure!(error.contains(part), "{values}: {error}");
    }
    let both = json!({ "variant": "debug", "repair": { "deletePods": true } });
    let error = render(&[both])?.remove(0).err().context("refused")?;
    ensure!(error.contains("variant debug") && error.contains("repair.deletePods"), "{error}");
    Ok(())
}

/// Verify that values hold over the platform's, those under `cni` are taken, and a whole image lets those of
/// istio-cni stay in the file.
#[test]
fn values_of_istio_cni_are_taken() -> Result<()> {
    let own = |value: &str| json!({ "platform": "k3s", "cniBinDir": value });
    let [preset, set, older, image] = [
        json!({ "platform": "k3s" }),
        own("/opt/other"),
        json!({ "cni": { "cniBinDir": "/opt/other", "excludeNamespaces": ["a", "b"] }, "platform": "k3s" }),
        json!({
            "global": { "hub": "docker.io/istio", "tag": "1.27.0", "meshID": "mesh" },
            "image": "install-cni",
            "millrace": { "image": "registry.example/mesh/millrace-node:0.1.0" },
        }),
    ]
    .map(|values| -> Result<String> {
        let files = render(&[values])?.remove(0).map_err(anyhow::Error::msg)?;
        Ok(text(&files))
    });
    let (preset, set, older, image) = (preset?, set?, older?, image?);
    ensure!(preset.contains(r#"path: "/var/lib/rancher/k3s/data/cni""#), "{preset}");
    ensure!(
        set.contains(r#"path: "/opt/other""#) && set.contains("k3s/agent/etc/cni/net.d"),
        "{set}"
    );
    ensure!(
        older.contains(r#"path: "/opt/other""#) && older.contains(r#"NAMESPACES: "a,b""#),
        "{older}"
    );
    ensure!(image.contains(r#"image: "registry.example/mesh/millrace-node:0.1.0""#), "{image}");
    Ok(())
}
