//! `ibv_start_poll`, `ibv_next_poll`, `ibv_end_poll` and the readers of an extended completion queue.
//!
//! A completion goes the way that `ibv_poll_cq` goes, out of the provider's queue, the twin's and the stash, and is given out whole: the readers answer
//! from a copy. So the provider's lock is never held while the application's code runs between start and end: what it posts there may have to make room
//! in its own queue, and the agent may have to fence, and neither waits for an `ibv_end_poll`. Only threads that poll the same queue wait for one
//! another, spinning, as they do for the provider's lock.
//!
//! What `ibv_wc` has no field for (time stamps, tags) is read by the provider's own readers. These write `status` and `wr_id`, which the application
//! reads while its poll is open: so the agent takes such completions only while no poll is open, and else waits.

use super::poll;
use crate::cold::cq::CQS;
use crate::shadow::{CqShadow, Raw, StashedWc};
use crate::spin::{HeldCell, HeldGuard};
use core::ffi::{c_int, c_uint};
use core::sync::atomic::Ordering::Relaxed;
use shift_abi::*;

/// What `ibv_wc` has no field for.
const BEYOND_WC: u64 = IBV_WC_EX_WITH_COMPLETION_TIMESTAMP
    | IBV_WC_EX_WITH_CVLAN
    | IBV_WC_EX_WITH_FLOW_TAG
    | IBV_WC_EX_WITH_TM_INFO
    | IBV_WC_EX_WITH_COMPLETION_TIMESTAMP_WALLCLOCK;
/// What `ibv_wc` has fields for.
pub const OF_WC: u64 = IBV_WC_EX_WITH_BYTE_LEN
    | IBV_WC_EX_WITH_IMM
    | IBV_WC_EX_WITH_QP_NUM
    | IBV_WC_EX_WITH_SRC_QP
    | IBV_WC_EX_WITH_SLID
    | IBV_WC_EX_WITH_SL
    | IBV_WC_EX_WITH_DLID_PATH_BITS;
/// All that is understood here.
pub const KNOWN: u64 = OF_WC | BEYOND_WC;

/// Of these fields, does `ibv_wc` lack any?
pub const fn is_beyond_wc(wc_flags: u64) -> bool {
    wc_flags & BEYOND_WC != 0
}

/// The fields of a completion that `ibv_wc` does not have.
#[derive(Clone, Copy)]
pub struct MoreWc {
    completion_ts: u64,
    wallclock_ns: u64,
    tm: ibv_wc_tm_info,
    flow_tag: u32,
    cvlan: u16,
}

impl MoreWc {
    /// Nothing is known.
    pub const NONE: Self =
        Self { completion_ts: 0, wallclock_ns: 0, tm: ibv_wc_tm_info::zeroed(), flow_tag: 0, cvlan: 0 };
}

macro_rules! readers {
    ($($reader:ident -> $ret:ty = $none:expr;)*) => {
        /// A provider's own functions of one extended queue.
        #[derive(Clone, Copy)]
        pub struct CqReads {
            queue: Raw<ibv_cq_ex>,
            start_poll: unsafe extern "C" fn(*mut ibv_cq_ex, *mut ibv_poll_cq_attr) -> c_int,
            end_poll: unsafe extern "C" fn(*mut ibv_cq_ex),
            read_tm_info: Option<unsafe extern "C" fn(*mut ibv_cq_ex, *mut ibv_wc_tm_info)>,
            $($reader: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> $ret>,)*
        }

        impl CqReads {
            /// Those of a queue; `None` if it cannot be polled so.
            ///
            /// # Safety
            /// The queue is live and nobody hooked it.
            pub unsafe fn of(queue: *mut ibv_cq_ex) -> Option<Self> {
                // SAFETY: the caller vouches for the queue, here and below.
                let (start_poll, end_poll) = (unsafe { (*queue).start_poll }?, unsafe { (*queue).end_poll }?);
                Some(Self {
                    queue: Raw(queue),
                    start_poll,
                    end_poll,
                    // SAFETY: as above.
                    read_tm_info: unsafe { (*queue).read_tm_info },
                    // SAFETY: as above.
                    $($reader: unsafe { (*queue).$reader },)*
                })
            }

            $(fn $reader(&self) -> $ret {
                // SAFETY: the provider's reader of its own live queue, between its start and its end.
                self.$reader.map_or($none, |read| unsafe { read(self.queue.0) })
            })*
        }
    };
}

readers! {
    read_vendor_err -> u32 = 0;
    read_byte_len -> u32 = 0;
    read_imm_data -> u32 = 0;
    read_qp_num -> u32 = 0;
    read_src_qp -> u32 = 0;
    read_wc_flags -> c_uint = 0;
    read_slid -> u32 = 0;
    read_sl -> u8 = 0;
    read_dlid_path_bits -> u8 = 0;
    read_completion_ts -> u64 = 0;
    read_completion_wallclock_ns -> u64 = 0;
    read_cvlan -> u16 = 0;
    read_flow_tag -> u32 = 0;
    read_opcode -> ibv_wc_opcode = IBV_WC_SEND;
}

impl CqReads {
    /// Takes one completion, whole. One a poll: soft-RoCE before rdma-core 59 moves on once too often where `next_poll` finds nothing. `Err`: what
    /// `start_poll` said.
    pub fn take(&self) -> Result<(ibv_wc, MoreWc), c_int> {
        let queue = self.queue.0;
        let mut attr = ibv_poll_cq_attr::zeroed();
        // SAFETY: the queue is live, and whoever calls keeps other pollers out where they matter.
        let errno = unsafe { (self.start_poll)(queue, &mut attr) };
        if errno != 0 {
            return Err(errno);
        }
        let taken = self.read();
        // SAFETY: the poll was started above.
        unsafe { (self.end_poll)(queue) };
        Ok(taken)
    }

    /// Of an error only name, status and the queue pair are valid.
    fn read(&self) -> (ibv_wc, MoreWc) {
        let mut wc = ibv_wc::zeroed();
        // SAFETY: the queue is live and a poll of it is open.
        wc.wr_id = unsafe { (*self.queue.0).wr_id };
        // SAFETY: as above.
        wc.status = unsafe { (*self.queue.0).status };
        wc.qp_num = self.read_qp_num();
        let mut more = MoreWc::NONE;
        if wc.status != IBV_WC_SUCCESS {
            wc.vendor_err = self.read_vendor_err();
            return (wc, more);
        }
        wc.opcode = self.read_opcode();
        wc.wc_flags = self.read_wc_flags();
        wc.byte_len = self.read_byte_len();
        wc.imm.imm_data = self.read_imm_data();
        wc.src_qp = self.read_src_qp();
        wc.slid = self.read_slid() as u16;
        wc.sl = self.read_sl();
        wc.dlid_path_bits = self.read_dlid_path_bits();
        more.completion_ts = self.read_completion_ts();
        more.wallclock_ns = self.read_completion_wallclock_ns();
        more.cvlan = self.read_cvlan();
        more.flow_tag = self.read_flow_tag();
        if let Some(read) = self.read_tm_info {
            // SAFETY: as above; the place is writable.
            unsafe { read(self.queue.0, &mut more.tm) };
        }
        (wc, more)
    }
}

/// The extended side of a CQ of the application.
pub struct CqEx {
    reads: CqReads,
    wc_flags: u64,
    /// Whose poll is open, and the completion that its readers answer from.
    open: HeldCell<(ibv_wc, MoreWc)>,
}

impl CqEx {
    /// Of a queue that was made with these flags; to be hooked once it is found by its address.
    ///
    /// # Safety
    /// The queue was just made, and nobody uses it yet.
    pub unsafe fn new(queue: *mut ibv_cq_ex, wc_flags: u64) -> Option<Self> {
        // SAFETY: passed on from the caller.
        let reads = unsafe { CqReads::of(queue) }?;
        let open = HeldCell::new((ibv_wc::zeroed(), MoreWc::NONE));
        Some(Self { reads, wc_flags, open })
    }

    /// As the application asked.
    pub fn wc_flags(&self) -> u64 {
        self.wc_flags
    }

    /// Completions carry more than `ibv_wc` holds.
    #[inline]
    pub fn has_more(&self) -> bool {
        is_beyond_wc(self.wc_flags)
    }

    /// The provider's own functions, for who is inside.
    pub fn reads(&self) -> &CqReads {
        &self.reads
    }

    /// Enters if no poll is open.
    pub fn try_open(&self) -> Option<impl Sized + '_> {
        self.open.try_lock()
    }
}

/// Puts our functions in the place of the provider's, where it has one.
///
/// # Safety
/// The queue was just made and has a shadow, and nobody uses it yet.
pub unsafe fn hook(queue: *mut ibv_cq_ex) {
    macro_rules! hook {
        ($($function:ident),*) => { $(
            // SAFETY: the caller vouches for the queue.
            if unsafe { (*queue).$function }.is_some() {
                // SAFETY: as above.
                unsafe { (*queue).$function = Some($function) };
            }
        )* };
    }
    hook!(start_poll, next_poll, end_poll, read_opcode, read_vendor_err, read_byte_len, read_imm_data, read_qp_num);
    hook!(read_src_qp, read_wc_flags, read_slid, read_sl, read_dlid_path_bits, read_completion_ts, read_cvlan);
    hook!(read_flow_tag, read_tm_info, read_completion_wallclock_ns);
}

fn shadow_of<'a>(queue: *mut ibv_cq_ex) -> Option<(&'a CqShadow, &'a CqEx)> {
    let cq: &CqShadow = CQS.get(queue)?;
    Some((cq, cq.ex.as_ref()?))
}

/// The next completion, by whose poll is open.
fn next_of(cq: &CqShadow, ex: &CqEx) -> Result<StashedWc, c_int> {
    if poll::is_taken_under_lock(cq.attention.load(Relaxed)) || ex.has_more() {
        return poll::take_one(cq, ex);
    }
    match poll::poll_one(cq) {
        Err(libc::ENOENT) if poll::has_stash(cq) => poll::take_one(cq, ex),
        found => found,
    }
}

/// Shows it to the application.
fn show(queue: *mut ibv_cq_ex, open: &mut HeldGuard<'_, (ibv_wc, MoreWc)>, found: StashedWc) -> c_int {
    // SAFETY: the application polls its live queue, and this thread's poll is the one that is open.
    unsafe { (*queue).wr_id = found.wc.wr_id };
    // SAFETY: as above.
    unsafe { (*queue).status = found.wc.status };
    **open = (found.wc, found.more);
    0
}

unsafe extern "C" fn start_poll(queue: *mut ibv_cq_ex, attr: *mut ibv_poll_cq_attr) -> c_int {
    let Some((cq, ex)) = shadow_of(queue) else { return libc::ENOENT };
    // SAFETY: the application gives a readable structure.
    if !attr.is_null() && unsafe { (*attr).comp_mask } != 0 {
        return libc::EINVAL;
    }
    cq.polls.store(cq.polls.load(Relaxed).wrapping_add(1), Relaxed);
    let mut open = ex.open.lock();
    let found = match next_of(cq, ex) {
        Ok(found) => found,
        Err(errno) => return errno,
    };
    let shown = show(queue, &mut open, found);
    open.stay();
    shown
}

unsafe extern "C" fn next_poll(queue: *mut ibv_cq_ex) -> c_int {
    let Some((cq, ex)) = shadow_of(queue) else { return libc::ENOENT };
    // Without a poll of this thread that is open there is none to go on with.
    let Some(mut open) = ex.open.resume() else { return libc::ENOENT };
    let shown = next_of(cq, ex).map_or_else(|errno| errno, |found| show(queue, &mut open, found));
    open.stay();
    shown
}

unsafe extern "C" fn end_poll(queue: *mut ibv_cq_ex) {
    let Some((_, ex)) = shadow_of(queue) else { return };
    drop(ex.open.resume());
}

/// The completion that this thread's poll stands at.
fn shown(queue: *mut ibv_cq_ex) -> (ibv_wc, MoreWc) {
    let open = shadow_of(queue).and_then(|(_, ex)| ex.open.resume());
    let Some(open) = open else { return (ibv_wc::zeroed(), MoreWc::NONE) };
    let shown = *open;
    open.stay();
    shown
}

macro_rules! of_the_copy {
    ($($reader:ident -> $ret:ty = |$wc:pat_param, $more:pat_param| $value:expr;)*) => { $(
        unsafe extern "C" fn $reader(queue: *mut ibv_cq_ex) -> $ret {
            let ($wc, $more) = shown(queue);
            $value
        }
    )* };
}

of_the_copy! {
    read_opcode -> ibv_wc_opcode = |wc, _| wc.opcode;
    read_vendor_err -> u32 = |wc, _| wc.vendor_err;
    read_byte_len -> u32 = |wc, _| wc.byte_len;
    read_imm_data -> u32 = |wc, _| wc.imm.raw();
    read_qp_num -> u32 = |wc, _| wc.qp_num;
    read_src_qp -> u32 = |wc, _| wc.src_qp;
    read_wc_flags -> c_uint = |wc, _| wc.wc_flags;
    read_slid -> u32 = |wc, _| u32::from(wc.slid);
    read_sl -> u8 = |wc, _| wc.sl;
    read_dlid_path_bits -> u8 = |wc, _| wc.dlid_path_bits;
    read_completion_ts -> u64 = |_, more| more.completion_ts;
    read_completion_wallclock_ns -> u64 = |_, more| more.wallclock_ns;
    read_cvlan -> u16 = |_, more| more.cvlan;
    read_flow_tag -> u32 = |_, more| more.flow_tag;
}

unsafe extern "C" fn read_tm_info(queue: *mut ibv_cq_ex, info: *mut ibv_wc_tm_info) {
    let (_, more) = shown(queue);
    // SAFETY: the application gives a writable structure.
    unsafe { info.write(more.tm) };
}
