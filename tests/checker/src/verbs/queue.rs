//! A queue pair: its states, and posting to its two queues.

use super::{check, extended, Region, Result, VerbError};
use crate::args::Api;
use shift_abi::*;
use std::ffi::{c_int, c_uint};
use std::ptr::{null_mut, NonNull};

extern "C" {
    fn ibv_create_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr) -> *mut ibv_qp;
    fn ibv_modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int) -> c_int;
    fn ibv_destroy_qp(qp: *mut ibv_qp) -> c_int;
}

/// The sizes of a queue pair to be made.
#[derive(Clone, Copy, Debug)]
pub struct QpWish {
    /// Work requests in the send queue.
    pub send_wrs: u32,
    /// Work requests in the receive queue.
    pub receive_wrs: u32,
    /// Elements of a send work request.
    pub sges: u32,
    /// Bytes of inline room.
    pub inline: u32,
}

impl QpWish {
    pub(super) const fn cap(self) -> ibv_qp_cap {
        ibv_qp_cap {
            max_send_wr: self.send_wrs,
            max_recv_wr: self.receive_wrs,
            max_send_sge: self.sges,
            max_recv_sge: 1,
            max_inline_data: self.inline,
        }
    }
}

/// The path of a queue pair, and how hard it tries.
#[derive(Clone, Copy, Debug)]
pub struct Route {
    /// The own GID's index.
    pub gid_index: u8,
    /// The peer's GID.
    pub peer_gid: [u8; 16],
    /// The peer's queue pair.
    pub peer_qpn: u32,
    /// The first packet sequence number that the peer sends.
    pub peer_psn: u32,
    /// The first packet sequence number that this end sends.
    pub psn: u32,
    /// The path MTU.
    pub mtu: ibv_mtu,
    /// The local ACK timeout exponent.
    pub timeout: u8,
    /// Retries without an answer.
    pub retry_cnt: u8,
    /// Retries where the peer is not ready.
    pub rnr_retry: u8,
    /// READs and atomics outstanding as requester.
    pub reads: u8,
    /// READs and atomics outstanding as responder.
    pub served_reads: u8,
}

/// A send work request, safely: its memory is a range of a region.
#[derive(Clone, Copy, Debug)]
pub struct SendRequest {
    /// Its name.
    pub wr_id: u64,
    /// What it asks for.
    pub opcode: ibv_wr_opcode,
    /// `IBV_SEND_*`.
    pub flags: c_uint,
    /// Where its local memory begins in the region.
    pub at: u64,
    /// The length of its local memory.
    pub len: u32,
    /// Into how many elements the memory is cut, at most.
    pub sges: u32,
    /// Immediate data, host byte order.
    pub imm: u32,
    /// The peer's memory.
    pub remote_addr: u64,
    /// The key of the peer's memory.
    pub rkey: u32,
    /// For atomics: what to add or compare with, and what to swap in.
    pub operands: (u64, u64),
}

/// A receive work request: its memory is a range of a region, or nothing.
#[derive(Clone, Copy, Debug)]
pub struct ReceiveRequest {
    /// Its name.
    pub wr_id: u64,
    /// Offset and length of its memory in the region.
    pub memory: Option<(u64, u32)>,
}

impl ReceiveRequest {
    /// Its memory, as C names it.
    pub(super) fn element(self, region: &Region) -> Option<ibv_sge> {
        self.memory.map(|(at, len)| {
            assert!(region.contains(at, len.into()), "memory outside of the region");
            ibv_sge { addr: region.addr(at), length: len, lkey: region.lkey() }
        })
    }

    /// The work request over that element, which has to outlive its post.
    pub(super) fn naming(self, element: Option<&mut ibv_sge>) -> ibv_recv_wr {
        let wr = ibv_recv_wr { wr_id: self.wr_id, ..ibv_recv_wr::zeroed() };
        match element {
            Some(sge) => ibv_recv_wr { sg_list: sge, num_sge: 1, ..wr },
            None => wr,
        }
    }
}

/// A queue pair. The arrays of work requests and elements are re-used, and scribbled over after each call, as the
/// verbs contract allows a program to do.
#[derive(Debug)]
pub struct Qp {
    qp: NonNull<ibv_qp>,
    port: u8,
    inline: u32,
    api: Api,
    wrs: Vec<ibv_send_wr>,
    sges: Vec<ibv_sge>,
}

/// What a work request array holds while no call reads it.
const SCRIBBLE: ibv_send_wr = ibv_send_wr { wr_id: !0, num_sge: -1, send_flags: !0, ..ibv_send_wr::zeroed() };

impl Qp {
    pub(super) fn new(
        (context, pd): (NonNull<ibv_context>, NonNull<ibv_pd>),
        cqs: [NonNull<ibv_cq>; 2],
        srq: *mut ibv_srq,
        port: u8,
        wish: QpWish,
        api: Api,
    ) -> Result<Self> {
        let (qp, inline) = match api {
            Api::Plain => create(pd, cqs, srq, wish)?,
            Api::Ext | Api::ExtFull => extended::create_qp(context, pd, cqs, srq, wish)?,
        };
        Ok(Self { qp, port, inline, api, wrs: Vec::new(), sges: Vec::new() })
    }

    /// Its number on the fabric.
    #[must_use]
    pub fn number(&self) -> u32 {
        // SAFETY: the queue pair lives as long as `self`; its number never changes.
        unsafe { (*self.qp.as_ptr()).qp_num }
    }

    /// The inline room that was granted, in bytes.
    #[must_use]
    pub const fn inline_room(&self) -> u32 {
        self.inline
    }

    /// RESET to INIT: receives may be posted from here on.
    pub fn init(&self) -> Result<()> {
        let mut attr = ibv_qp_attr {
            qp_state: IBV_QPS_INIT,
            port_num: self.port,
            qp_access_flags: IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_ATOMIC,
            ..ibv_qp_attr::zeroed()
        };
        self.modify(&mut attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS)
    }

    /// INIT to RTR to RTS.
    pub fn connect(&self, route: Route) -> Result<()> {
        let mut attr = ibv_qp_attr::zeroed();
        attr.qp_state = IBV_QPS_RTR;
        attr.path_mtu = route.mtu;
        attr.dest_qp_num = route.peer_qpn;
        attr.rq_psn = route.peer_psn;
        attr.max_dest_rd_atomic = route.served_reads;
        attr.min_rnr_timer = MIN_RNR_TIMER;
        attr.ah_attr.is_global = 1;
        attr.ah_attr.port_num = self.port;
        attr.ah_attr.grh.dgid.raw = route.peer_gid;
        attr.ah_attr.grh.sgid_index = route.gid_index;
        attr.ah_attr.grh.hop_limit = 64;
        let ready_to_receive = IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN;
        let limits = IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
        self.modify(&mut attr, IBV_QP_STATE | ready_to_receive | limits)?;
        attr.qp_state = IBV_QPS_RTS;
        attr.sq_psn = route.psn;
        attr.timeout = route.timeout;
        attr.retry_cnt = route.retry_cnt;
        attr.rnr_retry = route.rnr_retry;
        attr.max_rd_atomic = route.reads;
        let tries = IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY;
        self.modify(&mut attr, IBV_QP_STATE | IBV_QP_SQ_PSN | tries | IBV_QP_MAX_QP_RD_ATOMIC)
    }

    fn modify(&self, attr: &mut ibv_qp_attr, mask: u32) -> Result<()> {
        // SAFETY: the queue pair lives as long as `self`; every field that the mask names is set.
        check("ibv_modify_qp", unsafe { ibv_modify_qp(self.qp.as_ptr(), attr, mask as c_int) })
    }

    /// Posts a chain of work requests in one call. On failure, the index of the one that `bad_wr` names, where it names
    /// one of them.
    pub fn post_send(
        &mut self,
        region: &Region,
        requests: &[SendRequest],
    ) -> std::result::Result<(), (Option<usize>, VerbError)> {
        if self.api != Api::Plain {
            return extended::post(self.qp, region, requests, self.api).map_err(|e| (Some(0), e));
        }
        self.write_chain(region, requests);
        // SAFETY: the queue pair is open, and so is its context.
        let context = unsafe { (*self.qp.as_ptr()).context };
        // SAFETY: as above. `ops` is read anew each time, as the inline ibv_post_send reads it.
        let post_send = unsafe { (*context).ops.post_send };
        let Some(post_send) = post_send else {
            return Err((None, VerbError::says("ibv_post_send", "no such operation".to_owned())));
        };
        let mut bad: *mut ibv_send_wr = null_mut();
        // SAFETY: the chain is of this queue pair's own arrays, which nobody else names; its memory lies in a region
        // that outlives the queue pair.
        let errno = unsafe { post_send(self.qp.as_ptr(), self.wrs.as_mut_ptr(), &mut bad) };
        let bad = self.wrs.iter().position(|wr| std::ptr::eq(wr, bad));
        self.wrs.fill(SCRIBBLE);
        self.sges.fill(ibv_sge { addr: !0, length: !0, lkey: !0 });
        check("ibv_post_send", errno).map_err(|e| (bad, e))
    }

    fn write_chain(&mut self, region: &Region, requests: &[SendRequest]) {
        let per_wr = requests.iter().map(|request| request.sges.max(1) as usize).max().unwrap_or(1);
        self.sges.resize(requests.len() * per_wr, ibv_sge::zeroed());
        self.wrs.resize(requests.len(), SCRIBBLE);
        for (request, (wr, sges)) in requests.iter().zip(self.wrs.iter_mut().zip(self.sges.chunks_mut(per_wr))) {
            assert!(region.contains(request.at, request.len.into()), "memory outside of the region");
            let count = cut(request, region, sges);
            *wr = ibv_send_wr {
                wr_id: request.wr_id,
                sg_list: if count == 0 { null_mut() } else { sges.as_mut_ptr() },
                num_sge: count,
                opcode: request.opcode,
                send_flags: request.flags,
                imm: ibv_wr_imm { imm_data: request.imm.to_be() },
                wr: remote(request),
                ..ibv_send_wr::zeroed()
            };
        }
        let mut next = null_mut();
        for wr in self.wrs.iter_mut().rev() {
            wr.next = next;
            next = wr;
        }
    }

    /// Posts one receive.
    pub fn post_receive(&self, region: &Region, request: ReceiveRequest) -> Result<()> {
        let mut sge = request.element(region);
        let mut wr = request.naming(sge.as_mut());
        // SAFETY: the queue pair is open, and so is its context.
        let context = unsafe { (*self.qp.as_ptr()).context };
        // SAFETY: as above. `ops` is read anew each time, as the inline ibv_post_recv reads it.
        let post_recv = unsafe { (*context).ops.post_recv };
        let Some(post_recv) = post_recv else {
            return Err(VerbError::says("ibv_post_recv", "no such operation".to_owned()));
        };
        let mut bad: *mut ibv_recv_wr = null_mut();
        // SAFETY: the work request and its element live until the call returns, its memory lies in a region that
        // outlives the queue pair.
        check("ibv_post_recv", unsafe { post_recv(self.qp.as_ptr(), &mut wr, &mut bad) })
    }

    pub(crate) fn destroy(self) -> Result<()> {
        // SAFETY: `self` is consumed, so nobody names the queue pair any more.
        check("ibv_destroy_qp", unsafe { ibv_destroy_qp(self.qp.as_ptr()) })
    }
}

/// `ibv_create_qp`: the queue pair and the inline room that it was granted.
fn create(
    pd: NonNull<ibv_pd>,
    cqs: [NonNull<ibv_cq>; 2],
    srq: *mut ibv_srq,
    wish: QpWish,
) -> Result<(NonNull<ibv_qp>, u32)> {
    let mut attr = ibv_qp_init_attr {
        send_cq: cqs[0].as_ptr(),
        recv_cq: cqs[1].as_ptr(),
        srq,
        cap: wish.cap(),
        qp_type: IBV_QPT_RC,
        ..ibv_qp_init_attr::zeroed()
    };
    // SAFETY: PD and CQ are open and of one context; the attributes are writable, for the granted sizes.
    let qp = unsafe { ibv_create_qp(pd.as_ptr(), &mut attr) };
    Ok((NonNull::new(qp).ok_or_else(|| VerbError::last("ibv_create_qp"))?, attr.cap.max_inline_data))
}

/// 0.64 ms: short, so that a run with scarce receives is not all waiting.
const MIN_RNR_TIMER: u8 = 12;

/// Cuts a request's memory into elements of about the same length; how many there are.
pub(super) fn cut(request: &SendRequest, region: &Region, sges: &mut [ibv_sge]) -> c_int {
    if request.len == 0 {
        return 0;
    }
    let piece = request.len.div_ceil(request.sges.max(1));
    let mut count = 0;
    for (start, sge) in (0..request.len).step_by(piece as usize).zip(sges) {
        let length = piece.min(request.len - start);
        *sge = ibv_sge { addr: region.addr(request.at + u64::from(start)), length, lkey: region.lkey() };
        count += 1;
    }
    count
}

fn remote(request: &SendRequest) -> ibv_wr_remote {
    let (compare_add, swap) = request.operands;
    if matches!(request.opcode, IBV_WR_ATOMIC_FETCH_AND_ADD | IBV_WR_ATOMIC_CMP_AND_SWP) {
        let (remote_addr, rkey) = (request.remote_addr, request.rkey);
        return ibv_wr_remote { atomic: ibv_wr_atomic { remote_addr, compare_add, swap, rkey } };
    }
    ibv_wr_remote { rdma: ibv_wr_rdma { remote_addr: request.remote_addr, rkey: request.rkey } }
}
