//! What is read, with its defaults, and what is refused.

use super::*;

fn parsed(members: &str) -> Result<Config, CniError> {
    let text = format!(r#"{{"cniVersion":"1.0.0","name":"net","type":"millrace-cni"{members}}}"#);
    read(&super::super::object(&text).unwrap())
}

#[test]
fn an_entry_without_settings_has_the_defaults() {
    let config = parsed("").unwrap();
    assert_eq!(config.backend, Backend::Auto);
    assert_eq!(config.deadline, DEADLINE);
    assert_eq!(config.state_dir, Path::new(STATE_DIR));
    assert_eq!(config.log, LogConfig::default());
    assert!(config.pod_annotations.is_none() && config.prev_result.is_none());
    assert!(config.kubeconfig.is_none() && config.warnings.is_empty());
}

#[test]
fn istio_cnis_entry_is_taken_as_it_is() {
    let config = parsed(
        r#","ambient_enabled":true,"cni_agent_run_dir":"/var/run/istio-cni","dns":{},"ipam":{},
           "enable_ambient_detection_retry":false,"exclude_namespaces":["kube-system"],
           "enablement_selectors":[{"podSelector":{},"namespaceSelector":{}}],
           "native_nftables":true,"plugin_log_level":"debug","pod_namespace":"istio-system""#,
    )
    .unwrap();
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.backend, Backend::Nftables);
    assert_eq!(config.kubeconfig, Some("/var/run/istio-cni/istio-cni-kubeconfig".into()));
    assert_eq!(config.exclude_namespaces, ["kube-system"]);
    assert_eq!(config.agent_namespace.as_deref(), Some("istio-system"));
    assert_eq!(config.log.level, Level::Debug);
    assert!(config.ambient);
}

/// The form of releases up to 1.22, and of `OpenShift` Service Mesh 2.
#[test]
fn istio_cnis_older_entry_is_taken_as_it_is() {
    let older = |members: &str| {
        parsed(&format!(
            r#","log_level":"warn","log_uds_address":"/var/run/istio-cni/log.sock",
               "ambient_enabled":false,"cni_event_address":"/var/run/istio-cni/pluginevent.sock",
               "kubernetes":{{"kubeconfig":"/etc/cni/net.d/ZZZ-istio-cni-kubeconfig",
               "cni_bin_dir":"/opt/cni/bin","exclude_namespaces":["istio-system","kube-system"]
               {members}}}"#
        ))
    };
    let config = older("").unwrap();
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.exclude_namespaces, ["istio-system", "kube-system"]);
    assert_eq!(config.kubeconfig, Some("/etc/cni/net.d/ZZZ-istio-cni-kubeconfig".into()));
    assert_eq!(config.log.level, Level::Warn);
    // What stands outside is newer.
    let both = older(r#"},"kubeconfig":"/k","exclude_namespaces":[],"args":{"x":{}"#).unwrap();
    assert_eq!(both.kubeconfig, Some("/k".into()));
    assert_eq!(both.exclude_namespaces, Vec::<String>::new());
    let typo = older(r#","exclude_namespace":["x"]"#).unwrap();
    assert!(typo.warnings[0].contains("\"kubernetes.exclude_namespace\""), "{typo:?}");
    let error = older(r#","Kubeconfig":"kubeconfig""#).unwrap_err();
    assert!(error.msg.contains("kubernetes.kubeconfig is \"kubeconfig\""), "{}", error.msg);
    assert_eq!(parsed(r#","kubernetes":7"#).unwrap_err().code, Code::BadConfig);
}

/// As its installer writes it.
#[test]
fn consul_cnis_entry_is_taken_as_it_is() {
    let entry = |members: &str| {
        parsed(&format!(
            r#","autorotate_token":false,"cni_bin_dir":"/opt/cni/bin","multus":false,
               "cni_host_token_path":"/etc/cni/net.d/cni-host-token","log_level":"info",
               "cni_token_path":"/var/run/secrets/kubernetes.io/serviceaccount/token",
               "cni_net_dir":"/etc/cni/net.d"{members}"#
        ))
    };
    let config = entry(r#","kubeconfig":"ZZZ-consul-cni-kubeconfig""#).unwrap();
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.kubeconfig, Some("/etc/cni/net.d/ZZZ-consul-cni-kubeconfig".into()));
    assert!(config.settings("consul").is_some() && config.settings("kuma").is_none());
    assert_eq!(entry(r#","kubeconfig":"/k""#).unwrap().kubeconfig, Some("/k".into()));
    for name in ["", ".", "..", "a/b", "../b"] {
        let found = entry(&format!(r#","kubeconfig":{name:?}"#));
        let found = found.map(|config| config.kubeconfig);
        assert!(name.is_empty() && found == Ok(None) || found.is_err(), "{name}: {found:?}");
    }
}

/// What kuma-cni's installer writes says nothing of Kuma: that has to be added.
#[test]
fn kuma_cnis_entry_is_taken_with_kuma() {
    let config = parsed(
        r#","log_level":"info","kuma":{},"kubernetes":{"cni_bin_dir":"/opt/cni/bin",
           "exclude_namespaces":["kuma-system"],
           "kubeconfig":"/etc/cni/net.d/ZZZ-kuma-cni-kubeconfig"}"#,
    )
    .unwrap();
    assert_eq!(config.warnings, Vec::<String>::new());
    assert_eq!(config.kubeconfig, Some("/etc/cni/net.d/ZZZ-kuma-cni-kubeconfig".into()));
    assert_eq!(config.exclude_namespaces, ["kuma-system"]);
    assert!(config.settings("kuma").is_some() && config.settings("consul").is_none());
}

#[test]
fn own_keys_are_read() {
    let config = parsed(
        r#","backend":"iptables","kubeconfig":"/k","agent_socket":"/a","deadline":"1m30s",
           "proxy_identity":"lookup","proxy_uid":7,"proxy_gid":8,"state_dir":"/s",
           "proxy_env":{"INVALID_DROP":"true"},"annotations":{"a":"b"},"log_file":"/l",
           "log_max_bytes":5000,"native_nftables":true"#,
    )
    .unwrap();
    assert_eq!(config.backend, Backend::Iptables);
    assert_eq!(config.deadline, Duration::from_secs(90));
    assert_eq!(config.proxy_identity, ProxyIdentity::Lookup);
    assert_eq!(config.proxy_uid.unwrap().value.get(), 7);
    assert_eq!(config.proxy_env["INVALID_DROP"].value, "true");
    assert_eq!(config.log.max_bytes, 5000);
}

#[test]
fn unknown_keys_warn() {
    let config = parsed(r#","exclude_namespace":["x"],"cni.dev/new":1"#).unwrap();
    assert_eq!(config.warnings.len(), 1);
    assert!(config.warnings[0].contains("exclude_namespace"));
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let error = parsed(
        r#","backend":"ipvs","deadline":"0","proxy_uid":0,"kubeconfig":"here","log_max_bytes":1,
           "exclude_namespaces":"x","annotations":{"a":1},
           "runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a":1}}"#,
    )
    .unwrap_err();
    assert_eq!(error.code, Code::BadConfig);
    for name in [
        "backend",
        "deadline",
        "proxy_uid",
        "kubeconfig",
        "log_max_bytes",
        "annotations",
        "exclude_namespaces",
        "pod-annotations",
    ] {
        assert!(error.msg.contains(name), "{name}: {}", error.msg);
    }
}

#[test]
fn a_log_level_that_is_none_stops_nothing() {
    let config = parsed(r#","plugin_log_level":"loud""#).unwrap();
    assert_eq!(config.log.level, Level::Info);
    assert_eq!(config.warnings.len(), 1);
}

#[test]
fn what_the_runtime_tells_is_read_whatever_its_case() {
    for (text, known) in [
        (r#","runtimeConfig":{"io.kubernetes.cri.pod-annotations":{"a":"b"}}"#, true),
        (r#","RuntimeConfig":{"IO.kubernetes.cri.Pod-Annotations":{"a":"b"}}"#, true),
        (r#","runtimeConfig":{"io.kubernetes.cri.pod-annotations":null}"#, true),
        (r#","runtimeConfig":{"portMappings":[]}"#, false),
        (r#","runtimeConfig":null"#, false),
    ] {
        assert_eq!(parsed(text).unwrap().pod_annotations.is_some(), known, "{text}");
    }
}

#[test]
fn valid_attachments_may_be_null() {
    let valid = |text: &str| parsed(&format!(",{text}")).unwrap().valid_attachments;
    assert_eq!(valid(r#""cni.dev/valid-attachments":null"#), Some(Vec::new()));
    assert_eq!(valid(r#""args":{}"#), None);
    let one = valid(r#""cni.dev/valid-attachments":[{"containerID":"a","ifname":"eth0"}]"#);
    assert_eq!(one.unwrap()[0].container_id, "a");
    assert!(parsed(r#","cni.dev/valid-attachments":[["a","eth0"]]"#).is_err());
}

#[test]
fn annotations_are_told_where_the_entry_has_the_capability() {
    let told = |text: &str| parsed(text).unwrap().tells_annotations;
    let name = "io.kubernetes.cri.pod-annotations";
    assert!(told(&format!(r#","capabilities":{{"{name}":true}}"#)));
    for text in ["", r#","capabilities":{}"#, &format!(r#","capabilities":{{"{name}":false}}"#)] {
        assert!(!told(text), "{text}");
    }
}

#[test]
fn versions_before_chains_and_after_today_are_not_spoken() {
    for text in [r#"{"name":"net"}"#, r#"{"cniVersion":"0.2.0"}"#, r#"{"cniVersion":"9.0.0"}"#] {
        let error = read(&super::super::object(text).unwrap()).unwrap_err();
        assert_eq!(error.code, Code::IncompatibleVersion);
        assert!(error.details.contains("1.1.0"), "{}", error.details);
    }
}

#[test]
fn a_network_has_a_good_name() {
    for name in ["", "../x", "a b", "-a"] {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"{name}"}}"#);
        let error = read(&super::super::object(&text).unwrap()).unwrap_err();
        assert_eq!(error.code, Code::BadConfig, "{name}");
    }
}
