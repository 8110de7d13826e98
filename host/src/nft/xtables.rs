//! Tables of iptables-nft: edits as parts of a transaction, and rules as the kernel gives them.

use millrace_core::iptables::{DumpRule, KernelRule, UnknownRule, render_rule};
use millrace_core::nft::expr::{Expr, NftVerdict};
use millrace_core::nft::tables::Base;
use millrace_core::nft::xtables::{builtin_chain, decode, encode};
use millrace_core::plan::{Body, TableEdit, TableStep};
use millrace_core::ruleset::{Hook, Table};
use millrace_core::value::{Family, Groups};
use netlink_packet_core::{DefaultNla, Emitable as _, NLA_F_NESTED, NLM_F_APPEND};
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, ListAttribute, NfTablesMessage, RuleAttribute, RuleMessage,
};

use super::attributes;
use super::attributes::EXTENSION;
use super::batch::{Batch, table};
use super::decode::{counters, decode as decode_expr, goes_to, named};
use super::raw::Attributes;
use super::read::{RULE_COMPAT, RULE_EXPRESSIONS, RULE_HANDLE, RULE_USER_DATA};
use super::socket::NftError;

/// `NFTA_RULE_COMPAT_PROTO`, `NFTA_RULE_COMPAT_FLAGS`
const COMPAT: (u16, u16) = (1, 2);
/// `NFT_RULE_COMPAT_F_INV`
const INVERTED: u32 = 2;

/// `NFTA_LOG_GROUP`, `NFTA_LOG_PREFIX`, `NFTA_LOG_SNAPLEN`
const LOG: (u16, u16, u16) = (1, 2, 3);

/// What of a rule is kept, so that it can be written as it was.
const KEPT: [u16; 3] = [RULE_EXPRESSIONS, RULE_COMPAT, RULE_USER_DATA];

/// The family in a message.
pub(crate) const fn netlink_family(family: Family) -> NetfilterProtoFamily {
    match family {
        Family::V4 => NetfilterProtoFamily::IPv4,
        Family::V6 => NetfilterProtoFamily::IPv6,
    }
}

/// Add an edit to a transaction.
pub(super) fn edit(batch: &mut Batch, edit: &TableEdit, groups: &Groups) -> Result<(), NftError> {
    batch.family = netlink_family(edit.family);
    let name = edit.table.as_str();
    batch.step(NfTablesMessage::NewTable(table(name)), format!("{} table {name}", edit.family));
    for hook in hosts(edit) {
        let (kind, priority) =
            builtin_chain(edit.table, hook).ok_or_else(|| NftError::Unwritable {
                what: format!("a rule in chain {} of table {name}", hook.as_str()),
                why: "the table has no such chain".to_owned(),
            })?;
        let base = Base { kind: kind.to_owned(), hook: hook.number(), priority };
        batch.chain(name, hook.as_str(), Some(&base));
    }
    for step in &edit.steps {
        match step {
            TableStep::Declare { chain } => {
                batch.chain(name, chain, None);
                let message = NfTablesMessage::DeleteRule(of_chain(name, chain, None));
                batch.step(message, format!("the rules of chain {chain} of table {name}"));
            }
            TableStep::Append { chain, rule } => {
                let message = new_rule(edit, chain, rule, None, groups)?;
                batch.flagged(message, NLM_F_APPEND, what(edit, chain, rule));
            }
            TableStep::Insert { chain, before, rule, .. } => {
                let message = new_rule(edit, chain, rule, *before, groups)?;
                let flags = if before.is_some() { 0 } else { NLM_F_APPEND };
                batch.flagged(message, flags, what(edit, chain, rule));
            }
            TableStep::Delete { chain, rule, .. } => {
                let what = what(edit, chain, rule);
                let Some(kernel) = &rule.kernel else {
                    let why = "its number in the kernel is not known".to_owned();
                    return Err(NftError::Unwritable { what, why });
                };
                let message = of_chain(name, chain, Some(kernel.handle));
                batch.step(NfTablesMessage::DeleteRule(message), what);
            }
            TableStep::Remove { chain } => {
                let attributes = vec![
                    ChainAttribute::Table(name.to_owned()),
                    ChainAttribute::Name(chain.clone()),
                ];
                let message = NfTablesMessage::DeleteChain(ChainMessage { attributes });
                batch.step(message, format!("chain {chain} of table {name}"));
            }
        }
    }
    Ok(())
}

/// The builtin chains that rules are put in.
fn hosts(edit: &TableEdit) -> Vec<Hook> {
    let mut hooks = Vec::new();
    for step in &edit.steps {
        if let TableStep::Append { chain, .. } | TableStep::Insert { chain, .. } = step
            && let Some(hook) = Hook::from_name(chain)
            && !hooks.contains(&hook)
        {
            hooks.push(hook);
        }
    }
    hooks
}

fn what(edit: &TableEdit, chain: &str, rule: &Body) -> String {
    format!("{} rule -t {} -A {chain} {}", edit.family, edit.table, rule.text)
}

fn of_chain(table: &str, chain: &str, handle: Option<u64>) -> RuleMessage {
    let mut attributes =
        vec![RuleAttribute::Table(table.to_owned()), RuleAttribute::Chain(chain.to_owned())];
    attributes.extend(handle.map(RuleAttribute::Handle));
    RuleMessage { attributes }
}

fn new_rule(
    edit: &TableEdit,
    chain: &str,
    rule: &Body,
    before: Option<u64>,
    groups: &Groups,
) -> Result<NfTablesMessage, NftError> {
    let mut message = of_chain(edit.table.as_str(), chain, None);
    message.attributes.extend(before.map(RuleAttribute::Position));
    match (&rule.kernel, &rule.rule) {
        // One that was there is written as it was, counters included.
        (Some(kernel), _) => message.attributes.extend(as_it_was(&kernel.attributes)),
        (None, Some(typed)) => {
            let unwritable =
                |why: String| NftError::Unwritable { what: what(edit, chain, rule), why };
            let written = encode(typed, edit.family, groups)
                .map_err(|error| unwritable(error.to_string()))?;
            let expressions = written.exprs.iter();
            let list = expressions.map(|expr| ListAttribute::from(attributes::encode(expr, 0)));
            message.attributes.push(RuleAttribute::Expressions(list.collect()));
            message.attributes.extend(written.protocol.map(|number| compat(number, false)));
        }
        (None, None) => {
            let (what, expression) = (what(edit, chain, rule), rule.text.clone());
            return Err(NftError::NotUnderstood { what, expression });
        }
    }
    Ok(NfTablesMessage::NewRule(message))
}

/// The protocol of a rule, or that it has to be another one, for matches and targets of iptables that
/// ask for one.
pub(super) fn compat(protocol: u8, negated: bool) -> RuleAttribute {
    let number = |kind, value: u32| DefaultNla::new(kind, value.to_be_bytes().to_vec());
    let flags = if negated { INVERTED } else { 0 };
    RuleAttribute::Compat(vec![number(COMPAT.0, protocol.into()), number(COMPAT.1, flags)])
}

/// The attribute's bytes, its header (`struct nlattr`) among them.
fn written(attribute: &RuleAttribute) -> Vec<u8> {
    let mut bytes = vec![0; attribute.buffer_len()];
    attribute.emit(&mut bytes);
    bytes
}

/// The attributes of a rule that was there, as they were.
fn as_it_was(attributes: &[u8]) -> impl Iterator<Item = RuleAttribute> {
    let attributes = Attributes(attributes).iter();
    attributes.map(|(kind, value)| {
        let nested = if kind == RULE_USER_DATA { 0 } else { NLA_F_NESTED };
        RuleAttribute::Other(DefaultNla::new(kind | nested, value.to_vec()))
    })
}

/// A rule of a table of iptables-nft that the kernel gave. The text of one that is not understood says
/// its protocol and where it jumps, which is all that is ever asked of it, or whom it tells of what.
pub(super) fn read_rule(rule: Attributes<'_>, family: Family, called: bool) -> DumpRule {
    let handle = rule.long(RULE_HANDLE).unwrap_or(0);
    let seen = rule.list(RULE_EXPRESSIONS).find_map(counters);
    let exprs: Vec<_> = rule.list(RULE_EXPRESSIONS).map(|e| decode_expr(e, |_| None)).collect();
    let mut read = decode(&exprs, family);
    let mut jumps = rule.list(RULE_EXPRESSIONS).filter_map(goes_to);
    read.jump = read.jump.or_else(|| jumps.next().map(str::to_owned));
    if !called && read.rule.is_ok() {
        read.rule = Err(UnknownRule("in a chain that hangs elsewhere".to_owned()));
    }
    let protocol =
        read.protocol.filter(|(_, negated)| !negated).and_then(|(number, _)| match number {
            6 => Some("-p tcp "),
            17 => Some("-p udp "),
            _ => None,
        });
    let protocol = protocol.unwrap_or_default();
    let notice = if read.rule.is_err() { notice(rule, &exprs, family) } else { None };
    let text = match (&read.rule, &read.jump) {
        (Ok(rule), _) => render_rule(rule),
        (Err(_), None) if notice.is_some() => notice.unwrap_or_default(),
        (Err(UnknownRule(what)), Some(chain)) => {
            format!("{protocol}{} -j {chain}", quoted(what))
        }
        (Err(UnknownRule(what)), None) => format!("{protocol}{}", quoted(what)),
    };
    let mut attributes = rule.some(&KEPT);
    // The kernel wants to be told each time which protocol the matches and targets of a rule are about,
    // and never tells it itself.
    if let Some((protocol, negated)) = read.protocol
        && rule.get(RULE_COMPAT).is_none()
    {
        attributes.extend(written(&compat(protocol, negated)));
    }
    let kernel = Some(KernelRule { handle, attributes, newer: read.newer });
    DumpRule { text, counters: seen, rule: read.rule, kernel }
}

/// The text of a rule that tells a group of `nfnetlink_log` of what it matches, and does nothing else.
fn notice(rule: Attributes<'_>, exprs: &[Result<Expr, String>], family: Family) -> Option<String> {
    let (name, data) = named(rule.list(RULE_EXPRESSIONS).last()?)?;
    let (prefix, group, size) = match name {
        "log" => {
            let group = u16::from_be_bytes(data.get(LOG.0)?.try_into().ok()?);
            (data.text(LOG.1)?, group, data.number(LOG.2)?)
        }
        // `struct xt_nflog_info`, as versions before 1.8.8 write it
        "target" if data.text(EXTENSION.0)? == "NFLOG" => {
            let info = data.get(EXTENSION.2)?;
            let size = u32::from_ne_bytes(info.get(..4)?.try_into().ok()?);
            let group = u16::from_ne_bytes(info.get(4..6)?.try_into().ok()?);
            let prefix = info.get(12..76)?.split(|byte| *byte == 0).next()?;
            (std::str::from_utf8(prefix).ok()?, group, size)
        }
        _ => return None,
    };
    let (_, asks) = exprs.split_last()?;
    let asks = [asks, &[Ok(Expr::Verdict(NftVerdict::Return))]].concat();
    let asks = render_rule(&decode(&asks, family).rule.ok()?);
    let asks = asks.strip_suffix("-j RETURN")?;
    let prefix = prefix.replace(char::is_whitespace, "_");
    let tells = format!("--nflog-prefix {prefix} --nflog-group {group} --nflog-size {size}");
    (!prefix.is_empty()).then(|| format!("{asks}-j NFLOG {tells}"))
}

/// One word, whatever is in it.
fn quoted(what: &str) -> String {
    format!("[{}]", what.replace(char::is_whitespace, "_"))
}

/// The table of iptables called `name`.
pub(super) fn known(name: &str) -> bool {
    Table::from_name(name).is_some()
}
