//! The symbols that shadow libibverbs' own. Thin: guard, convert, call, convert.
//!
//! A cold export never unwinds into C: if this library panics, the call has either been passed on already, or its failure is reported as C does it.
//! The hot ones have nothing that panics. A call that comes from inside of libibverbs (its own functions call each other through the same symbols) is passed through.

use crate::cold::{channel, cq, device, mlx5, mr, pd, qp, srq};
use crate::hot::{poll, post};
use crate::loader;
use crate::process::Inside;
use crate::real;
use core::ffi::{c_int, c_void};
use shift_abi::*;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// Runs `ours` unless this thread is inside of libibverbs already, and keeps a panic from crossing into C.
fn guarded<R>(ours: impl FnOnce() -> R, theirs: impl FnOnce() -> R, failed: R) -> R {
    let Some(_inside) = Inside::enter() else { return theirs() };
    catch_unwind(AssertUnwindSafe(ours)).unwrap_or_else(|_| {
        log::error!("a bug in shift-verbs: a control verb failed inside of the shim; please report it");
        failed
    })
}

macro_rules! exported {
    ($( $(#[$doc:meta])* fn $name:ident($($arg:ident : $ty:ty),*) -> $ret:ty = $ours:path, else $failed:expr; )*) => { $(
        $(#[$doc])*
        ///
        /// # Safety
        /// As the function of libibverbs with this name.
        #[no_mangle]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $ret {
            guarded(
                // SAFETY: the arguments are passed on as they came.
                || unsafe { $ours($($arg),*) },
                // SAFETY: as above.
                || unsafe { real::$name($($arg),*) },
                $failed,
            )
        }
    )* };
}

exported! {
    /// Opens a device, and at the first one starts the protection.
    fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context = device::open, else core::ptr::null_mut();
    /// Takes over a device that is open elsewhere.
    fn ibv_import_device(command_fd: c_int) -> *mut ibv_context = device::import, else core::ptr::null_mut();
    /// Takes over a registration that was made elsewhere: the standby does not have it, and that is said.
    fn ibv_import_mr(domain: *mut ibv_pd, handle: u32) -> *mut ibv_mr = mr::import, else core::ptr::null_mut();
    /// Gives it up.
    fn ibv_unimport_mr(region: *mut ibv_mr) -> () = mr::unimport, else ();
    /// Gives up a PD that was made elsewhere.
    fn ibv_unimport_pd(domain: *mut ibv_pd) -> () = pd::unimport, else ();
    /// Closes it.
    fn ibv_close_device(context: *mut ibv_context) -> c_int = device::close, else libc::EIO;
    /// Makes a PD and its twin.
    fn ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd = pd::alloc, else core::ptr::null_mut();
    /// Frees both.
    fn ibv_dealloc_pd(domain: *mut ibv_pd) -> c_int = pd::dealloc, else libc::EIO;
    /// Registers memory, and again on the standby.
    fn ibv_reg_mr(domain: *mut ibv_pd, addr: *mut c_void, length: usize, access: c_int) -> *mut ibv_mr = reg_mr, else core::ptr::null_mut();
    /// The same under another address.
    fn ibv_reg_mr_iova(domain: *mut ibv_pd, addr: *mut c_void, length: usize, iova: u64, access: c_int) -> *mut ibv_mr = reg_mr_iova, else core::ptr::null_mut();
    /// The same with optional access flags.
    fn ibv_reg_mr_iova2(domain: *mut ibv_pd, addr: *mut c_void, length: usize, iova: u64, access: u32) -> *mut ibv_mr = reg_mr_iova2, else core::ptr::null_mut();
    /// Registers memory of another device, and again on the standby.
    fn ibv_reg_dmabuf_mr(domain: *mut ibv_pd, offset: u64, length: usize, iova: u64, fd: c_int, access: c_int) -> *mut ibv_mr = reg_dmabuf, else core::ptr::null_mut();
    /// Changes a registration, and the one on the standby.
    fn ibv_rereg_mr(region: *mut ibv_mr, flags: c_int, domain: *mut ibv_pd, addr: *mut c_void, length: usize, access: c_int) -> c_int = mr::rereg, else -1;
    /// Withdraws both registrations.
    fn ibv_dereg_mr(region: *mut ibv_mr) -> c_int = mr::dereg, else libc::EIO;
    /// Makes a completion channel.
    fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel = channel::create, else core::ptr::null_mut();
    /// Destroys it.
    fn ibv_destroy_comp_channel(events: *mut ibv_comp_channel) -> c_int = channel::destroy, else libc::EIO;
    /// Makes a CQ.
    fn ibv_create_cq(context: *mut ibv_context, cqe: c_int, cq_context: *mut c_void, channel: *mut ibv_comp_channel, vector: c_int) -> *mut ibv_cq = cq::create, else core::ptr::null_mut();
    /// Changes its size.
    fn ibv_resize_cq(queue: *mut ibv_cq, cqe: c_int) -> c_int = cq::resize, else libc::EIO;
    /// Destroys it.
    fn ibv_destroy_cq(queue: *mut ibv_cq) -> c_int = cq::destroy, else libc::EIO;
    /// Makes an SRQ.
    fn ibv_create_srq(domain: *mut ibv_pd, init: *mut ibv_srq_init_attr) -> *mut ibv_srq = srq::create, else core::ptr::null_mut();
    /// Changes it.
    fn ibv_modify_srq(queue: *mut ibv_srq, attr: *mut ibv_srq_attr, mask: c_int) -> c_int = srq::modify, else libc::EIO;
    /// Asks for its attributes.
    fn ibv_query_srq(queue: *mut ibv_srq, attr: *mut ibv_srq_attr) -> c_int = srq::query, else libc::EIO;
    /// Destroys it.
    fn ibv_destroy_srq(queue: *mut ibv_srq) -> c_int = srq::destroy, else libc::EIO;
    /// Makes a QP.
    fn ibv_create_qp(domain: *mut ibv_pd, init: *mut ibv_qp_init_attr) -> *mut ibv_qp = qp::create, else core::ptr::null_mut();
    /// Changes it.
    fn ibv_modify_qp(pair: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int) -> c_int = qp::modify, else libc::EIO;
    /// Asks for its attributes.
    fn ibv_query_qp(pair: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int, init: *mut ibv_qp_init_attr) -> c_int = qp::query, else libc::EIO;
    /// Destroys it.
    fn ibv_destroy_qp(pair: *mut ibv_qp) -> c_int = qp::destroy, else libc::EIO;
    /// libmlx5's way to open a device.
    fn mlx5dv_open_device(device: *mut ibv_device, attr: *mut c_void) -> *mut ibv_context = mlx5::open_device, else core::ptr::null_mut();
    /// libmlx5's way to give the queues themselves away: what uses them so is not protected.
    fn mlx5dv_init_obj(object: *mut c_void, kinds: u64) -> c_int = mlx5::init_obj, else libc::EIO;
    /// libmlx5's way to make a CQ: its channel may be one of ours, which the kernel does not know.
    fn mlx5dv_create_cq(context: *mut ibv_context, attr: *mut ibv_cq_init_attr_ex, own: *mut c_void) -> *mut ibv_cq_ex = mlx5::create_cq, else core::ptr::null_mut();
    /// libmlx5's way to make an object of the firmware: if it is a QP it is not protected, and that is said.
    fn mlx5dv_devx_obj_create(context: *mut ibv_context, command: *const c_void, length: usize, answer: *mut c_void, room: usize) -> *mut c_void = mlx5::create_by_devx, else core::ptr::null_mut();
    /// Destroys it.
    fn mlx5dv_devx_obj_destroy(object: *mut c_void) -> c_int = mlx5::destroy_of_devx, else libc::EIO;
    /// libmlx5's way to make a QP: it is not protected, and that is said.
    fn mlx5dv_create_qp(context: *mut ibv_context, attr: *mut ibv_qp_init_attr_ex, own: *mut c_void) -> *mut ibv_qp = mlx5::create_qp, else core::ptr::null_mut();
    /// libmlx5's way to register memory of another device, on both devices with the same flags.
    fn mlx5dv_reg_dmabuf_mr(domain: *mut ibv_pd, offset: u64, length: usize, iova: u64, fd: c_int, access: c_int, own: c_int) -> *mut ibv_mr = mlx5::reg_dmabuf_mr, else core::ptr::null_mut();
}

/// What `ibv_open_device` of a second copy of libibverbs is taken for: see [`device::open_elsewhere`].
///
/// # Safety
/// As `ibv_open_device`.
pub unsafe extern "C" fn open_elsewhere(device: *mut ibv_device) -> *mut ibv_context {
    let Some((open, path)) = loader::second_copy() else { return core::ptr::null_mut() };
    guarded(
        // SAFETY: passed on.
        || unsafe { device::open_elsewhere(open, device, &path) },
        // SAFETY: as above.
        || unsafe { open(device) },
        core::ptr::null_mut(),
    )
}

unsafe fn reg_mr(domain: *mut ibv_pd, addr: *mut c_void, length: usize, access: c_int) -> *mut ibv_mr {
    // SAFETY: passed on.
    let make = || unsafe { real::ibv_reg_mr(domain, addr, length, access) };
    let region = mr::register_fresh(domain, make);
    mr::registered(
        &mr::Request { pd: domain, addr, length, iova: addr as u64, access: access as u32, dmabuf: None },
        region,
    );
    region
}

unsafe fn reg_mr_iova(domain: *mut ibv_pd, addr: *mut c_void, length: usize, iova: u64, access: c_int) -> *mut ibv_mr {
    // SAFETY: passed on.
    let make = || unsafe { real::ibv_reg_mr_iova(domain, addr, length, iova, access) };
    let region = mr::register_fresh(domain, make);
    mr::registered(&mr::Request { pd: domain, addr, length, iova, access: access as u32, dmabuf: None }, region);
    region
}

unsafe fn reg_mr_iova2(domain: *mut ibv_pd, addr: *mut c_void, length: usize, iova: u64, access: u32) -> *mut ibv_mr {
    // SAFETY: passed on.
    let make = || unsafe { real::ibv_reg_mr_iova2(domain, addr, length, iova, access) };
    let region = mr::register_fresh(domain, make);
    mr::registered(&mr::Request { pd: domain, addr, length, iova, access, dmabuf: None }, region);
    region
}

unsafe fn reg_dmabuf(
    domain: *mut ibv_pd,
    offset: u64,
    length: usize,
    iova: u64,
    fd: c_int,
    access: c_int,
) -> *mut ibv_mr {
    // SAFETY: passed on.
    let make = || unsafe { real::ibv_reg_dmabuf_mr(domain, offset, length, iova, fd, access) };
    let region = mr::register_fresh(domain, make);
    let (access, dmabuf) = (access as u32, Some((fd, offset)));
    mr::registered(&mr::Request { pd: domain, addr: core::ptr::null_mut(), length, iova, access, dmabuf }, region);
    region
}

/// What compiled programs reach through `context->ops.post_send`.
///
/// # Safety
/// As `ibv_post_send`.
pub unsafe extern "C" fn patched_post_send(
    pair: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad: *mut *mut ibv_send_wr,
) -> c_int {
    if let Some(shadow) = qp::QPS.get(pair) {
        // SAFETY: passed on.
        return unsafe { post::post_send(shadow, wr, bad) };
    }
    qp::notice(pair);
    // SAFETY: the application posts on a live QP.
    let context = unsafe { (*pair).context };
    match device::CONTEXTS.get(context) {
        // SAFETY: passed on.
        Some(shadow) => unsafe { (shadow.ops.post_send)(pair, wr, bad) },
        None => libc::ENODEV,
    }
}

/// What compiled programs reach through `context->ops.post_recv`.
///
/// # Safety
/// As `ibv_post_recv`.
pub unsafe extern "C" fn patched_post_recv(
    pair: *mut ibv_qp,
    wr: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
) -> c_int {
    if let Some(shadow) = qp::QPS.get(pair) {
        // SAFETY: passed on.
        return unsafe { post::post_recv(shadow, wr, bad) };
    }
    qp::notice(pair);
    // SAFETY: the application posts on a live QP.
    let context = unsafe { (*pair).context };
    match device::CONTEXTS.get(context) {
        // SAFETY: passed on.
        Some(shadow) => unsafe { (shadow.ops.post_recv)(pair, wr, bad) },
        None => libc::ENODEV,
    }
}

/// What compiled programs reach through `context->ops.poll_cq`.
///
/// # Safety
/// As `ibv_poll_cq`.
pub unsafe extern "C" fn patched_poll_cq(queue: *mut ibv_cq, entries: c_int, wc: *mut ibv_wc) -> c_int {
    if let Some(shadow) = cq::CQS.get(queue) {
        // SAFETY: passed on.
        return unsafe { poll::poll_cq(shadow, entries, wc) };
    }
    // SAFETY: the application polls a live CQ.
    let context = unsafe { (*queue).context };
    match device::CONTEXTS.get(context) {
        // SAFETY: passed on.
        Some(shadow) => unsafe { poll::poll_unknown(shadow.ops.poll_cq, queue, entries, wc) },
        None => -1,
    }
}

/// What compiled programs reach through `context->ops.post_srq_recv`.
///
/// # Safety
/// As `ibv_post_srq_recv`.
pub unsafe extern "C" fn patched_post_srq_recv(
    queue: *mut ibv_srq,
    wr: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
) -> c_int {
    if let Some(shadow) = srq::SRQS.get(queue) {
        // SAFETY: passed on.
        return unsafe { crate::hot::srq::post(shadow, wr, bad) };
    }
    // SAFETY: the application posts to a live SRQ.
    let context = unsafe { (*queue).context };
    match device::CONTEXTS.get(context).and_then(|shadow| shadow.ops.post_srq_recv) {
        // SAFETY: passed on.
        Some(function) => unsafe { function(queue, wr, bad) },
        None => libc::ENODEV,
    }
}

/// `ibv_post_srq_recv` for those who look it up by name.
///
/// # Safety
/// As `ibv_post_srq_recv`.
#[no_mangle]
pub unsafe extern "C" fn ibv_post_srq_recv(
    queue: *mut ibv_srq,
    wr: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: the application posts to a live SRQ.
    let context = unsafe { (*queue).context };
    // SAFETY: the context of a live SRQ is open.
    match unsafe { (*context).ops.post_srq_recv } {
        // SAFETY: passed on.
        Some(function) => unsafe { function(queue, wr, bad) },
        None => libc::ENOSYS,
    }
}

/// `ibv_post_send` for those who look it up by name: libibverbs has it only inline.
///
/// # Safety
/// As `ibv_post_send`.
#[no_mangle]
pub unsafe extern "C" fn ibv_post_send(pair: *mut ibv_qp, wr: *mut ibv_send_wr, bad: *mut *mut ibv_send_wr) -> c_int {
    // SAFETY: the application posts on a live QP.
    let context = unsafe { (*pair).context };
    // SAFETY: the context of a live QP is open.
    match unsafe { (*context).ops.post_send } {
        // SAFETY: passed on.
        Some(function) => unsafe { function(pair, wr, bad) },
        None => libc::ENOSYS,
    }
}

/// `ibv_post_recv` for those who look it up by name.
///
/// # Safety
/// As `ibv_post_recv`.
#[no_mangle]
pub unsafe extern "C" fn ibv_post_recv(pair: *mut ibv_qp, wr: *mut ibv_recv_wr, bad: *mut *mut ibv_recv_wr) -> c_int {
    // SAFETY: the application posts on a live QP.
    let context = unsafe { (*pair).context };
    // SAFETY: the context of a live QP is open.
    match unsafe { (*context).ops.post_recv } {
        // SAFETY: passed on.
        Some(function) => unsafe { function(pair, wr, bad) },
        None => libc::ENOSYS,
    }
}

/// `ibv_poll_cq` for those who look it up by name.
///
/// # Safety
/// As `ibv_poll_cq`.
#[no_mangle]
pub unsafe extern "C" fn ibv_poll_cq(queue: *mut ibv_cq, entries: c_int, wc: *mut ibv_wc) -> c_int {
    // SAFETY: the application polls a live CQ.
    let context = unsafe { (*queue).context };
    // SAFETY: the context of a live CQ is open.
    match unsafe { (*context).ops.poll_cq } {
        // SAFETY: passed on.
        Some(function) => unsafe { function(queue, entries, wc) },
        None => -1,
    }
}
