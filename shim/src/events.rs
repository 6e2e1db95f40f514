//! The verbs by which an application waits for events. Apart from the other symbols: what waits may be cancelled, see [`crate::wait`].

use crate::cold::channel::{self, Taken};
use crate::cold::cm::{self, RdmaCmEvent, RdmaCmId, RdmaEventChannel};
use crate::cold::{asynchronous, cq, device, notify};
use crate::real;
use crate::wait;
use core::ffi::{c_int, c_void};
use shift_abi::*;

/// Takes a completion event; sleeps for one unless the application made the channel's descriptor non-blocking.
///
/// # Safety
/// As `ibv_get_cq_event`.
#[no_mangle]
pub unsafe extern "C-unwind" fn ibv_get_cq_event(
    events: *mut ibv_comp_channel,
    queue: *mut *mut ibv_cq,
    cq_context: *mut *mut c_void,
) -> c_int {
    // SAFETY: the application waits on a live channel.
    let fd = unsafe { channel::descriptor(events) };
    if fd == wait::NONE {
        return match real::blocking_get_cq_event() {
            // SAFETY: passed on.
            Some(function) => unsafe { function(events, queue, cq_context) },
            None => -1,
        };
    }
    let blocks = !wait::is_nonblocking(fd);
    loop {
        if blocks && !wait::until_readable(fd, wait::NONE, -1) {
            return -1;
        }
        // SAFETY: passed on.
        match unsafe { channel::take(events, queue, cq_context) } {
            Taken::Event => return 0,
            Taken::Failed => return -1,
            // Another thread was faster, or a twin's CQ is gone.
            Taken::Nothing if blocks => {}
            Taken::Nothing => {
                wait::set_errno(libc::EAGAIN);
                return -1;
            }
        }
    }
}

/// Takes an asynchronous event that the application is to hear of; sleeps for one unless it made the descriptor non-blocking.
///
/// # Safety
/// As `ibv_get_async_event`.
#[no_mangle]
pub unsafe extern "C-unwind" fn ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int {
    loop {
        // SAFETY: the application waits for events of an open context.
        let on = unsafe { asynchronous::descriptors(context) };
        if on.real == wait::NONE {
            return match real::blocking_get_async_event() {
                // SAFETY: passed on.
                Some(function) => unsafe { function(context, event) },
                None => -1,
            };
        }
        let blocks = !wait::is_nonblocking(on.real);
        if blocks && !wait::until_readable(on.real, on.wake, on.patience) {
            return -1;
        }
        // SAFETY: passed on.
        match unsafe { asynchronous::take(context, event) } {
            asynchronous::Taken::Event => return 0,
            asynchronous::Taken::Failed => return -1,
            asynchronous::Taken::Nothing if blocks => {}
            asynchronous::Taken::Nothing => {
                wait::set_errno(libc::EAGAIN);
                return -1;
            }
        }
    }
}

/// Takes an event of a connection; sleeps for one unless the application made the channel's descriptor non-blocking.
///
/// # Safety
/// As `rdma_get_cm_event`.
#[no_mangle]
pub unsafe extern "C-unwind" fn rdma_get_cm_event(
    channel: *mut RdmaEventChannel,
    event: *mut *mut RdmaCmEvent,
) -> c_int {
    // SAFETY: the application waits on a live channel.
    let (fd, wake) = unsafe { cm::descriptors(channel) };
    if fd == wait::NONE || event.is_null() {
        return match real::blocking_get_cm_event() {
            // SAFETY: passed on.
            Some(function) => unsafe { function(channel, event) },
            None => -1,
        };
    }
    let blocks = !wait::is_nonblocking(fd);
    loop {
        if blocks && !wait::until_readable(fd, wake, -1) {
            return -1;
        }
        // SAFETY: passed on.
        match unsafe { cm::take(channel, event) } {
            cm::Taken::Event => return 0,
            cm::Taken::Failed => return -1,
            cm::Taken::Nothing if blocks => {}
            cm::Taken::Nothing => {
                wait::set_errno(libc::EAGAIN);
                return -1;
            }
        }
    }
}

/// Acknowledges an event of a connection.
///
/// # Safety
/// As `rdma_ack_cm_event`.
#[no_mangle]
pub unsafe extern "C" fn rdma_ack_cm_event(event: *mut RdmaCmEvent) -> c_int {
    // SAFETY: passed on.
    unsafe { cm::acknowledge(event) }
}

/// Ends a connection.
///
/// # Safety
/// As `rdma_disconnect`.
#[no_mangle]
pub unsafe extern "C" fn rdma_disconnect(id: *mut RdmaCmId) -> c_int {
    // SAFETY: passed on.
    unsafe { cm::disconnect(id) }
}

/// Destroys the id of a connection.
///
/// # Safety
/// As `rdma_destroy_id`.
#[no_mangle]
pub unsafe extern "C" fn rdma_destroy_id(id: *mut RdmaCmId) -> c_int {
    // SAFETY: passed on.
    unsafe { cm::destroy_id(id) }
}

/// Destroys an event channel.
///
/// # Safety
/// As `rdma_destroy_event_channel`.
#[no_mangle]
pub unsafe extern "C" fn rdma_destroy_event_channel(channel: *mut RdmaEventChannel) {
    // SAFETY: passed on.
    unsafe { cm::destroy_channel(channel) }
}

/// What compiled programs reach through `context->ops.req_notify_cq`.
///
/// # Safety
/// As `ibv_req_notify_cq`.
pub unsafe extern "C" fn patched_req_notify_cq(queue: *mut ibv_cq, solicited_only: c_int) -> c_int {
    if let Some(shadow) = cq::CQS.get(queue) {
        // SAFETY: passed on.
        return unsafe { notify::request(shadow, solicited_only) };
    }
    // SAFETY: the application arms a live CQ.
    let context = unsafe { (*queue).context };
    match device::CONTEXTS.get(context).and_then(|shadow| shadow.ops.req_notify_cq) {
        // SAFETY: passed on.
        Some(function) => unsafe { function(queue, solicited_only) },
        None => libc::ENOSYS,
    }
}

/// `ibv_req_notify_cq` for those who look it up by name: libibverbs has it only inline.
///
/// # Safety
/// As `ibv_req_notify_cq`.
#[no_mangle]
pub unsafe extern "C" fn ibv_req_notify_cq(queue: *mut ibv_cq, solicited_only: c_int) -> c_int {
    // SAFETY: the application arms a live CQ.
    let context = unsafe { (*queue).context };
    // SAFETY: the context of a live CQ is open.
    match unsafe { (*context).ops.req_notify_cq } {
        // SAFETY: passed on.
        Some(function) => unsafe { function(queue, solicited_only) },
        None => libc::ENOSYS,
    }
}
