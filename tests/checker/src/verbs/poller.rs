//! Polling a completion queue, which several threads may do at once.

use super::{extended, Result, VerbError};
use crate::args::Api;
use shift_abi::{ibv_context, ibv_cq, ibv_wc};
use std::ffi::c_int;
use std::ptr::NonNull;

/// Completions fetched in one call.
const POLL_BATCH: usize = 16;

/// One poller of a completion queue.
#[derive(Debug)]
pub struct Poller {
    context: NonNull<ibv_context>,
    cq: NonNull<ibv_cq>,
    wcs: Vec<ibv_wc>,
    api: Api,
}

// SAFETY: verbs may be called by any thread, and each poller has an array of its own.
unsafe impl Send for Poller {}

impl Poller {
    pub(super) fn new(context: NonNull<ibv_context>, cq: NonNull<ibv_cq>, api: Api) -> Self {
        Self { context, cq, wcs: vec![ibv_wc::zeroed(); POLL_BATCH], api }
    }

    pub(super) const fn cq(&self) -> NonNull<ibv_cq> {
        self.cq
    }

    /// Appends the completions that are there to `out`, a batch at most; how many there were.
    pub fn poll(&mut self, out: &mut Vec<ibv_wc>) -> Result<usize> {
        if self.api != Api::Plain {
            return extended::poll(self.cq, POLL_BATCH, out, self.api);
        }
        // SAFETY: the context is open. `ops` is read anew each time, as the inline ibv_poll_cq reads it.
        let poll_cq = unsafe { (*self.context.as_ptr()).ops.poll_cq };
        let poll_cq = poll_cq.ok_or_else(|| VerbError::says("ibv_poll_cq", "no such operation".to_owned()))?;
        // SAFETY: the CQ is of this context, and there is room for POLL_BATCH completions.
        let count = unsafe { poll_cq(self.cq.as_ptr(), POLL_BATCH as c_int, self.wcs.as_mut_ptr()) };
        let count = usize::try_from(count).map_err(|_| VerbError::with("ibv_poll_cq", count.saturating_neg()))?;
        out.extend(self.wcs.iter().take(count));
        for wc in self.wcs.iter_mut().take(count) {
            *wc = ibv_wc { wr_id: !0, qp_num: !0, ..ibv_wc::zeroed() };
        }
        Ok(count)
    }
}
