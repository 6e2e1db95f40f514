//! Takes receives back out of a shared receive queue that its group has left. Verbs has no call for that: a receive leaves an SRQ only by being taken. So a
//! queue pair of this library's own takes them: another one, connected to it on the same port, sends it empty messages until the SRQ has nothing
//! left, which a receiver says at once (RNR, and the sender does not try again). An empty message writes nothing.

use crate::cold::{rail, twin};
use crate::real;
use crate::shadow::Raw;
use core::ffi::c_int;
use shift_abi::*;
use shift_control::datapath::Errno;
use std::time::{Duration, Instant};

/// Empty messages on their way at a time.
const DEPTH: u32 = 32;
/// How long one call works on it.
const SHARE: Duration = Duration::from_millis(5);

/// The two queue pairs. Dropped, they are destroyed at once: their PD may be the application's.
pub struct Withdrawal {
    cq: Raw<ibv_cq>,
    sender: Raw<ibv_qp>,
    taker: Raw<ibv_qp>,
    out: u32,
    taken: u64,
}

/// Goes on, or begins. `Err(EAGAIN)`: there may be more; else how many there were.
pub fn go_on(
    under_way: &mut Option<Withdrawal>,
    srq: Raw<ibv_srq>,
    rail: &rail::Rail,
    gid: &ibv_gid_entry,
) -> Result<u64, Errno> {
    if under_way.is_none() {
        *under_way = Some(Withdrawal::begin(srq, rail, gid)?);
    }
    let Some(withdrawal) = under_way else { return Err(Errno(libc::EIO)) };
    let result = withdrawal.work(rail, Instant::now() + SHARE);
    if !matches!(result, Err(Errno(libc::EAGAIN))) {
        *under_way = None;
    }
    result
}

impl Withdrawal {
    fn begin(srq: Raw<ibv_srq>, rail: &rail::Rail, gid: &ibv_gid_entry) -> Result<Self, Errno> {
        // SAFETY: the SRQ is live: a queue pair that is alive is attached to it, so that the kernel refuses to destroy it.
        let pd = unsafe { (*srq.0).pd };
        // SAFETY: as above.
        let context = unsafe { (*srq.0).context };
        let none: *mut core::ffi::c_void = core::ptr::null_mut();
        // SAFETY: the context is open as long as the SRQ is live.
        let cq = unsafe { real::ibv_create_cq(context, 2 * DEPTH as c_int, none.cast(), none.cast(), 0) };
        if cq.is_null() {
            return Err(last_errno());
        }
        let make = |srq: *mut ibv_srq| {
            let mut init = ibv_qp_init_attr::zeroed();
            (init.send_cq, init.recv_cq, init.srq, init.qp_type) = (cq, cq, srq, IBV_QPT_RC);
            init.cap =
                ibv_qp_cap { max_send_wr: DEPTH, max_recv_wr: 1, max_send_sge: 1, max_recv_sge: 1, max_inline_data: 0 };
            // SAFETY: PD, CQ and SRQ are live and of one context.
            Raw(unsafe { real::ibv_create_qp(pd, &mut init) })
        };
        let this = Self { cq: Raw(cq), sender: make(none.cast()), taker: make(srq.0), out: 0, taken: 0 };
        if this.sender.0.is_null() || this.taker.0.is_null() {
            return Err(last_errno());
        }
        connect(this.sender, this.taker, rail, gid)?;
        connect(this.taker, this.sender, rail, gid)?;
        Ok(this)
    }

    /// One that has sent nothing yet.
    #[cfg(test)]
    pub fn half_way() -> Self {
        let none = core::ptr::null_mut();
        Self { cq: Raw(none), sender: Raw(none.cast()), taker: Raw(none.cast()), out: 0, taken: 0 }
    }

    fn work(&mut self, rail: &rail::Rail, until: Instant) -> Result<u64, Errno> {
        loop {
            self.send(rail)?;
            let mut wcs = [ibv_wc::zeroed(); DEPTH as usize];
            // SAFETY: the CQ is this library's own and live; there is room for DEPTH.
            let taken = unsafe { (rail.ops.poll_cq)(self.cq.0, DEPTH as c_int, wcs.as_mut_ptr()) };
            for wc in wcs.iter().take(usize::try_from(taken).unwrap_or(0)) {
                match wc.status {
                    // What it took has a tag or is of the sender, whose `wr_id` is 0 and whose opcode says so.
                    IBV_WC_SUCCESS if wc.opcode == IBV_WC_SEND => {
                        self.out -= 1;
                        self.taken += 1;
                    }
                    IBV_WC_SUCCESS => {}
                    IBV_WC_RNR_RETRY_EXC_ERR => return Ok(self.taken),
                    _ => return Err(Errno(libc::EIO)),
                }
            }
            if Instant::now() >= until {
                return Err(Errno(libc::EAGAIN));
            }
        }
    }

    fn send(&mut self, rail: &rail::Rail) -> Result<(), Errno> {
        while self.out < DEPTH / 2 {
            let mut wr = ibv_send_wr::zeroed();
            (wr.opcode, wr.send_flags) = (IBV_WR_SEND, IBV_SEND_SIGNALED);
            let mut bad = core::ptr::null_mut();
            // SAFETY: the QP is this library's own and live; the request lives across the call.
            let errno = unsafe { (rail.ops.post_send)(self.sender.0, &mut wr, &mut bad) };
            if errno != 0 {
                return Err(Errno(errno));
            }
            self.out += 1;
        }
        Ok(())
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        for qp in [self.sender, self.taker].into_iter().filter(|qp| !qp.0.is_null()) {
            // SAFETY: the QP is this library's own and nobody uses it any more.
            unsafe { real::ibv_destroy_qp(qp.0) };
        }
        // SAFETY: as above, and its queue pairs are gone.
        unsafe { real::ibv_destroy_cq(self.cq.0) };
    }
}

fn last_errno() -> Errno {
    Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO))
}

fn connect(qp: Raw<ibv_qp>, to: Raw<ibv_qp>, rail: &rail::Rail, gid: &ibv_gid_entry) -> Result<(), Errno> {
    let entry = rail.gid_again(gid, rail.port).ok_or(Errno(libc::ENODEV))?;
    let mut attr = ibv_qp_attr::zeroed();
    attr.port_num = rail.port;
    attr.path_mtu = IBV_MTU_256;
    // SAFETY: both QPs are this library's own and live.
    attr.dest_qp_num = unsafe { (*to.0).qp_num };
    // Half a second of retries for a lost packet; none for a receive that is not there.
    (attr.timeout, attr.retry_cnt, attr.rnr_retry, attr.min_rnr_timer) = (14, 6, 0, 1);
    attr.ah_attr.is_global = 1;
    attr.ah_attr.port_num = rail.port;
    attr.ah_attr.grh.dgid.raw = entry.gid.raw;
    attr.ah_attr.grh.sgid_index = u8::try_from(entry.gid_index).unwrap_or(0);
    attr.ah_attr.grh.hop_limit = 64;
    twin::to_state_by_steps(qp, &mut attr, IBV_QPS_RTS)
}
