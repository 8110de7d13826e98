//! Every pod is found, and nothing else is taken for one.

use super::*;

const FILE: &str = "\
apiVersion: v1
kind: Service
metadata: {name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
  annotations: {own: \"1\"}
  labels: {mine: \"1\"}
spec:
  template:
    metadata: {annotations: {pods: \"2\"}}
    spec: {containers: [{name: app}]}
---
---
kind: List
items:
- kind: Pod
  metadata: {name: one, uid: x, annotations: {x: z, empty: null}}
  spec: {containers: [{name: app}]}
- kind: CronJob
  metadata: {name: nightly}
  spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: app}]}}}}}
- kind: Other
  metadata: {name: other}
  spec: {template: {spec: {containers: []}}}
";

fn object(kind: &str, version: &str, rest: &str) -> String {
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n{rest}\n")
}

fn annotation(text: &str) -> Option<String> {
    let manifest = read(text).unwrap();
    let workload = manifest.choose(None).unwrap_or_else(|why| panic!("{text}\n{why}"));
    workload.pod.annotation("x").map(str::to_owned)
}

#[test]
fn every_pod_is_found() {
    let found = read(FILE).unwrap();
    let names: Vec<_> = found.workloads.iter().map(|w| w.name.to_string()).collect();
    assert_eq!(names, ["Deployment shop/web", "Pod one", "CronJob nightly", "Other other"]);
    let others: Vec<_> = found.others.iter().map(Name::to_string).collect();
    assert_eq!(others, ["Service web"]);
    let [deployment, pod, job, other] = found.workloads.as_slice() else { panic!("four") };
    assert_eq!(deployment.annotations, BTreeMap::from([("own".to_owned(), "1".to_owned())]));
    assert_eq!(deployment.labels.len(), 1);
    assert_eq!(deployment.pod.annotation("pods"), Some("2"));
    assert!(pod.annotations.is_empty() && pod.pod.annotation("x") == Some("z"));
    assert_eq!(pod.pod.annotation("empty"), Some(""));
    assert!(pod.made && !deployment.made);
    assert!(job.ends && !deployment.ends);
    assert!(other.stranger.is_some() && pod.stranger.is_none());
    assert!(says_kind(FILE) && !says_kind("outbound: {excludePorts: [1]}"));
}

#[test]
fn the_pod_of_each_kind_is_found_where_it_is() {
    let at = |place: &str, inner: &str| {
        place.split('/').rev().fold(inner.to_owned(), |inner, key| format!("{{{key}: {inner}}}"))
    };
    let pod = "{metadata: {annotations: {x: z}}, spec: {containers: [{name: c}]}}";
    for (kind, version) in [
        ("ReplicationController", "v1"),
        ("Deployment", "apps/v1"),
        ("Deployment", "extensions/v1beta1"),
        ("StatefulSet", "apps/v1"),
        ("DaemonSet", "apps/v1"),
        ("ReplicaSet", "apps/v1"),
        ("Job", "batch/v1"),
        ("Rollout", "argoproj.io/v1alpha1"),
        ("DeploymentConfig", "apps.openshift.io/v1"),
        ("Service", "serving.knative.dev/v1"),
        ("Configuration", "serving.knative.dev/v1"),
        ("VirtualMachine", "kubevirt.io/v1"),
        ("VirtualMachineInstanceReplicaSet", "kubevirt.io/v1"),
    ] {
        let text = object(kind, version, &format!("spec: {}", at("template", pod)));
        assert_eq!(annotation(&text).as_deref(), Some("z"), "{kind}");
        // The object's own annotations are not its pods'.
        let own = text.replace("{name: a}", "{name: a, annotations: {x: own}}");
        assert_eq!(annotation(&own).as_deref(), Some("z"), "{kind}");
    }
    let text =
        object("CronJob", "batch/v1", &format!("spec: {}", at("jobTemplate/spec/template", pod)));
    assert_eq!(annotation(&text).as_deref(), Some("z"));
    let text = object("PodTemplate", "v1", &format!("template: {pod}"));
    assert_eq!(annotation(&text).as_deref(), Some("z"));
    let place = format!("spec: {}", at("virtualMachineTemplate/spec/template", pod));
    let text = object("VirtualMachinePool", "pool.kubevirt.io/v1alpha1", &place);
    assert_eq!(annotation(&text).as_deref(), Some("z"));
    for (kind, version) in [
        ("Pod", "v1"),
        ("Revision", "serving.knative.dev/v1"),
        ("VirtualMachineInstance", "kubevirt.io/v1"),
    ] {
        let text = object(kind, version, "spec: {containers: [{name: c}]}")
            .replace("{name: a}", "{name: a, annotations: {x: z}}");
        assert_eq!(annotation(&text).as_deref(), Some("z"), "{kind}");
    }
}

#[test]
fn a_virtual_machine_does_not_tell_the_containers_of_its_pod() {
    let spec = "spec: {template: {spec: {domain: {devices: {}}}}}";
    let manifest = read(&object("VirtualMachine", "kubevirt.io/v1", spec)).unwrap();
    let pod = &manifest.choose(None).unwrap().pod;
    assert_eq!((pod.containers.as_ref(), pod.annotations.as_ref()), (None, Some(&BTreeMap::new())));
}

#[test]
fn containers_of_knative_need_no_name() {
    let of = |containers: &str| {
        let spec = format!("spec: {{template: {{spec: {{containers: {containers}}}}}}}");
        let manifest = read(&object("Service", "serving.knative.dev/v1", &spec)).unwrap();
        let pod = &manifest.choose(None).unwrap().pod;
        pod.containers.iter().flatten().map(|c| c.name.clone()).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(of("[{image: x}]"), "user-container");
    assert_eq!(
        of("[{image: x}, {name: own}, {name: ''}]"),
        "user-container-0 own user-container-2"
    );
    let bad =
        read(&object("Deployment", "apps/v1", "spec: {template: {spec: {containers: [{}]}}}"));
    let bad = bad.unwrap().choose(None).unwrap_err().to_string();
    assert!(bad.contains("spec.template") && bad.contains("`name`"), "{bad}");
}

#[test]
fn what_makes_no_pods_is_refused_by_its_kind() {
    let refused = |text: &str| read(text).unwrap().choose(None).unwrap_err().to_string();
    let template = "spec: {template: {spec: {containers: [{name: a}]}}}";
    for (text, part) in [
        (object("Service", "v1", "spec: {}"), "but Service a"),
        (object("Service", "v1", template), "serving.knative.dev/..."),
        (
            object("Deployment", "v1", template),
            "apps/... or extensions/..., and this one is of \"v1\"",
        ),
        (
            object("CloneSet", "apps.kruise.io/v1alpha1", template),
            "CloneSet (\"apps.kruise.io/v1alpha1\")",
        ),
        (object("Pod", "v2", "spec: {containers: []}"), "is of v1, and this one is of \"v2\""),
        (object("SparkApplication", "sparkoperator.k8s.io/v1beta2", ""), "but SparkApplication a"),
        ("metadata: {name: a}\nspec: {containers: [{name: a}]}\n".to_owned(), "it has no kind"),
        ("7\n".to_owned(), "it is no object"),
        (object("Deployment", "apps/v1", "spec: {}"), "it has no spec.template"),
    ] {
        let why = refused(&text);
        assert!(why.contains(part), "{text}: {why}");
    }
    assert_eq!(refused(""), "there is no pod in it, and nothing that is known to make pods");
}

#[test]
fn lists_are_opened() {
    let item = "{metadata: {name: a, annotations: {x: z}}, spec: {containers: [{name: c}]}}";
    // As `/api/v1/pods` answers: the objects of a typed list don't say what they are.
    let list = format!("apiVersion: v1\nkind: PodList\nitems: [{item}]\n");
    assert_eq!(annotation(&list).as_deref(), Some("z"));
    let foreign = list.replace("PodList", "ConfigMapList");
    assert!(read(&foreign).unwrap().choose(None).is_err());
    // A plain one says nothing of them.
    let plain = list.replace("PodList", "List");
    let why = read(&plain).unwrap().choose(None).unwrap_err().to_string();
    assert!(why.contains("no kind"), "{why}");
    let nested =
        format!("kind: List\nitems: [{{apiVersion: v1, kind: PodList, items: [{item}]}}]\n");
    assert_eq!(annotation(&nested).as_deref(), Some("z"));
}

#[test]
fn one_of_several_is_chosen_by_name_and_never_by_chance() {
    let manifest = read(FILE).unwrap();
    let choose = |text: &str| manifest.choose(Some(&text.parse().unwrap()));
    let several = manifest.choose(None).unwrap_err().to_string();
    for name in ["Deployment/web", "Pod/one", "CronJob/nightly", "Other/other"] {
        assert!(several.contains(name), "{several}");
    }
    for (text, wanted) in [
        ("Deployment/web", "Deployment shop/web"),
        ("deployment/shop/web", "Deployment shop/web"),
        ("one", "Pod one"),
    ] {
        assert_eq!(choose(text).unwrap().name.to_string(), wanted);
    }
    let why = choose("Deployment/other").unwrap_err().to_string();
    assert!(why.contains("is called Deployment/other; there is Deployment/web"), "{why}");
    assert!(choose("Pod/shop/one").is_err());
    assert!(matches!(choose("Other/other"), Err(NotChosen::Stranger(_))));
    // Those of the same kind and name are told apart by their namespaces.
    let pod = |namespace| {
        format!(
            "kind: Pod\nmetadata: {{name: a, namespace: {namespace}}}\nspec: {{containers: [{{name: \
             c}}]}}\n"
        )
    };
    let two = read(&format!("{}---\n{}", pod("p"), pod("q"))).unwrap();
    assert!(two.choose(None).unwrap_err().to_string().contains("Pod/p/a, Pod/q/a"));
    assert!(two.choose(Some(&"Pod/a".parse().unwrap())).is_err());
    assert!(two.choose(Some(&"Pod/q/a".parse().unwrap())).is_ok());
    for bad in ["", "/", "a/", "a/b/c/d", "Pod//a"] {
        assert!(bad.parse::<Selector>().is_err(), "{bad}");
    }
}

#[test]
fn what_cant_be_read_is_named_and_leaves_the_others() {
    let sound = "kind: Pod\nmetadata: {name: b}\nspec: {containers: [{name: c}]}\n";
    let bad = "kind: Pod\nmetadata: {name: a}\nspec: {containers: 7}\n";
    let manifest = read(&format!("{bad}---\n{sound}")).unwrap();
    let why = manifest.bad[0].to_string();
    assert!(why.starts_with("document 1, Pod a: this is no manifest of a pod: spec"), "{why}");
    assert_eq!(manifest.workloads.len(), 1);
    // It may be the one that is meant, until another is named.
    assert!(matches!(manifest.choose(None), Err(NotChosen::Bad(_))));
    assert!(manifest.choose(Some(&"Pod/b".parse().unwrap())).is_ok());
    assert!(matches!(manifest.choose(Some(&"Pod/a".parse().unwrap())), Err(NotChosen::Bad(_))));
    assert!(read("a: [").is_err());
}

#[test]
fn a_label_without_quotes_is_named() {
    let template = "spec: {template: {metadata: {labels: {a.b/c: true}, annotations: {p: 3306, q: \
                    \"1\"}}, spec: {containers: [{name: a}]}}}";
    let manifest = read(&object("Deployment", "apps/v1", template)).unwrap();
    let why = manifest.bad[0].to_string();
    assert!(why.contains("spec.template.metadata.labels.a.b/c is true"), "{why}");
    assert!(why.contains("spec.template.metadata.annotations.p is 3306"), "{why}");
    assert!(why.contains("put it in quotes: \"3306\"") && !why.contains(".q"), "{why}");
}

#[test]
fn a_cluster_has_many_pods() {
    let pod = |index: usize| {
        format!(
            "{{\"kind\":\"Pod\",\"metadata\":{{\"name\":\"p{index}\"}},\"spec\":{{\"containers\":[]}}}}"
        )
    };
    let list = |rest: &str| {
        let items = (0..3000).map(pod).collect::<Vec<_>>().join(",\n");
        format!("{{\"kind\":\"List\",\"rest\":[{rest}],\"items\":[{items}]}}")
    };
    // As many values as those of 600 pods.
    let many = "0,".repeat(260_000);
    for text in [list(many.trim_end_matches(',')), format!("# YAML\n{}", list(&many))] {
        let manifest = read(&text).unwrap();
        assert!(manifest.choose(Some(&"Pod/p2999".parse().unwrap())).is_ok());
        let several = manifest.choose(None).unwrap_err().to_string();
        assert!(several.ends_with("and 2980 more") && several.len() < 1000, "{several}");
    }
    // A few lines that stand for many are no manifest.
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..9 {
        let before = format!("*a{}, ", level - 1).repeat(10);
        bomb.push_str(&format!("a{level}: &a{level} [{before}]\n"));
    }
    assert!(read(&bomb).is_err());
}
