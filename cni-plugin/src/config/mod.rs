//! The plugin's entry in the list of plugins, with what the runtime adds to it.

mod keys;
mod meshes;
mod read;
mod schema;

pub use keys::{CONSUL, KEYS, KUMA, Key, LINKERD, Owner, Shape};
pub use schema::schema;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use millrace_core::dialect::FileValues;
use millrace_core::source::Sourced;
use millrace_core::value::{Gid, Uid};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::level::Level;
use crate::mesh::Mesh;
use crate::protocol::{Attachment, CniError, Code, Object, Version};

/// What rules are written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// The node's eBPF programs where they are loaded and can do it; nftables where the kernel has
    /// what it takes, iptables otherwise.
    #[default]
    Auto,
    /// Native nftables by netlink, and nothing else where the kernel lacks it.
    Nftables,
    /// iptables-nft, or iptables-legacy where that holds rules or the kernel has no `nf_tables`.
    Iptables,
    /// The node's eBPF programs; an error where they are not loaded, and no rules.
    Ebpf,
}

/// Whether somebody is asked for the proxy's ids and variables when annotations tell that it is
/// there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyIdentity {
    /// The node agent, and else the Kubernetes API; annotations and the defaults where neither is
    /// configured or answers in time.
    #[default]
    Auto,
    /// Nobody: annotations and the defaults tell.
    Annotations,
    /// The node agent, and else the Kubernetes API; a pod whose proxy is not known is refused.
    Lookup,
}

/// The plugin's entry as a runtime passes it on standard input: checked, with all defaults.
#[derive(Clone, Debug)]
pub struct Config {
    /// The version that is spoken.
    pub version: Version,
    /// The name of the network.
    pub network: String,
    /// Namespaces whose pods are left alone.
    pub exclude_namespaces: Vec<String>,
    /// The namespace of the node agent.
    pub agent_namespace: Option<String>,
    /// Whether pods without a sidecar are expected, which the node agent enrols.
    pub ambient: bool,
    /// What rules are written with.
    pub backend: Backend,
    /// Where the node's eBPF programs are pinned.
    pub bpffs: PathBuf,
    /// Whether the node is meant to have them: the entry names `auto`, or their folder.
    pub expects_ebpf: bool,
    /// How to reach the Kubernetes API.
    pub kubeconfig: Option<PathBuf>,
    /// Where the node agent answers.
    pub agent_socket: Option<PathBuf>,
    /// Who is asked about the proxy.
    pub proxy_identity: ProxyIdentity,
    /// The proxy's user where nobody tells.
    pub proxy_uid: Option<Sourced<Uid>>,
    /// The proxy's group where nobody tells it; none where the entry does not either.
    pub proxy_gid: Option<Sourced<Gid>>,
    /// The proxy's variables where nobody tells them; empty where the entry does not either.
    pub proxy_env: BTreeMap<String, Sourced<String>>,
    /// The meshes whose pods are expected beside those of Istio, with the settings of each.
    pub(crate) expected: BTreeMap<Mesh, FileValues>,
    /// Annotations of attachments that are no pods of Kubernetes.
    pub annotations: BTreeMap<String, String>,
    /// How long ADD may take, lookups and waiting for locks included.
    pub deadline: Duration,
    /// Folder of the notes on captured attachments; it may be lost at a reboot.
    pub state_dir: PathBuf,
    /// What is logged, and where.
    pub log: LogConfig,
    /// Whether the runtime is asked for annotations.
    pub tells_annotations: bool,
    /// The pod's annotations, if the runtime gives them.
    pub pod_annotations: Option<BTreeMap<String, String>>,
    /// The result of the plugins before this one.
    pub prev_result: Option<Box<RawValue>>,
    /// At GC: what is still there. An empty list when the runtime says null.
    pub valid_attachments: Option<Vec<Attachment>>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// What is logged, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The least severe messages that are logged.
    pub level: Level,
    /// The file, beside standard error.
    pub file: Option<PathBuf>,
    /// When it is this long, another one is begun.
    pub max_bytes: u64,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: Level::Info, file: None, max_bytes: 10 * 1024 * 1024 }
    }
}

/// The part of the configuration that DEL needs, of which none has to be there.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    /// The name of the network.
    pub(crate) network: String,
    /// Folder of the notes on captured attachments, [`STATE_DIR`] by default.
    pub(crate) state_dir: PathBuf,
    /// Where the node's eBPF programs are pinned.
    pub(crate) bpffs: PathBuf,
    /// What is logged, and where.
    pub(crate) log: LogConfig,
}

/// How long a command may take when nobody says otherwise.
pub(crate) const DEADLINE: Duration = Duration::from_secs(15);

/// Where attachments are noted when nobody says otherwise.
pub const STATE_DIR: &str = "/run/millrace-cni";

/// The version that standard input names, as it is written there.
pub fn version_text(object: &Object) -> Option<String> {
    serde_json::from_str(object.get("cniVersion")?.get()).ok()
}

/// Standard input as an object.
///
/// # Errors
/// When it is none, with code 6.
pub fn object(stdin: &str) -> Result<Object, CniError> {
    serde_json::from_str(stdin).map_err(|error| {
        let msg = format!("the network configuration on standard input can't be read: {error}");
        CniError::new(Code::Decode, msg)
    })
}

impl Places {
    /// Read what can be read; the defaults stand for the rest.
    pub(crate) fn read(object: &Object) -> Self {
        read::places(object)
    }
}

impl Config {
    /// Read and check the entry; what it leaves out gets its default.
    ///
    /// # Errors
    /// When the version is not spoken here (code 1), or values are wrong (code 7): all of them.
    pub fn parse(object: &Object) -> Result<Self, CniError> {
        read::read(object)
    }

    /// The settings of a mesh by its key, where its pods are expected.
    pub fn settings(&self, key: &str) -> Option<&FileValues> {
        let mut expected = self.expected.iter();
        expected.find(|(mesh, _)| mesh.key() == Some(key)).map(|(_, settings)| settings)
    }
}
