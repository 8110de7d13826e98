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

use crate::capture::routing;
use crate::policy::CapturePolicy;
use crate::ruleset::{Home, Routing, Ruleset};

/// What a pod needs beside its entry: an address, as with every backend, and no rules. Where DNS is
/// captured, also ways to localhost: queries are sent there with the device that their message or
/// socket names, which no program is told, and by which the kernel does not reach localhost.
pub fn beside(policy: &CapturePolicy) -> Ruleset {
    let v6 = policy.ipv6.value.then(Vec::new);
    let routing =
        Routing { localhost_everywhere: policy.dns.is_some(), ..routing(policy, Home::Own) };
    Ruleset { v4: Vec::new(), v6, routing, guard: None }
}

/// How many networks a pod's policy can name, of both families together.
pub const MAX_NETWORKS: usize = 65_536;

/// How many groups a pod's policy can name.
pub const MAX_GROUPS: usize = 256;
