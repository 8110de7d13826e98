//! The members `linkerd`, `kuma` and `consul`: that one is there means that pods of the mesh are expected,
//! and in it are settings for all pods of the node.

use std::collections::BTreeMap;

use millrace_core::dialect::FileValues;
use millrace_core::source::{Source, Sourced};

use super::keys::{self, Key, Shape};
use super::read::OptionReader;
use crate::mesh::Mesh;
use crate::protocol::{Object, member_is};

/// Keys that an entry has which consul-cni's installer wrote, and no other: it has no object of Consul's own.
const OF_CONSUL: [&str; 4] =
    ["autorotate_token", "cni_host_token_path", "cni_token_path", "multus"];

/// The meshes that are expected, with the settings of each; what is wrong with these is left in `outer`.
pub(super) fn read(outer: &mut OptionReader<'_>) -> BTreeMap<Mesh, FileValues> {
    let mut expected = BTreeMap::new();
    for mesh in Mesh::OTHERS {
        let Some(key) = mesh.key() else { continue };
        let taken_over = mesh == Mesh::Consul && OF_CONSUL.iter().any(|name| outer.is_named(name));
        match outer.value::<Object>(key, "an object") {
            Some(object) => drop(expected.insert(mesh, settings(outer, mesh, key, &object))),
            None if taken_over => drop(expected.insert(mesh, FileValues::new())),
            None => {}
        }
    }
    expected
}

fn settings(
    outer: &mut OptionReader<'_>,
    mesh: Mesh,
    within: &'static str,
    object: &Object,
) -> FileValues {
    let keys = match keys::find(within).map(|key| key.shape) {
        Some(Shape::Object(keys)) => keys,
        _ => &[],
    };
    let mut reader = OptionReader::new(object, within);
    reader.warn_of_others(|name| keys.iter().any(|key| member_is(name, key.name)));
    let mut found = FileValues::new();
    for key in keys {
        if let Some(text) = text(&mut reader, key) {
            let source = Source::File(format!("{within}.{}", key.name));
            found.insert(key.name, Sourced::new(text, source));
        }
    }
    if mesh == Mesh::Linkerd && reader.switch("simulate") {
        let remedy = "false: pods would start uncaptured. To see what would be captured, run \
                      `millrace-cni explain`";
        reader.wrong("simulate", "true", remedy);
    }
    if reader.wrong.is_empty()
        && let Some(Err(errors)) = mesh.sidecar().map(|sidecar| (sidecar.check)(&found))
    {
        reader.wrong.extend(errors.0.iter().map(ToString::to_string));
    }
    outer.wrong.append(&mut reader.wrong);
    outer.warnings.append(&mut reader.warnings);
    found
}

/// What a member says, as the flag of its name would have it.
fn text(reader: &mut OptionReader<'_>, key: &Key) -> Option<String> {
    const PORT: &str = "a port from 1 to 65535";
    const PORTS: &str = "a list of ports from 1 to 65535";
    match key.shape {
        Shape::Port => {
            let port = reader.value::<u16>(key.name, PORT)?;
            if port == 0 {
                reader.wrong(key.name, "0", PORT);
            }
            Some(port.to_string())
        }
        Shape::Ports => {
            let ports = reader.value::<Vec<u16>>(key.name, PORTS)?;
            if ports.contains(&0) {
                reader.wrong(key.name, "0", PORTS);
            }
            // An empty list is every port, to linkerd-cni as to proxy-init.
            (!ports.is_empty()).then(|| joined(&ports))
        }
        Shape::IdOrNone => {
            let expected = "an id from 0 to 4294967294, or -1 for none";
            reader.value::<i64>(key.name, expected).map(|id| id.to_string())
        }
        Shape::Texts => {
            reader.value::<Vec<String>>(key.name, "a list of texts").map(|items| joined(&items))
        }
        Shape::Switch => reader.value::<bool>(key.name, "true or false").map(|on| on.to_string()),
        _ => reader.value::<String>(key.name, "a text"),
    }
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use millrace_core::dialect::linkerd;
    use millrace_core::dialect::sidecar::Captured;
    use millrace_core::pod::PodFacts;

    use super::*;
    use crate::config::{Config, object};
    use crate::protocol::{CniError, Code};

    fn parsed(linkerd: &str) -> Result<Config, CniError> {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"net","linkerd":{linkerd}}}"#);
        Config::parse(&object(&text).unwrap())
    }

    fn resolved(linkerd: &str) -> Captured {
        let settings = parsed(linkerd).unwrap().expected.remove(&Mesh::Linkerd).unwrap();
        linkerd::annotations::policy(&PodFacts::default(), &settings).unwrap()
    }

    #[test]
    fn it_is_there_or_not() {
        assert!(parsed("null").unwrap().expected.is_empty());
        let policy = resolved("{}").policy;
        assert_eq!(policy.inbound.port.value.get(), 4143);
        assert!(policy.ipv6.value);
        assert_eq!(resolved("{}"), resolved(r#"{"ports-to-redirect":[],"use-wait-flag":true}"#));
    }

    #[test]
    fn each_value_knows_its_key() {
        let policy =
            resolved(r#"{"proxy-uid":-1,"proxy-gid":7,"outgoing-proxy-port":5140}"#).policy;
        assert!(policy.proxy.uids.is_empty());
        assert_eq!(policy.proxy.gids[0].source, Source::File("linkerd.proxy-gid".to_owned()));
        let port = policy.outbound.port;
        assert_eq!(port.value.get(), 5140);
        assert_eq!(port.source, Source::File("linkerd.outgoing-proxy-port".to_owned()));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key() {
        for (member, parts) in [
            (r#""incoming-proxy-port":0"#, &["linkerd.incoming-proxy-port", "0"][..]),
            (r#""outgoing-proxy-port":"4140""#, &["linkerd.outgoing-proxy-port", "4140"]),
            (r#""proxy-uid":-2"#, &["linkerd.proxy-uid", "-2"]),
            (r#""ports-to-redirect":["80"]"#, &["linkerd.ports-to-redirect"]),
            (r#""ports-to-redirect":[0]"#, &["linkerd.ports-to-redirect"]),
            (
                r#""inbound-ports-to-ignore":["4190","x"]"#,
                &["linkerd.inbound-ports-to-ignore", "\"x\"", "a port is"],
            ),
            (r#""subnets-to-ignore":["10.0.0.0/33"]"#, &["linkerd.subnets-to-ignore", "/33"]),
            (r#""simulate":true"#, &["linkerd.simulate", "millrace-cni explain"]),
            (r#""iptables-mode":"bpf""#, &["linkerd.iptables-mode", "bpf", "legacy, nft or plain"]),
            (r#""ipv6":"no""#, &["linkerd.ipv6"]),
        ] {
            let error = parsed(&format!("{{{member}}}")).unwrap_err();
            assert_eq!(error.code, Code::BadConfig, "{member}");
            for part in parts {
                assert!(error.msg.contains(part), "{member}: {}", error.msg);
            }
        }
        assert_eq!(parsed("7").unwrap_err().code, Code::BadConfig);
        let typo = parsed(r#"{"proxy_uid":1}"#).unwrap();
        assert!(typo.warnings[0].contains("\"linkerd.proxy_uid\""), "{typo:?}");
    }

    fn entry(members: &str) -> Result<Config, CniError> {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"net",{members}}}"#);
        Config::parse(&object(&text).unwrap())
    }

    #[test]
    fn pods_of_kuma_and_of_consul_are_expected_by_an_object_each() {
        let config = entry(r#""kuma":{},"consul":{"dual-stack":true}"#).unwrap();
        assert_eq!(config.warnings, Vec::<String>::new());
        assert_eq!(config.expected.keys().collect::<Vec<_>>(), [&Mesh::Kuma, &Mesh::Consul]);
        let dual_stack = &config.expected[&Mesh::Consul]["dual-stack"];
        assert_eq!(dual_stack.value, "true");
        assert_eq!(dual_stack.source, Source::File("consul.dual-stack".to_owned()));
        for (members, part) in [
            (r#""kuma":true"#, "kuma is true"),
            (r#""consul":{"dual-stack":"yes"}"#, "consul.dual-stack is \"yes\""),
        ] {
            let error = entry(members).unwrap_err();
            assert_eq!(error.code, Code::BadConfig, "{members}");
            assert!(error.msg.contains(part), "{}", error.msg);
        }
        let typo = entry(r#""kuma":{"redirect":{}},"consul":{"dual_stack":true}"#).unwrap();
        assert_eq!(typo.warnings.len(), 2, "{:?}", typo.warnings);
    }
}
