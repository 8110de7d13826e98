//! What goes wrong around the plugin: it is killed, called twice, given the wrong namespace, a
//! broken folder, values that are none. A pod is captured, or its ADD has failed and says why.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::cni::{Call, Host, POD_ANNOTATIONS, Pod, Reply, STATUS, mesh, pod_args};
use millrace_tests::netns::Namespace;
use millrace_tests::snapshot::Snapshot;
use millrace_tests::topology::{APP, ROOT};
use serde_json::{Value, json};

const CAPTURED: &str = "table inet millrace";
const MODE: &str = "sidecar.istio.io/interceptionMode";

/// Verify that the same pod can be added by many at once, and that a DEL at the same time leaves
/// it captured or not, and nothing between.
#[test]
fn the_same_pod_at_once() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    // A DEL may end behind an ADD that began after it, and take the note with it.
    let add = Call::new(&host, "ADD", &pod, mesh(&[])).given(&host, &pod, "10.9.0.2/24")?;
    let before = host.inside(&pod, Snapshot::take)?;
    let children: Vec<_> = (0..8).map(|_| add.start(&host)).collect::<Result<_>>()?;
    for child in children {
        ensure!(child.wait_with_output()?.status.success());
    }
    add.clone().to("CHECK").run(&host)?.success()?;
    for _ in 0..5 {
        let calls = [add.clone(), add.clone().to("DEL"), add.clone(), add.clone().to("DEL")];
        let children: Vec<_> = calls.iter().map(|c| c.start(&host)).collect::<Result<_>>()?;
        for child in children {
            let output = child.wait_with_output()?;
            ensure!(output.status.success(), "{output:?}");
        }
        if host.rules(&pod)?.contains("millrace") {
            add.clone().to("CHECK").run(&host)?.success()?;
        }
        add.clone().to("DEL").run(&host)?.success()?;
        assert_eq!(before.differences(&host.inside(&pod, Snapshot::take)?), "");
    }
    Ok(())
}

/// Verify that the host's namespace and the plugin's own are refused before anything is changed,
/// whatever path leads there.
#[test]
fn the_hosts_namespace_is_never_captured() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let own = host.namespace.run("readlink", &["/proc/self/ns/net"])?;
    let before = Snapshot::take(&host.namespace)?;
    host.namespace
        .run("sh", &["-c", "touch /run/own && mount --bind /proc/self/ns/net /run/own"])?;
    let path = host.namespace.path();
    let path = path.to_str().context("a path")?;
    for target in ["/proc/self/ns/net", "/run/own", path] {
        for annotations in [mesh(&[]), json!({})] {
            let call = Call::new(&host, "ADD", &pod, annotations).with_env("CNI_NETNS", target);
            let said = call.run(&host)?.failure(4)?;
            ensure!(said.contains("never captured") && said.contains(target), "{said}");
            call.clone().to("CHECK").run(&host)?.failure(4)?;
            // DEL does nothing there, and says so in its log.
            let reply = call.to("DEL").run(&host)?;
            reply.success()?;
            ensure!(reply.log.contains("never captured"), "{reply:?}");
        }
    }
    assert_eq!(before.differences(&Snapshot::take(&host.namespace)?), "");
    assert_eq!(own, host.namespace.run("readlink", &["/proc/self/ns/net"])?);
    Ok(())
}

/// Verify that the namespace of the machine's first process is refused also by a plugin that runs
/// in another one, as in a container.
#[test]
fn the_namespace_of_process_1_is_never_captured() -> Result<()> {
    let host = Host::new()?;
    let (pod, elsewhere) = (host.pod()?, host.pod()?);
    let call = Call::new(&host, "ADD", &pod, mesh(&[]));
    let input = host.folder().join("stdin.json");
    fs::write(&input, call.config.to_string())?;
    let program = millrace_tests::binary::millrace_cni()?;
    // Process 1 of the new process namespace is a shell in the host's network namespace.
    let shell = format!(
        "nsenter --net={} env CNI_NETNS=/proc/1/ns/net {} <{}; exit $?",
        elsewhere.netns.display(),
        program.display(),
        input.display()
    );
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--mount-proc", "sh", "-c", &shell]);
    command.envs(call.env.iter().map(|(n, v)| (n, v)));
    let before = Snapshot::take(&host.namespace)?;
    let said = Reply::of(&host.namespace.output(&mut command)?)?.failure(4)?;
    ensure!(said.contains("the host's network namespace"), "{said}");
    assert_eq!(before.differences(&Snapshot::take(&host.namespace)?), "");
    Ok(())
}

/// Verify that what is no network namespace, or none any more, is named.
#[test]
fn what_is_no_namespace_is_named() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let file = host.folder().join("file");
    fs::write(&file, "")?;
    let file = file.to_str().context("a path")?;
    for target in ["/run/netns/gone", file, "/", "relative", "/proc/self/ns/mnt"] {
        let call = Call::new(&host, "ADD", &pod, mesh(&[])).with_env("CNI_NETNS", target);
        let said = call.run(&host)?.failure(4)?;
        ensure!(said.contains("CNI_NETNS") && said.contains(target), "{said}");
    }
    Ok(())
}

/// Verify that each annotation's bad values fail ADD with the annotation's name, the value and
/// what is right, and that none of them changes anything.
#[test]
fn bad_annotation_values() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let before = host.inside(&pod, Snapshot::take)?;
    let traffic = "traffic.sidecar.istio.io/";
    let ports = ["80,x", "65536", "-1", "80;reboot", "80 -j ACCEPT", "0x50", "80\n90", "1-70000"];
    let networks = ["10.0.0.0/33", "10.0.0.0/8, 11.0.0.0/8", "fd00::/129", "x", "$(id)"];
    let interfaces = ["eth0;reboot", "1234567890123456", "-x", "a b", "\u{e9}"];
    let cases = [
        ("sidecar.istio.io/interceptionMode".to_owned(), &["NONE", "redirect", ""][..]),
        (format!("{traffic}includeOutboundIPRanges"), &networks),
        (format!("{traffic}excludeOutboundIPRanges"), &networks),
        (format!("{traffic}includeInboundPorts"), &ports),
        (format!("{traffic}excludeInboundPorts"), &ports),
        (format!("{traffic}includeOutboundPorts"), &ports),
        (format!("{traffic}excludeOutboundPorts"), &ports),
        (format!("{traffic}excludeInterfaces"), &interfaces),
        ("istio.io/reroute-virtual-interfaces".to_owned(), &interfaces),
        (format!("{traffic}kubevirtInterfaces"), &interfaces),
    ];
    for (name, values) in &cases {
        for value in *values {
            let call = Call::new(&host, "ADD", &pod, mesh(&[(name, value)]));
            let said = call.run(&host)?.failure(102)?;
            ensure!(said.contains(name.as_str()), "{name} {value:?}: {said}");
            ensure!(said.contains(&pod.name) && !said.contains('\n'), "{name} {value:?}: {said}");
        }
    }
    // All of them at once.
    let all: Vec<(&str, &str)> = cases.iter().map(|(n, v)| (n.as_str(), v[0])).collect();
    let said = Call::new(&host, "ADD", &pod, mesh(&all[..9])).run(&host)?.failure(102)?;
    ensure!(all[..9].iter().all(|(name, _)| said.contains(name)), "{said}");
    assert_eq!(before.differences(&host.inside(&pod, Snapshot::take)?), "");
    Ok(())
}

/// Verify that a pod that may be in the mesh is refused with code 11 when nobody can tell, and
/// that pods which provably are not pass, with nobody to ask.
#[test]
fn nobody_can_tell() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let add = |annotations: Value| {
        Call::new(&host, "ADD", &pod, annotations).with_key("kubeconfig", json!("/no/kubeconfig"))
    };
    let blind = add(json!({})).without_key("runtimeConfig");
    let unclear = add(json!({ STATUS: "{}" }));
    let gateway = add(mesh(&[("inject.istio.io/templates", "gateway")]));
    let refused = add(mesh(&[("sidecar.istio.io/inject", "false")]));
    let lookup = add(mesh(&[])).with_key("proxy_identity", json!("lookup"));
    for call in [&blind, &unclear, &gateway, &refused, &lookup] {
        let said = call.run(&host)?.failure(11)?;
        for part in ["may be in the mesh", "/no/kubeconfig", &format!("pod shop/{}", pod.name)] {
            ensure!(said.contains(part), "{part}: {said}");
        }
        ensure!(!host.rules(&pod)?.contains("millrace"));
        let excluded = (*call).clone().with_key("exclude_namespaces", json!(["a", "shop"]));
        excluded.run(&host)?.success()?;
        call.clone().to("DEL").run(&host)?.success()?;
    }
    let agent = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=istio-cni-node-x";
    let agent = blind.clone().with_env("CNI_ARGS", agent).with_key("pod_namespace", json!("shop"));
    agent.run(&host)?.success()?;
    blind.clone().with_env("CNI_ARGS", "").run(&host)?.success()?;
    add(json!({})).run(&host)?.success()?;
    add(json!({ STATUS: r#"{"initContainers":["istio-init"],"containers":["istio-proxy"]}"# }))
        .run(&host)?
        .success()?;
    ensure!(!host.rules(&pod)?.contains("millrace"));
    blind.with_env("CNI_ARGS", "K8S_POD_NAME").run(&host)?.failure(4)?;
    Ok(())
}

/// Verify that istio-cni's own entry does the same, with the annotations in another case, and that
/// a container that is no pod is captured when the configuration says so.
#[test]
fn entries_of_others() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let call = Call::new(&host, "ADD", &pod, Value::Null).without_key("runtimeConfig");
    let istio = [
        ("ambient_enabled", json!(false)),
        ("cni_agent_run_dir", json!("/var/run/istio-cni")),
        ("dns", json!({})),
        ("ipam", json!({})),
        ("enable_ambient_detection_retry", json!(false)),
        ("enablement_selectors", json!([{ "podSelector": {}, "namespaceSelector": {} }])),
        ("exclude_namespaces", json!(["kube-system"])),
        ("native_nftables", json!(true)),
        ("plugin_log_level", json!("debug")),
        ("pod_namespace", json!("istio-system")),
        ("RuntimeConfig", json!({ POD_ANNOTATIONS.to_uppercase(): mesh(&[]) })),
    ];
    let call = istio.into_iter().fold(call, |call, (name, value)| call.with_key(name, value));
    let reply = call.run(&host)?;
    reply.success()?;
    ensure!(!reply.log.contains("not known"), "{reply:?}");
    ensure!(host.rules(&pod)?.contains(CAPTURED));
    // That of releases up to 1.22: its namespaces and its kubeconfig count.
    let older = json!({
        "kubeconfig": "/etc/cni/net.d/ZZZ-istio-cni-kubeconfig", "cni_bin_dir": "/opt/cni/bin",
        "exclude_namespaces": ["istio-system", "kube-system"],
    });
    let older = Call::new(&host, "ADD", &pod, Value::Null)
        .without_key("runtimeConfig")
        .with_key("log_level", json!("info"))
        .with_key("log_uds_address", json!("/var/run/istio-cni/log.sock"))
        .with_key("cni_event_address", json!("/var/run/istio-cni/pluginevent.sock"))
        .with_key("kubernetes", older);
    let said = older.run(&host)?.failure(11)?;
    ensure!(said.contains("ZZZ-istio-cni-kubeconfig"), "{said}");
    let system = pod_args("kube-system", "coredns-1", "x");
    let reply = older.with_env("CNI_ARGS", &system).run(&host)?;
    reply.success()?;
    ensure!(!reply.log.contains("not known") && reply.log.contains("is excluded"), "{reply:?}");
    let pod = host.pod()?;
    let call = Call::new(&host, "ADD", &pod, Value::Null)
        .without_key("runtimeConfig")
        .with_env("CNI_ARGS", "IgnoreUnknown=1;K8S_POD_NAME=c1")
        .with_key("annotations", mesh(&[]));
    call.run(&host)?.success()?;
    ensure!(host.rules(&pod)?.contains(CAPTURED));
    call.to("CHECK").run(&host)?.success()?;
    Ok(())
}

/// Verify that a folder that can't be written and a log that can't cost nothing but a warning, and
/// that a log is rotated.
#[test]
fn notes_and_logs_that_cannot_be_written() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let file = host.folder().join("file");
    fs::write(&file, "")?;
    let broken = Call::new(&host, "ADD", &pod, mesh(&[]))
        .with_key("state_dir", json!(file))
        .with_key("log_file", json!("/no/such/folder/log"))
        .given(&host, &pod, "10.9.0.2/24")?;
    let reply = broken.run(&host)?;
    reply.success()?;
    ensure!(reply.log.contains("state_dir") && reply.log.contains("log_file"), "{reply:?}");
    broken.clone().to("CHECK").run(&host)?.success()?;
    broken.to("DEL").run(&host)?.success()?;
    ensure!(!host.rules(&pod)?.contains("millrace"));
    let log = host.folder().join("log");
    let small = Call::new(&host, "ADD", &pod, mesh(&[]))
        .with_key("log_file", json!(log))
        .with_key("log_max_bytes", json!(4096));
    for _ in 0..20 {
        small.run(&host)?.success()?;
    }
    ensure!(fs::metadata(&log)?.len() <= 4096 && host.folder().join("log.1").exists());
    assert_eq!(fs::metadata(&log)?.permissions().mode() & 0o777, 0o600);
    for line in fs::read_to_string(&log)?.lines() {
        let line: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        assert_eq!(line["msg"], "captured");
    }
    Ok(())
}

/// Verify that whatever ADD fails for is in the log, on standard error and in the file, with the pod,
/// its container's id, the code, the reason and the time it took.
#[test]
fn a_failure_is_logged() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let log = host.folder().join("log");
    let add = Call::new(&host, "ADD", &pod, mesh(&[])).with_key("log_file", json!(log));
    let told = |annotations| json!({ POD_ANNOTATIONS: annotations });
    let cases = [
        (4, add.clone().with_env("CNI_NETNS", "/run/netns/gone")),
        (6, add.clone().with_key("prevResult", json!([]))),
        (7, add.clone().with_key("deadline", json!("soon"))),
        (11, add.clone().with_key("runtimeConfig", told(json!({ STATUS: "{}" })))),
        (102, add.clone().with_key("runtimeConfig", told(mesh(&[(MODE, "NONE")])))),
    ];
    for (code, call) in cases {
        let reply = call.run(&host)?;
        reply.failure(code)?;
        let line = reply.lines()?.pop().context("a line")?;
        let error: Value = serde_json::from_str(&reply.text)?;
        assert_eq!((&line["level"], &line["code"]), (&json!("error"), &json!(code)), "{line}");
        assert_eq!((&line["msg"], &line["containerId"]), (&error["msg"], &json!(pod.id)), "{line}");
        assert_eq!(line["pod"], pod.name, "{line}");
        ensure!(line["durationMs"].as_f64().is_some_and(|time| time > 0.0), "{line}");
        let file = fs::read_to_string(&log)?;
        assert_eq!(file.lines().last(), reply.log.lines().last(), "{code}");
    }
    Ok(())
}

/// Verify that a proxy's ids come from the node agent, that its silence ends in time, and that a
/// pod whose annotations tell enough is captured without it.
#[test]
fn the_node_agent() -> Result<()> {
    use std::io::{BufRead as _, BufReader, Write as _};

    let host = Host::new()?;
    let path = host.folder().join("agent.sock");
    let listener = UnixListener::bind(&path)?;
    let call = |pod: &Pod, annotations| {
        Call::new(&host, "ADD", pod, annotations).with_key("agent_socket", json!(path))
    };
    let (one, two) = (host.pod()?, host.pod()?);
    let (name, uid) = (one.name.clone(), one.uid());
    let agent = thread::spawn(move || -> Result<Value> {
        let (stream, _) = listener.accept()?;
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line)?;
        let answer = json!({ "pod": {
            "metadata": {
                "namespace": "shop", "name": name, "uid": uid, "annotations": { STATUS: "{}" },
            },
            "spec": { "containers": [{
                "name": "istio-proxy",
                "securityContext": { "runAsUser": 4242, "runAsGroup": 4343 },
            }] },
        }});
        (&stream).write_all(format!("{answer}\n").as_bytes())?;
        // From now on it listens, and says nothing.
        Box::leak(Box::new(listener));
        Ok(serde_json::from_str(&line)?)
    });
    call(&one, json!({ STATUS: "{}" })).run(&host)?.success()?;
    let request = agent.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
    let wanted = json!({ "namespace": "shop", "name": one.name, "uid": one.uid() });
    assert_eq!(request, json!({ "version": 1, "pod": wanted }));
    let rules = host.rules(&one)?;
    ensure!(rules.contains("4242") && rules.contains("4343"), "{rules}");
    // What was learned is noted: CHECK asks nobody.
    let check = call(&one, json!({ STATUS: "{}" })).to("CHECK");
    check.with_key("agent_socket", json!("/no/agent")).run(&host)?.success()?;
    let began = Instant::now();
    let reply = call(&two, mesh(&[])).run(&host)?;
    reply.success()?;
    ensure!(reply.log.contains("no answer in time"), "{reply:?}");
    ensure!(host.rules(&two)?.contains("1337"));
    let silent = call(&host.pod()?, json!({ STATUS: "{}" })).with_key("deadline", json!("500ms"));
    let said = silent.run(&host)?.failure(11)?;
    ensure!(said.contains("no answer in time"), "{said}");
    ensure!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    Ok(())
}

/// Verify that `explain` says what ADD then does, and changes nothing.
#[test]
fn explain_says_what_add_does() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let run = |annotations: Value, arg: &[&str]| -> Result<(String, bool)> {
        let call = Call::new(&host, "ADD", &pod, annotations);
        let words = format!("exec \"$0\" explain {}", arg.join(" "));
        let reply = call.run_under(&host, &["sh", "-c", &words])?;
        Ok((reply.text, reply.code == Some(0)))
    };
    // What the documentation shows is what is printed.
    let (name, text) = ("docs/cni.md", include_str!("../../docs/cni.md"));
    let (_, shown) = text.split_once("millrace-cni explain < stdin.json\n").context(name)?;
    let (shown, _) = shown.split_once("```").context(name)?;
    let (text, _) = run(json!({}), &[])?;
    assert_eq!(shown.replace("web-0", &pod.name), text, "{name}");
    let excluded = mesh(&[("traffic.sidecar.istio.io/excludeOutboundPorts", "5432")]);
    let (text, good) = run(excluded.clone(), &[])?;
    ensure!(good && text.contains("is captured") && text.contains(&pod.name), "{text}");
    let reason = "annotation traffic.sidecar.istio.io/excludeOutboundPorts";
    ensure!(text.contains(reason) && text.contains("5432"), "{text}");
    let (text, good) = run(excluded, &["--json"])?;
    let value: Value = serde_json::from_str(&text)?;
    ensure!(good && value["outcome"] == "capture", "{text}");
    let (text, good) = run(json!({}), &[])?;
    ensure!(good && text.contains("is not captured: no proxy was injected"), "{text}");
    let (text, good) = run(json!({ STATUS: "{}" }), &[])?;
    ensure!(!good && text.contains("ADD fails with code 11"), "{text}");
    ensure!(!host.rules(&pod)?.contains("millrace") && !host.state_dir().exists());
    Ok(())
}

/// Verify that without privilege ADD fails closed, with what is missing.
#[test]
fn without_privilege() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let call = Call::new(&host, "ADD", &pod, mesh(&[]));
    for (drop, code) in [("-sys_admin", 4), ("-net_admin", 100)] {
        let (bounding, own) = (format!("--bounding-set={drop}"), format!("--inh-caps={drop}"));
        let said = call.run_under(&host, &["setpriv", &bounding, &own])?.failure(code)?;
        let capability = drop.trim_start_matches('-').to_uppercase();
        ensure!(said.contains(&capability) && said.contains(&pod.name), "{drop}: {said}");
        ensure!(!host.rules(&pod)?.contains("millrace"));
    }
    Ok(())
}

/// Verify that STATUS tells that no pod can be captured, and that it matters more where some are.
#[test]
fn status_where_nothing_can_be_captured() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let add = Call::new(&host, "ADD", &pod, mesh(&[]));
    let status = add.clone().to("STATUS");
    let without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"];
    for (code, pods) in [(50, 0), (51, 1)] {
        let said = status.run_under(&host, &without)?.failure(code)?;
        ensure!(said.contains("SYS_ADMIN"), "{said}");
        ensure!(said.contains("captured pods") == (pods > 0), "{said}");
        add.run(&host)?.success()?;
    }
    Ok(())
}

/// Verify that both families are captured whatever addresses the pod has when it is added, also of
/// one that gets its IPv6 address later: its connections meet the proxy in both directions.
#[test]
fn both_families_always() -> Result<()> {
    let host = Host::new()?;
    host.namespace.ip("addr add 2001:db8::7/128 dev lo nodad")?;
    for (number, backend) in ["nftables", "iptables", "auto"].iter().enumerate() {
        let pod = host.pod()?;
        let add = Call::new(&host, "ADD", &pod, mesh(&[])).with_key("backend", json!(backend));
        host.inside(&pod, |inside| inside.ip("addr add 10.1.0.2/24 dev lo"))?;
        add.run(&host)?.success()?;
        // A link to the host, with addresses of IPv6 alone.
        let (name, net) = (&pod.name, format!("fd00:{number}:"));
        host.namespace.ip(&format!(
            "link add veth{number} type veth peer name eth0 netns {name}\n\
             addr add {net}:1/64 dev veth{number} nodad\nlink set veth{number} up"
        ))?;
        host.inside(&pod, |inside| {
            inside.ip(&format!(
                "addr add {net}:2/64 dev eth0 nodad\nlink set eth0 up\n\
                 route add default via {net}:1"
            ))
        })?;
        let _proxy = host.proxy(&pod)?;
        let out = host.dial(Some(&pod), APP, "[2001:db8::7]:8080")?.context("outbound")?;
        assert_eq!((out.name.as_str(), out.port), ("proxy", 15001), "{backend}: {out:?}");
        assert_eq!(out.original, Some("[2001:db8::7]:8080".parse()?), "{backend}: {out:?}");
        let inbound = host.dial(None, ROOT, &format!("[{net}:2]:8080"))?.context("inbound")?;
        assert_eq!((inbound.name.as_str(), inbound.port), ("proxy", 15006), "{backend}");
        add.to("CHECK").run(&host)?.success()?;
    }
    Ok(())
}

/// Verify that a pod without IPv6 is captured in IPv4 with every mode and backend.
#[test]
fn ipv6_is_off() -> Result<()> {
    let host = Host::new()?;
    for mode in ["REDIRECT", "TPROXY"] {
        for backend in ["nftables", "iptables"] {
            let pod = host.pod()?;
            host.inside(&pod, |inside: &Namespace| {
                for scope in ["all", "default", "lo"] {
                    let setting = format!("net.ipv6.conf.{scope}.disable_ipv6=1");
                    inside.run("sysctl", &["-qw", &setting])?;
                }
                Ok(())
            })?;
            let annotations = mesh(&[("sidecar.istio.io/interceptionMode", mode)]);
            let add =
                Call::new(&host, "ADD", &pod, annotations).with_key("backend", json!(backend));
            add.run(&host)?.success()?;
            add.to("CHECK").run(&host)?.success()?;
        }
    }
    Ok(())
}
