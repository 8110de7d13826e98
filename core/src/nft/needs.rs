//! What the kernel must have for a rule: names of modules, each with its option in the kernel's
//! configuration (`net/netfilter/Kconfig`).

use std::collections::BTreeSet;

use super::expr::{CtField, Expr};
use super::tables::NativeTables;
use super::xtables::{Unwritable, encode};
use crate::ruleset::{Ruleset, Table};
use crate::value::Groups;

/// What chains of type `nat` need.
pub const NAT_CHAIN: &str = "nft_chain_nat (CONFIG_NFT_NAT)";

/// What a rule needs beside `nf_tables` itself, each thing once.
pub fn needs(rule: &[Expr]) -> Vec<String> {
    let mut all = Vec::new();
    for need in rule.iter().flat_map(expression) {
        if !all.contains(&need) {
            all.push(need);
        }
    }
    all
}

/// What native tables need altogether.
pub fn of_native(tables: &NativeTables) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for (_, chain) in tables.iter().flat_map(|(_, table)| table) {
        let nat = chain.base.as_ref().is_some_and(|base| base.kind == "nat");
        all.extend(nat.then(|| NAT_CHAIN.to_owned()));
        all.extend(chain.rules.iter().flatten().flat_map(|rule| needs(rule)));
    }
    all
}

/// What rules of iptables-nft need altogether.
///
/// # Errors
/// When one can't be written.
pub fn of_ruleset(ruleset: &Ruleset, groups: &Groups) -> Result<BTreeSet<String>, Unwritable> {
    let mut all = BTreeSet::new();
    for family in ruleset.families() {
        for emission in ruleset.family(family) {
            all.extend((emission.table == Table::Nat).then(|| NAT_CHAIN.to_owned()));
            all.extend(needs(&encode(&emission.rule, family, groups)?.exprs));
        }
    }
    Ok(all)
}

fn expression(expr: &Expr) -> Vec<String> {
    let one = |text: &str| vec![text.to_owned()];
    match expr {
        Expr::StoreCt(CtField::Zone) => one("nft_ct (CONFIG_NFT_CT, CONFIG_NF_CONNTRACK_ZONES)"),
        Expr::LoadCt(_) | Expr::StoreCt(_) => one("nft_ct (CONFIG_NFT_CT)"),
        Expr::Redirect => one("nft_redir (CONFIG_NFT_REDIR)"),
        Expr::Dnat { .. } => one("nft_nat (CONFIG_NFT_NAT)"),
        Expr::Tproxy(_) => one("nft_tproxy (CONFIG_NFT_TPROXY)"),
        Expr::LoadAddressType(_) => one("nft_fib_inet (CONFIG_NFT_FIB_INET)"),
        Expr::LoadTransparent => one("nft_socket (CONFIG_NFT_SOCKET)"),
        Expr::Match(extension) | Expr::Target(extension) => {
            let compat = "nft_compat (CONFIG_NFT_COMPAT)".to_owned();
            vec![compat, of_iptables(&extension.name, matches!(expr, Expr::Target(_)))]
        }
        _ => Vec::new(),
    }
}

/// The module of a match or target of iptables.
fn of_iptables(name: &str, target: bool) -> String {
    let kind = if target { "TARGET_" } else { "MATCH_" };
    match name.to_ascii_lowercase().as_str() {
        "tcp" | "udp" => "xt_tcpudp (CONFIG_NETFILTER_XTABLES)".to_owned(),
        "dnat" => "xt_nat (CONFIG_NETFILTER_XT_NAT)".to_owned(),
        // One module is both.
        both @ ("mark" | "connmark") => {
            format!("xt_{both} (CONFIG_NETFILTER_XT_{})", both.to_ascii_uppercase())
        }
        _ => format!("xt_{name} (CONFIG_NETFILTER_XT_{kind}{})", name.to_ascii_uppercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iptables::Extension;

    #[test]
    fn modules_are_named_with_their_options() {
        let extension = |name: &str| Extension { name: name.to_owned(), revision: 0, data: vec![] };
        let rule = [
            Expr::Counter,
            Expr::Match(extension("owner")),
            Expr::Match(extension("connmark")),
            Expr::Match(extension("udp")),
            Expr::Target(extension("REDIRECT")),
            Expr::LoadCt(CtField::State),
            Expr::LoadCt(CtField::Mark),
        ];
        let wanted = [
            "nft_compat (CONFIG_NFT_COMPAT)",
            "xt_owner (CONFIG_NETFILTER_XT_MATCH_OWNER)",
            "xt_connmark (CONFIG_NETFILTER_XT_CONNMARK)",
            "xt_tcpudp (CONFIG_NETFILTER_XTABLES)",
            "xt_REDIRECT (CONFIG_NETFILTER_XT_TARGET_REDIRECT)",
            "nft_ct (CONFIG_NFT_CT)",
        ];
        assert_eq!(needs(&rule), wanted);
    }
}
