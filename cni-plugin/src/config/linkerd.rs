//! The member `linkerd`: the settings of linkerd-cni, for all pods of the node.

use std::collections::BTreeMap;

use millrace_core::dialect::linkerd::{Raw, annotations, resolve};
use millrace_core::source::{Source, Sourced};
use serde::de::DeserializeOwned;

use super::LINKERD;
use super::read::Reader;
use crate::protocol::{Object, member_is};

/// What stands before its members in messages.
const WITHIN: &str = "linkerd.";

/// Read it, if it is there; what is wrong with it is left in `outer`.
pub(super) fn read(outer: &mut Reader<'_>) -> Option<Raw> {
    let object = outer.value::<Object>("linkerd", "an object")?;
    let mut settings = Settings { reader: Reader::new(&object, WITHIN), found: BTreeMap::new() };
    settings.read();
    let Settings { mut reader, found } = settings;
    let node = annotations::node().with_file(found);
    if reader.wrong.is_empty()
        && let Err(errors) = resolve(&node)
    {
        reader.wrong.extend(errors.0.iter().map(ToString::to_string));
    }
    outer.wrong.append(&mut reader.wrong);
    outer.warnings.append(&mut reader.warnings);
    Some(node)
}

struct Settings<'o> {
    reader: Reader<'o>,
    found: BTreeMap<&'static str, Sourced<String>>,
}

impl Settings<'_> {
    fn read(&mut self) {
        self.reader.warn_of_others(|name| LINKERD.iter().any(|key| member_is(name, key.name)));
        for name in ["incoming-proxy-port", "outgoing-proxy-port"] {
            let port = self.is::<u16>(name, "a port from 1 to 65535");
            if port == Some(0) {
                self.reader.wrong(name, "0", "a port from 1 to 65535");
            }
            self.say(name, port.as_ref().map(ToString::to_string));
        }
        for name in ["proxy-uid", "proxy-gid"] {
            let id = self.is::<i64>(name, "an id from 0 to 4294967294, or -1 for none");
            self.say(name, id.as_ref().map(ToString::to_string));
        }
        // An empty list is every port, to linkerd-cni as to proxy-init.
        let ports = self.is::<Vec<u16>>("ports-to-redirect", "a list of ports from 1 to 65535");
        let ports = ports.filter(|ports| !ports.is_empty());
        if ports.as_ref().is_some_and(|ports| ports.contains(&0)) {
            self.reader.wrong("ports-to-redirect", "0", "a list of ports from 1 to 65535");
        }
        self.say("ports-to-redirect", ports.map(|ports| joined(&ports)));
        for name in ["inbound-ports-to-ignore", "outbound-ports-to-ignore", "subnets-to-ignore"] {
            let items = self.is::<Vec<String>>(name, "a list of texts");
            self.say(name, items.map(|items| joined(&items)));
        }
        if self.reader.switch("simulate") {
            let remedy = "false: pods would start uncaptured. To see what would be captured, run \
                          `millrace-cni explain`";
            self.reader.wrong("simulate", "true", remedy);
        }
        self.reader.switch("use-wait-flag");
        let mode = self.is::<String>("iptables-mode", "legacy, nft or plain");
        self.say("iptables-mode", mode);
        let ipv6 = self.is::<bool>("ipv6", "true or false");
        self.say("ipv6", ipv6.as_ref().map(ToString::to_string));
    }

    fn is<T: DeserializeOwned>(&mut self, name: &'static str, expected: &str) -> Option<T> {
        self.reader.value(name, expected)
    }

    fn say(&mut self, name: &'static str, text: Option<String>) {
        if let Some(text) = text {
            self.found.insert(name, Sourced::new(text, Source::File(format!("{WITHIN}{name}"))));
        }
    }
}

fn joined<T: ToString>(items: &[T]) -> String {
    items.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use millrace_core::dialect::linkerd::Resolved;

    use super::*;
    use crate::config::{Config, object};
    use crate::protocol::{CniError, Code};

    fn parsed(linkerd: &str) -> Result<Config, CniError> {
        let text = format!(r#"{{"cniVersion":"1.0.0","name":"net","linkerd":{linkerd}}}"#);
        Config::parse(&object(&text).unwrap())
    }

    fn resolved(linkerd: &str) -> Resolved {
        resolve(&parsed(linkerd).unwrap().linkerd.unwrap()).unwrap()
    }

    #[test]
    fn it_is_there_or_not() {
        assert!(parsed("null").unwrap().linkerd.is_none());
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
}
