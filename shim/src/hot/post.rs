//! Posting: copy the work request into the ring, give it a tag, hand it to the provider; one critical section per queue.
//!
//! Ledger order is the provider's order, or every packet number is wrong: so record and post happen under one cell.

use super::keys::KeyCache;
use super::ring::*;
use super::tag::{Queue, Tag};
use super::timed;
use crate::cold::{mr, tell};
use crate::copies::{Copies, MoreSges};
use crate::shadow::*;
use core::ffi::c_int;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{Acquire, Relaxed};
use shift_abi::*;

/// Work requests handed to the provider in one call: 2 KiB of stack.
pub const BATCH: usize = 16;
/// Payloads up to this many bytes are snapshotted: a cache line, NCCL's clear-to-send is 64.
pub const SNAPSHOT_BYTES: u32 = 64;

/// Does this opcode consume a receive at the peer?
#[inline]
pub const fn consumes(opcode: ibv_wr_opcode) -> bool {
    matches!(opcode, IBV_WR_SEND | IBV_WR_SEND_WITH_IMM | IBV_WR_RDMA_WRITE_WITH_IMM)
}

/// CAS and FADD: executed at most once, whatever happens.
#[inline]
pub const fn is_atomic(opcode: ibv_wr_opcode) -> bool {
    matches!(opcode, IBV_WR_ATOMIC_CMP_AND_SWP | IBV_WR_ATOMIC_FETCH_AND_ADD)
}

/// The protected opcodes. Any other makes its QP unprotected.
pub const fn is_recorded(opcode: ibv_wr_opcode) -> bool {
    consumes(opcode) || is_atomic(opcode) || matches!(opcode, IBV_WR_RDMA_WRITE | IBV_WR_RDMA_READ)
}

/// The NIC puts something into the requester's memory: that it landed is known from its own completion only, so it always asks for one.
#[inline]
const fn returns_data(opcode: ibv_wr_opcode) -> bool {
    is_atomic(opcode) || matches!(opcode, IBV_WR_RDMA_READ)
}

/// The key at the peer that the request names, and where it lies in the structure; `None`: it names none.
#[inline]
fn remote_key(wr: &mut ibv_send_wr) -> Option<&mut u32> {
    match wr.opcode {
        IBV_WR_RDMA_WRITE | IBV_WR_RDMA_WRITE_WITH_IMM | IBV_WR_RDMA_READ => {
            // SAFETY: these opcodes use the rdma form, a structure of plain integers.
            Some(unsafe { &mut wr.wr.rdma.rkey })
        }
        opcode if is_atomic(opcode) => {
            // SAFETY: these opcodes use the atomic form, a structure of plain integers.
            Some(unsafe { &mut wr.wr.atomic.rkey })
        }
        _ => None,
    }
}

/// Its payload is taken at post.
#[inline]
const fn is_inline(wr: &ibv_send_wr) -> bool {
    wr.send_flags & IBV_SEND_INLINE != 0 && carries_payload(wr.opcode)
}

const fn carries_payload(opcode: ibv_wr_opcode) -> bool {
    consumes(opcode) || matches!(opcode, IBV_WR_RDMA_WRITE)
}

/// Packets of an entry of `bytes` at this MTU: at least one (IBA 9.7.2).
#[inline]
pub const fn packets(bytes: u32, mtu_shift: u32) -> u64 {
    let packets = (bytes as u64 + (1 << mtu_shift) - 1) >> mtu_shift;
    if packets == 0 {
        1
    } else {
        packets
    }
}

/// `ibv_post_send` on a recorded QP.
///
/// # Safety
/// `wr` and `bad` are what the application gave to `ibv_post_send`: a valid chain and a writable pointer.
pub unsafe fn post_send(qp: &QpShadow, wr: *mut ibv_send_wr, bad: *mut *mut ibv_send_wr) -> c_int {
    let mut poster = qp.sq.poster.lock();
    // SAFETY: passed on from the caller.
    let chain = unsafe { SendChain::new(wr, usize::MAX) };
    let (errno, first_bad) = post_in_mode(qp, &mut poster, chain, wr);
    if errno != 0 && !bad.is_null() {
        // SAFETY: the caller vouches for `bad`.
        unsafe { *bad = first_bad };
    }
    errno
}

/// Does with a chain that begins at `first` what posting does at this moment. Returns errno and the first request that was not posted.
#[inline]
pub fn post_in_mode(
    qp: &QpShadow,
    poster: &mut Poster,
    chain: SendChain<'_>,
    first: *mut ibv_send_wr,
) -> (c_int, *mut ibv_send_wr) {
    match poster.mode {
        PostMode::Direct => post_direct(qp, poster, chain),
        PostMode::Held => hold(qp, poster, chain),
        PostMode::Flushing => (flush_at_once(qp, chain), core::ptr::null_mut()),
        PostMode::Gone => (libc::EINVAL, first),
    }
}

/// A batch under construction: copies with our tags, linked in order.
struct Batch {
    wrs: [MaybeUninit<ibv_send_wr>; BATCH],
    /// The application's request behind each copy, for `bad_wr`.
    origins: [*mut ibv_send_wr; BATCH],
    len: usize,
}

impl Batch {
    #[inline]
    fn new() -> Self {
        Self { wrs: [const { MaybeUninit::uninit() }; BATCH], origins: [core::ptr::null_mut(); BATCH], len: 0 }
    }

    #[inline]
    fn push(&mut self, wr: ibv_send_wr, origin: *mut ibv_send_wr) {
        if let (Some(place), Some(from)) = (self.wrs.get_mut(self.len), self.origins.get_mut(self.len)) {
            place.write(wr);
            *from = origin;
            self.len += 1;
        }
    }

    /// Links the copies and returns the first. Null when empty.
    #[inline]
    fn link(&mut self) -> *mut ibv_send_wr {
        let first = self.wrs.as_mut_ptr().cast::<ibv_send_wr>();
        for at in 0..self.len {
            let last = at + 1 == self.len;
            let next = if last { core::ptr::null_mut() } else { first.wrapping_add(at + 1) };
            // SAFETY: the first `len` places were written by `push`.
            unsafe { (*first.wrapping_add(at)).next = next };
        }
        if self.len == 0 {
            core::ptr::null_mut()
        } else {
            first
        }
    }

    /// Which copy this is, if it is one.
    fn position(&self, wr: *const ibv_send_wr) -> Option<usize> {
        let first = self.wrs.as_ptr() as usize;
        let at = (wr as usize).checked_sub(first)? / size_of::<ibv_send_wr>();
        (at < self.len).then_some(at)
    }
}

/// Records and posts a chain, batch by batch. Returns errno and the first request that was not posted.
fn post_direct(qp: &QpShadow, poster: &mut Poster, mut chain: SendChain<'_>) -> (c_int, *mut ibv_send_wr) {
    poster.keys.refresh();
    loop {
        let mut batch = Batch::new();
        poster.sges.clear();
        let begin = qp.sq.ring.tail();
        let mut stop = None;
        while batch.len < BATCH {
            let rest = chain.rest();
            let Some(wr) = chain.next() else { break };
            let raw = wr.raw();
            if !fits(qp, raw) {
                stop = Some(Stop::Refuse(libc::EINVAL, wr.as_ptr()));
                break;
            }
            let seq = begin + batch.len as u64;
            if poster.translate && !is_recorded(raw.opcode) {
                // Its keys cannot be translated, and a raw key is never posted on a standby.
                tell::unprotect_opcode(qp, raw.opcode);
                stop = Some(Stop::Refuse(libc::EOPNOTSUPP, wr.as_ptr()));
                break;
            }
            if !qp.sq.ring.has_room(seq) && !make_room(qp, seq) {
                stop = Some(Stop::Refuse(libc::ENOMEM, wr.as_ptr()));
                break;
            }
            let Some(copy) = prepare(qp, poster, raw, seq) else {
                stop = rest.map(|rest| Stop::HoldFrom(rest.as_ptr()));
                break;
            };
            batch.push(copy, wr.as_ptr());
        }
        qp.sq.ring.set_tail(begin + batch.len as u64);
        if qp.sq.timed.is_wanted() {
            timed::begin(qp, poster, begin);
        }
        if let Some(failure) = hand_over(qp, poster, &mut batch, begin) {
            return failure;
        }
        match stop {
            Some(Stop::Refuse(errno, wr)) => return (errno, wr),
            Some(Stop::HoldFrom(wr)) => {
                poster.mode = PostMode::Held;
                // SAFETY: `wr` is the rest of the application's chain, valid as the whole was.
                let outcome = hold(qp, poster, unsafe { SendChain::new(wr, usize::MAX) });
                tell::held(qp);
                return outcome;
            }
            None if batch.len < BATCH => return (0, core::ptr::null_mut()),
            None => {}
        }
    }
}

/// Why a batch ends before the chain does.
enum Stop {
    /// With this errno, at this request.
    Refuse(c_int, *mut ibv_send_wr),
    /// From this request on a key is unknown.
    HoldFrom(*mut ibv_send_wr),
}

#[inline]
pub fn fits(qp: &QpShadow, wr: &ibv_send_wr) -> bool {
    u32::try_from(wr.num_sge).is_ok_and(|sges| sges <= qp.cap.max_send_sge)
}

/// Of inline data more than its room the provider would refuse, and so it is refused where there is none to ask.
pub fn is_inline_in_room(qp: &QpShadow, wr: &ibv_send_wr) -> bool {
    // SAFETY: the application's request is valid as long as its post runs.
    !is_inline(wr) || unsafe { SgeList::new(wr.sg_list, wr.num_sge) }.total_bytes() <= u64::from(qp.cap.max_inline_data)
}

/// Records `wr` as entry `seq` and makes the copy for the provider. `None`: a key of it is not known.
#[inline]
pub fn prepare(qp: &QpShadow, poster: &mut Poster, wr: &ibv_send_wr, seq: u64) -> Option<ibv_send_wr> {
    let mut copy = *wr;
    if poster.translate && !translate(qp, poster, &mut copy) {
        return None;
    }
    let bytes = record(qp, poster, wr, seq, 0);
    let slot = qp.sq.ring.slot(seq);
    let app_signalled = slot.has(APP_SIGNALLED);
    poster.unsignalled_run += 1;
    let signalled = app_signalled || returns_data(wr.opcode) || poster.unsignalled_run >= poster.signal_every;
    slot.signals_before.store(poster.signals, Relaxed);
    slot.psn.store(poster.psn_next as u32, Relaxed);
    slot.epoch.store(poster.epoch, Relaxed);
    if signalled {
        copy.send_flags |= IBV_SEND_SIGNALED;
        slot.marks.store(slot.marks.load(Relaxed) | NIC_SIGNALLED, Relaxed);
        poster.signals = poster.signals.wrapping_add(1);
        poster.unsignalled_run = 0;
    }
    poster.psn_next += packets(bytes, poster.mtu_shift);
    poster.consuming += u64::from(consumes(wr.opcode));
    copy.wr_id = Tag::new(qp.life, Queue::Send, poster.epoch, seq).0;
    Some(copy)
}

/// Writes the slot of `seq`; returns the bytes of the entry.
#[inline]
fn record(qp: &QpShadow, poster: &mut Poster, wr: &ibv_send_wr, seq: u64, extra_marks: u16) -> u32 {
    let slot = qp.sq.ring.slot(seq);
    // SAFETY: the application's request is valid as long as its post runs.
    let sges = unsafe { SgeList::new(wr.sg_list, wr.num_sge) };
    let mut bytes = 0_u32;
    let mut count = 0_u8;
    for sge in sges {
        bytes = bytes.saturating_add(sge.length);
        if count == 0 {
            slot.addr.store(sge.addr, Relaxed);
            slot.sge_len.store(sge.length, Relaxed);
            slot.lkey.store(sge.lkey, Relaxed);
        } else {
            more_sges(&qp.sq.more_sges, qp.sq.ring.size(), qp.cap.max_send_sge).set(
                qp.sq.ring.index(seq),
                usize::from(count),
                sge,
            );
        }
        count = count.wrapping_add(1);
    }
    if qp.pd.lacks_twins.load(Relaxed) && !is_inline(wr) {
        check_twins(qp, &mut poster.keys, sges);
    }
    if !is_recorded(wr.opcode) {
        tell::unprotect_opcode(qp, wr.opcode);
    }
    // SAFETY: RDMA and atomic forms of the union are plain integers; for other opcodes the value is not used.
    let rdma = unsafe { wr.wr.rdma };
    slot.wr_id.store(wr.wr_id, Relaxed);
    slot.remote_addr.store(rdma.remote_addr, Relaxed);
    slot.rkey.store(rdma.rkey, Relaxed);
    if is_atomic(wr.opcode) {
        tell::atomic(qp);
        record_operands(qp, wr, seq);
    }
    slot.imm.store(wr.imm.raw(), Relaxed);
    slot.bytes.store(bytes, Relaxed);
    slot.opcode.store(wr.opcode.0 as u8, Relaxed);
    slot.sges.store(count, Relaxed);
    let mut marks = extra_marks;
    if qp.signals_all || wr.send_flags & IBV_SEND_SIGNALED != 0 {
        marks |= APP_SIGNALLED;
    }
    if wr.send_flags & IBV_SEND_FENCE != 0 {
        marks |= FENCED;
    }
    if wr.send_flags & IBV_SEND_SOLICITED != 0 {
        marks |= SOLICITED;
    }
    if crate::process::unknown_is_error(wr.opcode, bytes) {
        marks |= UNKNOWN_IS_ERROR;
    }
    if is_inline(wr) {
        marks |= INLINE;
    }
    if bytes != 0 && copy_payload(qp, poster, wr, seq, bytes) {
        marks |= COPIED;
    }
    slot.marks.store(marks, Relaxed);
    bytes
}

/// What an atomic compares, adds and swaps: beside the slot, in the room for copies. Its address has the same place in both forms of the union.
#[inline]
fn record_operands(qp: &QpShadow, wr: &ibv_send_wr, seq: u64) {
    // SAFETY: the opcode uses the atomic form, a structure of plain integers.
    let atomic = unsafe { wr.wr.atomic };
    qp.sq.ring.slot(seq).rkey.store(atomic.rkey, Relaxed);
    copies_of(qp).set_operands(qp.sq.ring.index(seq), [atomic.compare_add, atomic.swap]);
}

/// Is all of this memory on the standby? If not, the QP is unprotected from here on.
#[cold]
fn check_twins(qp: &QpShadow, keys: &mut KeyCache, mut sges: SgeList<'_>) {
    if sges.any(|sge| sge.length != 0 && !keys.has_twin(qp.device, sge.lkey)) {
        tell::unprotect(qp, mr::REFUSED.to_owned());
    }
}

#[inline]
fn more_sges(place: &std::sync::OnceLock<MoreSges>, slots: u64, max_sge: u32) -> &MoreSges {
    place.get_or_init(|| MoreSges::new(slots, max_sge))
}

/// Copies inline data, and small payloads that may be read; `true` if the copy was made. A fenced payload is read when the READs and atomics before it
/// have put theirs, not now: it may be what they return.
#[inline]
fn copy_payload(qp: &QpShadow, poster: &mut Poster, wr: &ibv_send_wr, seq: u64, bytes: u32) -> bool {
    if !carries_payload(wr.opcode) {
        return false;
    }
    if is_inline(wr) {
        if bytes > qp.cap.max_inline_data {
            return false;
        }
    } else if bytes > SNAPSHOT_BYTES || wr.send_flags & IBV_SEND_FENCE != 0 || !readable(qp, poster, wr) {
        return false;
    }
    let copies = copies_of(qp);
    let mut at = copies.at(qp.sq.ring.index(seq));
    // SAFETY: the application's request is valid as long as its post runs.
    for sge in unsafe { SgeList::new(wr.sg_list, wr.num_sge) } {
        let from = sge.addr as *const u8;
        // SAFETY: inline data is readable by the rules of verbs; otherwise `readable` found the range inside of a registration
        // whose memory was shown to be readable. `bytes` is at most the stride, and nobody else touches a slot not yet published.
        unsafe { core::ptr::copy_nonoverlapping(from, at, sge.length as usize) };
        at = at.wrapping_add(sge.length as usize);
    }
    true
}

/// The room for copies, made at the first post that needs it.
#[inline]
fn copies_of(qp: &QpShadow) -> &Copies {
    qp.sq.copies.get_or_init(|| Copies::new(qp.sq.ring.size(), qp.cap.max_inline_data.max(SNAPSHOT_BYTES)))
}

#[inline]
fn readable(qp: &QpShadow, poster: &mut Poster, wr: &ibv_send_wr) -> bool {
    // SAFETY: the application's request is valid as long as its post runs.
    unsafe { SgeList::new(wr.sg_list, wr.num_sge) }.all(|sge| {
        let Some(key) = poster.keys.local(qp.device, sge.lkey) else { return false };
        let (base, length) = key.readable;
        sge.addr.checked_sub(base).is_some_and(|offset| offset.saturating_add(u64::from(sge.length)) <= length)
    })
}

/// Puts the standby's keys into `copy`. `false`: one is not known here.
fn translate(qp: &QpShadow, poster: &mut Poster, copy: &mut ibv_send_wr) -> bool {
    // SAFETY: the application's request is valid as long as its post runs.
    let bytes = unsafe { SgeList::new(copy.sg_list, copy.num_sge) }.total_bytes();
    if let Some(rkey) = remote_key(copy) {
        // Without a byte there is no key to check (IBA 9.7.4.1.2), and a raw key is never posted on a standby.
        let twin = if bytes == 0 { Some(0) } else { poster.keys.remote(*rkey) };
        let Some(twin) = twin else { return false };
        *rkey = twin;
    }
    if is_inline(copy) {
        return true;
    }
    // SAFETY: the application's request is valid as long as its post runs.
    let sges = unsafe { SgeList::new(copy.sg_list, copy.num_sge) };
    let begin = poster.sges.len();
    // An element without a byte has no key that is checked, and is left out.
    for mut sge in sges.filter(|sge| sge.length != 0) {
        let Some(twin) = poster.keys.twin_of(qp.device, sge.lkey) else { return false };
        sge.lkey = twin;
        poster.sges.push(sge);
    }
    // The room was reserved for a whole batch when the QP moved, so the elements stay where they are.
    copy.sg_list = poster.sges.as_mut_ptr().wrapping_add(begin);
    copy.num_sge = (poster.sges.len() - begin) as c_int;
    true
}

/// Elements that a batch may need: reserved before `translate` is ever used.
pub fn batch_sges(qp: &QpShadow) -> usize {
    BATCH * (qp.cap.max_send_sge.max(qp.cap.max_recv_sge) as usize).max(1)
}

/// Gives the batch to the provider; on a refusal takes the refused entries back out of the ring.
#[inline]
fn hand_over(qp: &QpShadow, poster: &mut Poster, batch: &mut Batch, begin: u64) -> Option<(c_int, *mut ibv_send_wr)> {
    let first = batch.link();
    if first.is_null() {
        return None;
    }
    let mut bad = core::ptr::null_mut();
    // SAFETY: the target is the live QP object of the current path; the chain was just linked.
    let errno = unsafe { (poster.target.post_send)(poster.target.qp.0, first, &mut bad) };
    if errno == 0 {
        return None;
    }
    Some(roll_back(qp, poster, batch, begin, errno, bad))
}

#[cold]
fn roll_back(
    qp: &QpShadow,
    poster: &mut Poster,
    batch: &Batch,
    begin: u64,
    errno: c_int,
    bad: *mut ibv_send_wr,
) -> (c_int, *mut ibv_send_wr) {
    // With a NULL bad_wr the requests may be in the ring of the NIC (soft-RoCE's doorbell failed): they stay recorded.
    let Some(at) = batch.position(bad) else {
        return (errno, batch.origins.first().copied().unwrap_or(core::ptr::null_mut()));
    };
    let refused = begin + at as u64;
    take_back(qp, poster, refused, begin + batch.len as u64);
    (errno, batch.origins.get(at).copied().unwrap_or(bad))
}

/// Takes recorded entries that the provider refused out of the ring again: those from `refused` to its end.
#[cold]
pub fn take_back(qp: &QpShadow, poster: &mut Poster, refused: u64, end: u64) {
    for seq in refused..end {
        let slot = qp.sq.ring.slot(seq);
        let opcode = ibv_wr_opcode(u32::from(slot.opcode.load(Relaxed)));
        poster.consuming -= u64::from(consumes(opcode));
        poster.psn_next -= packets(slot.bytes.load(Relaxed), poster.mtu_shift);
        poster.signals = poster.signals.wrapping_sub(u32::from(slot.has(NIC_SIGNALLED)));
    }
    // What was taken back may have been the signal that we asked for: the next one gets it.
    poster.unsignalled_run = poster.signal_every;
    qp.sq.ring.set_tail(refused);
}

/// The ring is full although the provider's queue may not be: account for completions nobody polled.
#[cold]
fn make_room(qp: &QpShadow, seq: u64) -> bool {
    super::poll::sweep(&qp.send_cq);
    qp.sq.ring.has_room(seq)
}

/// Records a chain while the queue is held. Returns errno and the first request that was not recorded.
#[cold]
pub fn hold(qp: &QpShadow, poster: &mut Poster, chain: SendChain<'_>) -> (c_int, *mut ibv_send_wr) {
    for wr in chain {
        let seq = qp.sq.ring.tail();
        if !fits(qp, wr.raw()) || !is_inline_in_room(qp, wr.raw()) {
            return (libc::EINVAL, wr.as_ptr());
        }
        // What has no full record cannot be posted later: better an error that the program sees than half a request.
        if !qp.sq.ring.has_room(seq) || !is_recorded(wr.opcode()) {
            return (libc::ENOMEM, wr.as_ptr());
        }
        record(qp, poster, wr.raw(), seq, HELD);
        qp.sq.ring.set_tail(seq + 1);
    }
    (0, core::ptr::null_mut())
}

/// The QP is in error for the application: each request completes with a flush, as hardware does it.
#[cold]
fn flush_at_once(qp: &QpShadow, chain: SendChain<'_>) -> c_int {
    let mut inner = qp.send_cq.inner.lock();
    for wr in chain {
        super::poll::stash_error(&qp.send_cq, &mut inner, qp, wr.wr_id(), IBV_WC_WR_FLUSH_ERR);
    }
    0
}

/// `ibv_post_recv` on a recorded QP.
///
/// # Safety
/// `wr` and `bad` are what the application gave to `ibv_post_recv`.
pub unsafe fn post_recv(qp: &QpShadow, wr: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    let mut poster = qp.rq.poster.lock();
    if qp.srq.is_some() {
        // It has no receive queue: the provider says how it refuses that.
        // SAFETY: passed on from the caller.
        return unsafe { (poster.target.post_recv)(poster.target.qp.0, wr, bad) };
    }
    // SAFETY: passed on from the caller.
    let chain = unsafe { RecvChain::new(wr, usize::MAX) };
    for wr in chain {
        let errno = match poster.mode {
            PostMode::Flushing => {
                let mut inner = qp.recv_cq.inner.lock();
                super::poll::stash_error(&qp.recv_cq, &mut inner, qp, wr.wr_id(), IBV_WC_WR_FLUSH_ERR);
                0
            }
            PostMode::Gone => libc::EINVAL,
            PostMode::Direct | PostMode::Held => post_one_recv(qp, &mut poster, wr.raw()),
        };
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
fn post_one_recv(qp: &QpShadow, poster: &mut RecvPoster, wr: &ibv_recv_wr) -> c_int {
    let ring = &qp.rq.ring;
    let seq = ring.tail();
    if !u32::try_from(wr.num_sge).is_ok_and(|sges| sges <= qp.cap.max_recv_sge) {
        return libc::EINVAL;
    }
    // While held there is no provider to refuse what is beyond its depth, and the ring is larger.
    let too_many = poster.mode == PostMode::Held && seq - ring.head() >= u64::from(qp.cap.max_recv_wr);
    if too_many || !ring.has_room(seq) {
        return libc::ENOMEM;
    }
    record_recv(qp, wr, seq);
    if qp.pd.lacks_twins.load(Relaxed) {
        // SAFETY: the application's request is valid as long as its post runs.
        check_twins(qp, &mut poster.keys, unsafe { SgeList::new(wr.sg_list, wr.num_sge) });
    }
    ring.set_tail(seq + 1);
    if poster.mode == PostMode::Held {
        return 0;
    }
    let errno = give_recv(qp, poster, seq);
    if errno != 0 {
        ring.set_tail(seq);
    }
    errno
}

#[inline]
fn record_recv(qp: &QpShadow, wr: &ibv_recv_wr, seq: u64) {
    let slot = qp.rq.ring.slot(seq);
    slot.wr_id.store(wr.wr_id, Relaxed);
    let mut count = 0_u32;
    // SAFETY: the application's request is valid as long as its post runs.
    for sge in unsafe { SgeList::new(wr.sg_list, wr.num_sge) } {
        if count == 0 {
            slot.addr.store(sge.addr, Relaxed);
            slot.sge_len.store(sge.length, Relaxed);
            slot.lkey.store(sge.lkey, Relaxed);
        } else {
            more_sges(&qp.rq.more_sges, qp.rq.ring.size(), qp.cap.max_recv_sge).set(
                qp.rq.ring.index(seq),
                count as usize,
                sge,
            );
        }
        count += 1;
    }
    slot.sges.store(count, Relaxed);
}

/// Posts the recorded receive `seq` on the poster's target. Returns errno.
pub fn give_recv(qp: &QpShadow, poster: &mut RecvPoster, seq: u64) -> c_int {
    let slot = qp.rq.ring.slot(seq);
    poster.sges.clear();
    for nth in 0..slot.sges.load(Relaxed) as usize {
        let mut sge = if nth == 0 {
            ibv_sge { addr: slot.addr.load(Relaxed), length: slot.sge_len.load(Relaxed), lkey: slot.lkey.load(Relaxed) }
        } else {
            qp.rq.more_sges.get().map_or(ibv_sge::zeroed(), |more| more.get(qp.rq.ring.index(seq), nth))
        };
        if poster.translate {
            if sge.length == 0 {
                // As for sends: it has no key that is checked.
                continue;
            }
            let Some(twin) = poster.keys.twin_of(qp.device, sge.lkey) else { return libc::EINVAL };
            sge.lkey = twin;
        }
        poster.sges.push(sge);
    }
    let mut wr = ibv_recv_wr {
        wr_id: Tag::new(qp.life, Queue::Receive, poster.epoch, seq).0,
        next: core::ptr::null_mut(),
        sg_list: poster.sges.as_mut_ptr(),
        num_sge: poster.sges.len() as c_int,
    };
    let mut bad = core::ptr::null_mut();
    // SAFETY: the target is the live QP object of the current path; the request and its elements live across the call.
    unsafe { (poster.target.post_recv)(poster.target.qp.0, &mut wr, &mut bad) }
}

/// The elements of the recorded send `seq`, as the application gave them.
pub fn recorded_sges(qp: &QpShadow, seq: u64) -> Vec<ibv_sge> {
    let slot = qp.sq.ring.slot(seq);
    (0..usize::from(slot.sges.load(Acquire)))
        .map(|nth| match nth {
            0 => ibv_sge {
                addr: slot.addr.load(Relaxed),
                length: slot.sge_len.load(Relaxed),
                lkey: slot.lkey.load(Relaxed),
            },
            _ => qp.sq.more_sges.get().map_or(ibv_sge::zeroed(), |more| more.get(qp.sq.ring.index(seq), nth)),
        })
        .collect()
}
