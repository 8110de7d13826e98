//! Looking what a namespace has for each backend, without changing anything in it.

use std::fs;
use std::path::Path;

use millrace_core::iptables::DumpRule;
use millrace_core::nft::expr::{Comparison, CtField, Expr, MetaField};
use millrace_core::nft::needs::{NAT_CHAIN, needs};
use millrace_core::nft::tables::Base;
use millrace_core::nft::xtables::{XtRule, builtin_chain, encode};
use millrace_core::observed::Variant;
use millrace_core::preflight::{Backend, Finding};
use millrace_core::ruleset::{Hook, Table};
use millrace_core::value::{Family, Groups};
use nix::errno::Errno;
use nix::sys::utsname::uname;

use crate::link::{Net, has_ipv6};
use crate::nft::{self, NftError, TableFamily};
use crate::privilege::{Hint, NET_ADMIN, NET_RAW, has_capability};
use crate::tools::{Role, Tools};

use Backend::{IptablesLegacy, IptablesNft, Nftables};

const SYS_MODULE: u32 = 16;

/// Look at everything that rules need; [`crate::ebpf::features`] looks for what eBPF needs.
pub fn look() -> Vec<Finding> {
    let mut findings = capabilities();
    findings.push(nf_tables());
    findings.extend(expressions());
    findings.extend(of_iptables(Family::V4, |_| true));
    findings.push(owned_tables());
    findings.push(legacy());
    findings.extend(programs());
    let ipv6 = ipv6();
    findings.push(pairs(ipv6.there));
    findings.push(ipv6);
    findings.extend(bridges());
    findings
}

pub(crate) fn finding(
    what: impl Into<String>,
    there: bool,
    remedy: &str,
    needed_by: &[Backend],
) -> Finding {
    let remedy = if there { String::new() } else { remedy.to_owned() };
    let (what, needed_by) = (what.into(), needed_by.to_vec());
    Finding { what, there, remedy, needed_by, to_do_for: Vec::new(), made_of: Vec::new() }
}

/// What to do where a capability is missing.
pub(crate) const GRANT: &str = "add it to the container's security context";

fn capabilities() -> Vec<Finding> {
    vec![
        finding(
            "capability NET_ADMIN",
            has_capability(NET_ADMIN),
            &format!("{GRANT}{}", Hint::look()),
            &Backend::ALL,
        ),
        finding("capability NET_RAW", has_capability(NET_RAW), GRANT, &[IptablesLegacy]),
    ]
}

fn nf_tables() -> Finding {
    let what = "nf_tables in the kernel";
    let needed_by = [IptablesNft, Nftables];
    match nft::look(nft::ReadScope { native: &[], iptables: false, rules: false }) {
        Ok(Some(_)) => finding(what, true, "", &needed_by),
        Ok(None) => finding(what, false, "load nf_tables (CONFIG_NF_TABLES)", &needed_by),
        Err(error) => finding(what, false, &format!("it can't be asked: {error}"), &needed_by),
    }
}

/// What rules are made of, each asked for in a transaction that is never ended.
fn expressions() -> Vec<Finding> {
    let port = || Expr::Load(15001_u16.to_be_bytes().to_vec());
    let tcp = || [Expr::LoadMeta(MetaField::Protocol), Expr::Compare(Comparison::Eq, vec![6])];
    let v4 = || [Expr::LoadMeta(MetaField::Family), Expr::Compare(Comparison::Eq, vec![2])];
    let zone = || Expr::Load(1_u16.to_ne_bytes().to_vec());
    let nat = [&tcp()[..], &[port(), Expr::Redirect]].concat();
    let tproxy = [&v4()[..], &tcp(), &[port(), Expr::Tproxy(Family::V4)]].concat();
    let tries = [
        ("redirection (nft_redir, nft_nat)", "nat", -100, nat, &[Nftables][..]),
        (
            "connection tracking (conntrack, nft_ct)",
            "filter",
            -150,
            vec![Expr::LoadCt(CtField::State)],
            &[Nftables],
        ),
        (
            "conntrack zones (nft_ct)",
            "filter",
            -300,
            vec![zone(), Expr::StoreCt(CtField::Zone)],
            &[Nftables],
        ),
        ("transparent proxying (nft_tproxy)", "filter", -150, tproxy, &[Nftables]),
        (
            "transparent sockets (nft_socket), which no rule asks for",
            "filter",
            -150,
            vec![Expr::LoadTransparent],
            &[],
        ),
    ];
    tries
        .into_iter()
        .map(|(what, kind, priority, exprs, needed_by)| {
            let base = Base { kind: kind.to_owned(), hook: 0, priority };
            tried(
                what.to_owned(),
                (TableFamily::Inet, "millrace-preflight"),
                &base,
                &XtRule { exprs, protocol: None },
                needed_by,
            )
        })
        .collect()
}

/// A rule for each match and target that iptables' rules have.
const OF_IPTABLES: [(&str, Table, Hook, &str); 11] = [
    ("matches tcp and udp", Table::Nat, Hook::Output, "-p tcp -m tcp --dport 1 -j RETURN"),
    ("match owner", Table::Nat, Hook::Output, "-m owner --uid-owner 0 -j RETURN"),
    ("match multiport", Table::Nat, Hook::Output, "-p tcp -m multiport --dports 1,2 -j RETURN"),
    (
        "match conntrack",
        Table::Mangle,
        Hook::Prerouting,
        "-p tcp -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
    ),
    ("match mark", Table::Mangle, Hook::Output, "-p tcp -m mark --mark 0x1 -j RETURN"),
    ("match connmark", Table::Mangle, Hook::Output, "-p tcp -m connmark --mark 0x1 -j RETURN"),
    ("target REDIRECT", Table::Nat, Hook::Output, "-p tcp -j REDIRECT --to-ports 15001"),
    ("target MARK", Table::Mangle, Hook::Output, "-p tcp -j MARK --set-xmark 0x1/0xffffffff"),
    (
        "target CONNMARK",
        Table::Mangle,
        Hook::Output,
        "-p tcp -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff",
    ),
    (
        "target TPROXY",
        Table::Mangle,
        Hook::Prerouting,
        "-p tcp -j TPROXY --on-port 15006 --on-ip 0.0.0.0 --tproxy-mark 0x1/0xffffffff",
    ),
    ("target CT", Table::Raw, Hook::Output, "-p udp -j CT --zone 1"),
];

/// What the kernel lacks of what the input of `iptables-restore` asks for, and what to do about it.
pub(crate) fn lacking(family: Family, input: &str) -> Vec<String> {
    let asks = |text: &str| {
        let word = text.split_once("-j ").map_or("", |(_, target)| target).split(' ').next();
        let matched = text.split_once("-m ").and_then(|(_, rest)| rest.split(' ').next());
        // A rule is for its match, and only without one for its target.
        let (option, word) = matched.map_or(("-j", word), |name| ("-m", Some(name)));
        word.is_some_and(|word| input.contains(&format!("{option} {word} ")))
    };
    let findings = of_iptables(family, asks).into_iter().filter(|finding| !finding.there);
    let mut lacks: Vec<String> = findings.map(|f| format!("{}: {}", f.what, f.remedy)).collect();
    let nf_tables = nf_tables();
    if !nf_tables.there {
        lacks = vec![format!("{}: {}", nf_tables.what, nf_tables.remedy)];
    }
    lacks
}

/// The same for what iptables' rules are made of, as far as it is wanted.
fn of_iptables(family: Family, wanted: impl Fn(&str) -> bool) -> Vec<Finding> {
    let rule = |text: &str| {
        let rule = DumpRule::from_text(text, None).rule.ok()?;
        encode(&rule, family, &Groups::new()).ok()
    };
    OF_IPTABLES
        .into_iter()
        .filter(|(.., text)| wanted(text))
        .filter_map(|(name, table, hook, text)| {
            let (kind, priority) = builtin_chain(table, hook)?;
            let base = Base { kind: kind.to_owned(), hook: hook.number(), priority };
            let what = format!("iptables' {name} (nft_compat)");
            Some(tried(
                what,
                (TableFamily::Ip(family), table.as_str()),
                &base,
                &rule(text)?,
                &[IptablesNft],
            ))
        })
        .collect()
}

fn tried(
    what: String,
    (family, table): (TableFamily, &str),
    base: &Base,
    rule: &XtRule,
    needed_by: &[Backend],
) -> Finding {
    let mut made_of = needs(&rule.exprs);
    made_of.extend((base.kind == "nat").then(|| NAT_CHAIN.to_owned()));
    let found = match nft::rehearse(family, table, base, rule) {
        Ok(()) => finding(what, true, "", needed_by),
        Err(NftError::Rejected { why: Errno::EPERM, .. }) => {
            finding(what, false, "it can't be asked for without NET_ADMIN", &[])
        }
        Err(NftError::Rejected { why, needs, .. }) if nft::is_missing(why) && !needs.is_empty() => {
            finding(
                what,
                false,
                &format!("load {}; the kernel says {why}", needs.join(" or ")),
                needed_by,
            )
        }
        Err(error) => finding(what, false, &error.to_string(), needed_by),
    };
    Finding { made_of, ..found }
}

/// Whether `trace` can follow packets; nothing else needs it.
fn owned_tables() -> Finding {
    let what = "tables that end with their process (nf_tables), which `trace` needs";
    match nft::OwnedTable::rehearse() {
        Ok(()) => finding(what, true, "", &[]),
        Err(NftError::Rejected { why: Errno::EPERM, .. }) => {
            finding(what, false, "it can't be asked for without NET_ADMIN", &[])
        }
        Err(error) => finding(what, false, &error.to_string(), &[]),
    }
}

/// The tables of iptables-legacy are there when their module is, which its programs load where they may.
fn legacy() -> Finding {
    let there = Path::new("/proc/thread-self/net/ip_tables_names").exists();
    let loadable =
        !there && has_capability(SYS_MODULE) && has_modprobe() && has_module("ip_tables");
    let what = if loadable {
        "iptables' own tables in the kernel (ip_tables is not loaded, and can be)"
    } else {
        "iptables' own tables in the kernel"
    };
    finding(
        what,
        there || loadable,
        "load ip_tables, iptable_nat, iptable_mangle, iptable_raw and their ip6 twins on the node",
        &[IptablesLegacy],
    )
}

/// Whether what iptables and the kernel load modules by is here.
fn has_modprobe() -> bool {
    let path = fs::read_to_string("/proc/sys/kernel/modprobe").unwrap_or_default();
    !path.trim().is_empty() && Path::new(path.trim()).exists()
}

/// Whether the running kernel's modules have this one (`depmod(8)`).
fn has_module(name: &str) -> bool {
    let Ok(system) = uname() else { return false };
    let folder = Path::new("/lib/modules").join(system.release());
    let modules = fs::read_to_string(folder.join("modules.dep")).unwrap_or_default();
    let file = format!("/{name}.ko");
    modules.lines().filter_map(|line| line.split(':').next()).any(|path| path.contains(&file))
}

fn programs() -> Vec<Finding> {
    let mut tools = Tools::default();
    let mut findings = Vec::new();
    // Rules of iptables-nft need no program, unless one is asked for.
    for (variant, backend) in [(Variant::Nft, None), (Variant::Legacy, Some(IptablesLegacy))] {
        for family in Family::ALL {
            let missing = [Role::Save, Role::Restore]
                .into_iter()
                .find_map(|role| tools.path(variant, family, role).err());
            let remedy = missing.as_ref().map(ToString::to_string).unwrap_or_default();
            // A pod without IPv6 can do without the IPv6 half.
            let needed_by: Vec<Backend> =
                backend.filter(|_| family == Family::V4).into_iter().collect();
            let what = format!("programs of {variant} for {family}");
            findings.push(finding(what, missing.is_none(), &remedy, &needed_by));
        }
    }
    findings
}

/// What the address is on that the proxy passes IPv6 connections on from.
fn pairs(ipv6: bool) -> Finding {
    let needed_by = if ipv6 { &Backend::ALL[..] } else { &[] };
    let what = "pairs of interfaces (veth), which capture of IPv6 needs";
    match Net::open().map(|net| net.tries_pair()) {
        Ok(Ok(())) => finding(what, true, "", needed_by),
        Ok(Err(Errno::EOPNOTSUPP)) => {
            finding(what, false, "load veth (CONFIG_VETH), or capture without IPv6", needed_by)
        }
        Ok(Err(Errno::EPERM)) => {
            finding(what, false, "it can't be asked for without NET_ADMIN", &[])
        }
        Ok(Err(errno)) => finding(what, false, &format!("the kernel says {errno}"), needed_by),
        // Nobody was asked, so nothing is known to be missing.
        Err(error) => finding(what, false, &error.to_string(), &[]),
    }
}

/// Whether TPROXY gets what comes in; other ways of capture do without it.
fn bridges() -> Option<Finding> {
    let what = "the way to a transparent socket (TPROXY)";
    let remedy = |why: &str| format!("{why}; without it, capture by REDIRECT");
    match Net::open().and_then(|net| net.bridges()) {
        Ok(bridges) => bridges.first().map(|(name, _)| {
            let why = format!(
                "{name} is a bridge that gives packets to rules: set \
                 net.bridge.bridge-nf-call-iptables and bridge-nf-call-ip6tables to 0"
            );
            finding(what, false, &remedy(&why), &[])
        }),
        Err(error) => Some(finding(what, false, &remedy(&error.to_string()), &[])),
    }
}

fn ipv6() -> Finding {
    let off = fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    let there = has_ipv6() && off.is_ok_and(|off| off.trim() == "0");
    let remedy = if has_ipv6() {
        "nothing, unless the pod needs it: set net.ipv6.conf.all.disable_ipv6 to 0"
    } else {
        "nothing, unless the pod needs it: the kernel has none, by ipv6.disable=1 on its command line or \
         without CONFIG_IPV6"
    };
    finding("IPv6", there, remedy, &[])
}
