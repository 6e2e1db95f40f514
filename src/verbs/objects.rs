//! The objects that libibverbs makes and the application holds by pointer.
//!
//! They live in the library's memory and carry locks of its own: read them through the pointer, never copy them. Only
//! those without a lock are `Copy`.

use crate::attr::ibv_gid_entry;
use crate::constants::*;
use crate::context::ibv_context;
use core::ffi::{c_char, c_int, c_void};
use libc::{pthread_cond_t, pthread_mutex_t};

use crate::{COND_SIZE, MUTEX_SIZE};

c_structs! {
    /// A device, as listed by `ibv_get_device_list`.
    ibv_device as "struct ibv_device" [664] {
        _ops: [*mut c_void; 2] = 0,
        node_type: ibv_node_type = 16,
        transport_type: ibv_transport_type = 20,
        name: [c_char; IBV_SYSFS_NAME_MAX] = 24,
        dev_name: [c_char; IBV_SYSFS_NAME_MAX] = 88,
        dev_path: [c_char; IBV_SYSFS_PATH_MAX] = 152,
        ibdev_path: [c_char; IBV_SYSFS_PATH_MAX] = 408,
    }

    /// A protection domain.
    #[derive(Clone, Copy, Debug)]
    ibv_pd as "struct ibv_pd" [16] {
        context: *mut ibv_context = 0,
        handle: u32 = 8,
    }

    /// A memory registration.
    #[derive(Clone, Copy, Debug)]
    ibv_mr as "struct ibv_mr" [48] {
        context: *mut ibv_context = 0,
        pd: *mut ibv_pd = 8,
        addr: *mut c_void = 16,
        length: usize = 24,
        handle: u32 = 32,
        lkey: u32 = 36,
        rkey: u32 = 40,
    }

    /// A memory window.
    #[derive(Clone, Copy, Debug)]
    ibv_mw as "struct ibv_mw" [32] {
        context: *mut ibv_context = 0,
        pd: *mut ibv_pd = 8,
        rkey: u32 = 16,
        handle: u32 = 20,
        r#type: ibv_mw_type = 24 => "type",
    }

    /// An address handle.
    #[derive(Clone, Copy, Debug)]
    ibv_ah as "struct ibv_ah" [24] {
        context: *mut ibv_context = 0,
        pd: *mut ibv_pd = 8,
        handle: u32 = 16,
    }

    /// A completion event channel; `fd` is read and polled by applications directly.
    #[derive(Clone, Copy, Debug)]
    ibv_comp_channel as "struct ibv_comp_channel" [16] {
        context: *mut ibv_context = 0,
        fd: c_int = 8,
        refcnt: c_int = 12,
    }

    /// A completion queue.
    ibv_cq as "struct ibv_cq" [40 + MUTEX_SIZE + COND_SIZE] {
        context: *mut ibv_context = 0,
        channel: *mut ibv_comp_channel = 8,
        cq_context: *mut c_void = 16,
        handle: u32 = 24,
        cqe: c_int = 28,
        mutex: pthread_mutex_t = 32,
        cond: pthread_cond_t = 32 + MUTEX_SIZE,
        comp_events_completed: u32 = 32 + MUTEX_SIZE + COND_SIZE,
        async_events_completed: u32 = 36 + MUTEX_SIZE + COND_SIZE,
    }

    /// A shared receive queue.
    ibv_srq as "struct ibv_srq" [40 + MUTEX_SIZE + COND_SIZE] {
        context: *mut ibv_context = 0,
        srq_context: *mut c_void = 8,
        pd: *mut ibv_pd = 16,
        handle: u32 = 24,
        mutex: pthread_mutex_t = 32,
        cond: pthread_cond_t = 32 + MUTEX_SIZE,
        events_completed: u32 = 32 + MUTEX_SIZE + COND_SIZE,
    }

    /// A queue pair.
    ibv_qp as "struct ibv_qp" [72 + MUTEX_SIZE + COND_SIZE] {
        context: *mut ibv_context = 0,
        qp_context: *mut c_void = 8,
        pd: *mut ibv_pd = 16,
        send_cq: *mut ibv_cq = 24,
        recv_cq: *mut ibv_cq = 32,
        srq: *mut ibv_srq = 40,
        handle: u32 = 48,
        qp_num: u32 = 52,
        state: ibv_qp_state = 56,
        qp_type: ibv_qp_type = 60,
        mutex: pthread_mutex_t = 64,
        cond: pthread_cond_t = 64 + MUTEX_SIZE,
        events_completed: u32 = 64 + MUTEX_SIZE + COND_SIZE,
    }

    /// An asynchronous event; `event_type` says which member of `element` is meant.
    #[derive(Clone, Copy)]
    ibv_async_event as "struct ibv_async_event" [16] {
        element: ibv_async_element = 0,
        event_type: ibv_event_type = 8,
    }
}

/// What an [`ibv_async_event`] is about.
#[derive(Clone, Copy)]
#[repr(C)]
pub union ibv_async_element {
    /// For `IBV_EVENT_CQ_ERR`.
    pub cq: *mut ibv_cq,
    /// For the events of a queue pair.
    pub qp: *mut ibv_qp,
    /// For the events of a shared receive queue.
    pub srq: *mut ibv_srq,
    /// For the events of a work queue.
    pub wq: *mut c_void,
    /// For the events of a port.
    pub port_num: c_int,
}

const _: () = assert!(core::mem::size_of::<ibv_gid_entry>() == 32, "the entry_size that _ibv_query_gid_ex is told");
