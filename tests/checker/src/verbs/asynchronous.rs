//! The asynchronous events of a context, taken and acknowledged by a thread of their own, as NCCL's and many other programs do it.

use super::waiter::{tell, Job, Waiter};
use super::Result;
use shift_abi::{ibv_async_event, ibv_context, ibv_event_type};
use std::ffi::{c_int, c_void};
use std::ptr::{null_mut, NonNull};
use std::time::Duration;

#[link(name = "ibverbs")]
extern "C" {
    fn ibv_ack_async_event(event: *mut ibv_async_event);
}

#[link(name = "ibverbs")]
extern "C-unwind" {
    /// Its thread may be cancelled while it sleeps here.
    fn ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int;
}

/// Who hears of them. What must hold: stopped before its context is closed.
#[derive(Debug)]
pub struct AsyncEvents(Waiter);

/// What is told where a call that should wait came back without an event.
const CAME_BACK: u8 = u8::MAX;

unsafe extern "C-unwind" fn take_events(job: *mut c_void) -> *mut c_void {
    let job = job.cast::<Job>();
    loop {
        // SAFETY: the job is freed after this thread was joined.
        let context = unsafe { (*job).object }.cast();
        let mut event = ibv_async_event::zeroed();
        // SAFETY: the context is open until this thread was joined; the place is writable.
        if unsafe { ibv_get_async_event(context, &mut event) } != 0 {
            // SAFETY: it is this thread's job.
            unsafe { tell(job, CAME_BACK) };
            return null_mut();
        }
        let kind = event.event_type.0 as u8;
        // SAFETY: the event was just got and is acknowledged once.
        unsafe { ibv_ack_async_event(&mut event) };
        // SAFETY: it is this thread's job.
        if !unsafe { tell(job, kind) } {
            return null_mut();
        }
    }
}

impl AsyncEvents {
    /// Hears of this context's from now on.
    pub fn start(context: NonNull<ibv_context>) -> Result<Self> {
        Waiter::start(context.as_ptr().cast(), take_events).map(Self)
    }

    /// C's names of those that came since.
    pub fn came(&self) -> Result<Vec<String>> {
        let name = |kind: u8| match kind {
            CAME_BACK => "ibv_get_async_event came back without an event".to_owned(),
            kind => format!("{:?}", ibv_event_type(u32::from(kind))),
        };
        Ok(self.0.told(Duration::ZERO)?.into_iter().map(name).collect())
    }

    /// Hears of nothing more.
    pub fn stop(self) {
        self.0.stop();
    }
}
