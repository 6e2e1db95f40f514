//! Completion queues: their shadows, the room for what a fault flushes, and their twins.

use crate::cold::channel::{self, ChannelShadow};
use crate::cold::{device, reaper};
use crate::real;
use crate::shadow::{CqInner, CqShadow, ProviderOps, Raw, TAGGED};
use crate::spin::SpinCell;
use crate::tables::PtrTable;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU8, Ordering};
use shift_abi::*;
use std::sync::{Arc, Mutex, PoisonError};

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
    if let Some(shadow) = device::device_of(context) {
        // SAFETY: the CQ was just made.
        let granted = unsafe { (*cq).cqe };
        let has_channel = !channel.is_null() && given.is_none();
        CQS.insert(cq, Arc::new(new_shadow(cq, granted, shadow.ops, has_channel, given)));
    }
}

fn new_shadow(
    cq: *mut ibv_cq,
    cqe: c_int,
    ops: ProviderOps,
    has_channel: bool,
    channel: Option<Arc<ChannelShadow>>,
) -> CqShadow {
    let inner = CqInner { entries: u32::try_from(cqe).unwrap_or(0), ..CqInner::default() };
    CqShadow {
        cq: Raw(cq),
        ops,
        has_channel,
        channel,
        armed: AtomicU8::new(0),
        late: AtomicBool::new(false),
        attention: AtomicU32::new(0),
        polls: AtomicU32::new(0),
        polls_seen: AtomicU32::new(0),
        inner: SpinCell::new(inner),
    }
}

/// Makes room in the application's CQ for everything that one more QP can have flushed, beside what the others can.
pub fn grow(cq: &CqShadow, depth: u32) -> Result<(), String> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _growing = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let (needed, has) = {
        let mut inner = cq.inner.lock();
        inner.depth = inner.depth.saturating_add(depth);
        (inner.depth, inner.entries)
    };
    if needed <= has {
        return Ok(());
    }
    let Ok(entries) = c_int::try_from(needed) else {
        shrink(cq, depth);
        return Err("its queues are deeper than any CQ".to_owned());
    };
    // SAFETY: the application's CQ is live: a QP was just made on it.
    let errno = unsafe { real::ibv_resize_cq(cq.cq.0, entries) };
    if errno != 0 {
        shrink(cq, depth);
        return Err(format!("its CQ cannot be grown to the {needed} entries that a fault may flush (errno {errno})"));
    }
    // `ibv_cq::cqe` now says the larger size, and has to: mlx5 and hns reckon with it when they poll.
    cq.inner.lock().entries = needed;
    Ok(())
}

/// Takes back what `grow` counted: the CQ keeps its size.
pub fn shrink(cq: &CqShadow, depth: u32) {
    let mut inner = cq.inner.lock();
    inner.depth = inner.depth.saturating_sub(depth);
}

/// The twin of a CQ on the standby, with the same room; made at first need.
pub fn twin(cq: &CqShadow, standby: &crate::cold::rail::Rail) -> Result<Raw<ibv_cq>, String> {
    let (known, entries) = {
        let inner = cq.inner.lock();
        (inner.twin, inner.depth.max(inner.entries))
    };
    let entries = c_int::try_from(entries).unwrap_or(c_int::MAX);
    if let Some((twin, _)) = known {
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
    // SAFETY: a rail's context is open for ever.
    let twin = unsafe { real::ibv_create_cq(standby.context.0, entries, context, channel, 0) };
    if twin.is_null() {
        return Err(format!("{} refused a CQ of {entries} entries", standby.name));
    }
    cq.inner.lock().twin = Some((Raw(twin), standby.ops.poll_cq));
    Ok(Raw(twin))
}

/// `ibv_resize_cq` by the application: never below what the protection needs.
///
/// # Safety
/// As `ibv_resize_cq`.
pub unsafe fn resize(cq: *mut ibv_cq, cqe: c_int) -> c_int {
    let room = CQS
        .get(cq)
        .filter(|shadow| shadow.attention.load(Ordering::Relaxed) & TAGGED != 0)
        .map_or(0, |shadow| shadow.inner.lock().depth);
    let entries = cqe.max(c_int::try_from(room).unwrap_or(c_int::MAX));
    // SAFETY: passed on, with a larger size at most.
    let errno = unsafe { real::ibv_resize_cq(cq, entries) };
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
    // Before the shadow goes: who takes an event of a member looks for it.
    let had_event = channel.as_ref().is_some_and(|channel| channel.leave(cq));
    let shadow = CQS.remove(cq);
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
        CQS.insert(cq, shadow);
    } else if let Some((twin, _)) = shadow.inner.lock().twin.take() {
        reaper::destroy_cq(twin);
    }
    errno
}
