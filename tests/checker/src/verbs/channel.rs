//! A completion channel: the events of completion queues, as a program hears of them that sleeps.

use super::waiter::{tell, Job, Waiter};
use super::{check, Result, VerbError};
use shift_abi::{ibv_comp_channel, ibv_context, ibv_cq};
use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::ptr::{null_mut, NonNull};
use std::time::Duration;

#[link(name = "ibverbs")]
extern "C" {
    fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel;
    fn ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int;
    fn ibv_ack_cq_events(cq: *mut ibv_cq, count: c_uint);
}

#[link(name = "ibverbs")]
extern "C-unwind" {
    /// Its thread may be cancelled while it sleeps here.
    fn ibv_get_cq_event(channel: *mut ibv_comp_channel, cq: *mut *mut ibv_cq, context: *mut *mut c_void) -> c_int;
}

/// How a program waits for events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// A thread of its own sleeps in `ibv_get_cq_event`, and is cancelled in the end.
    Thread,
    /// The descriptor does not block and is in an epoll set.
    Epoll,
}

/// A channel, and how its events are waited for. What must hold: closed before its context, after its completion queues.
#[derive(Debug)]
pub struct Channel {
    channel: NonNull<ibv_comp_channel>,
    hears: Hears,
    /// Events that came.
    pub events: u64,
}

#[derive(Debug)]
enum Hears {
    /// A byte for each event.
    Thread(Waiter),
    /// An epoll set with the descriptor.
    Epoll(c_int),
    /// Not any more.
    Nothing,
}

/// Takes events for ever.
unsafe extern "C-unwind" fn take_events(job: *mut c_void) -> *mut c_void {
    let job = job.cast::<Job>();
    loop {
        // SAFETY: the job is freed after this thread was joined.
        let channel = unsafe { (*job).object }.cast();
        let (mut cq, mut context) = (null_mut(), null_mut());
        // SAFETY: the channel is live until this thread was joined; both places are writable.
        if unsafe { ibv_get_cq_event(channel, &mut cq, &mut context) } != 0 {
            return null_mut();
        }
        // SAFETY: the event was just got, so its queue is not destroyed yet.
        unsafe { ibv_ack_cq_events(cq, 1) };
        // SAFETY: it is this thread's job.
        if !unsafe { tell(job, 0) } {
            return null_mut();
        }
    }
}

impl Channel {
    /// A channel of this context.
    pub fn new(context: NonNull<ibv_context>, waiting: Waiting) -> Result<Self> {
        // SAFETY: the context is open.
        let channel = unsafe { ibv_create_comp_channel(context.as_ptr()) };
        let channel = NonNull::new(channel).ok_or_else(|| VerbError::last("ibv_create_comp_channel"))?;
        let hears = match waiting {
            Waiting::Thread => Hears::Thread(Waiter::start(channel.as_ptr().cast(), take_events)?),
            Waiting::Epoll => Hears::Epoll(epoll_on(channel)?),
        };
        Ok(Self { channel, hears, events: 0 })
    }

    pub(super) const fn as_ptr(&self) -> *mut ibv_comp_channel {
        self.channel.as_ptr()
    }

    /// Takes the events that came within `patience`; whether there was one.
    pub fn heard(&mut self, patience: Duration) -> Result<bool> {
        let before = self.events;
        match &self.hears {
            Hears::Thread(waiter) => self.events += waiter.told(patience)?.len() as u64,
            Hears::Epoll(set) => {
                if is_in_set(*set, patience)? {
                    self.take_all()?;
                }
            }
            Hears::Nothing => {}
        }
        Ok(self.events != before)
    }

    fn take_all(&mut self) -> Result<()> {
        loop {
            let (mut cq, mut context) = (null_mut(), null_mut());
            // SAFETY: the channel is live and does not block; both places are writable.
            if unsafe { ibv_get_cq_event(self.as_ptr(), &mut cq, &mut context) } != 0 {
                let error = VerbError::last("ibv_get_cq_event");
                return if error.source.kind() == io::ErrorKind::WouldBlock { Ok(()) } else { Err(error) };
            }
            // SAFETY: the event was just got, so its queue is not destroyed yet.
            unsafe { ibv_ack_cq_events(cq, 1) };
            self.events += 1;
        }
    }

    /// Asks for an event of the next completion; with `solicited` of the next that is an error or was solicited.
    pub(super) fn arm(&self, cq: NonNull<ibv_cq>, solicited: bool) -> Result<()> {
        // SAFETY: the queue is live.
        let context = unsafe { (*cq.as_ptr()).context };
        // SAFETY: its context is open. The table is read anew each time, as the inline function reads it.
        let arm = unsafe { (*context).ops.req_notify_cq };
        let arm = arm.ok_or_else(|| VerbError::says("ibv_req_notify_cq", "no such operation".to_owned()))?;
        // SAFETY: the queue is of this context.
        check("ibv_req_notify_cq", unsafe { arm(cq.as_ptr(), c_int::from(solicited)) })
    }

    /// Ends the waiting, so that no event is taken any more.
    pub fn stop(&mut self) {
        if let Hears::Thread(waiter) = std::mem::replace(&mut self.hears, Hears::Nothing) {
            waiter.stop();
        }
    }

    /// Destroys it; stopped, and with no queue on it.
    pub fn close(self) -> Result<()> {
        // SAFETY: `self` with the pointer is consumed.
        check("ibv_destroy_comp_channel", unsafe { ibv_destroy_comp_channel(self.channel.as_ptr()) })
    }
}

fn epoll_on(channel: NonNull<ibv_comp_channel>) -> Result<c_int> {
    // SAFETY: the channel was just made.
    let fd = unsafe { channel.as_ref() }.fd;
    // SAFETY: fcntl on an open descriptor.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    // SAFETY: as above.
    if unsafe { libc::fcntl(fd, libc::F_SETFL, flags | libc::O_NONBLOCK) } != 0 {
        return Err(VerbError::last("fcntl"));
    }
    // SAFETY: it makes a descriptor or says -1.
    let set = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    let mut wish = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
    // SAFETY: the wish is readable; a set of -1 is refused.
    if unsafe { libc::epoll_ctl(set, libc::EPOLL_CTL_ADD, fd, &mut wish) } != 0 {
        return Err(VerbError::last("epoll_ctl"));
    }
    Ok(set)
}

fn is_in_set(set: c_int, patience: Duration) -> Result<bool> {
    let mut found = libc::epoll_event { events: 0, u64: 0 };
    let millis = c_int::try_from(patience.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: there is room for one.
    let count = unsafe { libc::epoll_wait(set, &mut found, 1, millis) };
    match count {
        0 => Ok(false),
        count if count > 0 => Ok(true),
        _ => Err(VerbError::last("epoll_wait")),
    }
}
