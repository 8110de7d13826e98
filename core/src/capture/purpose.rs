//! What rules are for, in the same words for every backend.

use std::fmt::Display;

pub(crate) const PASSTHROUGH: &str = "what the proxy passes on to the application is left alone";
pub(crate) const SELF_CALL: &str = "the proxy's calls to its own pod come in by the inbound port";
pub(crate) const IN_POD: &str = "what the application sends to its own pod is left alone";
pub(crate) const PROXY: &str = "the proxy's own connections are left alone";
pub(crate) const NOT_GROUP: &str = "processes of this group are not captured";
pub(crate) const ONLY_GROUPS: &str = "only processes of these groups are captured";
pub(crate) const LOCALHOST: &str = "connections to localhost are left alone";
pub(crate) const EVERY_OTHER: &str = "every other outbound connection is captured";

/// Of an outbound port or network, or an inbound port.
pub(crate) fn not_captured(what: &str, which: impl Display) -> String {
    format!("{what} {which} is not captured")
}

/// The same.
pub(crate) fn captured(what: &str, which: impl Display) -> String {
    format!("{what} {which} is captured")
}

pub(crate) fn captured_everywhere(port: impl Display) -> String {
    format!("outbound port {port} is captured wherever it goes")
}

pub(crate) const EVERY_PORT: &str = "every inbound port is captured";

pub(crate) fn tunnel(port: impl Display) -> String {
    format!("tunnels to port {port} reach the proxy as they are")
}

pub(crate) fn interface(name: impl Display) -> String {
    format!("interface {name} is not captured")
}
