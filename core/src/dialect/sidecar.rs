//! Meshes whose pods are known by what their injector put in, and captured from outside as a pod's
//! annotations say: what all of them have alike. The meshes themselves are data.

use std::fmt;

use super::error::ConfigErrors;
use super::flags::Words;
use super::raw::{FileValues, Raw};
use super::{Dialect, Mesh, consul, kuma, linkerd};
use crate::pod::{Container, PodFacts};
use crate::policy::CapturePolicy;
use crate::source::{Source, Sourced};

/// What an annotation does to the node's setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A list grows by what it says.
    Adds,
    /// It takes the place of the node's setting.
    Replaces,
}

/// An annotation that says how a pod is captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AnnotationDef {
    /// The whole key, with its prefix.
    pub name: &'static str,
    /// The flag of the mesh's tool that sets the same.
    pub flag: &'static str,
    /// What it does to what is set otherwise.
    pub effect: Effect,
}

pub(super) const fn def(name: &'static str, flag: &'static str, effect: Effect) -> AnnotationDef {
    AnnotationDef { name, flag, effect }
}

/// What is to be done with a pod, to one mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// It is not captured, and this is why.
    Pass(Passed),
    /// It is captured, by the settings of the node and its annotations.
    Capture,
    /// It may have to be captured: somebody has to be asked.
    Ask(Unknown),
    /// What its annotations say of a proxy is neither a yes nor a no.
    Wrong(ConfigErrors),
}

/// Why a pod is not captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// This init container captures it from inside.
    InitContainer(&'static str),
    /// It has no container of this name, which its proxy would run in.
    NoProxy(&'static str),
    /// Nothing was injected: it lacks what the injector writes.
    NotInjected {
        /// The name of the mesh, as messages say it.
        mesh: &'static str,
        /// The key of the annotation that would say so.
        annotation: &'static str,
        /// How it does not.
        lack: Lack,
    },
    /// It has a proxy that only takes what is sent to it: this annotation does not say otherwise.
    NotTransparent(&'static str, Lack),
}

/// How an annotation does not say yes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lack {
    /// It is not there.
    Absent,
    /// It is there, and says nothing.
    Empty,
    /// It says no.
    Denied,
}

impl Lack {
    /// How an annotation of a pod doesn't say yes, of which it is known that it does not.
    pub(super) fn of(pod: &PodFacts, annotation: &str) -> Self {
        match pod.annotation(annotation) {
            None => Self::Absent,
            Some("") => Self::Empty,
            Some(_) => Self::Denied,
        }
    }

    fn of_annotation(self, name: &str) -> String {
        match self {
            Self::Absent => format!("it has no annotation {name}"),
            Self::Empty => format!("its annotation {name} is empty"),
            Self::Denied => format!("its annotation {name} says so"),
        }
    }
}

impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InitContainer(name) => {
                write!(f, "its init container {name} captures it from inside")
            }
            Self::NoProxy(name) => write!(f, "it has no container {name}"),
            Self::NotInjected { mesh, annotation, lack } => {
                let why = lack.of_annotation(annotation);
                write!(f, "no proxy of {mesh}'s was injected: {why}")
            }
            Self::NotTransparent(annotation, lack) => {
                let why = lack.of_annotation(annotation);
                write!(f, "nothing is to be captured for its proxy: {why}")
            }
        }
    }
}

/// What has to be known before it can be decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// The annotations: the container runtime gives none.
    Annotations,
    /// Whether it has a container of this name: no annotation tells.
    Proxy(&'static str),
    /// Whether this init container captures it: an annotation says that there is a proxy.
    Inside {
        /// The key of the annotation that says so.
        annotation: &'static str,
        /// The name of that init container.
        container: &'static str,
    },
}

impl fmt::Display for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Annotations => f.write_str("the container runtime gives no annotations"),
            Self::Proxy(name) => {
                write!(f, "whether it has a container {name} no annotation tells")
            }
            Self::Inside { annotation, container } => write!(
                f,
                "annotation {annotation} says that it has a proxy, and whether its init container \
                 {container} captures it no annotation tells"
            ),
        }
    }
}

/// How a pod is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// What is captured, in no mesh's words.
    pub policy: CapturePolicy,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Who tells whether a pod is in a mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReportedBy {
    /// Its annotations tell everything.
    Annotations,
    /// Its annotations tell that it has a proxy, and its containers whether one of them captures it.
    Both,
    /// Its containers alone: each pod has to be looked up.
    Containers,
}

/// A mesh of this kind.
#[derive(Debug)]
pub struct Sidecar {
    /// The mesh that the pods are of.
    pub mesh: &'static Mesh,
    /// The names of its rules, as they are written from outside of a pod.
    pub dialect: &'static Dialect,
    /// The container that its proxy runs in. The names of more of them in one pod begin so.
    pub proxy: &'static str,
    /// Whether the names of its proxies only begin so.
    pub has_several: bool,
    /// The init container that captures a pod from inside.
    pub inside: &'static str,
    /// Who tells whether a pod is in the mesh.
    pub reported_by: ReportedBy,
    /// Decide about a pod by what is known of it.
    pub decide: fn(&PodFacts) -> Decision,
    /// The annotation by which the injector says that it put a proxy in.
    pub injected: &'static str,
    /// Whether it says so: who then knows no proxy of the pod knows another pod, or lies.
    pub names_proxy: fn(&PodFacts) -> bool,
    /// How a pod is captured, on a node with these settings.
    pub policy: fn(&PodFacts, &FileValues) -> Result<Captured, ConfigErrors>,
    /// Whether the settings of a node are good without any pod.
    pub check: fn(&FileValues) -> Result<(), ConfigErrors>,
    /// Every annotation that says how a pod is captured.
    pub annotations: &'static [AnnotationDef],
    /// How a pod is kept out of the mesh.
    pub leave: &'static str,
}

/// Every mesh of this kind.
pub static SIDECARS: [&Sidecar; 3] = [&linkerd::SIDECAR, &kuma::SIDECAR, &consul::SIDECAR];

impl Sidecar {
    /// Whether a container is a proxy of the mesh.
    pub fn is_proxy(&self, container: &Container) -> bool {
        match container.name.strip_prefix(self.proxy) {
            Some("") => true,
            Some(rest) => self.has_several && rest.starts_with('-'),
            None => false,
        }
    }

    /// Whether one of a pod's containers is a proxy of the mesh, where they are known.
    pub fn has_proxy(&self, pod: &PodFacts) -> bool {
        pod.containers.iter().flatten().any(|container| self.is_proxy(container))
    }
}

/// Settings with a pod's annotations on top.
pub(super) fn annotated<W: Words>(
    mut raw: Raw<W>,
    pod: &PodFacts,
    defs: &[AnnotationDef],
) -> Raw<W> {
    let mut replaced = FileValues::new();
    for def in defs {
        let Some(text) = pod.annotation(def.name) else { continue };
        let value = Sourced::new(text.to_owned(), Source::Annotation(def.name.to_owned()));
        match def.effect {
            Effect::Adds => raw = raw.with_more(def.flag, value),
            Effect::Replaces => drop(replaced.insert(def.flag, value)),
        }
    }
    raw.with_file(replaced)
}
