//! Every key of the configuration in one table: reading, the schema and the warning about unknown
//! keys are made from it.

/// Which specification or plugin gave a key its name and meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// Of the CNI specification (section 1) or its conventions.
    Cni,
    /// istio-cni's, taken as it is.
    Istio,
    /// linkerd-cni's, taken as it is.
    Linkerd,
    /// consul-cni's, taken as it is.
    Consul,
    /// Millrace's own, which no other plugin has.
    Own,
}

/// What values a key takes.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// A JSON string, of any content.
    Text,
    /// A JSON string that is one of these words.
    Choice(&'static [&'static str]),
    /// A JSON boolean; a string such as "true" is refused.
    Switch,
    /// A JSON array of strings, which may be empty.
    Texts,
    /// An object whose members are texts.
    TextMap,
    /// A number from 1 to 4294967294.
    Id,
    /// A number from this one on.
    Number(u64),
    /// A number from 1 to 65535.
    Port,
    /// A list of such numbers.
    Ports,
    /// A number from 0 to 4294967294, or -1 for none.
    IdOrNone,
    /// An object with these keys.
    Object(&'static [Key]),
    /// A duration with its unit, such as 15s.
    Duration,
    /// A path that begins with `/`.
    Path,
    /// The same, or the name of a file in `cni_net_dir`.
    PathOrName,
    /// Anything: it is the runtime's or another plugin's.
    Any,
}

/// A member of the plugin's entry, or of an object in it.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// As the entry in a network list has it.
    pub name: &'static str,
    /// Who defined what it means.
    pub owner: Owner,
    /// Which JSON values it takes, for reading and for the schema.
    pub shape: Shape,
    /// What holds without it; empty for nothing.
    pub default: &'static str,
    /// The key's `description` in the JSON Schema of the entry.
    pub help: &'static str,
}

const fn key(
    name: &'static str,
    owner: Owner,
    shape: Shape,
    default: &'static str,
    help: &'static str,
) -> Key {
    Key { name, owner, shape, default, help }
}

use Owner::{Cni, Consul, Istio, Linkerd, Own};

/// Values of `plugin_log_level`, from the most messages to no message.
const LEVELS: &[&str] = &["debug", "info", "warn", "error", "none"];

/// The members of the entry itself; those of `linkerd`, `kuma` and `consul` have their own tables.
pub const KEYS: &[Key] = &[
    key("cniVersion", Cni, Shape::Text, "", "Version of the CNI specification, 0.3.0 to 1.1.0"),
    key("name", Cni, Shape::Text, "", "Name of the network"),
    key("type", Cni, Shape::Text, "", "Name of this program's file"),
    key(
        "capabilities",
        Cni,
        Shape::Any,
        "",
        "Capabilities requested from the runtime; io.kubernetes.cri.pod-annotations saves API \
         lookups of pods outside the mesh",
    ),
    key("runtimeConfig", Cni, Shape::Any, "", "What the runtime tells; not set by hand"),
    key("prevResult", Cni, Shape::Any, "", "Result of the plugins before; not set by hand"),
    key("args", Cni, Shape::Any, "", "Without effect"),
    key("ipam", Cni, Shape::Any, "", "Without effect: istio-cni's installer writes it empty"),
    key("dns", Cni, Shape::Any, "", "Without effect: istio-cni's installer writes it empty"),
    key(
        "plugin_log_level",
        Istio,
        Shape::Choice(LEVELS),
        "info",
        "The least severe messages that are logged",
    ),
    key(
        "cni_agent_run_dir",
        Istio,
        Shape::Path,
        "",
        "Folder of istio-cni's agent: its istio-cni-kubeconfig is used where kubeconfig is not set",
    ),
    key(
        "exclude_namespaces",
        Istio,
        Shape::Texts,
        "",
        "Namespaces of Kubernetes whose pods are left alone, without looking at them",
    ),
    key("pod_namespace", Istio, Shape::Text, "", "Namespace of istio-cni's own node agent"),
    key("native_nftables", Istio, Shape::Switch, "false", "true means backend nftables"),
    key(
        "ambient_enabled",
        Istio,
        Shape::Switch,
        "false",
        "Pods without a sidecar are enrolled by the node agent (agent_socket, which has to run with \
         --ambient), before ADD returns",
    ),
    key(
        "enablement_selectors",
        Istio,
        Shape::Any,
        "",
        "Without effect: the node agent has its own (--ambient-selectors)",
    ),
    key(
        "enable_ambient_detection_retry",
        Istio,
        Shape::Switch,
        "false",
        "Without effect: ADD fails, and is tried again",
    ),
    key(
        "kubernetes",
        Istio,
        Shape::Any,
        "",
        "kubeconfig and exclude_namespaces, where entries of istio-cni had them until its release \
         1.23",
    ),
    key(
        "log_level",
        Istio,
        Shape::Choice(LEVELS),
        "",
        "As plugin_log_level, which entries of istio-cni had under this name",
    ),
    key(
        "log_uds_address",
        Istio,
        Shape::Any,
        "",
        "Without effect: older entries of istio-cni have it",
    ),
    key(
        "cni_event_address",
        Istio,
        Shape::Any,
        "",
        "Without effect: older entries of istio-cni have it",
    ),
    key(
        "linkerd",
        Linkerd,
        Shape::Object(LINKERD),
        "",
        "linkerd-cni's settings; if present, even empty, pods of Linkerd are captured",
    ),
    key(
        "kuma",
        Own,
        Shape::Object(KUMA),
        "",
        "If present, pods of Kuma are captured; an empty object, since their settings are in annotations",
    ),
    key(
        "consul",
        Own,
        Shape::Object(CONSUL),
        "",
        "If present, pods of Consul are captured; not needed in an entry taken from consul-cni",
    ),
    key("cni_net_dir", Consul, Shape::Path, "", "Folder of a kubeconfig that is named without one"),
    key("cni_bin_dir", Consul, Shape::Any, "", "Without effect: entries of consul-cni have it"),
    key("cni_token_path", Consul, Shape::Any, "", "Without effect: the kubeconfig names the token"),
    key(
        "cni_host_token_path",
        Consul,
        Shape::Any,
        "",
        "Without effect: the kubeconfig names the token",
    ),
    key(
        "autorotate_token",
        Consul,
        Shape::Any,
        "",
        "Without effect: a token is read anew for each question",
    ),
    key("multus", Consul, Shape::Any, "", "Without effect: entries of consul-cni have it"),
    key(
        "backend",
        Own,
        Shape::Choice(&["auto", "nftables", "iptables", "ebpf"]),
        "auto",
        "Capture backend. auto: eBPF where the node's programs are loaded and support the \
         settings, otherwise nftables if the kernel supports them, otherwise iptables",
    ),
    key(
        "bpffs",
        Own,
        Shape::Path,
        millrace_host::ebpf::DEFAULT_FOLDER,
        "Folder of a bpffs where `millrace node-bpf load` has pinned the node's eBPF programs",
    ),
    key(
        "kubeconfig",
        Own,
        Shape::PathOrName,
        "",
        "Kubeconfig for API lookups of pods whose annotations don't suffice, and of the ids and \
         variables of proxies; a path, or the name of a file in cni_net_dir",
    ),
    key("agent_socket", Own, Shape::Path, "", "Unix socket of a node agent, asked before the API"),
    key(
        "proxy_identity",
        Own,
        Shape::Choice(&["auto", "lookup", "annotations"]),
        "auto",
        "Where the proxy's ids and variables come from when annotations tell that it is there: \
         auto asks the node agent, then the Kubernetes API, those of them that are configured, and \
         falls back on annotations, proxy_uid, proxy_gid and proxy_env with a warning; lookup asks \
         likewise, and refuses the pod when nobody answers; annotations asks nobody",
    ),
    key(
        "proxy_uid",
        Own,
        Shape::Id,
        "1337",
        "The proxy's user id where neither lookup nor annotation gives it",
    ),
    key(
        "proxy_gid",
        Own,
        Shape::Id,
        "1337",
        "The proxy's group id where neither lookup nor annotation gives it",
    ),
    key(
        "proxy_env",
        Own,
        Shape::TextMap,
        "",
        "The proxy's environment variables where no lookup gives them: ISTIO_META_DNS_CAPTURE, \
         INVALID_DROP",
    ),
    key(
        "annotations",
        Own,
        Shape::TextMap,
        "",
        "Annotations of every container that is no pod of Kubernetes (podman), which is left alone \
         without them",
    ),
    key(
        "deadline",
        Own,
        Shape::Duration,
        "15s",
        "How long a command may take with all lookups and waiting; the runtime gives it minutes",
    ),
    key(
        "state_dir",
        Own,
        Shape::Path,
        super::STATE_DIR,
        "Folder for a note on each captured pod; may be lost at a reboot",
    ),
    key("log_file", Own, Shape::Path, "", "File that is logged to, beside standard error"),
    key(
        "log_max_bytes",
        Own,
        Shape::Number(4096),
        "10485760",
        "Size at which the log file is renamed to end in .1 and another one is begun",
    ),
];

/// Members of the object `linkerd`, as an entry of linkerd-cni has it.
pub const LINKERD: &[Key] = &[
    key(
        "incoming-proxy-port",
        Linkerd,
        Shape::Port,
        "4143",
        "Port of the proxy that captured inbound connections go to",
    ),
    key(
        "outgoing-proxy-port",
        Linkerd,
        Shape::Port,
        "4140",
        "Port of the proxy that captured outbound connections go to",
    ),
    key(
        "proxy-uid",
        Linkerd,
        Shape::IdOrNone,
        "2102",
        "User id of the proxy, whose connections are left alone; -1 for none",
    ),
    key(
        "proxy-gid",
        Linkerd,
        Shape::IdOrNone,
        "-1",
        "Group id of the proxy, whose connections are left alone; -1 for none",
    ),
    key(
        "ports-to-redirect",
        Linkerd,
        Shape::Ports,
        "",
        "Inbound ports to capture; all where it is empty",
    ),
    key(
        "inbound-ports-to-ignore",
        Linkerd,
        Shape::Texts,
        "",
        "Inbound ports and first-last ranges to leave alone; 4190 and 4191, the proxy's own, without \
         this key",
    ),
    key(
        "outbound-ports-to-ignore",
        Linkerd,
        Shape::Texts,
        "",
        "Outbound ports and first-last ranges to leave alone",
    ),
    key(
        "subnets-to-ignore",
        Linkerd,
        Shape::Texts,
        "",
        "Networks whose inbound connections are left alone; of either family",
    ),
    key(
        "simulate",
        Linkerd,
        Shape::Switch,
        "false",
        "Has to be false: pods would start uncaptured",
    ),
    key(
        "use-wait-flag",
        Linkerd,
        Shape::Switch,
        "false",
        "Without effect: locks are always waited for",
    ),
    key(
        "iptables-mode",
        Linkerd,
        Shape::Choice(&["legacy", "nft", "plain", ""]),
        "",
        "Without effect: backend says what captures",
    ),
    key("ipv6", Linkerd, Shape::Switch, "true", "Whether IPv6 is captured as well"),
];

/// The keys of `kuma`: there are none.
pub const KUMA: &[Key] = &[];

/// Members of the object `consul`, which is Millrace's own.
pub const CONSUL: &[Key] = &[key(
    "dual-stack",
    Own,
    Shape::Switch,
    "false",
    "Whether IPv6 is captured in pods that have no annotation consul.hashicorp.com/dual-stack, which the \
     injector of older releases does not write",
)];

/// The key of this name, whatever its case.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| crate::protocol::member_is(name, key.name))
}
