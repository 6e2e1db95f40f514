//! Attributes: what is asked of the library when an object is made, changed or queried.

use crate::constants::*;
use crate::objects::{ibv_comp_channel, ibv_cq, ibv_pd, ibv_srq};
use core::ffi::{c_char, c_int, c_uint, c_void};

/// A type of verbs.h of which only pointers are ever handled here.
macro_rules! opaque {
    ($($(#[$meta:meta])* $name:ident),* $(,)?) => { $(
        $(#[$meta])*
        #[repr(C)]
        pub struct $name { _private: [u8; 0] }
    )* };
}

opaque! {
    /// An XRC domain.
    ibv_xrcd,
    /// A table of work queues for receive-side scaling.
    ibv_rwq_ind_table,
    /// A thread domain: objects in it are used by one thread at a time.
    ibv_td,
    /// Memory of the device.
    ibv_dm,
}

c_structs! {
    /// A port's address on the fabric: 16 bytes, in network byte order.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
    #[repr(align(8))]
    ibv_gid as "union ibv_gid" [16] {
        raw: [u8; 16] = 0,
    }

    /// One entry of a port's GID table.
    #[derive(Clone, Copy, Debug)]
    ibv_gid_entry as "struct ibv_gid_entry" [32] {
        gid: ibv_gid = 0,
        gid_index: u32 = 16,
        port_num: u32 = 20,
        gid_type: ibv_gid_type = 24,
        ndev_ifindex: u32 = 28,
    }

    /// The routing part of an address.
    #[derive(Clone, Copy, Debug)]
    ibv_global_route as "struct ibv_global_route" [24] {
        dgid: ibv_gid = 0,
        flow_label: u32 = 16,
        sgid_index: u8 = 20,
        hop_limit: u8 = 21,
        traffic_class: u8 = 22,
    }

    /// A path to a peer.
    #[derive(Clone, Copy, Debug)]
    ibv_ah_attr as "struct ibv_ah_attr" [32] {
        grh: ibv_global_route = 0,
        dlid: u16 = 24,
        sl: u8 = 26,
        src_path_bits: u8 = 27,
        static_rate: u8 = 28,
        is_global: u8 = 29,
        port_num: u8 = 30,
    }

    /// The sizes of a queue pair's queues.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    ibv_qp_cap as "struct ibv_qp_cap" [20] {
        max_send_wr: u32 = 0,
        max_recv_wr: u32 = 4,
        max_send_sge: u32 = 8,
        max_recv_sge: u32 = 12,
        max_inline_data: u32 = 16,
    }

    /// The argument of `ibv_create_qp`; the library writes the granted sizes back.
    #[derive(Clone, Copy, Debug)]
    ibv_qp_init_attr as "struct ibv_qp_init_attr" [64] {
        qp_context: *mut c_void = 0,
        send_cq: *mut ibv_cq = 8,
        recv_cq: *mut ibv_cq = 16,
        srq: *mut ibv_srq = 24,
        cap: ibv_qp_cap = 32,
        qp_type: ibv_qp_type = 52,
        sq_sig_all: c_int = 56,
    }

    /// How packets are spread over receive queues.
    #[derive(Clone, Copy, Debug)]
    ibv_rx_hash_conf as "struct ibv_rx_hash_conf" [24] {
        rx_hash_function: u8 = 0,
        rx_hash_key_len: u8 = 1,
        rx_hash_key: *mut u8 = 8,
        rx_hash_fields_mask: u64 = 16,
    }

    /// The argument of `ibv_create_qp_ex`; it begins as [`ibv_qp_init_attr`] does.
    #[derive(Clone, Copy, Debug)]
    ibv_qp_init_attr_ex as "struct ibv_qp_init_attr_ex" [136] {
        qp_context: *mut c_void = 0,
        send_cq: *mut ibv_cq = 8,
        recv_cq: *mut ibv_cq = 16,
        srq: *mut ibv_srq = 24,
        cap: ibv_qp_cap = 32,
        qp_type: ibv_qp_type = 52,
        sq_sig_all: c_int = 56,
        comp_mask: u32 = 60,
        pd: *mut ibv_pd = 64,
        xrcd: *mut ibv_xrcd = 72,
        create_flags: u32 = 80,
        max_tso_header: u16 = 84,
        rwq_ind_tbl: *mut ibv_rwq_ind_table = 88,
        rx_hash_conf: ibv_rx_hash_conf = 96,
        source_qpn: u32 = 120,
        send_ops_flags: u64 = 128,
    }

    /// The argument of `ibv_open_qp`.
    #[derive(Clone, Copy, Debug)]
    ibv_qp_open_attr as "struct ibv_qp_open_attr" [32] {
        comp_mask: u32 = 0,
        qp_num: u32 = 4,
        xrcd: *mut ibv_xrcd = 8,
        qp_context: *mut c_void = 16,
        qp_type: ibv_qp_type = 24,
    }

    /// The attributes of a queue pair; a mask says which are meant.
    #[derive(Clone, Copy, Debug)]
    ibv_qp_attr as "struct ibv_qp_attr" [144] {
        qp_state: ibv_qp_state = 0,
        cur_qp_state: ibv_qp_state = 4,
        path_mtu: ibv_mtu = 8,
        path_mig_state: ibv_mig_state = 12,
        qkey: u32 = 16,
        rq_psn: u32 = 20,
        sq_psn: u32 = 24,
        dest_qp_num: u32 = 28,
        qp_access_flags: c_uint = 32,
        cap: ibv_qp_cap = 36,
        ah_attr: ibv_ah_attr = 56,
        alt_ah_attr: ibv_ah_attr = 88,
        pkey_index: u16 = 120,
        alt_pkey_index: u16 = 122,
        en_sqd_async_notify: u8 = 124,
        sq_draining: u8 = 125,
        max_rd_atomic: u8 = 126,
        max_dest_rd_atomic: u8 = 127,
        min_rnr_timer: u8 = 128,
        port_num: u8 = 129,
        timeout: u8 = 130,
        retry_cnt: u8 = 131,
        rnr_retry: u8 = 132,
        alt_port_num: u8 = 133,
        alt_timeout: u8 = 134,
        rate_limit: u32 = 136,
    }

    /// The sizes of a shared receive queue.
    #[derive(Clone, Copy, Debug)]
    ibv_srq_attr as "struct ibv_srq_attr" [12] {
        max_wr: u32 = 0,
        max_sge: u32 = 4,
        srq_limit: u32 = 8,
    }

    /// The argument of `ibv_create_srq`.
    #[derive(Clone, Copy, Debug)]
    ibv_srq_init_attr as "struct ibv_srq_init_attr" [24] {
        srq_context: *mut c_void = 0,
        attr: ibv_srq_attr = 8,
    }

    /// The sizes of a tag matching list.
    #[derive(Clone, Copy, Debug)]
    ibv_tm_cap as "struct ibv_tm_cap" [8] {
        max_num_tags: u32 = 0,
        max_ops: u32 = 4,
    }

    /// The argument of `ibv_create_srq_ex`; it begins as [`ibv_srq_init_attr`] does.
    #[derive(Clone, Copy, Debug)]
    ibv_srq_init_attr_ex as "struct ibv_srq_init_attr_ex" [64] {
        srq_context: *mut c_void = 0,
        attr: ibv_srq_attr = 8,
        comp_mask: u32 = 20,
        srq_type: ibv_srq_type = 24,
        pd: *mut ibv_pd = 32,
        xrcd: *mut ibv_xrcd = 40,
        cq: *mut ibv_cq = 48,
        tm_cap: ibv_tm_cap = 56,
    }

    /// The argument of `ibv_create_cq_ex`.
    #[derive(Clone, Copy, Debug)]
    ibv_cq_init_attr_ex as "struct ibv_cq_init_attr_ex" [56] {
        cqe: u32 = 0,
        cq_context: *mut c_void = 8,
        channel: *mut ibv_comp_channel = 16,
        comp_vector: u32 = 24,
        wc_flags: u64 = 32,
        comp_mask: u32 = 40,
        flags: u32 = 44,
        parent_domain: *mut ibv_pd = 48,
    }

    /// The argument of `ibv_alloc_parent_domain`.
    #[derive(Clone, Copy, Debug)]
    ibv_parent_domain_init_attr as "struct ibv_parent_domain_init_attr" [48] {
        pd: *mut ibv_pd = 0,
        td: *mut ibv_td = 8,
        comp_mask: u32 = 16,
        alloc: *mut c_void = 24,
        free: *mut c_void = 32,
        pd_context: *mut c_void = 40,
    }

    /// When a completion queue raises its event.
    #[derive(Clone, Copy, Debug)]
    ibv_moderate_cq as "struct ibv_moderate_cq" [4] {
        cq_count: u16 = 0,
        cq_period: u16 = 2,
    }

    /// The argument of `ibv_modify_cq`.
    #[derive(Clone, Copy, Debug)]
    ibv_modify_cq_attr as "struct ibv_modify_cq_attr" [8] {
        attr_mask: u32 = 0,
        moderate: ibv_moderate_cq = 4,
    }

    /// What a device can do.
    #[derive(Clone, Copy, Debug)]
    ibv_device_attr as "struct ibv_device_attr" [232] {
        fw_ver: [c_char; 64] = 0,
        node_guid: u64 = 64,
        sys_image_guid: u64 = 72,
        max_mr_size: u64 = 80,
        page_size_cap: u64 = 88,
        vendor_id: u32 = 96,
        vendor_part_id: u32 = 100,
        hw_ver: u32 = 104,
        max_qp: c_int = 108,
        max_qp_wr: c_int = 112,
        device_cap_flags: c_uint = 116,
        max_sge: c_int = 120,
        max_sge_rd: c_int = 124,
        max_cq: c_int = 128,
        max_cqe: c_int = 132,
        max_mr: c_int = 136,
        max_pd: c_int = 140,
        max_qp_rd_atom: c_int = 144,
        max_ee_rd_atom: c_int = 148,
        max_res_rd_atom: c_int = 152,
        max_qp_init_rd_atom: c_int = 156,
        max_ee_init_rd_atom: c_int = 160,
        atomic_cap: ibv_atomic_cap = 164,
        max_ee: c_int = 168,
        max_rdd: c_int = 172,
        max_mw: c_int = 176,
        max_raw_ipv6_qp: c_int = 180,
        max_raw_ethy_qp: c_int = 184,
        max_mcast_grp: c_int = 188,
        max_mcast_qp_attach: c_int = 192,
        max_total_mcast_qp_attach: c_int = 196,
        max_ah: c_int = 200,
        max_fmr: c_int = 204,
        max_map_per_fmr: c_int = 208,
        max_srq: c_int = 212,
        max_srq_wr: c_int = 216,
        max_srq_sge: c_int = 220,
        max_pkeys: u16 = 224,
        local_ca_ack_delay: u8 = 226,
        phys_port_cnt: u8 = 227,
    }

    /// What a port is and can do.
    #[derive(Clone, Copy, Debug)]
    ibv_port_attr as "struct ibv_port_attr" [52] {
        state: ibv_port_state = 0,
        max_mtu: ibv_mtu = 4,
        active_mtu: ibv_mtu = 8,
        gid_tbl_len: c_int = 12,
        port_cap_flags: u32 = 16,
        max_msg_sz: u32 = 20,
        bad_pkey_cntr: u32 = 24,
        qkey_viol_cntr: u32 = 28,
        pkey_tbl_len: u16 = 32,
        lid: u16 = 34,
        sm_lid: u16 = 36,
        lmc: u8 = 38,
        max_vl_num: u8 = 39,
        sm_sl: u8 = 40,
        subnet_timeout: u8 = 41,
        init_type_reply: u8 = 42,
        active_width: u8 = 43,
        active_speed: u8 = 44,
        phys_state: u8 = 45,
        link_layer: u8 = 46,
        flags: u8 = 47,
        port_cap_flags2: u16 = 48,
    }

    /// Enhanced connection establishment options.
    #[derive(Clone, Copy, Debug)]
    ibv_ece as "struct ibv_ece" [12] {
        vendor_id: u32 = 0,
        options: u32 = 4,
        comp_mask: u32 = 8,
    }
}
