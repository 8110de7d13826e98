//! `close()`: an application's socket takes what it left in FLOWS with it.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated::bpf_get_socket_cookie;
use aya_ebpf::programs::SockContext;

use crate::sys_maps;

const GO_ON: i32 = 1;

pub(crate) fn run(ctx: &SockContext) -> i32 {
    // SAFETY: the hook's own socket.
    let Some(client) = (unsafe { sys_maps::client(ctx.as_ptr()) }) else { return GO_ON };
    if client.flow.proxy_port != 0 {
        // SAFETY: the hook's own context.
        let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
        sys_maps::end_flow_of(&client.flow, cookie);
    }
    GO_ON
}
