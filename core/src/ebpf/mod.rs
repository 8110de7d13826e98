//! From the policy to what the eBPF programs look up: a pod's entry, its networks, ports and
//! groups. What these programs can't do is refused here, with the reason.

mod compile;
mod entry;
mod judge;
mod more;
mod order;
mod read;
mod unsupported;

pub use compile::compile;
pub use entry::{Addresses, Entry, IdError, IdMap};
pub use judge::judge;
pub use order::{Earlier, Order};
pub use read::{NoPolicy, read};
pub use unsupported::{Unsupported, UnsupportedParts};

use std::borrow::Cow;
use std::net::IpAddr;

use millrace_ebpf_common::{Pod, PodFlags};

use crate::observed::Observed;
use crate::policy::CapturePolicy;
use crate::ruleset::{Home, Routing, Ruleset};
use crate::source::{Source, Sourced};
use crate::value::Family;

/// The policy as eBPF carries it out: where IPv6 was left out only because the pod has no address of it
/// yet, it is captured from its first one on, as an entry has both families for the price of one. Whether
/// any interface has IPv6 at all, `lo` with `::1` too, is `has_v6`: where it is off, its addresses and
/// routes are refused by the kernel.
pub fn extended(policy: &CapturePolicy, has_v6: bool) -> Cow<'_, CapturePolicy> {
    let CapturePolicy { ipv6, .. } = policy;
    if has_v6 && !ipv6.value && matches!(ipv6.source, Source::Host(_)) {
        let ipv6 = Sourced::new(true, ipv6.source.clone());
        return Cow::Owned(CapturePolicy { ipv6, ..policy.clone() });
    }
    Cow::Borrowed(policy)
}

/// What a pod needs beside its entry: an address, as with every backend, and no rules. And ways to
/// localhost by each interface, since the kernel reaches it by `lo` alone:
///
/// - for DNS, where queries are sent there with the device that their message or socket names, which no
///   program is told;
/// - with IPv6, where the kernel answers for a socket that is gone (in `TIME_WAIT`, or with a reset) by the
///   device whose address the packet was for (`tcp_v6_send_response()`, `rt6_need_strict()`): a proxy
///   that closes last would wait for that answer until it gives up.
pub fn beside(policy: &CapturePolicy) -> Ruleset {
    let ipv6 = policy.ipv6.value;
    let passthrough = ipv6 && policy.conventions.passthrough;
    rest(ipv6, passthrough, localhost(ipv6, policy.dns.is_some()))
}

/// The same of a pod's entry in the maps.
pub fn beside_entry(pod: &Pod) -> Ruleset {
    let ipv6 = pod.has(PodFlags::IPV6);
    let passthrough = ipv6 && !pod.has(PodFlags::NO_PASSTHROUGH);
    rest(ipv6, passthrough, localhost(ipv6, pod.has(PodFlags::DNS)))
}

/// Whether the pod's IPv6 is captured.
pub fn captures_v6(pod: &Pod) -> bool {
    pod.has(PodFlags::IPV6)
}

/// The addresses that the pod's connections to elsewhere came from when it was enrolled, and captured ones
/// come from.
pub fn sources(pod: &Pod) -> impl Iterator<Item = IpAddr> {
    [pod.source4, pod.source6].into_iter().filter_map(|address| {
        let ip = IpAddr::from(address.octets()).to_canonical();
        (!ip.is_unspecified()).then_some(ip)
    })
}

/// As much of it as is here.
pub fn beside_observed(observed: &Observed) -> Ruleset {
    let has = |family: &Family| observed.localhost_ways.iter().any(|way| way.family == *family);
    let ways = Family::ALL.into_iter().filter(&has).collect();
    let passthrough = observed.passthrough_link.is_some();
    rest(passthrough || has(&Family::V6), passthrough, ways)
}

/// The families in which localhost is to be reached by each interface.
fn localhost(ipv6: bool, dns: bool) -> Vec<Family> {
    let wanted = [(Family::V4, dns), (Family::V6, ipv6)];
    wanted.into_iter().filter_map(|(family, wanted)| wanted.then_some(family)).collect()
}

fn rest(ipv6: bool, passthrough: bool, localhost_everywhere: Vec<Family>) -> Ruleset {
    let routing = Routing {
        // There is no TPROXY by eBPF.
        marked: None,
        passthrough_v6: passthrough.then_some(Home::Own),
        localhost_everywhere,
    };
    Ruleset { v4: Vec::new(), v6: ipv6.then(Vec::new), made: Vec::new(), routing, guard: None }
}

/// How many networks a pod's policy can name, of both families together.
pub const MAX_NETWORKS: usize = 65_536;

/// How many groups a pod's policy can name, and how many excluded users.
pub const MAX_GROUPS: usize = 256;
