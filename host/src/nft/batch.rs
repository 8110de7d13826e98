//! A ruleset as one transaction.

use millrace_core::nft::expr::Expr;
use millrace_core::nft::set::{Set, SetKind, successor};
use millrace_core::nft::tables::{Base, NativeChain, NativeTables};
use netlink_packet_core::NLM_F_APPEND;
use netlink_packet_netfilter::nftables::{
    ChainAttribute, ChainMessage, DataAttribute, Hook, HookNumber, InetHookNumber, ListAttribute,
    NfTablesMessage, RuleAttribute, RuleMessage, SetAttribute, SetElementAttribute,
    SetElementFlags, SetElementList, SetElementMessage, SetFlags, SetMessage, TableAttribute,
    TableMessage,
};

use super::attributes::encode;
use super::socket::{Connection, NftError, Step};

/// The name of a set without a name; the kernel puts a number in.
pub(super) const ANONYMOUS: &str = "__set%d";

/// Put `wanted` in the place of the tables called `names`, in one transaction: nobody ever sees
/// anything between. A table that is wanted and there already must be among `names`. With the number
/// of a generation, it happens only if nothing has changed since.
///
/// # Errors
/// When the kernel refuses, or a rule came from it and was not understood; nothing has happened
/// then.
pub fn replace(
    names: &[&str],
    wanted: &NativeTables,
    generation: Option<u32>,
) -> Result<(), NftError> {
    let connection = Connection::open()?.ok_or(NftError::Absent)?;
    let mut batch = Batch::default();
    for name in names {
        // One that has gone in the meantime can't be deleted, so it is made first.
        batch.step(NfTablesMessage::NewTable(table(name)), format!("table {name}"));
        batch.step(NfTablesMessage::DeleteTable(table(name)), format!("table {name}"));
    }
    for (name, content) in wanted {
        batch.table(name, content)?;
    }
    connection.transact(&batch.steps, generation)
}

/// Whether the kernel would take these tables, without making them: modules that they need may be
/// loaded by it, nothing else happens.
///
/// # Errors
/// What the kernel would refuse, and why.
pub fn rehearse(wanted: &NativeTables) -> Result<(), NftError> {
    let connection = Connection::open()?.ok_or(NftError::Absent)?;
    let mut batch = Batch::default();
    for (name, content) in wanted {
        batch.table(name, content)?;
    }
    connection.rehearse(&batch.steps)
}

fn table(name: &str) -> TableMessage {
    TableMessage { attributes: vec![TableAttribute::Name(name.to_owned())] }
}

#[derive(Default)]
struct Batch {
    steps: Vec<Step>,
    sets: u32,
}

impl Batch {
    fn step(&mut self, message: NfTablesMessage, what: String) {
        self.steps.push(Step { message, flags: 0, what });
    }

    fn table(&mut self, name: &str, content: &[(String, NativeChain)]) -> Result<(), NftError> {
        self.step(NfTablesMessage::NewTable(table(name)), format!("table {name}"));
        // Rules jump to chains, so that all of these come first.
        for (chain, content) in content {
            let mut attributes =
                vec![ChainAttribute::Table(name.to_owned()), ChainAttribute::Name(chain.clone())];
            attributes.extend(content.base.iter().flat_map(base));
            let message = NfTablesMessage::NewChain(ChainMessage { attributes });
            self.step(message, format!("chain {chain} of table {name}"));
        }
        for (chain, content) in content {
            for (index, rule) in content.rules.iter().enumerate() {
                let what = || format!("rule {} of chain {chain} of table {name}", index + 1);
                let rule = rule.as_ref().map_err(|expression| NftError::NotUnderstood {
                    what: what(),
                    expression: expression.clone(),
                })?;
                self.rule(name, chain, what(), rule);
            }
        }
        Ok(())
    }

    fn rule(&mut self, table: &str, chain: &str, what: String, rule: &[Expr]) {
        let mut expressions = Vec::new();
        for expr in rule {
            if let Expr::Lookup { set, .. } = expr {
                self.set(table, set);
            }
            expressions.push(ListAttribute::from(encode(expr, self.sets)));
        }
        let attributes = vec![
            RuleAttribute::Table(table.to_owned()),
            RuleAttribute::Chain(chain.to_owned()),
            RuleAttribute::Expressions(expressions),
        ];
        self.steps.push(Step {
            message: NfTablesMessage::NewRule(RuleMessage { attributes }),
            flags: NLM_F_APPEND,
            what,
        });
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

fn base(base: &Base) -> [ChainAttribute; 3] {
    let number = HookNumber::Inet(InetHookNumber::from(base.hook));
    [
        ChainAttribute::Hook(vec![
            Hook::Number(number),
            Hook::Priority(base.priority.cast_unsigned()),
        ]),
        ChainAttribute::Type(base.kind.clone()),
        // NF_ACCEPT
        ChainAttribute::Policy(1),
    ]
}
