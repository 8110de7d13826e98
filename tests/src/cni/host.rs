//! A node, as far as plugins see it, and its pods.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::netns::Namespace;
use crate::process::{Listeners, dial};
use crate::topology::{APP, PROXY};
use crate::wire::{Answer, Dial, Identity, Listen, Outcome, Proto, Serve};

static PODS: AtomicUsize = AtomicUsize::new(0);

/// A host: a network namespace of its own, `/run` and `/var/lib/cni` of its own, and a folder for
/// what it writes.
#[derive(Debug)]
pub struct Host {
    /// Where its programs run.
    pub namespace: Namespace,
    folder: TempDir,
}

/// A network namespace that a runtime made for a pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The container's id.
    pub id: String,
    /// The pod's name.
    pub name: String,
    /// The path of its network namespace, as programs of the host see it.
    pub netns: PathBuf,
}

impl Host {
    /// A new host without pods.
    pub fn new() -> Result<Self> {
        let host = Self {
            namespace: Namespace::new()?,
            folder: tempfile::tempdir().context("a folder for a host")?,
        };
        host.namespace.enter(|| -> Result<()> {
            let none: Option<&str> = None;
            let folder = "/var/lib/cni";
            fs::create_dir_all(folder).context(folder)?;
            mount(Some("tmpfs"), folder, Some("tmpfs"), MsFlags::empty(), none).context(folder)
        })??;
        host.namespace.ip("link set lo up")?;
        Ok(host)
    }

    /// A folder that the test sees as well.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the plugin keeps its notes.
    pub fn state_dir(&self) -> PathBuf {
        self.folder().join("state")
    }

    /// Whether it has a note on any pod. That eBPF has captured some is said by a file that stays.
    pub fn has_notes(&self) -> Result<bool> {
        let names = self.state_dir().read_dir().context("notes")?.map(|file| Ok(file?.file_name()));
        let names = names.collect::<Result<Vec<_>>>()?;
        Ok(names.iter().any(|name| name != "ebpf"))
    }

    /// The plugin's entry in a list of plugins.
    pub fn entry(&self) -> Value {
        json!({
            "type": "millrace-cni",
            "state_dir": self.state_dir(),
            "capabilities": { super::POD_ANNOTATIONS: true },
        })
    }

    /// Have this file of the machine read so by the host's programs.
    pub fn cover(&self, path: &str, text: &str) -> Result<()> {
        let file = self.folder().join(path.replace('/', "-"));
        fs::write(&file, text).with_context(|| file.display().to_string())?;
        self.namespace
            .enter(|| {
                let none: Option<&str> = None;
                mount(Some(&file), path, none, MsFlags::MS_BIND, none)
            })?
            .context(path.to_owned())
    }

    /// A pod with nothing in it but `lo`.
    pub fn pod(&self) -> Result<Pod> {
        let number = PODS.fetch_add(1, Ordering::Relaxed);
        let name = format!("pod-{}-{number}", std::process::id());
        self.namespace.run("ip", &["netns", "add", &name])?;
        let pod =
            Pod { id: format!("{number:064x}"), netns: Path::new("/run/netns").join(&name), name };
        self.inside(&pod, |namespace| {
            // As runtimes leave it to a loopback plugin. Any user may bind any port.
            namespace.ip("link set lo up")?;
            let open = "net.ipv4.ip_unprivileged_port_start=0";
            namespace.run("sysctl", &["-qw", open]).map(drop)
        })?;
        Ok(pod)
    }

    /// Take a pod's namespace away, as a runtime does.
    pub fn remove(&self, pod: &Pod) -> Result<()> {
        self.namespace.run("ip", &["netns", "delete", &pod.name]).map(drop)
    }

    /// A pod's namespace, to run something in it.
    pub fn inside<T: Send>(
        &self,
        pod: &Pod,
        f: impl FnOnce(&Namespace) -> Result<T> + Send,
    ) -> Result<T> {
        let net = self.namespace.enter(|| File::open(&pod.netns))?;
        let net = net.with_context(|| pod.netns.display().to_string())?;
        f(&self.namespace.sibling(net)?)
    }

    /// The rules of native nftables in a pod.
    pub fn rules(&self, pod: &Pod) -> Result<String> {
        self.inside(pod, |inside| inside.run("nft", &["--stateless", "list", "ruleset"]))
    }

    /// A proxy in a pod, on the ports of a sidecar.
    pub fn proxy(&self, pod: &Pod) -> Result<Listeners> {
        let listen: Vec<Listen> = [15001, 15006]
            .into_iter()
            .flat_map(|port| [format!("0.0.0.0:{port}"), format!("[::]:{port}")])
            .map(|text| Ok(Listen { proto: Proto::Tcp, addr: text.parse()?, transparent: false }))
            .collect::<Result<_>>()?;
        let serve = Serve { name: "proxy".to_owned(), identity: PROXY, listen };
        self.inside(pod, |inside| Listeners::start(inside, &serve))
    }

    /// Listeners of this name on a host's or a pod's address.
    pub fn serve(&self, pod: Option<&Pod>, name: &str, addr: &str) -> Result<Listeners> {
        let listen = vec![Listen { proto: Proto::Tcp, addr: addr.parse()?, transparent: false }];
        let serve = Serve { name: name.to_owned(), identity: APP, listen };
        match pod {
            Some(pod) => self.inside(pod, |inside| Listeners::start(inside, &serve)),
            None => Listeners::start(&self.namespace, &serve),
        }
    }

    /// Connect from a pod, or from the host. None when nobody answers.
    pub fn dial(&self, pod: Option<&Pod>, identity: Identity, to: &str) -> Result<Option<Answer>> {
        let request = Dial {
            identity,
            proto: Proto::Tcp,
            from: None,
            from_port: None,
            transparent_mark: None,
            to: to.parse()?,
            timeout_ms: 5000,
        };
        let outcome = match pod {
            Some(pod) => self.inside(pod, |inside| dial(inside, &request))?,
            None => dial(&self.namespace, &request)?,
        };
        Ok(match outcome {
            Outcome::Answered { answer, .. } => Some(answer),
            Outcome::Failed(_) => None,
        })
    }
}

impl Pod {
    /// The pod's id in Kubernetes.
    pub fn uid(&self) -> String {
        format!("uid-of-{}", self.name)
    }
}
