//! DEL never fails, whatever stands in its way: a pod that can't be deleted helps nobody.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_host::lock::RunLock;
use millrace_tests::binary;
use millrace_tests::cni::{Call, Host, Pod, mesh};
use nix::mount::{MsFlags, mount};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

const CAPTURED: &str = "table inet millrace";

/// The code of an error that is a fault of the plugin itself.
const FAULT: u64 = 103;

/// A host with a captured pod, and the DEL of it.
fn captured() -> Result<(Host, Pod, Call)> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let add = Call::new(&host, "ADD", &pod, mesh(&[]));
    add.run(&host)?.success()?;
    Ok((host, pod, add.to("DEL")))
}

/// Verify that what can't be read, and nobody who reads, keeps no pod: what is known from the
/// variables and from the notes, where they are as usual, is enough to take the rules away.
#[test]
fn without_input_and_without_outputs() -> Result<()> {
    let plugin = binary::millrace_cni()?;
    let plugin = plugin.to_str().context("a path")?;
    for how in [
        "exec \"$0\" <&-",
        "exec \"$0\" </",
        "printf '{\"name\":\"\\377\\376\"}' | \"$0\"",
        "head -c 3000000 /dev/zero | \"$0\"",
        "exec \"$0\" </dev/null >&-",
        "exec \"$0\" </dev/null 2>&-",
        "exec \"$0\" </dev/null >/dev/full 2>/dev/full",
    ] {
        let host = Host::new()?;
        let pod = host.pod()?;
        let add = Call::new(&host, "ADD", &pod, mesh(&[])).without_key("state_dir");
        add.run(&host)?.success()?;
        let del = add.to("DEL");
        let mut shell = Command::new("sh");
        shell.args(["-c", how, plugin]).envs(del.env.iter().map(|(name, value)| (name, value)));
        let output = host.namespace.output(shell.stdin(Stdio::null()))?;
        ensure!(output.status.success(), "{how}: {output:?}");
        ensure!(output.stdout.is_empty(), "{how}: {output:?}");
        ensure!(!host.rules(&pod)?.contains("millrace"), "{how}");
    }
    Ok(())
}

/// Verify that no file of `/etc` is waited for, by no command: annotations tell enough of the pod.
#[test]
fn files_of_etc_that_nobody_writes_to() -> Result<()> {
    for path in ["/etc/resolv.conf", "/etc/hosts", "/etc/passwd", "/etc/group"] {
        let host = Host::new()?;
        let pod = host.pod()?;
        let fifo = host.folder().join("fifo");
        mkfifo(&fifo, Mode::S_IRWXU)?;
        host.namespace.enter(|| {
            let none: Option<&str> = None;
            mount(Some(&fifo), path, none, MsFlags::MS_BIND, none)
        })??;
        let add = Call::new(&host, "ADD", &pod, mesh(&[])).with_key("deadline", json!("10s"));
        for command in ["ADD", "CHECK"] {
            let reply = add.clone().to(command).run(&host)?;
            reply.success().with_context(|| format!("{path}: {command}"))?;
        }
        let deleted = add.to("DEL").logged(&host)?;
        ensure!(deleted["msg"] == "deleted" && deleted["removed"] == true, "{path}: {deleted}");
    }
    Ok(())
}

/// Verify that other requests say so when standard input can't be read, with code 5.
#[test]
fn others_say_that_input_cannot_be_read() -> Result<()> {
    let (host, _pod, del) = captured()?;
    for command in ["ADD", "CHECK", "GC", "STATUS", "VERSION"] {
        let call = del.clone().to(command);
        // A folder can't be read.
        let said = call.run_under(&host, &["sh", "-c", "exec \"$0\" </"])?.failure(5)?;
        ensure!(said.contains("standard input"), "{command}: {said}");
    }
    Ok(())
}

/// Verify that a DEL that may not do anything says in its log what is left behind.
#[test]
fn without_privilege() -> Result<()> {
    for drop in ["-sys_admin", "-net_admin"] {
        let (host, pod, del) = captured()?;
        let (bounding, own) = (format!("--bounding-set={drop}"), format!("--inh-caps={drop}"));
        let reply = del.run_under(&host, &["setpriv", &bounding, &own])?;
        reply.success()?;
        ensure!(reply.log.contains("rules are left behind"), "{drop}: {reply:?}");
        ensure!(host.rules(&pod)?.contains(CAPTURED), "{drop}");
        // With the privilege the next one takes them away.
        del.run(&host)?.success()?;
        ensure!(!host.rules(&pod)?.contains("millrace"), "{drop}");
    }
    Ok(())
}

/// Verify that a plugin without room for descriptors fails or does its work, and has no fault; what DEL
/// leaves behind, GC still knows.
#[test]
fn without_room_for_descriptors() -> Result<()> {
    let (host, pod, del) = captured()?;
    let other = host.pod()?;
    for room in 5..16 {
        let limit = format!("--nofile={room}");
        let add = Call::new(&host, "ADD", &other, mesh(&[]));
        let reply = add.run_under(&host, &["prlimit", &limit])?;
        ensure!(!reply.log.contains("panicked"), "{room}: {reply:?}");
        if reply.code != Some(0) {
            let error: Value = serde_json::from_str(&reply.text).context(format!("{reply:?}"))?;
            ensure!(error["code"].is_u64() && error["code"] != FAULT, "{room}: {reply:?}");
        }
        del.run_under(&host, &["prlimit", &limit])?.success()?;
        if host.rules(&pod)?.contains(CAPTURED) {
            ensure!(fs::read_dir(host.state_dir())?.count() > 0, "{room}");
        }
    }
    del.run(&host)?.success()?;
    ensure!(!host.rules(&pod)?.contains("millrace"));
    Ok(())
}

/// Verify that a run that doesn't end is waited for, but not for ever: ADD until its deadline,
/// when it fails with code 11, and DEL for a moment.
#[test]
fn another_run_does_not_end() -> Result<()> {
    let (host, pod, del) = captured()?;
    let other = host.pod()?;
    let lock = |pod: &Pod| {
        host.inside(pod, |inside| Ok(inside.enter(|| RunLock::take(Instant::now()))??.alone()?))
    };
    let (_held, _held_too) = (lock(&pod)?, lock(&other)?);
    let add = Call::new(&host, "ADD", &other, mesh(&[])).with_key("deadline", json!("700ms"));
    let began = Instant::now();
    let said = add.run(&host)?.failure(11)?;
    ensure!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    ensure!(said.contains(&other.name) && said.contains("another run"), "{said}");
    ensure!(!said.contains("--wait") || said.contains("tried again"), "{said}");
    ensure!(!host.rules(&other)?.contains("millrace"));
    let reply = del.run_by(&host, Duration::from_secs(2))?;
    reply.success()?;
    ensure!(reply.log.contains("rules are left behind"), "{reply:?}");
    // GC goes on with the others, and says which one it could not see to.
    let free = host.pod()?;
    Call::new(&host, "ADD", &free, mesh(&[])).run(&host)?.success()?;
    Call::new(&host, "ADD", &pod, mesh(&[])).with_key("deadline", json!("1ms")).run(&host)?;
    let gc = del.to("GC").with_key("cni.dev/valid-attachments", json!([]));
    let said = gc.run(&host)?.failure(5)?;
    ensure!(said.contains(&pod.id) && !said.contains(&free.id), "{said}");
    ensure!(!host.rules(&free)?.contains("millrace") && host.rules(&pod)?.contains(CAPTURED));
    Ok(())
}

/// Verify that DEL succeeds when any one of the calls to the kernel that it makes fails, and any
/// kind of them always does.
#[test]
fn whatever_the_kernel_refuses() -> Result<()> {
    let calls = [
        ("socket", "EMFILE"),
        ("bind", "EACCES"),
        ("setsockopt", "EPERM"),
        ("sendto", "ENOBUFS"),
        ("sendmsg", "ENOBUFS"),
        ("recvfrom", "EIO"),
        ("recvmsg", "EIO"),
        ("setns", "EPERM"),
        ("statx", "EIO"),
        ("getdents64", "EIO"),
        ("unlink", "EROFS"),
        ("ioctl", "EPERM"),
        ("clone", "EAGAIN"),
        ("clone3", "EAGAIN"),
    ];
    let (host, pod, del) = captured()?;
    for (call, error) in calls {
        for when in ["1", "2", "3", "5", "8", "1+"] {
            let inject = format!("inject={call}:error={error}:when={when}");
            let trace = format!("trace={call}");
            let words = [
                "timeout",
                "60",
                "strace",
                "-f",
                "-qqq",
                "-o",
                "/dev/null",
                "-e",
                &trace,
                "-e",
                &inject,
            ];
            let reply = del.run_under(&host, &words)?;
            ensure!(reply.code == Some(0) && reply.text.is_empty(), "{inject}: {reply:?}");
        }
    }
    del.run(&host)?.success()?;
    ensure!(!host.rules(&pod)?.contains("millrace"));
    Ok(())
}

/// Verify that a fault of the plugin is an error like any other to the runtime: JSON on standard
/// output with a code of its own, and where it was in the log.
#[test]
fn a_fault_is_an_error_in_json() -> Result<()> {
    let (host, _pod, del) = captured()?;
    // No thread can be started, which is never expected.
    let words = [
        "strace",
        "-qqq",
        "-o",
        "/dev/null",
        "-e",
        "trace=clone,clone3",
        "-e",
        "inject=clone,clone3:error=EAGAIN",
    ];
    let reply = del.to("STATUS").run_under(&host, &words)?;
    let said = reply.failure(FAULT)?;
    ensure!(said.contains("fault"), "{said}");
    let fault = reply.lines()?.into_iter().find(|line| line["msg"].to_string().contains("fault: "));
    ensure!(fault.is_some(), "{reply:?}");
    Ok(())
}

/// Verify that DEL of a pod that is gone takes nothing from the pod that its path leads to by now,
/// whether the note on the one that is gone is there, can't be read or is missing.
#[test]
fn a_path_that_leads_to_another_pod() -> Result<()> {
    let host = Host::new()?;
    let (old, other) = (host.pod()?, host.pod()?);
    let path = host.folder().join("path");
    let link = |pod: &Pod| -> Result<()> {
        let _none = fs::remove_file(&path);
        Ok(symlink(&pod.netns, &path)?)
    };
    Call::new(&host, "ADD", &other, mesh(&[])).run(&host)?.success()?;
    let add = Call::new(&host, "ADD", &old, mesh(&[]));
    let add = add.with_env("CNI_NETNS", path.to_str().context("a path")?);
    let note = host.state_dir().join(format!("net:{}:eth0", old.id));
    for broken in [None, Some("{}"), Some("")] {
        link(&old)?;
        add.run(&host)?.success()?;
        link(&other)?;
        if let Some(text) = broken {
            fs::write(&note, text)?;
        }
        add.clone().to("DEL").run(&host)?.success()?;
        ensure!(host.rules(&other)?.contains(CAPTURED), "{broken:?}");
        ensure!(!note.exists(), "{broken:?}");
    }
    // A note that can't be read may be the one on the pod that is there.
    fs::write(host.state_dir().join(format!("net:{}:eth0", other.id)), "{}")?;
    add.clone().to("DEL").run(&host)?.success()?;
    ensure!(host.rules(&other)?.contains(CAPTURED));
    link(&old)?;
    add.run(&host)?.success()?;
    add.to("DEL").run(&host)?.success()?;
    ensure!(!host.rules(&old)?.contains("millrace"));
    Ok(())
}

/// Verify that the same goes where nobody is noted, and where the notes can't be listed: the addresses that
/// the pod had tell whether the namespace is its own.
#[test]
fn a_path_that_leads_to_another_pod_without_notes() -> Result<()> {
    let host = Host::new()?;
    let (old, other) = (host.pod()?, host.pod()?);
    let captured = |pod: &Pod, address: &str| -> Result<Call> {
        let add = Call::new(&host, "ADD", pod, mesh(&[])).given(&host, pod, address)?;
        add.run(&host)?.success()?;
        Ok(add)
    };
    let (add, others) = (captured(&old, "10.9.0.2/24")?, captured(&other, "10.9.0.3/24")?);
    let del = add.clone().to("DEL").with_env("CNI_NETNS", &other.netns.display().to_string());
    for lost in ["rm -r \"$0\"", "touch \"$0\""] {
        host.namespace.run("sh", &["-c", lost, &host.state_dir().display().to_string()])?;
        for call in [&del, &del.clone().without_key("prevResult")] {
            let reply = call.run(&host)?;
            reply.success()?;
            ensure!(host.rules(&other)?.contains(CAPTURED), "{lost}: {reply:?}");
            ensure!(reply.log.contains("left behind"), "{lost}: {reply:?}");
        }
    }
    fs::remove_file(host.state_dir())?;
    // Its own namespace each of them leaves, and one without rules nothing is said of.
    for (pod, add) in [(&old, add), (&other, others)] {
        add.clone().to("DEL").run(&host)?.success()?;
        ensure!(!host.rules(pod)?.contains("millrace"));
        let reply = add.to("DEL").without_key("prevResult").run(&host)?;
        reply.success()?;
        ensure!(!reply.log.contains("left behind"), "{reply:?}");
    }
    Ok(())
}

/// Verify that GC leaves a pod captured when the note on it can't be read, and says which that is.
#[test]
fn a_note_that_cannot_be_read_and_gc() -> Result<()> {
    let (host, pod, del) = captured()?;
    let gone = del.clone().to("ADD").with_env("CNI_CONTAINERID", "gone");
    gone.run(&host)?.success()?;
    fs::write(host.state_dir().join(format!("net:{}:eth0", pod.id)), "{")?;
    let valid = json!([{ "containerID": pod.id, "ifname": "eth0" }]);
    let gc = del.to("GC").with_key("cni.dev/valid-attachments", valid);
    let said = gc.run(&host)?.failure(5)?;
    ensure!(said.contains(&pod.id) && said.contains("can't be read"), "{said}");
    ensure!(host.rules(&pod)?.contains(CAPTURED));
    Ok(())
}

/// Verify that without notes DEL of one of two networks leaves the pod captured, and that of the
/// last one does not.
#[test]
fn one_of_two_networks_without_notes() -> Result<()> {
    let (host, pod, del) = captured()?;
    let del = del.given(&host, &pod, "10.9.0.2/24")?;
    fs::remove_dir_all(host.state_dir())?;
    host.inside(&pod, |inside| {
        inside.ip("link add net1 type veth peer name out1\nlink set net1 up\naddress add 10.9.1.2/24 dev net1")
    })?;
    let reply = del.clone().with_env("CNI_IFNAME", "net1").run(&host)?;
    reply.success()?;
    ensure!(reply.log.contains("eth0") && host.rules(&pod)?.contains(CAPTURED), "{reply:?}");
    host.inside(&pod, |inside| inside.ip("link delete net1"))?;
    del.run(&host)?.success()?;
    ensure!(!host.rules(&pod)?.contains("millrace"));
    Ok(())
}

/// Verify that no name of a network makes DEL remove a file outside its folder.
#[test]
fn a_networks_name_that_is_a_path() -> Result<()> {
    let (host, pod, del) = captured()?;
    let outside = host.folder().join(format!("outside:{}:eth0", pod.id));
    fs::write(&outside, "")?;
    for name in [host.folder().join("outside").display().to_string(), "../outside".to_owned()] {
        let reply = del.clone().with_key("name", json!(name)).run(&host)?;
        reply.success()?;
        ensure!(outside.exists() && reply.log.contains("left behind"), "{name}: {reply:?}");
    }
    Ok(())
}
