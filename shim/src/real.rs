//! The real libibverbs: each function found on first use, in the copy that [`loader`] took for the real one.
//!
//! There is no link-time dependency: this library is loaded into every child process, most of which never see RDMA.

use crate::cold::cm::{RdmaCmEvent, RdmaCmId, RdmaEventChannel};
use crate::loader;
use core::ffi::{c_char, c_int, c_uint, c_void};
use core::sync::atomic::{AtomicPtr, Ordering};
use shift_abi::*;

/// What a C function returns that returns nothing.
type Nothing = ();
const NOTHING: Nothing = ();

/// A symbol that is looked up once. The stored pointer is NULL until then; racing threads store the same value.
struct Symbol {
    name: &'static core::ffi::CStr,
    found: AtomicPtr<c_void>,
}

impl Symbol {
    const fn new(name: &'static core::ffi::CStr) -> Self {
        Self { name, found: AtomicPtr::new(core::ptr::null_mut()) }
    }

    fn get(&self) -> Option<*mut c_void> {
        let mut found = self.found.load(Ordering::Relaxed);
        if found.is_null() {
            found = self.look_up();
            self.found.store(found, Ordering::Relaxed);
        }
        (!found.is_null()).then_some(found)
    }

    #[cold]
    fn look_up(&self) -> *mut c_void {
        loader::real(self.name).unwrap_or(core::ptr::null_mut())
    }
}

/// `ibv_get_cq_event` of libibverbs for a channel that may block: the thread may be cancelled in it.
pub type GetCqEvent = unsafe extern "C-unwind" fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;

/// See [`GetCqEvent`].
pub fn blocking_get_cq_event() -> Option<GetCqEvent> {
    static SYMBOL: Symbol = Symbol::new(c"ibv_get_cq_event");
    let found = SYMBOL.get()?;
    // SAFETY: a symbol of this name in libibverbs has this signature.
    Some(unsafe { core::mem::transmute::<*mut c_void, GetCqEvent>(found) })
}

/// `ibv_get_async_event` of libibverbs where it may block.
pub type GetAsyncEvent = unsafe extern "C-unwind" fn(*mut ibv_context, *mut ibv_async_event) -> c_int;

/// See [`GetAsyncEvent`].
pub fn blocking_get_async_event() -> Option<GetAsyncEvent> {
    static SYMBOL: Symbol = Symbol::new(c"ibv_get_async_event");
    let found = SYMBOL.get()?;
    // SAFETY: a symbol of this name in libibverbs has this signature.
    Some(unsafe { core::mem::transmute::<*mut c_void, GetAsyncEvent>(found) })
}

/// `rdma_get_cm_event` of librdmacm where it may block.
pub type GetCmEvent = unsafe extern "C-unwind" fn(*mut RdmaEventChannel, *mut *mut RdmaCmEvent) -> c_int;

/// See [`GetCmEvent`].
pub fn blocking_get_cm_event() -> Option<GetCmEvent> {
    static SYMBOL: Symbol = Symbol::new(c"rdma_get_cm_event");
    let found = SYMBOL.get()?;
    // SAFETY: a symbol of this name in librdmacm has this signature.
    Some(unsafe { core::mem::transmute::<*mut c_void, GetCmEvent>(found) })
}

macro_rules! real_functions {
    ($( $(#[$doc:meta])* fn $name:ident($($arg:ident : $ty:ty),*) -> $ret:ty = $missing:expr; )*) => { $(
        $(#[$doc])*
        ///
        /// Where libibverbs has no such function the result is the one by which C reports failure.
        ///
        /// # Safety
        /// As the function of libibverbs with this name.
        pub unsafe fn $name($($arg: $ty),*) -> $ret {
            static SYMBOL: Symbol = Symbol::new(match core::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()) {
                Ok(name) => name,
                Err(_) => c"",
            });
            let Some(found) = SYMBOL.get() else { return $missing };
            // SAFETY: a symbol of this name in libibverbs has this signature (verbs.h, checked by shift-abi's test of the header).
            let function: unsafe extern "C" fn($($ty),*) -> $ret = unsafe { core::mem::transmute(found) };
            // SAFETY: passed on to the caller.
            unsafe { function($($arg),*) }
        }
    )* };
}

real_functions! {
    /// The devices.
    fn ibv_get_device_list(count: *mut c_int) -> *mut *mut ibv_device = core::ptr::null_mut();
    /// Frees the list.
    fn ibv_free_device_list(list: *mut *mut ibv_device) -> Nothing = NOTHING;
    /// Opens a device.
    fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context = core::ptr::null_mut();
    /// A context of a device that is open elsewhere.
    fn ibv_import_device(command_fd: c_int) -> *mut ibv_context = core::ptr::null_mut();
    /// A registration that was made elsewhere.
    fn ibv_import_mr(pd: *mut ibv_pd, handle: u32) -> *mut ibv_mr = core::ptr::null_mut();
    /// Gives it up.
    fn ibv_unimport_mr(mr: *mut ibv_mr) -> Nothing = NOTHING;
    /// Gives up a PD that was made elsewhere.
    fn ibv_unimport_pd(pd: *mut ibv_pd) -> Nothing = NOTHING;
    /// Closes it.
    fn ibv_close_device(context: *mut ibv_context) -> c_int = libc::ENOSYS;
    /// What the device can do.
    fn ibv_query_device(context: *mut ibv_context, attr: *mut ibv_device_attr) -> c_int = libc::ENOSYS;
    /// What the port is. The exported function fills the old, shorter structure, which is a prefix.
    fn ibv_query_port(context: *mut ibv_context, port: u8, attr: *mut ibv_port_attr) -> c_int = libc::ENOSYS;
    /// The table of GIDs.
    fn _ibv_query_gid_table(context: *mut ibv_context, entries: *mut ibv_gid_entry, max: usize, flags: u32, entry_size: usize) -> isize = -1;
    /// One entry of it.
    fn _ibv_query_gid_ex(context: *mut ibv_context, port: u32, index: u32, entry: *mut ibv_gid_entry, flags: u32, entry_size: usize) -> c_int = libc::ENOSYS;
    /// Makes a PD.
    fn ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd = core::ptr::null_mut();
    /// Frees it.
    fn ibv_dealloc_pd(pd: *mut ibv_pd) -> c_int = libc::ENOSYS;
    /// Registers memory.
    fn ibv_reg_mr(pd: *mut ibv_pd, addr: *mut c_void, length: usize, access: c_int) -> *mut ibv_mr = core::ptr::null_mut();
    /// Registers memory under another address.
    fn ibv_reg_mr_iova(pd: *mut ibv_pd, addr: *mut c_void, length: usize, iova: u64, access: c_int) -> *mut ibv_mr = core::ptr::null_mut();
    /// Registers memory under another address, with optional access flags.
    fn ibv_reg_mr_iova2(pd: *mut ibv_pd, addr: *mut c_void, length: usize, iova: u64, access: u32) -> *mut ibv_mr = core::ptr::null_mut();
    /// Registers memory of another device.
    fn ibv_reg_dmabuf_mr(pd: *mut ibv_pd, offset: u64, length: usize, iova: u64, fd: c_int, access: c_int) -> *mut ibv_mr = core::ptr::null_mut();
    /// Changes a registration.
    fn ibv_rereg_mr(mr: *mut ibv_mr, flags: c_int, pd: *mut ibv_pd, addr: *mut c_void, length: usize, access: c_int) -> c_int = -1;
    /// Withdraws a registration.
    fn ibv_dereg_mr(mr: *mut ibv_mr) -> c_int = libc::ENOSYS;
    /// Makes a CQ.
    fn ibv_create_cq(context: *mut ibv_context, cqe: c_int, cq_context: *mut c_void, channel: *mut ibv_comp_channel, vector: c_int) -> *mut ibv_cq = core::ptr::null_mut();
    /// Makes a completion channel.
    fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel = core::ptr::null_mut();
    /// Destroys it.
    fn ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int = libc::ENOSYS;
    /// Takes an event of it. For channels that do not block.
    fn ibv_get_cq_event(channel: *mut ibv_comp_channel, cq: *mut *mut ibv_cq, cq_context: *mut *mut c_void) -> c_int = -1;
    /// Acknowledges events.
    fn ibv_ack_cq_events(cq: *mut ibv_cq, count: c_uint) -> Nothing = NOTHING;
    /// Changes its size.
    fn ibv_resize_cq(cq: *mut ibv_cq, cqe: c_int) -> c_int = libc::ENOSYS;
    /// Destroys it.
    fn ibv_destroy_cq(cq: *mut ibv_cq) -> c_int = libc::ENOSYS;
    /// Makes an SRQ.
    fn ibv_create_srq(pd: *mut ibv_pd, attr: *mut ibv_srq_init_attr) -> *mut ibv_srq = core::ptr::null_mut();
    /// Changes it.
    fn ibv_modify_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr, mask: c_int) -> c_int = libc::ENOSYS;
    /// Asks for its attributes.
    fn ibv_query_srq(srq: *mut ibv_srq, attr: *mut ibv_srq_attr) -> c_int = libc::ENOSYS;
    /// Destroys it.
    fn ibv_destroy_srq(srq: *mut ibv_srq) -> c_int = libc::ENOSYS;
    /// Makes a QP.
    fn ibv_create_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr) -> *mut ibv_qp = core::ptr::null_mut();
    /// Changes it.
    fn ibv_modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int) -> c_int = libc::ENOSYS;
    /// Asks for its attributes.
    fn ibv_query_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int, init: *mut ibv_qp_init_attr) -> c_int = libc::ENOSYS;
    /// The extended form of a QP that was made with functions for posting, or NULL.
    fn ibv_qp_to_qp_ex(qp: *mut ibv_qp) -> *mut ibv_qp_ex = core::ptr::null_mut();
    /// Destroys it.
    fn ibv_destroy_qp(qp: *mut ibv_qp) -> c_int = libc::ENOSYS;
    /// Reads an asynchronous event.
    fn ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int = -1;
    /// Acknowledges it.
    fn ibv_ack_async_event(event: *mut ibv_async_event) -> Nothing = NOTHING;
    /// Ends a connection.
    fn rdma_disconnect(id: *mut RdmaCmId) -> c_int = -1;
    /// Destroys a connection's id.
    fn rdma_destroy_id(id: *mut RdmaCmId) -> c_int = -1;
    /// Takes an event of connections. For channels that have one.
    fn rdma_get_cm_event(channel: *mut RdmaEventChannel, event: *mut *mut RdmaCmEvent) -> c_int = -1;
    /// Acknowledges it.
    fn rdma_ack_cm_event(event: *mut RdmaCmEvent) -> c_int = -1;
    /// Destroys a channel of such events.
    fn rdma_destroy_event_channel(channel: *mut RdmaEventChannel) -> Nothing = NOTHING;
    /// Name of a device.
    fn ibv_get_device_name(device: *mut ibv_device) -> *const c_char = core::ptr::null();
    /// libmlx5: opens a device with attributes of its own.
    fn mlx5dv_open_device(device: *mut ibv_device, attr: *mut c_void) -> *mut ibv_context = core::ptr::null_mut();
    /// libmlx5: tells where the queues of objects lie.
    fn mlx5dv_init_obj(object: *mut c_void, kinds: u64) -> c_int = libc::EOPNOTSUPP;
    /// libmlx5: makes a CQ with attributes of its own.
    fn mlx5dv_create_cq(context: *mut ibv_context, attr: *mut ibv_cq_init_attr_ex, own: *mut c_void) -> *mut ibv_cq_ex = core::ptr::null_mut();
    /// libmlx5: makes an object of the firmware by a command for it.
    fn mlx5dv_devx_obj_create(context: *mut ibv_context, command: *const c_void, length: usize, answer: *mut c_void, room: usize) -> *mut c_void = core::ptr::null_mut();
    /// libmlx5: destroys it.
    fn mlx5dv_devx_obj_destroy(object: *mut c_void) -> c_int = libc::EOPNOTSUPP;
    /// libmlx5: makes a QP with attributes of its own.
    fn mlx5dv_create_qp(context: *mut ibv_context, attr: *mut ibv_qp_init_attr_ex, own: *mut c_void) -> *mut ibv_qp = core::ptr::null_mut();
    /// libmlx5: registers memory of another device, with access flags of its own.
    fn mlx5dv_reg_dmabuf_mr(pd: *mut ibv_pd, offset: u64, length: usize, iova: u64, fd: c_int, access: c_int, own: c_int) -> *mut ibv_mr = core::ptr::null_mut();
}
