//! The extended interfaces: `ibv_qp_ex` (wr_start … wr_complete), `ibv_cq_ex` (start_poll … read_*), device attributes.

use crate::attr::ibv_device_attr;
use crate::constants::{ibv_wc_opcode, ibv_wc_status, ibv_wr_opcode};
use crate::context::ibv_context;
use crate::objects::*;
use crate::work::{ibv_data_buf, ibv_mw_bind_info, ibv_sge};
use crate::{COND_SIZE, MUTEX_SIZE};
use core::ffi::{c_int, c_uint, c_void};
use libc::{pthread_cond_t, pthread_mutex_t};

/// A work request of tag matching; only its pointer is handled here.
#[repr(C)]
pub struct ibv_ops_wr {
    _private: [u8; 0],
}

/// `wr_flush`, the last member of `struct ibv_qp_ex` since rdma-core 45.
pub type wr_flush_fn = unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, usize, u8, u8);

/// Asked of `send_ops_flags` by a program that was compiled with a header of rdma-core 45 or later. Where a device grants
/// it, its [`ibv_qp_ex`] has `wr_flush` behind what this crate's header knows: see [`wr_flush_slot`].
pub const IBV_QP_EX_WITH_FLUSH: u64 = 1 << 11;

/// The opcode of `wr_flush`: it has no form in [`ibv_send_wr`](crate::ibv_send_wr).
pub const IBV_WR_FLUSH: ibv_wr_opcode = ibv_wr_opcode(14);

/// Where `wr_flush` lies in a queue pair that was granted [`IBV_QP_EX_WITH_FLUSH`].
#[must_use]
pub const fn wr_flush_slot(pair: *mut ibv_qp_ex) -> *mut Option<wr_flush_fn> {
    pair.wrapping_add(1).cast()
}

c_structs! {
    /// The argument of `ibv_query_device_ex`.
    #[derive(Clone, Copy, Debug)]
    ibv_query_device_ex_input as "struct ibv_query_device_ex_input" [4] {
        comp_mask: u32 = 0,
    }

    /// What on-demand paging supports.
    #[derive(Clone, Copy, Debug)]
    ibv_odp_caps as "struct ibv_odp_caps" [24] {
        general_caps: u64 = 0,
        rc_odp_caps: u32 = 8 => "per_transport_caps.rc_odp_caps",
        uc_odp_caps: u32 = 12 => "per_transport_caps.uc_odp_caps",
        ud_odp_caps: u32 = 16 => "per_transport_caps.ud_odp_caps",
    }

    /// What segmentation offload supports.
    #[derive(Clone, Copy, Debug)]
    ibv_tso_caps as "struct ibv_tso_caps" [8] {
        max_tso: u32 = 0,
        supported_qpts: u32 = 4,
    }

    /// What receive-side scaling supports.
    #[derive(Clone, Copy, Debug)]
    ibv_rss_caps as "struct ibv_rss_caps" [32] {
        supported_qpts: u32 = 0,
        max_rwq_indirection_tables: u32 = 4,
        max_rwq_indirection_table_size: u32 = 8,
        rx_hash_fields_mask: u64 = 16,
        rx_hash_function: u8 = 24,
    }

    /// What packet pacing supports; rates in kbit/s.
    #[derive(Clone, Copy, Debug)]
    ibv_packet_pacing_caps as "struct ibv_packet_pacing_caps" [12] {
        qp_rate_limit_min: u32 = 0,
        qp_rate_limit_max: u32 = 4,
        supported_qpts: u32 = 8,
    }

    /// What tag matching supports.
    #[derive(Clone, Copy, Debug)]
    ibv_tm_caps as "struct ibv_tm_caps" [20] {
        max_rndv_hdr_size: u32 = 0,
        max_num_tags: u32 = 4,
        flags: u32 = 8,
        max_ops: u32 = 12,
        max_sge: u32 = 16,
    }

    /// The limits of completion moderation; the period in microseconds.
    #[derive(Clone, Copy, Debug)]
    ibv_cq_moderation_caps as "struct ibv_cq_moderation_caps" [4] {
        max_cq_count: u16 = 0,
        max_cq_period: u16 = 2,
    }

    /// The sizes of PCI atomics.
    #[derive(Clone, Copy, Debug)]
    ibv_pci_atomic_caps as "struct ibv_pci_atomic_caps" [6] {
        fetch_add: u16 = 0,
        swap: u16 = 2,
        compare_swap: u16 = 4,
    }

    /// What a device can do, extended.
    #[derive(Clone, Copy, Debug)]
    ibv_device_attr_ex as "struct ibv_device_attr_ex" [400] {
        orig_attr: ibv_device_attr = 0,
        comp_mask: u32 = 232,
        odp_caps: ibv_odp_caps = 240,
        completion_timestamp_mask: u64 = 264,
        hca_core_clock: u64 = 272,
        device_cap_flags_ex: u64 = 280,
        tso_caps: ibv_tso_caps = 288,
        rss_caps: ibv_rss_caps = 296,
        max_wq_type_rq: u32 = 328,
        packet_pacing_caps: ibv_packet_pacing_caps = 332,
        raw_packet_caps: u32 = 344,
        tm_caps: ibv_tm_caps = 348,
        cq_mod_caps: ibv_cq_moderation_caps = 368,
        max_dm_size: u64 = 376,
        pci_atomic_caps: ibv_pci_atomic_caps = 384,
        xrc_odp_caps: u32 = 392,
        phys_port_cnt_ex: u32 = 396,
    }

    /// A queue pair with the functions that post one work request piece by piece.
    ibv_qp_ex as "struct ibv_qp_ex" [264 + MUTEX_SIZE + COND_SIZE] {
        qp_base: ibv_qp = 0,
        comp_mask: u64 = 72 + MUTEX_SIZE + COND_SIZE,
        wr_id: u64 = 80 + MUTEX_SIZE + COND_SIZE,
        wr_flags: c_uint = 88 + MUTEX_SIZE + COND_SIZE,
        wr_atomic_cmp_swp: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, u64, u64)> = 96 + MUTEX_SIZE + COND_SIZE,
        wr_atomic_fetch_add: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, u64)> = 104 + MUTEX_SIZE + COND_SIZE,
        wr_bind_mw: Option<unsafe extern "C" fn(*mut ibv_qp_ex, *mut ibv_mw, u32, *const ibv_mw_bind_info)> = 112 + MUTEX_SIZE + COND_SIZE,
        wr_local_inv: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32)> = 120 + MUTEX_SIZE + COND_SIZE,
        wr_rdma_read: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64)> = 128 + MUTEX_SIZE + COND_SIZE,
        wr_rdma_write: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64)> = 136 + MUTEX_SIZE + COND_SIZE,
        wr_rdma_write_imm: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, u32)> = 144 + MUTEX_SIZE + COND_SIZE,
        wr_send: Option<unsafe extern "C" fn(*mut ibv_qp_ex)> = 152 + MUTEX_SIZE + COND_SIZE,
        wr_send_imm: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32)> = 160 + MUTEX_SIZE + COND_SIZE,
        wr_send_inv: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32)> = 168 + MUTEX_SIZE + COND_SIZE,
        wr_send_tso: Option<unsafe extern "C" fn(*mut ibv_qp_ex, *mut c_void, u16, u16)> = 176 + MUTEX_SIZE + COND_SIZE,
        wr_set_ud_addr: Option<unsafe extern "C" fn(*mut ibv_qp_ex, *mut ibv_ah, u32, u32)> = 184 + MUTEX_SIZE + COND_SIZE,
        wr_set_xrc_srqn: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32)> = 192 + MUTEX_SIZE + COND_SIZE,
        wr_set_inline_data: Option<unsafe extern "C" fn(*mut ibv_qp_ex, *mut c_void, usize)> = 200 + MUTEX_SIZE + COND_SIZE,
        wr_set_inline_data_list: Option<unsafe extern "C" fn(*mut ibv_qp_ex, usize, *const ibv_data_buf)> = 208 + MUTEX_SIZE + COND_SIZE,
        wr_set_sge: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, u32)> = 216 + MUTEX_SIZE + COND_SIZE,
        wr_set_sge_list: Option<unsafe extern "C" fn(*mut ibv_qp_ex, usize, *const ibv_sge)> = 224 + MUTEX_SIZE + COND_SIZE,
        wr_start: Option<unsafe extern "C" fn(*mut ibv_qp_ex)> = 232 + MUTEX_SIZE + COND_SIZE,
        wr_complete: Option<unsafe extern "C" fn(*mut ibv_qp_ex) -> c_int> = 240 + MUTEX_SIZE + COND_SIZE,
        wr_abort: Option<unsafe extern "C" fn(*mut ibv_qp_ex)> = 248 + MUTEX_SIZE + COND_SIZE,
        wr_atomic_write: Option<unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, *const c_void)> = 256 + MUTEX_SIZE + COND_SIZE,
    }

    /// The argument of `ibv_start_poll`.
    #[derive(Clone, Copy, Debug)]
    ibv_poll_cq_attr as "struct ibv_poll_cq_attr" [4] {
        comp_mask: u32 = 0,
    }

    /// What a tag matching completion carries.
    #[derive(Clone, Copy, Debug)]
    ibv_wc_tm_info as "struct ibv_wc_tm_info" [16] {
        tag: u64 = 0,
        r#priv: u32 = 8 => "priv",
    }

    /// A completion queue with the functions that read one completion field by field; it begins as [`ibv_cq`] does.
    ibv_cq_ex as "struct ibv_cq_ex" [200 + MUTEX_SIZE + COND_SIZE] {
        context: *mut ibv_context = 0,
        channel: *mut ibv_comp_channel = 8,
        cq_context: *mut c_void = 16,
        handle: u32 = 24,
        cqe: c_int = 28,
        mutex: pthread_mutex_t = 32,
        cond: pthread_cond_t = 32 + MUTEX_SIZE,
        comp_events_completed: u32 = 32 + MUTEX_SIZE + COND_SIZE,
        async_events_completed: u32 = 36 + MUTEX_SIZE + COND_SIZE,
        comp_mask: u32 = 40 + MUTEX_SIZE + COND_SIZE,
        status: ibv_wc_status = 44 + MUTEX_SIZE + COND_SIZE,
        wr_id: u64 = 48 + MUTEX_SIZE + COND_SIZE,
        start_poll: Option<unsafe extern "C" fn(*mut ibv_cq_ex, *mut ibv_poll_cq_attr) -> c_int> = 56 + MUTEX_SIZE + COND_SIZE,
        next_poll: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> c_int> = 64 + MUTEX_SIZE + COND_SIZE,
        end_poll: Option<unsafe extern "C" fn(*mut ibv_cq_ex)> = 72 + MUTEX_SIZE + COND_SIZE,
        read_opcode: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> ibv_wc_opcode> = 80 + MUTEX_SIZE + COND_SIZE,
        read_vendor_err: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32> = 88 + MUTEX_SIZE + COND_SIZE,
        read_byte_len: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32> = 96 + MUTEX_SIZE + COND_SIZE,
        read_imm_data: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32> = 104 + MUTEX_SIZE + COND_SIZE,
        read_qp_num: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32> = 112 + MUTEX_SIZE + COND_SIZE,
        read_src_qp: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32> = 120 + MUTEX_SIZE + COND_SIZE,
        read_wc_flags: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> c_uint> = 128 + MUTEX_SIZE + COND_SIZE,
        read_slid: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32> = 136 + MUTEX_SIZE + COND_SIZE,
        read_sl: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u8> = 144 + MUTEX_SIZE + COND_SIZE,
        read_dlid_path_bits: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u8> = 152 + MUTEX_SIZE + COND_SIZE,
        read_completion_ts: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u64> = 160 + MUTEX_SIZE + COND_SIZE,
        read_cvlan: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u16> = 168 + MUTEX_SIZE + COND_SIZE,
        read_flow_tag: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u32> = 176 + MUTEX_SIZE + COND_SIZE,
        read_tm_info: Option<unsafe extern "C" fn(*mut ibv_cq_ex, *mut ibv_wc_tm_info)> = 184 + MUTEX_SIZE + COND_SIZE,
        read_completion_wallclock_ns: Option<unsafe extern "C" fn(*mut ibv_cq_ex) -> u64> = 192 + MUTEX_SIZE + COND_SIZE,
    }
}
