//! What the injector says that it put into a pod.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{INIT_CONTAINER, PROXY_CONFIG, PROXY_CONTAINER, SCC, STATUS, TEMPLATES};
use crate::pod::PodFacts;
use crate::value::yaml;

/// The value of the status annotation, as far as it names containers.
#[derive(Debug, Default, Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase", default)]
struct Status {
    init_containers: Option<Vec<String>>,
    containers: Option<Vec<String>>,
}

crate::from_objects!(Status, ProxyConfig);

/// What the injector put into a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Injected {
    /// A container that captures the pod from inside.
    InitContainer,
    /// A sidecar proxy, and nothing that captures.
    Sidecar,
    /// Something that the annotations don't tell.
    Unclear,
}

impl Status {
    fn of(pod: &PodFacts) -> Self {
        let text = pod.annotation(STATUS);
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    }

    fn names(&self, container: &str) -> bool {
        self.init_containers.iter().chain(&self.containers).flatten().any(|n| n == container)
    }
}

/// Whether the annotations name the container that the proxy runs in.
pub fn names_proxy(pod: &PodFacts) -> bool {
    Status::of(pod).names(PROXY_CONTAINER)
}

/// Whether users of the pod have to be of a range that its namespace was given, to which the usual
/// user of a proxy does not belong. The constraints `restricted` and those that are called like it
/// say so.
pub fn ids_are_ranged(pod: &PodFacts) -> bool {
    pod.annotation(SCC).is_some_and(|name| name.starts_with("restricted"))
}

/// Read it off the annotations.
pub(super) fn injected(pod: &PodFacts) -> Injected {
    let status = Status::of(pod);
    // Another template may bring a gateway or a proxy without interception under the same name.
    let plain = pod
        .annotation(TEMPLATES)
        .is_none_or(|text| text.split(',').all(|template| template.trim() == "sidecar"));
    if status.names(INIT_CONTAINER) {
        Injected::InitContainer
    } else if status.names(PROXY_CONTAINER) && plain {
        Injected::Sidecar
    } else {
        Injected::Unclear
    }
}

/// The settings of a proxy, as far as they matter here.
#[derive(Deserialize)]
#[serde(remote = "Self", rename_all = "camelCase")]
struct ProxyConfig {
    #[serde(default)]
    proxy_metadata: Option<BTreeMap<String, String>>,
}

/// The variables that an annotation of the pod gives its proxy.
pub(super) fn proxy_metadata(pod: &PodFacts) -> Result<BTreeMap<String, String>, String> {
    let Some(text) = pod.annotation(PROXY_CONFIG) else { return Ok(BTreeMap::new()) };
    let config: ProxyConfig = serde_saphyr::from_str(text).map_err(|e| yaml::said(&e))?;
    Ok(config.proxy_metadata.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(annotations: &[(&str, &str)]) -> Injected {
        let own = |(k, v): &(&str, &str)| ((*k).to_owned(), (*v).to_owned());
        injected(&PodFacts {
            annotations: Some(annotations.iter().map(own).collect()),
            ..PodFacts::default()
        })
    }

    #[test]
    fn the_containers_are_read_off_the_status() {
        let classic = r#"{"initContainers":["istio-validation"],"containers":["istio-proxy"]}"#;
        let native = r#"{"initContainers":["istio-validation","istio-proxy"],"containers":null}"#;
        let init =
            r#"{"initContainers":["istio-init"],"containers":["istio-proxy"],"revision":"x"}"#;
        assert_eq!(read(&[(STATUS, classic)]), Injected::Sidecar);
        assert_eq!(read(&[(STATUS, native), (TEMPLATES, "sidecar")]), Injected::Sidecar);
        assert_eq!(read(&[(STATUS, init)]), Injected::InitContainer);
        for unclear in [
            "true",
            "{}",
            "",
            "[]",
            r#"[["istio-init"],["istio-proxy"]]"#,
            r#"{"containers":["app"]}"#,
            r#"{"containers":7}"#,
        ] {
            assert_eq!(read(&[(STATUS, unclear)]), Injected::Unclear, "{unclear}");
        }
        for template in ["gateway", "sidecar,grpc-agent", ""] {
            assert_eq!(read(&[(STATUS, classic), (TEMPLATES, template)]), Injected::Unclear);
        }
    }
}
