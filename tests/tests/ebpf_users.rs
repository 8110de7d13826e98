//! Pods with users of their own (`hostUsers: false`): the ids of a policy are the pod's, those that
//! the programs see are the machine's.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_tests::binary;
use millrace_tests::capture::{millrace, ran};
use millrace_tests::ebpf::{APPLY, Cgroup, FOLDER, load};
use millrace_tests::netns::Namespace;
use millrace_tests::process::Listeners;
use millrace_tests::topology::ROOT;
use millrace_tests::wire::{Dial, Failure, Identity, Listen, Outcome, Proto, Serve};
use serde_json::Value;

/// The first of the machine's ids that the pod has.
const FIRST: u32 = 300_000;

/// A process in user and network namespaces of its own; both end with it.
struct Users {
    child: Child,
    pod: Namespace,
    owner: File,
}

impl Users {
    fn new(host: &Namespace) -> Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--user", "--net", "sh", "-c", "echo ready; read -r line; exec sleep 1000"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = host.enter(|| command.spawn())??;
        let mut ready = [0; 6];
        child.stdout.take().context("a pipe")?.read_exact(&mut ready)?;
        for map in ["uid_map", "gid_map"] {
            let path = format!("/proc/{}/{map}", child.id());
            std::fs::write(&path, format!("0 {FIRST} 65536")).context(path)?;
        }
        child.stdin.take().context("a pipe")?.write_all(b"\n")?;
        let pod = host.sibling(File::open(format!("/proc/{}/ns/net", child.id()))?)?;
        let owner = File::open(format!("/proc/{}/ns/user", child.id()))?;
        let users = Self { child, pod, owner };
        users.pod.ip("link set lo up\nlink add eth0 type veth peer name eth1\n\
             link set eth1 up\naddr add 10.1.0.2/24 dev eth0\nlink set eth0 up\n")?;
        Ok(users)
    }

    /// Connect as a user of the pod's own.
    fn dial(&self, id: u32, to: &str) -> Result<Outcome> {
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
        let mut command = Command::new("nsenter");
        let users = format!("/proc/{}/fd/{}", std::process::id(), self.owner.as_raw_fd());
        command.args([format!("--user={users}"), format!("--net={}", self.pod.path().display())]);
        command.args(["--setuid", "0", "--setgid", "0"]).arg(binary::probe()?);
        let output = command.args(["dial", &json]).output()?;
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))
    }
}

impl Users {
    /// The namespaces stay.
    fn end_process(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Users {
    fn drop(&mut self) {
        let _killed = self.child.kill();
        let _status = self.child.wait();
    }
}

/// Verify that the pod's user 1337 is the proxy, and that an id that the pod has not is an error.
#[test]
fn ids_are_those_of_the_pod() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Namespace::new()?;
    load(&host)?;
    let users = Users::new(&host)?;
    let (code, said) = ran(&users.pod, &mut millrace(APPLY)?)?;
    ensure!(code == Some(0), "{said}");
    let listen =
        vec![Listen { proto: Proto::Tcp, addr: "0.0.0.0:15001".parse()?, transparent: false }];
    let serve = Serve { name: "proxy".to_owned(), identity: ROOT, listen };
    let _proxy = Listeners::start(&users.pod, &serve)?;
    // Nobody is at that address: the proxy's own connection goes there and fails.
    match users.dial(1000, "10.1.0.9:80")? {
        Outcome::Answered { answer, .. } if answer.name == "proxy" => {}
        other => bail!("{other}"),
    }
    let own = users.dial(1337, "10.1.0.9:80")?;
    let failed = matches!(&own, Outcome::Failed(Failure::TimedOut | Failure::Unreachable));
    ensure!(failed, "the proxy's own connection: {own}");
    // The question is asked, and answered, with the pod's ids.
    for (uid, port) in [("uid=1000", Value::from(15001)), ("uid=1337", Value::Null)] {
        let explain = ["explain", "--live", "--bpffs", FOLDER, "--output", "json"];
        let explain = [&explain[..], &["--from", uid, "--to", "10.1.0.9:80/tcp"]].concat();
        let (code, said) = ran(&users.pod, &mut millrace(explain)?)?;
        let found: Value = serde_json::from_str(&said).with_context(|| said.clone())?;
        ensure!(code == Some(0) && found["fate"]["port"] == port, "{uid}: {said}");
    }
    let nobody = [&APPLY[..], &["--proxy-uid", "70000"]].concat();
    let (code, said) = ran(&users.pod, &mut millrace(nobody)?)?;
    ensure!(
        code == Some(1) && said.contains("user 70000 (flag --proxy-uid) is not mapped"),
        "{said}"
    );
    Ok(())
}

/// Verify that a pod whose users have no process yet, as when a runtime makes it, is captured, with its
/// own ids, and leaves.
#[test]
fn a_pod_without_a_process() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Namespace::new()?;
    load(&host)?;
    let mut users = Users::new(&host)?;
    users.end_process()?;
    let (code, said) = ran(&users.pod, &mut millrace(APPLY)?)?;
    ensure!(code == Some(0), "{said}");
    let listen =
        vec![Listen { proto: Proto::Tcp, addr: "0.0.0.0:15001".parse()?, transparent: false }];
    let serve = Serve { name: "proxy".to_owned(), identity: ROOT, listen };
    let _proxy = Listeners::start(&users.pod, &serve)?;
    match users.dial(1000, "10.1.0.9:80")? {
        Outcome::Answered { answer, .. } if answer.name == "proxy" => {}
        other => bail!("{other}"),
    }
    let own = users.dial(1337, "10.1.0.9:80")?;
    ensure!(matches!(own, Outcome::Failed(_)), "the proxy's own connection: {own}");
    let status = ["status", "--bpffs", FOLDER, "--proxy-uid", "1337"];
    let (code, said) = ran(&users.pod, &mut millrace(status)?)?;
    ensure!(code == Some(0), "{said}");
    let (code, said) = ran(&users.pod, &mut millrace(["cleanup", "--bpffs", FOLDER])?)?;
    ensure!(code == Some(0) && said.contains("leaves eBPF capture"), "{said}");
    Ok(())
}

/// Verify that pods with users of their own are handed over to rules that know their ids.
#[test]
fn handed_over_to_rules() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let host = Namespace::new()?;
    load(&host)?;
    let users = Users::new(&host)?;
    let (code, said) = ran(&users.pod, &mut millrace(APPLY)?)?;
    ensure!(code == Some(0), "{said}");
    let named = ["apply", "--netns", &users.pod.path().display().to_string(), "--bpffs", FOLDER];
    let named = [&named[..], &["--backend", "iptables-nft"]].concat();
    let (code, said) = ran(&host, &mut millrace(named)?)?;
    ensure!(code == Some(1) && said.contains("--backend nftables first"), "{said}");
    let unload = ["node-bpf", "unload", "--to", "nftables", "--bpffs", FOLDER];
    let (code, said) = ran(&host, &mut millrace(unload)?)?;
    ensure!(code == Some(0) && said.starts_with("nftables captures 1 pod\n"), "{said}");
    let listen =
        vec![Listen { proto: Proto::Tcp, addr: "0.0.0.0:15001".parse()?, transparent: false }];
    let serve = Serve { name: "proxy".to_owned(), identity: ROOT, listen };
    let _proxy = Listeners::start(&users.pod, &serve)?;
    let out = users.dial(1000, "10.1.0.9:80")?;
    ensure!(matches!(out, Outcome::Answered { .. }), "{out}");
    let own = users.dial(1337, "10.1.0.9:80")?;
    ensure!(matches!(own, Outcome::Failed(_)), "the proxy's own connection: {own}");
    Ok(())
}
