//! Settings of the kernel that each network namespace has for itself.

use std::fs;
use std::io;
use std::path::PathBuf;

/// A setting of the calling thread's network namespace. Its value there is kept in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// How many seconds connection tracking keeps connections of TCP in `CLOSE_WAIT`.
    CloseWait,
}

/// Whether IPv6 is switched off on `lo`, also where the kernel has none (`ip-sysctl`, `disable_ipv6`).
pub fn lo_has_no_ipv6() -> bool {
    let off = fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    off.map_or(true, |text| text.trim() == "1")
}

/// Switch IPv6 on, on an interface that Millrace made: new ones may have it switched off where the pod's own
/// has it.
///
/// # Errors
/// When that can't be written, with what to do.
pub(crate) fn switch_ipv6_on(interface: &str) -> Result<(), String> {
    let switch = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    fs::write(&switch, "0").map_err(|error| {
        format!(
            "IPv6 is switched off on new interfaces, and {switch} can't be set: {error}; set the sysctl \
             net.ipv6.conf.default.disable_ipv6 to 0, or switch IPv6 off in the whole pod"
        )
    })
}

/// A setting can't be read or written.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} can't be set: {source}; {}", .setting.name(), match .source.kind() {
        io::ErrorKind::NotFound => "the kernel has it when the module nf_conntrack is loaded",
        _ => "that needs a container with a writable /proc/sys (privileged) and NET_ADMIN",
    }
)]
pub struct SettingError {
    setting: Setting,
    source: io::Error,
}

impl Setting {
    /// The name that sysctl has for it.
    const fn name(self) -> &'static str {
        match self {
            Self::CloseWait => "net.netfilter.nf_conntrack_tcp_timeout_close_wait",
        }
    }

    fn path(self) -> PathBuf {
        PathBuf::from("/proc/sys").join(self.name().replace('.', "/"))
    }

    /// Set it, if it has another value, and give that: to set it again takes this back.
    ///
    /// # Errors
    /// When the kernel does not have it, or does not let it be written.
    pub fn set(self, value: u32) -> Result<Option<u32>, SettingError> {
        let failed = |source| SettingError { setting: self, source };
        let before = fs::read_to_string(self.path()).map_err(failed)?;
        let before: Option<u32> = before.trim().parse().ok();
        if before == Some(value) {
            return Ok(None);
        }
        fs::write(self.path(), value.to_string()).map_err(failed)?;
        Ok(before)
    }
}
