//! What rules are for, in the same words for every backend.

use std::fmt::Display;

use crate::ruleset::Masked;

pub(crate) const PASSTHROUGH: &str = "what the proxy passes on to the application is left alone";
pub(crate) const SELF_CALL: &str = "the proxy's calls to its own pod come in by the inbound port";
pub(crate) const IN_POD: &str = "what the application sends to its own pod is left alone";
pub(crate) const PROXY: &str = "the proxy's own connections are left alone";
pub(crate) const NOT_GROUP: &str = "processes of this group are not captured";
pub(crate) const ONLY_GROUPS: &str = "only processes of these groups are captured";
pub(crate) const LOCALHOST: &str = "connections to localhost are left alone";
pub(crate) const EVERY_OTHER: &str = "every other outbound connection is captured";

/// A mark and the bits that count.
pub(crate) fn mark(mark: Masked) -> String {
    format!("{:#x}/{:#x}", mark.value, mark.mask)
}

/// Of an outbound port or network, or an inbound port.
pub(crate) fn not_captured(what: &str, which: impl Display) -> String {
    format!("{} not captured", are(what, which))
}

/// Of the same as [`not_captured`].
pub(crate) fn captured(what: &str, which: impl Display) -> String {
    format!("{} captured", are(what, which))
}

pub(crate) fn captured_everywhere(port: impl Display) -> String {
    let which = port.to_string();
    let goes = if which.contains(',') { "they go" } else { "it goes" };
    format!("{} captured wherever {goes}", are("outbound port", which))
}

/// Of one, or of several with commas between them.
fn are(what: &str, which: impl Display) -> String {
    let which = which.to_string();
    if which.contains(',') { format!("{what}s {which} are") } else { format!("{what} {which} is") }
}

pub(crate) const EVERY_PORT: &str = "every inbound port is captured";

pub(crate) fn tunnel(port: impl Display) -> String {
    format!("tunnels to port {port} reach the proxy as they are")
}

pub(crate) fn interface(name: impl Display) -> String {
    format!("interface {name} is not captured")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_are_not_one() {
        assert_eq!(not_captured("outbound port", 80), "outbound port 80 is not captured");
        assert_eq!(not_captured("outbound port", "80,81"), "outbound ports 80,81 are not captured");
        assert_eq!(captured("outbound network", "a,b"), "outbound networks a,b are captured");
        let ports = captured_everywhere("80,81");
        assert_eq!(ports, "outbound ports 80,81 are captured wherever they go");
    }
}
