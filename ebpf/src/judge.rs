//! What `decide()` says of a connection, counted and reported. One function for all hooks: inlined
//! into each it would be most of the object.

use millrace_ebpf_common::{Address, Class, Connection, Pod, PodFlags, decide};

use crate::sys_maps::{self, Maps};
use crate::{sys_outbound, sys_report};

/// A verdict as one number, as functions of eBPF return it.
#[derive(Clone, Copy)]
pub(crate) struct Judgement(pub(crate) u32);

impl Judgement {
    /// The port of the proxy; 0 when it is let past.
    #[inline(always)]
    pub(crate) const fn port(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    pub(crate) const fn is_captured(self) -> bool {
        self.port() != 0
    }

    #[inline(always)]
    pub(crate) const fn class(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// Whether this is the reason.
    #[inline(always)]
    pub(crate) const fn is_of(self, class: Class) -> bool {
        self.class() == class as u8
    }

    /// The address that it goes to, where that is not the one that was meant.
    #[inline(always)]
    pub(crate) fn to(self, pod: &Pod, meant: &Address) -> Address {
        let dns = pod.has(PodFlags::DNS_LED) && self.is_of(Class::Dns);
        if !dns && !self.is_of(Class::OwnLocalhost) {
            return meant.localhost();
        }
        let Some(more) = sys_maps::more(pod.id) else { return meant.localhost() };
        if dns { *more.dns(meant.is_v4()).0 } else { more.own }
    }

    /// The same port, for another reason.
    #[inline(always)]
    pub(crate) const fn as_class(self, class: Class) -> Self {
        Self(self.port() as u32 | (class as u32) << 16)
    }
}

/// What becomes of a connection, judged where it is asked.
#[inline(always)]
pub(crate) fn judge(pod: &Pod, connection: &Connection) -> Judgement {
    let verdict = decide(pod, &Maps, connection);
    Judgement(u32::from(verdict.port) | (verdict.class as u32) << 16)
}

/// What becomes of an outbound connection, judged in one place for all hooks.
#[inline(always)]
pub(crate) fn outbound(pod: &Pod, connection: &Connection) -> Judgement {
    Judgement(sys_outbound::mr_outbound(pod, connection))
}

/// Count it, and report it if it is one of those that are. `process` and `remote_port` are what the
/// connection does not say.
#[inline(always)]
pub(crate) fn note(
    netns: u64,
    connection: &Connection,
    judgement: Judgement,
    process: u32,
    remote_port: u16,
) {
    sys_maps::count(netns, judgement.class());
    if sys_maps::settings().is_some_and(|settings| settings.sample != 0) {
        let more = u64::from(process) | u64::from(remote_port) << 32;
        sys_report::mr_report(netns, connection, judgement.0, more);
    }
}
