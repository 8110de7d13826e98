//! Why a capability that a container was given is not in effect.

use std::fmt;

/// `CAP_NET_ADMIN` (`linux/capability.h`).
pub(crate) const NET_ADMIN: u32 = 12;
/// `CAP_NET_RAW`.
pub(crate) const NET_RAW: u32 = 13;

/// What has to be done where `NET_ADMIN` is missing; empty where nothing is known.
#[derive(Clone, Debug)]
pub(crate) struct Hint(Option<Given>);

/// A user who has not in effect what it may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Given {
    uid: u32,
    /// Whether that is `NET_RAW` too. A program whose file asks for more than there is does not start.
    raw: bool,
}

impl Hint {
    /// By the user and capabilities of the calling thread (`/proc/thread-self/status`).
    pub(crate) fn look() -> Self {
        Self(given(&std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default()))
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(Given { uid, raw }) = self.0 else { return Ok(()) };
        let program = std::env::current_exe().unwrap_or_else(|_| "millrace".into());
        let capabilities = if raw { "cap_net_raw,cap_net_admin" } else { "cap_net_admin" };
        write!(
            f,
            "; user {uid} has none in effect: Kubernetes gives the capabilities that a container adds to \
             root alone, so run it with runAsUser: 0 and without runAsNonRoot, or give them to the \
             program's file in the image, as Linkerd's has them: setcap {capabilities}+eip {}",
            program.display()
        )
    }
}

/// Whether this process has a capability in effect, by its number (`proc_pid_status(5)`, `CapEff`).
pub(crate) fn has_capability(number: u32) -> bool {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask & (1 << number) != 0
}

/// The user who has not in effect what it may have at most (`proc_pid_status(5)`). Capabilities of a
/// user other than root are gone after `execve(2)` unless they are ambient (`capabilities(7)`).
fn given(status: &str) -> Option<Given> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    let mask = |name: &str| u64::from_str_radix(field(name)?.trim(), 16).ok();
    let has = |name: &str, which: u32| mask(name).map(|mask| mask & (1_u64 << which) != 0);
    let effective = field("Uid:")?.split_ascii_whitespace().nth(1)?;
    let uid: u32 = effective.parse().ok()?;
    let none = has("CapEff:", NET_ADMIN) == Some(false);
    (uid != 0 && none && has("CapBnd:", NET_ADMIN) == Some(true))
        .then(|| Given { uid, raw: has("CapBnd:", NET_RAW) == Some(true) })
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
        assert_eq!(given(&status(1337, 0, net_admin)), Some(Given { uid: 1337, raw: false }));
        assert_eq!(given(&status(1337, net_admin, net_admin)), None, "ambient");
        assert_eq!(given(&status(1337, 0, 0)), None, "the container has none");
        assert_eq!(given(&status(0, 0, net_admin)), None, "root that dropped it");
        assert_eq!(given(""), None);
        let text = Hint(given(&status(1337, 0, net_admin))).to_string();
        assert!(text.contains("user 1337") && text.contains("runAsUser: 0"), "{text}");
        assert!(text.contains("setcap cap_net_admin+eip /"), "{text}");
        let text = Hint(given(&status(65534, 0, net_admin | 1 << NET_RAW))).to_string();
        assert!(text.contains("setcap cap_net_raw,cap_net_admin+eip /"), "{text}");
        assert_eq!(Hint(None).to_string(), "");
    }
}
