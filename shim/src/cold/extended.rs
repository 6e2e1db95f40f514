//! The verbs that compiled programs reach through the extended table of a context, which lies below it: patched at open, as the first table is.
//!
//! Owns: the patching, and the verbs that only lead elsewhere: what is made so is recorded as what the exports make, or passed through and named.

use crate::cold::{cq, device, mr, pd, qp, tell};
use crate::hot::wr::QpEx;
use crate::process::{self, Inside};
use crate::real;
use core::ffi::{c_int, c_uint};
use core::ptr::NonNull;
use shift_abi::*;
use std::panic::{catch_unwind, AssertUnwindSafe};

/// The provider's own functions of the extended table, as they were before it was patched.
#[derive(Clone, Copy, Default)]
pub struct ExtendedOps {
    create_qp_ex: Option<create_qp_ex_fn>,
    create_cq_ex: Option<create_cq_ex_fn>,
    modify_cq: Option<modify_cq_fn>,
    alloc_parent_domain: Option<alloc_parent_domain_fn>,
    reg_dm_mr: Option<reg_dm_mr_fn>,
    alloc_null_mr: Option<alloc_null_mr_fn>,
    open_qp: Option<open_qp_fn>,
    bind_mw: Option<bind_mw_fn>,
}

/// The provider's functions of a context that was just opened and is not patched.
pub fn ops_of(context: *mut ibv_context) -> ExtendedOps {
    let mut ops = ExtendedOps::default();
    // SAFETY: the context was just opened; reading its table is what every inline verb does.
    ops.bind_mw = unsafe { (*context).ops.bind_mw };
    // SAFETY: the context is open.
    let Some(table) = NonNull::new(context).and_then(|context| unsafe { VerbsOps::of(context) }) else { return ops };
    macro_rules! keep {
        ($($op:ident),*) => { $(
            // SAFETY: a slot may be read as long as the context is open.
            ops.$op = table.$op().and_then(|slot| unsafe { slot.read() });
        )* };
    }
    keep!(create_qp_ex, create_cq_ex, modify_cq, alloc_parent_domain, reg_dm_mr, alloc_null_mr, open_qp);
    ops
}

/// Puts this library's functions in the place of the provider's.
pub fn patch(context: *mut ibv_context) {
    // SAFETY: the context was just opened and nobody else has it yet.
    let bind = unsafe { &raw mut (*context).ops.bind_mw };
    // SAFETY: as above.
    if unsafe { bind.read() }.is_some() {
        // SAFETY: as above.
        unsafe { bind.write(Some(bind_mw)) };
    }
    // SAFETY: the context is open.
    let Some(table) = NonNull::new(context).and_then(|context| unsafe { VerbsOps::of(context) }) else { return };
    macro_rules! replace {
        ($($op:ident),*) => { $(
            if let Some(slot) = table.$op() {
                // SAFETY: as above; a slot is there only where the library's table has it and the provider set it.
                unsafe { slot.write(Some($op)) };
            }
        )* };
    }
    replace!(create_qp_ex, create_cq_ex, modify_cq, alloc_parent_domain, reg_dm_mr, alloc_null_mr, open_qp);
}

/// Makes what the provider makes, and then lets `note` see it: unless this thread is inside of libibverbs, or this library is inert. A panic does not
/// cross into C, and leaves the object as the provider made it.
fn made<T>(make: impl FnOnce() -> *mut T, note: impl FnOnce(*mut T)) -> *mut T {
    let inside = Inside::enter();
    let object = make();
    if inside.is_some() && !object.is_null() && process::get().is_some() {
        let noted = catch_unwind(AssertUnwindSafe(|| note(object)));
        if noted.is_err() {
            log::error!("a bug in shift-verbs: an extended verb failed inside of the shim; please report it");
        }
    }
    object
}

fn set_errno(value: c_int) {
    // SAFETY: every thread has a place for it.
    let place = unsafe { libc::__errno_location() };
    // SAFETY: it is this thread's own.
    unsafe { *place = value };
}

fn ops(context: *const ibv_context) -> Option<ExtendedOps> {
    let found = device::CONTEXTS.get(context).map(|shadow| shadow.extended);
    if found.is_none() {
        set_errno(libc::ENODEV);
    }
    found
}

unsafe extern "C" fn create_qp_ex(context: *mut ibv_context, attr: *mut ibv_qp_init_attr_ex) -> *mut ibv_qp {
    let Some(create) = ops(context).and_then(|ops| ops.create_qp_ex) else { return core::ptr::null_mut() };
    // SAFETY: passed on from the application's call.
    made(|| unsafe { create(context, attr) }, |pair| note_qp(pair, attr))
}

/// The parts of `comp_mask` whose meaning is known for reliable connections.
const KNOWN_QP: u32 = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_CREATE_FLAGS | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;

fn note_qp(pair: *mut ibv_qp, attr: *mut ibv_qp_init_attr_ex) {
    // SAFETY: the call that made the queue pair succeeded, so the part that all versions of the structure have is readable.
    let init = unsafe { attr.cast::<ibv_qp_init_attr>().read() };
    // SAFETY: as above.
    let mask = unsafe { (*attr).comp_mask };
    let has = |bit| mask & bit != 0;
    // SAFETY: a newer caller's structure has this field if its mask says so.
    let flags = if has(IBV_QP_INIT_ATTR_CREATE_FLAGS) { unsafe { (*attr).create_flags } } else { 0 };
    // SAFETY: as above.
    let domain = if has(IBV_QP_INIT_ATTR_PD) { unsafe { (*attr).pd } } else { core::ptr::null_mut() };
    if mask & !KNOWN_QP != 0 || flags != 0 {
        let what =
            format!("it was made with the attributes 0x{mask:x} and flags 0x{flags:x}, which no standby is made with");
        return qp::pass_through(pair, &init, &what);
    }
    if !has(IBV_QP_INIT_ATTR_SEND_OPS_FLAGS) || init.qp_type != IBV_QPT_RC {
        return qp::protect(pair, domain, &init, None);
    }
    // SAFETY: as above.
    let has_flush = unsafe { (*attr).send_ops_flags } & IBV_QP_EX_WITH_FLUSH != 0;
    // SAFETY: the queue pair was just made.
    let extended = unsafe { real::ibv_qp_to_qp_ex(pair) };
    if extended.is_null() {
        return qp::pass_through(pair, &init, "its functions for posting were not found");
    }
    // SAFETY: the queue pair was just made, with these operations, and the application does not have it yet.
    let ex = unsafe { QpEx::hook(extended, init.cap, has_flush) };
    qp::protect(pair, domain, &init, Some(ex));
}

unsafe extern "C" fn open_qp(context: *mut ibv_context, attr: *mut ibv_qp_open_attr) -> *mut ibv_qp {
    let Some(open) = ops(context).and_then(|ops| ops.open_qp) else { return core::ptr::null_mut() };
    // SAFETY: passed on from the application's call.
    made(
        || unsafe { open(context, attr) },
        |pair| {
            qp::named(pair);
            tell::once("a queue pair opened by ibv_open_qp is not protected: it is shared", "ibv_open_qp");
        },
    )
}

unsafe extern "C" fn create_cq_ex(context: *mut ibv_context, attr: *mut ibv_cq_init_attr_ex) -> *mut ibv_cq_ex {
    let Some(create) = ops(context).and_then(|ops| ops.create_cq_ex) else { return core::ptr::null_mut() };
    // SAFETY: the application gives a readable structure.
    let asked = unsafe { cq::Asked::read(attr) };
    // SAFETY: passed on from the application's call; of what is asked for more, a copy of its structure says it.
    let create = |context, attr| unsafe { create(context, attr) };
    // SAFETY: as above.
    let make = || unsafe { cq::make_extended(create, context, attr, &asked) };
    made(make, |queue| cq::note_extended(queue, context, &asked))
}

/// The moderation of events, which the twin takes over.
unsafe extern "C" fn modify_cq(queue: *mut ibv_cq, attr: *mut ibv_modify_cq_attr) -> c_int {
    // SAFETY: the application changes a live CQ.
    let context = unsafe { (*queue).context };
    let Some(modify) = ops(context).and_then(|ops| ops.modify_cq) else { return libc::ENODEV };
    // SAFETY: passed on.
    let errno = unsafe { modify(queue, attr) };
    if errno == 0 {
        // SAFETY: the application gives a readable structure.
        cq::moderate(queue, unsafe { attr.read() });
    }
    errno
}

unsafe extern "C" fn alloc_parent_domain(
    context: *mut ibv_context,
    attr: *mut ibv_parent_domain_init_attr,
) -> *mut ibv_pd {
    let Some(alloc) = ops(context).and_then(|ops| ops.alloc_parent_domain) else { return core::ptr::null_mut() };
    // SAFETY: passed on from the application's call.
    made(
        || unsafe { alloc(context, attr) },
        |parent| {
            // SAFETY: the call succeeded, so the structure is readable.
            let domain = unsafe { (*attr).pd };
            // SAFETY: as above.
            let has_thread = unsafe { !(*attr).td.is_null() };
            pd::parent(parent, domain, has_thread);
        },
    )
}

unsafe extern "C" fn reg_dm_mr(
    domain: *mut ibv_pd,
    memory: *mut ibv_dm,
    offset: u64,
    length: usize,
    access: c_uint,
) -> *mut ibv_mr {
    // SAFETY: the application registers on a live PD.
    let context = unsafe { (*domain).context };
    let Some(register) = ops(context).and_then(|ops| ops.reg_dm_mr) else { return core::ptr::null_mut() };
    // SAFETY: passed on from the application's call.
    made(
        || unsafe { register(domain, memory, offset, length, access) },
        |region| mr::only_here(region, access, "memory of the device itself"),
    )
}

unsafe extern "C" fn alloc_null_mr(domain: *mut ibv_pd) -> *mut ibv_mr {
    // SAFETY: the application registers on a live PD.
    let context = unsafe { (*domain).context };
    let Some(alloc) = ops(context).and_then(|ops| ops.alloc_null_mr) else { return core::ptr::null_mut() };
    // SAFETY: passed on from the application's call.
    made(|| unsafe { alloc(domain) }, |region| mr::null(region, domain))
}

/// `ibv_bind_mw`: providers post the request past the table of functions, so it is recorded here.
unsafe extern "C" fn bind_mw(pair: *mut ibv_qp, window: *mut ibv_mw, bind: *mut ibv_mw_bind) -> c_int {
    // SAFETY: the application binds on a live queue pair.
    let context = unsafe { (*pair).context };
    let Some(provider) = ops(context).and_then(|ops| ops.bind_mw) else { return libc::ENODEV };
    match qp::QPS.get(pair) {
        // SAFETY: passed on.
        Some(shadow) => unsafe { crate::hot::whole::bind_mw(shadow, provider, window, bind) },
        // SAFETY: passed on.
        None => unsafe { provider(pair, window, bind) },
    }
}
