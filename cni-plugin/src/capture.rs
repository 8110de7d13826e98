//! The engine, as this plugin uses it: the calling thread is in the pod's namespace.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millrace_core::capture::{routing, to_iptables, to_nft};
use millrace_core::dialect::istio;
use millrace_core::nft::{self, NftRuleset, render_transaction};
use millrace_core::plan::{Effect, PASSTHROUGH_LINK, Wish};
use millrace_core::policy::CapturePolicy;
use millrace_core::preflight;
use millrace_core::report::{restore_text, routing_text};
use millrace_core::ruleset::Ruleset;
use millrace_core::source::{Source, Sourced};
use millrace_core::status::{State, Status, dialect, judge, judge_native};
use millrace_core::value::Groups;
use millrace_host::engine::{Drift, EngineError, Outcome, Request, Rules, Session};
use millrace_host::observe::Look;
use millrace_host::sandbox::Sandbox;
use millrace_host::{exec, facts};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;

use crate::config::Backend;
use crate::mesh::Mesh;

/// Whether IPv6 is switched off on `lo`: 1 if so, missing where the kernel has none
/// (`ip-sysctl`, `disable_ipv6`). It is that of the thread's own network namespace.
const LO_IPV6_OFF: &str = "/proc/sys/net/ipv6/conf/lo/disable_ipv6";

/// What a run did.
#[derive(Clone, Debug)]
pub(crate) struct Applied {
    /// What rules are written with, and why.
    pub(crate) by: String,
    /// Whether anything had to be done.
    pub(crate) changed: bool,
    /// How many programs were run.
    pub(crate) processes: usize,
    /// What the user should know.
    pub(crate) warnings: Vec<String>,
}

/// A namespace that the calling thread has entered.
#[derive(Debug)]
pub(crate) struct Pod {
    pub(crate) session: Session,
    pub(crate) groups: Groups,
    path: PathBuf,
    pub(crate) exec: exec::Options,
}

impl Pod {
    /// The calling thread's namespace, that is also at `path`.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
        let mut session = Session::open()?;
        let groups = facts::gather(session.net())?.groups;
        Ok(Self { session, groups, path: path.to_owned(), exec: exec::Options::default() })
    }

    /// Have programs, where they are needed, see no name service and lock the pod alone.
    fn prepare(&mut self) -> Result<(), String> {
        if !self.session.has_nf_tables() {
            Sandbox::check()?;
            let netns = Some(self.path.clone());
            self.exec.sandbox = Some(Sandbox { netns });
        }
        Ok(())
    }

    /// Capture both families. Where IPv6 is switched off and no interface has an address of it,
    /// there is none to capture, and the kernel would refuse its addresses and routes.
    pub(crate) fn fit(&mut self, mut policy: CapturePolicy) -> Result<CapturePolicy, EngineError> {
        let off = fs::read_to_string(LO_IPV6_OFF).map_or(true, |text| text.trim() == "1");
        if off && !self.session.net().addresses()?.iter().any(|a| a.address.is_ipv6()) {
            policy.ipv6 = Sourced::new(false, Source::Host("IPv6, which is off".to_owned()));
        }
        Ok(policy)
    }

    /// Capture this namespace so, whatever is there; twice is once.
    ///
    /// # Errors
    /// Why not; the namespace is then as it was.
    pub(crate) fn apply(
        &mut self,
        policy: CapturePolicy,
        mesh: Mesh,
        backend: Backend,
        wait: Duration,
    ) -> Result<Applied, EngineError> {
        let unprepared = self.prepare().err();
        let wanted = Wanted::new(&self.fit(policy)?, mesh);
        let native = wanted.native.ready(&self.groups)?;
        let rules = Rules { iptables: &wanted.iptables, native: Some(&native) };
        let outcome = self.run(Some(rules), wish(backend), wanted.marks.clone(), wait)?;
        let by = outcome.choice.map(|choice| choice.to_string()).unwrap_or_default();
        Ok(Applied {
            by,
            changed: !outcome.effects.is_empty(),
            processes: outcome.processes,
            warnings: unprepared.into_iter().chain(outcome.warnings).collect(),
        })
    }

    /// Hold what is there against what is wanted.
    ///
    /// # Errors
    /// When it can't be seen.
    pub(crate) fn check(
        &mut self,
        policy: CapturePolicy,
        mesh: Mesh,
        backend: Backend,
    ) -> Result<Option<String>, EngineError> {
        let wanted = Wanted::new(&self.fit(policy)?, mesh);
        let observed = self.session.observe(&self.exec, Look::Fast)?;
        let native = wanted.native.ready(&self.groups)?;
        let found = if backend != Backend::Iptables && observed.captures_natively() {
            judge_native(&observed, Some(&native), &self.groups)
        } else {
            judge(&observed, Some(&wanted.iptables), &self.groups)
        };
        Ok(difference(&found))
    }

    /// An interface of the calling thread's namespace, other than this one and `lo`, by which others
    /// may reach it; also when that can't be seen.
    pub(crate) fn another_interface(ifname: &str) -> Option<String> {
        let addresses = match getifaddrs() {
            Ok(addresses) => addresses,
            Err(errno) => return Some(format!("its interfaces can't be listed: {errno}")),
        };
        let reached = |a: &InterfaceAddress| {
            let v6 = a.address.as_ref().and_then(|a| Some(a.as_sockaddr_in6()?.ip()));
            let v4 = a.address.as_ref().is_some_and(|a| a.as_sockaddr_in().is_some());
            v4 || v6.is_some_and(|ip| !ip.is_unicast_link_local())
        };
        addresses
            .filter(|a| {
                !a.flags.contains(InterfaceFlags::IFF_LOOPBACK)
                    && ![ifname, PASSTHROUGH_LINK].contains(&a.interface_name.as_str())
            })
            .find(reached)
            .map(|a| a.interface_name)
    }

    /// Take away what this plugin wrote for a pod of the mesh that was noted, also beside the pod's
    /// entry where it had one. Gives whether there was anything.
    ///
    /// # Errors
    /// When it can't be seen, or not be taken away.
    pub(crate) fn remove(
        &mut self,
        noted: Option<Mesh>,
        had_entry: bool,
        wait: Duration,
    ) -> Result<bool, EngineError> {
        // Whose chains they are tells enough: rules are read once, by the run.
        let observed = self.session.observe(&self.exec, Look::Chains)?;
        // What a container of the pod wrote from inside is not ours. Only Millrace has Istio's pods
        // captured under its own name; that rules under another mesh's are ours, a note tells.
        let own = [Some(Mesh::Istio), noted].map(|mesh| mesh.map(Mesh::dialect));
        let found = dialect(&observed);
        let is_own = found.is_some() && own.contains(&found);
        if !is_own && !observed.interrupted && !had_entry {
            return Ok(false);
        }
        Ok(!self.run(None, Wish::Auto, vec![istio::TPROXY_DEFAULTS], wait)?.effects.is_empty())
    }

    pub(crate) fn run(
        &mut self,
        rules: Option<Rules<'_>>,
        wish: Wish,
        marks: Vec<(u32, u32)>,
        wait: Duration,
    ) -> Result<Outcome, EngineError> {
        self.session.run(&Request {
            rules,
            wish,
            drift: Drift::Replace,
            everything: false,
            dry_run: false,
            wait,
            groups: &self.groups,
            marks,
            exec: self.exec.clone(),
        })
    }
}

const fn wish(backend: Backend) -> Wish {
    match backend {
        // By eBPF is not by rules: where it comes to these, anything will do.
        Backend::Auto | Backend::Ebpf => Wish::Auto,
        Backend::Nftables => Wish::Backend(preflight::Backend::Nftables),
        Backend::Iptables => Wish::Iptables,
    }
}

/// The rules of a policy, for each backend.
#[derive(Debug)]
pub(crate) struct Wanted {
    iptables: Ruleset,
    native: NftRuleset,
    marks: Vec<(u32, u32)>,
}

impl Wanted {
    pub(crate) fn new(policy: &CapturePolicy, mesh: Mesh) -> Self {
        let tproxy = routing(policy, mesh.layout().passthrough)
            .tproxy
            .map(|(mark, table)| (mark.get(), table.get()));
        Self {
            iptables: to_iptables(policy, mesh.layout()),
            native: nft::merge(&to_nft(policy, mesh.nft_layout(), true)),
            marks: tproxy.into_iter().chain([istio::TPROXY_DEFAULTS]).collect(),
        }
    }

    /// The rules of each family with the reason of each, in iptables' words.
    pub(crate) fn explained(&self) -> String {
        let families = self.iptables.families();
        let rules: String = families.map(|family| restore_text(&self.iptables, family)).collect();
        rules + &routing_text(&self.iptables)
    }

    /// The transaction of nftables, as text.
    pub(crate) fn text(&self) -> String {
        render_transaction(&self.native)
    }
}

/// What is missing or differs, in a line; none when everything is as wanted.
fn difference(found: &Status) -> Option<String> {
    match found.state {
        State::Captured => None,
        State::NotCaptured => Some("no rules are there".to_owned()),
        State::Drifted => {
            let mut list: Vec<String> = found.differences.iter().map(told).collect();
            list.extend(found.notes.iter().chain(&found.neighbours).cloned());
            Some(format!("rules differ from what is wanted; to be whole: {}", list.join("; ")))
        }
    }
}

/// An effect with the lines it would write.
pub(crate) fn told(effect: &Effect) -> String {
    match effect {
        Effect::Restore { input: text, .. } => {
            let lines: Vec<&str> = text.lines().collect();
            format!("{effect} ({})", lines.join(", "))
        }
        other => other.to_string(),
    }
}
