//! What `connect()`, `sendto()`, `recvfrom()` and `getpeername()` hand to their hooks.

use core::ffi::c_void;
use core::marker::PhantomData;
use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr, sockaddr};
use aya_ebpf::helpers::generated::{
    bpf_bind, bpf_get_current_pid_tgid, bpf_get_current_uid_gid, bpf_get_netns_cookie,
    bpf_get_socket_cookie, bpf_setsockopt,
};
use aya_ebpf::programs::SockAddrContext;
use millrace_ebpf_common::{Address, Client, Original, Pod, Protocol};

use crate::sys_maps;

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;
const TCP: u32 = 6;
const UDP: u32 = 17;
const MPTCP: u32 = 262;
const SOL_SOCKET: i32 = 1;
/// `-EADDRNOTAVAIL` of `bpf_bind()`: the pod does not have the address.
const NOT_AVAILABLE: i32 = -99;
/// `-EINVAL` of `bpf_bind()`: the socket has a port already.
const INVALID: i32 = -22;
const SO_BINDTODEVICE: i32 = 25;

/// The kernel allows the fields of a context to be read and written one word at a time.
macro_rules! read {
    ($place:expr) => {
        // SAFETY: a field of the context, which is there while the program runs.
        unsafe { read_volatile(addr_of!($place)) }
    };
}

macro_rules! write {
    ($place:expr, $value:expr) => {
        // SAFETY: a field of the context, which is there while the program runs.
        unsafe { write_volatile(addr_of_mut!($place), $value) }
    };
}

/// Hooks of IPv4 sockets.
pub(crate) struct V4;
/// Hooks of IPv6 sockets, which may have IPv4-mapped addresses.
pub(crate) struct V6;

/// Which fields a hook may use.
pub(crate) trait Family {
    /// Whether it is IPv6.
    const V6: bool;
}

impl Family for V4 {
    const V6: bool = false;
}

impl Family for V6 {
    const V6: bool = true;
}

/// One call of the application.
pub(crate) struct Call<'a, F> {
    ctx: &'a SockAddrContext,
    family: PhantomData<F>,
}

impl<'a, F: Family> Call<'a, F> {
    #[inline(always)]
    pub(crate) const fn new(ctx: &'a SockAddrContext) -> Self {
        Self { ctx, family: PhantomData }
    }

    #[inline(always)]
    fn raw(&self) -> *mut bpf_sock_addr {
        self.ctx.sock_addr
    }

    #[inline(always)]
    fn socket(&self) -> *mut bpf_sock {
        // SAFETY: a field of the context.
        unsafe { (*self.raw()).__bindgen_anon_1.sk }
    }

    /// The pod, by its netns cookie.
    #[inline(always)]
    pub(crate) fn netns(&self) -> u64 {
        // SAFETY: the hook's own context.
        unsafe { bpf_get_netns_cookie(self.ctx.as_ptr()) }
    }

    /// The socket, by its cookie.
    #[inline(always)]
    pub(crate) fn socket_cookie(&self) -> u64 {
        // SAFETY: the hook's own context.
        unsafe { bpf_get_socket_cookie(self.ctx.as_ptr()) }
    }

    /// User and group of the process, in the initial user namespace.
    #[inline(always)]
    pub(crate) fn owner(&self) -> (u32, u32) {
        // SAFETY: a helper without arguments.
        let both = unsafe { bpf_get_current_uid_gid() };
        (both as u32, (both >> 32) as u32)
    }

    /// The id of the process (not of its thread), in the initial pid namespace.
    #[inline(always)]
    pub(crate) fn process(&self) -> u32 {
        // SAFETY: a helper without arguments.
        (unsafe { bpf_get_current_pid_tgid() } >> 32) as u32
    }

    /// TCP or UDP; none for anything else.
    #[inline(always)]
    pub(crate) fn protocol(&self) -> Option<Protocol> {
        match read!((*self.raw()).protocol) {
            TCP => Some(Protocol::Tcp),
            UDP => Some(Protocol::Udp),
            _ => None,
        }
    }

    /// Whether it is multipath TCP, of which other hooks see plain TCP only.
    #[inline(always)]
    pub(crate) fn is_multipath(&self) -> bool {
        read!((*self.raw()).protocol) == MPTCP
    }

    /// The address that the call is about.
    #[inline(always)]
    pub(crate) fn address(&self) -> Address {
        let raw = self.raw();
        if F::V6 {
            let address = Address([
                read!((*raw).user_ip6[0]),
                read!((*raw).user_ip6[1]),
                read!((*raw).user_ip6[2]),
                read!((*raw).user_ip6[3]),
            ]);
            return address;
        }
        Address::v4(read!((*raw).user_ip4))
    }

    /// The port of that address, in the machine's byte order.
    #[inline(always)]
    pub(crate) fn port(&self) -> u16 {
        u16::from_be(read!((*self.raw()).user_port) as u16)
    }

    /// Put another address and port in its place. An IPv6 call keeps an IPv4 address mapped.
    #[inline(always)]
    pub(crate) fn rewrite(&self, address: &Address, port: u16) {
        let raw = self.raw();
        let Address([a, b, c, d]) = *address;
        if F::V6 {
            write!((*raw).user_ip6[0], a);
            write!((*raw).user_ip6[1], b);
            write!((*raw).user_ip6[2], c);
            write!((*raw).user_ip6[3], d);
        } else {
            write!((*raw).user_ip4, d);
        }
        write!((*raw).user_port, u32::from(port.to_be()));
    }

    /// The address that the socket is bound to; unspecified if it is not.
    #[inline(always)]
    pub(crate) fn bound(&self) -> Address {
        let socket = self.socket();
        if F::V6 {
            return Address([
                read!((*socket).src_ip6[0]),
                read!((*socket).src_ip6[1]),
                read!((*socket).src_ip6[2]),
                read!((*socket).src_ip6[3]),
            ]);
        }
        Address::v4(read!((*socket).src_ip4))
    }

    /// The port that the socket is bound to; 0 if it is not.
    #[inline(always)]
    pub(crate) fn bound_port(&self) -> u32 {
        read!((*self.socket()).src_port)
    }

    /// Let the connection come from this address, with any port. Gives 0, or the error.
    #[inline(always)]
    fn bind(&self, address: &Address) -> i32 {
        let Address([a, b, c, d]) = *address;
        // `struct sockaddr_in6` and `sockaddr_in`; port 0 is the kernel's choice.
        let result = if F::V6 {
            let mut name: [u32; 7] = [AF_INET6.into(), 0, a, b, c, d, 0];
            let pointer: *mut sockaddr = name.as_mut_ptr().cast();
            // SAFETY: 28 bytes of a `sockaddr_in6` on the stack.
            unsafe { bpf_bind(self.raw(), pointer, 28) }
        } else {
            let mut name: [u32; 4] = [AF_INET.into(), d, 0, 0];
            let pointer: *mut sockaddr = name.as_mut_ptr().cast();
            // SAFETY: 16 bytes of a `sockaddr_in` on the stack.
            unsafe { bpf_bind(self.raw(), pointer, 16) }
        };
        result as i32
    }

    /// Let a connection to elsewhere come from the address that it would come from, as far as that is
    /// known: that of the time when the pod was enrolled, or if the pod has it no more, which the
    /// kernel tells, one that it has been seen to have since.
    #[inline(always)]
    pub(crate) fn bind_for_elsewhere(&self, pod: &Pod, v4: bool) {
        let first = if v4 { &pod.source4 } else { &pod.source6 };
        if !first.is_unspecified() && self.bind(first) != NOT_AVAILABLE {
            return;
        }
        let Some(lately) = sys_maps::lately(self.netns()) else { return };
        let [[chosen4, chosen6], [reached4, reached6]] = [lately.chosen, lately.reached];
        let chosen = if v4 { chosen4 } else { chosen6 };
        let reached = if v4 { reached4 } else { reached6 };
        if !chosen.is_unspecified() && self.bind(&chosen) != NOT_AVAILABLE {
            return;
        }
        if !reached.is_unspecified() {
            // What comes from localhost otherwise, goes there all the same.
            let _bound = self.bind(&reached);
        }
    }

    /// Whether the pod has this address, as the kernel knows it now: it binds no socket to another
    /// one. A socket that was not `bound` is then bound to it, as the kernel would choose by itself.
    /// Where the kernel does not tell, what the pod had when it was enrolled counts: of a socket of
    /// IPv6 that has a port or of a link-local address, and of a socket that may be bound to any
    /// address (`IP_FREEBIND`, `net.ipv4.ip_nonlocal_bind`).
    #[inline(always)]
    pub(crate) fn is_own(&self, pod: &Pod, address: &Address, bound: &Address) -> bool {
        let result = self.bind(address);
        if result == NOT_AVAILABLE {
            return false;
        }
        let nobodys = if address.is_v4() { &Address::NOBODY4 } else { &Address::NOBODY6 };
        let tells = self.bind(nobodys) == NOT_AVAILABLE;
        // That a socket has a port is said after that an address is another's; with IPv6 before.
        if tells && (result == 0 || (!F::V6 && result == INVALID)) {
            if result == 0 && !bound.is_unspecified() {
                let _again = self.bind(bound);
            }
            return true;
        }
        // The socket is as it was: bound to what it was bound to, or to no address; but for one that may
        // be bound to any, which comes from the address that it goes to, as any other.
        let owned = pod.owns(address);
        let _again = self.bind(if owned && bound.is_unspecified() { address } else { bound });
        owned
    }

    /// Whether the socket is bound to a device, and not to `lo`, whose number is always 1.
    #[inline(always)]
    pub(crate) fn is_on_a_device(&self) -> bool {
        read!((*self.socket()).bound_dev_if) > 1
    }

    /// Free the socket of its device: the proxy is not behind it. False where its owner may not do
    /// that either, which takes CAP_NET_RAW.
    #[inline(always)]
    pub(crate) fn leave_device(&self) -> bool {
        let mut none = 0_u8;
        let pointer: *mut c_void = addr_of_mut!(none).cast();
        // SAFETY: the hook's own context, and one byte on the stack.
        let result =
            unsafe { bpf_setsockopt(self.ctx.as_ptr(), SOL_SOCKET, SO_BINDTODEVICE, pointer, 1) };
        result == 0
    }

    /// Where a datagram comes from; unspecified if that is the kernel's choice.
    #[inline(always)]
    pub(crate) fn message_source(&self) -> Address {
        let raw = self.raw();
        if F::V6 {
            return Address([
                read!((*raw).msg_src_ip6[0]),
                read!((*raw).msg_src_ip6[1]),
                read!((*raw).msg_src_ip6[2]),
                read!((*raw).msg_src_ip6[3]),
            ]);
        }
        Address::v4(read!((*raw).msg_src_ip4))
    }

    /// Let a datagram come from this address.
    #[inline(always)]
    pub(crate) fn set_message_source(&self, address: &Address) {
        let raw = self.raw();
        let Address([a, b, c, d]) = *address;
        if F::V6 {
            write!((*raw).msg_src_ip6[0], a);
            write!((*raw).msg_src_ip6[1], b);
            write!((*raw).msg_src_ip6[2], c);
            write!((*raw).msg_src_ip6[3], d);
        } else {
            write!((*raw).msg_src_ip4, d);
        }
    }

    /// What the socket carries.
    #[inline(always)]
    pub(crate) fn client(&self) -> Option<&'a mut Client> {
        let socket: *mut c_void = self.socket().cast();
        // SAFETY: the hook's own socket.
        if socket.is_null() { None } else { unsafe { sys_maps::client(socket) } }
    }

    /// The same; it is made if it is not there.
    #[inline(always)]
    pub(crate) fn client_or_new(&self) -> Option<&'a mut Client> {
        let socket: *mut c_void = self.socket().cast();
        // SAFETY: the hook's own socket.
        if socket.is_null() { None } else { unsafe { sys_maps::client_or_new(socket) } }
    }

    /// Forget what it carries.
    #[inline(always)]
    pub(crate) fn forget(&self) {
        let socket: *mut c_void = self.socket().cast();
        if !socket.is_null() {
            // SAFETY: the hook's own socket.
            unsafe { sys_maps::forget_client(socket) }
        }
    }

    /// What is noted of a destination, in whose room.
    #[inline(always)]
    pub(crate) fn original(&self, via: u16, holder: u32) -> Original {
        Original { address: self.address(), port: self.port(), via, holder }
    }
}
