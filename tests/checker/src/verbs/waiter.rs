//! A thread that sleeps in a verb that waits for events, and is cancelled in the end, as programs do it.
//!
//! A cancellation unwinds the frames of that thread: nothing in them is to be dropped. So it is started by the C library, has no state but a [`Job`], and tells
//! what came by a byte in a pipe.

use super::{check, Result, VerbError};
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut, NonNull};
use std::time::Duration;

extern "C-unwind" {
    fn write(fd: c_int, data: *const c_void, count: usize) -> isize;
}

extern "C" {
    fn pthread_cancel(thread: libc::pthread_t) -> c_int;
}

/// What the thread does; its argument is a [`Job`].
pub type Body = unsafe extern "C-unwind" fn(*mut c_void) -> *mut c_void;

/// What the thread works on.
#[derive(Debug)]
pub struct Job {
    /// What it waits for.
    pub object: *mut c_void,
    writer: c_int,
}

/// The thread. What must hold: stopped before its object is destroyed.
#[derive(Debug)]
pub struct Waiter {
    thread: libc::pthread_t,
    reader: c_int,
    job: NonNull<Job>,
}

/// Tells of an event; for the body.
///
/// # Safety
/// The job is the one that the body was given.
pub unsafe fn tell(job: *mut Job, byte: u8) -> bool {
    // SAFETY: the job is freed after the thread was joined.
    let writer = unsafe { (*job).writer };
    // SAFETY: one byte is readable.
    (unsafe { write(writer, (&raw const byte).cast(), 1) }) == 1
}

impl Waiter {
    /// Starts it.
    pub fn start(object: *mut c_void, body: Body) -> Result<Self> {
        let mut ends = [0; 2];
        // SAFETY: there is room for two descriptors.
        if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
            return Err(VerbError::last("pipe2"));
        }
        let [reader, writer] = ends;
        let job = Box::into_raw(Box::new(Job { object, writer }));
        // SAFETY: the two types differ in that the first says that unwinding may pass, as it does in C.
        let start = unsafe { std::mem::transmute::<Body, extern "C" fn(*mut c_void) -> *mut c_void>(body) };
        let mut thread = MaybeUninit::uninit();
        // SAFETY: the place is writable, and the job lives until the thread was joined.
        let errno = unsafe { libc::pthread_create(thread.as_mut_ptr(), null(), start, job.cast()) };
        check("pthread_create", errno)?;
        let job = NonNull::new(job).ok_or_else(|| VerbError::last("pthread_create"))?;
        // SAFETY: the call above wrote it.
        Ok(Self { thread: unsafe { thread.assume_init() }, reader, job })
    }

    /// What it told within `patience`.
    pub fn told(&self, patience: Duration) -> Result<Vec<u8>> {
        let mut wish = libc::pollfd { fd: self.reader, events: libc::POLLIN, revents: 0 };
        let millis = c_int::try_from(patience.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the array is one long.
        let ready = unsafe { libc::poll(&mut wish, 1, millis) };
        if ready <= 0 {
            return if ready == 0 { Ok(Vec::new()) } else { Err(VerbError::last("poll")) };
        }
        let mut block = vec![0_u8; 64];
        // SAFETY: the block is writable.
        let count = unsafe { libc::read(self.reader, block.as_mut_ptr().cast(), block.len()) };
        block.truncate(usize::try_from(count).map_err(|_| VerbError::last("read"))?);
        Ok(block)
    }

    /// Cancels it, and waits until it is gone.
    pub fn stop(self) {
        // SAFETY: the thread was started here and is joined once.
        unsafe { pthread_cancel(self.thread) };
        // SAFETY: as above.
        unsafe { libc::pthread_join(self.thread, null_mut()) };
        // SAFETY: it was leaked for the thread, which is gone.
        drop(unsafe { Box::from_raw(self.job.as_ptr()) });
    }
}
