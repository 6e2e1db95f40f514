//! Posting and polling by the extended interfaces, as the inline functions of verbs.h do: through the table below the context, the queue pair's own
//! functions, and the completion queue's.

use super::queue::{cut, QpWish};
use super::{check, Region, Result, SendRequest, VerbError};
use crate::args::Api;
use shift_abi::*;
use std::ffi::c_void;
use std::ptr::NonNull;

extern "C" {
    fn ibv_qp_to_qp_ex(qp: *mut ibv_qp) -> *mut ibv_qp_ex;
}

/// The functions that the checking application posts by.
const SEND_OPS: u64 = IBV_QP_EX_WITH_RDMA_WRITE
    | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM
    | IBV_QP_EX_WITH_SEND
    | IBV_QP_EX_WITH_SEND_WITH_IMM
    | IBV_QP_EX_WITH_RDMA_READ
    | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP
    | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD;

/// The fields of completions that it reads.
const WC_FLAGS: u64 = IBV_WC_EX_WITH_BYTE_LEN | IBV_WC_EX_WITH_IMM | IBV_WC_EX_WITH_QP_NUM;

fn absent(verb: &'static str) -> VerbError {
    VerbError::says(verb, "no such operation".to_owned())
}

/// `ibv_create_cq_ex`.
pub(super) fn create_cq(
    context: NonNull<ibv_context>,
    cqe: u32,
    channel: *mut ibv_comp_channel,
) -> Result<NonNull<ibv_cq>> {
    const VERB: &str = "ibv_create_cq_ex";
    // SAFETY: the context is open.
    let slot = unsafe { VerbsOps::of(context) }.and_then(VerbsOps::create_cq_ex).ok_or_else(|| absent(VERB))?;
    // SAFETY: a slot may be read as long as the context is open.
    let create = unsafe { slot.read() }.ok_or_else(|| absent(VERB))?;
    let mut attr = ibv_cq_init_attr_ex { cqe, channel, wc_flags: WC_FLAGS, ..ibv_cq_init_attr_ex::zeroed() };
    // SAFETY: the context is open, and the channel, if there is one, is of it; no context pointer is wanted.
    let queue = unsafe { create(context.as_ptr(), &mut attr) };
    NonNull::new(queue.cast()).ok_or_else(|| VerbError::last(VERB))
}

/// `ibv_create_qp_ex`: the queue pair and the inline room that it was granted.
pub(super) fn create_qp(
    context: NonNull<ibv_context>,
    pd: NonNull<ibv_pd>,
    cqs: [NonNull<ibv_cq>; 2],
    srq: *mut ibv_srq,
    wish: QpWish,
) -> Result<(NonNull<ibv_qp>, u32)> {
    const VERB: &str = "ibv_create_qp_ex";
    // SAFETY: the context is open.
    let slot = unsafe { VerbsOps::of(context) }.and_then(VerbsOps::create_qp_ex).ok_or_else(|| absent(VERB))?;
    // SAFETY: a slot may be read as long as the context is open.
    let create = unsafe { slot.read() }.ok_or_else(|| absent(VERB))?;
    let mut attr = ibv_qp_init_attr_ex {
        send_cq: cqs[0].as_ptr(),
        recv_cq: cqs[1].as_ptr(),
        srq,
        cap: wish.cap(),
        qp_type: IBV_QPT_RC,
        comp_mask: IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS,
        pd: pd.as_ptr(),
        send_ops_flags: SEND_OPS,
        ..ibv_qp_init_attr_ex::zeroed()
    };
    // SAFETY: PD and CQ are open and of this context; the attributes are writable, for the granted sizes.
    let qp = unsafe { create(context.as_ptr(), &mut attr) };
    Ok((NonNull::new(qp).ok_or_else(|| VerbError::last(VERB))?, attr.cap.max_inline_data))
}

/// Calls a function of an extended object as verbs.h does.
macro_rules! call {
    ($object:expr, $function:ident($($arg:expr),*)) => {{
        // SAFETY: the object is live; the functions are read anew each time, as the inline ones read them.
        let function = unsafe { (*$object).$function }.ok_or_else(|| absent(stringify!($function)))?;
        // SAFETY: as above; what is pointed to lives across the call.
        unsafe { function($object $(, $arg)*) }
    }};
}

/// Posts all of the requests, or none.
pub(super) fn post(qp: NonNull<ibv_qp>, region: &Region, requests: &[SendRequest], api: Api) -> Result<()> {
    // SAFETY: the queue pair is live.
    let pair = unsafe { ibv_qp_to_qp_ex(qp.as_ptr()) };
    if pair.is_null() {
        return Err(absent("ibv_qp_to_qp_ex"));
    }
    call!(pair, wr_start());
    for request in requests {
        assert!(region.contains(request.at, request.len.into()), "memory outside of the region");
        // SAFETY: the queue pair is live, and this thread is between start and complete.
        unsafe { (*pair).wr_id = request.wr_id };
        // SAFETY: as above.
        unsafe { (*pair).wr_flags = request.flags };
        build(pair, request)?;
        if request.flags & IBV_SEND_INLINE != 0 {
            set_inline(pair, region, request, api)?;
        } else {
            set_elements(pair, region, request)?;
        }
        // SAFETY: as above: a program may use its fields again.
        unsafe { (*pair).wr_id = !0 };
    }
    check("ibv_wr_complete", call!(pair, wr_complete()))
}

fn build(pair: *mut ibv_qp_ex, request: &SendRequest) -> Result<()> {
    let SendRequest { remote_addr, rkey, imm, operands: (first, second), .. } = *request;
    match request.opcode {
        IBV_WR_RDMA_WRITE => call!(pair, wr_rdma_write(rkey, remote_addr)),
        IBV_WR_RDMA_WRITE_WITH_IMM => call!(pair, wr_rdma_write_imm(rkey, remote_addr, imm.to_be())),
        IBV_WR_SEND => call!(pair, wr_send()),
        IBV_WR_SEND_WITH_IMM => call!(pair, wr_send_imm(imm.to_be())),
        IBV_WR_RDMA_READ => call!(pair, wr_rdma_read(rkey, remote_addr)),
        IBV_WR_ATOMIC_FETCH_AND_ADD => call!(pair, wr_atomic_fetch_add(rkey, remote_addr, first)),
        IBV_WR_ATOMIC_CMP_AND_SWP => call!(pair, wr_atomic_cmp_swp(rkey, remote_addr, first, second)),
        other => return Err(VerbError::says("ibv_wr_*", format!("{other:?} is not posted here"))),
    }
    Ok(())
}

fn set_elements(pair: *mut ibv_qp_ex, region: &Region, request: &SendRequest) -> Result<()> {
    let mut sges = vec![ibv_sge::zeroed(); request.sges.max(1) as usize];
    let count = usize::try_from(cut(request, region, &mut sges)).unwrap_or(0);
    match (count, sges.first()) {
        (1, Some(sge)) => call!(pair, wr_set_sge(sge.lkey, sge.addr, sge.length)),
        (2.., _) => call!(pair, wr_set_sge_list(count, sges.as_ptr())),
        _ => {}
    }
    Ok(())
}

fn set_inline(pair: *mut ibv_qp_ex, region: &Region, request: &SendRequest, api: Api) -> Result<()> {
    let at = |offset: u32| region.addr(request.at + u64::from(offset)) as *mut c_void;
    let half = request.len / 2;
    if api == Api::ExtFull && half > 0 {
        let list = [(0, half), (half, request.len - half)]
            .map(|(offset, length)| ibv_data_buf { addr: at(offset), length: length as usize });
        call!(pair, wr_set_inline_data_list(list.len(), list.as_ptr()));
    } else {
        call!(pair, wr_set_inline_data(at(0), request.len as usize));
    }
    Ok(())
}

/// Appends up to `limit` completions to `out`; how many there were.
pub(super) fn poll(cq: NonNull<ibv_cq>, limit: usize, out: &mut Vec<ibv_wc>, api: Api) -> Result<usize> {
    let queue: *mut ibv_cq_ex = cq.as_ptr().cast();
    let mut count = 0;
    while count < limit {
        let mut attr = ibv_poll_cq_attr::zeroed();
        if !is_there("ibv_start_poll", call!(queue, start_poll(&mut attr)))? {
            break;
        }
        out.push(read(queue)?);
        count += 1;
        while api == Api::ExtFull && count < limit && is_there("ibv_next_poll", call!(queue, next_poll()))? {
            out.push(read(queue)?);
            count += 1;
        }
        call!(queue, end_poll());
    }
    Ok(count)
}

fn is_there(verb: &'static str, errno: i32) -> Result<bool> {
    match errno {
        0 => Ok(true),
        libc::ENOENT => Ok(false),
        errno => check(verb, errno).map(|()| false),
    }
}

fn read(queue: *mut ibv_cq_ex) -> Result<ibv_wc> {
    let mut wc = ibv_wc::zeroed();
    // SAFETY: the queue is live and this thread's poll of it is open.
    wc.wr_id = unsafe { (*queue).wr_id };
    // SAFETY: as above.
    wc.status = unsafe { (*queue).status };
    wc.qp_num = call!(queue, read_qp_num());
    if wc.status != IBV_WC_SUCCESS {
        wc.vendor_err = call!(queue, read_vendor_err());
        return Ok(wc);
    }
    wc.opcode = call!(queue, read_opcode());
    wc.wc_flags = call!(queue, read_wc_flags());
    wc.byte_len = call!(queue, read_byte_len());
    wc.imm.imm_data = call!(queue, read_imm_data());
    Ok(wc)
}
