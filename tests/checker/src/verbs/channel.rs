//! A completion channel: the events of completion queues, as a program hears of them that sleeps.

use super::{check, Result, VerbError};
use shift_abi::{ibv_comp_channel, ibv_context, ibv_cq};
use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut, NonNull};
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

extern "C-unwind" {
    fn write(fd: c_int, data: *const c_void, count: usize) -> isize;
}

extern "C" {
    fn pthread_cancel(thread: libc::pthread_t) -> c_int;
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
    waiter: Waiter,
    /// Events that came.
    pub events: u64,
}

#[derive(Debug)]
enum Waiter {
    Thread {
        thread: libc::pthread_t,
        /// A byte for each event; read here.
        reader: c_int,
        /// What the thread works on, freed once it is gone.
        job: NonNull<Job>,
    },
    Epoll {
        set: c_int,
    },
}

/// What the waiting thread works on.
#[derive(Debug)]
struct Job {
    channel: *mut ibv_comp_channel,
    writer: c_int,
}

/// Takes events for ever. A cancellation unwinds this frame: nothing in it is to be dropped.
unsafe extern "C-unwind" fn take_events(job: *mut c_void) -> *mut c_void {
    let job = job.cast::<Job>();
    loop {
        // SAFETY: the job is freed after this thread was joined.
        let channel = unsafe { (*job).channel };
        let (mut cq, mut context) = (null_mut(), null_mut());
        // SAFETY: the channel is live until this thread was joined; both places are writable.
        if unsafe { ibv_get_cq_event(channel, &mut cq, &mut context) } != 0 {
            return null_mut();
        }
        // SAFETY: the event was just got, so its queue is not destroyed yet.
        unsafe { ibv_ack_cq_events(cq, 1) };
        // SAFETY: as for the channel.
        let writer = unsafe { (*job).writer };
        // SAFETY: one byte of a constant is readable.
        if unsafe { write(writer, b"e".as_ptr().cast(), 1) } != 1 {
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
        let waiter = match waiting {
            Waiting::Thread => thread_on(channel)?,
            Waiting::Epoll => epoll_on(channel)?,
        };
        Ok(Self { channel, waiter, events: 0 })
    }

    pub(super) const fn as_ptr(&self) -> *mut ibv_comp_channel {
        self.channel.as_ptr()
    }

    /// Takes the events that came within `patience`; whether there was one.
    pub fn heard(&mut self, patience: Duration) -> Result<bool> {
        let before = self.events;
        match &self.waiter {
            Waiter::Thread { reader, .. } => self.events += read_bytes(*reader, patience)?,
            Waiter::Epoll { set } => {
                if is_in_set(*set, patience)? {
                    self.take_all()?;
                }
            }
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
    pub fn stop(&self) {
        if let Waiter::Thread { thread, .. } = self.waiter {
            // SAFETY: the thread was started by this process and is joined once, here.
            unsafe { pthread_cancel(thread) };
            // SAFETY: as above.
            unsafe { libc::pthread_join(thread, null_mut()) };
        }
    }

    /// Destroys it; stopped, and with no queue on it.
    pub fn close(self) -> Result<()> {
        if let Waiter::Thread { job, .. } = self.waiter {
            // SAFETY: it was leaked for the thread, which was joined.
            drop(unsafe { Box::from_raw(job.as_ptr()) });
        }
        // SAFETY: `self` with the pointer is consumed.
        check("ibv_destroy_comp_channel", unsafe { ibv_destroy_comp_channel(self.channel.as_ptr()) })
    }
}

fn thread_on(channel: NonNull<ibv_comp_channel>) -> Result<Waiter> {
    let mut ends = [0; 2];
    // SAFETY: there is room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(VerbError::last("pipe2"));
    }
    let [reader, writer] = ends;
    let job = Box::into_raw(Box::new(Job { channel: channel.as_ptr(), writer }));
    // SAFETY: the two types differ in that the first says that unwinding may pass, as it does in C.
    let start = unsafe {
        std::mem::transmute::<
            unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void,
            extern "C" fn(*mut c_void) -> *mut c_void,
        >(take_events)
    };
    let mut thread = MaybeUninit::uninit();
    // SAFETY: the place is writable, and the job lives until the thread was joined.
    let errno = unsafe { libc::pthread_create(thread.as_mut_ptr(), null(), start, job.cast()) };
    check("pthread_create", errno)?;
    let job = NonNull::new(job).ok_or_else(|| VerbError::last("pthread_create"))?;
    // SAFETY: the call above wrote it.
    Ok(Waiter::Thread { thread: unsafe { thread.assume_init() }, reader, job })
}

fn epoll_on(channel: NonNull<ibv_comp_channel>) -> Result<Waiter> {
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
    Ok(Waiter::Epoll { set })
}

fn millis(patience: Duration) -> c_int {
    c_int::try_from(patience.as_millis()).unwrap_or(c_int::MAX)
}

fn is_in_set(set: c_int, patience: Duration) -> Result<bool> {
    let mut found = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: there is room for one.
    let count = unsafe { libc::epoll_wait(set, &mut found, 1, millis(patience)) };
    match count {
        0 => Ok(false),
        count if count > 0 => Ok(true),
        _ => Err(VerbError::last("epoll_wait")),
    }
}

/// How many bytes could be read.
fn read_bytes(fd: c_int, patience: Duration) -> Result<u64> {
    let mut wish = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: the array is one long.
    let ready = unsafe { libc::poll(&mut wish, 1, millis(patience)) };
    if ready <= 0 {
        return if ready == 0 { Ok(0) } else { Err(VerbError::last("poll")) };
    }
    let mut block = [0_u8; 64];
    // SAFETY: the block is writable.
    let count = unsafe { libc::read(fd, block.as_mut_ptr().cast(), block.len()) };
    u64::try_from(count).map_err(|_| VerbError::last("read"))
}
