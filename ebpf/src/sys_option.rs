//! `getsockopt()`: SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::helpers::generated::bpf_get_netns_cookie;
use aya_ebpf::programs::SockoptContext;
use millrace_ebpf_common::{Address, Original};

use crate::sys_maps;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// `linux/netfilter_ipv4.h`; IP6T_SO_ORIGINAL_DST has the same number.
const SO_ORIGINAL_DST: i32 = 80;
const TCP: u32 = 6;
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
    // SAFETY: the hook's own socket.
    let original = match unsafe { sys_maps::accepted(socket.cast()) } {
        Some(original) => *original,
        // Nothing was rewritten: as with connection tracking, it is the address itself.
        None => match own_address(ctx, socket) {
            Some(own) => own,
            None => return GO_ON,
        },
    };
    if original.address.is_v4() == (level == SOL_IP) {
        answer(ctx, &original);
    }
    GO_ON
}

/// The address of an established socket of an enrolled pod.
#[inline(always)]
fn own_address(ctx: &SockoptContext, socket: *mut bpf_sock) -> Option<Original> {
    // SAFETY: the hook's own context.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    sys_maps::pod(netns)?;
    if read!((*socket).state) == TCP_LISTEN || read!((*socket).dst_port) == 0 {
        return None;
    }
    // An IPv6 socket has no IPv4 address in its own field, but a mapped one in the other.
    let word4 = read!((*socket).src_ip4);
    let address6 = Address([
        read!((*socket).src_ip6[0]),
        read!((*socket).src_ip6[1]),
        read!((*socket).src_ip6[2]),
        read!((*socket).src_ip6[3]),
    ]);
    let v4 = read!((*socket).family) == AF_INET;
    let address = if v4 { Address::v4(word4) } else { address6 };
    Some(Original { address, port: read!((*socket).src_port) as u16, via: 0, reserved: 0 })
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
