//! The node agent and other meshes' plugins: what is taken over, with what settings, how it comes
//! back, and what happens while the other agent is still at work.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::node::Node;
use serde_json::{Value, json};

const LIST: &str = "10-net.conflist";
const OWNED: &str = "02-istio-cni.conflist";

fn list(more: &[Value]) -> String {
    let mut plugins = vec![json!({ "type": "bridge", "mtu": 1400 })];
    plugins.extend(more.iter().cloned());
    let list = json!({ "cniVersion": "0.4.0", "name": "net", "plugins": plugins });
    format!("{list:#}\n")
}

fn istio() -> Value {
    json!({
        "type": "istio-cni", "name": "istio-cni", "plugin_log_level": "debug",
        "cni_agent_run_dir": "/var/run/istio-cni", "ambient_enabled": false,
        "exclude_namespaces": ["kube-system", "legacy"], "pod_namespace": "istio-system",
        "native_nftables": true, "dns": {}, "ipam": {},
    })
}

fn older_istio() -> Value {
    json!({
        "type": "v2-6-istio-cni", "log_level": "warn",
        "kubernetes": {
            "kubeconfig": "/etc/cni/net.d/ZZZ-istio-cni-kubeconfig",
            "exclude_namespaces": ["openshift-operators"],
        },
    })
}

/// A program, whole from the first moment, as agents install theirs.
fn program(node: &Node, name: &str) -> Result<()> {
    let temp = node.bin().join(format!("{name}.new"));
    fs::write(&temp, format!("#!/bin/sh\n# {name}\n"))?;
    fs::set_permissions(&temp, fs::Permissions::from_mode(0o755))?;
    Ok(fs::rename(&temp, node.bin().join(name))?)
}

fn plugins(node: &Node, file: &str) -> Result<Vec<Value>> {
    let text = fs::read_to_string(node.conf().join(file)).context("the list")?;
    let value: Value = serde_json::from_str(&text)?;
    Ok(value["plugins"].as_array().context("no plugins")?.clone())
}

fn kinds(node: &Node, file: &str) -> Result<Vec<String>> {
    let kinds = plugins(node, file)?;
    Ok(kinds.iter().map(|p| p["type"].as_str().unwrap_or_default().to_owned()).collect())
}

/// Verify that an entry of each of istio-cni's forms is replaced with its settings, and comes back
/// as it was, with its binary; the operator's own settings win.
#[test]
fn entries_are_taken_over_and_come_back() -> Result<()> {
    for (entry, namespaces, level) in [
        (istio(), json!(["kube-system", "legacy"]), "debug"),
        (older_istio(), json!(["openshift-operators"]), "warn"),
    ] {
        let node = Node::new()?;
        let kind = entry["type"].as_str().context("a type")?;
        program(&node, kind)?;
        let text = list(std::slice::from_ref(&entry));
        node.write(LIST, &text)?;
        let said = node.do_("install", &["--settings", r#"{"deadline":"9s"}"#])?;
        ensure!(said.starts_with("installed: ") && said.contains("/10-net.conflist has"), "{said}");
        let now = plugins(&node, LIST)?;
        assert_eq!(now.len(), 2);
        assert_eq!(now[0], json!({ "type": "bridge", "mtu": 1400 }));
        assert_eq!(now[1]["type"], "millrace-cni");
        assert_eq!(now[1]["exclude_namespaces"], namespaces);
        assert_eq!(now[1]["plugin_log_level"], level);
        assert_eq!(now[1]["deadline"], "9s");
        ensure!(now[1].get("kubernetes").is_none() && now[1].get("cni_agent_run_dir").is_none());
        if kind == "istio-cni" {
            assert_eq!(now[1]["backend"], "nftables");
            assert_eq!(now[1]["pod_namespace"], "istio-system");
        }
        let ours = fs::read(node.plugin())?;
        ensure!(fs::read(node.bin().join(kind))? == ours, "{kind} is still the old one");
        // The settings outlive the agent that took them over; the operator has the last word.
        node.do_("install", &["--exclude-namespaces", "mine"])?;
        let now = plugins(&node, LIST)?;
        assert_eq!(now[1]["exclude_namespaces"], json!(["mine"]));
        assert_eq!(now[1]["plugin_log_level"], level);
        let said = node.do_("uninstall", &["--restore", "--grace", "0s"])?;
        let (conf, bin) = (node.conf().display(), node.bin().display());
        let told = format!(
            "uninstalled\n  restored: the binary {bin}/{kind}\n  restored: the entry of {kind} in {LIST}\n  \
             written: {conf}/{LIST}\n  removed: {bin}/millrace-cni\n"
        );
        assert_eq!(said, told);
        assert_eq!(fs::read_to_string(node.conf().join(LIST))?, text);
        let said = node.do_("uninstall", &["--restore", "--grace", "0s"])?;
        ensure!(said.starts_with("uninstalled\n  nothing was there to change\n"), "{said}");
        ensure!(said.contains("nothing is left to restore"), "{said}");
        assert_eq!(fs::read_to_string(node.conf().join(LIST))?, text);
        let old = fs::read_to_string(node.bin().join(kind))?;
        ensure!(old.starts_with("#!/bin/sh"), "the binary of {kind} is not back");
        assert_eq!(node.names(node.bin())?, [kind]);
    }
    Ok(())
}

/// Verify that a file of istio-cni's own goes when the list behind it has the plugin, and comes back
/// with its mode and owner.
#[test]
fn a_file_of_its_own_is_taken_over_and_comes_back() -> Result<()> {
    for mode in ["chained", "own-file"] {
        let node = Node::new()?;
        program(&node, "istio-cni")?;
        node.write(LIST, &list(&[]))?;
        node.write(OWNED, &list(&[istio()]))?;
        let path = node.conf().join(OWNED);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
        std::os::unix::fs::chown(&path, Some(0), Some(77))?;
        let text = fs::read_to_string(&path)?;
        node.do_("install", &["--mode", mode])?;
        ensure!(!path.exists(), "{mode}: the file is still there");
        let own = if mode == "chained" { LIST } else { "00-millrace.conflist" };
        assert_eq!(kinds(&node, own)?, ["bridge", "millrace-cni"], "{mode}");
        let entry = &plugins(&node, own)?[1];
        assert_eq!(entry["exclude_namespaces"], json!(["kube-system", "legacy"]), "{mode}");
        let said = node.do_("uninstall", &["--mode", mode, "--restore", "--grace", "0s"])?;
        ensure!(said.contains(&format!("\n  restored: the file {OWNED}\n")), "{mode}: {said}");
        assert_eq!(fs::read_to_string(&path)?, text, "{mode}");
        assert_eq!(fs::read_to_string(node.conf().join(LIST))?, list(&[]), "{mode}");
        let meta = fs::metadata(&path)?;
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 0, 77), "{mode}");
        assert_eq!(kinds(&node, LIST)?, ["bridge"], "{mode}");
        assert_eq!(node.names(node.conf())?, [OWNED, LIST], "{mode}");
        assert_eq!(node.names(node.bin())?, ["istio-cni"], "{mode}");
    }
    Ok(())
}

/// Verify that a file of istio-cni's that has the name which the agent's own gets is kept before that is
/// written, and comes back byte for byte with its mode and owner, its binary too; also after an agent
/// with another plugin, and after istio-cni's agent wrote its file anew.
#[test]
fn a_file_in_the_way_is_taken_over_and_comes_back() -> Result<()> {
    let single = |level: &str| {
        let mut entry = istio();
        entry["plugin_log_level"] = json!(level);
        entry["cniVersion"] = json!("0.3.1");
        format!("{entry:#}\n\n")
    };
    for (mode, file, texts) in [
        ("own-file", OWNED, [list(&[istio()]), list(&[json!({ "type": "portmap" }), istio()])]),
        ("standalone", "istio-cni.conf", [single("debug"), single("warn")]),
    ] {
        let node = Node::new()?;
        program(&node, "istio-cni")?;
        let binary = node.bin().join("istio-cni");
        let program_text = fs::read(&binary)?;
        std::os::unix::fs::chown(&binary, Some(0), Some(78))?;
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o750))?;
        node.write(LIST, &list(&[]))?;
        let path = node.conf().join(file);
        let way = ["--mode", mode, "--conf-file", file];
        let mut other = PathBuf::from(node.plugin());
        for text in &texts {
            node.write(file, text)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o640))?;
            std::os::unix::fs::chown(&path, Some(0), Some(77))?;
            let said = node.do_("install", &way)?;
            let installed = format!("installed: {}/{file} has", node.conf().display());
            ensure!(said.starts_with(&installed), "{mode}: {said}");
            let now = fs::read_to_string(&path)?;
            let value: Value = serde_json::from_str(&now)?;
            let entry = value["plugins"].get(1).unwrap_or(&value);
            assert_eq!(entry["type"], "millrace-cni", "{mode}: {now}");
            ensure!(now.contains("legacy") && now.contains("nftables"), "{mode}: {now}");
            ensure!(fs::read(&binary)? == fs::read(&other)?, "{mode}: the old binary is there");
            node.do_("status", &way)?;
            // An upgrade.
            other = millrace_tests::binary::system("false")?;
            let newer = [&way[..], &["--plugin", other.to_str().context("a path")?]].concat();
            node.do_("install", &newer)?;
            ensure!(fs::read(&binary)? == fs::read(&other)?, "{mode}: not the newer one");
            other = PathBuf::from(node.plugin());
        }
        node.do_("uninstall", &[&way[..], &["--restore", "--grace", "0s"]].concat())?;
        assert_eq!(fs::read_to_string(&path)?, texts[1], "{mode}");
        let meta = fs::metadata(&path)?;
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o640, 0, 77), "{mode}");
        ensure!(fs::read(&binary)? == program_text, "{mode}: the binary is not back");
        let meta = fs::metadata(&binary)?;
        assert_eq!((meta.mode() & 0o7777, meta.uid(), meta.gid()), (0o750, 0, 78), "{mode}");
        assert_eq!(fs::read_to_string(node.conf().join(LIST))?, list(&[]), "{mode}");
        assert_eq!(node.names(node.bin())?, ["istio-cni"], "{mode}");
    }
    Ok(())
}

/// Verify that a file or a program of somebody else's that can't be kept is never written over nor
/// removed: that is refused with its name, installing as well as uninstalling.
#[test]
fn what_is_somebody_elses_stays() -> Result<()> {
    let portmap = r#"{"type":"portmap","snat":true}"#;
    let single = r#"{"cniVersion":"0.4.0","name":"x","type":"macvlan"}"#;
    let chained = ["--mode", "chained", "--plugin-name", "bridge"];
    for (args, at, text) in [
        (&["--mode", "own-file", "--conf-file", "05-x.conflist"], "net.d/05-x.conflist", list(&[])),
        (&["--mode", "own-file", "--conf-file", LIST], "net.d/10-net.conflist", list(&[])),
        (&["--mode", "standalone", "--conf-file", "x.conf"], "net.d/x.conf", single.to_owned()),
        (
            &["--mode", "drop-in", "--conf-file", "5-x.conf"],
            "net.d/net/5-x.conf",
            portmap.to_owned(),
        ),
        (&chained, "bin/bridge", "bridge".to_owned()),
        (&chained, "net.d/10-net.conflist", list(&[])),
    ] {
        let node = Node::new()?;
        node.write(LIST, &list(&[]))?;
        let path = node.folder().join(at);
        fs::create_dir_all(path.parent().context("a folder")?)?;
        fs::write(&path, &text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o751))?;
        let output = node.once("install", args)?;
        let said = format!("{output:?}");
        let name = path.file_name().and_then(|name| name.to_str()).context("a name")?;
        ensure!(!output.status.success(), "{args:?}: {said}");
        ensure!(said.contains(name) && said.contains("choose another name"), "{args:?}: {said}");
        for _ in 0..2 {
            assert_eq!(fs::read_to_string(&path)?, text, "{args:?}");
            assert_eq!(fs::metadata(&path)?.mode() & 0o7777, 0o751, "{args:?}");
            assert_eq!(kinds(&node, LIST)?, ["bridge"], "{args:?}");
            let gone = node.once("uninstall", &[&args[..], &["--grace", "0s"]].concat())?;
            assert_eq!(gone.status.success(), *args != chained, "{args:?}: {gone:?}");
        }
    }
    Ok(())
}

/// Verify that another name of a drop-in leaves none of the old one, and that neither is there when the
/// plugin is gone.
#[test]
fn a_drop_in_of_an_older_name_goes() -> Result<()> {
    let node = Node::new()?;
    node.write(LIST, &list(&[]))?;
    for name in ["40-a.conf", "50-b.conf"] {
        node.do_("install", &["--mode", "drop-in", "--conf-file", name])?;
        assert_eq!(node.names(&node.conf().join("net"))?, [name]);
    }
    node.do_("uninstall", &["--grace", "0s"])?;
    assert_eq!(node.names(&node.conf().join("net"))?, [""; 0]);
    Ok(())
}

/// Verify that what the plugin can't do is not taken over, and that the plugin stays out then.
#[test]
fn what_cannot_be_done_is_left_alone() -> Result<()> {
    let mut ambient = istio();
    ambient["ambient_enabled"] = json!(true);
    for (entry, args, part) in [
        (ambient, &[] as &[&str], "ambient_enabled"),
        (istio(), &["--take-over", "none"], "--take-over istio-cni"),
    ] {
        let node = Node::new()?;
        program(&node, "istio-cni")?;
        node.write(LIST, &list(&[entry, json!({ "type": "millrace-cni" })]))?;
        let output = node.once("install", args)?;
        let said = String::from_utf8(output.stdout)?;
        ensure!(!output.status.success() && said.contains(part), "{said}");
        assert_eq!(kinds(&node, LIST)?, ["bridge", "istio-cni"]);
        let refused = node.once("uninstall", &["--restore", "--grace", "0s"])?;
        let said = String::from_utf8(refused.stderr)?;
        ensure!(!refused.status.success() && said.contains("nothing to restore"), "{said}");
    }
    Ok(())
}

/// Verify that plugins of other meshes stay in the list, with a word; and that linkerd-cni's settings
/// are taken over where that is asked for, or keep the plugin out where both would capture.
#[test]
fn other_meshes() -> Result<()> {
    let linkerd = json!({
        "type": "linkerd-cni", "log_level": "info",
        "kubernetes": { "kubeconfig": "/etc/cni/net.d/ZZZ-linkerd-cni-kubeconfig" },
        "linkerd": { "proxy-uid": 2102, "ipv6": false },
    });
    let others = [linkerd.clone(), json!({ "type": "kuma-cni" }), json!({ "type": "consul-cni" })];
    let node = Node::new()?;
    node.write(LIST, &list(&others))?;
    let said = node.do_("install", &[])?;
    for kind in ["linkerd-cni", "kuma-cni", "consul-cni"] {
        ensure!(said.contains(&format!("{kind} is left in the list")), "{said}");
    }
    let all = ["bridge", "linkerd-cni", "kuma-cni", "consul-cni", "millrace-cni"];
    assert_eq!(kinds(&node, LIST)?, all);
    let both = node.once("install", &["--settings", r#"{"linkerd":{}}"#])?;
    let said = String::from_utf8(both.stdout)?;
    ensure!(!both.status.success() && said.contains("linkerd-cni captures"), "{said}");
    assert_eq!(kinds(&node, LIST)?, all[..4]);
    program(&node, "linkerd-cni")?;
    node.do_("install", &["--take-over", "istio-cni,linkerd-cni"])?;
    assert_eq!(kinds(&node, LIST)?, ["bridge", "kuma-cni", "consul-cni", "millrace-cni"]);
    assert_eq!(plugins(&node, LIST)?[3]["linkerd"], linkerd["linkerd"]);
    node.do_("uninstall", &["--restore", "--grace", "0s"])?;
    assert_eq!(kinds(&node, LIST)?, ["bridge", "kuma-cni", "consul-cni", "linkerd-cni"]);
    Ok(())
}

/// Verify that istio-cni's agent, while it is at work, is given way to, so that the list comes to
/// rest with one of both, and that the plugin comes as soon as the other goes.
#[test]
fn both_at_once_do_not_fight() -> Result<()> {
    let node = Node::new()?;
    program(&node, "istio-cni")?;
    node.write(LIST, &list(&[istio()]))?;
    let mut agent = node.run(&[])?;
    // As istio-cni's agent does: its entry last, its binary as it was.
    let assert_theirs = || -> Result<bool> {
        let mut list: Value = serde_json::from_str(&fs::read_to_string(node.conf().join(LIST))?)?;
        let plugins = list["plugins"].as_array_mut().context("no plugins")?;
        if plugins.iter().any(|plugin| plugin["type"] == "istio-cni") {
            return Ok(false);
        }
        plugins.push(istio());
        let temp = node.conf().join("istio.tmp.1");
        fs::write(&temp, format!("{list:#}"))?;
        fs::rename(&temp, node.conf().join(LIST))?;
        program(&node, "istio-cni")?;
        Ok(true)
    };
    let (mut writes, mut quiet, began) = (0, Instant::now(), Instant::now());
    while quiet.elapsed() < Duration::from_secs(3) {
        ensure!(began.elapsed() < Duration::from_mins(1), "they fight:\n{}", node.log());
        if assert_theirs()? {
            (writes, quiet) = (writes + 1, Instant::now());
        }
        thread::sleep(Duration::from_millis(5));
    }
    ensure!((1..=8).contains(&writes), "{writes}");
    node.until("istio-cni alone captures", || {
        kinds(&node, LIST).is_ok_and(|kinds| kinds == ["bridge", "istio-cni"])
    })?;
    ensure!(
        node.log().contains("uninstall istio-cni, and the plugin is installed again"),
        "{}",
        node.log()
    );
    ensure!(fs::read_to_string(node.bin().join("istio-cni"))?.starts_with("#!/bin/sh"));
    node.write(LIST, &list(&[]))?;
    node.until("the plugin is back", || {
        kinds(&node, LIST).is_ok_and(|kinds| kinds == ["bridge", "millrace-cni"])
    })?;
    assert_eq!(plugins(&node, LIST)?[1]["exclude_namespaces"], json!(["kube-system", "legacy"]));
    agent.stop()
}

/// Verify that each mode has the plugin called from where it says, follows the list, and that another
/// mode leaves nothing of the one before.
#[test]
fn every_mode() -> Result<()> {
    let node = Node::new()?;
    node.write(LIST, &list(&[]))?;
    let whole = ["bridge", "millrace-cni"];
    node.do_("install", &["--mode", "own-file"])?;
    assert_eq!(kinds(&node, "00-millrace.conflist")?, whole);
    assert_eq!(kinds(&node, LIST)?, ["bridge"]);
    node.write(LIST, &list(&[json!({ "type": "portmap" })]))?;
    node.do_("install", &["--mode", "own-file"])?;
    assert_eq!(kinds(&node, "00-millrace.conflist")?, ["bridge", "portmap", "millrace-cni"]);
    node.write(LIST, &list(&[]))?;
    node.do_("install", &["--mode", "drop-in"])?;
    assert_eq!(node.names(node.conf())?, [LIST]);
    assert_eq!(kinds(&node, LIST)?, ["bridge"]);
    let drop_in = fs::read_to_string(node.conf().join("net/90-millrace.conf"))?;
    assert_eq!(serde_json::from_str::<Value>(&drop_in)?["type"], "millrace-cni");
    node.do_("status", &["--mode", "drop-in"])?;
    ensure!(!node.once("status", &[])?.status.success(), "another mode is as good as this one");
    node.do_("install", &["--mode", "standalone"])?;
    assert_eq!(node.names(node.conf())?, [LIST, "millrace-cni.conf"]);
    ensure!(!node.conf().join("net/90-millrace.conf").exists());
    let alone = fs::read_to_string(node.conf().join("millrace-cni.conf"))?;
    assert_eq!(serde_json::from_str::<Value>(&alone)?["name"], "millrace-cni");
    node.do_("install", &[])?;
    assert_eq!(node.names(node.conf())?, [LIST]);
    assert_eq!(kinds(&node, LIST)?, whole);
    node.do_("status", &[])?;
    // A list that refuses drop-ins, and a file with a single plugin.
    let closed = list(&[]).replace("\"name\"", "\"loadOnlyInlinedPlugins\": true, \"name\"");
    node.write(LIST, &closed)?;
    let refused = node.once("install", &["--mode", "drop-in"])?;
    ensure!(String::from_utf8(refused.stdout)?.contains("loadOnlyInlinedPlugins"));
    fs::remove_file(node.conf().join(LIST))?;
    node.write("10-net.conf", r#"{"cniVersion":"0.4.0","name":"net","type":"bridge","mtu":7}"#)?;
    node.do_("install", &[])?;
    assert_eq!(kinds(&node, "00-millrace.conflist")?, whole);
    node.do_("uninstall", &["--grace", "0s"])?;
    assert_eq!(node.names(node.conf())?, ["10-net.conf"]);
    ensure!(node.names(node.bin())?.is_empty());
    Ok(())
}

/// Verify that an agent that runs installs nothing once the node is uninstalled, until somebody
/// installs again.
#[test]
fn uninstalled_stays_uninstalled() -> Result<()> {
    let node = Node::new()?;
    node.write(LIST, &list(&[]))?;
    let mut agent = node.run(&["--period", "20ms"])?;
    let installed = || kinds(&node, LIST).is_ok_and(|kinds| kinds.len() == 2);
    node.until("it is installed", installed)?;
    node.do_("uninstall", &["--grace", "0s"])?;
    for _ in 0..50 {
        ensure!(!installed() && !node.bin().join("millrace-cni").exists(), "it is back");
        thread::sleep(Duration::from_millis(10));
    }
    ensure!(!node.once("status", &[])?.status.success());
    node.do_("install", &[])?;
    node.until("it is installed again", installed)?;
    agent.stop()
}

/// Verify that the kubeconfig is private and follows the token.
#[test]
fn the_token_is_followed() -> Result<()> {
    let node = Node::new()?;
    node.write(LIST, &list(&[]))?;
    // As the kubelet does it: files behind a link that is exchanged.
    let account = node.folder().join("account");
    let issue = |token: &str| -> Result<()> {
        let folder = account.join(token);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("token"), token)?;
        fs::write(folder.join("ca.crt"), "-----BEGIN CERTIFICATE-----")?;
        let link = account.join("..data_tmp");
        std::os::unix::fs::symlink(token, &link)?;
        Ok(fs::rename(link, account.join("..data"))?)
    };
    fs::create_dir(&account)?;
    issue("first")?;
    for name in ["token", "ca.crt"] {
        std::os::unix::fs::symlink(format!("..data/{name}"), account.join(name))?;
    }
    let folder = account.to_str().context("a path")?;
    let mut agent = node.run(&[
        "--kubeconfig",
        "service-account",
        "--service-account",
        folder,
        "--kubernetes-host",
        "10.0.0.1",
        "--period",
        "1h",
    ])?;
    let path = node.run_dir().join("kubeconfig");
    let says = |token: &str| {
        fs::read_to_string(&path)
            .is_ok_and(|text| text.contains(&format!("\"token\": \"{token}\"")))
    };
    node.until("the first token is there", || says("first"))?;
    node.until("the entry is there", || kinds(&node, LIST).is_ok_and(|kinds| kinds.len() == 2))?;
    assert_eq!(plugins(&node, LIST)?[1]["kubeconfig"], json!(path));
    assert_eq!(fs::metadata(&path)?.mode() & 0o7777, 0o600);
    issue("second")?;
    node.until("the second token is there", || says("second"))?;
    agent.stop()
}
