//! The typed ruleset of native nftables (`nf_tables`), and what a dialect calls its tables and chains.
//! One set of tables of family `inet` serves IPv4 and IPv6.

use std::net::IpAddr;

use super::{
    Chain, ChainName, ConnState, Hook, Layout, Masked, Owner, Protocol, Reason, Routing, Side,
    Table,
};
use crate::value::{Cidr, Family, InterfacePattern, ListenPort, PortRange, Zone};

/// What a dialect calls its nftables tables and chains.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftLayout {
    /// The table for address translation.
    pub nat: &'static str,
    /// The table for marks of packets and connections, and for TPROXY.
    pub mangle: &'static str,
    /// The table for conntrack zones.
    pub raw: &'static str,
    /// The table for what drops what no transparent proxy took; none where that is dropped in the
    /// table for marks.
    pub guard: Option<&'static str>,
    /// The chains that are not called by the kernel.
    pub chains: Layout,
    /// The chains that the kernel calls for what arrives and for what leaves; none where they are called as
    /// their hooks.
    pub bases: Option<[&'static str; 2]>,
    /// Whether rules that jump count nothing.
    pub bare_jumps: bool,
    /// Whether there is one table for everything, in which chains carry in front what they are for.
    pub one_table: bool,
    /// Whether packets that belong to no connection are looked for among those of TCP alone, as the
    /// reference does with nftables.
    pub invalid_of_tcp: bool,
}

impl NftLayout {
    /// The names of the tables.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.nat, self.mangle, self.raw].into_iter().chain(self.guard)
    }

    /// What a chain is called.
    pub fn chain(&self, table: Table, chain: &Chain) -> String {
        let name = match chain {
            Chain::Builtin(hook) => match (self.bases, hook) {
                (Some([arriving, _]), Hook::Prerouting) => arriving,
                (Some([_, leaving]), Hook::Output) => leaving,
                _ => hook.base_chain(),
            },
            Chain::User(name) => name.as_str(),
        };
        if self.one_table { format!("{table}-{name}") } else { name.to_owned() }
    }

    /// The name of the table that does the work of an iptables table, and of the guard's for
    /// `filter`.
    pub const fn table(&self, table: Table) -> Option<&'static str> {
        match table {
            Table::Nat => Some(self.nat),
            Table::Mangle => Some(self.mangle),
            Table::Raw => Some(self.raw),
            Table::Filter => self.guard,
        }
    }
}

/// How the owner of a socket is asked for. Both mean the same to nft; the reference writes one in
/// some rules and the other in others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerSpelling {
    /// Without `meta` in front: `skuid`, `skgid`.
    Short,
    /// With it: `meta skuid`, `meta skgid`.
    Meta,
}

/// A part of a rule: a condition or an action, carried out from left to right (`nft(8)`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `meta nfproto`: the family.
    Family(Family),
    /// `iifname`: the interface the packet came in by is one of these. Beginnings of names stand
    /// alone.
    InInterface(Vec<InterfacePattern>),
    /// `oifname`: the interface the packet goes out by is one of these.
    OutInterface(Vec<InterfacePattern>),
    /// `oifname !=`: the interface the packet goes out by is another one.
    NotOutInterface(InterfacePattern),
    /// `meta l4proto`: the transport protocol.
    Protocol(Protocol),
    /// `ip saddr`, `ip6 daddr`: an address in one of these networks, all of one family.
    Address {
        /// Source is `saddr`, destination is `daddr`.
        side: Side,
        /// `!=`: addresses of the family outside all of these networks match.
        negated: bool,
        /// One network, or several in a set; host bits don't count.
        cidrs: Vec<Cidr>,
    },
    /// `tcp dport`, `udp sport`: one of these ports. Says the protocol as well.
    Ports {
        /// TCP is `tcp dport`, UDP is `udp dport`; packets of others don't match.
        protocol: Protocol,
        /// Source is `sport`, destination is `dport`.
        side: Side,
        /// `!=`: packets of the protocol with none of these ports match.
        negated: bool,
        /// One port or range, or several in a set.
        ports: Vec<PortRange>,
    },
    /// `skuid`, `skgid`: who made the socket.
    Owner {
        /// `!=`: sockets of anybody else match; packets without a socket never do.
        negated: bool,
        /// The owners, all users or all groups: one of them.
        owners: Vec<Owner>,
        /// With or without `meta` in front, which is the same to `nft`.
        spelling: OwnerSpelling,
    },
    /// `tcp flags & (fin | syn | rst | ack) == syn`: the packet starts a connection. Says the protocol
    /// as well.
    Syn {
        /// `!=`: packets of TCP with any other combination of the four flags match.
        negated: bool,
    },
    /// `fib saddr type local`, `fib daddr type local`: an address that routing delivers to this namespace.
    Local {
        /// Source is `saddr`, destination is `daddr`.
        side: Side,
        /// `!=`: addresses of others match.
        negated: bool,
    },
    /// `ct state`: the state of the connection.
    State(Vec<ConnState>),
    /// `mark`: the packet's mark.
    Mark {
        /// `!=`: packets match whose bits under the mask differ from the value.
        negated: bool,
        /// Value and mask: the bits under the mask are compared with the value.
        mark: Masked,
    },
    /// `ct mark`: the connection's mark.
    Connmark(Masked),
    /// `counter`: count what came so far.
    Counter,
    /// `meta mark set`: set the packet's mark.
    SetMark(u32),
    /// `ct mark set`: set bits of the connection's mark; the others stay.
    SetConnmark(Masked),
    /// `ct mark set mark`: copy the packet's mark to its connection.
    SaveMark,
    /// `meta mark set ct mark`: copy the connection's mark to the packet.
    RestoreMark,
    /// `ct zone set`: track the packet in a zone of its own.
    Zone(Zone),
    /// `redirect to`: send the packet to a port of this host.
    Redirect(ListenPort),
    /// `dnat ip to`, `dnat ip6 to`: send the packet to an address, and to a port of it where one is given.
    Dnat {
        /// The new destination. Packets of its family alone get there.
        address: IpAddr,
        /// The new destination port; none keeps the packet's own.
        port: Option<ListenPort>,
    },
    /// `tproxy to`: hand the packet to a transparent socket.
    Tproxy {
        /// The family, since the socket is of one.
        family: Family,
        /// The port it listens on.
        port: ListenPort,
    },
    /// `return`: go on behind the jump; in a base chain, its policy decides.
    Return,
    /// `accept`: end this base chain; those of higher priority numbers still see the packet.
    Accept,
    /// `drop`: discard the packet; no further chain sees it.
    Drop,
    /// `jump`: to a chain of the same table, and on behind this rule where that ends.
    Jump(ChainName),
}

/// A rule on its way into a ruleset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftEmission {
    /// The table, by what it does.
    pub table: Table,
    /// A base chain by its hook, or one that rules jump to; see [`NftLayout::chain`].
    pub chain: Chain,
    /// The index of the rule in front of which it goes, counted from 0; none for the end.
    pub before: Option<usize>,
    /// Conditions and actions, evaluated from left to right.
    pub rule: Vec<Statement>,
    /// The setting that asks for the rule, and its purpose in words.
    pub reason: Reason,
}

/// Everything that a policy means in nftables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftRuleset {
    /// What tables and chains are called.
    pub layout: &'static NftLayout,
    /// The rules, in the order in which they are written.
    pub emissions: Vec<NftEmission>,
    /// Policy routing rules, routes and addresses that are needed beside the rules.
    pub routing: Routing,
    /// The families that are captured.
    pub families: Vec<Family>,
}

/// A chain with its rules in their final order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftChain<'r> {
    /// A base chain by its hook, or one that rules jump to; see [`NftLayout::chain`].
    pub chain: Chain,
    /// As the kernel goes through them; none where rules only jump here.
    pub rules: Vec<&'r NftEmission>,
}

impl NftRuleset {
    /// The tables with rules, in the order in which they are written.
    pub fn tables(&self) -> impl Iterator<Item = Table> {
        let has = |table: &Table| self.emissions.iter().any(|e| e.table == *table);
        [Table::Nat, Table::Mangle, Table::Raw, Table::Filter].into_iter().filter(has)
    }

    /// The chains of a table that have rules or that rules lead to: those that the kernel calls first.
    pub fn chains(&self, table: Table) -> Vec<NftChain<'_>> {
        let mut chains: Vec<NftChain<'_>> = self
            .chain_order(table)
            .into_iter()
            .map(|chain| NftChain { chain, rules: Vec::new() })
            .collect();
        for emission in self.emissions.iter().filter(|e| e.table == table) {
            let Some(chain) = chains.iter_mut().find(|c| c.chain == emission.chain) else {
                continue;
            };
            let end = chain.rules.len();
            chain.rules.insert(emission.before.map_or(end, |index| index.min(end)), emission);
        }
        let is_led_to = |chain: &Chain| {
            let leads = |e: &NftEmission| match e.rule.last() {
                Some(Statement::Jump(to)) => matches!(chain, Chain::User(name) if name == to),
                _ => false,
            };
            self.emissions.iter().any(|e| e.table == table && leads(e))
        };
        chains.retain(|c| !c.rules.is_empty() || is_led_to(&c.chain));
        chains
    }

    fn chain_order(&self, table: Table) -> Vec<Chain> {
        let names = &self.layout.chains;
        let own: Vec<&ChainName> = match table {
            Table::Nat => vec![
                &names.inbound,
                &names.redirect,
                &names.in_redirect,
                &names.output,
                &names.output_dns,
            ],
            Table::Mangle => {
                vec![&names.divert, &names.tproxy, &names.inbound, &names.drop, &names.output]
            }
            Table::Raw => vec![&names.inbound, &names.output_dns, &names.output],
            Table::Filter => Vec::new(),
        };
        let hooks = [Hook::Prerouting, Hook::Output].map(Chain::Builtin);
        hooks.into_iter().chain(own.into_iter().cloned().map(Chain::User)).collect()
    }
}
