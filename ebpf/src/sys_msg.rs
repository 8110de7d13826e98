//! `sk_msg`: with `--accelerate`, what application and proxy send each other goes from socket to
//! socket.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::BPF_F_INGRESS;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SkMsgContext;
use millrace_ebpf_common::{Address, FlowKey};

use crate::sys_maps::ENDS;
use crate::sys_ops::mirrored;

const AF_INET: u32 = 2;
const PASS: u32 = 1;

macro_rules! read {
    ($place:expr) => {
        // SAFETY: a field of the context, which is there while the program runs.
        unsafe { read_volatile(addr_of!($place)) }
    };
}

pub(crate) fn run(ctx: &SkMsgContext) -> u32 {
    let msg = ctx.msg;
    let (local4, remote4) = (read!((*msg).local_ip4), read!((*msg).remote_ip4));
    let local6 = Address([
        read!((*msg).local_ip6[0]),
        read!((*msg).local_ip6[1]),
        read!((*msg).local_ip6[2]),
        read!((*msg).local_ip6[3]),
    ]);
    let remote6 = Address([
        read!((*msg).remote_ip6[0]),
        read!((*msg).remote_ip6[1]),
        read!((*msg).remote_ip6[2]),
        read!((*msg).remote_ip6[3]),
    ]);
    let v4 = read!((*msg).family) == AF_INET;
    let local = if v4 { Address::v4(local4) } else { local6 };
    let remote = if v4 { Address::v4(remote4) } else { remote6 };
    let local_port = read!((*msg).local_port) as u16;
    let remote_port = u32::from_be(read!((*msg).remote_port)) as u16;
    // SAFETY: the hook's own context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let (local, remote) = ((local, local_port), (remote, remote_port));
    // Which end this is shows in which end is the other one in ENDS.
    let mut accepted = mirrored(&FlowKey::new(netns, local, remote));
    let flags = u64::from(BPF_F_INGRESS);
    if remote.0.is_loopback() && ENDS.redirect_msg(ctx, &mut accepted, flags) == i64::from(PASS) {
        return PASS;
    }
    let mut client = FlowKey::new(netns, remote, local);
    // Without the other end in it, the data goes its usual way.
    let _found = ENDS.redirect_msg(ctx, &mut client, flags);
    PASS
}
