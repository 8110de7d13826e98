//! podman of Debian's package with its CNI backend, on a [`Host`].

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::containerd::remove_cgroups;
use super::image;
use super::{Host, List, Pod};
use crate::binary;

/// A podman with storage of its own; its containers end with it.
#[derive(Debug)]
pub struct Podman<'h> {
    host: &'h Host,
    folder: PathBuf,
    rootfs: PathBuf,
    cgroup: String,
}

impl<'h> Podman<'h> {
    /// A podman with these networks, the first of them its default.
    pub fn new(host: &'h Host, networks: &[&List]) -> Result<Self> {
        let folder = host.folder().join("podman");
        for part in ["net.d", "bin", "image"] {
            fs::create_dir_all(folder.join(part)).context("podman's folders")?;
        }
        binary::system("podman")?;
        for plugin in ["bridge", "host-local", "loopback"] {
            symlink(Path::new("/usr/lib/cni").join(plugin), folder.join("bin").join(plugin))?;
        }
        symlink(binary::millrace_cni()?, folder.join("bin/millrace-cni"))?;
        for list in networks {
            let text = json!({
                "cniVersion": list.version, "name": list.name, "plugins": list.plugins,
            });
            let path = folder.join("net.d").join(format!("{}.conflist", list.name));
            fs::write(path, text.to_string()).context("a network")?;
        }
        let first = networks.first().context("a network")?;
        let shown = folder.display();
        let settings = format!(
            "[containers]\n\
             default_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\n\
             [engine]\n\
             cgroup_manager = \"cgroupfs\"\n\
             events_logger = \"file\"\n\
             runtime = \"runc\"\n\
             [network]\n\
             network_backend = \"cni\"\n\
             cni_plugin_dirs = [\"{shown}/bin\"]\n\
             network_config_dir = \"{shown}/net.d\"\n\
             default_network = \"{}\"\n",
            first.name
        );
        fs::write(folder.join("containers.conf"), settings).context("podman's settings")?;
        let rootfs = image::root(&folder.join("image"))?;
        let cgroup = format!("millrace-podman-{}-{}", std::process::id(), first.name);
        Ok(Self { host, folder, rootfs, cgroup })
    }

    /// Run podman with these words; gives what it prints.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.host.namespace.output(&mut self.command(words))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "podman {}: {}\n{said}", words.join(" "), output.status);
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new("podman");
        command.env("CONTAINERS_CONF", self.folder.join("containers.conf"));
        command.arg("--root").arg(self.folder.join("data"));
        command.arg("--runroot").arg(self.folder.join("run"));
        command.arg("--tmpdir").arg(self.folder.join("tmp"));
        command.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]).args(words);
        command
    }

    /// Start a container that waits, on this network. Gives its network namespace.
    pub fn start(&self, name: &str, network: &str) -> Result<Pod> {
        self.start_with(name, network, &[])
    }

    /// Start one with users of its own, from this number of the machine's on: what is root there belongs to
    /// nobody else, and neither does its network namespace.
    pub fn start_among(&self, name: &str, network: &str, first: u32) -> Result<Pod> {
        let map = format!("0:{first}:65536");
        // Its root makes the files there that others are mounted on.
        let rootfs = self.rootfs.to_str().context("a path")?;
        let owner = format!("{first}:{first}");
        self.host.namespace.run("chown", &["--recursive", &owner, rootfs])?;
        self.start_with(name, network, &["--uidmap", &map, "--gidmap", &map])
    }

    fn start_with(&self, name: &str, network: &str, more: &[&str]) -> Result<Pod> {
        let rootfs = self.rootfs.to_str().context("a path")?;
        let cgroup = format!("/{}", self.cgroup);
        let words = ["run", "--detach", "--name", name, "--network", network];
        let cgroup = ["--cgroup-parent", &cgroup];
        let sysctl = ["--sysctl", "net.ipv4.ip_unprivileged_port_start=0"];
        let program = ["--rootfs", rootfs, "/bin/sleep", "2147483647"];
        let id = self.run(&[&words, more, &cgroup, &sysctl, &program].concat())?;
        let netns = self.run(&["inspect", "--format", "{{.NetworkSettings.SandboxKey}}", name])?;
        Ok(Pod { id, name: name.to_owned(), netns: netns.into() })
    }
}

impl Drop for Podman<'_> {
    fn drop(&mut self) {
        // There may be none.
        let _removed = self.run(&["rm", "--all", "--force", "--time", "0"]);
        let Ok(hierarchies) = fs::read_dir("/sys/fs/cgroup") else { return };
        for hierarchy in hierarchies.flatten() {
            remove_cgroups(&hierarchy.path().join(&self.cgroup));
        }
    }
}
