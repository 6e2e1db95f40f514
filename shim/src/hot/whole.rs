//! Chains of which all is posted or nothing, as `wr_complete` and `ibv_bind_mw` promise: they are looked at before any of them is recorded.

use super::post::{fits, hold, is_atomic, is_inline_in_room, is_recorded, post_in_mode, prepare, take_back};
use crate::cold::{mr, tell};
use crate::shadow::*;
use core::ffi::c_int;
use shift_abi::*;

/// What becomes of a chain of which all is posted or nothing.
pub enum Fate {
    /// There is room for all of it, and nothing to refuse.
    Posted,
    /// It cannot be posted, with this errno.
    Refused(c_int),
    /// `post_send` has no form for a part of it, or may refuse it where the provider's own functions do not.
    ByProvider,
}

/// Looks at a chain of `count` requests before any of it is recorded. What `post_send` would refuse in its middle is refused here; the room is the
/// one that was granted, which no provider falls short of.
pub fn fate_of(qp: &QpShadow, poster: &Poster, chain: SendChain<'_>, count: u64) -> Fate {
    let held = poster.mode == PostMode::Held;
    let mut fate = Fate::Posted;
    for wr in chain {
        if !fits(qp, wr.raw()) || !is_inline_in_room(qp, wr.raw()) {
            return Fate::Refused(libc::EINVAL);
        }
        // As for single requests: neither half a request nor a raw key is posted.
        if !is_recorded(wr.opcode()) && held {
            return Fate::Refused(libc::ENOMEM);
        }
        if !is_recorded(wr.opcode()) && poster.translate {
            tell::unprotect_opcode(qp, wr.opcode());
            return Fate::Refused(libc::EOPNOTSUPP);
        }
        if is_atomic(wr.opcode()) && !is_sound(wr.raw()) {
            if held || poster.translate {
                return Fate::Refused(libc::EINVAL);
            }
            fate = Fate::ByProvider;
        }
        if !is_recorded(wr.opcode()) {
            fate = Fate::ByProvider;
        }
    }
    let limit = if held { qp.sq.ring.size() } else { u64::from(qp.cap.max_send_wr) };
    let is_room = || qp.sq.ring.tail() + count - qp.sq.ring.head() <= limit;
    if is_room() || (!held && has_room_after_sweep(qp, is_room)) {
        fate
    } else {
        Fate::Refused(libc::ENOMEM)
    }
}

/// `post_send` of soft-RoCE refuses other atomics, when those before them are posted.
fn is_sound(wr: &ibv_send_wr) -> bool {
    // SAFETY: the opcode uses the atomic form, a structure of plain integers.
    let at = unsafe { wr.wr.atomic.remote_addr };
    // SAFETY: the application's request is valid as long as its post runs.
    at.is_multiple_of(8) && unsafe { SgeList::new(wr.sg_list, wr.num_sge) }.total_bytes() >= 8
}

#[cold]
fn has_room_after_sweep(qp: &QpShadow, is_room: impl Fn() -> bool) -> bool {
    super::poll::sweep(&qp.send_cq);
    is_room()
}

/// Posts a chain that was looked at. What the provider refuses all the same, when a part of it is out already, is recorded as held: no errno can say
/// that half of a chain is posted. `true`: that is so, and it has to be surfaced.
pub fn post(qp: &QpShadow, poster: &mut Poster, first: *mut ibv_send_wr, count: usize) -> (c_int, bool) {
    let before = qp.sq.ring.tail();
    // SAFETY: the caller linked so many requests, which live as long as its cell is held.
    let chain = |first| unsafe { SendChain::new(first, count) };
    let (errno, bad) = post_in_mode(qp, poster, chain(first), first);
    let out = qp.sq.ring.tail() - before;
    // The first that is not out; where the provider did not say which it refused (its doorbell failed) all are taken to be out.
    let is_rest = chain(first).nth(out as usize).is_some_and(|wr| wr.as_ptr() == bad);
    if errno == 0 || out == 0 || !is_rest {
        return (errno, false);
    }
    poster.mode = PostMode::Held;
    (hold(qp, poster, chain(bad)).0, true)
}

/// `ibv_bind_mw` on a recorded QP, which is unprotected from here on: the window would be bound on one of the two paths only. Its request is recorded
/// as any is, so that its completion is known; the provider makes and posts it.
///
/// # Safety
/// `window` and `bind` are what the application gave to `ibv_bind_mw`, `provider` is the provider's function of it.
pub unsafe fn bind_mw(qp: &QpShadow, provider: bind_mw_fn, window: *mut ibv_mw, bind: *mut ibv_mw_bind) -> c_int {
    mr::note_window(&qp.pd);
    let mut poster = qp.sq.poster.lock();
    // SAFETY: the caller vouches for the structure.
    let mut bind = unsafe { bind.read() };
    let mut wr = ibv_send_wr::zeroed();
    (wr.wr_id, wr.opcode, wr.send_flags) = (bind.wr_id, IBV_WR_BIND_MW, bind.send_flags);
    // SAFETY: one request that lives until this returns.
    let chain = unsafe { SendChain::new(&mut wr, 1) };
    if poster.mode != PostMode::Direct {
        return post_in_mode(qp, &mut poster, chain, core::ptr::null_mut()).0;
    }
    if let Fate::Refused(errno) = fate_of(qp, &poster, chain, 1) {
        return errno;
    }
    let seq = qp.sq.ring.tail();
    let Some(copy) = prepare(qp, &mut poster, &wr, seq) else { return libc::EOPNOTSUPP };
    (bind.wr_id, bind.send_flags) = (copy.wr_id, copy.send_flags);
    qp.sq.ring.set_tail(seq + 1);
    // SAFETY: the QP is live, and the copy of the application's structure is readable.
    let errno = unsafe { provider(qp.qp.0, window, &mut bind) };
    if errno != 0 {
        take_back(qp, &mut poster, seq, seq + 1);
    }
    errno
}
