//! Verify that entries of linkerd-cni are read, as its installer writes them. `linkerd/NOTICE.md` says
//! where they are from.
#![expect(clippy::unwrap_used, reason = "a recording that can't be read should stop the test")]

use std::fs;
use std::path::Path;

use millrace_cni::config::{Config, object, schema};
use millrace_core::dialect::linkerd::annotations;
use millrace_core::pod::PodFacts;
use millrace_core::policy::{CapturePolicy, InboundSelection};
use millrace_core::source::{Source, Sourced};
use millrace_core::value::PortRange;
use serde_json::{Value, json};

/// Its name, ports inbound and outbound, user, group, and the ports that are left alone each way.
type Case = (&'static str, u16, u16, u32, Option<u32>, &'static str, &'static str);

const CASES: [Case; 7] = [
    ("install-cni-helm-default-output", 4143, 4140, 2102, None, "4191,4190", ""),
    ("install-cni-helm-override-output", 1234, 5678, 1111, Some(1111), "4191,4190", ""),
    ("install-cni-plugin-default", 4143, 4140, 2102, None, "4191,4190", ""),
    ("install-cni-plugin-fully-configured", 5143, 5140, 12102, Some(12102), "4191,4190", ""),
    (
        "install-cni-plugin-fully-configured-equal-dsts",
        5143,
        5140,
        12102,
        Some(12102),
        "4191,4190",
        "",
    ),
    (
        "install-cni-plugin-fully-configured-no-namespace",
        5143,
        5140,
        12102,
        Some(12102),
        "4191,4190",
        "",
    ),
    ("install-cni-plugin-skip-ports", 4143, 4140, 2102, None, "4191,4190,80,8080", "443,1000"),
];

fn ports(list: &[Sourced<PortRange>]) -> String {
    list.iter().map(|port| port.value.to_string()).collect::<Vec<_>>().join(",")
}

/// The entry with what is put in when it is installed: the program's name, and where the kubeconfig is.
fn entry(name: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/linkerd");
    let text = fs::read_to_string(path.join(format!("{name}.json"))).unwrap();
    let text = text.replace("__KUBECONFIG_FILEPATH__", "/etc/cni/net.d/ZZZ-linkerd-cni-kubeconfig");
    let mut entry: Value = serde_json::from_str(&text).unwrap();
    entry["type"] = json!("millrace-cni");
    entry
}

fn policy(config: &Config) -> CapturePolicy {
    let settings = config.settings("linkerd").unwrap();
    let resolved = annotations::policy(&PodFacts::default(), settings).unwrap();
    assert_eq!(resolved.warnings, Vec::<String>::new());
    resolved.policy
}

#[test]
fn entries_of_linkerd_cni_are_taken_as_they_are() {
    let validator = jsonschema::draft202012::new(&schema()).unwrap();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/linkerd");
    assert_eq!(fs::read_dir(folder).unwrap().count(), CASES.len() + 1);
    for (name, inbound, outbound, uid, gid, except_inbound, except_outbound) in CASES {
        let mut entry = entry(name);
        assert!(validator.is_valid(&entry), "{name}");
        entry["cniVersion"] = json!("0.4.0");
        let config = Config::parse(&object(&entry.to_string()).unwrap()).unwrap();
        assert_eq!(config.warnings, Vec::<String>::new(), "{name}");
        let kubeconfig = config.kubeconfig.clone().unwrap();
        assert_eq!(kubeconfig, Path::new("/etc/cni/net.d/ZZZ-linkerd-cni-kubeconfig"), "{name}");
        let policy = policy(&config);
        let found = (policy.inbound.port.value.get(), policy.outbound.port.value.get());
        assert_eq!(found, (inbound, outbound), "{name}");
        assert_eq!(policy.proxy.uids[0].value.get(), uid, "{name}");
        assert_eq!(policy.proxy.gids.first().map(|gid| gid.value.get()), gid, "{name}");
        let InboundSelection::AllExcept { except, .. } = &policy.inbound.selection else {
            panic!("{name}: {policy:?}");
        };
        assert_eq!(ports(except), except_inbound, "{name}");
        assert_eq!(ports(&policy.outbound.except_ports), except_outbound, "{name}");
        assert!(!policy.ipv6.value, "{name}");
        assert_eq!(policy.ipv6.source, Source::File("linkerd.ipv6".to_owned()), "{name}");
    }
}
