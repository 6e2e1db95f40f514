//! A shared receive queue.

use super::{check, ReceiveRequest, Region, Result, VerbError};
use shift_abi::*;
use std::ffi::c_int;
use std::ptr::{null_mut, NonNull};

extern "C" {
    fn ibv_create_srq(pd: *mut ibv_pd, attr: *mut ibv_srq_init_attr) -> *mut ibv_srq;
    fn ibv_destroy_srq(srq: *mut ibv_srq) -> c_int;
}

/// A shared receive queue.
#[derive(Debug)]
pub struct Srq {
    srq: NonNull<ibv_srq>,
}

impl Srq {
    pub(super) fn new(pd: NonNull<ibv_pd>, receives: u32) -> Result<Self> {
        let attr = ibv_srq_attr { max_wr: receives, max_sge: 1, srq_limit: 0 };
        let mut init = ibv_srq_init_attr { srq_context: null_mut(), attr };
        // SAFETY: the PD is open; the attributes are writable, for the granted sizes.
        let srq = unsafe { ibv_create_srq(pd.as_ptr(), &mut init) };
        NonNull::new(srq).map(|srq| Self { srq }).ok_or_else(|| VerbError::last("ibv_create_srq"))
    }

    pub(super) const fn as_ptr(&self) -> *mut ibv_srq {
        self.srq.as_ptr()
    }

    /// Posts one receive.
    pub fn post_receive(&self, region: &Region, request: ReceiveRequest) -> Result<()> {
        let mut sge = request.element(region);
        let mut wr = request.naming(sge.as_mut());
        // SAFETY: the queue is open, and so is its context.
        let context = unsafe { (*self.srq.as_ptr()).context };
        // SAFETY: as above. `ops` is read anew each time, as the inline ibv_post_srq_recv reads it.
        let post = unsafe { (*context).ops.post_srq_recv };
        let Some(post) = post else {
            return Err(VerbError::says("ibv_post_srq_recv", "no such operation".to_owned()));
        };
        let mut bad: *mut ibv_recv_wr = null_mut();
        // SAFETY: the work request and its element live until the call returns, its memory lies in a region that
        // outlives the queue.
        check("ibv_post_srq_recv", unsafe { post(self.srq.as_ptr(), &mut wr, &mut bad) })
    }

    pub(super) fn destroy(self) -> Result<()> {
        // SAFETY: `self` is consumed and its queue pairs are destroyed, so nobody names the queue any more.
        check("ibv_destroy_srq", unsafe { ibv_destroy_srq(self.srq.as_ptr()) })
    }
}
