//! The hooks on the way of requests and completions of devices that break or refuse (`break`, `post-refused`).
//!
//! One lock orders posts and polls of all such devices: what is outstanding is then known exactly, whoever polls.

use crate::device::{locked, originals, Device};
use crate::fault::Kind;
use crate::traffic::{due, failed, Fate, Flow, Flows};
use shift_abi::*;
use std::ffi::c_int;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard};

static FLOWS: Mutex<Option<Flows>> = Mutex::new(None);

fn flows() -> MutexGuard<'static, Option<Flows>> {
    locked(&FLOWS)
}

/// # Safety
///
/// The contract of `ibv_post_send`.
pub(crate) unsafe extern "C" fn post_send(qp: *mut ibv_qp, wr: *mut ibv_send_wr, bad: *mut *mut ibv_send_wr) -> c_int {
    // SAFETY: the caller's queue pair is open.
    let context = unsafe { (*qp).context };
    // SAFETY: as above.
    let number = unsafe { (*qp).qp_num };
    // SAFETY: as above.
    let cq = unsafe { (*qp).send_cq };
    let Some(post) = originals(context).post_send else { return libc::EOPNOTSUPP };
    // SAFETY: the context of an open queue pair is open.
    let device = unsafe { Device::of_context(context) };
    if device.is_gone() {
        return 0;
    }
    let mut flows = flows();
    let flow = flows.get_or_insert_default().entry((cq as usize, number)).or_default();
    // SAFETY: passed on from the caller.
    let chain = unsafe { requests(wr) };
    let every = device.kinds().find_map(|kind| if let Kind::PostRefused(every) = kind { Some(every) } else { None });
    let refused = every.and_then(|every| flow.refuses(every, chain.len()));
    let Some(at) = refused else {
        // SAFETY: the caller's own arguments, passed on to the function that stood in this slot.
        let errno = unsafe { post(qp, wr, bad) };
        // SAFETY: the provider wrote `bad` if it refused a request.
        let first_bad = if errno == 0 { null_mut() } else { unsafe { *bad } };
        note(flow, chain.iter().copied().take_while(|&each| errno == 0 || each != first_bad));
        return errno;
    };
    device.say("a chain is refused in its midst");
    let (accepted, rest) = chain.split_at(at);
    let (Some(&last), Some(&first_refused)) = (accepted.last(), rest.first()) else { return libc::EINVAL };
    // SAFETY: the chain is the caller's, and his alone during the call; it is whole again before this function returns.
    unsafe { (*last).next = null_mut() };
    // SAFETY: the first part of the caller's chain, which ends before the refused request.
    let errno = unsafe { post(qp, wr, bad) };
    // SAFETY: as above.
    unsafe { (*last).next = first_refused };
    if errno != 0 {
        return errno;
    }
    note(flow, accepted.iter().copied());
    // SAFETY: the caller's `bad_wr` is writable.
    unsafe { *bad = first_refused };
    libc::ENOMEM
}

/// A queue pair was moved to RESET.
///
/// # Safety
///
/// `qp` is open.
pub(crate) unsafe fn reset(qp: *mut ibv_qp) {
    // SAFETY: the caller vouches for the queue pair.
    let cq = unsafe { (*qp).send_cq };
    // SAFETY: as above.
    let number = unsafe { (*qp).qp_num };
    if let Some(flow) = flows().as_mut().and_then(|flows| flows.get_mut(&(cq as usize, number))) {
        flow.reset();
    }
}

/// # Safety
///
/// `wr` is the first of a chain of requests.
unsafe fn requests(wr: *mut ibv_send_wr) -> Vec<*mut ibv_send_wr> {
    let mut chain = Vec::new();
    let mut next = wr;
    while !next.is_null() {
        chain.push(next);
        // SAFETY: the caller vouches for the chain.
        next = unsafe { (*next).next };
    }
    chain
}

/// Remembers requests that the provider took.
fn note(flow: &mut Flow, posted: impl Iterator<Item = *mut ibv_send_wr>) {
    for wr in posted {
        // SAFETY: the caller's chain lives as long as his call, in which this is.
        let wr = unsafe { &*wr };
        if wr.num_sge > 0 && wr.send_flags & IBV_SEND_SIGNALED != 0 {
            flow.posted(wr.wr_id);
        }
    }
}

/// # Safety
///
/// The contract of `ibv_poll_cq`.
pub(crate) unsafe extern "C" fn poll_cq(cq: *mut ibv_cq, entries: c_int, wcs: *mut ibv_wc) -> c_int {
    // SAFETY: the caller's completion queue is open.
    let context = unsafe { (*cq).context };
    let Some(poll) = originals(context).poll_cq else { return -libc::EOPNOTSUPP };
    // SAFETY: the context of an open completion queue is open.
    let device = unsafe { Device::of_context(context) };
    if device.is_gone() {
        return 0;
    }
    let least = device.kinds().find_map(|kind| if let Kind::Break(least) = kind { Some(least) } else { None });
    let mut flows = flows();
    // SAFETY: the caller's own arguments, passed on to the function that stood in this slot.
    let taken = unsafe { poll(cq, entries, wcs) };
    let (Ok(count), Some(least)) = (usize::try_from(taken), least) else { return taken };
    let flows = flows.get_or_insert_default();
    let room = usize::try_from(entries).unwrap_or(0);
    let mut out = Vec::with_capacity(room);
    for at in 0..count {
        // SAFETY: the provider wrote so many completions.
        let wc = unsafe { wcs.wrapping_add(at).read() };
        let number = wc.qp_num;
        let flow = flows.get_mut(&(cq as usize, number));
        match flow.map_or(Fate::Pass, |flow| flow.completed(wc.wr_id, wc.status == IBV_WC_SUCCESS, due(least, number)))
        {
            Fate::Pass => out.push(wc),
            Fate::Break => out.push(failed(wc.wr_id, number, IBV_WC_RETRY_EXC_ERR)),
            Fate::Flush => out.push(failed(wc.wr_id, number, IBV_WC_WR_FLUSH_ERR)),
            Fate::Drop => {}
        }
    }
    for ((_, number), flow) in flows.range_mut((cq as usize, 0)..=(cq as usize, u32::MAX)) {
        if out.len() >= room {
            break;
        }
        if let Some(wr_id) = flow.breaks(due(least, *number)) {
            device.say("a queue pair breaks");
            out.push(failed(wr_id, *number, IBV_WC_RETRY_EXC_ERR));
        }
    }
    for (at, wc) in out.iter().enumerate() {
        // SAFETY: the caller's array has room for `entries`, and no more were collected.
        unsafe { wcs.wrapping_add(at).write(*wc) };
    }
    c_int::try_from(out.len()).unwrap_or(entries)
}
