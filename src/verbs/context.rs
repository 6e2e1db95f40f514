//! An opened device: the table through which compiled programs post and poll, and the extended table below it.

use crate::attr::*;
use crate::constants::ibv_mw_type;
use crate::extended::{ibv_cq_ex, ibv_device_attr_ex, ibv_ops_wr, ibv_query_device_ex_input};
use crate::objects::*;
use crate::work::{ibv_mw_bind, ibv_recv_wr, ibv_send_wr, ibv_wc};
use crate::MUTEX_SIZE;
use core::ffi::{c_int, c_uint, c_void};
use core::mem::{offset_of, size_of};
use core::ptr::NonNull;
use libc::pthread_mutex_t;

/// A slot that libibverbs keeps for ABI compatibility, or that nothing here calls.
pub type unused_op = Option<unsafe extern "C" fn() -> *mut c_void>;
/// `ops.alloc_mw`.
pub type alloc_mw_fn = unsafe extern "C" fn(*mut ibv_pd, ibv_mw_type) -> *mut ibv_mw;
/// `ops.bind_mw`.
pub type bind_mw_fn = unsafe extern "C" fn(*mut ibv_qp, *mut ibv_mw, *mut ibv_mw_bind) -> c_int;
/// `ops.dealloc_mw`.
pub type dealloc_mw_fn = unsafe extern "C" fn(*mut ibv_mw) -> c_int;
/// `ops.poll_cq`.
pub type poll_cq_fn = unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int;
/// `ops.req_notify_cq`.
pub type req_notify_cq_fn = unsafe extern "C" fn(*mut ibv_cq, c_int) -> c_int;
/// `ops.post_srq_recv`.
pub type post_srq_recv_fn = unsafe extern "C" fn(*mut ibv_srq, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int;
/// `ops.post_send`.
pub type post_send_fn = unsafe extern "C" fn(*mut ibv_qp, *mut ibv_send_wr, *mut *mut ibv_send_wr) -> c_int;
/// `ops.post_recv`.
pub type post_recv_fn = unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int;

/// `verbs_context::query_port`; the last argument is the size of the structure that the caller knows.
pub type query_port_fn = unsafe extern "C" fn(*mut ibv_context, u8, *mut ibv_port_attr, usize) -> c_int;
/// `verbs_context::modify_cq`.
pub type modify_cq_fn = unsafe extern "C" fn(*mut ibv_cq, *mut ibv_modify_cq_attr) -> c_int;
/// `verbs_context::post_srq_ops`.
pub type post_srq_ops_fn = unsafe extern "C" fn(*mut ibv_srq, *mut ibv_ops_wr, *mut *mut ibv_ops_wr) -> c_int;
/// `verbs_context::create_cq_ex`.
pub type create_cq_ex_fn = unsafe extern "C" fn(*mut ibv_context, *mut ibv_cq_init_attr_ex) -> *mut ibv_cq_ex;
/// `verbs_context::query_device_ex`; the last argument is the size of the structure that the caller knows.
pub type query_device_ex_fn =
    unsafe extern "C" fn(*mut ibv_context, *const ibv_query_device_ex_input, *mut ibv_device_attr_ex, usize) -> c_int;
/// `verbs_context::open_qp`.
pub type open_qp_fn = unsafe extern "C" fn(*mut ibv_context, *mut ibv_qp_open_attr) -> *mut ibv_qp;
/// `verbs_context::create_qp_ex`.
pub type create_qp_ex_fn = unsafe extern "C" fn(*mut ibv_context, *mut ibv_qp_init_attr_ex) -> *mut ibv_qp;
/// `verbs_context::create_srq_ex`.
pub type create_srq_ex_fn = unsafe extern "C" fn(*mut ibv_context, *mut ibv_srq_init_attr_ex) -> *mut ibv_srq;
/// `verbs_context::reg_dm_mr`.
pub type reg_dm_mr_fn = unsafe extern "C" fn(*mut ibv_pd, *mut ibv_dm, u64, usize, c_uint) -> *mut ibv_mr;
/// `verbs_context::alloc_null_mr`.
pub type alloc_null_mr_fn = unsafe extern "C" fn(*mut ibv_pd) -> *mut ibv_mr;
/// `verbs_context::alloc_parent_domain`.
pub type alloc_parent_domain_fn =
    unsafe extern "C" fn(*mut ibv_context, *mut ibv_parent_domain_init_attr) -> *mut ibv_pd;

c_structs! {
    /// The functions that `ibv_post_send` and its like call inline. Providers write it once, when the context is made.
    #[derive(Clone, Copy, Debug)]
    ibv_context_ops as "struct ibv_context_ops" [256] {
        _compat_query_device: unused_op = 0,
        _compat_query_port: unused_op = 8,
        _compat_alloc_pd: unused_op = 16,
        _compat_dealloc_pd: unused_op = 24,
        _compat_reg_mr: unused_op = 32,
        _compat_rereg_mr: unused_op = 40,
        _compat_dereg_mr: unused_op = 48,
        alloc_mw: Option<alloc_mw_fn> = 56,
        bind_mw: Option<bind_mw_fn> = 64,
        dealloc_mw: Option<dealloc_mw_fn> = 72,
        _compat_create_cq: unused_op = 80,
        poll_cq: Option<poll_cq_fn> = 88,
        req_notify_cq: Option<req_notify_cq_fn> = 96,
        _compat_cq_event: unused_op = 104,
        _compat_resize_cq: unused_op = 112,
        _compat_destroy_cq: unused_op = 120,
        _compat_create_srq: unused_op = 128,
        _compat_modify_srq: unused_op = 136,
        _compat_query_srq: unused_op = 144,
        _compat_destroy_srq: unused_op = 152,
        post_srq_recv: Option<post_srq_recv_fn> = 160,
        _compat_create_qp: unused_op = 168,
        _compat_query_qp: unused_op = 176,
        _compat_modify_qp: unused_op = 184,
        _compat_destroy_qp: unused_op = 192,
        post_send: Option<post_send_fn> = 200,
        post_recv: Option<post_recv_fn> = 208,
        _compat_create_ah: unused_op = 216,
        _compat_destroy_ah: unused_op = 224,
        _compat_attach_mcast: unused_op = 232,
        _compat_detach_mcast: unused_op = 240,
        _compat_async_event: unused_op = 248,
    }

    /// An opened device. Never copy it and never make one up: what lies below it ([`verbs_context`]) belongs to it.
    ibv_context as "struct ibv_context" [288 + MUTEX_SIZE] {
        device: *mut ibv_device = 0,
        ops: ibv_context_ops = 8,
        cmd_fd: c_int = 264,
        async_fd: c_int = 268,
        num_comp_vectors: c_int = 272,
        mutex: pthread_mutex_t = 280,
        abi_compat: *mut c_void = 280 + MUTEX_SIZE,
    }

    /// What lies below an [`ibv_context`]. It grows at its *beginning*: a field keeps its distance from `context`, and
    /// an older library may not have the first ones. [`VerbsOps`] checks that.
    verbs_context as "struct verbs_context" [608 + MUTEX_SIZE] {
        query_port: Option<query_port_fn> = 0,
        advise_mr: unused_op = 8,
        alloc_null_mr: Option<alloc_null_mr_fn> = 16,
        read_counters: unused_op = 24,
        attach_counters_point_flow: unused_op = 32,
        create_counters: unused_op = 40,
        destroy_counters: unused_op = 48,
        reg_dm_mr: Option<reg_dm_mr_fn> = 56,
        alloc_dm: unused_op = 64,
        free_dm: unused_op = 72,
        modify_flow_action_esp: unused_op = 80,
        destroy_flow_action: unused_op = 88,
        create_flow_action_esp: unused_op = 96,
        modify_qp_rate_limit: unused_op = 104,
        alloc_parent_domain: Option<alloc_parent_domain_fn> = 112,
        dealloc_td: unused_op = 120,
        alloc_td: unused_op = 128,
        modify_cq: Option<modify_cq_fn> = 136,
        post_srq_ops: Option<post_srq_ops_fn> = 144,
        destroy_rwq_ind_table: unused_op = 152,
        create_rwq_ind_table: unused_op = 160,
        destroy_wq: unused_op = 168,
        modify_wq: unused_op = 176,
        create_wq: unused_op = 184,
        query_rt_values: unused_op = 192,
        create_cq_ex: Option<create_cq_ex_fn> = 200,
        /// libibverbs' own; never touched.
        r#priv: *mut c_void = 208 => "priv",
        query_device_ex: Option<query_device_ex_fn> = 216,
        ibv_destroy_flow: unused_op = 224,
        _placeholder2: unused_op = 232 => "ABI_placeholder2",
        ibv_create_flow: unused_op = 240,
        _placeholder1: unused_op = 248 => "ABI_placeholder1",
        open_qp: Option<open_qp_fn> = 256,
        create_qp_ex: Option<create_qp_ex_fn> = 264,
        get_srq_num: unused_op = 272,
        create_srq_ex: Option<create_srq_ex_fn> = 280,
        open_xrcd: unused_op = 288,
        close_xrcd: unused_op = 296,
        _placeholder3: u64 = 304 => "_ABI_placeholder3",
        sz: usize = 312,
        context: ibv_context = 320,
    }
}

/// The value of [`ibv_context::abi_compat`] that says that a [`verbs_context`] lies below (`__VERBS_ABI_IS_EXTENDED`).
pub const VERBS_ABI_IS_EXTENDED: usize = usize::MAX;

/// The extended operations of an opened device: `verbs_get_ctx` and `verbs_get_ctx_op` of verbs.h.
#[derive(Clone, Copy, Debug)]
pub struct VerbsOps {
    /// Where a [`verbs_context`] of this crate's layout would begin. If the library is older, its first fields lie
    /// outside of the allocation, so it is never made a reference.
    base: NonNull<verbs_context>,
    /// `verbs_context::sz` as the library wrote it: how much of the structure, counted from its end, exists.
    covered: usize,
}

impl VerbsOps {
    /// The extended operations of `context`, or `None` if it has none (`verbs_get_ctx`).
    ///
    /// # Safety
    ///
    /// `context` was returned by libibverbs' `ibv_open_device` (or `ibv_import_device`, `mlx5dv_open_device`) and is
    /// not closed before the last use of the result.
    #[must_use]
    pub unsafe fn of(context: NonNull<ibv_context>) -> Option<Self> {
        let context = context.as_ptr();
        // SAFETY: the caller vouches for an open context, which has this field.
        let abi_compat = unsafe { (*context).abi_compat };
        if abi_compat as usize != VERBS_ABI_IS_EXTENDED {
            return None;
        }
        let base = context.wrapping_byte_sub(offset_of!(verbs_context, context)).cast::<verbs_context>();
        let sz = base.wrapping_byte_add(offset_of!(verbs_context, sz)).cast::<usize>();
        // SAFETY: abi_compat promises that the context is the last member of a verbs_context, in which `sz` is the
        // member directly before it; both are of the same allocation.
        let covered = unsafe { sz.read() };
        Some(Self { base: NonNull::new(base)?, covered })
    }

    /// `sz`: how many bytes of the structure, counted from its end, the library has.
    #[must_use]
    pub const fn covered_bytes(self) -> usize {
        self.covered
    }

    /// Where the field at `offset` lies, if the library's structure reaches down to it (`verbs_get_ctx_op`'s test).
    fn field<T>(self, offset: usize) -> Option<NonNull<T>> {
        let from_end = size_of::<verbs_context>().checked_sub(offset)?;
        if self.covered < from_end {
            return None;
        }
        NonNull::new(self.base.as_ptr().wrapping_byte_add(offset).cast::<T>())
    }
}

/// Defines for each operation a method that returns its slot.
macro_rules! extended_slots {
    ($($op:ident : $ty:ty),* $(,)?) => {
        impl VerbsOps { $(
            #[doc = concat!("The slot of `", stringify!($op), "`, if the library has one and it is not NULL.")]
            ///
            /// The slot may be read, and written by who patches the table, as long as the context is open.
            #[must_use]
            pub fn $op(self) -> Option<NonNull<Option<$ty>>> {
                let slot = self.field::<Option<$ty>>(offset_of!(verbs_context, $op))?;
                // SAFETY: `field` checked that the library's structure covers the slot, which therefore is inside of
                // the context's allocation, and the maker of this value vouched that the context is open. Providers
                // write slots only before the context is handed out.
                let function = unsafe { slot.read() };
                function.map(|_| slot)
            }
        )* }
    };
}

extended_slots! {
    query_port: query_port_fn,
    alloc_null_mr: alloc_null_mr_fn,
    reg_dm_mr: reg_dm_mr_fn,
    alloc_parent_domain: alloc_parent_domain_fn,
    modify_cq: modify_cq_fn,
    post_srq_ops: post_srq_ops_fn,
    create_cq_ex: create_cq_ex_fn,
    query_device_ex: query_device_ex_fn,
    open_qp: open_qp_fn,
    create_qp_ex: create_qp_ex_fn,
    create_srq_ex: create_srq_ex_fn,
}
