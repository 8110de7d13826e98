//! From JSON to a configuration, keeping every error.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_core::dialect::istio::parse_duration;
use millrace_core::from_objects;
use millrace_core::source::{Source, Sourced};
use millrace_core::value::{Gid, Uid};
use millrace_host::ebpf::DEFAULT_FOLDER;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{
    Backend, Config, DEADLINE, LogConfig, Places, ProxyIdentity, STATE_DIR, keys, meshes,
    version_text,
};
use crate::level::Level;
use crate::protocol::{Attachment, CniError, Code, Object, Version, is_identifier, member_is};

/// The capability of containerd and CRI-O that gives annotations.
const POD_ANNOTATIONS: &str = "io.kubernetes.cri.pod-annotations";
/// What remains, at GC (CNI specification, section 4).
const VALID_ATTACHMENTS: &str = "cni.dev/valid-attachments";
/// Keys that begin so belong to the specification.
const RESERVED: &str = "cni.dev/";
/// The file that istio-cni's agent writes into its folder.
const ISTIO_KUBECONFIG: &str = "istio-cni-kubeconfig";

const LOG_FLOOR: u64 = 4096;

/// The members of `kubernetes` in istio-cni's older entry; those but two are without effect.
const OLDER: [&str; 6] = [
    "kubeconfig",
    "exclude_namespaces",
    "cni_bin_dir",
    "intercept_type",
    "k8s_api_root",
    "node_name",
];

/// What istio-cni's older entry says.
#[derive(Default)]
struct Older {
    kubeconfig: Option<PathBuf>,
    exclude_namespaces: Option<Vec<String>>,
}

/// Reads members of an object, and keeps what is wrong.
pub(super) struct OptionReader<'o> {
    object: &'o Object,
    /// The name of the member that the object is; empty for the entry itself.
    within: &'static str,
    pub(super) wrong: Vec<String>,
    pub(super) warnings: Vec<String>,
}

pub(super) fn places(object: &Object) -> Places {
    let mut r = OptionReader::new(object, "");
    Places {
        network: r.value("name", "a text").unwrap_or_default(),
        state_dir: r.path("state_dir").unwrap_or_else(|| PathBuf::from(STATE_DIR)),
        bpffs: r.bpffs(),
        log: r.log(),
    }
}

pub(super) fn read(object: &Object) -> Result<Config, CniError> {
    let version = version(object)?;
    let mut r = OptionReader::new(object, "");
    r.unknown();
    let network: Option<String> = r.value("name", "a text");
    if !network.as_deref().is_some_and(is_identifier) {
        let found = network.as_deref().unwrap_or_default();
        r.wrong.push(format!(
            "name is {found:?}; a network's name begins with a letter or digit and goes on with \
             letters, digits, _ . -"
        ));
    }
    // Without effect, but no excuse for a typing error.
    r.switch("enable_ambient_detection_retry");
    let run_dir = r.path("cni_agent_run_dir").map(|dir| dir.join(ISTIO_KUBECONFIG));
    let older = r.older();
    let kubeconfig = r.kubeconfig().or(older.kubeconfig).or(run_dir);
    let namespaces: Option<Vec<String>> = r.value("exclude_namespaces", "a list of texts");
    let config = Config {
        version,
        network: network.unwrap_or_default(),
        exclude_namespaces: namespaces.or(older.exclude_namespaces).unwrap_or_default(),
        agent_namespace: r.value("pod_namespace", "a text"),
        ambient: r.switch("ambient_enabled"),
        backend: r.backend(),
        bpffs: r.bpffs(),
        expects_ebpf: r.is_named("backend") || r.is_named("bpffs"),
        kubeconfig,
        agent_socket: r.path("agent_socket"),
        proxy_identity: r.identity(),
        proxy_uid: r.id("proxy_uid", Uid::new),
        proxy_gid: r.id("proxy_gid", Gid::new),
        proxy_env: r.env(),
        expected: meshes::read(&mut r),
        annotations: r.value("annotations", "an object of texts").unwrap_or_default(),
        deadline: r.deadline(),
        state_dir: r.path("state_dir").unwrap_or_else(|| PathBuf::from(STATE_DIR)),
        log: r.log(),
        tells_annotations: r.tells_annotations(),
        pod_annotations: r.pod_annotations(),
        prev_result: object
            .get("prevResult")
            .filter(|raw| raw.get() != "null")
            .map(ToOwned::to_owned),
        valid_attachments: r.valid_attachments(),
        warnings: std::mem::take(&mut r.warnings),
    };
    if r.wrong.is_empty() {
        return Ok(config);
    }
    let msg = format!("the network configuration is wrong: {}", r.wrong.join("; "));
    Err(CniError::new(Code::BadConfig, msg))
}

/// Whether a text is the name of a file, with no folder.
fn is_file_name(text: &str) -> bool {
    !text.is_empty() && !text.contains('/') && ![".", ".."].contains(&text)
}

fn version(object: &Object) -> Result<Version, CniError> {
    // Without one it is the first version of all (CNI specification, section 1).
    let given = version_text(object);
    let text = given.clone().unwrap_or_else(|| "0.1.0".to_owned());
    Version::find(&text).ok_or_else(|| {
        let supported = Version::ALL.map(Version::as_str).join(", ");
        let has = match given {
            Some(_) => format!("has cniVersion {text:?}, which is not spoken here"),
            None => format!(
                "has no cniVersion, which means {text}, and that is not spoken here: an entry of a \
                 list gets that of the list from the runtime"
            ),
        };
        CniError::new(Code::IncompatibleVersion, format!("the network configuration {has}"))
            .with_details(format!("configuration: {text:?}; spoken here: {supported}"))
    })
}

impl<'o> OptionReader<'o> {
    pub(super) const fn new(object: &'o Object, within: &'static str) -> Self {
        Self { object, within, wrong: Vec::new(), warnings: Vec::new() }
    }

    /// A member's name as it is told.
    fn full(&self, name: &str) -> String {
        if self.within.is_empty() { name.to_owned() } else { format!("{}.{name}", self.within) }
    }

    /// Warn of keys that nobody knows.
    fn unknown(&mut self) {
        let known = |name: &str| name.starts_with(RESERVED) || keys::find(name).is_some();
        self.warn_of_others(known);
    }

    pub(super) fn warn_of_others(&mut self, known: impl Fn(&str) -> bool) {
        let others = self.object.members().map(|(name, _)| name).filter(|name| !known(name));
        let warn =
            |name| format!("configuration key \"{}\" is not known, and ignored", self.full(name));
        let warnings: Vec<String> = others.map(warn).collect();
        self.warnings.extend(warnings);
    }

    /// Where istio-cni's entry had some of its settings until its release 1.23.
    fn older(&mut self) -> Older {
        let name = "kubernetes";
        let Some(object) = self.value::<Object>(name, "an object") else { return Older::default() };
        let mut inner = OptionReader::new(&object, "kubernetes");
        inner.warn_of_others(|name| OLDER.iter().any(|known| member_is(name, known)));
        let older = Older {
            kubeconfig: inner.path("kubeconfig"),
            exclude_namespaces: inner.value("exclude_namespaces", "a list of texts"),
        };
        self.wrong.append(&mut inner.wrong);
        self.warnings.append(&mut inner.warnings);
        older
    }

    /// A value; null is none, as in Go.
    pub(super) fn value<T: DeserializeOwned>(&mut self, name: &str, expected: &str) -> Option<T> {
        let raw = self.object.get(name)?;
        if let Ok(value) = serde_json::from_str(raw.get()) {
            value
        } else {
            self.wrong(name, raw.get(), expected);
            None
        }
    }

    pub(super) fn wrong(&mut self, name: &str, found: &str, expected: &str) {
        let found: String = found.chars().take(200).collect();
        self.wrong.push(format!("{} is {found}; it has to be {expected}", self.full(name)));
    }

    pub(super) fn is_named(&self, name: &str) -> bool {
        self.object.get(name).is_some_and(|raw| raw.get() != "null")
    }

    pub(super) fn switch(&mut self, name: &str) -> bool {
        self.value(name, "true or false").unwrap_or_default()
    }

    fn path(&mut self, name: &str) -> Option<PathBuf> {
        let text: String = self.value(name, "an absolute path")?;
        if text.is_empty() {
            return None;
        }
        if !Path::new(&text).is_absolute() {
            self.wrong(name, &format!("{text:?}"), "an absolute path");
        }
        Some(text.into())
    }

    /// consul-cni's entry has the name of a file in `cni_net_dir`.
    fn kubeconfig(&mut self) -> Option<PathBuf> {
        let name = "kubeconfig";
        let folder = self.path("cni_net_dir");
        let text: Option<String> = self.value(name, "an absolute path");
        match (text, folder) {
            (Some(text), Some(folder)) if is_file_name(&text) => Some(folder.join(text)),
            _ => self.path(name),
        }
    }

    fn backend(&mut self) -> Backend {
        let native = self.switch("native_nftables");
        let chosen = self.value("backend", "auto, nftables, iptables or ebpf");
        match chosen {
            Some(backend) => backend,
            None if native => Backend::Nftables,
            None => Backend::Auto,
        }
    }

    fn bpffs(&mut self) -> PathBuf {
        self.path("bpffs").unwrap_or_else(|| PathBuf::from(DEFAULT_FOLDER))
    }

    fn identity(&mut self) -> ProxyIdentity {
        self.value("proxy_identity", "auto, lookup or annotations").unwrap_or_default()
    }

    fn id<T>(&mut self, name: &str, new: impl Fn(u32) -> Option<T>) -> Option<Sourced<T>> {
        let expected = "a number from 1 to 4294967294";
        let number: u32 = self.value(name, expected)?;
        let id = new(number).filter(|_| number != 0);
        if id.is_none() {
            self.wrong(name, &number.to_string(), expected);
        }
        id.map(|id| Sourced::new(id, Source::File(name.to_owned())))
    }

    fn env(&mut self) -> BTreeMap<String, Sourced<String>> {
        let name = "proxy_env";
        let variables: BTreeMap<String, String> =
            self.value(name, "an object of texts").unwrap_or_default();
        let source = || Source::File(name.to_owned());
        variables.into_iter().map(|(k, v)| (k, Sourced::new(v, source()))).collect()
    }

    fn deadline(&mut self) -> Duration {
        let expected = "a duration above 0 with its unit, such as 15s, at most 24h";
        let Some(text) = self.value::<String>("deadline", expected) else { return DEADLINE };
        match parse_duration(&text) {
            Ok(duration) if !duration.is_zero() => duration,
            _ => {
                self.wrong("deadline", &format!("{text:?}"), expected);
                DEADLINE
            }
        }
    }

    /// What is logged must never keep a pod from starting, so a level that is not known is none.
    fn log(&mut self) -> LogConfig {
        let mut log = LogConfig { file: self.path("log_file"), ..LogConfig::default() };
        let newer = "plugin_log_level";
        let name = if self.object.get(newer).is_some() { newer } else { "log_level" };
        if let Some(text) = self.value::<String>(name, "a text") {
            match Level::find(&text) {
                Some(level) => log.level = level,
                None if text.is_empty() => {}
                None => self
                    .warnings
                    .push(format!("{name} is {text:?}, which is no level; info is taken")),
            }
        }
        let expected = format!("a number from {LOG_FLOOR} on");
        if let Some(bytes) = self.value::<u64>("log_max_bytes", &expected) {
            if bytes < LOG_FLOOR {
                self.wrong("log_max_bytes", &bytes.to_string(), &expected);
            }
            log.max_bytes = bytes;
        }
        log
    }

    /// A runtime tells them where the entry has the capability, which every runtime that asks for
    /// STATUS leaves in.
    fn tells_annotations(&mut self) -> bool {
        let capabilities: Option<Object> = self.value("capabilities", "an object");
        let capability = capabilities.as_ref().and_then(|object| object.get(POD_ANNOTATIONS));
        capability.is_some_and(|raw| raw.get() == "true")
    }

    /// Where the runtime gives them, it gives them always: null is a pod without any.
    fn pod_annotations(&mut self) -> Option<BTreeMap<String, String>> {
        let runtime: Object = self.value("runtimeConfig", "an object")?;
        let raw = runtime.get(POD_ANNOTATIONS)?;
        let read: Result<Option<BTreeMap<String, String>>, _> = serde_json::from_str(raw.get());
        if let Ok(annotations) = read {
            Some(annotations.unwrap_or_default())
        } else {
            let name = format!("runtimeConfig[{POD_ANNOTATIONS:?}]");
            self.wrong(&name, raw.get(), "an object of texts");
            None
        }
    }

    fn valid_attachments(&mut self) -> Option<Vec<Attachment>> {
        #[derive(Deserialize)]
        #[serde(remote = "Self")]
        struct Valid {
            #[serde(rename = "containerID", alias = "ContainerID", alias = "containerId")]
            container_id: String,
            #[serde(alias = "IfName", alias = "ifName")]
            ifname: String,
        }
        from_objects!(Valid);
        self.object.get(VALID_ATTACHMENTS)?;
        // The runtimes' own library writes null for no attachment at all.
        let valid: Vec<Valid> = self
            .value(VALID_ATTACHMENTS, "a list of objects with containerID and ifname")
            .unwrap_or_default();
        let attachment = |v: Valid| Attachment { container_id: v.container_id, ifname: v.ifname };
        Some(valid.into_iter().map(attachment).collect())
    }
}

#[cfg(test)]
mod tests;
