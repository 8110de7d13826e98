//! Captures that Millrace does not make, and leaves alone: other meshes, and other modes of one whose
//! sidecars it captures for.

use super::findings::{finding, of};
use crate::finding::{Finding, Severity};
use crate::observed::{Observed, TableId};
use crate::ownership::known_tables;
use crate::pod::{Container, PodFacts};

/// By which chains, tables and containers a capture of others is known.
struct Other {
    name: &'static str,
    /// What its chains of iptables begin with.
    chains: &'static [&'static str],
    /// What its tables of nftables begin with.
    tables: &'static [&'static str],
    /// The containers that capture a pod, or look whether it is captured.
    containers: &'static [&'static str],
    /// What variables of such a container begin with, where its name could be anybody's.
    variables: Option<&'static str>,
    /// The containers that are its proxy, under names that nobody else has.
    proxies: &'static [&'static str],
}

impl Other {
    /// Whether a container of a pod captures it for this mesh, or looks whether it is captured, by its name.
    fn captures(&self, container: &Container) -> bool {
        container.init && self.containers.contains(&container.name.as_str())
    }

    /// The same where its variables say so too, if its name could be anybody's.
    fn surely_captures(&self, container: &Container) -> bool {
        let mut names = container.env.keys().chain(&container.env_elsewhere);
        // A whole ConfigMap may set anything that begins with its prefix.
        let may_set = |name: &str, own: &str| {
            name.starts_with(own)
                || name.strip_suffix('*').is_some_and(|start| own.starts_with(start))
        };
        let is_sure = self.variables.is_none_or(|own| names.any(|name| may_set(name, own)));
        self.captures(container) && is_sure
    }
}

const OTHERS: [Other; 6] = [
    Other {
        // In a pod its rules are a dialect here. These are on a node, and its agent's.
        name: "Istio's ambient mode",
        chains: &["ISTIO_POSTRT"],
        tables: &["istio-ambient-"],
        containers: &[],
        variables: None,
        proxies: &[],
    },
    Other {
        name: "Linkerd",
        // Its rules are a dialect here.
        chains: &[],
        tables: &[],
        containers: &["linkerd-init", "linkerd-network-validator"],
        variables: None,
        proxies: &["linkerd-proxy"],
    },
    Other {
        name: "Kuma",
        // The same.
        chains: &[],
        tables: &[],
        containers: &["kuma-init", "kuma-validation"],
        variables: None,
        proxies: &["kuma-sidecar"],
    },
    Other {
        name: "Consul",
        chains: &[],
        tables: &[],
        containers: &["consul-connect-inject-init"],
        variables: None,
        proxies: &["consul-dataplane"],
    },
    Other {
        name: "Open Service Mesh",
        chains: &[],
        tables: &[],
        containers: &["osm-init"],
        variables: None,
        proxies: &[],
    },
    Other {
        name: "AWS App Mesh",
        chains: &[],
        tables: &[],
        containers: &["proxyinit"],
        variables: Some("APPMESH_"),
        proxies: &[],
    },
];

/// Each of them that is there, in a sentence that says by what it is known.
pub fn captures(observed: &Observed) -> Vec<String> {
    let found = |other: &Other| {
        let begins = |name: &str, list: &[&str]| list.iter().any(|start| name.starts_with(start));
        let chain = observed.holdings.iter().find_map(|holding| {
            let mut tables = known_tables(&holding.dump);
            tables.find_map(|(table, content)| {
                let chain = content.chains.iter().find(|c| begins(&c.name, other.chains))?;
                Some(format!("chain {} of {} {table}", chain.name, holding.family))
            })
        });
        let is_others = |table: &&TableId| {
            begins(&table.name, other.tables)
                && !observed.native.iter().any(|(name, _)| *name == table.name)
        };
        let table = || observed.tables.iter().find(is_others);
        let what = chain.or_else(|| table().map(ToString::to_string))?;
        Some(format!("rules of {} are here ({what}): they are left alone", other.name))
    };
    OTHERS.iter().filter_map(found).collect()
}

/// Who else captures a pod with these containers: the mesh, and the container by which it is known.
pub fn captures_pod(pod: &PodFacts) -> Option<(&'static str, &str)> {
    let (name, container) = known(pod, Other::captures)?;
    Some((name, container.name.as_str()))
}

/// Every mesh whose init container a pod surely has.
pub(super) fn captured_by(pod: &PodFacts) -> impl Iterator<Item = &'static str> + '_ {
    let captures =
        |other: &&Other| pod.containers.iter().flatten().any(|c| other.surely_captures(c));
    OTHERS.iter().filter(captures).map(|other| other.name)
}

fn known(
    pod: &PodFacts,
    is: impl Fn(&Other, &Container) -> bool,
) -> Option<(&'static str, &Container)> {
    pod.containers.iter().flatten().find_map(|container| {
        let other = OTHERS.iter().find(|other| is(other, container))?;
        Some((other.name, container))
    })
}

/// The other mesh that a pod with these containers is in, and one of them by which it is known.
pub fn mesh_of(pod: &PodFacts) -> Option<(&'static str, &Container)> {
    known(pod, |other, container| {
        other.captures(container) || other.proxies.contains(&container.name.as_str())
    })
}

/// What `lint` says of a pod in a mesh of whose mistakes nothing is known.
pub(super) fn unknown_mesh(pod: &PodFacts) -> Option<Finding> {
    let (mesh, container) = mesh_of(pod)?;
    let what = format!("the pod is in {mesh}, for whose pods there is no lint");
    Some(finding(
        Severity::Note,
        "other-mesh",
        &of(container),
        &what,
        [
            "what is a mistake in another mesh may be right there: nothing was looked at",
            "see what is captured where it runs: millrace explain --all --pod NAMESPACE/NAME",
        ],
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_of_another_mesh_is_known_by_its_init_container() {
        let pod = |name: &str, init| {
            let container = Container { name: name.to_owned(), init, ..Container::default() };
            PodFacts { containers: Some(vec![container]), ..PodFacts::default() }
        };
        let known = |name, init| captures_pod(&pod(name, init)).map(|(mesh, _)| mesh);
        assert_eq!(known("linkerd-init", true), Some("Linkerd"));
        assert_eq!(known("kuma-validation", true), Some("Kuma"));
        assert_eq!(known("linkerd-init", false), None);
        assert_eq!(known("istio-init", true), None);
        let mesh = |name, init| mesh_of(&pod(name, init)).map(|(mesh, _)| mesh);
        for init in [true, false] {
            assert_eq!(mesh("linkerd-proxy", init), Some("Linkerd"));
            assert_eq!(mesh("kuma-sidecar", init), Some("Kuma"));
            assert_eq!(mesh("istio-proxy", init), None);
        }
        assert_eq!(mesh("kuma-init", true), Some("Kuma"));
        assert_eq!(mesh("kuma-init", false), None);
        // Where anybody may name a container so, its variables tell.
        let set = |env: &[&str], elsewhere: &[&str]| {
            let mut pod = pod("proxyinit", true);
            let container = &mut pod.containers.as_mut().unwrap()[0];
            container.env = env.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect();
            container.env_elsewhere = elsewhere.iter().map(|name| (*name).to_owned()).collect();
            captured_by(&pod).next()
        };
        assert_eq!(set(&["APPMESH_START_ENABLED"], &[]), Some("AWS App Mesh"));
        assert_eq!(set(&[], &["*"]), Some("AWS App Mesh"));
        assert_eq!(set(&[], &["APP*"]), Some("AWS App Mesh"));
        assert_eq!(set(&["OTHER"], &["ANOTHER", "D_*"]), None);
    }
}
