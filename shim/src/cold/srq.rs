//! Shared receive queues: which are recorded, what the application asks of them, and their twins. `settle` moves the receives.

use crate::cold::bell::Bell;
use crate::cold::settle::Moving;
use crate::cold::{asynchronous, device, pd, rail, reaper, tell, withdraw};
use crate::hot::keys::KeyCache;
use crate::hot::poll;
use crate::hot::srq::{Slots, SrqPoster, SrqShadow};
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
use shift_proto::id::{Site, MAX_SITES, MAX_STANDBYS};
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
    /// By slot: the SRQ on that standby.
    pub twins: [Option<Raw<ibv_srq>>; MAX_STANDBYS],
    /// Where all receives are, or were before the move that is under way.
    pub home: Site,
    /// By site: the object there may still hold receives that are posted elsewhere by now.
    pub left: [bool; MAX_SITES],
    /// By site: emptying such an object. One that stops half-way goes on there and nowhere else.
    pub withdrawals: [Option<withdraw::Withdrawal>; MAX_SITES],
    /// The last move that came to its end.
    pub round: Round,
    /// The move under way.
    pub moving: Option<Moving>,
    /// The limit of the object that the receives leave, for the one that they go to; half-way it is the one that the application sees and sets.
    pub limit: u32,
    /// Tells of a limit that was reached on the standby.
    pub bell: Option<Bell>,
    destroyed: bool,
}

impl SrqCold {
    /// The object on the standby of that site; the first one is the application's.
    pub fn twin(&self, site: Site) -> Option<Raw<ibv_srq>> {
        self.twins.get(usize::from(site.slot()?)).copied().flatten()
    }

    /// The object there may still hold receives that are posted elsewhere by now.
    pub fn has_left(&self, site: Site) -> bool {
        site.of(&self.left).copied().unwrap_or(false)
    }

    /// The receives are leaving their place, or being taken out of it: what an object there would say of a limit is not of what the application has posted.
    pub fn is_half_way(&self) -> bool {
        self.moving.is_some() || self.has_left(self.home)
    }

    /// A move begins, or turns aside: what the object that the receives leave has of a limit. It has none where that fired, or was set aside before.
    pub fn set_aside(&mut self, limit: u32) {
        if limit != 0 && !self.is_half_way() {
            self.limit = limit;
        }
    }

    /// Receives are there, or on their way there.
    fn is_in_use(&self, site: Site) -> bool {
        self.home == site || self.moving.as_ref().is_some_and(|moving| moving.is_to(site))
    }
}

impl SrqShadow {
    /// The cold part. As for a QP, poison is ignored.
    pub fn cold(&self) -> MutexGuard<'_, SrqCold> {
        self.cold.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Who receives through it. Innermost: nothing is locked while it is held.
    pub fn members(&self) -> MutexGuard<'_, Vec<Arc<QpShadow>>> {
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
        if lack_of(&domain).is_none() {
            record(srq, domain, &granted, post);
        }
    }
    srq
}

/// Why no queue pair of that PD can be protected if it shares its receives.
pub fn lack_of(domain: &PdShadow) -> Option<String> {
    if let Err(why) = &domain.standbys {
        return Some(why.clone());
    }
    let of = |device: u16| rail::by_id(device).and_then(|rail| lack_on(&rail));
    of(domain.device).or_else(|| {
        let lacks: Vec<_> = domain.present().iter().map(|standby| of(standby.device)).collect();
        lacks.iter().all(Option::is_some).then(|| lacks.into_iter().flatten().next()).flatten()
    })
}

/// Why that device is none for queue pairs that share their receives: a count of those that came back says nothing of an SRQ, from which none comes back.
pub fn lack_on(rail: &rail::Rail) -> Option<String> {
    let is_blind = !rail.psn_is_proof;
    is_blind.then(|| format!("its receives are shared, and {} cannot say how many of them it took", rail.name))
}

fn record(srq: *mut ibv_srq, domain: Arc<PdShadow>, granted: &ibv_srq_attr, post: post_srq_recv_fn) {
    let life = lives::next();
    lives::reserve(life, true);
    let poster = SrqPoster {
        target: Raw(srq),
        post,
        translate: false,
        generation: 0,
        held: false,
        room: granted.max_wr,
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
        has_strangers: crate::atomics::AtomicBool::new(false),
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
    // Found no more before the call: another thread may be given the same address as soon as it returns.
    let shadow = SRQS.remove(srq);
    if let Some(shadow) = &shadow {
        let mut cold = shadow.cold();
        // The application's object cannot go while a queue pair of this library's own is attached to it.
        (cold.withdrawals, cold.bell, cold.destroyed) = (Default::default(), None, true);
        asynchronous::forget_srq(srq);
    }
    // SAFETY: passed on.
    let errno = unsafe { real::ibv_destroy_srq(srq) };
    let Some(shadow) = shadow else { return errno };
    if errno != 0 {
        shadow.cold().destroyed = false;
        SRQS.insert(srq, shadow);
        return errno;
    }
    BY_LIFE.write().unwrap_or_else(PoisonError::into_inner).remove(&shadow.life);
    lives::reserve(shadow.life, false);
    let twins = core::mem::take(&mut shadow.cold().twins);
    twins.into_iter().flatten().for_each(reaper::destroy_srq);
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
    let mut cold = shadow.cold();
    let limit = IBV_SRQ_LIMIT as c_int;
    // SAFETY: the application's structure is readable.
    let elsewhere =
        (mask & limit != 0).then(|| limit_elsewhere(shadow, &mut cold, unsafe { (*attr).srq_limit })).flatten();
    if elsewhere.is_some_and(|errno| errno != 0 || mask & !limit == 0) {
        return elsewhere.unwrap_or(0);
    }
    let rest = if elsewhere.is_none() { mask } else { mask & !limit };
    // SAFETY: passed on.
    let errno = unsafe { real::ibv_modify_srq(srq, attr, rest) };
    if errno == 0 && mask as u32 & IBV_SRQ_MAX_WR != 0 {
        // SAFETY: the application's structure is readable.
        let room = unsafe { (*attr).max_wr };
        shadow.poster.lock().room = room;
        let entries = with_slack(room);
        shadow.slots.lock().grow(entries);
        let grow = |twin: Raw<ibv_srq>| {
            let mut attr = ibv_srq_attr { max_wr: entries, max_sge: 0, srq_limit: 0 };
            // SAFETY: the twin is live under the cold lock.
            unsafe { real::ibv_modify_srq(twin.0, &mut attr, IBV_SRQ_MAX_WR as c_int) }
        };
        let refused = cold.twins.into_iter().flatten().map(grow).find(|refused| *refused != 0);
        drop(cold);
        if let Some(refused) = refused {
            unprotect(shadow, format!("its SRQ cannot be grown on a standby (errno {refused})"));
        }
    }
    errno
}

/// Sets the limit where the receives are, if they are not in the application's object and at rest there. Returns errno.
pub fn limit_elsewhere(srq: &SrqShadow, cold: &mut SrqCold, limit: u32) -> Option<c_int> {
    if cold.is_half_way() {
        if limit > srq.poster.lock().room {
            return Some(libc::EINVAL);
        }
        cold.limit = limit;
        return Some(0);
    }
    // What a move that was given up has kept of an earlier one is over.
    cold.limit = 0;
    if cold.home == Site::PRIMARY {
        return None;
    }
    let Some(twin) = cold.twin(cold.home) else { return Some(libc::EINVAL) };
    let mut attr = ibv_srq_attr { max_wr: 0, max_sge: 0, srq_limit: limit };
    // SAFETY: the twin is live under the cold lock.
    Some(unsafe { real::ibv_modify_srq(twin.0, &mut attr, IBV_SRQ_LIMIT as c_int) })
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
    let elsewhere = if cold.is_half_way() { Some(cold.limit) } else { cold.twin(cold.home).map(limit_of) };
    if let Some(limit) = elsewhere {
        // SAFETY: the call above filled the structure.
        unsafe { (*attr).srq_limit = limit };
    }
    0
}

/// An event of this library's own context: the receives on a standby went below the limit that the application set.
pub fn twin_reached_its_limit(twin: *mut ibv_srq) {
    // Whoever has a cold part may wait for this table.
    for srq in all() {
        // Destroying it takes the cold part first.
        let mut cold = srq.cold();
        if !cold.destroyed && cold.twin(cold.home).is_some_and(|known| core::ptr::eq(known.0, twin)) {
            asynchronous::limit_reached(srq.srq.0);
            if cold.bell.is_none() {
                cold.bell = Bell::new(srq.srq);
            }
            if let (Some(bell), Some(rail)) = (&cold.bell, rail::by_id(srq.device)) {
                bell.ring(rail.port);
            }
        }
    }
}

fn attr_of(srq: Raw<ibv_srq>) -> Option<ibv_srq_attr> {
    let mut attr = ibv_srq_attr { max_wr: 0, max_sge: 0, srq_limit: 0 };
    // SAFETY: the SRQ is live: its shadow's cold part is locked, or it is this library's own.
    let errno = unsafe { real::ibv_query_srq(srq.0, &mut attr) };
    (errno == 0).then_some(attr)
}

/// The limit of an object, if it has not fired.
pub fn limit_of(srq: Raw<ibv_srq>) -> u32 {
    attr_of(srq).map_or(0, |attr| attr.srq_limit)
}

/// Room in that twin for all that may be outstanding by now.
pub fn grow_twin(srq: &SrqShadow, cold: &SrqCold, site: Site) -> Result<(), Errno> {
    let Some(twin) = cold.twin(site) else { return Ok(()) };
    let wanted = srq.slots.lock().capacity();
    if attr_of(twin).is_none_or(|attr| attr.max_wr >= wanted) {
        return Ok(());
    }
    let mut attr = ibv_srq_attr { max_wr: wanted, max_sge: 0, srq_limit: 0 };
    // SAFETY: the twin is this library's own.
    match unsafe { real::ibv_modify_srq(twin.0, &mut attr, IBV_SRQ_MAX_WR as c_int) } {
        0 => Ok(()),
        errno => Err(Errno(errno)),
    }
}

/// Sets it.
pub fn set_limit(srq: Raw<ibv_srq>, limit: u32) {
    let mut attr = ibv_srq_attr { max_wr: 0, max_sge: 0, srq_limit: limit };
    // SAFETY: as in `limit_of`.
    let errno = unsafe { real::ibv_modify_srq(srq.0, &mut attr, IBV_SRQ_LIMIT as c_int) };
    if errno != 0 {
        log::debug!("the limit of an SRQ could not be set (errno {errno})");
    }
}

/// A queue pair that is recorded receives through it.
pub fn join(srq: &SrqShadow, qp: &Arc<QpShadow>) {
    srq.members().push(Arc::clone(qp));
}

/// Its object there is gone, if one is named. Once the application has ended it it is remembered as long as another may take receives.
pub fn part(qp: &QpShadow, gone: Option<Site>) {
    let Some(srq) = &qp.srq else { return };
    gone.into_iter().for_each(|site| qp.takes_no_more(site));
    let is_over = !qp.cold().alive;
    if is_over && qp.takes.load(Ordering::Acquire) == 0 {
        srq.members().retain(|member| member.life != qp.life);
    }
}

/// A queue pair that cannot be protected receives through it: nor can the others be.
pub fn note_stranger(srq: *mut ibv_srq, qpn: u32, why: &str) {
    if let Some(srq) = SRQS.get(srq) {
        srq.has_strangers.store(true, Ordering::Release);
        unprotect(srq, format!("it shares its receives with QP 0x{qpn:06x}, which is not protected: {why}"));
    }
}

/// None of its queue pairs is protected from now on.
pub fn unprotect(srq: &SrqShadow, reason: String) {
    if srq.unprotected.set(reason.clone()).is_ok() {
        let members = srq.members().clone();
        members.iter().for_each(|qp| tell::unprotect(qp, reason.clone()));
    }
}

/// Is all of this memory on the standby?
#[cold]
pub fn check_twins(srq: &SrqShadow, keys: &mut KeyCache, mut sges: SgeList<'_>) {
    if sges.any(|sge| sge.length != 0 && !keys.has_twin(srq.device, sge.lkey)) {
        unprotect(srq, crate::cold::mr::REFUSED.to_owned());
    }
}

/// Takes the completions that nobody polled: what they are of is in use no more.
#[cold]
pub fn account(srq: &SrqShadow) {
    let members = srq.members().clone();
    for qp in &members {
        poll::sweep(&qp.recv_cq);
    }
}

/// All slots are in use although the provider's queue may not be full. Completions that nobody polled are accounted for; but receives of queue pairs that are not
/// recorded complete in CQs that are not looked at, and one that a message had taken in part is lost with its queue pair. So the provider has the last word.
#[cold]
pub fn make_room(srq: &SrqShadow) {
    account(srq);
    let mut slots = srq.slots.lock();
    if slots.is_full() {
        let entries = slots.capacity();
        slots.grow(with_slack(entries));
    }
}

/// The SRQ on the standby in that slot; made at first need.
pub fn twin(srq: &SrqShadow, standby: &rail::Rail, slot: u8) -> Result<Raw<ibv_srq>, String> {
    let mut cold = srq.cold();
    if let Some(twin) = cold.twin(Site::of_slot(slot)) {
        return Ok(twin);
    }
    if cold.destroyed {
        return Err("its SRQ was destroyed".to_owned());
    }
    let pd = srq.pd.twin(slot).ok_or_else(|| format!("{} is no standby any more", standby.name))?.pd;
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
    match cold.twins.get_mut(usize::from(slot)) {
        Some(place) => *place = Some(Raw(twin)),
        None => return Err(format!("{} has no place among the standbys", standby.name)),
    }
    Ok(Raw(twin))
}

fn all() -> Vec<Arc<SrqShadow>> {
    BY_LIFE.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
}

/// Whether receives are on that device, or on their way there: then nothing of it can be let go.
pub fn is_on(device: u16) -> bool {
    all().iter().any(|srq| {
        let there = srq.pd.present().into_iter().find(|twin| twin.device == device);
        there.is_some_and(|twin| srq.cold().is_in_use(Site::of_slot(twin.slot)))
    })
}

/// Takes out the twins on that device, which is gone; the caller destroys them, after what is attached to them. Receives that lie there nobody takes any more.
pub fn part_twins(device: u16) -> Vec<Raw<ibv_srq>> {
    let part = |srq: &Arc<SrqShadow>| {
        let slot = srq.pd.present().into_iter().find(|twin| twin.device == device)?.slot;
        let mut cold = srq.cold();
        let site = Site::of_slot(slot);
        if cold.is_in_use(site) {
            return None;
        }
        // Its queue pairs are on the device that is gone, and attached to what is there.
        cold.withdrawals.get_mut(usize::from(site.0)).into_iter().for_each(|under_way| *under_way = None);
        cold.left.get_mut(usize::from(site.0)).into_iter().for_each(|left| *left = false);
        cold.twins.get_mut(usize::from(slot))?.take()
    };
    all().iter().filter_map(part).collect()
}
