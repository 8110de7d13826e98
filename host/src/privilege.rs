//! Why a capability that a container was given is not in effect.

use std::fmt;

/// `CAP_NET_ADMIN` (`linux/capability.h`).
pub(crate) const NET_ADMIN: u32 = 12;

/// What has to be done where `NET_ADMIN` is missing; empty where nothing is known.
#[derive(Clone, Debug)]
pub(crate) struct Hint(Option<u32>);

impl Hint {
    /// Look at this process.
    pub(crate) fn look() -> Self {
        Self(given(&std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default()))
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(uid) = self.0 else { return Ok(()) };
        write!(
            f,
            "; user {uid} has none in effect: Kubernetes gives the capabilities that a container adds to \
             root alone, so run it with runAsUser: 0 and without runAsNonRoot"
        )
    }
}

/// The user who has not in effect what it may have at most (`proc_pid_status(5)`). Capabilities of a
/// user other than root are gone after `execve(2)` unless they are ambient (`capabilities(7)`).
fn given(status: &str) -> Option<u32> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let mask = |name: &str| u64::from_str_radix(field(name)?.trim(), 16).ok();
    let has = |name: &str| mask(name).map(|mask| mask & (1 << NET_ADMIN) != 0);
    let effective = field("Uid:")?.split_ascii_whitespace().nth(1)?;
    let uid: u32 = effective.parse().ok()?;
    (uid != 0 && has("CapEff:") == Some(false) && has("CapBnd:") == Some(true)).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_root_loses_what_the_container_has() {
        let status = |uid: u32, effective: u64, bounding: u64| {
            format!(
                "Name:\tx\nUid:\t0\t{uid}\t0\t0\nCapEff:\t{effective:016x}\nCapBnd:\t{bounding:016x}\n"
            )
        };
        let net_admin = 1 << NET_ADMIN;
        assert_eq!(given(&status(1337, 0, net_admin)), Some(1337));
        assert_eq!(given(&status(1337, net_admin, net_admin)), None, "ambient");
        assert_eq!(given(&status(1337, 0, 0)), None, "the container has none");
        assert_eq!(given(&status(0, 0, net_admin)), None, "root that dropped it");
        assert_eq!(given(""), None);
        let text = Hint(given(&status(1337, 0, net_admin))).to_string();
        assert!(text.contains("user 1337") && text.contains("runAsUser: 0"), "{text}");
        assert_eq!(Hint(None).to_string(), "");
    }
}
