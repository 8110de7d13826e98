//! A ruleset as one transaction.

use millrace_core::nft::expr::Expr;
use millrace_core::nft::listed::{Ending, Mapped};
use millrace_core::nft::set::{Set, SetKind, successor};
use millrace_core::nft::tables::{Base, NativeChain, NativeTables};
use millrace_core::nft::xtables::XtRule;
use millrace_core::observed::TableId;
use millrace_core::plan::{Change, TableEdit, TableStep};
use millrace_core::value::Groups;
use netlink_packet_core::NLM_F_APPEND;
use netlink_packet_netfilter::NetfilterProtoFamily;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook, HookNumber, InetHookNumber, ListAttribute,
    NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute,
    SetElementFlags, SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute,
    TableFlags, TableMessage,
};
use nix::errno::Errno;

use super::attributes::encode;
use super::read::TableFamily;
use super::socket::{Connection, NftError, Step};
use super::terms::sets;
use super::xtables::{self, netlink_family};

/// `NF_DROP`
const DROP: u32 = 0;

/// The name of a set without a name; the kernel puts a number in.
pub(super) const ANONYMOUS: &str = "__set%d";

/// What one transaction of `nf_tables` changes: all of it, or nothing.
#[derive(Clone, Copy, Debug)]
pub struct Changes<'a> {
    /// Native tables that go. A table that is wanted and there already must be among them.
    pub names: &'a [String],
    /// Native tables that are written, each by its name with all that is in it.
    pub tables: &'a NativeTables,
    /// Edits of the tables of iptables-nft.
    pub edits: &'a [TableEdit],
    /// Group names and their numbers.
    pub groups: &'a Groups,
}

/// Make changes in one transaction: nobody ever sees anything between. With the number of a
/// generation, it happens only if nothing has changed since.
///
/// # Errors
/// When the kernel refuses, or a rule can't be written; nothing has happened then.
pub fn change(changes: &Changes<'_>, generation: Option<u32>) -> Result<(), NftError> {
    let connection = Connection::open()?.ok_or(NftError::Absent)?;
    let mut batch = Batch::new(NetfilterProtoFamily::Inet);
    for name in changes.names {
        // One that has gone in the meantime can't be deleted, so it is made first.
        batch.step(NfTablesMessage::NewTable(table(name)), format!("table {name}"));
        batch.step(NfTablesMessage::DeleteTable(table(name)), format!("table {name}"));
    }
    for (name, content) in changes.tables {
        batch.table(name, content)?;
    }
    for edit in changes.edits {
        xtables::edit(&mut batch, edit, changes.groups)?;
    }
    match connection.transact(&batch.steps, generation) {
        // A chain can't be removed while something leads to it.
        Err(NftError::Rejected { what, why: Errno::EBUSY, text, needs }) => {
            let leads = changes.edits.iter().find_map(leads);
            Err(leads.unwrap_or(NftError::Rejected { what, why: Errno::EBUSY, text, needs }))
        }
        result => result,
    }
}

/// The map that leads to a chain which an edit removes.
fn leads(edit: &TableEdit) -> Option<NftError> {
    // What the kernel says of the transaction that failed is not for this.
    let connection = Connection::open().ok()??;
    let goes = edit.steps.iter().filter_map(|step| match step {
        TableStep::Remove { chain } => Some(chain),
        _ => None,
    });
    let goes: Vec<&String> = goes.collect();
    let sets = sets(netlink_family(edit.family), edit.table.as_str(), &connection).ok()?;
    sets.iter().find_map(|(map, set)| {
        let chain = set.elements.iter().find_map(|element| match &element.mapped {
            Some(Mapped::Verdict(Some(Ending::Jump(chain) | Ending::Goto(chain))))
                if goes.contains(&chain) =>
            {
                Some(chain.clone())
            }
            _ => None,
        })?;
        let table = TableId::ip(edit.family, edit.table.to_string());
        Some(NftError::Led { chain, table, map: map.clone() })
    })
}

/// Keep the kernel from calling a table's chains, or have it call them again.
///
/// # Errors
/// When the kernel refuses; nothing has happened then.
pub fn set_dormant(of: &TableId, change: Change) -> Result<(), NftError> {
    let connection = Connection::open()?.ok_or(NftError::Absent)?;
    let family = of.family.map_or(NetfilterProtoFamily::Inet, netlink_family);
    let mut batch = Batch::new(family);
    let mut message = table(&of.name);
    // Without the attribute the kernel leaves the flags alone.
    message.attributes.push(TableAttribute::Flags(match change {
        Change::Add => TableFlags::Dormant,
        Change::Remove => TableFlags::empty(),
    }));
    batch.step(NfTablesMessage::NewTable(message), of.to_string());
    connection.transact(&batch.steps, None)
}

/// Whether the kernel would take a rule in a chain of its own in a table of this name, without making it: modules that it needs may be loaded by
/// the kernel, nothing else happens.
///
/// # Errors
/// What the kernel would refuse, and why.
pub fn rehearse(
    family: TableFamily,
    name: &str,
    base: &Base,
    rule: &XtRule,
) -> Result<(), NftError> {
    const CHAIN: &str = "millrace-preflight";
    let connection = Connection::open()?.ok_or(NftError::Absent)?;
    let mut batch = Batch::new(match family {
        TableFamily::Inet => NetfilterProtoFamily::Inet,
        TableFamily::Ip(family) => netlink_family(family),
    });
    batch.step(NfTablesMessage::NewTable(table(name)), "a table".to_owned());
    batch.chain(name, CHAIN, Some(base));
    let compat = rule.protocol.map(|number| xtables::compat(number, false));
    batch.rule(name, CHAIN, "a rule".to_owned(), &rule.exprs, compat);
    connection.rehearse(&batch.steps)
}

pub(super) fn table(name: &str) -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] }
}

/// A transaction that is being made.
pub(super) struct Batch {
    steps: Vec<Step>,
    sets: u32,
    /// The family of the tables that the next steps are about.
    pub(super) family: NetfilterProtoFamily,
}

impl Batch {
    pub(super) const fn new(family: NetfilterProtoFamily) -> Self {
        Self { steps: Vec::new(), sets: 0, family }
    }

    pub(super) fn step(&mut self, message: NfTablesMessage, what: String) {
        self.flagged(message, 0, what);
    }

    pub(super) fn flagged(&mut self, message: NfTablesMessage, flags: u16, what: String) {
        self.steps.push(Step { family: self.family, message, flags, what });
    }

    pub(super) fn steps(&self) -> &[Step] {
        &self.steps
    }

    fn table(&mut self, name: &str, content: &[(String, NativeChain)]) -> Result<(), NftError> {
        self.step(NfTablesMessage::NewTable(table(name)), format!("table {name}"));
        self.content(name, content)
    }

    /// The chains and rules of a table.
    pub(super) fn content(
        &mut self,
        name: &str,
        content: &[(String, NativeChain)],
    ) -> Result<(), NftError> {
        // Rules jump to chains, so that all of these come first.
        for (chain, content) in content {
            self.chain(name, chain, content.base.as_ref());
            if content.drops {
                self.drop_by_default(name, chain);
            }
        }
        for (chain, content) in content {
            for (index, rule) in content.rules.iter().enumerate() {
                let what = || format!("rule {} of chain {chain} of table {name}", index + 1);
                let rule = rule.as_ref().map_err(|expression| NftError::NotUnderstood {
                    what: what(),
                    expression: expression.clone(),
                })?;
                self.rule(name, chain, what(), rule, None);
            }
        }
        Ok(())
    }

    /// A chain that is made if it is not there.
    pub(super) fn chain(&mut self, table: &str, chain: &str, hangs: Option<&Base>) {
        let mut attributes =
            vec![ChainAttribute::Table(table.to_owned()), ChainAttribute::Name(chain.to_owned())];
        attributes.extend(hangs.into_iter().flat_map(base));
        let message = NfTablesMessage::NewChain(ChainMessage { attributes });
        self.step(message, format!("chain {chain} of table {table}"));
    }

    fn drop_by_default(&mut self, table: &str, chain: &str) {
        let attributes = vec![
            ChainAttribute::Table(table.to_owned()),
            ChainAttribute::Name(chain.to_owned()),
            ChainAttribute::Policy(DROP),
        ];
        let message = NfTablesMessage::NewChain(ChainMessage { attributes });
        self.step(message, format!("the policy of chain {chain} of table {table}"));
    }

    fn rule(
        &mut self,
        table: &str,
        chain: &str,
        what: String,
        rule: &[Expr],
        compat: Option<RuleAttribute>,
    ) {
        let mut expressions = Vec::new();
        for expr in rule {
            if let Expr::Lookup { set, .. } = expr {
                self.set(table, set);
            }
            expressions.push(ListAttribute::from(encode(expr, self.sets)));
        }
        let mut attributes = vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions),
        ];
        attributes.extend(compat);
        let message = NfTablesMessage::NewRule(RuleMessage { attributes });
        self.flagged(message, NLM_F_APPEND, what);
    }

    /// A set that belongs to the next rule alone.
    fn set(&mut self, table: &str, set: &Set) {
        self.sets += 1;
        let intervals = set.has_intervals();
        let mut flags = SetFlags::Anonymous | SetFlags::Constant;
        if intervals {
            flags |= SetFlags::Interval;
        }
        let attributes = vec![
            SetAttribute::Table(table.to_owned()),
            SetAttribute::Name(ANONYMOUS.to_owned()),
            SetAttribute::Flags(flags),
            SetAttribute::KeyType(set.kind.number()),
            SetAttribute::KeyLen(u32::try_from(set.kind.length()).unwrap_or(u32::MAX)),
            SetAttribute::Id(self.sets),
            SetAttribute::UserData(byte_order(set.kind)),
        ];
        let what = || format!("a set of table {table}");
        self.step(NfTablesMessage::NewSet(SetMessage { attributes }), what());
        let elements = if intervals { intervals_of(set) } else { values_of(set) };
        // An attribute has no room for more than 64 KiB.
        for part in elements.chunks(ELEMENTS) {
            let attributes = vec![
                SetElementList::Table(table.to_owned()),
                SetElementList::Set(ANONYMOUS.to_owned()),
                SetElementList::SetId(self.sets),
                SetElementList::Elements(part.to_vec()),
            ];
            let message = NfTablesMessage::NewSetElement(SetElementMessage { attributes });
            self.step(message, what());
        }
    }
}

/// The order of a value's bytes, as nft notes it for who lists the set: `NFTNL_UDATA_SET_KEYBYTEORDER`
/// and its length, then `BYTEORDER_HOST_ENDIAN` or `BYTEORDER_BIG_ENDIAN`.
fn byte_order(kind: SetKind) -> Vec<u8> {
    let order: u32 = match kind {
        SetKind::Uids | SetKind::Gids | SetKind::Interfaces => 1,
        SetKind::Ipv4 | SetKind::Ipv6 | SetKind::Ports => 2,
    };
    [&[0, 4][..], &order.to_ne_bytes()].concat()
}

/// How many elements go into one message.
const ELEMENTS: usize = 1000;

type Element = ListAttribute<SetElementAttribute>;

fn element(key: &[u8], end: bool) -> Element {
    let mut attributes = vec![SetElementAttribute::Key(DataAttribute::Value(key.to_vec()))];
    if end {
        attributes.push(SetElementAttribute::Flags(SetElementFlags::IntervalEnd));
    }
    ListAttribute::Element(attributes)
}

fn values_of(set: &Set) -> Vec<Element> {
    set.ranges.iter().map(|(value, _)| element(value, false)).collect()
}

/// Each range as its first value, and the first one behind it as its end; in front of everything an
/// end, as nft has it.
fn intervals_of(set: &Set) -> Vec<Element> {
    let zero = vec![0; set.kind.length()];
    let mut elements = Vec::new();
    if set.ranges.first().is_some_and(|(first, _)| *first != zero) {
        elements.push(element(&zero, true));
    }
    for (first, last) in &set.ranges {
        elements.push(element(first, false));
        elements.extend(successor(last).map(|end| element(&end, true)));
    }
    elements
}

/// Where a chain hangs. Without a policy, a new one accepts and one that is there keeps its own.
fn base(base: &Base) -> [ChainAttribute; 2] {
    let number = HookNumber::Inet(InetHookNumber::from(base.hook));
    [
        ChainAttribute::Hook(vec![
            Hook::Number(number),
            Hook::Priority(base.priority.cast_unsigned()),
        ]),
        ChainAttribute::Type(base.kind.clone()),
    ]
}
