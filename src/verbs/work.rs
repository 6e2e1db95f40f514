//! Work requests, scatter/gather elements and completions: what passes between an application and its queues.

use crate::constants::{ibv_wc_opcode, ibv_wc_status, ibv_wr_opcode};
use crate::objects::{ibv_ah, ibv_mr, ibv_mw};
use core::ffi::{c_int, c_uint, c_void};

c_structs! {
    /// A piece of registered local memory.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    ibv_sge as "struct ibv_sge" [16] {
        addr: u64 = 0,
        length: u32 = 8,
        lkey: u32 = 12,
    }

    /// A piece of local memory without a key, for inline data.
    #[derive(Clone, Copy, Debug)]
    ibv_data_buf as "struct ibv_data_buf" [16] {
        addr: *mut c_void = 0,
        length: usize = 8,
    }

    /// A work request for the send queue; a list by `next`.
    #[derive(Clone, Copy)]
    ibv_send_wr as "struct ibv_send_wr" [128] {
        wr_id: u64 = 0,
        next: *mut ibv_send_wr = 8,
        sg_list: *mut ibv_sge = 16,
        num_sge: c_int = 24,
        opcode: ibv_wr_opcode = 28,
        send_flags: c_uint = 32,
        imm: ibv_wr_imm = 36 => "imm_data",
        wr: ibv_wr_remote = 40,
        qp_type: ibv_wr_xrc = 72 => "qp_type.xrc.remote_srqn",
        extra: ibv_wr_extra = 80 => "bind_mw",
    }

    /// A work request for a receive queue; a list by `next`.
    #[derive(Clone, Copy, Debug)]
    ibv_recv_wr as "struct ibv_recv_wr" [32] {
        wr_id: u64 = 0,
        next: *mut ibv_recv_wr = 8,
        sg_list: *mut ibv_sge = 16,
        num_sge: c_int = 24,
    }

    /// A completion. With an error status only `wr_id`, `status`, `qp_num` and `vendor_err` are valid.
    #[derive(Clone, Copy)]
    ibv_wc as "struct ibv_wc" [48] {
        wr_id: u64 = 0,
        status: ibv_wc_status = 8,
        opcode: ibv_wc_opcode = 12,
        vendor_err: u32 = 16,
        byte_len: u32 = 20,
        imm: ibv_wc_imm = 24 => "imm_data",
        qp_num: u32 = 28,
        src_qp: u32 = 32,
        wc_flags: c_uint = 36,
        pkey_index: u16 = 40,
        slid: u16 = 42,
        sl: u8 = 44,
        dlid_path_bits: u8 = 45,
    }

    /// The memory that a window is bound to.
    #[derive(Clone, Copy, Debug)]
    ibv_mw_bind_info as "struct ibv_mw_bind_info" [32] {
        mr: *mut ibv_mr = 0,
        addr: u64 = 8,
        length: u64 = 16,
        mw_access_flags: c_uint = 24,
    }

    /// The argument of `ibv_bind_mw`.
    #[derive(Clone, Copy, Debug)]
    ibv_mw_bind as "struct ibv_mw_bind" [48] {
        wr_id: u64 = 0,
        send_flags: c_uint = 8,
        bind_info: ibv_mw_bind_info = 16,
    }
}

/// The anonymous union of [`ibv_send_wr`] after `send_flags`: both members are 32 bits, so either may be read.
#[derive(Clone, Copy)]
#[repr(C)]
pub union ibv_wr_imm {
    /// Immediate data, in network byte order.
    pub imm_data: u32,
    /// The key that the peer is to invalidate.
    pub invalidate_rkey: u32,
}

/// The anonymous union of [`ibv_wc`]: both members are 32 bits, so either may be read.
#[derive(Clone, Copy)]
#[repr(C)]
pub union ibv_wc_imm {
    /// Immediate data, in network byte order; valid with `IBV_WC_WITH_IMM`.
    pub imm_data: u32,
    /// The key that was invalidated; valid with `IBV_WC_WITH_INV`.
    pub invalidated_rkey: u32,
}

impl ibv_wr_imm {
    /// The 32 bits as they lie in memory (network byte order if they are immediate data).
    #[must_use]
    pub const fn raw(self) -> u32 {
        // SAFETY: both members of the union are a u32; every bit pattern is a valid one.
        unsafe { self.imm_data }
    }
}

impl ibv_wc_imm {
    /// The 32 bits as they lie in memory (network byte order if they are immediate data).
    #[must_use]
    pub const fn raw(self) -> u32 {
        // SAFETY: both members of the union are a u32; every bit pattern is a valid one.
        unsafe { self.imm_data }
    }
}

/// `wr.rdma` of [`ibv_send_wr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ibv_wr_rdma {
    /// Where in the peer's memory.
    pub remote_addr: u64,
    /// The key of the peer's registration.
    pub rkey: u32,
}

/// `wr.atomic` of [`ibv_send_wr`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct ibv_wr_atomic {
    /// Where in the peer's memory; 8-byte aligned.
    pub remote_addr: u64,
    /// What to compare with, or what to add.
    pub compare_add: u64,
    /// What to store if the comparison holds.
    pub swap: u64,
    /// The key of the peer's registration.
    pub rkey: u32,
}

/// `wr.ud` of [`ibv_send_wr`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ibv_wr_ud {
    /// The address handle.
    pub ah: *mut ibv_ah,
    /// The peer's QP number.
    pub remote_qpn: u32,
    /// The peer's queue key.
    pub remote_qkey: u32,
}

/// The union `wr` of [`ibv_send_wr`]; the opcode and the QP type say which member is meant.
#[derive(Clone, Copy)]
#[repr(C)]
pub union ibv_wr_remote {
    /// WRITE, WRITE_WITH_IMM and READ.
    pub rdma: ibv_wr_rdma,
    /// CMP_AND_SWP and FETCH_AND_ADD.
    pub atomic: ibv_wr_atomic,
    /// Sends on a UD queue pair.
    pub ud: ibv_wr_ud,
}

/// `qp_type.xrc` of [`ibv_send_wr`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ibv_wr_xrc {
    /// The peer's shared receive queue.
    pub remote_srqn: u32,
}

/// `bind_mw` of [`ibv_send_wr`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ibv_wr_bind_mw {
    /// The window.
    pub mw: *mut ibv_mw,
    /// The key that the window is to have.
    pub rkey: u32,
    /// What it is bound to.
    pub bind_info: ibv_mw_bind_info,
}

/// `tso` of [`ibv_send_wr`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct ibv_wr_tso {
    /// The packet header.
    pub hdr: *mut c_void,
    /// Its length in bytes.
    pub hdr_sz: u16,
    /// The largest segment in bytes.
    pub mss: u16,
}

/// The last union of [`ibv_send_wr`].
#[derive(Clone, Copy)]
#[repr(C)]
pub union ibv_wr_extra {
    /// BIND_MW.
    pub bind_mw: ibv_wr_bind_mw,
    /// TSO.
    pub tso: ibv_wr_tso,
}

/// Offsets inside the unions of [`ibv_send_wr`]: (C path, offset).
#[cfg(test)]
pub(crate) const SEND_WR_PATHS: &[(&str, usize)] = {
    use core::mem::offset_of;
    &[
        ("invalidate_rkey", offset_of!(ibv_send_wr, imm.invalidate_rkey)),
        ("wr.rdma.remote_addr", offset_of!(ibv_send_wr, wr.rdma.remote_addr)),
        ("wr.rdma.rkey", offset_of!(ibv_send_wr, wr.rdma.rkey)),
        ("wr.atomic.remote_addr", offset_of!(ibv_send_wr, wr.atomic.remote_addr)),
        ("wr.atomic.compare_add", offset_of!(ibv_send_wr, wr.atomic.compare_add)),
        ("wr.atomic.swap", offset_of!(ibv_send_wr, wr.atomic.swap)),
        ("wr.atomic.rkey", offset_of!(ibv_send_wr, wr.atomic.rkey)),
        ("wr.ud.ah", offset_of!(ibv_send_wr, wr.ud.ah)),
        ("wr.ud.remote_qpn", offset_of!(ibv_send_wr, wr.ud.remote_qpn)),
        ("wr.ud.remote_qkey", offset_of!(ibv_send_wr, wr.ud.remote_qkey)),
        ("bind_mw.mw", offset_of!(ibv_send_wr, extra.bind_mw.mw)),
        ("bind_mw.rkey", offset_of!(ibv_send_wr, extra.bind_mw.rkey)),
        ("bind_mw.bind_info", offset_of!(ibv_send_wr, extra.bind_mw.bind_info)),
        ("tso.hdr", offset_of!(ibv_send_wr, extra.tso.hdr)),
        ("tso.hdr_sz", offset_of!(ibv_send_wr, extra.tso.hdr_sz)),
        ("tso.mss", offset_of!(ibv_send_wr, extra.tso.mss)),
    ]
};

impl core::fmt::Debug for ibv_send_wr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ibv_send_wr")
            .field("wr_id", &self.wr_id)
            .field("opcode", &self.opcode)
            .field("num_sge", &self.num_sge)
            .field("send_flags", &self.send_flags)
            .finish_non_exhaustive()
    }
}

impl core::fmt::Debug for ibv_wc {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ibv_wc")
            .field("wr_id", &self.wr_id)
            .field("status", &self.status)
            .field("opcode", &self.opcode)
            .field("vendor_err", &self.vendor_err)
            .field("byte_len", &self.byte_len)
            .field("imm", &self.imm.raw())
            .field("qp_num", &self.qp_num)
            .field("wc_flags", &self.wc_flags)
            .finish_non_exhaustive()
    }
}
