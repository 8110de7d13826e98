//! Values that can't be bad: a port, a network, an interface name, an owner, a mark. Each is made
//! by parsing, so no text that a user typed reaches a rule without having been one of these.

mod cidr;
mod ids;
mod interface;
mod port;
pub(crate) mod yaml;

pub use cidr::{Cidr, Family};
pub use ids::{Gid, GroupName, Groups, Mark, RouteTable, Uid, UidRange, Zone};
pub use interface::InterfacePattern;
pub use port::{ListenPort, Port, PortRange};

/// Why a text is not the value it should be. The message says what would be right; the caller
/// adds which flag or variable it came from.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(pub(crate) String);

impl ValueError {
    /// Make an error whose text says what was expected.
    pub fn new(expected: impl Into<String>) -> Self {
        Self(expected.into())
    }
}
