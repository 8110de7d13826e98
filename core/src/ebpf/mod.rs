//! From the policy to what the eBPF programs look up: a pod's entry, its networks, ports and
//! groups. What these programs can't do is refused here, with the reason.

mod compile;
mod entry;
mod judge;
mod read;
mod refusal;

pub use compile::compile;
pub use entry::{Addresses, Entry, IdError, IdMap};
pub use judge::judge;
pub use read::{NoPolicy, read};
pub use refusal::{Refusal, Refusals};

use millrace_ebpf_common::{Pod, PodFlags};

use crate::observed::Observed;
use crate::policy::CapturePolicy;
use crate::ruleset::{Home, Routing, Ruleset};

/// What a pod needs beside its entry: an address, as with every backend, and no rules. Where DNS is
/// captured, also ways to localhost: queries are sent there with the device that their message or
/// socket names, which no program is told, and by which the kernel does not reach localhost.
pub fn beside(policy: &CapturePolicy) -> Ruleset {
    rest(policy.ipv6.value, policy.dns.is_some())
}

/// The same of a pod's entry in the maps.
pub fn beside_entry(pod: &Pod) -> Ruleset {
    rest(pod.has(PodFlags::IPV6), pod.has(PodFlags::DNS))
}

/// As much of it as is here.
pub fn beside_found(observed: &Observed) -> Ruleset {
    rest(observed.passthrough_link.is_some(), !observed.localhost_ways.is_empty())
}

fn rest(ipv6: bool, dns: bool) -> Ruleset {
    let routing = Routing {
        // There is no TPROXY by eBPF.
        tproxy: None,
        passthrough_v6: ipv6.then_some(Home::Own),
        localhost_everywhere: dns,
    };
    Ruleset { v4: Vec::new(), v6: ipv6.then(Vec::new), routing, guard: None }
}

/// How many networks a pod's policy can name, of both families together.
pub const MAX_NETWORKS: usize = 65_536;

/// How many groups a pod's policy can name.
pub const MAX_GROUPS: usize = 256;
