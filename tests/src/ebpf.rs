//! Capture by eBPF in the suites: the programs are pinned in a bpffs that only a namespace's mounts
//! have, so they end with it, however the test ends.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use millrace_core::dialect::istio;
use millrace_core::ebpf::{Refusals, compile};
use millrace_host::ebpf::{Enrolled, Node, Options, Target, default_cgroup};
use millrace_host::engine::Session;
use millrace_host::facts;
use nix::mount::{MsFlags, mount};

use crate::capture::{Capture, millrace_in_pod};
use crate::cases::Config;
use crate::netns::Namespace;
use crate::topology::Topology;

/// Where a namespace's mounts have their bpffs, and its pins.
pub const MOUNT: &str = "/run/bpf";
/// The folder of the pins.
pub const FOLDER: &str = "/run/bpf/millrace";

/// How the suites load the programs.
pub fn options() -> Result<Options> {
    Ok(Options {
        cgroup: default_cgroup().context("no cgroup v2 is mounted")?,
        accelerate: false,
        max_pods: 64,
        max_networks: 100_000,
    })
}

/// Give a namespace's mounts a bpffs.
pub fn mount_bpffs(namespace: &Namespace) -> Result<()> {
    namespace.enter(|| -> Result<()> {
        std::fs::create_dir_all(MOUNT)?;
        mount(Some("bpf"), MOUNT, Some("bpf"), MsFlags::empty(), None::<&str>)?;
        Ok(())
    })?
}

/// Give it the programs as well.
pub fn load(namespace: &Namespace) -> Result<()> {
    mount_bpffs(namespace)?;
    let options = options()?;
    namespace.enter(|| Node::load(Path::new(FOLDER), &options).map(drop))??;
    Ok(())
}

/// Millrace's eBPF capture, also for configurations that come as istio-iptables' flags.
#[derive(Clone, Copy, Debug)]
pub struct Ebpf;

impl Capture for Ebpf {
    fn name(&self) -> String {
        "millrace with eBPF".to_owned()
    }

    fn apply(&self, topology: &Topology, config: &Config) -> Result<()> {
        load(&topology.pod)?;
        let Config::Istio { flags, env } = config else {
            let options = ["apply", "--backend", "ebpf", "--bpffs", FOLDER];
            let args = [&options[..], config.flags()].concat();
            return millrace_in_pod(topology, &args, 0).map(drop);
        };
        let words = ["istio-iptables"].iter().chain(flags);
        let words: Vec<String> = words.map(|word| (*word).to_owned()).collect();
        let flags = crate::istio::pairs(&words)?;
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let raw = istio::Raw::new(flags, env.collect());
        topology.pod.enter(|| -> Result<()> {
            let mut session = Session::open()?;
            let facts = facts::gather(session.net())?;
            let policy = istio::resolve(&raw, &facts)?.policy;
            let entry = compile(&policy, &facts.groups)?;
            let target = Target::current()?;
            let (users, groups) = target.ids()?;
            let entry = entry.for_pod(&Target::addresses()?, &users, &groups)?;
            let node = Node::open(Path::new(FOLDER))?;
            match node.enrol(&target, &entry)? {
                Enrolled::Added => {}
                other => bail!("the pod was new, but it was {other:?}"),
            }
            // As with every backend, what the proxy passes on comes from an address of `lo`.
            if policy.ipv6.value {
                let change = millrace_core::plan::Change::Add;
                session.net().address(change, "::6".parse()?)?;
            }
            Ok(())
        })?
    }
}

/// Whether an error is that the configuration is refused.
pub fn is_refusal(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<Refusals>().is_some())
}
