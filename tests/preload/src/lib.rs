//! libshift_preload.so: a library *below* the shim that edits what the real verbs return, so that failing and lesser
//! devices can be shown on machines that have none.
//!
//! Loaded as `LD_PRELOAD="libshift_verbs.so libshift_preload.so"`: the shim finds its real functions behind itself, which
//! are these, and these find libibverbs behind them. What is wrong with which device is told by PRELOAD_FAULT (see
//! [`fault`]); with PRELOAD_SAY set, each refusal is a line on stderr. A value that cannot be read ends the process:
//! a test whose fault is silently not made would pass for nothing.

#![allow(unsafe_code, reason = "exports and calls of a C interface")]
#![cfg_attr(test, allow(clippy::expect_used, reason = "a test may fail by panicking"))]

mod datapath;
mod device;
pub mod fault;
pub mod fences;
mod gid;
mod real;
mod traffic;

use device::{Device, Originals};
use real::Inside;
use shift_abi::*;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::{null_mut, NonNull};

fn fail<T>(errno: c_int) -> *mut T {
    // SAFETY: the function has no precondition.
    let slot = unsafe { libc::__errno_location() };
    // SAFETY: it returned the address of this thread's errno.
    unsafe { slot.write(errno) };
    null_mut()
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context {
    let Some(open) = real::open_device() else { return fail(libc::ENOSYS) };
    // SAFETY: the caller's own argument, passed on.
    let context = unsafe { open(device) };
    if let Some(context) = NonNull::new(context) {
        // SAFETY: libibverbs just returned this context, and nobody else has it yet.
        unsafe { device::patch(context, hooks()) };
    }
    context
}

fn hooks() -> Originals {
    Originals {
        query_port: Some(query_port),
        query_device_ex: Some(query_device_ex),
        create_qp_ex: Some(create_qp_ex),
        post_send: Some(datapath::post_send),
        poll_cq: Some(datapath::poll_cq),
    }
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn ibv_close_device(context: *mut ibv_context) -> c_int {
    device::forget(context);
    let Some(close) = real::close_device() else { return libc::ENOSYS };
    // SAFETY: the caller's own argument, passed on.
    unsafe { close(context) }
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn ibv_query_device(context: *mut ibv_context, attr: *mut ibv_device_attr) -> c_int {
    let Some(query) = real::query_device() else { return libc::ENOSYS };
    // SAFETY: the caller's own arguments, passed on.
    let errno = unsafe { query(context, attr) };
    if errno == 0 {
        // SAFETY: the caller's context is open.
        let device = unsafe { Device::of_context(context) };
        // SAFETY: the call succeeded, so the caller's attributes are written and may be again.
        unsafe { device.edit_attr(attr) };
    }
    errno
}

unsafe extern "C" fn query_device_ex(
    context: *mut ibv_context,
    input: *const ibv_query_device_ex_input,
    attr: *mut ibv_device_attr_ex,
    size: usize,
) -> c_int {
    let Some(query) = device::originals(context).query_device_ex else { return libc::EOPNOTSUPP };
    // SAFETY: the caller's own arguments, passed on to the function that stood in this slot.
    let errno = unsafe { query(context, input, attr, size) };
    if errno == 0 && size >= std::mem::size_of::<ibv_device_attr>() {
        // SAFETY: the caller's context is open.
        let device = unsafe { Device::of_context(context) };
        // SAFETY: the structure begins with the classic attributes, which its size covers.
        unsafe { device.edit_attr(attr.cast()) };
    }
    errno
}

unsafe extern "C" fn query_port(context: *mut ibv_context, port: u8, attr: *mut ibv_port_attr, size: usize) -> c_int {
    let Some(query) = device::originals(context).query_port else { return libc::EOPNOTSUPP };
    // SAFETY: the caller's own arguments, passed on to the function that stood in this slot.
    let errno = unsafe { query(context, port, attr, size) };
    if errno == 0 && size >= std::mem::offset_of!(ibv_port_attr, gid_tbl_len) {
        // SAFETY: the caller's context is open.
        let device = unsafe { Device::of_context(context) };
        // SAFETY: the call succeeded, and the caller's structure covers the fields that are edited.
        unsafe { device.edit_port(attr) };
    }
    errno
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn ibv_create_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr) -> *mut ibv_qp {
    let Some(create) = real::create_qp() else { return fail(libc::ENOSYS) };
    // SAFETY: the caller's PD is open.
    let device = unsafe { Device::of_pd(pd) };
    // SAFETY: the caller's attributes are readable.
    let asked = unsafe { (*attr).cap };
    // SAFETY: as above.
    let qp_type = unsafe { (*attr).qp_type };
    if let Some(errno) = device.refuses_qp(qp_type, &asked) {
        return fail(errno);
    }
    // SAFETY: the caller's own arguments, passed on.
    let qp = unsafe { create(pd, attr) };
    if !qp.is_null() {
        // SAFETY: the verb writes the granted sizes into the caller's attributes, so they are writable.
        let cap = unsafe { &mut (*attr).cap };
        device.edit_cap(cap);
    }
    qp
}

unsafe extern "C" fn create_qp_ex(context: *mut ibv_context, attr: *mut ibv_qp_init_attr_ex) -> *mut ibv_qp {
    let Some(create) = device::originals(context).create_qp_ex else { return fail(libc::EOPNOTSUPP) };
    // SAFETY: the caller's context is open.
    let device = unsafe { Device::of_context(context) };
    // SAFETY: the caller's attributes are readable.
    let asked = unsafe { (*attr).cap };
    // SAFETY: as above.
    let qp_type = unsafe { (*attr).qp_type };
    if let Some(errno) = device.refuses_qp(qp_type, &asked) {
        return fail(errno);
    }
    // SAFETY: the caller's own arguments, passed on to the function that stood in this slot.
    let qp = unsafe { create(context, attr) };
    if !qp.is_null() {
        // SAFETY: the verb writes the granted sizes into the caller's attributes, so they are writable.
        let cap = unsafe { &mut (*attr).cap };
        device.edit_cap(cap);
    }
    qp
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn ibv_modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int) -> c_int {
    let Some(modify) = real::modify_qp() else { return libc::ENOSYS };
    // SAFETY: the caller's queue pair is open.
    let context = unsafe { (*qp).context };
    // SAFETY: the context of an open queue pair is open.
    let device = unsafe { Device::of_context(context) };
    // SAFETY: the caller's attributes are readable.
    let attributes = unsafe { &*attr };
    if let Some(errno) = device.refuses_attr(attributes, mask as u32) {
        return errno;
    }
    let mut known = *attributes;
    device.resolve(&mut known.ah_attr.grh.dgid);
    // SAFETY: the caller's own arguments, passed on; of the attributes a copy, which the verb only reads.
    let call = || unsafe { modify(qp, &raw mut known, mask) };
    // SAFETY: the caller's queue pair is open.
    let errno = unsafe { fences::around_modify(&device, qp, attributes, mask as u32, call) };
    if errno == 0 && mask as u32 & IBV_QP_STATE != 0 && attributes.qp_state == IBV_QPS_RESET {
        // SAFETY: the caller's queue pair is open.
        unsafe { datapath::reset(qp) };
    }
    errno
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn ibv_query_qp(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    mask: c_int,
    init_attr: *mut ibv_qp_init_attr,
) -> c_int {
    let Some(query) = real::query_qp() else { return libc::ENOSYS };
    // SAFETY: the caller's own arguments, passed on.
    let errno = unsafe { query(qp, attr, mask, init_attr) };
    if errno != 0 {
        return errno;
    }
    // SAFETY: the caller's queue pair is open.
    let context = unsafe { (*qp).context };
    // SAFETY: the context of an open queue pair is open.
    let device = unsafe { Device::of_context(context) };
    // SAFETY: the call succeeded, so both structures are written and may be again.
    device.edit_cap(unsafe { &mut (*attr).cap });
    // SAFETY: as above.
    device.edit_cap(unsafe { &mut (*init_attr).cap });
    // SAFETY: as above.
    let attributes = unsafe { &mut *attr };
    device.show(&mut attributes.ah_attr.grh.dgid);
    // SAFETY: the caller's queue pair is open.
    unsafe { fences::after_query(&device, qp, attributes, mask as u32) };
    0
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn ibv_reg_mr(pd: *mut ibv_pd, addr: *mut c_void, len: usize, access: c_int) -> *mut ibv_mr {
    let Some(register) = real::reg_mr() else { return fail(libc::ENOSYS) };
    // SAFETY: the caller's PD is open.
    if unsafe { refuses_mr(pd) } {
        return fail(libc::ENOMEM);
    }
    let _inside = Inside::enter();
    // SAFETY: the caller's own arguments, passed on.
    unsafe { register(pd, addr, len, access) }
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn ibv_reg_mr_iova(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    iova: u64,
    access: c_int,
) -> *mut ibv_mr {
    let Some(register) = real::reg_mr_iova() else { return fail(libc::ENOSYS) };
    // SAFETY: the caller's PD is open.
    if unsafe { refuses_mr(pd) } {
        return fail(libc::ENOMEM);
    }
    let _inside = Inside::enter();
    // SAFETY: the caller's own arguments, passed on.
    unsafe { register(pd, addr, len, iova, access) }
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn ibv_reg_mr_iova2(
    pd: *mut ibv_pd,
    addr: *mut c_void,
    len: usize,
    iova: u64,
    access: c_uint,
) -> *mut ibv_mr {
    let Some(register) = real::reg_mr_iova2() else { return fail(libc::ENOSYS) };
    // SAFETY: the caller's PD is open.
    if unsafe { refuses_mr(pd) } {
        return fail(libc::ENOMEM);
    }
    let _inside = Inside::enter();
    // SAFETY: the caller's own arguments, passed on.
    unsafe { register(pd, addr, len, iova, access) }
}

/// # Safety
///
/// The contract of libibverbs' function of this name.
#[no_mangle]
pub unsafe extern "C" fn ibv_reg_dmabuf_mr(
    pd: *mut ibv_pd,
    offset: u64,
    len: usize,
    iova: u64,
    fd: c_int,
    access: c_int,
) -> *mut ibv_mr {
    let Some(register) = real::reg_dmabuf_mr() else { return fail(libc::ENOSYS) };
    // SAFETY: the caller's PD is open.
    if unsafe { refuses_mr(pd) } {
        return fail(libc::ENOMEM);
    }
    let _inside = Inside::enter();
    // SAFETY: the caller's own arguments, passed on.
    unsafe { register(pd, offset, len, iova, fd, access) }
}

/// Whether a registration is refused. One that another one makes inside of libibverbs (`ibv_reg_mr` calls
/// `ibv_reg_mr_iova2` through the PLT) was counted already.
///
/// # Safety
///
/// `pd` is an open protection domain.
unsafe fn refuses_mr(pd: *mut ibv_pd) -> bool {
    if Inside::is_inside() {
        return false;
    }
    // SAFETY: the caller vouches for the PD.
    unsafe { Device::of_pd(pd) }.refuses_mr()
}
