//! `getsockopt()`: SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockoptContext;
use millrace_ebpf_common::{Address, FlowKey, Original};

use crate::sys_maps;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// `linux/netfilter_ipv4.h`; IP6T_SO_ORIGINAL_DST has the same number.
const SO_ORIGINAL_DST: i32 = 80;
const TCP: u32 = 6;
const TCP_CLOSE: u32 = 7;
const TCP_LISTEN: u32 = 10;
/// The kernel copies no longer options for programs (`BPF_SOCKOPT_KERN_BUF_SIZE`, `PAGE_SIZE`).
const LONGEST: i32 = 4096;
const GO_ON: i32 = 1;

macro_rules! read {
    ($place:expr) => {
        // SAFETY: a field of the context or its socket, which are there while the program runs.
        unsafe { read_volatile(addr_of!($place)) }
    };
}

pub(crate) fn run(ctx: &SockoptContext) -> i32 {
    let option = ctx.sockopt;
    let (level, name) = (read!((*option).level), read!((*option).optname));
    if name != SO_ORIGINAL_DST || (level != SOL_IP && level != SOL_IPV6) {
        if read!((*option).optlen) > LONGEST {
            // The kernel's own answer stays as it is.
            // SAFETY: a field of the context.
            unsafe { (*option).optlen = 0 };
        }
        return GO_ON;
    }
    // SAFETY: a field of the context.
    let socket = unsafe { (*option).__bindgen_anon_1.sk };
    if socket.is_null() || read!((*socket).protocol) != TCP {
        return GO_ON;
    }
    let state = read!((*socket).state);
    let original = match state {
        TCP_LISTEN => return GO_ON,
        // It has no place in FLOWS any more.
        // SAFETY: the hook's own socket.
        TCP_CLOSE => unsafe { sys_maps::accepted(socket.cast()) }.copied(),
        _ => connected(ctx, socket),
    };
    let Some(original) = original else { return GO_ON };
    if original.address.is_v4() == (level == SOL_IP) {
        answer(ctx, &original);
    }
    GO_ON
}

/// Where a socket's connection was meant to go. If nothing was rewritten it is, as with connection
/// tracking, the address itself, in an enrolled pod.
#[inline(always)]
fn connected(ctx: &SockoptContext, socket: *mut bpf_sock) -> Option<Original> {
    // Two bytes in network order.
    let client_port = u16::from_be(read!((*socket).dst_port));
    if client_port == 0 {
        return None;
    }
    // An IPv6 socket has no IPv4 address in its own field, but a mapped one in the other.
    let (local4, remote4) = (read!((*socket).src_ip4), read!((*socket).dst_ip4));
    let local6 = Address([
        read!((*socket).src_ip6[0]),
        read!((*socket).src_ip6[1]),
        read!((*socket).src_ip6[2]),
        read!((*socket).src_ip6[3]),
    ]);
    let remote6 = Address([
        read!((*socket).dst_ip6[0]),
        read!((*socket).dst_ip6[1]),
        read!((*socket).dst_ip6[2]),
        read!((*socket).dst_ip6[3]),
    ]);
    let v4 = read!((*socket).family) == AF_INET;
    let address = if v4 { Address::v4(local4) } else { local6 };
    let client = if v4 { Address::v4(remote4) } else { remote6 };
    let port = read!((*socket).src_port) as u16;
    // SAFETY: the hook's own context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    if address.is_loopback() {
        let key = FlowKey::new(netns, (client, client_port), (address, port));
        // While this socket has the addresses, no other one can have been accepted with them.
        if let Some(flow) = sys_maps::flow(&key).filter(|flow| flow.accepted != 0) {
            flow.asked = 1;
            return Some(flow.original);
        }
    }
    sys_maps::pod(netns)?;
    Some(Original { address, port, via: 0, holder: 0 })
}

/// Answer with a `sockaddr_in` or `sockaddr_in6`. Too short a buffer keeps the kernel's answer.
#[inline(always)]
fn answer(ctx: &SockoptContext, original: &Original) {
    let option = ctx.sockopt;
    // SAFETY: fields of the context; the verifier knows them as the ends of the buffer, and wants
    // each access compared with the second one.
    unsafe {
        let start = (*option).__bindgen_anon_2.optval as usize;
        let end = (*option).__bindgen_anon_3.optval_end as usize;
        let Address([a, b, c, d]) = original.address;
        if original.address.is_v4() {
            if start + 16 > end {
                return;
            }
            let words = start as *mut u32;
            *words = AF_INET | u32::from(original.port.to_be()) << 16;
            *words.add(1) = d;
            *words.add(2) = 0;
            *words.add(3) = 0;
            (*option).optlen = 16;
        } else {
            if start + 28 > end {
                return;
            }
            let words = start as *mut u32;
            *words = AF_INET6 | u32::from(original.port.to_be()) << 16;
            *words.add(1) = 0;
            *words.add(2) = a;
            *words.add(3) = b;
            *words.add(4) = c;
            *words.add(5) = d;
            *words.add(6) = 0;
            (*option).optlen = 28;
        }
        (*option).retval = 0;
    }
}
