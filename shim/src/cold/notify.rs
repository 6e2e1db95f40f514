//! When a completion event is due that no NIC makes.
//!
//! The application arms a CQ by `ibv_req_notify_cq`; then the next completion makes one event. A NIC sees to its own completions; the twin's NIC is armed too, once a
//! QP of the CQ works there. What is left are completions that wait in the stash: those that this library made, and those that were taken
//! from a NIC while nobody could take them. Two rules keep a wake-up from being lost: arm first, then look; and whoever adds to the stash looks
//! whether the CQ is armed, under the lock under which the other one looked.
//!
//! An event too many is allowed by verbs (the program polls, finds nothing and arms again); one too few is not.

use crate::cold::channel::ChannelShadow;
use crate::hot::poll;
use crate::shadow::{CqInner, CqShadow, QpShadow, Raw, StashedWc, TWIN};
use core::ffi::c_int;
use core::sync::atomic::Ordering::SeqCst;
use shift_abi::*;

/// In `CqShadow::armed`: any completion makes an event.
pub const ANY: u8 = 1;
/// Only an error, or the receive of a message whose sender asked for it.
pub const SOLICITED: u8 = 2;
/// Beside one of both: an event of a NIC came since, perhaps of an earlier arming whose event nobody had read yet. So it does not end this one for the
/// completions that no NIC tells of.
pub const HEARD: u8 = 4;

/// What the application asked for.
fn asked_for(cq: &CqShadow) -> u8 {
    cq.armed.load(SeqCst) & !HEARD
}

/// The application asked for an event, and no NIC made one since.
pub fn is_fresh(cq: &CqShadow) -> bool {
    matches!(cq.armed.load(SeqCst), ANY | SOLICITED)
}

/// An event of a NIC goes out.
pub fn heard(cq: &CqShadow) {
    // An exchange that fails finds the CQ armed again, or an event of our own made: both are newer.
    let armed = cq.armed.load(SeqCst);
    if armed != 0 {
        let _ = cq.armed.compare_exchange(armed, armed | HEARD, SeqCst, SeqCst);
    }
}

/// What a CQ is armed for that was armed so before: until an event came, the wider of both holds.
const fn wider(before: u8, kind: u8) -> u8 {
    if before == ANY {
        ANY
    } else {
        kind
    }
}

/// `ibv_req_notify_cq` on a CQ with a shadow.
///
/// # Safety
/// The CQ is live.
pub unsafe fn request(cq: &CqShadow, solicited_only: c_int) -> c_int {
    let Some(arm) = cq.ops.req_notify_cq else { return libc::ENOSYS };
    let Some(channel) = &cq.channel else {
        // SAFETY: passed on.
        return unsafe { arm(cq.cq.0, solicited_only) };
    };
    let kind = if solicited_only == 0 { ANY } else { SOLICITED };
    let before = cq.armed.load(SeqCst);
    let kind = wider(before, kind);
    cq.armed.store(kind, SeqCst);
    // SAFETY: passed on.
    let errno = unsafe { arm(cq.cq.0, solicited_only) };
    // The primary may be gone; what has a twin goes on there, and is armed there by whoever sets TWIN.
    if errno != 0 && cq.inner.lock().twins.is_empty() {
        cq.armed.store(before, SeqCst);
        return errno;
    }
    // The agent sets TWIN, then looks at `armed`; this one the other way round: one of both arms the twin.
    if cq.attention.load(SeqCst) & TWIN != 0 {
        arm_twins_of(cq, kind);
    }
    let inner = cq.inner.lock();
    if is_due(&inner, kind, true) {
        raise(cq, channel);
    }
    0
}

/// Something was put into the stash, or is still there. Called with the lock of the CQ.
#[cold]
pub fn stashed(cq: &CqShadow, inner: &CqInner) {
    let kind = asked_for(cq);
    let Some(channel) = cq.channel.as_ref().filter(|_| kind != 0) else { return };
    // What had to wait for its predecessor had its event when nobody could get it yet.
    let is_late = cq.late.swap(false, SeqCst);
    if is_due(inner, kind, is_late) {
        raise(cq, channel);
    }
}

/// Of a receive nobody knows any more whether its sender asked for an event: `with_receives` takes it for one who did.
fn is_due(inner: &CqInner, kind: u8, with_receives: bool) -> bool {
    let concerns = |stashed: &StashedWc| {
        let is_receive = stashed.wc.opcode.0 & IBV_WC_RECV.0 != 0;
        stashed.wc.status != IBV_WC_SUCCESS || (is_receive && with_receives)
    };
    match kind {
        ANY => !inner.stash.is_empty(),
        _ => inner.stash.iter().any(concerns),
    }
}

/// One event for each time that the application armed the CQ.
fn raise(cq: &CqShadow, channel: &ChannelShadow) {
    if cq.armed.swap(0, SeqCst) != 0 {
        channel.raise(cq.cq.0);
    }
}

/// From now on completions come from the twins: those of CQs that the application has armed are armed, and looked at after that.
pub fn arm_twins(qp: &QpShadow) {
    for cq in [&qp.send_cq, &qp.recv_cq] {
        let kind = asked_for(cq);
        if cq.channel.is_some() && kind != 0 {
            arm_twins_of(cq, kind);
            poll::sweep(cq);
        }
    }
}

fn arm_twins_of(cq: &CqShadow, kind: u8) {
    // By number: the lock is not held across a call of the provider's. A twin that is made meanwhile belongs to nobody who has moved.
    let mut at = 0;
    while let Some(twin) = { cq.inner.lock().twins.get(at).copied() } {
        arm_twin(twin.cq, kind);
        at += 1;
    }
}

fn arm_twin(twin: Raw<ibv_cq>, kind: u8) {
    // SAFETY: the twin is this library's own, made on a rail's context, which is open for ever.
    let context = unsafe { (*twin.0).context };
    // SAFETY: as above.
    let Some(arm) = (unsafe { (*context).ops.req_notify_cq }) else { return };
    // SAFETY: the twin lives as long as the application's CQ, on which a call is under way, or whose QP the agent holds.
    let errno = unsafe { arm(twin.0, c_int::from(kind == SOLICITED)) };
    if errno != 0 {
        // The agent looks at the CQ every few milliseconds, and raises what it finds.
        log::debug!("a CQ on the standby could not be armed (errno {errno})");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stash(entries: &[(ibv_wc_status, ibv_wc_opcode)]) -> CqInner {
        let mut inner = CqInner::default();
        for (status, opcode) in entries {
            let mut wc = ibv_wc::zeroed();
            (wc.status, wc.opcode) = (*status, *opcode);
            inner.stash.push_back(StashedWc { wc, life: 1, more: crate::hot::poll_ex::MoreWc::NONE });
        }
        inner
    }

    #[test]
    fn any_completion_is_due_where_any_was_asked_for() {
        assert!(!is_due(&stash(&[]), ANY, true));
        assert!(is_due(&stash(&[(IBV_WC_SUCCESS, IBV_WC_SEND)]), ANY, false));
    }

    #[test]
    fn errors_and_late_receives_are_due_where_solicited_ones_were_asked_for() {
        assert!(!is_due(&stash(&[(IBV_WC_SUCCESS, IBV_WC_RDMA_WRITE)]), SOLICITED, true));
        assert!(!is_due(&stash(&[(IBV_WC_SUCCESS, IBV_WC_RECV)]), SOLICITED, false));
        assert!(is_due(&stash(&[(IBV_WC_SUCCESS, IBV_WC_RECV_RDMA_WITH_IMM)]), SOLICITED, true));
        assert!(is_due(&stash(&[(IBV_WC_WR_FLUSH_ERR, IBV_WC_SEND)]), SOLICITED, false));
    }
}
