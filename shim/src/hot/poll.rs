//! Polling: match each completion to its entry by tag, keep what a masked fault says, give the rest out in posting order.
//!
//! A poller takes completions from the provider *before* it takes the CQ's lock, so an empty poll costs a load and a compare. The price: the agent,
//! who polls too when the application does not, may get later completions while an application thread still holds earlier ones in
//! its hand. Such a completion is *parked* until its predecessor on the same queue was accounted for, so accounting is always in order.

use super::poll_ex::{CqEx, CqReads, MoreWc};
use super::ring::*;
use super::tag::{Queue, Tag};
use super::timed;
use crate::cold::{notify, tell};
use crate::lives;
use crate::shadow::*;
use core::ffi::c_int;
use core::mem::MaybeUninit;
use core::sync::atomic::Ordering::{Relaxed, SeqCst};
use shift_abi::*;
use std::collections::VecDeque;

/// Raw completions taken from a provider at once by the slow paths.
const BATCH: usize = 16;

/// Where finished completions go: into the caller's array as long as nothing waits in the stash, else behind it.
pub(super) struct Sink<'a> {
    out: *mut ibv_wc,
    filled: usize,
    /// Places of `out` whose raw completion was already read.
    limit: usize,
    stash: &'a mut VecDeque<StashedWc>,
    /// What the provider said beside the completion at hand.
    more: MoreWc,
}

impl<'a> Sink<'a> {
    /// Everything goes into the stash.
    fn into_stash(stash: &'a mut VecDeque<StashedWc>) -> Self {
        Self { out: core::ptr::null_mut(), filled: 0, limit: 0, stash, more: MoreWc::NONE }
    }

    #[inline]
    pub(super) fn put(&mut self, wc: ibv_wc, life: u32) {
        if self.stash.is_empty() && self.filled < self.limit {
            // SAFETY: `limit` is at most the length of the caller's array, whose raw completion at that place was read before.
            unsafe { self.out.wrapping_add(self.filled).write(wc) };
            self.filled += 1;
        } else {
            self.stash.push_back(StashedWc { wc, life, more: self.more });
        }
    }
}

/// `ibv_poll_cq` on a CQ with a shadow.
///
/// # Safety
/// `wc` has room for `entries` completions.
pub unsafe fn poll_cq(cq: &CqShadow, entries: c_int, wc: *mut ibv_wc) -> c_int {
    cq.polls.store(cq.polls.load(Relaxed).wrapping_add(1), Relaxed);
    let attention = cq.attention.load(Relaxed);
    if is_taken_under_lock(attention) {
        // SAFETY: passed on from the caller.
        return unsafe { poll_slowly(cq, entries, wc) };
    }
    let looked = timed::look(attention);
    // SAFETY: the application polls its live CQ with its own array.
    let taken = unsafe { (cq.ops.poll_cq)(cq.cq.0, entries, wc) };
    let given = match taken {
        // SAFETY: the provider wrote `taken` completions, at most `entries`, into the caller's array.
        1.. if attention & TAGGED != 0 => unsafe { sort_out(cq, entries as usize, wc, taken as usize) },
        _ => taken,
    };
    if let Some(looked) = looked.filter(|_| taken < entries) {
        timed::found_nothing(cq, looked);
    }
    if given == 0 && has_stash(cq) {
        // SAFETY: passed on from the caller; nothing in the array is wanted any more.
        return unsafe { poll_slowly(cq, entries, wc) };
    }
    given
}

/// Something waits in the stash, or a sweep is at work: whoever found nothing in the provider's queue looks there too.
#[inline]
pub(super) fn has_stash(cq: &CqShadow) -> bool {
    cq.attention.load(Relaxed) & STASH != 0
}

/// `ibv_poll_cq` on a CQ without a shadow: what completes there may be of an SRQ that has one.
///
/// # Safety
/// `wc` has room for `entries` completions, and the function is the CQ's provider's.
pub unsafe fn poll_unknown(poll: poll_cq_fn, cq: *mut ibv_cq, entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: passed on from the caller.
    let taken = unsafe { poll(cq, entries, wc) };
    if taken > 0 && crate::cold::srq::any() {
        for at in 0..taken as usize {
            let place = wc.wrapping_add(at);
            // SAFETY: the provider wrote `taken` completions.
            let raw = unsafe { place.read() };
            // SAFETY: as above.
            unsafe { place.write(super::srq::unmask(raw)) };
        }
    }
    taken
}

/// Whether the providers are asked under the lock of the CQ. Completions of QPs without a shadow have no tag that says in which order they came.
#[inline]
pub(super) const fn is_taken_under_lock(attention: u32) -> bool {
    attention & (STASH | TWIN | UNLOCKED | SHARED) != 0 || attention & (TAGGED | FOREIGN) == TAGGED | FOREIGN
}

/// Puts what the application gets in the place of what was taken. It takes fewer than it asked for to mean that the queue is empty, and goes to sleep:
/// so for completions that it does not get others are taken, until there are none.
///
/// # Safety
/// `wc` has room for `wanted` completions, and begins with `taken` raw ones.
#[inline]
unsafe fn sort_out(cq: &CqShadow, wanted: usize, wc: *mut ibv_wc, mut taken: usize) -> c_int {
    let mut filled = 0;
    loop {
        let was_full = filled + taken == wanted;
        // SAFETY: passed on from the caller; below, what the provider wrote behind `filled`.
        filled = unsafe { account(cq, wanted, wc, filled, taken) };
        if !was_full || filled == wanted {
            return filled as c_int;
        }
        // SAFETY: the application polls its live CQ; behind `filled` its array has room for the rest.
        let more = unsafe { (cq.ops.poll_cq)(cq.cq.0, (wanted - filled) as c_int, wc.wrapping_add(filled)) };
        if more <= 0 {
            return if filled == 0 { more } else { filled as c_int };
        }
        taken = more as usize;
    }
}

/// One round of [`sort_out`]: says how many completions for the application the array begins with now.
///
/// # Safety
/// `wc` has room for `wanted` completions; behind `filled` of them are `taken` raw ones.
#[inline]
unsafe fn account(cq: &CqShadow, wanted: usize, wc: *mut ibv_wc, filled: usize, taken: usize) -> usize {
    let mut inner = cq.inner.lock();
    let mut stash = core::mem::take(&mut inner.stash);
    let mut sink = Sink { out: wc, filled, limit: filled, stash: &mut stash, more: MoreWc::NONE };
    for at in filled..filled + taken {
        // SAFETY: the provider wrote `taken` completions behind `filled`, and `sink.filled <= at`, so this one is still raw.
        let raw = unsafe { wc.wrapping_add(at).read() };
        sink.limit = at + 1;
        take(cq, &mut inner, raw, Source::Own, &mut sink);
    }
    unpark(cq, &mut inner, &mut sink);
    let mut filled = sink.filled;
    // SAFETY: `filled <= wanted`, for which the array has room.
    filled += unsafe { pop(&mut stash, wc.wrapping_add(filled), wanted - filled) };
    inner.stash = stash;
    settle(cq, &inner);
    filled
}

/// With a stash, or a twin to poll as well.
#[cold]
unsafe fn poll_slowly(cq: &CqShadow, entries: c_int, wc: *mut ibv_wc) -> c_int {
    let wanted = usize::try_from(entries).unwrap_or(0);
    let looked = timed::look(cq.attention.load(Relaxed));
    let mut inner = cq.inner.lock();
    let errno = if inner.stash.len() < wanted { drain(cq, &mut inner, wanted).1 } else { 0 };
    // SAFETY: the caller's array has room for `entries`.
    let filled = unsafe { pop(&mut inner.stash, wc, wanted) };
    settle(cq, &inner);
    if let Some(looked) = looked.filter(|_| filled < wanted) {
        timed::found_nothing(cq, looked);
    }
    if filled == 0 && errno != 0 {
        return -1;
    }
    filled as c_int
}

/// Moves up to `room` completions from the stash to `out`.
///
/// # Safety
/// `out` has that room.
unsafe fn pop(stash: &mut VecDeque<StashedWc>, out: *mut ibv_wc, room: usize) -> usize {
    let mut filled = 0;
    while filled < room {
        let Some(stashed) = stash.pop_front() else { break };
        // SAFETY: `filled < room`.
        unsafe { out.wrapping_add(filled).write(stashed.wc) };
        filled += 1;
    }
    filled
}

/// Publishes whether there is something to look at.
fn settle(cq: &CqShadow, inner: &CqInner) {
    let is_said = cq.attention.load(Relaxed) & STASH != 0;
    if inner.stash.is_empty() {
        if is_said {
            cq.attention.fetch_and(!STASH, Relaxed);
        }
        return;
    }
    if !is_said {
        cq.attention.fetch_or(STASH, Relaxed);
    }
    // Another thread may have armed the CQ and found it empty while this one had them in its hand.
    if cq.late.load(Relaxed) || notify::is_fresh(cq) {
        cq.late.store(true, Relaxed);
        notify::stashed(cq, inner);
    }
}

/// The same where it is not the application that polls: it may be asleep, waiting for an event.
fn settle_and_wake(cq: &CqShadow, inner: &CqInner) {
    settle(cq, inner);
    if cq.armed.load(SeqCst) != 0 {
        notify::stashed(cq, inner);
    }
}

/// Takes what the providers have into the stash: for the agent, and for a post that found its ring full. `false`: the application's own queue could not be
/// looked at, because of a poll that is open or a call that runs.
pub fn sweep(cq: &CqShadow) -> bool {
    let mut inner = cq.inner.lock();
    // Before the provider's queue is looked into, under the lock that it has for that: whoever finds it empty after this sees that something may be here.
    cq.attention.fetch_or(STASH, Relaxed);
    let (is_seen, _) = drain(cq, &mut inner, usize::MAX);
    settle_and_wake(cq, &inner);
    is_seen
}

/// One completion, where nothing waits in the stash and there is no twin to poll: what else was taken with it goes into the stash. `Err`: ENOENT, or
/// what is wrong with the CQ.
pub fn poll_one(cq: &CqShadow) -> Result<StashedWc, c_int> {
    loop {
        let mut raws = [const { MaybeUninit::<ibv_wc>::uninit() }; BATCH];
        // SAFETY: the application polls its live CQ; the array has room for BATCH.
        let taken = unsafe { (cq.ops.poll_cq)(cq.cq.0, BATCH as c_int, raws.as_mut_ptr().cast()) };
        let taken = usize::try_from(taken).map_err(|_| libc::EIO)?;
        if taken == 0 {
            return Err(libc::ENOENT);
        }
        // SAFETY: the provider wrote so many.
        let found = first_of(cq, raws.iter().take(taken).map(|raw| unsafe { raw.assume_init_read() }));
        // Those that the application does not get are no reason to say that there is none.
        if found.is_some() || taken < BATCH {
            return found.ok_or(libc::ENOENT);
        }
    }
}

/// Accounts for raw completions of the application's queue; the first one for the application.
#[inline]
fn first_of(cq: &CqShadow, raws: impl Iterator<Item = ibv_wc>) -> Option<StashedWc> {
    let mut inner = cq.inner.lock();
    let mut stash = core::mem::take(&mut inner.stash);
    let mut sink = Sink::into_stash(&mut stash);
    for raw in raws {
        if cq.attention.load(Relaxed) & TAGGED == 0 {
            sink.put(raw, u32::MAX);
        } else {
            take(cq, &mut inner, raw, Source::Own, &mut sink);
        }
    }
    unpark(cq, &mut inner, &mut sink);
    let found = stash.pop_front();
    inner.stash = stash;
    settle(cq, &inner);
    found
}

/// One completion out of the stash, or of what the providers have: by who is inside of `ex`. `Err` as for [`poll_one`].
pub fn take_one(cq: &CqShadow, ex: &CqEx) -> Result<StashedWc, c_int> {
    let mut inner = cq.inner.lock();
    let mut errno = 0;
    if inner.stash.is_empty() {
        let own = if ex.has_more() { Fetch::Read(*ex.reads()) } else { Fetch::Poll(cq.cq, cq.ops.poll_cq) };
        errno = drain_from(cq, &mut inner, 1, Some(own)).1;
    }
    let found = inner.stash.pop_front();
    settle(cq, &inner);
    found.ok_or(if errno == 0 { libc::ENOENT } else { errno })
}

/// Takes at least `wanted` completions into the stash, if the providers have so many. Says whether the application's queue was looked at, and what is wrong
/// with it, or 0.
fn drain(cq: &CqShadow, inner: &mut CqInner, wanted: usize) -> (bool, c_int) {
    let Some(ex) = cq.ex.as_ref().filter(|ex| ex.has_more()) else {
        return drain_from(cq, inner, wanted, Some(Fetch::Poll(cq.cq, cq.ops.poll_cq)));
    };
    // While the application's poll is open the own queue is left alone: see the text of `poll_ex`.
    let open = ex.try_open();
    drain_from(cq, inner, wanted, open.is_some().then(|| Fetch::Read(*ex.reads())))
}

/// How completions are taken from a provider.
#[derive(Clone, Copy)]
enum Fetch {
    /// As `ibv_wc`.
    Poll(Raw<ibv_cq>, poll_cq_fn),
    /// Field by field.
    Read(CqReads),
}

impl Fetch {
    fn of(twin: &TwinCq) -> Self {
        twin.reads.map_or(Self::Poll(twin.cq, twin.poll), Self::Read)
    }

    /// Takes a batch at most; gives each to `each` and says how many they were, and why they were no more if that is an error.
    fn batch(&self, mut each: impl FnMut(ibv_wc, MoreWc)) -> (usize, c_int) {
        match self {
            Self::Poll(raw_cq, poll) => {
                let mut raw = [ibv_wc::zeroed(); BATCH];
                // SAFETY: the CQ is live as long as its shadow is; the array has room for BATCH.
                let taken = unsafe { poll(raw_cq.0, BATCH as c_int, raw.as_mut_ptr()) };
                let Ok(taken) = usize::try_from(taken) else { return (0, libc::EIO) };
                raw.iter().take(taken).for_each(|wc| each(*wc, MoreWc::NONE));
                (taken, 0)
            }
            Self::Read(reads) => {
                for taken in 0..BATCH {
                    match reads.take() {
                        Ok((wc, more)) => each(wc, more),
                        Err(libc::ENOENT) => return (taken, 0),
                        Err(errno) => return (taken, errno),
                    }
                }
                (BATCH, 0)
            }
        }
    }
}

/// `drain`, with the application's own queue taken from as `own` says, or not at all.
fn drain_from(cq: &CqShadow, inner: &mut CqInner, wanted: usize, own: Option<Fetch>) -> (bool, c_int) {
    if inner.destroyed {
        return (true, 0);
    }
    let mut failure = 0;
    let own = own.filter(|_| cq.attention.load(Relaxed) & IN_CALL == 0);
    let is_seen = own.is_some();
    let mut stash = core::mem::take(&mut inner.stash);
    let mut sink = Sink::into_stash(&mut stash);
    // The application's first, then the twins.
    for at in 0..=inner.twins.len() {
        let twin =
            at.checked_sub(1).and_then(|at| inner.twins.get(at)).map(|twin| (Fetch::of(twin), Source::Twin(twin.slot)));
        let found = if at == 0 { own.map(|own| (own, Source::Own)) } else { twin };
        let Some((fetch, source)) = found else { continue };
        loop {
            let (taken, errno) = fetch.batch(|wc, more| {
                sink.more = more;
                take(cq, inner, wc, source, &mut sink);
            });
            if source == Source::Own {
                failure = errno;
            }
            if taken < BATCH || sink.stash.len() >= wanted {
                break;
            }
        }
    }
    unpark(cq, inner, &mut sink);
    inner.stash = stash;
    (is_seen, failure)
}

/// Tries parked completions again until none of them finds its predecessor.
#[inline]
fn unpark(cq: &CqShadow, inner: &mut CqInner, sink: &mut Sink<'_>) {
    while !inner.parked.is_empty() {
        let parked = core::mem::take(&mut inner.parked);
        let before = parked.len();
        for (raw, source, more) in parked {
            sink.more = more;
            take(cq, inner, raw, source, sink);
        }
        if inner.parked.len() == before {
            return;
        }
        cq.late.store(true, Relaxed);
    }
}

/// Accounts for one raw completion.
#[inline]
fn take(cq: &CqShadow, inner: &mut CqInner, raw: ibv_wc, source: Source, sink: &mut Sink<'_>) {
    if source == Source::Own && cq.attention.load(Relaxed) & FOREIGN != 0 && inner.foreign.contains(&raw.qp_num) {
        let raw = if crate::cold::srq::any() { super::srq::unmask(raw) } else { raw };
        sink.put(raw, u32::MAX);
        return;
    }
    let tag = Tag(raw.wr_id);
    // The lock of the CQ is held, and a QP is removed from the table under it: the reference stays valid until it is released.
    let qpn = (source == Source::Own).then_some(raw.qp_num);
    let Some(qp) = lives::get(tag.life(), qpn) else {
        if cq.attention.load(Relaxed) & SHARED == 0 || !super::srq::received(inner, &raw, tag, source, sink) {
            strange(inner, raw, source, sink);
        }
        return;
    };
    match tag.queue() {
        Queue::Send => sent(inner, qp, raw, tag, source, sink),
        Queue::Receive => received(inner, qp, raw, tag, source, sink),
    }
}

/// A completion of no recorded QP: of one that was destroyed (nobody wants it), or of one made past this library.
#[cold]
fn strange(inner: &CqInner, raw: ibv_wc, source: Source, sink: &mut Sink<'_>) {
    if source == Source::Own && !inner.gone.contains(&(raw.qp_num, Tag(raw.wr_id).life())) {
        sink.put(raw, u32::MAX);
    }
}

/// The oldest send that a completion may still be of: head, but for the flushes of an error that the application gets. They go out as they come (a
/// provider may leave out those of unsignalled requests, so none is waited for), and another poller may hold earlier ones. Of an entry whose slot was written
/// again nothing is known any more: better no completion than that of another request.
#[inline]
fn oldest_due(qp: &QpShadow) -> u64 {
    let ring = &qp.sq.ring;
    let head = ring.head();
    if qp.sq.errored.load(Relaxed) && qp.stance() == Stance::Passing {
        head.min(ring.tail().saturating_sub(ring.size()))
    } else {
        head
    }
}

#[inline]
fn sent(inner: &mut CqInner, qp: &QpShadow, raw: ibv_wc, tag: Tag, source: Source, sink: &mut Sink<'_>) {
    let sq = &qp.sq;
    let seq = tag.seq(oldest_due(qp));
    if !tag.is_of_epoch(sq.epoch.load(Relaxed)) || seq >= sq.ring.tail() {
        return;
    }
    let slot = sq.ring.slot(seq);
    let seen = sq.signals_seen.load(Relaxed);
    if slot.signals_before.load(Relaxed) != seen && !sq.errored.load(Relaxed) {
        inner.parked.push((raw, source, sink.more));
        return;
    }
    if raw.status != IBV_WC_SUCCESS {
        send_failed(qp, raw, seq, sink);
        return;
    }
    sq.signals_seen.store(seen.wrapping_add(1), Relaxed);
    if sq.timed.is(seq) {
        timed::end(qp);
    }
    if sq.mixed.load(Relaxed) {
        retire_mixed(qp, seq, sink);
        return;
    }
    let app_signalled = slot.has(APP_SIGNALLED);
    let wr_id = slot.wr_id.load(Relaxed);
    sq.ring.set_head(seq + 1);
    if app_signalled {
        sink.put(ibv_wc { wr_id, qp_num: qp.qpn, ..raw }, qp.life);
    }
}

/// After a migration: entries that the report proved, and replayed ones that the application wanted no completion of, lie
/// between those that the NIC signals. A completion goes out only when everything before it is complete.
#[cold]
fn retire_mixed(qp: &QpShadow, through: u64, sink: &mut Sink<'_>) {
    let ring = &qp.sq.ring;
    let mut at = ring.head();
    while at < ring.tail() && (at <= through || ring.slot(at).has(DONE)) {
        let slot = ring.slot(at);
        if slot.has(APP_SIGNALLED) {
            sink.put(success_of(qp, slot), qp.life);
        }
        at += 1;
    }
    ring.set_head(at);
    if at >= qp.sq.mixed_until.load(Relaxed) {
        qp.sq.mixed.store(false, Relaxed);
    }
}

/// Gives out what the decisions completed at the front of the send queue.
pub fn retire_front(qp: &QpShadow) {
    let cq = &*qp.send_cq;
    let mut inner = cq.inner.lock();
    let head = qp.sq.ring.head();
    if head < qp.sq.ring.tail() && qp.sq.ring.slot(head).has(DONE) {
        let mut stash = core::mem::take(&mut inner.stash);
        let mut sink = Sink::into_stash(&mut stash);
        match qp.stance() {
            Stance::Passing => flush_front(qp, &mut sink),
            Stance::Recording | Stance::Armed | Stance::Masking | Stance::Surfaced => retire_mixed(qp, head, &mut sink),
        }
        inner.stash = stash;
        settle_and_wake(cq, &inner);
    }
}

/// The completion that the NIC would have given for this entry.
fn success_of(qp: &QpShadow, slot: &SendSlot) -> ibv_wc {
    let opcode = ibv_wr_opcode(u32::from(slot.opcode.load(Relaxed)));
    let mut wc = ibv_wc::zeroed();
    wc.wr_id = slot.wr_id.load(Relaxed);
    wc.qp_num = qp.qpn;
    wc.byte_len = slot.bytes.load(Relaxed);
    wc.opcode = match opcode {
        IBV_WR_RDMA_WRITE | IBV_WR_RDMA_WRITE_WITH_IMM => IBV_WC_RDMA_WRITE,
        IBV_WR_RDMA_READ => IBV_WC_RDMA_READ,
        IBV_WR_ATOMIC_CMP_AND_SWP => IBV_WC_COMP_SWAP,
        IBV_WR_ATOMIC_FETCH_AND_ADD => IBV_WC_FETCH_ADD,
        _ => IBV_WC_SEND,
    };
    wc
}

/// What to do with an error completion.
pub(super) enum Verdict {
    /// Give it to the application.
    Pass,
    /// It is of a fault that is being masked.
    Keep,
    /// The application got its error already.
    Drop,
}

/// RETRY_EXC is the path's; a flush with no error before it and no ERR of the application's is a port that went down (soft-RoCE gives only flushes
/// then). Everything else is the application's.
const fn is_of_the_path(status: ibv_wc_status) -> bool {
    matches!(status, IBV_WC_RETRY_EXC_ERR | IBV_WC_WR_FLUSH_ERR)
}

/// A path's fault, or the application's own?
#[cold]
pub(super) fn judge(qp: &QpShadow, status: ibv_wc_status, epoch: u32) -> Verdict {
    match qp.stance() {
        Stance::Recording => {
            if qp.step(Stance::Recording, Stance::Passing) {
                tell::application_error(qp);
            }
            Verdict::Pass
        }
        Stance::Passing => Verdict::Pass,
        Stance::Masking if is_of_the_path(status) => {
            tell::fatal(qp, status, epoch);
            Verdict::Keep
        }
        // The flush of one queue was polled before the error of the other.
        Stance::Masking => {
            tell::application_error_behind(qp, epoch);
            Verdict::Pass
        }
        Stance::Surfaced => Verdict::Drop,
        Stance::Armed if is_of_the_path(status) => {
            if !qp.step(Stance::Armed, Stance::Masking) {
                return judge(qp, status, epoch);
            }
            tell::fatal(qp, status, epoch);
            Verdict::Keep
        }
        Stance::Armed => {
            if !qp.step(Stance::Armed, Stance::Passing) {
                return judge(qp, status, epoch);
            }
            tell::application_error(qp);
            Verdict::Pass
        }
    }
}

#[cold]
fn send_failed(qp: &QpShadow, raw: ibv_wc, seq: u64, sink: &mut Sink<'_>) {
    let is_first = !qp.sq.errored.load(Relaxed);
    qp.sq.errored.store(true, Relaxed);
    let ring = &qp.sq.ring;
    let slot = ring.slot(seq);
    match judge(qp, raw.status, qp.sq.epoch.load(Relaxed)) {
        Verdict::Keep => slot.mark(FLUSHED),
        Verdict::Drop => {}
        Verdict::Pass => {
            let wr_id = slot.wr_id.load(Relaxed);
            if qp.sq.mixed.load(Relaxed) && seq > ring.head() {
                if is_first {
                    // What the NIC had before it is accounted for.
                    retire_mixed(qp, seq - 1, sink);
                } else {
                    let proven = (ring.head()..seq).map(|at| ring.slot(at)).filter(|slot| slot.has(DONE));
                    proven.for_each(|slot| sink.put(flush_of(qp, slot), qp.life));
                }
            }
            ring.set_head(ring.head().max(seq + 1));
            sink.put(ibv_wc { wr_id, qp_num: qp.qpn, ..raw }, qp.life);
            flush_front(qp, sink);
        }
    }
}

/// What is proven behind an error that the application got ends as all does that is behind one. Of it no NIC says anything.
fn flush_front(qp: &QpShadow, sink: &mut Sink<'_>) {
    let ring = &qp.sq.ring;
    let mut at = ring.head();
    while at < ring.tail() && ring.slot(at).has(DONE) {
        sink.put(flush_of(qp, ring.slot(at)), qp.life);
        at += 1;
    }
    ring.set_head(at);
}

fn flush_of(qp: &QpShadow, slot: &SendSlot) -> ibv_wc {
    let mut wc = ibv_wc::zeroed();
    (wc.wr_id, wc.status, wc.qp_num) = (slot.wr_id.load(Relaxed), IBV_WC_WR_FLUSH_ERR, qp.qpn);
    wc
}

#[inline]
fn received(inner: &mut CqInner, qp: &QpShadow, raw: ibv_wc, tag: Tag, source: Source, sink: &mut Sink<'_>) {
    let rq = &qp.rq;
    let head = rq.ring.head();
    let seq = tag.seq(head);
    if !tag.is_of_epoch(rq.epoch.load(Relaxed)) || seq >= rq.ring.tail() {
        return;
    }
    if seq != head + rq.flushed.load(Relaxed) {
        inner.parked.push((raw, source, sink.more));
        return;
    }
    let wr_id = rq.ring.slot(seq).wr_id.load(Relaxed);
    if raw.status == IBV_WC_SUCCESS {
        rq.received.store(rq.received.load(Relaxed) + 1, Relaxed);
    } else {
        match judge(qp, raw.status, rq.epoch.load(Relaxed)) {
            Verdict::Keep => {
                rq.flushed.store(rq.flushed.load(Relaxed) + 1, Relaxed);
                return;
            }
            Verdict::Drop => return,
            Verdict::Pass => {}
        }
    }
    rq.ring.set_head(seq + 1);
    sink.put(ibv_wc { wr_id, qp_num: qp.qpn, ..raw }, qp.life);
}

/// Puts an error completion of our own making behind everything that waits in the stash.
pub fn stash_error(cq: &CqShadow, inner: &mut CqInner, qp: &QpShadow, wr_id: u64, status: ibv_wc_status) {
    let mut wc = ibv_wc::zeroed();
    wc.wr_id = wr_id;
    wc.status = status;
    wc.qp_num = qp.qpn;
    inner.stash.push_back(StashedWc { wc, life: qp.life, more: MoreWc::NONE });
    settle_and_wake(cq, inner);
}

/// Forgets what is kept for a QP that is being destroyed.
pub fn purge(cq: &CqShadow, inner: &mut CqInner, life: u32) {
    inner.stash.retain(|stashed| stashed.life != life);
    inner.parked.retain(|(raw, _, _)| Tag(raw.wr_id).life() != life);
    settle(cq, inner);
}
