//! Captures that Millrace does not make, and leaves alone: other meshes, and other modes of one whose
//! sidecars it captures for.

use crate::observed::Observed;
use crate::ownership::known_tables;

/// A capture of others.
struct Other {
    name: &'static str,
    /// What its chains of iptables begin with.
    chains: &'static [&'static str],
    /// What its tables of nftables begin with.
    tables: &'static [&'static str],
}

const OTHERS: [Other; 7] = [
    Other {
        name: "Istio's ambient mode",
        chains: &["ISTIO_PRERT", "ISTIO_POSTRT"],
        tables: &["istio-ambient-"],
    },
    Other { name: "Linkerd", chains: &["PROXY_INIT_"], tables: &[] },
    Other { name: "Kuma", chains: &["KUMA_MESH_"], tables: &[] },
    Other { name: "Consul", chains: &["CONSUL_"], tables: &["consul_tproxy"] },
    Other { name: "Open Service Mesh", chains: &["OSM_PROXY_"], tables: &[] },
    Other { name: "AWS App Mesh", chains: &["APPMESH_"], tables: &[] },
    Other { name: "Cilium's ztunnel", chains: &["CILIUM_PREROUTING"], tables: &[] },
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
        let table = || observed.tables.iter().find(|table| begins(&table.name, other.tables));
        let what = chain.or_else(|| table().map(ToString::to_string))?;
        Some(format!("rules of {} are here ({what}): they are left alone", other.name))
    };
    OTHERS.iter().filter_map(found).collect()
}
