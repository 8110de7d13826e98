//! The programs that the kernel runs. Each reads what its hook gives, asks `decide()` of
//! `ebpf-common`, and acts on the verdict.
//!
//! ```text
//! application: connect()  -> connect4/6    decide; note the destination in the socket; rewrite it
//!              SYN        -> sock_ops      FLOWS[addresses] = destination, for both ends
//! proxy:       handshake  -> sock_ops      the second end is there
//!              getsockopt -> getsockopt    SO_ORIGINAL_DST
//! application: getpeername-> getpeername4/6
//!              sendto     -> sendmsg4/6, recvmsg4/6 (DNS)
//! both:        closed     -> sock_ops      of the last one nothing stays in FLOWS
//! from outside: SYN       -> sk_lookup     decide; to the proxy's listener, or refused
//! ```
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod connect;
mod datagram;
mod judge;
mod sys_addr;
mod sys_forget;
mod sys_handover;
mod sys_lookup;
mod sys_maps;
mod sys_msg;
mod sys_ops;
mod sys_option;
mod sys_outbound;
mod sys_report;

use aya_ebpf::macros::{cgroup_sock_addr, cgroup_sockopt, sk_lookup, sk_msg, sock_ops};
use aya_ebpf::programs::{
    SkLookupContext, SkMsgContext, SockAddrContext, SockOpsContext, SockoptContext,
};
use sys_addr::{Call, V4, V6};

#[cgroup_sock_addr(connect4)]
pub fn mr_connect4(ctx: SockAddrContext) -> i32 {
    connect::connect(&Call::<V4>::new(&ctx))
}

#[cgroup_sock_addr(connect6)]
pub fn mr_connect6(ctx: SockAddrContext) -> i32 {
    connect::connect(&Call::<V6>::new(&ctx))
}

#[cgroup_sock_addr(sendmsg4)]
pub fn mr_sendmsg4(ctx: SockAddrContext) -> i32 {
    datagram::send(&Call::<V4>::new(&ctx))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn mr_sendmsg6(ctx: SockAddrContext) -> i32 {
    datagram::send(&Call::<V6>::new(&ctx))
}

#[cgroup_sock_addr(recvmsg4)]
pub fn mr_recvmsg4(ctx: SockAddrContext) -> i32 {
    datagram::receive(&Call::<V4>::new(&ctx))
}

#[cgroup_sock_addr(recvmsg6)]
pub fn mr_recvmsg6(ctx: SockAddrContext) -> i32 {
    datagram::receive(&Call::<V6>::new(&ctx))
}

#[cgroup_sock_addr(getpeername4)]
pub fn mr_peername4(ctx: SockAddrContext) -> i32 {
    connect::peer_name(&Call::<V4>::new(&ctx))
}

#[cgroup_sock_addr(getpeername6)]
pub fn mr_peername6(ctx: SockAddrContext) -> i32 {
    connect::peer_name(&Call::<V6>::new(&ctx))
}

#[sock_ops]
pub fn mr_sockops(ctx: SockOpsContext) -> u32 {
    sys_ops::run(&ctx)
}

#[cgroup_sockopt(getsockopt)]
pub fn mr_getsockopt(ctx: SockoptContext) -> i32 {
    sys_option::run(&ctx)
}

#[sk_lookup]
pub fn mr_sklookup(ctx: SkLookupContext) -> u32 {
    sys_lookup::enter(&ctx)
}

#[sk_lookup]
pub fn mr_inbound(ctx: SkLookupContext) -> u32 {
    sys_lookup::run(&ctx)
}

#[sk_msg]
pub fn mr_skmsg(ctx: SkMsgContext) -> u32 {
    sys_msg::run(&ctx)
}

/// Nothing panics; the linker finds no call of this. There is nothing that it could do.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
