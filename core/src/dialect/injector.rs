//! What the injector of a mesh makes of a manifest, as far as the manifest tells: for pods that are, or are to
//! be, in a mesh other than that whose settings are taken where nothing is said.

use std::collections::BTreeMap;

use super::error::ConfigErrors;
use super::flags::Words;
use super::raw::{FileValues, Raw};
use super::sidecar::{AnnotationDef, Captured};
use super::{Mesh, consul, kuma, linkerd, osm};
use crate::manifest::Namespace;
use crate::nft::NftLayout;
use crate::pod::{Container, PodFacts};
use crate::policy::{CapturePolicy, InboundSelection};
use crate::ruleset::Layout;
use crate::source::{Source, Sourced};

/// Whether a manifest asks for a proxy of a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyRequest {
    /// It says nothing of it.
    Unsaid,
    /// It is to have one.
    Requested,
    /// It is to have none.
    Refused,
    /// What it says is no answer.
    Unclear,
}

/// A label or an annotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// An annotation of the pod.
    Annotation,
    /// A label of the pod.
    Label,
}

impl Field {
    /// `annotation` or `label`, as messages have it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Annotation => "annotation",
            Self::Label => "label",
        }
    }
}

/// By which field of a pod a mesh is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    /// The name of the field.
    pub name: &'static str,
    /// Where the injector reads it.
    pub field: Field,
    /// What asks for a proxy; the first one is what to write.
    pub yes: &'static [&'static str],
    /// What refuses a proxy; the first one is what to write.
    pub no: &'static [&'static str],
}

/// What a mesh's injector reads from a pod, and what it puts in.
#[derive(Debug)]
pub struct Injector {
    /// The mesh whose proxy it puts in.
    pub mesh: &'static Mesh,
    /// The names of its rules in iptables.
    pub layout: &'static Layout,
    /// The names of its rules in nftables.
    pub nft_layout: &'static NftLayout,
    /// The container that its proxy runs in; the names of more of them go on with a dash.
    pub proxy: &'static str,
    /// The init container that captures a pod from inside.
    pub inside: &'static str,
    /// Every container that it puts in beside these.
    pub others: &'static [&'static str],
    /// By which field of a pod it is asked.
    pub asked: Asked,
    /// What the names begin with of annotations that only it reads, and that are all known.
    pub own: &'static [&'static str],
    /// What the names begin with of those that may be of a newer release.
    pub prefixes: &'static [&'static str],
    /// Annotations of a pod about its capture.
    pub annotations: &'static [AnnotationDef],
    /// Annotations of a pod about anything else, and others that are known.
    pub known: &'static [&'static str],
    /// Whether it reads annotations about capture of a pod's namespace, where the pod has none.
    pub reads_namespaces: bool,
    /// What the proxy listens on, and for what.
    pub ports: &'static [(u16, &'static str)],
    /// How a pod is captured when it is injected: what the manifest does not tell is taken as the mesh's
    /// installation has it, and said in a warning.
    pub policy: fn(&PodFacts) -> Result<Captured, ConfigErrors>,
    /// Whether the manifest has all settings, so that nothing is taken for granted.
    pub is_told: fn(&PodFacts) -> bool,
    /// Settings that contradict, or have no effect: the field, what it says, and the reason with the remedy.
    pub doubts: fn(&PodFacts) -> Vec<Doubt>,
}

/// A setting that can't be meant so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The field that is doubtful, such as `annotation NAME`.
    pub at: String,
    /// What is wrong, as a clause about the field.
    pub what: String,
    /// What happens because of it.
    pub why: &'static str,
    /// What to write or leave out instead.
    pub fix: String,
    /// Whether it is certain that it is wrong.
    pub is_error: bool,
}

/// Injectors of all meshes but Istio, which has checks of its own.
pub static INJECTORS: [&Injector; 4] =
    [&linkerd::INJECTOR, &kuma::INJECTOR, &consul::INJECTOR, &osm::INJECTOR];

impl Injector {
    /// Whether a container is a proxy of the mesh.
    pub fn is_proxy(&self, container: &Container) -> bool {
        let rest = container.name.strip_prefix(self.proxy);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }

    /// Whether a container is the mesh's own.
    pub fn is_own(&self, container: &Container) -> bool {
        let name = container.name.as_str();
        self.is_proxy(container)
            || name == self.inside
            || self.others.iter().any(|other| name.starts_with(other))
    }

    /// What the manifest asks for, in the field that the injector reads.
    pub fn request(&self, pod: &PodFacts) -> ProxyRequest {
        let fields = match self.asked.field {
            Field::Annotation => pod.annotations.as_ref(),
            Field::Label => pod.labels.as_ref(),
        };
        self.wished(fields)
    }

    /// What a namespace asks for, for pods that say nothing.
    pub fn request_of(&self, namespace: &Namespace) -> ProxyRequest {
        self.wished(Some(match self.asked.field {
            Field::Annotation => &namespace.annotations,
            Field::Label => &namespace.labels,
        }))
    }

    fn wished(&self, fields: Option<&BTreeMap<String, String>>) -> ProxyRequest {
        match fields.and_then(|fields| fields.get(self.asked.name)).map(String::as_str) {
            None => ProxyRequest::Unsaid,
            Some(text) if self.asked.yes.contains(&text) => ProxyRequest::Requested,
            Some(text) if self.asked.no.contains(&text) => ProxyRequest::Refused,
            Some(_) => ProxyRequest::Unclear,
        }
    }

    /// Whether the pod has what the injector puts in.
    pub fn is_injected(&self, pod: &PodFacts) -> bool {
        pod.containers.iter().flatten().any(|container| self.is_own(container))
    }

    /// Whether an annotation is one of the mesh's, known or not.
    pub fn reads(&self, name: &str) -> bool {
        let begins = |list: &[&str]| list.iter().any(|prefix| name.starts_with(prefix));
        begins(self.own) || begins(self.prefixes) || name == self.asked.name
    }
}

/// The meshes that a pod is in; where it is in none, those that it asks for, or speaks of, or that its
/// namespace asks for.
pub fn meshes_of(pod: &PodFacts, namespace: Option<&Namespace>) -> Vec<&'static Injector> {
    let all = || INJECTORS.into_iter();
    let injected: Vec<_> = all().filter(|injector| injector.is_injected(pod)).collect();
    if !injected.is_empty() {
        return injected;
    }
    let wanted: Vec<_> =
        all().filter(|injector| injector.request(pod) == ProxyRequest::Requested).collect();
    if !wanted.is_empty() {
        return wanted;
    }
    // Who sets how the mesh captures a pod means it to be there.
    let says = |injector: &&Injector| {
        let mut names = pod.annotations.iter().flatten().map(|(name, _)| name.as_str());
        names.any(|name| injector.annotations.iter().any(|def| def.name == name))
    };
    let spoken: Vec<_> = all().filter(says).collect();
    if !spoken.is_empty() {
        return spoken;
    }
    let asks = |injector: &&Injector| {
        let of_namespace = namespace.map(|namespace| injector.request_of(namespace));
        of_namespace == Some(ProxyRequest::Requested)
            && injector.request(pod) == ProxyRequest::Unsaid
    };
    all().filter(asks).collect()
}

/// Settings that the mesh's installation makes where nobody says otherwise.
pub(super) fn assumed<W: Words>(settings: &[(&'static str, &'static str)]) -> Raw<W> {
    let of = |(flag, value): &(&'static str, &'static str)| {
        (*flag, Sourced::new((*value).to_owned(), Source::Default((*flag).to_owned())))
    };
    Raw::new([], BTreeMap::new()).with_file(settings.iter().map(of).collect::<FileValues>())
}

/// The annotations that leave something alone which is captured all the same, by what is written.
pub fn contradictions(annotated: &CapturePolicy, written: &CapturePolicy) -> Vec<String> {
    let (wanted, there) = (spared(annotated), spared(written));
    let mut names: Vec<String> = Vec::new();
    for (kind, value, source) in &wanted {
        let name = match source {
            Source::Annotation(name) => name.as_str(),
            // A key of what an annotation holds.
            Source::File(key) => key.rsplit_once(" of annotation ").map_or("", |(_, name)| name),
            _ => "",
        };
        let is_there = there.iter().any(|(of, other, _)| (of, other) == (kind, value));
        if !is_there && !name.is_empty() && !names.iter().any(|other| other == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// What a policy leaves alone, and the proxy's ports and users: the kind, the value and where it is from.
fn spared(policy: &CapturePolicy) -> Vec<(&'static str, String, Source)> {
    fn all<T: ToString>(
        kind: &'static str,
        list: &[Sourced<T>],
    ) -> Vec<(&'static str, String, Source)> {
        list.iter().map(|item| (kind, item.value.to_string(), item.source.clone())).collect()
    }
    let (inbound, outbound) = (&policy.inbound, &policy.outbound);
    let except = match &inbound.selection {
        InboundSelection::AllExcept { except, .. } | InboundSelection::Only { except, .. } => {
            except.as_slice()
        }
        InboundSelection::Nothing => &[],
    };
    let ports = [("inbound", &inbound.port), ("outbound", &outbound.port)];
    let ports = ports.map(|(kind, port)| (kind, port.value.to_string(), port.source.clone()));
    [
        ports.to_vec(),
        all("user", &policy.proxy.uids),
        all("group", &policy.proxy.gids),
        all("inbound ports", except),
        all("sources", &inbound.except_sources),
        all("outbound ports", &outbound.except_ports),
        all("networks", &outbound.except_networks),
        all("users", &outbound.except_users),
    ]
    .concat()
}
