//! STATUS: whether ADD would work.

use std::thread;
use std::time::{Duration, Instant};

use millrace_core::dialect::sidecar::ReportedBy;
use millrace_core::preflight::{self, Support};
use millrace_host::preflight::look;
use nix::sched::{CloneFlags, unshare};
use serde_json::Map;

use super::Job;
use crate::capture;
use crate::config::{Backend, ProxyIdentity};
use crate::decide::nobody;
use crate::level::Level;
use crate::lookup::{reach_agent, reach_api};
use crate::mesh::Mesh;
use crate::note::Notes;
use crate::protocol::{CniError, Code};

/// How long an answer is waited for: the runtime asks every few seconds.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) fn status(job: &mut Job<'_>) -> Result<String, CniError> {
    let able = match job.config.backend {
        Backend::Ebpf => capture::works(&job.config.bpffs),
        wanted => backend(wanted),
    };
    if let Err(why) = able {
        // Pods that are captured stay so, but nobody can look after their rules.
        let pods = Notes::new(&job.config.state_dir).list().unwrap_or_default().len();
        let (code, and) = match pods {
            0 => (Code::NotAvailable, String::new()),
            _ => (
                Code::LimitedConnectivity,
                format!(" The rules of up to {pods} captured pods can't be checked or changed."),
            ),
        };
        return Err(CniError::new(code, format!("no pod can be captured: {why}.{and}")));
    }
    if let Err(why) = sources(job) {
        let msg = format!("pods that may be in the mesh can't be told from others: {why}");
        return Err(CniError::new(Code::NotAvailable, msg));
    }
    if matches!(job.config.backend, Backend::Ebpf | Backend::Auto)
        && let Some(order) = capture::order(&job.config.bpffs)
    {
        // Pods are captured; what their proxies are told may be wrong.
        job.log.warn(&order);
    }
    job.log.done(Level::Debug, "available", Map::new());
    Ok(String::new())
}

/// Whether rules can be written, tried in a namespace of its own.
fn backend(wanted: Backend) -> Result<(), String> {
    let tried = thread::spawn(|| unshare(CloneFlags::CLONE_NEWNET).map(|()| look()));
    let findings = tried
        .join()
        .map_err(|_panic| "the look at the kernel's abilities failed".to_owned())?
        .map_err(|errno| {
            format!("namespaces can't be entered ({errno}): the capability SYS_ADMIN is missing")
        })?;
    let verdicts = preflight::verdicts(&findings, &preflight::Use::default(), &[]);
    let fits = |v: &&Support| match (wanted, v.backend) {
        // `auto` has to work where the node's programs are not loaded as well.
        (_, preflight::Backend::Ebpf) => false,
        (Backend::Auto | Backend::Ebpf, _) => true,
        (Backend::Nftables, of) => of == preflight::Backend::Nftables,
        (Backend::Iptables, of) => of != preflight::Backend::Nftables,
    };
    let mut fitting = verdicts.iter().filter(fits);
    if fitting.clone().any(|v| v.works) {
        return Ok(());
    }
    let lacks = |v: &Support| format!("{} lacks {}", v.backend.as_str(), v.missing.join(", "));
    Err(fitting.by_ref().map(lacks).collect::<Vec<_>>().join("; "))
}

/// Whether somebody answers who has to be asked about pods. Where the runtime tells annotations,
/// most pods need nobody; where the entry has no capability for them, every ADD needs somebody.
fn sources(job: &mut Job<'_>) -> Result<(), String> {
    let config = &job.config;
    let deadline = Instant::now() + PATIENCE;
    let mut failures = Vec::new();
    if let Some(socket) = &config.agent_socket {
        match reach_agent(socket, deadline) {
            Ok(()) => return Ok(()),
            Err(why) => failures.push(format!("the node agent: {why}")),
        }
    }
    let tells = |mesh: &Mesh| {
        mesh.sidecar().is_none_or(|sidecar| sidecar.reported_by == ReportedBy::Annotations)
    };
    let is_told = config.tells_annotations || config.pod_annotations.is_some();
    let annotations_tell = is_told && config.expected.keys().all(tells);
    if annotations_tell && config.proxy_identity != ProxyIdentity::Lookup {
        for why in failures {
            job.log.warn(&why);
        }
        return Ok(());
    }
    if let Some(kubeconfig) = &config.kubeconfig {
        match reach_api(kubeconfig, deadline) {
            Ok(()) => return Ok(()),
            Err(why) => failures.push(format!("the Kubernetes API: {why}")),
        }
    }
    if failures.is_empty() {
        failures.push(nobody(config));
    }
    Err(failures.join("; "))
}
