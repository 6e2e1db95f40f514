//! Registrations and their twins; the keys that a post has to translate.

use crate::cold::{pd, rail, tell};
use crate::hot::keys::LocalKey;
use crate::lives;
use crate::process;
use crate::real;
use crate::shadow::{MrFacts, MrShadow, PdShadow, QpShadow, Raw, StandbyPd, TwinMr};
use crate::tables::PtrTable;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU64, Ordering};
use dashmap::DashMap;
use shift_abi::*;
use shift_control::datapath::{DeviceId, Event, QpLife, StandbyKeys};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// Registrations up to this size are looked at page by page before their memory may be snapshotted: 16 Ki pages, 16 system calls. Larger
/// ones are bulk data, which is replayed from the application's buffer as the NIC's own retransmission would be.
const LARGEST_READABLE: usize = 64 << 20;
/// Pages asked for in one process_vm_readv (its limit, UIO_MAXIOV).
const PAGES_AT_ONCE: usize = 1024;
const PAGE: usize = 4096;

/// Registrations of the application.
static MRS: PtrTable<MrShadow> = PtrTable::new();
/// The same by device and lkey.
static BY_LKEY: OnceLock<DashMap<(u16, u32), Arc<MrShadow>>> = OnceLock::new();
/// Grows when a key is withdrawn anywhere: every cached translation is void then.
static GENERATION: AtomicU64 = AtomicU64::new(1);

fn by_lkey() -> &'static DashMap<(u16, u32), Arc<MrShadow>> {
    BY_LKEY.get_or_init(DashMap::new)
}

/// The generation of keys.
#[inline]
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Acquire)
}

/// Voids every cached translation: a key of ours or of a peer was withdrawn.
pub fn void_caches() {
    GENERATION.fetch_add(1, Ordering::AcqRel);
}

/// What is known of an lkey, and of its twin in that slot; waits for who writes its place in the table.
pub fn local_key_waiting(device: u16, lkey: u32, slot: u8) -> Option<LocalKey> {
    BY_LKEY.get()?.get(&(device, lkey)).map(|found| known_of(&found, slot))
}

/// What is known of an lkey; `None` if it is unknown or its place in the table is being written (never waits).
pub fn local_key(device: u16, lkey: u32, slot: u8) -> Option<LocalKey> {
    BY_LKEY.get()?.try_get(&(device, lkey)).try_unwrap().map(|found| known_of(&found, slot))
}

fn known_of(found: &MrShadow, slot: u8) -> LocalKey {
    let lkey = found.lkey;
    let readable = if found.readable { (found.iova, found.length) } else { (0, 0) };
    let twin = found.twin(slot).map_or(0, |twin| twin.lkey);
    LocalKey { lkey, twin, is_alone: found.twins.is_empty(), readable }
}

/// rkeys of ours that were withdrawn and that some peer may still translate: how often each.
static UNCONFIRMED: OnceLock<DashMap<(u16, u32), u32>> = OnceLock::new();
/// Registrations made to avoid such a number, at most: providers count their keys up, so the next one is another already.
const TRIES: usize = 8;

/// Every peer knows that the key is withdrawn.
pub fn withdrawal_confirmed(device: u16, rkey: u32) {
    let Some(unconfirmed) = UNCONFIRMED.get() else { return };
    if let Some(mut count) = unconfirmed.get_mut(&(device, rkey)) {
        *count = count.saturating_sub(1);
    }
    unconfirmed.remove_if(&(device, rkey), |_, count| *count == 0);
    let _waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    CONFIRMED.notify_all();
}

/// For those who wait until a withdrawal is confirmed.
static WAITING: Mutex<()> = Mutex::new(());
static CONFIRMED: Condvar = Condvar::new();
/// How long a changed registration waits for the peers: some round trips of TCP, on hosts that are busy.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(1);

/// Waits until every peer knows that the key is withdrawn; `false`: some peer does not say so.
fn await_confirmation(device: u16, rkey: u32) -> bool {
    let waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
    let is_open = |_: &mut ()| UNCONFIRMED.get().is_some_and(|keys| keys.contains_key(&(device, rkey)));
    let waited = CONFIRMED.wait_timeout_while(waiting, CONFIRMED_WITHIN, is_open);
    !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
}

fn is_unconfirmed(device: u16, region: *mut ibv_mr) -> bool {
    // SAFETY: the registration was just made and is not NULL (the caller looked).
    let rkey = unsafe { (*region).rkey };
    UNCONFIRMED.get().is_some_and(|unconfirmed| unconfirmed.contains_key(&(device, rkey)))
}

/// Registers through `make`, again where the key is one that a peer may still take for other memory. The duplicates are kept until a good one is
/// found, so that the provider does not give their numbers out again, and are withdrawn then.
pub fn register_fresh(domain: *mut ibv_pd, make: impl Fn() -> *mut ibv_mr) -> *mut ibv_mr {
    let mut region = make();
    let Some(device) = pd::PDS.get(domain).map(|pd| pd.device) else { return region };
    let mut duplicates = Vec::new();
    while !region.is_null() && duplicates.len() < TRIES && is_unconfirmed(device, region) {
        duplicates.push(region);
        region = make();
    }
    if region.is_null() {
        // Rather a number that is in doubt than a failure that the program would not have seen.
        region = duplicates.pop().unwrap_or(region);
    }
    for duplicate in duplicates {
        // SAFETY: made above, never given out, withdrawn once.
        unsafe { real::ibv_dereg_mr(duplicate) };
    }
    region
}

/// How the application registers.
#[derive(Clone, Copy)]
pub struct Request {
    /// Its PD.
    pub pd: *mut ibv_pd,
    /// First address.
    pub addr: *mut c_void,
    /// Bytes.
    pub length: usize,
    /// First address as the NIC sees it.
    pub iova: u64,
    /// Access flags.
    pub access: u32,
    /// Memory of another device: its descriptor and where in it the registration begins.
    pub dmabuf: Option<(c_int, u64)>,
}

impl Request {
    /// The same memory of the program's, on that PD.
    fn again(mr: &MrShadow, pd: *mut ibv_pd) -> Self {
        Self {
            pd,
            addr: mr.addr as *mut c_void,
            length: usize::try_from(mr.length).unwrap_or(0),
            iova: mr.iova,
            access: mr.access,
            dmabuf: None,
        }
    }
}

/// Registers through the function that takes these flags and this address.
fn register(request: &Request) -> *mut ibv_mr {
    let Request { pd, addr, length, iova, access, dmabuf } = *request;
    if let Some((fd, offset)) = dmabuf {
        // The kernel holds the memory from here on, whatever becomes of the descriptor.
        // SAFETY: passed on from the application's call, or the same on a PD of our own.
        unsafe { real::ibv_reg_dmabuf_mr(pd, offset, length, iova, fd, access as c_int) }
    } else if access & IBV_ACCESS_OPTIONAL_RANGE != 0 {
        // SAFETY: passed on from the application's call, or the same on a PD of our own.
        unsafe { real::ibv_reg_mr_iova2(pd, addr, length, iova, access) }
    } else if iova == addr as u64 {
        // SAFETY: as above.
        unsafe { real::ibv_reg_mr(pd, addr, length, access as c_int) }
    } else {
        // SAFETY: as above.
        unsafe { real::ibv_reg_mr_iova(pd, addr, length, iova, access as c_int) }
    }
}

/// `ibv_reg_mr` and its sisters: `first` is the application's own registration, made by the function it called.
pub fn registered(request: &Request, mr: *mut ibv_mr) {
    registered_by(request, mr, |pd| register(&Request { pd, ..*request }));
}

/// The same, and `register` makes such a registration in another PD.
pub fn registered_by(request: &Request, mr: *mut ibv_mr, register: impl Fn(*mut ibv_pd) -> *mut ibv_mr) {
    let Some(pd) = pd::PDS.get(request.pd).filter(|_| !mr.is_null()) else { return };
    // SAFETY: the registration was just made.
    let ibv_mr { lkey, rkey, .. } = unsafe { mr.read() };
    // A standby that comes meanwhile finds it in the tables.
    let _registering = pd.registering();
    let twins = twins_of(pd, request, register);
    if twins.is_empty() && pd.standbys.is_ok() {
        note_lack(pd, request.access);
    }
    let mut standby_rkeys = StandbyKeys::default();
    for twin in &twins {
        if let Some(place) = standby_rkeys.get_mut(usize::from(twin.slot)) {
            *place = Some(twin.rkey);
        }
    }
    let is_host = request.dmabuf.is_none() && request.iova == request.addr as u64;
    let readable = is_host && may_be_read(request.addr as usize, request.length);
    let facts = MrFacts {
        device: pd.device,
        keys: (lkey, rkey),
        span: (request.iova, request.length as u64),
        readable,
        addr: request.addr as usize,
        access: request.access,
        pd: Raw(request.pd),
        is_dmabuf: request.dmabuf.is_some(),
    };
    let shadow = Arc::new(MrShadow::new(facts, twins));
    if !MRS.insert(mr, Arc::clone(&shadow)) {
        // Its end would not be noticed.
        note_lack(pd, request.access);
        shadow.all_twins().filter_map(TwinMr::take).for_each(crate::cold::reaper::dereg_mr);
        return;
    }
    let is_alone = shadow.twins.is_empty();
    by_lkey().insert((pd.device, lkey), shadow);
    let device = DeviceId(pd.device);
    process::tell(match is_alone {
        false => Event::KeyAdded { device, rkey, standby_rkeys },
        true => Event::KeyUnprotected { device, rkey },
    });
}

/// On each standby that has all other registrations of the PD. One that refuses this one is no standby of the PD's queue pairs any more, if another takes it.
fn twins_of(pd: &PdShadow, request: &Request, register: impl Fn(*mut ibv_pd) -> *mut ibv_mr) -> Vec<TwinMr> {
    let (mut twins, mut refused) = (Vec::new(), Vec::new());
    for standby in pd.present().into_iter().filter(|standby| pd.is_whole(standby.slot)) {
        let twin = register(standby.pd.0);
        if twin.is_null() {
            refused.push((standby, std::io::Error::last_os_error()));
            continue;
        }
        twins.push(TwinMr::new(standby.slot, Raw(twin)));
    }
    for (standby, error) in refused {
        say_refused(&standby, request.length, &error, twins.is_empty());
        if !twins.is_empty() {
            lose(pd, standby.slot);
        }
    }
    twins
}

/// Some memory of the PD is not in that slot: its queue pairs do not go there.
fn lose(pd: &PdShadow, slot: u8) {
    if pd.lose(slot) {
        let told = |qp: &Arc<QpShadow>| process::tell(Event::SlotLost { qp: QpLife(qp.life), slot });
        lives::all().iter().filter(|qp| core::ptr::eq(&*qp.pd, pd)).for_each(told);
    }
}

/// The registrations of a PD of that device, at this moment.
pub fn of_pd(pd: &PdShadow) -> Vec<Arc<MrShadow>> {
    let is_its = |mr: &MrShadow| pd::PDS.get(mr.pd.0).is_some_and(|found| core::ptr::eq(found, pd));
    let all = by_lkey().iter().filter(|mr| mr.device == pd.device && !mr.pd.0.is_null());
    let all: Vec<Arc<MrShadow>> = all.map(|found| Arc::clone(&found)).collect();
    all.into_iter().filter(|mr| is_its(mr)).collect()
}

/// Makes the twin of a registration on a standby that came later. `false`: it cannot be there.
pub fn extend(pd: &PdShadow, mr: &MrShadow, standby: &StandbyPd) -> bool {
    if mr.twins.is_empty() || mr.twin(standby.slot).is_some() {
        // Memory that no standby has is told already.
        return true;
    }
    let made = mr.extend(|| {
        let request = Request::again(mr, standby.pd.0);
        // Of another device's memory the descriptor may be closed by now.
        let region = if mr.is_dmabuf { core::ptr::null_mut() } else { register(&request) };
        if region.is_null() {
            return false;
        }
        let twin = TwinMr::new(standby.slot, Raw(region));
        let (device, slot, standby_rkey) = (DeviceId(mr.device), twin.slot, twin.rkey);
        mr.enter(twin);
        process::tell(Event::KeyExtended { device, rkey: mr.rkey, slot, standby_rkey });
        true
    });
    let is_there = made.unwrap_or(true);
    if !is_there {
        let error = std::io::Error::last_os_error();
        say_refused(standby, usize::try_from(mr.length).unwrap_or(0), &error, false);
        lose(pd, standby.slot);
    }
    is_there
}

fn say_refused(standby: &StandbyPd, length: usize, error: &std::io::Error, is_last: bool) {
    let advice = if error.raw_os_error() == Some(libc::ENOMEM) {
        "; raise the limit of locked memory (ulimit -l): each standby takes as much as the program registers"
    } else {
        ""
    };
    let name = rail::by_id(standby.device).map_or_else(String::new, |rail| rail.name.clone());
    let effect = if is_last { "queue pairs that use it are not protected" } else { "it does not stand by for them" };
    let words = format!("{name} refused a registration of {length} bytes ({error}): {effect}{advice}");
    tell::once(&words, if is_last { REFUSED } else { &name });
}

/// What the QPs of the PD can use from now on is not all on the standby: a QP is unprotected from its first use of such memory. Of use
/// by the peer nothing is seen here, so memory that it can reach makes every QP of the PD unprotected.
fn note_lack(pd: &PdShadow, access: u32) {
    pd.lacks_twins.store(true, Ordering::Relaxed);
    let remote = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC;
    if access & remote == 0 {
        return;
    }
    unprotect_all(pd, REFUSED);
}

/// No QP of this PD is protected, now or later.
fn unprotect_all(pd: &PdShadow, why: &'static str) {
    let _ = pd.unprotected.set(why);
    for qp in lives::all().iter().filter(|qp| core::ptr::eq(&*qp.pd, pd)) {
        tell::unprotect(qp, why.to_owned());
    }
}

/// A window is bound by a QP of this PD: the peers of all its QPs may use it, and the standby does not have it.
pub fn note_window(pd: &PdShadow) {
    unprotect_all(pd, "a memory window of its PD is bound, which the standby does not have");
}

/// Why such a QP is unprotected.
pub const REFUSED: &str = "memory that it uses, or that its peer may use, is not registered on the standby";

/// Was every page shown to be readable by the processor? Asks the kernel, which does not fault: memory of a GPU is not there.
fn may_be_read(addr: usize, length: usize) -> bool {
    if length == 0 || length > LARGEST_READABLE {
        return false;
    }
    let first = addr & !(PAGE - 1);
    let pages: Vec<usize> = (first..addr.saturating_add(length)).step_by(PAGE).map(|page| page.max(addr)).collect();
    pages.chunks(PAGES_AT_ONCE).all(|chunk| {
        let mut bytes = [0_u8; PAGES_AT_ONCE];
        let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: chunk.len() };
        let remote: Vec<libc::iovec> =
            chunk.iter().map(|page| libc::iovec { iov_base: *page as *mut c_void, iov_len: 1 }).collect();
        let own = libc::pid_t::try_from(std::process::id()).unwrap_or(0);
        // SAFETY: the kernel checks the remote addresses; the local room is as long as the pieces together.
        let read = unsafe { libc::process_vm_readv(own, &local, 1, remote.as_ptr(), remote.len() as u64, 0) };
        usize::try_from(read) == Ok(chunk.len())
    })
}

/// `ibv_rereg_mr`: the twin is of the memory as it was, so it goes, and one of the memory as it is comes, with keys that the peers are told anew.
///
/// # Safety
/// As `ibv_rereg_mr`.
pub unsafe fn rereg(
    region: *mut ibv_mr,
    flags: c_int,
    domain: *mut ibv_pd,
    addr: *mut c_void,
    length: usize,
    access: c_int,
) -> c_int {
    let known = MRS.remove(region);
    if let Some(shadow) = &known {
        by_lkey().remove(&(shadow.device, shadow.lkey));
        void_caches();
        withdraw_twins(shadow);
    }
    // SAFETY: passed on.
    let status = unsafe { real::ibv_rereg_mr(region, flags, domain, addr, length, access) };
    let Some(shadow) = known else { return status };
    let mut request = Request::again(&shadow, shadow.pd.0);
    let changes = |bit| status == 0 && flags as u32 & bit != 0;
    if changes(IBV_REREG_MR_CHANGE_PD) {
        request.pd = domain;
    }
    if changes(IBV_REREG_MR_CHANGE_ACCESS) {
        request.access = access as u32;
    }
    if changes(IBV_REREG_MR_CHANGE_TRANSLATION) {
        (request.addr, request.length, request.iova) = (addr, length, addr as u64);
    }
    // Who still takes the key for the twin that is gone would reach nothing with it, or other memory: the program may tell its peer of the change by
    // a message that is faster than ours.
    // SAFETY: the registration is live: it was just changed.
    let keeps_key = unsafe { (*region).rkey } == shadow.rkey && !shadow.twins.is_empty();
    if status == 0 && keeps_key && !await_confirmation(shadow.device, shadow.rkey) {
        if let Some(pd) = pd::PDS.get(request.pd) {
            unprotect_all(
                pd,
                "a registration kept its key when it was changed, and a peer has not confirmed the change",
            );
        }
    }
    // Of a refusal in mid-way (any but the first kind) nobody knows what is left; and the descriptor of a dmabuf may be closed by now.
    let is_known = status == 0 || status == REREG_UNCHANGED;
    if is_known && !shadow.is_dmabuf {
        registered(&request, region);
    } else if let Some(pd) = pd::PDS.get(request.pd) {
        enter_without_twin(pd, region, request.access);
    }
    status
}

/// `IBV_REREG_MR_ERR_INPUT`: the registration is as it was.
const REREG_UNCHANGED: c_int = -1;

/// Memory that the other device cannot have: `what` it is.
pub fn only_here(region: *mut ibv_mr, access: u32, what: &str) {
    // SAFETY: the registration was just made.
    let domain = unsafe { (*region).pd };
    if let Some(pd) = pd::PDS.get(domain) {
        tell::once(&format!("{what} is not on the standby: queue pairs that use it are not protected"), what);
        enter_without_twin(pd, region, access);
    }
}

/// `ibv_import_mr`: nothing is known of the memory behind it.
///
/// # Safety
/// As `ibv_import_mr`.
pub unsafe fn import(domain: *mut ibv_pd, handle: u32) -> *mut ibv_mr {
    // SAFETY: passed on.
    let region = unsafe { real::ibv_import_mr(domain, handle) };
    if !region.is_null() {
        only_here(region, u32::MAX, "a registration that was imported");
    }
    region
}

/// `ibv_unimport_mr`: the registration stays where it was made, its structure here goes.
///
/// # Safety
/// As `ibv_unimport_mr`.
pub unsafe fn unimport(region: *mut ibv_mr) {
    forget(region);
    // SAFETY: passed on.
    unsafe { real::ibv_unimport_mr(region) };
}

/// What was known of a registration that ends goes, and its twin.
fn forget(region: *mut ibv_mr) {
    if let Some(shadow) = MRS.remove(region) {
        by_lkey().remove(&(shadow.device, shadow.lkey));
        void_caches();
        withdraw_twins(&shadow);
    }
}

/// `ibv_alloc_null_mr`: a key under which nothing is read or written.
pub fn null(region: *mut ibv_mr, domain: *mut ibv_pd) {
    if let Some(pd) = pd::PDS.get(domain) {
        enter_without_twin(pd, region, 0);
    }
}

/// A registration that the standby does not have.
fn enter_without_twin(pd: &PdShadow, region: *mut ibv_mr, access: u32) {
    // SAFETY: the registration was just made, or changed.
    let ibv_mr { lkey, rkey, length, .. } = unsafe { region.read() };
    note_lack(pd, access);
    let (device, length) = (pd.device, length as u64);
    let facts = MrFacts {
        device,
        keys: (lkey, rkey),
        span: (0, length),
        readable: false,
        addr: 0,
        access,
        pd: Raw(core::ptr::null_mut()),
        is_dmabuf: false,
    };
    let shadow = Arc::new(MrShadow::new(facts, Vec::new()));
    if MRS.insert(region, Arc::clone(&shadow)) {
        by_lkey().insert((device, lkey), shadow);
        process::tell(Event::KeyUnprotected { device: DeviceId(device), rkey });
    }
}

/// `ibv_dereg_mr`: the twin goes first, so that nothing outlives the application's call.
///
/// # Safety
/// As `ibv_dereg_mr`.
pub unsafe fn dereg(mr: *mut ibv_mr) -> c_int {
    forget(mr);
    // SAFETY: passed on.
    unsafe { real::ibv_dereg_mr(mr) }
}

/// Withdraws the registrations on the standbys, if there are any, and tells the peers. The shadow was taken out of the tables before.
fn withdraw_twins(shadow: &MrShadow) {
    if process::get().is_some() {
        *UNCONFIRMED.get_or_init(DashMap::new).entry((shadow.device, shadow.rkey)).or_insert(0) += 1;
    }
    shadow.close();
    process::tell(Event::KeyRemoved { device: DeviceId(shadow.device), rkey: shadow.rkey });
    for twin in shadow.all_twins().filter_map(TwinMr::take) {
        // SAFETY: the twin is this library's own and was taken out of its place above.
        let errno = unsafe { real::ibv_dereg_mr(twin.0) };
        if errno != 0 {
            log::debug!("the twin of a registration is still in use (errno {errno}); it is withdrawn later");
            crate::cold::reaper::dereg_mr(twin);
        }
    }
}
