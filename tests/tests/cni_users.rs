//! Pods with users of their own (`hostUsers: false`): ids in rules are those that the kernel will
//! see.

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::cni::{Call, Host, Pod, Reply, mesh};
use millrace_tests::wire::{Dial, Identity, Outcome, Proto};
use serde_json::json;

/// The first of the machine's ids that the pod has.
const FIRST: u32 = 200_000;

/// A process in user and network namespaces of its own; both end with it.
struct Users {
    child: Child,
    pod: Pod,
}

impl Users {
    fn new(host: &Host, name: &str) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--user", "--net", "sh", "-c", "echo ready; read -r line; exec sleep 1000"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = host.namespace.enter(|| command.spawn())??;
        let mut stdout = child.stdout.take().context("a pipe")?;
        let mut ready = [0; 6];
        std::io::Read::read_exact(&mut stdout, &mut ready)?;
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{map}", child.id());
            std::fs::write(&path, format!("0 {FIRST} 65536")).context(path)?;
        }
        child.stdin.take().context("a pipe")?.write_all(b"\n")?;
        let netns = format!("/run/netns-{name}");
        let source = format!("/proc/{}/ns/net", child.id());
        let mounted = format!("touch {netns} && mount --bind {source} {netns}");
        host.namespace.run("sh", &["-c", &mounted])?;
        let pod = Pod { id: name.to_owned(), name: name.to_owned(), netns: netns.into() };
        let users = Self { child, pod };
        host.inside(&users.pod, |inside| {
            inside.run("sysctl", &["-qw", "net.ipv4.ip_unprivileged_port_start=0"])?;
            inside.ip("link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth1 up\n\
                 addr add 10.1.0.2/24 dev eth0\nlink set eth0 up")
        })?;
        Ok(users)
    }

    /// Connect as a user of the pod's own, and say who answered.
    fn dial(&self, host: &Host, id: u32, to: &str) -> Result<Outcome> {
        let request = Dial {
            identity: Identity { uid: id, gid: id },
            proto: Proto::Tcp,
            from: None,
            from_port: None,
            transparent_mark: None,
            to: to.parse()?,
            timeout_ms: 2000,
        };
        let json = serde_json::to_string(&request)?;
        let probe = binary::probe()?;
        let pid = self.child.id().to_string();
        let probe = probe.to_str().context("a path")?;
        let words = ["--target", &pid, "--user", "--net", "--setuid", "0", "--setgid", "0"];
        let text =
            host.namespace.run("nsenter", &[&words[..], &[probe, "dial", &json]].concat())?;
        serde_json::from_str(&text).with_context(|| text)
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Verify that with each backend the pod's user 1337 is the proxy, whose connections are left
/// alone, that its user 1000 is captured, and that CHECK and DEL work there too.
#[test]
fn ids_are_those_that_the_kernel_sees() -> Result<()> {
    let host = Host::new()?;
    for backend in ["nftables", "iptables", "auto"] {
        let users = Users::new(&host, &format!("users-{backend}"))?;
        let call =
            Call::new(&host, "ADD", &users.pod, mesh(&[])).with_key("backend", json!(backend));
        let reply = call.run(&host)?;
        reply.success()?;
        assert_eq!(reply.lines()?.pop().context("a line")?["userNamespace"], true);
        let _proxy = host.proxy(&users.pod)?;
        // Nobody is at that address: the proxy's own connection goes there and fails.
        let out = users.dial(&host, 1000, "10.1.0.9:80")?;
        let Outcome::Answered { answer, .. } = &out else { anyhow::bail!("{backend}: {out:?}") };
        assert_eq!((answer.name.as_str(), answer.port), ("proxy", 15001), "{backend}");
        let own = users.dial(&host, 1337, "10.1.0.9:80")?;
        ensure!(matches!(own, Outcome::Failed(_)), "{backend}: {own:?}");
        call.clone().to("CHECK").run(&host)?.success()?;
        let again: Reply = call.run(&host)?;
        assert_eq!(again.lines()?.pop().context("a line")?["changed"], false, "{backend}");
        call.to("DEL").run(&host)?.success()?;
        let rules = host.rules(&users.pod)?.to_lowercase();
        ensure!(!rules.contains("millrace"), "{backend}: {rules}");
    }
    Ok(())
}
