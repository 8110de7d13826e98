//! For every kernel: what `preflight` says to work captures real connections, and what it says not to
//! is refused in the same words, with nothing changed. `cargo xtask vm` runs it on kernels of Debian's
//! releases.
//!
//! What a kernel lacks, word for word, is in `golden/kernels/`: in the file of its version, or in
//! `whole.txt` for those that lack nothing.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, bail, ensure};
use millrace_tests::capture::{
    Capture, IptablesByNetlink, Millrace, OwnNftables, Variant, millrace, millrace_in_pod, ran,
};
use millrace_tests::cases::{Case, Config, dns, identity, inbound, listener, outbound, tproxy};
use millrace_tests::ebpf::{APPLY, Cgroup, Ebpf, FOLDER, mount_bpffs};
use millrace_tests::netns::Namespace;
use millrace_tests::process::dial;
use millrace_tests::scenario::play;
use millrace_tests::snapshot;
use millrace_tests::topology::{APP, Layout, Spot, Stack, Topology};
use millrace_tests::wire::{Dial, Outcome, Proto};
use nix::sys::utsname::uname;
use serde_json::Value;

/// One of each kind of case.
fn cases() -> Vec<Case> {
    vec![
        outbound::sidecar(),
        outbound::excluded_ports(),
        inbound::included_inbound_ports(),
        identity::proxy_by_group(),
        dns::dns_all(),
        listener::own_redirect_unheard(),
    ]
}

/// What this kernel is known for, by name.
fn known(name: &str) -> Result<String> {
    let kernel = uname()?;
    let release = kernel.release().to_string_lossy().into_owned();
    let version: Vec<&str> = release.splitn(3, '.').take(2).collect();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden/kernels");
    let own = folder.join(format!("{}.txt", version.join(".")));
    let file = if own.exists() { own } else { folder.join("whole.txt") };
    let text = std::fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.map(str::to_owned).with_context(|| format!("{} has nothing of {name}", file.display()))
}

/// Hold what is seen of this kernel against what it is known for.
fn seen(name: &str, words: &str) -> Result<()> {
    let known = known(name)?;
    ensure!(known == words, "on this kernel {name} was: {known}\nand is: {words}");
    Ok(())
}

/// What `preflight` says, of no configuration in particular.
fn preflight(namespace: &Namespace) -> Result<Value> {
    let args = ["preflight", "--output", "json", "--bpffs", FOLDER];
    let output = namespace.output(&mut millrace(args)?)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(&said).with_context(|| format!("{output:?}"))
}

/// What is missing for a backend, and for the mode `tproxy` with it.
fn missing(namespace: &Namespace, backend: &str) -> Result<(Vec<String>, Vec<String>)> {
    let said = preflight(namespace)?;
    let verdicts = said["backends"].as_array().context("verdicts")?;
    let verdict = verdicts.iter().find(|one| one["backend"] == backend).context("a verdict")?;
    let texts = |list: &Value| -> Vec<String> {
        let list = list.as_array().into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let without = verdict["without"].as_array().into_iter().flatten();
    let mut tproxy = without.filter(|one| one["setting"] == "--mode tproxy");
    let missing = texts(&verdict["missing"]);
    ensure!(verdict["works"] == missing.is_empty(), "{verdict}");
    Ok((missing, tproxy.next().map_or_else(Vec::new, |one| texts(&one["missing"]))))
}

/// A run is refused for what `preflight` says, and changes nothing.
fn refused(missing: &[String], args: &[&str]) -> Result<()> {
    let mut topology = Topology::new(Stack::Dual, Layout::default())?;
    topology.stop_listeners();
    let before = snapshot::rules_text(&topology.pod)?;
    let said = millrace_in_pod(&topology, args, 1)?;
    for what in missing {
        // Of several modules that may be missing the error names the one that is.
        let remedy = what.split_once(": ").map_or(what.as_str(), |(_, remedy)| remedy);
        ensure!(said.contains(remedy), "{args:?} is refused otherwise than {what:?}: {said}");
    }
    ensure!(snapshot::rules_text(&topology.pod)? == before, "{args:?} has left something: {said}");
    Ok(())
}

/// A backend that writes rules is as `preflight` says, for `redirect` and for `tproxy`.
fn rules(backend: &str, captures: &[&dyn Capture]) -> Result<()> {
    let namespace = Namespace::new()?;
    let (lacks, lacks_tproxy) = missing(&namespace, backend)?;
    let apply = ["apply", "--backend", backend];
    if !lacks.is_empty() {
        seen(backend, &lacks.join("; "))?;
        return refused(&lacks, &apply);
    }
    for capture in captures {
        for case in cases() {
            play(&case, *capture, Stack::Dual)?;
        }
    }
    if !lacks_tproxy.is_empty() {
        seen(backend, &format!("works, but not with --mode tproxy: {}", lacks_tproxy.join("; ")))?;
        return refused(&lacks_tproxy, &[&apply[..], &["--mode", "tproxy"]].concat());
    }
    seen(backend, "works")?;
    captures.iter().try_for_each(|capture| play(&tproxy::tproxy_all(), *capture, Stack::Dual))
}

#[test]
fn nftables() -> Result<()> {
    rules("nftables", &[&OwnNftables])
}

#[test]
fn iptables_nft_by_netlink_and_by_its_programs() -> Result<()> {
    rules("iptables-nft", &[&IptablesByNetlink, &Millrace { variant: Variant::Nft }])
}

#[test]
fn iptables_legacy() -> Result<()> {
    rules("iptables-legacy", &[&Millrace { variant: Variant::Legacy }])
}

/// Whether the application's connection to a service reaches the proxy.
fn is_captured(topology: &Topology) -> Result<bool> {
    for &family in topology.stack.families() {
        let request = Dial {
            identity: APP,
            proto: Proto::Tcp,
            from: None,
            from_port: None,
            transparent_mark: None,
            to: Spot::Service.at(family, 80)?,
            timeout_ms: 10_000,
        };
        match dial(&topology.pod, &request)? {
            Outcome::Answered { answer, .. } if answer.name == "proxy" => {
                ensure!(answer.original == Some(request.to), "{answer:?}");
            }
            Outcome::Answered { answer, .. } if answer.name == "outside" => return Ok(false),
            other => bail!("{other}"),
        }
    }
    Ok(true)
}

/// Verify the programs' whole life where the kernel has what they take: loaded, a pod enrolled, loaded
/// again, taken away. Where it has not, they are refused before anything is made.
#[test]
fn ebpf() -> Result<()> {
    let _cgroup = Cgroup::enter()?;
    let cgroup = Cgroup::path()?.display().to_string();
    let topology = Topology::new(Stack::Dual, Layout::default())?;
    mount_bpffs(&topology.pod)?;
    let (lacks, _) = missing(&topology.pod, "ebpf")?;
    let load = ["node-bpf", "load", "--bpffs", FOLDER, "--cgroup", &cgroup, "--max-pods", "64"];
    if !lacks.is_empty() {
        seen("ebpf", &lacks.join("; "))?;
        let said = millrace_in_pod(&topology, &load, 1)?;
        let words = format!("eBPF can't work here: {}; nothing was changed", lacks.join("; "));
        ensure!(said.contains(&words) && said.trim_end().lines().count() == 1, "{said}");
        let left = topology.pod.run("find", &["/run/bpf", "-path", "*/millrace*"])?;
        ensure!(left.is_empty(), "{left}");
        millrace_in_pod(&topology, &APPLY, 1)?;
        return Ok(());
    }
    seen("ebpf", "works")?;
    millrace_in_pod(&topology, &load, 0)?;
    ensure!(!is_captured(&topology)?, "a pod that is not enrolled is captured");
    millrace_in_pod(&topology, &APPLY, 0)?;
    ensure!(is_captured(&topology)?, "an enrolled pod is not captured");
    let said = millrace_in_pod(&topology, &load, 0)?;
    ensure!(said.contains("0 programs attached, 10 replaced; 1 pod"), "{said}");
    ensure!(is_captured(&topology)?, "a pod is not captured with the programs of an upgrade");
    let status = ["status", "--backend", "ebpf", "--bpffs", FOLDER];
    let said = millrace_in_pod(&topology, &status, 0)?;
    ensure!(said.contains("captured"), "{said}");
    millrace_in_pod(&topology, &["cleanup", "--bpffs", FOLDER], 0)?;
    ensure!(!is_captured(&topology)?, "a pod that has left is captured");
    millrace_in_pod(&topology, &["node-bpf", "unload", "--bpffs", FOLDER], 0)?;
    let left = topology.pod.run("find", &["/run/bpf", "-path", "*/millrace*"])?;
    ensure!(left.is_empty(), "{left}");
    cases().iter().try_for_each(|case| play(case, &Ebpf, Stack::Dual))
}

/// `apply` as it is, without a word about how.
struct Auto;

impl Capture for Auto {
    fn name(&self) -> String {
        "millrace apply".to_owned()
    }

    fn apply(&self, topology: &Topology, config: &Config) -> Result<()> {
        let place = ["apply", "--bpffs", FOLDER];
        millrace_in_pod(topology, &[&place, config.flags()].concat(), 0).map(drop)
    }
}

/// Verify that a run which is not told how finds a way on every kernel.
#[test]
fn auto() -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.ip("link set lo up\n")?;
    let (_, said) = ran(&namespace, &mut millrace(["apply", "--bpffs", FOLDER])?)?;
    let taken = ["using nftables", "using iptables-nft", "using iptables-legacy"];
    let taken: Vec<&str> = taken.into_iter().filter(|how| said.contains(how)).collect();
    seen("auto", &taken.join(", "))?;
    play(&listener::own_redirect_unheard(), &Auto, Stack::Dual)
}

/// Verify that connections can be followed where `preflight` says so, and that it is refused in its
/// words where not.
#[test]
fn trace() -> Result<()> {
    let namespace = Namespace::new()?;
    namespace.ip("link set lo up\n")?;
    ran(&namespace, &mut millrace(["apply", "--backend", "nftables"])?)?;
    let said = preflight(&namespace)?;
    let findings = said["findings"].as_array().context("findings")?;
    let needed = |one: &&Value| one["what"].as_str().is_some_and(|what| what.contains("`trace`"));
    let finding = findings.iter().find(needed).context("a finding about trace")?;
    let mut command = millrace(["trace"])?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = namespace.enter(|| command.spawn())??;
    let stderr = child.stderr.take().context("a pipe was asked for")?;
    let mut first = String::new();
    let read = BufReader::new(stderr).read_line(&mut first);
    child.kill()?;
    child.wait()?;
    read?;
    if finding["there"] == true {
        ensure!(first.contains("following connections"), "{first}");
        return seen("trace", "works");
    }
    let remedy = finding["remedy"].as_str().context("a remedy")?;
    ensure!(first.contains(remedy), "{first:?} is not what preflight says: {remedy}");
    seen("trace", remedy)
}
