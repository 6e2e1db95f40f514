//! Asynchronous events, read by a thread that sits in `ibv_get_async_event` for as long as the program runs, as NCCL's does.

use shift_abi::*;
use std::ffi::c_int;
use std::ptr::NonNull;
use std::sync::mpsc::{channel, Receiver};

extern "C" {
    fn ibv_ack_async_event(event: *mut ibv_async_event);
}

extern "C-unwind" {
    fn ibv_get_async_event(context: *mut ibv_context, event: *mut ibv_async_event) -> c_int;
}

/// What the thread heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncNews {
    /// An event of this type.
    Event(ibv_event_type),
    /// The call failed: NCCL's thread ends there.
    Failed,
}

struct Context(NonNull<ibv_context>);
// SAFETY: libibverbs allows any thread to read events of a context.
unsafe impl Send for Context {}

/// Starts the thread. It reads until a call fails.
pub(super) fn start(context: NonNull<ibv_context>) -> Receiver<AsyncNews> {
    let (send, receive) = channel();
    let context = Context(context);
    std::thread::spawn(move || {
        let context = context;
        loop {
            let news = next(&context);
            if send.send(news).is_err() || news == AsyncNews::Failed {
                return;
            }
        }
    });
    receive
}

fn next(context: &Context) -> AsyncNews {
    let mut event = ibv_async_event::zeroed();
    // SAFETY: the context is open until the program ends, and the event is writable.
    if unsafe { ibv_get_async_event(context.0.as_ptr(), &mut event) } != 0 {
        return AsyncNews::Failed;
    }
    let kind = event.event_type;
    // SAFETY: the event was just got, and is acknowledged once.
    unsafe { ibv_ack_async_event(&mut event) };
    AsyncNews::Event(kind)
}
