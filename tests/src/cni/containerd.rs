//! containerd of Debian's packages, driven through the Container Runtime Interface as a kubelet
//! does: the machine's own, and one of 2.0 or later, which runs pods with users of their own. It runs
//! on a [`Host`] with process ids of its own: everything ends with it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use hyper_util::rt::TokioIo;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ExecSyncRequest, IdMapping,
    ImageSpec, Int64Value, LinuxContainerConfig, LinuxContainerSecurityContext,
    LinuxPodSandboxConfig, LinuxSandboxSecurityContext, ListPodSandboxRequest, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxStatusRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, StartContainerRequest, StopPodSandboxRequest, UserNamespace,
};
use serde_json::{Value, json};
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tonic::transport::{Channel, Endpoint, Uri};

use super::image::{BUSYBOX, PAUSE, archives};
use super::{Host, List, Pod};
use crate::binary;

static NUMBER: AtomicUsize = AtomicUsize::new(0);

/// Plugins that containerd calls, or a list does.
const PLUGINS: [&str; 4] = ["bridge", "host-local", "loopback", "ptp"];

/// Where `scripts/setup` puts a newer containerd than the machine's own, with its runc and libraries.
const NEWER: &str = "/usr/local/lib/millrace-tests/containerd-2";

/// Which containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Release {
    /// The machine's package.
    Own,
    /// 2.0 or later, in [`NEWER`].
    Newer,
}

impl Release {
    /// Who keeps the files of images and containers.
    pub(super) const fn snapshotter(self) -> &'static str {
        match self {
            Self::Own => "native",
            // The files of a pod with users of its own have to be mounted with other owners.
            Self::Newer => "overlayfs",
        }
    }

    /// A shell's line that has its programs found, and their libraries, by itself and its children alone.
    fn paths(self) -> Result<String> {
        if self == Self::Own {
            binary::system("containerd")?;
            return Ok(String::new());
        }
        let programs = format!("{NEWER}/usr/bin:{NEWER}/usr/sbin");
        let containerd = Path::new(NEWER).join("usr/bin/containerd");
        ensure!(containerd.is_file(), "there is no {}: run scripts/setup", containerd.display());
        let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        // runc starts itself again by its own path, so it can't be started by another loader's.
        Ok(format!(
            "mount -t overlay -o lowerdir={NEWER}/{libraries}:/{libraries} overlay /{libraries} && \
             export PATH={programs}:$PATH && "
        ))
    }
}

/// A running containerd.
#[derive(Debug)]
pub struct Containerd {
    pub(super) child: Child,
    pub(super) folder: PathBuf,
    cgroup: String,
    pub(super) runtime: Runtime,
    pub(super) client: RuntimeServiceClient<Channel>,
    pub(super) release: Release,
}

/// A pod that it runs.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// Its network namespace and name.
    pub pod: Pod,
    /// Its addresses.
    pub addresses: Vec<String>,
    /// How long the request took that ran it.
    pub took: Duration,
    pub(super) config: PodSandboxConfig,
}

impl Containerd {
    /// Start the machine's own on a host, with this list of plugins as its only network.
    pub fn start(host: &Host, list: &List) -> Result<Self> {
        Self::start_release(host, list, Release::Own)
    }

    /// Start one of 2.0 or later, as [`Self::start`] does.
    pub fn start_newer(host: &Host, list: &List) -> Result<Self> {
        Self::start_release(host, list, Release::Newer)
    }

    fn start_release(host: &Host, list: &List, release: Release) -> Result<Self> {
        let folder = host.folder().join("containerd");
        for part in ["net.d", "bin", "images", "logs"] {
            fs::create_dir_all(folder.join(part)).context("containerd's folders")?;
        }
        for plugin in PLUGINS {
            let file = Path::new("/usr/lib/cni").join(plugin);
            ensure!(file.is_file(), "install the package containernetworking-plugins");
            symlink(&file, folder.join("bin").join(plugin)).context("a plugin")?;
        }
        symlink(binary::millrace_cni()?, folder.join("bin/millrace-cni")).context("the plugin")?;
        write_list(&folder, list)?;
        let config = folder.join("config.toml");
        fs::write(&config, settings(&folder, release)).context("containerd's configuration")?;
        // Namespaces that it makes have to be seen from the host.
        host.namespace.run("mount", &["--make-shared", "/run"])?;
        let log = fs::File::create(folder.join("log")).context("containerd's log")?;
        let paths = release.paths()?;
        let shell = super::restart::script(&paths, &config, &folder);
        let mut command = Command::new("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["--propagation", "unchanged", "sh", "-c", &shell]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = host.namespace.enter(|| command.spawn())?.context("starting containerd")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let socket = folder.join("containerd.sock");
        let channel = {
            let _guard = runtime.enter();
            Endpoint::try_from("http://[::]")?.connect_with_connector_lazy(tower::service_fn(
                move |_: Uri| {
                    let socket = socket.clone();
                    async move {
                        Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?))
                    }
                },
            ))
        };
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let own = format!("millrace-test-{}", std::process::id());
        // Programs of the node that are attached where this process is see newer ones' pods as well.
        let between = if release == Release::Own { "-" } else { "/" };
        let cgroup = format!("{own}{between}{number}");
        let client = RuntimeServiceClient::new(channel);
        let mut containerd = Self { child, folder, cgroup, runtime, client, release };
        containerd.wait_until_ready()?;
        containerd.import(host)?;
        Ok(containerd)
    }

    pub(super) fn wait_until_ready(&mut self) -> Result<()> {
        for _ in 0..300 {
            let mut client = self.client.clone();
            let status =
                self.runtime.block_on(client.status(k8s_cri::v1::StatusRequest { verbose: false }));
            let conditions = status.ok().and_then(|s| s.into_inner().status);
            if conditions.is_some_and(|s| s.conditions.iter().all(|c| c.status)) {
                return Ok(());
            }
            ensure!(self.child.try_wait()?.is_none(), "containerd ended:\n{}", self.log());
            thread::sleep(Duration::from_millis(100));
        }
        bail!("containerd did not get ready:\n{}", self.log())
    }

    fn import(&self, host: &Host) -> Result<()> {
        let archives = archives(&self.folder.join("images"))?;
        archives.iter().try_for_each(|archive| self.import_archive(host, archive))
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.join("containerd.sock")
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Its `/proc`, with the processes as it numbers them.
    pub fn proc(&self) -> Result<PathBuf> {
        // unshare's only child is in the namespace of processes.
        let own = self.child.id();
        let children = fs::read_to_string(format!("/proc/{own}/task/{own}/children"))?;
        let first = children.split_whitespace().next().context("containerd has ended")?;
        Ok(Path::new("/proc").join(first).join("root/proc"))
    }

    /// Put another list of plugins in the place of the one that is there. containerd reads it when
    /// the watch of its folder tells of it.
    pub fn change_list(&self, list: &List) -> Result<()> {
        write_list(&self.folder, list)
    }

    /// Run a pod with these annotations.
    pub fn run_pod(&self, name: &str, annotations: &Value) -> Result<Sandbox> {
        self.runtime.block_on(self.pod(name, annotations, None, None))
    }

    /// Run a pod with users of its own (`hostUsers: false`), whose first is this one of the machine's.
    pub fn run_pod_with_users(
        &self,
        name: &str,
        annotations: &Value,
        first: u32,
    ) -> Result<Sandbox> {
        let mapping = vec![IdMapping { host_id: first, container_id: 0, length: 65_536 }];
        let users = UserNamespace { mode: 0, uids: mapping.clone(), gids: mapping };
        self.runtime.block_on(self.pod(name, annotations, None, Some(users)))
    }

    /// Run a pod that has its node's network. Gives its id.
    pub fn run_pod_of_node(&self, name: &str, annotations: &Value) -> Result<String> {
        let mut config = self.config(name, annotations, None);
        // The node's own can't be set by a pod.
        config.hostname.clear();
        if let Some(linux) = config.linux.as_mut() {
            linux.sysctls.clear();
            let context = linux.security_context.as_mut();
            if let Some(options) = context.and_then(|context| context.namespace_options.as_mut()) {
                options.network = 2;
            }
        }
        let request = RunPodSandboxRequest { config: Some(config), ..Default::default() };
        let mut client = self.client.clone();
        let reply = self.runtime.block_on(client.run_pod_sandbox(request))?;
        Ok(reply.into_inner().pod_sandbox_id)
    }

    /// Run a pod that has to be up within a time.
    pub fn run_pod_within(
        &self,
        name: &str,
        annotations: &Value,
        limit: Duration,
    ) -> Result<Sandbox> {
        self.runtime.block_on(self.pod(name, annotations, Some(limit), None))
    }

    /// Run pods, all at once.
    pub fn run_pods(&self, names: &[String], annotations: &Value) -> Result<Vec<Sandbox>> {
        let pods = names.iter().map(|name| self.pod(name, annotations, None, None));
        self.runtime.block_on(futures_util::future::try_join_all(pods))
    }

    async fn pod(
        &self,
        name: &str,
        annotations: &Value,
        limit: Option<Duration>,
        users: Option<UserNamespace>,
    ) -> Result<Sandbox> {
        let config = self.config(name, annotations, users);
        let mut client = self.client.clone();
        let mut request = tonic::Request::new(RunPodSandboxRequest {
            config: Some(config.clone()),
            ..Default::default()
        });
        if let Some(limit) = limit {
            request.set_timeout(limit);
        }
        let began = Instant::now();
        let id = client.run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        let took = began.elapsed();
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: true };
        let status = client.pod_sandbox_status(request).await?.into_inner();
        let info: Value = serde_json::from_str(status.info.get("info").context("no info")?)?;
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
        let netns = namespaces
            .into_iter()
            .flatten()
            .find(|n| n["type"] == "network")
            .and_then(|n| n["path"].as_str())
            .context("a pod without a network namespace")?;
        let network = status.status.and_then(|s| s.network).context("a pod without network")?;
        let mut addresses = vec![network.ip];
        addresses.extend(network.additional_ips.into_iter().map(|ip| ip.ip));
        let pod = Pod { id, name: name.to_owned(), netns: netns.into() };
        Ok(Sandbox { pod, addresses, took, config })
    }

    fn config(
        &self,
        name: &str,
        annotations: &Value,
        users: Option<UserNamespace>,
    ) -> PodSandboxConfig {
        let annotations = annotations.as_object().into_iter().flatten();
        let annotations: HashMap<String, String> = annotations
            .map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned()))
            .collect();
        let uid = format!("uid-of-{name}");
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: uid.clone(),
                namespace: "shop".to_owned(),
                attempt: 0,
            }),
            hostname: name.to_owned(),
            log_directory: self.folder.join("logs").join(name).display().to_string(),
            annotations,
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}/pod{uid}", self.cgroup),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        pid: 1,
                        userns_options: users,
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                sysctls: HashMap::from([(
                    "net.ipv4.ip_unprivileged_port_start".to_owned(),
                    "0".to_owned(),
                )]),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Run a container of busybox in a pod, that waits, as this user. Gives its id.
    pub fn run_container(&self, sandbox: &Sandbox, name: &str, user: u32) -> Result<String> {
        let id = |number: u32| Some(Int64Value { value: number.into() });
        let of_pod = sandbox.config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let namespace_options = of_pod.and_then(|context| context.namespace_options.clone());
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: BUSYBOX.to_owned(), ..Default::default() }),
            command: ["/bin/sleep", "2147483647"].map(str::to_owned).to_vec(),
            log_path: format!("{name}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    run_as_user: id(user),
                    run_as_group: id(user),
                    namespace_options,
                    ..Default::default()
                }),
                resources: Some(k8s_cri::v1::LinuxContainerResources {
                    oom_score_adj: 1000,
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        let mut client = self.client.clone();
        self.runtime.block_on(async {
            let request = CreateContainerRequest {
                pod_sandbox_id: sandbox.pod.id.clone(),
                config: Some(config),
                sandbox_config: Some(sandbox.config.clone()),
            };
            let id = client.create_container(request).await?.into_inner().container_id;
            let request = StartContainerRequest { container_id: id.clone() };
            client.start_container(request).await?;
            Ok(id)
        })
    }

    /// Run a command in a container to its end; gives its standard output.
    pub fn exec(&self, container: &str, command: &[&str]) -> Result<String> {
        let mut client = self.client.clone();
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|word| (*word).to_owned()).collect(),
            timeout: 20,
        };
        let reply = self.runtime.block_on(client.exec_sync(request))?.into_inner();
        let said = String::from_utf8_lossy(&reply.stderr);
        ensure!(reply.exit_code == 0, "{command:?}: exit code {}: {said}", reply.exit_code);
        Ok(String::from_utf8(reply.stdout)?)
    }

    /// Stop a pod, as often as a kubelet may, and remove it.
    pub fn remove_pod(&self, id: &str) -> Result<()> {
        let mut client = self.client.clone();
        self.runtime.block_on(async {
            for _ in 0..2 {
                let pod_sandbox_id = id.to_owned();
                client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id }).await?;
            }
            let pod_sandbox_id = id.to_owned();
            client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id }).await?;
            Ok(())
        })
    }

    /// The ids of the pods that there are, whatever their state.
    pub fn pods(&self) -> Result<Vec<String>> {
        let mut client = self.client.clone();
        let list = self.runtime.block_on(client.list_pod_sandbox(ListPodSandboxRequest::default()));
        Ok(list?.into_inner().items.into_iter().map(|pod| pod.id).collect())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Process 1 of its process namespace ends, and with it every other one.
        let _killed = self.child.kill();
        let _status = self.child.wait();
        let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return };
        for hierarchy in hierarchies.flatten() {
            let own = hierarchy.path().join(&self.cgroup);
            remove_cgroups(&own);
            // Where it was made for that alone it is empty now.
            let _not_ours = own.parent().filter(|p| *p != hierarchy.path()).map(fs::remove_dir);
        }
        remove_cgroups(&Path::new("/sys/fs/cgroup").join(&self.cgroup));
    }
}

/// Remove a control group and those in it, once their processes have ended.
pub(super) fn remove_cgroups(path: &Path) {
    let Ok(entries) = fs::read_dir(path) else { return };
    for entry in entries.flatten().filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
        remove_cgroups(&entry.path());
    }
    for _ in 0..100 {
        if fs::remove_dir(path).is_ok() || !path.exists() {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn write_list(folder: &Path, list: &List) -> Result<()> {
    let text = json!({
        "cniVersion": list.version, "name": list.name, "plugins": list.plugins,
    });
    // containerd 1.6 reloads when a file is written or removed, not when one is made.
    let path = folder.join("net.d/10-pods.conflist");
    fs::write(path, text.to_string()).context("a list of plugins")
}

/// Settings that do in a container or a virtual machine too: no `AppArmor`, no system manager, no
/// control group or limit that may not be there.
fn settings(folder: &Path, release: Release) -> String {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    let (folder, snapshotter) = (folder.display(), release.snapshotter());
    format!(
        "version = 2\n\
         root = \"{folder}/data\"\n\
         state = \"{folder}/state\"\n\
         [grpc]\n\
         address = \"{folder}/containerd.sock\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\n\
         path = \"{folder}/opt\"\n\
         [{cri}]\n\
         sandbox_image = \"{PAUSE}\"\n\
         disable_apparmor = true\n\
         restrict_oom_score_adj = true\n\
         disable_hugetlb_controller = true\n\
         tolerate_missing_hugetlb_controller = true\n\
         [{cri}.cni]\n\
         bin_dir = \"{folder}/bin\"\n\
         conf_dir = \"{folder}/net.d\"\n\
         max_conf_num = 1\n\
         [{cri}.containerd]\n\
         snapshotter = \"{snapshotter}\"\n\
         default_runtime_name = \"runc\"\n\
         [{cri}.containerd.runtimes.runc]\n\
         runtime_type = \"io.containerd.runc.v2\"\n\
         [{cri}.containerd.runtimes.runc.options]\n\
         SystemdCgroup = false\n"
    )
}
