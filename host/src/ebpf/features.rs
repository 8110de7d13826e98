//! What this kernel and this process have of what eBPF capture is made of, each part asked for:
//! tiny programs and maps are made, and gone at once.

use std::fmt::Display;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported, is_map_supported};
use millrace_core::preflight::{Backend, Finding, Use, verdicts};
use nix::errno::Errno;

use super::error::EbpfError;
use super::folder::is_in_bpffs;
use super::node::{Node, default_cgroup};
use super::target::Target;
use super::{sys_bpf, sys_sockets};
use crate::preflight::{GRANT, finding};
use crate::privilege::NET_ADMIN;
use crate::privilege::has_capability;

/// Numbers of capabilities (`linux/capability.h`).
const SYS_PTRACE: u32 = 19;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

/// What can't be done without.
const NEEDED: &[Backend] = &[Backend::Ebpf];
/// No backend: without such a part only a feature is missing.
const SPARED: &[Backend] = &[];

/// A kind of program: its name, its type and attach types (`enum bpf_prog_type`, `enum
/// bpf_attach_type`), what a kernel needs for it, and since when it has it.
type Kind = (&'static str, u32, &'static [u32], &'static str, &'static str, &'static [Backend]);

const CGROUP: &str = "CONFIG_CGROUP_BPF";

const KINDS: [Kind; 8] = [
    ("connect() (connect4, connect6)", 18, &[10, 11], CGROUP, "4.17", NEEDED),
    ("UDP queries (sendmsg4, sendmsg6)", 18, &[14, 15], CGROUP, "4.18", NEEDED),
    ("their answers (recvmsg4, recvmsg6)", 18, &[19, 20], CGROUP, "5.2", NEEDED),
    ("getpeername() (getpeername4, getpeername6)", 18, &[29, 30], CGROUP, "5.8", NEEDED),
    ("getsockopt(), which tells original destinations", 25, &[21], CGROUP, "5.3", NEEDED),
    ("the states of sockets (sock_ops)", 13, &[3], CGROUP, "4.13", NEEDED),
    ("inbound connections (sk_lookup)", 30, &[36], "CONFIG_INET", "5.9", NEEDED),
    ("data between sockets (sk_msg), for --accelerate", 16, &[7], "CONFIG_NET", "4.17", SPARED),
];

/// A function of the kernel, the types of programs that call it, and since when they can.
type Helper = (&'static str, BpfHelper, &'static [(ProgramType, &'static str)], &'static str);

const SOCK_ADDR: (ProgramType, &str) = (ProgramType::CgroupSockAddr, "sock_addr");
const SOCK_OPS: (ProgramType, &str) = (ProgramType::SockOps, "sock_ops");
const SOCKOPT: (ProgramType, &str) = (ProgramType::CgroupSockopt, "sockopt");
const LOOKUP: (ProgramType, &str) = (ProgramType::SkLookup, "sk_lookup");

const HELPERS: [Helper; 10] = [
    (
        "bpf_get_netns_cookie, by which pods are told apart",
        BpfHelper::BPF_FUNC_get_netns_cookie,
        &[SOCK_ADDR, SOCK_OPS, SOCKOPT],
        "5.15",
    ),
    (
        "bpf_sk_storage_get, which keeps original destinations",
        BpfHelper::BPF_FUNC_sk_storage_get,
        &[SOCK_ADDR, SOCK_OPS, SOCKOPT],
        "5.9",
    ),
    (
        "bpf_sock_ops_cb_flags_set, which tells when connections end",
        BpfHelper::BPF_FUNC_sock_ops_cb_flags_set,
        &[SOCK_OPS],
        "4.16",
    ),
    ("bpf_get_socket_cookie", BpfHelper::BPF_FUNC_get_socket_cookie, &[SOCK_ADDR, SOCK_OPS], "5.9"),
    (
        "bpf_get_current_uid_gid, which tells the proxy from the application",
        BpfHelper::BPF_FUNC_get_current_uid_gid,
        &[SOCK_ADDR],
        "4.17",
    ),
    (
        "bpf_bind, which keeps source addresses and tells the pod's own",
        BpfHelper::BPF_FUNC_bind,
        &[SOCK_ADDR],
        "4.17",
    ),
    (
        "bpf_setsockopt, which frees connections of devices",
        BpfHelper::BPF_FUNC_setsockopt,
        &[SOCK_ADDR],
        "5.8",
    ),
    (
        "bpf_sock_hash_update, which finds the proxy's listeners",
        BpfHelper::BPF_FUNC_sock_hash_update,
        &[SOCK_OPS],
        "4.18; before 5.13 with CONFIG_BPF_STREAM_PARSER",
    ),
    (
        "bpf_sk_assign, which hands connections to the proxy",
        BpfHelper::BPF_FUNC_sk_assign,
        &[LOOKUP],
        "5.9",
    ),
    ("bpf_tail_call", BpfHelper::BPF_FUNC_tail_call, &[LOOKUP], "5.9"),
];

/// Types of maps, what they hold, and what a kernel needs for them.
const MAPS: [(&str, MapType, &str); 9] = [
    ("hash, for pods and connections", MapType::Hash, "3.19"),
    ("array, for settings", MapType::Array, "3.19"),
    ("LRU hash, for connections to refuse and addresses", MapType::LruHash, "4.10"),
    ("per-CPU array", MapType::PerCpuArray, "4.6"),
    ("LPM trie, for networks", MapType::LpmTrie, "4.11"),
    ("program array", MapType::ProgramArray, "4.2"),
    (
        "socket hash, for the proxy's listeners",
        MapType::SockHash,
        "4.18; before 5.13 with CONFIG_BPF_STREAM_PARSER",
    ),
    ("socket storage, for original destinations", MapType::SkStorage, "5.2"),
    ("ring buffer, for trace", MapType::RingBuf, "5.8"),
];

/// What is said of what can't be asked for.
const UNASKED: &str = "it can't be asked for: ";

/// Whether the kernel has something.
enum Has {
    Yes,
    No,
    /// The kernel can't be asked, and why: it may have it or not.
    Refused(String),
}

impl Has {
    fn said<E: Display>(answer: Result<bool, E>) -> Self {
        match answer {
            Ok(true) => Self::Yes,
            Ok(false) => Self::No,
            Err(error) => Self::Refused(error.to_string()),
        }
    }

    fn tried(answer: io::Result<()>) -> Self {
        match answer {
            Ok(()) => Self::Yes,
            // An unknown type of program or command, and an argument that is too long for it.
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EINVAL | Errno::E2BIG | Errno::ENOPROTOOPT | Errno::ENOSYS) => Self::No,
                _ => Self::Refused(error.to_string()),
            },
        }
    }

    fn finding(self, what: String, remedy: &str, needed_by: &[Backend]) -> Finding {
        match self {
            Self::Yes => finding(what, true, "", needed_by),
            Self::No => finding(what, false, remedy, needed_by),
            Self::Refused(why) => finding(what, false, &format!("{UNASKED}{why}"), needed_by),
        }
    }
}

/// Look at everything, with the pins of the node's programs in `folder`.
pub fn features(folder: &Path) -> Vec<Finding> {
    let mut findings = capabilities();
    let able = missing(&findings).is_none() && has_capability(NET_ADMIN);
    findings.extend(places(folder));
    findings.push(cookies());
    findings.push(other_processes());
    if !able {
        // Any answer would be about privilege.
        let remedy = "it can't be asked without NET_ADMIN, BPF and PERFMON";
        findings.push(finding("what the kernel has for eBPF", false, remedy, SPARED));
        return findings;
    }
    // If not even this is there, nothing else needs to be asked.
    let array = is_map_supported(MapType::Array).map_err(|error| error.io_error);
    if let Err(why) = array {
        let remedy = format!(
            "{why}: it takes a kernel with CONFIG_BPF_SYSCALL, and no seccomp filter or lockdown \
             that refuses it"
        );
        findings.push(finding("the system call bpf(2)", false, &remedy, NEEDED));
        return findings;
    }
    findings.push(finding("the system call bpf(2)", true, "", NEEDED));
    findings.extend(kinds());
    findings.push(links());
    findings.push(first());
    findings.extend(helpers());
    findings.extend(maps());
    findings.push(finding(
        "the kernel's own types (/sys/kernel/btf/vmlinux), which no program asks for",
        Path::new("/sys/kernel/btf/vmlinux").exists(),
        "it takes a kernel with CONFIG_DEBUG_INFO_BTF",
        SPARED,
    ));
    findings.push(loaded(folder));
    findings.extend(order(folder));
    findings
}

/// Whether somebody else's programs come first, where the node's are loaded.
fn order(folder: &Path) -> Option<Finding> {
    let order = Node::open(folder).and_then(|node| node.order()).ok()?.reported();
    let what = "connections before any other program has changed them";
    Some(finding(what, order.is_none(), &order.unwrap_or_default(), SPARED))
}

/// What the kernel says that it lacks, in one line; what it can't be asked for is not said to be
/// missing.
pub(super) fn unable() -> Option<String> {
    if matches!(is_map_supported(MapType::Array), Err(_) | Ok(false)) {
        return None;
    }
    let said = |finding: &Finding| {
        let lacks = !finding.there && !finding.needed_by.is_empty();
        lacks && !finding.remedy.starts_with(UNASKED)
    };
    let all =
        [cookies()].into_iter().chain(kinds()).chain([links()]).chain(helpers()).chain(maps());
    let lacks: Vec<String> =
        all.filter(said).map(|f| format!("{}: {}", f.what, f.remedy)).collect();
    (!lacks.is_empty()).then(|| lacks.join("; "))
}

/// What is missing, if anything is, in one line.
pub fn lacking(folder: &Path) -> Option<String> {
    missing(&features(folder))
}

/// Which privileges this process lacks, if any: all that can be missing where the node's programs
/// are loaded.
pub fn unprivileged() -> Option<String> {
    missing(&capabilities())
}

fn missing(findings: &[Finding]) -> Option<String> {
    let found = verdicts(findings, &Use::default(), &[]);
    let missing = found.into_iter().find(|v| v.backend == Backend::Ebpf)?.missing;
    (!missing.is_empty()).then(|| missing.join("; "))
}

fn capabilities() -> Vec<Finding> {
    let or_admin = |number| has_capability(number) || has_capability(SYS_ADMIN);
    vec![
        finding("capability BPF, or SYS_ADMIN", or_admin(BPF), GRANT, NEEDED),
        finding("capability PERFMON, or SYS_ADMIN", or_admin(PERFMON), GRANT, NEEDED),
        finding(
            "capability SYS_PTRACE, which a proxy takes that listens before its pod is enrolled",
            has_capability(SYS_PTRACE),
            GRANT,
            SPARED,
        ),
    ]
}

/// Where programs are pinned and attached.
fn places(folder: &Path) -> [Finding; 2] {
    [
        finding(
            format!("bpffs for {}", folder.display()),
            is_in_bpffs(folder),
            "mount -t bpf bpf /sys/fs/bpf, or name a folder of one with --bpffs; it takes a \
             kernel with CONFIG_BPF_SYSCALL",
            NEEDED,
        ),
        finding(
            "cgroup v2",
            default_cgroup().is_some(),
            "mount -t cgroup2 cgroup2 /sys/fs/cgroup; it takes a kernel with CONFIG_CGROUPS and \
             CONFIG_CGROUP_BPF",
            NEEDED,
        ),
    ]
}

fn cookies() -> Finding {
    let answer = match Target::current() {
        Ok(_) => Has::Yes,
        Err(EbpfError::Kernel { source, .. }) => Has::tried(Err(source)),
        Err(error) => Has::Refused(error.to_string()),
    };
    let what = "cookies of network namespaces (SO_NETNS_COOKIE)";
    answer.finding(what.to_owned(), "it takes Linux 5.14", NEEDED)
}

/// Whether sockets of other processes can be had, tried with a file of this one.
fn other_processes() -> Finding {
    let answer = File::open("/proc/self/stat").and_then(|file| {
        sys_sockets::descriptor_of(std::process::id(), file.as_raw_fd()).map(drop)
    });
    Has::tried(answer).finding(
        "pidfd_getfd(2), which a proxy takes that listens before its pod is enrolled".to_owned(),
        "it takes Linux 5.6, and no seccomp filter that refuses it",
        SPARED,
    )
}

fn links() -> Finding {
    let what = "links of eBPF programs, which can be replaced".to_owned();
    Has::tried(sys_bpf::try_links()).finding(what, "it takes Linux 5.9", NEEDED)
}

/// Whether a socket load balancer at the same cgroup can be gone before.
fn first() -> Finding {
    let what = "eBPF programs that are called before those of others (BPF_F_PREORDER)".to_owned();
    let remedy = "it takes Linux 6.15; until then `node-bpf load` goes below a program that is at the \
                  root already";
    Has::tried(sys_bpf::try_first()).finding(what, remedy, SPARED)
}

fn kinds() -> impl Iterator<Item = Finding> {
    KINDS.into_iter().map(|(name, kind, attach, option, since, needed_by)| {
        let tried = attach.iter().try_for_each(|attach| sys_bpf::try_program(kind, *attach));
        let remedy = format!("it takes a kernel with {option}, from Linux {since}");
        Has::tried(tried).finding(format!("eBPF programs for {name}"), &remedy, needed_by)
    })
}

fn helpers() -> impl Iterator<Item = Finding> {
    HELPERS.into_iter().map(|(name, helper, kinds, since)| {
        let lacks = kinds.iter().find_map(|(kind, called)| {
            match Has::said(is_helper_supported(*kind, helper)) {
                Has::Yes => None,
                other => Some((*called, other)),
            }
        });
        let (called, has) = lacks.unwrap_or(("", Has::Yes));
        let remedy = format!("programs of type {called} lack it; it takes Linux {since}");
        has.finding(name.to_owned(), &remedy, NEEDED)
    })
}

fn maps() -> impl Iterator<Item = Finding> {
    MAPS.into_iter().map(|(name, kind, since)| {
        let has = Has::said(is_map_supported(kind).map_err(|error| error.io_error));
        has.finding(format!("eBPF maps: {name}"), &format!("it takes Linux {since}"), NEEDED)
    })
}

/// Whether the node's programs are there. That they are not yet is no obstacle, but has to be done first.
fn loaded(folder: &Path) -> Finding {
    let what = format!("the node's programs in {}", folder.display());
    let state = match Node::open(folder).and_then(|node| node.state()) {
        Ok(state) => state,
        Err(EbpfError::NotLoaded(_)) => {
            let remedy = "`millrace node-bpf load`, before pods are enrolled";
            let to_do_for = NEEDED.to_vec();
            return Finding { to_do_for, ..finding(what, false, remedy, SPARED) };
        }
        Err(error) => return finding(what, false, &error.to_string(), NEEDED),
    };
    if let Some(faults) = state.faults.reported() {
        let remedy = format!("`millrace node-bpf load` puts them back: {faults}");
        return finding(what, false, &remedy, NEEDED);
    }
    let version = if state.current { "of this version" } else { "of another version" };
    finding(format!("{what}, {version}"), true, "", NEEDED)
}
