//! What programs of iptables say when they fail, and what can be done about it.

use crate::privilege::{Hint, NET_RAW, has_capability};

/// What the program said, and what can be done about it where that is known.
pub(super) fn explain(stderr: &str) -> String {
    let said = stderr.trim();
    match (said.is_empty(), remedy(said, has_capability(NET_RAW))) {
        (true, _) => "it said nothing".to_owned(),
        (false, None) => said.to_owned(),
        (false, Some(PRIVILEGE)) => format!("{said}\n{PRIVILEGE}{}", Hint::look()),
        (false, Some(remedy)) => format!("{said}\n{remedy}"),
    }
}

/// What to do about a missing capability.
const PRIVILEGE: &str = "this needs the capability NET_ADMIN (and NET_RAW for iptables-legacy) in the \
    user namespace that owns the network namespace: add them to the container's security context, or use \
    the CNI plugin";

/// What to do where it says that a table is missing, which it says as well where it may not open a raw
/// socket, by which iptables-legacy talks to the kernel.
const RAW: &str = "iptables-legacy needs the capability NET_RAW, which this process lacks: add it to the \
    container's security context, or use nftables, iptables-nft or the CNI plugin";

const LOCK_FILE: &str = "iptables-legacy takes a lock in a file: mount a folder that can be written at \
    /run, or name another file in XTABLES_LOCKFILE";

const TABLE: &str = "the kernel lacks this table: load its module (iptable_nat, iptable_mangle, \
    iptable_raw or their ip6table twins) on the node, or use iptables-nft";

const NF_TABLES: &str = "the kernel may lack nf_tables: load the module nf_tables (CONFIG_NF_TABLES) on \
    the node, or use iptables-legacy";

const NAT_CHAIN: &str = "the kernel lacks chains of type nat: load the module nft_chain_nat \
    (CONFIG_NFT_NAT) on the node, or use iptables-legacy";

const EXTENSION: &str = "the kernel lacks a match or target: load xt_owner, xt_REDIRECT, xt_conntrack, \
    xt_multiport, xt_tcpudp, xt_mark, xt_connmark, xt_TPROXY, xt_CT, and nft_compat for iptables-nft, as \
    needed, on the node";

const PACKAGE: &str =
    "an extension of iptables is not installed: install the whole package iptables";

const HELD: &str = "something else holds what is to be removed: see who jumps to it";

/// Signs, and what to do where one of them is there; the first ones count. What a program says of itself
/// in front (`iptables v1.8.9 (nf_tables)`) is in all that it says, and no sign of anything.
const REMEDIES: [(&[&str], &str); 8] = [
    (&["lock file"], LOCK_FILE),
    (&["you must be root", "Permission denied", "Operation not permitted"], PRIVILEGE),
    (
        &[
            "Table does not exist",
            "can't initialize iptables table",
            "can't initialize ip6tables table",
            // As restore and save say it where ip_tables itself is missing.
            "unable to initialize table",
            "do you need to insmod?",
        ],
        TABLE,
    ),
    (
        &[
            "Could not fetch rule set generation id",
            "Failed to initialize nft",
            "Protocol not supported",
        ],
        NF_TABLES,
    ),
    (
        &[
            "CHAIN_ADD failed (No such file or directory)",
            "CHAIN_ADD failed (Operation not supported)",
        ],
        NAT_CHAIN,
    ),
    (
        &[
            "missing kernel module",
            "No chain/target/match by that name",
            "RULE_APPEND failed (No such file or directory)",
            "RULE_INSERT failed (No such file or directory)",
        ],
        EXTENSION,
    ),
    (&["Couldn't load match", "Couldn't load target"], PACKAGE),
    (&["Device or resource busy"], HELD),
];

/// What to do about messages of iptables that name their cause badly.
fn remedy(said: &str, raw: bool) -> Option<&'static str> {
    // Who may not load a module may still do all that iptables needs itself: what counts is what iptables
    // says then.
    let own = |line: &&str| !line.trim_start().starts_with("modprobe:");
    let said: Vec<&str> = said.lines().filter(own).collect();
    let says = |sign: &&str| said.iter().any(|line| line.contains(sign));
    match REMEDIES.iter().find(|(signs, _)| signs.iter().any(says)).map(|(_, remedy)| *remedy) {
        Some(TABLE) if !raw => Some(RAW),
        remedy => remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_messages_come_with_what_to_do() {
        let text = explain("iptables v1.8.9: Permission denied (you must be root)");
        assert!(text.contains("NET_ADMIN"), "{text}");
        for (said, wanted) in [
            (
                "iptables: can't initialize iptables table `nat': Table does not exist",
                "load its module",
            ),
            (
                "iptables v1.8.9: Could not fetch rule set generation id: Invalid argument",
                "nf_tables (CONFIG",
            ),
            ("iptables: Failed to initialize nft: Protocol not supported", "nf_tables (CONFIG"),
            ("iptables-restore: line 4: No chain/target/match by that name", "load xt_owner"),
            ("iptables-restore v1.8.9: Couldn't load match `owner': No such file", "whole package"),
        ] {
            let text = explain(said);
            assert!(text.starts_with(said) && text.contains(wanted), "{text}");
        }
        assert_eq!(explain("something else"), "something else");
    }

    #[test]
    fn what_a_program_calls_itself_is_no_sign() {
        let banner = "iptables-nft-restore v1.8.9 (nf_tables): ";
        for (said, wanted) in [
            ("line 8: CHAIN_ADD failed (No such file or directory): chain PREROUTING", NAT_CHAIN),
            (
                "line 8: RULE_APPEND failed (No such file or directory): rule in chain OUTPUT",
                EXTENSION,
            ),
        ] {
            assert_eq!(remedy(&format!("{banner}\n{said}"), true), Some(wanted));
        }
        let warning = "Warning: Extension owner revision 0 not supported, missing kernel module?";
        assert_eq!(remedy(&format!("{warning}\n{banner}no luck"), true), Some(EXTENSION));
        assert_eq!(remedy(&format!("{banner}no luck"), true), None);
    }

    #[test]
    fn who_may_not_load_modules_lacks_no_other_capability() {
        let modprobe = "modprobe: ERROR: could not insert 'ip_tables': Operation not permitted";
        for said in [
            "iptables-restore v1.8.7 (legacy): iptables-restore: unable to initialize table 'nat'\n\n\
             Error occurred at line: 1",
            "iptables-save v1.8.7 (legacy): Cannot initialize: iptables who? (do you need to insmod?)",
            "iptables v1.8.9 (legacy): can't initialize iptables table `nat': Table does not exist",
        ] {
            assert_eq!(remedy(&format!("{modprobe}\n{said}"), true), Some(TABLE), "{said}");
        }
        let legacy =
            "iptables-restore v1.8.9 (legacy): iptables-restore: unable to initialize table 'nat'";
        assert_eq!(remedy(legacy, true), Some(TABLE));
        assert_eq!(remedy(legacy, false), Some(RAW));
        let file = "Fatal: can't open lock file /run/xtables.lock: Permission denied";
        assert_eq!(remedy(file, true), Some(LOCK_FILE));
    }
}
