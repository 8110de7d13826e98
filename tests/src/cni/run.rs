//! Containers of given images, run to their end as a kubelet runs a pod's init containers.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use k8s_cri::v1::{
    Capability, ContainerConfig, ContainerMetadata, ContainerState, ContainerStatusRequest,
    CreateContainerRequest, ImageSpec, Int64Value, LinuxContainerConfig, LinuxContainerResources,
    LinuxContainerSecurityContext, Mount, StartContainerRequest,
};

use super::containerd::{Containerd, Sandbox};

/// What a manifest says of a container.
#[derive(Clone, Debug, Default)]
pub struct Expected<'a> {
    /// Its name.
    pub name: &'a str,
    /// The image.
    pub image: &'a str,
    /// In place of the image's own program; the image's if there is none.
    pub command: &'a [&'a str],
    /// Words behind that.
    pub arguments: &'a [&'a str],
    /// User and group; those of the image if there is none.
    pub user: Option<i64>,
    /// Its capabilities; it gets no others.
    pub capabilities: &'a [&'a str],
    /// Folders of the host, each with where it is in the container.
    pub folders: &'a [(&'a Path, &'a str)],
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to standard output and standard error, each line with its stream's name in front.
    pub log: String,
}

impl Containerd {
    /// Import an archive of an image.
    pub fn import_archive(&self, host: &super::Host, archive: &Path) -> Result<()> {
        let socket = self.socket();
        let (socket, archive) = (text(&socket)?, text(archive)?);
        let args = ["--address", socket, "--namespace", "k8s.io", "images", "import"];
        let rest = ["--snapshotter", self.release.snapshotter(), archive];
        host.namespace.run("ctr", &[&args[..], &rest].concat()).map(drop)
    }

    /// Run a container to its end, with a root that it can't write to and no way to more privileges.
    pub fn run_to_end(&self, sandbox: &Sandbox, wanted: &Expected<'_>) -> Result<Ended> {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let id = |number: i64| Int64Value { value: number };
        let of_pod = sandbox.config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let log = format!("{}.log", wanted.name);
        let mut mounts = Vec::new();
        for (host_path, container_path) in wanted.folders {
            mounts.push(Mount {
                host_path: text(host_path)?.to_owned(),
                container_path: (*container_path).to_owned(),
                ..Default::default()
            });
        }
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata { name: wanted.name.to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: wanted.image.to_owned(), ..Default::default() }),
            command: words(wanted.command),
            args: words(wanted.arguments),
            mounts,
            log_path: log.clone(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    capabilities: Some(Capability {
                        add_capabilities: words(wanted.capabilities),
                        drop_capabilities: words(&["ALL"]),
                        ..Default::default()
                    }),
                    run_as_user: wanted.user.map(id),
                    run_as_group: wanted.user.map(id),
                    readonly_rootfs: true,
                    no_new_privs: true,
                    namespace_options: of_pod.and_then(|context| context.namespace_options.clone()),
                    ..Default::default()
                }),
                resources: Some(LinuxContainerResources {
                    oom_score_adj: 1000,
                    ..Default::default()
                }),
            }),
            ..Default::default()
        };
        let mut client = self.client.clone();
        let code = self.runtime.block_on(async {
            let request = CreateContainerRequest {
                pod_sandbox_id: sandbox.pod.id.clone(),
                config: Some(config),
                sandbox_config: Some(sandbox.config.clone()),
            };
            let container_id = client.create_container(request).await?.into_inner().container_id;
            let request = StartContainerRequest { container_id: container_id.clone() };
            client.start_container(request).await?;
            for _ in 0..1200 {
                let request =
                    ContainerStatusRequest { container_id: container_id.clone(), verbose: false };
                let status = client.container_status(request).await?.into_inner().status;
                let status = status.context("a container without a status")?;
                if status.state == ContainerState::ContainerExited as i32 {
                    return Ok(status.exit_code);
                }
                thread::sleep(Duration::from_millis(50));
            }
            bail!("{} has not ended after a minute", wanted.name)
        })?;
        let log = Path::new(&sandbox.config.log_directory).join(log);
        let log = fs::read_to_string(&log).with_context(|| log.display().to_string())?;
        // The time is in front of each line.
        let lines: Vec<_> = log.lines().filter_map(|line| Some(line.split_once(' ')?.1)).collect();
        let log = lines.join("\n");
        Ok(Ended { code, log })
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path that is not UTF-8")
}
