//! Looking what a namespace has for each backend, without changing anything in it.

use std::fs;
use std::path::Path;

use millrace_core::dialect::native::NFT_LAYOUT;
use millrace_core::nft::expr::{Comparison, CtField, Expr, MetaField, Verdict};
use millrace_core::nft::tables::{Base, NativeChain};
use millrace_core::observed::Variant;
use millrace_core::preflight::{Backend, Finding};
use millrace_core::value::Family;
use nix::errno::Errno;

use crate::nft::{self, NftError};
use crate::tools::{Role, Tools};

use Backend::{IptablesLegacy, IptablesNft, Nftables};

/// The number of a capability (`linux/capability.h`).
const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;

/// Look at everything.
pub fn look() -> Vec<Finding> {
    let mut findings = capabilities();
    findings.push(nf_tables());
    findings.extend(expressions());
    findings.push(legacy());
    findings.extend(programs());
    findings.push(ipv6());
    findings
}

fn finding(what: impl Into<String>, there: bool, remedy: &str, needed_by: &[Backend]) -> Finding {
    let remedy = if there { String::new() } else { remedy.to_owned() };
    Finding { what: what.into(), there, remedy, needed_by: needed_by.to_vec() }
}

/// The effective capabilities of this process (`proc_pid_status(5)`, `CapEff`).
fn capabilities() -> Vec<Finding> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let has = |number: u32| mask & (1 << number) != 0;
    let grant = "add it to the container's security context";
    vec![
        finding("capability NET_ADMIN", has(NET_ADMIN), grant, &Backend::ALL),
        finding("capability NET_RAW", has(NET_RAW), grant, &[IptablesLegacy]),
    ]
}

fn nf_tables() -> Finding {
    let what = "nf_tables in the kernel";
    let needed_by = [IptablesNft, Nftables];
    match nft::tables() {
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
        (
            "address translation (nft_redir, nft_nat)",
            "nat",
            -100,
            nat,
            "nft_redir (CONFIG_NFT_REDIR), nft_nat and nft_chain_nat",
        ),
        (
            "connection tracking (nft_ct)",
            "filter",
            -150,
            vec![Expr::LoadCt(CtField::State)],
            "nft_ct (CONFIG_NFT_CT)",
        ),
        (
            "conntrack zones (nft_ct)",
            "filter",
            -300,
            vec![zone(), Expr::StoreCt(CtField::Zone)],
            "nft_ct (CONFIG_NFT_CT, CONFIG_NF_CONNTRACK_ZONES)",
        ),
        (
            "transparent proxying (nft_tproxy)",
            "filter",
            -150,
            tproxy,
            "nft_tproxy (CONFIG_NFT_TPROXY)",
        ),
    ];
    tries
        .into_iter()
        .map(|(what, kind, priority, mut rule, module)| {
            rule.push(Expr::Verdict(Verdict::Accept));
            let base = Base { kind: kind.to_owned(), hook: 0, priority };
            let chain = NativeChain { base: Some(base), rules: vec![Ok(rule)] };
            let name = format!("{}-preflight", NFT_LAYOUT.nat);
            match nft::rehearse(&vec![(name, vec![("prerouting".to_owned(), chain)])]) {
                Ok(()) => finding(what, true, "", &[Nftables]),
                Err(NftError::Rejected { why: Errno::EPERM, .. }) => {
                    finding(what, false, "it can't be asked for without NET_ADMIN", &[])
                }
                Err(NftError::Rejected { why, .. }) => finding(
                    what,
                    false,
                    &format!("load {module}; the kernel says {why}"),
                    &[Nftables],
                ),
                Err(error) => finding(what, false, &error.to_string(), &[Nftables]),
            }
        })
        .collect()
}

fn legacy() -> Finding {
    let there = Path::new("/proc/thread-self/net/ip_tables_names").exists();
    finding(
        "iptables' own tables in the kernel",
        there,
        "load ip_tables, iptable_nat, iptable_mangle, iptable_raw and their ip6 twins",
        &[IptablesLegacy],
    )
}

fn programs() -> Vec<Finding> {
    let mut tools = Tools::default();
    let mut findings = Vec::new();
    for (variant, backend) in [(Variant::Nft, IptablesNft), (Variant::Legacy, IptablesLegacy)] {
        for family in Family::ALL {
            let missing = [Role::Save, Role::Restore]
                .into_iter()
                .find_map(|role| tools.path(variant, family, role).err());
            let remedy = missing.as_ref().map(ToString::to_string).unwrap_or_default();
            // A pod without IPv6 can do without the IPv6 half.
            let needed_by = if family == Family::V4 { vec![backend] } else { Vec::new() };
            let what = format!("programs of {variant} for {family}");
            findings.push(finding(what, missing.is_none(), &remedy, &needed_by));
        }
    }
    findings
}

fn ipv6() -> Finding {
    let off = fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6");
    let there = off.is_ok_and(|off| off.trim() == "0");
    finding(
        "IPv6",
        there,
        "nothing, unless the pod needs it: set net.ipv6.conf.all.disable_ipv6 to 0",
        &[],
    )
}
