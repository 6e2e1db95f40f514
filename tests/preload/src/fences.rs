//! The packet numbers of a fence, seen from below: what a queue pair expected before ERR, right after it, and after RESET.
//!
//! Whoever wants to set them against what lies in memory asks for it by `shift_preload_watch_fences`; he is called on the
//! thread that asks for the final number, while the queue pair is in RESET and before that thread can do anything with it.

use crate::device::{locked, Device};
use crate::fault::Kind;
use crate::real;
use shift_abi::*;
use std::collections::HashMap;
use std::ffi::c_int;
use std::sync::Mutex;

/// One fence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FenceSeen {
    /// The queue pair's number.
    pub qpn: u32,
    /// The first packet number that it expected, from RTR.
    pub first: u32,
    /// What it expected next just before ERR.
    pub before: u32,
    /// Right after ERR.
    pub early: u32,
    /// After RESET.
    pub last: u32,
    /// What the caller of `ibv_query_qp` is told.
    pub told: u32,
}

/// Who is shown fences.
pub type Watcher = extern "C" fn(*const FenceSeen);

/// How far the fence of a queue pair is.
#[derive(Clone, Copy, Debug, Default)]
struct Stage {
    seen: FenceSeen,
    in_error: bool,
    reset: bool,
}

/// Half of all packet numbers.
const FAR: u32 = 1 << 23;

static STAGES: Mutex<Option<HashMap<(usize, u32), Stage>>> = Mutex::new(None);
static WATCHER: Mutex<Option<Watcher>> = Mutex::new(None);

/// From now on `watcher` is called at each fence of a device with `watch-fences`.
#[no_mangle]
pub extern "C" fn shift_preload_watch_fences(watcher: Watcher) {
    *locked(&WATCHER) = Some(watcher);
}

fn is_watched(device: &Device) -> bool {
    device.kinds().any(|kind| matches!(kind, Kind::WatchFences | Kind::EarlyPsn | Kind::VoidPsn))
}

/// # Safety
///
/// `qp` is open.
unsafe fn name_of(qp: *mut ibv_qp) -> (usize, u32) {
    // SAFETY: the caller vouches for the queue pair.
    let context = unsafe { (*qp).context };
    // SAFETY: as above.
    (context as usize, unsafe { (*qp).qp_num })
}

/// The packet number that is expected next.
///
/// # Safety
///
/// `qp` is open.
unsafe fn expected(qp: *mut ibv_qp) -> Option<u32> {
    let query = real::query_qp()?;
    let (mut attr, mut init) = (ibv_qp_attr::zeroed(), ibv_qp_init_attr::zeroed());
    // SAFETY: the caller vouches for the queue pair; both structures are writable.
    let errno = unsafe { query(qp, &mut attr, IBV_QP_RQ_PSN as c_int, &mut init) };
    (errno == 0).then_some(attr.rq_psn)
}

/// Calls `modify`, and looks at the queue pair before and after it if it is fenced by it.
///
/// # Safety
///
/// `qp` is open.
pub(crate) unsafe fn around_modify(
    device: &Device,
    qp: *mut ibv_qp,
    attr: &ibv_qp_attr,
    mask: u32,
    modify: impl FnOnce() -> c_int,
) -> c_int {
    if !is_watched(device) || mask & IBV_QP_STATE == 0 {
        return modify();
    }
    let to_error = attr.qp_state == IBV_QPS_ERR;
    // SAFETY: passed on from the caller.
    let before = if to_error { unsafe { expected(qp) } } else { None };
    let errno = modify();
    // SAFETY: passed on from the caller.
    let early = if to_error { unsafe { expected(qp) } } else { None };
    if errno != 0 {
        return errno;
    }
    // SAFETY: passed on from the caller.
    let name = unsafe { name_of(qp) };
    let mut stages = locked(&STAGES);
    let stage = stages.get_or_insert_with(HashMap::new).entry(name).or_default();
    if mask & IBV_QP_RQ_PSN != 0 {
        *stage =
            Stage { seen: FenceSeen { qpn: name.1, first: attr.rq_psn, ..FenceSeen::default() }, ..Stage::default() };
    }
    if let (Some(before), Some(early)) = (before, early) {
        (stage.seen.before, stage.seen.early, stage.in_error) = (before, early, true);
    }
    stage.reset = stage.in_error && attr.qp_state == IBV_QPS_RESET;
    errno
}

/// A query succeeded: edits the packet number it gives, and shows the fence if this is its end.
///
/// # Safety
///
/// `qp` is open.
pub(crate) unsafe fn after_query(device: &Device, qp: *mut ibv_qp, attr: &mut ibv_qp_attr, mask: u32) {
    if !is_watched(device) || mask & IBV_QP_RQ_PSN == 0 {
        return;
    }
    // SAFETY: passed on from the caller.
    let name = unsafe { name_of(qp) };
    let mut stages = locked(&STAGES);
    let Some(stage) = stages.as_mut().and_then(|stages| stages.get_mut(&name)).filter(|stage| stage.reset) else {
        return;
    };
    let is = |wanted| device.kinds().any(|kind| kind == wanted);
    let told =
        if is(Kind::EarlyPsn) { stage.seen.early } else { attr.rq_psn ^ if is(Kind::VoidPsn) { FAR } else { 0 } };
    let seen = FenceSeen { last: attr.rq_psn, told, ..stage.seen };
    *stage = Stage { seen: stage.seen, ..Stage::default() };
    drop(stages);
    attr.rq_psn = told;
    let watcher = *locked(&WATCHER);
    if let Some(watcher) = watcher {
        watcher(&seen);
    }
}
