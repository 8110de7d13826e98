//! The network namespace that is to be captured, and that it is nobody else's.

use std::path::Path;

use millrace_host::netns::{Netns, NetnsRef};

use crate::protocol::{CniError, Code};

/// The namespaces that are never a pod's.
const NOT_PODS: [(&str, &str); 2] =
    [("/proc/self/ns/net", "this plugin's own"), ("/proc/1/ns/net", "the host's")];

/// Open the namespace of a request. Nothing is changed, and nothing entered.
///
/// # Errors
/// When there is none, or it is the host's or the plugin's own: capturing that would cut the node
/// off.
pub(crate) fn open(path: Option<&Path>) -> Result<Netns, CniError> {
    let path = path.map(|path| path.display().to_string()).unwrap_or_default();
    let bad = |why: String| CniError::new(Code::BadEnvironment, format!("CNI_NETNS: {why}"));
    // A path without a slash would be taken for a name or a process id.
    if !path.starts_with('/') {
        return Err(bad(format!("{path:?} is no absolute path")));
    }
    let open = |path: &str| path.parse::<NetnsRef>().and_then(|reference| reference.open());
    let netns = open(&path).map_err(|error| bad(error.to_string()))?;
    for (own, whose) in NOT_PODS {
        // What can't be seen can't be this one, as far as can be told.
        if open(own).is_ok_and(|own| own.id() == netns.id()) {
            return Err(bad(format!(
                "{path} is {whose} network namespace, which is never captured: nothing was changed"
            )));
        }
    }
    Ok(netns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ones_own_namespace_is_refused_however_it_is_named() {
        for own in ["/proc/self/ns/net", "/proc/thread-self/ns/net", "/proc/self/../self/ns/net"] {
            let error = open(Some(Path::new(own))).unwrap_err();
            assert_eq!(error.code, Code::BadEnvironment);
            assert!(error.msg.contains("never captured"), "{}", error.msg);
        }
    }

    #[test]
    fn what_is_not_there_is_named() {
        for bad in ["/no/such/namespace", "relative", ""] {
            let error = open(Some(Path::new(bad))).unwrap_err();
            assert!(error.msg.starts_with("CNI_NETNS: "), "{}", error.msg);
            assert!(error.msg.contains(bad), "{}", error.msg);
        }
    }
}
