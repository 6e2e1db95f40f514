//! Shared receive queues: their shadows, their twins, and the one move of a group's receives from one path to another.
//!
//! What must hold: receives are posted on the other path once, in order, when no queue pair of the SRQ takes one on the old path any more (the agent sees
//! to that, see [`shift_control::datapath::DataPath::repost`]); an object of the SRQ that the group has left is emptied before anybody can take what is
//! still in it, because its buffers have been used again since.

use crate::cold::{asynchronous, device, pd, rail, reaper, tell, withdraw};
use crate::hot::keys::KeyCache;
use crate::hot::poll;
use crate::hot::srq::{give, Slots, SrqPoster, SrqShadow};
use crate::lives;
use crate::process;
use crate::real;
use crate::shadow::*;
use crate::spin::SpinCell;
use crate::tables::PtrTable;
use core::ffi::c_int;
use core::sync::atomic::{AtomicBool, Ordering};
use shift_abi::*;
use shift_control::datapath::{Errno, Round};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

/// SRQs of the application that are recorded.
pub static SRQS: PtrTable<SrqShadow> = PtrTable::new();
/// The same by their numbers in tags.
static BY_LIFE: RwLock<BTreeMap<u32, Arc<SrqShadow>>> = RwLock::new(BTreeMap::new());
/// There has been one.
static ANY: AtomicBool = AtomicBool::new(false);
/// Receives beyond the depth of the SRQ that may not have completed: each queue pair may have one in hand, and completions lie in CQs.
const LEAST_SLACK: u32 = 64;

/// What only control verbs and the agent touch.
#[derive(Default)]
pub struct SrqCold {
    /// The SRQ on the standby.
    twin: Option<Raw<ibv_srq>>,
    /// The path that receives are posted on.
    home: u8,
    /// By path: the object there may still hold receives that are posted elsewhere by now.
    left: [bool; 2],
    /// Emptying such an object.
    withdrawal: Option<withdraw::Withdrawal>,
    /// The last move that came to its end.
    round: Round,
    /// Moving: the path, and how many of the receives that were left are posted there.
    moving: Option<(u8, Vec<u32>)>,
    /// The limit of the object that is being emptied, for the one that the receives go to.
    limit: u32,
    destroyed: bool,
}

impl SrqShadow {
    /// The cold part. As for a QP, poison is ignored.
    pub fn cold(&self) -> MutexGuard<'_, SrqCold> {
        self.cold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn members(&self) -> MutexGuard<'_, Vec<u32>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether completions of queue pairs that are not recorded may be of a recorded SRQ.
#[inline]
pub fn any() -> bool {
    ANY.load(Ordering::Relaxed)
}

/// The SRQ of a tag.
pub fn by_life(life: u32) -> Option<Arc<SrqShadow>> {
    if !any() {
        return None;
    }
    BY_LIFE.read().unwrap_or_else(PoisonError::into_inner).get(&life).cloned()
}

/// Whether SRQs are recorded at all: SHIFT_SRQ.
pub fn is_wanted() -> bool {
    process::get().is_some_and(|process| process.config.shared_receives)
}

/// `ibv_create_srq`.
///
/// # Safety
/// As `ibv_create_srq`.
pub unsafe fn create(domain: *mut ibv_pd, init: *mut ibv_srq_init_attr) -> *mut ibv_srq {
    // SAFETY: passed on.
    let srq = unsafe { real::ibv_create_srq(domain, init) };
    if srq.is_null() || !is_wanted() {
        return srq;
    }
    // SAFETY: the call above succeeded, so `init` is readable; the library wrote the granted sizes into it.
    let granted = unsafe { (*init).attr };
    // SAFETY: the PD is live: an SRQ was just made on it.
    let context = unsafe { (*domain).context };
    let post = device::device_of(context).and_then(|shadow| shadow.ops.post_srq_recv);
    if let (Some(post), Some(domain)) = (post, pd::PDS.get_arc(domain)) {
        if domain.standby.is_ok() {
            record(srq, domain, &granted, post);
        }
    }
    srq
}

fn record(srq: *mut ibv_srq, domain: Arc<PdShadow>, granted: &ibv_srq_attr, post: post_srq_recv_fn) {
    let life = lives::next();
    lives::reserve(life, true);
    let poster = SrqPoster {
        target: Raw(srq),
        post,
        translate: false,
        generation: 0,
        keys: KeyCache::new(),
        sges: Vec::with_capacity((granted.max_sge as usize).max(1)),
    };
    let shadow = Arc::new(SrqShadow {
        life,
        srq: Raw(srq),
        device: domain.device,
        pd: domain,
        max_sge: granted.max_sge,
        poster: SpinCell::new(poster),
        slots: SpinCell::new(Slots::new(with_slack(granted.max_wr), granted.max_sge)),
        members: Mutex::new(Vec::new()),
        cold: Mutex::new(SrqCold::default()),
        unprotected: OnceLock::new(),
    });
    if SRQS.insert(srq, Arc::clone(&shadow)) {
        ANY.store(true, Ordering::Relaxed);
        BY_LIFE.write().unwrap_or_else(PoisonError::into_inner).insert(life, shadow);
    }
}

const fn with_slack(entries: u32) -> u32 {
    let slack = if entries / 4 > LEAST_SLACK { entries / 4 } else { LEAST_SLACK };
    entries.saturating_add(slack)
}

/// `ibv_destroy_srq`.
///
/// # Safety
/// As `ibv_destroy_srq`.
pub unsafe fn destroy(srq: *mut ibv_srq) -> c_int {
    // The application's object cannot go while a queue pair of this library's own is attached to it.
    if let Some(shadow) = SRQS.get(srq) {
        let mut cold = shadow.cold();
        (cold.withdrawal, cold.destroyed) = (None, true);
        asynchronous::forget_srq(srq);
    }
    // SAFETY: passed on.
    let errno = unsafe { real::ibv_destroy_srq(srq) };
    if errno != 0 {
        if let Some(shadow) = SRQS.get(srq) {
            shadow.cold().destroyed = false;
        }
        return errno;
    }
    if let Some(shadow) = SRQS.remove(srq) {
        BY_LIFE.write().unwrap_or_else(PoisonError::into_inner).remove(&shadow.life);
        lives::reserve(shadow.life, false);
        let mut cold = shadow.cold();
        if let Some(twin) = cold.twin.take() {
            reaper::destroy_srq(twin);
        }
    }
    0
}

/// `ibv_modify_srq`.
///
/// # Safety
/// As `ibv_modify_srq`.
pub unsafe fn modify(srq: *mut ibv_srq, attr: *mut ibv_srq_attr, mask: c_int) -> c_int {
    let Some(shadow) = SRQS.get(srq) else {
        // SAFETY: passed on.
        return unsafe { real::ibv_modify_srq(srq, attr, mask) };
    };
    let cold = shadow.cold();
    let limit = mask as u32 & IBV_SRQ_LIMIT;
    if cold.home != 0 && limit != 0 {
        // The limit is of the receives that there are, and they are on the standby.
        let Some(twin) = cold.twin else { return libc::EINVAL };
        // SAFETY: the twin is live under the cold lock; `attr` is the application's.
        let errno = unsafe { real::ibv_modify_srq(twin.0, attr, limit as c_int) };
        if errno != 0 || mask as u32 & !limit == 0 {
            return errno;
        }
    }
    let rest = if cold.home == 0 { mask } else { mask & !(limit as c_int) };
    // SAFETY: passed on.
    let errno = unsafe { real::ibv_modify_srq(srq, attr, rest) };
    if errno == 0 && mask as u32 & IBV_SRQ_MAX_WR != 0 {
        // SAFETY: the application's structure is readable.
        let entries = with_slack(unsafe { (*attr).max_wr });
        shadow.slots.lock().grow(entries);
        let mut attr = ibv_srq_attr { max_wr: entries, max_sge: 0, srq_limit: 0 };
        if let Some(twin) = cold.twin {
            // SAFETY: as above.
            let refused = unsafe { real::ibv_modify_srq(twin.0, &mut attr, IBV_SRQ_MAX_WR as c_int) };
            drop(cold);
            if refused != 0 {
                unprotect(shadow, format!("its SRQ cannot be grown on the standby (errno {refused})"));
            }
        }
    }
    errno
}

/// `ibv_query_srq`.
///
/// # Safety
/// As `ibv_query_srq`.
pub unsafe fn query(srq: *mut ibv_srq, attr: *mut ibv_srq_attr) -> c_int {
    // SAFETY: passed on.
    let errno = unsafe { real::ibv_query_srq(srq, attr) };
    let Some(shadow) = SRQS.get(srq).filter(|_| errno == 0) else { return errno };
    let cold = shadow.cold();
    if let (1, Some(twin)) = (cold.home, cold.twin) {
        // SAFETY: the call above filled the structure.
        unsafe { (*attr).srq_limit = limit_of(twin) };
    }
    0
}

/// An event of this library's own context: the receives on the standby went below the limit that the application set.
pub fn twin_reached_its_limit(twin: *mut ibv_srq) {
    let all = BY_LIFE.read().unwrap_or_else(PoisonError::into_inner);
    for srq in all.values() {
        // Destroying it takes the cold part first.
        let cold = srq.cold();
        if !cold.destroyed && cold.home == 1 && cold.twin.is_some_and(|known| core::ptr::eq(known.0, twin)) {
            asynchronous::limit_reached(srq.srq.0);
        }
    }
}

fn limit_of(srq: Raw<ibv_srq>) -> u32 {
    let mut attr = ibv_srq_attr { max_wr: 0, max_sge: 0, srq_limit: 0 };
    // SAFETY: the SRQ is live: its shadow's cold part is locked, or it is this library's own.
    let errno = unsafe { real::ibv_query_srq(srq.0, &mut attr) };
    if errno == 0 {
        attr.srq_limit
    } else {
        0
    }
}

fn set_limit(srq: Raw<ibv_srq>, limit: u32) {
    let mut attr = ibv_srq_attr { max_wr: 0, max_sge: 0, srq_limit: limit };
    // SAFETY: as in `limit_of`.
    let errno = unsafe { real::ibv_modify_srq(srq.0, &mut attr, IBV_SRQ_LIMIT as c_int) };
    if errno != 0 {
        log::debug!("the limit of an SRQ could not be set (errno {errno})");
    }
}

/// A queue pair that is recorded receives through it.
pub fn join(srq: &SrqShadow, life: u32) {
    srq.members().push(life);
}

/// It does not any more.
pub fn leave(srq: &SrqShadow, life: u32) {
    srq.members().retain(|member| *member != life);
}

/// A queue pair that cannot be protected receives through it: nor can the others be.
pub fn note_stranger(srq: *mut ibv_srq, qpn: u32, why: &str) {
    if let Some(srq) = SRQS.get(srq) {
        unprotect(srq, format!("it shares its receives with QP 0x{qpn:06x}, which is not protected: {why}"));
    }
}

/// None of its queue pairs is protected from now on.
pub fn unprotect(srq: &SrqShadow, reason: String) {
    if srq.unprotected.set(reason.clone()).is_ok() {
        let members = srq.members().clone();
        for qp in members.into_iter().filter_map(lives::arc) {
            tell::unprotect(&qp, reason.clone());
        }
    }
}

/// Is all of this memory on the standby?
#[cold]
pub fn check_twins(srq: &SrqShadow, keys: &mut KeyCache, mut sges: SgeList<'_>) {
    if sges.any(|sge| sge.length != 0 && keys.twin_of(srq.device, sge.lkey).is_none()) {
        unprotect(srq, crate::cold::mr::REFUSED.to_owned());
    }
}

/// All slots are in use although the provider's queue may not be full: account for completions that nobody polled.
#[cold]
pub fn make_room(srq: &SrqShadow) {
    let members = srq.members().clone();
    for qp in members.into_iter().filter_map(lives::arc) {
        poll::sweep(&qp.recv_cq);
    }
}

/// The SRQ on the standby; made at first need.
pub fn twin(srq: &SrqShadow, standby: &rail::Rail) -> Result<Raw<ibv_srq>, String> {
    let mut cold = srq.cold();
    if let Some(twin) = cold.twin {
        return Ok(twin);
    }
    if cold.destroyed {
        return Err("its SRQ was destroyed".to_owned());
    }
    let pd = srq.pd.standby.as_ref().map_err(Clone::clone)?.pd;
    let wanted = srq.slots.lock().capacity();
    let mut init = ibv_srq_init_attr {
        srq_context: core::ptr::null_mut(),
        attr: ibv_srq_attr { max_wr: wanted, max_sge: srq.max_sge, srq_limit: 0 },
    };
    // SAFETY: the PD is this library's own and live; `init` is writable.
    let twin = unsafe { real::ibv_create_srq(pd.0, &mut init) };
    if twin.is_null() {
        let error = std::io::Error::last_os_error();
        return Err(format!("{} refused an SRQ of {wanted} receives like its own ({error})", standby.name));
    }
    if init.attr.max_wr < wanted || init.attr.max_sge < srq.max_sge {
        reaper::destroy_srq(Raw(twin));
        return Err(format!(
            "{} grants an SRQ of {} receives where {wanted} are needed",
            standby.name, init.attr.max_wr
        ));
    }
    cold.twin = Some(Raw(twin));
    Ok(Raw(twin))
}

/// Posts what has not completed on `path`, in order, once in that round, also where it lies there already: a receive that a message had taken in part is in
/// no queue. Every queue pair of the SRQ is fenced, or was connected for that path anew. Goes on where it stopped.
pub fn settle(srq: &SrqShadow, (path, round): (u8, Round), gid: Option<&ibv_gid_entry>) -> Result<usize, Errno> {
    let mut cold = srq.cold();
    if cold.home == path {
        match &cold.moving {
            None if cold.round == round => return Ok(0),
            Some((to, _)) if *to == path => {}
            _ => mark_left(&mut cold, path),
        }
    }
    if let Some((from, _)) = object_of(srq, &cold, cold.home) {
        cold.limit = cold.limit.max(limit_of(from));
    }
    if cold.left.get(usize::from(path)).copied().unwrap_or(false) {
        empty(srq, &mut cold, path, gid)?;
    }
    let (object, post) = object_of(srq, &cold, path).ok_or(Errno(libc::ENODEV))?;
    let mut poster = srq.poster.lock();
    let mut left = match cold.moving.take() {
        Some((to, left)) if to == path => left,
        other => {
            // A move that went no further has left some there.
            if let Some((to, _)) = other {
                mark_left(&mut cold, to);
            }
            poster.target = object;
            poster.post = post;
            poster.translate = path != 0;
            poster.generation += 1;
            let mut slots = srq.slots.lock();
            let left = slots.outstanding();
            left.iter().for_each(|at| slots.renew(*at, poster.generation));
            // What is taken off the end is the oldest.
            left.into_iter().rev().collect()
        }
    };
    let total = left.len();
    while let Some(at) = left.last().copied() {
        let errno = give(srq, &mut poster, at);
        if errno != 0 {
            cold.moving = Some((path, left));
            return Err(Errno(errno));
        }
        left.pop();
    }
    drop(poster);
    let limit = core::mem::take(&mut cold.limit);
    let from = core::mem::replace(&mut cold.home, path);
    cold.round = round;
    if from != path {
        if let Some((old, _)) = object_of(srq, &cold, from) {
            set_limit(old, 0);
        }
        mark_left(&mut cold, from);
    }
    if limit != 0 {
        set_limit(object, limit);
    }
    log::debug!("SRQ {}: {total} receives posted on path {path}", srq.life);
    Ok(total)
}

/// What lies in the object of that path is posted elsewhere, or anew.
fn mark_left(cold: &mut SrqCold, path: u8) {
    if let Some(left) = cold.left.get_mut(usize::from(path)) {
        *left = true;
    }
}

fn object_of(srq: &SrqShadow, cold: &SrqCold, path: u8) -> Option<(Raw<ibv_srq>, post_srq_recv_fn)> {
    if path == 0 {
        let rail = rail::by_id(srq.device)?;
        return Some((srq.srq, rail.ops.post_srq_recv?));
    }
    let rail = rail::by_id(srq.pd.standby.as_ref().ok()?.device)?;
    Some((cold.twin?, rail.ops.post_srq_recv?))
}

/// Takes out of the object of a path what is posted on another by now.
fn empty(srq: &SrqShadow, cold: &mut SrqCold, path: u8, gid: Option<&ibv_gid_entry>) -> Result<(), Errno> {
    let (object, _) = object_of(srq, cold, path).ok_or(Errno(libc::ENODEV))?;
    let device = if path == 0 { Some(srq.device) } else { srq.pd.standby.as_ref().ok().map(|standby| standby.device) };
    let rail = device.and_then(rail::by_id).ok_or(Errno(libc::ENODEV))?;
    let gid = gid.ok_or(Errno(libc::ENODEV))?;
    set_limit(object, 0);
    let taken = withdraw::go_on(&mut cold.withdrawal, object, &rail, gid)?;
    log::debug!("SRQ {}: {taken} receives taken back from {}", srq.life, rail.name);
    if let Some(left) = cold.left.get_mut(usize::from(path)) {
        *left = false;
    }
    Ok(())
}

/// A queue pair is about to be connected on the primary. If the receives have left that path, what still lies there must not be taken.
pub fn make_safe(srq: &SrqShadow, gid: Option<&ibv_gid_entry>) -> Result<(), Errno> {
    let mut cold = srq.cold();
    if cold.home == 0 || !cold.left.first().copied().unwrap_or(false) {
        return Ok(());
    }
    let until = std::time::Instant::now() + std::time::Duration::from_millis(500);
    loop {
        match empty(srq, &mut cold, 0, gid) {
            Err(Errno(libc::EAGAIN)) if std::time::Instant::now() < until => std::thread::yield_now(),
            done => return done,
        }
    }
}
