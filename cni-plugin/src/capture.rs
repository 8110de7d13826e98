//! What is done with a pod's namespace, which the calling thread has entered.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Instant;

use millrace_core::desired::Desired;
use millrace_core::dialect::MARKS;
use millrace_core::nft::render_transaction;
use millrace_core::observed::Observed;
use millrace_core::plan::{PASSTHROUGH_LINK, Preference};
use millrace_core::policy::CapturePolicy;
use millrace_core::preflight;
use millrace_core::report::{restore_text, routing_text};
use millrace_core::status::dialect;
use millrace_core::value::Groups;
use millrace_host::capture::{
    self, Applied, By, CaptureError, Checked, Farewell, Left, Order, Pins, fit,
};
use millrace_host::ebpf::Node;
use millrace_host::engine::{EngineError, Session};
use millrace_host::netns::Netns;
use millrace_host::sandbox::Sandbox;
use millrace_host::{exec, facts};
use nix::ifaddrs::{InterfaceAddress, getifaddrs};
use nix::net::if_::InterfaceFlags;

use crate::config::{Backend, Config};
use crate::mesh::Mesh;
use crate::note::Notes;

/// A namespace that the calling thread has entered.
#[derive(Debug)]
pub(crate) struct Pod {
    session: Session,
    groups: Groups,
    path: PathBuf,
}

/// What is wanted of it.
#[derive(Clone, Debug)]
pub(crate) struct Want<'j> {
    pub(crate) policy: CapturePolicy,
    pub(crate) mesh: Mesh,
    pub(crate) config: &'j Config,
    pub(crate) netns: &'j Netns,
    pub(crate) deadline: Instant,
}

impl Pod {
    /// The calling thread's namespace, that is also at `path`.
    ///
    /// # Errors
    /// When the kernel can't be asked.
    pub(crate) fn open(path: &Path) -> Result<Self, EngineError> {
        Ok(Self { session: Session::open()?, groups: facts::groups(), path: path.to_owned() })
    }

    /// Capture this namespace so, whatever is there; twice is once.
    ///
    /// # Errors
    /// See [`CaptureError`]; but for [`CaptureError::Rest`], the namespace is as it was.
    pub(crate) fn apply(&mut self, want: Want<'_>) -> Result<Applied, CaptureError> {
        let mut exec = exec::Options::default();
        let mut warnings = Vec::new();
        // Programs, where they are needed, see no name service and lock the pod alone.
        if !self.session.has_nf_tables() {
            match Sandbox::check() {
                Ok(()) => exec.sandbox = Some(Sandbox { netns: Some(self.path.clone()) }),
                Err(why) => warnings.push(why),
            }
        }
        let notes = Notes::new(&want.config.state_dir);
        let mut applied =
            self.ordered(want, |session, order| capture::apply(session, &Order { exec, ..order }))?;
        // Where none is, ADD has told already that notes can't be written.
        if applied.enrolled.is_some() {
            let _noted = notes.had_ebpf();
        }
        warnings.append(&mut applied.outcome.warnings);
        applied.outcome.warnings = warnings;
        Ok(applied)
    }

    /// Hold what is there against what is wanted.
    ///
    /// # Errors
    /// When it can't be seen.
    pub(crate) fn check(&mut self, want: Want<'_>) -> Result<Checked, CaptureError> {
        self.ordered(want, |session, order| capture::check(session, &order))
    }

    fn ordered<T>(
        &mut self,
        want: Want<'_>,
        f: impl FnOnce(&mut Session, Order<'_>) -> Result<T, CaptureError>,
    ) -> Result<T, CaptureError> {
        let Want { policy, mesh, config, netns, deadline } = want;
        let desired = Desired::new(fit(&mut self.session, policy)?, mesh.dialect());
        let expected = config.expects_ebpf || Notes::new(&config.state_dir).has_had_ebpf();
        let pins = Pins { folder: &config.bpffs, expected };
        let within = deadline.saturating_duration_since(Instant::now());
        let order = Order {
            pins: Some(pins),
            entered: Some(netns),
            deadline,
            ..Order::new(&desired, by(config.backend), &self.groups, within)
        };
        f(&mut self.session, order)
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

    /// Whether an interface of the calling thread's namespace has one of these addresses; not where that
    /// can't be seen.
    pub(crate) fn has_one_of(ifname: &str, addresses: &[IpAddr]) -> bool {
        let ip = |a: InterfaceAddress| {
            let a = a.address?;
            let v4 = a.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| Some(IpAddr::V6(a.as_sockaddr_in6()?.ip())))
        };
        let all = getifaddrs().into_iter().flatten().filter(|a| a.interface_name == ifname);
        all.filter_map(ip).any(|ip| addresses.contains(&ip))
    }

    /// Take away what this plugin wrote for a pod of the mesh that was noted, also beside the pod's
    /// entry where it had one. A dry run tells what there is to take.
    ///
    /// # Errors
    /// When it can't be seen, or not be taken away.
    pub(crate) fn leave(
        &mut self,
        noted: Option<Mesh>,
        folder: &Path,
        until: Instant,
        dry_run: bool,
    ) -> Result<Left, CaptureError> {
        // What a container of the pod wrote from inside is not ours. Only Millrace has Istio's pods
        // captured under its own name; that rules under another mesh's are ours, a note tells.
        let own = [Some(Mesh::Istio), noted].map(|mesh| mesh.map(|mesh| mesh.dialect().name));
        let chosen = |observed: &Observed, had_entry: bool| {
            let found = dialect(observed);
            found.is_some() && own.contains(&found) || observed.interrupted || had_entry
        };
        let farewell = Farewell {
            folder: Some(folder),
            entered: None,
            chosen: Some(&chosen),
            marks: MARKS.to_vec(),
            groups: &self.groups,
            dry_run,
            wait: until.saturating_duration_since(Instant::now()),
            exec: exec::Options::default(),
        };
        capture::leave(&mut self.session, &farewell)
    }
}

const fn by(backend: Backend) -> By {
    match backend {
        Backend::Auto => By::Any,
        Backend::Ebpf => By::Ebpf,
        Backend::Nftables => By::Rules(Preference::Backend(preflight::Backend::Nftables)),
        Backend::Iptables => By::Rules(Preference::Iptables),
    }
}

/// The rules of a policy, each with its reason, in iptables' words.
pub(crate) fn explained(desired: &Desired) -> String {
    let families = desired.iptables.families();
    let rules: String = families.map(|family| restore_text(&desired.iptables, family)).collect();
    rules + &routing_text(&desired.iptables)
}

/// The transaction of nftables, as text.
pub(crate) fn transaction(desired: &Desired) -> String {
    desired.native.as_ref().map(render_transaction).unwrap_or_default()
}

/// Whether ADD with these programs would work.
///
/// # Errors
/// That there are none, or what of them is missing, in words.
pub(crate) fn works(folder: &Path) -> Result<(), String> {
    let node = Node::open(folder).map_err(|error| error.to_string())?;
    match node.faults().map_err(|error| error.to_string())?.reported() {
        None => Ok(()),
        Some(faults) => Err(format!("the node's programs are not whole: {faults}")),
    }
}

/// Which program of others decides before the node's, if one does.
pub(crate) fn order(folder: &Path) -> Option<String> {
    Node::open(folder).and_then(|node| node.order()).ok()?.reported()
}
