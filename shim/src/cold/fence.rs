//! The fence: make the old incarnation unable to touch anything, and its counters final.
//!
//! Recipe, as measured on soft-RoCE: ERR; drain until all outstanding came back; RESET (stops the responder, keeps the
//! packet number); query rq_psn. Sampled right after ERR it was one too low in 1 to 2 % of runs with two CPUs: the responder
//! executes, then advances. So a sample before RESET is a lower bound and never leaves this module.

use crate::cold::{cq, rail, twin};
use crate::hot::{poll, post, ring};
use crate::process;
use crate::real;
use crate::sabotage::{leaves_out, Part};
use crate::shadow::*;
use core::sync::atomic::Ordering::Relaxed;
use shift_abi::*;
use shift_control::datapath::FenceProgress;
use shift_proto::id::{Epoch, Micros, PathId, Psn};
use shift_proto::ledger::{IncarnationReport, Proof};
use shift_proto::policy::ProofCap;
use std::time::{Duration, Instant};

/// Begins: the QP must be excluded. Work that is still out `drain` after ERR is not waited for: some completions never come. Of sends the peer's report
/// decides; a receive that is missing voids every proof of this end.
pub fn begin(qp: &QpShadow, drain: Micros) {
    let mut cold = qp.cold();
    if cold.fence.is_some() || !cold.alive || is_fenced(&cold) {
        return;
    }
    // Also where it became unprotected after the end had agreed to move: the flushes of this fence are not the application's.
    let _ = qp.step(Stance::Armed, Stance::Masking) || qp.step(Stance::Recording, Stance::Masking);
    hold_receives(qp);
    if leaves_out(Part::FenceFirst) {
        let early = twin::object(qp, &cold, cold.path).and_then(expected_psn);
        close(qp, &mut cold, early, true);
        log::info!("QP 0x{:06x}: counted before it is stopped", qp.qpn);
    }
    let is_left_out = leaves_out(Part::Fence) || leaves_out(Part::FenceFirst);
    let stop = |object| if is_left_out { 0 } else { twin::to_state(object, IBV_QPS_ERR) };
    let errno = twin::object(qp, &cold, cold.path).map_or(libc::ENODEV, stop);
    let drain = if leaves_out(Part::Fence) { Micros(0) } else { drain };
    cold.fence = Some(Fence {
        drained_by: Instant::now() + Duration::from_micros(drain.0),
        in_error: errno == 0,
        send_tail: qp.sq.ring.tail(),
        recv_tail: posted_receives(qp),
        stopped: None,
    });
}

/// The last incarnation is fenced already, for a migration that went no further: in RESET the QP cannot be moved to ERR again, and need not be.
fn is_fenced(cold: &QpCold) -> bool {
    cold.incarnations.last().is_some_and(|last| {
        last.closed && cold.reports.iter().any(|report| report.epoch == Epoch(last.epoch) && report.fenced)
    })
}

/// From here on receives are recorded only. Not from the exclusion on, as sends are: until the fence the peer's NIC goes on sending, and without
/// receives it would run into RNR on a path that may be healthy.
fn hold_receives(qp: &QpShadow) {
    let mut poster = qp.rq.poster.lock();
    if poster.mode == PostMode::Direct {
        poster.mode = PostMode::Held;
        poster.held_from = qp.rq.ring.tail();
    }
}

/// Receives that a NIC has seen: those recorded while held were not posted.
fn posted_receives(qp: &QpShadow) -> u64 {
    let poster = qp.rq.poster.lock();
    match poster.mode {
        PostMode::Held => poster.held_from,
        PostMode::Direct | PostMode::Flushing | PostMode::Gone => qp.rq.ring.tail(),
    }
}

/// Goes on draining; final when everything is back, or when what is missing cannot be waited for.
pub fn poll(qp: &QpShadow) -> FenceProgress {
    poll::sweep(&qp.send_cq);
    if !std::sync::Arc::ptr_eq(&qp.send_cq, &qp.recv_cq) {
        poll::sweep(&qp.recv_cq);
    }
    let mut cold = qp.cold();
    let Some(fence) = cold.fence else {
        let reports = cold.reports.clone();
        return if is_fenced(&cold) { FenceProgress::Fenced(reports) } else { FenceProgress::Failed(reports) };
    };
    if !fence.in_error || !cold.alive {
        cold.fence = None;
        close(qp, &mut cold, None, false);
        return FenceProgress::Failed(cold.reports.clone());
    }
    let sends_back = are_sends_back(qp, fence.send_tail);
    // Of an SRQ's receives none comes back: what was taken has completed once the responder stands still, after RESET.
    let receives_back = qp.srq.is_some()
        || qp.rq.ring.head() + qp.rq.flushed.load(Relaxed) >= fence.recv_tail
        || leaves_out(Part::Fence);
    let is_all_back = sends_back && receives_back;
    let is_hidden = [&qp.send_cq, &qp.recv_cq].into_iter().any(|cq| cq::is_in_call(cq));
    if is_hidden || (!is_all_back && !fence.is_over(Instant::now())) {
        return FenceProgress::Pending;
    }
    let sample = fence.stopped.or_else(|| final_psn(qp, &cold));
    if qp.srq.is_some() && sample.is_some() {
        if !poll::sweep(&qp.recv_cq) {
            cold.fence = Some(Fence { stopped: sample, ..fence });
            return FenceProgress::Pending;
        }
        qp.takes_no_more(cold.site(cold.path));
    }
    cold.fence = None;
    let complete = sample.is_some();
    close(qp, &mut cold, sample, receives_back);
    if complete {
        FenceProgress::Fenced(cold.reports.clone())
    } else {
        FenceProgress::Failed(cold.reports.clone())
    }
}

impl Fence {
    /// What is still out is not waited for.
    pub fn is_over(&self, now: Instant) -> bool {
        now >= self.drained_by
    }
}

/// Nothing more will be heard of the sends. One without a signal that the peer acknowledged gives no completion at all: a flush behind it says that its time
/// is over.
pub fn are_sends_back(qp: &QpShadow, tail: u64) -> bool {
    let mut is_later_back = false;
    (qp.sq.ring.head()..tail).rev().all(|seq| {
        let slot = qp.sq.ring.slot(seq);
        is_later_back |= slot.has(ring::FLUSHED);
        slot.has(ring::FLUSHED | ring::HELD | ring::DONE) || (is_later_back && !slot.has(ring::NIC_SIGNALLED))
    })
}

/// RESET, then the packet number that the responder expects next.
fn final_psn(qp: &QpShadow, cold: &QpCold) -> Option<Psn> {
    let object = twin::object(qp, cold, cold.path)?;
    let errno = if leaves_out(Part::Fence) { 0 } else { twin::to_state(object, IBV_QPS_RESET) };
    if errno != 0 {
        log::warn!("QP 0x{:06x} could not be fenced (errno {errno})", qp.qpn);
        return None;
    }
    expected_psn(object)
}

/// The packet number that the responder expects next; final in RESET alone.
fn expected_psn(object: Raw<ibv_qp>) -> Option<Psn> {
    let mut attr = ibv_qp_attr::zeroed();
    let mut init = ibv_qp_init_attr::zeroed();
    // SAFETY: the QP is live under the cold lock, which the caller holds; both structures are writable.
    let errno = unsafe { real::ibv_query_qp(object.0, &mut attr, IBV_QP_RQ_PSN as i32, &mut init) };
    (errno == 0).then(|| Psn::new(attr.rq_psn))
}

/// Freezes the numbers of the incarnation and writes its report.
fn close(qp: &QpShadow, cold: &mut QpCold, sample: Option<Psn>, receives_back: bool) {
    let path = cold.path;
    if let Some(connected) = cold.connected.get_mut(usize::from(path)) {
        *connected = None;
    }
    let device = twin::device(qp, cold, path);
    let frozen = freeze(qp);
    let received = qp.rq.received.load(Relaxed);
    let Some(incarnation) = cold.incarnations.last_mut() else { return };
    if incarnation.closed {
        // Drained once more after the packet lifetime: what came late counts.
        let epoch = Epoch(incarnation.epoch);
        let is_of_it = qp.rq.epoch.load(Relaxed) == epoch.0;
        let late = cold.reports.iter_mut().find(|report| report.epoch == epoch);
        if let Some(report) = late.filter(|_| is_of_it && !leaves_out(Part::FenceFirst)) {
            report.receives = report.receives.max(received);
        }
        return;
    }
    incarnation.closed = true;
    // Nothing was sent on an incarnation that ended before its replay: its numbers are those of its beginning.
    if frozen.epoch == incarnation.epoch {
        incarnation.completed = frozen.completed;
        incarnation.posted = frozen.posted;
        incarnation.completed_receives = frozen.completed_receives;
        incarnation.posted_receives = frozen.posted_receives;
    }
    let epoch = incarnation.epoch;
    let proof = sample.map_or(Proof::None, |psn| proof_of(qp, device, psn, receives_back));
    let receives = received;
    let report =
        IncarnationReport { epoch: Epoch(epoch), path: PathId(path), proof, receives, fenced: sample.is_some() };
    let cap = process::get().map_or(ProofCap::Sender, |process| process.config.proof);
    cold.reports.push(cap.limit(report));
}

/// The best proof that the provider allows. A missing receive voids the count, and a PSN says what the count says too.
fn proof_of(qp: &QpShadow, device: Option<u16>, psn: Psn, receives_back: bool) -> Proof {
    let tabled = device.and_then(rail::by_id).is_some_and(|rail| rail.psn_is_proof);
    // Where RESET may take completions out of the CQ, or is not known to end the responder, the count of an SRQ's receives proves nothing.
    match (receives_back && (tabled || qp.srq.is_none()), tabled) {
        (false, _) => Proof::None,
        (true, true) => Proof::Psn(psn),
        (true, false) => Proof::Count,
    }
}

struct Frozen {
    epoch: u32,
    completed: u64,
    posted: u64,
    completed_receives: u64,
    posted_receives: u64,
}

/// Packet numbers and receives of the incarnation that just ended.
fn freeze(qp: &QpShadow) -> Frozen {
    let poster = qp.sq.poster.lock();
    let ring = &qp.sq.ring;
    let mut completed = poster.psn_next;
    let mut outstanding_receives = 0;
    for seq in (ring.head()..ring.tail()).rev() {
        let slot = ring.slot(seq);
        if slot.has(ring::HELD | ring::DONE) || slot.epoch.load(Relaxed) != poster.epoch {
            continue;
        }
        completed = first_psn(poster.psn_next, slot.psn.load(Relaxed));
        outstanding_receives += u64::from(post::consumes(ibv_wr_opcode(u32::from(slot.opcode.load(Relaxed)))));
    }
    Frozen {
        epoch: poster.epoch,
        completed,
        posted: poster.psn_next,
        completed_receives: poster.consuming - outstanding_receives,
        posted_receives: poster.consuming,
    }
}

/// The full packet number of an entry, from its low half and the one after the last posted entry.
pub fn first_psn(next: u64, low: u32) -> u64 {
    next - u64::from((next as u32).wrapping_sub(low))
}
