//! Which connections are followed, and the table that makes the kernel tell of them.

use crate::nft::expr::{Comparison, Expr, Header, MetaField, expressions, interface_name};
use crate::nft::tables::{Base, NativeChain, NativeTable};
use crate::nft::{OwnerSpelling, Statement};
use crate::ruleset::{Hook, Masked, Owner, Side};
use crate::sim::{Direction, Protocol};
use crate::value::{Cidr, Family, Gid, Groups, InterfacePattern, PortRange, Uid};

/// Behind the putting together of fragments (-400), in front of the tables called `raw` (-300).
const FIRST: i32 = -350;
/// Behind every other chain of the hook.
const LAST: i32 = i32::MAX;

/// The chain where packets of the namespace's processes begin.
pub(super) const OUT: &str = "begin-out";
/// The chain where packets from outside begin.
pub(super) const IN: &str = "begin-in";
/// The chain where packets for a socket of the namespace end.
pub(super) const HERE: &str = "end-here";
/// The chain where packets that leave end.
pub(super) const AWAY: &str = "end-away";

/// Which connections are followed. What is not said may be anything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Made by a process of the namespace, or from outside.
    pub direction: Option<Direction>,
    /// Who makes them; nobody is known of those from outside.
    pub uid: Option<Uid>,
    /// The group of who makes them.
    pub gid: Option<Gid>,
    /// Their protocol; TCP and UDP if it is not said.
    pub protocol: Option<Protocol>,
    /// The network that they come from, as they are made; none is any.
    pub source: Option<Cidr>,
    /// Where they go, as they are made.
    pub destination: Option<Cidr>,
    /// The port they go to, as they are made.
    pub port: Option<PortRange>,
    /// The mark of their packets, as they are made.
    pub mark: Option<u32>,
    /// The interface that they arrive by.
    pub interface: Option<InterfacePattern>,
    /// Every packet, not only what begins a connection.
    pub every_packet: bool,
}

/// No connection can be meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfilterable {
    /// Who is asked of what comes from outside.
    #[error(
        "who makes a connection is known only of those that are made here: leave one of them out"
    )]
    Stranger,
    /// Where it arrives is asked of what is made here.
    #[error("what is made here arrives by no interface: leave one of them out")]
    Homemade,
    /// Source and destination are networks of different families.
    #[error("where it comes from and where it goes are of different families")]
    Families,
    /// A port is asked of a protocol that has none.
    #[error("{0} has no ports")]
    Portless(Protocol),
}

impl Filter {
    /// The table that makes the kernel tell of these connections.
    ///
    /// # Errors
    /// When no connection can be meant.
    pub fn table(&self) -> Result<NativeTable, Unfilterable> {
        let owned = self.uid.is_some() || self.gid.is_some();
        let arrives = self.interface.is_some();
        let meant = |direction| self.direction.is_none_or(|d| d == direction);
        let outward = meant(Direction::Out) && !arrives;
        let inward = meant(Direction::In) && !owned;
        if !outward && !inward {
            let from_outside = self.direction != Some(Direction::Out);
            return Err(if owned && from_outside {
                Unfilterable::Stranger
            } else {
                Unfilterable::Homemade
            });
        }
        let families = [self.source, self.destination].map(|cidr| cidr.map(Cidr::family));
        if let [Some(a), Some(b)] = families
            && a != b
        {
            return Err(Unfilterable::Families);
        }
        if let Some(protocol) = self.protocol.filter(|p| !p.has_ports() && self.port.is_some()) {
            return Err(Unfilterable::Portless(protocol));
        }
        let mut chains = vec![
            chain(HERE, Hook::Input, LAST, Vec::new()),
            chain(AWAY, Hook::Postrouting, LAST, Vec::new()),
        ];
        if outward {
            chains.push(chain(OUT, Hook::Output, FIRST, self.rules(&[])));
        }
        if inward {
            let lo = interface_name(&InterfacePattern::loopback());
            let outside =
                [Expr::LoadMeta(MetaField::InInterface), Expr::Compare(Comparison::Ne, lo)];
            chains.push(chain(IN, Hook::Prerouting, FIRST, self.rules(&outside)));
        }
        Ok(chains)
    }

    fn rules(&self, first: &[Expr]) -> Vec<Vec<Expr>> {
        let one = |protocol: Protocol| {
            let mut rule = first.to_vec();
            rule.extend(self.fields());
            rule.extend([
                Expr::LoadMeta(MetaField::Protocol),
                Expr::Compare(Comparison::Eq, vec![protocol.0]),
            ]);
            if let Some(ports) = self.port {
                rule.extend(port(ports));
            }
            if protocol == Protocol::TCP && !self.every_packet {
                rule.extend(begins());
            }
            rule.extend([Expr::Load(vec![1]), Expr::StoreMeta(MetaField::Traced)]);
            rule
        };
        let both = [Protocol::TCP, Protocol::UDP];
        self.protocol.map_or(both.to_vec(), |p| vec![p]).into_iter().map(one).collect()
    }

    /// What does not depend on the protocol.
    fn fields(&self) -> Vec<Expr> {
        let owner = |owner| Statement::Owner {
            negated: false,
            owners: vec![owner],
            spelling: OwnerSpelling::Meta,
        };
        let address = |side, cidr: Cidr| match (cidr.is_everything(), cidr.family()) {
            (true, family) => Statement::Family(family),
            (false, _) => Statement::Address { side, negated: false, cidrs: vec![cidr] },
        };
        let statements = [
            self.interface.clone().map(|name| Statement::InInterface(vec![name])),
            self.uid.map(|uid| owner(Owner::Uid(uid))),
            self.gid.map(|gid| owner(Owner::Gid(gid))),
            self.mark.map(|mark| Statement::Mark { negated: false, mark: Masked::exact(mark) }),
            self.source.map(|cidr| address(Side::Source, cidr)),
            self.destination.map(|cidr| address(Side::Destination, cidr)),
        ];
        let statements: Vec<Statement> = statements.into_iter().flatten().collect();
        // Neither group names nor chains are in them.
        expressions(&statements, &Groups::new(), &|name| name.as_str().to_owned())
            .unwrap_or_default()
    }

    /// The families that are followed.
    pub fn families(&self) -> Vec<Family> {
        let of = self.destination.or(self.source).map(Cidr::family);
        of.map_or(Family::ALL.to_vec(), |family| vec![family])
    }
}

fn chain(name: &str, hook: Hook, priority: i32, rules: Vec<Vec<Expr>>) -> (String, NativeChain) {
    let base = Base { kind: "filter".to_owned(), hook: hook.number(), priority };
    let rules = rules.into_iter().map(Ok).collect();
    (name.to_owned(), NativeChain { base: Some(base), drops: false, rules })
}

/// The destination port, which is behind the source port (RFC 9293 section 3.1, RFC 768).
fn port(ports: PortRange) -> Vec<Expr> {
    let bytes = |port: u16| port.to_be_bytes().to_vec();
    vec![
        Expr::LoadPayload { header: Header::Transport, offset: 2, length: 2 },
        Expr::Compare(Comparison::Ge, bytes(ports.first().get())),
        Expr::Compare(Comparison::Le, bytes(ports.last().get())),
    ]
}

/// SYN without ACK: what begins a connection of TCP (RFC 9293 section 3.1).
fn begins() -> [Expr; 3] {
    const FLAGS: u32 = 13;
    const SYN: u8 = 0x02;
    const ACK: u8 = 0x10;
    [
        Expr::LoadPayload { header: Header::Transport, offset: FLAGS, length: 1 },
        Expr::Mask(vec![SYN | ACK]),
        Expr::Compare(Comparison::Eq, vec![SYN]),
    ]
}
