//! Pods with users of their own (`hostUsers: false`): ids in rules are those that the kernel will
//! see.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::binary;
use millrace_tests::capture::{millrace, ran};
use millrace_tests::cni::{Call, Host, Pod, Reply, mesh};
use millrace_tests::ebpf::{Cgroup, FOLDER, load};
use millrace_tests::wire::{Dial, Identity, Outcome, Proto};
use serde_json::json;

/// The first of the machine's ids that the pod has.
const FIRST: u32 = 200_000;

/// A process in user and network namespaces of its own; both end with it.
struct Users {
    child: Child,
    pod: Pod,
    owner: File,
}

/// Start a program that says when it is ready.
fn start(host: &Host, command: &mut Command) -> Result<Child> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = host.namespace.enter(|| command.spawn())??;
    let mut ready = [0; 6];
    child.stdout.take().context("a pipe")?.read_exact(&mut ready)?;
    Ok(child)
}

impl Users {
    fn new(host: &Host, name: &str) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--user", "sh", "-c", "echo ready; read -r line"]);
        let mut holder = start(host, &mut command)?;
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{map}", holder.id());
            std::fs::write(&path, format!("0 {FIRST} 65536")).context(path)?;
        }
        // As with runtimes the network namespace is made by the pod's root: its files belong to it.
        let mut command = Command::new("nsenter");
        command.arg(format!("--user=/proc/{}/ns/user", holder.id()));
        command.args(["--setuid", "0", "--setgid", "0", "unshare", "--net"]);
        command.args(["sh", "-c", "echo ready; exec sleep 1000"]);
        let child = start(host, &mut command)?;
        holder.stdin.take().context("a pipe")?.write_all(b"\n")?;
        holder.wait()?;
        let netns = format!("/run/netns-{name}");
        let source = format!("/proc/{}/ns/net", child.id());
        let mounted = format!("touch {netns} && mount --bind {source} {netns}");
        host.namespace.run("sh", &["-c", &mounted])?;
        let pod = Pod { id: name.to_owned(), name: name.to_owned(), netns: netns.into() };
        let owner = File::open(format!("/proc/{}/ns/user", child.id()))?;
        let users = Self { child, pod, owner };
        host.inside(&users.pod, |inside| {
            inside.run("sysctl", &["-qw", "net.ipv4.ip_unprivileged_port_start=0"])?;
            inside.ip("link set lo up\nlink add eth0 type veth peer name eth1\nlink set eth1 up\n\
                 addr add 10.1.0.2/24 dev eth0\nlink set eth0 up")
        })?;
        Ok(users)
    }

    /// The namespaces stay, as when a runtime has made them and no container has started yet.
    fn end_process(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// That its user 1000 is captured, and its user 1337 is the proxy.
    fn are_captured(&self, host: &Host, by: &str) -> Result<()> {
        let _proxy = host.proxy(&self.pod)?;
        // Nobody is at that address: the proxy's own connection goes there and fails.
        let out = self.dial(host, 1000, "10.1.0.9:80")?;
        let Outcome::Answered { answer, .. } = &out else { anyhow::bail!("{by}: {out:?}") };
        ensure!((answer.name.as_str(), answer.port) == ("proxy", 15001), "{by}: {out:?}");
        let own = self.dial(host, 1337, "10.1.0.9:80")?;
        ensure!(matches!(own, Outcome::Failed(_)), "{by}: {own:?}");
        Ok(())
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
        let probe = probe.to_str().context("a path")?;
        let users = format!("--user=/proc/{}/fd/{}", std::process::id(), self.owner.as_raw_fd());
        let net = format!("--net={}", self.pod.netns.display());
        let words = [&users, &net, "--setuid", "0", "--setgid", "0"];
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
        users.are_captured(&host, backend)?;
        call.clone().to("CHECK").run(&host)?.success()?;
        let again: Reply = call.run(&host)?;
        assert_eq!(again.lines()?.pop().context("a line")?["changed"], false, "{backend}");
        call.to("DEL").run(&host)?.success()?;
        let rules = host.rules(&users.pod)?.to_lowercase();
        ensure!(!rules.contains("millrace"), "{backend}: {rules}");
    }
    Ok(())
}

/// Verify that with the node's programs, and with rules, a pod is captured by its own ids before it has
/// a process, and that an id that it has not is named.
#[test]
fn before_there_is_a_process() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Host::new()?;
    load(&host.namespace)?;
    for backend in ["ebpf", "auto", "nftables", "iptables"] {
        let mut users = Users::new(&host, &format!("bare-{backend}"))?;
        users.end_process()?;
        let call = Call::new(&host, "ADD", &users.pod, mesh(&[]));
        let call = call.with_key("backend", json!(backend)).with_key("bpffs", json!(FOLDER));
        let nobody = call.clone().with_key("proxy_uid", json!(70_000));
        let error = nobody.run(&host)?.failure(100)?;
        let named = "user 70000 (configuration key proxy_uid) is not mapped";
        ensure!(error.contains(named) && error.contains("0-65535"), "{backend}: {error}");
        let reply = call.run(&host)?;
        reply.success()?;
        let by = reply.lines()?.pop().context("a line")?["by"].clone();
        ensure!((by == "eBPF") == matches!(backend, "ebpf" | "auto"), "{backend}: {by}");
        users.are_captured(&host, backend)?;
        for word in ["CHECK", "DEL"] {
            call.clone().to(word).run(&host)?.success()?;
        }
        let rules = host.rules(&users.pod)?.to_lowercase();
        ensure!(!rules.contains("millrace"), "{backend}: {rules}");
    }
    Ok(())
}

/// Verify that what is done to such a pod from outside by hand is done among its users: rules name its
/// ids, are proved by its ids, and go.
#[test]
fn from_outside_by_hand() -> Result<()> {
    let host = Host::new()?;
    let ways = [
        ["--backend", "nftables"],
        ["--backend", "iptables-nft"],
        ["--iptables", "nft"],
        ["--iptables", "legacy"],
    ];
    for (way, number) in ways.iter().zip(0..) {
        let mut users = Users::new(&host, &format!("hand-{number}"))?;
        users.end_process()?;
        let netns = users.pod.netns.display().to_string();
        let run = |words: &[&str]| -> Result<(Option<i32>, String)> {
            let words = [&words[..1], &["--netns", &netns], &words[1..]].concat();
            ran(&host.namespace, &mut millrace(words)?)
        };
        let good = |words: &[&str]| -> Result<String> {
            let (code, said) = run(words)?;
            ensure!(code == Some(0), "{way:?}: {words:?}: {said}");
            Ok(said)
        };
        let (code, said) = run(&["apply", way[0], way[1], "--proxy-uid", "70000"])?;
        let named = "user 70000 (flag --proxy-uid) is not mapped";
        ensure!(code == Some(1) && said.contains(named), "{way:?}: {said}");
        good(&["apply", way[0], way[1]])?;
        ensure!(good(&["apply", way[0], way[1]])?.contains("no change"), "{way:?}");
        users.are_captured(&host, way[1])?;
        good(&["status"])?;
        for (uid, port) in [("uid=1000", "15001"), ("uid=1337", "leaves")] {
            let said = good(&["explain", "--from", uid, "--to", "10.1.0.9:80/tcp"])?;
            ensure!(said.contains(port), "{way:?}: {uid}: {said}");
        }
        let said = good(&["verify"])?;
        ensure!(said.contains(" 0 not,"), "{way:?}: {said}");
        good(&["cleanup"])?;
        let (code, said) = run(&["status"])?;
        ensure!(code == Some(3), "{way:?}: {said}");
    }
    Ok(())
}
