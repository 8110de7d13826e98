//! The maps, and what the programs ask and tell them.

use core::ffi::c_void;
use core::ptr::{addr_of, null_mut, read_volatile};

use aya_ebpf::bindings::{BPF_ANY, BPF_F_NO_PREALLOC, BPF_NOEXIST, BPF_SK_STORAGE_GET_F_CREATE};
use aya_ebpf::btf_maps::SkStorage;
use aya_ebpf::helpers::generated::{
    bpf_get_prandom_u32, bpf_sk_storage_delete, bpf_sk_storage_get,
};
use aya_ebpf::macros::{btf_map, map};
use aya_ebpf::maps::lpm_trie::Key;
use aya_ebpf::maps::{
    Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf, SockHash,
};
use aya_ebpf::programs::SkLookupContext;
use millrace_ebpf_common::{
    Address, CONNECTING as PLACES, CONNECTING_TRIES, COUNTERS as CLASSES, Client, Connecting,
    Event, Flow, FlowKey, GROUP_NAMED, GROUP_USER, GroupKey, Lately, ListenerKey, More, NetworkKey,
    Original, POD_ID_BITS, PORTS_IN_CHUNK, Pod, PortChunk, PortKey, Sets, Settings, flow_key,
    most_places,
};

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
static MORE: HashMap<u32, More> = HashMap::with_max_entries(8192, BPF_F_NO_PREALLOC);
#[map]
static COUNTERS: HashMap<u64, [u64; CLASSES]> = HashMap::with_max_entries(4096, BPF_F_NO_PREALLOC);
#[map]
static FLOWS: HashMap<FlowKey, Flow> = HashMap::with_max_entries(1 << 20, BPF_F_NO_PREALLOC);
/// How many places in FLOWS a pod can have; 0 before that is set.
#[map]
static LIMITS: Array<u64> = Array::with_max_entries(1, 0);
/// How many places in FLOWS are common, 0 before that is set; how many are taken; and how many are each
/// pod's own.
#[map]
static ROOM: Array<u64> = Array::with_max_entries(3, 0);
/// What programs of an earlier version, which these take the place of, note between two steps of a
/// `connect()` call. Where there were none it has no room, and nothing in it.
#[map]
static CONNECTING: Array<Connecting> = Array::with_max_entries(1, 0);
#[map]
static LATELY: LruHashMap<u64, Lately> = LruHashMap::with_max_entries(4096, 0);
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

/// What only some policies say, by the pod's id.
#[inline(always)]
pub(crate) fn more(id: u32) -> Option<&'static More> {
    // SAFETY: as in `pod`.
    unsafe { MORE.get(&id) }
}

/// The pod that a `sk_lookup` program is for.
#[inline(always)]
pub(crate) fn pod_of_lookup(number: u32) -> Option<u64> {
    // SAFETY: as in `pod`.
    unsafe { LOOKUPS.get(&number) }.copied()
}

/// Where a packet arrived: two bits, which no cookie reaches.
const ARRIVED: u32 = 62;

/// Note the pod for the program that goes on, and where the packet arrived. Packets are received with
/// softirqs off, so on this CPU nothing comes in between; only a question of `sock_diag(7)` can meet
/// another pod's.
#[inline(always)]
pub(crate) fn set_current(netns: u64, arrived: u64) {
    if let Some(current) = CURRENT.get_ptr_mut(0) {
        // SAFETY: this CPU's own value.
        unsafe { *current = netns | arrived << ARRIVED }
    }
}

/// The netns cookie and the arrival of [`set_current`] on this CPU; 0 where none was.
#[inline(always)]
pub(crate) fn current() -> (u64, u64) {
    let noted = CURRENT.get(0).copied().unwrap_or(0);
    (noted & ((1 << ARRIVED) - 1), noted >> ARRIVED)
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
        let mut at = u64::from(class);
        // The verifier has to see this, and not the compiler alone, which knows all classes.
        // SAFETY: changes a register only.
        unsafe {
            core::arch::asm!("{0} &= {1}", inout(reg) at, const CLASSES - 1, options(pure, nomem));
        }
        let at = at as usize;
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

/// 32 pseudo-random bits, for samples and not for secrets.
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

/// Where an earlier version's programs noted that a socket is meant to go. It is forgotten.
#[inline(always)]
pub(crate) fn connected(socket: u64) -> Option<Original> {
    for n in 0..CONNECTING_TRIES {
        let place = CONNECTING.get_ptr_mut((socket as u32).wrapping_add(n) % PLACES)?;
        // SAFETY: a value of the map, which others may be writing: that is seen by its seal.
        unsafe {
            if (*place).socket == socket {
                let original = (*place).of(socket);
                (*place).socket = 0;
                return original;
            }
        }
    }
    None
}

/// How many places in FLOWS a pod has: the last of its counters.
#[inline(always)]
fn places(netns: u64) -> Option<*mut u64> {
    // SAFETY: the place is within the counters.
    COUNTERS.get_ptr_mut(&netns).map(|counters| unsafe { counters.cast::<u64>().add(CLASSES - 1) })
}

/// Whether a pod can have another place in FLOWS. Several at once may each find the last one.
#[inline(always)]
pub(crate) fn has_room(netns: u64) -> bool {
    let limit = LIMITS.get(0).copied().unwrap_or(0);
    if limit == 0 {
        return true;
    }
    let (common, own) = (room(0), room(2));
    let most = match ROOM.get_ptr_mut(1) {
        // SAFETY: a number of a map's value, which others change as well.
        Some(taken) if common != 0 => {
            most_places(limit, own, common, unsafe { read_volatile(taken) })
        }
        _ => limit,
    };
    // SAFETY: likewise.
    places(netns).is_none_or(|places| unsafe { read_volatile(places) } < most)
}

#[inline(always)]
fn room(at: u32) -> u64 {
    ROOM.get(at).copied().unwrap_or(0)
}

/// Count a place in FLOWS that is taken, or one that is free again.
#[inline(always)]
fn count_place(value: i64) {
    if let Some(taken) = ROOM.get_ptr_mut(1) {
        // SAFETY: a number of a map's value.
        unsafe { add(taken, value) }
    }
}

/// Let both ends of a connection know in FLOWS where it was meant to go.
#[inline(always)]
pub(crate) fn begin_flow(key: &FlowKey, socket: u64, original: Original) -> bool {
    // What an earlier socket left.
    end_flow(key);
    let flow = Flow { client: socket, accepted: 0, open: 1, asked: 0, original };
    if !has_room(key.netns) || FLOWS.insert(key, &flow, BPF_NOEXIST.into()).is_err() {
        return false;
    }
    // What an earlier version decided takes nobody's room, then as when it ends.
    if original.holder != 0 {
        count_place(1);
    }
    if let Some(places) = places(key.netns).filter(|_| original.holder != 0) {
        // SAFETY: a number of a map's value.
        unsafe { add(places, 1) }
    }
    true
}

/// The entry of FLOWS with these addresses; hooks on other CPUs may change it as well.
#[inline(always)]
pub(crate) fn flow(key: &FlowKey) -> Option<&'static mut Flow> {
    // SAFETY: as in `pod`; another connection may reuse the entry, but only once the addresses are
    // free again, and one of this one's sockets still has them.
    unsafe { FLOWS.get_ptr_mut(key)?.as_mut() }
}

/// Nothing more is known of these addresses.
#[inline(always)]
pub(crate) fn end_flow(key: &FlowKey) {
    let Some(flow) = flow(key) else { return };
    let holder = flow.original.holder;
    // Of two at once, one removes it. What was begun before the pod was enrolled anew, and what an
    // earlier version began, takes nobody's room.
    if FLOWS.remove(key).is_err() {
        return;
    }
    if holder != 0 {
        count_place(-1);
    }
    if pod(key.netns).is_some_and(|pod| pod.lookup == holder) {
        if let Some(places) = places(key.netns) {
            // SAFETY: a number of a map's value.
            unsafe { add(places, -1) }
        }
    }
}

/// Whether a connection that arrives was noted on its way out: it goes from the pod to the pod.
#[inline(always)]
pub(crate) fn is_in_pod(key: &FlowKey) -> bool {
    // SAFETY: as in `pod`.
    unsafe { FLOWS.get(key) }.is_some()
}

/// Addresses that the kernel has lately shown to be a pod's.
#[inline(always)]
pub(crate) fn lately(netns: u64) -> Option<&'static mut Lately> {
    // SAFETY: as in `pod`. Two that write at once may mix an address, which the kernel then refuses.
    unsafe { LATELY.get_ptr_mut(&netns)?.as_mut() }
}

/// The kernel has chosen this address for a connection to elsewhere.
#[inline(always)]
pub(crate) fn note_chosen(netns: u64, pod: &Pod, address: &Address) {
    if let Some((at, lately)) = to_note(netns, pod, address) {
        lately.chosen[at] = *address;
    }
}

/// A connection from elsewhere has gone to this address.
#[inline(always)]
pub(crate) fn note_reached(netns: u64, pod: &Pod, address: &Address) {
    if let Some((at, lately)) = to_note(netns, pod, address) {
        lately.reached[at] = *address;
    }
}

/// Where an address of the pod is noted, if it is another one than when the pod was enrolled and good
/// for elsewhere.
#[inline(always)]
fn to_note(netns: u64, pod: &Pod, address: &Address) -> Option<(usize, &'static mut Lately)> {
    let (at, known) = if address.is_v4() { (0, &pod.source4) } else { (1, &pod.source6) };
    if address.equals(known) || address.is_loopback() || address.is_link_local() {
        return None;
    }
    if lately(netns).is_none() {
        let none = Address([0; 4]);
        let nothing = Lately { chosen: [none; 2], reached: [none; 2] };
        let _there = LATELY.insert(&netns, &nothing, BPF_NOEXIST.into());
    }
    Some((at, lately(netns)?))
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
        group(pod, gid) & GROUP_NAMED != 0
    }

    #[inline(always)]
    fn excludes_user(&self, pod: u32, uid: u32) -> bool {
        group(pod, uid) & GROUP_USER != 0
    }

    #[inline(always)]
    fn more(&self, pod: u32) -> Option<&More> {
        more(pod)
    }

    #[inline(always)]
    fn flow(&self, pod: u32, flow: u32, port: u16) -> u32 {
        // SAFETY: as in `pod`.
        unsafe { PORTS.get(&flow_key(pod, flow, port)) }.map_or(0, |chunk| chunk.flags(port))
    }

    #[inline(always)]
    fn forget(&self, word: u32) -> u32 {
        crate::sys_forget::mr_forget(word)
    }
}

/// What GROUPS says of a group or user.
#[inline(always)]
fn group(pod: u32, id: u32) -> u32 {
    // SAFETY: as in `pod`.
    unsafe { GROUPS.get(&GroupKey { pod, id }) }.copied().unwrap_or(0)
}
