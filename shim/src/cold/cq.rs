//! Completion queues: their shadows, the room for what a fault flushes, and their twins.

use crate::atomics::{AtomicBool, AtomicU32, AtomicU64, AtomicU8, Ordering};
use crate::cold::channel::{self, ChannelShadow};
use crate::cold::rail::Rail;
use crate::cold::{device, pd, reaper};
use crate::hot::poll_ex::{self, CqEx, CqReads};
use crate::real;
use crate::shadow::{CqInner, CqShadow, ProviderOps, Raw, TwinCq, IN_CALL, MAPPED, TAGGED, UNLOCKED};
use crate::spin::{SpinCell, Waiter};
use crate::tables::{PtrTable, Roll};
use core::cell::Cell;
use core::ffi::{c_int, c_void};
use core::ptr::NonNull;
use shift_abi::*;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// CQs of the application.
pub static CQS: PtrTable<CqShadow> = PtrTable::new();

/// `ibv_create_cq`.
///
/// # Safety
/// As `ibv_create_cq`.
pub unsafe fn create(
    context: *mut ibv_context,
    cqe: c_int,
    cq_context: *mut c_void,
    channel: *mut ibv_comp_channel,
    vector: c_int,
) -> *mut ibv_cq {
    let given = channel::given(channel);
    let real_channel = given.as_ref().map_or(channel, |ours| ours.real());
    // SAFETY: passed on.
    let cq = unsafe { real::ibv_create_cq(context, cqe, cq_context, real_channel, vector) };
    enter(cq, context, channel, given);
    cq
}

/// A CQ was made, with the real channel in place of one of ours: it gets its shadow, and the channel that the application named.
pub fn enter(
    cq: *mut ibv_cq,
    context: *mut ibv_context,
    channel: *mut ibv_comp_channel,
    given: Option<Arc<ChannelShadow>>,
) {
    if cq.is_null() {
        return;
    }
    if let Some(ours) = &given {
        ours.adopt(cq);
    }
    // One that lay at this address, of a thread that is about to return from its destroy.
    CQS.remove(cq);
    if let Some(shadow) = device::device_of(context) {
        // SAFETY: the CQ was just made.
        let granted = unsafe { (*cq).cqe };
        let has_channel = !channel.is_null() && given.is_none();
        CQS.insert(cq, Arc::new(new_shadow(cq, granted, shadow.ops, has_channel, given)));
    }
}

/// What is asked of an extended CQ.
pub struct Asked {
    wc_flags: u64,
    /// What the application wrote, to be changed where it asks for something else: its own structure is only read. `None`: it may be longer than is known.
    copy: Option<ibv_cq_init_attr_ex>,
    /// As the application named it, and ours behind it.
    channel: *mut ibv_comp_channel,
    given: Option<Arc<ChannelShadow>>,
    /// Its provider has no lock for it.
    is_unlocked: bool,
    /// Why no QP of it can be protected.
    refused: Cell<Option<&'static str>>,
}

impl Asked {
    /// What the application asks.
    ///
    /// # Safety
    /// What the structure's mask names is readable.
    pub unsafe fn read(attr: *const ibv_cq_init_attr_ex) -> Self {
        // SAFETY: the caller vouches for the structure, here and below.
        let mask = unsafe { (*attr).comp_mask };
        // SAFETY: as above; this field is there if the mask says so.
        let flags = if mask & IBV_CQ_INIT_ATTR_MASK_FLAGS != 0 { unsafe { (*attr).flags } } else { 0 };
        let has_domain = mask & IBV_CQ_INIT_ATTR_MASK_PD != 0;
        // SAFETY: as above.
        let domain = if has_domain { unsafe { (*attr).parent_domain } } else { core::ptr::null_mut() };
        // SAFETY: as above.
        let wc_flags = unsafe { (*attr).wc_flags };
        // SAFETY: as above.
        let channel = unsafe { (*attr).channel };
        let has_known_size = mask & !(IBV_CQ_INIT_ATTR_MASK_FLAGS | IBV_CQ_INIT_ATTR_MASK_PD) == 0;
        let copy = ibv_cq_init_attr_ex {
            // SAFETY: as above.
            cqe: unsafe { (*attr).cqe },
            // SAFETY: as above.
            cq_context: unsafe { (*attr).cq_context },
            channel,
            // SAFETY: as above.
            comp_vector: unsafe { (*attr).comp_vector },
            wc_flags,
            comp_mask: mask,
            flags,
            parent_domain: domain,
        };
        let is_known = has_known_size
            && flags & !(IBV_CREATE_CQ_ATTR_SINGLE_THREADED | IBV_CREATE_CQ_ATTR_IGNORE_OVERRUN) == 0
            && wc_flags & !poll_ex::KNOWN == 0;
        Self {
            wc_flags,
            copy: has_known_size.then_some(copy),
            channel,
            given: channel::given(channel),
            is_unlocked: flags & IBV_CREATE_CQ_ATTR_SINGLE_THREADED != 0 || pd::has_thread_domain(domain),
            refused: Cell::new((!is_known).then_some("its CQ was made with attributes that are not known here")),
        }
    }

    /// No QP of it can be protected.
    pub fn refuse(&self, why: &'static str) {
        self.refused.set(Some(why));
    }
}

/// Makes the CQ through `create`. Where its completions carry more than `ibv_wc` holds, all fields of `ibv_wc` are asked for as well: the shim has to
/// know of which queue pair a completion is.
///
/// # Safety
/// The arguments are those of `ibv_create_cq_ex`.
pub unsafe fn make_extended(
    create: impl Fn(*mut ibv_context, *mut ibv_cq_init_attr_ex) -> *mut ibv_cq_ex,
    context: *mut ibv_context,
    attr: *mut ibv_cq_init_attr_ex,
    asked: &Asked,
) -> *mut ibv_cq_ex {
    let make = |wc_flags: u64| {
        let real_channel = asked.given.as_ref().map_or(asked.channel, |ours| ours.real());
        let queue = match asked.copy {
            Some(copy) => {
                let mut changed = ibv_cq_init_attr_ex { wc_flags, channel: real_channel, ..copy };
                // The copy has all that its mask names.
                create(context, &mut changed)
            }
            None if asked.given.is_none() => create(context, attr),
            // SAFETY: passed on from the caller.
            None => unsafe { make_in_place(|attr| create(context, attr), attr, real_channel) },
        };
        if let Some(ours) = asked.given.as_ref().filter(|_| !queue.is_null()) {
            ours.adopt(queue.cast());
        }
        queue
    };
    if poll_ex::is_beyond_wc(asked.wc_flags) && asked.refused.get().is_none() {
        let queue = make(asked.wc_flags | poll_ex::OF_WC);
        if !queue.is_null() {
            return queue;
        }
        asked.refused.set(Some("its CQ does not say which queue pair a completion is of"));
    }
    make(asked.wc_flags)
}

/// With the real channel in the application's own structure, of which nobody knows how long it is.
unsafe fn make_in_place(
    create: impl Fn(*mut ibv_cq_init_attr_ex) -> *mut ibv_cq_ex,
    attr: *mut ibv_cq_init_attr_ex,
    channel: *mut ibv_comp_channel,
) -> *mut ibv_cq_ex {
    // SAFETY: the caller vouches for the structure.
    let before = unsafe { core::mem::replace(&mut (*attr).channel, channel) };
    let queue = create(attr);
    // SAFETY: as above.
    unsafe { (*attr).channel = before };
    queue
}

/// Records an extended CQ that was just made.
pub fn note_extended(queue: *mut ibv_cq_ex, context: *mut ibv_context, asked: &Asked) {
    let Some(device) = device::device_of(context) else { return };
    let cq: *mut ibv_cq = queue.cast();
    // SAFETY: the CQ was just made; an extended one begins as any does.
    let granted = unsafe { (*cq).cqe };
    // SAFETY: the CQ was just made, and nobody uses it yet.
    let ex = if asked.refused.get().is_none() { unsafe { CqEx::new(queue, asked.wc_flags) } } else { None };
    let has_channel = !asked.channel.is_null() && asked.given.is_none();
    let mut shadow = new_shadow(cq, granted, device.ops, has_channel, asked.given.clone());
    shadow.refused = asked.refused.get().or(ex.is_none().then_some("its CQ has no function to start a poll"));
    if asked.is_unlocked {
        shadow.attention = AtomicU32::new(UNLOCKED);
    }
    let is_hooked = ex.is_some();
    shadow.ex = ex;
    shadow.inner.lock().stash.reserve(STASHED);
    if CQS.insert(queue, Arc::new(shadow)) && is_hooked {
        // SAFETY: as above; from here on its functions find the shadow.
        unsafe { poll_ex::hook(queue) };
    }
}

/// Completions that wait at first need: more than a poll takes at once.
const STASHED: usize = 64;

/// `ibv_modify_cq` succeeded: the twins do as the CQ, now and when they are made.
pub fn moderate(queue: *mut ibv_cq, attr: ibv_modify_cq_attr) {
    let Some(cq) = CQS.get(queue) else { return };
    let twins = {
        let mut inner = cq.inner.lock();
        inner.moderation = Some(attr);
        inner.twins.clone()
    };
    twins.iter().for_each(|twin| moderate_twin(twin.cq, attr));
}

fn moderate_twin(twin: Raw<ibv_cq>, mut attr: ibv_modify_cq_attr) {
    // SAFETY: the twin is this library's own.
    let context = unsafe { (*twin.0).context };
    // SAFETY: a rail's context is open for ever.
    let table = NonNull::new(context).and_then(|context| unsafe { VerbsOps::of(context) });
    // SAFETY: a slot may be read as long as the context is open.
    let Some(modify) = table.and_then(VerbsOps::modify_cq).and_then(|slot| unsafe { slot.read() }) else { return };
    // SAFETY: both are this library's own.
    if unsafe { modify(twin.0, &mut attr) } != 0 {
        log::debug!("the twin of a CQ takes no moderation");
    }
}

fn new_shadow(
    cq: *mut ibv_cq,
    cqe: c_int,
    ops: ProviderOps,
    has_channel: bool,
    channel: Option<Arc<ChannelShadow>>,
) -> CqShadow {
    let entries = u32::try_from(cqe).unwrap_or(0);
    let inner = CqInner { entries, asked: entries, ..CqInner::default() };
    CqShadow {
        cq: Raw(cq),
        ops,
        has_channel,
        channel,
        armed: AtomicU8::new(0),
        late: AtomicBool::new(false),
        refused: None,
        ex: None,
        attention: AtomicU32::new(0),
        polls: AtomicU32::new(0),
        polls_seen: AtomicU32::new(0),
        looked: AtomicU64::new(0),
        inner: SpinCell::new(inner),
    }
}

/// Makes room in the application's CQ for everything that one more QP can have flushed, beside what the others can, and what the application asked for
/// where QPs use it that are not recorded.
pub fn grow(cq: &CqShadow, depth: u32) -> Result<(), String> {
    if cq.attention.load(Ordering::Relaxed) & MAPPED != 0 {
        return Err("its CQ is polled by the program itself (mlx5dv_init_obj)".to_owned());
    }
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _growing = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (needed, has) = {
        let mut inner = cq.inner.lock();
        inner.depth = inner.depth.saturating_add(depth);
        (inner.needed(), inner.entries)
    };
    if needed <= has {
        return Ok(());
    }
    let Ok(entries) = c_int::try_from(needed) else {
        shrink(cq, depth);
        return Err("its queues are deeper than any CQ".to_owned());
    };
    let errno = {
        let _alone = alone(cq);
        // SAFETY: the application's CQ is live: a QP was just made on it.
        unsafe { real::ibv_resize_cq(cq.cq.0, entries) }
    };
    if errno != 0 {
        shrink(cq, depth);
        return Err(format!("its CQ cannot be grown to the {needed} entries that a fault may flush (errno {errno})"));
    }
    // `ibv_cq::cqe` now says the larger size, and has to: mlx5 and hns reckon with it when they poll.
    cq.inner.lock().entries = needed;
    Ok(())
}

/// CQs for which their provider has no lock, while a call that touches them runs. The call may take as long as a dying NIC does, so their cells are not
/// held: who polls finds nothing meanwhile.
pub struct Alone<'a>(Vec<&'a CqShadow>);

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        for cq in &self.0 {
            cq.attention.fetch_and(!IN_CALL, Ordering::Release);
        }
    }
}

/// Keeps everybody out of a CQ for which its provider has no lock, and nobody out of another.
pub fn alone(cq: &CqShadow) -> Alone<'_> {
    let (mut alone, mut waiter) = (Alone(Vec::new()), Waiter::default());
    while is_unlocked(cq) && !enter_call(cq, &mut alone) {
        waiter.turn();
    }
    alone
}

fn is_unlocked(cq: &CqShadow) -> bool {
    cq.attention.load(Ordering::Relaxed) & UNLOCKED != 0
}

/// From here on nobody polls it. `false`: another call runs.
fn enter_call<'a>(cq: &'a CqShadow, alone: &mut Alone<'a>) -> bool {
    // Who polls holds this.
    let _inner = cq.inner.lock();
    let is_first = cq.attention.fetch_or(IN_CALL, Ordering::Acquire) & IN_CALL == 0;
    if is_first {
        alone.0.push(cq);
    }
    is_first
}

/// A call that touches it runs: what it has cannot be seen at this moment.
pub fn is_in_call(cq: &CqShadow) -> bool {
    cq.attention.load(Ordering::Relaxed) & IN_CALL != 0
}

/// Runs what a provider does to the CQs of a QP beside what it does to the QP: at RESET and destroy it takes the QP's completions out of them. Another such
/// call is waited for: `None` if it runs on for longer than `patience`.
pub fn among<R>(
    send_cq: *const ibv_cq,
    recv_cq: *const ibv_cq,
    patience: Duration,
    change: impl FnOnce() -> R,
) -> Option<R> {
    let mut cqs: Vec<&CqShadow> =
        [send_cq, recv_cq].into_iter().filter_map(|cq| CQS.get(cq)).filter(|cq| is_unlocked(cq)).collect();
    cqs.sort_by_key(|cq| core::ptr::from_ref(*cq));
    cqs.dedup_by_key(|cq| core::ptr::from_ref(*cq));
    let began = Instant::now();
    let (mut alone, mut waiter) = (Alone(Vec::new()), Waiter::default());
    for cq in cqs {
        while !enter_call(cq, &mut alone) {
            if began.elapsed() > patience {
                return None;
            }
            waiter.turn();
        }
    }
    Some(change())
}

/// Takes back what `grow` counted: the CQ keeps its size.
pub fn shrink(cq: &CqShadow, depth: u32) {
    let mut inner = cq.inner.lock();
    inner.depth = inner.depth.saturating_sub(depth);
}

/// The twin of a CQ on the standby in that slot, with the same room; made at first need.
pub fn twin(cq: &CqShadow, standby: &Rail, slot: u8) -> Result<Raw<ibv_cq>, String> {
    let (known, entries) = {
        let inner = cq.inner.lock();
        (inner.twins.iter().find(|twin| twin.slot == slot).map(|twin| twin.cq), inner.depth.max(inner.entries))
    };
    let entries = c_int::try_from(entries).unwrap_or(c_int::MAX);
    if let Some(twin) = known {
        // SAFETY: the twin is this library's own.
        let has = unsafe { (*twin.0).cqe };
        // SAFETY: as above.
        if has < entries && unsafe { real::ibv_resize_cq(twin.0, entries) } != 0 {
            return Err(format!("the CQ on {} cannot be grown to {entries} entries", standby.name));
        }
        return Ok(twin);
    }
    let channel = match &cq.channel {
        Some(channel) => channel.twin_on(standby)?,
        None => core::ptr::null_mut(),
    };
    // An event of the twin says which CQ of the application it is about.
    let context = cq.cq.0.cast();
    let (twin, reads) = extended_twin(cq, standby, entries, channel).unwrap_or_else(|| {
        // SAFETY: a rail's context is open for ever.
        (unsafe { real::ibv_create_cq(standby.context.0, entries, context, channel, 0) }, None)
    });
    if twin.is_null() {
        return Err(format!("{} refused a CQ of {entries} entries", standby.name));
    }
    let moderation = {
        let mut inner = cq.inner.lock();
        inner.twins.push(TwinCq { slot, device: standby.id, cq: Raw(twin), poll: standby.ops.poll_cq, reads });
        inner.moderation
    };
    if let Some(shadow) = CQS.get_arc(cq.cq.0) {
        TWINNED.enter(&shadow);
    }
    if let Some(attr) = moderation {
        moderate_twin(Raw(twin), attr);
    }
    Ok(Raw(twin))
}

/// CQs that have, or had, twins.
static TWINNED: Roll<CqShadow> = Roll::new();

/// Takes the twins on a device that is gone out of all CQs: nobody polls or arms them from here on who did not begin before.
pub fn part(device: u16) -> Vec<Raw<ibv_cq>> {
    let mut cqs = Vec::new();
    for cq in TWINNED.all() {
        let mut inner = cq.inner.lock();
        cqs.extend(inner.twins.iter().filter(|twin| twin.device == device).map(|twin| twin.cq));
        inner.twins.retain(|twin| twin.device != device);
    }
    cqs
}

/// Where completions carry more than `ibv_wc` holds: a twin with the same fields, if the standby has them. Else they are zero there.
fn extended_twin(
    cq: &CqShadow,
    standby: &Rail,
    entries: c_int,
    channel: *mut ibv_comp_channel,
) -> Option<(*mut ibv_cq, Option<CqReads>)> {
    let wc_flags = cq.ex.as_ref().filter(|ex| ex.has_more())?.wc_flags();
    // SAFETY: a rail's context is open for ever.
    let table = NonNull::new(standby.context.0).and_then(|context| unsafe { VerbsOps::of(context) })?;
    // SAFETY: a slot may be read as long as the context is open.
    let create = table.create_cq_ex().and_then(|slot| unsafe { slot.read() })?;
    let cqe = u32::try_from(entries).ok()?;
    let wc_flags = wc_flags | poll_ex::OF_WC;
    let cq_context = cq.cq.0.cast();
    let mut attr = ibv_cq_init_attr_ex { cqe, cq_context, channel, wc_flags, ..ibv_cq_init_attr_ex::zeroed() };
    // SAFETY: the attributes are this frame's own.
    let twin = unsafe { create(standby.context.0, &mut attr) };
    if twin.is_null() {
        log::info!("{} has no completions with all the fields that the program asked for", standby.name);
        return None;
    }
    // SAFETY: the CQ was just made and is never hooked.
    Some((twin.cast(), unsafe { CqReads::of(twin) }))
}

/// `ibv_resize_cq` by the application: never below what the protection needs.
///
/// # Safety
/// As `ibv_resize_cq`.
pub unsafe fn resize(cq: *mut ibv_cq, cqe: c_int) -> c_int {
    let room =
        CQS.get(cq).filter(|shadow| shadow.attention.load(Ordering::Relaxed) & TAGGED != 0).map_or(0, |shadow| {
            let mut inner = shadow.inner.lock();
            inner.asked = u32::try_from(cqe).unwrap_or(0);
            inner.needed()
        });
    let entries = cqe.max(c_int::try_from(room).unwrap_or(c_int::MAX));
    let errno = {
        let _alone = CQS.get(cq).map(alone);
        // SAFETY: passed on, with a larger size at most.
        unsafe { real::ibv_resize_cq(cq, entries) }
    };
    if let (0, Some(shadow)) = (errno, CQS.get(cq)) {
        shadow.inner.lock().entries = u32::try_from(entries).unwrap_or(0);
    }
    errno
}

/// `ibv_destroy_cq`.
///
/// # Safety
/// As `ibv_destroy_cq`.
pub unsafe fn destroy(cq: *mut ibv_cq) -> c_int {
    // SAFETY: the CQ is live until the call below.
    let channel = channel::given(unsafe { (*cq).channel });
    let had_event = channel.as_ref().is_some_and(|channel| channel.leave(cq));
    // It stays where it is found until the CQ is gone: a poll of it may be open, and the call may be refused.
    let shadow = CQS.get_arc(cq);
    if let Some(shadow) = &shadow {
        shadow.inner.lock().destroyed = true;
    }
    // SAFETY: passed on. It waits until all events are acknowledged, ours too.
    let errno = unsafe { real::ibv_destroy_cq(cq) };
    if let (true, Some(channel)) = (errno != 0, &channel) {
        channel.rejoin(cq, had_event);
    }
    let Some(shadow) = shadow else { return errno };
    if errno != 0 {
        shadow.inner.lock().destroyed = false;
        return errno;
    }
    CQS.remove_this(cq, &shadow);
    let twins = core::mem::take(&mut shadow.inner.lock().twins);
    twins.iter().for_each(|twin| reaper::destroy_cq(twin.cq));
    0
}
