//! The plugin and a Kubernetes API over HTTPS: the real client with a real kubeconfig, authority
//! and token file, and an API that answers, fails in every way, is slow, or is not there.

use std::fs;
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1;
use kube::api::{ListParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, ResourceExt};
use millrace_tests::cni::{Api, Call, Host, Mood, NAME, POD_ANNOTATIONS, Pod, STATUS, mesh};
use serde_json::{Value, json};

/// A pod as the injector leaves it, with a proxy that runs as these.
fn manifest(user: u32, group: u32) -> Value {
    json!({
        "annotations": { STATUS: "{}", "traffic.sidecar.istio.io/excludeInboundPorts": "9443" },
        "labels": { "app": "shop" },
        "spec": {
            "securityContext": { "runAsGroup": group },
            "initContainers": [{ "name": "istio-validation" }],
            "containers": [
                { "name": "app" },
                { "name": "istio-proxy", "args": ["proxy", "sidecar"],
                  "securityContext": { "runAsUser": user },
                  "env": [{ "name": "ISTIO_META_DNS_CAPTURE", "value": "true" }] },
            ],
        },
    })
}

/// A call whose pod's annotations the runtime does not tell.
fn blind(host: &Host, api: &Api, pod: &Pod) -> Result<Call> {
    let call = Call::new(host, "ADD", pod, Value::Null).without_key("runtimeConfig");
    Ok(call.with_key("kubeconfig", json!(api.kubeconfig("127.0.0.1")?)))
}

/// Verify that a pod is captured as its containers say, which only the API knows, and that CHECK
/// knows them afterwards without asking.
#[test]
fn what_only_the_api_knows() -> Result<()> {
    let host = Host::new()?;
    let mut api = Api::start(&host)?;
    let pod = host.pod()?;
    api.put_pod("shop", &pod.name, &pod.uid(), &manifest(4242, 4343));
    let add = blind(&host, &api, &pod)?;
    let reply = add.run(&host)?;
    reply.success()?;
    let wanted = vec![format!("GET /api/v1/namespaces/shop/pods/{}", pod.name)];
    assert_eq!(api.take_requests(), wanted);
    let rules = host.rules(&pod)?;
    for part in ["4242", "4343", "9443", "15053"] {
        ensure!(rules.contains(part), "{part}: {rules}");
    }
    let last = reply.lines()?.pop().context("a line")?;
    assert_eq!(last["knownFrom"], json!(["runtime", "api"]));
    api.stop();
    add.clone().to("CHECK").run(&host)?.success()?;
    add.to("DEL").run(&host)?.success()?;
    ensure!(!host.rules(&pod)?.contains("millrace"));
    Ok(())
}

/// Verify that the kubeconfig of istio-cni's agent is found where its entry says.
#[test]
fn the_kubeconfig_of_istio_cni() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let pod = host.pod()?;
    api.put_pod("shop", &pod.name, &pod.uid(), &manifest(4242, 4343));
    let folder = host.folder().join("istio-cni");
    fs::create_dir(&folder)?;
    fs::copy(api.kubeconfig("127.0.0.1")?, folder.join("istio-cni-kubeconfig"))?;
    let call = blind(&host, &api, &pod)?.without_key("kubeconfig");
    call.with_key("cni_agent_run_dir", json!(folder)).run(&host)?.success()?;
    ensure!(host.rules(&pod)?.contains("4242"));
    Ok(())
}

/// Verify that pods that annotations show to be outside the mesh cost no request.
#[test]
fn no_request_for_pods_outside() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    for annotations in [json!({}), json!({ "x": "y" })] {
        let pod = host.pod()?;
        let call = Call::new(&host, "ADD", &pod, annotations)
            .with_key("kubeconfig", json!(api.kubeconfig("127.0.0.1")?));
        call.run(&host)?.success()?;
        call.to("CHECK").run(&host)?.success()?;
    }
    let pod = host.pod()?;
    blind(&host, &api, &pod)?
        .with_key("exclude_namespaces", json!(["shop"]))
        .run(&host)?
        .success()?;
    assert_eq!(api.take_requests(), Vec::<String>::new());
    Ok(())
}

/// The entry that docs/cni.md shows, and that of istio-cni.
fn entries(api: &Api, host: &Host) -> Result<[(&'static str, Value); 2]> {
    let kubeconfig = api.kubeconfig("127.0.0.1")?;
    let folder = host.folder().join("istio-cni");
    fs::create_dir(&folder)?;
    fs::copy(&kubeconfig, folder.join("istio-cni-kubeconfig"))?;
    Ok([("kubeconfig", json!(kubeconfig)), ("cni_agent_run_dir", json!(folder))])
}

/// Verify that what the mesh's configuration sets, which is in the proxy's container and in no
/// annotation, is found by one request, and that CHECK goes by what ADD knew.
#[test]
fn settings_of_the_mesh_beside_annotations() -> Result<()> {
    let host = Host::new()?;
    let mut api = Api::start(&host)?;
    for (key, value) in entries(&api, &host)? {
        let pod = host.pod()?;
        api.put_pod("shop", &pod.name, &pod.uid(), &manifest(4242, 4343));
        let add = Call::new(&host, "ADD", &pod, mesh(&[])).with_key(key, value);
        add.run(&host)?.success()?;
        assert_eq!(api.take_requests().len(), 1, "{key}");
        let rules = host.rules(&pod)?;
        ensure!(["4242", "4343", "15053"].iter().all(|part| rules.contains(part)), "{rules}");
        add.to("CHECK").run(&host)?.success()?;
        assert_eq!(api.take_requests(), Vec::<String>::new());
    }
    // Where nobody answers, the pod starts as annotations say, and the log warns.
    let pod = host.pod()?;
    api.put_pod("shop", &pod.name, &pod.uid(), &manifest(4242, 4343));
    let add = Call::new(&host, "ADD", &pod, mesh(&[]))
        .with_key("kubeconfig", json!(api.kubeconfig("127.0.0.1")?));
    api.become_(Mood::Failing(403));
    let reply = add.run(&host)?;
    reply.success()?;
    for part in ["\"warn\"", "403", "verb get on pods", "DNS", "proxy_env"] {
        ensure!(reply.log.contains(part), "{part}: {reply:?}");
    }
    ensure!(host.rules(&pod)?.contains("1337"));
    api.become_(Mood::Well);
    api.take_requests();
    add.clone().to("CHECK").run(&host)?.success()?;
    assert_eq!(api.take_requests(), Vec::<String>::new());
    api.stop();
    for (name, value, code) in [
        ("proxy_identity", json!("lookup"), 11),
        (
            "runtimeConfig",
            json!({ POD_ANNOTATIONS: mesh(&[("openshift.io/scc", "restricted")]) }),
            11,
        ),
    ] {
        let said = add.clone().with_key(name, value).with_key("deadline", json!("1s"));
        let said = said.run(&host)?.failure(code)?;
        ensure!(said.contains("may be in the mesh"), "{said}");
    }
    Ok(())
}

/// Verify that pods that the API shows to be none of the mesh pass, each for its reason.
#[test]
fn pods_that_the_api_shows_to_be_outside() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let edit = |f: &dyn Fn(&mut Value)| {
        let mut value = manifest(1337, 1337);
        f(&mut value);
        value
    };
    let cases = [
        ("no annotation", edit(&|m| m["annotations"] = json!({}))),
        ("no container", edit(&|m| m["spec"]["containers"] = json!([{ "name": "app" }]))),
        ("istio-init", edit(&|m| m["spec"]["initContainers"] = json!([{ "name": "istio-init" }]))),
        (
            "switches",
            edit(&|m| {
                m["spec"]["containers"][1]["env"] =
                    json!([{ "name": "DISABLE_ENVOY", "value": "true" }]);
            }),
        ),
        ("no sidecar", edit(&|m| m["spec"]["containers"][1]["args"] = json!(["proxy", "router"]))),
        ("label", edit(&|m| m["labels"]["sidecar.istio.io/inject"] = json!("false"))),
    ];
    for (reason, manifest) in cases {
        let pod = host.pod()?;
        api.put_pod("shop", &pod.name, &pod.uid(), &manifest);
        let reply = blind(&host, &api, &pod)?.run(&host)?;
        reply.success()?;
        let last = reply.lines()?.pop().context("a line")?;
        ensure!(last["reason"].to_string().contains(reason), "{reason}: {last}");
        ensure!(!host.rules(&pod)?.contains("millrace"), "{reason}");
    }
    Ok(())
}

/// Verify that a proxy among the init containers (a sidecar that Kubernetes starts first) is one, and
/// that an answer whose status names a proxy that its containers lack is as no answer.
#[test]
fn where_the_proxy_is() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let pod = host.pod()?;
    let mut answer = manifest(4242, 4343);
    answer["annotations"] = mesh(&[]);
    let proxy = answer["spec"]["containers"][1].take();
    answer["spec"]["containers"] = json!([{ "name": "app" }]);
    api.put_pod("shop", &pod.name, &pod.uid(), &answer);
    let add = blind(&host, &api, &pod)?;
    let said = add.run(&host)?.failure(11)?;
    ensure!(said.contains("knows no container istio-proxy of it, which annotation"), "{said}");
    ensure!(!host.rules(&pod)?.contains("millrace"));
    answer["spec"]["initContainers"] = json!([proxy]);
    api.put_pod("shop", &pod.name, &pod.uid(), &answer);
    add.run(&host)?.success()?;
    ensure!(host.rules(&pod)?.contains("4242"));
    Ok(())
}

/// Verify that an API that fails has ADD fail with code 11 and its reason, within the deadline,
/// and with another attempt only where one may help.
#[test]
fn every_failure_of_the_api() -> Result<()> {
    let host = Host::new()?;
    let mut api = Api::start(&host)?;
    let pod = host.pod()?;
    let call = blind(&host, &api, &pod)?.with_key("deadline", json!("1500ms"));
    let fails = |api: &Api, what: &str, parts: &[&str], once: Option<bool>| -> Result<()> {
        let began = Instant::now();
        let said = call.run(&host)?.failure(11)?;
        ensure!(began.elapsed() < Duration::from_secs(3), "{what}: {:?}", began.elapsed());
        for part in ["may be in the mesh", "the lookup at the Kubernetes API failed: "] {
            ensure!(said.contains(part), "{what}: {said}");
        }
        ensure!(parts.iter().all(|part| said.contains(part)), "{what}: {said}");
        let requests = api.take_requests().len();
        if let Some(once) = once {
            assert_eq!(requests == 1, once, "{what}: {requests} requests");
        }
        ensure!(!host.rules(&pod)?.contains("millrace"), "{what}");
        Ok(())
    };
    // It knows no such pod, or one of another id.
    fails(&api, "not there", &["404"], Some(false))?;
    api.put_pod("shop", &pod.name, "another", &manifest(1, 1));
    fails(&api, "another one", &["another pod of this name", "another"], Some(false))?;
    for (mood, parts, once) in [
        (Mood::Failing(401), &["401", "credentials"][..], true),
        (Mood::Failing(403), &["403", "verb get on pods"], true),
        (Mood::Failing(410), &["410"], false),
        (Mood::Failing(429), &["429"], false),
        (Mood::Failing(500), &["500"], false),
        (Mood::Slow(Duration::from_secs(30)), &["no answer within"], true),
        (Mood::Saying("this is no JSON".to_owned()), &[], false),
    ] {
        api.become_(mood.clone());
        fails(&api, &format!("{mood:?}"), parts, Some(once))?;
    }
    api.become_(Mood::Well);
    fs::write(api.token(), "another token")?;
    fails(&api, "a wrong token", &["401"], Some(true))?;
    api.stop();
    let began = Instant::now();
    let said = call.run(&host)?.failure(11)?;
    ensure!(said.contains("refused") && began.elapsed() < Duration::from_secs(3), "{said}");
    Ok(())
}

/// Verify that an API that always fails is asked a bounded number of times, however long the
/// deadline is, and that a deadline is not waited for that is longer than that.
#[test]
fn attempts_are_bounded() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    let pod = host.pod()?;
    api.become_(Mood::Failing(500));
    let began = Instant::now();
    let call = blind(&host, &api, &pod)?.with_key("deadline", json!("10m"));
    let said = call.run(&host)?.failure(11)?;
    let requests = api.take_requests().len();
    assert_eq!(requests, 10);
    ensure!(said.contains("asked 10 times"), "{said}");
    ensure!(began.elapsed() < Duration::from_mins(1), "{:?}", began.elapsed());
    Ok(())
}

/// Verify the order: what annotations tell, then the node agent, then the API, each only where the
/// one before it does not know.
#[test]
fn the_order_of_those_who_are_asked() -> Result<()> {
    use std::io::{BufRead as _, BufReader, Write as _};

    let host = Host::new()?;
    let api = Api::start(&host)?;
    let pod = host.pod()?;
    api.put_pod("shop", &pod.name, &pod.uid(), &manifest(4242, 4343));
    let socket = host.folder().join("agent.sock");
    let listener = UnixListener::bind(&socket)?;
    let (name, uid) = (pod.name.clone(), pod.uid());
    // It knows the pod the first time only.
    let agent = thread::spawn(move || -> Result<usize> {
        let knows = json!({ "pod": {
            "metadata": { "namespace": "shop", "name": name, "uid": uid },
            "spec": { "containers": [{ "name": "app" }] },
        }});
        let answers = [knows, json!({ "error": "no such pod" }), json!({ "error": "no such pod" })];
        for answer in &answers {
            // What became of a command is reported between, and not answered.
            let stream = loop {
                let (stream, _) = listener.accept()?;
                let mut line = String::new();
                BufReader::new(&stream).read_line(&mut line)?;
                if line.contains("\"pod\"") {
                    break stream;
                }
            };
            (&stream).write_all(format!("{answer}\n").as_bytes())?;
        }
        Ok(answers.len())
    });
    let both = blind(&host, &api, &pod)?.with_key("agent_socket", json!(socket));
    let known_from = |call: &Call| -> Result<Value> {
        let reply = call.run(&host)?;
        reply.success()?;
        Ok(reply.lines()?.pop().context("a line")?["knownFrom"].take())
    };
    assert_eq!(known_from(&both)?, json!(["runtime", "agent"]));
    ensure!(!host.rules(&pod)?.contains("millrace") && api.take_requests().is_empty());
    assert_eq!(known_from(&both)?, json!(["runtime", "api"]));
    assert_eq!(api.take_requests().len(), 1);
    ensure!(host.rules(&pod)?.contains("4242"));
    both.clone().to("DEL").run(&host)?.success()?;
    // Who is not in the mesh is nobody's business.
    let told = |annotations| {
        both.clone().with_key("runtimeConfig", json!({ POD_ANNOTATIONS: annotations }))
    };
    assert_eq!(known_from(&told(json!({})))?, json!(["runtime"]));
    assert_eq!(api.take_requests(), Vec::<String>::new());
    assert_eq!(known_from(&told(mesh(&[])))?, json!(["runtime", "api"]));
    assert_eq!(agent.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?, 3);
    Ok(())
}

/// Verify that a failure that passes is waited out.
#[test]
fn a_failure_that_passes() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    for mood in [
        Mood::FailingFirst(500, 3),
        Mood::FailingFirst(404, 2),
        Mood::FailingFirst(429, 1),
        Mood::Slow(Duration::from_millis(300)),
    ] {
        let pod = host.pod()?;
        api.put_pod("shop", &pod.name, &pod.uid(), &manifest(4242, 4343));
        api.become_(mood.clone());
        blind(&host, &api, &pod)?.run(&host)?.success()?;
        ensure!(host.rules(&pod)?.contains("4242"), "{mood:?}");
    }
    Ok(())
}

/// Verify that somebody else who answers in the API's place is not believed.
#[test]
fn a_certificate_of_another_authority() -> Result<()> {
    let host = Host::new()?;
    let (api, other) = (Api::start(&host)?, Api::start(&host)?);
    let pod = host.pod()?;
    other.put_pod("shop", &pod.name, &pod.uid(), &json!({ "annotations": {} }));
    let text = fs::read_to_string(api.kubeconfig("127.0.0.1")?)?;
    let port = |text: &str| -> Result<String> {
        let (_, rest) = text.split_once("127.0.0.1:").context("a server")?;
        Ok(rest.split('\'').next().unwrap_or_default().to_owned())
    };
    let wrong = port(&fs::read_to_string(other.kubeconfig("127.0.0.1")?)?)?;
    let path = host.folder().join("kubeconfig");
    fs::write(&path, text.replace(&port(&text)?, &wrong))?;
    let call = blind(&host, &api, &pod)?
        .with_key("kubeconfig", json!(path))
        .with_key("deadline", json!("500ms"));
    let said = call.run(&host)?.failure(11)?;
    ensure!(said.to_lowercase().contains("certificate"), "{said}");
    assert_eq!(other.take_requests(), Vec::<String>::new());
    Ok(())
}

/// Verify that the API is found by name, which a static program looks up by itself.
#[test]
fn a_server_that_is_named() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    host.cover("/etc/hosts", &format!("127.0.0.1 localhost {NAME}\n"))?;
    let pod = host.pod()?;
    api.put_pod("shop", &pod.name, &pod.uid(), &manifest(4242, 4343));
    let call = blind(&host, &api, &pod)?.with_key("kubeconfig", json!(api.kubeconfig(NAME)?));
    call.run(&host)?.success()?;
    let said = blind(&host, &api, &pod)?
        .with_key("kubeconfig", json!(api.kubeconfig("nobody.invalid")?))
        .with_key("deadline", json!("1s"))
        .run(&host)?
        .failure(11)?;
    ensure!(said.contains("nobody.invalid"), "{said}");
    Ok(())
}

/// Verify that STATUS tells whether the API that is needed answers, and asks it only then.
#[test]
fn status_asks_where_it_matters() -> Result<()> {
    let host = Host::new()?;
    let mut api = Api::start(&host)?;
    let pod = host.pod()?;
    let status = blind(&host, &api, &pod)?.to("STATUS");
    status.run(&host)?.success()?;
    assert_eq!(api.take_requests(), Vec::<String>::new());
    let needed = status.clone().with_key("capabilities", json!({}));
    needed.run(&host)?.success()?;
    assert_eq!(api.take_requests(), ["GET /version"]);
    api.become_(Mood::Failing(401));
    let said = needed.run(&host)?.failure(50)?;
    ensure!(said.contains("401"), "{said}");
    api.stop();
    let said = needed.run(&host)?.failure(50)?;
    ensure!(said.contains("the Kubernetes API"), "{said}");
    status.run(&host)?.success()?;
    Ok(())
}

/// Verify that the server is one: a client that lists and watches sees what it holds, and learns
/// when it watches from too long ago.
#[test]
fn the_server_lists_and_watches() -> Result<()> {
    let host = Host::new()?;
    let api = Api::start(&host)?;
    for (namespace, name) in [("shop", "a"), ("shop", "b"), ("other", "c")] {
        api.put_pod(namespace, name, name, &manifest(1, 1));
    }
    let kubeconfig = Kubeconfig::read_from(api.kubeconfig("127.0.0.1")?)?;
    host.namespace.enter(|| -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let options = KubeConfigOptions::default();
            let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
            let client = Client::try_from(config)?;
            let pods = kube::Api::<v1::Pod>::namespaced(client.clone(), "shop");
            let list = pods.list(&ListParams::default()).await?;
            let names: Vec<String> = list.items.iter().map(ResourceExt::name_any).collect();
            assert_eq!(names, ["a", "b"]);
            let everywhere = kube::Api::<v1::Pod>::all(client.clone());
            assert_eq!(everywhere.list(&ListParams::default()).await?.items.len(), 3);
            let namespaces = kube::Api::<v1::Namespace>::all(client);
            assert_eq!(namespaces.get("shop").await?.name_any(), "shop");
            assert_eq!(namespaces.list(&ListParams::default()).await?.items.len(), 2);
            let watched: Vec<_> =
                pods.watch(&WatchParams::default(), "0").await?.try_collect().await?;
            ensure!(watched.len() == 2, "{watched:?}");
            let late: Vec<_> =
                pods.watch(&WatchParams::default(), "7").await?.try_collect().await?;
            ensure!(
                matches!(late.as_slice(), [WatchEvent::Error(error)] if error.code == 410),
                "{late:?}"
            );
            Ok(())
        })
    })?
}
