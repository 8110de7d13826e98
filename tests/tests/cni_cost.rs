//! What the plugin does not do: start processes, open connections, ask anybody.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use millrace_tests::cni::{Call, Host, mesh};
use serde_json::{Value, json};

/// The system calls of a call that succeeds, of those that start processes or open sockets.
fn traced(host: &Host, call: &Call) -> Result<String> {
    let trace = host.folder().join("trace");
    let file = trace.to_str().context("a path")?;
    let calls = "trace=?fork,?vfork,clone,?clone3,execve,socket,connect";
    call.run_under(host, &["strace", "-f", "-qq", "-e", calls, "-o", file])?.success()?;
    fs::read_to_string(&trace).context("strace wrote no trace")
}

/// Verify that with annotations from the runtime ADD of a mesh pod and of a plain one, CHECK and
/// DEL start nothing and connect to nobody, though somebody could be asked.
#[test]
fn no_process_and_no_connection() -> Result<()> {
    let host = Host::new()?;
    for annotations in [mesh(&[]), json!({})] {
        let pod = host.pod()?;
        let add = Call::new(&host, "ADD", &pod, annotations.clone())
            .with_key("kubeconfig", json!("/no/kubeconfig"));
        for command in ["ADD", "ADD", "CHECK", "DEL"] {
            let trace = traced(&host, &add.clone().to(command))?;
            let what = format!("{command} {annotations}:\n{trace}");
            let count = |word: &str| trace.lines().filter(|line| line.contains(word)).count();
            assert_eq!(count("execve("), 1, "{what}");
            let processes = trace
                .lines()
                .filter(|l| ["fork(", "clone(", "clone3("].iter().any(|call| l.contains(call)))
                .filter(|line| !line.contains("CLONE_THREAD"))
                .count();
            assert_eq!(processes, 0, "{what}");
            assert_eq!(count("AF_INET"), 0, "{what}");
            let to_others = trace
                .lines()
                .filter(|line| line.contains("connect(") && !line.contains("AF_NETLINK"));
            assert_eq!(to_others.count(), 0, "{what}");
            // Pods outside the mesh cost not even a question to the kernel.
            if annotations == json!({}) && command == "ADD" {
                assert_eq!(count("socket("), 0, "{what}");
            }
        }
        // An agent is told in one connection what became of it.
        let agent = add.clone().with_key("agent_socket", json!("/no/agent.sock"));
        let agent = agent.with_key("proxy_identity", json!("annotations"));
        for command in ["ADD", "CHECK", "DEL"] {
            let trace = traced(&host, &agent.clone().to(command))?;
            let told =
                trace.lines().filter(|line| line.contains("connect(") && line.contains("AF_UNIX"));
            assert_eq!(told.count(), 1, "{command} {annotations}:\n{trace}");
        }
    }
    Ok(())
}

/// Verify that the trace would show it: a pod that somebody has to be asked about opens a
/// connection, and one alone.
#[test]
fn a_lookup_is_seen() -> Result<()> {
    let host = Host::new()?;
    let api = millrace_tests::cni::Api::start(&host)?;
    let pod = host.pod()?;
    api.put_pod("shop", &pod.name, &pod.uid(), &json!({ "annotations": {} }));
    let call = Call::new(&host, "ADD", &pod, Value::Null)
        .without_key("runtimeConfig")
        .with_key("kubeconfig", json!(api.kubeconfig("127.0.0.1")?));
    let trace = traced(&host, &call)?;
    let connections = trace.lines().filter(|l| l.contains("connect(") && l.contains("AF_INET"));
    ensure!(connections.count() == 1, "{trace}");
    Ok(())
}

/// How often a call asks the kernel for rules of `nf_tables`.
fn rule_requests(host: &Host, call: &Call) -> Result<usize> {
    let trace = host.folder().join("requests");
    let file = trace.to_str().context("a path")?;
    call.run_under(host, &["strace", "-qq", "-e", "trace=sendto", "-o", file])?.success()?;
    let requests = fs::read_to_string(&trace)?;
    // Which of both strace prints depends on its version.
    let names = ["nlmsg_type=0xa07 ", "NFT_MSG_GETRULE"];
    let asks = |line: &&str| names.iter().any(|name| line.contains(name));
    Ok(requests.lines().filter(asks).count())
}

/// Verify that rules are asked for once, chain by chain: a list of rules costs the kernel time by the
/// square of all that is listed.
#[test]
fn rules_are_read_once_and_by_chain() -> Result<()> {
    let host = Host::new()?;
    for backend in ["iptables", "nftables"] {
        let pod = host.pod()?;
        let add = Call::new(&host, "ADD", &pod, mesh(&[])).with_key("backend", json!(backend));
        add.run(&host)?.success()?;
        let chains = host.inside(&pod, |inside| inside.run("nft", &["list", "chains"]))?;
        let chains = chains.lines().filter(|line| line.trim_start().starts_with("chain ")).count();
        ensure!(chains > 4, "{backend}: {chains} chains");
        for command in ["CHECK", "DEL"] {
            let asked = rule_requests(&host, &add.clone().to(command))?;
            assert_eq!(asked, chains, "{backend} {command}");
        }
    }
    Ok(())
}

/// Verify that with a list of ports that is about as long as annotations can be the pod is captured,
/// or where the deadline is too short, it is said so and the pod is not started.
#[test]
fn a_long_list_of_ports() -> Result<()> {
    let host = Host::new()?;
    for (backend, last) in [("nftables", u16::MAX), ("iptables", u16::MAX / 2)] {
        let ports: Vec<String> = (1..last).step_by(2).map(|port| port.to_string()).collect();
        let ports = ports.join(",");
        let annotations = mesh(&[("traffic.sidecar.istio.io/excludeOutboundPorts", &ports)]);
        let pod = host.pod()?;
        let add = Call::new(&host, "ADD", &pod, annotations.clone())
            .with_key("backend", json!(backend))
            .with_key("deadline", json!("5m"));
        // Fast enough for this a machine may be with nftables, hardly with iptables.
        let began = Instant::now();
        let reply = add.clone().with_key("deadline", json!("1ms")).run(&host)?;
        ensure!(began.elapsed() < Duration::from_secs(30), "{reply:?}");
        if reply.code != Some(0) {
            let said = reply.failure(11)?;
            ensure!(said.contains("it is not done after 1ms"), "{said}");
        }
        // It is tried again, whatever is there by then.
        add.run(&host)?.success()?;
        add.clone().to("CHECK").run(&host)?.success()?;
        add.to("DEL").run(&host)?.success()?;
    }
    Ok(())
}
