//! The maps, and what the programs ask and tell them.

use core::ffi::c_void;
use core::ptr::{addr_of, null_mut, read_volatile};

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{
    bpf_get_prandom_u32, bpf_jiffies64, bpf_sk_storage_delete, bpf_sk_storage_get,
};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{
    Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, SockHash,
};
use aya_ebpf::programs::SkLookupContext;
use millrace_ebpf_common::{
    Address, CONNECTING as PLACES, CONNECTING_TRIES, COUNTERS as CLASSES, Client, Connecting,
    Event, Flow, FlowKey, GroupKey, ListenerKey, NetworkKey, Original, POD_ID_BITS, PORTS_IN_CHUNK,
    Pod, PortChunk, PortKey, Sets, Settings,
};

use crate::sys_connecting::mr_place;

#[map]
static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);
#[map]
static PODS: HashMap<u64, Pod> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
#[map]
static NETWORKS: LpmTrie<(u32, Address), u32> =
    LpmTrie::with_max_entries(1 << 20, BPF_F_NO_PREALLOC);
#[map]
static PORTS: HashMap<PortKey, PortChunk> = HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);
#[map]
static GROUPS: HashMap<GroupKey, u32> = HashMap::with_max_entries(1 << 16, BPF_F_NO_PREALLOC);
#[map]
static COUNTERS: HashMap<u64, [u64; CLASSES]> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
#[map]
static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(1 << 18, BPF_F_NO_PREALLOC);
#[map]
static CONNECTING: Array<Connecting> = Array::with_max_entries(PLACES, 0);
/// Connections for which there was no room in FLOWS, on their way to be refused.
#[map]
static REFUSED: LruHashMap<FlowKey, u32> = LruHashMap::with_max_entries(1024, 0);
/// Whether anything has ever been in REFUSED.
#[map]
static REFUSES: Array<u32> = Array::with_max_entries(1, 0);
#[map]
pub(crate) static LISTENERS: SockHash<ListenerKey> = SockHash::with_max_entries(16_384, 0);
#[map]
pub(crate) static ENDS: SockHash<FlowKey> = SockHash::with_max_entries(65_536, 0);
#[map]
static EVENTS: RingBuf = RingBuf::with_byte_size(1 << 18, 0);
/// The netns cookies of pods, by the numbers of their `sk_lookup` programs.
#[map]
static LOOKUPS: HashMap<u32, u64> = HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);
/// The pod that a `sk_lookup` program goes on with.
#[map]
static CURRENT: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);
/// The program that it goes on with.
#[map]
static INBOUND: ProgramArray = ProgramArray::with_max_entries(1, 0);
#[btf_map]
static CLIENTS: SkStorage<Client> = SkStorage::new();
#[btf_map]
static ACCEPTED: SkStorage<Original> = SkStorage::new();

/// The policy of a pod, if it is enrolled.
#[inline(always)]
pub(crate) fn pod(netns: u64) -> Option<&'static Pod> {
    // SAFETY: an entry that is taken out stays readable until the program ends (RCU).
    unsafe { PODS.get(&netns) }
}

/// The pod that a `sk_lookup` program is for.
#[inline(always)]
pub(crate) fn pod_of_lookup(number: u32) -> Option<u64> {
    // SAFETY: as in `pod`.
    unsafe { LOOKUPS.get(&number) }.copied()
}

/// Note the pod for the program that goes on. Packets are received with softirqs off, so on this
/// CPU nothing comes in between; only a question of `sock_diag(7)` can meet another pod's.
#[inline(always)]
pub(crate) fn set_current(netns: u64) {
    if let Some(current) = CURRENT.get_ptr_mut(0) {
        // SAFETY: this CPU's own value.
        unsafe { *current = netns }
    }
}

/// The pod that was noted.
#[inline(always)]
pub(crate) fn current() -> u64 {
    CURRENT.get(0).copied().unwrap_or(0)
}

/// Go on with the program for all pods; comes back only if there is none.
#[inline(always)]
pub(crate) fn go_on(ctx: &SkLookupContext) {
    // SAFETY: nothing here has to be dropped.
    unsafe { INBOUND.tail_call(ctx, 0) }
}

/// The settings of all programs.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Whether connections between application and proxy are short-circuited.
#[inline(always)]
pub(crate) fn accelerates() -> bool {
    settings().is_some_and(|s| s.accelerate != 0)
}

/// Count a verdict of this class.
#[inline(always)]
pub(crate) fn count(netns: u64, class: u8) {
    if let Some(counters) = COUNTERS.get_ptr_mut(&netns) {
        let at = class as usize & (CLASSES - 1);
        // SAFETY: the place is within the counters.
        unsafe { add(counters.cast::<u64>().add(at), 1) }
    }
}

/// Add to a number that other CPUs change as well, in one step. A read behind it sees this change.
///
/// # Safety
/// `number` is that of a map's value.
#[inline(always)]
unsafe fn add(number: *mut u64, value: i64) {
    // SAFETY: the caller's word. There is no other way to ask for the instruction: the target has
    // no atomic types that can be changed.
    unsafe {
        core::arch::asm!("lock *(u64 *)({0} + 0) += {1}", in(reg) number, in(reg) value);
    }
}

/// Any number.
#[inline(always)]
pub(crate) fn random() -> u32 {
    // SAFETY: a helper without arguments.
    unsafe { bpf_get_prandom_u32() }
}

/// Report a verdict. A full buffer loses it; the counters still have it.
#[inline(always)]
pub(crate) fn report(event: &Event) {
    let _lost = EVENTS.output::<Event>(event, 0);
}

/// The places that a socket may take in CONNECTING.
#[inline(always)]
pub(crate) fn places(socket: u64) -> impl Iterator<Item = u32> {
    (0..CONNECTING_TRIES).map(move |n| (socket as u32).wrapping_add(n) % PLACES)
}

/// What is at a place.
#[inline(always)]
pub(crate) fn connecting(place: u32) -> Option<*mut Connecting> {
    CONNECTING.get_ptr_mut(place)
}

/// Note where a socket is meant to go, for the next step of the same call. False if there is no
/// place.
#[inline(always)]
pub(crate) fn connects(socket: u64, original: Original) -> bool {
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_jiffies64() };
    let Some(place) = connecting(mr_place(socket, now).wrapping_sub(1)) else { return false };
    // SAFETY: a value of the map. Who reads what two have written at once sees that.
    unsafe { *place = Connecting::new(socket, now, original) }
    true
}

/// Whether it is still there: another one may have found the same place free at the same moment.
#[inline(always)]
pub(crate) fn is_noted(socket: u64) -> bool {
    mr_place(socket, 0) != 0
}

/// Where a socket is meant to go. It is forgotten.
#[inline(always)]
pub(crate) fn connected(socket: u64) -> Option<Original> {
    let place = connecting(mr_place(socket, 0).wrapping_sub(1))?;
    // SAFETY: as in `connects`.
    unsafe {
        let original = (*place).of(socket);
        (*place).socket = 0;
        original
    }
}

/// Let both ends of a connection know in FLOWS where it was meant to go.
#[inline(always)]
pub(crate) fn begin_flow(key: &FlowKey, socket: u64, original: Original) -> bool {
    let flow = Flow { client: socket, accepted: 0, open: 1, asked: 0, original };
    FLOWS.insert(key, &flow, BPF_ANY.into()).is_ok()
}

/// What FLOWS says.
#[inline(always)]
pub(crate) fn flow(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: as in `pod`; another connection may reuse the entry, but only once the addresses are
    // free again, and one of this one's sockets still has them.
    unsafe { FLOWS.get_ptr_mut(key)?.as_mut() }
}

/// Nothing more is known of these addresses.
#[inline(always)]
pub(crate) fn end_flow(key: &FlowKey) {
    let _gone = FLOWS.remove(key);
}

/// One of a connection's sockets is open, which is the second one.
#[inline(always)]
pub(crate) fn join_flow(flow: &mut Flow, socket: u64) {
    flow.accepted = socket;
    // SAFETY: a number of a map's value.
    unsafe { add(&raw mut flow.open, 1) }
}

/// One of a connection's sockets is closed. The last one takes the entry with it.
#[inline(always)]
pub(crate) fn leave_flow(key: &FlowKey, flow: &mut Flow) {
    // SAFETY: a number of a map's value, which the other socket changes as well.
    let open = unsafe {
        add(&raw mut flow.open, -1);
        read_volatile(&raw const flow.open)
    };
    if open == 0 {
        end_flow(key);
    }
}

/// Have a connection refused that is about to begin: its original destination can't be kept.
#[inline(always)]
pub(crate) fn refuse(key: &FlowKey) {
    if let Some(refuses) = REFUSES.get_ptr_mut(0) {
        // SAFETY: a value of the map.
        unsafe { *refuses = 1 }
    }
    // The value says nothing; a constant would need a section of its own.
    let _never_full = REFUSED.insert(key, &key.family, BPF_ANY.into());
}

/// Whether any connection ever was to be refused.
#[inline(always)]
pub(crate) fn refuses_any() -> bool {
    REFUSES.get(0).is_some_and(|any| *any != 0)
}

/// Whether a connection is to be refused.
#[inline(always)]
pub(crate) fn is_refused(key: &FlowKey) -> bool {
    // SAFETY: as in `pod`.
    refuses_any() && unsafe { REFUSED.get(key) }.is_some()
}

/// What was to be refused has been, or there is another connection with its addresses.
#[inline(always)]
pub(crate) fn refused(key: &FlowKey) {
    if refuses_any() {
        let _gone = REFUSED.remove(key);
    }
}

#[inline(always)]
fn client_map() -> *mut c_void {
    addr_of!(CLIENTS).cast_mut().cast()
}

#[inline(always)]
fn accepted_map() -> *mut c_void {
    addr_of!(ACCEPTED).cast_mut().cast()
}

/// What the socket of an application carries.
///
/// # Safety
/// `socket` is the hook's own, and not null.
#[inline(always)]
pub(crate) unsafe fn client<'a>(socket: *mut c_void) -> Option<&'a mut Client> {
    // SAFETY: the caller's word; the kernel gives null or the socket's value.
    unsafe { bpf_sk_storage_get(client_map(), socket, null_mut(), 0).cast::<Client>().as_mut() }
}

/// The same; it is made if it is not there. None when there is no memory.
///
/// # Safety
/// As for [`client`].
#[inline(always)]
pub(crate) unsafe fn client_or_new<'a>(socket: *mut c_void) -> Option<&'a mut Client> {
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    // SAFETY: the caller's word; the kernel gives null or the socket's value.
    unsafe { bpf_sk_storage_get(client_map(), socket, null_mut(), flags).cast::<Client>().as_mut() }
}

/// Forget what the socket carries.
///
/// # Safety
/// As for [`client`].
#[inline(always)]
pub(crate) unsafe fn forget_client(socket: *mut c_void) {
    // SAFETY: the caller's word. There may be nothing to forget.
    let _gone = unsafe { bpf_sk_storage_delete(client_map(), socket) };
}

/// Where the connection of an accepted socket was meant to go.
///
/// # Safety
/// As for [`client`].
#[inline(always)]
pub(crate) unsafe fn accepted<'a>(socket: *mut c_void) -> Option<&'a Original> {
    // SAFETY: the caller's word; the kernel gives null or the socket's value.
    unsafe { bpf_sk_storage_get(accepted_map(), socket, null_mut(), 0).cast::<Original>().as_ref() }
}

/// Note where it was meant to go.
///
/// # Safety
/// As for [`client`].
#[inline(always)]
pub(crate) unsafe fn set_accepted(socket: *mut c_void, original: &Original) -> bool {
    let flags = u64::from(BPF_SK_STORAGE_GET_F_CREATE);
    let value = core::ptr::from_ref(original).cast_mut().cast();
    // SAFETY: the caller's word; the kernel copies the value.
    !unsafe { bpf_sk_storage_get(accepted_map(), socket, value, flags) }.is_null()
}

/// Networks, ports and groups as the maps have them.
pub(crate) struct Maps;

impl Sets for Maps {
    #[inline(always)]
    fn network(&self, pod: u32, address: &Address) -> u32 {
        const _: () = assert!(size_of::<NetworkKey>() == size_of::<Key<(u32, Address)>>());
        NETWORKS.get(Key::new(POD_ID_BITS + 128, (pod, *address))).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn port(&self, pod: u32, port: u16) -> u32 {
        let key = PortKey { pod, chunk: (port / PORTS_IN_CHUNK).into() };
        // SAFETY: as in `pod`.
        unsafe { PORTS.get(&key) }.map_or(0, |chunk| chunk.flags(port))
    }

    #[inline(always)]
    fn names_group(&self, pod: u32, gid: u32) -> bool {
        // SAFETY: as in `pod`.
        unsafe { GROUPS.get(&GroupKey { pod, gid }) }.is_some()
    }
}
