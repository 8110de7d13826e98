//! What the injector of Open Service Mesh makes of a manifest.

use super::resolve::{Raw, resolve};
use super::{LAYOUT, MESH, NFT_LAYOUT};
use crate::dialect::error::ConfigErrors;
use crate::dialect::init_container::NotStated;
use crate::dialect::injector::{Asked, Doubt, Field, Injector};
use crate::dialect::raw::FileValues;
use crate::dialect::sidecar::{AnnotationDef, Captured, Effect, annotated, def};
use crate::pod::PodFacts;

/// The init container that captures a pod.
const INIT_CONTAINER: &str = "osm-init";

/// The injector of Open Service Mesh.
pub static INJECTOR: Injector = Injector {
    mesh: &MESH,
    layout: &LAYOUT,
    nft_layout: &NFT_LAYOUT,
    // A name that any pod may have is none of its own.
    proxy: "osm-envoy",
    inside: INIT_CONTAINER,
    others: &["osm-healthcheck"],
    asked: Asked {
        name: "openservicemesh.io/sidecar-injection",
        field: Field::Annotation,
        yes: &["enabled", "yes", "true"],
        no: &["disabled", "no", "false"],
    },
    own: &[],
    prefixes: &["openservicemesh.io/"],
    annotations: ANNOTATIONS,
    known: &["openservicemesh.io/metrics", "openservicemesh.io/sidecar-injection"],
    reads_namespaces: false,
    ports: &[
        (15000, "its administration"),
        (15001, "captured outbound connections"),
        (15003, "captured inbound connections"),
        (15010, "its metrics"),
        (15901, "liveness probes of the application"),
        (15902, "readiness probes of the application"),
        (15903, "startup probes of the application"),
        (15904, "probes of the application's health"),
    ],
    policy,
    is_told: |_pod| false,
    doubts: |_pod| Vec::<Doubt>::new(),
};

const ANNOTATIONS: &[AnnotationDef] = &[
    def(
        "openservicemesh.io/inbound-port-exclusion-list",
        "inbound-port-exclusion-list",
        Effect::Replaces,
    ),
    def(
        "openservicemesh.io/outbound-port-exclusion-list",
        "outbound-port-exclusion-list",
        Effect::Replaces,
    ),
    def(
        "openservicemesh.io/outbound-ip-range-exclusion-list",
        "outbound-ip-range-exclusion-list",
        Effect::Replaces,
    ),
    def(
        "openservicemesh.io/outbound-ip-range-inclusion-list",
        "outbound-ip-range-inclusion-list",
        Effect::Replaces,
    ),
];

fn policy(pod: &PodFacts) -> Result<Captured, ConfigErrors> {
    let raw = annotated(Raw::default().with_file(FileValues::new()), pod, ANNOTATIONS);
    let resolved = resolve(&raw)?;
    let warnings = vec![
        "what no annotation says is taken as the installation of Open Service Mesh has it: its MeshConfig \
         excludes and includes nothing, and the proxy reaches the application at localhost; lists of this \
         mesh, which are put together with those of the pod, no manifest of a pod tells"
            .to_owned(),
    ];
    Ok(Captured { policy: resolved.policy, warnings })
}

/// The script that a pod's init container runs; none where it has no such container.
///
/// # Errors
/// When the manifest does not tell it.
pub fn init_script(pod: &PodFacts) -> Option<Result<String, NotStated>> {
    let container = pod.container(INIT_CONTAINER).filter(|container| container.init)?;
    let words: Vec<&String> = container.command.iter().chain(&container.args).collect();
    Some(match words.as_slice() {
        [shell, flag, script] if shell.ends_with("sh") && *flag == "-c" => Ok((*script).clone()),
        _ => Err(NotStated::Program {
            container: container.name.clone(),
            program: words.into_iter().take(2).cloned().collect::<Vec<_>>().join(" "),
            tool: "sh -c with a script",
        }),
    })
}
