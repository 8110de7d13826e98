//! The node's programs as somebody sees them who runs the node: decisions that are told of and
//! counted, acceleration, and which backend `auto` takes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use millrace_host::ebpf::Options;
use millrace_tests::capture::{millrace, millrace_in_pod};
use millrace_tests::ebpf::{
    APPLY, Cgroup, FOLDER, MOUNT, enrol, load, load_with, loaded, mount_bpffs, node, options,
};
use millrace_tests::topology::{Family, Layout, PROXY, Spot, Stack, Topology};
use millrace_tests::wire::Answer;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, setfsgid, setfsuid};
use serde_json::Value;

const SERVICE: &str = "10.71.0.10:80";
const PATIENCE: Duration = Duration::from_secs(10);

fn connect(topology: &Topology, from_outside: bool, to: &str) -> Result<()> {
    let to: SocketAddr = to.parse()?;
    let namespace = if from_outside { &topology.outside } else { &topology.pod };
    namespace.enter(|| TcpStream::connect_timeout(&to, PATIENCE))??;
    Ok(())
}

/// One of how many decisions is reported.
fn sample(topology: &Topology) -> Result<u32> {
    node(&topology.pod, |node| Ok(node.state()?.sample))
}

/// A trace of one of so many decisions, that has begun.
fn trace(topology: &Topology, one_of: u32, more: &[&str]) -> Result<Child> {
    let words = ["trace", "--backend", "ebpf", "--bpffs", FOLDER, "--output", "json"];
    let ends = ["--timeout", "60s", "--sample", &one_of.to_string()];
    let mut command = millrace([&words[..], &ends, more].concat())?;
    command.stdout(Stdio::piped()).stderr(Stdio::null());
    let child = topology.pod.enter(|| command.spawn())??;
    let end = Instant::now() + PATIENCE;
    while sample(topology)? != one_of {
        ensure!(Instant::now() < end, "it does not begin");
        std::thread::yield_now();
    }
    Ok(child)
}

/// Verify that `trace` tells of decisions while it runs, of those that are asked for, and that
/// nothing is reported before and after.
#[test]
fn decisions_are_told_of() -> Result<()> {
    let (_cgroup, topology) = loaded(Stack::V4)?;
    enrol(&topology, &["--exclude-outbound-ports", "9999"])?;
    ensure!(sample(&topology)? == 0, "nothing is reported by itself");
    let mut child = trace(&topology, 1, &["--to-port", "80-9999", "--count", "3"])?;
    connect(&topology, false, "10.71.0.10:53")?;
    connect(&topology, false, SERVICE)?;
    connect(&topology, false, "10.71.0.10:9999")?;
    connect(&topology, true, "10.70.0.2:8080")?;
    let stdout = child.stdout.take().context("a pipe was asked for")?;
    let lines: Vec<Value> = BufReader::new(stdout)
        .lines()
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect::<Result<_>>()?;
    ensure!(child.wait()?.success(), "it failed");
    let [first, second, third] = lines.as_slice() else { bail!("not three: {lines:?}") };
    ensure!(first["direction"] == "out" && first["class"] == "network", "{first}");
    ensure!(first["port"] == 15001 && first["remote"] == SERVICE, "{first}");
    ensure!(second["class"] == "excluded-port" && second["port"].is_null(), "{second}");
    ensure!(second["uid"] == 0 && second["process"] == std::process::id(), "{second}");
    ensure!(third["direction"] == "in" && third["port"] == 15006, "{third}");
    ensure!(third["local"] == "10.70.0.2:8080", "{third}");
    ensure!(sample(&topology)? == 0, "it goes on reporting");
    Ok(())
}

/// Verify that of several traces the last one ends the reports, also those that a killed one left.
#[test]
fn traces_at_once() -> Result<()> {
    let (_cgroup, topology) = loaded(Stack::V4)?;
    let end = |mut child: Child, signal| -> Result<()> {
        kill(Pid::from_raw(child.id().cast_signed()), signal)?;
        child.wait()?;
        Ok(())
    };
    let killed = trace(&topology, 5, &[])?;
    end(killed, Signal::SIGKILL)?;
    ensure!(sample(&topology)? == 5, "nobody was there to end it");
    let (first, second) = (trace(&topology, 1, &[])?, trace(&topology, 7, &[])?);
    end(first, Signal::SIGINT)?;
    ensure!(sample(&topology)? == 7, "the second one is told of no more");
    end(second, Signal::SIGINT)?;
    ensure!(sample(&topology)? == 0, "reports go on");
    Ok(())
}

/// Verify that decisions are counted by pod and class, and that `status` shows it.
#[test]
fn decisions_are_counted() -> Result<()> {
    let (_cgroup, topology) = loaded(Stack::V4)?;
    let status = ["status", "--backend", "ebpf", "--bpffs", FOLDER];
    ensure!(millrace_in_pod(&topology, &status, 3)? == "not captured\n");
    enrol(&topology, &[])?;
    for _ in 0..3 {
        connect(&topology, false, SERVICE)?;
    }
    connect(&topology, true, "10.70.0.2:8080")?;
    connect(&topology, true, "10.70.0.2:15008")?;
    let said = millrace_in_pod(&topology, &status, 0)?;
    // The proxy closes its ends on its own time, and the last packet of a connection whose socket is
    // gone by then is looked up once more.
    let counted = |said: &str, margin: &str| {
        let tail = format!("\n{margin}network 3\n{margin}tunnel 1\n{margin}inbound ");
        let inbound = said.rsplit_once(&tail).and_then(|(_, rest)| rest.trim_end().parse().ok());
        matches!(inbound, Some(1..=2))
    };
    ensure!(
        said.starts_with("captured: by eBPF\nconnections ")
            && said.contains(" of 625\n")
            && counted(&said, ""),
        "{said}"
    );
    let said = millrace_in_pod(&topology, &["node-bpf", "status", "--bpffs", FOLDER], 0)?;
    // Programs of other tests are at the same cgroup, and may come first.
    let (loaded, pod) = said.split_once("\npod ").context(said.clone())?;
    ensure!(
        loaded.starts_with("loaded: 10 programs attached\n1 pod, 0 programs for more"),
        "{said}"
    );
    ensure!(counted(pod, "  "), "{said}");
    let other = [&status[..], &["--exclude-outbound-ports", "1"]].concat();
    let said = millrace_in_pod(&topology, &other, 5)?;
    ensure!(said.contains("not that of the configuration"), "{said}");
    Ok(())
}

/// Bytes that `lo` of the calling thread's namespace has sent.
fn sent_by_lo() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev")?;
    let line = text.lines().find_map(|line| line.trim().strip_prefix("lo:")).context("lo")?;
    Ok(line.split_ascii_whitespace().nth(8).context("a number")?.parse()?)
}

/// Have data go from one end to the other, whole and in order.
fn pass(from: &mut TcpStream, to: &mut TcpStream, data: &[u8]) -> Result<()> {
    let mut got = vec![0; data.len()];
    std::thread::scope(|scope| -> Result<()> {
        let writing = scope.spawn(|| from.write_all(data));
        to.read_exact(&mut got)?;
        writing.join().map_err(|_panic| anyhow::anyhow!("a thread panicked"))??;
        Ok(())
    })?;
    ensure!(got == data, "the data was changed on its way");
    Ok(())
}

/// Verify that with acceleration data goes both ways whole and in order, past `lo`, and that
/// without it, and after it, the data goes its usual way.
#[test]
fn accelerated_data() -> Result<()> {
    const BYTES: usize = 1 << 20;
    let _cgroup = Cgroup::enter()?;
    let mut topology = Topology::new(Stack::V4, Layout::default())?;
    topology.stop_listeners();
    mount_bpffs(&topology.pod)?;
    let data: Vec<u8> = (0..BYTES).map(|at| u8::try_from(at * 7 % 251).unwrap_or(0)).collect();
    for accelerate in [false, true, false] {
        let options = Options { accelerate, ..options()? };
        load_with(&topology.pod, &options)?;
        enrol(&topology, &[])?;
        let passed = topology.pod.enter(|| -> Result<u64> {
            let listener = TcpListener::bind("127.0.0.1:15001")?;
            let before = sent_by_lo()?;
            let mut client = TcpStream::connect(SERVICE)?;
            let (mut server, _) = listener.accept()?;
            for stream in [&client, &server] {
                stream.set_read_timeout(Some(PATIENCE))?;
            }
            pass(&mut client, &mut server, &data).context("to the proxy")?;
            pass(&mut server, &mut client, &data).context("back")?;
            Ok(sent_by_lo()? - before)
        })??;
        let all = u64::try_from(2 * BYTES)?;
        ensure!((passed < all / 10) == accelerate, "accelerate {accelerate}: {passed} by lo");
    }
    Ok(())
}

/// Verify that `auto` takes eBPF where the programs are loaded and can do what is wanted, never
/// changes sides by itself, and that a backend that is asked for takes the pod over.
#[test]
fn which_backend_auto_takes() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let topology = Topology::new(Stack::V4, Layout::default())?;
    mount_bpffs(&topology.pod)?;
    let apply = |more: &[&str]| -> Result<String> {
        let said = millrace_in_pod(&topology, &[&["apply", "--bpffs", FOLDER], more].concat(), 0)?;
        Ok(said.lines().find(|line| line.starts_with("using ")).unwrap_or_default().to_owned())
    };
    let by = |wanted: &str| -> Result<()> {
        let status = ["status", "--bpffs", FOLDER];
        let said = millrace_in_pod(&topology, &status, if wanted.is_empty() { 3 } else { 0 })?;
        ensure!(said.contains(wanted), "{wanted}: {said}");
        Ok(())
    };
    let cleanup = || -> Result<Value> {
        let words = ["cleanup", "--bpffs", FOLDER, "--output", "json"];
        Ok(serde_json::from_str(&millrace_in_pod(&topology, &words, 0)?)?)
    };
    ensure!(apply(&[])?.starts_with("using nftables"), "nothing is loaded");
    load_with(&topology.pod, &options()?)?;
    ensure!(apply(&[])?.starts_with("using nftables"), "it changed sides");
    by("by nftables")?;
    ensure!(cleanup()?["ebpf"].is_null(), "it was not enrolled");
    by("")?;
    ensure!(apply(&[])? == "using eBPF: the node's programs are loaded", "they are loaded");
    by("by eBPF")?;
    let said = millrace_in_pod(&topology, &["apply", "--bpffs", FOLDER, "--dry-run"], 0)?;
    ensure!(said.contains("\nno change: ") && !said.contains("would do"), "{said}");
    connect(&topology, false, SERVICE)?;
    ensure!(apply(&["--exclude-outbound-ports", "1"])?.starts_with("using eBPF"));
    ensure!(apply(&["--backend", "nftables"])?.starts_with("using nftables"));
    by("by nftables")?;
    ensure!(node(&topology.pod, |node| Ok(node.pods()?.len()))? == 0, "the pod has left");
    ensure!(apply(&["--backend", "ebpf"])? == "using eBPF: asked for");
    by("by eBPF")?;
    let rules = topology.pod.run("nft", &["--stateless", "list", "ruleset"])?;
    ensure!(!rules.contains("millrace"), "rules are left: {rules}");
    let left = cleanup()?;
    ensure!(left["ebpf"] == "removed" && left["changed"] == true, "{left:#}");
    by("")?;
    ensure!(apply(&["--mode", "tproxy"])?.starts_with("using nftables"), "it can't do tproxy");
    let refused = ["apply", "--bpffs", FOLDER, "--backend", "ebpf", "--mode", "tproxy"];
    let said = millrace_in_pod(&topology, &refused, 1)?;
    ensure!(said.contains("inbound mode tproxy (flag --mode)"), "{said}");
    Ok(())
}

/// Verify that maps of another version keep rules neither from being written nor from being taken
/// back, and that both say that what is in the maps is not known.
#[test]
fn maps_of_another_version() -> Result<()> {
    let (_cgroup, topology) = loaded(Stack::V4)?;
    let maps = Path::new(FOLDER).join("maps");
    // Its sizes are others.
    topology.pod.enter(|| std::fs::rename(maps.join("GROUPS"), maps.join("SETTINGS")))??;
    let named = "the map SETTINGS in /run/bpf/millrace/maps is of another version";
    let has_rules = || -> Result<bool> {
        Ok(topology.pod.run("nft", &["list", "ruleset"])?.contains("millrace"))
    };
    let said = millrace_in_pod(&topology, &["apply", "--bpffs", FOLDER], 0)?;
    ensure!(said.contains("using nftables") && said.contains(named), "{said}");
    ensure!(has_rules()?, "no rules are written");
    let said = millrace_in_pod(&topology, &["cleanup", "--bpffs", FOLDER], 1)?;
    ensure!(said.contains(named) && !has_rules()?, "{said}");
    Ok(())
}

/// Who answers the application.
fn answered() -> Result<String> {
    Ok(Answer::of(SERVICE.parse()?, PATIENCE)?.name)
}

/// Verify that the programs are not taken away while pods are captured, that the pods are named, that
/// they go over to rules without a connection that gets past the proxy, and that force is force.
#[test]
fn programs_that_capture_pods_stay() -> Result<()> {
    let (_cgroup, topology) = loaded(Stack::V4)?;
    let unload = |more: &[&str], code| {
        let words = [&["node-bpf", "unload", "--bpffs", FOLDER], more].concat();
        millrace_in_pod(&topology, &words, code)
    };
    enrol(&topology, &["--exclude-outbound-ports", "9999"])?;
    let inode = std::fs::metadata(topology.pod.path())?.ino();
    let said = unload(&[], 1)?;
    let named = format!("(net:[{inode}])");
    ensure!(said.contains("these programs capture pods") && said.contains(&named), "{said}");
    ensure!(said.contains("--to nftables") && said.contains("--force"), "{said}");
    ensure!(topology.pod.enter(answered)?? == "proxy", "it was refused");
    let done = AtomicBool::new(false);
    let said = std::thread::scope(|scope| -> Result<String> {
        let asking = scope.spawn(|| {
            topology.pod.enter(|| -> Result<usize> {
                let mut count = 0;
                while !done.load(Ordering::SeqCst) || count == 0 {
                    let name = answered()?;
                    ensure!(name == "proxy", "{name} answered");
                    count += 1;
                }
                Ok(count)
            })?
        });
        let said = unload(&["--to", "nftables"], 0);
        done.store(true, Ordering::SeqCst);
        asking.join().map_err(|_panic| anyhow::anyhow!("a thread panicked"))??;
        said
    })?;
    ensure!(said == "nftables captures 1 pod\nunloaded\n", "{said}");
    // An entry has both families, whatever addresses the pod has.
    let same = ["--bpffs", FOLDER, "--exclude-outbound-ports", "9999", "--ipv6", "on"];
    let same = [&["status"][..], &same].concat();
    let said = millrace_in_pod(&topology, &same, 0)?;
    ensure!(said.contains("by nftables"), "{said}");
    millrace_in_pod(&topology, &["cleanup", "--bpffs", FOLDER], 0)?;
    load_with(&topology.pod, &options()?)?;
    enrol(&topology, &[])?;
    ensure!(unload(&["--force"], 0)? == "unloaded\n", "force");
    ensure!(topology.pod.enter(answered)?? == "outside", "it is captured by nothing");
    ensure!(unload(&[], 0)?.starts_with("nothing to do"), "nothing is loaded");
    Ok(())
}

/// Verify that connections which eBPF has captured go on when rules take the pod over, by each backend: the
/// proxy's next packet is the first one that the rules see of them.
#[test]
fn rules_leave_captured_connections_alone() -> Result<()> {
    for words in [
        &["node-bpf", "unload", "--to", "nftables"][..],
        &["apply", "--backend", "nftables"],
        &["apply", "--backend", "iptables-nft"],
        &["apply", "--iptables", "legacy"],
    ] {
        let _cgroup = Cgroup::enter()?;
        let mut topology = Topology::new(Stack::Dual, Layout::default())?;
        load(&topology.pod)?;
        enrol(&topology, &[])?;
        topology.stop_listeners();
        let words = [words, &["--bpffs", FOLDER]].concat();
        let mut pairs = topology.pod.enter(|| -> Result<Vec<(TcpStream, TcpStream)>> {
            let families = [("127.0.0.1:15001", Family::V4), ("[::1]:15001", Family::V6)];
            let pair = |(proxy, family): (&str, Family)| {
                let listener = TcpListener::bind(proxy)?;
                let client = TcpStream::connect(Spot::Service.at(family, 80)?)?;
                // Whoever accepts it owns what it sends, to rules.
                setfsuid(Uid::from_raw(PROXY.uid));
                setfsgid(Gid::from_raw(PROXY.gid));
                let (accepted, _) = listener.accept()?;
                setfsuid(Uid::from_raw(0));
                setfsgid(Gid::from_raw(0));
                Ok((client, accepted))
            };
            families.into_iter().map(pair).collect()
        })??;
        millrace_in_pod(&topology, &words, 0)?;
        for (client, accepted) in &mut pairs {
            let from = client.local_addr()?;
            let context = || format!("{words:?}: {from}");
            client.set_read_timeout(Some(PATIENCE))?;
            accepted.set_read_timeout(Some(PATIENCE))?;
            let mut byte = [0];
            accepted.write_all(b"a").with_context(context)?;
            client.read_exact(&mut byte).with_context(context)?;
            client.write_all(b"b").with_context(context)?;
            accepted.read_exact(&mut byte).with_context(context)?;
            ensure!(&byte == b"b", "{words:?}");
        }
    }
    Ok(())
}

/// Verify that whoever holds the lock of the programs' folder, as a loader that is stopped, keeps
/// nobody waiting for longer than he wants to, and is named.
#[test]
fn a_lock_that_is_held() -> Result<()> {
    let (_cgroup, topology) = loaded(Stack::V4)?;
    enrol(&topology, &[])?;
    let held = topology.pod.enter(|| -> Result<Flock<std::fs::File>> {
        let folder = std::fs::File::open(FOLDER)?;
        Flock::lock(folder, FlockArg::LockExclusive).map_err(|(_, error)| error.into())
    })??;
    let cgroup = Cgroup::path()?;
    let cgroup = cgroup.to_str().context("a path that is not UTF-8")?;
    let commands: [&[&str]; 6] = [
        &["apply", "--backend", "ebpf"],
        &["cleanup"],
        &["node-bpf", "load", "--cgroup", cgroup],
        &["node-bpf", "gc"],
        &["node-bpf", "unload", "--force"],
        &["node-bpf", "unload", "--to", "nftables"],
    ];
    for words in commands {
        let words = [words, &["--bpffs", FOLDER, "--wait", "1s"]].concat();
        let began = Instant::now();
        let said = millrace_in_pod(&topology, &words, 4)?;
        let holder = format!("process {} ", std::process::id());
        ensure!(
            said.contains("did not end in time") && said.contains(&holder),
            "{words:?}: {said}"
        );
        ensure!(began.elapsed() >= Duration::from_secs(1), "{words:?} did not wait");
    }
    drop(held);
    let said = millrace_in_pod(&topology, &["node-bpf", "gc", "--bpffs", FOLDER], 0)?;
    ensure!(said == "entries of pods that are gone, removed: 0\n", "{said}");
    Ok(())
}

/// Verify that the programs' folder is root's alone, also where it was there before, and that one that
/// somebody else has made, or may write to, is refused, with who made it.
#[test]
fn whose_the_folder_is() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let topology = Topology::new(Stack::V4, Layout::default())?;
    mount_bpffs(&topology.pod)?;
    let cgroup = Cgroup::path()?;
    let cgroup = cgroup.to_str().context("a path that is not UTF-8")?;
    let load_args = ["node-bpf", "load", "--bpffs", FOLDER, "--cgroup", cgroup, "--spares", "1"];
    let make = |owner: u32, mode: u32| -> Result<()> {
        topology.pod.enter(|| -> Result<()> {
            drop(std::fs::remove_dir_all(FOLDER));
            std::fs::create_dir(FOLDER)?;
            std::fs::set_permissions(FOLDER, std::fs::Permissions::from_mode(mode))?;
            Ok(chown(FOLDER, Some(owner), None)?)
        })?
    };
    for (owner, mode, why) in [
        (1000, 0o755, "which user 1000 made, is not used: it is not root's"),
        (1000, 0o700, "which user 1000 made, is not used: it is not root's"),
        (0, 0o777, "others may write to it (mode 0777)"),
    ] {
        make(owner, mode)?;
        let unload = ["node-bpf", "unload", "--bpffs", FOLDER];
        for words in [&load_args[..], &APPLY, &unload] {
            let said = millrace_in_pod(&topology, words, 1)?;
            ensure!(said.contains(why), "{words:?}: {said}");
        }
        let said = millrace_in_pod(&topology, &["apply", "--bpffs", FOLDER], 0)?;
        ensure!(said.contains(why) && said.contains("using nftables"), "{said}");
        millrace_in_pod(&topology, &["cleanup", "--backend", "auto", "--bpffs", "/nowhere"], 0)?;
        let left =
            topology.pod.enter(|| Ok::<_, std::io::Error>(std::fs::read_dir(FOLDER)?.count()))?;
        ensure!(left? == 0, "something was put into it");
    }
    topology.pod.enter(|| -> Result<()> {
        std::fs::remove_dir(FOLDER)?;
        std::fs::create_dir(Path::new(MOUNT).join("other"))?;
        Ok(std::os::unix::fs::symlink("other", FOLDER)?)
    })??;
    let said = millrace_in_pod(&topology, &load_args, 1)?;
    ensure!(said.contains("it is no folder"), "{said}");
    topology.pod.enter(|| std::fs::remove_file(FOLDER))??;
    make(0, 0o755)?;
    millrace_in_pod(&topology, &load_args, 0)?;
    let mode = topology.pod.enter(|| std::fs::metadata(FOLDER))??.mode() & 0o7777;
    ensure!(mode == 0o700, "{mode:o}");
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=1000", "--regid=1000", "--clear-groups", "flock", "-n", FOLDER, "true"]);
    ensure!(!topology.pod.output(&mut nobody)?.status.success(), "anybody can lock it");
    Ok(())
}
