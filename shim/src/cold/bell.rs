//! Wakes a thread that sleeps on libibverbs' own descriptor for asynchronous events, where this library has one to tell: only the kernel makes that
//! descriptor readable. A queue pair of an SRQ that is moved from INIT to ERR has it say LAST_WQE_REACHED (soft-RoCE does), which is dropped when it is taken.

use crate::cold::twin;
use crate::real;
use crate::shadow::Raw;
use shift_abi::*;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Addresses of the queue pairs that are bells.
static BELLS: Mutex<Vec<usize>> = Mutex::new(Vec::new());

fn bells() -> MutexGuard<'static, Vec<usize>> {
    BELLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Is this queue pair one of ours, of which nothing is to be told?
pub fn is_bell(qp: *mut ibv_qp) -> bool {
    bells().contains(&(qp as usize))
}

/// A queue pair of this library's own on the application's context. While it is there an event that nobody has taken stays where it wakes.
pub struct Bell {
    qp: Raw<ibv_qp>,
    cq: Raw<ibv_cq>,
}

impl Bell {
    /// One that rings on the context of that SRQ, which must not be destroyed before it.
    pub fn new(srq: Raw<ibv_srq>) -> Option<Self> {
        // SAFETY: the caller keeps the SRQ, here and below.
        let pd = unsafe { (*srq.0).pd };
        // SAFETY: as above.
        let context = unsafe { (*srq.0).context };
        let none: *mut core::ffi::c_void = core::ptr::null_mut();
        // SAFETY: the context is open as long as the SRQ is live.
        let cq = unsafe { real::ibv_create_cq(context, 1, none.cast(), none.cast(), 0) };
        if cq.is_null() {
            return None;
        }
        let mut init = ibv_qp_init_attr::zeroed();
        (init.send_cq, init.recv_cq, init.srq, init.qp_type) = (cq, cq, srq.0, IBV_QPT_RC);
        init.cap = ibv_qp_cap { max_send_wr: 1, max_recv_wr: 1, max_send_sge: 1, max_recv_sge: 1, max_inline_data: 0 };
        // SAFETY: PD, CQ and SRQ are live and of one context.
        let qp = unsafe { real::ibv_create_qp(pd, &mut init) };
        if qp.is_null() {
            // SAFETY: the CQ is this library's own and nobody uses it.
            unsafe { real::ibv_destroy_cq(cq) };
            return None;
        }
        bells().push(qp as usize);
        Some(Self { qp: Raw(qp), cq: Raw(cq) })
    }

    /// Rings.
    pub fn ring(&self, port: u8) {
        let mut attr = ibv_qp_attr::zeroed();
        attr.port_num = port;
        match twin::to_state_by_steps(self.qp, &mut attr, IBV_QPS_INIT) {
            Ok(()) => twin::to_error(self.qp),
            Err(error) => log::debug!("no bell for an asynchronous event ({error})"),
        }
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        // SAFETY: the queue pair is this library's own and nobody uses it; what was not taken of its events goes with it.
        unsafe { real::ibv_destroy_qp(self.qp.0) };
        bells().retain(|bell| *bell != self.qp.0 as usize);
        // SAFETY: as above, and its queue pair is gone.
        unsafe { real::ibv_destroy_cq(self.cq.0) };
    }
}
