//! The verbs by which an application waits for events. Apart from the other symbols: what waits may be cancelled, see [`crate::wait`].

use crate::cold::channel::{self, Taken};
use crate::cold::{cq, device, notify};
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
        if blocks && !wait::until_readable(fd, wait::NONE) {
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
