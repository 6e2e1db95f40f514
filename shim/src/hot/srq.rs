//! Receives that go to a shared receive queue (SRQ): recorded and tagged at post, and matched when whichever queue pair took one completes it.
//!
//! Owns: the slots of one SRQ. Its receives end in any order and on any queue pair, so they lie in no ring: a slot is free or in use, and keeps the number
//! of its post so that what is left can be posted again in order. A tag names slot and use (`Tag`, of the SRQ's life, with its generation for the epoch).
//!
//! The CQs of such queue pairs are polled under their lock (`SHARED`), so that nobody has a completion in hand that the fence does not know of: of an SRQ
//! nobody can tell from the outside how many there have to be. Order of locks: poster, then the CQ's, then slots.

use super::keys::KeyCache;
use super::poll::{judge, Sink, Verdict};
use super::tag::{Queue, Tag};
use crate::atomics::{AtomicBool, Ordering::Relaxed};
use crate::cold::{srq as cold, tell};
use crate::lives;
use crate::shadow::*;
use crate::spin::SpinCell;
use core::ffi::c_int;
use shift_abi::*;
use std::sync::{Arc, Mutex, OnceLock};

/// Bits of a tag that name the slot: more than any device's SRQ has (mlx5: 32768). The rest counts its uses.
const SLOT_BITS: u32 = 20;

/// An SRQ of the application.
pub struct SrqShadow {
    /// Its number in tags, and the name of its group.
    pub life: u32,
    /// The application's object.
    pub srq: Raw<ibv_srq>,
    /// Its device.
    pub device: u16,
    /// Its PD.
    pub pd: Arc<PdShadow>,
    /// Elements of a receive, as granted.
    pub max_sge: u32,
    /// The posters' side.
    pub poster: SpinCell<SrqPoster>,
    /// What was posted and has not completed.
    pub slots: SpinCell<Slots>,
    /// The queue pairs that receive through it, and those that were destroyed as long as they may.
    pub members: Mutex<Vec<Arc<QpShadow>>>,
    /// What only control verbs and the agent touch.
    pub cold: Mutex<cold::SrqCold>,
    /// Why its queue pairs are not protected, said once.
    pub unprotected: OnceLock<String>,
    /// There is, or was, a queue pair that is not recorded: nobody knows when it takes what.
    pub has_strangers: AtomicBool,
}

/// What the one thread that posts to an SRQ owns.
pub struct SrqPoster {
    /// The object that receives go to.
    pub target: Raw<ibv_srq>,
    /// Its provider's function.
    pub post: post_srq_recv_fn,
    /// Keys have to be translated.
    pub translate: bool,
    /// Counts the moves of the group.
    pub generation: u32,
    /// A move has stopped half-way: receives are recorded only, so that none overtakes an earlier one.
    pub held: bool,
    /// How many the application's own object takes: all that there are have to go back to it.
    pub room: u32,
    /// Translations that were needed lately.
    pub keys: KeyCache,
    /// Room for the elements of one receive.
    pub sges: Vec<ibv_sge>,
}

// SAFETY: as for `Poster`: the raw pointers inside are handles that are only passed on.
unsafe impl Send for SrqPoster {}

/// The receives of an SRQ that have not completed.
pub struct Slots {
    slots: Vec<Slot>,
    sges: Vec<ibv_sge>,
    max_sge: usize,
    free: Vec<u32>,
    next_seq: u64,
}

#[derive(Clone, Copy, Default)]
struct Slot {
    wr_id: u64,
    /// Number of its post, from 1; 0: free.
    seq: u64,
    /// The generation for which it was posted last.
    generation: u32,
    uses: u16,
    sges: u16,
}

// SAFETY: elements are plain data.
unsafe impl Send for Slots {}

impl Slots {
    /// Room for that many receives.
    pub fn new(entries: u32, max_sge: u32) -> Self {
        let max_sge = (max_sge as usize).max(1);
        let mut slots = Self { slots: Vec::new(), sges: Vec::new(), max_sge, free: Vec::new(), next_seq: 1 };
        slots.grow(entries);
        slots
    }

    /// At least room for that many; what is in use stays.
    pub fn grow(&mut self, entries: u32) {
        let has = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        let entries = entries.min(1 << SLOT_BITS);
        if entries > has {
            self.slots.resize(entries as usize, Slot::default());
            self.sges.resize(entries as usize * self.max_sge, ibv_sge::zeroed());
            self.free.reserve_exact(entries as usize);
            self.free.extend((has..entries).rev());
        }
    }

    /// There is no room for one more.
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Slots that are in use.
    fn taken(&self) -> u32 {
        u32::try_from(self.slots.len() - self.free.len()).unwrap_or(u32::MAX)
    }

    /// Slots in all.
    pub fn capacity(&self) -> u32 {
        u32::try_from(self.slots.len()).unwrap_or(u32::MAX)
    }

    /// Records a receive. `None`: there is no room.
    fn put(&mut self, wr_id: u64, sges: SgeList<'_>, generation: u32) -> Option<u32> {
        let at = self.free.pop()?;
        let slot = self.slots.get_mut(at as usize)?;
        let mut count = 0_u16;
        let room = self.sges.get_mut(at as usize * self.max_sge..)?;
        for (place, sge) in room.iter_mut().zip(sges) {
            *place = sge;
            count += 1;
        }
        let uses = slot.uses.wrapping_add(1);
        *slot = Slot { wr_id, seq: self.next_seq, generation, uses, sges: count };
        self.next_seq += 1;
        Some(at)
    }

    /// The elements of a receive.
    fn elements(&self, at: u32) -> &[ibv_sge] {
        let count = self.slots.get(at as usize).map_or(0, |slot| usize::from(slot.sges));
        let first = at as usize * self.max_sge;
        self.sges.get(first..first + count).unwrap_or(&[])
    }

    /// What its tag says in the place of a sequence number.
    fn mark(&self, at: u32) -> u64 {
        let uses = self.slots.get(at as usize).map_or(0, |slot| slot.uses);
        u64::from(at) | u64::from(uses) << SLOT_BITS
    }

    /// The slot that a tag means and the application's `wr_id`, if it is in use and was posted for that generation last.
    fn find(&self, tag: Tag) -> Option<(u32, u64)> {
        let low = tag.0 as u32;
        let at = low & ((1 << SLOT_BITS) - 1);
        let slot = self.slots.get(at as usize).filter(|slot| slot.seq != 0)?;
        let same_use = u32::from(slot.uses) & (u32::MAX >> SLOT_BITS) == low >> SLOT_BITS;
        (same_use && tag.is_of_epoch(slot.generation)).then_some((at, slot.wr_id))
    }

    /// It has completed, or was refused.
    fn release(&mut self, at: u32) {
        if let Some(slot) = self.slots.get_mut(at as usize).filter(|slot| slot.seq != 0) {
            slot.seq = 0;
            self.free.push(at);
        }
    }

    /// Gives up a receive that completed on a queue pair that is no more; the application's `wr_id`.
    pub fn complete(&mut self, tag: Tag) -> Option<u64> {
        let (at, wr_id) = self.find(tag)?;
        self.release(at);
        Some(wr_id)
    }

    /// What has not completed, with the numbers of their posts and from that number on, in the order in which it was posted.
    pub fn outstanding(&self, from: u64) -> Vec<(u64, u32)> {
        let is_due = |slot: &Slot| slot.seq != 0 && slot.seq >= from;
        let mut left: Vec<(u64, u32)> =
            (0_u32..).zip(&self.slots).filter(|(_, slot)| is_due(slot)).map(|(at, slot)| (slot.seq, at)).collect();
        left.sort_unstable();
        left
    }

    /// All that has not completed is posted again for that generation: what is said of an earlier posting is not of this one.
    pub fn renew(&mut self, generation: u32) {
        for slot in self.slots.iter_mut().filter(|slot| slot.seq != 0) {
            slot.generation = generation;
        }
    }
}

/// `ibv_post_srq_recv` on a recorded SRQ.
///
/// # Safety
/// `wr` and `bad` are what the application gave to `ibv_post_srq_recv`.
pub unsafe fn post(srq: &SrqShadow, wr: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    let mut poster = srq.poster.lock();
    // SAFETY: passed on from the caller.
    let chain = unsafe { RecvChain::new(wr, usize::MAX) };
    for wr in chain {
        let errno = post_one(srq, &mut poster, wr.raw());
        if errno != 0 {
            if !bad.is_null() {
                // SAFETY: the caller vouches for `bad`.
                unsafe { *bad = wr.as_ptr() };
            }
            return errno;
        }
    }
    0
}

#[inline]
fn post_one(srq: &SrqShadow, poster: &mut SrqPoster, wr: &ibv_recv_wr) -> c_int {
    if !u32::try_from(wr.num_sge).is_ok_and(|sges| sges <= srq.max_sge) {
        return libc::EINVAL;
    }
    if (poster.translate || poster.held) && !has_room(srq, poster.room) {
        return libc::ENOMEM;
    }
    let put = || {
        // SAFETY: the application's request is valid as long as its post runs.
        let sges = unsafe { SgeList::new(wr.sg_list, wr.num_sge) };
        srq.slots.lock().put(wr.wr_id, sges, poster.generation)
    };
    let at = put().or_else(|| {
        cold::make_room(srq);
        put()
    });
    let Some(at) = at else { return libc::ENOMEM };
    if srq.pd.lacks_twins.load(Relaxed) {
        // SAFETY: as above.
        cold::check_twins(srq, &mut poster.keys, unsafe { SgeList::new(wr.sg_list, wr.num_sge) });
    }
    let errno = if poster.held { 0 } else { give(srq, poster, at) };
    if errno != 0 {
        srq.slots.lock().release(at);
    }
    errno
}

/// Whether the application's own object would take one more. Asked where its provider is not: a twin has more room, and what is held no provider sees.
#[cold]
fn has_room(srq: &SrqShadow, room: u32) -> bool {
    let is_below = || srq.slots.lock().taken() < room;
    is_below() || {
        cold::account(srq);
        is_below()
    }
}

/// Posts a recorded receive on the poster's target. Returns errno.
pub fn give(srq: &SrqShadow, poster: &mut SrqPoster, at: u32) -> c_int {
    poster.sges.clear();
    let (wr_id, mark) = {
        let slots = srq.slots.lock();
        // The room was reserved when the SRQ was made.
        poster.sges.extend_from_slice(slots.elements(at));
        (Tag::new(srq.life, Queue::Receive, poster.generation, slots.mark(at)).0, at)
    };
    if poster.translate {
        // An element without a byte has no key that is checked, and is left out.
        poster.sges.retain(|sge| sge.length != 0);
        for sge in &mut poster.sges {
            let Some(twin) = poster.keys.twin_of(srq.device, sge.lkey) else {
                log_refusal(srq, mark);
                return libc::EINVAL;
            };
            sge.lkey = twin;
        }
    }
    let mut wr = ibv_recv_wr {
        wr_id,
        next: core::ptr::null_mut(),
        sg_list: poster.sges.as_mut_ptr(),
        num_sge: poster.sges.len() as c_int,
    };
    let mut bad = core::ptr::null_mut();
    // SAFETY: the target is the live SRQ of the group's path; the request and its elements live across the call.
    unsafe { (poster.post)(poster.target.0, &mut wr, &mut bad) }
}

#[cold]
fn log_refusal(srq: &SrqShadow, at: u32) {
    log::debug!("SRQ {}: receive {at} names memory that the standby does not have", srq.life);
}

/// Accounts for a completion that may be of an SRQ's receive; `false`: it is not.
pub(super) fn received(inner: &CqInner, raw: &ibv_wc, tag: Tag, source: Source, sink: &mut Sink<'_>) -> bool {
    if tag.queue() != Queue::Receive {
        return false;
    }
    // The CQ's lock is held, and `lives::end` needs it: the reference is good until it is released.
    let life = inner.receivers.get(&(source, raw.qp_num));
    let Some(qp) = life.and_then(|life| lives::get(*life, None)) else {
        return orphaned(raw, tag, source, sink);
    };
    let Some(srq) = qp.srq.as_ref().filter(|srq| srq.life == tag.life()) else { return false };
    if raw.status == IBV_WC_SUCCESS {
        let wr_id = srq.slots.lock().complete(tag);
        match wr_id {
            Some(wr_id) => {
                qp.rq.received.store(qp.rq.received.load(Relaxed) + 1, Relaxed);
                sink.put(ibv_wc { wr_id, qp_num: qp.qpn, ..*raw }, u32::MAX);
            }
            None => tell::lost(qp),
        }
        return true;
    }
    // What is said of an earlier posting is nothing new. What a masked fault cut off has not completed: its slot stays in use, and is found when the group moves.
    let is_known = srq.slots.lock().find(tag).is_some();
    if is_known && matches!(judge(qp, raw.status, qp.rq.epoch.load(Relaxed)), Verdict::Pass) {
        if let Some(wr_id) = srq.slots.lock().complete(tag) {
            // Whatever becomes of the queue pair, the buffer is the application's again.
            sink.put(ibv_wc { wr_id, qp_num: qp.qpn, ..*raw }, u32::MAX);
        }
    }
    true
}

/// Its queue pair was destroyed, or is not recorded: the application gets its buffer back, as without this library.
#[cold]
fn orphaned(raw: &ibv_wc, tag: Tag, source: Source, sink: &mut Sink<'_>) -> bool {
    let Some(srq) = cold::by_life(tag.life()) else { return false };
    let wr_id = srq.slots.lock().complete(tag);
    if let (Some(wr_id), Source::Own) = (wr_id, source) {
        sink.put(ibv_wc { wr_id, ..*raw }, u32::MAX);
    }
    wr_id.is_some()
}

/// A completion of a queue pair that is not recorded, with the application's `wr_id` if it is of a recorded SRQ's receive.
#[cold]
pub fn unmask(raw: ibv_wc) -> ibv_wc {
    let tag = Tag(raw.wr_id);
    // Of a success the opcode is valid, and says whether it is a receive's.
    let may_be = tag.queue() == Queue::Receive && (raw.status != IBV_WC_SUCCESS || raw.opcode.0 >= IBV_WC_RECV.0);
    let srq = if may_be { cold::by_life(tag.life()) } else { None };
    match srq.and_then(|srq| srq.slots.lock().complete(tag)) {
        Some(wr_id) => ibv_wc { wr_id, ..raw },
        None => raw,
    }
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, reason = "a test that is wrong about its own array should panic")]
mod tests {
    use super::*;

    fn tag(slots: &Slots, at: u32, generation: u32) -> Tag {
        Tag::new(77, Queue::Receive, generation, slots.mark(at))
    }

    fn put(slots: &mut Slots, wr_id: u64, generation: u32) -> Option<u32> {
        // SAFETY: an empty list is not read.
        slots.put(wr_id, unsafe { SgeList::new(core::ptr::null_mut(), 0) }, generation)
    }

    #[test]
    fn receives_end_in_any_order_and_what_is_left_keeps_the_order_of_its_posts() {
        let mut slots = Slots::new(4, 1);
        let posted: Vec<u32> = (0..4).map(|wr_id| put(&mut slots, wr_id, 0).unwrap_or(99)).collect();
        assert_eq!(put(&mut slots, 4, 0), None, "it is full");
        let third = tag(&slots, posted[2], 0);
        assert_eq!(slots.complete(third), Some(2));
        assert_eq!(slots.complete(third), None, "once");
        let fifth = put(&mut slots, 5, 0).unwrap_or(99);
        assert_eq!(slots.outstanding(0), [(1, posted[0]), (2, posted[1]), (4, posted[3]), (5, fifth)]);
        assert_eq!(slots.outstanding(3), [(4, posted[3]), (5, fifth)], "from where it stopped");
        assert_eq!(slots.complete(third), None, "the tag of an earlier use of the slot");
    }

    #[test]
    fn what_is_said_of_an_earlier_posting_is_not_of_the_new_one() {
        let mut slots = Slots::new(4, 1);
        let at = put(&mut slots, 8, 0).unwrap_or(99);
        let old = tag(&slots, at, 0);
        slots.renew(1);
        assert_eq!(slots.complete(old), None);
        let new = tag(&slots, at, 1);
        assert_eq!(slots.complete(new), Some(8));
    }

    #[test]
    fn a_larger_srq_keeps_what_it_has() {
        let mut slots = Slots::new(1, 1);
        let at = put(&mut slots, 1, 0).unwrap_or(99);
        slots.grow(3);
        assert_eq!(slots.capacity(), 3);
        assert!(put(&mut slots, 2, 0).is_some() && put(&mut slots, 3, 0).is_some() && put(&mut slots, 4, 0).is_none());
        assert_eq!(slots.outstanding(0).first(), Some(&(1, at)));
    }
}
