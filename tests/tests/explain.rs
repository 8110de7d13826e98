//! `millrace explain` as a program: every source of rules gives the same answer.

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::netns::Namespace;
use serde_json::Value;

const QUESTION: [&str; 4] = ["--from", "uid=1000", "--to", "10.9.9.9:80/tcp"];

/// A namespace with an address and a way out.
fn pod() -> Result<Namespace> {
    let namespace = Namespace::new()?;
    namespace.ip("link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth0 up\n\
         link set eth1 up\naddr add 10.4.0.2/24 dev eth0\nroute add default via 10.4.0.1\n")?;
    Ok(namespace)
}

fn explained(words: &[&str]) -> Result<Value> {
    let output = Command::new(binary::millrace()?)
        .args(["explain", "--output", "json"])
        .args(words)
        .output()?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{words:?}: {error}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("{words:?}"))
}

fn is_captured(found: &Value) -> Result<()> {
    let fate = &found["fate"];
    ensure!(fate["port"] == 15001 && fate["original"] == "10.9.9.9:80", "{found:#}");
    ensure!(found["reply"]["reply"] == "arrives", "{found:#}");
    Ok(())
}

/// Verify a configuration, a command line of istio-iptables, and a pod's manifest.
#[test]
fn a_configuration_is_explained_without_privilege() -> Result<()> {
    is_captured(&explained(&QUESTION)?)?;
    let found = explained(&[&QUESTION[..], &["--exclude-outbound-ports", "80"]].concat())?;
    ensure!(found["outcome"]["outcome"] == "passed", "{found:#}");
    let by = &found["decidedBy"][1]["reason"]["source"];
    ensure!(by["kind"] == "flag" && by["name"] == "--exclude-outbound-ports", "{found:#}");
    let istio = ["--", "istio-iptables", "-u", "1337", "-i", "*"];
    is_captured(&explained(&[&QUESTION[..], &istio].concat())?)?;

    let mut manifest = tempfile::NamedTempFile::new()?;
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    \
                sidecar.istio.io/status: '{}'\n    \
                traffic.sidecar.istio.io/excludeOutboundIPRanges: 10.9.0.0/16\nspec:\n  \
                containers: [{name: istio-proxy}, {name: app}]\n";
    std::io::Write::write_all(&mut manifest, text.as_bytes())?;
    let path = manifest.path().to_str().context("UTF-8")?;
    let found = explained(&[&QUESTION[..], &["--manifest", path]].concat())?;
    let chain = found["decidedBy"].as_array().context("rules")?;
    let reason = &chain.last().context("a rule")?["reason"]["source"];
    ensure!(reason["kind"] == "annotation", "{found:#}");

    let mut config = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut config, b"outbound:\n  excludeNetworks: [10.9.0.0/16]\n")?;
    let path = config.path().to_str().context("UTF-8")?;
    let found = explained(&[&QUESTION[..], &["--config", path]].concat())?;
    let chain = found["decidedBy"].as_array().context("rules")?;
    let reason = &chain.last().context("a rule")?["reason"]["source"];
    ensure!(found["outcome"]["outcome"] == "passed" && reason["kind"] == "file", "{found:#}");
    Ok(())
}

/// Verify that live rules of either backend, and the same rules saved, give the same answer, with
/// reasons that were read back.
#[test]
fn live_and_saved_rules_are_explained() -> Result<()> {
    let namespace = pod()?;
    let path = namespace.path();
    let path = path.to_str().context("UTF-8")?;
    let live = [&QUESTION[..], &["--netns", path]].concat();
    let millrace = binary::millrace()?;
    let millrace = millrace.to_str().context("UTF-8")?;
    namespace.run(millrace, &["apply", "--backend", "iptables-nft"])?;
    let found = explained(&live)?;
    is_captured(&found)?;
    ensure!(found["decidedBy"][0]["reason"]["purpose"].is_string(), "{found:#}");

    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rules");
    fs::write(&file, namespace.run("iptables-nft-save", &["-c"])?)?;
    let file = file.to_str().context("UTF-8")?;
    is_captured(&explained(&[&QUESTION[..], &["--rules", file]].concat())?)?;

    namespace.run(millrace, &["apply", "--backend", "nftables"])?;
    let found = explained(&live)?;
    is_captured(&found)?;
    ensure!(found["decidedBy"][0]["reason"]["purpose"].is_string(), "{found:#}");
    let file = folder.path().join("list");
    fs::write(&file, namespace.run("nft", &["-j", "list", "ruleset"])?)?;
    let file = file.to_str().context("UTF-8")?;
    let found = explained(&[&QUESTION[..], &["--rules", file]].concat())?;
    is_captured(&found)?;
    ensure!(found["decidedBy"][0]["reason"]["purpose"].is_string(), "{found:#}");
    Ok(())
}

/// Verify that what becomes of the answer stands with the connection that is answered, and not behind
/// what happens where nobody listens.
#[test]
fn the_answer_belongs_to_the_connection() -> Result<()> {
    let words = ["explain", "--in", "--src", "10.1.2.3", "--to-port", "8080"];
    let output = Command::new(binary::millrace()?).args(words).output()?;
    let said = String::from_utf8(output.stdout)?;
    let ends: Vec<&str> = said.lines().filter(|line| line.starts_with("=>")).collect();
    let wanted = ["=> the answer arrives", "=> without a listener on port 15006: refused"];
    ensure!(ends.len() == 3 && ends[1..] == wanted, "{said}");
    Ok(())
}

/// Verify that a rule which is not known is named, and makes the command fail.
#[test]
fn the_unknown_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rules");
    fs::write(
        &file,
        "*filter\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -m recent --update --name x -j DROP\nCOMMIT\n",
    )?;
    let output = Command::new(binary::millrace()?)
        .args(["explain", "--rules", file.to_str().context("UTF-8")?])
        .args(QUESTION)
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "{:?}", output.status);
    ensure!(text.contains("=> can't be told: -m recent --update"), "{text}");
    Ok(())
}

/// Verify that nothing is told of a family of which no rules were given: not of one connection, and
/// not of all; and that two files without a family are compared by the other one alone.
#[test]
fn a_family_without_rules_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = |name: &str, text: &str| -> Result<String> {
        let path = folder.path().join(name);
        fs::write(&path, text)?;
        Ok(path.to_str().context("UTF-8")?.to_owned())
    };
    let rules =
        "*nat\n:OUTPUT ACCEPT [0:0]\n-A OUTPUT -p tcp -j REDIRECT --to-ports 15001\nCOMMIT\n";
    let v4 = file("v4", &format!("# Generated by iptables-save v1.8.9 on Mon\n{rules}"))?;
    let v6 = file("v6", &format!("# Generated by ip6tables-save v1.8.9 on Mon\n{rules}"))?;
    let ran = |words: &[&str]| -> Result<(Option<i32>, String)> {
        let output = Command::new(binary::millrace()?).args(words).output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8(text)?))
    };
    for (file, from, to, family) in [
        (&v4, "fd00:4::2", "[2001:db8::10]:80", "IPv6"),
        (&v6, "10.4.0.2", "198.51.100.10:80", "IPv4"),
    ] {
        let (code, text) = ran(&["explain", "--rules", file, "--src", from, "--to", to])?;
        let wanted = format!("=> can't be told: no rules of {family} were given");
        ensure!(code == Some(1) && text.contains(&wanted), "{code:?}: {text}");
        let (code, text) = ran(&["explain", "--all", "--rules", file])?;
        let told = format!("nothing is told of {family}");
        ensure!(code == Some(0) && text.contains(&told), "{code:?}: {text}");
        ensure!(!text.contains(&format!("# {family}\n")), "{text}");
        let (code, text) = ran(&["diff", file, file])?;
        ensure!(code == Some(0) && text.contains(&told), "{code:?}: {text}");
    }
    // What only one side has rules of is not known to be the same.
    let (code, text) = ran(&["diff", &v4, &format!("{v4},{v6}")])?;
    ensure!(code == Some(1) && text.contains("no rules of IPv6 were given"), "{code:?}: {text}");
    let empty = file("empty", "")?;
    let (code, text) = ran(&["explain", "--rules", &empty, "--to", "198.51.100.10:80"])?;
    ensure!(code == Some(1) && text.contains("no rules of IPv4 were given"), "{code:?}: {text}");
    Ok(())
}

/// Verify that it is said where a connection is to come from an address that the pod has not.
#[test]
fn a_source_that_the_pod_has_not_is_named() -> Result<()> {
    for (source, to, named) in [
        ("10.9.9.9", "198.51.100.10:80", true),
        ("10.4.0.2", "198.51.100.10:80", false),
        ("127.0.0.6", "127.0.0.1:80", false),
        ("::6", "[fd00:4::2]:80", true),
    ] {
        let output = Command::new(binary::millrace()?)
            .args(["explain", "--ipv6", "off", "--src", source, "--to", to])
            .output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("EADDRNOTAVAIL") == named, "{source}: {said}");
    }
    Ok(())
}

/// Native rules of somebody else: a service that is dropped, one by a map, and a base chain that
/// iptables does not know.
const FOREIGN: &str = "
table ip services {
    set closed { type ipv4_addr; flags interval; elements = { 10.9.8.0/24, 10.9.7.1-10.9.7.9 } }
    chain closed-ports { tcp dport { 25, 6000-6063 } counter drop
        return
    }
    chain out { type filter hook output priority 5; policy accept;
        ip daddr @closed counter drop
        ip protocol udp meta skuid != 0 udp dport 1024-65535 counter drop
        oifname \"eth0\" counter jump closed-ports
        ip daddr 10.9.6.6 numgen random mod 2 == 0 drop
    }
}
table ip filter { chain OUTPUT { type filter hook output priority 0; policy drop; accept
    }
}
";

/// Verify that native rules of others are walked live as they are listed, and that what is not
/// known of them is named.
#[test]
fn native_rules_of_others_are_walked() -> Result<()> {
    let namespace = pod()?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("foreign.nft");
    fs::write(&file, FOREIGN)?;
    namespace.run("nft", &["-f", file.to_str().context("UTF-8")?])?;
    let path = namespace.path();
    let live = ["--netns", path.to_str().context("UTF-8")?];
    let outcome = |question: &[&str]| -> Result<Value> {
        let words = [&["explain", "--output", "json"], question, &live[..]].concat();
        let output = Command::new(binary::millrace()?).args(words).output()?;
        let found: Value = serde_json::from_slice(&output.stdout)?;
        Ok(found["outcome"].clone())
    };
    for (to, wanted) in [
        ("10.9.9.9:80/tcp", "passed"),
        ("10.9.8.1:80/tcp", "dropped"),
        ("10.9.7.5:80/tcp", "dropped"),
        ("10.9.9.9:6001/tcp", "dropped"),
        ("10.9.9.9:6001/udp", "dropped"),
        ("10.9.9.9:53/udp", "passed"),
        ("10.9.6.6:80/tcp", "unknown"),
    ] {
        let found = outcome(&["--to", to])?;
        ensure!(found["outcome"] == wanted, "{to}: {found:#}");
    }
    let unknown = outcome(&["--to", "10.9.6.6:80/tcp"])?;
    ensure!(unknown["what"] == "expression numgen", "{unknown:#}");

    let list = folder.path().join("list.json");
    fs::write(&list, namespace.run("nft", &["-j", "list", "ruleset"])?)?;
    let live = format!("netns:{}", path.display());
    let output = Command::new(binary::millrace()?).arg("diff").arg(&live).arg(&list).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let (_, rules) = text.split_once("rules:\n").with_context(|| text.to_string())?;
    // Only of this rule there is nothing but a name.
    ensure!(rules.lines().count() == 2 && rules.contains("numgen"), "{text}");
    Ok(())
}

/// Verify that two configurations, files and a namespace are compared by what they do.
#[test]
fn differences_are_told_by_traffic() -> Result<()> {
    let diff = |before: &str, after: &str| -> Result<(Option<i32>, String)> {
        let output = Command::new(binary::millrace()?).args(["diff", before, after]).output()?;
        Ok((output.status.code(), String::from_utf8(output.stdout)?))
    };
    let (code, text) = diff("apply", "apply --exclude-outbound-ports 9092")?;
    ensure!(code == Some(1) && text.contains("tcp not 10.4.0.2,127.0.0.0/8 port 9092"), "{text}");
    ensure!(text.contains("redirected to port 15001 -> leaves by eth0"), "{text}");
    ensure!(
        text.contains("\n+ IPv4 nat MILLRACE_OUTPUT 1: -p tcp --dport 9092 -j RETURN"),
        "{text}"
    );

    let namespace = pod()?;
    let millrace = binary::millrace()?;
    namespace.run(
        millrace.to_str().context("UTF-8")?,
        &["apply", "--backend", "iptables-nft", "--ipv6", "on"],
    )?;
    let live = format!("netns:{}", namespace.path().display());
    let (code, text) = diff("apply --ipv6 on", &live)?;
    ensure!(code == Some(0) && text.contains("rules: the same"), "{text}");
    namespace.run("iptables-nft", &["-t", "nat", "-D", "OUTPUT", "1"])?;
    let (code, text) = diff("apply --ipv6 on", &live)?;
    ensure!(code == Some(1) && text.contains("-> leaves by eth0"), "{text}");

    // Saved and live rules, and two saved ones, in their own languages.
    let folder = tempfile::tempdir()?;
    let save = |name: &str, program: &str, words: &[&str]| -> Result<String> {
        let path = folder.path().join(name);
        fs::write(&path, namespace.run(program, words)?)?;
        Ok(path.to_str().context("UTF-8")?.to_owned())
    };
    let v4 = save("v4", "iptables-nft-save", &[])?;
    let v6 = save("v6", "ip6tables-nft-save", &["-c"])?;
    let (code, text) = diff(&format!("{v4},{v6}"), &live)?;
    ensure!(code == Some(0) && text.contains("rules: the same"), "{text}");
    let program = millrace.to_str().context("UTF-8")?;
    namespace.run(program, &["apply", "--backend", "nftables", "--ipv6", "on"])?;
    let list = save("list", "nft", &["-j", "list", "ruleset"])?;
    let (code, text) = diff(&list, &live)?;
    ensure!(code == Some(0) && text.contains("rules: the same"), "{text}");
    let (code, text) = diff(&format!("{v4},{v6}"), &list)?;
    ensure!(
        code == Some(1) && text.contains("leaves by eth0 -> redirected to port 15001"),
        "{text}"
    );
    let (code, text) = diff("apply --ipv6 on --backend nftables", &list)?;
    ensure!(code == Some(0), "{text}");

    // From istio-iptables' rules to Millrace's: only who is of the proxy's group, and not its user,
    // is taken for the proxy in another way.
    let istio = "istio-iptables -u 1337 -g 1337 -m REDIRECT -i * -b *";
    let (code, text) = diff(istio, "apply --proxy-uid 1337 --proxy-gid 1337")?;
    let (traffic, rules) = text.split_once("\nrules:\n").with_context(|| text.clone())?;
    let classes: Vec<&str> = traffic.lines().filter(|line| line.starts_with("  IPv")).collect();
    let of_group = |class: &&str| class.contains(" uid not 1337 gid 1337");
    ensure!(code == Some(1) && classes.len() == 3 && classes.iter().all(of_group), "{text}");
    ensure!(rules.contains("- IPv4 nat OUTPUT 1: -j ISTIO_OUTPUT"), "{text}");
    let output = Command::new(binary::millrace()?)
        .args(["diff", "--output", "json", "apply", "apply --inbound-port 16006"])
        .output()?;
    let found: Value = serde_json::from_slice(&output.stdout)?;
    let change = &found["traffic"][0];
    ensure!(change["before"]["outcome"]["port"] == 15006, "{found:#}");
    ensure!(change["after"]["outcome"]["port"] == 16006, "{found:#}");
    ensure!(found["rules"][0]["change"] == "removed", "{found:#}");

    let output = Command::new(binary::millrace()?).args(["diff", "apply", "/none"]).output()?;
    ensure!(output.status.code() == Some(2), "{:?}", output.status);
    Ok(())
}

/// Verify that what other commands print is refused with the one that prints what is needed.
#[test]
fn other_listings_are_refused_with_what_to_save() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("rules");
    let name = file.to_str().context("UTF-8")?;
    for (text, wanted) in [
        ("-P OUTPUT ACCEPT\n-A OUTPUT -j X\n", "iptables-save"),
        ("# Warning: x\nChain OUTPUT (policy ACCEPT)\ntarget prot\n", "iptables-save"),
        ("table ip nat { # handle 1\n}\n", "nft -j list ruleset"),
    ] {
        fs::write(&file, text)?;
        for (words, code) in
            [(&["explain", "--all", "--rules", name][..], 1), (&["diff", name, "apply"], 2)]
        {
            let output = Command::new(binary::millrace()?).args(words).output()?;
            let said = String::from_utf8_lossy(&output.stderr);
            ensure!(
                output.status.code() == Some(code) && said.contains(wanted),
                "{words:?}: {said}"
            );
        }
    }
    Ok(())
}

/// A pod that `istio-init` captures with these arguments, and annotations.
fn injected(args: &str, annotations: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, uid: x, annotations: {{{annotations}}}}}\n\
         spec:\n  initContainers: [{{name: istio-init, args: [istio-iptables, {args}]}}]\n  \
         containers: [{{name: istio-proxy}}, {{name: app}}]\n"
    )
}

/// Verify that each object is explained by what captures its pods, and never by what doesn't.
#[test]
fn a_manifest_is_explained_by_what_captures_its_pods() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("web.yaml");
    let name = file.to_str().context("UTF-8")?.to_owned();
    let ask = |text: &str, words: &[&str]| -> Result<(Option<i32>, String)> {
        fs::write(&file, text)?;
        let question = if words.contains(&"--to") { &[][..] } else { &QUESTION };
        let mut command = Command::new(binary::millrace()?);
        let output = command.arg("explain").args(question).args(words).output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8(text)?))
    };
    let says = |text: &str, words: &[&str], code: i32, parts: &[&str]| -> Result<()> {
        let (found, said) = ask(text, words)?;
        ensure!(found == Some(code), "{text}{found:?} {said}");
        for part in parts {
            ensure!(said.contains(part), "{part} is not in\n{said}\nof\n{text}");
        }
        Ok(())
    };
    let manifest = ["--manifest", name.as_str()];
    let (captured, leaves) = ("=> delivered to 127.0.0.1 on port 15001", "=> leaves by eth0");

    // The container's arguments count, and not the annotations.
    let excluded = "-x, 10.0.0.0/8, -u, \"1337\", -i, \"*\"";
    says(&injected(excluded, ""), &manifest, 0, &[leaves, "ISTIO_OUTPUT", "flag -x/"])?;
    let annotated = "traffic.sidecar.istio.io/excludeOutboundPorts: \"80\"";
    let otherwise = ["arguments of init container istio-init", "excludeOutboundPorts", captured];
    says(&injected("-i, \"*\"", annotated), &manifest, 0, &otherwise)?;
    let native = injected("-i, \"*\", --native-nftables", "");
    says(&native, &manifest, 0, &[captured, "istio-proxy-nat"])?;
    says(&injected("-i, \"*\", --skip-rule-apply", ""), &manifest, 1, &["writes no rules"])?;
    let dns = injected("-i, \"*\", --redirect-dns", "");
    says(&dns, &manifest, 1, &["no manifest tells", "--pod"])?;
    let own = dns + "  dnsPolicy: None\n  dnsConfig: {nameservers: [10.9.9.9]}\n";
    says(&own, &["--manifest", &name, "--to", "9.9.9.9:53/udp"], 0, &["port 15053"])?;

    // What the plugin writes has its names, with the backend that is meant.
    let plugin =
        injected("x", "sidecar.istio.io/status: \"{}\"").replace("istio-init", "istio-validation");
    says(&plugin, &manifest, 0, &[captured, "MILLRACE_OUTPUT"])?;
    let words = [&manifest[..], &["--backend", "nftables"]].concat();
    says(&plugin, &words, 0, &[captured, "millrace nat-output 1"])?;
    says(&injected(excluded, ""), &words, 1, &["an init container captures this pod"])?;

    // What nothing captures is told so, and what others capture is not guessed.
    let refused =
        plugin.replace("uid: x,", "uid: x, labels: {sidecar.istio.io/inject: \"false\"},");
    says(&refused, &manifest, 0, &["this pod is not captured", leaves])?;
    let gone = plugin.replace("{name: istio-proxy}, ", "");
    says(&gone, &manifest, 0, &["this pod is not captured", leaves])?;
    let appmesh = |variables: &[(&str, &str)]| {
        let one = |(name, value): &(&str, &str)| format!("{{name: {name}, value: \"{value}\"}}");
        let env = variables.iter().map(one).collect::<Vec<_>>().join(", ");
        let container = format!("{{name: proxyinit, env: [{env}]}}");
        plugin.replace("{name: istio-validation, args: [istio-iptables, x]}", &container)
    };
    let (on, ports) = (("APPMESH_START_ENABLED", "1"), ("APPMESH_APP_PORTS", "8080"));
    says(&appmesh(&[on]), &manifest, 1, &["proxyinit", "APPMESH_APP_PORTS has to name"])?;
    says(&appmesh(&[on, ports]), &manifest, 0, &[captured, "APPMESH_EGRESS"])?;
    says(&appmesh(&[ports]), &manifest, 0, &["APPMESH_START_ENABLED", leaves])?;
    let runs = plugin.replace("istio-validation", "proxyinit");
    says(&runs, &manifest, 1, &["proxyinit runs", "not the script of its image"])?;
    let both =
        appmesh(&[on, ports]).replace("[{name: proxyinit", "[{name: istio-init}, {name: proxyinit");
    says(&both, &manifest, 1, &["one of AWS App Mesh and Istio"])?;
    let both = plugin.replace("istio-validation", "kuma-init");
    says(&both, &manifest, 1, &["one of Istio and Kuma", "one mesh only"])?;
    let mesh = |container: &str| {
        let proxy = "{name: linkerd-proxy}";
        plugin.replace("istio-validation", container).replace("{name: istio-proxy}", proxy)
    };

    // Linkerd's init container is told by its arguments, and nothing else that it may run.
    says(&mesh("linkerd-init"), &manifest, 1, &["linkerd-init runs", "not linkerd2-proxy-init"])?;
    let linkerd = |flags: &str| {
        mesh("linkerd-init").replace(
            "args: [istio-iptables, x]",
            &format!("command: [/usr/lib/linkerd/linkerd2-proxy-init], args: [{flags}]"),
        )
    };
    let flags =
        "--incoming-proxy-port, \"4143\", --outgoing-proxy-port, \"4140\", --proxy-uid, \"2102\"";
    let to_proxy = "=> delivered to 127.0.0.1 on port 4140";
    says(&linkerd(flags), &manifest, 0, &[to_proxy, "PROXY_INIT_OUTPUT", "flag -o/"])?;
    let ignored = format!("{flags}, --outbound-ports-to-ignore, \"80\"");
    says(&linkerd(&ignored), &manifest, 0, &[leaves, "flag --outbound-ports-to-ignore"])?;
    says(&linkerd("-p, \"0\""), &manifest, 1, &["linkerd-init", "a listening port is"])?;
    let host = format!("{plugin}  hostNetwork: true\n");
    says(&host, &manifest, 1, &["the node's network"])?;

    // Its template's annotations are its pods', and its own are nobody's.
    let deployment = |name: &str, own: &str, pods: &str| {
        let port =
            |port: &str| format!("{{traffic.sidecar.istio.io/excludeOutboundPorts: \"{port}\"}}");
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: {name}, annotations: {}}}\nspec: \
             {{template: {{metadata: {{annotations: {}}}, spec: {{containers: [{{name: app}}]}}}}}}\n",
            port(own),
            port(pods)
        )
    };
    let (one, two) = (deployment("one", "80", "81"), deployment("two", "81", "80"));
    says(&one, &manifest, 0, &[captured, "once it is injected"])?;
    says(&two, &manifest, 0, &[leaves])?;
    let both = format!("{one}---\n{two}");
    says(&both, &manifest, 1, &["several pods", "Deployment/one, Deployment/two", "#KIND/NAME"])?;
    for (which, wanted) in [("#Deployment/one", captured), ("#two", leaves)] {
        let name = format!("{name}{which}");
        says(&both, &["--manifest", &name], 0, &[wanted])?;
    }
    says(&both, &["--manifest", &format!("{name}#three")], 1, &["is called three"])?;
    says("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n", &manifest, 1, &["ConfigMap a"])?;

    // The same in `diff`, whose sides are words.
    fs::write(&file, &both)?;
    let sides = ["one", "two"].map(|object| format!("{name}#{object}"));
    let output = Command::new(binary::millrace()?).arg("diff").args(&sides).output()?;
    let said = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(1) && said.contains("port 81"), "{said}");
    let output = Command::new(binary::millrace()?).args(["diff", &name, &sides[1]]).output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(
        output.status.code() == Some(2) && said.contains("several pods"),
        "{:?} {said}",
        output.status
    );
    Ok(())
}
