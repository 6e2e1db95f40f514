//! Which QP a tag means.
//!
//! Owns: the table from life number to QP. Readers on the poll path hold the lock of one of the QP's CQs; [`end`] is called with both
//! of them held, so a reference from [`get`] stays valid until that lock is released.

use crate::hot::tag::LIVES;
use crate::shadow::QpShadow;
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Lives per chunk: 32 KiB of pointers, taken when the first of them is used.
const CHUNK: u32 = 4096;

/// In the place of a QP number: the life is not a QP's. QP numbers have 24 bits.
const RESERVED: u32 = u32::MAX;

/// A living QP, and its number, which may be looked at without following the pointer.
#[derive(Default)]
struct Place {
    qp: AtomicPtr<QpShadow>,
    qpn: AtomicU32,
}

type Chunk = Box<[Place]>;

static TABLE: [OnceLock<Chunk>; (LIVES / CHUNK) as usize] = [const { OnceLock::new() }; (LIVES / CHUNK) as usize];
static NEXT: AtomicU32 = AtomicU32::new(1);
static WRITERS: Mutex<()> = Mutex::new(());

#[inline]
fn place(life: u32) -> Option<&'static Place> {
    TABLE.get((life / CHUNK) as usize)?.get()?.get((life % CHUNK) as usize)
}

/// A number that no living QP has: each life gets the next one.
pub fn next() -> u32 {
    loop {
        let life = NEXT.fetch_add(1, Ordering::Relaxed) & (LIVES - 1);
        let is_free =
            |place: &Place| place.qp.load(Ordering::Relaxed).is_null() && place.qpn.load(Ordering::Relaxed) != RESERVED;
        if life != 0 && place(life).is_none_or(is_free) {
            return life;
        }
    }
}

/// Keeps a number for something that is no QP, or gives it back.
pub fn reserve(life: u32, reserved: bool) {
    let _writer = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
    make_chunk(life);
    if let Some(place) = place(life) {
        place.qpn.store(if reserved { RESERVED } else { 0 }, Ordering::Relaxed);
    }
}

fn make_chunk(life: u32) {
    if let Some(chunk) = TABLE.get((life / CHUNK) as usize) {
        chunk.get_or_init(|| (0..CHUNK).map(|_| Place::default()).collect());
    }
}

/// Enters a QP.
pub fn begin(qp: &Arc<QpShadow>) {
    let _writer = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
    let life = qp.life;
    make_chunk(life);
    if let Some(place) = place(life) {
        place.qpn.store(qp.qpn, Ordering::Relaxed);
        place.qp.store(Arc::into_raw(Arc::clone(qp)).cast_mut(), Ordering::Release);
    }
}

/// The QP of a tag, if its number is this one (`None`: any). See the module's text for how long the reference is good.
///
/// The number is looked at first: the `wr_id` of a QP that was made past this library may look like the tag of one that does not complete here, and
/// whose locks nobody holds.
#[inline]
pub fn get<'a>(life: u32, qpn: Option<u32>) -> Option<&'a QpShadow> {
    let place = place(life)?;
    if qpn.is_some_and(|qpn| place.qpn.load(Ordering::Relaxed) != qpn) {
        return None;
    }
    let found = place.qp.load(Ordering::Acquire);
    // SAFETY: the pointer came from `Arc::into_raw`; the caller holds a lock that `end`'s caller needs, so it stays counted.
    unsafe { found.as_ref() }
}

/// A counted reference to a QP, for the agent.
pub fn arc(life: u32) -> Option<Arc<QpShadow>> {
    let _writer = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
    let found = place(life)?.qp.load(Ordering::Acquire);
    if found.is_null() {
        return None;
    }
    // SAFETY: `end` takes the writers' lock, which is held here, so the pointer is counted.
    unsafe { Arc::increment_strong_count(found) };
    // SAFETY: the count was raised for this reference on the line above.
    Some(unsafe { Arc::from_raw(found) })
}

/// Counted references to all living QPs.
pub fn all() -> Vec<Arc<QpShadow>> {
    (1..NEXT.load(Ordering::Relaxed).min(LIVES)).filter_map(arc).collect()
}

/// Visits all living QPs. Only where this thread is the process's only one: in a forked child, whose other threads did not come along and
/// may have left the writers' lock taken.
pub fn visit_alone(visit: impl Fn(&QpShadow)) {
    for life in 1..NEXT.load(Ordering::Relaxed).min(LIVES) {
        if let Some(qp) = get(life, None) {
            visit(qp);
        }
    }
}

/// Ends a life. The caller holds the locks of both CQs of the QP.
pub fn end(life: u32) -> Option<Arc<QpShadow>> {
    let _writer = WRITERS.lock().unwrap_or_else(PoisonError::into_inner);
    let found = place(life)?.qp.swap(core::ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: `begin` stored it from `Arc::into_raw`; the swap makes this the only place that takes it back.
    (!found.is_null()).then(|| unsafe { Arc::from_raw(found) })
}
