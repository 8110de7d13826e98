//! What is printed: where it can't be printed, what others have written that is in it, and what is not
//! text.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{Write as _, pipe};
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_host::ebpf::Target;
use millrace_tests::capture::{millrace, millrace_in_pod, ran};
use millrace_tests::cni::{Call, Host, mesh};
use millrace_tests::ebpf::{APPLY, Cgroup, FOLDER, enrol, loaded, mount_bpffs};
use millrace_tests::netns::Namespace;
use millrace_tests::topology::{Layout, Stack, Topology};
use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(20);

/// Run a command whose standard output is full, or whose reader has gone.
fn unread(topology: &Topology, args: &[&str], full: bool) -> Result<(Option<i32>, String)> {
    let mut command = millrace(args)?;
    command.stdin(Stdio::null()).stderr(Stdio::piped());
    if full {
        command.stdout(OpenOptions::new().write(true).open("/dev/full")?);
    } else {
        let (reader, writer) = pipe()?;
        drop(reader);
        command.stdout(writer);
    }
    let output = topology.pod.enter(|| command.spawn()?.wait_with_output())??;
    Ok((output.status.code(), String::from_utf8(output.stderr)?))
}

/// Verify that what was done is done, whether or not it can be printed; and that where printing is all,
/// it is an error that it can't be.
#[test]
fn nobody_reads_it() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let topology = Topology::new(Stack::V4, Layout::default())?;
    mount_bpffs(&topology.pod)?;
    let cgroup = Cgroup::path()?;
    let cgroup = cgroup.to_str().context("a path that is not UTF-8")?;
    let status = ["status", "--bpffs", FOLDER];
    let loads = ["node-bpf", "load", "--cgroup", cgroup, "--spares", "1"];
    let changes: [(&[&str], i32); 7] = [
        (&["apply", "--backend", "nftables"], 0),
        (&["cleanup"], 3),
        (&loads, 3),
        (&["apply", "--backend", "ebpf"], 0),
        (&["node-bpf", "gc"], 0),
        (&["cleanup"], 3),
        (&["node-bpf", "unload"], 3),
    ];
    for full in [true, false] {
        for (words, after) in changes {
            for json in [false, true] {
                let output = ["--bpffs", FOLDER, "--output", if json { "json" } else { "text" }];
                let (code, said) = unread(&topology, &[words, &output].concat(), full)?;
                ensure!(code == Some(0), "{words:?}: {said}");
                ensure!(said.contains("what was done can't be printed, but is done"), "{said}");
            }
            millrace_in_pod(&topology, &status, after)?;
        }
        for words in
            [&status[..], &["apply", "--dry-run", "--bpffs", FOLDER], &["explain", "--all"]]
        {
            let (code, said) = unread(&topology, words, full)?;
            ensure!(code == Some(1), "{words:?}: {said}");
            // Who reads no further, as `head`, has what it asked for.
            ensure!(said.contains("Error: standard output") == full, "{words:?}: {said}");
        }
    }
    let istio = ["istio-iptables", "-u", "1337", "-i", "*", "-b", "*"];
    ensure!(unread(&topology, &istio, true)?.0 == Some(0), "istio-iptables");
    Ok(())
}

/// Verify that comments, interfaces and files with control characters do nothing to a terminal, and are
/// in JSON what they are.
#[test]
fn what_others_have_written() -> Result<()> {
    let topology = Topology::new(Stack::V4, Layout::default())?;
    let comment = "red \u{1b}[31m\u{9b}2J gone \u{202e}";
    let rule = ["-t", "nat", "-A", "OUTPUT", "-p", "tcp", "--dport", "81", "-m", "comment"];
    let rule = [&rule[..], &["--comment", comment, "-j", "RETURN"]].concat();
    let output = topology.pod.output(Command::new("iptables-nft").args(rule))?;
    ensure!(output.status.success(), "{output:?}");
    topology.pod.ip("link add v\u{1b}[1m type veth peer name other")?;
    let to = ["--to", "10.71.0.10:81/tcp"];
    let live = [&["explain", "--live"][..], &to].concat();
    for words in [
        &live[..],
        &["explain", "--live", "--all"],
        &["diff", "live", "apply"],
        &["graph", "--live", "--format", "dot"],
        &["status"],
        &["explain", "--rules", "/no/such\u{1b}[31m"],
    ] {
        let output = topology.pod.output(&mut millrace(words)?)?;
        for text in [output.stdout, output.stderr] {
            let text = String::from_utf8(text)?;
            let acts = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
            ensure!(!text.contains(acts), "{words:?}: {text:?}");
        }
    }
    let said = millrace_in_pod(&topology, &live, 0)?;
    ensure!(said.contains("red \\u{1b}[31m"), "{said}");
    let json = millrace_in_pod(&topology, &[&live[..], &["--output", "json"]].concat(), 0)?;
    let found: Value = serde_json::from_str(&json)?;
    ensure!(found.to_string().contains("red \\u001b[31m\u{9b}2J gone \u{202e}"), "{json}");
    let acts = |c: char| (c.is_control() && c != '\n') || c == '\u{202e}';
    ensure!(!json.contains(acts), "{json:?}");
    Ok(())
}

/// Verify that a table that belongs to a process is said to, and no capability is missed.
#[test]
fn a_table_of_somebodys_own() -> Result<()> {
    let topology = Topology::new(Stack::V4, Layout::default())?;
    let mut command = Command::new("nft");
    command.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut owner = topology.pod.enter(|| command.spawn())??;
    let mut stdin = owner.stdin.take().context("a pipe")?;
    stdin.write_all(b"add table inet millrace { flags owner; }\n")?;
    let end = Instant::now() + PATIENCE;
    while !topology.pod.run("nft", &["list", "tables"])?.contains("millrace") {
        ensure!(Instant::now() < end, "the table is not made");
        std::thread::yield_now();
    }
    let said = millrace_in_pod(&topology, &["apply", "--backend", "nftables"], 1)?;
    ensure!(said.contains("table millrace is owned by the process that made it"), "{said}");
    ensure!(!said.contains("NET_ADMIN"), "{said}");
    drop(stdin);
    owner.wait()?;
    millrace_in_pod(&topology, &["apply", "--backend", "nftables"], 0).map(drop)
}

/// Verify that an interface whose name is no text keeps no pod from being captured, with its address.
#[test]
fn an_interface_that_is_not_utf_8() -> Result<()> {
    let (_cgroup, topology) = loaded(Stack::V4)?;
    for words in [&["link", "add"][..], &["addr", "add", "10.99.0.1/24", "dev"]] {
        let mut command = Command::new("ip");
        command.args(words).arg(OsStr::from_bytes(b"net\xff"));
        if words.first() == Some(&"link") {
            command.args(["type", "veth", "peer", "name", "other"]);
        }
        let output = topology.pod.output(&mut command)?;
        ensure!(output.status.success(), "{output:?}");
    }
    enrol(&topology, &[])?;
    let own = topology.pod.enter(Target::addresses)??.own;
    ensure!(own.contains(&IpAddr::from([10, 99, 0, 1])), "{own:?}");
    ensure!(millrace_in_pod(&topology, &APPLY, 0)?.contains("no change"), "twice is once");
    Ok(())
}

/// Verify that DNS capture that would capture nothing is said to, whatever the resolver's configuration
/// lacks.
#[test]
fn no_name_server_to_capture() -> Result<()> {
    let istio = ["istio-iptables", "-u", "1337", "-i", "*", "-b", "*", "--redirect-dns"];
    for (text, none) in [
        ("", true),
        ("search shop.svc\n", true),
        ("nameserver dns.example\n", true),
        ("nameserver fe80::1%eth0\n", true),
        ("nameserver 10.96.0.10\n", false),
    ] {
        let pod = Namespace::with_resolv_conf(Some(text))?;
        pod.ip("link set lo up\nlink add eth0 type veth peer name eth1\n\
             link set eth0 addrgenmode none\naddr add 10.1.0.2/24 dev eth0\nlink set eth0 up")?;
        let (code, said) = ran(&pod, &mut millrace(["apply", "--dns", "servers"])?)?;
        let told = said.contains("no name server is known whose family is captured");
        ensure!((code, told) == (Some(i32::from(none)), none), "{text:?}: {said}");
        let rules = pod.run("nft", &["list", "ruleset"])?;
        ensure!(rules.is_empty() == none, "{text:?}: {rules}");
        if none {
            let (code, said) = ran(&pod, &mut millrace(istio)?)?;
            ensure!(code == Some(0) && said.contains("DNS is not captured"), "{text:?}: {said}");
        }
    }
    Ok(())
}

/// Verify that what the runtime says in bytes that are no text is an error, and not as if it had said
/// nothing: a pod would pass.
#[test]
fn variables_that_are_not_utf_8() -> Result<()> {
    let host = Host::new()?;
    let pod = host.pod()?;
    let call = Call::new(&host, "ADD", &pod, mesh(&[]));
    // The words in front change the variable, and become the plugin.
    let script = "CNI_ARGS=$(printf 'K8S_POD_NAME=web\\377') exec \"$0\"";
    let reply = call.run_under(&host, &["sh", "-c", script])?;
    let error = reply.failure(4)?;
    ensure!(error.contains("CNI_ARGS is ") && error.contains("not UTF-8"), "{error}");
    Ok(())
}
