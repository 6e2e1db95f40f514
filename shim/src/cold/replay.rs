//! After the fence: receives posted again, the plan executed, held posts sent after it.
//!
//! While a queue is held its posters only append to the ring, so the agent may write the words of the entries in it. Every entry posted from here is signalled
//! on the NIC, and the queue is *mixed* until all of them retired.

use crate::cold::{asynchronous, fence, notify, rail, settle, tell, twin};
use crate::hot::poll;
use crate::hot::post::{self, consumes, packets};
use crate::hot::ring::*;
use crate::hot::tag::{Queue, Tag};
use crate::real;
use crate::sabotage::{self, leaves_out, Part};
use crate::shadow::*;
use core::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use shift_abi::*;
use shift_control::datapath::{Errno, RemoteKey, RemoteKeys, ReplayProgress, Round};
use shift_proto::id::{Epoch, Mtu, PathId, Psn64, WrSeq};
use shift_proto::ledger::{Action, Entry, IncarnationFacts, Ledger, Plan, Posting};
use shift_proto::policy::OnUnknown;
use std::time::{Duration, Instant};

/// Stops posting sends; `false` if a poster is inside at this moment. Receives are held from the fence on.
pub fn exclude(qp: &QpShadow) -> bool {
    let Some(mut send) = qp.sq.poster.try_lock() else { return false };
    if send.mode == PostMode::Direct {
        send.mode = PostMode::Held;
    }
    true
}

/// Whether everything that the NIC was given is complete. The end of a queue may give no completion: then the first request that is held goes out behind it,
/// with a signal, and until the queue has moved so does every other one: who posts nothing loses nothing by staying where it is until it does.
pub fn drain(qp: &QpShadow, keys: &dyn RemoteKeys) -> bool {
    poll::sweep(&qp.send_cq);
    let ring = &qp.sq.ring;
    let mut poster = qp.sq.poster.lock();
    let (head, tail) = (ring.head(), ring.tail());
    let held = (head..tail).find(|seq| ring.slot(*seq).has(HELD)).unwrap_or(tail);
    if held <= head {
        return poster.mode == PostMode::Held;
    }
    if ring.slot(held - 1).has(NIC_SIGNALLED) {
        return false;
    }
    poster.signal_every = 1;
    if held < tail && poster.mode == PostMode::Held {
        mix(qp);
        if let Err(hindrance) = post_recorded(qp, &mut poster, held, 0, keys) {
            log::debug!("QP 0x{:06x}: {:?} is in the way of a planned move", qp.qpn, hindrance.of(held));
        }
    }
    false
}

/// Nothing was fenced: what was held goes to the path in use.
pub fn release(qp: &QpShadow) {
    if post_held(qp, &Unasked) != ReplayProgress::Done {
        tell::held(qp);
    }
}

/// Keys are looked up where they are needed; here none is known beyond what the queue remembers.
struct Unasked;

impl RemoteKeys for Unasked {
    fn remote(&self, _rkey: u32) -> RemoteKey {
        RemoteKey::Unknown
    }
}

/// Writes what is outstanding into the ledger.
pub fn admit(qp: &QpShadow, ledger: &mut Ledger) {
    let cold = qp.cold();
    for incarnation in &cold.incarnations {
        let Some(mtu) = Mtu::new(incarnation.mtu) else { continue };
        let facts = IncarnationFacts {
            epoch: Epoch(incarnation.epoch),
            path: PathId(incarnation.path),
            mtu,
            completed_psn: Psn64(incarnation.completed),
            posted_psn: Psn64(incarnation.posted),
            completed_receives: incarnation.completed_receives,
        };
        report_refusal(qp, ledger.incarnation(facts).err());
    }
    let Some(current) = cold.incarnations.last().copied() else { return };
    drop(cold);
    let ring = &qp.sq.ring;
    if let Some(last) = ring.head().checked_sub(1) {
        ledger.landed_through(WrSeq(last));
    }
    // Counted from the end, which is frozen: a poller may still account for the front.
    let tail = ring.tail();
    let here = |seq| !ring.slot(seq).has(HELD | DONE) && ring.slot(seq).epoch.load(Relaxed) == current.epoch;
    let consumes_one = |seq| consumes(ibv_wr_opcode(u32::from(ring.slot(seq).opcode.load(Relaxed))));
    let head = ring.head();
    let outstanding = (head..tail).filter(|seq| here(*seq) && consumes_one(*seq)).count() as u64;
    let mut ordinal = current.posted_receives.saturating_sub(outstanding);
    for seq in head..tail {
        let slot = ring.slot(seq);
        let opcode = ibv_wr_opcode(u32::from(slot.opcode.load(Relaxed)));
        let Some(op) = crate::process::op_of(opcode) else { continue };
        let op = sabotage::taken_for(op);
        let unknown =
            if slot.has(UNKNOWN_IS_ERROR) && !leaves_out(Part::Marks) { OnUnknown::Error } else { OnUnknown::Replay };
        let entry = Entry { seq: WrSeq(seq), op, bytes: slot.bytes.load(Relaxed), fenced: slot.has(FENCED), unknown };
        let here = here(seq);
        let posting = (here && !slot.has(IN_LEDGER)).then(|| Posting {
            epoch: Epoch(current.epoch),
            first_psn: Psn64(fence::first_psn(current.posted, slot.psn.load(Relaxed))),
            offset: 0,
            receive_ordinal: ordinal,
        });
        if here && op.consumes_receive() {
            ordinal += 1;
        }
        report_refusal(qp, ledger.admit(entry, posting).err());
    }
}

fn report_refusal(qp: &QpShadow, refusal: Option<shift_proto::ledger::LedgerError>) {
    if let Some(refusal) = refusal {
        log::warn!("QP 0x{:06x}: the ledger refused an entry: {refusal}", qp.qpn);
    }
}

/// Posts the receives that were not consumed on the new path, once per epoch.
pub fn repost(qp: &QpShadow, path: u8, epoch: u32, round: Round) -> Result<usize, Errno> {
    let mut cold = qp.cold();
    if cold.reposted == Some(epoch) {
        return Ok(0);
    }
    let gone = Errno(libc::ENODEV);
    let object = twin::object(qp, &cold, path).filter(|_| cold.alive && qp.may_move()).ok_or(gone)?;
    enter_incarnation(&mut cold, path, epoch).ok_or(gone)?;
    let mut poster = qp.rq.poster.lock();
    let begun = cold.repost_next.filter(|(begun, _)| *begun == epoch);
    if begun.is_none() {
        let _inner = qp.recv_cq.inner.lock();
        qp.rq.flushed.store(0, Relaxed);
        qp.rq.received.store(0, Relaxed);
        qp.rq.epoch.store(epoch, Relaxed);
        // The old incarnation is drained: an error from here on is of the new path.
        qp.first_error.store(0, Relaxed);
    }
    look_at_twin(qp);
    if let Some(srq) = &qp.srq {
        cold.repost_next = Some((epoch, 0));
        drop(poster);
        let count = settle::settle(srq, qp, &mut cold, (path, round))?;
        let mut poster = qp.rq.poster.lock();
        if poster.mode == PostMode::Held {
            poster.mode = PostMode::Direct;
        }
        drop(poster);
        cold.reposted = Some(epoch);
        notify::arm_twins(qp);
        return Ok(count);
    }
    poster.target = RecvTarget {
        qp: object,
        post_recv: ops_of(qp, &cold, path).map_or(poster.target.post_recv, |ops| ops.post_recv),
    };
    poster.translate = path != 0;
    cold.slot(path).into_iter().for_each(|slot| poster.keys.go_to(slot));
    poster.epoch = epoch;
    poster.sges.reserve(post::batch_sges(qp));
    let ring = &qp.rq.ring;
    let mut count = 0;
    for seq in begun.map_or(ring.head(), |(_, next)| next)..last_receive(ring.tail()) {
        cold.repost_next = Some((epoch, seq));
        let errno = post::give_recv(qp, &mut poster, seq);
        if errno != 0 {
            return Err(Errno(errno));
        }
        count += 1;
    }
    if poster.mode == PostMode::Held {
        poster.mode = PostMode::Direct;
    }
    drop(poster);
    cold.reposted = Some(epoch);
    notify::arm_twins(qp);
    Ok(count)
}

/// Behind the last receive that is there.
fn last_receive(tail: u64) -> u64 {
    if leaves_out(Part::Receives) {
        0
    } else {
        tail
    }
}

fn with_counts(action: Action) -> Action {
    if leaves_out(Part::Counts) {
        Action::Replay { offset: 0 }
    } else {
        action
    }
}

/// From here on the connection is on the new path: what a fence has to fence, and what the peer has to hear of, even if nothing was sent there yet.
fn enter_incarnation(cold: &mut QpCold, path: u8, epoch: u32) -> Option<()> {
    let connected = cold.connected.get(usize::from(path)).copied().flatten();
    let connected = connected.filter(|connected| connected.epoch == epoch)?;
    if let Some(last) = cold.incarnations.last() {
        if last.epoch == epoch {
            return Some(());
        }
        if !last.closed {
            // Its fence never ran (a poster did not leave), so nobody knows what was posted there.
            return None;
        }
    }
    let first = u64::from(connected.own_psn);
    cold.incarnations.push(Incarnation {
        epoch,
        path,
        mtu: connected.mtu,
        completed: first,
        posted: first,
        completed_receives: 0,
        posted_receives: 0,
        closed: false,
    });
    cold.path = path;
    Some(())
}

fn ops_of(qp: &QpShadow, cold: &QpCold, path: u8) -> Option<ProviderOps> {
    if path == 0 {
        return Some(qp.send_cq.ops);
    }
    twin::device(qp, cold, path).and_then(rail::by_id).map(|rail| rail.ops)
}

/// From now on polls look at the twins as well.
fn look_at_twin(qp: &QpShadow) {
    for cq in [&qp.send_cq, &qp.recv_cq] {
        // SeqCst: see `notify::request`.
        cq.attention.fetch_or(TWIN, SeqCst);
    }
}

/// Time for posts of one QP before the agent looks at others, and at the network: soft-RoCE copies what is posted within the call.
const SLICE: Duration = Duration::from_millis(20);

/// Executes the plan on the new path, then what was held. Goes on where it stopped.
pub fn replay(
    qp: &QpShadow,
    path: u8,
    epoch: u32,
    plan: &Plan,
    ledger: &mut Ledger,
    keys: &dyn RemoteKeys,
) -> ReplayProgress {
    if !is_whole(qp) || !begin_incarnation(qp, path, epoch) {
        return Hindrance::Refused(Errno(libc::ENODEV)).of(qp.sq.ring.head());
    }
    notify::arm_twins(qp);
    let begun = Instant::now();
    for step in &plan.steps {
        let seq = step.seq.0;
        if seq < qp.cold().replay_next.max(qp.sq.ring.head()) {
            continue;
        }
        if begun.elapsed() > SLICE {
            poll::retire_front(qp);
            return ReplayProgress::More;
        }
        match with_counts(step.action) {
            Action::Complete => qp.sq.ring.slot(seq).mark(DONE),
            Action::Replay { offset } => {
                let posted = post_recorded(qp, &mut qp.sq.poster.lock(), seq, offset, keys);
                if let Ok(posting) | Err(Hindrance::Doubtful(_, posting)) = posted {
                    report_refusal(qp, ledger.posted(step.seq, posting).err());
                    qp.sq.ring.slot(seq).mark(IN_LEDGER);
                }
                if let Err(hindrance) = posted {
                    // What is proven before it does not wait for it.
                    poll::retire_front(qp);
                    return hindrance.of(seq);
                }
            }
        }
        qp.cold().replay_next = seq + 1;
    }
    poll::retire_front(qp);
    if plan.stop.is_some() {
        return ReplayProgress::Done;
    }
    post_held(qp, keys)
}

/// Everything outstanding is in the ledger. What was posted with an opcode that is not protected, before the queue was held, is not: to replay only what
/// is around it would lose it.
fn is_whole(qp: &QpShadow) -> bool {
    let ring = &qp.sq.ring;
    let opcode = |seq| ibv_wr_opcode(u32::from(ring.slot(seq).opcode.load(Relaxed)));
    (ring.head()..ring.tail()).all(|seq| crate::process::op_of(opcode(seq)).is_some())
}

/// Sets the posting side up for the new incarnation, once per epoch. The queue is held, so the poster's fields are the agent's.
fn begin_incarnation(qp: &QpShadow, path: u8, epoch: u32) -> bool {
    let mut cold = qp.cold();
    if cold.sending == epoch {
        return true;
    }
    let Some(object) = twin::object(qp, &cold, path).filter(|_| cold.alive && qp.may_move()) else { return false };
    let Some(ops) = ops_of(qp, &cold, path) else { return false };
    let connected = cold.connected.get(usize::from(path)).copied().flatten();
    let Some(connected) = connected.filter(|connected| connected.epoch == epoch) else { return false };
    if enter_incarnation(&mut cold, path, epoch).is_none() {
        return false;
    }
    let first = u64::from(connected.own_psn);
    cold.sending = epoch;
    cold.replay_next = qp.sq.ring.head();
    let mut poster = qp.sq.poster.lock();
    poster.target = Target { qp: object, post_send: ops.post_send };
    poster.translate = path != 0;
    cold.slot(path).into_iter().for_each(|slot| poster.keys.go_to(slot));
    poster.epoch = epoch;
    poster.psn_next = first;
    poster.consuming = 0;
    poster.mtu_shift = connected.mtu.trailing_zeros();
    poster.unsignalled_run = 0;
    poster.signal_every = signal_pace(&qp.cap);
    poster.sges.reserve(post::batch_sges(qp));
    let _inner = qp.send_cq.inner.lock();
    qp.sq.signals_seen.store(poster.signals, Relaxed);
    qp.sq.errored.store(false, Relaxed);
    qp.sq.mixed_until.store(u64::MAX, Relaxed);
    qp.sq.mixed.store(true, Relaxed);
    qp.sq.epoch.store(epoch, Relaxed);
    let protected = qp.unprotected.get().is_none();
    qp.step(Stance::Masking, if protected { Stance::Armed } else { Stance::Recording });
    look_at_twin(qp);
    true
}

/// Why an entry cannot be posted now.
#[derive(Clone, Copy)]
enum Hindrance {
    /// The peer's standby key for this rkey is not known.
    Key(u32),
    /// The queue of the path is full.
    Full,
    /// It never can.
    Refused(Errno),
    /// It was refused, and may be posted all the same, so.
    Doubtful(Errno, Posting),
}

/// There is nothing right to post.
const REFUSED: Hindrance = Hindrance::Refused(Errno(libc::EINVAL));

impl Hindrance {
    fn of(self, seq: u64) -> ReplayProgress {
        let seq = WrSeq(seq);
        match self {
            Self::Key(rkey) => ReplayProgress::NeedsKey { seq, rkey },
            Self::Full => ReplayProgress::Full,
            Self::Refused(error) | Self::Doubtful(error, _) => ReplayProgress::Refused { seq, error },
        }
    }
}

/// Posts entry `seq` from `offset` on, on the current path, signalled.
fn post_recorded(
    qp: &QpShadow,
    poster: &mut Poster,
    seq: u64,
    offset: u32,
    keys: &dyn RemoteKeys,
) -> Result<Posting, Hindrance> {
    if matches!(poster.mode, PostMode::Gone | PostMode::Flushing) {
        return Err(Hindrance::Refused(Errno(libc::ENODEV)));
    }
    let slot = qp.sq.ring.slot(seq);
    let mut wr = rebuild(qp, poster, seq, offset, keys)?;
    let mut sges = elements(qp, poster, seq, offset)?;
    wr.sg_list = sges.as_mut_ptr();
    wr.num_sge = i32::try_from(sges.len()).unwrap_or(0);
    wr.wr_id = Tag::new(qp.life, Queue::Send, poster.epoch, seq).0;
    let posting = Posting {
        epoch: Epoch(poster.epoch),
        first_psn: Psn64(poster.psn_next),
        offset,
        receive_ordinal: poster.consuming,
    };
    slot.signals_before.store(poster.signals, Relaxed);
    slot.psn.store(poster.psn_next as u32, Relaxed);
    slot.epoch.store(poster.epoch, Relaxed);
    slot.unmark(HELD | FLUSHED | DONE | IN_LEDGER | DOUBTFUL);
    slot.mark(NIC_SIGNALLED);
    let mut bad = core::ptr::null_mut();
    // SAFETY: the target is the live QP object of the current path; request and elements live across the call.
    let errno = unsafe { (poster.target.post_send)(poster.target.qp.0, &mut wr, &mut bad) };
    if errno != 0 && !bad.is_null() {
        slot.mark(HELD);
        return Err(if errno == libc::ENOMEM { Hindrance::Full } else { Hindrance::Refused(Errno(errno)) });
    }
    poster.signals = poster.signals.wrapping_add(1);
    poster.psn_next += packets(slot.bytes.load(Relaxed).saturating_sub(offset), poster.mtu_shift);
    poster.consuming += u64::from(consumes(wr.opcode));
    if errno != 0 {
        // It may be in the NIC's ring (soft-RoCE's doorbell failed).
        slot.mark(DOUBTFUL);
        return Err(Hindrance::Doubtful(Errno(errno), posting));
    }
    Ok(posting)
}

/// The request as the application posted it, from `offset` on, with the keys of the current path.
fn rebuild(
    qp: &QpShadow,
    poster: &mut Poster,
    seq: u64,
    offset: u32,
    keys: &dyn RemoteKeys,
) -> Result<ibv_send_wr, Hindrance> {
    let slot = qp.sq.ring.slot(seq);
    let mut wr = ibv_send_wr::zeroed();
    wr.opcode = sabotage::posted_as(ibv_wr_opcode(u32::from(slot.opcode.load(Relaxed))));
    wr.send_flags = IBV_SEND_SIGNALED;
    if slot.has(FENCED) {
        wr.send_flags |= IBV_SEND_FENCE;
    }
    if slot.has(SOLICITED) {
        wr.send_flags |= IBV_SEND_SOLICITED;
    }
    if slot.has(INLINE) {
        wr.send_flags |= IBV_SEND_INLINE;
    }
    wr.imm.imm_data = slot.imm.load(Relaxed);
    let remote_addr = slot.remote_addr.load(Relaxed) + u64::from(offset);
    match wr.opcode {
        IBV_WR_RDMA_WRITE | IBV_WR_RDMA_WRITE_WITH_IMM | IBV_WR_RDMA_READ => {
            wr.wr.rdma = ibv_wr_rdma { remote_addr, rkey: remote_key(poster, slot, keys)? };
        }
        opcode if post::is_atomic(opcode) => {
            let rkey = remote_key(poster, slot, keys)?;
            let copies = qp.sq.copies.get().ok_or(REFUSED)?;
            let [compare_add, swap] = copies.operands(qp.sq.ring.index(seq));
            wr.wr.atomic = ibv_wr_atomic { remote_addr, compare_add, swap, rkey };
        }
        _ => {}
    }
    Ok(wr)
}

/// The key by which the peer knows the memory on the current path.
fn remote_key(poster: &mut Poster, slot: &SendSlot, keys: &dyn RemoteKeys) -> Result<u32, Hindrance> {
    let rkey = slot.rkey.load(Relaxed);
    if !poster.translate {
        return Ok(rkey);
    }
    if slot.bytes.load(Relaxed) == 0 {
        // Without a byte there is no key to check (IBA 9.7.4.1.2), and a raw key is never posted on a standby.
        return Ok(0);
    }
    match keys.remote(rkey) {
        RemoteKey::Known(twin) => {
            poster.keys.learn_remote(rkey, twin);
            Ok(twin)
        }
        RemoteKey::Unknown => poster.keys.known_remote(rkey).ok_or(Hindrance::Key(rkey)),
        RemoteKey::Absent => Err(Hindrance::Refused(Errno(libc::EACCES))),
    }
}

/// Its elements from `offset` on: out of the copies if the payload was copied at post.
fn elements(qp: &QpShadow, poster: &mut Poster, seq: u64, offset: u32) -> Result<Vec<ibv_sge>, Hindrance> {
    let slot = qp.sq.ring.slot(seq);
    let bytes = slot.bytes.load(Relaxed).saturating_sub(offset);
    if bytes == 0 {
        return Ok(Vec::new());
    }
    if slot.has(INLINE) {
        // The standby grants the same room, and inline data needs no key.
        let copies = qp.sq.copies.get().filter(|_| slot.has(COPIED)).ok_or(REFUSED)?;
        let addr = copies.at(qp.sq.ring.index(seq)) as u64 + u64::from(offset);
        return Ok(vec![ibv_sge { addr, length: bytes, lkey: 0 }]);
    }
    if slot.has(COPIED) {
        if let Some((addr, lkey)) = copied(qp, seq, poster.translate.then(|| poster.keys.slot())) {
            return Ok(vec![ibv_sge { addr: addr + u64::from(offset), length: bytes, lkey }]);
        }
        // As the NIC's own retransmission would be.
        log::warn!("QP 0x{:06x}: the copies could not be registered; replaying from the application's buffer", qp.qpn);
    }
    let mut skip = offset;
    let mut sges = Vec::new();
    for mut sge in post::recorded_sges(qp, seq) {
        let cut = skip.min(sge.length);
        skip -= cut;
        sge.addr += u64::from(cut);
        sge.length -= cut;
        if sge.length == 0 {
            continue;
        }
        if poster.translate {
            sge.lkey = poster.keys.twin_of(qp.device, sge.lkey).ok_or(REFUSED)?;
        }
        sges.push(sge);
    }
    Ok(sges)
}

/// Address and key of a copied payload on the current path; the copies are registered there at first need.
fn copied(qp: &QpShadow, seq: u64, slot: Option<u8>) -> Option<(u64, u32)> {
    let copies = qp.sq.copies.get()?;
    let place = copies.registrations.get(slot.map_or(0, |slot| 1 + usize::from(slot)))?;
    let mut mr = place.load(Acquire);
    if mr.is_null() {
        let pd = if let Some(slot) = slot {
            qp.pd.twin(slot)?.pd.0
        } else {
            // SAFETY: the application's QP is live while its shadow is being replayed (the agent holds its life).
            unsafe { (*qp.qp.0).pd }
        };
        let (addr, length) = copies.whole();
        // SAFETY: the room lives as long as the QP's shadow, and the registration is withdrawn with it.
        mr = unsafe { real::ibv_reg_mr(pd, addr.cast(), length, 0) };
        if mr.is_null() {
            return None;
        }
        place.store(mr, Release);
    }
    // SAFETY: the registration is this library's own and live.
    let lkey = unsafe { (*mr).lkey };
    Some((copies.at(qp.sq.ring.index(seq)) as u64, lkey))
}

/// Posts what was recorded while the queue was held, until posters may post directly again.
///
/// Each entry is looked at under the poster's cell and not below head: a slot that retired meanwhile may already hold a later entry.
pub fn post_held(qp: &QpShadow, keys: &dyn RemoteKeys) -> ReplayProgress {
    let ring = &qp.sq.ring;
    let mut seq = ring.head();
    loop {
        let mut poster = qp.sq.poster.lock();
        seq = seq.max(ring.head());
        if seq >= ring.tail() {
            qp.sq.mixed_until.store(seq, Relaxed);
            if poster.mode == PostMode::Held {
                poster.mode = PostMode::Direct;
            }
            return ReplayProgress::Done;
        }
        if ring.slot(seq).has(DOUBTFUL) {
            return Hindrance::Refused(Errno(libc::EIO)).of(seq);
        }
        if ring.slot(seq).has(HELD) {
            mix(qp);
            if let Err(hindrance) = post_recorded(qp, &mut poster, seq, 0, keys) {
                return hindrance.of(seq);
            }
        }
        seq += 1;
    }
}

/// Entries that the NIC signals although the application did not ask are about to be outstanding.
fn mix(qp: &QpShadow) {
    if !qp.sq.mixed.load(Relaxed) {
        let _inner = qp.send_cq.inner.lock();
        qp.sq.mixed_until.store(u64::MAX, Relaxed);
        qp.sq.mixed.store(true, Relaxed);
    }
}

/// Gives the application its error, and the events that go with it.
pub fn surface_and_say(qp: &QpShadow, status: Option<u32>) {
    let was = qp.stance();
    surface(qp, status);
    if was != Stance::Surfaced && qp.stance() == Stance::Surfaced {
        asynchronous::surfaced(qp);
        asynchronous::last_receive_is_back(qp);
    }
}

/// Gives the application its error: `status` for the oldest entry, flushes for the rest, and for all receives.
pub fn surface(qp: &QpShadow, status: Option<u32>) {
    poll::sweep(&qp.send_cq);
    poll::sweep(&qp.recv_cq);
    let first = match qp.first_error.load(Relaxed) {
        tell::ERROR_GIVEN => Some(IBV_WC_WR_FLUSH_ERR.0),
        first => first.checked_sub(1).filter(|first| *first != IBV_WC_WR_FLUSH_ERR.0),
    };
    let status = ibv_wc_status(status.or(first).unwrap_or(IBV_WC_RETRY_EXC_ERR.0));
    {
        let mut cold = qp.cold();
        let direct = qp.sq.poster.lock().mode == PostMode::Direct && qp.rq.poster.lock().mode == PostMode::Direct;
        if !cold.alive || qp.stance() == Stance::Surfaced || (qp.stance() == Stance::Passing && direct) {
            return;
        }
        qp.stand(Stance::Surfaced);
        twin::to_error(qp.qp);
        cold.twins.into_iter().flatten().for_each(|twin| twin::to_error(twin.qp));
        if qp.srq.is_some() {
            settle::leave(qp, &mut cold);
        }
    }
    flush(qp, status);
}

/// What is outstanding ends, and so does what is posted from here on.
pub fn flush(qp: &QpShadow, status: ibv_wc_status) {
    {
        let mut poster = qp.sq.poster.lock();
        poster.mode = PostMode::Flushing;
        let mut inner = qp.send_cq.inner.lock();
        let ring = &qp.sq.ring;
        let mut next = status;
        for seq in ring.head()..ring.tail() {
            poll::stash_error(&qp.send_cq, &mut inner, qp, ring.slot(seq).wr_id.load(Relaxed), next);
            next = IBV_WC_WR_FLUSH_ERR;
        }
        ring.set_head(ring.tail());
    }
    let mut poster = qp.rq.poster.lock();
    poster.mode = PostMode::Flushing;
    let mut inner = qp.recv_cq.inner.lock();
    let ring = &qp.rq.ring;
    for seq in ring.head()..ring.tail() {
        poll::stash_error(&qp.recv_cq, &mut inner, qp, ring.slot(seq).wr_id.load(Relaxed), IBV_WC_WR_FLUSH_ERR);
    }
    ring.set_head(ring.tail());
}

/// Does anything outstanding have a fate that could be an error?
pub fn could_end_in_error(qp: &QpShadow) -> bool {
    let ring = &qp.sq.ring;
    (ring.head()..ring.tail()).any(|seq| {
        let slot = ring.slot(seq);
        let at_risk =
            post::is_atomic(ibv_wr_opcode(u32::from(slot.opcode.load(Relaxed)))) || slot.has(UNKNOWN_IS_ERROR);
        // What no NIC was given, or is proven, has a fate already.
        at_risk && !slot.has(HELD | DONE)
    })
}
