//! The server of ZDS, held against ztunnels that do right: what they are told and when, also while one
//! replaces another or the agent is restarted, and what becomes of traffic.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use millrace_node::ztunnel::{NotAcknowledged, Workload};
use millrace_tests::capture::{millrace, ran};
use millrace_tests::process::{Listeners, dial};
use millrace_tests::sys_calls::raise_open_files;
use millrace_tests::topology::{APP, Family, Layout, ROOT, Spot, Stack, Topology};
use millrace_tests::wire::{Dial, Failure, Listen, Outcome, Proto, Serve};
use millrace_tests::ztunnel::{Held, Server, Ztunnel, id, netns, place, workload};

/// The pods that a ztunnel serves, and the namespaces that it has of them.
fn served(held: &Held) -> BTreeMap<String, (u64, u64)> {
    held.pods.iter().map(|(uid, pod)| (uid.clone(), pod.netns)).collect()
}

/// Verify that a ztunnel that comes late is passed each of 250 namespaces with its own names, then told that
/// this was all; also where there are none, and where one is served of which no namespace is known.
#[test]
fn a_snapshot_of_250_namespaces() -> Result<()> {
    raise_open_files()?;
    let (_folder, path) = place()?;
    let server = Server::start(&path)?;
    let mut wanted = BTreeMap::new();
    for n in 0..250 {
        let (uid, netns) = (format!("uid-{n}"), netns()?);
        ensure!(server.add(&uid, &netns)? == Err(NotAcknowledged::NotConnected));
        wanted.insert(uid, id(&netns)?);
    }
    server.agent.keep("kept");
    server.agent.keep("uid-0");
    server.agent.snapshot_is_complete();
    let began = Instant::now();
    let ztunnel = Ztunnel::start(&path);
    ztunnel.until_ready()?;
    let took = began.elapsed();
    let held = ztunnel.held();
    ensure!(served(&held) == wanted);
    for (uid, pod) in &held.pods {
        let Workload { name, namespace, service_account, .. } = workload(uid);
        let info = [&pod.info.name, &pod.info.namespace, &pod.info.service_account];
        ensure!(info == [&name, &namespace, &service_account], "{uid}: {pod:?}");
    }
    ensure!(held.heard.len() == 252 && held.heard[251] == "snapshot", "{:?}", held.heard);
    ensure!(held.heard[250] == "keep kept", "{:?}", held.heard);
    ensure!(server.agent.connected() == 1);
    println!("250 namespaces took {took:?}");
    Ok(())
}

/// Verify that pods come and go while a ztunnel is connected, that errors are told and gone once it serves
/// the pod, and what is refused without asking it.
#[test]
fn pods_come_and_go() -> Result<()> {
    let (_folder, path) = place()?;
    let server = Server::start(&path)?;
    let ztunnel = Ztunnel::start(&path);
    server.until_connected(1)?;
    let (one, other) = (netns()?, netns()?);
    ensure!(server.add("a", &one)? == Ok(()));
    ensure!(!ztunnel.held().is_ready, "nobody said that this was all");
    server.agent.snapshot_is_complete();
    ztunnel.until_ready()?;
    ensure!(server.add("b", &other)? == Ok(()));
    // The pod's sandbox was made anew.
    ensure!(server.add("a", &other)? == Ok(()));
    ensure!(ztunnel.held().pods["a"].netns == id(&other)?);
    ensure!(server.delete("b")? == Ok(()) && server.delete("never")? == Ok(()));
    let wanted = ["add a", "snapshot", "add b", "add a", "del b"];
    ensure!(ztunnel.held().heard == wanted, "{:?}", ztunnel.held().heard);
    ztunnel.refuse("c", "no sockets");
    let refused = NotAcknowledged::Refused("no sockets".to_owned());
    ensure!(server.add("c", &one)? == Err(refused));
    ensure!(server.agent.connected() == 1);
    ztunnel.refuse("c", "");
    ensure!(server.add("c", &one)? == Ok(()));
    // One that is kept is told in snapshots alone.
    server.agent.keep("kept");
    ensure!(server.delete("c")? == Ok(()));
    ensure!(served(&ztunnel.held()).keys().eq(["a"]));
    let before = ztunnel.held().heard.len();
    let impossible = |uid: &str, netns: &File, why: &str| -> Result<()> {
        match server.add(uid, netns)? {
            Err(NotAcknowledged::Impossible(text)) if text.contains(why) => Ok(()),
            other => bail!("{why}: {other:?}"),
        }
    };
    impossible("null", &File::open("/dev/null")?, "is not a network namespace")?;
    impossible("own", &File::open("/proc/self/ns/net")?, "the agent's own")?;
    impossible("", &one, "no uid")?;
    // Its name and its account have it as well.
    impossible(&"x".repeat(400), &one, "ztunnel reads 1024")?;
    ensure!(ztunnel.held().heard.len() == before);
    let longest = "x".repeat(320);
    ensure!(server.add(&longest, &one)? == Ok(()));
    ztunnel.until("nothing was wrong", |held| held.pods.contains_key(&longest))
}

/// Verify who is told what while one ztunnel replaces another: what comes, the newer; what goes, both; and
/// should the newer go, the older is told what it missed.
#[test]
fn one_ztunnel_replaces_another() -> Result<()> {
    let (_folder, path) = place()?;
    let server = Server::complete(&path)?;
    let old = Ztunnel::start(&path);
    old.until_ready()?;
    for uid in ["a", "b"] {
        ensure!(server.add(uid, &netns()?)? == Ok(()));
    }
    let new = Ztunnel::start(&path);
    new.until_ready()?;
    ensure!(server.agent.connected() == 2);
    ensure!(new.held().heard == ["add a", "add b", "snapshot"]);
    ensure!(server.add("c", &netns()?)? == Ok(()));
    ensure!(server.delete("a")? == Ok(()));
    ensure!(new.held().pods.keys().eq(["b", "c"]) && old.held().pods.keys().eq(["b"]));
    ensure!(server.add("d", &netns()?)? == Ok(()));
    ensure!(server.delete("d")? == Ok(()));
    drop(new);
    old.until("the older is told", |held| held.pods.keys().eq(["b", "c"]))?;
    let heard = old.held().heard.clone();
    ensure!(heard == ["snapshot", "add a", "add b", "del a", "add c"], "{heard:?}");
    // The usual way: the older goes.
    let newer = Ztunnel::start(&path);
    newer.until_ready()?;
    drop(old);
    server.until_connected(1)?;
    ensure!(server.add("e", &netns()?)? == Ok(()));
    newer.until("it has all", |held| held.pods.keys().eq(["b", "c", "e"]))
}

/// Verify that ztunnels outlive the agent: they connect to the next one, no pod is given up before that one
/// has said that it knows all, and then those are that are gone.
#[test]
fn the_agent_is_restarted() -> Result<()> {
    let (_folder, path) = place()?;
    let server = Server::complete(&path)?;
    let ztunnels = [Ztunnel::start(&path), Ztunnel::start(&path)];
    server.until_connected(2)?;
    let (one, other) = (netns()?, netns()?);
    for uid in ["a", "b", "c"] {
        ensure!(server.add(uid, &one)? == Ok(()));
    }
    drop(server);
    // The newest has them; the older one may.
    let count = |ztunnel: &Ztunnel| ztunnel.held().pods.len();
    let had: Vec<usize> = ztunnels.iter().map(count).collect();
    ensure!(had.contains(&3), "{had:?}");
    let server = Server::start(&path)?;
    server.until_connected(2)?;
    ensure!(server.add("b", &one)? == Ok(()));
    server.agent.keep("c");
    let now: Vec<usize> = ztunnels.iter().map(count).collect();
    ensure!(now.contains(&3), "{now:?}");
    ensure!(ztunnels.iter().all(|ztunnel| !ztunnel.held().is_ready));
    server.agent.snapshot_is_complete();
    for ztunnel in &ztunnels {
        ztunnel.until_ready()?;
        ensure!(!ztunnel.held().pods.contains_key("a") && ztunnel.held().pods.contains_key("b"));
    }
    let kept = |ztunnel: &&Ztunnel| ztunnel.held().pods.contains_key("c");
    ensure!(ztunnels.iter().filter(kept).count() >= 1);
    ensure!(server.add("c", &other)? == Ok(()));
    let newer = |ztunnel: &Ztunnel| ztunnel.held().pods.get("c").map(|pod| pod.netns);
    ensure!(ztunnels.iter().map(newer).any(|netns| netns == id(&other).ok()));
    // The next one takes the socket while this one still serves, as when an agent is upgraded.
    let next = Server::complete(&path)?;
    drop(server);
    next.until_connected(2)?;
    for ztunnel in &ztunnels {
        ztunnel.until("it is ready without pods", |held| held.is_ready && held.pods.is_empty())?;
    }
    Ok(())
}

/// Who answers, on which port, and what it knows of where the connection was to go.
fn answered(
    topology: &Topology,
    inward: bool,
    to: SocketAddr,
) -> Result<(String, u16, Option<SocketAddr>)> {
    let namespace = if inward { &topology.outside } else { &topology.pod };
    let request = Dial {
        identity: APP,
        proto: Proto::Tcp,
        from: None,
        from_port: None,
        transparent_mark: None,
        to,
        timeout_ms: 5000,
    };
    match dial(namespace, &request)? {
        Outcome::Answered { answer, .. } => Ok((answer.name, answer.port, answer.original)),
        Outcome::Failed(Failure::Refused) => Ok(("nobody".to_owned(), 0, None)),
        failed @ Outcome::Failed(_) => bail!("{failed:?}"),
    }
}

/// Verify that once a pod's addition is acknowledged, ztunnel has its connections, in both families and
/// both directions, with their original destination; also while one ztunnel replaces another, and not any
/// more once the pod is gone.
#[test]
fn traffic_of_a_pod_reaches_ztunnel() -> Result<()> {
    let (_folder, path) = place()?;
    let server = Server::complete(&path)?;
    let mut topology = Topology::new(Stack::Dual, Layout::default())?;
    topology.stop_listeners();
    let listen = |at: SocketAddr| Listen { proto: Proto::Tcp, addr: at, transparent: false };
    let own: Vec<Listen> = ["0.0.0.0:8080", "[::]:8080"]
        .iter()
        .map(|at| at.parse().map(listen).context("an address"))
        .collect::<Result<_>>()?;
    let app = Serve { name: "app".to_owned(), identity: ROOT, listen: own };
    let _app = Listeners::start(&topology.pod, &app)?;
    let old = Ztunnel::proxying(&path, "old");
    old.until_ready()?;
    let netns = File::open(topology.pod.path())?;
    ensure!(server.add("pod", &netns)? == Ok(()));
    let (code, said) = ran(&topology.pod, &mut millrace(["ambient", "rules"])?)?;
    ensure!(code == Some(0), "{said}");
    let all = |names: &[&str]| -> Result<()> {
        for family in [Family::V4, Family::V6] {
            for (inward, to, port) in [
                (false, Spot::Peer.at(family, 9999)?, 15001),
                (true, Spot::Pod.at(family, 8080)?, 15006),
                (true, Spot::Pod.at(family, 15008)?, 15008),
            ] {
                let (name, at, original) = answered(&topology, inward, to)?;
                let good = names.contains(&name.as_str()) && at == port;
                ensure!(
                    good && original.is_none_or(|original| original == to),
                    "{to}: {name}:{at} {original:?}"
                );
                ensure!(port == 15008 || original == Some(to), "{to}: {original:?}");
            }
        }
        Ok(())
    };
    all(&["old"])?;
    let new = Ztunnel::proxying(&path, "new");
    new.until_ready()?;
    all(&["old", "new"])?;
    drop(old);
    all(&["new"])?;
    ensure!(server.delete("pod")? == Ok(()));
    for inward in [false, true] {
        let to = if inward {
            Spot::Pod.at(Family::V4, 8080)?
        } else {
            Spot::Peer.at(Family::V4, 9999)?
        };
        let (name, ..) = answered(&topology, inward, to)?;
        ensure!(name == "nobody", "{name}");
    }
    Ok(())
}
