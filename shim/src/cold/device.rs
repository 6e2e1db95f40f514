//! Opening a device: the one place where a context's table of functions is patched.

use crate::cold::{asynchronous, extended, rail, tell};
use crate::loader;
use crate::process::{self, Inside};
use crate::real;
use crate::shadow::{ContextShadow, ProviderOps};
use crate::tables::PtrTable;
use core::ffi::c_int;
use shift_abi::*;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Contexts that the application opened.
pub static CONTEXTS: PtrTable<ContextShadow> = PtrTable::new();

/// The provider's functions in a context's table.
pub fn ops_of(context: *mut ibv_context) -> Option<ProviderOps> {
    // SAFETY: the context is open; reading its table is what every inline verb does.
    let ops = unsafe { (*context).ops };
    Some(ProviderOps {
        post_send: ops.post_send?,
        post_recv: ops.post_recv?,
        poll_cq: ops.poll_cq?,
        req_notify_cq: ops.req_notify_cq,
        post_srq_recv: ops.post_srq_recv,
    })
}

/// `ibv_open_device`.
///
/// # Safety
/// As `ibv_open_device`.
pub unsafe fn open(device: *mut ibv_device) -> *mut ibv_context {
    // SAFETY: passed on.
    adopt(unsafe { real::ibv_open_device(device) })
}

/// `ibv_import_device`: a context of a device that another process, or another part of this one, has opened.
///
/// # Safety
/// As `ibv_import_device`.
pub unsafe fn import(command_fd: c_int) -> *mut ibv_context {
    // SAFETY: passed on.
    adopt(unsafe { real::ibv_import_device(command_fd) })
}

/// Patches a context that was just made.
pub fn adopt(context: *mut ibv_context) -> *mut ibv_context {
    if context.is_null() || process::start().is_none() {
        return context;
    }
    say_what_escapes();
    // SAFETY: the context was just made.
    let name = rail::name_of(unsafe { (*context).device });
    let Some(ops) = ops_of(context) else { return context };
    match rail::named(&name) {
        Ok(rail) => {
            if CONTEXTS
                .insert(context, Arc::new(ContextShadow { ops, extended: extended::ops_of(context), device: rail.id }))
            {
                patch(context);
                asynchronous::begin(context);
            }
        }
        Err(why) => tell::once(&format!("device {name} is not protected: {why}"), &why),
    }
    context
}

/// A library that looks into itself before it looks here may open devices of which nothing is seen.
fn say_what_escapes() {
    if let Some(file) = loader::deeply_bound() {
        let file = file.to_string_lossy();
        tell::once(
            &format!("{file} was opened with RTLD_DEEPBIND: verbs that it calls are not seen and not protected"),
            "RTLD_DEEPBIND",
        );
    }
}

/// `ibv_open_device` of a second copy of libibverbs: the objects of one copy are not to be given to the other, and this library calls the first.
///
/// # Safety
/// As `ibv_open_device`.
pub unsafe fn open_elsewhere(
    open: unsafe extern "C" fn(*mut ibv_device) -> *mut ibv_context,
    device: *mut ibv_device,
    path: &str,
) -> *mut ibv_context {
    if process::start().is_some() {
        tell::once(
            &format!(
                "devices opened through {path} are not protected: this process uses another copy of libibverbs already"
            ),
            "a second copy of libibverbs",
        );
    }
    // SAFETY: passed on.
    unsafe { open(device) }
}

/// Puts this library's functions into the table: compiled programs post and poll inline through it.
fn patch(context: *mut ibv_context) {
    // SAFETY: the context was just opened and nobody else has it yet; providers set the table once, before.
    let ops = unsafe { &raw mut (*context).ops };
    // SAFETY: as above.
    unsafe { (*ops).post_send = Some(crate::exports::patched_post_send) };
    // SAFETY: as above.
    unsafe { (*ops).post_recv = Some(crate::exports::patched_post_recv) };
    // SAFETY: as above.
    unsafe { (*ops).poll_cq = Some(crate::exports::patched_poll_cq) };
    // SAFETY: as above.
    unsafe { (*ops).req_notify_cq = Some(crate::events::patched_req_notify_cq) };
    // SAFETY: as above.
    if unsafe { (*ops).post_srq_recv }.is_some() {
        // SAFETY: as above.
        unsafe { (*ops).post_srq_recv = Some(crate::exports::patched_post_srq_recv) };
    }
    extended::patch(context);
}

/// `ibv_close_device`.
///
/// # Safety
/// As `ibv_close_device`.
pub unsafe fn close(context: *mut ibv_context) -> c_int {
    let shadow = CONTEXTS.remove(context);
    asynchronous::end(context);
    // SAFETY: passed on.
    let errno = unsafe { real::ibv_close_device(context) };
    if let (true, Some(shadow)) = (errno != 0, shadow) {
        CONTEXTS.insert(context, shadow);
        asynchronous::begin(context);
    }
    errno
}

/// The device of a context, if it is one of the application's.
pub fn device_of(context: *const ibv_context) -> Option<&'static ContextShadow> {
    CONTEXTS.get(context)
}

/// A call of the agent that takes longer is worth a line: it holds up every migration of this process.
const LONG_CALL: Duration = Duration::from_millis(20);

/// Marks this thread as inside of libibverbs for calls that the agent makes.
#[track_caller]
pub fn as_agent<R>(call: impl FnOnce() -> R) -> R {
    let _inside = Inside::enter();
    let began = Instant::now();
    let result = call();
    let took = began.elapsed();
    if took > LONG_CALL {
        log::debug!("the call at {} took {} ms", std::panic::Location::caller(), took.as_millis());
    }
    result
}
